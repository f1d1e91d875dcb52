"""What a night's models see: the catalogue and the interactions of a snapshot, with dense indices.

Outside ids (``user_id``, ``item_id``) become row and column numbers (``user_idx``, ``item_idx``) here and nowhere else:
items stand in the order of their ids and users in that of their first events, so a number means the same in every task
of the night.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from recsys_tasks.contract import CUSTOMERS, EVENT_TYPES, ITEM_ID, ITEM_STATISTICS, USER_ID
from recsys_tasks.history import History, by_group, open_history
from recsys_tasks.lake import Lake, code_fingerprint, fingerprint, write_table
from recsys_tasks.shop import Shop

DAY = 86_400_000_000
"""Microseconds of a day, the unit of every timestamp below."""


_CHUNK = 4_000_000
"""Events counted at a time."""


def microseconds(instant: datetime) -> int:
    """Return microseconds since 1970 of an instant with a zone."""
    return round(instant.timestamp() * 1_000_000)


def iso(microseconds: int) -> str:
    """Return ISO 8601, in UTC, of microseconds since 1970."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).isoformat()


@dataclass(frozen=True)
class Catalog:
    """All items of the snapshot, in the order of their ids; ``n_items`` long in every field."""

    item_ids: np.ndarray
    titles: list[str]
    """Title, or the item's id where it has none."""
    texts: list[str]
    """What the text encoder reads: title, brand, category and description; empty where the item has none of them."""
    brands: list[str]
    categories: list[str]
    """The narrowest category, or an empty string."""
    departments: list[str]
    """The broadest category, or an empty string."""
    prices: np.ndarray
    """float64, NaN where unknown."""
    available: np.ndarray
    """bool"""
    known_since: np.ndarray
    """int64, microseconds since 1970 from which the item's catalogue row is known to have existed; 0 for always."""

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.item_ids)

    def candidates(self, as_of: int) -> np.ndarray:
        """Return (n_items,) bool: what could be recommended at that instant."""
        return self.available & (self.known_since < as_of)


