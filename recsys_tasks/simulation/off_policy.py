"""What a policy would have earned, from a log of what another one did: IPS, SNIPS, doubly robust.

Rounds are judged one by one here; ``fitted_q`` judges whole visits. Names are those of Open Bandit Pipeline (Saito et
al. 2021). Letters: n rounds, A actions, U independent units: the customers where they are given, else the rounds. A
policy is its ``action_dist`` (n, A), the probability of every action in the context and position of every round; its
value is the mean reward of a round, in the reward's unit. A list of several positions is a round per position, as if
what is shown at one did not matter at another.

Intervals hold at 95 % and come from a bootstrap over units (Poisson weights). On bandit feedback all estimators are
ratios of sums over units, so resamples are a matrix product, and their intervals are studentized (bootstrap-t, Efron &
Tibshirani 1993, section 12.5): importance weights are skewed, and percentiles of skewed means lie too low. Where
rewards are so few that resamples have none, an end is infinite.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from recsys_tasks.errors import ContractError

RewardModel = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Callable[[np.ndarray], np.ndarray]]
"""(features (m, d), action (m,), reward (m,), A) -> a function from features (k, d) to expected rewards (k, A)."""

ESTIMATORS = ("ips", "snips", "dr")
FOLDS = 5
MIN_EFFECTIVE_SAMPLE_SIZE = 100
"""Below it ``compare`` does not judge: intervals may be too short there, see benchmarks/results/off_policy.md."""
POISSON = np.repeat(np.arange(6.0), [95, 93, 47, 16, 4, 1])
"""What one of 256 equally likely bytes weighs: Poisson of mean 1, to 1 / 256."""
NOT_BELOW, BELOW, CANNOT_TELL = "not below", "below", "the log cannot tell"


@dataclass(frozen=True)
class BanditFeedback:
    """Logged rounds. Raises ``ContractError`` where they cannot be used."""

    n_actions: int
    action: np.ndarray
    """(n,) int from 0: what was done"""
    reward: np.ndarray
    """(n,)"""
    pscore: np.ndarray
    """(n,) probability, above 0, with which the log's policy did it in this context and position"""
    context: np.ndarray | None = None
    """(n, d) numbers that the reward may depend on; for the reward model alone"""
    position: np.ndarray | None = None
    """(n,) int from 0: the slot that was filled; for the reward model alone"""
    customer: np.ndarray | None = None
    """(n,) of any type: rounds of one customer are one unit"""

    def __post_init__(self) -> None:  # noqa: D105
        n = len(self.action)
        if n == 0:
            raise ContractError("action: expected one round at least, found none")
        check_array("action", self.action, (n,), 0, self.n_actions - 1, whole=True)
        check_array("reward", self.reward, (n,))
        check_array("pscore", self.pscore, (n,), 0, 1)
        if not self.pscore.all():
            raise ContractError(f"pscore: expected above 0, found {(self.pscore == 0).sum():,} rounds of probability 0")
        if self.context is not None:
            check_array("context", self.context, (n, *(self.context.shape[1:2] or (1,))))
        if self.position is not None:
            check_array("position", self.position, (n,), 0, whole=True)
        if self.customer is not None and self.customer.shape != (n,):
            raise ContractError(f"customer: expected shape ({n},), found {self.customer.shape}")

    def features(self) -> np.ndarray:
        """Return context and one-hot position beside each other, (n, d + positions)."""
        context = np.empty((len(self.action), 0)) if self.context is None else self.context
        if self.position is None:
            return context
        return np.hstack([context, np.eye(self.position.max() + 1)[self.position]])

    def units(self) -> np.ndarray:
        """Return the number of every round's unit, (n,) from 0 to U - 1."""
        if self.customer is None:
            return np.arange(len(self.action))
        return np.unique(self.customer, return_inverse=True)[1]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PolicyValue(Estimate):
    """A policy's value, and how far the log bears it. snips is nan where the log never did what the policy does."""

    effective_sample_size: float
    """in units, Kish (1965): (sum w)^2 / sum w^2 of their importance weights"""
    mean_weight: float
    """of a round; expected to be 1. Off it: wrong propensities, or actions that the log's policy never does"""
    mean_weight_error: float
    """standard error"""
    clip_bias: float
    """what clipping did to the value on this log; the interval does not know of it"""


