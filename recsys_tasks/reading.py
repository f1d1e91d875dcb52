"""One file of the shop becomes one *piece* of the lake: its rows typed and judged, and what is wrong with the bad ones.

A piece depends on its file, on how the shop file describes it and on who was forgotten, on nothing else: not on
``as_of``, not on other files. So a night reads a file once in its life, until its size or its times on disk (or the
version its source gives) change, or somebody is forgotten, whose rows are never written and not counted. A piece holds

``rows.parquet``
    Every row: the fields of its table, ``file``, ``row`` (null where nobody needed it), and for bad rows ``reason``.
    Of events also ``time`` (microseconds since 1970) and ``day`` (days since 1970, in UTC).
``quarantine.parquet``
    The bad rows and the broken lines, ``contract.QUARANTINE`` and ``time``; only where there are any.
"""

import logging
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_tasks.contract import QUARANTINE
from recsys_tasks.engine import connect
from recsys_tasks.errors import ShopFileError, SourceError, TemporarilyUnavailable
from recsys_tasks.judging import judge_events, judge_items, judge_users
from recsys_tasks.lake import TEMPORARY, Lake, fingerprint, write_batches
from recsys_tasks.shop import Shop, load_shop
from recsys_tasks.snapshot import microseconds
from recsys_tasks.sources import Source, SourceFile, open_source
from recsys_tasks.tombstones import Kind, Tombstones

log = logging.getLogger(__name__)

ROWS, BROKEN = "rows.parquet", "quarantine.parquet"
FAULTS = QUARANTINE.append(pa.field("time", pa.int64()))
"""The schema of a piece's quarantine; ``time`` is null where a row has none."""

_KINDS: dict[str, tuple[Kind, ...]] = {"events": ("user", "item"), "items": ("item",), "users": ("user",)}
_FORMAT = "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 1"
_BIG = 32 << 20
"""Files with so many bytes are read without counting rows first: counting keeps DuckDB to one thread."""
_SETTLED_SECONDS = 0.02
"""The times of a file on disk tick in steps of a few milliseconds."""


@dataclass(frozen=True)
class Piece:
    """A file that was read: its table, its name, and the lake entry that holds its rows."""

    table: str
    file: str
    entry: str
    bad: bool
    """Whether there is a quarantine."""
    numbered: bool
    """Whether ``row`` is told for all rows; it always is for bad ones."""
    census: list[dict[str, Any]]
    """How many rows there are, by ``day`` (None: without a time), ``kind`` (good, bad, left out), ``word`` of those
    left out, and ``field`` of the bad ones; broken lines are bad rows of the field ``line``."""
    empty: list[str]
    """Columns without a value."""
    fresh: bool
    """Whether it was read now, and not by an earlier night."""


def read_files(
    files: Iterable[tuple[str, SourceFile]],
    shop_file: str,
    lake: Path,
    now: float,
    number: bool = False,
    source: Source | None = None,
) -> Iterator[Piece]:
    """Give the piece of each file, reading those that are new or have changed.

    Parameters
    ----------
    files
        (table, file) where table is ``events``, ``items`` or ``users``.
    shop_file, lake
        Paths, so that this can run on another machine that sees the same folders.
    now
        Seconds since 1970. What is dated more than a day later was dated by a clock that is wrong.
    number
        Read again what was read without numbering its rows.
    source
        What listed the files, where that is of this process.

    Raises
    ------
    SourceError
        A file is unreadable or lacks a column.
    ShopFileError
        ``timestamp_format`` is none.
    TemporarilyUnavailable
        A file was written to while it was read.

    """
    reader: Reader | None = None
    for table, file in files:
        reader = reader or Reader(load_shop(shop_file, Path()), Lake(lake), now, source)
        yield reader.piece(table, file, number)


