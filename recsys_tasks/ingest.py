"""Step 1, ingest: read the shop's sources up to ``as_of``, judge every row, write what is good and why the rest is not.

Reads the shop's files. Writes ``events/date=*/`` (one content-named file a day) and ``snapshots/<id>/`` with the
catalogue, the quarantine and a manifest that lists the days. Rows read = kept + quarantined + duplicates, for events
and for items; rows dated at or after ``as_of``, and those that a source leaves out because they are no event of the
contract, are counted apart and left alone.

The log is handled by Ibis expressions, so the same code runs where Ibis does.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.datatypes as dt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_tasks.contract import ANONYMOUS, EVENT_TYPES, EVENTS, ITEMS, QUARANTINE
from recsys_tasks.errors import ContractError, ShopFileError, SourceError
from recsys_tasks.lake import Lake, fingerprint, sha256, write_table
from recsys_tasks.night import Night
from recsys_tasks.shop import Shop
from recsys_tasks.sources import EventRules, Source, SourceFile, open_source

log = logging.getLogger(__name__)

_INSTANT = dt.Timestamp(timezone="UTC", scale=6)
_FIRST_INSTANT = datetime(1990, 1, 1, tzinfo=UTC)
_ZONE_AT_END = r":\d{2}(\.\d+)?\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)$"
_SHOWN = ("user_id", "item_id", "timestamp", "event_type", "value", "price")


@ibis.udf.scalar.builtin(signature=((dt.int64,), _INSTANT))
def make_timestamptz(microseconds: Any) -> Any:
    """DuckDB's instant of microseconds since 1970."""


@ibis.udf.scalar.builtin(signature=((dt.string, dt.string), dt.timestamp))
def try_strptime(text: Any, form: Any) -> Any:
    """DuckDB's strptime, null where the text is of another form."""


def ingest(night: Night) -> str:
    """Write the snapshot of tonight and return its id.

    Unchanged files, mapping, ``as_of`` and code give the same id, and nothing is read again.

    Raises
    ------
    SourceError
        A file is missing, unreadable or lacks a column.
    ShopFileError
        ``timestamp_format`` is none.
    ContractError
        No event before ``as_of``, or none that may be used.

    """
    shop, lake = night.shop, night.lake
    source = open_source(shop)
    files = {
        "events": {file.name: sha256(file.path) for file in source.event_files()},
        "items": {file.name: sha256(file.path) for file in source.item_files()},
    }
    described: dict[str, Any] = {
        "shop": shop.name,
        "source": shop.source.model_dump(),
        "time_zone": shop.time_zone,
        "unknown_items": shop.unknown_items,
        "as_of": night.as_of,
        "files": files,
    }
    snapshot = f"snapshots/{night.instant:%Y%m%dT%H%M%S}-{fingerprint(described)}"
    if lake.has(snapshot):
        log.info("%s: no source file has changed, nothing is read", snapshot)
    else:
        with _staging() as connection, lake.create(snapshot, described) as folder:
            described["counts"], described["days"] = _Ingestion(shop, source, night.instant, connection, lake).run(
                folder
            )
    for line in accounting(lake.manifest(snapshot)["counts"]):
        log.info(line)
    return snapshot


def accounting(counts: dict[str, Any]) -> list[str]:
    """Return a line a table: rows read = kept + quarantined + duplicates."""
    lines = []
    for table, c in counts.items():
        line = (
            f"{table}: {c['read']:,} rows read = {c['kept']:,} kept + {c['quarantined']:,} quarantined "
            f"+ {c['duplicates']:,} duplicates"
        )
        apart = [f"{c['later']:,} later rows left alone"] if c["later"] else []
        apart += [f"{n:,} {word} rows left out" for word, n in c.get("left_out", {}).items()]
        line += f" ({', '.join(apart)})" if apart else ""
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in c["reasons"].items())
        lines.append(f"{line}; quarantined for {reasons}" if reasons else line)
    return lines


