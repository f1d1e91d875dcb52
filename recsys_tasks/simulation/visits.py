"""The log as visits of customers: what the simulated shop is fitted to, and what it is compared with."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import DAY, Snapshot

RESPONSES = ("view", "click", "cart", "favourite", "purchase", "rating")
"""What a customer can do with an item that is shown. A coupon and a return are no answer to it."""
PAUSE = 30 * 60 * 1_000_000
"""Microseconds without an event that end a visit, where the log has no sessions."""


@dataclass(frozen=True)
class Visits:
    """One row for each item of a visit, with the strongest of the events it met; visits of a customer in their order.

    All arrays are (n_rows,) long. Where the log does not tell the order of items, for they have one time stamp, it is
    a random one, the same each time.
    """

    n_users: int
    n_items: int
    weights: Mapping[str, float]
    """Of each event type, as the shop file has them."""
    target: str
    """The event type that recommendations are to bring about."""
    user: np.ndarray
    """int32 user_idx, ascending"""
    item: np.ndarray
    """int32 item_idx"""
    time: np.ndarray
    """int64 microseconds since 1970 of the strongest event"""
    kind: np.ndarray
    """int8 place in ``contract.EVENT_TYPES``"""
    price: np.ndarray
    """float32, NaN where the log has none"""
    visit: np.ndarray
    """int32, ascending; the number of the visit"""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.user)

    @classmethod
    def read(cls, snapshot: Snapshot, shop: Shop) -> "Visits":
        """Return the whole log of a snapshot; memory is linear in it."""
        history, folder = snapshot.history(), snapshot.lake.root
        with ThreadPoolExecutor() as pool:
            parts = pool.map(_others, (folder / day["file"] for day in snapshot.manifest["days"]))
            others = pa.concat_tables(parts)  # row by row beside the history
        session = np.full(len(others), -1, np.int32)
        if others["session_id"].null_count < len(others):
            codes = [chunk.indices for chunk in pc.dictionary_encode(others["session_id"]).chunks]
            session = pc.fill_null(pa.chunked_array(codes), -1).to_numpy()
        catalogue = snapshot.item_ids()
        place = pc.index_in(history.items, catalogue).fill_null(-1).to_numpy()
        price = pc.fill_null(pc.cast(others["price"], pa.float32()), np.nan).to_numpy()
        columns = {"user": history.array("user"), "item": place[history.array("item")], "session": session}
        columns |= {"time": history.array("time"), "kind": history.array("type"), "price": price}
        kept = (columns["item"] >= 0) & np.isin(columns["kind"], [EVENT_TYPES.index(name) for name in RESPONSES])
        weights = {name: shop.weight(name) for name in EVENT_TYPES}
        rows = {name: column[kept] for name, column in columns.items()}
        return cls.of(len(history.users), len(catalogue), weights, shop.target, **rows)

    @classmethod
    def of(
        cls,
        n_users: int,
        n_items: int,
        weights: Mapping[str, float],
        target: str,
        *,
        user: np.ndarray,
        item: np.ndarray,
        time: np.ndarray,
        kind: np.ndarray,
        price: np.ndarray | None = None,
        session: np.ndarray | None = None,
    ) -> "Visits":
        """Return the visits of events in any order; ``session`` is any number, or -1 where 30 minutes tell."""
        n = len(user)
        price = np.full(n, np.nan, np.float32) if price is None else price
        session = np.full(n, -1, np.int32) if session is None else session
        begun = time.copy()
        if (session >= 0).any():
            first = np.full(session.max() + 1, np.iinfo(np.int64).max)
            np.minimum.at(first, session[session >= 0], time[session >= 0])
            begun = np.where(session >= 0, first[session], time)
        order = np.lexsort((_shuffled(item, time), time, session, begun, user))
        user, item, time, kind, price, session = (x[order] for x in (user, item, time, kind, price, session))
        paused = (session < 0) & (np.diff(time, prepend=time[:1]) > PAUSE)
        new = (np.diff(user, prepend=-1) != 0) | (np.diff(session, prepend=-2) != 0) | paused
        visit = np.cumsum(new) - 1
        strength = np.argsort(np.argsort([weights.get(name, 0.0) for name in EVENT_TYPES], kind="stable"))
        by_pair = np.lexsort((-strength[kind], visit * n_items + item))
        pair = (visit * n_items + item)[by_pair]
        strongest = by_pair[np.diff(pair, prepend=-1) != 0]
        first_met = np.minimum.reduceat(by_pair, np.flatnonzero(np.diff(pair, prepend=-1))) if n else by_pair
        rows = strongest[np.argsort(first_met)]
        dense = dict(user=user, item=item, time=time, kind=kind.astype(np.int8), price=price, visit=visit)
        kinds = {"user": np.int32, "item": np.int32, "visit": np.int32, "price": np.float32}
        columns = {name: column[rows].astype(kinds.get(name, column.dtype)) for name, column in dense.items()}
        return cls(n_users, n_items, dict(weights), target, **columns)

    def where(self, rows: np.ndarray) -> "Visits":
        """Return some of the rows, (n_rows,) bool or places in ascending order."""
        names = ("user", "item", "time", "kind", "price", "visit")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def between(self, start: int, end: int) -> "Visits":
        """Return the visits that began in [start, end)."""
        began = self.began[self.number]
        return self.where((began >= start) & (began < end))

    @cached_property
    def starts(self) -> np.ndarray:
        """(n_visits,) where each visit begins."""
        return np.flatnonzero(np.diff(self.visit, prepend=-1))

    @cached_property
    def number(self) -> np.ndarray:
        """(n_rows,) the visit of each row, counted from 0 without gaps."""
        return np.cumsum(np.diff(self.visit, prepend=-1) != 0) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n_visits,) items of each visit."""
        return np.diff(self.starts, append=len(self))

    @cached_property
    def began(self) -> np.ndarray:
        """(n_visits,) int64 microseconds since 1970 of the first event of each visit."""
        return np.minimum.reduceat(self.time, self.starts) if len(self) else self.time

    @property
    def is_target(self) -> np.ndarray:
        """(n_rows,) bool: is it the event that recommendations are to bring about?"""
        return self.kind == EVENT_TYPES.index(self.target)

    @cached_property
    def gap_days(self) -> np.ndarray:
        """(n_visits,) float64 days until the customer's next visit began; NaN for the last one."""
        user = self.user[self.starts]
        gap = np.append(np.diff(self.began), 0) / DAY
        return np.where(np.append(user[1:] == user[:-1], False), gap, np.nan) if len(user) else gap[:0]

    @cached_property
    def days_since_target(self) -> np.ndarray:
        """(n_rows,) float64 days since the customer did the target event with the item in an earlier visit; or inf."""
        key = self.user.astype(np.int64) * self.n_items + self.item
        order = np.lexsort((self.visit, key))
        place, days = np.arange(len(self)), np.full(len(self), np.inf)
        newest = np.maximum.accumulate(np.where(self.is_target[order], place, -1))
        earlier = np.concatenate([[-1], newest])[: len(self)]
        begins = np.maximum.accumulate(np.where(np.diff(key[order], prepend=-1) != 0, place, 0))
        known = earlier >= begins
        days[order[known]] = (self.time[order[known]] - self.time[order[earlier[known]]]) / DAY
        return days


def _others(file: Path) -> pa.Table:
    return pq.ParquetFile(file).read(columns=["session_id", "price"])


def _shuffled(item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 as good as random, of each event by itself."""
    mixed = item.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ time.astype(np.uint64)
    return (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
