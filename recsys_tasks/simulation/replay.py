"""Memory of a learning agent: each state once, n-step transitions by pointers from a state to the one after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from recsys_tasks.errors import ContractError

Observation = Mapping[str, np.ndarray]
"""What a shop shows, with a leading batch: ``history`` and ``event`` (n, H) int32, ``candidates`` (n, C) int32,
``features`` (n, C, F) float32, ``action_mask`` (n, C) int8. Item and event numbers begin with 1; 0 is none."""

ENDS, STOPS, UNKNOWN = -1, -2, -3
"""In place of the state after one: the world ended there; nothing was done there; what follows is not yet known."""


@dataclass(frozen=True)
class Log:
    """Logged decisions, n rows, those of an episode beside each other in their order. Raises ``ContractError``."""

    state: Observation
    action: np.ndarray
    """(n,) int, the candidate that was chosen"""
    reward: np.ndarray
    """(n,)"""
    episode: np.ndarray
    """(n,) int, not descending"""
    terminated: np.ndarray
    """(n,) bool: nothing follows. An episode whose last row is not stopped being watched, for all that is known"""

    def __post_init__(self) -> None:  # noqa: D105
        n = len(self.action)
        for name, array in {
            **self.state,
            "reward": self.reward,
            "episode": self.episode,
            "end": self.terminated,
        }.items():
            if len(array) != n:
                raise ContractError(f"log: expected {n} rows of {name}, as of action, found {len(array)}")
        if (np.diff(self.episode) < 0).any():
            raise ContractError("log: expected episodes in ascending order")
        if self.terminated[:-1][np.diff(self.episode) == 0].any():
            raise ContractError("log: expected nothing after a terminated row of an episode")
        legal = np.take_along_axis(self.state["action_mask"], self.action[:, None].astype(np.int64), 1)
        if not legal.all():
            raise ContractError("log: expected actions that the mask allows")


@dataclass(frozen=True)
class Transitions:
    """n-step transitions: what was done in a state, and what came of it."""

    state: Observation
    action: np.ndarray
    """(n,) int32"""
    reward: np.ndarray
    """(n,) float32, discounted sum of up to n rewards"""
    discount: np.ndarray
    """(n,) float32, what the value of the next state counts: discount ** steps, 0 where the world ended before it"""
    next_state: Observation


class Replay:
    """Ring of the newest states of many environments side by side.

    A state that an episode was cut off in (``truncated``) is kept too: its value counts, though nothing was done in it.
    States are written in the order of time, so what follows a state is overwritten after it.
    """

    def __init__(self, capacity: int, n_steps: int, discount: float) -> None:
        self.capacity, self.n_steps, self.discount = capacity, n_steps, discount
        self.written = 0
        self.states: dict[str, np.ndarray] = {}
        self.action = np.zeros(capacity, np.int32)
        self.reward = np.zeros(capacity, np.float32)
        self.after = np.full(capacity, UNKNOWN, np.int64)  # number of the next state, counted from the first written
        self.now = np.empty(0, np.int64)  # numbers of the states that the environments are in

    def __len__(self) -> int:
        """Return the states held."""
        return min(self.written, self.capacity)

    def begin(self, observation: Observation) -> None:
        """Take the first states of all environments; what they did before ends in nothing known."""
        if len(observation["history"]) * (self.n_steps + 1) > self.capacity:
            raise ContractError(f"replay: expected room for {self.n_steps + 1} states of each environment")
        self.now = self._write(observation)

    def add(
        self,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        observation: Observation,
        final: np.ndarray | None = None,
    ) -> None:
        """Take a step of all environments, of SAME_STEP autoreset.

        ``observation`` is where they are now, after an end the first of a new episode; ``final`` (n,) object are the
        last observations of episodes that ended, dicts without a batch, None elsewhere.
        """
        place = self.now % self.capacity
        self.action[place], self.reward[place] = action, reward
        cut = np.flatnonzero(truncated & ~terminated)
        after = np.full(len(place), ENDS)
        if len(cut):
            assert final is not None
            last = {name: np.stack([final[n][name] for n in cut]) for name in observation}
            after[cut] = self._write(last, STOPS)
        self.now = self._write(observation)
        going = ~(terminated | truncated)
        after[going] = self.now[going]
        self.after[place] = after

    @classmethod
    def of(cls, log: Log, n_steps: int, discount: float) -> Self:
        """Return all of a log. Where an episode stops being watched, its last row is only where the one before led."""
        replay = cls(len(log.action), n_steps, discount)
        replay._write(log.state)
        replay.action[:], replay.reward[:] = log.action, log.reward
        last = np.append(np.diff(log.episode) != 0, True)
        replay.after = np.where(last, np.where(log.terminated, ENDS, STOPS), np.arange(1, len(last) + 1))
        return replay

    def sample(self, size: int, rng: np.random.Generator) -> Transitions:
        """Return transitions drawn uniformly, with repetition, from those of which all is known.

        Raises ``ContractError`` where there is none.
        """
        drawn = np.empty(0, np.int64)
        for _ in range(100):
            found = rng.integers(self.written - len(self), self.written, 2 * size)
            drawn = np.append(drawn, found[self._follow(found)[3]])[:size]
            if len(drawn) == size:
                return self.at(drawn)
        raise ContractError("replay: expected transitions of which all is known, found hardly any")

    def complete(self) -> np.ndarray:
        """Return the numbers of the states whose transitions are known, oldest first."""
        held = np.arange(self.written - len(self), self.written)
        return held[self._follow(held)[3]]

    def at(self, numbers: np.ndarray) -> Transitions:
        """Return the transitions from states, by their numbers, counted from the first written."""
        last, reward, discount, _ = self._follow(numbers)
        state, next_state = (self._read(places % self.capacity) for places in (numbers, last))
        return Transitions(state, self.action[numbers % self.capacity], reward, discount, next_state)

    def _follow(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the states that up to n steps lead to, the rewards on the way, the last discounts, and what is known.

        Where the world ended the state is the last one before; its discount is 0.
        """
        at = numbers.copy()
        reward, discount = np.zeros(len(at), np.float32), np.ones(len(at), np.float32)
        going = known = np.ones(len(at), bool)
        for step in range(self.n_steps):
            after = self.after[at % self.capacity]
            unknown = (after == UNKNOWN) | ((after == STOPS) & (step == 0))
            known = known & ~(going & unknown)
            going = going & (after != STOPS) & (after != UNKNOWN)
            reward += np.where(going, discount * self.reward[at % self.capacity], 0).astype(np.float32)
            discount *= np.where(going, np.where(after == ENDS, 0, self.discount), 1).astype(np.float32)
            going = going & (after != ENDS)
            at = np.where(going, after, at)
        return at, reward, discount, known

    def _write(self, observation: Observation, after: int = UNKNOWN) -> np.ndarray:
        """Return the numbers of the states written."""
        if not self.states:
            self.states = {
                name: np.zeros((self.capacity, *array.shape[1:]), _kept(array)) for name, array in observation.items()
            }
        numbers = np.arange(self.written, self.written + len(observation["history"]))
        place = numbers % self.capacity
        for name, array in observation.items():
            self.states[name][place] = array
        self.after[place] = after
        self.written += len(numbers)
        return numbers

    def _read(self, place: np.ndarray) -> dict[str, Any]:
        found = {name: array[place] for name, array in self.states.items()}
        return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in found.items()}


def _kept(array: np.ndarray) -> Any:
    """Return the type that an array is kept in: half the bytes for what is of order 1."""
    return np.float16 if array.dtype.kind == "f" else array.dtype