@contextmanager
def _staging() -> Iterator[Any]:
    """A DuckDB file of its own, so that a log larger than memory goes to disk."""
    with tempfile.TemporaryDirectory(prefix="nightcart-") as folder:
        connection = ibis.duckdb.connect(Path(folder) / "staging.duckdb")
        try:
            yield connection
        finally:
            connection.disconnect()


class _Ingestion:
    """One reading of all files. Tables ``events`` and ``items`` hold every row as it came, with file and row."""

    def __init__(self, shop: Shop, source: Source, as_of: datetime, connection: Any, lake: Lake) -> None:
        self.shop, self.source, self.as_of, self.connection, self.lake = shop, source, as_of, connection, lake
        self.rejected: list[dict[str, Any]] = []
        # Timestamps without a zone are read in the session's zone.
        connection.raw_sql(f"SET TimeZone = '{shop.time_zone or 'UTC'}'")
        if form := source.rules.timestamp_format:
            try:
                connection.con.execute("SELECT try_strptime('', $1)", [form])
            except duckdb.Error as error:
                raise ShopFileError(
                    f"{shop.file}: source.events.timestamp_format: {form!r} is no strptime format; "
                    "expected one such as %d/%m/%Y %H:%M:%S"
                ) from error

    def run(self, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Fill ``folder``; return the counts and the list of days."""
        own_items = self.source.item_files()
        for number, file in enumerate(files := self.source.event_files()):
            self._stage("events", number, file, self.source.read_events(self.connection, file))
            log.debug("events: read %s", file.name)
        log.info("events: read %d file(s), %s to %s", len(files), files[0].name, files[-1].name)
        self._note_rejects("events", files)
        for number, file in enumerate(own_items):
            self._stage("items", number, file, self.source.read_items(self.connection, file))
        self._note_rejects("items", own_items)

        events = _judge_events(self.connection.table("events"), self.shop, self.source.rules)
        later = self._later(events.timestamp)
        left_out = self._count_words(events.filter(~later).left_out) if self.source.rules.left_out else {}
        tonight = events.filter(~later & events.left_out.isnull()).drop("left_out")
        numbered = self._number_duplicates(self._known_items(tonight, own_items))
        judged = self.connection.create_table("judged_events", numbered)
        good = judged.filter(judged.reason.isnull() & (judged.copy == 0))
        counts = {"events": self._count("events", judged, events.filter(later)) | left_out}
        if counts["events"]["kept"] == 0:
            raise ContractError(self._empty_night(judged, events, counts["events"]))
        quarantine = [self._quarantined("events", judged, files)]
        if own_items:
            items = _judge_items(self.connection.table("items"))
            later = self._later(items.updated_at)
            judged = self._number_item_copies(items.filter(~later))
            counts["items"] = self._count("items", judged, items.filter(later))
            quarantine.append(self._quarantined("items", judged, own_items))
            catalogue = judged.filter(judged.reason.isnull() & (judged.copy == 0))
            if self.shop.unknown_items == "keep":
                bare = good.filter(~good.item_id.isin(catalogue.item_id)).select("item_id").distinct()
                catalogue = _as_items(catalogue).union(_as_items(bare))
        else:
            catalogue = _items_of_events(good)
        write_table(_cast(_as_items(catalogue).order_by("item_id").to_pyarrow(), ITEMS), folder / "items.parquet")
        write_table(pa.concat_tables(quarantine), folder / "quarantine.parquet")
        return counts, self._write_days(good)

    def _stage(self, table: str, number: int, file: SourceFile, raw: ibis.Table) -> None:
        raw = raw.mutate(file=ibis.literal(number, "int32"))
        try:
            if table in self.connection.list_tables():
                self.connection.insert(table, raw)
            else:
                self.connection.create_table(table, raw)
        except duckdb.Error as error:
            what = str(error).strip().splitlines()[0]
            raise SourceError(
                f"{file.path}: cannot be read: {what}. Expected a whole file in UTF-8, with line ends of one kind and "
                "fields of the kinds of the files before it; export it again, or convert it (iconv -f latin1 -t utf-8)"
            ) from error

    def _note_rejects(self, table: str, files: list[SourceFile]) -> None:
        for number, file in enumerate(files):
            for reject in self.source.rejects(self.connection, file):
                self.rejected.append(
                    {
                        "table": table,
                        "number": number,
                        "file": file.name,
                        "row": reject.line,
                        "field": "line",
                        "reason": f"broken line: {reject.reason}",
                        "record": reject.record,
                    }
                )

    def _later(self, instant: ibis.Value) -> ibis.Value:
        """Rows of the future, good or bad, are not tonight's business."""
        return (instant >= self.as_of).fill_null(False)

    def _known_items(self, events: ibis.Table, own_items: list[SourceFile]) -> ibis.Table:
        if not own_items or self.shop.unknown_items == "keep":
            return events
        items = _judge_items(self.connection.table("items"))
        usable = items.filter(items.reason.isnull() & ~self._later(items.updated_at))
        known = usable.select(known_id=usable.item_id).distinct()
        joined = events.left_join(known, events.item_id == known.known_id)
        unknown = joined.reason.isnull() & joined.known_id.isnull()
        return joined.mutate(
            field=ibis.ifelse(unknown, "item_id", joined.field),
            reason=ibis.ifelse(
                unknown,
                "item_id " + _shown(joined.item_id) + " is not in the catalogue; expected a known item",
                joined.reason,
            ),
            record=ibis.ifelse(unknown, _record(joined, _SHOWN), joined.record),
        ).drop("known_id")

    @staticmethod
    def _number_duplicates(events: ibis.Table) -> ibis.Table:
        """The same event_id, or without one the same row in every field, is the same event; the first one stays."""
        nothing = ibis.literal("")
        same = [
            ibis.ifelse(events.event_id.notnull(), nothing, events[name].cast("string").fill_null(""))
            for name in ("user_id", "item_id", "timestamp", "event_type", "value", "price", "session_id")
        ]
        window = ibis.window(
            group_by=[events.reason.isnull(), events.event_id, *same], order_by=[events.file, events.row]
        )
        return events.mutate(copy=ibis.ifelse(events.reason.isnull(), ibis.row_number().over(window), 0))

    @staticmethod
    def _number_item_copies(items: ibis.Table) -> ibis.Table:
        """Of several rows of an item the newest stays, by ``updated_at``, then by place in the files."""
        newest = [items.updated_at.desc(nulls_first=False), items.file.desc(), items.row.desc()]
        window = ibis.window(group_by=[items.reason.isnull(), items.item_id], order_by=newest)
        return items.mutate(copy=ibis.ifelse(items.reason.isnull(), ibis.row_number().over(window), 0))

    @staticmethod
    def _count_words(word: ibis.Value) -> dict[str, Any]:
        """How many rows of each of the words that the source leaves out; nothing where there is none."""
        counted = (
            word.name("word").as_table().filter(ibis._.word.notnull()).group_by("word").aggregate(n=ibis._.count())
        )
        found = {row["word"]: row["n"] for row in counted.order_by("word").to_pyarrow().to_pylist()}
        return {"left_out": found} if found else {}

    def _count(self, table: str, rows: ibis.Table, later: ibis.Table) -> dict[str, Any]:
        bad = rows.filter(rows.reason.notnull())
        by_field = bad.group_by("field").aggregate(n=ibis._.count()).order_by("field").to_pyarrow().to_pylist()
        rejected = sum(row["table"] == table for row in self.rejected)
        reasons = {row["field"]: row["n"] for row in by_field} | ({"line": rejected} if rejected else {})
        read = rows.count().to_pyarrow().as_py() + rejected
        duplicates = rows.filter(rows.reason.isnull() & (rows.copy > 0)).count().to_pyarrow().as_py()
        quarantined = sum(reasons.values())
        return {
            "read": read,
            "kept": read - quarantined - duplicates,
            "quarantined": quarantined,
            "duplicates": duplicates,
            "later": later.count().to_pyarrow().as_py(),
            "reasons": reasons,
        }

    def _quarantined(self, table: str, rows: ibis.Table, files: list[SourceFile]) -> pa.Table:
        """The bad rows. A row's number is moved past the broken lines before it."""
        bad = rows.filter(rows.reason.notnull()).select("file", "row", "field", "reason", "record")
        found = bad.order_by("file", "row").to_pyarrow().to_pylist()
        broken: dict[int, list[int]] = {}
        for reject in self.rejected:
            if reject["table"] == table:
                reject["row"] -= self.source.header_lines(files[reject["number"]])
                broken.setdefault(reject["number"], []).append(reject["row"])
        for row in found:
            if self.source.header_lines(files[row["file"]]):  # else rows are numbered by line already
                for line in broken.get(row["file"], []):
                    row["row"] += line <= row["row"]
        rows_of_table = [{**row, "table": table, "file": files[row["file"]].name} for row in found] + [
            {name: reject[name] for name in QUARANTINE.names} for reject in self.rejected if reject["table"] == table
        ]
        rows_of_table.sort(key=lambda row: (row["file"], row["row"]))
        return pa.Table.from_pylist(rows_of_table, QUARANTINE)

    def _empty_night(self, judged: ibis.Table, events: ibis.Table, count: dict[str, Any]) -> str:
        where = f"{self.shop.file}: an empty night: no usable event before as_of {self.as_of.isoformat()}"
        bad = judged.filter(judged.reason.notnull()).order_by("file", "row").limit(1).to_pyarrow().to_pylist()
        if bad:
            file = self.source.event_files()[bad[0]["file"]].name
            return (
                f"{where}, though {count['read']:,} were read. "
                f"The first, {file} row {bad[0]['row']}: {bad[0]['reason']}. "
                f"Faults by field: {count['reasons']}; correct the mapping in the shop file"
            )
        if count["later"]:
            first = events.timestamp.min().to_pyarrow().as_py().astimezone(UTC)
            return f"{where}; the log begins at {first.isoformat()}. Give a later as_of"
        if self.rejected:
            first = self.rejected[0]
            return (
                f"{where}: none of {count['read']:,} lines could be used. "
                f"The first, {first['file']} line {first['row']}: {first['reason']}. Export the file again"
            )
        others = "".join(f", {n:,} {word} rows left out" for word, n in count.get("left_out", {}).items())
        files = len(self.source.event_files())
        return f"{where}: {count['read']:,} rows in {files} file(s){others}. Check that the export ran"

    def _write_days(self, good: ibis.Table) -> list[dict[str, Any]]:
        """Write the log a day at a time, in one order whatever order it came in."""
        order = ["timestamp", "user_id", "item_id", "event_type", "value", "price", "session_id", "event_id"]
        rows = good.select(*EVENTS.names).order_by([ibis.asc(name, nulls_first=True) for name in order])
        days: list[dict[str, Any]] = []
        held: list[pa.Table] = []
        day: Any = None
        for batch in rows.to_pyarrow_batches(chunk_size=262_144):
            table = _cast(pa.Table.from_batches([batch]), EVENTS)
            dates = pc.cast(table["timestamp"], pa.date32()).combine_chunks()
            starts = [0, *(pc.indices_nonzero(pc.not_equal(dates[1:], dates[:-1])).to_numpy() + 1).tolist()]
            for start, end in zip(starts, [*starts[1:], len(dates)], strict=True):
                if dates[start].as_py() != day:
                    if held:
                        days.append(self._write_day(day, pa.concat_tables(held)))
                    day, held = dates[start].as_py(), []
                held.append(table.slice(start, end - start))
        days.append(self._write_day(day, pa.concat_tables(held)))
        return days

    def _write_day(self, day: Any, table: pa.Table) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="nightcart-") as folder:
            draft = Path(folder) / "part.parquet"
            write_table(table.combine_chunks(), draft)
            digest = sha256(draft)
            name = f"events/date={day.isoformat()}/{digest[:16]}.parquet"
            self.lake.add_file(draft, name)
        return {"file": name, "rows": table.num_rows, "sha256": digest}


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


