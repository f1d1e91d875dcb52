"""The one interface of all models, and the only place where lists are cut, masked and filled up."""

import hashlib
import itertools
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict

from recsys_tasks.errors import NotFittedError, TrainingError
from recsys_tasks.metrics import hits, ndcg_at_k
from recsys_tasks.models.trace import Said, Telling, Trace
from recsys_tasks.nearest import NearestItems, top_k
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.snapshot import Catalog, Interactions
from recsys_tasks.split import Truth

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the saved form; ``load`` refuses another."""
FILL_HALF_LIFE_DAYS = 14.0
"""Recency of the popularity that fills up what a model leaves empty."""

SEARCH_FROM = 20_000
"""Candidates from which dot products are searched in tiles instead of being sorted as lines of scores."""

_CELLS = 4_000_000
"""Strengths of evidence that are compared at a time."""

TREND_HALF_LIFE_DAYS = 14.0
"""Recency of what counts as now, where a model's logits follow the trend."""


@dataclass(frozen=True)
class Between:
    """A range that a search may take a hyper-parameter from, both ends included; whole numbers where both ends are."""

    low: float
    high: float
    log: bool = False
    """as often between 1 and 10 as between 10 and 100"""


class Config(BaseModel):
    """Hyper-parameters. A value given in the shop file stands; others of the grid are chosen on validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Material:
    """What a model may learn from."""

    interactions: Interactions
    """Events before the end of the training window."""
    catalog: Catalog
    text_vectors: np.ndarray
    """(n_items, d) float32 of unit length; zero where an item has no text."""
    validation: Mapping[str, Truth] | None = None
    """By view; None when the model is refitted through ``as_of`` with everything already chosen."""
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the shop knows of its customers: name -> (n_users,) text, empty where it does not know."""
    start: "Model | None" = None
    """An earlier model, of any catalogue, whose weights training may begin with; most models make no use of it."""
    watch: Callable[[float], None] | None = None
    """Told each ndcg@10 on validation while training goes on; what it raises ends the training."""
    sources: Mapping[str, "Model"] = field(default_factory=dict)
    """By name, models of the stage before trained on the same interactions; for models of a later stage."""
    visits: Callable[[], Visits] | None = None
    """Reads the log as visits, for who fits a simulated shop to the validation window; nothing after it may be used."""


@dataclass(frozen=True)
class Ranked:
    """Lists of users, best first. All arrays are (n_users, k)."""

    items: np.ndarray
    """int32 item_idx; -1 where fewer than k items could be recommended"""
    scores: np.ndarray
    """float32"""
    filled: np.ndarray
    """bool: put there by popularity, because the model had nothing more to say"""
    sources: np.ndarray
    """object: name of the model that put it there; the model itself or one of its witnesses"""


