"""``ranker``: the second stage, gradient-boosted trees (LightGBM ``lambdarank``, Burges 2010) over all sources.

Candidates of a customer are the first of every source and, where repeats count, what the customer bought before.
Features are what the sources say of a candidate, and ``features``: the customer's rhythm with the item, its trend, its
price. One booster a view, since what was bought before matters in one only.

It learns from what customers bought in the validation window, features and sources being those of its start. One window
holds few customers, so the windows before it teach too: there the sources that merely count are counted again as of
the window's start, and the others, which have seen the window's labels, are NaN. (Their hyper-parameters were chosen on
validation; the boosters' own are the same for every shop.)
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recsys_tasks.contract import VIEWS
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.models import base
from recsys_tasks.models.base import Material, Model, top_k
from recsys_tasks.models.features import Features, Items
from recsys_tasks.models.trace import Said, Telling
from recsys_tasks.snapshot import Interactions
from recsys_tasks.split import Truth, truth

if TYPE_CHECKING:
    import lightgbm as lgb

log = logging.getLogger(__name__)

_BATCH = 256
"""Users asked at a time while learning, as ``recommend`` does."""
_LARGEST = 10_000
"""Candidates of one customer that LightGBM compares at most; who bought more before teaches nothing."""


class RankerConfig(base.Config):
    """Configuration of ``ranker``."""

    candidates: int = 100
    """Of each source."""
    earlier_windows: int = 5
    """Windows before validation, of its length, that teach too, as long as there are fewer than ``max_pairs``."""
    max_pairs: int = 1_000_000
    """Customers of a window are thinned out, evenly, where they may have more candidates than this."""
    rounds: int = 100
    """Trees."""
    learning_rate: float = 0.05
    leaves: int = 15
    min_pairs: int = 50
    """In a leaf."""
    truncation: int = 20
    """Pairs are compared where one of them stands in the first so many."""
    threads: int = 0
    """0 for all cores; the trees are the same."""


@dataclass(frozen=True)
class Block:
    """Candidates of some users, in the order of user and item. All arrays are (n_pairs,)."""

    row: np.ndarray
    """Which of the users asked for"""
    item: np.ndarray
    origin: np.ndarray
    """int8, which source ranks it best"""
    features: dict[str, np.ndarray]
    """By name, float32; NaN for unknown"""
    bought: np.ndarray | None = None
    """int8 label, while learning"""

    def matrix(self, names: list[str]) -> np.ndarray:
        """Return (n_pairs, n_names) float32; a name that is not there is unknown."""
        unknown = np.full(len(self.row), np.nan, np.float32)
        return np.stack([self.features.get(name, unknown) for name in names], 1)


class Ranker(Model):
    """Lambdarank over the candidates of all sources."""

    name = "ranker"
    Config = RankerConfig
    view = "all"

    def __init__(self, config: RankerConfig | None = None, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.boosters_: dict[str, lgb.Booster] = {}

    def refit(self, material: Material) -> "Ranker":
        """Return a ranker with the same boosters over newly trained sources."""
        again = Ranker(self.config, self.seed)
        again.boosters_ = self.boosters_
        return again.fit(material)

    def _fit(self, material: Material) -> None:
        if not material.sources:
            raise TrainingError(f"{self.name}: there is no source to rank; the logs of the train tasks say why")
        self.sources_ = dict(material.sources)
        self.items_ = Items.of(material.catalog, material.text_vectors)
        if material.validation:
            self.boosters_ = self._boosters(material)
        elif not self.boosters_:
            raise TrainingError(f"{self.name}: without a validation window there is nothing to learn from")

    def _boosters(self, material: Material) -> dict[str, "lgb.Booster"]:
        """Return the booster of each view, learned from validation and as many windows before it as are needed."""
        blocks: dict[str, list[Block]] = {view: [] for view in VIEWS}
        for window, sources in self._windows(material):
            for view, wanted in window.items():
                blocks[view].append(self._examples(material, wanted, sources))
            if sum(len(block.row) for block in blocks["all"]) >= self.config.max_pairs:
                break
        return {view: self._boost(view, learned) for view, learned in blocks.items()}

    def _boost(self, view: str, blocks: list[Block]) -> "lgb.Booster":
        import lightgbm as lgb

        names = list(blocks[0].features)  # those of validation, which has every source
        data = lgb.Dataset(
            np.concatenate([block.matrix(names) for block in blocks]),
            np.concatenate([block.bought for block in blocks]),
            group=np.concatenate([np.unique(block.row, return_counts=True)[1] for block in blocks]),
            feature_name=names,
        )
        config = self.config
        parameters = {
            "objective": "lambdarank",
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_pairs,
            "lambdarank_truncation_level": config.truncation,
            "lambda_l2": 10.0,
            "feature_fraction": 0.5,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "num_threads": config.threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }
        booster = lgb.train(parameters, data, config.rounds)
        log.info("%s: %s learned from %d windows, %d pairs", self.name, view, len(blocks), data.num_data())
        return booster

    def _windows(self, material: Material) -> Iterator[tuple[Mapping[str, Truth], Mapping[str, Model]]]:
        """Yield validation and the windows before it, by view, with the sources that have not seen their labels."""
        assert material.validation is not None
        yield material.validation, self.sources_
        counting = {name: source for name, source in self.sources_.items() if source.counts}
        newest = material.validation["all"]
        start, length = newest.past.as_of, newest.end - newest.past.as_of
        events = material.interactions
        for end in range(start, start - self.config.earlier_windows * length, -length):
            if not counting or end - 2 * length < events.time[0]:
                return  # of a window no longer than what came before it, there is little to know
            try:
                window = {view: truth(events, end - length, end, view) for view in VIEWS}
            except ContractError:
                continue  # nobody bought anything
            past = replace(material, interactions=window["all"].past, validation=None)
            yield window, {name: source.refit(past) for name, source in counting.items()}

    def _examples(self, material: Material, window: Truth, sources: Mapping[str, Model]) -> Block:
        """Return candidates of the window's users, and which of them they bought."""
        candidates = material.catalog.candidates(window.past.as_of)
        ask = self._candidates(window.past, candidates, window.exclude_seen, sources)
        most = max(1, self.config.max_pairs // (self.config.candidates * len(sources)))
        rows = np.arange(0, len(window.users), -(-len(window.users) // most))
        blocks = []
        for start in range(0, len(rows), _BATCH):
            block = ask(window.users[rows[start : start + _BATCH]])
            blocks.append(replace(block, row=block.row + start))
        row, item, origin = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("row", "item", "origin"))
        features = {name: np.concatenate([block.features[name] for block in blocks]) for name in blocks[0].features}
        bought = np.asarray(window.items[rows[row], item]).ravel() > 0
        fits = np.bincount(row)[row] <= _LARGEST
        features = {name: value[fits] for name, value in features.items()}
        return Block(row[fits], item[fits], origin[fits], features, bought[fits].astype(np.int8))

    def _candidates(
        self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool, sources: Mapping[str, Model]
    ) -> Callable[[np.ndarray], Block]:
        """Return a function from (n,) user_idx to their candidates: the one way to them, learning or serving."""
        scorers = {name: source._scorer(histories) for name, source in sources.items()}
        facts = Features(histories, self.items_)
        n_items = len(candidates)

        def ask(users: np.ndarray) -> Block:
            own, bought = histories.bought[users].nonzero()
            said, listed = {}, []
            for name, scorer in scorers.items():
                said[name] = scorer(users)  # (n, n_items)
                said[name][:, ~candidates] = -np.inf
                if exclude_seen:
                    said[name][own, bought] = -np.inf
                top = top_k(said[name], self.config.candidates)[0]  # (n, k)
                row, place = np.nonzero(top >= 0)
                listed.append(row * n_items + top[row, place])
            if not exclude_seen:
                listed.append((own * n_items + bought)[candidates[bought]])
            row, item = np.divmod(np.unique(np.concatenate(listed)), n_items)
            scores = {name: score[row, item] for name, score in said.items()}
            features, rank = _of_sources(row, scores)
            features |= facts.of_pairs(users[row], item)
            return Block(row, item, self._origin(list(sources), rank), features)

        return ask

    def _origin(self, names: list[str], rank: np.ndarray) -> np.ndarray:
        """Return which source ranks each pair best; of equals popularity comes last, as it says least."""
        rank = rank + np.array([[0.5 if name == "popular" else 0.0] for name in names])
        best = rank.argmin(0)
        if "repeat" in names:  # what no source lists is there because it was bought before
            best[(rank >= self.config.candidates).all(0)] = names.index("repeat")
        return best.astype(np.int8)

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        everything = np.ones(histories.n_items, bool)
        scorer = self._sourced_scorer(histories, everything, exclude_seen=False)
        return lambda users: scorer(users)[0]

    def _sourced_scorer(self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool) -> base.Scorer:
        ask = self._candidates(histories, candidates, exclude_seen, self.sources_)
        booster = self.boosters_["discovery" if exclude_seen else "all"]
        names = booster.feature_name()

        def score(users: np.ndarray) -> tuple[np.ndarray, np.ndarray, Telling]:
            scores = np.full((len(users), len(candidates)), -np.inf, np.float32)
            origin = np.zeros(scores.shape, np.int8)
            told = np.flatnonzero(histories.active_days[users] > 0)  # to all others popularity speaks
            if not len(told):
                return scores, origin, dict
            block = ask(users[told])
            at = told[block.row], block.item
            value = booster.predict(block.matrix(names), num_threads=self.config.threads).astype(np.float32)
            scores[at], origin[at] = value, block.origin
            return scores, origin, lambda: self._said(replace(block, row=at[0]), value)

        return score

    def _said(self, block: Block, scores: np.ndarray) -> dict[str, Said]:
        """Return what each source said of its own first candidates, and what the ranker says of all."""
        said = {}
        for name in self.sources_:
            rank = block.features[f"{name}_rank"]
            own = np.flatnonzero(rank < self.config.candidates)  # beyond, it is no rank among all items
            score = block.features[f"{name}_score"][own]
            said[name] = Said(block.row[own], block.item[own], rank[own].astype(np.int32) + 1, score)
        order = np.lexsort((-scores, block.row))
        row = block.row[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row) + 1
        return {**said, self.name: Said(row, block.item[order], rank, scores[order])}

    def report(self) -> dict[str, float]:
        """Return the part of the gain that the ten most useful features of each view bring."""
        found = {}
        for view, booster in self.boosters_.items():
            gain = booster.feature_importance("gain")
            for n in np.argsort(-gain, kind="stable")[:10]:
                found[f"{view}/gain/{booster.feature_name()[n]}"] = float(gain[n] / max(gain.sum(), 1e-9))
        return found

    def _state(self) -> dict[str, np.ndarray]:
        texts = {view: booster.model_to_string() for view, booster in self.boosters_.items()}
        boosters = {f"booster_{view}": np.frombuffer(text.encode(), np.uint8) for view, text in texts.items()}
        items = self.items_
        return {**boosters, "price": items.price, "groups": items.groups, "text": items.text}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        import lightgbm as lgb

        self.items_ = Items(state["price"], state["groups"], state["text"])
        self.boosters_ = {view: lgb.Booster(model_str=state[f"booster_{view}"].tobytes().decode()) for view in VIEWS}


def _of_sources(row: np.ndarray, scores: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return score, rank and share of the best score of each pair by each source, and (n_sources, n_pairs) ranks.

    Ranks are among the pairs of a row, from 0; inf where the source has no opinion.
    """
    features: dict[str, np.ndarray] = {}
    ranks = np.full((len(scores), len(row)), np.inf)
    start = np.searchsorted(row, row)
    for n, (name, score) in enumerate(scores.items()):
        order = np.lexsort((-score, row))
        known = np.isfinite(score)
        ranks[n, order] = np.arange(len(row)) - start
        ranks[n, ~known] = np.inf
        best = score[order][start]
        told = np.where(known, score, np.nan)
        features[f"{name}_score"] = told
        features[f"{name}_rank"] = np.where(known, ranks[n], np.nan).astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            features[f"{name}_share"] = told / best
    return features, ranks
