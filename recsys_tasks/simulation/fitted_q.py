"""What a policy would have earned over whole visits, from logged trajectories of another one: fitted Q evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.simulation.off_policy import Estimate, check_action_dist, check_array, resamples

Regressor = Callable[[np.ndarray, np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""(features (m, d), target (m,), weight (m,)) -> a function from features (k, d) to predictions (k,)."""


@dataclass(frozen=True)
class Trajectories:
    """Logged episodes, a row per step: n steps, m trajectories, K candidates, s state and a action features.

    A step after which the world ended is ``terminated``: nothing follows. One after which the log merely stops
    (truncated, in Gymnasium's words) is not, and the value of its next state counts. Raises ``ContractError``.
    """

    trajectory: np.ndarray
    """(n,) int from 0 to m - 1; resampled whole"""
    state: np.ndarray
    """(n, s)"""
    action: np.ndarray
    """(n, a) features of what was done"""
    reward: np.ndarray
    """(n,)"""
    terminated: np.ndarray
    """(n,) bool"""
    next_state: np.ndarray
    """(n, s)"""
    next_actions: np.ndarray
    """(n, K, a) features of the candidates in the next state; where there are fewer, any numbers of probability 0"""
    next_action_dist: np.ndarray
    """(n, K) their probabilities under the evaluated policy; not read where terminated"""
    initial_state: np.ndarray
    """(m, s) where trajectory 0, 1, ... began"""
    initial_actions: np.ndarray
    """(m, K, a)"""
    initial_action_dist: np.ndarray
    """(m, K)"""

    def __post_init__(self) -> None:  # noqa: D105
        n, m = len(self.reward), len(self.initial_state)
        s, a = self.state.shape[-1], self.action.shape[-1]
        k, first_k = self.next_actions.shape[1:2], self.initial_actions.shape[1:2]
        shapes = {"state": (n, s), "action": (n, a), "reward": (n,), "next_state": (n, s), "next_actions": (n, *k, a)}
        shapes |= {"initial_state": (m, s), "initial_actions": (m, *first_k, a)}
        for name, shape in shapes.items():
            check_array(name, getattr(self, name), shape)
        if m == 0:
            raise ContractError("initial_state: expected one trajectory at least, found none")
        check_array("trajectory", self.trajectory, (n,), 0, m - 1, whole=True)
        if not np.bincount(self.trajectory, minlength=m).all():
            raise ContractError(f"trajectory: expected steps of all {m}, found none of some")
        if self.terminated.dtype != bool or self.terminated.shape != (n,):
            found = f"{self.terminated.dtype} {self.terminated.shape}"
            raise ContractError(f"terminated: expected bool ({n},), found {found}")
        check_action_dist("next_action_dist", self.next_action_dist, (n, *k), ~self.terminated)
        check_action_dist("initial_action_dist", self.initial_action_dist, (m, *first_k))


def fqe(
    log: Trajectories,
    discount: float,
    regressor: Regressor | None = None,
    *,
    iterations: int = 100,
    bootstraps: int = 200,
    seed: int = 0,
) -> Estimate:
    """Return the discounted value of the evaluated policy from where the trajectories began: fitted Q evaluation.

    Le et al. (2019), algorithm 3: Q is fitted ``iterations`` times to reward + discount * expected Q of the next state.
    What is left of the rewards after as many steps is missing: discount ** iterations of the value, all of what comes
    later without discount. The default regressor is linear in (1, state) x (1, action), with an L2 penalty of 1e-3 a
    weight, exact for finite worlds told by one-hot features; ``boosted`` learns interactions, fitting iterations *
    (bootstraps + 1) times, with n K (s + a) numbers in memory. Intervals are percentiles of refitted resamples of
    trajectories (Hao et al. 2021); they know nothing of what the regressor cannot express; without bootstraps they are
    nan.

    Raises ``ContractError`` where discount is not from 0 to 1, ``TrainingError`` where Q runs away.
    """
    if not 0 <= discount <= 1:
        raise ContractError(f"discount: expected 0 to 1, found {discount}")
    solve = _linear_fqe(log, discount, iterations) if regressor is None else _fqe(log, discount, iterations, regressor)
    m = len(log.initial_state)
    weights = [np.ones((1, m)), *resamples(m, bootstraps, seed)]
    value, *resampled = (solve(weight) for chunk in weights for weight in chunk if weight.any())
    if not np.isfinite([value, *resampled]).all():
        raise TrainingError(f"fqe: Q runs away within {iterations} iterations; expected a smaller discount or boosted")
    low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))


def boosted(features: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fit LightGBM, 30 small trees; a ``Regressor``."""
    import lightgbm

    settings = {"objective": "l2", "num_leaves": 8, "learning_rate": 0.2, "num_threads": 1, "verbose": -1, "seed": 0}
    data = lightgbm.Dataset(features, target, weight=weight)
    found = lightgbm.train({**settings, "deterministic": True}, data, num_boost_round=30)
    return lambda features: np.asarray(found.predict(features, num_threads=1))


def _linear_fqe(log: Trajectories, discount: float, iterations: int) -> Callable[[np.ndarray], float]:
    """Return the value as a function of the weights (m,) of trajectories."""

    def design(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        state, action = (np.hstack([np.ones((len(x), 1)), x]) for x in (state, action))
        return (state[:, :, None] * action[:, None, :]).reshape(len(state), -1)

    def expected(state: np.ndarray, actions: np.ndarray, action_dist: np.ndarray) -> np.ndarray:
        return design(state, np.einsum("nk,nka->na", action_dist, actions))

    x = design(log.state, log.action)  # (n, d)
    follows = discount * expected(log.next_state, log.next_actions, log.next_action_dist) * ~log.terminated[:, None]
    both = np.hstack([x, follows, log.reward[:, None]])
    initial = expected(log.initial_state, log.initial_actions, log.initial_action_dist)
    d = x.shape[1]

    def solve(weight: np.ndarray) -> float:
        moments = x.T @ (weight[log.trajectory, None] * both)  # (d, 2 d + 1)
        step = np.linalg.solve(moments[:, :d] + 1e-3 * np.eye(d), moments[:, d:])
        coefficients = step[:, d]
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(iterations - 1):
                coefficients = step[:, d] + step[:, :d] @ coefficients
            return float(weight @ (initial @ coefficients) / weight.sum())

    return solve


def _fqe(log: Trajectories, discount: float, iterations: int, regressor: Regressor) -> Callable[[np.ndarray], float]:
    """Return the value as a function of the weights (m,) of trajectories."""

    def pairs(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.concatenate([np.repeat(state[:, None], actions.shape[1], 1), actions], 2).reshape(-1, width)

    width = log.state.shape[1] + log.action.shape[1]
    x, follows = np.hstack([log.state, log.action]), pairs(log.next_state, log.next_actions)
    initial = pairs(log.initial_state, log.initial_actions)
    going = discount * log.next_action_dist * ~log.terminated[:, None]

    def solve(weight: np.ndarray) -> float:
        of_rows = weight[log.trajectory]
        seen = of_rows > 0
        q = regressor(x[seen], log.reward[seen], of_rows[seen])
        for _ in range(iterations - 1):
            target = log.reward + (going * q(follows).reshape(going.shape)).sum(1)
            q = regressor(x[seen], target[seen], of_rows[seen])
        values = (log.initial_action_dist * q(initial).reshape(log.initial_action_dist.shape)).sum(1)
        return float(weight @ values / weight.sum())

    return solve
