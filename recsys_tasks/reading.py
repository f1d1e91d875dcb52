"""One file of the shop becomes one *piece* of the lake: its rows typed and judged, and what is wrong with the bad ones.

A piece depends on its file and on how the shop file describes it, on nothing else: not on ``as_of``, not on other
files. So a night reads a file once in its life, until its size or its times on disk (or the version its source gives)
change. A piece holds

``rows.parquet``
    Every row: the fields of its table, ``file``, ``row`` (null where nobody needed it), and for bad rows ``reason``.
    Of events also ``time`` (microseconds since 1970) and ``day`` (days since 1970, in UTC).
``quarantine.parquet``
    The bad rows and the broken lines, ``contract.QUARANTINE`` and ``time``; only where there are any.
"""

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pyarrow as pa

from recsys_tasks.contract import ANONYMOUS, EVENT_TYPES, QUARANTINE
from recsys_tasks.engine import connect
from recsys_tasks.errors import ShopFileError, SourceError, TemporarilyUnavailable
from recsys_tasks.lake import Lake, fingerprint, write_batches
from recsys_tasks.shop import Shop, load_shop
from recsys_tasks.sources import EventRules, Source, SourceFile, open_source

log = logging.getLogger(__name__)

ROWS, BROKEN = "rows.parquet", "quarantine.parquet"
FAULTS = QUARANTINE.append(pa.field("time", pa.int64()))
"""The schema of a piece's quarantine; ``time`` is null where a row has none."""

DAY = 86_400_000_000
_INSTANT = dt.Timestamp(timezone="UTC", scale=6)
_FIRST = 631_152_000_000_000
"""1990, in microseconds."""
_ZONE_AT_END = r":\d{2}(\.\d+)?\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)$"
_NO_SECONDS = r"^(\d{4}-\d{1,2}-\d{1,2}[ T]\d{1,2}:\d{2})(\s*(?:Z|UTC|[+-]\d{2}(?::?\d{2})?))$"
_SHOWN = ("user_id", "item_id", "timestamp", "event_type", "value", "price")
_BIG = 32 << 20
"""Files with so many bytes are read without counting rows first: counting keeps DuckDB to one thread."""
_SETTLED_SECONDS = 0.02
"""The times of a file on disk tick in steps of a few milliseconds."""


@ibis.udf.scalar.builtin(signature=((_INSTANT,), dt.int64))
def epoch_us(instant: Any) -> Any:
    """DuckDB's microseconds since 1970."""


@ibis.udf.scalar.builtin(signature=((dt.string, dt.string), dt.timestamp))
def try_strptime(text: Any, form: Any) -> Any:
    """DuckDB's strptime, null where the text is of another form."""


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
    reader: _Reader | None = None
    for table, file in files:
        reader = reader or _Reader(load_shop(shop_file, Path()), Lake(lake), now, source)
        yield reader.piece(table, file, number)


