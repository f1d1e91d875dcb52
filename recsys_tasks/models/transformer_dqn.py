"""``transformer_dqn``: the third stage, an agent that puts the first of the ranker's lists into another order.

It practises in a simulated shop (``simulation.shop``, fitted to the validation window) with three in five of the
customers, then learns on from what these really did (``Agent.fine_tune``). One in five chooses how much its Q weighs
beside the ranker's score, as far as nothing is lost of what they really did; one in five judges: the reward of an
episode beside that of the ranker's order, of a supervised control and of chance is reported, and the gate reads it. The
chance of an answer is assumed, not known, so the gate reads the least sure gain of three such assumptions.

Deviation from the simulated shop: there the state follows what customers answer; a list is made before anybody has
seen it, so its order is that of Q in the first slot of a visit.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.curves import plot_practice, plot_q_values
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.metrics import bootstrap
from recsys_tasks.models import base
from recsys_tasks.models.base import Material, Model, top_k
from recsys_tasks.models.features import Rhythm
from recsys_tasks.models.sasrec import last_events
from recsys_tasks.models.trace import Said, Telling
from recsys_tasks.simulation.agent import Agent, AgentConfig, play_each
from recsys_tasks.simulation.replay import Log, Observation
from recsys_tasks.simulation.shop import FEATURES, ShopVectorEnv, list_features
from recsys_tasks.simulation.validity import validity
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import World, fit_world
from recsys_tasks.snapshot import DAY, Catalog, Interactions

log = logging.getLogger(__name__)

PARTS = 5
"""Of the customers: one judges, one chooses how much Q weighs, the others are practised with."""
ELSEWISE = (0.5, 1.5)
"""Times the assumed chance of an answer: a gain must show with these too."""
MAX_PAIRS = 300_000
"""From which each of the rankers learns that order lists to practise on."""
VECTORS = ("sasrec", "two_tower")
"""Sources whose item vectors the agent reads, the first that is there; else those of the texts."""

Order = Callable[[Observation], np.ndarray]
"""From observations to (n, C), the higher the better; -inf for what may not be chosen."""


class TransformerDQNConfig(base.Config):
    """Configuration of ``transformer_dqn``."""

    candidates: int = 50
    """of the ranker's list, which are put into another order"""
    history: int = 30
    """newest events that are looked at"""
    steps: int = 200_000
    """slots filled in the simulated shop"""
    environments: int = 64
    """customers practised with at a time"""
    slots: int = 10
    """of a visit, at most"""
    visits: int = 3
    """of an episode, at most"""
    reward: Literal["weights", "revenue"] = "weights"
    """the shop file's weights of events, or the price of what is bought"""
    episodes: int = 2_000
    """played by each policy to be judged, at least"""
    weights: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    """of Q beside the supervised score, both standardised within a list: tried, the most careful first"""
    response: float = 0.1
    """assumed chance that an item such as customers choose for themselves is answered (``simulation.world``)"""
    agent: AgentConfig = AgentConfig()


