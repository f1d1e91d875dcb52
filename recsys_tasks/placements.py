"""What the placements hold that no champion fills: lists counted from the log, for customers and for items.

``contract.PLACEMENTS`` is the one list of them, ``contract.OF_ITEMS`` tells whose readers are items. Every list is made
by a function from (n,) readers, k and (n_items,) candidates to ``Ranked``, which rules may ask again for more. The same
reader gets the same list in whatever shard; equal scores stand in the order of ``item_idx``.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import scipy.sparse as sp

from recsys_tasks.backoff import BackOff, first_distinct, rise
from recsys_tasks.contract import BOUGHT_TOGETHER, BUY_AGAIN, EVENT_TYPES, NEW, POPULAR, POPULAR_CATEGORY, TRENDING
from recsys_tasks.models import Ranked
from recsys_tasks.models.base import FILL_HALF_LIFE_DAYS, codes_of, top_k
from recsys_tasks.models.features import Rhythm
from recsys_tasks.nearest import NearestItems
from recsys_tasks.recipe import Shelf
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import DAY, Catalog, Interactions, Snapshot

Ask = Callable[[np.ndarray, int, np.ndarray], tuple[Ranked, None]]
"""From (n,) readers, how many items, and (n_items,) candidates to lists; a customer is a user_idx, -1 for visitors."""

AGAIN_HALF_LIFE = 90.0
"""Days over which what a customer bought fades."""
AGAIN_PRIOR = 4.0
"""Intervals of the item that are added to a customer's own."""
AGAIN_DAYS = 14
"""The last days of the log, from which it is learned how much the time since the last purchase says."""
DUE = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Ends of the intervals of that time, as multiples of the usual one, that are told apart."""
SHRINK = 5.0
"""Purchases, or intervals, of the category that are added to an item's; of the shop to a category's."""

BASKET_DAYS = 365
"""Baskets that are looked at are no older."""
MOST_IN_BASKET = 200
"""Items of a basket beyond which it is a warehouse's."""
LEAST_BASKETS = 2
"""Baskets that two items must have in common."""
TOGETHER_SHRINK = 20.0
"""Baskets that are added to those found, and to those expected."""

RISERS = 1000
"""Items that rise, the surest ones, that lists hold."""
NEWEST = 2000
"""New items, the ones most bought so far, that lists hold."""
NEW_DAYS = (7, 14, 30, 60, 90)
"""Ages up to which an item is new, where the shop does not say."""
NEW_FIT = 1.0
"""Weight of likeness (a cosine) beside the place by popularity, which runs from 0 to 1."""
_ROWS = 4096
"""Readers worked on at a time."""


