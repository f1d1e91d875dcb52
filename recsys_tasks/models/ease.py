"""``ease``: a linear item-to-item model in closed form (Steck 2019, "Embarrassingly Shallow Autoencoders").

B = I - P diag(1/P_jj), P = (X'X + lambda I)^-1 (equation 8). Deviations from the paper: X holds recency weights
instead of ones, and only the most bought items take part, since the inverse costs their number cubed.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import scipy.linalg

from recsys_tasks.models import base
from recsys_tasks.models.base import Between, Material, Model, best_evidence
from recsys_tasks.snapshot import Interactions


class EASEConfig(base.Config):
    """Configuration of ``ease``."""

    half_life_days: float = 60.0
    regularization: float = 100.0
    """lambda, in squared recency-weighted purchases"""
    max_items: int = 6000


class EASE(Model):
    """Predicts a customer's recency-weighted basket from itself, item by item."""

    name = "ease"
    Config = EASEConfig
    counts = True
    grid: ClassVar = {"half_life_days": (30.0, 60.0, 120.0), "regularization": (100.0, 300.0)}
    space: ClassVar = {
        "half_life_days": Between(7.0, 365.0, log=True),
        "regularization": Between(10.0, 3000.0, log=True),
    }

    def _fit(self, material: Material) -> None:
        last = material.interactions.matrix(self.config.half_life_days, count="last").tocsc()
        buyers = np.diff(last.indptr)
        most_bought = np.argsort(-buyers, kind="stable")[: self.config.max_items]
        self.items_ = np.sort(most_bought[buyers[most_bought] > 0]).astype(np.int32)
        x = last[:, self.items_]
        gram = (x.T @ x).toarray()
        gram[np.diag_indices_from(gram)] += self.config.regularization
        factor, _ = scipy.linalg.lapack.dpotrf(gram, lower=0, overwrite_a=1)
        inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=0, overwrite_c=1)
        upper = np.triu(inverse)
        inverse = upper + np.triu(upper, 1).T
        weights = inverse / -np.diag(inverse)  # column j divided by P_jj
        np.fill_diagonal(weights, 0)
        self.weights_ = weights.astype(np.float32)
        self.n_items_ = np.array([material.catalog.n_items])

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        own = histories.matrix(self.config.half_life_days, count="last")[:, self.items_].astype(np.float32)
        n_items = int(self.n_items_[0])

        def score(users: np.ndarray) -> np.ndarray:
            scores = np.full((len(users), n_items), -np.inf, np.float32)
            told = np.diff(own[users].indptr) > 0
            scores[np.ix_(told, self.items_)] = own[users[told]] @ self.weights_
            return scores

        return score

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item with the largest share of the score."""
        place = np.full(int(self.n_items_[0]) + 1, -1)  # the last one is nobody's
        place[self.items_] = np.arange(len(self.items_))

        def strength(history: np.ndarray, value: np.ndarray, items: np.ndarray) -> np.ndarray:
            of, by = place[items][:, :, None], place[history][:, None]
            return np.where((of >= 0) & (by >= 0), self.weights_[by, of] * value[:, None], 0)

        return best_evidence(histories.newest(self.config.half_life_days), users, items, strength)

    def _state(self) -> dict[str, np.ndarray]:
        return {"items": self.items_, "weights": self.weights_, "n_items": self.n_items_}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.items_, self.weights_, self.n_items_ = state["items"], state["weights"], state["n_items"]
