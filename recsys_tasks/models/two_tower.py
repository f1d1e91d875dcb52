"""``two_tower``: a user tower and an item tower that meet in a dot product, trained on two tasks at once.

Retrieval is an in-batch softmax (Yi et al. 2019, "Sampling-bias-corrected neural modeling"), from whose logits log Q,
the log of an item's share of the training events, is taken, so that popular items are not punished for standing in
every batch; ranking is a small head that predicts the rating, or without ratings the event's weight. Both are tasks
of TensorFlow Recommenders.

Differences from the paper: Q is counted over the whole window instead of estimated in a stream; a pair of user and
item is one example however often it was bought, weighted by the recency of its newest event. Vectors have unit length
and the softmax a temperature.
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from recsys_tasks.models import base
from recsys_tasks.models.base import Between, Material, Model, best_evidence
from recsys_tasks.snapshot import Catalog, Interactions

log = logging.getLogger(__name__)


class TwoTowerConfig(base.Config):
    """Configuration of ``two_tower``."""

    dim: int = 64
    """width of the vectors that meet"""
    batch_size: int = 1024
    epochs: int = 6
    """most epochs; with a validation window, training stops when ndcg@10 there has not risen for two"""
    learning_rate: float = 0.1
    """of Adagrad, whose steps touch only the embeddings of the batch"""
    temperature: float = 0.15
    half_life_days: float = 90.0
    """an example counts half when its newest event is this old"""
    ranking_weight: float = 0.1
    """share of the ranking task's loss beside the retrieval task's 1"""


PATIENCE = 2
ITEM_BATCH = 8192


class TwoTower(Model):
    """Users by id; items by text, id, category, department, brand and price."""

    name = "two_tower"
    Config = TwoTowerConfig
    space: ClassVar = {
        "dim": (32, 64, 128),
        "learning_rate": Between(0.001, 0.3, log=True),
        "temperature": Between(0.05, 0.5, log=True),
        "half_life_days": Between(15.0, 365.0, log=True),
        "ranking_weight": Between(0.01, 1.0, log=True),
    }

    def _fit(self, material: Material) -> None:
        import tensorflow as tf

        tf.keras.utils.set_random_seed(self.seed)
        tf.config.experimental.enable_op_determinism()
        examples = _examples(material.interactions, self.config.half_life_days)
        users = np.unique(examples["user_idx"])
        network = _network(self.config, material, users, examples["probability"])
        network.compile(optimizer=tf.keras.optimizers.Adagrad(self.config.learning_rate))
        data = _batches(examples, material.interactions.user_ids, self.config.batch_size, self.seed)
        best, best_epoch = -1.0, 0
        state: dict[str, np.ndarray] = {}
        for epoch in range(1, self.config.epochs + 1):
            history = network.fit(data, epochs=1, verbose=0).history
            self._remember(network, material, users)
            self._rmse = float(history["root_mean_squared_error"][-1])
            loss = history["retrieval_loss"][-1]
            line = f"epoch {epoch} of at most {self.config.epochs}: loss {loss:.4f}, rmse {self._rmse:.4f}"
            if not material.validation:
                log.info("%s: %s", self.name, line)
                continue
            found = float(self.validate(material, max_users=1000).mean())
            self.curve.append({"epoch": epoch, "ndcg@10": found})
            log.info("%s: %s, validation ndcg@10 %.4f", self.name, line, found)
            if found > best:
                best, best_epoch, state = found, epoch, self._state()
            elif epoch - best_epoch >= PATIENCE:
                break
        if state:
            self._restore(state)
            self.config = self.config.model_copy(update={"epochs": best_epoch})

    def _remember(self, network: Any, material: Material, users: np.ndarray) -> None:
        """Keep the vectors of every item, and of every user with an example (others have a row of zeros)."""
        n_items = material.catalog.n_items
        items = [network.item_tower(np.arange(s, min(s + ITEM_BATCH, n_items))) for s in range(0, n_items, ITEM_BATCH)]
        self.item_vectors_ = np.concatenate([part.numpy() for part in items])
        self.user_vectors_ = np.zeros((material.interactions.n_users, self.config.dim), np.float32)
        self.user_vectors_[users] = network.user_tower(material.interactions.user_ids[users].astype(str)).numpy()

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        known = np.abs(self.user_vectors_).sum(1) > 0

        def score(users: np.ndarray) -> np.ndarray:
            scores = self.user_vectors_[users] @ self.item_vectors_.T
            scores[~known[users]] = -np.inf
            return scores

        return score

    def evidence(self, histories: Interactions, user: int, items: np.ndarray) -> np.ndarray:
        """Return the history item whose vector is nearest."""
        history = histories.bought[user].indices
        return best_evidence(history, self.item_vectors_[history] @ self.item_vectors_[items].T)

    def item_vectors(self) -> np.ndarray:
        """Return the item tower's output, of unit length."""
        return self.item_vectors_

    def report(self) -> dict[str, float]:
        """Return the error of the ranking task on the last epoch."""
        return {"ranking rmse": self._rmse}

    def _state(self) -> dict[str, np.ndarray]:
        return {"user_vectors": self.user_vectors_, "item_vectors": self.item_vectors_, "rmse": np.array([self._rmse])}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.user_vectors_, self.item_vectors_ = state["user_vectors"], state["item_vectors"]
        self._rmse = float(state["rmse"][0])


