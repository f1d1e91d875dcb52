"""Every row of the shop's files is kept, quarantined with its reason, or a duplicate; nothing is lost or guessed."""

import json
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recsys_tasks.errors import ContractError, ShopFileError, SourceError
from recsys_tasks.ingest import accounting, ingest
from recsys_tasks.lake import sha256
from recsys_tasks.night import Night
from recsys_tasks.shop import load_shop
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.sources.tabular import TabularSource
from tests.ingested import ingested
from tests.tiny_shop import AS_OF as TINY_AS_OF
from tests.tiny_shop import ITEMS as TINY_ITEMS

AS_OF = "2020-02-01T00:00:00+00:00"
HEAD = "user,item,at,kind,n,price,visit,id,name\n"
COLUMNS = {
    "user_id": "user",
    "item_id": "item",
    "timestamp": "at",
    "value": "n",
    "price": "price",
    "session_id": "visit",
}
GOOD = "u1,i1,2020-01-05T10:00:00Z,purchase,1,2.50,v1,,Tea\n"


@pytest.fixture
def shop(tmp_path, home):
    """A function that ingests rows: of one event file, or of files by name; ``None`` takes a key of the shop away."""

    def run(rows, as_of=AS_OF, *, event_id=None, event_type=None, events=None, items=None, folder="shop", **keys):
        data = tmp_path / folder
        for name, text in (rows if isinstance(rows, dict) else {"log/a.csv": HEAD + rows}).items():
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            if not (data / name).exists() or (data / name).read_text() != text:
                (data / name).write_text(text)
        columns = (
            COLUMNS | ({"event_id": event_id} if event_id else {}) | ({"event_type": event_type} if event_type else {})
        )
        source = {"format": "tabular", "events": {"path": "log", "columns": columns, **(events or {})}}
        described = {
            "name": "corner",
            "time_zone": "UTC",
            "source": source | ({"items": items} if items else {}),
            **keys,
        }
        (data / "shop.yaml").write_text(yaml.safe_dump(described))
        return ingested(data / "shop.yaml", as_of)

    return run


CATALOGUE = {"path": "items.csv", "columns": {"item_id": "sku", "title": "name", "price": "price"}}


