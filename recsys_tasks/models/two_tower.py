"""``two_tower``: a query tower and an item tower that meet in a dot product, trained on two tasks at once.

The query tower reads the customer's last items, pooled (Covington et al. 2016, "Deep neural networks for YouTube
recommendations"), who he is, and what the shop knows of him; the item tower reads text, category, department, brand,
price and id. Retrieval is a softmax over the batch's own items and as many drawn uniformly from the catalogue (Yang et
al. 2020, "Mixed negative sampling"), from whose logits log Q is taken, Q being how often the mixture draws an item, so
that popular items are not punished for standing in every batch (Yi et al. 2019, "Sampling-bias-corrected neural
modeling"). Ranking is a small head that predicts the rating, or without ratings the event's weight. Both are tasks of
TensorFlow Recommenders.

Differences from the papers: Q is counted over the whole window instead of estimated in a stream; a pair of user and
item is one example, its first event, with the items of earlier baskets as the query, for lists are to hold what is new
to the customer; newer examples weigh more. Pooling weighs places from the newest one on by a learned vector. Ids of
items and users are left out of some examples at random (Volkovs et al. 2017, "DropoutNet"), so an item or a customer
who came after the training is described by all the rest. Vectors have unit length and the softmax a temperature.

TensorFlow trains; to recommend, the towers are a few products of arrays, and need none of it.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from recsys_tasks.history import by_group
from recsys_tasks.models import base
from recsys_tasks.models.base import (
    Between,
    Dot,
    Material,
    Model,
    best_evidence,
    codes_of,
    distinct_rows,
    nearest_evidence,
)
from recsys_tasks.snapshot import Catalog, Interactions

log = logging.getLogger(__name__)


class TwoTowerConfig(base.Config):
    """Configuration of ``two_tower``."""

    dim: int = 64
    """width of the vectors that meet"""
    batch_size: int = 1024
    epochs: int = 20
    """most epochs; with a validation window, training stops when ndcg@10 there has not risen for two"""
    epoch_examples: int = 250_000
    """most examples of an epoch, drawn anew, so that validation is asked before a large log is gone through"""
    learning_rate: float = 0.003
    """of Adam"""
    temperature: float = 0.1
    half_life_days: float = 90.0
    """an example counts half when its event is this old"""
    ranking_weight: float = 0.1
    """share of the ranking task's loss beside the retrieval task's 1"""
    history: int = 30
    """most recent events that describe a customer"""
    negatives: int = 1024
    """items drawn uniformly beside those of the batch"""
    id_dropout: float = 0.2
    """share of examples in which an item, or a customer, has no id"""
    trend: float = 1.0
    """how much of the logarithm of an item's present share of events over its share in training is added"""
    by_user: bool = True
    """whether the query tower reads who the customer is, beside what he did"""
    text: bool = True
    """whether the item tower reads text, category, department, brand and price"""


PATIENCE = 2
ITEM_BATCH = 8192
HELD_OUT = 20
"""One example in so many tells the error of the ranking task and is not trained on in it."""


