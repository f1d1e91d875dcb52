"""What a good row is: the shop's raw fields brought to the types of the contract, and what is wrong with the bad ones.

The rules are Ibis expressions over one raw row; nothing here looks at another row, at ``as_of`` or at the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import ibis
import ibis.expr.datatypes as dt

from recsys_tasks.contract import ANONYMOUS, EVENT_TYPES
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import DAY
from recsys_tasks.sources import EventRules

_INSTANT = dt.Timestamp(timezone="UTC", scale=6)
_FIRST = 631_152_000_000_000
"""1990, in microseconds."""
_NOTHING = ("nan", "NaN", "NAN", "null", "NULL", "Null", "None", "<NA>", "NaT", "undefined")
"""What programs write for an id that they do not have: all its rows would be one customer, or one item."""
_ZONE_AT_END = r":\d{2}(\.\d+)?\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)$"
_NO_SECONDS = r"^(\d{4}-\d{1,2}-\d{1,2}[ T]\d{1,2}:\d{2})(\s*(?:Z|UTC|[+-]\d{2}(?::?\d{2})?))$"


@ibis.udf.scalar.builtin(signature=((_INSTANT,), dt.int64))
def epoch_us(instant: Any) -> Any:
    """DuckDB's microseconds since 1970."""


@ibis.udf.scalar.builtin(signature=((dt.string, dt.string), dt.timestamp))
def try_strptime(text: Any, form: Any) -> Any:
    """DuckDB's strptime, null where the text is of another form."""


@dataclass(frozen=True)
class Fault:
    """What may be wrong with a row. Both functions take a row with the typed fields, and the raw ones as ``raw_*``."""

    field: str
    found: Callable[[ibis.Table], ibis.Value]
    reason: Callable[[ibis.Table], ibis.Value]


@dataclass(frozen=True)
class Judgement:
    """How the rows of a table are typed, and what may be wrong with them; the first fault of a row counts."""

    typed: dict[str, ibis.Value]
    """Field -> its value, from the raw columns."""
    faults: list[Fault]
    shown: tuple[str, ...]
    """Raw columns by which a person recognises the row."""
    derived: dict[str, Callable[[ibis.Table], ibis.Value]] = field(default_factory=dict)
    """More fields, from the typed ones."""

    def sql(self, raw: ibis.Table) -> str:
        """Return DuckDB's SQL from the relation ``raw`` to the typed fields, ``field``, ``reason`` and ``record``.

        In three steps. In one, DuckDB would type a value again for each fault that looks at it, and work out for every
        row what to say of the few bad ones.
        """
        typed = raw.select(**{f"raw_{name}": raw[name] for name in self.shown}, **self.typed)
        rows = ibis.table(typed.schema(), name="typed")
        numbers = ((fault.found(rows), n) for n, fault in enumerate(self.faults))
        judged = rows.mutate(
            fault=ibis.cases(*numbers, else_=ibis.null("int8")).cast("int8"),
            **{name: derived(rows) for name, derived in self.derived.items()},
        )
        rows = ibis.table(judged.schema(), name="judged")
        null = ibis.null("string")
        fields = ((rows.fault == n, fault.field) for n, fault in enumerate(self.faults))
        reasons = ((rows.fault == n, fault.reason(rows)) for n, fault in enumerate(self.faults))
        told = rows.select(
            *self.typed,
            *self.derived,
            field=ibis.cases(*fields, else_=null),
            reason=ibis.cases(*reasons, else_=null),
            record=ibis.ifelse(rows.fault.notnull(), record({n: rows[f"raw_{n}"] for n in self.shown}), null),
        )
        steps = [ibis.to_sql(step, dialect="duckdb") for step in (typed, judged, told)]
        return f"WITH typed AS ({steps[0]}), judged AS ({steps[1]}) {steps[2]}"


def record(fields: dict[str, ibis.Value]) -> ibis.Value:
    """The row as people read it."""
    first, *others = [ibis.literal(f"{name}=") + value.cast("string").fill_null("") for name, value in fields.items()]
    return reduce(lambda text, part: text + ", " + part, others, first)


