"""``item_knn``: cosine between items over who bought them (Sarwar et al. 2001), each item keeping its nearest ones.

Deviations from the paper: a purchase counts the less the older it is, once a customer and item, and the score is a
plain sum over the history (no division by the neighbours' similarity), which ranks better in top-k use.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import scipy.sparse as sp

from recsys_tasks.models import base
from recsys_tasks.models.base import Between, Material, Model, opinionated
from recsys_tasks.snapshot import Interactions


class ItemKNNConfig(base.Config):
    """Configuration of ``item_knn``."""

    half_life_days: float = 60.0
    neighbours: int = 200
    shrink: float = 10.0
    """Added to the denominator, so that two purchases in common are not yet a likeness."""
    max_items: int = 20_000
    """Only the most bought items take part."""


class ItemKNN(Model):
    """Sum of similarities between a candidate and the customer's history."""

    name = "item_knn"
    Config = ItemKNNConfig
    counts = True
    grid: ClassVar = {"half_life_days": (30.0, 60.0, 120.0)}
    space: ClassVar = {
        "half_life_days": Between(7.0, 365.0, log=True),
        "neighbours": Between(20, 500, log=True),
        "shrink": Between(0.1, 100.0, log=True),
    }

    def _fit(self, material: Material) -> None:
        last = material.interactions.matrix(self.config.half_life_days, count="last").tocsc()
        buyers = np.diff(last.indptr)
        chosen = np.sort(np.argsort(-buyers, kind="stable")[: self.config.max_items])
        chosen = chosen[buyers[chosen] > 1]
        x = last[:, chosen].astype(np.float32)
        norm = np.sqrt(np.asarray(x.multiply(x).sum(0)).ravel()) + 1e-12
        rows, columns, values = [], [], []
        for start in range(0, len(chosen), 1000):
            block = (x[:, start : start + 1000].T @ x).toarray()  # (1000, n_chosen)
            here = np.arange(len(block))
            block /= norm[start : start + 1000, None] * norm[None, :] + self.config.shrink / np.sqrt(x.shape[0])
            block[here, start + here] = 0
            top, value = base.top_k(opinionated(block), min(self.config.neighbours, len(chosen)))
            rows.append(np.repeat(start + here, top.shape[1]))
            columns.append(top.ravel())
            values.append(value.ravel())
        row, column, value = (np.concatenate(parts or [np.empty(0)]) for parts in (rows, columns, values))
        found = value > 0
        shape = (material.catalog.n_items, material.catalog.n_items)
        # weights_[i, j]: how much having i speaks for j
        self.weights_ = sp.csr_matrix(
            (value[found], (chosen[column[found].astype(int)], chosen[row[found].astype(int)])), shape=shape
        )

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        own = histories.matrix(self.config.half_life_days, count="last").astype(np.float32)
        return lambda users: opinionated((own[users] @ self.weights_).toarray())

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item with the largest share of the score."""
        found = np.full(items.shape, -1, np.int32)
        for row, user in enumerate(users):
            own, wanted = histories.matrix_of(int(user), self.config.half_life_days), np.flatnonzero(items[row] >= 0)
            strength = self.weights_[own.indices][:, items[row, wanted]].toarray() * own.data[:, None]
            if len(own.indices):
                best = own.indices[strength.argmax(0)]
                found[row, wanted] = np.where(strength.max(0) > 0, best, -1)
        return found

    def _state(self) -> dict[str, np.ndarray]:
        w = self.weights_
        return {"data": w.data, "indices": w.indices, "indptr": w.indptr}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        n_items = len(state["indptr"]) - 1
        self.weights_ = sp.csr_matrix((state["data"], state["indices"], state["indptr"]), shape=(n_items, n_items))
