"""The benchmark of off-policy evaluation in small, its closed forms, and its reading of Open Bandit."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from off_policy import (
    ASKED,
    DISCOUNT,
    USER_FEATURES,
    OpenBandit,
    open_bandit,
    planted_verdicts,
    visit_value,
    visits_log,
)


def run(*words, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / "off_policy.py"), "--check", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_intervals_cover_in_small(tmp_path):
    done = run("--quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "within all limits"
    measured = json.loads((tmp_path / "off_policy.json").read_text())
    hopeless = [row for row in measured["bandits"] if "hopeless" in row["log"]]
    assert all(row["effective sample size"] < 100 for row in hopeless)
    assert "| log | estimator | truth |" in (tmp_path / "off_policy.md").read_text()


def test_without_the_data_the_benchmark_says_so(tmp_path):
    done = run(NIGHTCART_BENCH_DATA=str(tmp_path))
    assert (done.returncode, done.stdout.startswith("skipped: ")) == (0, True)


def test_the_closed_form_is_what_visits_of_the_evaluated_policy_earn():
    log = visits_log(0, 20_000, steps=100, policy=ASKED)
    step = pd.Series(log.trajectory).groupby(log.trajectory).cumcount()
    earned = np.bincount(log.trajectory, log.reward * DISCOUNT**step)
    assert visit_value() == pytest.approx(earned.mean(), abs=3 * earned.std() / 20_000**0.5)


@pytest.fixture(scope="module")
def impressions():
    """2,000 of each policy: ``bts`` shows the first ten items more often, which are clicked more often."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"behavior_policy": ["random", "bts"] * 2000, "campaign": ["men", "men", "women", "women"] * 1000}
    )
    n_items = rows.campaign.map({"men": 34, "women": 46}).to_numpy()
    first = (rows.behavior_policy == "bts").to_numpy() & (rng.random(4000) < 0.5)
    rows["item_id"] = rng.integers(0, np.where(first, 10, n_items))
    rows["position"] = rng.integers(1, 4, 4000)
    rows["propensity_score"] = np.where(rows.behavior_policy == "bts", 0.5, 1) / n_items
    rows["propensity_score"] += np.where((rows.behavior_policy == "bts") & (rows.item_id < 10), 0.05, 0)
    rows["click"] = (rng.random(4000) < np.where(rows.item_id < 10, 0.3, 0.1)).astype(int)
    return rows.assign(**{name: rng.choice(["a", "b"], 4000) for name in USER_FEATURES})


def test_what_bts_does_is_read_from_its_log(impressions):
    random, bts = OpenBandit(impressions, "random"), OpenBandit(impressions, "bts")
    asked = random.as_logged_by(bts)
    assert asked.sum(1) == pytest.approx(1)
    women = random.campaign == 1
    assert not asked[women, :34].any()
    assert not asked[~women, 34:].any()
    assert asked[~women, :10].sum(1).mean() == pytest.approx(0.5 + 0.5 * 10 / 34, abs=0.05)
    assert random.uniform()[np.arange(2000), random.log.action] == pytest.approx(random.log.pscore)


def test_open_bandit_tells_both_ways(impressions):
    rows = open_bandit(impressions)
    assert {(row["value of"], row["from"]) for row in rows} == {("bts", "random"), ("random", "bts")}
    assert all(row["within"] for row in rows)
    assert rows[0]["estimate"]["value"] > rows[-1]["estimate"]["value"]


def test_planted_clicks_are_found(impressions):
    better, bad = planted_verdicts(impressions.assign(click=0), 2)
    assert (better["candidate"], bad["candidate"]) == ("better", "bad")
    assert better["below"] == bad["not below"] == 0
