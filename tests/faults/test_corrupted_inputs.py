"""Whatever a shop's files hold, a night keeps what is good, says what is not, or refuses the file by name."""

import gzip
import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys_tasks.cli import app
from recsys_tasks.errors import NightcartError
from tests.faults.shops import AS_OF, AT, HEAD, ITEMS, LOG, A, B, C, row, write_shop
from tests.ingested import ingested

LATIN = "café\n".encode("latin-1")


@dataclass
class Kept:
    """What becomes of a shop's files that are read: whose events stay, and what is in quarantine."""

    users: str | list[str]
    bad: list[tuple] = field(default_factory=list)
    """File, row, field and a part of the reason of each."""
    at: list[str] | None = None
    duplicates: int = 0


@dataclass
class Refused:
    """What the message of the error names."""

    parts: tuple[str, ...]

    def __init__(self, *parts):
        self.parts = parts


def parquet(**columns):
    sink = BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def log(user, at=AT, n=1, item="i1"):
    """A Parquet log of as many rows as there are users."""
    users = pa.array(user)
    rest = {"item": item, "at": at, "n": n}
    return parquet(user=users, **{c: pa.array(v if isinstance(v, list) else [v] * len(users)) for c, v in rest.items()})


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def lines(*records):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()


def event(user, **others):
    return {"user": user, "item": "i1", "at": AT, "n": 1, **others}


GZ = gzip.compress(LOG * 500)
COPY = "copy it or export the file again"
BIG = "x" * (5 << 20)
NAMES = ["o'clock.csv", "two words.csv", "100%.csv", "%41.csv", "two\nlines.csv", "[a-b]*?.csv", "[/b].csv", '".csv']
NAMES += ["é{}$1;--.csv", "#.csv"]
MS, S = "1578218400000", "1578218400"  # AT