BAD_ROWS = [
    (",i9,2020-01-05T10:00:00Z,purchase,1,2,v,,x", "user_id", "user_id is missing; expected a non-empty id"),
    ("  ,i9,2020-01-05T10:00:00Z,purchase,1,2,v,,x", "user_id", "user_id is missing; expected a non-empty id"),
    ("u9,,2020-01-05T10:00:00Z,purchase,1,2,v,,x", "item_id", "item_id is missing; expected a non-empty id"),
    ("__anonymous__,i9,2020-01-05T10:00:00Z,purchase,1,2,v,,x", "user_id", "'__anonymous__' is kept for visitors"),
    ("u9,i9,,purchase,1,2,v,,x", "timestamp", "timestamp is missing; expected an instant"),
    ("u9,i9,yesterday,purchase,1,2,v,,x", "timestamp", "timestamp 'yesterday' is no instant; expected ISO 8601"),
    ("u9,i9,2020-02-30T10:00:00Z,purchase,1,2,v,,x", "timestamp", "timestamp '2020-02-30T10:00:00Z' is no instant"),
    ("u9,i9,05/01/2020 10:00,purchase,1,2,v,,x", "timestamp", "or set timestamp_format or timestamp_unit"),
    ("u9,i9,1577880000,purchase,1,2,v,,x", "timestamp", "timestamp '1577880000' is no instant"),
    (
        "u9,i9,1989-12-31T23:59:59Z,purchase,1,2,v,,x",
        "timestamp",
        "timestamp '1989-12-31T23:59:59Z' lies before 1990",
    ),
    (
        "u9,i9,2020-01-05T10:00:00Z,bought,1,2,v,,x",
        "event_type",
        "event_type 'bought' is not known; expected one of",
    ),
    (
        "u9,i9,2020-01-05T10:00:00Z,,1,2,v,,x",
        "event_type",
        "event_type '' is not known; expected one of view, click",
    ),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,two,2,v,,x", "value", "value 'two' is no number"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,NaN,2,v,,x", "value", "value 'NaN' is no number"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,inf,2,v,,x", "value", "value 'inf' is no number"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,0,2,v,,x", "value", "value '0' of a purchase; expected more than 0"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,-1,2,v,,x", "value", "value '-1' of a purchase; expected more than 0"),
    ("u9,i9,2020-01-05T10:00:00Z,cart,-1,2,v,,x", "value", "value '-1' of a purchase; expected more than 0"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,1,free,v,,x", "price", "price 'free' is no number"),
    ("u9,i9,2020-01-05T10:00:00Z,purchase,1,-0.01,v,,x", "price", "price '-0.01' is negative; expected 0 or more"),
]


def test_a_bad_row_is_quarantined_with_file_row_field_and_reason(shop):
    rows = [line for n, (row, _, _) in enumerate(BAD_ROWS) for line in (GOOD.replace("u1", f"u{n}"), row + "\n")]
    found = shop("".join(rows), event_type="kind")
    assert len(found.events) == len(BAD_ROWS) == 20
    for n, (bad, (row, field, reason)) in enumerate(zip(found.quarantine, BAD_ROWS, strict=True)):
        assert (bad["table"], bad["file"], bad["row"], bad["field"]) == ("events", "a.csv", 2 * n + 2, field)
        assert reason in bad["reason"]
        assert all(part in bad["record"] for part in row.strip().split(",")[:6])
    assert found.counts["reasons"] == {
        "event_type": 2,
        "item_id": 1,
        "price": 2,
        "timestamp": 6,
        "user_id": 3,
        "value": 6,
    }


def test_a_timestamp_without_a_zone_is_quarantined_where_the_shop_has_none(shop):
    found = shop(
        GOOD + "u9,i9,2020-01-05 10:00:00,purchase,1,2,v,,x\nu8,i8,2020-01-05,purchase,1,2,v,,x\n", time_zone=None
    )
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "timestamp"), (3, "timestamp")]
    assert found.quarantine[0]["reason"] == (
        "timestamp '2020-01-05 10:00:00' has no time zone; set time_zone in the shop file"
    )


def test_a_timestamp_with_a_zone_needs_none_of_the_shop(shop):
    zones = ["Z", "+00", "+00:00", "+0000", " UTC", ".000Z", ".25+00:00"]
    rows = [f"u{n},i1,2020-01-05T10:00:00{zone},purchase,1,2,v,,x\n" for n, zone in enumerate(zones)]
    found = shop("".join(rows), time_zone=None)
    assert {event["timestamp"].replace(microsecond=0) for event in found.events} == {
        datetime(2020, 1, 5, 10, tzinfo=UTC)
    }
    assert len(found.events) == len(zones)


def test_an_item_that_the_catalogue_lacks_is_quarantined(shop):
    log = HEAD + GOOD + GOOD.replace("i1", "i9")
    found = shop({"log/a.csv": log, "items.csv": "sku,name,price\ni1,Tea,1\n"}, items=CATALOGUE)
    (bad,) = found.quarantine
    assert (bad["row"], bad["field"]) == (2, "item_id")
    assert bad["reason"] == "item_id 'i9' is not in the catalogue; expected a known item"
    assert "item_id=i9" in bad["record"]
    assert set(found.items) == {"i1"}


def test_an_item_that_the_catalogue_lacks_may_be_kept_without_a_title(shop):
    files = {"log/a.csv": HEAD + GOOD + GOOD.replace("i1", "i9"), "items.csv": "sku,name,price\ni1,Tea,1\n"}
    found = shop(files, items=CATALOGUE, unknown_items="keep")
    assert [event["item_id"] for event in found.events] == ["i1", "i9"]
    assert {item: row["title"] for item, row in found.items.items()} == {"i1": "Tea", "i9": None}
    assert found.items["i9"]["available"] is True
    assert found.quarantine == []


def test_items_without_a_catalogue_are_all_known(shop):
    assert set(shop(GOOD, unknown_items="keep").items) == {"i1"}


