"""What a list is filled up with where the model has nothing more to say: popularity, for as much as is known.

A customer's segment, then the departments they touched, then what everybody buys: each is shrunk towards the one before
it, so that little knowledge moves the order little and none leaves it that of overall popularity. The score of an item
is its share of recent events times two lifts, of the customer's segments and of the customer's departments; a lift is a
share with ``m`` events of the wider population added to it (Dirichlet smoothing, as in Zhai and Lafferty 2004). A row's
source says which of these raised the item most.
Letters: n customers, k places, m items of the head.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from recsys_tasks.contract import POPULAR, POPULAR_CATEGORY, POPULAR_SEGMENT, TRENDING
from recsys_tasks.models import Ranked
from recsys_tasks.models.base import FILL_HALF_LIFE_DAYS, codes_of, top_k
from recsys_tasks.models.trace import Trace
from recsys_tasks.snapshot import DAY, Catalog, Interactions

HEAD = 1000
"""Items, the most popular ones, that a list is filled from; and so many of all departments together."""
SEGMENT_EVENTS = 2000.0
"""Recent events of the whole shop that are added to those of a segment."""
OWN_EVENTS = 30.0
"""Events of the whole shop that are added to those of a customer."""
LEAST = 0.05
"""Log lift from which on a row's source is the segment or the department."""
MOST_VALUES = 200
"""Values of an attribute, the most common ones, that make a segment."""
RECENT_DAYS, EARLIER_DAYS = 7, 28
"""Windows whose sales are compared: the last one, and the one before it."""
SURE = 2.0
"""Standard errors by which an item must have risen."""
_ROWS = 2048
"""Customers worked on at a time."""


def rise(log: Interactions) -> np.ndarray:
    """Return (n_items,) float64, by how much each item surely sells more of late than before; 0 where it does not.

    The logarithm of its share of the last ``RECENT_DAYS`` days' sales over that of the ``EARLIER_DAYS`` before, less
    ``SURE`` standard errors: log (a + 1/2)(B + 1) / (b + 1/2)(A + 1), with error sqrt(1 / (a + 1/2) + 1 / (b + 1/2))
    (Haldane and Anscombe's correction). A sale is a customer's day with an item; days count back from ``as_of``.
    """
    day = (log.as_of - 1 - log.time) // DAY
    rows = np.flatnonzero(log.is_target & (day < RECENT_DAYS + EARLIER_DAYS))
    sale = (log.user_idx[rows].astype(np.int64) * log.n_items + log.item_idx[rows]) * 64 + day[rows]
    sale = np.unique(sale)
    is_recent, item = sale % 64 < RECENT_DAYS, sale // 64 % log.n_items
    now, before = (np.bincount(item[part], minlength=log.n_items) for part in (is_recent, ~is_recent))
    ratio = np.log((now + 0.5) * (before.sum() + 1) / ((before + 0.5) * (now.sum() + 1)))
    return np.maximum(ratio - SURE * np.sqrt(1 / (now + 0.5) + 1 / (before + 0.5)), 0)


