"""A night reads what is new and writes what that touches; whatever the order, the same files give the same bytes."""

import fcntl
import gzip
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_tasks import history, reading
from recsys_tasks.contract import EVENTS
from recsys_tasks.errors import SourceError, TemporarilyUnavailable
from recsys_tasks.history import open_history
from recsys_tasks.lake import Lake, sha256, table_bytes
from recsys_tasks.shop import load_shop
from recsys_tasks.snapshot import Snapshot, write_statistics
from recsys_tasks.sources.tabular import TabularSource
from tests.ingested import ingested

HEAD = "user,item,at,n\n"
COLUMNS = {"user_id": "user", "item_id": "item", "timestamp": "at", "value": "n"}
AS_OF = "2020-01-10T00:00:00+00:00"


def day(n, users=3, item="i1"):
    return HEAD + "".join(f"u{user},{item},2020-01-{n:02d}T1{user}:00:00Z,1\n" for user in range(users))


@pytest.fixture
def shop(tmp_path, home, monkeypatch):
    """A function that ingests these files (None: gone) and tells which were read: (what was written, names)."""
    read = []
    original = TabularSource.read_events

    def read_events(self, connection, file, **options):
        read.append(file.name)
        return original(self, connection, file, **options)

    monkeypatch.setattr(TabularSource, "read_events", read_events)

    def run(files, as_of=AS_OF, home_name="home", items=None, **keys):
        monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / home_name))
        (tmp_path / "log").mkdir(exist_ok=True)
        for name, text in files.items():
            if text is None:
                (tmp_path / name).unlink()
            else:
                (tmp_path / name).write_text(text)
        source = {"format": "tabular", "events": {"path": "log", "columns": COLUMNS}} | (
            {"items": items} if items else {}
        )
        content = {"name": "corner", "time_zone": "UTC", "source": source, **keys}
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(content))
        read.clear()
        return ingested(tmp_path / "shop.yaml", as_of), sorted(read)

    return run


def files(found):
    """The log's files and when they were written."""
    return {d["date"]: (d["sha256"], (found.lake.root / d["file"]).stat().st_mtime_ns) for d in found.manifest["days"]}


def test_a_second_night_reads_the_new_file_alone_and_writes_its_day_alone(shop):
    first, _ = shop({f"log/{n}.csv": day(n) for n in range(1, 8)}, "2020-01-08T00:00:00+00:00")
    before = files(first)
    second, read = shop({"log/8.csv": day(8)}, "2020-01-09T00:00:00+00:00")
    assert read == ["8.csv"]
    after = files(second)
    assert {date: after[date] for date in before} == before
    assert set(after) - set(before) == {"2020-01-08"}
    assert second.manifest["watermark"] == "2020-01-08T12:00:00+00:00"


def test_a_corrected_file_replaces_its_day_and_leaves_the_others(shop):
    first, _ = shop({f"log/{n}.csv": day(n) for n in range(1, 5)})
    second, read = shop({"log/2.csv": day(2, users=2)})
    assert read == ["2.csv"]
    changed = [date for date in files(first) if files(first)[date][0] != files(second)[date][0]]
    assert changed == ["2020-01-02"]
    assert second.counts["kept"] == first.counts["kept"] - 1


def test_late_rows_for_an_old_day_join_it(shop):
    first, _ = shop({f"log/{n}.csv": day(n) for n in range(1, 5)})
    late = HEAD + "u9,i1,2020-01-02T09:00:00Z,1\n"
    second, read = shop({"log/late.csv": late})
    assert read == ["late.csv"]
    (old,) = (d for d in first.manifest["days"] if d["date"] == "2020-01-02")
    (new,) = (d for d in second.manifest["days"] if d["date"] == "2020-01-02")
    assert (old["rows"], new["rows"]) == (3, 4)
    assert second.manifest["watermark"] == first.manifest["watermark"]


