"""``sasrec``: causal self-attention over a customer's history (Kang & McAuley 2018).

Every event of a history predicts what comes next; the state after the last event scores the catalogue. Deviations from
the paper: cross entropy over all trained items, or over uniform negatives that a batch shares, in place of one negative
an event (Klenitskiy & Vasilev 2023); pre-norm blocks; positions counted from the end; item and output vectors of unit
length with a temperature; optionally item vectors from text (whitened, so that what all texts share does not drown what
tells them apart), gaps between events, kinds of events, averaged weights.

Training goes through whole histories, in pieces. Newer examples weigh more, and at serving the logits' prior is moved
from the examples to the present (``base.trend``), as shops' fashions change faster than what goes with what.

Events of one instant are a basket and have no order: they are shuffled every epoch, and what comes next is an item of
the next basket. Where every event has its own time this is the next event.

Plain TensorFlow, so it does not matter which Keras the process has loaded. Histories are padded to the next of a few
lengths, and where there are many of a length, one XLA program trains them.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from recsys_tasks.history import by_group
from recsys_tasks.models import base
from recsys_tasks.models.base import (
    Between,
    Dot,
    Material,
    Model,
    best_evidence,
    nearest_evidence,
)
from recsys_tasks.models.content import whitening
from recsys_tasks.snapshot import Interactions

log = logging.getLogger(__name__)

COMPILE_FROM = 300
"""Steps of one length from which compiling, seconds of work, pays."""
N_GAPS = 32
"""Buckets of the time since the event before: powers of two of seconds."""

Batch = dict[str, Any]
"""Histories, the newest event last: ``items`` (n, length) int32 item_idx, -1 for no event; ``kinds`` and ``gaps``,
int32 of the same shape; for training also ``targets``, int32 item_idx of what came next, and ``weights``, float32 of
each target in the loss, 0 for none."""


class SASRecConfig(base.Config):
    """Configuration of ``sasrec``."""

    dim: int = 64
    blocks: int = 1
    heads: int = 1
    feed_forward: int = 1
    """hidden width of a block's second half, in ``dim``"""
    max_length: int = 50
    """events of a history that are looked at, the newest; training goes through all of it in pieces of so many"""
    half_life_days: float | None = 90.0
    """days in which an example loses half its weight in the loss; None for no loss of weight"""
    trend: float = 1.0
    """how much of the logarithm of an item's present share of events over its share in training is added"""
    batch_size: int = 64
    """pieces of histories"""
    epochs: int = 200
    """most epochs; with a validation window, the best number of them takes its place"""
    patience: int = 4
    """epochs without a better ndcg@10 on validation after which training stops"""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    """of AdamW (Loshchilov & Hutter 2019), on matrices"""
    dropout: float = 0.3
    full_softmax: int = 5000
    """trained items up to which the loss is taken over all of them"""
    negatives: int = 1024
    """else: items drawn for a batch"""
    temperature: float | None = 0.1
    """of the softmax over cosines; None for plain dot products"""
    scale: bool = False
    """multiply items' vectors by sqrt(dim) where they enter (Vaswani et al. 2017, 3.4), lest blocks drown them"""
    average: float = 0.999
    """decay a step of a running mean of the weights that is used in their place; 0 for none"""
    text: bool = True
    """an item's vector is that of its id plus a projection of its text, which speaks alone for items without events"""
    whiten: int = 256
    """components kept of the whitened text vectors; 0 leaves them as the encoder made them"""
    events: bool = False
    """tell kinds of events apart, by their weight and by whether they are the target"""
    gaps: bool = False
    """tell how long before each event the one before it was"""
    targets: Literal["new", "all"] = "new"
    """learn to predict only what the customer had not bought before, or everything"""