@dataclass(frozen=True)
class Comparison:
    """Two policies on the same log."""

    candidate: PolicyValue
    current: PolicyValue
    difference: Estimate
    """candidate minus current, paired: resamples are the same for both"""
    verdict: str
    """``NOT_BELOW``, ``BELOW`` or ``CANNOT_TELL``"""
    sentence: str


def evaluate(
    log: BanditFeedback,
    action_dist: np.ndarray | None,
    estimator: str = "dr",
    *,
    clip: float | None = None,
    reward_model: RewardModel | None = None,
    bootstraps: int = 1000,
    seed: int = 0,
) -> PolicyValue:
    """Return the value of a policy, ``action_dist`` (n, A); None is the policy that made the log.

    ``ips`` (Horvitz & Thompson 1952) is unbiased. ``snips`` (Swaminathan & Joachims 2015) divides by the sum of the
    weights instead of n: less variance for a bias of order 1 / n. ``dr`` (Dudík et al. 2011) weighs only what
    ``reward_model`` (default: ``ridge``) leaves unexplained, and is unbiased with whatever model. Our deviation: the
    model is cross-fitted in 5 folds, so that no round is predicted by a model that saw its unit.

    ``clip`` is the largest weight allowed (none by default): less variance for the bias that ``clip_bias`` tells,
    towards 0 with ips and rewards that are not negative, towards the reward model with dr.

    Raises ``ContractError`` where ``action_dist`` is no (n, A) probabilities, or the estimator is unknown.
    """
    expected = _expected_rewards(log, estimator, reward_model, seed)
    terms = _terms(log, action_dist, estimator, clip, expected)
    return _policy_value(terms, *_studentized(terms.sums, [slice(0, 2)], bootstraps, seed))


