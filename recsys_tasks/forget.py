"""Forget a customer or an item: everywhere in the home, in Redis, and in every night to come.

What the night can make again is dropped: judged files, coded logs, counts, models, vectors, lists. What must stay is
rewritten without the id, each entry at one instant: the log, snapshots, evaluations, and of every version that is kept
the tables, traces and Redis lists. A list that held the item ends one place earlier until the next night. A tombstone
keeps the shop's own files from bringing the id back. At the end everything is searched again.
"""

import json
import mmap
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_tasks.contract import ANONYMOUS, EVENTS, ITEM_ID, OF_ITEMS, PLACEMENTS, USER_ID
from recsys_tasks.errors import ContractError, NothingInLake
from recsys_tasks.history import History
from recsys_tasks.lake import MANIFEST, Lake, sha256, table_bytes, write_table
from recsys_tasks.online_store import open_store
from recsys_tasks.reasons import PICKED
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop
from recsys_tasks.tombstones import Kind, Tombstones

DROPPED = ("read", "ingested", "history", "statistics", "models", "vectors", "indexes", "lists")
"""Entries that a night makes again from the shop's files."""
FACTS = ("items", "quarantine")
"""Folders of what was written beside the days of the log; the next ingest writes them again."""
REWRITTEN = ("snapshots", "evaluations", "recommendations/*")
_DICTIONARY_BYTES = 8 << 20

Found = Counter[str]
"""Place -> how many rows, lists or words there name what is sought."""


@dataclass(frozen=True)
class Subject:
    """Who or what is to be forgotten."""

    kind: Kind
    id: str

    @property
    def is_distinctive(self) -> bool:
        """Whether the id stands for nothing else wherever it is read: 'c-1048', but not '7' or 'popular'."""
        return len(self.id) >= 6 and any(sign.isdigit() for sign in self.id)

    def columns(self, path: Path) -> set[str]:
        """Return the columns of a table of the lake that hold ids of this kind."""
        of_items = not {*path.parts, path.stem, path.stem.removeprefix("places-")}.isdisjoint(OF_ITEMS)
        if self.kind == "user":
            return set() if of_items else {USER_ID}
        return {ITEM_ID, "reason_item_id", "items"} | ({USER_ID} if of_items else set())

    @cached_property
    def word(self) -> str:
        """Regular expression of the id as a word of its own."""
        return rf"(^|[^0-9A-Za-z_-]){re.escape(self.id)}($|[^0-9A-Za-z_-])"

    @cached_property
    def fault(self) -> str:
        """Regular expression of the id as the quarantine tells it; long ids are cut there."""
        told = "|".join(re.escape(text) for text in {self.id, self.id[:80]})
        return rf"{self.kind}_id(=| ')\s*({told})(\.0)?\s*('|,|$)"

    @cached_property
    def spellings(self) -> re.Pattern[bytes]:
        """The id in any file, as text, in JSON or in an address."""
        spelt = {self.id, json.dumps(self.id)[1:-1], quote(self.id, safe="")}
        return re.compile(b"(?<![0-9A-Za-z_-])(%s)(?![0-9A-Za-z_-])" % b"|".join(re.escape(s.encode()) for s in spelt))


# ---- the command


def forget(lake: Lake, shop: Shop, subject: Subject, now: datetime | None = None) -> tuple[Found, Found]:
    """Forget a customer or an item; return where it was, and where it still is.

    Forgotten already, nothing is done; cut off, it goes on where it stopped.

    Raises
    ------
    ContractError
        The id is that of visitors' lists.
    NothingInLake
        The id is nowhere, and was not forgotten either; nothing was changed.
    TemporarilyUnavailable
        A step of a night is at work; nothing was changed. Or Redis does not answer: then try again.

    """
    if subject.id == ANONYMOUS:
        raise ContractError(f"{ANONYMOUS} stands for visitors, of whom nothing is kept; expected a customer's id")
    tombstones = Tombstones.of(lake, shop.name)
    with lake.alone():
        line, before = tombstones.line(subject.kind, subject.id), scan(lake, shop, subject)
        if not before and not line:
            raise NothingInLake(
                f"{subject.id!r} is no {subject.kind} that {lake.root.parent} knows, and nothing was changed; ids are "
                "compared as text. What only the shop's files hold can be forgotten after the next night"
            )
        if before or (line and not line["done"]):
            at = now or datetime.now(UTC)
            tombstones.put(subject.kind, subject.id, at, done=False)
            remove(lake, shop, subject)
            tombstones.put(subject.kind, subject.id, at, done=True)
        return before, scan(lake, shop, subject)