def test_a_file_that_is_gone_takes_its_rows_along(shop):
    shop({f"log/{n}.csv": day(n) for n in range(1, 5)})
    second, read = shop({"log/4.csv": None})
    assert read == []
    assert [d["date"] for d in second.manifest["days"]] == ["2020-01-01", "2020-01-02", "2020-01-03"]


def test_a_file_that_was_only_touched_is_read_again_and_changes_nothing(shop, tmp_path):
    first, _ = shop({f"log/{n}.csv": day(n) for n in range(1, 4)})
    os.utime(tmp_path / "log" / "2.csv")
    second, read = shop({})
    assert read == ["2.csv"]
    assert second.id == first.id
    assert files(second) == files(first)


def test_a_range_ingested_forwards_backwards_or_at_once_gives_the_same_bytes(shop):
    shop({f"log/{n}.csv": day(n) for n in range(1, 6)})
    dates = [f"2020-01-{n:02d}T06:00:00+00:00" for n in range(2, 7)]
    ids = {}
    for name, order in (("forwards", dates), ("backwards", dates[::-1]), ("last", dates[-1:])):
        for date in order:
            ids[name, date] = shop({}, date, home_name=name)[0]
    for date in dates:
        assert ids["forwards", date].id == ids["backwards", date].id
        assert ids["forwards", date].manifest == ids["backwards", date].manifest
    assert ids["last", dates[-1]].id == ids["forwards", dates[-1]].id
    for d in ids["last", dates[-1]].manifest["days"]:
        assert sha256(ids["backwards", dates[-1]].lake.root / d["file"]) == d["sha256"]


def test_as_of_within_a_day_cuts_the_day_and_the_next_night_completes_it(shop):
    rows = {f"log/{n}.csv": day(n) for n in range(1, 4)}
    morning, _ = shop(rows, "2020-01-03T11:30:00+00:00")
    evening, read = shop({}, "2020-01-04T00:00:00+00:00")
    assert read == []
    assert [d["rows"] for d in morning.manifest["days"]] == [3, 3, 2]
    assert [d["rows"] for d in evening.manifest["days"]] == [3, 3, 3]
    assert morning.counts["later"] == 1


def test_a_catalogue_that_learns_of_an_item_changes_no_day(shop):
    items = {"path": "items.csv", "columns": {"item_id": "sku"}}
    rows = {"log/1.csv": day(1), "log/2.csv": day(2, item="i2"), "items.csv": "sku\ni1\n"}
    first, _ = shop(rows, items=items)
    second, read = shop({"items.csv": "sku\ni1\ni2\n"}, items=items)
    assert (first.counts["kept"], first.counts["quarantined"]) == (3, 3)
    assert (second.counts["kept"], second.counts["quarantined"]) == (6, 0)
    assert read == []
    assert files(second) == files(first)
    assert [(row["file"], row["row"]) for row in first.quarantine] == [("2.csv", 1), ("2.csv", 2), ("2.csv", 3)]


def test_the_log_may_be_kept_by_month(shop):
    rows = {f"log/{n}.csv": day(n).replace("2020-01", f"2020-0{n}") for n in range(1, 4)}
    found, _ = shop(rows, "2020-03-03T11:30:00+00:00", partition_by="month")
    assert [(d["date"], d["rows"]) for d in found.manifest["days"]] == [
        ("2020-01-01", 3),
        ("2020-02-01", 3),
        ("2020-03-01", 2),
    ]
    found, _ = shop({"log/4.csv": day(1).replace("2020", "2019")}, "2020-03-03T11:30:00+00:00", partition_by="year")
    assert [(d["date"], d["rows"]) for d in found.manifest["days"]] == [("2019-01-01", 3), ("2020-01-01", 8)]