class TransformerDQN(Model):
    """Reads the ranker, and where the ranker says nothing says nothing."""

    name = "transformer_dqn"
    Config = TransformerDQNConfig
    view = "all"
    gated = True

    def __init__(self, config: TransformerDQNConfig | None = None, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.agent_: Agent | None = None
        self.weight_ = 0.0
        self.control_: tuple[Agent, float] | None = None
        """The supervised control and its weight, after learning; nothing is served from it."""
        self._practice: tuple[World, Visits, Observation] | None = None
        """Of the night it was trained in, for pictures: where it practised, the log, what customers saw."""

    def refit(self, material: Material) -> "TransformerDQN":
        """Return the same agent over a newly trained ranker."""
        again = TransformerDQN(self.config, self.seed)
        again.agent_, again.weight_, again.price_ = self.agent_, self.weight_, self.price_
        again.reported = self.reported
        return again.fit(material)

    @property
    def witnesses(self) -> Mapping[str, Model]:
        """What the ranker reads."""
        return self._supervised.sources_

    @property
    def _supervised(self) -> Model:
        return next(iter(self.sources_.values()))

    def _fit(self, material: Material) -> None:
        if len(material.sources) != 1:
            found = ", ".join(material.sources) or "none"
            raise TrainingError(
                f"{self.name}: expected one ranker to re-order, found {found}; add ranker to the models"
            )
        self.sources_ = dict(material.sources)
        if material.validation:
            self._learn(material)
        elif self.agent_ is None:
            raise TrainingError(f"{self.name}: without a validation window there is nothing to learn from")

    def _learn(self, material: Material) -> None:
        assert material.validation is not None
        if material.visits is None:
            raise TrainingError(f"{self.name}: expected the log as visits, found none")
        config, window = self.config, material.validation["all"]
        visits = material.visits()
        span = (window.past.as_of, window.end)
        try:
            world = fit_world(visits, material.catalog, *span, response=config.response, seed=self.seed)
        except ContractError as error:
            raise TrainingError(f"{self.name}: no shop to practise in: {error}") from error
        self.price_ = np.nan_to_num(world.price, nan=-1)  # NaN is what learning must not end in
        log.info("%s: a simulated shop of %d customers", self.name, world.n_customers)
        items, scores = self._lists(material, window.past, world)
        lists = {"candidates": items, "scores": scores, "reward": config.reward, "history": config.history}

        def shop(customers: np.ndarray, number: int | None = None, of: World = world) -> ShopVectorEnv:
            """One environment a customer, or so many; what a step earns is told as its expectation."""
            return ShopVectorEnv(
                number or len(customers),
                world=of,
                customers=customers,
                slots=config.slots,
                visits=config.visits,
                expected=True,
                **lists,
            )

        judges, choosers = (np.flatnonzero(world.user % PARTS == part) for part in (0, 1))
        pupils = np.flatnonzero(world.user % PARTS > 1)
        if not (len(pupils) and len(choosers) and len(judges)):
            raise TrainingError(
                f"{self.name}: {world.n_customers} customers are too few to learn from and be judged by"
            )
        logged = shop(pupils).logged(visits)
        self._practice = (world, visits, logged.state)
        agent, control = (self._agent(material) for _ in range(2))
        agent.train(shop(pupils, config.environments), config.steps).fine_tune(logged)
        control.fit_supervised(logged)
        known = shop(choosers).logged(visits)
        policies = {
            name: self._chosen(name, one, shop(choosers), known)
            for name, one in (("agent", agent), ("control", control))
        }
        self.agent_, self.weight_, self.control_ = agent, policies["agent"][1], (control, policies["control"][1])
        chance = np.random.default_rng(self.seed)
        orders: dict[str, Order] = {
            **{name: order for name, (order, _) in policies.items()},
            "supervised": ordered(agent, 0.0),
            "random": lambda seen: np.where(seen["action_mask"] > 0, chance.random(seen["action_mask"].shape), -np.inf),
        }
        rewards = {name: self._played(shop(judges), order) for name, order in orders.items()}
        lifts = [
            self._played(shop(judges, of=other), orders["agent"])
            - self._played(shop(judges, of=other), orders["supervised"])
            for other in (world.assuming(share * config.response, self.seed) for share in ELSEWISE)
        ]
        self.reported = _report(rewards, lifts, self.weight_)
        for name, earned in rewards.items():
            log.info("%s: simulated reward of an episode, %s: %.4f", self.name, name, earned.mean())

    def _chosen(self, name: str, agent: Agent, shop: ShopVectorEnv, logged: Log) -> tuple[Order, float]:
        """Return the order, and the weight of Q in it, that earns most in simulation and loses nothing in the log.

        There a decision counts 1 / log2(rank + 1), as in ndcg. Where every weight loses, it is the most careful one.
        """
        weights = (0.0, *self.config.weights)
        tried = {weight: ordered(agent, weight) for weight in weights}
        found = {weight: _found(order, logged) for weight, order in tried.items()}
        earned = {weight: self._played(shop, order).mean() for weight, order in tried.items()}
        for weight in weights:
            told = (self.name, name, weight, earned[weight], found[weight])
            log.info("%s: %s, weight of Q %g: simulated reward %.4f, logged decisions %.4f", *told)
        able = [weight for weight in weights[1:] if found[weight] >= found[0.0]]
        best = max(able, key=lambda weight: earned[weight]) if able else weights[1]
        return tried[best], best

    def _played(self, shop: ShopVectorEnv, order: Order) -> np.ndarray:
        repeats = -(-self.config.episodes // shop.num_envs)
        return play_each(shop, lambda seen: order(seen).argmax(1), repeats, self.seed + 1)

    def _agent(self, material: Material) -> Agent:
        witnesses = self.witnesses
        vectors = next((witnesses[name].item_vectors() for name in VECTORS if name in witnesses), material.text_vectors)
        assert vectors is not None
        return Agent(vectors, len(EVENT_TYPES), len(FEATURES), self.config.history, self.config.agent, self.seed)

    def _lists(self, material: Material, past: Interactions, world: World) -> tuple[np.ndarray, np.ndarray]:
        """Return (n_customers, C) what a ranker would show at the window's start, and its scores.

        The ranker has learned from the window, so its own lists would look better than they are: each half of the
        customers gets lists of one that has learned from the other half. In each, every other customer gets what was
        never bought before, so that one agent serves both views.
        """
        candidates, c = material.catalog.candidates(past.as_of), self.config.candidates
        items = np.full((world.n_customers, c), -1, np.int32)
        scores = np.full((world.n_customers, c), -np.inf, np.float32)
        for half in (0, 1):
            ranker = self._of_others(material, half)
            for view in (0, 1):
                rows = np.flatnonzero(world.user % 4 == half + 2 * view)
                if len(rows):
                    ranked = ranker.recommend(past, world.user[rows], c, candidates, exclude_seen=view == 1)
                    items[rows, : ranked.items.shape[1]] = np.where(ranked.filled, -1, ranked.items)
                    scores[rows, : ranked.items.shape[1]] = ranked.scores
        return items, scores

    def _of_others(self, material: Material, half: int) -> Model:
        """Return a ranker that has learned from the validation window of the other half of the customers alone."""
        assert material.validation is not None
        taught = {}
        for view, window in material.validation.items():
            others = window.users % 2 != half
            taught[view] = replace(window, users=window.users[others], items=window.items[others])
        config = self._supervised.config.model_copy(update={"earlier_windows": 0, "max_pairs": MAX_PAIRS})
        learned = replace(material, validation=taught, sources=self._supervised.sources_)
        return type(self._supervised)(config, self.seed).fit(learned)

    def save(self, folder: Path, catalog: Catalog) -> None:
        """Write, beside the arrays, the agent for LiteRT, and after learning how it went and what the shop is like."""
        super().save(folder, catalog)
        assert self.agent_ is not None
        self.agent_.export(folder / "agent.tflite", self.config.candidates)
        if self._practice is None:
            return
        world, visits, seen = self._practice
        plot_practice(self.agent_.curve, "practice in the simulated shop", folder / "practice.png")
        plot_q_values(self.agent_.q_values(seen), "Q of what customers saw", folder / "q_values.png")
        end = int(visits.time.max(initial=0)) + 1
        try:
            validity(world, visits, catalog, end).write(folder)
        except ContractError as error:
            log.warning("%s: no report on the simulated shop: %s", self.name, error)

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        everything = np.ones(histories.n_items, bool)
        scorer = self._sourced_scorer(histories, everything, exclude_seen=False)
        return lambda users: scorer(users)[0]

    def _sourced_scorer(self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool) -> base.Scorer:
        ask = self._supervised._sourced_scorer(histories, candidates, exclude_seen)
        observe, agent = self._observer(histories), self.agent_
        assert agent is not None

        def score(users: np.ndarray) -> tuple[np.ndarray, np.ndarray, Telling]:
            scores, origin, telling = ask(users)
            items, value = top_k(scores, self.config.candidates)  # (n, C)
            seen = observe(users, items, value)
            q = agent.q_values(seen)
            order = np.argsort(-blended(seen, q, self.weight_), axis=1, kind="stable")
            row, place = np.nonzero(items >= 0)  # what there is stands first, in both orders
            items, q = (np.take_along_axis(found, order, 1) for found in (items, q))
            scores[row, items[row, place]] = value[row, place]
            return scores, origin, lambda: {**telling(), self.name: Said.of(items, q)}

        return score

    def _observer(self, histories: Interactions) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Observation]:
        """Return a function from users (n,), candidates and scores (n, C) to what the agent sees before a visit."""
        bought = Rhythm.of(histories.item_idx, histories.n_items, histories, histories.is_target)
        price = np.where(self.price_ >= 0, self.price_, np.nan)
        popularity = np.bincount(histories.item_idx, minlength=histories.n_items)
        today = histories.as_of / DAY

        def observe(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> Observation:
            events = last_events(histories, users, self.config.history)
            known = bought.ask(np.repeat(users, items.shape[1]), items.ravel(), today)
            days = np.where(known["days"] > 0, known["recency"], np.inf).reshape(items.shape)
            times = known["days"].reshape(items.shape)
            return {
                "history": np.where(events < 0, 0, histories.item_idx[events] + 1).astype(np.int32),
                "event": np.where(events < 0, 0, histories.kind[events] + 1).astype(np.int32),
                "candidates": items + np.int32(1),
                "features": list_features(items, scores, times, days, price, popularity),
                "action_mask": (items >= 0).astype(np.int8),
            }

        return observe

    def _state(self) -> dict[str, np.ndarray]:
        assert self.agent_ is not None
        own = {"price": self.price_, "weight": np.array(self.weight_)}
        return {**own, **{f"agent_{name}": array for name, array in self.agent_.state().items()}}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.price_, self.weight_ = state["price"], float(state["weight"])
        learned = {name[6:]: array for name, array in state.items() if name.startswith("agent_")}
        shape = {"n_events": len(EVENT_TYPES), "n_features": len(FEATURES), "history": self.config.history}
        described: dict[str, Any] = {"config": self.config.agent.model_dump(), "seed": self.seed, "shape": shape}
        self.agent_ = Agent.restore({**described, "curve": []}, learned)


def ordered(agent: Agent, weight: float) -> Order:
    """Return the order by supervised score and Q, both standardised within a list, Q with that weight."""
    return lambda seen: blended(seen, agent.q_values(seen) if weight else None, weight)


def blended(seen: Observation, q: np.ndarray | None, weight: float) -> np.ndarray:
    """Return that order of (n, C) candidates whose Q is given; None where it has no weight."""
    allowed = seen["action_mask"] > 0
    score = _standardised(seen["features"][..., FEATURES.index("score")], allowed)
    if q is not None:
        score = score + weight * _standardised(np.where(allowed, q, 0), allowed)
    return np.where(allowed, score, -np.inf)


def _standardised(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return (n, C) values less their mean over what is allowed in a row, over its standard deviation."""
    n = np.maximum(allowed.sum(1, keepdims=True), 1)
    values = np.where(allowed, values, 0)
    centred = np.where(allowed, values - values.sum(1, keepdims=True) / n, 0)
    return centred / np.maximum(np.sqrt((centred**2).sum(1, keepdims=True) / n), 1e-9)


def _found(order: Order, logged: Log) -> float:
    """Return the mean of 1 / log2(rank + 1) of logged decisions, by what they earned."""
    score = order(logged.state)
    rank = (score > np.take_along_axis(score, logged.action[:, None], 1)).sum(1) + 1
    return float(np.average(1 / np.log2(rank + 1), weights=logged.reward))


def _report(rewards: Mapping[str, np.ndarray], lifts: Sequence[np.ndarray], weight: float) -> dict[str, float]:
    """Return the mean reward of an episode by policy, and what the agent earns over others, with 95 % intervals.

    ``rewards`` are (n_customers,) a policy; the customers are the units. ``lifts`` are the agent's over the supervised
    order in shops of other assumptions: what is reported is the lift that is least sure to be one.
    """
    lifts = [rewards["agent"] - rewards["supervised"], *lifts]
    least = min(lifts, key=lambda lift: bootstrap({"": lift})[""][0])
    compared = {"lift": least, "lift over control": rewards["agent"] - rewards["control"]}
    values = {f"simulated/{name}": value for name, value in {**rewards, **compared}.items()}
    found = {"weight of Q": weight}
    for name, (low, high) in bootstrap(values).items():
        found |= {name: float(values[name].mean()), f"{name} low": low, f"{name} high": high}
    return found