class TwoTower(Model):
    """Users by their last items, id and attributes; items by text, id, category, department, brand and price."""

    name = "two_tower"
    Config = TwoTowerConfig
    space: ClassVar = {
        "dim": (32, 64, 128),
        "learning_rate": Between(5e-4, 0.02, log=True),
        "temperature": Between(0.03, 0.3, log=True),
        "half_life_days": Between(15.0, 365.0, log=True),
        "ranking_weight": Between(0.01, 1.0, log=True),
        "history": Between(5, 60, log=True),
        "negatives": (256, 1024, 4096),
        "id_dropout": Between(0.0, 0.5),
        "trend": Between(0.0, 1.5),
        "by_user": (False, True),
        "text": (False, True),
    }

    def _fit(self, material: Material) -> None:
        import tensorflow as tf

        tf.keras.utils.set_random_seed(self.seed)
        tf.config.experimental.enable_op_determinism()
        held_out = HELD_OUT if material.validation else 0
        examples = _examples(material.interactions, self.config, held_out)
        attributes = _attribute_codes(material.attributes, material.interactions.n_users)
        network = _network(self.config, material, attributes, examples)
        network.compile(optimizer=tf.keras.optimizers.Adam(self.config.learning_rate))
        data = _batches(examples, self.config, material.catalog.n_items, self.seed)
        best, best_epoch = -1.0, 0
        state: dict[str, np.ndarray] = {}
        self.reported = {}
        started = time.monotonic()
        for epoch in range(1, self.config.epochs + 1):
            history = network.fit(data, epochs=1, verbose=0).history
            self._remember(network, attributes)
            loss = float(history["retrieval_loss"][-1])
            left = (time.monotonic() - started) / epoch * (self.config.epochs - epoch)
            line = f"epoch {epoch} of at most {self.config.epochs}: loss {loss:.4f}"
            if not material.validation:
                log.info("%s: %s, %.0f s left", self.name, line, left)
                continue
            found = float(self.validate(material, max_users=1000).mean())
            measured = _ranking_errors(network, examples)
            self.curve.append({"epoch": epoch, "loss": loss, "ndcg@10": found, **measured})
            told = ", ".join(f"{name} {value:.4f}" for name, value in {"ndcg@10": found, **measured}.items())
            log.info("%s: %s, validation %s, at most %.0f s left", self.name, line, told, left)
            if found > best:
                best, best_epoch, state, self.reported = found, epoch, self._state(), measured
            elif epoch - best_epoch >= PATIENCE:
                break
        if state:
            self._restore(state)
            self.config = self.config.model_copy(update={"epochs": best_epoch})

    def _remember(self, network: Any, attributes: np.ndarray) -> None:
        """Keep what recommending needs as arrays: the vectors of all items, and the weights of the query tower."""
        n_items = len(network.known_items)
        items = [
            network.item_tower(np.arange(s, min(s + ITEM_BATCH, n_items)), network.known_items[s : s + ITEM_BATCH])
            for s in range(0, n_items, ITEM_BATCH)
        ]
        self.item_vectors_ = np.concatenate([part.numpy() for part in items])
        self.query_ = {name: np.asarray(value) for name, value in network.query_tower.arrays().items()}
        self.query_["items"] = self.query_["items"] * network.known_items[:, None]  # others are as they were drawn
        self.query_["attribute_codes"] = attributes

    def _dot(self, histories: Interactions) -> Dot:
        order, start = by_group(histories.user_idx, histories.n_users)
        items, temperature = histories.item_idx[order], self.config.temperature
        trend = self.config.trend * base.trend(histories, self.config.half_life_days)

        def queries(users: np.ndarray) -> np.ndarray:
            ends = start[users + 1]
            vectors = self._vectors(users, _last(items, start[users], ends, self.config.history))
            vectors[ends == start[users]] = np.nan
            return vectors

        return Dot(self.item_vectors_, (trend * temperature).astype(np.float32), queries, 1 / temperature)

    def _vectors(self, users: np.ndarray, last: np.ndarray) -> np.ndarray:
        """(n, dim) vectors of unit length, of users whose last items are (n, history); -1 pads."""
        q = self.query_
        weight = np.exp(q["places"]) * (last >= 0)
        weight = (weight / np.maximum(weight.sum(1, keepdims=True), 1e-9)).astype(np.float32)
        pooled = np.einsum("nl,nld->nd", weight, q["items"][last])
        codes = q["attribute_codes"][users]
        parts = [pooled, q["users"][users], q["attributes"][codes].reshape(len(users), -1)]
        hidden = np.maximum(np.concatenate(parts, 1) @ q["kernel_0"] + q["bias_0"], 0)
        vectors = hidden @ q["kernel_1"] + q["bias_1"] + pooled
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item whose vector is nearest."""
        return best_evidence(histories.bought, users, items, nearest_evidence(self.item_vectors_.__getitem__))

    def item_vectors(self) -> np.ndarray:
        """Return the item tower's output, of unit length."""
        return self.item_vectors_

    def _state(self) -> dict[str, np.ndarray]:
        return {"item_vectors": self.item_vectors_, **{f"query_{name}": array for name, array in self.query_.items()}}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.item_vectors_ = state["item_vectors"]
        self.query_ = {name.removeprefix("query_"): array for name, array in state.items() if name != "item_vectors"}