def compare(
    log: BanditFeedback,
    candidate: np.ndarray,
    current: np.ndarray | None = None,
    estimator: str = "dr",
    *,
    margin: float = 0.01,
    reward_model: RewardModel | None = None,
    bootstraps: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Tell whether a candidate is below the current policy (both as ``evaluate`` takes them), by the paired difference.

    *Not below*: the interval lies above a loss of ``margin``, a share of the current policy's value. *Below*: it lies
    below 0. Else *the log cannot tell*, as it cannot where all rewards are the same, where an effective sample size is
    below ``MIN_EFFECTIVE_SAMPLE_SIZE``, or where a mean weight is more than 4 standard errors away from 1. Weights are
    not clipped: that would make the interval sure of another value.

    Raises as ``evaluate`` does.
    """
    expected = _expected_rewards(log, estimator, reward_model, seed)
    terms = [_terms(log, action_dist, estimator, None, expected) for action_dist in (candidate, current)]
    columns = [slice(0, 2), slice(2, 4), slice(0, 4)]
    *values, difference = _studentized(np.hstack([one.sums for one in terms]), columns, bootstraps, seed)
    new, old = map(_policy_value, terms, values)
    sizes = f"effective sample sizes {new.effective_sample_size:,.0f} and {old.effective_sample_size:,.0f}"
    why = f"{difference.value:+.4g} a round, 95 % {difference.low:+.4g} to {difference.high:+.4g}, {sizes}"
    verdict = CANNOT_TELL
    if np.ptp(log.reward) == 0:
        why = f"all {len(log.reward):,} rewards are {log.reward[0]:g}"
    elif min(new.effective_sample_size, old.effective_sample_size) < MIN_EFFECTIVE_SAMPLE_SIZE:
        why = f"{sizes}, {MIN_EFFECTIVE_SAMPLE_SIZE} are needed"
    elif any(abs(one.mean_weight - 1) > 4 * one.mean_weight_error for one in (new, old)):
        why = f"mean weights {new.mean_weight:.3g} and {old.mean_weight:.3g} instead of 1: propensities are wrong, "
        why += "or the log's policy never does what is asked"
    elif difference.low >= -margin * abs(old.value):
        verdict = NOT_BELOW
    elif difference.high < 0:
        verdict = BELOW
    subject = "The log cannot tell" if verdict == CANNOT_TELL else f"The candidate is {verdict} the current policy"
    return Comparison(new, old, difference, verdict, f"{subject}: {why}.")


def ridge(
    features: np.ndarray, action: np.ndarray, reward: np.ndarray, n_actions: int, strength: float = 10.0
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a linear model of the reward for every action, drawn towards one of all actions; a ``RewardModel``.

    Features are standardised; ``strength`` is the L2 penalty, in rounds.
    """
    mean, scale = features.mean(0), features.std(0)

    def design(features: np.ndarray) -> np.ndarray:
        return np.hstack([np.ones((len(features), 1)), (features - mean) / np.where(scale > 0, scale, 1)])

    x = design(features)  # (m, 1 + d)
    penalty = strength * np.eye(x.shape[1])
    level = reward.mean()
    shared = np.linalg.solve(x.T @ x + penalty, x.T @ (reward - level))
    left = reward - level - x @ shared
    coefficients = np.tile(shared, (n_actions, 1))
    for one in np.unique(action):
        of = x[action == one]
        coefficients[one] += np.linalg.solve(of.T @ of + penalty, of.T @ left[action == one])
    return lambda features: level + design(features) @ coefficients.T


class _Terms(NamedTuple):
    """What an estimator needs of a policy."""

    sums: np.ndarray
    """(U, 2): the value is sums[:, 0].sum() / sums[:, 1].sum()"""
    weights: np.ndarray
    """(U, 2): sum of the weights, number of rounds"""
    used: np.ndarray
    """(U,) sum of the weights as clipped"""
    clip_bias: float


def _terms(
    log: BanditFeedback, action_dist: np.ndarray | None, estimator: str, clip: float | None, expected: np.ndarray | None
) -> _Terms:
    n = len(log.action)
    every, unit, ones = np.arange(n), log.units(), np.ones(n)
    weight, baseline, left = ones, np.zeros(n), log.reward
    if action_dist is not None:
        check_action_dist("action_dist", action_dist, (n, log.n_actions))
        weight = action_dist[every, log.action] / log.pscore
        if expected is not None:
            baseline, left = (action_dist * expected).sum(1), log.reward - expected[every, log.action]
    if clip is not None and not clip > 0:
        raise ContractError(f"clip: expected a weight above 0, found {clip}")
    clipped = np.minimum(weight, np.inf if clip is None else clip)

    def by_unit(*columns: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(unit, column) for column in columns], 1)

    def ratio(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return baseline + weight * left, weight if estimator == "snips" else ones

    (top, bottom), (raw_top, raw_bottom) = ratio(clipped), ratio(weight)
    with np.errstate(invalid="ignore"):
        clip_bias = float(top.sum() / bottom.sum() - raw_top.sum() / raw_bottom.sum())
    return _Terms(by_unit(top, bottom), by_unit(weight, ones), by_unit(clipped)[:, 0], clip_bias)


def _policy_value(terms: _Terms, found: Estimate) -> PolicyValue:
    used = terms.used
    size = float(used.sum() ** 2 / (used @ used)) if used.any() else 0.0
    mean, error = (float(of[0]) for of in _ratios(*_moments(np.ones((1, len(used))), terms.weights)))
    return PolicyValue(found.value, found.low, found.high, size, mean, error, terms.clip_bias)


def _expected_rewards(
    log: BanditFeedback, estimator: str, reward_model: RewardModel | None, seed: int
) -> np.ndarray | None:
    """Return (n, A) expected rewards, each row by a model that did not see its unit; None where none are needed."""
    if estimator not in ESTIMATORS:
        raise ContractError(f"estimator: expected one of {', '.join(ESTIMATORS)}, found {estimator}")
    if estimator != "dr":
        return None
    features, unit = log.features(), log.units()
    n_units = unit.max() + 1
    if n_units < 2:
        raise ContractError("dr: expected two independent units at least, found 1")
    fold = (np.random.default_rng(seed).permutation(n_units) % FOLDS)[unit]
    expected = np.empty((len(unit), log.n_actions))
    for one in np.unique(fold):
        seen = fold != one
        model = (reward_model or ridge)(features[seen], log.action[seen], log.reward[seen], log.n_actions)
        predicted = model(features[~seen])
        check_array("reward model's predictions", predicted, ((~seen).sum(), log.n_actions))
        expected[~seen] = predicted
    return expected


def _studentized(sums: np.ndarray, columns: Sequence[slice], bootstraps: int, seed: int) -> list[Estimate]:
    """Return, for each choice of two columns of (U, c), sum / sum; for one of four, the first such less the second."""

    def ratios(weights: np.ndarray) -> np.ndarray:
        first, second = _moments(weights, sums)
        return np.array([_ratios(first[:, of], second[:, of, of]) for of in columns])  # (columns, value and error, B)

    value, error = ratios(np.ones((1, len(sums)))).transpose(1, 0, 2)  # (columns, 1)
    found = np.concatenate([ratios(weights) for weights in resamples(len(sums), bootstraps, seed)], 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (found[:, 0] - value) / found[:, 1]
    # a resample without rewards has no error and is infinitely far off; one without weights has no value: 0, no news
    t = np.nan_to_num(t, posinf=np.inf, neginf=-np.inf)
    ends = np.quantile(t, [0.975, 0.025], axis=1, method="nearest").T  # (columns, low and high)
    ends = value - np.multiply(ends, error, where=error > 0, out=np.zeros_like(ends))
    return [Estimate(*map(float, row)) for row in np.hstack([value, ends])]


def _moments(weights: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first (B, c) and second (B, c, c) moments of the units' sums (U, c) under resamples' weights (B, U)."""
    squares = (sums[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)
    return weights @ sums, (weights @ squares).reshape(-1, sums.shape[1], sums.shape[1])


def _ratios(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ratios of sums, or differences of two ratios, (B,), and their standard errors by the delta method."""
    top, bottom = first[:, ::2], first[:, 1::2]
    sign = np.array([1.0, -1.0])[: top.shape[1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = top / bottom
        gradient = np.stack([sign / bottom, -sign * ratio / bottom], 2).reshape(first.shape)
    variance = np.einsum("bi,bij,bj->b", gradient, second, gradient)
    return ratio @ sign, np.sqrt(np.maximum(variance, 0))


def resamples(n_units: int, bootstraps: int, seed: int) -> Iterator[np.ndarray]:
    """Yield Poisson weights (b, n_units), as many resamples b at a time as fit into a core's cache."""
    rng = np.random.default_rng(seed)
    at_once = max(1, 200_000 // n_units)
    for start in range(0, bootstraps, at_once):
        yield POISSON[rng.integers(256, size=(min(at_once, bootstraps - start), n_units), dtype=np.uint8)]


def check_array(
    name: str,
    found: np.ndarray,
    shape: tuple[int, ...],
    low: float = -np.inf,
    high: float = np.inf,
    whole: bool = False,
) -> None:
    """Raise ``ContractError`` unless an array has the shape and holds finite (whole) numbers from low to high."""
    if found.shape != shape:
        raise ContractError(f"{name}: expected shape {shape}, found {found.shape}")
    if found.dtype.kind not in ("iu" if whole else "iufb"):
        raise ContractError(f"{name}: expected {'whole ' if whole else ''}numbers, found {found.dtype}")
    if not np.isfinite(found).all():
        raise ContractError(f"{name}: expected finite numbers, found {(~np.isfinite(found)).sum():,} that are not")
    if found.size and not low <= found.min() <= found.max() <= high:
        raise ContractError(f"{name}: expected {low:g} to {high:g}, found {found.min():g} to {found.max():g}")


def check_action_dist(name: str, found: np.ndarray, shape: tuple[int, ...], read: np.ndarray | None = None) -> None:
    """Raise ``ContractError`` unless the rows, those that are read, are probabilities that sum to 1 (to 1e-6)."""
    check_array(name, found, shape, 0)
    total = found.sum(-1) if read is None else found.sum(-1)[read]
    if np.any(np.abs(total - 1) > 1e-6):
        raise ContractError(f"{name}: expected rows that sum to 1, found sums from {total.min():g} to {total.max():g}")