def test_a_robot_is_quarantined_with_all_it_did_that_day(shop):
    rows = "".join(f"bot,i{n},2020-01-02T10:00:{n:02d}Z,1\n" for n in range(30)) + "bot,i1,2020-01-03T10:00:00Z,1\n"
    found, _ = shop({"log/a.csv": day(2) + rows}, checks={"events_per_user_day": 29})
    assert (found.counts["kept"], found.counts["reasons"]) == (4, {"user_id": 30})
    assert found.quarantine[0]["row"] == 4
    assert found.quarantine[0]["reason"] == (
        "user_id 'bot' has 30 events on this day (UTC); expected at most 29 (checks.events_per_user_day)"
    )


def test_a_robot_that_wants_unknown_items_is_counted_once(shop):
    rows = "".join(f"bot,i{n % 3},2020-01-02T10:00:{n:02d}Z,1\n" for n in range(30))
    items = {"path": "items.csv", "columns": {"item_id": "sku"}}
    files = {"log/a.csv": day(2) + rows, "items.csv": "sku\ni1\n"}
    found, _ = shop(files, checks={"events_per_user_day": 29}, items=items)
    assert (found.counts["kept"], found.counts["quarantined"]) == (3, 30)


def test_a_row_of_the_future_is_a_clock_error_and_one_after_as_of_is_not(shop):
    rows = "u8,i1,2999-01-01T00:00:00Z,1\nu9,i1,2020-02-01T00:00:00Z,1\n"
    found, _ = shop({"log/a.csv": day(2) + rows}, "2020-01-10T00:00:00+00:00")
    assert (found.counts["later"], found.counts["quarantined"]) == (2, 0)
    found, _ = shop({}, "3000-01-01T00:00:00+00:00")
    assert "lies in the future; check the unit, the zone or the clock" in found.quarantine[0]["reason"]
    assert found.counts["kept"] == 4


def test_a_file_that_grows_while_it_is_read_is_worth_a_retry(shop, tmp_path, monkeypatch):
    shop({"log/1.csv": day(1)})
    original = TabularSource.read_events

    def read_events(self, connection, file, **options):
        found = original(self, connection, file, **options)
        with file.path.open("a") as stream:
            stream.write("u9,i9,2020-01-01T10:00:00Z,1\n")
        return found

    monkeypatch.setattr(TabularSource, "read_events", read_events)
    with pytest.raises(TemporarilyUnavailable, match=r"1\.csv: was written to while it was read"):
        shop({"log/1.csv": day(1, users=2)})


def test_a_history_made_of_an_earlier_one_is_equal_to_one_made_anew(shop, tmp_path):
    first, _ = shop({f"log/{n}.csv": day(n) for n in range(1, 5)})
    open_history(first.lake, first.manifest["days"])
    changed = {"log/4.csv": day(4, users=1, item="i0"), "log/5.csv": HEAD + "a,i1,2020-01-05T10:00:00Z,1\n"}
    second, _ = shop(changed)
    grown = open_history(second.lake, second.manifest["days"])
    anew_lake = Lake(tmp_path / "anew")
    (tmp_path / "anew").mkdir()
    (tmp_path / "anew" / "events").symlink_to(second.lake.root / "events")
    anew = open_history(anew_lake, second.manifest["days"])
    assert grown.users.to_pylist() == anew.users.to_pylist() == ["u0", "u1", "u2", "a"]
    assert grown.items.to_pylist() == anew.items.to_pylist() == ["i1", "i0"]
    for name in ("user", "item", "time", "type", "value"):
        np.testing.assert_array_equal(grown.array(name), anew.array(name))


def days_of_the_log(lake, logs):
    """Files of the log, as a snapshot lists them; of each the (user, item) of its events."""
    found = []
    for n, pairs in enumerate(logs):
        users, items = zip(*pairs, strict=True)
        given = {"user_id": users, "item_id": items, "timestamp": [n] * len(users), "event_type": ["view"] * len(users)}
        columns = [given.get(field.name, [None] * len(users)) for field in EVENTS]
        file, digest = lake.add_file("events", table_bytes(pa.table(columns, EVENTS.names).cast(EVENTS)))
        found.append({"file": file, "sha256": digest, "rows": len(users)})
    return found


