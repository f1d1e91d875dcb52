"""How the lists did: what served by the ledger, what was captured, and a series that re-runs and kills cannot spoil."""

import json
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from recsys_tasks import afterwards, ledger
from recsys_tasks.lake import Lake
from recsys_tasks.metrics import bootstrap_share
from recsys_tasks.snapshot import microseconds
from recsys_tasks.versions import entry

FIRST = datetime(2020, 1, 1, 2, tzinfo=UTC)


def day(n):
    return FIRST + timedelta(days=n)


def us(instant):
    return microseconds(instant)


def a_point(n, value):
    return {"night": day(n).isoformat(), "version": f"v{n}", "scored": value, "lists": None}


def test_a_night_run_again_replaces_its_own_point(tmp_path):
    lake = Lake(tmp_path)
    for n, value in ((0, 1), (1, 2), (0, 3), (1, 2)):
        afterwards.keep(lake, "corner", a_point(n, value))
    assert [point["scored"] for point in afterwards.nights(lake, "corner", day(5), 60)] == [3, 2]


def test_a_killed_write_loses_nothing_and_leaves_no_half_point(tmp_path):
    lake = Lake(tmp_path)
    afterwards.keep(lake, "corner", a_point(0, 1))
    with patch("pathlib.Path.replace", side_effect=InterruptedError), pytest.raises(InterruptedError):
        afterwards.keep(lake, "corner", a_point(0, 2))
    with patch("pathlib.Path.replace", side_effect=InterruptedError), pytest.raises(InterruptedError):
        afterwards.keep(lake, "corner", a_point(1, 2))
    assert [point["scored"] for point in afterwards.nights(lake, "corner", day(5), 60)] == [1]


def test_a_series_is_of_one_shop_of_earlier_nights_and_the_newest_of_them(tmp_path):
    lake = Lake(tmp_path)
    for n in range(5):
        afterwards.keep(lake, "corner", a_point(n, n))
    afterwards.keep(lake, "another", a_point(0, 99))
    assert [point["scored"] for point in afterwards.nights(lake, "corner", day(4), 3)] == [1, 2, 3]


@pytest.fixture
def served(tmp_path):
    """Make versions current at instants: (version, made, at)."""
    lake = Lake(tmp_path)

    def serve(*lines):
        for version, made, at in lines:
            if not lake.has(entry("home", version)):
                with lake.create(entry("home", version), {"as_of": made.isoformat(), "champions": {}, "files": []}):
                    pass
            line = {"shop": "corner", "version": version, "reason": "", "as_of": made.isoformat()}
            with ledger.moving(lake):
                lake.point(ledger.POINTER, line | {"at": at.isoformat()})
        return lake

    return serve


SOON = timedelta(minutes=20)


def test_a_version_is_scored_from_when_it_became_current(served):
    lake = served(("a", day(0), day(0) + SOON), ("b", day(1), day(1) + SOON))
    found = afterwards.what_served(lake, "corner", us(day(0)), us(day(1)))
    assert found == ("a", us(day(0) + SOON), us(day(1)))
    assert afterwards.what_served(lake, "another", None, us(day(1))) is None
    assert afterwards.what_served(lake, "corner", None, us(day(0))) is None


def test_after_a_roll_back_the_older_version_is_scored(served):
    noon = day(1) + timedelta(hours=4)
    lake = served(("a", day(0), day(0) + SOON), ("b", day(1), day(1) + SOON), ("a", day(0), noon))
    assert afterwards.what_served(lake, "corner", us(day(1)), us(day(2))) == ("a", us(noon), us(day(2)))


def test_nights_of_an_archive_that_all_ran_today_are_scored_one_after_the_other(served):
    today = day(3000)
    lake = served(*((name, day(7 * n), today + n * SOON) for n, name in enumerate("abc")))
    assert afterwards.what_served(lake, "corner", None, us(day(7))) == ("a", us(day(0)), us(day(7)))
    assert afterwards.what_served(lake, "corner", us(day(7)), us(day(14))) == ("b", us(day(7)), us(day(14)))
    assert afterwards.what_served(lake, "corner", us(day(14)), us(day(21)))[0] == "c"