CASES: dict[str, tuple[dict[str, Any], Kept | Refused] | tuple[dict[str, Any], Kept | Refused, dict[str, Any]]] = {
    "a gz that ends in its header": ({"log/a.csv.gz": GZ[:6]}, Refused("log/a.csv.gz: cannot be read", COPY)),
    "a gz that ends in the middle": (
        {"log/a.csv.gz": GZ[: len(GZ) // 2]},
        Refused("log/a.csv.gz: cannot be read", COPY),
    ),
    "a gz that ends in its trailer": ({"log/a.csv.gz": GZ[:-3]}, Refused("log/a.csv.gz: cannot be read", COPY)),
    "a gz with a wrong checksum": (
        {"log/a.csv.gz": GZ[:-8] + b"abcd" + GZ[-4:]},
        Refused("log/a.csv.gz: cannot be read", COPY),
    ),
    "garbage after a gz": ({"log/a.csv.gz": GZ + b"garbage"}, Refused("log/a.csv.gz: cannot be read", COPY)),
    "zeros after a gz, as tapes have": ({"log/a.csv.gz": gzip.compress(LOG) + bytes(512)}, Kept("abc")),
    "a gz that is none": ({"log/a.csv.gz": LOG}, Refused("log/a.csv.gz: cannot be read", COPY)),
    "a gz of two members": ({"log/a.csv.gz": gzip.compress(HEAD + A) + gzip.compress(B + C)}, Kept("abc")),
    "an empty gz": ({"log/a.csv": LOG, "log/b.csv.gz": b""}, Kept("abc")),
    "a zst that ends in the middle": (
        {"log/a.csv.zst": zstd(os.urandom(9999).hex().encode())[:5000]},
        Refused("log/a.csv.zst: cannot be read", COPY),
    ),
    "a zst that is none": ({"log/a.csv.zst": LOG}, Refused("log/a.csv.zst: cannot be read", COPY)),
    "a catalogue that ends in the middle": (
        {"log/a.csv": LOG, "items.csv": b"sku,name,price\ni1,Tea,1\ni2,J"},
        Kept("abc", [("items.csv", 2, "line", "Expected Number of Columns: 3")]),
    ),
    "a catalogue of bad rows": (
        {"log/a.csv": LOG, "items.csv": ITEMS + b",Nobody,1\ni3,Owed,-1\ni4,Dear,much\n"},
        Kept("abc", [("items.csv", n, f, "") for n, f in ((3, "item_id"), (4, "price"), (5, "price"))]),
    ),
    "a catalogue without a row": (
        {"log/a.csv": LOG, "items.csv": b"sku,name,price\n"},
        Refused("shop.yaml: an empty night", "{'item_id': 3}", "see the catalogue"),
    ),
    "a catalogue of Parquet under a name of CSV": (
        {"log/a.csv": LOG, "items.csv": parquet(sku=["i1"], name=["Tea"], price=[1])},
        Refused("items.csv"),
    ),
    "a file in latin-1": (
        {"log/a.csv": HEAD + A + row("café").decode().encode("latin-1")},
        Refused("log/a.csv: line 3 is not in utf-8", "'encoding: latin-1'"),
    ),
    "one line of latin-1 in UTF-8": (
        {"log/a.csv": HEAD + row("é") + row("é").decode().encode("latin-1") + A},
        Kept("aé", [("a.csv", 2, "line", "utf-8")]),
    ),
    "JSON lines in latin-1": (
        {"log/a.jsonl": lines(event("a")) + b'{"user": "caf\xe9"}\n'},
        Refused("log/a.jsonl: line 2 is not in utf-8", "'encoding: latin-1'"),
    ),
    "UTF-8 that says utf-16 in the shop file": (
        {"log/a.csv": LOG + b"\n"},
        Refused("log/a.csv"),
        {"events": {"encoding": "utf-16-le"}},
    ),
    "a mark of UTF-8": ({"log/a.csv": b"\xef\xbb\xbf" + LOG}, Kept("abc")),
    "UTF-16": ({"log/a.csv": LOG.decode().encode("utf-16")}, Kept("abc")),
    "UTF-16 that ends in half a character": (
        {"log/a.csv": LOG.decode().encode("utf-16")[:-1]},
        Refused("log/a.csv: line 4 is not in utf-16"),
    ),
    "line ends of Windows": ({"log/a.csv": LOG.replace(b"\n", b"\r\n")}, Kept("abc")),
    "line ends of old Macs": ({"log/a.csv": LOG.replace(b"\n", b"\r")}, Kept("abc")),
    "line ends of three kinds": (
        {"log/a.csv": HEAD + A + B.replace(b"\n", b"\r\n") + C.replace(b"\n", b"\r")},
        Kept("abc"),
    ),
    "line ends in quotes": (
        {"log/a.csv": HEAD + row('"a\nb"') + row("") + row('"c\r\nd"')},
        Kept(["a\nb", "c\nd"], [("a.csv", 2, "user_id", "missing")]),
    ),
    "a quote that is never closed": (
        {"log/a.csv": HEAD + A + row('"b') + C},
        Refused("log/a.csv: the quote that opens at row 2 is not closed", "quotes doubled"),
    ),
    "a quote within a word": ({"log/a.csv": HEAD + row('12"') + A}, Kept(['12"', "a"])),
    "a header that stands again": (
        {"log/a.csv": LOG + HEAD + row("d")},
        Kept("abcd", [("a.csv", 4, "timestamp", "'at' is no instant")]),
    ),
    "columns in another order in another file": (
        {"log/a.csv": LOG, "log/b.csv": b"n,at,item,user\n1," + AT.encode() + b",i2,d\n"},
        Kept("abcd"),
    ),
    "a column that one file lacks": (
        {"log/a.csv": LOG, "log/b.csv": LOG.replace(b",at,", b",when,")},
        Refused("log/b.csv: column 'at' is missing", "'columns'"),
    ),
    "a column that stands twice": (
        {"log/a.csv": LOG.replace(b",n\n", b",n,at\n")},
        Refused("log/a.csv: column 'at' stands 2 times", "give the columns different names"),
    ),
    "a line too short and one too long": (
        {"log/a.csv": HEAD + A + b"x,y\n" + B + b"1,2,3,4,5\n" + C},
        Kept("abc", [("a.csv", 2, "line", "Found: 2"), ("a.csv", 4, "line", "Columns: 4")]),
    ),
    "values of several kinds in CSV": (
        {"log/a.csv": HEAD + A + row("b", n="many") + row("c", n="1e400") + row("d", n="")},
        Kept("ad", [("a.csv", 2, "value", "'many' is no number"), ("a.csv", 3, "value", "'1e400' is no number")]),
    ),
    "values of several kinds in JSON": (
        {
            "log/a.jsonl": lines(
                event("a"), event(7), event(None), event("b", n={"x": 1}), event("c", n="2"), event("d", at=[AT])
            )
        },
        Kept("7ac", [("a.jsonl", 3, "user_id", ""), ("a.jsonl", 4, "value", "{"), ("a.jsonl", 6, "timestamp", "[")]),
    ),
    "ids that are no number in Parquet": (
        {"log/a.parquet": log([1.0, float("nan"), None, 1e18, 2.5])},
        Kept(["1", "1000000000000000000", "2.5"], [("a.parquet", n, "user_id", "missing") for n in (2, 3)]),
    ),
    "ids that pandas wrote as nan": (
        {"log/a.csv": HEAD + A + row("nan")},
        Kept("a", [("a.csv", 2, "user_id", "stands for a missing value")]),
    ),
    "milliseconds where seconds were said": (
        {"log/a.csv": HEAD + row("a", at=S) + row("b", at=MS)},
        Kept("a", [("a.csv", 2, "timestamp", "set timestamp_unit to ms")]),
        {"events": {"timestamp_unit": "s"}},
    ),
    "seconds where milliseconds were said": (
        {"log/a.csv": HEAD + row("a", at=S) + row("b", at=MS)},
        Kept("b", [("a.csv", 1, "timestamp", "lies before 1990; check the unit")]),
        {"events": {"timestamp_unit": "ms"}},
    ),
    "local times without a zone": (
        {"log/a.csv": HEAD + A + row("b", at="2020-01-05 10:00")},
        Kept("a", [("a.csv", 2, "timestamp", "has no time zone; set time_zone in the shop file")]),
        {"time_zone": None},
    ),
    "an hour that came twice is the second": (
        {"log/a.csv": HEAD + row("a", at="2019-10-27 01:30:00")},
        Kept("a", at=["2019-10-27T01:30"]),
        {"time_zone": "Europe/London"},
    ),
    "an hour that never came is the next": (
        {"log/a.csv": HEAD + row("a", at="2019-03-31 01:30:00")},
        Kept("a", at=["2019-03-31T01:30"]),
        {"time_zone": "Europe/London"},
    ),
    "times beyond every calendar": (
        {
            "log/a.csv": HEAD
            + A
            + b"".join(
                row("b", at=at) for at in ("infinity", "-infinity", "-290000-01-01", "0000-00-00", "epoch", "1e99")
            )
        },
        Kept("a", [("a.csv", n, "timestamp", "") for n in range(2, 8)]),
    ),
    "a log that begins in the year 20000": (
        {"log/a.csv": HEAD + row("a", at="20000-01-01T00:00:00Z")},
        Refused("shop.yaml: an empty night", "none of 1 later rows is usable", "the clock"),
    ),
    "an empty file": ({"log/a.csv": b"", "log/b.jsonl": b"", "log/c.parquet": b"", "log/d.csv": LOG}, Kept("abc")),
    "empty files alone": ({"log/a.csv": b""}, Refused("shop.yaml: an empty night", "0 rows in 1 file")),
    "a header alone": ({"log/a.csv": HEAD, "log/b.csv": LOG}, Kept("abc")),
    "blank lines alone": ({"log/a.csv": b"\n\r\n\n", "log/b.csv": LOG}, Refused("log/a.csv: column 'user' is missing")),
    "a folder instead of a file": ({"log/a.csv/b.csv": LOG}, Kept("abc")),
    "no folder at all": ({}, Refused("log: no file there (source.events.path)")),
    "a Parquet that is none": ({"log/a.parquet": LOG}, Refused("log/a.parquet: cannot be read as parquet")),
    "a Parquet that ends in the middle": (
        {"log/a.parquet": log(["a"] * 50)[:200]},
        Refused("log/a.parquet: cannot be read as parquet", "export the file again"),
    ),
    "a Parquet with damaged pages": (
        {"log/a.parquet": (p := log([str(n) for n in range(999)]))[:20] + bytes(500) + p[520:]},
        Refused("log/a.parquet: cannot be read", "export"),
    ),
    "other types in another Parquet": (
        {
            "log/a.parquet": log(["a"]),
            "log/b.parquet": log([7], datetime(2020, 1, 5, tzinfo=UTC), "2"),
            "log/c.parquet": log([b"c"], datetime(2020, 1, 5).date(), True),  # noqa: DTZ001
        },
        Kept("7a", [("c.parquet", 1, "value", "'true' is no number")]),
    ),
    "types that are no event in Parquet": (
        {
            "log/a.csv": LOG,
            "log/b.parquet": log([["l"]], {"x": 1}, [[1]]),
            "log/c.parquet": log([True], True, {"x": 1}),
            "log/d.parquet": log([None], None, None),
        },
        Kept(
            "abc",
            [("b.parquet", 1, "timestamp", ""), ("c.parquet", 1, "timestamp", ""), ("d.parquet", 1, "user_id", "")],
        ),
    ),
    "a byte of zero in CSV": ({"log/a.csv": HEAD + row("a\0b") + A}, Kept(["a", "a\0b"])),
    "bytes of zero where a disk was full": (
        {"log/a.csv": LOG + bytes(4096)},
        Kept("abc", [("a.csv", 4, "line", "Found: 1")]),
    ),
    "a byte of zero in JSON": (
        {"log/a.jsonl": lines(event("a"), '{"user": "\0"}', event("c\0"))},
        Kept(["a", "c\0"], [("a.jsonl", 2, "line", "one JSON object")]),
    ),
    "half a character in JSON": (
        {"log/a.jsonl": lines(event("a"), '{"user": "\\ud800", "item": "i1", "at": "2020-01-05", "n": 1}')},
        Kept("a", [("a.jsonl", 2, "line", "expected one JSON object a line")]),
    ),
    "a line of 5 MB in CSV": (
        {"log/a.csv": HEAD + A + row(BIG) + B},
        Kept("ab", [("a.csv", 2, "line", "Maximum line size")]),
    ),
    "a line of 5 MB in JSON": (
        {"log/a.jsonl": lines(event("a", note=BIG), event(BIG, at="x"))},
        Kept("a", [("a.jsonl", 2, "timestamp", "")]),
    ),
    "deep JSON": (
        {"log/a.jsonl": lines(event("a"), '{"user":' + "[" * 100_000 + "]" * 100_000 + "}", event("b"))},
        Kept("ab", [("a.jsonl", 2, "", "")]),
    ),
    "an array of objects on a line": (
        {"log/a.jsonl": lines([event("a"), event("b")], event("c"))},
        Kept("c", [("a.jsonl", 1, "line", "expected one JSON object a line")]),
    ),
    "a JSON document over several lines": (
        {"log/a.json": json.dumps([event("a")], indent=1).encode()},
        Refused("shop.yaml: an empty night", "a.json line 1: broken line: expected one JSON object a line"),
    ),
    "JSON lines under a name of CSV": (
        {"log/a.csv": lines(event("a"))},
        Refused("log/a.csv: column 'user' is missing"),
    ),
    "CSV under a name of JSON lines": (
        {"log/a.jsonl": LOG},
        Refused("shop.yaml: an empty night", "a.jsonl line 1: broken line", "Export the file again"),
    ),
    "a link to nothing": (
        {"log/a.csv": LOG, "log/b.csv": lambda path: path.symlink_to("gone.csv")},
        Refused("log/b.csv: cannot be read: No such file"),
    ),
    "a link to itself": (
        {"log/a.csv": LOG, "log/b.csv": lambda path: path.symlink_to("b.csv")},
        Refused("log/b.csv: cannot be read"),
    ),
    "a folder that nobody may look into": (
        {"log/a.csv": LOG, "log/b": lambda path: path.mkdir(0)},
        Refused("log: [Errno 13] Permission denied", "log/b"),
    ),
    "a file that nobody may read": (
        {"log/a.csv": LOG, "log/b.csv": lambda path: path.touch(0)},
        Refused("log/b.csv: cannot be read"),
    ),
    "names with every sign there is": (
        {f"log/{name}": HEAD + row(n) + row("") for n, name in enumerate(sorted(NAMES))},
        Kept("0123456789", [(name, 2, "user_id", "missing") for name in sorted(NAMES)]),
    ),
    "a file whose name is no text": (
        {"log/a\udce9.csv": LOG},
        Refused("a\\udce9.csv", "this name is not in UTF-8", "another one"),
    ),
}


@pytest.fixture(params=CASES, ids=lambda sentence: re.sub(r"\W+", "-", sentence))
def case(request, tmp_path, home):
    """A shop file beside its corrupted files, and what is to become of them."""
    if "nobody" in request.param and os.geteuid() == 0:
        pytest.skip("root may read everything")
    files, expected, *keys = CASES[request.param]
    return write_shop(tmp_path / "it's a shop", files, **(keys[0] if keys else {})), expected


def test_a_corrupted_input_is_handled_or_refused_by_name(case):
    shop, expected = case
    if isinstance(expected, Refused):
        with pytest.raises(NightcartError) as error:
            ingested(shop, AS_OF)
        assert all(part in str(error.value) for part in expected.parts), str(error.value)
        return
    found = ingested(shop, AS_OF)
    assert [event["user_id"] for event in found.events] == list(expected.users)
    assert found.counts["duplicates"] == expected.duplicates
    told = [tuple(bad[name] for name in ("file", "row", "field", "reason")) for bad in found.quarantine]
    assert [(file, number) for file, number, *_ in told] == [bad[:2] for bad in expected.bad]
    for (*_, name, reason), (*_, expected_name, part) in zip(told, expected.bad, strict=True):
        assert expected_name in name
        assert part in reason
    if expected.at:
        assert [f"{event['timestamp']:%Y-%m-%dT%H:%M}" for event in found.events] == expected.at


def test_validate_tells_of_a_corrupted_input_without_a_traceback(case, caplog):
    caplog.set_level("INFO", "recsys_tasks")  # the command changes it for its process
    shop, expected = case
    result = CliRunner().invoke(app, ["validate", str(shop), "--as-of", AS_OF])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == isinstance(expected, Refused)
    assert ("stops the night" in result.output) == isinstance(expected, Refused)