def told(history):
    """The events with their ids, which must be numbered as they first appear."""
    users, items = history.users.to_pylist(), history.items.to_pylist()
    for name, ids in (("user", users), ("item", items)):
        numbers = history.array(name).tolist()
        assert list(dict.fromkeys(numbers)) == list(range(len(ids)))
    pairs = zip(history.array("user"), history.array("item"), strict=True)
    return [(users[user], items[item]) for user, item in pairs]


def together(logs):
    return [pair for log in logs for pair in log]


LOGS = [[("u9", "i1"), ("u2", "i1")], [("u2", "i7"), ("u5", "i1")], [("u1", "i0"), ("u9", "i7")]]
OTHER = [("u2", "i8"), ("u4", "i4")]


def test_a_history_that_grows_is_the_same_file_with_more_at_its_end(tmp_path):
    lake = Lake(tmp_path)
    days = days_of_the_log(lake, LOGS)
    first, second = open_history(lake, days[:2]), open_history(lake, days)
    assert (told(first), told(second)) == (together(LOGS[:2]), together(LOGS))
    for name in first.lengths:
        assert (first.folder / name).samefile(second.folder / name)


@pytest.mark.parametrize("why", ["another log goes on there", "somebody died there", "somebody writes", "no links"])
def test_a_history_whose_end_is_not_free_is_copied(tmp_path, monkeypatch, why):
    lake = Lake(tmp_path)
    days = days_of_the_log(lake, [*LOGS, OTHER])
    first = open_history(lake, days[:2])
    held = (first.folder / "user").open("ab")
    if why == "another log goes on there":
        assert told(open_history(lake, [*days[:2], days[3]])) == together([*LOGS[:2], OTHER])
    elif why == "somebody died there":
        held.write(b"half")
        held.flush()
    elif why == "somebody writes":
        fcntl.flock(held, fcntl.LOCK_EX)
    else:
        monkeypatch.setattr(os, "link", refuse)
    second = open_history(lake, days[:3])
    held.close()
    assert not (first.folder / "user").samefile(second.folder / "user")
    assert told(second) == together(LOGS)
    assert told(first) == together(LOGS[:2])


def refuse(*_):
    raise PermissionError("no links here")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcdé"), st.sampled_from("xyz")), min_size=1), min_size=1, max_size=6),
    st.lists(st.integers(1, 6)),
    st.integers(1, 20),
)
def test_a_history_depends_on_the_log_alone_however_it_grew(logs, nights, at_once):
    with tempfile.TemporaryDirectory() as folder, patch.object(history, "_CHUNK", at_once):
        grown, anew = Lake(Path(folder) / "grown"), Lake(Path(folder) / "anew")
        days = days_of_the_log(grown, logs)
        for n in nights:  # some of them look at less of the log than the one before
            assert told(open_history(grown, days[:n])) == together(logs[:n])
        days_of_the_log(anew, logs)
        found = [open_history(lake, days) for lake in (grown, anew)]
        assert told(found[0]) == together(logs)
        assert found[0].lengths == found[1].lengths
        for name in found[0].lengths:
            np.testing.assert_array_equal(found[0].array(name), found[1].array(name))