def test_an_item_that_the_catalogue_learns_of_after_as_of_is_unknown_tonight(shop):
    items = {"path": "items.csv", "columns": {"item_id": "sku", "title": "name", "updated_at": "at"}}
    files = {
        "log/a.csv": HEAD + GOOD + GOOD.replace("i1", "i2"),
        "items.csv": f"sku,name,at\ni1,Tea,2020-01-31T23:59:59Z\ni2,Jug,{AS_OF}\ni1,Later Tea,{AS_OF}\n",
    }
    found = shop(files, items=items)
    assert [event["item_id"] for event in found.events] == ["i1"]
    assert found.quarantine[0]["field"] == "item_id"
    assert {item: row["title"] for item, row in found.items.items()} == {"i1": "Tea"}
    assert found.manifest["counts"]["items"]["later"] == 2


def test_bad_rows_of_the_catalogue_are_quarantined_and_the_newest_of_copies_stays(shop):
    items = {
        "path": "items.csv",
        "columns": {"item_id": "sku", "title": "name", "price": "price", "available": "on", "updated_at": "at"},
    }
    rows = [
        "i1,Old,1,yes,2020-01-02",
        "i1,New,2,no,2020-01-03",
        "i1,Undated,3,yes,",
        ",Nobody,1,yes,",
        "i2,Dear,much,yes,",
        "i3,Owed,-1,yes,",
        "i4,Maybe,1,perhaps,",
        "i5,Never,1,yes,never",
    ]
    files = {"log/a.csv": HEAD + GOOD, "items.csv": "sku,name,price,on,at\n" + "\n".join(rows) + "\n"}
    found = shop(files, items=items)
    assert [(bad["table"], bad["file"], bad["row"], bad["field"]) for bad in found.quarantine] == [
        ("items", "items.csv", row, field)
        for row, field in ((4, "item_id"), (5, "price"), (6, "price"), (7, "available"), (8, "updated_at"))
    ]
    assert "available 'perhaps' is neither true nor false" in found.quarantine[3]["reason"]
    assert {item: (row["title"], row["price"], row["available"]) for item, row in found.items.items()} == {
        "i1": ("New", 2.0, False)
    }
    assert found.manifest["counts"]["items"]["duplicates"] == 2


def test_a_broken_line_is_quarantined_at_its_row_and_does_not_move_the_others(shop):
    found = shop(GOOD + "u8,i8\n" + ",i9,2020-01-05T10:00:00Z,purchase,1,2,v,,x\n" + "a,b,c,d,e,f,g,h,i,j\n" + GOOD)
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "line"), (3, "user_id"), (4, "line")]
    assert found.quarantine[0]["reason"] == "broken line: Expected Number of Columns: 9 Found: 2"
    assert found.quarantine[0]["record"] == "u8,i8"
    assert found.counts["read"] == 5
    assert found.counts["duplicates"] == 1


def test_a_row_after_quoted_line_ends_keeps_its_number(shop):
    found = shop('"u\n1",i1,2020-01-05,purchase,1,2,v,,x\n' + "broken\n" + ",i9,2020-01-05,purchase,1,2,v,,x\n")
    assert [event["user_id"] for event in found.events] == ["u\n1"]
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "line"), (3, "user_id")]


def test_a_bad_json_line_is_quarantined_at_its_line(shop):
    good = {"user": "u1", "item": "i1", "at": "2020-01-05T10:00:00Z", "n": 1, "price": 2, "visit": "v"}
    lines = [json.dumps(good), "nope", json.dumps(good | {"user": None}), json.dumps(good | {"n": "many"})]
    found = shop({"log/a.jsonl": "\n".join(lines) + "\n"})
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "line"), (3, "user_id"), (4, "value")]
    assert found.counts["kept"] == 1


def test_broken_lines_are_told_apart_where_log_and_catalogue_have_files_of_one_name(shop):
    files = {"log/a.csv": HEAD + GOOD + "broken\n", "items/a.csv": "sku,name,price\ni1,Tea,1\nbroken,too\n"}
    found = shop(files, items=CATALOGUE | {"path": "items"})
    assert [(bad["table"], bad["row"]) for bad in found.quarantine] == [("events", 2), ("items", 2)]


