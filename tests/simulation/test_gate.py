"""What the gate asks of an agent before it may touch a list."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.simulation.gate import Evidence, gate
from recsys_tasks.simulation.off_policy import BanditFeedback, Estimate, compare

GOOD = Evidence(simulated=Estimate(0.5, 0.2, 0.8), purchases=Estimate(0.0, -0.01, 0.01))


def test_a_better_agent_that_loses_no_purchase_passes():
    verdict = gate(GOOD)
    assert verdict.passed
    assert "+0.5000, 95 % +0.2000 to +0.8000" in verdict.reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"simulated": Estimate(0.5, 0.0, 1.0)}, "not above 0"),
        ({"simulated": Estimate(np.nan, np.nan, np.nan)}, "not above 0"),
        ({"purchases": Estimate(-0.001, -0.01, 0.01)}, "below 0"),
        ({"purchases": Estimate(np.nan, np.nan, np.nan)}, "below 0"),
        ({"clicks": Estimate(-0.02, -0.03, -0.01)}, "more than 1% below"),
    ],
)
def test_one_thing_not_shown_is_enough_to_refuse(change, why):
    verdict = gate(replace(GOOD, **change))
    assert not verdict.passed
    assert why in verdict.reason


def test_clicks_may_lose_one_percent():
    assert gate(replace(GOOD, clicks=Estimate(-0.009, -0.02, 0.002))).passed


@pytest.mark.parametrize(("better", "passes"), [(True, True), (False, False)])
def test_where_propensities_were_logged_the_off_policy_value_decides_too(better, passes):
    rng = np.random.default_rng(0)
    n, arms = 4000, 4
    action = rng.integers(0, arms, n)
    reward = (rng.random(n) < np.where(action == 0, 0.6, 0.2)).astype(float)
    log = BanditFeedback(arms, action, reward, np.full(n, 1 / arms))
    always = np.zeros((n, arms))
    always[:, 0 if better else 1] = 1
    verdict = gate(replace(GOOD, off_policy=compare(log, always)))
    assert verdict.passed is passes


def test_a_control_that_does_as_well_is_told_and_decides_nothing():
    verdict = gate(replace(GOOD, control=Estimate(0.1, -0.1, 0.3)))
    assert verdict.passed
    assert "the supervised control does as well" in verdict.reason
    assert "control" not in gate(replace(GOOD, control=Estimate(0.3, 0.1, 0.5))).reason