def test_statistics_of_a_day_more_are_those_of_the_whole_log(shop, tmp_path, monkeypatch):
    counted = []
    original = Snapshot.interactions

    def interactions(self, shop, start=0):
        counted.append(start)
        return original(self, shop, start)

    monkeypatch.setattr(Snapshot, "interactions", interactions)
    items = {"path": "items.csv", "columns": {"item_id": "sku"}}
    keys = {"items": items, "event_weights": {"purchase": 1}}
    nights = [
        {f"log/{n}.csv": day(n) for n in range(1, 5)} | {"items.csv": "sku\ni1\n"},
        {"log/5.csv": day(5, users=5) + "u1,i2,2020-01-05T12:00:00Z,1\n", "items.csv": "sku\ni0\ni1\n"},
        {"items.csv": "sku\ni0\ni1\ni2\n"},  # knows an item at last that has events on the fifth
        {"log/2.csv": day(2, users=1)},
    ]
    for n, (files, start) in enumerate(zip(nights, (0, 12, 12, 0), strict=True)):
        counted.clear()
        grown, _ = shop(files, **keys)
        assert counted == [start]
        anew, _ = shop({}, home_name=f"anew-{n}", **keys)
        described = load_shop(str(tmp_path / "shop.yaml"), tmp_path)
        folders = [found.lake.path(write_statistics(found.lake, described, found.id)) for found in (grown, anew)]
        for name in ("customers.parquet", "items.parquet"):
            assert sha256(folders[0] / name) == sha256(folders[1] / name)


def test_a_history_forgets_the_customers_whose_events_are_gone(shop, tmp_path):
    shop({"log/1.csv": day(1), "log/2.csv": HEAD + "gone,i1,2020-01-02T10:00:00Z,1\n"})
    second, _ = shop({"log/2.csv": None})
    log = Snapshot(second.lake, second.id).interactions(load_shop(str(tmp_path / "shop.yaml"), tmp_path))
    assert log.user_ids.tolist() == ["u0", "u1", "u2"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "jsonl with blank lines", "jsonl.gz", "jsonl.gz with blank lines"])
def test_the_bad_rows_of_a_large_file_have_their_numbers_although_nobody_counted(shop, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(reading, "_BIG", 0)
    bad, n = {1, 7, 123_456, 149_999}, 150_000
    users = ["" if row in bad else f"u{row % 1000}" for row in range(n)]
    if kind == "csv":
        text = HEAD + "".join(
            f"{user},i{row % 50},2020-01-0{1 + row % 5}T10:00:00Z,{row}\n" for row, user in enumerate(users)
        )
    else:
        form = '{"user": "%s", "item": "i%s", "at": "2020-01-0%sT10:00:00Z", "n": %s}\n'
        text = "".join(form % (user, row % 50, 1 + row % 5, row + 1) for row, user in enumerate(users))
        text = "\n" + text if "blank" in kind else text
    (tmp_path / "log").mkdir()
    name = "a." + kind.split()[0]
    (tmp_path / "log" / name).write_bytes(gzip.compress(text.encode(), 1) if "gz" in kind else text.encode())
    found, read = shop({})
    first = 2 if "blank" in kind else 1
    assert [row["row"] for row in found.quarantine if row["field"] == "user_id"] == sorted(row + first for row in bad)
    assert read == ([name] * 2 if "blank" in kind else [name])


@pytest.mark.parametrize("cut", [30_000, 1])
def test_a_large_compressed_file_that_was_cut_off_is_never_half_a_log(shop, tmp_path, monkeypatch, cut):
    monkeypatch.setattr(reading, "_BIG", 0)
    rng = np.random.default_rng(0)
    form = '{"user": "u%s", "item": "i1", "at": "2020-01-01T10:00:00Z", "n": 1}\n'
    text = gzip.compress("".join(form % user for user in rng.integers(0, 1 << 40, 50_000)).encode(), 1)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.jsonl.gz").write_bytes(text[:-cut])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: cannot be read.*not copied to its end"):
        shop({})


def test_a_large_compressed_file_with_a_broken_line_loses_that_line_alone(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_BIG", 0)
    form = '{"user": "u%s", "item": "i1", "at": "2020-01-01T10:00:00Z", "n": 1}\n'
    lines = [form % user for user in range(50_000)]
    lines[40_000] = '{"user": "u\n'
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), 1))
    found, _ = shop({})
    assert (found.counts["kept"], found.counts["quarantined"]) == (49_999, 1)
    assert found.quarantine[0]["row"] == 40_001
