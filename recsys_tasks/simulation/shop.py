"""``nightcart/Shop-v0``: a shop in which what is shown next can be practised, on customers of a fitted ``World``.

An episode is a customer's next few visits. In each slot of a visit one of the customer's candidates is shown; the
customer answers it with an event or not, and stays or leaves; between visits days pass, or the customer never comes
back. Letters: B environments, C candidates, H events of history, F features.

Observation
    ``history`` (H,) item_idx + 1 of the newest events, oldest first, right-aligned, 0 for none; ``event`` (H,) their
    place in ``contract.EVENT_TYPES`` + 1; ``candidates`` (C,) item_idx + 1; ``features`` (C, F) of order 1, see
    ``FEATURES``; ``action_mask`` (C,) 1 where there is an item that this visit has not shown.
Action
    Which candidate takes the slot. One that is masked shows nothing: the slot has no answer.
Reward
    The shop file's weight of the event, or with ``reward="revenue"`` the price of what is bought.
Ends
    ``terminated``: the customer left for good. ``truncated``: the visits of the episode are over, and the customer
    would have come back.

The customer answers with probability 1 - exp(-scale * preference * rhythm * satiation), see ``world``.
"""

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.world import NEWEST, World, bucket

ID = "nightcart/Shop-v0"
FEATURES = (
    "score",  # of the supervised list, from 0 to 1 within it
    "rank",  # 1 / log2(rank + 1), rank from 1
    "price",  # logarithm, standardised over the catalogue; 0 where unknown
    "popularity",  # logarithm of 1 + events before the world began, over that of the most popular item
    "bought",  # logarithm of 1 + times
    "bought_days",  # logarithm of 1 + days since, over that of a year; 0 for never
    "bought_ever",
    "department",  # logarithm of 1 + items of its department answered in this visit
    "slot",  # share of the visit's slots that are over
    "visit",  # share of the episode's visits that are over
)
_FEATURE = {name: place for place, name in enumerate(FEATURES)}
_LIMIT = 10.0
"""Of every feature, either way."""