def test_revenue_captured_is_the_share_of_what_was_spent_that_went_to_first_tens():
    wanted = sp.csr_matrix([[1, 1, 0], [0, 0, 1]])
    spent = sp.csr_matrix([[30.0, 10.0, 0], [0, 0, 60.0]])
    found = afterwards._summary(afterwards._values(np.array([[0, 2], [0, 1]], np.int32), wanted, spent))
    assert found["revenue@10"] == pytest.approx(0.3)
    assert found["hit_rate@10"] == 0.5
    assert found["interval"]["revenue@10"][0] <= 0.3 <= found["interval"]["revenue@10"][1]
    free = afterwards._summary(afterwards._values(np.array([[0], [1]], np.int32), wanted, spent * 0))
    assert free["revenue@10"] is None


def test_the_interval_of_a_share_covers_it_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for n in range(200):
        whole = rng.exponential(1, 300)
        low, high = bootstrap_share(whole * (rng.random(300) < 0.3), whole, seed=n, resamples=200)
        inside += low <= 0.3 <= high
    assert 0.9 <= inside / 200 <= 0.99


def test_lists_that_changed_by_a_third_overlap_by_two_thirds():
    def lists(rows):
        users, items = zip(*rows, strict=True)
        ranks = pa.array(range(1, len(rows) + 1), pa.int16())
        return pa.table({"user_id": users, "rank": ranks, "item_id": items})

    now = lists([("u", "a"), ("u", "b"), ("u", "c"), ("new", "a")])
    assert afterwards._overlap(now, lists([("u", "c"), ("u", "a"), ("u", "x"), ("gone", "b")])) == pytest.approx(2 / 3)
    assert afterwards._overlap(now, lists([("gone", "b")])) is None


def test_two_nights_of_a_shop_make_one_scored_point_however_often_they_run(tiny_night, monkeypatch, tmp_path):
    """The second night's report is run three times; the first night had nothing to score."""
    from recsys_tasks.cli import run_night
    from recsys_tasks.night import plan
    from recsys_tasks.timing import times

    _, shop_file, _ = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    reports = []
    for date in ("2011-04-08", "2011-04-12", "2011-04-12", "2011-04-12"):
        night = plan(str(shop_file), f"{date}T00:00:00Z", datetime.now(UTC))
        ids = run_night(night)
        reports.append((ids["report"], json.loads((night.lake.path(ids["report"]) / "report.json").read_text())))
    (_, first), (second_id, second), *again = reports
    assert [name for name, _ in again] == [second_id, second_id]
    assert first["last_night"] is None
    assert [point["scored"] is None for point in second["series"]] == [True, False]
    did = second["last_night"]["placements"]["home"]
    assert second["last_night"]["version"] == first["version"]
    assert second["last_night"]["to"] == night.as_of
    assert did["customers"] > 10
    assert 0 < did["ndcg@10"] < 1
    assert 0 < did["revenue@10"] < 1
    assert did["baselines"]["popular"]["ndcg@10"] < did["ndcg@10"]
    assert sum(tier["customers"] for tier in did["tiers"].values()) == did["customers"]
    assert 0 < second["series"][-1]["lists"]["home"]["overlap@10"] < 1
    assert "too short" in second["drift"]["events"]["unable"]
    took = {(step["step"], step["of"]): step for step in times(night)}
    assert {of for step, of in took if step == "recommend"} == {0, 1}
    assert took["embed", None]["reused"]
    assert took["train", "ease"]["reused"]
    assert not took["check", None]["reused"]
    assert not any(step["reused"] for step in second["steps"] if step["step"] in ("embed", "evaluate", "recommend"))
    assert all(0 < step["peak_mb"] < 64_000 for step in second["steps"])
