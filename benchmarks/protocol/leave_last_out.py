"""The leave-last-out protocol of the papers, in the product's own terms: a split by time.

Each customer's last event is test, the last but one validation. Every history is moved so that it ends on the same
day, an event a day: then the last day of all is the test window, the day before it validation, and a half-life of n
days is one of n events. Who learned from whom is not in the order of time: this is for comparing with papers only.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.models import Material
from recsys_tasks.snapshot import DAY, Catalog, Interactions
from recsys_tasks.split import Truth, truth

ROOT = Path(__file__).resolve().parents[2]
END = 20_000 * DAY
TIMELESS = {"half_life_days": None, "trend": 0.0}
"""Of ``sasrec``: where everybody's history ends on the same day, no event is old and nothing is in fashion."""


def data_folder() -> Path:
    """Return where public data lies: ``NIGHTCART_BENCH_DATA``, or beside the project."""
    return Path(os.environ.get("NIGHTCART_BENCH_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class LeaveLastOut:
    """A data set held out so."""

    log: Interactions
    catalog: Catalog

    @classmethod
    def read(cls, folder: Path) -> "LeaveLastOut":
        """Read ``events.parquet`` (user_id, item_id, position within the user) and ``items.parquet``."""
        events = pq.read_table(folder / "events.parquet", columns=["user_id", "item_id", "position"])
        catalog = read_catalog(folder / "items.parquet")
        user_ids, user = np.unique(events["user_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        item = np.searchsorted(
            catalog.item_ids.astype(str), events["item_id"].to_numpy(zero_copy_only=False).astype(str)
        )
        order = np.lexsort((-events["position"].to_numpy(), user))  # from each customer's last event back
        back = np.arange(len(order)) - np.searchsorted(user[order], user[order])
        time = END - (back + 1) * DAY
        order, time = order[by_time := np.argsort(time, kind="stable")], time[by_time]
        n = len(order)
        return cls(
            Interactions(
                user_ids=user_ids.astype(object),
                n_items=catalog.n_items,
                user_idx=user[order].astype(np.int32),
                item_idx=item[order].astype(np.int32),
                time=time,
                weight=np.ones(n, np.float32),
                rating=np.full(n, np.nan, np.float32),
                kind=np.full(n, EVENT_TYPES.index("purchase"), np.int8),
                is_target=np.ones(n, bool),
                as_of=END,
            ),
            catalog,
        )

    def material(self, text_vectors: np.ndarray | None = None) -> Material:
        """Return what a model may learn from: all but the last two events of everybody, and validation."""
        found = self.truth(validation=True)
        none = np.zeros((self.catalog.n_items, 1), np.float32)
        text_vectors = none if text_vectors is None else text_vectors
        return Material(found.past, self.catalog, text_vectors, {"all": found, "discovery": found})

    def truth(self, *, validation: bool = False) -> Truth:
        """Return each customer's last event (or the last but one), with everything before it as history."""
        end = END - DAY if validation else END
        return truth(self.log, end - DAY, end, "discovery")


def read_catalog(path: Path) -> Catalog:
    """Return the catalogue in the order of its ids; columns that are not there are empty."""
    table = pq.read_table(path).to_pylist()
    rows = sorted(table, key=lambda row: str(row["item_id"]))
    column = {name: [row.get(name) or "" for row in rows] for name in ("title", "brand", "categories", "description")}
    paths = [text.replace("|", ",").split(",") for text in column["categories"]]
    texts = [
        ". ".join(part for part in [title, brand, " > ".join(path), description] if part)
        for title, brand, path, description in zip(
            column["title"], column["brand"], paths, column["description"], strict=True
        )
    ]
    return Catalog(
        item_ids=np.array([str(row["item_id"]) for row in rows], dtype=object),
        titles=column["title"],
        texts=texts,
        brands=column["brand"],
        categories=[path[-1] for path in paths],
        departments=[path[0] for path in paths],
        prices=np.full(len(rows), np.nan),
        available=np.ones(len(rows), bool),
        known_since=np.zeros(len(rows), np.int64),
    )


def made_up(n_users: int = 200, n_items: int = 60, seed: int = 0) -> LeaveLastOut:
    """Return a small world in which customers buy within one of four kinds of items; the text names the kind."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(n_items) % 4
    rows = [
        (user, item, END - (back + 1) * DAY)
        for user in range(n_users)
        for back, item in enumerate(rng.permutation(np.flatnonzero(kinds == user % 4))[: rng.integers(5, 12)])
    ]
    user, item, time = (np.array(column) for column in zip(*sorted(rows, key=lambda row: row[2]), strict=True))
    n, names = len(rows), [f"item {number:03}" for number in range(n_items)]
    kind = [f"kind {number}" for number in kinds]
    catalog = Catalog(
        item_ids=np.array(names, dtype=object),
        titles=names,
        texts=kind,
        brands=[""] * n_items,
        categories=kind,
        departments=kind,
        prices=np.full(n_items, np.nan),
        available=np.ones(n_items, bool),
        known_since=np.zeros(n_items, np.int64),
    )
    users = np.array([f"user {number:03}" for number in range(n_users)], dtype=object)
    unrated, purchase = np.full(n, np.nan, np.float32), np.full(n, EVENT_TYPES.index("purchase"), np.int8)
    weight, is_target = np.ones(n, np.float32), np.ones(n, bool)
    return LeaveLastOut(
        Interactions(users, n_items, user, item, time, weight, unrated, purchase, is_target, END), catalog
    )
