"""Rows and shop files that nobody would write: a night is made of them, or they are refused by one of our errors."""

import copy
import csv
import io
import itertools
import json
import os
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys_tasks.errors import NightcartError
from recsys_tasks.ingest import ingest
from recsys_tasks.night import Night
from recsys_tasks.shop import Shop, load_shop
from tests.faults.shops import AS_OF, AT, HEAD, LOG, row, write_shop
from tests.ingested import ingested

MORE = int(os.environ.get("NIGHTCART_FUZZ", "1"))
"""How many times as many examples; with more than one, other ones every time."""


def fuzzed(examples):
    """Few examples, the same ones every time."""
    return settings(
        max_examples=examples * MORE,
        derandomize=MORE == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def fresh(tmp_path, home):
    """A function that gives a folder of its own to each example."""
    numbers = itertools.count()
    return lambda: tmp_path / str(next(numbers))


NASTY = [
    *(
        "",
        " ",
        "\t",
        "\0",
        "\x01",
        "\x1a",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\r",
        "\n",
        "\r\n",
        '"',
        '""',
        "'",
        "\\",
    ),
    *("nan", "NaN", "null", "None", "NULL", "inf", "-inf", "Infinity", "infinity", "epoch", "now", "today", "true"),
    *("0", "-0", "1", "-1", "1.", ".5", "1e5", "1e308", "1e309", "-1e400", "5e-324", "0x10", "1_000", "1,5", "½", "٣"),
    *("9" * 19, "9" * 40, "9" * 400, "2020-01-05", "2020-01-05T10:00:00+14:00", "2020-01-05T10:00:00+99:99"),
    *("2020-02-30", "0000-01-01", "0001-01-01 BC", "9999-12-31T23:59:59Z", "294247-01-10", "-290308-12-21", "20:00"),
    *("2020-01-05 10:00:60", "2020-01-05T24:00:00Z", "2020-01-05 10:00:00 Mars/Base", "1578218400", "1578218400000"),
    *(
        "😀",
        "é",
        "e\u0301",
        "\u202e",
        "a" * 5000,
        ";DROP TABLE raw",
        "__anonymous__",
        "../../x",
        "{}",
        "[]",
        "%s",
        "$1",
    ),
]
text = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
user, at = st.sampled_from(["u1", "u2", "u3"]) | text, st.sampled_from([AT, "2020-01-06", "2020-01-07 08:00"]) | text
fields = st.tuples(user, st.sampled_from(["i1", "i2"]) | text, at, st.sampled_from(["1", "2.5", "-3"]) | text)


def outcome(work, *arguments):
    """What it gives, or what the error of ours says that refuses it."""
    try:
        return work(*arguments), None
    except NightcartError as error:
        return None, str(error)


def night_of(folder, name, content, **keys):
    """Ingest twice and prove that rows add up; None where the shop is refused by one of our own errors."""
    shop = write_shop(folder, {"log/good.csv": LOG, f"log/{name}": content}, **keys)
    found, said = outcome(ingested, shop, AS_OF)
    if said:
        assert name in said or "shop.yaml" in said
        return None
    assert found.id == ingest(Night(shop_file=str(shop), as_of=AS_OF, k=10, recipes=[]))
    return found


@fuzzed(7)
@given(rows=st.lists(fields, min_size=20, max_size=200), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_no_row_of_csv_is_lost(fresh, rows, end):
    content = io.StringIO()
    csv.writer(content, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    found = night_of(fresh(), "fuzz.csv", HEAD + content.getvalue().encode())
    assert found is None or found.counts["read"] + found.counts["later"] == len(rows) + 3


lines = st.binary(max_size=30) | fields.map(lambda f: ",".join(f).encode()) | st.just(row("u1").strip())


@fuzzed(7)
@given(
    content=st.lists(lines | text.map(str.encode), max_size=60).map(b"\n".join) | st.binary(max_size=300),
    kind=st.sampled_from(["csv", "jsonl", "parquet", "csv.gz", "csv.zst", "tsv"]),
    head=st.sampled_from([HEAD, HEAD, HEAD, b""]),
    encoding=st.sampled_from([None, None, "latin-1", "utf-16", "cp1252", "shift_jis"]),
)
def test_any_bytes_are_read_or_refused(fresh, content, kind, head, encoding):
    night_of(fresh(), f"fuzz.{kind}", head + content, events={"encoding": encoding})


scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=5)
objects = st.fixed_dictionaries(
    {"user": user | values, "item": st.just("i1") | values, "at": at | values, "n": st.just(1) | values},
    optional={"user\0": values, "USER": values},
)


@fuzzed(7)
@given(rows=st.lists(objects | values | st.just("broken"), min_size=20, max_size=150), escaped=st.booleans())
def test_no_line_of_json_is_lost(fresh, rows, escaped):
    said = [r if r == "broken" else json.dumps(r, ensure_ascii=escaped) for r in rows]
    content = "".join(line + "\n" for line in said).encode()
    found = night_of(fresh(), "fuzz.jsonl", content)
    assert found is None or found.counts["read"] + found.counts["later"] == len(rows) + 3


instants = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))  # noqa: DTZ001
KINDS = [
    (pa.string(), text),
    (pa.binary(), st.binary(max_size=9)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats()),
    (pa.float16(), st.floats(width=16)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(38, 3), st.decimals(-(10**30), 10**30, places=3)),
    (pa.timestamp("us"), instants),
    (pa.timestamp("ms", "Europe/London"), instants.map(lambda t: t.replace(tzinfo=UTC))),
    (pa.timestamp("ns"), st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1))),  # noqa: DTZ001
    (pa.date32(), st.dates()),
    (pa.time64("us"), st.times()),
    (pa.duration("us"), st.timedeltas(timedelta(days=-99_999), timedelta(days=99_999))),
    (pa.list_(pa.string()), st.lists(text, max_size=3)),
    (pa.struct({"a": pa.int8()}), st.fixed_dictionaries({"a": st.integers(-128, 127)})),
    (pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(text, st.just(1)), max_size=2)),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["u1", "u2"])),
    (pa.null(), st.none()),
]