class Reader:
    """A connection, and one compiled judgement for each kind of table; see ``read_files``."""

    def __init__(self, shop: Shop, lake: Lake, now: float, source: Source | None = None) -> None:
        self.shop, self.lake = shop, lake
        self.latest = int((now + 86_400) * 1_000_000)
        self.source = source or open_source(shop)
        self.tombstones = Tombstones.of(lake, shop.name)
        self.spill = tempfile.TemporaryDirectory(prefix=TEMPORARY)
        self.connection = connect(Path(self.spill.name))
        self.judgements: dict[Any, str] = {}
        self.forgotten = 0
        """Rows of the last file that were left out."""
        try:  # timestamps without a zone are read in the session's zone
            self.connection.raw_sql(f"SET TimeZone = '{shop.time_zone or 'UTC'}'")
        except duckdb.Error as error:
            raise ShopFileError(
                f"{shop.file}: time_zone: {shop.time_zone!r} is not the same everywhere; expected an IANA name such as "
                "UTC or Europe/London"
            ) from error
        if form := self.source.rules.timestamp_format:
            try:
                self.connection.con.execute("SELECT try_strptime('', $1)", [form])
            except duckdb.Error as error:
                raise ShopFileError(
                    f"{shop.file}: source.events.timestamp_format: {form!r} is no strptime format; "
                    "expected one such as %d/%m/%Y %H:%M:%S"
                ) from error

    def piece(self, table: str, file: SourceFile, number: bool = False) -> Piece:
        """Return the piece of a file, made now or before."""
        if file.version is None:
            _wait_until_settled(file)
        stamp = file.version or _stamp(file)
        described: dict[str, Any] = {
            "table": table,
            "file": file.name,
            "path": None if file.version else str(file.path),  # shops of one lake may have files of one name
            "stamp": stamp,
            "source": self.shop.source.model_dump(mode="json"),
            "time_zone": self.shop.time_zone,
        }
        described |= {"forgotten": self.tombstones.digest} if self.tombstones.digest else {}
        entry = f"read/{fingerprint(described)}"
        fresh = not self.lake.has(entry)
        if number and not fresh and not self.lake.manifest(entry)["numbered"]:
            self.lake.drop(entry)
            fresh = True
        if fresh:
            with self.lake.create(entry, described) as folder:
                with self.source.fetched(file) as here:
                    self._read(table, here, folder, described, number)
                if file.version is None and _stamp(file) != stamp:
                    raise TemporarilyUnavailable(
                        f"{file.path}: was written to while it was read; expected a finished export. Try again later"
                    )
        found: dict[str, Any] = described if fresh else self.lake.manifest(entry)
        return Piece(table, file.name, entry, found["bad"], found["numbered"], found["census"], found["empty"], fresh)

    def _read(self, table: str, file: SourceFile, folder: Path, described: dict[str, Any], number: bool) -> None:
        """Fill the folder, and tell of it."""
        small = table != "events" or file.path.stat().st_size < _BIG
        numbered = small or number or self.source.rules.event_ids
        try:
            census: list[dict[str, Any]] = []
            if not numbered:
                with suppress(duckdb.Error):  # the second reading tells what is wrong
                    census = self._judge(table, file, folder, numbered=False)
                    numbered = self._is_numbered(folder)
                rows = sum(row["n"] for row in census)  # a person wants to know which of them are bad
                whole = not self.forgotten and self.source.in_order(file, rows)
                if not census or (_bad(census) and not numbered and not whole):
                    numbered, census = True, []
            census = census or self._judge(table, file, folder, numbered=True)
            broken = self._write_quarantine(table, file, folder, _bad(census))
            if broken:
                census.append({"day": None, "kind": "bad", "word": None, "field": "line", "n": broken})
            if self.forgotten:
                log.info("%s: %d rows of what was forgotten are left out", file.name, self.forgotten)
            described["bad"] = _bad(census) > 0
            described |= {"numbered": numbered, "census": census, "empty": _empty(folder / ROWS)}
        except (duckdb.Error, pa.ArrowException, ibis.IbisError) as error:  # the latter of types that are no value
            what = str(error).strip().splitlines()[0]
            raise SourceError(
                f"{file.path}: cannot be read: {what}. Expected a whole file in UTF-8; export it again, or convert it "
                "(iconv -f latin1 -t utf-8)"
            ) from error
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop what the reader staged of this file."""
        tables = self.connection.con.execute(
            "SELECT table_name FROM duckdb_tables() WHERE starts_with(table_name, 'file_')"
        )
        for (name,) in tables.fetchall():
            self.connection.raw_sql(f'DROP TABLE "{name}"')

    def _judge(self, table: str, file: SourceFile, folder: Path, numbered: bool) -> list[dict[str, Any]]:
        """Write the rows of a file and return their census."""
        match table:
            case "events":
                raw = self.source.read_events(self.connection, file, numbered=numbered)
            case "items":
                raw = self.source.read_items(self.connection, file)
            case _:
                raw = self.source.read_users(self.connection, file)
        known = (table, raw.schema())
        if known not in self.judgements:
            self.connection.to_pyarrow(raw.limit(0))  # makes the functions known that the reader brings
            self.judgements[known] = self._judgement(table, ibis.table(raw.schema(), name="raw"))
        self.connection.create_view("raw", raw, overwrite=True)
        name, target = file.name.replace("'", "''"), str(folder / ROWS).replace("'", "''")
        self.connection.raw_sql(
            f"COPY (SELECT '{name}' AS file, * FROM ({self.judgements[known]})) TO '{target}' ({_FORMAT})"
        )
        self.forgotten = self._leave_out_forgotten(table, folder / ROWS)
        return self._census(table, folder)

    def _leave_out_forgotten(self, table: str, rows: Path) -> int:
        """Write the rows again without those of whom the shop was to forget; return how many these were."""
        if not self.tombstones.digest:
            return 0
        execute, file = self.connection.con.execute, f"read_parquet({_literal(rows)})"
        when = "time" if table == "events" else "NULL"
        theirs = []
        for kind in _KINDS[table]:
            ids = [id_ for (id_,) in execute(f"SELECT DISTINCT {kind}_id FROM {file}").fetchall() if id_ is not None]
            for id_, until in self.tombstones.until(kind, ids).items():
                still = f" AND coalesce({when} < {microseconds(until)}, true)" if until else ""
                theirs.append(f"(coalesce({kind}_id = {_literal(id_)}, false){still})")
        if not theirs:
            return 0
        ((n,),) = execute(f"SELECT count(*) FROM {file} WHERE {' OR '.join(theirs)}").fetchall()
        without = rows.with_name(f".{rows.name}")
        execute(f"COPY (FROM {file} WHERE NOT ({' OR '.join(theirs)})) TO {_literal(without)} ({_FORMAT})")
        without.replace(rows)
        return int(n)

    def _told(self, record: str | None) -> str | None:
        """A line that has no fields, as people may see it: not where it names whom the shop was to forget."""
        words = set(re.split(r"[\s,;|\"']+", record or "")) if self.tombstones.digest else set()
        named = any(self.tombstones.until(kind, words) for kind in get_args(Kind))
        return "(names what was forgotten)" if named else record

    def _judgement(self, table: str, raw: ibis.Table) -> str:
        if table == "events":
            with_items = not self.source.item_files()
            return judge_events(raw, self.shop, self.source.rules, with_items, self.latest).sql(raw)
        return (judge_items(raw, self.shop) if table == "items" else judge_users(raw)).sql(raw)

    def _census(self, table: str, folder: Path) -> list[dict[str, Any]]:
        day, word = ("day", "left_out") if table == "events" else ("NULL::INTEGER", "NULL::VARCHAR")
        kind = f"CASE WHEN reason IS NOT NULL THEN 'bad' WHEN {word} IS NOT NULL THEN 'left out' ELSE 'good' END"
        found = self.connection.con.execute(
            f"SELECT {day} AS day, {kind} AS kind, {word} AS word, if(reason IS NULL, NULL, field) AS field, "
            f"count(*) AS n FROM read_parquet({_literal(folder / ROWS)}) GROUP BY ALL ORDER BY ALL"
        )
        return [dict(zip(("day", "kind", "word", "field", "n"), row, strict=True)) for row in found.fetchall()]

    def _is_numbered(self, folder: Path) -> bool:
        found = self.connection.con.execute(
            f"SELECT count(row) = count(*) FROM read_parquet({_literal(folder / ROWS)})"
        )
        return bool(found.fetchall()[0][0])

    def _write_quarantine(self, table: str, file: SourceFile, folder: Path, bad: int) -> int:
        """Return the number of broken lines; the number of a row is moved past those before it."""
        rejects = self.source.rejects(self.connection, file)
        header = self.source.header_lines(file)
        broken = np.array(sorted(reject.line - header for reject in rejects), np.int64)
        shift_at = broken - np.arange(len(broken))

        def batches() -> Iterator[pa.Table]:
            if rejects:
                yield pa.Table.from_pylist(
                    [
                        {
                            "table": table,
                            "file": file.name,
                            "row": reject.line - header,
                            "field": "line",
                            "reason": f"broken line: {reject.reason}",
                            "record": self._told(reject.record),
                        }
                        for reject in rejects
                    ],
                    FAULTS,
                )
            when = "time" if table == "events" else "updated_at" if table == "items" else "NULL"
            found = self.connection.con.execute(
                f"SELECT coalesce(row, file_row_number + 1) AS row, field, reason, record, {when}::BIGINT AS time "
                f"FROM read_parquet({_literal(folder / ROWS)}, file_row_number=true) "
                "WHERE reason IS NOT NULL ORDER BY 1"
            ).to_arrow_reader(65_536)
            for batch in found:
                rows = batch["row"].to_numpy(zero_copy_only=False)
                if header:  # else rows are numbered by line already
                    rows = rows + np.searchsorted(shift_at, rows, "right")
                columns = {
                    "table": pa.array([table] * len(rows)),
                    "file": pa.array([file.name] * len(rows)),
                    "row": pa.array(rows, pa.int64()),
                    **{name: batch[name] for name in ("field", "reason", "record", "time")},
                }
                yield pa.table(columns).cast(FAULTS)

        if bad or rejects:
            write_batches(batches(), FAULTS, folder / BROKEN)
        return len(rejects)


def _empty(file: Path) -> list[str]:
    """Columns of a Parquet file that are null in every row, by what its footer tells."""
    footer = pq.read_metadata(file)
    groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
    told = {
        footer.schema.column(n).path: [group.column(n).statistics for group in groups]
        for n in range(footer.num_columns)
    }
    return [
        name
        for name, parts in told.items()
        if all(part and part.null_count == group.num_rows for part, group in zip(parts, groups, strict=True))
    ]


def _bad(census: list[dict[str, Any]]) -> int:
    return sum(row["n"] for row in census if row["kind"] == "bad")


def _stamp(file: SourceFile) -> str:
    try:
        found = file.path.stat()
    except OSError as error:
        raise SourceError(
            f"{file.path}: cannot be read: {error.strerror}. Expected the file that was listed"
        ) from error
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _wait_until_settled(file: SourceFile) -> None:
    """A file written to in this very tick of the clock could change once more without its times telling."""
    age = time.time() - file.path.stat().st_ctime if file.path.exists() else _SETTLED_SECONDS
    if 0 <= age < _SETTLED_SECONDS:
        time.sleep(_SETTLED_SECONDS - age)


def _literal(value: Path | str) -> str:
    return "'" + str(value).replace("'", "''") + "'"
