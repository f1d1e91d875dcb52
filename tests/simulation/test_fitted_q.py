"""Fitted Q evaluation against worlds whose values are known in closed form."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.simulation.fitted_q import Trajectories, boosted, fqe

BOTH = np.array([[0.0], [1.0]])


def one_state(m, terminated, steps=4):
    """One state; the second of two actions earns 1, and the log does both alike. The last step ends the log."""
    action = np.random.default_rng(0).integers(0, 2, m * steps)
    n = len(action)
    ends = np.arange(n) % steps == steps - 1
    return Trajectories(
        trajectory=np.arange(n) // steps,
        state=np.zeros((n, 1)),
        action=BOTH[action],
        reward=action.astype(float),
        terminated=ends & terminated,
        next_state=np.zeros((n, 1)),
        next_actions=np.tile(BOTH, (n, 1, 1)),
        next_action_dist=np.tile([0.25, 0.75], (n, 1)),
        initial_state=np.zeros((m, 1)),
        initial_actions=np.tile(BOTH, (m, 1, 1)),
        initial_action_dist=np.tile([0.25, 0.75], (m, 1)),
    )


def test_after_a_truncated_step_value_follows():
    assert fqe(one_state(200, terminated=False), 0.5).value == pytest.approx(0.75 / (1 - 0.5), rel=1e-3)


def test_after_a_terminated_step_nothing_follows():
    # one step in four ends, whatever is done: V = 0.75 + 0.5 * 3 / 4 * V, if Q does not know the step
    log = one_state(2000, terminated=True)
    assert fqe(log, 0.5).value == pytest.approx(0.75 / (1 - 0.5 * 3 / 4), rel=0.01)
    untold = replace(log, next_action_dist=np.where(log.terminated[:, None], 0.0, log.next_action_dist))
    assert fqe(untold, 0.5) == fqe(log, 0.5)


def test_without_discount_a_visit_is_worth_its_sum():
    # the step is told: three steps and the last
    log = one_state(500, terminated=True)
    step = np.eye(4)[np.arange(2000) % 4]
    log = replace(log, state=step, next_state=np.roll(step, 1, axis=1), initial_state=np.eye(4)[[0] * 500])
    assert fqe(log, 1.0, iterations=4).value == pytest.approx(4 * 0.75, rel=0.01)
    assert fqe(log, 1.0, iterations=2, bootstraps=0).value == pytest.approx(2 * 0.75, rel=0.01)


def test_boosted_trees_find_the_same_value():
    log = one_state(200, terminated=False)
    found = fqe(log, 0.5, boosted, iterations=12, bootstraps=3)
    assert found.value == pytest.approx(1.5, rel=0.02)
    assert found.low <= found.high


def test_the_interval_covers_a_noisy_truth_and_the_seed_decides_it():
    log = one_state(300, terminated=False)
    noisy = replace(log, reward=log.reward + np.random.default_rng(1).normal(0, 1, 1200))
    found = fqe(noisy, 0.5)
    assert found.low < 1.5 < found.high
    assert found == fqe(noisy, 0.5)
    assert found != fqe(noisy, 0.5, seed=1)


def test_q_that_runs_away_is_an_error():
    log = one_state(50, terminated=False)
    wild = replace(log, state=np.ones((200, 1)), next_state=np.full((200, 1), 10.0))
    with pytest.raises(TrainingError, match="runs away"):
        fqe(wild, 1.0, iterations=1000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trajectory": np.zeros(12, int)}, "trajectory: expected steps of all 3, found none of some"),
        ({"trajectory": np.full(12, 3)}, "trajectory: expected 0 to 2, found 3 to 3"),
        ({"terminated": np.zeros(12)}, "terminated: expected bool"),
        ({"reward": np.full(12, np.nan)}, "reward: expected finite numbers, found 12"),
        ({"next_state": np.zeros((12, 2))}, r"next_state: expected shape \(12, 1\), found \(12, 2\)"),
        ({"next_actions": np.zeros((12, 3, 1))}, r"next_action_dist: expected shape \(12, 3\), found \(12, 2\)"),
        ({"next_action_dist": np.full((12, 2), 0.4)}, "next_action_dist: expected rows that sum to 1"),
        ({"initial_action_dist": np.full((3, 2), 0.4)}, "initial_action_dist: expected rows that sum to 1"),
    ],
)
def test_trajectories_that_cannot_be_used_are_refused(wrong, message):
    with pytest.raises(ContractError, match=message):
        replace(one_state(3, terminated=False), **wrong)


def test_few_visits_give_a_wide_interval_and_no_error():
    log = one_state(2, terminated=False)
    found = fqe(replace(log, reward=np.arange(8.0)), 0.5, seed=3)
    assert found.high - found.low > 1


def test_a_discount_above_1_is_refused():
    with pytest.raises(ContractError, match="discount: expected 0 to 1, found 2"):
        fqe(one_state(3, terminated=False), 2)