def test_rows_of_several_files_are_told_apart(shop):
    bad = ",i9,2020-01-05T10:00:00Z,purchase,1,2,v,,x\n"
    found = shop({"log/b.csv": HEAD + bad, "log/a.csv": HEAD + GOOD + bad, "log/c.csv": "", "log/d.csv": HEAD})
    assert [(row["file"], row["row"]) for row in found.quarantine] == [("a.csv", 2), ("b.csv", 1)]


def test_of_events_with_one_id_the_last_of_the_day_stays_for_it_corrects_the_first(shop):
    rows = "u1,i1,2020-01-05T10:00:00Z,purchase,1,2,v,e1,x\nu2,i2,2020-01-05T11:00:00Z,purchase,3,4,w,e1,x\n"
    found = shop({"log/a.csv": HEAD + rows + rows, "log/b.csv": HEAD + rows.replace("e1", "e2")}, event_id="id")
    assert [(event["user_id"], event["event_id"]) for event in found.events] == [("u2", "e1"), ("u2", "e2")]
    assert found.counts["duplicates"] == 4
    corrected = shop({"log/c.csv": HEAD + rows.replace("u2", "u3")}, event_id="id")
    assert [event["user_id"] for event in corrected.events] == ["u2", "u3"]


def test_ids_may_begin_again_every_day(shop):
    row = "u1,i1,2020-01-05T10:00:00Z,purchase,1,2,v,1,x\n"
    assert shop(row + row.replace("-05T", "-06T"), event_id="id").counts["kept"] == 2


def test_without_an_id_a_row_equal_in_every_field_is_a_duplicate(shop):
    near = [
        GOOD.replace(old, new) for old, new in (("u1", "u2"), ("i1", "i2"), (",1,", ",2,"), ("2.50", "3"), ("v1", "v2"))
    ]
    found = shop(GOOD + "".join(near) + GOOD + GOOD.replace("1,2.50", "1.0,2.5"))
    assert found.counts["duplicates"] == 2
    assert found.counts["kept"] == 6


def test_a_bad_row_is_never_the_first_of_duplicates(shop):
    bad = "u1,i1,2020-01-05T10:00:00Z,purchase,0,2,v,e1,x\n"
    found = shop(bad + bad + bad.replace(",0,", ",1,"), event_id="id")
    assert (found.counts["kept"], found.counts["quarantined"], found.counts["duplicates"]) == (1, 2, 0)


