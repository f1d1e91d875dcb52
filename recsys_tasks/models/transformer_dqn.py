"""``transformer_dqn``: the third stage, an agent that puts the first of the ranker's lists into another order.

It practises in a simulated shop (``simulation.shop``, fitted to the validation window) with four in five of the
customers, then learns on from what these really did (``Agent.fine_tune``), and is judged by the others: its reward
beside that of the ranker's order, of a supervised control and of chance goes into the report, where the gate reads it.

Deviation from the simulated shop: there the state follows what customers answer; a list is made before anybody has
seen it, so its order is that of Q in the first slot of a visit.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.models import base
from recsys_tasks.models.base import Material, Model, top_k
from recsys_tasks.models.features import Rhythm
from recsys_tasks.models.sasrec import last_events
from recsys_tasks.simulation.agent import Agent, AgentConfig, play
from recsys_tasks.simulation.off_policy import Estimate
from recsys_tasks.simulation.replay import Observation
from recsys_tasks.simulation.shop import FEATURES, ShopVectorEnv, list_features
from recsys_tasks.simulation.world import World, fit_world
from recsys_tasks.snapshot import Interactions

log = logging.getLogger(__name__)

JUDGES = 5
"""One in so many customers is not practised with."""
VECTORS = ("sasrec", "two_tower")
"""Sources whose item vectors the agent reads, the first that is there; else those of the texts."""

Policy = Callable[[Observation], np.ndarray]


class TransformerDQNConfig(base.Config):
    """Configuration of ``transformer_dqn``."""

    candidates: int = 50
    """of the ranker's list, which are put into another order"""
    history: int = 30
    """newest events that are looked at"""
    steps: int = 60_000
    """slots filled in the simulated shop"""
    environments: int = 64
    """customers practised with at a time"""
    slots: int = 10
    """of a visit, at most"""
    visits: int = 3
    """of an episode, at most"""
    reward: Literal["weights", "revenue"] = "weights"
    """the shop file's weights of events, or the price of what is bought"""
    episodes: int = 4_000
    """played by each policy to be judged"""
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
        self.world_: World | None = None
        """Of the night it was trained in; not kept."""

    def refit(self, material: Material) -> "TransformerDQN":
        """Return the same agent over a newly trained ranker."""
        again = TransformerDQN(self.config, self.seed)
        again.agent_, again.price_, again.reported = self.agent_, self.price_, self.reported
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
        try:
            world = fit_world(
                visits, material.catalog, window.past.as_of, window.end, response=config.response, seed=self.seed
            )
        except ContractError as error:
            raise TrainingError(f"{self.name}: no shop to practise in: {error}") from error
        self.world_, self.price_ = world, np.nan_to_num(world.price, nan=-1)  # NaN is what learning must not end in
        log.info("%s: a simulated shop of %d customers", self.name, world.n_customers)
        items, scores = self._lists(material, window.past, world)
        judges = world.user % JUDGES == 0
        pupils, judges = (np.flatnonzero(who) for who in (~judges, judges))
        if not (len(pupils) and len(judges)):
            raise TrainingError(
                f"{self.name}: {world.n_customers} customers are too few to learn from and be judged by"
            )

        def shop(customers: np.ndarray, number: int) -> ShopVectorEnv:
            return ShopVectorEnv(
                number,
                world=world,
                candidates=items,
                scores=scores,
                customers=customers,
                slots=config.slots,
                visits=config.visits,
                history=config.history,
                reward=config.reward,
            )

        logged = shop(pupils, len(pupils)).logged(visits)
        agent, control = (self._agent(material) for _ in range(2))
        agent.train(shop(pupils, min(config.environments, len(pupils))), config.steps).fine_tune(logged)
        control.fit_supervised(logged)
        self.agent_ = agent
        chance = np.random.default_rng(self.seed)
        policies: dict[str, Policy] = {
            "agent": agent.act,
            "control": control.act,
            "supervised": lambda seen: seen["action_mask"].argmax(1),
            "random": lambda seen: (seen["action_mask"] * chance.random(seen["action_mask"].shape)).argmax(1),
        }
        judged = shop(judges, min(4 * config.environments, config.episodes))
        rewards = {name: play(judged, policy, config.episodes, self.seed + 1) for name, policy in policies.items()}
        self.reported = _report(rewards)
        for name, earned in rewards.items():
            log.info("%s: simulated reward of an episode, %s: %.4f", self.name, name, earned.mean())

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
        config = self._supervised.config.model_copy(update={"earlier_windows": 0})
        learned = replace(material, validation=taught, sources=self._supervised.sources_)
        return type(self._supervised)(config, self.seed).fit(learned)

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        everything = np.ones(histories.n_items, bool)
        scorer = self._sourced_scorer(histories, everything, exclude_seen=False)
        return lambda users: scorer(users)[0]

    def _sourced_scorer(
        self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        ask = self._supervised._sourced_scorer(histories, candidates, exclude_seen)
        observe, agent = self._observer(histories), self.agent_
        assert agent is not None

        def score(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scores, origin = ask(users)
            items, value = top_k(scores, self.config.candidates)  # (n, C)
            q = agent.q_values(observe(users, items, value))
            order = np.argsort(-q, axis=1, kind="stable")
            row, place = np.nonzero(items >= 0)  # what there is stands first, in both orders
            scores[row, np.take_along_axis(items, order, 1)[row, place]] = value[row, place]
            return scores, origin

        return score

    def _observer(self, histories: Interactions) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Observation]:
        """Return a function from users (n,), candidates and scores (n, C) to what the agent sees before a visit."""
        bought = Rhythm.of(histories.item_idx, histories.n_items, histories, histories.is_target)
        price = np.where(self.price_ >= 0, self.price_, np.nan)
        popularity = np.bincount(histories.item_idx, minlength=histories.n_items)
        today = histories.as_of / 86_400_000_000

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
        return {"price": self.price_, **{f"agent_{name}": array for name, array in self.agent_.state().items()}}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.price_ = state["price"]
        learned = {name[6:]: array for name, array in state.items() if name.startswith("agent_")}
        shape = {"n_events": len(EVENT_TYPES), "n_features": len(FEATURES), "history": self.config.history}
        described: dict[str, Any] = {"config": self.config.agent.model_dump(), "seed": self.seed, "shape": shape}
        self.agent_ = Agent.restore({**described, "curve": []}, learned)


def _report(rewards: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return means of an episode's reward by policy, and what the agent earns over others, with 95 % intervals."""
    found = {f"simulated/{name}": float(earned.mean()) for name, earned in rewards.items()}
    for name, other in {"lift": "supervised", "lift over control": "control"}.items():
        lift = _difference(rewards["agent"], rewards[other])
        found |= {
            f"simulated/{name}": lift.value,
            f"simulated/{name} low": lift.low,
            f"simulated/{name} high": lift.high,
        }
    return found


def _difference(earned: np.ndarray, others: np.ndarray) -> Estimate:
    """Return the difference of two means with its interval, of episodes that know nothing of each other (Welch)."""
    value = float(earned.mean() - others.mean())
    error = float(np.sqrt(earned.var(ddof=1) / len(earned) + others.var(ddof=1) / len(others)))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error)