def _faults_of_id(field: str) -> list[Fault]:
    missing = ibis.literal(f"{field} is missing; expected a non-empty id")
    faults = [
        Fault(field, lambda row: row[field].isnull(), lambda row: missing),
        _bad(field, lambda row: row[field].isin(_NOTHING), "stands for a missing value; expected an id"),
    ]
    if field == "user_id":
        faults.append(_bad(field, lambda row: row[field] == ANONYMOUS, "is kept for visitors; expected another id"))
    return faults


def _bad(field: str, found: Callable[[ibis.Table], ibis.Value], text: str) -> Fault:
    """A fault of a value, which is shown."""
    return Fault(field, found, lambda row: _shown(field, row) + f" {text}")


def _shown(field: str, row: ibis.Table) -> ibis.Value:
    return ibis.literal(f"{field} '") + row[f"raw_{field}"].cast("string").substr(0, 80).fill_null("") + "'"


def _given(value: ibis.Value) -> ibis.Value:
    """Whether there is a value at all."""
    return _text(value).notnull() if value.type().is_string() else value.notnull()


def _text(value: ibis.Value) -> ibis.Value:
    """Text without blanks around it, null where nothing is left. To look is cheaper than to strip."""
    text = value.cast("string")
    bare = reduce(lambda found, blank: found & ~text.endswith(blank), " \t\n\r\v\f", text.ascii_str() > ord(" "))
    return ibis.ifelse(bare, text, text.strip().nullif(""))


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
    number = value.cast("float64") if value.type().is_numeric() else value.cast("string").try_cast("float64")
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
    text = value.cast("string")
    if rules.timestamp_format:
        form = rules.timestamp_format
        return epoch_us(try_strptime(text.strip(), form).cast(_INSTANT)), ibis.literal("%z" not in form)
    with_seconds = text.strip().re_replace(_NO_SECONDS, r"\1:00\2")
    instant = ibis.coalesce(text.try_cast(_INSTANT), with_seconds.try_cast(_INSTANT))
    return epoch_us(instant), ~with_seconds.re_search(_ZONE_AT_END)


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