@st.composite
def columns(draw, plain):
    kind, some = draw(st.sampled_from([*[(pa.string(), plain)] * 30, *KINDS]))
    return pa.array(draw(st.lists(st.none() | some, min_size=20, max_size=20)), kind)


@fuzzed(7)
@given(
    table=st.tuples(columns(user), columns(st.just("i1")), columns(at), columns(st.just("1"))),
    unit=st.sampled_from([None, None, "s", "ms"]),
    zone=st.sampled_from([None, "UTC", "Europe/London"]),
)
def test_no_row_of_parquet_is_lost(fresh, table, unit, zone):
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(zip(("user", "item", "at", "n"), table, strict=True))), sink)
    found = night_of(fresh(), "fuzz.parquet", sink.getvalue(), events={"timestamp_unit": unit}, time_zone=zone)
    assert found is None or found.counts["read"] + found.counts["later"] == 23


SHOP = {
    "name": "corner",
    "time_zone": "Europe/London",
    "archive_until": "2020-02-01T00:00:00Z",
    "source": {
        "format": "tabular",
        "events": {
            "path": "log",
            "columns": {"user_id": "user", "item_id": "item", "timestamp": "at", "value": "n", "price": "n"},
            "event_types": {"buy": "purchase", "loan": None},
            "negative_value": "return",
            "derive": {"twice": "n * 2"},
            "filter": "n > 0",
            "encoding": "utf-8",
            "delimiter": ",",
        },
        "items": {"columns": {"title": "item", "category": ["item", "user"]}, "category_separator": "/"},
        "users": {"path": "log", "columns": {"user_id": "user"}, "attributes": ["item"]},
    },
    "event_weights": {"view": 0.5},
    "unknown_items": "keep",
    "partition_by": "month",
    "checks": {"events_per_user_day": 100, "volume": [0.5, 2], "quarantined": 0.2},
    "models": {"popular": {}, "ease": {"regularisation": 3}},
    "windows": {"test_days": 7},
    "tiers": {"loyal": 5, "warm": 2},
    "k": 10,
}
oddities = st.sampled_from(
    [
        *(
            "user",
            "item",
            "at",
            "n",
            "log",
            "*",
            "**/*",
            "..",
            "",
            "%Y",
            "%d/%m/%Y",
            "s",
            "ms",
            "month",
            "keep",
            "view",
        ),
        *("a" * 300, "it's", '"', "\\", "n +", "n / 0", "upper(user)", "n::DATE", "user = 'a'", "interval 1 day"),
        *("utf-16", "latin-1", "utf-7", "idna", ";", "|", "Asia/Kathmandu", "localtime", "9999-12-31T23:59:59-14:00"),
        *(None, True, 0, -1, 1, 10**30, 1e308, float("inf"), float("nan"), datetime(1, 1, 1), [], {}, [[]], b"\xff"),  # noqa: DTZ001
    ]
).map(copy.deepcopy)  # for they are changed
anything = st.recursive(
    oddities | scalars,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(text | st.integers() | st.none(), v, max_size=3),
    max_leaves=4,
)