def test_events_at_or_after_as_of_are_left_alone(shop):
    rows = [
        GOOD.replace("2020-01-05T10:00:00Z", at)
        for at in ("2020-01-31T23:59:59.999999Z", AS_OF, "2020-02-01T00:30:00Z")
    ]
    bad = ",i1,2020-03-01T00:00:00Z,purchase,1,2,v,,x\n"
    found = shop("".join(rows) + "u8,i1,2020-02-01T00:30:00+01:00,purchase,1,2,v,,x\n" + bad)
    assert [event["user_id"] for event in found.events] == ["u8", "u1"]
    assert found.events[1]["timestamp"] == datetime(2020, 1, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert (found.counts["later"], found.counts["quarantined"], found.counts["read"]) == (3, 0, 2)
    assert found.manifest["as_of"] == AS_OF


def test_later_events_change_no_byte_of_tonight(shop):
    first = shop(GOOD, folder="first")
    second = shop(GOOD + GOOD.replace("2020-01-05", "2020-02-05").replace("Tea", "Coffee"), folder="second")
    assert first.manifest["days"] == second.manifest["days"]
    assert sha256(first.lake.path(first.id) / "items.parquet") == sha256(second.lake.path(second.id) / "items.parquet")


def test_local_time_becomes_utc_across_the_change_of_the_clocks(shop):
    instants = {
        "2019-01-15 10:00:00": "2019-01-15T10:00:00+00:00",
        "2019-03-31 00:59:59": "2019-03-31T00:59:59+00:00",
        "2019-03-31 02:00:00": "2019-03-31T01:00:00+00:00",
        "2019-07-01 00:30:00": "2019-06-30T23:30:00+00:00",
        "2019-07-02T12:00:00+02:00": "2019-07-02T10:00:00+00:00",
        "2019-10-27 00:59:59": "2019-10-26T23:59:59+00:00",
        "2019-10-27 02:00:00": "2019-10-27T02:00:00+00:00",
    }
    found = shop("".join(f"u1,i1,{local},purchase,1,2,v,,x\n" for local in instants), time_zone="Europe/London")
    assert [event["timestamp"] for event in found.events] == [datetime.fromisoformat(at) for at in instants.values()]
    days = [day["file"].split("/")[1] for day in found.manifest["days"]]
    assert days == sorted({f"date={at[:10]}" for at in instants.values()})  # a partition is a day in UTC


def test_local_time_of_a_parquet_file_becomes_utc(tmp_path, shop):
    (tmp_path / "shop" / "log").mkdir(parents=True)
    at = pa.array([datetime(2019, 7, 1, 12), datetime(2019, 1, 1, 12)], pa.timestamp("us"))  # noqa: DTZ001
    columns = {name: ["1", "2"] for name in ("user", "item", "visit")} | {"n": [1, 2], "price": [1.5, 2.5], "at": at}
    pq.write_table(pa.table(columns), tmp_path / "shop" / "log" / "a.parquet")
    found = shop({}, time_zone="Europe/London")
    assert [event["timestamp"].hour for event in found.events] == [12, 11]
    assert [event["value"] for event in found.events] == [2.0, 1.0]


def test_ids_that_became_floating_numbers_beside_missing_ones_are_whole_numbers_again(tmp_path, shop):
    (tmp_path / "shop" / "log").mkdir(parents=True)
    columns = {
        "user": [12345.0, float("nan"), 1.5],
        "item": [7, 8, 9],
        "visit": [1.0, 2.0, None],
        "n": [1.0, 1.0, None],
    }
    table = pa.table(columns | {"price": [1, 2, 3], "at": ["2020-01-05T10:00:00Z"] * 3})
    pq.write_table(table, tmp_path / "shop" / "log" / "a.parquet")
    found = shop({})
    assert [(e["user_id"], e["item_id"], e["session_id"]) for e in found.events] == [
        ("1.5", "9", None),
        ("12345", "7", "1"),
    ]
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "user_id")]


@pytest.mark.parametrize(
    ("unit", "numbers"),
    [
        ("s", ["1577880000", "1577880000.25", "1593597600"]),
        ("ms", ["1577880000000", "1577880000250", "1593597600000"]),
        ("us", ["1577880000000000", "1577880000250000", "1593597600000000"]),
    ],
)
def test_a_timestamp_that_counts_since_1970_is_an_instant_in_any_zone(shop, unit, numbers):
    rows = "".join(f"u{n},i1,{number},purchase,1,2,v,,x\n" for n, number in enumerate([*numbers, "soon", "-5", "1e30"]))
    found = shop(rows, "2021-01-01T00:00:00+00:00", events={"timestamp_unit": unit}, time_zone="Europe/London")
    assert [event["timestamp"] for event in found.events] == [
        datetime(2020, 1, 1, 12, tzinfo=UTC),
        datetime(2020, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC),
        datetime(2020, 7, 1, 10, tzinfo=UTC),
    ]
    assert found.counts["reasons"] == {"timestamp": 3}
    assert found.quarantine[0]["reason"].startswith("timestamp 'soon' is no instant")


def test_a_timestamp_in_the_wrong_unit_is_quarantined_as_before_1990(shop):
    rows = GOOD.replace("2020-01-05T10:00:00Z", "1577880000000") + GOOD.replace("2020-01-05T10:00:00Z", "1577880000")
    found = shop(rows, events={"timestamp_unit": "ms"})
    assert "'1577880000' lies before 1990; check the unit" in found.quarantine[0]["reason"]


def test_a_timestamp_format_is_read_and_rows_of_another_are_quarantined(shop):
    rows = "u1,i1,05/07/2019 10:30,purchase,1,2,v,,x\nu2,i1,2019-07-05 10:30,purchase,1,2,v,,x\n"
    found = shop(rows, events={"timestamp_format": "%d/%m/%Y %H:%M"}, time_zone="Europe/London")
    assert found.events[0]["timestamp"] == datetime(2019, 7, 5, 9, 30, tzinfo=UTC)
    assert (found.quarantine[0]["row"], found.quarantine[0]["field"]) == (2, "timestamp")