class Lists:
    """The lists of one night that no champion fills; what they are counted from is counted when first asked for."""

    def __init__(self, shelf: Shelf, index: str, k: int) -> None:
        self.shelf, self.index, self.k = shelf, index, k
        self.log, self.catalog = shelf.interactions, shelf.catalog

    def ask(self, placement: str) -> Ask:
        """Return what makes the lists of a placement."""
        return {
            "buy_again": self._buy_again,
            "similar": self._similar,
            "bought_together": self._bought_together,
            "trending": self._trending,
            "new": self._new,
        }[placement]

    # ---- for customers

    def _buy_again(self, users: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, None]:
        """Only what the customer bought, by how much it is due; as long as there is something, and no longer."""
        found = self._due
        of_reader = np.full(self.log.n_users + 1, -1)  # the last one is a visitor's
        of_reader[users] = np.arange(len(users))
        of_reader[-1] = -1
        there = np.flatnonzero((of_reader[found.row] >= 0) & candidates[found.column])
        row, item, score = of_reader[found.row[there]], found.column[there], self._due_score[there]
        order = np.lexsort((item, -score, row))
        row, item, score = row[order], item[order], score[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < k
        items, scores = np.full((len(users), k), -1, np.int32), np.zeros((len(users), k), np.float32)
        items[row[kept], place[kept]], scores[row[kept], place[kept]] = item[kept], score[kept]
        return Ranked(items, scores, np.zeros(items.shape, bool), np.full(items.shape, BUY_AGAIN, object)), None

    @cached_property
    def _due(self) -> Rhythm:
        return Rhythm.of(self.log.item_idx, self.log.n_items, self.log, self.log.is_target)

    @cached_property
    def _due_score(self) -> np.ndarray:
        return due(self.log, self._due, codes_of(self.catalog.categories))

    def _trending(self, users: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, None]:
        """What rises, first in departments that take more of the customer's events than of everybody's."""
        surely = np.where(candidates, self.rises, 0)
        risers = np.lexsort((np.arange(len(surely)), -surely))[: max(RISERS, k)]
        risers = risers[surely[risers] > 0].astype(np.int32)
        value = (surely[risers] / (1 + surely[risers])).astype(np.float32)  # in [0, 1)
        items, scores = np.full((len(users), k), -1, np.int32), np.zeros((len(users), k), np.float32)
        for start in range(0, len(users) if len(risers) else 0, _ROWS):
            part = slice(start, start + _ROWS)
            to_taste = self.back_off.taste(users[part])[:, self.back_off.department[risers]] > 0  # (rows, m)
            count = to_taste.cumsum(1, dtype=np.int16)  # of them up to each place; the others follow the last
            place = np.where(to_taste, count, count[:, -1:] + np.arange(1, len(risers) + 1, dtype=np.int16) - count) - 1
            row, column = np.nonzero(place < k)
            at = row + start, place[row, column]
            items[at], scores[at] = risers[column], 1 + to_taste[row, column] + value[column]
        popular = self._popular(candidates)[: 2 * k]
        popular = np.broadcast_to(popular, (len(users), len(popular)))
        ranked = stacked(k, items, scores, TRENDING, [(popular, POPULAR)])
        return self.back_off.refill(ranked, users, candidates, exclude_seen=False), None

    def _new(self, users: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, None]:
        """What is new, by likeness to what the customer bought, and by what everybody bought of it so far."""
        popularity = np.where(candidates & self.is_new, self.popularity, -1)
        newest = np.lexsort((np.arange(len(popularity)), -popularity))[: max(NEWEST, k)]
        newest = newest[popularity[newest] >= 0]
        order = -np.arange(len(newest), dtype=np.float32) / max(len(newest), 1)  # (m,) in (-1, 0]
        vectors = self.shelf.text_vectors
        items, scores = np.full((len(users), k), -1, np.int32), np.zeros((len(users), k), np.float32)
        for start in range(0, len(users) if len(newest) else 0, _ROWS):
            part = users[start : start + _ROWS]
            own = self.log.bought[np.maximum(part, 0)].sign().multiply((part >= 0)[:, None]).tocsr()
            profile = own @ vectors
            profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
            fit = NEW_FIT * (profile @ vectors[newest].T).astype(np.float32) + order
            best, value = top_k(fit, min(k, len(newest)))
            rows = slice(start, start + len(part))
            items[rows, : best.shape[1]], scores[rows, : best.shape[1]] = newest[best], value
        return Ranked(items, scores, np.zeros(items.shape, bool), np.full(items.shape, NEW, object)), None

    # ---- for items

    def _similar(self, items: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, None]:
        """Items nearest by vector, filled up with what is popular in the category, then in the shop."""
        near, likeness = self._near(items, k, candidates)
        return stacked(k, near, likeness, self._vectors_of, self._fills(items, k, candidates), never=items), None

    def _bought_together(self, items: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, None]:
        """Items of the same baskets, more than chance would have there; then similar ones, then popular ones."""
        with_it, lifts = self._together.of(items, k, candidates)
        near, _ = self._near(items, k, candidates)
        fills = [(near, self._vectors_of), *self._fills(items, k, candidates)]
        return stacked(k, with_it, lifts, BOUGHT_TOGETHER, fills, never=items), None

    def _near(self, items: np.ndarray, k: int, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, k) candidates nearest to each item, among equally near ones (to a hundredth) the more popular."""
        nearest, rows = self._nearest
        place = np.full(len(candidates), -1)
        place[rows] = np.arange(len(rows))
        with_vector = np.flatnonzero(place[items] >= 0)
        best, scores = np.full((len(items), k), -1, np.int32), np.zeros((len(items), k), np.float32)
        popularity = 0.009 * self.popularity / (self.popularity.max() + 1e-9)
        for start in range(0, len(with_vector), _ROWS):
            batch = with_vector[start : start + _ROWS]
            found, likeness = nearest.search(nearest.vectors[place[items[batch]]], 4 * k + 1)  # (batch, 4k + 1)
            found = rows[found]
            order_by = np.round(likeness, 2) + popularity[found]
            order_by[(found == items[batch, None]) | ~candidates[found]] = -np.inf
            top, value = top_k(order_by.astype(np.float32), min(k, found.shape[1]))
            there = top >= 0
            top = np.where(there, np.take_along_axis(found, np.maximum(top, 0), 1), -1)
            best[batch, : top.shape[1]], scores[batch, : top.shape[1]] = top, np.where(there, value, 0)
        return best, scores

    def _fills(self, items: np.ndarray, k: int, candidates: np.ndarray) -> list[tuple[np.ndarray, str]]:
        """Return for (n,) items the most popular of their category, and of all."""
        category = codes_of(["", *self.catalog.categories])[1:]  # 0 for none
        popular = self._popular(candidates)
        order = np.argsort(category[popular], kind="stable")
        of, by_category = category[popular][order], popular[order]
        place = np.arange(len(of)) - np.searchsorted(of, of)
        heads = np.full((int(category.max()) + 1, k + 1), -1, np.int32)
        heads[of[place <= k], place[place <= k]] = by_category[place <= k]
        heads[0] = -1
        width = min(4 * k + 2, len(popular))  # what is in the other parts may stand among them
        return [
            (heads[category[items]], POPULAR_CATEGORY),
            (np.broadcast_to(popular[:width], (len(items), width)), POPULAR),
        ]

    @cached_property
    def _nearest(self) -> tuple[NearestItems, np.ndarray]:
        folder = self.shelf.lake.path(self.index)
        return NearestItems.load(folder), np.load(folder / "rows.npy", allow_pickle=False)

    @cached_property
    def _vectors_of(self) -> str:
        return self.shelf.lake.manifest(self.index)["vectors"].partition(" ")[0]

    @cached_property
    def _together(self) -> "Together":
        return Together.load(self.shelf.lake.path(self.index))

    # ---- what they are counted from

    @cached_property
    def popularity(self) -> np.ndarray:
        """(n_items,) float64, recent events."""
        return self.log.popularity(FILL_HALF_LIFE_DAYS)

    def _popular(self, candidates: np.ndarray) -> np.ndarray:
        by_popularity = np.lexsort((np.arange(len(self.popularity)), -self.popularity)).astype(np.int32)
        return by_popularity[candidates[by_popularity]]

    @cached_property
    def rises(self) -> np.ndarray:
        """(n_items,) float64; see ``backoff.rise``."""
        return rise(self.log)

    @cached_property
    def is_new(self) -> np.ndarray:
        """(n_items,) bool; see ``newness``."""
        return newness(self.log, self.catalog, self.shelf.shop.new_days, self.k)

    @cached_property
    def back_off(self) -> BackOff:
        """What fills up lists of customers."""
        candidates = self.catalog.candidates(self.log.as_of)
        return BackOff.of(self.log, self.catalog, self.shelf.attributes, candidates)


def stacked(
    k: int,
    items: np.ndarray,
    scores: np.ndarray,
    source: str,
    fills: Sequence[tuple[np.ndarray, str]],
    never: np.ndarray | None = None,
) -> Ranked:
    """Return lists of k: (n, w) items, -1 behind the last, then what fills them up, each with its source.

    ``never`` are (n,) items that a list leaves out. Scores of what fills up fall from the last own one.
    """
    if items.shape[1] == k and (items >= 0).all():
        return Ranked(items, scores, np.zeros(items.shape, bool), np.full(items.shape, source, object))
    pool = np.concatenate([items, *(more for more, _ in fills)], 1)
    if never is not None:
        pool = np.where(pool == never[:, None], -1, pool)
    part = np.repeat(np.arange(len(fills) + 1), [items.shape[1], *(more.shape[1] for more, _ in fills)])
    columns = first_distinct(pool, k)
    there, at = columns >= 0, np.maximum(columns, 0)
    own = there & (columns < items.shape[1])
    n_own = own.sum(1)
    value = np.where(own, np.take_along_axis(scores, np.minimum(at, items.shape[1] - 1), 1), 0)
    floor = np.where(n_own > 0, value[np.arange(len(value)), np.maximum(n_own - 1, 0)], 1)
    value = np.where(own, value, floor[:, None] - (np.arange(k) - n_own[:, None] + 1) / 1024)
    names = np.array([source, *(name for _, name in fills)], object)
    return Ranked(
        np.where(there, np.take_along_axis(pool, at, 1), -1).astype(np.int32),
        np.where(there, value, 0).astype(np.float32),
        there & ~own,
        names[part[at]],
    )


def due(log: Interactions, pairs: Rhythm, category: np.ndarray) -> np.ndarray:
    """Return (n_pairs,) float64, how much what a customer bought is due: what they may buy of it in the next days.

    Three factors: the customer's purchases of the item, halved every ``AGAIN_HALF_LIFE`` days; the root of the part of
    the item's buyers who came back to it; and the odds that the time since the last purchase gives in this shop, as a
    multiple of the usual one. These are what came true in the last ``AGAIN_DAYS`` days beside what the other two
    factors expected. Intervals and parts are shrunk: a customer's to the item's, its to its category's, its to the
    shop's. (Bhagat et al. 2018, "Buy It Again", have a Gamma prior and a fixed shape instead; on the demo shop's
    validation window that is worse than purchases that fade.)
    """
    expected, usual = _expected(log, pairs, category)
    early = log.before(log.as_of - AGAIN_DAYS * DAY)
    if not early.is_target.any():
        return expected
    then = Rhythm.of(early.item_idx, early.n_items, early, early.is_target)
    thought, interval = _expected(early, then, category)
    later = log.since(early.as_of)
    came = np.unique(later.user_idx[later.is_target].astype(np.int64) * log.n_items + later.item_idx[later.is_target])
    true = np.isin(then.key, came)
    rate = max(true.sum(), 1) / max(thought.sum(), 1e-9)
    bins = [
        np.digitize(since, DUE) for since in ((early.as_of / DAY - then.last) / interval, _since(log, pairs) / usual)
    ]
    n = len(DUE) + 1
    odds = (np.bincount(bins[0], true, n) / rate + SHRINK) / (np.bincount(bins[0], thought, n) + SHRINK)
    return expected * odds[bins[1]]


def _since(log: Interactions, pairs: Rhythm) -> np.ndarray:
    return log.as_of / DAY - pairs.last


def _expected(log: Interactions, pairs: Rhythm, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of each pair the first two factors of ``due``, and the usual days between two purchases."""
    item, gaps, span = pairs.column, pairs.days - 1, pairs.last - pairs.first
    interval = _shrunk(np.bincount(item, span, log.n_items), np.bincount(item, gaps, log.n_items), category)
    again = _shrunk(np.bincount(item, gaps > 0, log.n_items), np.bincount(item, minlength=log.n_items), category)
    usual = (span + AGAIN_PRIOR * interval[item]) / (gaps + AGAIN_PRIOR)
    return pairs.weights[AGAIN_HALF_LIFE] * np.sqrt(again[item]), np.maximum(usual, 1.0)