def judge_events(raw: ibis.Table, shop: Shop, rules: EventRules, with_items: bool, latest: int) -> Judgement:
    """Judge rows of the log.

    ``with_items`` keeps the fields of the catalogue that event rows carry; ``latest`` is the last instant, in
    microseconds since 1970, that a clock which is right can have told. A row with a word to leave out has no faults.
    """
    instant, naive = _time(raw.timestamp, rules)
    word = raw.event_type.cast("string")
    names = {**{name: name for name in EVENT_TYPES}, **rules.event_types}
    null = ibis.null("string")
    told = word.cases(*names.items(), else_=word.strip().cases(*names.items(), else_=null))
    kind = ibis.literal(rules.event_type) if rules.event_type else told
    value, price = _number(raw.value), _number(raw.price)
    if rules.negative_value == "return":
        back = (kind == "purchase") & (value < 0).fill_null(False)
        kind, value = ibis.ifelse(back, "return", kind), value.abs()
    typed = {
        "row": raw.row.cast("int64"),
        "left_out": ibis.ifelse(word.strip().isin(rules.left_out), word.strip(), null) if rules.left_out else null,
        "user_id": _identity(raw.user_id),
        "item_id": _identity(raw.item_id),
        "time": instant,
        "event_type": kind,
        "value": value,
        "price": price,
        "session_id": _identity(raw.session_id),
        "event_id": _identity(raw.event_id),
    }
    if with_items:
        typed |= {name: _text(raw[name]) for name in ("title", "description", "brand")}
        typed["category"] = _path(raw.category)
    faults = [
        *_faults_of_id("user_id"),
        *_faults_of_id("item_id"),
        Fault(
            "timestamp",
            lambda r: r.time.isnull() & ~_given(r.raw_timestamp),
            lambda r: ibis.literal("timestamp is missing; expected an instant"),
        ),
        Fault(
            "timestamp",
            lambda r: r.time.isnull(),
            lambda r: _shown("timestamp", r) + " is no instant" + _expected_time(r.raw_timestamp, rules),
        ),
        _bad("timestamp", lambda r: r.time < _FIRST, "lies before 1990; check the unit or the clock it came from"),
        _bad(
            "timestamp",
            lambda r: r.time > latest,
            "lies in the future; check the unit, the zone or the clock it came from",
        ),
        _bad(
            "event_type",
            lambda r: r.event_type.isnull(),
            f"is not known; expected one of {', '.join(names)}, or map it in event_types",
        ),
        _bad("value", lambda r: r.value.isnull() & _given(r.raw_value), "is no number"),
        _bad(
            "value",
            lambda r: (r.value <= 0) & r.event_type.isin(["purchase", "cart"]),
            "of a purchase; expected more than 0 (see negative_value)",
        ),
        _bad("price", lambda r: r.price.isnull() & _given(r.raw_price), "is no number"),
        _bad("price", lambda r: r.price < 0, "is negative; expected 0 or more"),
    ]
    if shop.time_zone is None:
        typed["naive"] = naive
        faults.insert(7, _bad("timestamp", lambda r: r.naive, "has no time zone; set time_zone in the shop file"))
    if rules.rating_range:
        lowest, highest = rules.rating_range
        faults.append(
            _bad(
                "value",
                lambda r: (r.value.isnull() | ~r.value.between(lowest, highest)) & (r.event_type == "rating"),
                f"is no rating; expected {lowest:g} to {highest:g}",
            )
        )
    if rules.left_out:
        faults.insert(0, Fault("left_out", lambda r: r.left_out.notnull(), lambda r: ibis.null("string")))
    shown = ("user_id", "item_id", "timestamp", "event_type", "value", "price")
    return Judgement(typed, faults, shown, {"day": lambda r: (r.time // DAY).cast("int32")})


def judge_items(raw: ibis.Table, shop: Shop) -> Judgement:
    """Judge rows of the catalogue."""
    word = _text(raw.available).lower()
    available = word.cases(
        *((yes, True) for yes in ("true", "1", "t", "y", "yes")),
        *((no, False) for no in ("false", "0", "f", "n", "no")),
        else_=ibis.null("boolean"),
    )
    instant, naive = _time(raw.updated_at, EventRules())
    typed = {
        "row": raw.row.cast("int64"),
        "item_id": _identity(raw.item_id),
        "title": _text(raw.title),
        "description": _text(raw.description),
        "brand": _text(raw.brand),
        "category": _path(raw.category),
        "price": _number(raw.price),
        "available": ibis.ifelse(word.isnull(), ibis.literal(True), available),
        "updated_at": instant,
    }
    faults = [
        *_faults_of_id("item_id"),
        _bad("price", lambda r: r.price.isnull() & _given(r.raw_price), "is no number"),
        _bad("price", lambda r: r.price < 0, "is negative; expected 0 or more"),
        _bad("available", lambda r: r.available.isnull(), "is neither true nor false"),
        _bad("updated_at", lambda r: r.updated_at.isnull() & _given(r.raw_updated_at), "is no instant"),
    ]
    if shop.time_zone is None:
        typed["naive"] = naive
        faults.append(_bad("updated_at", lambda r: r.naive & r.updated_at.notnull(), "has no time zone; set time_zone"))
    return Judgement(typed, faults, ("item_id", "title", "price", "available", "updated_at"))


def judge_users(raw: ibis.Table) -> Judgement:
    """Judge rows of customers; their attributes are text, stripped."""
    attributes = [name for name in raw.columns if name not in ("row", "user_id")]
    typed = {
        "row": raw.row.cast("int64"),
        "user_id": _identity(raw.user_id),
        "attributes": ibis.struct({name: _text(raw[name]) for name in attributes}),
    }
    return Judgement(typed, _faults_of_id("user_id"), ("user_id", *attributes))