def _number(value: ibis.Value) -> ibis.Value:
    number = value if value.type().is_numeric() else _text(value).try_cast("float64")
    number = number.cast("float64")
    return ibis.ifelse(number.isnan() | number.isinf(), ibis.null("float64"), number)


def _time(value: ibis.Value, rules: EventRules) -> tuple[ibis.Value, ibis.Value]:
    """Return the instant (null where there is none) and whether it came without a zone."""
    kind = value.type()
    if kind.is_timestamp() or kind.is_date():
        return value.cast(_INSTANT), ibis.literal(not (kind.is_timestamp() and kind.timezone))
    if rules.timestamp_unit:
        scale = {"s": 1_000_000, "ms": 1_000, "us": 1}[rules.timestamp_unit]
        number = value.try_cast("float64")
        in_range = (number * scale).between(0, 4e15)
        whole = ibis.ifelse(in_range, (number * scale).round(), ibis.null("float64")).cast("int64")
        return make_timestamptz(whole), ibis.literal(False)
    text = _text(value)
    if rules.timestamp_format:
        form = rules.timestamp_format
        return try_strptime(text, form).cast(_INSTANT), ibis.literal("%z" not in form)
    return text.try_cast(_INSTANT), ~text.re_search(_ZONE_AT_END)


def _judge_events(raw: ibis.Table, shop: Shop, rules: EventRules) -> ibis.Table:
    """Add the typed fields, the word of rows to leave out and, for bad rows, ``field``, ``reason`` and ``record``."""
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
    lowest, highest = rules.rating_range or (-float("inf"), float("inf"))
    no_rating = ibis.literal(rules.rating_range is not None) & (kind == "rating")
    no_rating &= value.isnull() | ~value.between(lowest, highest)
    expected = {"s": "seconds since 1970", "ms": "milliseconds since 1970", "us": "microseconds since 1970"}.get(
        rules.timestamp_unit or "", "ISO 8601, or set timestamp_format or timestamp_unit"
    )
    faults = [
        ("user_id", user.isnull(), ibis.literal("user_id is missing; expected a non-empty id")),
        (
            "user_id",
            user == ANONYMOUS,
            ibis.literal(f"user_id {ANONYMOUS!r} is kept for visitors; expected another id"),
        ),
        ("item_id", item.isnull(), ibis.literal("item_id is missing; expected a non-empty id")),
        ("timestamp", raw.timestamp.isnull(), ibis.literal("timestamp is missing; expected an instant")),
        (
            "timestamp",
            instant.isnull(),
            "timestamp " + _shown(raw.timestamp) + f" is no instant; expected {expected}",
        ),
        (
            "timestamp",
            instant < _FIRST_INSTANT,
            "timestamp " + _shown(raw.timestamp) + " lies before 1990; check the unit or the clock it came from",
        ),
        (
            "timestamp",
            naive & ibis.literal(shop.time_zone is None),
            "timestamp " + _shown(raw.timestamp) + " has no time zone; set time_zone in the shop file",
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
        ("value", no_rating, "value " + _shown(raw.value) + f" is no rating; expected {lowest:g} to {highest:g}"),
        ("price", _text(raw.price).notnull() & price.isnull(), "price " + _shown(raw.price) + " is no number"),
        ("price", (price < 0).fill_null(False), "price " + _shown(raw.price) + " is negative; expected 0 or more"),
    ]
    return raw.select(
        "file",
        "row",
        left_out=ibis.ifelse(word.isin(rules.left_out), word, null) if rules.left_out else null,
        user_id=user,
        item_id=item,
        timestamp=instant,
        event_type=kind,
        value=value,
        price=price,
        session_id=_identity(raw.session_id),
        event_id=_identity(raw.event_id),
        title=_text(raw.title),
        description=_text(raw.description),
        brand=_text(raw.brand),
        category=raw.category.cast("array<string>") if raw.category.type().is_array() else ibis.null("array<string>"),
        **_verdict(raw, faults, _SHOWN),
    )


def _judge_items(raw: ibis.Table) -> ibis.Table:
    """Add the typed fields of a catalogue row and, for bad rows, ``field``, ``reason`` and ``record``."""
    item, price = _identity(raw.item_id), _number(raw.price)
    word = _text(raw.available).lower()
    available = word.cases(
        *((yes, True) for yes in ("true", "1", "t", "y", "yes")),
        *((no, False) for no in ("false", "0", "f", "n", "no")),
        else_=ibis.null("boolean"),
    )
    updated = raw.updated_at
    instant = updated.cast(_INSTANT) if updated.type().is_timestamp() else _text(updated).try_cast(_INSTANT)
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
    return raw.select(
        "file",
        "row",
        item_id=item,
        title=_text(raw.title),
        description=_text(raw.description),
        brand=_text(raw.brand),
        category=raw.category.cast("array<string>") if raw.category.type().is_array() else ibis.null("array<string>"),
        price=price,
        available=available.fill_null(True),
        updated_at=instant,
        **_verdict(raw, faults, ("item_id", "title", "price", "available", "updated_at")),
    )


def _verdict(raw: ibis.Table, faults: list[tuple[str, Any, Any]], shown: tuple[str, ...]) -> dict[str, ibis.Value]:
    """The first fault of a row that has one: its field, the reason, and the row as it came."""
    null = ibis.null("string")
    reason = ibis.cases(*((fault.fill_null(False), text) for _, fault, text in faults), else_=null)
    field = ibis.cases(*((fault.fill_null(False), ibis.literal(name)) for name, fault, _ in faults), else_=null)
    return {"field": field, "reason": reason, "record": ibis.ifelse(reason.notnull(), _record(raw, shown), null)}


def _record(row: ibis.Table, shown: tuple[str, ...]) -> ibis.Value:
    """The row as people read it."""
    first, *others = [ibis.literal(f"{name}=") + row[name].cast("string").fill_null("") for name in shown]
    return reduce(lambda text, part: text + ", " + part, others, first)


def _items_of_events(good: ibis.Table) -> ibis.Table:
    """Items of a shop without a catalogue: each with its most frequent words and its median price."""

    def most_frequent(column: str) -> ibis.Table:
        rows = good.filter(good[column].notnull())
        counted = rows.group_by("item_id", column).aggregate(n=ibis._.count())
        window = ibis.window(group_by="item_id", order_by=[ibis.desc("n"), ibis.asc(column)])
        return counted.mutate(place=ibis.row_number().over(window)).filter(lambda t: t.place == 0).drop("n", "place")

    items = good.group_by("item_id").aggregate(price=good.price.quantile(0.5))
    for column in ("title", "description", "brand", "category"):
        found = most_frequent(column)
        items = items.left_join(found, "item_id").drop("item_id_right")
    return items


def _as_items(items: ibis.Table) -> ibis.Table:
    """Bring a table to the columns of the catalogue; missing ones are null, and ``available`` is true."""
    types = {"category": "array<string>", "price": "float64", "available": "boolean", "updated_at": _INSTANT}
    columns = {
        name: items[name]
        if name in items.columns
        else ibis.literal(True)
        if name == "available"
        else ibis.null(types.get(name, "string"))
        for name in ITEMS.names
    }
    named = items.select(**columns)
    clean = named.category.map(lambda c: c.strip()).filter(lambda c: c.notnull() & (c != ""))
    return named.mutate(category=clean)


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)