def remove(lake: Lake, shop: Shop, subject: Subject) -> None:
    """Take the subject out of all that is kept, and drop all that can be made again."""
    days = _rewrite_days(lake, subject)
    for entry in (entry for kind in REWRITTEN for entry in _entries(lake, kind)):
        _rewrite(lake, entry, subject, days)
    for old in days:
        (lake.root / old).unlink()
    for kind in DROPPED:
        for entry in lake.entries(kind):
            lake.drop(entry)
    for folder in (*(lake.root / name for name in FACTS), *lake.drafts().iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
    with open_store(Settings(), shop.name) as store:
        for placement in PLACEMENTS:
            if (placement in OF_ITEMS) == (subject.kind == "item"):
                for key in store.keys_of(placement, subject.id):
                    store.client.unlink(key)
        if subject.kind == "item":
            store.take_out(subject.id)
    for path in lake.root.parent.rglob("*.log"):
        _blank_out(path, subject)


def _entries(lake: Lake, kind: str) -> list[str]:
    """Entries of all kinds that a pattern names."""
    return [
        entry for folder in sorted(lake.root.glob(kind)) for entry in lake.entries(str(folder.relative_to(lake.root)))
    ]


def _rewrite_days(lake: Lake, subject: Subject) -> dict[str, dict[str, Any]]:
    """Write each file of the log again that names the subject; return by old name what the new one is."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((lake.root / "events").glob("*/*.parquet")):
        name = path.relative_to(lake.root)
        if _in_table(path, name, subject):
            table = without(pq.ParquetFile(path).read(), name, subject)
            new, digest = lake.add_file(str(name.parent), table_bytes(table.cast(EVENTS)))
            found[str(name)] = {"file": new, "sha256": digest, "rows": table.num_rows}
    return found


def _rewrite(lake: Lake, entry: str, subject: Subject, days: dict[str, dict[str, Any]]) -> None:
    """Replace an entry by the same without the subject, where it names it or one of these days."""
    folder, manifest = lake.path(entry), lake.manifest(entry)
    named = [path for path in folder.glob("*.parquet") if _in_table(path, path.relative_to(lake.root), subject)]
    told = manifest.get("days", [])
    if not named and not any(day["file"] in days or _robots(day, subject) for day in told):
        return
    with lake.rewrite(entry, manifest) as draft:
        for path in folder.iterdir():
            if path in named:
                file, name = pq.ParquetFile(path), path.relative_to(lake.root)
                rows = file.metadata.row_group(0).num_rows if file.num_row_groups else None
                write_table(without(file.read(), name, subject), draft / path.name, rows, _DICTIONARY_BYTES)
            elif path.name != MANIFEST:
                shutil.copy2(path, draft / path.name)
        for day in told:
            day["robots"] = [robot for robot in day["robots"] if robot not in _robots(day, subject)]
            day |= days.get(day["file"], {})
        digests = {path.name: sha256(draft / path.name) for path in named}
        match manifest.get("files"):
            case dict() as files:  # of a snapshot
                files |= digests
            case list() as files:  # of a version
                for file in (file for file in files if file["name"] in digests):
                    path = draft / file["name"]
                    file |= {"rows": pq.ParquetFile(path).metadata.num_rows, "sha256": digests[path.name]}


def _robots(day: dict[str, Any], subject: Subject) -> list[Any]:
    return [robot for robot in day.get("robots", []) if subject.kind == "user" and robot[0] == subject.id]


def _blank_out(path: Path, subject: Subject) -> None:
    """Write x over the id in a log, byte by byte, for others may be writing at its end."""
    for place in _places(path, subject) if subject.is_distinctive and path.is_file() else ():
        with path.open("r+b") as file:
            file.seek(place.start)
            file.write(b"x" * (place.stop - place.start))


# ---- a table without the subject


def without(table: pa.Table, path: Path, subject: Subject) -> pa.Table:
    """Return a table of the lake (``path`` is below its root) as if the subject had never been."""
    if "listed" in table.column_names and subject.kind == "item":
        return _closed_traces(table, subject.id)
    if "rank" in table.column_names:
        return _closed_lists(table, path, subject)
    return table.filter(pa.array(~_hits(table, path, subject, its_own=True)))


def _closed_lists(table: pa.Table, path: Path, subject: Subject) -> pa.Table:
    """Lists without the item, ranks closed up, and no reason that names it; or without the reader's."""
    columns, n = subject.columns(path), len(table)
    is_own = _equal(table[USER_ID], subject.id) if USER_ID in columns else np.zeros(n, bool)
    is_it = _equal(table[ITEM_ID], subject.id) if subject.kind == "item" else np.zeros(n, bool)
    rank, readers = table["rank"].to_numpy(), table[USER_ID].combine_chunks()
    gone = pc.index_in(readers, readers.filter(pa.array(is_it))).fill_null(-1).to_numpy(zero_copy_only=False)
    closed = rank - ((gone >= 0) & (rank > np.append(rank[is_it], 0)[gone]))
    table = table.set_column(table.column_names.index("rank"), table.schema.field("rank"), pa.array(closed, pa.int16()))
    if subject.kind == "item":
        named = pa.array(_equal(table["reason_item_id"], subject.id))
        for name, value in (("reason", PICKED), ("reason_item_id", None)):
            told = pc.if_else(named, pa.scalar(value, pa.string()), table[name])
            table = table.set_column(table.column_names.index(name), table.schema.field(name), told)
    return table.filter(pa.array(~is_own & ~is_it))


def _closed_traces(table: pa.Table, item_id: str) -> pa.Table:
    """Traces without the item: its place goes from all that is told item by item."""
    items = table["items"].combine_chunks()
    row, kept = pc.list_parent_indices(items).to_numpy(), ~_equal(items.flatten(), item_id)
    ends = np.bincount(row[kept], minlength=len(table)).cumsum()
    place = np.arange(len(row)) - np.searchsorted(row, row)
    listed = table["listed"].to_numpy()
    listed = listed - np.bincount(row[~kept & (place < listed[row])], minlength=len(table))

    def closed(column: pa.Array) -> pa.Array:
        if pa.types.is_struct(column.type):
            return pa.StructArray.from_arrays([closed(part) for part in column.flatten()], fields=list(column.type))
        if pa.types.is_list(column.type):
            offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
            return pa.ListArray.from_arrays(offsets, column.flatten().filter(pa.array(kept)), type=column.type)
        return column

    columns = {name: closed(table[name].combine_chunks()) for name in table.column_names}
    return pa.table({**columns, "listed": pa.array(listed, pa.int16())}, table.schema)


# ---- the search


def scan(lake: Lake, shop: Shop, subject: Subject) -> Found:
    """Search the whole home and the shop's lists in Redis; return what was found where, by place.

    Ids stand in columns of tables, in coded logs, in the keys and lists of Redis, and in manifests where a customer was
    taken for a robot. A distinctive id is searched in every text column and, as a word, in every other file too.
    """
    found: Found = Counter()
    with open_store(Settings(), shop.name) as store:  # its file is up to date when it is left
        for placement in PLACEMENTS:
            if (placement in OF_ITEMS) == (subject.kind == "item"):
                found[f"Redis, {placement}"] += len(store.keys_of(placement, subject.id))
        for key, _ in store.lists_with(subject.id) if subject.kind == "item" else ():
            found[f"Redis, {key.split(':')[3]}"] += 1
    home = lake.root.parent
    for path in sorted(home.rglob("*")):
        with suppress(FileNotFoundError):  # a log that was rotated away meanwhile
            if path.is_file() and (n := _in_file(path, lake, subject)):
                found[_place(path.relative_to(home))] += n
    return +found


def _place(path: Path) -> str:
    """What people call the place of a file: the kind of its entry, or its folder."""
    depth = 3 if path.parts[:2] == ("lake", "recommendations") else 2
    return "/".join(path.parts[: min(depth, max(1, len(path.parts) - 1))])


def _in_file(path: Path, lake: Lake, subject: Subject) -> int:
    match path.suffix:
        case ".parquet":
            name = path.relative_to(lake.root) if path.is_relative_to(lake.root) else Path(path.name)
            return _in_table(path, name, subject)
        case ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return int((array == subject.id).sum()) if array.dtype.kind == "U" else 0
        case ".json" | ".jsonl":
            return _in_json(path, subject)
    if path.name in ("user_text", "item_text", "user_ends", "item_ends"):
        return _in_history(path, subject)
    return len(_places(path, subject)) if subject.is_distinctive else 0


def _places(path: Path, subject: Subject) -> list[slice]:
    """Where in the bytes of a file the id stands as a word."""
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [slice(*match.span()) for match in subject.spellings.finditer(content)]


def _in_table(path: Path, name: Path, subject: Subject) -> int:
    """Rows of a Parquet file that name the subject; ``name`` is its path below the lake."""
    schema = pq.read_schema(path)
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    wanted = [field for field in schema.names if _is_searched(field, name, schema, subject)]
    file = pq.ParquetFile(path, read_dictionary=[field for field in wanted if field in texts])
    return sum(
        int(_hits(file.read_row_group(group, wanted), name, subject).sum()) for group in range(file.num_row_groups)
    )


def _is_searched(column: str, path: Path, schema: pa.Schema, subject: Subject) -> bool:
    in_quarantine = "record" in schema.names and column in ("record", "reason", "field")
    return subject.is_distinctive or column in subject.columns(path) or in_quarantine


def _hits(table: pa.Table, path: Path, subject: Subject, its_own: bool = False) -> np.ndarray:
    """Return (n,) bool: rows that name the subject; with ``its_own`` not those of others, whose words may name it."""
    hits, quarantine = np.zeros(len(table), bool), "record" in table.column_names
    for name in table.column_names:
        for row, texts in _texts(table[name].combine_chunks(), np.arange(len(table))):
            found = _equal(texts, subject.id) if name in subject.columns(path) else np.zeros(len(texts), bool)
            if name in ("record", "reason") and quarantine:
                found = found | _matching(texts, subject.fault)
            if name == "record":  # of a broken line nobody knows the columns
                found = found | (_matching(texts, subject.word) & _equal(table["field"], "line"))
            if subject.is_distinctive and name not in subject.columns(path) and (quarantine or not its_own):
                found = found | _matching(texts, subject.word)
            hits[row[found]] = True
    return hits


def _texts(column: Any, row: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield the strings in a column, which may hold lists and structs, and the row of each."""
    if isinstance(column, pa.ChunkedArray):  # of no chunk
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    kind = column.type
    if pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _texts(part, row)
    elif pa.types.is_list(kind):
        yield from _texts(column.flatten(), row[pc.list_parent_indices(column).to_numpy()])
    elif pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        yield row, column


def _equal(texts: Any, wanted: str) -> np.ndarray:
    return _asked(texts, lambda values: pc.equal(values, wanted))


def _matching(texts: Any, pattern: str) -> np.ndarray:
    return _asked(texts, lambda values: pc.match_substring_regex(values, pattern))


def _asked(texts: Any, ask: Any) -> np.ndarray:
    """Return (n,) bool; of strings with a dictionary each is asked about once."""
    if isinstance(texts, pa.ChunkedArray):
        parts = [_asked(chunk, ask) for chunk in texts.chunks]
        return np.concatenate(parts) if parts else np.empty(0, bool)
    if pa.types.is_dictionary(texts.type):
        found = pc.take(pc.fill_null(ask(texts.dictionary), False), texts.indices)
    else:
        found = ask(texts)
    return pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(bool)


def _in_json(path: Path, subject: Subject) -> int:
    text = path.read_text(errors="replace")
    try:
        values = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    except json.JSONDecodeError:
        values = [text]
    word = re.compile(subject.word)

    def count(value: Any) -> int:
        match value:
            case dict():
                robots = len(_robots(value, subject)) if "robots" in value and not subject.is_distinctive else 0
                return robots + sum(count(key) + count(of) for key, of in value.items())
            case list():
                return sum(map(count, value))
            case str():
                return int(subject.is_distinctive and word.search(value) is not None)
        return 0

    return sum(map(count, values))


def _in_history(path: Path, subject: Subject) -> int:
    """Whether the ids of a coded log hold the subject; all of a file, also what belongs to a later log."""
    if path.name != f"{subject.kind}_text":
        return 0
    ends = path.with_name(f"{subject.kind}_ends")
    lengths = {path.name: path.stat().st_size, ends.name: ends.stat().st_size // 4}
    history = History(path.parent, lengths)
    ids = history.users if subject.kind == "user" else history.items
    return int(_equal(ids, subject.id).sum())