class SASRec(Model):
    """Users are their histories, so nothing is learned of a user and new ones need no training."""

    name = "sasrec"
    Config = SASRecConfig
    space: ClassVar = {
        "dim": (32, 64, 128),
        "blocks": Between(1, 2),
        "max_length": (20, 50, 100),
        "half_life_days": (None, 30.0, 90.0, 365.0),
        "trend": Between(0.0, 1.5),
        "learning_rate": Between(3e-4, 3e-3, log=True),
        "weight_decay": (0.0, 0.01, 0.1, 0.3),
        "dropout": Between(0.1, 0.6),
        "temperature": (None, 0.05, 0.07, 0.1, 0.15),
        "average": (0.0, 0.99, 0.999),
        "text": (False, True),
        "events": (False, True),
        "gaps": (False, True),
        "targets": ("new", "all"),
    }
    warm_starts = True

    def _fit(self, material: Material) -> None:
        config, rng = self.config, np.random.default_rng(self.seed)
        interactions = material.interactions
        self.kinds_ = np.unique(_kind(interactions))
        self.item_ids_ = material.catalog.item_ids.astype(str)
        trained = np.unique(interactions.item_idx)
        text = self._texts(material)
        weights = _initial(config, material.catalog.n_items, text.shape[1], len(self.kinds_), rng)
        if isinstance(material.start, SASRec):
            material.start._hand_over(weights, self.item_ids_)
        trainer = Trainer(config, weights, trained, text, self.seed)
        pieces, weight = windows(interactions, config.max_length), _weights(interactions, config)
        best, best_epoch, state = -1.0, 0, {}
        spent: list[float] = []
        for epoch in range(1, config.epochs + 1):
            started = time.monotonic()
            loss = trainer.epoch(_training_batches(interactions, pieces, weight, config, self.kinds_, rng))
            self._keep(trainer.weights(), trained, text)
            point, said = {"epoch": epoch, "loss": loss}, ""
            if material.validation:
                point["ndcg@10"] = float(self.validate(material).mean())
                said = f"validation ndcg@10 {point['ndcg@10']:.4f}, "
            spent.append(time.monotonic() - started)
            self.curve.append({**point, "seconds": spent[-1]})
            left = float(np.median(spent)) * (config.epochs - epoch)
            line = f"epoch {epoch} of at most {config.epochs}: loss {loss:.4f}, {said}{spent[-1]:.1f} s an epoch"
            log.info("%s: %s, at most %.0f s left", self.name, line, left)
            if not material.validation:
                continue
            if point["ndcg@10"] > best:
                best, best_epoch, state = point["ndcg@10"], epoch, self._state()
            elif epoch - best_epoch >= config.patience:
                break
        if state:
            self._restore(state)
            self.config = config.model_copy(update={"epochs": best_epoch})

    def _texts(self, material: Material) -> np.ndarray:
        """Return (n_items, d) float32, of unit length in the mean; zeros for an item without text.

        Components are those of the model it starts from, whose projection is of them, else of what stood in the
        catalogue when the window ended.
        """
        vectors, start = material.text_vectors, material.start
        if not (self.config.text and vectors.any()):
            vectors = np.zeros((len(vectors), 0), np.float32)
        told = np.abs(vectors).sum(1) > 0
        known = told & (material.catalog.known_since < material.interactions.as_of)
        self.mean_, self.matrix_ = np.zeros(vectors.shape[1]), np.eye(vectors.shape[1])
        if isinstance(start, SASRec) and len(start.mean_) == vectors.shape[1]:
            self.mean_, self.matrix_ = start.mean_, start.matrix_
        elif self.config.whiten and known.sum() > 1:
            self.mean_, matrix = whitening(vectors[known], self.config.whiten)
            self.matrix_ = matrix / np.sqrt(max(matrix.shape[1], 1))
        return np.where(told[:, None], (vectors - self.mean_) @ self.matrix_, 0).astype(np.float32)

    def _keep(self, weights: dict[str, np.ndarray], trained: np.ndarray, text: np.ndarray) -> None:
        """Put each item's vector together; one without events has that of its text alone, or zeros for no opinion."""
        ids = np.zeros_like(weights["ids"])
        ids[trained] = weights["ids"][trained]
        self.weights_ = {**weights, "ids": ids}
        self.vectors_ = ids + text @ weights["text"]

    def _hand_over(self, weights: dict[str, np.ndarray], item_ids: np.ndarray) -> None:
        """Replace initial weights by the learned ones, items matched by id; a weight of another shape stays initial."""
        _, new, old = np.intersect1d(item_ids, self.item_ids_, return_indices=True)
        known = np.abs(self.weights_["ids"][old]).sum(1) > 0
        for name, learned in self.weights_.items():
            if name == "ids" and learned.shape[1] == weights[name].shape[1]:
                weights[name][new[known]] = learned[old[known]]
            elif learned.shape == weights[name].shape:
                weights[name] = learned.copy()

    def _dot(self, histories: Interactions) -> Dot:
        import tensorflow as tf

        weights = {name: tf.constant(array) for name, array in self.weights_.items() if name != "ids"}
        vectors, temperature = tf.constant(self.vectors_), self.config.temperature or 1.0
        output = self.item_vectors()
        trend = self.config.trend * base.trend(histories, self.config.half_life_days)
        bias = np.where(np.abs(output).sum(1) == 0, -np.inf, trend * temperature).astype(np.float32)

        def queries(users: np.ndarray) -> np.ndarray:
            batch = _inputs(histories, last_events(histories, users, self.config.max_length), self.kinds_)
            state = np.full((len(users), self.config.dim), np.nan, np.float32)
            lengths = (batch["items"] >= 0).sum(1)
            for length, rows in _buckets(lengths, self.config.max_length):
                for start in range(0, len(rows), 512):
                    chosen = rows[start : start + 512]
                    inputs = {name: array[chosen, -length:] for name, array in batch.items()}
                    embedded = tf.gather(vectors, tf.maximum(inputs["items"], 0))
                    state[chosen] = states(self.config, weights, embedded, inputs)[:, -1].numpy()
            state[lengths == 0] = np.nan
            return state

        return Dot(output, bias, queries, 1 / temperature)

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item whose vector is nearest."""
        return best_evidence(histories.bought, users, items, nearest_evidence(self.item_vectors().__getitem__))

    def item_vectors(self) -> np.ndarray:
        """Return what a state is compared with: of unit length where the configuration has a temperature."""
        if self.config.temperature is None:
            return self.vectors_
        return self.vectors_ / np.maximum(np.linalg.norm(self.vectors_, axis=1, keepdims=True), 1e-12)

    def _state(self) -> dict[str, np.ndarray]:
        own = {"vectors": self.vectors_, "kinds": self.kinds_, "item_ids": self.item_ids_}
        own |= {"mean": self.mean_, "matrix": self.matrix_}
        return {**own, **{f"weight_{name}": array for name, array in self.weights_.items()}}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.vectors_, self.kinds_, self.item_ids_ = state["vectors"], state["kinds"], state["item_ids"]
        self.mean_, self.matrix_ = state["mean"], state["matrix"]
        self.weights_ = {name[7:]: array for name, array in state.items() if name.startswith("weight_")}


def last_events(interactions: Interactions, users: np.ndarray, length: int) -> np.ndarray:
    """Return (n, length) positions in the log of each user's newest events, oldest first; -1 stands before them."""
    if not len(interactions):
        return np.full((len(users), length), -1, np.int64)
    order, start = interactions.by_user
    place = start[np.asarray(users) + 1][:, None] + np.arange(-length, 0)
    return np.where(place < start[users][:, None], -1, order[np.maximum(place, 0)])


