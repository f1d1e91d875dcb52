"""Backtests of the tiny shop: three dates in its last week."""

import csv
import json
from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from recsys_tasks.backtest import MEAN, nights, score, summarise
from recsys_tasks.cli import app, run_night
from recsys_tasks.errors import ContractError, ShopFileError
from recsys_tasks.lake import CURRENT, Lake
from recsys_tasks.models import BASELINES
from recsys_tasks.night import plan
from recsys_tasks.recipe import Shelf
from tests.tiny_shop import CUSTOMERS, write_tiny_shop

FIRST, LAST = "2011-04-06", "2011-04-12"
OTHER = 'ease {"half_life_days": 1.0, "regularization": 1000000.0}'


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A home with a backtest: (home, shop file, what it found)."""
    folder = tmp_path_factory.mktemp("backtest")
    shop = write_tiny_shop(folder / "shop")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NIGHTCART_HOME", str(folder / "home"))
        yield folder / "home", shop, backtest(shop)


def backtest(shop, last=LAST):
    """Run a backtest, one date every three days, and return what it found."""
    dates = nights(str(shop), FIRST, last, 3, ["ease", OTHER])
    entry = summarise(dates, [score(night) for night in dates])
    folder = dates[0].lake.path(entry)
    assert (folder / "backtest.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "backtest.json").read_text())


def rows_of(found, date):
    return [row for row in found["rows"] if row["date"][:10] == date]


def test_every_date_has_every_recipe_in_both_views_and_so_has_the_mean(tested):
    _, _, found = tested
    assert [date[:10] for date in found["dates"]] == ["2011-04-06", "2011-04-09", "2011-04-12"]
    wanted = {
        (date, view, r) for date in (*found["dates"], MEAN) for view in ("all", "discovery") for r in found["recipes"]
    }
    assert {(row["date"], row["view"], row["recipe"]) for row in found["rows"]} == wanted
    assert found["recipes"] == [*BASELINES, OTHER]


def test_a_date_is_the_dry_night_of_that_date(tested):
    _, shop, found = tested
    night = plan(str(shop), f"{FIRST}T00:00:00Z", datetime.now(UTC), publish=False)
    entry = run_night(night, "evaluate")["evaluate"]
    board = json.loads((night.lake.path(entry) / "leaderboard.json").read_text())["rows"]
    of_night = {(r["view"], r["recipe"]): r["metrics"]["ndcg@10"] for r in board if r["tier"] == "everyone"}
    of_date = {(r["view"], r["recipe"]): r["ndcg@10"] for r in rows_of(found, FIRST) if r["recipe"] != OTHER}
    assert of_date == of_night


def test_the_ratio_is_to_the_best_baseline_of_the_date_and_lies_in_its_interval(tested):
    _, _, found = tested
    for date in found["dates"]:
        rows = {row["recipe"]: row for row in found["rows"] if (row["date"], row["view"]) == (date, "all")}
        best = max(BASELINES, key=lambda name: rows[name]["ndcg@10"])
        assert rows[best]["ratio interval"] == [1, 1], "against itself, customer by customer"
        for row in rows.values():
            assert row["best"] == best
            assert row["ratio"] == pytest.approx(row["ndcg@10"] / rows[best]["ndcg@10"])
            assert row["ratio interval"][0] <= row["ratio"] <= row["ratio interval"][1]
    (mean,) = [row for row in found["rows"] if (row["date"], row["view"], row["recipe"]) == (MEAN, "all", OTHER)]
    of_dates = [row for date in found["dates"] for row in rows_of(found, date[:10]) if row["recipe"] == OTHER]
    assert mean["ratio"] == pytest.approx(sum(row["ratio"] for row in of_dates if row["view"] == "all") / 3)
    assert mean["ratio interval"][0] <= mean["ratio"] <= mean["ratio interval"][1]
    assert mean["dates"] == 3


def test_nothing_becomes_current_and_no_night_stands_in_mlflow(tested):
    import mlflow

    home, shop, found = tested
    lake = Lake(home / "lake")
    backtested = set(found["evaluations"].values())
    assert backtested <= set(lake.entries("evaluations"))
    assert not list(lake.root.rglob(CURRENT))
    tracking = nights(str(shop), FIRST, FIRST)[0].tracking
    assert tracking.champions() == {}
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    experiment = client.get_experiment_by_name("nightcart-tiny-backtest").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.data.params["ease 2"] == OTHER
    assert {"all/ease/ndcg_at_10", "mean/discovery/ease 2/ratio"} <= set(run.data.metrics)
    of_dates = client.get_metric_history(run.info.run_id, "all/ease/ndcg_at_10")
    assert [point.step for point in of_dates] == [0, 1, 2]
    kinds = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kinds == {"backtest.json", "backtest.md", "backtest.png"}


def test_dates_that_were_done_are_reused(tested):
    _, shop, found = tested
    with patch.object(Shelf, "lesson", side_effect=AssertionError("nothing is trained again")):
        assert backtest(shop) == found


@pytest.mark.usefixtures("home")
def test_an_event_after_a_date_does_not_change_its_row(tmp_path):
    shop = write_tiny_shop(tmp_path / "shop")
    before = backtest(shop)
    with (tmp_path / "shop" / "days" / "2011-04-10.csv").open("a", newline="") as file:
        for n, customer in enumerate(CUSTOMERS):
            row = [590000 + n, 20000, "KITCHEN TEACUP", 1, "2011-04-10 09:00:00", "1.00", customer, "United Kingdom"]
            csv.writer(file).writerow(row)
    after = backtest(shop)
    for date in ("2011-04-06", "2011-04-09"):
        assert rows_of(after, date) == rows_of(before, date)
    assert rows_of(after, "2011-04-12") != rows_of(before, "2011-04-12")
    same = [date for date, entry in after["evaluations"].items() if entry == before["evaluations"][date]]
    assert [date[:10] for date in same] == ["2011-04-06", "2011-04-09"], "they are the very entries of before"


def test_the_page_has_the_means_first_and_marks_what_is_no_baseline(tested):
    home, _, _ = tested
    (file,) = {path for path in (home / "lake" / "backtests").glob("*/backtest.md")}
    lines = file.read_text().splitlines()
    first = lines[lines.index("## all") + 4]
    assert first.startswith(f"| {MEAN} | ")
    assert any(f"| {OTHER} * |" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"every": 0}, ContractError, "every: expected a number of days from 1 on, got 0"),
        ({"first": "spring"}, ContractError, "from: 'spring' is no instant; expected"),
        ({"last": "2011-04-01"}, ContractError, "to: '2011-04-01' lies before from"),
        ({"last": "2999-04-07"}, ContractError, "to: 2999-04-0. lies after .* expected an earlier date"),
        ({"models": ["best"]}, ContractError, "models: there is no model 'best'; expected some of"),
        ({"models": ["ease {x"]}, ContractError, "models: '{x' is no JSON: .* write a recipe like"),
        ({"models": ['ease {"depth": 2}']}, ShopFileError, "models.ease.depth: .* ease takes"),
    ],
)
def test_a_mistake_is_told_with_its_field_and_what_was_expected(tested, change, error, told):
    _, shop, _ = tested
    with pytest.raises(error, match=told):
        nights(**{"shop": str(shop), "first": FIRST, "last": LAST, **change})


def test_a_date_that_the_log_does_not_reach_is_named(tested):
    _, shop, _ = tested
    with pytest.raises(
        ContractError, match=r"the date 2011-01-05T00:00:00Z cannot be scored: .*; or choose other dates"
    ):
        score(nights(str(shop), "2011-01-05", "2011-01-05")[0])


def test_the_command_prints_the_means_and_where_the_rest_is(tested):
    home, shop, found = tested
    words = ["backtest", "--shop", str(shop), "--from", FIRST, "--to", LAST, "--every", "3", "--model", "ease"]
    told = CliRunner().invoke(app, [*words, "--model", OTHER], catch_exceptions=False)
    assert told.exit_code == 0
    assert "all: mean of 3 dates" in told.stdout
    assert str(home / "lake" / "backtests") in told.stdout
    as_json = CliRunner().invoke(app, [*words, "--model", OTHER, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout) == found