def test_a_timestamp_format_with_an_offset_needs_no_time_zone(shop):
    rows = "u1,i1,05/07/2019 10:30 +0200,purchase,1,2,v,,x\n"
    found = shop(rows, events={"timestamp_format": "%d/%m/%Y %H:%M %z"}, time_zone=None)
    assert found.events[0]["timestamp"] == datetime(2019, 7, 5, 8, 30, tzinfo=UTC)


def test_a_timestamp_format_that_is_none_is_a_fault_of_the_shop_file(shop):
    with pytest.raises(
        ShopFileError, match=r"shop\.yaml: source\.events\.timestamp_format: '%Q' is no strptime format"
    ):
        shop(GOOD, events={"timestamp_format": "%Q"})


def test_the_shops_own_words_for_event_types_are_mapped(shop):
    rows = "".join(
        GOOD.replace("u1", f"u{n}").replace("purchase", kind) for n, kind in enumerate(["buy", "look", "view", "?"])
    )
    found = shop(rows, event_type="kind", events={"event_types": {"buy": "purchase", "look": "view"}})
    assert [event["event_type"] for event in found.events] == ["purchase", "view", "view"]
    assert "event_type '?' is not known" in found.quarantine[0]["reason"]


def test_without_a_column_every_event_is_of_the_shop_files_type(shop):
    found = shop(GOOD.replace("purchase", "whatever").replace(",1,", ",-1,"), events={"event_type": "view"})
    assert (found.events[0]["event_type"], found.events[0]["value"]) == ("view", -1.0)


def test_a_negative_purchase_may_be_a_return(shop):
    rows = GOOD + GOOD.replace(",1,", ",-3,") + GOOD.replace(",1,", ",0,")
    found = shop(rows, events={"negative_value": "return"})
    assert [(event["event_type"], event["value"]) for event in found.events] == [("purchase", 1.0), ("return", 3.0)]
    assert found.counts["reasons"] == {"value": 1}


def test_of_several_titles_the_most_frequent_wins_and_a_tie_goes_by_the_alphabet(shop):
    titles = ["Aged tea", "Tea", "Tea", "", " Aged tea ", "Tea ", "Jug", "Can"]
    items = ["i1", "i1", "i1", "i1", "i1", "i1", "i2", "i2"]
    prices = ["1", "9", "3", "3", "", "4", "5", "5"]
    rows = "".join(
        f"u{n},{item},2020-01-05T10:00:00Z,purchase,1,{price},v,,{title}\n"
        for n, (item, title, price) in enumerate(zip(items, titles, prices, strict=True))
    )
    found = shop(rows + "u9,i3,2020-01-05T10:00:00Z,purchase,1,,v,,\n", items={"columns": {"title": "name"}})
    assert {item: (row["title"], row["price"]) for item, row in found.items.items()} == {
        "i1": ("Tea", 3.0),
        "i2": ("Can", 5.0),
        "i3": (None, None),
    }


def test_the_words_of_a_bad_row_are_not_in_the_catalogue(shop):
    rows = (
        GOOD
        + 3 * GOOD.replace("u1", "").replace("Tea", "Bad")
        + GOOD.replace("2020-01", "2020-03").replace("Tea", "New")
    )
    found = shop(rows, items={"columns": {"title": "name"}})
    assert found.items["i1"]["title"] == "Tea"


def test_categories_are_kept_broad_to_narrow_without_gaps(shop):
    items = {"path": "items.csv", "columns": {"item_id": "sku", "category": ["dept", "group", "kind"]}}
    files = {"log/a.csv": HEAD + GOOD, "items.csv": "sku,dept,group,kind\ni1, Food ,,Tea\ni2,,,\n"}
    found = shop(files, items=items)
    assert found.items["i1"]["category"] == ["Food", "Tea"]
    assert not found.items["i2"]["category"]