@dataclass(frozen=True)
class Interactions:
    """Positive events before ``as_of``, in the order of time. All arrays are ``n_events`` long."""

    user_ids: np.ndarray
    """(n_users,) every user of the snapshot, also those without an event in this part of the log."""
    n_items: int
    user_idx: np.ndarray
    item_idx: np.ndarray
    time: np.ndarray
    """int64 microseconds since 1970"""
    weight: np.ndarray
    """float32, the shop file's weight of the event's type"""
    rating: np.ndarray
    """float32, the event's value where it is a rating, else NaN"""
    kind: np.ndarray
    """int8, place of the event's type in ``contract.EVENT_TYPES``"""
    is_target: np.ndarray
    """bool: is it the event that recommendations are to bring about?"""
    as_of: int

    @property
    def n_users(self) -> int:
        """Number of users of the whole snapshot."""
        return len(self.user_ids)

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.user_idx)

    def before(self, instant: int) -> "Interactions":
        """Return what an observer at ``instant`` has seen."""
        return self._part(slice(0, int(np.searchsorted(self.time, instant, "left"))), instant)

    def since(self, instant: int) -> "Interactions":
        """Return what came at or after ``instant``."""
        return self._part(slice(int(np.searchsorted(self.time, instant, "left")), len(self)), self.as_of)

    def _part(self, rows: slice, as_of: int) -> "Interactions":
        names = ("user_idx", "item_idx", "time", "weight", "rating", "kind", "is_target")
        return replace(self, as_of=as_of, **{name: getattr(self, name)[rows] for name in names})

    @property
    def age_days(self) -> np.ndarray:
        """Age of each event at ``as_of``, in days; float64."""
        return (self.as_of - self.time) / DAY

    def matrix(self, half_life_days: float | None = None, count: Literal["all", "last"] = "all") -> sp.csr_matrix:
        """Return (n_users, n_items) float64, weights that halve every ``half_life_days``.

        ``count="all"`` adds up the events of a pair; ``"last"`` takes its newest event alone.
        """
        value = self.weight.astype(np.float64)
        if half_life_days is not None:
            value = value * 0.5 ** (self.age_days / half_life_days)
        user, item = self.user_idx, self.item_idx
        if count == "last":
            pair = user.astype(np.int64) * self.n_items + item
            _, newest = np.unique(pair[::-1], return_index=True)
            rows = len(pair) - 1 - newest
            user, item, value = user[rows], item[rows], value[rows]
        matrix = sp.csr_matrix((value, (user, item)), shape=(self.n_users, self.n_items))
        matrix.sum_duplicates()
        return matrix

    def newest(self, half_life_days: float) -> sp.csr_matrix:
        """Return ``matrix(half_life_days, count="last")``, worked out once."""
        if half_life_days not in self._newest:
            self._newest[half_life_days] = self.matrix(half_life_days, count="last")
        return self._newest[half_life_days]

    def matrix_of(self, user: int, half_life_days: float) -> sp.csr_matrix:
        """Return the row of ``newest`` of one user."""
        return self.newest(half_life_days)[user]

    @cached_property
    def _newest(self) -> dict[float, sp.csr_matrix]:
        return {}

    def popularity(self, half_life_days: float) -> np.ndarray:
        """Return (n_items,) float64: weighted number of events, halved every ``half_life_days``."""
        value = self.weight * 0.5 ** (self.age_days / half_life_days)
        return np.bincount(self.item_idx, weights=value, minlength=self.n_items)

    @cached_property
    def bought(self) -> sp.csr_matrix:
        """(n_users, n_items) float32, how often each user did the target event with each item."""
        rows = self.is_target
        ones = np.ones(int(rows.sum()), np.float32)
        matrix = sp.csr_matrix((ones, (self.user_idx[rows], self.item_idx[rows])), shape=(self.n_users, self.n_items))
        matrix.sum_duplicates()
        return matrix

    def of_user(self, user: int) -> np.ndarray:
        """Return the positions of one user's events, in the order of time."""
        order, start = self.by_user
        return order[start[user] : start[user + 1]]

    def of_users(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the events of (n,) users, user after user, and of each its place in ``users``."""
        order, start = self.by_user
        length = start[users + 1] - start[users]
        at = np.repeat(start[users] - np.cumsum(length) + length, length) + np.arange(length.sum())
        return order[at], np.repeat(np.arange(len(users)), length)

    @cached_property
    def by_user(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the events, those of a user together, and (n_users + 1,) where each user's begin."""
        return by_group(self.user_idx, self.n_users)

    @cached_property
    def active_days(self) -> np.ndarray:
        """(n_users,) int64, number of different days (in UTC) with an event."""
        return self.days(self.user_idx, self.n_users)[0]

    def days(self, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for each code (a user or an item) its number of days (in UTC) with an event, the first and the last.

        All are int32; days count from 1970, and are -1 for a code without an event.
        """
        active, first, last = np.zeros(n, np.int32), np.full(n, -1, np.int32), np.full(n, -1, np.int32)
        if not len(self):
            return active, first, last
        begin, end = int(self.time[0] // DAY), int(self.time[-1] // DAY)
        days = end + 1 - begin
        if len(self) < days * n // 16:  # quiet days
            pairs = np.sort(codes.astype(np.int64) * days + (self.time // DAY - begin))
            pairs = pairs[np.diff(pairs, prepend=-1) != 0]
            code, on = pairs // days, pairs % days + begin
            active += np.bincount(code, minlength=n).astype(np.int32)
            last[code] = on  # of several the last one stays
            first[code[::-1]] = on[::-1]
            return active, first, last
        cuts = np.searchsorted(self.time, np.arange(begin, end + 2) * DAY)
        seen = np.zeros(n, bool)
        for day, (start, stop) in enumerate(pairwise(cuts), begin):
            found = codes[start:stop]
            seen[:] = False
            seen[found] = True
            active += seen
            last[found] = day
        for day, (start, stop) in reversed(list(enumerate(pairwise(cuts), begin))):
            first[codes[start:stop]] = day
        return active, first, last


class Snapshot:
    """A snapshot in the lake, as ingest wrote it."""

    def __init__(self, lake: Lake, snapshot: str) -> None:
        self.lake = lake
        self.id = snapshot
        self.manifest: dict[str, Any] = lake.manifest(snapshot)

    def catalog(self) -> Catalog:
        """Return the catalogue as of the night."""
        table = pq.ParquetFile(self.lake.path(self.id) / "items.parquet").read()
        items = {name: table[name].to_pylist() for name in ("title", "brand", "category", "description")}
        categories = [list(category or []) for category in items["category"]]
        texts = [
            ". ".join(part for part in [title, brand, " > ".join(category), description] if part)
            for title, brand, category, description in zip(
                items["title"], items["brand"], categories, items["description"], strict=True
            )
        ]
        ids = table[ITEM_ID].to_pylist()
        return Catalog(
            item_ids=np.array(ids, dtype=object),
            titles=[title or item for title, item in zip(items["title"], ids, strict=True)],
            texts=texts,
            brands=[brand or "" for brand in items["brand"]],
            categories=[category[-1] if category else "" for category in categories],
            departments=[category[0] if category else "" for category in categories],
            prices=table["price"].to_numpy(zero_copy_only=False).astype(np.float64),
            available=table["available"].to_numpy(zero_copy_only=False),
            known_since=pc.fill_null(pc.cast(table["updated_at"], pa.int64()), 0).to_numpy(),
        )

    def attributes(self, user_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Return what the shop knows of these customers: name -> (n_users,) text, empty where it does not know."""
        path = self.lake.path(self.id) / "users.parquet"
        if not path.exists():
            return {}
        users = pq.read_table(path)
        place = pc.index_in(pa.array(user_ids, pa.string()), users[USER_ID].combine_chunks())
        known = users.drop_columns(USER_ID).take(place)
        return {name: pc.fill_null(known[name], "").to_numpy().astype(str) for name in known.column_names}

    def item_ids(self) -> pa.Array:
        """Return the ids of the catalogue."""
        return pq.read_table(self.lake.path(self.id) / "items.parquet", columns=[ITEM_ID])[ITEM_ID].combine_chunks()

    def history(self) -> History:
        """Return the log as arrays."""
        return open_history(self.lake, self.manifest["days"])

    def prices(self, first: int, last: int) -> np.ndarray:
        """Return the prices of rows [first, last) of the log, float64, NaN where there is none; read from its files."""
        days = self.manifest["days"]
        ends = np.cumsum([0, *(day["rows"] for day in days)])
        begin, end = int(np.searchsorted(ends, first, "right")) - 1, int(np.searchsorted(ends, last))
        if last <= first:
            return np.empty(0)
        files = [self.lake.root / day["file"] for day in days[begin:end]]
        table = pa.concat_tables([pq.ParquetFile(file).read(columns=["price"]) for file in files])
        return table.slice(first - int(ends[begin]), last - first)["price"].to_numpy().astype(np.float64)

    def sessions(self, first: int) -> np.ndarray:
        """Return (n,) int64, of each row of the log from ``first`` on a number for its ``session_id``; -1 for none."""
        days = self.manifest["days"]
        ends = np.cumsum([0, *(day["rows"] for day in days)])
        begin = max(int(np.searchsorted(ends, first, "right")) - 1, 0)
        files = [pq.ParquetFile(self.lake.root / day["file"]) for day in days[begin:]]
        parts = [file.read(columns=["session_id"])["session_id"] for file in files]
        chunks = [chunk.dictionary_encode() for part in parts for chunk in part.chunks]
        whole = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries().combine_chunks()
        codes = pc.fill_null(whole.indices, -1) if isinstance(whole, pa.DictionaryArray) else pa.array([], pa.int32())
        return codes.to_numpy(zero_copy_only=False).astype(np.int64)[first - int(ends[begin]) :]

    def interactions(self, shop: Shop, start: int = 0) -> Interactions:
        """Return the events before ``as_of`` of items of the catalogue that say something of a taste (weight > 0).

        ``start`` leaves out so many events at the beginning of the log.
        """
        found, catalogue = self.history(), self.item_ids()
        user, item, time, kind, value = (
            found.array(name)[start:] for name in ("user", "item", "time", "type", "value")
        )
        place = pc.index_in(found.items, catalogue).fill_null(-1).to_numpy()
        weights = np.array([shop.weight(name) for name in EVENT_TYPES], np.float32)
        with ThreadPoolExecutor(2) as pool:  # a log is large, and memory is slow for one core
            items = pool.submit(lambda: place[item])
            targets = pool.submit(lambda: kind == EVENT_TYPES.index(shop.target))
            weight, item_idx, is_target = weights[kind], items.result(), targets.result()
        keep: Any = (weight > 0) & (item_idx >= 0)
        keep = slice(None) if keep.all() else keep
        rated = kind[keep] == EVENT_TYPES.index("rating")
        rating = np.broadcast_to(np.float32(np.nan), rated.shape)
        if rated.any():
            rating = np.where(rated, value[keep], rating)
        return Interactions(
            user_ids=found.users.to_numpy(zero_copy_only=False),
            n_items=len(catalogue),
            user_idx=user[keep],
            item_idx=item_idx[keep],
            time=time[keep],
            weight=weight[keep],
            rating=rating,
            kind=kind[keep],
            is_target=is_target[keep],
            as_of=microseconds(datetime.fromisoformat(self.manifest["as_of"])),
        )


def write_statistics(lake: Lake, shop: Shop, snapshot: str) -> str:
    """Count each customer's and each item's events, once a night, and return the id of the tables.

    The entry holds ``customers.parquet`` (``contract.CUSTOMERS``) and ``items.parquet`` (``contract.ITEM_STATISTICS``).
    Where an earlier night has counted the same log up to some day, only the days after it are counted.
    """
    inputs = {"snapshot": snapshot, "shop": shop.model_dump(mode="json", include={"event_weights", "tiers", "target"})}
    entry = f"statistics/{fingerprint(inputs)}"
    if lake.has(entry):
        return entry
    night = Snapshot(lake, snapshot)
    history, catalogue = night.history(), night.item_ids()
    manifest = {
        **inputs,
        "code": code_fingerprint(),
        "days": [day["sha256"] for day in night.manifest["days"]],
        "items": len(history.items),
    }
    earlier, counted = _counted(lake, night, manifest, history.items, catalogue)
    log = night.interactions(shop, counted)
    with lake.create(entry, manifest) as folder, ThreadPoolExecutor(2) as pool:
        counting = pool.submit(_counts, log, log.item_idx, log.n_items)
        customers, items = _counts(log, log.user_idx, log.n_users), counting.result()
        if earlier:
            theirs = pq.read_table(lake.path(earlier) / "customers.parquet")
            _add(customers, theirs, np.arange(len(theirs)))  # who is new stands behind them
            theirs = pq.read_table(lake.path(earlier) / "items.parquet")
            place = pc.index_in(theirs[ITEM_ID], catalogue)
            _add(items, theirs.filter(pc.is_valid(place)), place.drop_null().to_numpy())
        columns = {USER_ID: log.user_ids, **_as_dates(customers)}
        columns["tier"] = tiers(customers["active_days"], shop.tiers.loyal, shop.tiers.warm)
        write_table(
            pa.table({name: columns[name] for name in CUSTOMERS.names}, CUSTOMERS), folder / "customers.parquet"
        )
        write_table(pa.table({ITEM_ID: catalogue, **_as_dates(items)}, ITEM_STATISTICS), folder / "items.parquet")
    return entry


def _counted(
    lake: Lake, night: "Snapshot", wanted: dict[str, Any], ids: pa.Array, catalogue: pa.Array
) -> tuple[str | None, int]:
    """The earlier statistics that hold for the most events at the beginning of this log, and for how many."""
    best: tuple[str | None, int] = None, 0
    for entry in lake.newest("statistics"):
        found = lake.manifest(entry)
        if found.get("code") != wanted["code"] or found["shop"] != wanted["shop"]:
            continue
        n = len(found["days"])
        rows = sum(day["rows"] for day in night.manifest["days"][:n])
        if found["days"] != wanted["days"][:n] or rows <= best[1]:
            continue
        theirs = pq.read_table(lake.path(entry) / "items.parquet", columns=[ITEM_ID])[ITEM_ID].combine_chunks()
        met = ids.slice(0, found["items"])  # an event counts if the catalogue knows its item
        if pc.is_in(met, theirs).equals(pc.is_in(met, catalogue)):
            best = entry, rows
    return best


def _counts(log: Interactions, codes: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Events, targets, days with an event, and the first and last of these (-1: none), of each code."""
    active, first, last = log.days(codes, n)
    events, targets = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for start in range(0, len(log), _CHUNK):  # bincount makes a copy of what it is given
        part = slice(start, start + _CHUNK)
        events += np.bincount(codes[part], minlength=n)
        targets += np.bincount(codes[part][log.is_target[part]], minlength=n)
    return {"events": events, "targets": targets, "active_days": active, "first_day": first, "last_day": last}


def _add(counts: dict[str, np.ndarray], earlier: pa.Table, rows: np.ndarray) -> None:
    """Add what was counted in the days before, of the codes ``rows``; no day is in both parts."""
    for name in ("events", "targets", "active_days"):
        counts[name][rows] += earlier[name].to_numpy()
    first, last = (pc.cast(earlier[name], pa.int32()).fill_null(-1).to_numpy() for name in ("first_day", "last_day"))
    counts["first_day"][rows] = np.where(first < 0, counts["first_day"][rows], first)
    counts["last_day"][rows] = np.where(counts["last_day"][rows] < 0, last, counts["last_day"][rows])


def _as_dates(counts: dict[str, np.ndarray]) -> dict[str, Any]:
    days = {name: counts[name] for name in ("first_day", "last_day")}
    return {**counts, **{name: pa.array(day, pa.date32(), mask=day < 0) for name, day in days.items()}}


def tiers(active_days: np.ndarray, loyal: int, warm: int) -> np.ndarray:
    """Return the tier of each user by days with an event: ``loyal``, ``warm``, ``cold``, or ``anonymous`` for none.

    >>> tiers(np.array([0, 1, 3, 12]), loyal=10, warm=3).tolist()
    ['anonymous', 'cold', 'warm', 'loyal']

    """
    return np.select(
        [active_days >= loyal, active_days >= warm, active_days >= 1], ["loyal", "warm", "cold"], "anonymous"
    )