class _Reader:
    """A connection, and one compiled judgement for each kind of table."""

    def __init__(self, shop: Shop, lake: Lake, now: float, source: Source | None) -> None:
        self.shop, self.lake = shop, lake
        self.latest = int((now + 86_400) * 1_000_000)
        self.source = source or open_source(shop)
        self.spill = tempfile.TemporaryDirectory(prefix="nightcart-")
        self.connection = connect(Path(self.spill.name))
        self.judgements: dict[Any, str] = {}
        # Timestamps without a zone are read in the session's zone.
        self.connection.raw_sql(f"SET TimeZone = '{shop.time_zone or 'UTC'}'")
        if form := self.source.rules.timestamp_format:
            try:
                self.connection.con.execute("SELECT try_strptime('', $1)", [form])
            except duckdb.Error as error:
                raise ShopFileError(
                    f"{shop.file}: source.events.timestamp_format: {form!r} is no strptime format; "
                    "expected one such as %d/%m/%Y %H:%M:%S"
                ) from error

    def piece(self, table: str, file: SourceFile, number: bool) -> Piece:
        """Return the piece of a file, made now or before."""
        if file.version is None:
            _wait_until_settled(file)
        stamp = file.version or _stamp(file)
        described: dict[str, Any] = {
            "table": table,
            "file": file.name,
            "stamp": stamp,
            "source": self.shop.source.model_dump(mode="json"),
            "time_zone": self.shop.time_zone,
        }
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
        return Piece(table, file.name, entry, found["bad"], found["numbered"], fresh)

    def _read(self, table: str, file: SourceFile, folder: Path, described: dict[str, Any], number: bool) -> None:
        """Fill the folder, and tell of it."""
        small = table != "events" or file.path.stat().st_size < _BIG
        numbered = small or number or self.source.rules.event_ids
        try:
            self._judge(table, file, folder, numbered)
            bad = self._bad(folder)
            if bad and not numbered:  # a person wants to know which rows
                numbered = True
                self._judge(table, file, folder, numbered)
            described["bad"] = self._write_quarantine(table, file, folder, bad)
            described["numbered"] = numbered
        except duckdb.Error as error:
            what = str(error).strip().splitlines()[0]
            raise SourceError(
                f"{file.path}: cannot be read: {what}. Expected a whole file in UTF-8; export it again, or convert it "
                "(iconv -f latin1 -t utf-8)"
            ) from error

    def _judge(self, table: str, file: SourceFile, folder: Path, numbered: bool) -> None:
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
            self.judgements[known] = str(ibis.to_sql(self._judgement(*known), dialect="duckdb"))
        self.connection.create_view("raw", raw, overwrite=True)
        name, target = file.name.replace("'", "''"), str(folder / ROWS).replace("'", "''")
        self.connection.raw_sql(
            f"COPY (SELECT '{name}' AS file, * FROM ({self.judgements[known]})) TO '{target}' "
            "(FORMAT parquet, COMPRESSION zstd)"
        )

    def _judgement(self, table: str, schema: ibis.Schema) -> ibis.Table:
        raw = ibis.table(schema, name="raw")
        if table == "events":
            return judge_events(raw, self.shop, self.source.rules, not self.source.item_files(), self.latest)
        return judge_items(raw, self.shop) if table == "items" else judge_users(raw)

    def _bad(self, folder: Path) -> int:
        (found,) = self.connection.raw_sql(
            f"SELECT count(reason) FROM read_parquet({_literal(folder / ROWS)})"
        ).fetchall()
        return found[0]

    def _write_quarantine(self, table: str, file: SourceFile, folder: Path, bad: int) -> bool:
        """A row's number is moved past the broken lines before it."""
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
                            "record": reject.record,
                        }
                        for reject in rejects
                    ],
                    FAULTS,
                )
            when = "time" if table == "events" else "updated_at" if table == "items" else "NULL"
            found = self.connection.con.execute(
                f"SELECT row, field, reason, record, {when}::BIGINT AS time "
                f"FROM read_parquet({_literal(folder / ROWS)}) WHERE reason IS NOT NULL ORDER BY row"
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
        return bool(bad or rejects)


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


def _literal(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _shown(value: ibis.Value) -> ibis.Value:
    """The value as a message shows it."""
    return ibis.literal("'") + value.cast("string").substr(0, 80).fill_null("") + "'"


def _text(value: ibis.Value) -> ibis.Value:
    return value.cast("string").strip().nullif("")


def _identity(value: ibis.Value) -> ibis.Value:
    """An id as text. Whole numbers that pandas made floating, because some were missing, lose their ``.0``."""
    if not value.type().is_floating():
        return _text(value)
    whole = ibis.ifelse(value == value.round(), value.try_cast("int64"), ibis.null("int64"))
    return ibis.ifelse(value.isnan(), ibis.null("string"), whole.cast("string").fill_null(value.cast("string")))


def _path(category: ibis.Value) -> ibis.Value:
    """Categories, broad to narrow, without gaps."""
    if not category.type().is_array():
        return ibis.null("array<string>")
    return category.cast("array<string>").map(lambda c: c.strip()).filter(lambda c: c.notnull() & (c != ""))


def _number(value: ibis.Value) -> ibis.Value:
    number = value if value.type().is_numeric() else _text(value).try_cast("float64")
    number = number.cast("float64")
    return ibis.ifelse(number.isnan() | number.isinf(), ibis.null("float64"), number)


def _time(value: ibis.Value, rules: EventRules) -> tuple[ibis.Value, ibis.Value]:
    """Return microseconds since 1970 (null where there are none) and whether the value came without a zone."""
    kind = value.type()
    if kind.is_timestamp() or kind.is_date():
        return epoch_us(value.cast(_INSTANT)), ibis.literal(not (kind.is_timestamp() and kind.timezone))
    if rules.timestamp_unit:
        number = value.try_cast("float64") * {"s": 1_000_000, "ms": 1_000, "us": 1}[rules.timestamp_unit]
        whole = ibis.ifelse(number.between(0, 4e15), number.round(), ibis.null("float64")).cast("int64")
        return whole, ibis.literal(False)
    text = _text(value)
    if rules.timestamp_format:
        form = rules.timestamp_format
        return epoch_us(try_strptime(text, form).cast(_INSTANT)), ibis.literal("%z" not in form)
    with_seconds = text.re_replace(_NO_SECONDS, r"\1:00\2")
    return epoch_us(ibis.coalesce(text.try_cast(_INSTANT), with_seconds.try_cast(_INSTANT))), ~(
        with_seconds.re_search(_ZONE_AT_END)
    )


def _expected_time(value: ibis.Value, rules: EventRules) -> ibis.Value:
    """What a timestamp that is none was to be, and what it seems to be."""
    names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
    expected = f"{names[rules.timestamp_unit]} since 1970" if rules.timestamp_unit else "ISO 8601"
    if rules.timestamp_format:
        expected = rules.timestamp_format
    elif not rules.timestamp_unit:
        expected += ", or set timestamp_format or timestamp_unit"
    digits = ibis.ifelse(_text(value).re_search(r"^\d+(\.\d+)?$"), _text(value).re_extract(r"^\d+", 0).length(), 0)
    looks = ibis.cases(
        *(
            (digits == length, f"; it looks like {names[unit]}: set timestamp_unit to {unit}")
            for unit, length in (("s", 10), ("ms", 13), ("us", 16))
            if unit != rules.timestamp_unit
        ),
        else_="",
    )
    return ibis.literal(f"; expected {expected}") + looks


def judge_events(raw: ibis.Table, shop: Shop, rules: EventRules, with_items: bool, latest: int) -> ibis.Table:
    """Add the typed fields, the word of rows to leave out and, for bad rows, ``field``, ``reason`` and ``record``.

    ``with_items`` keeps the fields of the catalogue that event rows carry; ``latest`` is the last instant, in
    microseconds since 1970, that a clock which is right can have told.
    """
    user, item = _identity(raw.user_id), _identity(raw.item_id)
    instant, naive = _time(raw.timestamp, rules)
    word = _text(raw.event_type)
    names = {**{name: name for name in EVENT_TYPES}, **rules.event_types}
    told = word.cases(*names.items(), else_=ibis.null("string"))
    kind = ibis.literal(rules.event_type) if rules.event_type else told
    value, price = _number(raw.value), _number(raw.price)
    if rules.negative_value == "return":
        back = (kind == "purchase") & (value < 0).fill_null(False)
        kind, value = ibis.ifelse(back, "return", kind), value.abs()
    needs_positive = kind.isin(["purchase", "cart"]) & (value <= 0).fill_null(False)
    null = ibis.null("string")
    stamp = "timestamp " + _shown(raw.timestamp)
    faults = [
        ("user_id", user.isnull(), ibis.literal("user_id is missing; expected a non-empty id")),
        (
            "user_id",
            user == ANONYMOUS,
            ibis.literal(f"user_id {ANONYMOUS!r} is kept for visitors; expected another id"),
        ),
        ("item_id", item.isnull(), ibis.literal("item_id is missing; expected a non-empty id")),
        ("timestamp", raw.timestamp.isnull(), ibis.literal("timestamp is missing; expected an instant")),
        ("timestamp", instant.isnull(), stamp + " is no instant" + _expected_time(raw.timestamp, rules)),
        (
            "timestamp",
            instant < _FIRST,
            stamp + " lies before 1990; check the unit or the clock it came from",
        ),
        (
            "timestamp",
            instant > latest,
            stamp + " lies in the future; check the unit, the zone or the clock it came from",
        ),
        (
            "event_type",
            kind.isnull(),
            "event_type "
            + _shown(raw.event_type)
            + f" is not known; expected one of {', '.join(names)}, or map it in event_types",
        ),
        ("value", _text(raw.value).notnull() & value.isnull(), "value " + _shown(raw.value) + " is no number"),
        (
            "value",
            needs_positive,
            "value " + _shown(raw.value) + " of a purchase; expected more than 0 (see negative_value)",
        ),
        ("price", _text(raw.price).notnull() & price.isnull(), "price " + _shown(raw.price) + " is no number"),
        ("price", (price < 0).fill_null(False), "price " + _shown(raw.price) + " is negative; expected 0 or more"),
    ]
    if shop.time_zone is None:
        faults.insert(7, ("timestamp", naive, stamp + " has no time zone; set time_zone in the shop file"))
    if rules.rating_range:
        lowest, highest = rules.rating_range
        wrong = (kind == "rating") & (value.isnull() | ~value.between(lowest, highest))
        faults.append(
            ("value", wrong, "value " + _shown(raw.value) + f" is no rating; expected {lowest:g} to {highest:g}")
        )
    words = {name: _text(raw[name]) for name in ("title", "description", "brand")} if with_items else {}
    if with_items:
        words["category"] = _path(raw.category)
    left_out = ibis.ifelse(word.isin(rules.left_out), word, null) if rules.left_out else null
    if rules.left_out:
        faults = [(name, left_out.isnull() & fault, text) for name, fault, text in faults]
    return raw.select(
        row=raw.row.cast("int64"),
        left_out=left_out,
        user_id=user,
        item_id=item,
        time=instant,
        day=(instant // DAY).cast("int32"),
        event_type=kind,
        value=value,
        price=price,
        session_id=_identity(raw.session_id),
        event_id=_identity(raw.event_id),
        **words,
        **_verdict(raw, faults, _SHOWN),
    )


def judge_items(raw: ibis.Table, shop: Shop) -> ibis.Table:
    """Add the typed fields of a catalogue row and, for bad rows, ``field``, ``reason`` and ``record``."""
    item, price = _identity(raw.item_id), _number(raw.price)
    word = _text(raw.available).lower()
    available = word.cases(
        *((yes, True) for yes in ("true", "1", "t", "y", "yes")),
        *((no, False) for no in ("false", "0", "f", "n", "no")),
        else_=ibis.null("boolean"),
    )
    updated = raw.updated_at
    instant, naive = _time(updated, EventRules())
    faults = [
        ("item_id", item.isnull(), ibis.literal("item_id is missing; expected a non-empty id")),
        ("price", _text(raw.price).notnull() & price.isnull(), "price " + _shown(raw.price) + " is no number"),
        ("price", (price < 0).fill_null(False), "price " + _shown(raw.price) + " is negative; expected 0 or more"),
        (
            "available",
            word.notnull() & available.isnull(),
            "available " + _shown(raw.available) + " is neither true nor false",
        ),
        ("updated_at", _text(updated).notnull() & instant.isnull(), "updated_at " + _shown(updated) + " is no instant"),
    ]
    if shop.time_zone is None:
        zoneless = instant.notnull() & naive
        faults.append(("updated_at", zoneless, "updated_at " + _shown(updated) + " has no time zone; set time_zone"))
    return raw.select(
        row=raw.row.cast("int64"),
        item_id=item,
        title=_text(raw.title),
        description=_text(raw.description),
        brand=_text(raw.brand),
        category=_path(raw.category),
        price=price,
        available=available.fill_null(True),
        updated_at=instant,
        **_verdict(raw, faults, ("item_id", "title", "price", "available", "updated_at")),
    )


def judge_users(raw: ibis.Table) -> ibis.Table:
    """Add, for bad rows, ``field``, ``reason`` and ``record``; attributes are text, stripped."""
    user = _identity(raw.user_id)
    attributes = [name for name in raw.columns if name not in ("row", "user_id")]
    faults = [
        ("user_id", user.isnull(), ibis.literal("user_id is missing; expected a non-empty id")),
        (
            "user_id",
            user == ANONYMOUS,
            ibis.literal(f"user_id {ANONYMOUS!r} is kept for visitors; expected another id"),
        ),
    ]
    return raw.select(
        row=raw.row.cast("int64"),
        user_id=user,
        attributes=ibis.struct({name: _text(raw[name]) for name in attributes}),
        **_verdict(raw, faults, ("user_id", *attributes)),
    )


def _verdict(raw: ibis.Table, faults: list[tuple[str, Any, Any]], shown: tuple[str, ...]) -> dict[str, ibis.Value]:
    """The first fault of a row that has one: its field, the reason, and the row as it came."""
    null = ibis.null("string")
    reason = ibis.cases(*((fault.fill_null(False), text) for _, fault, text in faults), else_=null)
    field = ibis.cases(*((fault.fill_null(False), ibis.literal(name)) for name, fault, _ in faults), else_=null)
    return {"field": field, "reason": reason, "record": ibis.ifelse(reason.notnull(), record(raw, shown), null)}


def record(row: ibis.Table, shown: Iterable[str]) -> ibis.Value:
    """The row as people read it."""
    first, *others = [ibis.literal(f"{name}=") + row[name].cast("string").fill_null("") for name in shown]
    return reduce(lambda text, part: text + ", " + part, others, first)
