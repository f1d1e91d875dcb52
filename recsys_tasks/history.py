"""The log as arrays: made once a night, mapped into memory by every task that learns from it.

An event is a row number of ``users`` and of ``items``, a time, a type and a value, in the order of the log's files. Ids
are numbered in the order in which they first appear there. So a history depends on the log alone, not on the catalogue
or on how it was made, and that of a log which has grown begins with that of the log before: its files are the same
files by other names, with more at their ends, and only the rest of the log is read.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from recsys_tasks.contract import EVENT_TYPE, EVENT_TYPES, ITEM_ID, TIMESTAMP, USER_ID
from recsys_tasks.lake import Lake, code_fingerprint, fingerprint

log = logging.getLogger(__name__)

_EVENTS: Mapping[str, type] = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "type": np.int8,
    "value": np.float32,
}
_IDS = {"user": USER_ID, "item": ITEM_ID}
_TEXTS: Mapping[str, type] = {
    f"{name}_{part}": kind for name in _IDS for part, kind in (("ends", np.int32), ("text", np.uint8))
}
"""Ids as Arrow keeps them: where each of them ends in the text of all."""
_ARRAYS = {**_EVENTS, **_TEXTS}
_OTHERS = (TIMESTAMP, EVENT_TYPE, "value")
_CHUNK = 8_000_000
"""Events worked on at a time."""


@dataclass(frozen=True)
class History:
    """Arrays of an entry ``history/<key>``; they are read from disk where they are touched."""

    folder: Path
    lengths: Mapping[str, int]
    """Of each array. What its file holds beyond belongs to a history that goes on from this one."""

    @cached_property
    def users(self) -> pa.Array:
        """(n_users,) every ``user_id`` of the log."""
        return self._ids("user")

    @cached_property
    def items(self) -> pa.Array:
        """(n,) every ``item_id`` of the log, whether or not the catalogue knows it."""
        return self._ids("item")

    def _ids(self, name: str) -> pa.Array:
        starts = np.concatenate([np.zeros(1, np.int32), self.array(f"{name}_ends")])
        text = pa.py_buffer(self.array(f"{name}_text"))
        return pa.StringArray.from_buffers(len(starts) - 1, pa.py_buffer(starts), text)

    def array(self, name: str) -> np.ndarray:
        """Return (n_events,) ``user``, ``item``, ``time`` (microseconds since 1970), ``type`` or ``value``."""
        kind, length = _ARRAYS[name], self.lengths[name]
        return np.memmap(self.folder / name, kind, "r", shape=(length,)) if length else np.empty(0, kind)

    def head(self, rows: int) -> "History":
        """Return the history of the first events alone."""
        if rows == self.lengths["time"]:
            return self
        lengths = dict.fromkeys(_EVENTS, rows)
        for name in _IDS:
            n = int(self.array(name)[:rows].max(initial=-1)) + 1  # for numbers are given in order
            lengths[f"{name}_ends"] = n
            lengths[f"{name}_text"] = int(self.array(f"{name}_ends")[n - 1]) if n else 0
        return History(self.folder, lengths)


def open_history(lake: Lake, days: list[dict[str, Any]]) -> History:
    """Return the history of these files of the log (as a snapshot lists them), made now or before."""
    key = fingerprint({"days": [day["sha256"] for day in days]})
    entry = f"history/{key}"
    if not lake.has(entry):
        earlier, shared = _earlier(lake, days)
        manifest: dict[str, Any] = {"code": code_fingerprint(), "days": [[day["sha256"], day["rows"]] for day in days]}
        with lake.create(entry, manifest) as folder:
            manifest["lengths"] = _write(lake, folder, earlier, days[shared:])
        log.info("history: %d of %d files of the log were coded before", shared, len(days))
    return History(lake.path(entry), lake.manifest(entry)["lengths"])


def find_history(lake: Lake, days: list[dict[str, Any]]) -> History | None:
    """Return the history of these files, or their part of one that goes on from there; None where none is kept."""
    digests = [day["sha256"] for day in days]
    for entry in lake.entries("history"):
        manifest = lake.manifest(entry)
        shared = manifest["days"][: len(days)]
        if "lengths" in manifest and [digest for digest, _ in shared] == digests:
            return History(lake.path(entry), manifest["lengths"]).head(sum(rows for _, rows in shared))
    return None


def _earlier(lake: Lake, days: list[dict[str, Any]]) -> tuple[History | None, int]:
    """The history of the most first files that an earlier one shares, and how many."""
    best, shared = None, 0
    digests = [day["sha256"] for day in days]
    for entry in lake.newest("history"):
        manifest = lake.manifest(entry)
        if manifest.get("code") != code_fingerprint():
            continue
        theirs = [digest for digest, _ in manifest["days"]]
        same = next((n for n, pair in enumerate(zip(digests, theirs, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(digests), len(theirs)) if same is None else same
        if same > shared:
            best, shared = History(lake.path(entry), manifest["lengths"]), same
    return best and best.head(sum(day["rows"] for day in days[:shared])), shared


def _write(lake: Lake, folder: Path, earlier: History | None, days: list[dict[str, Any]]) -> dict[str, int]:
    """Write what an earlier history holds and these files of the log; return the lengths."""
    none = pa.array([], pa.string())
    ids = {"user": earlier.users, "item": earlier.items} if earlier else dict.fromkeys(_IDS, none)
    known = {name: len(found) for name, found in ids.items()}
    with ExitStack() as stack:
        files = {name: stack.enter_context(_opened(folder, earlier, name)) for name in _ARRAYS}
        for group in _groups(lake, days):
            with ThreadPoolExecutor() as pool:
                table = pa.concat_tables(pool.map(_coded, group))
            for name, column in _IDS.items():
                ids[name], *numbers = _numbered(ids[name], table[column])
                for part in numbers:
                    files[name].write(part.data)
            time, kind = pc.cast(table[TIMESTAMP], pa.int64()), pc.index_in(table[EVENT_TYPE], pa.array(EVENT_TYPES))
            for name, found in (("time", time), ("type", kind), ("value", table["value"])):
                files[name].write(found.to_numpy().astype(_EVENTS[name], copy=False).data)
        for name, found in ids.items():
            if len(found) > known[name]:
                _, offsets, text = found.buffers()
                ends = np.frombuffer(offsets, np.int32)[: len(found) + 1]
                files[f"{name}_ends"].write(ends[known[name] + 1 :].data)
                files[f"{name}_text"].write(text[ends[known[name]] : ends[-1]])
        return {name: file.tell() // np.dtype(_ARRAYS[name]).itemsize for name, file in files.items()}


def _opened(folder: Path, earlier: History | None, name: str) -> IO[bytes]:
    """A file to append to that begins with an array of an earlier history.

    It is the earlier file itself, where that ends there and nobody else is appending to it, else a copy.
    """
    path = folder / name
    if earlier is None:
        return path.open("ab")
    source, size = earlier.folder / name, earlier.lengths[name] * np.dtype(_ARRAYS[name]).itemsize
    with suppress(OSError):  # no links on this disk, or locked
        os.link(source, path)
        with ExitStack() as stack:
            file = stack.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
            if os.fstat(file.fileno()).st_size == size:
                stack.pop_all()
                return file
    path.unlink(missing_ok=True)
    file = path.open("ab")
    file.write(earlier.array(name).data)
    return file


def _numbered(ids: pa.Array, column: pa.ChunkedArray) -> list[Any]:
    """Return the ids with those of a column that are new, then the numbers of the column, chunk by chunk."""
    known = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), ids)
    chunks = pa.chunked_array([known, *column.chunks]).unify_dictionaries().chunks  # known ids keep their numbers
    return [chunks[0].dictionary, *(chunk.indices.to_numpy() for chunk in chunks)]


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


def by_group(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of each code side by side, in their order, and where each code starts (n + 1).

    >>> order, start = by_group(np.array([1, 0, 1]), 3)
    >>> order.tolist(), start.tolist()
    ([1, 0, 2], [0, 1, 3, 3])

    """
    rows = sp.csr_matrix((np.ones(len(codes), np.int8), codes, np.arange(len(codes) + 1)), shape=(len(codes), n))
    columns = rows.tocsc()  # a counting sort, which keeps the order of equals
    return columns.indices, columns.indptr