def test_an_empty_catalogue_file_does_not_take_the_categories_of_the_next(shop):
    items = {"path": "items", "columns": {"item_id": "sku", "category": "kind"}, "category_separator": "/"}
    files = {"log/a.csv": HEAD + GOOD, "items/a.csv": "", "items/b.csv": "sku,kind\ni1,Food/Tea\n"}
    assert shop(files, items=items).items["i1"]["category"] == ["Food", "Tea"]


def test_as_of_before_the_first_event_is_refused_with_when_the_log_begins(shop):
    with pytest.raises(
        ContractError, match=r"shop\.yaml: an empty night: .* the log begins at 2020-01-05T10:00:00\+00:00"
    ):
        shop(GOOD + ",i1,2020-01-06T10:00:00Z,purchase,1,2,v,,x\n", "2020-01-05T10:00:00+00:00")


@pytest.mark.parametrize("files", [{"log/a.csv": HEAD}, {"log/a.csv": ""}, {"log/a.csv": HEAD, "log/b.jsonl": "\n"}])
def test_an_empty_night_is_refused_with_the_number_of_files(shop, home, files):
    with pytest.raises(ContractError, match=rf"an empty night: .* 0 rows in {len(files)} file"):
        shop(files)
    assert not list((home / "lake").glob("snapshots/*"))


def test_a_night_of_bad_rows_alone_is_refused_with_the_first_and_the_fields(shop, home):
    with pytest.raises(ContractError, match="an empty night") as error:
        shop(GOOD.replace("u1", "") + GOOD.replace("2020-01-05T10:00:00Z", "today") * 2)
    assert "though 3 were read. The first, a.csv row 1: user_id is missing" in str(error.value)
    assert "{'timestamp': 2, 'user_id': 1}" in str(error.value)
    assert not list((home / "lake").glob("snapshots/*"))


def test_a_night_of_unknown_items_and_a_broken_line_is_refused_with_both(shop):
    files = {"log/a.csv": HEAD + GOOD + "broken\n", "items.csv": "sku,name,price\ni2,Jug,1\n"}
    with pytest.raises(ContractError, match=r"though 2 were read\. Faults by field: {'item_id': 1, 'line': 1}"):
        shop(files, items=CATALOGUE)


@pytest.mark.parametrize("user", ["u1", ""])
def test_a_night_of_later_bad_rows_alone_is_refused(shop, user):
    bad = GOOD.replace("u1", user).replace("2020-01-05T10:00:00Z", "20000-01-05" if user else "2020-03-05")
    with pytest.raises(ContractError, match=r"an empty night: .* none of 1 later rows is usable\. Check the clock"):
        shop(bad)


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "right/UTC", "posix/Europe/London"])
def test_a_time_zone_that_is_not_the_same_everywhere_is_a_fault_of_the_shop_file(shop, zone):
    try:
        ZoneInfo(zone)
    except KeyError:
        pytest.skip(f"this machine has no {zone}")
    with pytest.raises(ShopFileError, match=rf"shop\.yaml: time_zone: '{zone}' is not the same everywhere"):
        shop(GOOD, time_zone=zone)


def test_a_night_of_broken_lines_alone_is_refused_with_the_first(shop):
    with pytest.raises(
        ContractError, match=r"none of 2 lines could be used\. The first, a\.jsonl line 1: broken line: "
    ):
        shop({"log/a.jsonl": "nope\n[]\n"})


def test_a_file_that_is_lost_between_two_nights_is_an_error(shop, tmp_path):
    shop(GOOD)
    (tmp_path / "shop" / "log" / "a.csv").unlink()
    with pytest.raises(SourceError, match="no file there"):
        shop({})


def test_a_file_of_two_kinds_of_line_ends_is_read(shop, tmp_path):
    (tmp_path / "shop" / "log").mkdir(parents=True)
    (tmp_path / "shop" / "log" / "b.csv").write_bytes((HEAD + GOOD + GOOD.replace("\n", "\r\n") + GOOD).encode())
    assert shop({"log/a.csv": HEAD + GOOD}).counts["read"] == 4


