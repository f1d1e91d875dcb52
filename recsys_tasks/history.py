"""The log as arrays: made once a night, mapped into memory by every task that learns from it.

An event is a row number of ``users`` and of ``items`` (ids in the order of text), a time, a type and a value, in the
order of the log's files. A history depends on the log alone, not on the catalogue. Where the log begins with the same
files as that of an earlier history, only the rest is read.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from recsys_tasks.contract import EVENT_TYPE, EVENT_TYPES, ITEM_ID, TIMESTAMP, USER_ID
from recsys_tasks.lake import Lake, fingerprint, write_table

log = logging.getLogger(__name__)

_ARRAYS = {"user": np.int32, "item": np.int32, "time": np.int64, "type": np.int8, "value": np.float32}
_IDS = {"user": USER_ID, "item": ITEM_ID}
_OTHERS = (TIMESTAMP, EVENT_TYPE, "value")
_CHUNK = 8_000_000
"""Events worked on at a time."""


@dataclass(frozen=True)
class History:
    """Arrays of an entry ``history/<key>``; they are read from disk where they are touched."""

    folder: Path

    @cached_property
    def users(self) -> pa.Array:
        """(n_users,) every ``user_id`` of the log."""
        return pq.read_table(self.folder / "users.parquet")[USER_ID].combine_chunks()

    @cached_property
    def items(self) -> pa.Array:
        """(n,) every ``item_id`` of the log, whether or not the catalogue knows it."""
        return pq.read_table(self.folder / "items.parquet")[ITEM_ID].combine_chunks()

    def array(self, name: str) -> np.ndarray:
        """Return (n_events,) ``user``, ``item``, ``time`` (microseconds since 1970), ``type`` or ``value``."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def open_history(lake: Lake, days: list[dict[str, Any]]) -> History:
    """Return the history of these files of the log (as a snapshot lists them), made now or before."""
    key = fingerprint({"days": [day["sha256"] for day in days]})
    entry = f"history/{key}"
    if not lake.has(entry):
        earlier, shared = _earlier(lake, days)
        manifest = {"days": [[day["sha256"], day["rows"]] for day in days]}
        with lake.create(entry, manifest) as folder:
            _write(lake, folder, earlier, shared, days)
        log.info("history: %d of %d files of the log were coded before", shared, len(days))
    return History(lake.path(entry))


def _earlier(lake: Lake, days: list[dict[str, Any]]) -> tuple[History | None, int]:
    """The history that shares most of the first files, and how many."""
    best, shared = None, 0
    digests = [day["sha256"] for day in days]
    entries = sorted(lake.entries("history"), key=lambda entry: lake.path(entry).stat().st_mtime)
    for entry in entries[-3:]:
        theirs = [digest for digest, _ in lake.manifest(entry)["days"]]
        same = next((n for n, pair in enumerate(zip(digests, theirs, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(digests), len(theirs)) if same is None else same
        if same > shared:
            best, shared = History(lake.path(entry)), same
    return best, shared


def _write(lake: Lake, folder: Path, earlier: History | None, shared: int, days: list[dict[str, Any]]) -> None:
    kept, total = (sum(day["rows"] for day in part) for part in (days[:shared], days))
    arrays: dict[str, Any] = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (total,))
        for name, dtype in _ARRAYS.items()
    }
    ids = {name: pa.array([], pa.string()) for name in _IDS}
    if earlier:
        ids = {"user": earlier.users, "item": earlier.items}
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: _copy(earlier.array(name)[:kept], arrays[name]), arrays))
    at = kept
    for files in _groups(lake, days[shared:]):
        with ThreadPoolExecutor() as pool:
            table = pa.concat_tables(pool.map(_coded, files)).unify_dictionaries()
        rows = slice(at, at := at + table.num_rows)
        for name, column in _IDS.items():
            chunks = table[column].chunks
            if chunks:
                found = chunks[0].dictionary  # of all of them
                new = found.filter(pc.is_null(pc.index_in(found, ids[name])))
                ids[name] = pa.concat_arrays([ids[name], new])
                place = pc.index_in(found, ids[name]).to_numpy()
                np.concatenate([place[chunk.indices.to_numpy()] for chunk in chunks], out=arrays[name][rows])
        arrays["time"][rows] = pc.cast(table[TIMESTAMP], pa.int64()).to_numpy()
        arrays["type"][rows] = pc.index_in(table[EVENT_TYPE], pa.array(EVENT_TYPES)).to_numpy()
        arrays["value"][rows] = table["value"].to_numpy()
    for name, column in _IDS.items():
        grown = earlier is not None and len(earlier.array("time")) == kept  # then no id is gone
        _sort_ids(arrays[name], ids[name], column, folder / f"{name}s.parquet", all_used=grown)


def _copy(source: Any, target: Any) -> None:
    """Copy the head of an array, by the kernel where it can: a page of a mapped file costs a fault."""
    target.flush()
    n, done = source.nbytes, 0
    with open(str(source.filename), "rb") as read, open(str(target.filename), "r+b") as write, suppress(OSError):
        while done < n and (
            copied := os.copy_file_range(
                read.fileno(), write.fileno(), n - done, source.offset + done, target.offset + done
            )
        ):
            done += copied
    if done < n:
        target[: len(source)] = source


def _coded(file: Path) -> pa.Table:
    return pq.ParquetFile(file, read_dictionary=list(_IDS.values())).read(columns=[*_IDS.values(), *_OTHERS])


def _groups(lake: Lake, days: list[dict[str, Any]]) -> Iterator[list[Path]]:
    """Files of the log, as many at a time as hold ``_CHUNK`` events, but one at least."""
    files: list[Path] = []
    rows = 0
    for day in days:
        if files and rows + day["rows"] > _CHUNK:
            yield files
            files, rows = [], 0
        files.append(lake.root / day["file"])
        rows += day["rows"]
    if files:
        yield files


def _sort_ids(codes: np.ndarray, ids: pa.Array, column: str, path: Path, all_used: bool) -> None:
    """Write the ids that occur, in their order, and turn ``codes`` into places among them."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(codes), _CHUNK)]
    used = np.full(len(ids), all_used)
    for chunk in [] if all_used else chunks:
        used[codes[chunk]] = True
    order = pc.sort_indices(ids).to_numpy()
    order = order[used[order]]
    write_table(pa.table({column: ids.take(pa.array(order))}), path)
    place = np.zeros(len(ids), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    if not np.array_equal(place, np.arange(len(place))):
        for chunk in chunks:
            codes[chunk] = place[codes[chunk]]


def by_group(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of each code side by side, in their order, and where each code starts (n + 1).

    >>> order, start = by_group(np.array([1, 0, 1]), 3)
    >>> order.tolist(), start.tolist()
    ([1, 0, 2], [0, 1, 3, 3])

    """
    rows = sp.csr_matrix((np.ones(len(codes), np.int8), codes, np.arange(len(codes) + 1)), shape=(len(codes), n))
    columns = rows.tocsc()  # a counting sort, which keeps the order of equals
    return columns.indices, columns.indptr