def places(node, path=()):
    """Paths to everything in a tree."""
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def shops(draw, changes):
    """The shop file, changed in a few places."""
    shop = copy.deepcopy(SHOP)
    for _ in range(draw(st.integers(1, changes))):
        *path, last = draw(st.sampled_from([place for place in places(shop) if place]))
        node = shop
        for key in path:
            node = node[key]
        match draw(st.sampled_from(["drop", "retype", "rename", "nest", "swap"])):
            case "drop":
                del node[last]
            case "retype":
                node[last] = draw(anything)
            case "rename" if isinstance(node, dict):
                node[draw(text)] = node.pop(last)
            case "nest":
                node[last] = {draw(text): node[last]}
            case _:
                node[last] = draw(oddities)
    return yaml.safe_dump(shop, allow_unicode=draw(st.booleans()))


SIGNS = [
    "&a ",
    "*a",
    "!!int ",
    "!!map ",
    "!!binary ",
    "? ",
    ": ",
    "- ",
    "<<: ",
    "[",
    "]",
    "{",
    "}",
    "|\n",
    ">\n",
    "---\n",
]
SIGNS += [
    "\t",
    "\0",
    "\x07",
    '"',
    "'",
    "#",
    "%YAML 9\n",
    "!x ",
    "~",
    "0x_",
    "2020-13-45",
    '"\\ud800"',
    "[" * 999,
    "1:99",
]


@st.composite
def texts(draw):
    """The text of the shop file with signs of YAML anywhere in it."""
    content = yaml.safe_dump(SHOP)
    for _ in range(draw(st.integers(1, 6))):
        place, cut = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 1, 5, 40]))
        content = content[:place] + draw(st.sampled_from(SIGNS) | text) + content[place + cut :]
    return content


@fuzzed(300)
@given(content=shops(4) | texts())
def test_a_shop_file_is_loaded_or_refused_by_name(tmp_path, content):
    (tmp_path / "shop.yaml").write_bytes(content.encode())
    shop, said = outcome(load_shop, str(tmp_path / "shop.yaml"), tmp_path)
    if said:
        assert said.startswith(f"{tmp_path / 'shop.yaml'}: ")
        said.encode()
    else:
        json.dumps(shop.model_dump(mode="json"))


def loads(content):
    try:
        return Shop.model_validate(yaml.safe_load(content))
    except ValidationError:
        return False


@fuzzed(7)
@given(content=shops(1).filter(loads))
def test_a_shop_file_that_loads_makes_a_night_or_is_refused(fresh, content):
    folder = fresh()
    write_shop(folder, {"log/good.csv": LOG})
    (folder / "shop.yaml").write_text(content)
    _, said = outcome(ingested, folder / "shop.yaml", AS_OF)
    assert said is None or str(folder) in said