def _shrunk(of: np.ndarray, by: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Return ``of / by`` of items, shrunk to that of their categories, and that to the shop's."""
    whole = of.sum() / max(by.sum(), 1)
    wide = (np.bincount(category, of) + SHRINK * whole) / (np.bincount(category, by) + SHRINK)
    return (of + SHRINK * wide[category]) / (by + SHRINK)


def newness(log: Interactions, catalog: Catalog, days: int | None, k: int) -> np.ndarray:
    """Return (n_items,) bool: items that have been known for no more than so many days.

    An item is known from the earlier of its catalogue row's ``updated_at`` and its first event; one that has neither is
    not new. Without ``days``, the shortest of ``NEW_DAYS`` counts in which at least ``k`` candidates became known, else
    the longest; none that reaches back beyond half of the log, before which nothing is known.
    """
    begin = log.time[0] if len(log) else log.as_of
    since = np.full(log.n_items, np.iinfo(np.int64).max)
    np.minimum.at(since, log.item_idx, log.time)
    since = np.minimum(since, np.where(catalog.known_since > 0, catalog.known_since, since))
    if days is None:
        able = [n for n in NEW_DAYS if 2 * n * DAY <= log.as_of - begin]
        candidates = catalog.candidates(log.as_of)
        enough = [n for n in able if (candidates & _is_since(since, log, n)).sum() >= k]
        days = (enough or able[-1:] or [0])[0]
    return _is_since(since, log, days)


def _is_since(since: np.ndarray, log: Interactions, days: int) -> np.ndarray:
    return (since >= log.as_of - days * DAY) & (since < log.as_of)


class Together:
    """Items that stood in the same baskets more often than chance would put them there.

    The lift of a pair is (c + s) / (e + s): c baskets hold both, e = c_i c_j / N would if they were independent, and
    s = ``TOGETHER_SHRINK`` baskets keep pairs that were seen a few times from the top.
    """

    _FILES = ("lift", "item", "start")

    def __init__(self, lift: sp.csr_matrix) -> None:
        self.lift = lift
        """(n_items, n_items) float32, of the pairs that lists may hold"""

    @classmethod
    def count(cls, basket: np.ndarray, item: np.ndarray, n_items: int, most: int) -> "Together":
        """Count (n_lines,) lines, one an item of a basket; keep the ``most`` best partners of each item."""
        size = np.bincount(basket)
        kept = size[basket] <= MOST_IN_BASKET
        x = sp.csr_matrix((np.ones(kept.sum(), np.float32), (basket[kept], item[kept])), shape=(len(size), n_items))
        n, of = max(len(np.unique(basket[kept])), 1), np.asarray(x.sum(0)).ravel()
        by_item, parts = x.T.tocsr(), []
        for start in range(0, n_items, 1000):
            both = (by_item[start : start + 1000] @ x).tocoo()
            one, other, c = both.row + start, both.col, both.data
            lift = (c + TOGETHER_SHRINK) / (of[one] * of[other] / n + TOGETHER_SHRINK)
            good = np.flatnonzero((one != other) & (c >= LEAST_BASKETS) & (lift > 1))
            good = good[np.lexsort((other[good], -lift[good], one[good]))]
            good = good[np.arange(len(good)) - np.searchsorted(one[good], one[good]) < most]
            parts.append((one[good], other[good], lift[good]))
        one, other, lift = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(sp.csr_matrix((lift.astype(np.float32), (one, other)), shape=(n_items, n_items)))

    def of(self, items: np.ndarray, k: int, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, k) the candidates with the highest lifts, -1 behind the last, and these."""
        found = self.lift[items].tocoo()
        there = candidates[found.col]
        row, item, lift = found.row[there], found.col[there], found.data[there]
        order = np.lexsort((item, -lift, row))
        row, item, lift = row[order], item[order], lift[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < k
        best, scores = np.full((len(items), k), -1, np.int32), np.zeros((len(items), k), np.float32)
        best[row[kept], place[kept]], scores[row[kept], place[kept]] = item[kept], lift[kept]
        return best, scores

    def save(self, folder: Path) -> None:
        """Write one ``.npy`` file an array."""
        for name, array in zip(self._FILES, (self.lift.data, self.lift.indices, self.lift.indptr), strict=True):
            np.save(folder / f"together_{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Together":
        """Read what ``save`` wrote."""
        data, indices, indptr = (np.load(folder / f"together_{name}.npy", allow_pickle=False) for name in cls._FILES)
        return cls(sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, len(indptr) - 1)))


def baskets(snapshot: Snapshot, shop: Shop, as_of: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (n_lines,) basket and item_idx, each item of a basket once.

    A basket are the target events of a customer that have a ``session_id`` in common, or without one a day (UTC).
    """
    history = snapshot.history()
    time = history.array("time")
    first = int(np.searchsorted(time, as_of - BASKET_DAYS * DAY))
    user, item, time, kind = (history.array(name)[first:] for name in ("user", "item", "time", "type"))
    catalogue = snapshot.item_ids()
    place = pc.index_in(history.items, catalogue).fill_null(-1).to_numpy().astype(np.int64)[item]
    rows = np.flatnonzero((kind == EVENT_TYPES.index(shop.target)) & (place >= 0))
    session = snapshot.sessions(first)[rows]
    when = np.where(session >= 0, session, session.max(initial=-1) + 1 + time[rows] // DAY)
    _, basket = np.unique(np.stack([user[rows].astype(np.int64), when], 1), axis=0, return_inverse=True)
    lines = np.unique(basket.ravel() * np.int64(len(catalogue)) + place[rows])
    return lines // len(catalogue), lines % len(catalogue)