def _examples(interactions: Interactions, half_life_days: float) -> dict[str, np.ndarray]:
    """One example a pair of user and item, of its newest event; ``probability`` is the item's share of the examples."""
    pair = interactions.user_idx.astype(np.int64) * interactions.n_items + interactions.item_idx
    _, newest = np.unique(pair[::-1], return_index=True)
    rows = np.sort(len(pair) - 1 - newest)
    recency = 0.5 ** (interactions.age_days[rows] / half_life_days)
    target = np.where(np.isnan(interactions.rating[rows]), interactions.weight[rows], interactions.rating[rows])
    item = interactions.item_idx[rows]
    share = np.bincount(item, weights=recency, minlength=interactions.n_items)
    return {
        "user_idx": interactions.user_idx[rows],
        "item_idx": item,
        "weight": (recency / recency.mean()).astype(np.float32),
        "target": target.astype(np.float32),
        "probability": (share / share.sum()).astype(np.float32),
    }


def _batches(examples: dict[str, np.ndarray], user_ids: np.ndarray, batch_size: int, seed: int) -> Any:
    """Return a dataset of shuffled batches; ``user_id`` is text, as the user tower's lookup reads it."""
    import tensorflow as tf

    columns = {name: examples[name] for name in ("user_idx", "item_idx", "weight", "target")}
    texts = tf.constant(user_ids.astype(str))
    n_examples = len(examples["user_idx"])
    batch_size = min(batch_size, n_examples)
    data = tf.data.Dataset.from_tensor_slices(columns).shuffle(n_examples, seed=seed)
    data = data.batch(batch_size, drop_remainder=True)
    return data.map(
        lambda batch: {**batch, "user_id": tf.gather(texts, batch["user_idx"])}, deterministic=True
    ).prefetch(2)


def _network(config: TwoTowerConfig, material: Material, users: np.ndarray, probability: np.ndarray) -> Any:
    """Return the two towers with their tasks, a ``tfrs.Model``."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    layers = tf.keras.layers

    class Network(tfrs.Model):
        """``user_tower``: (n,) text -> (n, dim); ``item_tower``: (n,) item_idx -> (n, dim); both of unit length."""

        def __init__(self) -> None:
            super().__init__()
            self.user_tower = tf.keras.Sequential(
                [
                    layers.StringLookup(vocabulary=material.interactions.user_ids[users].astype(str)),
                    layers.Embedding(len(users) + 1, config.dim),
                    layers.UnitNormalization(),
                ]
            )
            self.item_tower = _item_tower(config.dim, material)
            self.rating_head = tf.keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(1)])
            self.retrieval = tfrs.tasks.Retrieval(temperature=config.temperature, remove_accidental_hits=True)
            self.ranking = tfrs.tasks.Ranking(
                loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
            )
            self.probability = tf.constant(probability)
            self.retrieval_loss = tf.keras.metrics.Mean("retrieval_loss")

        def compute_loss(self, features: dict[str, Any], training: bool = False) -> Any:
            user = self.user_tower(features["user_id"])  # (batch, dim)
            item = self.item_tower(features["item_idx"])  # (batch, dim)
            rating = self.rating_head(tf.concat([user, item], 1))  # (batch, 1)
            retrieval = self.retrieval(
                user,
                item,
                sample_weight=features["weight"],
                candidate_sampling_probability=tf.gather(self.probability, features["item_idx"]),
                candidate_ids=features["item_idx"],
                compute_metrics=False,
            ) / tf.cast(tf.shape(user)[0], tf.float32)  # the task sums over the batch
            self.retrieval_loss.update_state(retrieval)
            return retrieval + config.ranking_weight * self.ranking(features["target"][:, None], rating)

    return Network()


def _item_tower(dim: int, material: Material) -> Any:
    """Return a layer from (n,) item_idx to (n, dim), fed by the item's text vector, id, category, brand and price."""
    import tensorflow as tf

    layers, catalog = tf.keras.layers, material.catalog
    text, row = np.unique(material.text_vectors, axis=0, return_inverse=True)
    codes = {
        "category": _codes(catalog.categories),
        "department": _codes(catalog.departments),
        "brand": _codes(catalog.brands),
    }

    class ItemTower(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.row = tf.constant(text), tf.constant(row.ravel().astype(np.int32))
            self.price = tf.constant(_price_features(catalog))
            self.codes = {name: tf.constant(values) for name, values in codes.items()}
            self.by_id = layers.Embedding(catalog.n_items, dim)
            self.by_code = {name: layers.Embedding(int(values.max()) + 1, 16) for name, values in codes.items()}
            self.read = layers.Dense(dim, activation="relu")
            self.mix = tf.keras.Sequential([layers.Dense(2 * dim, activation="relu"), layers.Dense(dim)])
            self.unit = layers.UnitNormalization()

        def call(self, item_idx: Any) -> Any:
            parts = [self.read(tf.gather(self.text, tf.gather(self.row, item_idx))), tf.gather(self.price, item_idx)]
            parts += [self.by_code[name](tf.gather(values, item_idx)) for name, values in self.codes.items()]
            return self.unit(self.mix(tf.concat(parts, 1)) + self.by_id(item_idx))

    return ItemTower()


def _codes(values: list[str]) -> np.ndarray:
    """Return a number for each different value; (n_items,) int32."""
    return np.unique(np.array(values, dtype=str), return_inverse=True)[1].astype(np.int32)


def _price_features(catalog: Catalog) -> np.ndarray:
    """Return (n_items, 2) float32: standardised log price (0 where unknown), and whether it is known."""
    known = np.isfinite(catalog.prices)
    value = np.log1p(np.where(known, catalog.prices, 0.0))
    spread = value[known].std() if known.any() else 0.0
    standard = np.where(known, (value - (value[known].mean() if known.any() else 0)) / (spread or 1.0), 0.0)
    return np.stack([standard, known], 1).astype(np.float32)
