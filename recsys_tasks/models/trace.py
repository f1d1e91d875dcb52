"""How lists came about: what each stage said of the items in them, and of the proposals that they leave out.

A stage is a source, the ranker or the agent. Nothing is scored for it: a stage tells what it has worked out anyway.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Said:
    """What one stage said of its candidates of some users. All arrays are (n_pairs,)."""

    row: np.ndarray
    """Which of the users asked for"""
    item: np.ndarray
    rank: np.ndarray
    """Among the stage's candidates of the user, from 1"""
    score: np.ndarray
    """float32"""

    @classmethod
    def of(cls, items: np.ndarray, scores: np.ndarray) -> "Said":
        """Return (n_users, k) items, best first and -1 behind the last, as what a stage said."""
        row, place = np.nonzero(items >= 0)
        return cls(row, items[row, place], place + 1, scores[row, place])

    def keys(self, rows: np.ndarray, n_items: int) -> np.ndarray:
        """Return a number for each pair; ``rows`` says where the users asked for stand."""
        return rows[self.row].astype(np.int64) * n_items + self.item


Telling = Callable[[], Mapping[str, Said]]
"""Tells by name, in their order, what the stages said; costs something only when asked."""


class Trace:
    """What the stages said, noted down while lists are made; the same lists come out with it and without.

    Parameters
    ----------
    n_users, n_items
        Of the lists, and of the catalogue.
    listed
        So many first places of each list are told of,
    left_out
        and so many of the sources' best proposals that are not in the list.

    """

    def __init__(self, n_users: int, n_items: int, listed: int, left_out: int) -> None:
        self.n_items, self.listed, self.left_out = n_items, listed, left_out
        self.items = np.full((n_users, listed + left_out), -1, np.int32)
        """What is told of: the head of the list, -1 where it is shorter, then what it leaves out, best first."""
        self.ranks: dict[str, np.ndarray] = {}
        """By stage, the shape of ``items``, int32 from 1; 0 where it said nothing"""
        self.scores: dict[str, np.ndarray] = {}
        """The same, float32; NaN where it said nothing"""
        self.rules: np.ndarray | None = None
        """The shape of ``items``, what the shop's rules did to an item, as a sentence or None; None without rules"""
        self.dial: np.ndarray | None = None
        """(n_users, listed + left_out, 3) int32: the place of an item before the diversity dial and after it, from 1 (0
        where it had none), and why it moved, as ``diversity.WHY`` counts; None without a dial"""

    def of(self, rows: np.ndarray) -> "Trace":
        """Return the trace of some of the users."""
        found = Trace(0, self.n_items, self.listed, self.left_out)
        found.items = self.items[rows]
        found.ranks = {name: ranks[rows] for name, ranks in self.ranks.items()}
        found.scores = {name: scores[rows] for name, scores in self.scores.items()}
        found.dial = self.dial[rows] if self.dial is not None else None
        return found

    def take(self, rows: np.ndarray, start: int, other: "Trace", columns: np.ndarray) -> None:
        """Copy (n, m) columns of another trace of n users to places from ``start`` on of ``rows``; -1 is nothing."""
        part = np.ix_(rows, np.arange(start, start + columns.shape[1]))
        there, at = columns >= 0, np.maximum(columns, 0)
        self.items[part] = np.where(there, np.take_along_axis(other.items, at, 1), -1)
        for name in {**self.ranks, **other.ranks}:
            ranks = self.ranks.setdefault(name, np.zeros(self.items.shape, np.int32))
            scores = self.scores.setdefault(name, np.full(self.items.shape, np.nan, np.float32))
            said = name in other.ranks
            ranks[part] = np.where(there, np.take_along_axis(other.ranks[name], at, 1), 0) if said else 0
            scores[part] = np.where(there, np.take_along_axis(other.scores[name], at, 1), np.nan) if said else np.nan
        if other.dial is not None:
            self.dial = np.zeros((*self.items.shape, 3), np.int32) if self.dial is None else self.dial
            self.dial[part] = np.where(there[..., None], np.take_along_axis(other.dial, at[..., None], 1), 0)

    def shorten(self, told: "Trace") -> None:
        """Tell of the same lists as another trace that tells of more of their places."""
        columns = np.r_[: self.listed, told.listed : told.listed + self.left_out]
        self.take(np.arange(len(self.items)), 0, told, np.broadcast_to(columns, self.items.shape))

    def note(
        self, start: int, lists: np.ndarray, rows: np.ndarray, told: Mapping[str, Said], sources: Sequence[str]
    ) -> None:
        """Note how the (n, k) lists of the users from ``start`` on came about.

        ``told`` speaks of those of them that stand in ``rows``; what ``sources`` told are proposals.
        """
        part = slice(start, start + len(lists))
        proposals = [(told[name].keys(rows, self.n_items), told[name].rank) for name in sources if name in told]
        head = lists[:, : self.listed]
        self.items[part, : head.shape[1]] = head
        if proposals and self.left_out:
            self.items[part, self.listed :] = self._beside(lists, proposals)
        items = self.items[part]
        wanted = np.arange(len(items))[:, None] * self.n_items + items
        for name, said in told.items():
            ranks = self.ranks.setdefault(name, np.zeros(self.items.shape, np.int32))
            scores = self.scores.setdefault(name, np.full(self.items.shape, np.nan, np.float32))
            if not len(said.row):
                continue
            keys = said.keys(rows, self.n_items)
            order = np.argsort(keys, kind="stable")
            at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
            found = (keys[at] == wanted) & (items >= 0)
            ranks[part][found], scores[part][found] = said.rank[at[found]], said.score[at[found]]

    def _beside(self, lists: np.ndarray, proposals: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return (n, left_out) of what some source ranks best and the lists do not hold.

        Of two that stand equally high with some source, the one that more sources propose comes first.
        """
        enough = lists.shape[1] + self.left_out  # so many of one source hold as many as are asked for
        high = [(keys[rank <= enough], rank[rank <= enough]) for keys, rank in proposals]
        keys, ranks = (np.concatenate(parts) for parts in zip(*high, strict=True))
        pairs, place, times = np.unique(keys, return_inverse=True, return_counts=True)
        best = np.full(len(pairs), enough)
        np.minimum.at(best, place, ranks)
        row, column = np.nonzero(lists >= 0)
        others = ~np.isin(pairs, row * self.n_items + lists[row, column])
        row, item = np.divmod(pairs[others], self.n_items)
        order = np.lexsort((item, -times[others], best[others], row))
        row, item = row[order], item[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < self.left_out
        found = np.full((len(lists), self.left_out), -1, np.int32)
        found[row[kept], place[kept]] = item[kept]
        return found
