"""The diversity dial: proposals in another order, for variety, for the customer's own mix, and for what is seldom seen.

A list is written place by place. Each place goes to the proposal with the highest

    (1 - mmr - calibration) relevance - mmr likeness - calibration divergence

where likeness is that to the nearest item above (maximal marginal relevance; Carbonell & Goldstein 1998, their lambda
is 1 - mmr) and divergence the Kullback-Leibler divergence of the list's departments from the customer's (Steck 2018,
"Calibrated Recommendations", equations 2 to 4, alpha .01). Floors come before: of any first p places at least
floor(share p) are of the long tail, or new, as long as there are such proposals (the minimum of Geyik et al. 2019,
"Fairness-Aware Ranking"). Where both floors fall due at once, new items come first and the other a place later.

Our deviations. Relevance is 1 / log2(1 + place), what ndcg gives a hit there, and not the score: scores of different
models are not comparable, so a dial on them would mean something else whenever the champion changes. Items that are
opposite to each other count as unlike, not as more than that. Few events say little of a customer's mix, so everybody's
counts as one event more.

Letters: n customers, K proposals of each, best first, k places, d numbers of a vector, G departments.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from recsys_tasks.models import Model, Ranked
from recsys_tasks.models.base import codes_of
from recsys_tasks.models.content import unit
from recsys_tasks.models.trace import Trace
from recsys_tasks.placements import newness
from recsys_tasks.recipe import Shelf
from recsys_tasks.shop import Dial, Shop
from recsys_tasks.snapshot import Catalog, Interactions

PROPOSALS = 3
"""So many times the length of a list are proposed to the dial."""
DIMENSIONS = 64
"""Of the vectors that likeness is told by."""
ALPHA = 0.01
"""Part of the customer's mix that is put into the list's, so that a divergence is never infinite."""
FLOORS = ("new", "long_tail")
"""What may have a share of the places, in the order of who comes first."""
WHY = ("for variety", "as a new item", "as an item of the long tail")
"""What raised an item: the weights, or a floor."""
_CELLS = 4_000_000
"""Likenesses, or proposals, held at a time."""

Ask = Callable[[np.ndarray, int, np.ndarray], tuple[Ranked, Trace | None]]
"""From (n,) customers, how many items, and (n_items,) candidates to lists, and how they came about."""


@dataclass(frozen=True)
class Pool:
    """Proposals of customers, and what the dial asks of them; all arrays are (n, K) unless said."""

    items: np.ndarray
    """int32 item_idx, best first; -1 behind the last"""
    likeness: np.ndarray | None
    """(n, K, K) float32, cosines of each proposal with each; None where nobody asks"""
    group: np.ndarray
    """int32, the department"""
    taste: np.ndarray
    """float32, the share of that department in the customer's mix"""
    kinds: dict[str, np.ndarray]
    """By ``FLOORS``, bool"""


def relevance(width: int) -> np.ndarray:
    """Return (width,) float32, falling from 1: the discount of ndcg."""
    return (1 / np.log2(np.arange(2, width + 2))).astype(np.float32)