def first_distinct(items: np.ndarray, k: int) -> np.ndarray:
    """Return (n, k) the columns of the first k different items of each row of (n, w); -1 is no item, and no column.

    >>> first_distinct(np.array([[4, -1, 4, 2, 3]]), 4).tolist()
    [[0, 3, 4, -1]]

    """
    order = np.argsort(items, axis=1, kind="stable")
    ordered, again = np.take_along_axis(items, order, 1), np.zeros(items.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    is_new = np.empty(items.shape, bool)
    np.put_along_axis(is_new, order, ~again, 1)
    is_new &= items >= 0
    place = np.cumsum(is_new, 1) - 1
    row, column = np.nonzero(is_new & (place < k))
    found = np.full((len(items), k), -1)
    found[row, place[row, column]] = column
    return found


@dataclass(frozen=True)
class BackOff:
    """The popularity of one night, and what it is in segments and departments."""

    log: Interactions
    head: np.ndarray
    """(m,) int32, items that lists are filled from, the most popular first"""
    share: np.ndarray
    """(m,) float64, of all recent events"""
    department: np.ndarray
    """(n_items,) int32, -1 for none"""
    segments: list[tuple[np.ndarray, np.ndarray]]
    """Of each attribute, (n_users,) the value's number, 0 for none, and (n_values, m) float32 log lifts"""
    rises: np.ndarray
    """(m,) bool"""

    @classmethod
    def of(
        cls, log: Interactions, catalog: Catalog, attributes: dict[str, np.ndarray], candidates: np.ndarray
    ) -> "BackOff":
        """Count what is popular; ``attributes`` as ``Snapshot.attributes`` gives them."""
        value = log.weight * 0.5 ** (log.age_days / FILL_HALF_LIFE_DAYS)
        popularity = np.bincount(log.item_idx, weights=value, minlength=log.n_items)
        department = codes_of(["", *catalog.departments])[1:] - 1
        head = _head(popularity, department, candidates)
        total = max(popularity.sum(), 1e-9)
        share = np.maximum(popularity[head], 1e-9 * total) / total
        place = np.full(log.n_items, -1)
        place[head] = np.arange(len(head))
        segments = [_segments(log, values, value, place, share) for values in attributes.values()]
        told = [found for found in segments if len(found[1]) > 1]
        return cls(log, head, share, department, told, rise(log)[head] > 0)

    def refill(
        self, ranked: Ranked, users: np.ndarray, candidates: np.ndarray, exclude_seen: bool, trace: Trace | None = None
    ) -> Ranked:
        """Return the lists with other items in the places marked ``filled``; everything else stays as it is.

        Where the head has too few that the list may hold, popular items stay. Scores keep their values. The trace,
        which tells of the same lists, is told as well.
        """
        rows = np.flatnonzero(ranked.filled.any(1))
        if not len(rows) or not len(self.head):
            return ranked
        items, sources = ranked.items.copy(), ranked.sources.copy()
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            self._refill(ranked, part, users[part], candidates, exclude_seen, items, sources)
        if trace:
            told = min(trace.listed, items.shape[1])
            trace.items[:, :told] = items[:, :told]
        return replace(ranked, items=items, sources=sources)

    def _refill(
        self,
        ranked: Ranked,
        rows: np.ndarray,
        users: np.ndarray,
        candidates: np.ndarray,
        exclude_seen: bool,
        items: np.ndarray,
        sources: np.ndarray,
    ) -> None:
        k = items.shape[1]
        own = np.where(ranked.filled[rows], -1, ranked.items[rows])
        by_segment = np.zeros((len(users), len(self.head)), np.float32)
        for of_user, lift in self.segments:
            by_segment += lift[np.where(users >= 0, of_user[users], 0)] / len(self.segments)
        by_department = self.taste(users)[:, self.department[self.head]]
        score = np.log(self.share).astype(np.float32) + by_segment + by_department  # (n, m)
        score[:, ~candidates[self.head]] = -np.inf
        place = np.full(self.log.n_items, -1)
        place[self.head] = np.arange(len(self.head))
        row, column = np.nonzero((own >= 0) & (place[own] >= 0))
        score[row, place[own[row, column]]] = -np.inf
        if exclude_seen:
            known = np.flatnonzero(users >= 0)
            bought = self.log.bought[users[known]].tocoo()
            there = place[bought.col] >= 0
            score[known[bought.row[there]], place[bought.col[there]]] = -np.inf
        best, _ = top_k(score, min(k, len(self.head)))
        there, at = best >= 0, np.maximum(best, 0)
        more = np.where(there, self.head[at], -1)
        segment, department = (np.take_along_axis(lift, at, 1) for lift in (by_segment, by_department))
        why = np.select(
            [(department > LEAST) & (department >= segment), segment > LEAST, self.rises[at]],
            [POPULAR_CATEGORY, POPULAR_SEGMENT, TRENDING],
            POPULAR,
        ).astype(object)
        # what the model proposed, then these, and popular ones where the head ends
        pool = np.concatenate([own, more, np.where(ranked.filled[rows], ranked.items[rows], -1)], 1)
        told = np.concatenate([ranked.sources[rows], why, ranked.sources[rows]], 1)
        columns = first_distinct(pool, k)
        listed, columns = columns >= 0, np.maximum(columns, 0)
        items[rows] = np.where(listed, np.take_along_axis(pool, columns, 1), -1)
        sources[rows] = np.take_along_axis(told, columns, 1)

    def taste(self, users: np.ndarray) -> np.ndarray:
        """Return (n, n_departments + 1) float32 log lifts of a customer's departments, the last of items of none.

        Above 0 are those that take more of the customer's events than of everybody's; of visitors all are 0.
        """
        n = int(self.department.max(initial=-1)) + 1
        share = np.bincount(self.department[self.log.item_idx] + 1, minlength=n + 1)[1:] / max(len(self.log), 1)
        known = np.flatnonzero(users >= 0)
        events, of = self.log.of_users(users[known])
        touched = self.department[self.log.item_idx[events]]
        told = touched >= 0
        at = (known[of[told]], touched[told])
        count = sp.csr_matrix((self.log.weight[events[told]], at), shape=(len(users), n)).toarray()
        share = np.maximum(share, 1e-9)
        lift = (count + OWN_EVENTS * share) / (count.sum(1, keepdims=True) + OWN_EVENTS) / share
        return np.pad(np.log(lift), ((0, 0), (0, 1))).astype(np.float32)


def _head(popularity: np.ndarray, department: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the candidates that are popular in the whole shop or in their department, the most popular first."""
    by_popularity = np.lexsort((np.arange(len(popularity)), -popularity))
    by_popularity = by_popularity[candidates[by_popularity]]
    of = department[by_popularity]
    order = np.argsort(of, kind="stable")
    rank = np.empty(len(of), np.int64)
    rank[order] = np.arange(len(of)) - np.searchsorted(of[order], of[order])  # within its department, from 0
    n = max(len(np.unique(of)), 1)
    kept = (np.arange(len(of)) < HEAD) | ((rank < HEAD // n) & (of >= 0))
    return by_popularity[kept].astype(np.int32)


def _segments(
    log: Interactions, values: np.ndarray, weight: np.ndarray, place: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each customer's value, and the log lifts of each value, none of which is number 0."""
    names, code, customers = np.unique(values, return_inverse=True, return_counts=True)
    kept = np.argsort(-np.where(names == "", 0, customers), kind="stable")[:MOST_VALUES]
    kept = kept[(names[kept] != "") & (customers[kept] > 1)]
    number = np.zeros(len(names), np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    of_user, n = number[code.ravel()], len(kept) + 1
    of_event, at = of_user[log.user_idx], place[log.item_idx]
    total = np.bincount(of_event, weights=weight, minlength=n)
    there = (at >= 0) & (of_event > 0)
    count = np.bincount(of_event[there] * len(share) + at[there], weights=weight[there], minlength=n * len(share))
    lift = (count.reshape(n, -1) + SEGMENT_EVENTS * share) / (total[:, None] + SEGMENT_EVENTS) / share
    lift[0] = 1
    return of_user, np.log(lift).astype(np.float32)
