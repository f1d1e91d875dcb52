"""The benchmark of ingest in small: it writes its page where it is told to, and a fast wrong answer fails."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from ingesting.checks import hashes, rows_apart, verify
from ingesting.data import added_up, make_events, make_reviews, write_day
from ingesting.page import within


def results_of_the_repository():
    return {file: file.read_bytes() for file in (ROOT / "benchmarks" / "results").rglob("*") if file.is_file()}


def test_the_quick_benchmark_proves_its_rows_and_writes_its_page_aside(tmp_path):
    own = results_of_the_repository()
    command = [sys.executable, str(ROOT / "benchmarks" / "ingest.py"), "--quick", "--check"]
    for part in ("json", "gz", "new_day"):
        command += ["--only", part]
    command += ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "rows as expected"
    page = (tmp_path / "results" / "ingest.md").read_text()
    assert page.count("Rows: as the generator knows them, in all runs.") == 3
    assert "nightcart ingest" in page
    assert "the same 11 event files, byte for byte" in page
    assert (tmp_path / "results" / "ingest.png").stat().st_size > 10_000
    measured = json.loads((tmp_path / "results" / "ingest.json").read_text())
    assert [row["name"] for row in measured["new_day"]["rows"]][1:3] == ["nothing new", "one more day"]
    assert all(row["seconds"] > 0 and row["peak"] > 0 for part in measured.values() for row in part["rows"])
    assert results_of_the_repository() == own
    assert not any((tmp_path / "data").iterdir())


@pytest.fixture
def run(tmp_path):
    """A function that writes a lake of one day of events (user, item, minute) and returns it as a run of ingest."""

    def write(name, events, **counts):
        folder = tmp_path / name / "lake"
        folder.mkdir(parents=True)
        users, items, minutes = zip(*events, strict=True)
        when = [datetime(2023, 1, 1, 0, minute, tzinfo=UTC) for minute in minutes]
        table = pa.table({"user_id": users, "item_id": items, "timestamp": when, "value": [1.0] * len(users)})
        pq.write_table(table, folder / "day.parquet")
        days = [{"file": "day.parquet", "rows": len(users), "sha256": "?"}]
        return {"home": tmp_path / name, "counts": {"kept": len(users), **counts}, "days": days}

    return write


def test_rows_that_differ_from_the_generators_are_named(run):
    midnight = int(datetime(2023, 1, 1, tzinfo=UTC).timestamp())
    facts = {
        "events": {"kept": 2, "duplicates": 0},
        "sums": {
            "value": 2,
            "milliseconds": 2 * midnight * 1000 + 60_000,
            "users": 3,
            "items": 12,
            "users times items": 1 * 5 + 2 * 7,
            "users times days": 3 * midnight // 86_400,
        },
    }
    right = [("u1", "i5", 0), ("u2", "i7", 1)]
    assert verify(run("right", right, duplicates=0), facts) == []
    assert verify(run("count", right, duplicates=1), facts) == ["duplicates: 1, expected 0"]
    swapped = [("u1", "i7", 0), ("u2", "i5", 1)]
    assert verify(run("swapped", swapped, duplicates=0), facts) == ["users times items in the files: 17, expected 19"]
    lost = verify(run("lost", right[:1], kept=2, duplicates=0), facts)
    assert lost[0] == "kept in the files: 1, expected 2"


def test_two_engines_are_compared_row_by_row_and_byte_by_byte(run):
    one = run("one", [("u1", "i5", 0), ("u1", "i5", 0), ("u2", "i7", 1)])
    same = run("same", [("u1", "i5", 0), ("u1", "i5", 0), ("u2", "i7", 1)])
    turned = run("turned", [("u2", "i7", 1), ("u1", "i5", 0), ("u1", "i5", 0)])
    fewer = run("fewer", [("u1", "i5", 0), ("u2", "i7", 1)])
    assert hashes(one) == hashes(same) != hashes(turned)
    assert [rows_apart(one, other) for other in (same, turned, fewer)] == [0, 0, 1]


def test_made_up_data_is_the_same_every_time_and_holds_what_its_facts_say(tmp_path):
    for name in ("a", "b"):
        make_reviews(tmp_path / name / "reviews", 1, "2018-09-01", 50, ".json")
        make_events(tmp_path / name / "events", 2, 400, 50)
    for file in sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()

    reviews = tmp_path / "a" / "reviews"
    facts = json.loads((reviews / "facts.json").read_text())
    rows = [json.loads(line) for line in (reviews / "reviews.json").open()]
    distinct = {(row["reviewerID"], row["asin"], row["unixReviewTime"], row["overall"]) for row in rows}
    counts = facts["events"]
    assert (reviews / "reviews.json").stat().st_size == facts["bytes"]
    assert (counts["read"], sum(row["overall"] for row in rows)) == (len(rows), facts["raw"]["rating"])
    assert counts["kept"] == sum(stars > 0 for *_, stars in distinct)
    assert 0 < counts["duplicates"] == counts["read"] - counts["kept"] - counts["quarantined"]

    events = tmp_path / "a" / "events"
    facts = json.loads((events / "facts.json").read_text())
    lines = [line for file in (events / "days").iterdir() for line in file.read_text().splitlines()[1:]]
    assert facts["events"]["read"] == len(lines)
    assert facts["events"]["kept"] == len({line for line in lines if not line.startswith(",")})
    assert facts["events"]["quarantined"] == sum(line.startswith(",") for line in lines)
    corrected = [write_day(events, 0, 400, revision=1), facts["per_day"][1]]
    assert added_up(corrected)["sums"] != facts["sums"]


@pytest.mark.parametrize(
    ("found", "last_line"),
    [
        ({"faults": ["duplicates: 1, expected 0"]}, "short of: duplicates: 1, expected 0"),
        ({"limits": [{"name": "share", "value": 0.07, "limit": "< 0.05"}]}, "short of: share: 0.07, limit < 0.05"),
        ({"limits": [{"name": "share", "value": 0.03, "limit": "< 0.05"}]}, "within all limits"),
    ],
)
def test_the_last_line_names_what_fell_short(monkeypatch, capsys, tmp_path, found, last_line):
    import ingest

    nothing = {"rows": [], "faults": [], "limits": [], "skipped": "a test"}
    monkeypatch.setattr(ingest.Bench, "spark", lambda bench: nothing | found)
    monkeypatch.setattr(ingest.Bench, "make_room", lambda bench, parts: None)
    folders = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["ingest.py", "--only", "spark", "--check", *folders])
    assert ingest.main() == last_line.startswith("short of")
    assert capsys.readouterr().out.splitlines()[-1] == last_line


@pytest.mark.parametrize(
    ("value", "limit", "kept"), [(0.5, ">= 0.5", True), (0.49, ">= 0.5", False), (2, "< 2", False)]
)
def test_a_limit_is_read_as_it_is_written(value, limit, kept):
    assert within({"value": value, "limit": limit}) == kept
