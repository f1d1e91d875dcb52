"""Off-policy estimators against sums that anybody can do by hand, and against worlds of known value."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.off_policy import (
    BELOW,
    CANNOT_TELL,
    ESTIMATORS,
    NOT_BELOW,
    BanditFeedback,
    compare,
    evaluate,
    ridge,
)

BY_HAND = BanditFeedback(
    n_actions=2, action=np.array([0, 0, 1]), reward=np.array([1.0, 0.0, 2.0]), pscore=np.array([0.5, 0.5, 0.25])
)
ASKED = np.array([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])  # weights 1, 0.5, 2


def a_log(seed, n=2000, reward=(0.2, 0.6), shown=(0.5, 0.5)):
    """Two actions of known click rates."""
    rng = np.random.default_rng(seed)
    action = (rng.random(n) < shown[1]).astype(int)
    clicked = (rng.random(n) < np.array(reward)[action]).astype(float)
    return BanditFeedback(2, action, clicked, np.array(shown)[action])


def always(n, *chances):
    return np.tile(chances, (n, 1))


def test_estimators_are_the_sums_of_the_papers():
    def half(features, action, reward, n_actions):
        return lambda features: np.full((len(features), n_actions), 0.5)

    assert evaluate(BY_HAND, ASKED, "ips").value == pytest.approx((1 * 1 + 2 * 2) / 3)
    assert evaluate(BY_HAND, ASKED, "snips").value == pytest.approx((1 * 1 + 2 * 2) / 3.5)
    by_model = 0.5 + (1 * 0.5 + 0.5 * -0.5 + 2 * 1.5) / 3
    assert evaluate(BY_HAND, ASKED, "dr", reward_model=half).value == pytest.approx(by_model)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_logs_own_policy_is_worth_the_mean_reward(estimator):
    found = evaluate(BY_HAND, None, estimator)
    assert (found.value, found.effective_sample_size, found.mean_weight) == (pytest.approx(1), 3, 1)


def test_effective_sample_size_is_kishs_over_customers():
    assert evaluate(BY_HAND, ASKED, "ips").effective_sample_size == pytest.approx(3.5**2 / (1 + 0.25 + 4))
    by_customer = replace(BY_HAND, customer=np.array(["b", "a", "b"]))
    assert evaluate(by_customer, ASKED, "ips").effective_sample_size == pytest.approx(3.5**2 / (9 + 0.25))


def test_clipping_tells_its_bias():
    found = evaluate(BY_HAND, ASKED, "ips", clip=1.5)
    assert found.value == pytest.approx((1 * 1 + 1.5 * 2) / 3)
    assert found.clip_bias == pytest.approx(-1 / 3)
    assert found.mean_weight == pytest.approx(3.5 / 3)
    assert evaluate(BY_HAND, ASKED, "ips").clip_bias == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_intervals_cover_the_truth_about_19_times_of_20(estimator):
    found = [evaluate(a_log(seed, 300), always(300, 0.1, 0.9), estimator, bootstraps=300) for seed in range(100)]
    covered = sum(one.low <= 0.1 * 0.2 + 0.9 * 0.6 <= one.high for one in found)
    assert 89 <= covered <= 100


def test_intervals_of_customers_are_wider_where_their_rounds_are_alike():
    log = a_log(0, 200)
    ten_times = BanditFeedback(2, *(np.repeat(x, 10) for x in (log.action, log.reward, log.pscore)))
    asked = always(2000, 0.2, 0.8)
    alone = evaluate(ten_times, asked, "snips")
    together = evaluate(replace(ten_times, customer=np.arange(2000) // 10), asked, "snips")
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_no_round_is_predicted_by_a_model_that_saw_its_customer():
    customer = np.random.default_rng(0).integers(0, 30, 2000)
    log = replace(a_log(0), context=customer[:, None].astype(float), customer=customer)
    seen = []

    def watch(features, action, reward, n_actions):
        learned = set(features[:, 0])

        def predict(features):
            assert not learned & set(features[:, 0])
            seen.append(len(features))
            return np.zeros((len(features), n_actions))

        return predict

    evaluate(log, always(2000, 0.5, 0.5), reward_model=watch)
    assert (len(seen), sum(seen)) == (5, 2000)


def test_ridge_learns_what_each_action_earns_in_a_context():
    rng = np.random.default_rng(0)
    x, action = rng.uniform(-1, 1, (5000, 2)), rng.integers(0, 3, 5000)
    slopes = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    predict = ridge(x, action, 0.5 + (slopes[action] * x).sum(1), 4)
    assert predict(np.array([[0.5, 0.5]]))[0, :3] == pytest.approx([1.0, 1.0, 0.25], abs=0.02)
    assert np.isfinite(predict(x)).all()  # the fourth action was never tried


def test_a_right_reward_model_makes_the_interval_narrower():
    rng = np.random.default_rng(0)
    x, action = rng.uniform(-1, 1, (1000, 1)), rng.integers(0, 2, 1000)
    log = BanditFeedback(2, action, 3 * x[:, 0] * action + rng.normal(0, 0.1, 1000), np.full(1000, 0.5), x)
    asked = np.hstack([1 - x, 1 + x]) / 2  # worth 3 E[x (1 + x) / 2] = 0.5
    dr, ips = (evaluate(log, asked, name) for name in ("dr", "ips"))
    assert dr.low < 0.5 < dr.high
    assert dr.high - dr.low < 0.6 * (ips.high - ips.low)


def test_position_may_matter_to_the_reward():
    log = a_log(0)
    position = np.arange(2000) % 2
    log = replace(log, reward=log.reward * position, position=position)
    by_position = evaluate(log, always(2000, 0.0, 1.0))
    assert by_position.low < 0.3 < by_position.high
    plain = evaluate(replace(log, position=None), always(2000, 0.0, 1.0))
    assert by_position.high - by_position.low < plain.high - plain.low


def test_the_same_seed_gives_the_same_interval():
    asked = always(2000, 0.3, 0.7)
    assert evaluate(a_log(0), asked) == evaluate(a_log(0), asked)
    assert evaluate(a_log(0), asked) != evaluate(a_log(0), asked, seed=1)


def test_a_better_policy_is_not_below_and_a_worse_one_is():
    better = compare(a_log(0), always(2000, 0.2, 0.8))
    assert better.verdict == NOT_BELOW
    assert better.sentence.startswith("The candidate is not below the current policy: +0.1")
    assert better.difference.low > 0
    worse = compare(a_log(0), always(2000, 0.8, 0.2), always(2000, 0.2, 0.8))
    assert worse.verdict == BELOW
    assert worse.difference.value == pytest.approx(worse.candidate.value - worse.current.value)


def test_the_difference_of_a_policy_to_itself_is_exactly_0():
    asked = always(2000, 0.2, 0.8)
    found = compare(a_log(0), asked, asked)
    assert (found.verdict, found.difference.low, found.difference.high) == (NOT_BELOW, 0, 0)


def test_pairing_makes_the_difference_of_like_policies_sure():
    found = compare(a_log(0), always(2000, 0.29, 0.71), always(2000, 0.3, 0.7))
    assert found.difference.high - found.difference.low < 0.1 * (found.current.high - found.current.low)


@pytest.mark.parametrize(
    ("log", "asked", "why"),
    [
        (a_log(0, 150), (0.0, 1.0), "100 are needed"),
        (a_log(0, reward=(0.5, 0.5)), (0.2, 0.8), "95 %"),
        (a_log(0, reward=(0.0, 0.0)), (0.2, 0.8), "all 2,000 rewards are 0"),
        (a_log(0, shown=(1.0, 0.0)), (0.5, 0.5), "mean weights 0.5 and 1 instead of 1"),
        (a_log(0, shown=(1.0, 0.0)), (0.0, 1.0), "effective sample sizes 0 and 2,000"),
    ],
    ids=["few rounds", "no difference", "no reward", "half never tried", "never tried"],
)
@pytest.mark.filterwarnings("error")
def test_a_log_that_cannot_tell_says_why(log, asked, why):
    for estimator in ESTIMATORS:
        found = compare(log, always(len(log.action), *asked), estimator=estimator)
        assert found.verdict == CANNOT_TELL
        assert found.sentence.startswith("The log cannot tell: ")
        assert why in found.sentence


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pscore": np.array([0.5, 0.0, 0.25])}, "pscore: expected above 0, found 1 rounds of probability 0"),
        ({"pscore": np.array([0.5, 1.5, 0.25])}, "pscore: expected 0 to 1, found 0.25 to 1.5"),
        ({"pscore": np.array([])}, r"pscore: expected shape \(3,\), found \(0,\)"),
        ({"reward": np.array([1.0, np.nan, 0.0])}, "reward: expected finite numbers, found 1 that are not"),
        ({"action": np.array([0, 2, 1])}, "action: expected 0 to 1, found 0 to 2"),
        ({"action": np.array([0.0, 1.0, 1.0])}, "action: expected whole numbers, found float64"),
        ({"action": np.array([], int)}, "action: expected one round at least, found none"),
        ({"context": np.zeros(3)}, "context: expected shape"),
        ({"context": np.full((3, 1), np.inf)}, "context: expected finite numbers, found 3"),
        ({"position": np.array([0, -1, 0])}, "position: expected 0 to inf, found -1 to 0"),
        ({"customer": np.array(["a"])}, r"customer: expected shape \(3,\), found \(1,\)"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_log_that_cannot_be_used_is_refused(wrong, message):
    with pytest.raises(ContractError, match=message):
        replace(BY_HAND, **wrong)


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        (ASKED * 0.9, {}, "action_dist: expected rows that sum to 1, found sums from 0.9 to 0.9"),
        (ASKED[:2], {}, r"action_dist: expected shape \(3, 2\), found \(2, 2\)"),
        (ASKED * np.nan, {}, "action_dist: expected finite numbers, found 6"),
        (np.tile([1.5, -0.5], (3, 1)), {}, "action_dist: expected 0 to inf, found -0.5 to 1.5"),
        (ASKED, {"estimator": "dm"}, "estimator: expected one of ips, snips, dr, found dm"),
        (ASKED, {"reward_model": lambda *_: lambda x: np.zeros(len(x))}, "reward model's predictions: expected shape"),
    ],
)
def test_a_policy_that_cannot_be_judged_is_refused(asked, options, message):
    for judge in (evaluate, compare):
        with pytest.raises(ContractError, match=message):
            judge(BY_HAND, asked, **options)


def test_a_clip_of_0_is_refused():
    with pytest.raises(ContractError, match="clip: expected a weight above 0, found 0"):
        evaluate(BY_HAND, ASKED, clip=0)


def test_cross_fitting_needs_two_customers():
    log = replace(BY_HAND, customer=np.array([7, 7, 7]))
    with pytest.raises(ContractError, match="two independent units at least, found 1"):
        evaluate(log, ASKED)