class ShopVectorEnv(VectorEnv):
    """B customers at a time, in NumPy. An environment that ends begins anew in the same step, as in SyncVectorEnv."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        world: World,
        candidates: np.ndarray,
        scores: np.ndarray,
        customers: np.ndarray | None = None,
        slots: int = 10,
        visits: int = 3,
        history: int = 30,
        reward: Literal["weights", "revenue"] = "weights",
    ) -> None:
        """Take the lists to choose from.

        Parameters
        ----------
        num_envs
            B.
        world
            The customers.
        candidates, scores
            (n_customers, C) int32 item_idx or -1, best first as the supervised list has them, and its scores.
        customers
            Rows of the world that episodes are of; all where none are given.
        slots, visits
            Slots of a visit, visits of an episode.
        history
            H, at most ``world.NEWEST``.
        reward
            What a step earns.

        Raises
        ------
        ContractError
            Shapes or values that do not fit the world.

        """
        if candidates.ndim != 2 or candidates.shape != scores.shape or len(candidates) != world.n_customers:
            found = f"candidates {candidates.shape}, scores {scores.shape}"
            raise ContractError(f"expected candidates and scores ({world.n_customers}, C), found {found}")
        if not (candidates.size and candidates.min() >= -1 and candidates.max() < world.n_items):
            raise ContractError(f"candidates: expected item_idx below {world.n_items}, or -1, and one column at least")
        if not 1 <= history <= NEWEST or slots < 1 or visits < 1 or num_envs < 1:
            raise ContractError(f"history {history}: expected 1 to {NEWEST}; slots, visits, num_envs: 1 at least")
        if reward not in ("weights", "revenue"):
            raise ContractError(f"reward {reward!r}: expected weights or revenue")
        self.world, self.slots, self.visits, self.reward = world, slots, visits, reward
        self.customers = np.arange(world.n_customers) if customers is None else np.asarray(customers)
        if not len(self.customers) or self.customers.min() < 0 or self.customers.max() >= world.n_customers:
            raise ContractError(
                f"customers: expected rows of the world, from 0 to {world.n_customers - 1}, found others"
            )
        n, c, h = num_envs, candidates.shape[1], history
        self.num_envs, self.render_mode = num_envs, None
        self.single_action_space = spaces.Discrete(c)
        self.action_space = batch_space(self.single_action_space, n)
        self.single_observation_space = spaces.Dict(
            {
                "history": spaces.Box(0, world.n_items, (h,), np.int32),
                "event": spaces.Box(0, len(EVENT_TYPES), (h,), np.int32),
                "candidates": spaces.Box(0, world.n_items, (c,), np.int32),
                "features": spaces.Box(-_LIMIT, _LIMIT, (c, len(FEATURES)), np.float32),
                "action_mask": spaces.Box(0, 1, (c,), np.int8),
            }
        )
        self.observation_space = batch_space(self.single_observation_space, n)
        # what is known of each list, for all customers
        items = np.ascontiguousarray(candidates, np.int32)
        self._lists, self._none = items, items < 0
        self._preference = world.scale * world.preference(np.arange(world.n_customers), items)  # (n_customers, C)
        times, self._bought_days = world.bought(np.arange(world.n_customers), items)
        self._features = list_features(items, scores, times, self._bought_days, world.price, world.known_popularity)
        self._target = EVENT_TYPES.index(world.target)
        # the state, a row an environment
        self._customer, self._slot, self._visit = (np.zeros(n, np.intp) for _ in range(3))
        self._answers, self._kind, self._bought_now = np.zeros(n, np.intp), np.zeros(n, np.intp), np.zeros(n, bool)
        self._day = np.zeros(n)  # since the world began
        self._history, self._event = np.zeros((n, h), np.int32), np.zeros((n, h), np.int32)
        self._items, self._departments = np.zeros((n, c), np.int32), np.zeros((n, c), np.int32)
        self._last = np.full((n, c), np.inf)  # day of the newest target event, negative before the world began
        self._met = np.zeros((n, c), np.intp)
        self._chance, self._shown = np.zeros((n, c)), np.zeros((n, c), bool)
        self._seen = np.zeros((n, c, len(FEATURES)), np.float32)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode in every environment; ``options={"customers": (B,) rows of the world}`` says of whom."""
        super().reset(seed=seed if seed is None or isinstance(seed, int) else seed[0], options=options)
        self._begin(np.arange(self.num_envs), (options or {}).get("customers"))
        told = np.ones(self.num_envs, bool)
        return self._observation(), {"customer": self._customer.copy(), "_customer": told}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Show one candidate to each customer; infos are in the form of SyncVectorEnv."""
        rewards, terminated, truncated, info = self._act(np.asarray(actions))
        over = terminated | truncated
        observation = self._observation()
        infos: dict[str, Any] = {}
        if over.any():
            ended = np.flatnonzero(over)
            infos["final_obs"] = np.full(self.num_envs, None, object)
            for row in ended:
                infos["final_obs"][row] = {name: part[row].copy() for name, part in observation.items()}
            infos["final_info"] = _masked(info, over)
            infos["_final_obs"], infos["_final_info"] = over.copy(), over.copy()
            self._begin(ended)
            for name, part in self._observation(ended).items():
                observation[name][ended] = part
        if not over.all():
            infos |= _masked(info, ~over)
        everyone = np.ones(self.num_envs, bool)
        infos |= {"customer": self._customer.copy(), "_customer": everyone}  # of the new episodes as well
        return observation, rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Return (B, C) bool: which candidates may be chosen now."""
        return ~self._shown

    def _begin(self, rows: np.ndarray, customers: np.ndarray | None = None) -> None:
        """Start an episode in some environments."""
        drawn = self.customers[self.np_random.integers(len(self.customers), size=len(rows))]
        customer = drawn if customers is None else np.asarray(customers)
        world, h = self.world, self._history.shape[1]
        self._customer[rows] = customer
        self._visit[rows], self._day[rows] = 0, 0
        self._history[rows] = world.history_item[customer, -h:]
        self._event[rows] = world.history_kind[customer, -h:]
        self._items[rows] = self._lists[customer]
        self._departments[rows] = world.department[self._lists[customer]]
        self._last[rows] = -self._bought_days[customer]
        self._seen[rows] = self._features[customer]
        self._enter(rows)

    def _enter(self, rows: np.ndarray) -> None:
        """Start a visit."""
        days = self._day[rows, None] - self._last[rows]
        self._chance[rows] = self._preference[self._customer[rows]] * self.world.rhythm[bucket(days)]
        self._shown[rows] = self._none[self._customer[rows]]
        self._slot[rows], self._answers[rows], self._kind[rows], self._bought_now[rows] = 0, 0, 0, False
        self._met[rows] = 0
        seen = self._seen
        seen[rows, :, _FEATURE["bought_days"]], seen[rows, :, _FEATURE["bought_ever"]] = _of_days(days)
        seen[rows, :, _FEATURE["department"]] = 0
        seen[rows, :, _FEATURE["slot"]] = 0
        seen[rows, :, _FEATURE["visit"]] = self._visit[rows, None] / self.visits

    def _act(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Show, be answered, stay or leave. The state becomes that of the next slot, unless the episode is over."""
        world, every = self.world, np.arange(self.num_envs)
        answer, kind, stay, back, hour, minute = self.np_random.random((self.num_envs, 6)).T
        shown = ~self._shown[every, action]
        self._shown[every, action] = True
        item, department = self._items[every, action], self._departments[every, action]
        chance = self._chance[every, action] * world.satiation[np.minimum(self._met[every, action], 3)]
        answered = shown & (answer < -np.expm1(-chance))
        event = np.where(answered, (kind[:, None] >= world.kind_steps[self._kind, department]).sum(1), -1)
        bought = event == self._target
        if self.reward == "weights":
            rewards = np.where(answered, world.weights[event], 0).astype(np.float64)
        else:
            rewards = np.where(bought, np.nan_to_num(world.price[item]), 0).astype(np.float64)
        infos = {"event": event + 1, "bought": bought, "visit": self._visit.copy(), "slot": self._slot.copy()}
        infos["customer"] = self._customer.copy()
        self._slot += 1
        self._answers += answered
        self._bought_now |= bought
        self._kind = np.where(answered, event + 1, self._kind)
        now = np.flatnonzero(answered)
        self._history[now, :-1], self._history[now, -1] = self._history[now, 1:], item[now] + 1
        self._event[now, :-1], self._event[now, -1] = self._event[now, 1:], event[now] + 1
        self._met[now] += (self._departments[now] == department[now, None]) & (self._items[now] >= 0)
        self._seen[now, :, _FEATURE["department"]] = np.log1p(self._met[now])
        self._seen[:, :, _FEATURE["slot"]] = (self._slot / self.slots)[:, None]
        now = np.flatnonzero(bought)
        self._last[now, action[now]] = self._day[now]
        self._seen[now, action[now], _FEATURE["bought"]] = np.log1p(
            np.expm1(self._seen[now, action[now], _FEATURE["bought"]]) + 1
        )
        hazard = world.leave[np.clip(self._answers - 1, 0, len(world.leave) - 1)]
        leaves = (stay < np.where(answered, hazard, world.bored)) | (self._slot == self.slots)
        group = self._bought_now.astype(np.intp)
        terminated = leaves & (back >= world.returns[group])
        truncated = leaves & ~terminated & (self._visit + 1 == self.visits)
        again = np.flatnonzero(leaves & ~terminated & ~truncated)
        hours = (hour[again, None] >= world.gap_steps[group[again]]).sum(1)
        self._day[again] += (hours + minute[again]) / 24
        self._visit[again] += 1
        self._enter(again)
        return rewards, terminated, truncated, infos

    def _observation(self, rows: Any = slice(None)) -> dict[str, np.ndarray]:
        """Copies of the state, of the form of the space."""
        return {
            "history": self._history[rows].copy(),
            "event": self._event[rows].copy(),
            "candidates": self._items[rows] + np.int32(1),
            "features": self._seen[rows].copy(),
            "action_mask": (~self._shown[rows]).astype(np.int8),
        }


class ShopEnv(gym.Env):
    """One customer at a time: ``ShopVectorEnv`` with one environment that waits to be reset."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, **arguments: Any) -> None:
        """Take the arguments of ``ShopVectorEnv`` but ``num_envs``."""
        self._shop = ShopVectorEnv(1, **arguments)
        self.observation_space = self._shop.single_observation_space
        self.action_space = self._shop.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; ``options={"customers": (1,) row of the world}`` says of whom."""
        super().reset(seed=seed)
        self._shop.np_random = self.np_random
        self._shop._begin(np.arange(1), (options or {}).get("customers"))
        return self._first(self._shop._observation()), {"customer": int(self._shop._customer[0])}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Show one candidate."""
        rewards, terminated, truncated, infos = self._shop._act(np.array([int(action)]))
        info = {name: value[0].item() for name, value in infos.items()}
        observation = self._first(self._shop._observation())
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def action_masks(self) -> np.ndarray:
        """Return (C,) bool: which candidates may be chosen now."""
        return self._shop.action_masks()[0]

    @staticmethod
    def _first(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: part[0].copy() for name, part in batch.items()}


def list_features(
    items: np.ndarray,
    scores: np.ndarray,
    times: np.ndarray,
    days: np.ndarray,
    price: np.ndarray,
    popularity: np.ndarray,
) -> np.ndarray:
    """Return (n, C, F) float32, ``FEATURES`` as they are when an episode begins.

    Parameters
    ----------
    items, scores
        (n, C) item_idx or -1, best first, and what the supervised model gave them.
    times, days
        (n, C) how often the customer did the target event with the item, and how many days ago; inf for never.
    price, popularity
        (m,) of the catalogue; NaN where unknown, and number of events.

    """
    found = np.zeros((*items.shape, len(FEATURES)), np.float32)
    told = (items >= 0) & np.isfinite(scores)
    low = np.where(told, scores, np.inf).min(1, keepdims=True)
    high = np.where(told, scores, -np.inf).max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        found[..., _FEATURE["score"]] = np.where(told, (scores - low) / np.maximum(high - low, 1e-9), 0)
    found[..., _FEATURE["rank"]] = 1 / np.log2(np.arange(items.shape[1]) + 2)
    found[..., _FEATURE["price"]] = _standard(np.log1p(price))[items]
    found[..., _FEATURE["popularity"]] = (np.log1p(popularity) / np.log1p(max(popularity.max(), 1)))[items]
    found[..., _FEATURE["bought"]] = np.log1p(times)
    found[..., _FEATURE["bought_days"]], found[..., _FEATURE["bought_ever"]] = _of_days(days)
    found[items < 0] = 0
    return np.clip(found, -_LIMIT, _LIMIT)


def _of_days(days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ever = np.isfinite(days)
    return np.where(ever, np.log1p(np.where(ever, days, 0)) / np.log1p(365), 0), ever


def _masked(info: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    """Return infos of some environments, 0 for the others, and for each name which ones they are."""
    found: dict[str, Any] = {name: np.where(rows, part, np.zeros(1, part.dtype)) for name, part in info.items()}
    return found | {f"_{name}": rows.copy() for name in info}


def _standard(values: np.ndarray) -> np.ndarray:
    """Return values less their mean, over their standard deviation; 0 where unknown."""
    told = np.isfinite(values)
    known = values[told] if told.any() else np.zeros(1)
    return np.where(told, (values - known.mean()) / max(known.std(), 1e-9), 0)


if ID not in gym.registry:
    gym.register(ID, entry_point=f"{__name__}:ShopEnv", vector_entry_point=f"{__name__}:ShopVectorEnv")