def test_a_second_ingest_reads_nothing_and_gives_the_same_id(shop, monkeypatch):
    first = shop(GOOD)
    written = {path: path.stat().st_mtime_ns for path in first.lake.root.rglob("*") if path.is_file()}

    def read(*_, **__):
        raise AssertionError("a file was read again")

    monkeypatch.setattr(TabularSource, "read_events", read)
    assert shop(GOOD).id == first.id
    assert {path: path.stat().st_mtime_ns for path in first.lake.root.rglob("*") if path.is_file()} == written


def test_the_id_changes_with_rows_mapping_zone_and_as_of_and_with_nothing_else(shop):
    base = shop(GOOD)
    others = [
        shop(GOOD + GOOD.replace("u1", "u2"), folder="rows"),
        shop(GOOD, events={"event_type": "view"}, folder="mapping"),
        shop(GOOD, time_zone="Europe/London", folder="zone"),
        shop(GOOD, "2020-02-01T00:00:01+00:00", folder="as_of"),
    ]
    assert len({base.id, *(other.id for other in others)}) == 5
    assert shop(GOOD, k=20, shards=3, folder="elsewhere").id == base.id


def test_the_same_inputs_give_the_same_bytes_in_another_home(tiny_shop, home, monkeypatch):
    for path in sorted((tiny_shop.parent / "days").glob("*.csv"))[:-10]:
        path.unlink()
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("NIGHTCART_HOME", str(home / name))
        night = Night(shop_file=str(tiny_shop), as_of=TINY_AS_OF, k=10, recipes=[])
        snapshot = ingest(night)
        files = {str(p.relative_to(night.lake.root)): p.read_bytes() for p in night.lake.root.rglob("*") if p.is_file()}
        found.append((snapshot, files))
    assert found[0] == found[1]
    assert sum(name.startswith("events/") for name in found[0][1]) == 10


def test_a_day_is_a_file_named_by_its_content_and_shared_by_the_nights(shop):
    first = shop(GOOD + GOOD.replace("2020-01-05", "2020-01-06"), "2020-01-06T12:00:00+00:00")
    second = shop(GOOD + GOOD.replace("2020-01-05", "2020-01-06"), "2020-01-07T12:00:00+00:00")
    assert first.id != second.id
    assert first.manifest["days"] == second.manifest["days"]
    for day in first.manifest["days"]:
        digest = sha256(first.lake.root / day["file"])
        assert (digest, day["file"][-24:]) == (day["sha256"], f"{digest[:16]}.parquet")
    assert sorted(day["file"][:23] for day in first.manifest["days"]) == [
        "events/date=2020-01-05/",
        "events/date=2020-01-06/",
    ]


def test_events_are_in_the_order_of_time_whatever_order_they_came_in(shop):
    rows = [
        GOOD.replace("05T10", at).replace("u1", f"u{n}") for n, at in enumerate(["09T01", "05T10", "07T23", "05T09"])
    ]
    assert [event["user_id"] for event in shop("".join(rows)).events] == ["u3", "u1", "u2", "u0"]
    turned = shop("".join(reversed(rows)), folder="turned")
    assert turned.manifest["days"] == shop("".join(rows)).manifest["days"]


def test_the_accounting_reads_as_a_sentence(shop):
    found = shop(GOOD + GOOD + GOOD.replace("u1", "") + GOOD.replace("2020-01", "2020-03"))
    assert accounting(found.manifest["counts"]) == [
        "events: 3 rows read = 1 kept + 1 quarantined + 1 duplicates (1 later rows left alone); "
        "quarantined for user_id: 1"
    ]


def test_the_tiny_shop_holds_what_real_exports_hold(tiny_shop, home):
    found = ingested(tiny_shop, TINY_AS_OF)
    assert found.counts["reasons"] == {"user_id": 35}
    assert found.counts["duplicates"] == 7
    assert {event["event_type"] for event in found.events} == {"purchase", "return"}
    assert {item: row["title"] for item, row in found.items.items()} == dict(TINY_ITEMS)
    days = Snapshot(found.lake, found.id).interactions(load_shop(str(tiny_shop), tiny_shop)).active_days
    assert ((days == 1) | (days == 2)).sum() >= 6