@dataclass(frozen=True)
class Dot:
    """Scores that are (queries(users) @ vectors.T + bias) * scale."""

    vectors: np.ndarray
    """(n_items, d) float32"""
    bias: np.ndarray
    """(n_items,) float32, -inf where the model has no opinion of an item"""
    queries: Callable[[np.ndarray], np.ndarray]
    """From (n,) user_idx to (n, d) float32; NaN where the model has no opinion of a user"""
    scale: float = 1.0

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Return (n, n_items) float32, all of them; -inf where the model has no opinion."""
        queries = self.queries(users)
        scores = queries @ self.vectors.T
        scores += self.bias
        if self.scale != 1:
            scores *= np.float32(self.scale)
        scores[np.isnan(queries).any(1)] = -np.inf
        return scores


Scorer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, Telling]]
"""From (n,) user_idx to (n, n_items) scores, their origin, and what the stages said of them."""
Ask = Callable[[np.ndarray, sp.csr_matrix], tuple[np.ndarray, np.ndarray, np.ndarray, Telling]]
"""From (n,) user_idx and the (n, n_items) seen to (n, k) best items, -1 behind the last, their scores, their origin,
(n, 0) of a model without witnesses, and what the stages said."""


class Model(ABC):
    """A recommender; all checks are here.

    Subclasses write ``_fit``, ``_state`` and ``_restore``, and ``_scorer`` or, where scores are dot products, ``_dot``.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Config]] = Config
    view: ClassVar[str] = "discovery"
    """The view whose ndcg@10 on validation chooses its hyper-parameters."""
    grid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Values tried on validation every night, where the shop file sets none."""
    space: ClassVar[Mapping[str, Between | tuple[Any, ...]]] = {}
    """What a search (``tune``) may set, of the configuration: ranges, and choices. It holds all of the grid."""
    warm_starts: ClassVar[bool] = False
    """Whether training makes use of ``Material.start``."""
    gated: ClassVar[bool] = False
    """Whether it re-orders the lists of its one source, and may do so only with the evidence that the gate asks for."""
    counts: ClassVar[bool] = False
    """Whether fitting is mere counting, cheap enough for the ranker to do it again as of earlier dates."""

    def __init__(self, config: Any = None, seed: int = 0) -> None:
        self.config: Any = config or self.Config()
        self.seed = seed
        self.is_fitted = False
        self.curve: list[dict[str, float]] = []
        """What validation said, in the order it was asked; one dict an epoch or a tried configuration."""
        self.reported: dict[str, float] = {}
        """What ``report`` tells."""
        self.sources_: Mapping[str, Model] = {}
        """Models of the first stage, by name, that a model of the second stage reads."""

    def fit(self, material: Material) -> Self:
        """Learn from the material; a second call forgets the first.

        With ``material.validation``, hyper-parameters of the grid that the configuration does not set are chosen
        there, and ``self.config`` holds the choice afterwards.

        Raises
        ------
        TrainingError
            Nothing to learn from, or something learned is not a number.

        """
        if len(material.interactions) == 0:
            raise TrainingError(
                f"{self.name}: no interaction in the training window; give longer history or shorter windows"
            )
        self.curve = []
        if material.validation and self._tries():
            self._choose(material)
        else:
            self._fit(material)
        self.is_fitted = True
        for name, array in self._state().items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TrainingError(f"{self.name}: {name} holds values that are not finite; lower the learning rate")
        return self

    def refit(self, material: Material) -> Self:
        """Return a new model that learned from ``material`` (without validation) what this one chose on validation."""
        return type(self)(self.config, self.seed).fit(material)

    def _tries(self) -> list[Any]:
        """Return the configurations of the grid, less what the given one pins; the given one itself is left out."""
        free = [name for name in self.grid if name not in self.config.model_fields_set]
        values = itertools.product(*(self.grid[name] for name in free))
        tries = [self.config.model_copy(update=dict(zip(free, one, strict=True))) for one in values]
        return [config for config in tries if config != self.config]

    def _choose(self, material: Material) -> None:
        """Fit the given configuration and the tries; keep a try only where it ``beats`` the given one."""
        given, started = self.config, time.monotonic()
        found: dict[Any, np.ndarray] = {}
        configs = [given, *self._tries()]
        for n, config in enumerate(configs, start=1):
            self.config = config
            self._fit(material)
            found[config] = self.validate(material)
            tried = {name: getattr(config, name) for name in self.grid}
            self.curve.append({**tried, "ndcg@10": float(found[config].mean())})
            left = (time.monotonic() - started) / n * (len(configs) - n)
            line = f"try {n} of {len(configs)}: {tried}, validation ndcg@10 {found[config].mean():.4f}"
            log.info("%s: %s, %.0f s left", self.name, line, left)
        better = {config: values.mean() for config, values in found.items() if beats(values, found[given])}
        chosen = max(better, key=lambda config: better[config]) if better else given
        if self.config != chosen:
            self.config = chosen
            self._fit(material)

    def validate(self, material: Material, max_users: int = 4000) -> np.ndarray:
        """Return ndcg@10 on validation in this model's view, of at most ``max_users`` users evenly taken."""
        assert material.validation is not None
        truth = material.validation[self.view]
        rows = np.arange(0, len(truth.users), -(-len(truth.users) // max_users))
        self.is_fitted = True
        candidates = material.catalog.candidates(truth.past.as_of)
        ranked = self.recommend(truth.past, truth.users[rows], 10, candidates, exclude_seen=truth.exclude_seen)
        wanted = truth.items[rows]
        found = ndcg_at_k(hits(ranked.items, wanted), np.diff(wanted.indptr), 10)
        if material.watch:
            material.watch(float(found.mean()))
        return found

    def recommend(
        self,
        histories: Interactions,
        users: np.ndarray,
        k: int,
        candidates: np.ndarray,
        *,
        exclude_seen: bool,
        trace: Trace | None = None,
    ) -> Ranked:
        """Return the best k items of each user.

        Parameters
        ----------
        histories
            All interactions known at the moment of recommending.
        users
            (n,) user_idx; -1 for a visitor without history.
        k
            Length of the lists; shorter only where there are fewer candidates.
        candidates
            (n_items,) bool, what may be recommended.
        exclude_seen
            Leave out what the user bought before.
        trace
            Is told how these users' lists came about; the lists are the same.

        Raises
        ------
        NotFittedError
            Before ``fit`` or ``load``.
        ValueError
            ``k`` below 1.

        """
        if not self.is_fitted:
            raise NotFittedError(f"{self.name} has not learned yet; call fit or load first")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        k = min(k, int(candidates.sum()))
        items = np.full((len(users), k), -1, np.int32)
        scores = np.zeros((len(users), k), np.float32)
        filled = np.zeros((len(users), k), bool)
        sources = np.full((len(users), k), self.name, object)
        popularity = histories.popularity(FILL_HALF_LIFE_DAYS)
        by_popularity = np.lexsort((np.arange(len(popularity)), -popularity))
        by_popularity = by_popularity[candidates[by_popularity]]
        names = np.array(list(self.witnesses), object)
        asked = k + trace.left_out if trace and not self.witnesses else k
        dot = self._dot(histories) if int(candidates.sum()) >= SEARCH_FROM and not self.witnesses else None
        if dot:
            ask, at_once = _searched(dot, candidates, asked), 4096
        else:
            ask, at_once = self._sorted(histories, candidates, exclude_seen, asked), 256
        nothing = sp.csr_matrix((histories.n_users + 1, len(candidates)), dtype=np.float32)
        seen = sp.vstack([histories.bought, nothing[:1]], "csr") if exclude_seen else nothing  # -1 is the last row
        for start in range(0, len(users), at_once):
            part = slice(start, start + at_once)
            bought = seen[users[part]]
            best, best_value, origin, telling = ask(users[part], bought)
            own = best[:, :k] >= 0
            items[part], scores[part] = best[:, :k], np.where(own, best_value[:, :k], 0)
            if self.witnesses:
                sources[part][own] = names[origin[:, :k][own]]
            _fill_up(Ranked(items[part], scores[part], filled[part], sources[part]), by_popularity, bought)
            if trace and self.witnesses:
                trace.note(start, items[part], np.flatnonzero(users[part] >= 0), telling(), list(self.witnesses))
            elif trace:
                said = {self.name: Said.of(best, best_value)}
                trace.note(start, items[part], np.arange(len(best)), said, [self.name])
        return Ranked(items, scores, filled, sources)

    def _sorted(self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool, k: int) -> "Ask":
        """Return what asks for the scores of all items, and sorts them."""
        scorer = self._sourced_scorer(histories, candidates, exclude_seen)

        def ask(users: np.ndarray, seen: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray, Telling]:
            dense = np.full((len(users), len(candidates)), -np.inf, np.float32)
            known = users >= 0
            origin = np.zeros(dense.shape if self.witnesses else (len(users), 0), np.int8)
            telling: Telling = dict
            if known.any():
                dense[known], origin[known], telling = scorer(users[known])
            dense[:, ~candidates] = -np.inf
            dense[seen.nonzero()] = -np.inf
            best, value = top_k(dense, k)
            return (
                best,
                value,
                np.take_along_axis(origin, np.maximum(best, 0), 1) if self.witnesses else origin,
                telling,
            )

        return ask

    @property
    def witnesses(self) -> Mapping[str, "Model"]:
        """By name, the models of the first stage that speak in this one's lists; none where it speaks for itself."""
        return self.sources_

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return (n, k) item_idx of the history item that speaks most for each of (n, k) items; -1 for none.

        ``users`` are (n,) user_idx of customers; where ``items`` is -1, there is nothing to speak for.
        """
        return np.full(items.shape, -1, np.int32)

    def item_vectors(self) -> np.ndarray | None:
        """Return (n_items, d) float32 whose dot products rank like items by likeness, or None for models without."""
        return None

    def report(self) -> dict[str, float]:
        """Return numbers of the training worth keeping beside the metrics, also after loading."""
        return self.reported

    def save(self, folder: Path, catalog: Catalog) -> None:
        """Write ``config.json`` and one ``.npy`` file an array into the folder."""
        state = self._state()
        for name, array in state.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        described = {
            "format": FORMAT,
            "model": self.name,
            "config": self.config.model_dump(),
            "seed": self.seed,
            "arrays": sorted(state),
            "items": digest(catalog.item_ids),
            "sources": list(self.sources_),
            "curve": self.curve,
            "report": self.report(),
        }
        (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, catalog: Catalog | None = None, sources: Mapping[str, "Model"] | None = None) -> Self:
        """Read what ``save`` wrote; nothing is unpickled. ``sources`` are for a model of the second stage.

        Without ``catalog`` a model of any catalogue is read, to start another's training from (``Material.start``);
        it cannot recommend from this one.

        Raises
        ------
        TrainingError
            The folder is of another model, another format, or was trained on another catalogue or other sources.

        """
        described = json.loads((folder / "config.json").read_text())
        sources = sources or {}
        expected: dict[str, Any] = {"format": FORMAT, "model": cls.name, "sources": list(sources)}
        if catalog is not None:
            expected["items"] = digest(catalog.item_ids)
        for key, value in expected.items():
            if described[key] != value:
                raise TrainingError(f"{folder}: {key} is {described[key]!r}, expected {value!r}; train the model again")
        model = cls(cls.Config(**described["config"]), described["seed"])
        model.sources_ = sources
        model._restore({name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in described["arrays"]})
        model.curve, model.reported = described["curve"], described["report"]
        model.is_fitted = True
        return model

    @abstractmethod
    def _fit(self, material: Material) -> None:
        """Learn; what is learned is kept in attributes that end in ``_``."""

    def _dot(self, histories: Interactions) -> Dot | None:
        """Return what the scores are made of where they are dot products: lists from many items come sooner then."""
        return None

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from (n,) user_idx to (n, n_items) float32 scores, -inf where the model has no opinion."""
        dot = self._dot(histories)
        assert dot, f"{self.name} has neither _scorer nor _dot"
        return dot.scores

    def _sourced_scorer(self, histories: Interactions, candidates: np.ndarray, exclude_seen: bool) -> Scorer:
        """Return a function from (n,) user_idx to the scores as ``_scorer`` has them, and where they come from.

        Origins are (n, n_items) int8, the place of the model in ``witnesses``; (n, 0) of a model without them. A model
        with witnesses tells what each of them said, and then what it says itself; the scores of others say it all.
        """
        scorer = self._scorer(histories)
        return lambda users: (scorer(users), np.empty((len(users), 0), np.int8), dict)

    @abstractmethod
    def _state(self) -> dict[str, np.ndarray]:
        """Return the learned arrays by name."""

    @abstractmethod
    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Take back the arrays that ``_state`` gave."""


def beats(values: np.ndarray, given: np.ndarray) -> bool:
    """Tell whether a try is better than what was given, by more than chance; (n_users,) metrics of the same users.

    The mean gain must exceed one standard error of the paired difference (the rule of Breiman et al. 1984): one
    window's best of many is else a matter of luck.
    """
    gain = values - given
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def digest(item_ids: np.ndarray) -> str:
    """Return 16 hexadecimal digits of a list of ids."""
    return hashlib.sha256("\n".join(item_ids).encode()).hexdigest()[:16]


def codes_of(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return a number for each different value, in their order; (n,) int32."""
    return np.unique(np.array(values, dtype=str), return_inverse=True)[1].astype(np.int32)


def distinct_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) int32 the place of each row among the distinct ones, and these; rows are compared as bytes."""
    bytes_of = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1])))
    _, first, place = np.unique(bytes_of.ravel(), return_index=True, return_inverse=True)
    return place.astype(np.int32), vectors[first]


def trend(histories: Interactions, half_life_days: float | None) -> np.ndarray:
    """Return (n_items,) float32, how much more an item sells now than in examples of that half-life, as a logarithm.

    Added to logits, which are those of the examples, it moves their prior to the present.
    """
    now, then = histories.popularity(TREND_HALF_LIFE_DAYS), histories.popularity(half_life_days or np.inf)
    now, then = (share / max(share.sum(), 1e-12) + 1 / len(share) ** 2 for share in (now, then))
    return np.log(now / then).astype(np.float32)


def opinionated(scores: np.ndarray) -> np.ndarray:
    """Return float32 scores with -inf in place of 0: a sum that nothing went into is no opinion."""
    scores = scores.astype(np.float32, copy=False)
    scores[scores == 0] = -np.inf
    return scores


Strength = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From (m, h) history items, their (m, h) values and (m, k) items to (m, k, h) how much each speaks for each."""


def best_evidence(history: sp.csr_matrix, users: np.ndarray, items: np.ndarray, strength: Strength) -> np.ndarray:
    """Return (n, k) item_idx of the one in a user's row of ``history`` with the largest strength; -1 if none is > 0.

    Users with histories of like length are worked on together.
    """
    found = np.full(items.shape, -1, np.int32)
    length = np.diff(history.indptr)[users]
    order = np.argsort(length, kind="stable")
    order = order[length[order] > 0]
    while len(order):
        cells = np.arange(1, len(order) + 1) * length[order] * items.shape[1]
        rows, order = np.split(order, [max(1, int(np.searchsorted(cells, _CELLS, "right")))])
        place = np.arange(length[rows[-1]])
        there = place < length[rows, None]
        at = np.where(there, history.indptr[users[rows], None] + place, 0)
        speaks = strength(history.indices[at], history.data[at], items[rows])
        speaks = np.where(there[:, None], speaks, 0)
        best = speaks.argmax(2)  # (m, k)
        known = (np.take_along_axis(speaks, best[:, :, None], 2)[:, :, 0] > 0) & (items[rows] >= 0)
        found[rows] = np.where(known, np.take_along_axis(history.indices[at], best, 1), -1)
    return found


def nearest_evidence(vectors: Callable[[np.ndarray], np.ndarray]) -> Strength:
    """Let the nearest item speak; ``vectors`` are asked for those of items, (..., d)."""
    return lambda history, _, items: vectors(items) @ vectors(history).swapaxes(1, 2)


def _searched(dot: Dot, candidates: np.ndarray, k: int) -> Ask:
    """Return what searches for the highest dot products."""
    rows = np.flatnonzero(candidates & np.isfinite(dot.bias))
    nearest = NearestItems(dot.vectors[rows], bias=dot.bias[rows])

    def ask(users: np.ndarray, seen: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray, Telling]:
        best, value = np.full((len(users), k), -1, np.int32), np.full((len(users), k), -np.inf, np.float32)
        known = np.flatnonzero(users >= 0)
        queries = dot.queries(users[known])
        told = ~np.isnan(queries).any(1)
        found, products = nearest.exact(queries[told], k, seen[known[told]][:, rows])
        width = found.shape[1]
        best[known[told], :width] = np.where(found < 0, -1, rows[found])
        value[known[told], :width] = products * np.float32(dot.scale)
        return best, value, np.zeros((len(users), 0), np.int8), dict

    return ask


def _fill_up(ranked: Ranked, by_popularity: np.ndarray, seen: sp.csr_matrix) -> None:
    """Put what is popular and neither listed nor ``seen`` where lists are too short."""
    items, k = ranked.items, ranked.items.shape[1]
    short = np.flatnonzero((items < 0).any(1))
    if not len(short):
        return
    own, seen = (items[short] >= 0).sum(1), seen[short]
    width = min(len(by_popularity), k + int((own + np.diff(seen.indptr)).max()))
    place = np.full(seen.shape[1], width)
    place[by_popularity[:width]] = np.arange(width)
    free = np.ones((len(short), width + 1), bool)
    free[:, width] = False
    row, column = np.nonzero(items[short] >= 0)
    free[row, place[items[short][row, column]]] = False
    row, item = seen.nonzero()
    free[row, place[item]] = False
    nth = free.cumsum(1, dtype=np.int32)
    row, column = np.nonzero(free & (nth <= (k - own)[:, None]))
    nth = nth[row, column]
    at = short[row], own[row] + nth - 1
    floor = np.where(own > 0, ranked.scores[short, own - 1], np.float32(1))
    items[at], ranked.filled[at], ranked.sources[at] = by_popularity[column], True, "popular"
    ranked.scores[at] = floor[row] - nth.astype(np.float32) / 1024