def _last(items: np.ndarray, start: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """Return (n, length) the items before each ``end`` and not before ``start``, newest first; -1 pads."""
    at = end[:, None] - 1 - np.arange(length)
    return np.where(at >= start[:, None], items[np.maximum(at, 0)], -1).astype(np.int32) if len(items) else at * 0 - 1


def _examples(interactions: Interactions, config: TwoTowerConfig, held_out: int) -> dict[str, np.ndarray]:
    """One example a pair of user and item, of its first event, with the items of earlier baskets.

    ``rated`` is 0 for one in ``held_out`` examples.
    """
    order, start = by_group(interactions.user_idx, interactions.n_users)
    user, item, at = (array[order] for array in (interactions.user_idx, interactions.item_idx, interactions.time))
    begins = np.ones(len(order), bool)
    begins[1:] = (user[1:] != user[:-1]) | (at[1:] != at[:-1])
    basket = np.flatnonzero(begins)[np.cumsum(begins) - 1]  # where the basket of an event begins
    pair = user.astype(np.int64) * interactions.n_items + item
    by_pair = np.argsort(pair, kind="stable")
    first = np.sort(by_pair[np.diff(pair[by_pair], prepend=-1) != 0])
    rows = order[first]
    recency = 0.5 ** (interactions.age_days[rows] / config.half_life_days)
    rating = interactions.rating[rows]
    rated = np.ones(len(rows), np.float32)
    rated[:: held_out or len(rows) + 1][1:] = 0
    return {
        "user_idx": user[first],
        "item_idx": item[first],
        "last": _last(item, start[user[first]], basket[first], config.history),
        "weight": (recency / recency.mean()).astype(np.float32),
        "target": np.where(np.isnan(rating), interactions.weight[rows], rating).astype(np.float32),
        "is_target": interactions.is_target[rows],
        "rated": rated,
    }


def _batches(examples: dict[str, np.ndarray], config: TwoTowerConfig, n_items: int, seed: int) -> Any:
    """Return a dataset of shuffled batches, each with the ``negatives`` it is to be told from."""
    import tensorflow as tf

    names = ("user_idx", "item_idx", "last", "weight", "target", "rated")
    columns = {name: tf.constant(examples[name]) for name in names}
    n_examples = len(examples["user_idx"])
    size = min(config.batch_size, n_examples)
    rows = tf.data.Dataset.range(n_examples).shuffle(n_examples, seed=seed).batch(size, drop_remainder=True)
    data = rows.take(-(-config.epoch_examples // size)).map(
        lambda at: {name: tf.gather(column, at) for name, column in columns.items()}, deterministic=True
    )
    draws = tf.data.Dataset.random(seed=seed).batch(config.negatives or 1)
    negatives = draws.map(lambda drawn: tf.cast(drawn % n_items, tf.int32)[: config.negatives])
    return (
        tf.data.Dataset.zip((data, negatives))
        .map(lambda batch, drawn: {**batch, "negatives": drawn}, deterministic=True)
        .prefetch(2)
    )


def _network(
    config: TwoTowerConfig, material: Material, attributes: np.ndarray, examples: Mapping[str, np.ndarray]
) -> Any:
    """Return the two towers with their tasks, a ``tfrs.Model``."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    layers, n_users, n_items = tf.keras.layers, material.interactions.n_users, material.catalog.n_items
    count = np.bincount(examples["item_idx"], minlength=n_items)
    batch = min(config.batch_size, len(examples["item_idx"]))
    drawn = batch * count / count.sum() + config.negatives / n_items
    small = tf.keras.initializers.RandomUniform(-0.05, 0.05)

    class QueryTower(tf.keras.Model):
        """(n,) user_idx and (n, history) item_idx, newest first, -1 padded -> (n, dim) of unit length."""

        def __init__(self, items: Any) -> None:
            super().__init__()
            self.items = items
            known = np.zeros(n_users, np.float32)
            known[examples["user_idx"]] = config.by_user
            self.known = tf.constant(known)
            self.codes = tf.constant(attributes)
            self.users = self.add_weight("users", (n_users, config.dim), initializer=small)
            self.attributes = self.add_weight("attributes", (int(attributes.max(initial=0)) + 1, 8), initializer=small)
            self.places = self.add_weight("places", (config.history,), initializer="zeros")
            self.first = layers.Dense(2 * config.dim, activation="relu")
            self.second = layers.Dense(config.dim, kernel_initializer=small)

        def call(self, user_idx: Any, last: Any, kept: Any) -> Any:
            there = tf.cast(last >= 0, tf.float32)
            weight = tf.exp(self.places) * there
            weight /= tf.maximum(tf.reduce_sum(weight, 1, keepdims=True), 1e-9)
            pooled = tf.einsum("nl,nld->nd", weight, tf.gather(self.items, tf.maximum(last, 0)))
            user = tf.gather(self.users, user_idx) * (tf.gather(self.known, user_idx) * kept)[:, None]
            told = tf.gather(self.attributes, tf.gather(self.codes, user_idx))
            told = tf.reshape(told, (tf.shape(user_idx)[0], self.codes.shape[1] * 8))
            hidden = self.first(tf.concat([pooled, user, told], 1))
            return tf.math.l2_normalize(self.second(hidden) + pooled, 1)

        def arrays(self) -> dict[str, Any]:
            return {
                "items": self.items,
                "users": self.users * self.known[:, None],
                "attributes": self.attributes,
                "places": self.places,
                "kernel_0": self.first.kernel,
                "bias_0": self.first.bias,
                "kernel_1": self.second.kernel,
                "bias_1": self.second.bias,
            }

    class Network(tfrs.Model):
        def __init__(self) -> None:
            super().__init__()
            self.known_items = (count > 0).astype(np.float32)
            self.item_tower = _item_tower(config, material)
            self.query_tower = QueryTower(self.item_tower.by_id)
            self.head = tf.keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(1)])
            self.retrieval = tfrs.tasks.Retrieval(temperature=config.temperature, remove_accidental_hits=True)
            self.ranking = tfrs.tasks.Ranking(loss=tf.keras.losses.MeanSquaredError())
            self.drawn = tf.constant(drawn / drawn.sum(), tf.float32)
            self.is_known = tf.constant(self.known_items)
            self.retrieval_loss = tf.keras.metrics.Mean("retrieval_loss")

        def compute_loss(self, features: dict[str, Any], training: bool = False) -> Any:
            ids = tf.concat([features["item_idx"], features["negatives"]], 0)
            n = tf.shape(features["item_idx"])[0]
            kept = tf.cast(tf.random.uniform(tf.shape(ids)) >= config.id_dropout, tf.float32)
            items = self.item_tower(ids, kept * tf.gather(self.is_known, ids))  # (batch + negatives, dim)
            kept = tf.cast(tf.random.uniform((n,)) >= config.id_dropout, tf.float32)
            query = self.query_tower(features["user_idx"], features["last"], kept)  # (batch, dim)
            rating = self.head(tf.concat([query, items[:n]], 1))  # (batch, 1)
            retrieval = self.retrieval(
                query,
                items,
                sample_weight=features["weight"],
                candidate_sampling_probability=tf.gather(self.drawn, ids),
                candidate_ids=ids,
                compute_metrics=False,
            ) / tf.cast(n, tf.float32)  # the task sums over the batch
            self.retrieval_loss.update_state(retrieval)
            ranking = self.ranking(features["target"][:, None], rating, sample_weight=features["rated"])
            return retrieval + config.ranking_weight * ranking

        def rate(self, part: dict[str, Any]) -> Any:
            """What the ranking task predicts for examples."""
            query = self.query_tower(part["user_idx"], part["last"], tf.ones(len(part["user_idx"])))
            items = self.item_tower(part["item_idx"], tf.gather(self.is_known, part["item_idx"]))
            return self.head(tf.concat([query, items], 1))[:, 0]

    return Network()


def _item_tower(config: TwoTowerConfig, material: Material) -> Any:
    """Return a layer from (n,) item_idx and (n,) whether the id is to be read, to (n, dim) of unit length."""
    import tensorflow as tf

    layers, catalog = tf.keras.layers, material.catalog
    row, text = distinct_rows(material.text_vectors)
    codes = {
        "category": codes_of(catalog.categories),
        "department": codes_of(catalog.departments),
        "brand": codes_of(catalog.brands),
    }

    class ItemTower(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            small = tf.keras.initializers.RandomUniform(-0.05, 0.05)
            self.by_id = self.add_weight("by_id", (catalog.n_items, config.dim), initializer=small)
            if config.text:
                self.text, self.row = tf.constant(text), tf.constant(row)
                self.price = tf.constant(_price_features(catalog))
                self.codes = {name: tf.constant(values) for name, values in codes.items()}
                self.by_code = {n: layers.Embedding(int(values.max()) + 1, 16) for n, values in codes.items()}
                self.read = layers.Dense(config.dim, activation="relu")
                self.mix = tf.keras.Sequential(
                    [layers.Dense(2 * config.dim, activation="relu"), layers.Dense(config.dim)]
                )

        def call(self, item_idx: Any, kept: Any) -> Any:
            by_id = tf.gather(self.by_id, item_idx) * kept[:, None]
            if not config.text:
                return tf.math.l2_normalize(by_id, 1)
            parts = [self.read(tf.gather(self.text, tf.gather(self.row, item_idx))), tf.gather(self.price, item_idx)]
            parts += [self.by_code[name](tf.gather(values, item_idx)) for name, values in self.codes.items()]
            return tf.math.l2_normalize(self.mix(tf.concat(parts, 1)) + by_id, 1)

    return ItemTower()


def _ranking_errors(network: Any, examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Errors of the ranking task on the examples held out of it.

    ``rmse`` of ratings or weights; ``auc``, how often the target event is rated above a weaker one, where both are.
    """
    held = np.flatnonzero(examples["rated"] == 0)
    if not len(held):
        return {}
    parts = [held[start : start + ITEM_BATCH] for start in range(0, len(held), ITEM_BATCH)]
    names = ("user_idx", "item_idx", "last")
    rated = np.concatenate([network.rate({name: examples[name][part] for name in names}).numpy() for part in parts])
    errors = {"ranking rmse": float(np.sqrt(np.mean((rated - examples["target"][held]) ** 2)))}
    good = examples["is_target"][held]
    if good.any() and not good.all():
        rank = rankdata(rated)
        n_good, n_weak = int(good.sum()), int((~good).sum())
        errors["ranking auc"] = float((rank[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_weak))
    return errors


def _attribute_codes(attributes: Mapping[str, np.ndarray], n_users: int) -> np.ndarray:
    """Return (n_users, n_attributes) int32; each value of each attribute has a number of its own."""
    codes, first = np.zeros((n_users, len(attributes)), np.int32), 0
    for column, values in enumerate(attributes.values()):
        found = codes_of(values)
        codes[:, column] = found + first
        first += int(found.max(initial=0)) + 1
    return codes


def _price_features(catalog: Catalog) -> np.ndarray:
    """Return (n_items, 2) float32: standardised log price (0 where unknown), and whether it is known."""
    known = np.isfinite(catalog.prices)
    value = np.log1p(np.where(known, catalog.prices, 0.0))
    spread = value[known].std() if known.any() else 0.0
    standard = np.where(known, (value - (value[known].mean() if known.any() else 0)) / (spread or 1.0), 0.0)
    return np.stack([standard, known], 1).astype(np.float32)