def arranged(pool: Pool, dial: Dial, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which proposal stands in each of k places, (n, k) int32, -1 for none, and the floor that put it there.

    The latter is (n, k) int8: 0 for none, else the place in ``FLOORS`` from 1. Of equally good proposals the first is
    taken. The first places are the same for every k.
    """
    n, width = pool.items.shape
    k, row = min(k, width), np.arange(n)
    columns, floor_of = np.full((n, k), -1, np.int32), np.zeros((n, k), np.int8)
    length = (pool.items >= 0).sum(1)
    worth = np.where(pool.items >= 0, (1 - dial.mmr - dial.calibration) * relevance(width), -np.inf).astype(np.float32)
    nearest, of_group, value = (np.zeros((n, width), np.float32) for _ in range(3))
    floors = [(number, name, getattr(dial, name)) for number, name in enumerate(FLOORS, 1) if getattr(dial, name)]
    listed = {name: np.zeros(n, np.int32) for _, name, _ in floors}
    for place in range(k):
        np.multiply(nearest, -dial.mmr, out=value)
        value += worth
        if dial.calibration:
            value += dial.calibration * _nearer(pool.taste, of_group, place)
        free, fits = value.argmax(1), value
        for number, name, share in floors:
            due = (listed[name] < np.floor(share * (place + 1) + 1e-6)) & (place < length)
            if due.any():
                own = np.where(pool.kinds[name], fits, -np.inf)
                due &= own.max(1) > -np.inf
                fits = np.where(due[:, None], own, fits)
                floor_of[:, place] = np.where(due & (floor_of[:, place] == 0), number, floor_of[:, place])
        at = fits.argmax(1)
        floor_of[at == free, place] = 0
        columns[:, place] = np.where(place < length, at, -1)
        worth[row, at] = -np.inf
        for name, count in listed.items():
            count += pool.kinds[name][row, at]
        if dial.mmr and pool.likeness is not None:
            np.maximum(nearest, pool.likeness[row, at], out=nearest)
        if dial.calibration:
            of_group += pool.group == pool.group[row, at, None]
    return columns, np.where(columns >= 0, floor_of, 0)


def _nearer(taste: np.ndarray, above: np.ndarray, place: int) -> np.ndarray:
    """Return (n, K) by how much each proposal, put behind ``place`` others, lowers the list's divergence.

    Less what is the same for all of them. ``above`` counts those of the others that are of the proposal's department.
    """
    share = (1 - ALPHA) * above + ALPHA * (place + 1) * taste  # times (place + 1), without the proposal
    return taste * np.log(1 + (1 - ALPHA) / np.maximum(share, 1e-12))


def divergence(taste: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Return (n,) Kullback-Leibler divergences of (n, G) mixes of lists from their customers' (Steck, equation 2)."""
    mixed = (1 - ALPHA) * mix + ALPHA * taste
    return np.where(taste > 0, taste * np.log(np.maximum(taste, 1e-12) / np.maximum(mixed, 1e-12)), 0).sum(1)


@dataclass(frozen=True)
class Variety:
    """What the dial knows of the items and the customers of a log."""

    vectors: np.ndarray
    """(n_items, d) float32 of unit length; zero for an item without, which is like no other"""
    group: np.ndarray
    """(n_items,) int32, the department; items without one share a number"""
    kinds: dict[str, np.ndarray]
    """By ``FLOORS``, (n_items,) bool"""
    log: Interactions

    @classmethod
    def of(cls, log: Interactions, catalog: Catalog, vectors: np.ndarray, shop: Shop) -> "Variety":
        """Take what was known when ``log`` ended; (n_items, d) ``vectors`` tell likeness by their directions."""
        new, tail = newness(log, catalog, shop.new_days, shop.k), is_long_tail(log, shop.diversity.head)
        return cls(directions(vectors), codes_of(catalog.departments), {"new": new, "long_tail": tail}, log)

    @cached_property
    def _weights(self) -> sp.csr_matrix:
        """(n_users + 1, G): how much each customer had to do with each department; the last row is of them all."""
        log, n_groups = self.log, int(self.group.max(initial=0)) + 1
        own = sp.csr_matrix(
            (log.weight, (log.user_idx, self.group[log.item_idx])), shape=(log.n_users, n_groups), dtype=np.float32
        )
        total = np.asarray(own.sum(0, dtype=np.float64))
        return sp.vstack([own, sp.csr_matrix(total / max(total.sum(), 1e-12), dtype=np.float32)], "csr")

    def tastes(self, users: np.ndarray) -> np.ndarray:
        """Return (n, G) float32 the mix of departments of (n,) user_idx; of visitors (-1), that of everybody."""
        everybody = self._weights[-1].toarray()
        own = np.where(users[:, None] >= 0, self._weights[users].toarray(), 0) + everybody
        return own / np.maximum(own.sum(1, keepdims=True), 1e-12)

    def pools(self, users: np.ndarray, items: np.ndarray, likeness: bool = True) -> Iterator[tuple[slice, Pool]]:
        """Yield the (n, K) proposals of (n,) user_idx, some customers at a time."""
        n, width = items.shape
        at_once = max(1, _CELLS // max(1, width) ** 2)
        for start in range(0, n, at_once):
            part = slice(start, min(n, start + at_once))
            known = np.maximum(items[part], 0)
            vectors = self.vectors[known] if likeness else None
            alike = None if vectors is None else vectors @ vectors.transpose(0, 2, 1)
            group = self.group[known]
            taste = np.take_along_axis(self.tastes(users[part]), group, 1)
            kinds = {name: of[known] & (items[part] >= 0) for name, of in self.kinds.items()}
            yield part, Pool(items[part], alike, group, taste, kinds)


def directions(vectors: np.ndarray, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Return (n_items, at most ``dimensions``) float32 of unit length: the vectors from their mean, in few directions.

    Encoders of text put everything into a narrow cone, where any two items are alike; the mean is its axis (Mu &
    Viswanath 2018, "All-but-the-Top"). The directions are those in which the items differ most.
    """
    told = vectors.any(1)
    if not told.any():
        return np.zeros((len(vectors), 1), np.float32)
    sample = np.flatnonzero(told)[:: -(-int(told.sum()) // 50_000)]
    mean = vectors[sample].mean(0, dtype=np.float64).astype(np.float32)
    centred = vectors[sample] - mean
    turn = np.linalg.eigh(centred.T.astype(np.float64) @ centred)[1][:, ::-1][:, :dimensions].astype(np.float32)
    found = unit((vectors - mean) @ turn).astype(np.float32)
    found[~told] = 0
    return found


def is_long_tail(log: Interactions, head: float) -> np.ndarray:
    """Return (n_items,) bool: all but the fewest items that make up a share ``head`` of the target events."""
    times = np.bincount(log.item_idx[log.is_target], minlength=log.n_items)
    order = np.argsort(-times, kind="stable")
    above = np.cumsum(times[order]) - times[order]  # target events of the items sold more often
    found = np.ones(log.n_items, bool)
    found[order] = above >= head * times.sum()
    return found


def likeness_vectors(shelf: Shelf, model: Model) -> np.ndarray:
    """Return (n_items, d) float32: the vectors of the text, which a shopper sees; the model's where no item has one."""
    text = shelf.text_vectors
    vectors = None if text.any() else model.item_vectors()
    return text if vectors is None else vectors


@dataclass(frozen=True)
class Dialled:
    """The dial of a placement, between the model and the rules."""

    dial: Dial
    variety: Variety

    @classmethod
    def of(cls, shelf: Shelf, model: Model, placement: str) -> "Dialled | None":
        """Return the placement's dial; None where it is off."""
        if not (dial := shelf.shop.diversity.dial(placement)):
            return None
        vectors = likeness_vectors(shelf, model)
        return cls(dial, Variety.of(shelf.interactions, shelf.catalog, vectors, shelf.shop))

    def lists(
        self, ask: Ask, k: int, proposers: Sequence[str], users: np.ndarray, width: int, candidates: np.ndarray
    ) -> tuple[Ranked, Trace | None]:
        """Ask for proposals and return their first ``width``, arranged; in a list of k none is from further down.

        Rules may ask for more than k: the dial has arranged twice as many, what follows is in the model's order. Scores
        keep their values and are dealt out again from the top. ``proposers`` are the sources of the trace.
        """
        n, asked_for = len(users), min(max(PROPOSALS * k, width), int(candidates.sum()))
        width = min(width, asked_for)
        at_once, parts, whole = max(1, 2 * _CELLS // asked_for), [], None
        for start in range(0, n, at_once):
            rows = np.arange(start, min(n, start + at_once))
            asked, told = ask(users[rows], asked_for, candidates)
            order, floor_of = self._order(users[rows], asked.items, min(2 * k, width), PROPOSALS * k)
            parts.append(_dealt(asked, order[:, :width]))
            if told:
                whole = whole or Trace(n, told.n_items, width, told.left_out)
                _retrace(whole, rows, told, order, floor_of, proposers)
        names = ("items", "scores", "filled", "sources")
        return Ranked(*(np.concatenate([getattr(part, name) for part in parts]) for name in names)), whole

    def _order(self, users: np.ndarray, items: np.ndarray, k: int, among: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, K) the columns in their new order, and the floor that raised each column."""
        n, width = items.shape
        key = np.tile(np.arange(k, k + width + 1), (n, 1))  # the last is where columns that are none are written to
        floors = np.zeros((n, width + 1), np.int8)
        for part, pool in self.variety.pools(users, items[:, :among], likeness=self.dial.mmr > 0):
            columns, floor_of = arranged(pool, self.dial, k)
            np.put_along_axis(key[part], columns, np.arange(columns.shape[1])[None], 1)
            np.put_along_axis(floors[part], columns, floor_of, 1)
        return np.argsort(key[:, :-1], axis=1, kind="stable"), floors[:, :-1]


def _dealt(asked: Ranked, order: np.ndarray) -> Ranked:
    """Return the lists in another order, (n, k) columns; scores fall down the list as before."""
    items, scores, filled, sources = (
        np.take_along_axis(of, order, 1) for of in (asked.items, asked.scores, asked.filled, asked.sources)
    )
    there = items >= 0
    return Ranked(items, np.where(there, -np.sort(-np.where(there, scores, -np.inf)), 0), filled, sources)


def _retrace(
    whole: Trace, rows: np.ndarray, told: Trace, order: np.ndarray, floor_of: np.ndarray, proposers: Sequence[str]
) -> None:
    """Tell of the arranged lists of some customers, and beside them of the proposals that are no longer in them."""
    n, width = order.shape
    told.dial = np.zeros((*told.items.shape, 3), np.int32)
    told.dial[:, :width, 0] = np.arange(1, width + 1)
    np.put_along_axis(told.dial[:, :, 1], order, told.dial[:, :width, 0], 1)
    told.dial[:, :width, 2] = floor_of
    whole.take(rows, 0, told, order[:, : whole.listed])
    rest = np.hstack([order[:, whole.listed :], np.tile(np.arange(width, told.items.shape[1]), (n, 1))])
    proposed = np.any([told.ranks.get(name, np.zeros_like(told.items)) > 0 for name in proposers], axis=0)
    proposed = np.take_along_axis(proposed & (told.items >= 0), rest, 1)
    first = np.argsort(~proposed, axis=1, kind="stable")[:, : whole.left_out]
    beside = np.where(np.take_along_axis(proposed, first, 1), np.take_along_axis(rest, first, 1), -1)
    whole.take(rows, whole.listed, told, beside)