def windows(interactions: Interactions, length: int) -> np.ndarray:
    """Return (n, length + 1) positions in the log of all histories, each cut from its end into pieces.

    A piece begins with the event that the piece before it ended with, so every event but a customer's first has one
    before it in one piece. Pieces are filled from the left with -1; histories of one event are left out.
    """
    order, start = by_group(interactions.user_idx, interactions.n_users)
    first, end = start[:-1], start[1:]
    pieces = np.maximum(-(-(end - first - 1) // length), 0)
    back = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0 for a customer's newest piece
    place = (np.repeat(end, pieces) - back * length)[:, None] + np.arange(-length - 1, 0)
    return np.where(place < np.repeat(first, pieces)[:, None], -1, order[np.maximum(place, 0)])


def _kind(interactions: Interactions) -> np.ndarray:
    """Return (n_events,) float32, a number for each weight and whether the event is a target."""
    return interactions.weight * np.where(interactions.is_target, -1, 1).astype(np.float32)


def _inputs(interactions: Interactions, events: np.ndarray, kinds: np.ndarray) -> Batch:
    """Return what the network reads of (n, length) positions in the log."""
    when = interactions.time[events]
    gap = np.diff(when, axis=1, prepend=when[:, :1]) / 1e6
    gap[:, 1:][events[:, :-1] < 0] = 0
    return {
        "items": np.where(events < 0, -1, interactions.item_idx[events]).astype(np.int32),
        "kinds": np.searchsorted(kinds, _kind(interactions)[events]).clip(0, len(kinds) - 1).astype(np.int32),
        "gaps": np.log2(1 + np.maximum(gap, 0)).astype(np.int32).clip(0, N_GAPS - 1),
    }


def _buckets(lengths: np.ndarray, longest: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each length of padded histories (4, 8, 16, ... ``longest``) with the rows of the histories it fits best."""
    sizes = [*(2**n for n in range(2, 31) if 2**n < longest), longest]
    of = np.searchsorted(sizes, lengths)
    for n, size in enumerate(sizes):
        if len(rows := np.flatnonzero(of == n)):
            yield size, rows


def _weights(interactions: Interactions, config: SASRecConfig) -> np.ndarray:
    """Return (n_events,) how much each event weighs in the loss as what is to be predicted."""
    weight = interactions.weight * (_is_new(interactions) if config.targets == "new" else 1)
    return weight * 0.5 ** (interactions.age_days / (config.half_life_days or np.inf))


def _training_batches(
    interactions: Interactions,
    pieces: np.ndarray,
    weight: np.ndarray,
    config: SASRecConfig,
    kinds: np.ndarray,
    rng: np.random.Generator,
) -> list[Batch]:
    """Return an epoch's batches, each of ``batch_size`` pieces; the last of a length is filled with empty ones.

    Weights are over their mean sum a batch: an example weighs the same in a batch of short histories and of long ones.
    """
    events = shuffled_baskets(pieces, interactions.time, rng)
    target = next_basket(events, interactions.time, rng)[:, :-1]
    data = _inputs(interactions, events[:, :-1], kinds)
    data["targets"] = interactions.item_idx[target].astype(np.int32)
    data["weights"] = np.where(target < 0, 0, weight[target]).astype(np.float32)
    useful = np.flatnonzero(data["weights"].sum(1) > 0)
    batches = []
    for length, rows in _buckets((data["items"][useful] >= 0).sum(1), config.max_length):
        order = rng.permutation(useful[rows])
        size = min(config.batch_size, 1 << (len(order) - 1).bit_length())
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = {name: array[chosen, -length:] for name, array in data.items()}
            rest = ((0, size - len(chosen)), (0, 0))
            batches.append({n: np.pad(a, rest, constant_values=-1 if n == "items" else 0) for n, a in batch.items()})
    mean = np.float32(data["weights"].sum(dtype=float) / max(len(batches), 1))
    for batch in batches:
        batch["weights"] /= mean
    return [batches[n] for n in rng.permutation(len(batches))]


def shuffled_baskets(events: np.ndarray, when: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (n, length) positions in the log with those of one instant in a random order; -1 stays at the head."""
    moment = np.where(events < 0, -1, when[events])
    if (np.diff(moment, axis=1)[events[:, 1:] >= 0] > 0).all():
        return events
    order = np.lexsort((rng.random(events.shape), moment), axis=1)
    return np.take_along_axis(events, order, 1)


def next_basket(events: np.ndarray, when: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each of (n, length) positions in the log that of a random event of the next instant; -1 for none."""
    n, length = events.shape
    moment = np.where(events < 0, -1, when[events])
    column = np.arange(length)
    starts = np.concatenate([np.diff(moment, axis=1) > 0, np.ones((n, 1), bool)], 1)  # does the next column start one?
    end = np.minimum.accumulate(np.where(starts, column + 1, length)[:, ::-1], axis=1)[:, ::-1]  # of own basket
    end_of_next = np.take_along_axis(end, np.minimum(end, length - 1), 1)
    drawn = end + (rng.random(events.shape) * (end_of_next - end)).astype(np.int64)
    target = np.take_along_axis(events, np.minimum(drawn, length - 1), 1)
    return np.where((events < 0) | (end == length), -1, target)


def _is_new(interactions: Interactions) -> np.ndarray:
    """Return (n_events,) bool: had the customer not bought the item before this event?"""
    pair = interactions.user_idx.astype(np.int64) * interactions.n_items + interactions.item_idx
    bought = np.flatnonzero(interactions.is_target)
    pairs, first = np.unique(pair[bought], return_index=True)
    place = np.searchsorted(pairs, pair).clip(0, max(len(pairs) - 1, 0))
    if not len(pairs):
        return np.ones(len(pair), bool)
    return (pairs[place] != pair) | (np.arange(len(pair)) <= bought[first[place]])


def _initial(
    config: SASRecConfig, n_items: int, n_text: int, n_kinds: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the weights before training, by name."""
    dim, hidden = config.dim, config.feed_forward * config.dim

    def normal(*shape: int, scale: float | None = None) -> np.ndarray:
        return (rng.normal(size=shape) * (scale or shape[0] ** -0.5)).astype(np.float32)

    # next to text, ids start small: an item that is hardly ever bought stays near what its text says
    weights = {"ids": normal(n_items, dim, scale=(0.1 if n_text else 1) * dim**-0.5)}
    weights["text"] = normal(n_text, dim, scale=dim**-0.5)
    weights["positions"] = normal(config.max_length, dim, scale=0.02)
    weights["kinds"], weights["gaps"] = normal(n_kinds, dim, scale=0.02), normal(N_GAPS, dim, scale=0.02)
    for n in range(config.blocks):
        weights[f"attend_{n}"] = normal(dim, 3 * dim)
        weights[f"merge_{n}"] = normal(dim, dim)
        weights[f"widen_{n}"], weights[f"widen_bias_{n}"] = normal(dim, hidden), np.zeros(hidden, np.float32)
        weights[f"narrow_{n}"], weights[f"narrow_bias_{n}"] = normal(hidden, dim), np.zeros(dim, np.float32)
    for n in range(2 * config.blocks + 1):
        weights[f"gain_{n}"], weights[f"shift_{n}"] = np.ones(dim, np.float32), np.zeros(dim, np.float32)
    return weights


def states(
    config: SASRecConfig,
    weights: dict[str, Any],
    embedded: Any,
    batch: Batch,
    drop: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Return (n, length, dim), what is known after each event; ``embedded`` are the items' vectors, the same shape."""
    import tensorflow as tf

    def norm(x: Any, n: int) -> Any:
        mean, variance = tf.nn.moments(x, -1, keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + 1e-6) * weights[f"gain_{n}"] + weights[f"shift_{n}"]

    length, heads = embedded.shape[1], config.heads
    x = embedded * (config.dim**0.5 if config.scale else 1) + weights["positions"][-length:]
    if config.events:
        x += tf.gather(weights["kinds"], batch["kinds"])
    if config.gaps:
        x += tf.gather(weights["gaps"], batch["gaps"])
    x = drop(x)
    past = np.tril(np.ones((length, length), bool))
    seen = (past & (batch["items"] >= 0)[:, None, :]) | np.eye(length, dtype=bool)  # (n, length, length)
    hidden = tf.where(seen, 0.0, -1e9)[:, None]  # the same for all heads
    for n in range(config.blocks):
        parts = tf.reshape(norm(x, 2 * n) @ weights[f"attend_{n}"], (-1, length, 3, heads, config.dim // heads))
        query, key, value = tf.unstack(tf.transpose(parts, (2, 0, 3, 1, 4)))  # each (n, heads, length, dim / heads)
        scores = tf.matmul(query, key, transpose_b=True) * (config.dim // heads) ** -0.5
        attended = tf.matmul(drop(tf.nn.softmax(scores + hidden)), value)
        attended = tf.reshape(tf.transpose(attended, (0, 2, 1, 3)), (-1, length, config.dim))
        x += drop(attended @ weights[f"merge_{n}"])
        wide = tf.nn.relu(norm(x, 2 * n + 1) @ weights[f"widen_{n}"] + weights[f"widen_bias_{n}"])
        x += drop(drop(wide) @ weights[f"narrow_{n}"] + weights[f"narrow_bias_{n}"])
    x = norm(x, 2 * config.blocks)
    return x if config.temperature is None else unit(x)


def unit(vectors: Any) -> Any:
    """Return vectors of unit length; zero stays zero."""
    import tensorflow as tf

    return vectors * tf.math.rsqrt(tf.reduce_sum(vectors**2, -1, keepdims=True) + 1e-12)


def softmax_loss(right: Any, wrong: Any, targets: Any, negatives: Any, weights: Any) -> Any:
    """Return the weighted cross entropy, summed, of each target against the negatives that are not the target itself.

    ``right`` (m,) are the targets' logits, ``wrong`` (m, n) the negatives'; ``targets`` (m,) and ``negatives`` (n,)
    item_idx.
    """
    import tensorflow as tf

    wrong = tf.where(targets[:, None] == negatives[None, :], -1e9, wrong)
    top = tf.stop_gradient(tf.maximum(right, tf.reduce_max(wrong, 1)))
    total = tf.exp(right - top) + tf.reduce_sum(tf.exp(wrong - top[:, None]), 1)
    return tf.reduce_sum(weights * (tf.math.log(total) + top - right))


class Trainer:
    """Weights under training by Adam (Kingma & Ba 2015).

    A step touches few of many items, so the vectors of the others stand still: their moments do not decay either
    ("lazy" Adam), and their running mean is brought up to date when they are next touched, or at the end.
    """

    def __init__(
        self, config: SASRecConfig, weights: dict[str, np.ndarray], trained: np.ndarray, text: np.ndarray, seed: int
    ) -> None:
        import tensorflow as tf

        self.config = config
        self.trained, self.text = tf.constant(trained, tf.int32), tf.constant(text)
        self.variables = {name: tf.Variable(array) for name, array in weights.items()}
        self.first = {name: tf.Variable(np.zeros_like(array)) for name, array in weights.items()}
        self.second = {name: tf.Variable(np.zeros_like(array)) for name, array in weights.items()}
        self.averages = {name: tf.Variable(array) for name, array in weights.items()} if config.average else {}
        self.forgotten = tf.Variable(0.0)  # logarithm of what the running mean still holds of its first value
        self.touched = tf.Variable(np.zeros(len(weights["ids"]), np.float32))  # that, when an item was last touched
        self.steps, self.seed = tf.Variable(0), seed
        self.step = tf.function(self._step)
        self.compiled = tf.function(self._gradients, jit_compile=True)

    def epoch(self, batches: list[Batch]) -> float:
        """Take a step a batch and return the mean loss."""
        steps = Counter(batch["items"].shape for batch in batches)
        losses = []
        for batch in batches:
            pays = steps[batch["items"].shape] * self.config.epochs >= COMPILE_FROM
            losses.append(self.step(batch, pays))
        return float(np.mean([loss.numpy() for loss in losses]))

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights to use."""
        if not self.averages:
            return {name: variable.numpy() for name, variable in self.variables.items()}
        found = {name: variable.numpy() for name, variable in self.averages.items()}
        still = np.exp(self.forgotten.numpy() - self.touched.numpy())[:, None]
        now = self.variables["ids"].numpy()
        return {**found, "ids": now + (found["ids"] - now) * still}

    def _step(self, batch: Batch, compiled: bool) -> Any:
        import tensorflow as tf

        config = self.config
        self.steps.assign_add(1)
        loss, gradients, values, items = (self.compiled if compiled else self._gradients)(batch)
        now = tf.cast(self.steps, tf.float32)
        rate = config.learning_rate * tf.sqrt(1 - 0.999**now) / (1 - 0.9**now)
        keep = tf.minimum(config.average, (1 + now) / (10 + now))
        for name, gradient in gradients.items():
            variable = self.variables[name]
            first = self.first[name].assign(0.9 * self.first[name] + 0.1 * gradient)
            second = self.second[name].assign(0.999 * self.second[name] + 0.001 * gradient**2)
            change = rate * first / (tf.sqrt(second) + 1e-8)
            decay = config.weight_decay if variable.shape.rank > 1 else 0.0
            variable.assign_sub(change + config.learning_rate * decay * variable)
            if config.average:
                self.averages[name].assign(keep * self.averages[name] + (1 - keep) * variable)
        rows, place = tf.unique(items)
        gradient = tf.math.unsorted_segment_sum(values, place, tf.size(rows))
        before = tf.gather(self.variables["ids"], rows)
        first = 0.9 * tf.gather(self.first["ids"], rows) + 0.1 * gradient
        second = 0.999 * tf.gather(self.second["ids"], rows) + 0.001 * gradient**2
        change = rate * first / (tf.sqrt(second) + 1e-8) + config.learning_rate * config.weight_decay * before
        updates = [(self.variables["ids"], before - change), (self.first["ids"], first), (self.second["ids"], second)]
        if config.average:
            still = tf.exp(self.forgotten - tf.gather(self.touched, rows))[:, None]
            mean = before + (tf.gather(self.averages["ids"], rows) - before) * still
            updates.append((self.averages["ids"], keep * mean + (1 - keep) * (before - change)))
            self.forgotten.assign_add(tf.math.log(keep))
            updates.append((self.touched, tf.fill(tf.shape(rows), self.forgotten)))
        for variable, update in updates:
            variable.scatter_update(tf.IndexedSlices(update, rows))
        return loss

    def _gradients(self, batch: Batch) -> tuple[Any, dict[str, Any], Any, Any]:
        """Return the loss, its gradient by name, and for ``ids`` the gradient (m, dim) of m items with repetitions."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = self._loss(batch)
        found = tape.gradient(loss, self.variables)
        ids = found.pop("ids")
        used = {name: gradient for name, gradient in found.items() if gradient is not None}  # by the configuration
        return loss, used, ids.values, ids.indices

    def _loss(self, batch: Batch) -> Any:
        import tensorflow as tf

        config, count = self.config, iter(range(2, 1000))

        def drop(x: Any) -> Any:
            if not config.dropout:
                return x
            chance = tf.random.stateless_uniform(tf.shape(x), (self.steps, self.seed * 1000 + next(count)))
            return tf.where(chance < config.dropout, 0.0, x / (1 - config.dropout))

        everything = len(self.trained) <= config.full_softmax
        if everything:
            negatives = self.trained
        else:
            seed = (self.steps, self.seed * 1000 + 1)
            place = tf.random.stateless_uniform((config.negatives,), seed, 0, len(self.trained), tf.int32)
            negatives = tf.gather(self.trained, place)
        state = states(config, self.variables, self._items(tf.maximum(batch["items"], 0)), batch, drop)
        state = tf.reshape(state, (-1, config.dim))  # (n * length, dim)
        targets = tf.reshape(batch["targets"], (-1,))
        scale = 1.0 if config.temperature is None else 1 / config.temperature
        ends = tf.identity if config.temperature is None else unit
        right = tf.reduce_sum(state * ends(self._items(targets)), 1) * scale
        wrong = tf.matmul(state, ends(self._items(negatives)), transpose_b=True) * scale
        return softmax_loss(right, wrong, targets, negatives, tf.reshape(batch["weights"], (-1,)))

    def _items(self, items: Any) -> Any:
        import tensorflow as tf

        vectors = tf.gather(self.variables["ids"], items)
        if self.config.text:
            vectors += tf.tensordot(tf.gather(self.text, items), self.variables["text"], 1)
        return vectors
