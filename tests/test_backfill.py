"""``nightcart backfill``: any range of nights again, to the same bytes, without touching what is current."""

import json

import pytest
from typer.testing import CliRunner

from recsys_tasks.cli import app
from recsys_tasks.errors import ContractError, NothingInLake
from recsys_tasks.lake import CURRENT, Lake
from recsys_tasks.night import nights_between
from tests.tiny_shop import write_tiny_shop

RANGES = {
    "a day": ("2017-11-01", "2017-11-01", ["2017-11-01T00", "2017-11-01T00", 1]),
    "a week": ("2017-11-01", "2017-11-07", ["2017-11-01T00", "2017-11-07T00", 7]),
    "over the end of a month": ("2017-10-31", "2017-11-01", ["2017-10-31T00", "2017-11-01T00", 2]),
    "at two at night": ("2017-11-01T02:00:00Z", "2017-11-07T02:00:00Z", ["2017-11-01T02", "2017-11-07T02", 7]),
    "a date as end is that day's night": ("2017-11-01T02:00:00Z", "2017-11-07", ["2017-11-01T02", "2017-11-07T02", 7]),
    "an instant as end has none after it": (
        "2017-11-01T02:00:00Z",
        "2017-11-07T01:00:00Z",
        ["2017-11-01T02", "2017-11-06T02", 6],
    ),
    "in another zone": (
        "2017-11-01T00:00:00+02:00",
        "2017-11-02T00:00:00+02:00",
        ["2017-10-31T22", "2017-11-01T22", 2],
    ),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_range_is_a_night_a_day_with_both_ends(name):
    first, last, (begins, ends, count) = RANGES[name]
    nights = [night.isoformat() for night in nights_between(first, last)]
    assert (len(nights), len(set(nights))) == (count, count)
    assert (nights[0], nights[-1]) == (f"{begins}:00:00+00:00", f"{ends}:00:00+00:00")


MISTAKES = {
    "from: 'yesterday' is no instant; expected ISO 8601 with a zone, .* or a date": ("yesterday", "2017-11-01"),
    "to: '2017-11-31' is no instant": ("2017-11-01", "2017-11-31"),
    "from: '2017-11-01T02:00:00' has no time zone": ("2017-11-01T02:00:00", "2017-11-02"),
    "to: '2017-10-31' lies before from, '2017-11-01'": ("2017-11-01", "2017-10-31"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_the_range_names_its_field(message):
    with pytest.raises(ContractError, match=message):
        nights_between(*MISTAKES[message])


def backfill(home, shop, first, last, *words):
    command = ["--home", str(home), "--quiet", "backfill", "--shop", str(shop), "--from", first, "--to", last, *words]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told


def snapshots(home, shop, first, last):
    """Night by night, the id of the snapshot."""
    return {
        night: ids["ingest"] for night, ids in json.loads(backfill(home, shop, first, last, "--json").stdout).items()
    }


def ingested(home):
    """All that ingest wrote for later steps: the log, the snapshots with their manifests, and the quarantine."""
    lake = home / "lake"
    files = [path for kind in ("events", "items", "quarantine", "snapshots") for path in (lake / kind).rglob("*.*")]
    return {str(path.relative_to(lake)): path.read_bytes() for path in files}


@pytest.fixture
def homes(home, tmp_path):
    """Two homes, and two places of the same shop."""
    return [(tmp_path / name / "home", write_tiny_shop(tmp_path / name / "shop")) for name in ("one", "another")]


def test_a_range_in_another_home_and_order_gives_the_same_bytes_and_ids(homes):
    (one, shop), (another, its_shop) = homes
    forwards = snapshots(one, shop, "2011-04-08T02:00:00Z", "2011-04-10")
    backwards = {}
    for day in ("2011-04-10", "2011-04-09", "2011-04-08"):
        at = f"{day}T02:00:00Z"
        backwards |= snapshots(another, its_shop, at, at)
    assert list(forwards) == ["2011-04-08T02:00:00Z", "2011-04-09T02:00:00Z", "2011-04-10T02:00:00Z"]
    assert len(set(forwards.values())) == 3
    assert forwards == backwards
    assert ingested(one) == ingested(another)


def test_the_range_again_writes_nothing(homes):
    (home, shop), _ = homes
    first = snapshots(home, shop, "2011-04-08", "2011-04-10")
    before = {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")}
    assert snapshots(home, shop, "2011-04-08", "2011-04-10") == first
    assert {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")} == before


def test_a_night_is_the_same_when_the_log_has_grown_since(homes):
    (then, shop), (now, its_shop) = homes
    for file in shop.parent.glob("days/2011-04-1*.csv"):  # had not been written that night
        file.unlink()
    night = ("2011-04-10", "2011-04-10")
    assert snapshots(then, shop, *night) == snapshots(now, its_shop, *night)
    assert Lake(now / "lake").manifest(snapshots(now, its_shop, *night).popitem()[1])["counts"]["events"]["later"]


def test_each_night_tells_rows_days_and_watermark(homes):
    (home, shop), _ = homes
    lines = backfill(home, shop, "2011-04-08", "2011-04-10").stdout.splitlines()
    assert [line[:20] for line in lines] == ["2011-04-08T00:00:00Z", "2011-04-09T00:00:00Z", "2011-04-10T00:00:00Z"]
    assert " rows, 66 of 66 days new or changed, watermark 2011-04-07T1" in lines[0]
    assert ", 1 of 67 days new or changed, watermark 2011-04-08T1" in lines[1]
    assert ", 1 of 68 days new or changed, watermark 2011-04-09T1" in lines[2]


def test_it_may_go_on_to_the_report_and_still_nothing_becomes_current(homes):
    (home, shop), _ = homes
    night = ("2011-04-10", "2011-04-10")
    ids = json.loads(backfill(home, shop, *night, "--until", "report", "--json").stdout)["2011-04-10T00:00:00Z"]
    assert ids["publish"] is None
    assert not list((home / "lake").rglob(CURRENT))
    told = CliRunner().invoke(app, ["--home", str(home), "report", ids["report"]], catch_exceptions=False).stdout
    assert "night of 2011-04-10T00:00:00+00:00" in told
    assert "not published" in told
    with pytest.raises(NothingInLake, match="holds no report yet"):
        CliRunner().invoke(app, ["--home", str(home), "report"], catch_exceptions=False)


def test_an_unknown_step_is_refused_with_its_option(home, tiny_shop):
    command = ["backfill", "--shop", str(tiny_shop), "--from", "2011-04-10", "--to", "2011-04-10", "--until", "dinner"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 2
    assert "Invalid value for '--until'" in told.output
