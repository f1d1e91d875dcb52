"""``content``: a customer is the recency-weighted sum of the text vectors of their history, an item is its own.

The score is the cosine of the two (Rocchio's profile without the negative part). An item needs no event, only a text:
it is what this model is there for. Vectors may be whitened before (Su et al. 2021, "Whitening Sentence
Representations", equations 5 to 7): sentence encoders put all texts into a narrow cone, in which every pair is alike.
Our deviation: what is whitened is the distinct texts of the catalogue, each counting once.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import scipy.sparse as sp
from pydantic import Field

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
from recsys_tasks.snapshot import Interactions


class ContentConfig(base.Config):
    """Configuration of ``content``."""

    half_life_days: float = 60.0
    whiten: int = 0
    """components kept of the whitened vectors; 0 leaves the vectors as the encoder made them"""
    same_category: bool = False
    """only items of a category of the history"""
    price_band: float | None = Field(None, gt=1)
    """only items within this factor, up or down, of the history's typical price (the geometric mean, weighted by
    recency); an item of unknown price passes"""


class Content(Model):
    """Cosine between the texts of a history and the text of an item."""

    name = "content"
    Config = ContentConfig
    counts = True
    grid: ClassVar = {"half_life_days": (15.0, 60.0, 240.0), "whiten": (0, 64, 256)}
    space: ClassVar = {"half_life_days": Between(5.0, 500.0, log=True), "whiten": (0, 32, 64, 128, 256)}

    def _fit(self, material: Material) -> None:
        catalog = material.catalog
        self.text_of_, vectors = distinct_rows(material.text_vectors)
        told = np.abs(vectors).sum(1) > 0
        known = np.zeros(len(vectors), bool)  # texts that stood in the catalogue when the window ended
        known[self.text_of_[catalog.known_since < material.interactions.as_of]] = True
        if self.config.whiten and (told & known).sum() > 1:
            mean, matrix = whitening(vectors[told & known], self.config.whiten)
            vectors = (vectors - mean) @ matrix
            vectors[~told] = 0
        self.vectors_ = unit(vectors).astype(np.float32)
        self.categories_ = codes_of(catalog.categories)
        self.prices_ = np.where(catalog.prices > 0, catalog.prices, 0.0)  # 0 where unknown

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        own = histories.matrix(self.config.half_life_days, count="last")
        n_items, every_item = len(self.text_of_), np.arange(len(self.text_of_))
        to_text, to_category = (
            sp.csr_matrix((np.ones(n_items), (every_item, column)), shape=(n_items, int(column.max()) + 1))
            for column in (self.text_of_, self.categories_)
        )
        untold = (np.abs(self.vectors_).sum(1) == 0)[self.text_of_]
        priced = self.prices_ > 0
        log_prices = np.log(np.where(priced, self.prices_, 1.0))

        def score(users: np.ndarray) -> np.ndarray:
            history = own[users]
            profile = unit((history @ to_text) @ self.vectors_).astype(np.float32)  # (n, d)
            scores = (profile @ self.vectors_.T)[:, self.text_of_]  # identical texts are multiplied once
            scores[:, untold] = -np.inf
            scores[~profile.any(1)] = -np.inf
            if self.config.same_category:
                scores[((history @ to_category).toarray() == 0)[:, self.categories_]] = -np.inf
            if self.config.price_band:
                total, weight = (history @ np.stack([log_prices, priced], 1)).T  # (n,) each
                typical = np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan)[:, None]
                scores[(np.abs(log_prices - typical) > np.log(self.config.price_band)) & priced] = -np.inf
            return scores

        return score

    def _dot(self, histories: Interactions) -> Dot | None:
        if self.config.same_category or self.config.price_band:
            return None
        own, vectors = histories.newest(self.config.half_life_days), self.item_vectors()

        def queries(users: np.ndarray) -> np.ndarray:
            profile = unit(own[users] @ vectors).astype(np.float32)
            profile[~profile.any(1)] = np.nan
            return profile

        return Dot(vectors, np.where(vectors.any(1), 0, -np.inf).astype(np.float32), queries)

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item with the largest share of the score."""
        vectors = self.item_vectors()
        likeness = nearest_evidence(vectors.__getitem__)
        return best_evidence(
            histories.newest(self.config.half_life_days),
            users,
            items,
            lambda history, value, items: likeness(history, value, items) * value[:, None],
        )

    def item_vectors(self) -> np.ndarray:
        """Return the text vectors the model works with, of unit length; zero for an item without text."""
        return self.vectors_[self.text_of_]

    def _state(self) -> dict[str, np.ndarray]:
        return {
            "vectors": self.vectors_,
            "text_of": self.text_of_,
            "categories": self.categories_,
            "prices": self.prices_,
        }

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.vectors_, self.text_of_ = state["vectors"], state["text_of"]
        self.categories_, self.prices_ = state["categories"], state["prices"]


def whitening(vectors: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (d,) and the matrix (d, at most ``components``) that give the vectors the identity covariance.

    Directions in which the vectors do not differ are left out: nothing can be divided by their variance of 0.
    """
    mean = vectors.mean(0, dtype=np.float64)
    centred = vectors - mean
    variance, directions = np.linalg.eigh(centred.T @ centred / len(vectors))  # rising
    variance, directions = variance[::-1][:components], directions[:, ::-1][:, :components]
    kept = variance > 1e-7 * variance[0]
    return mean, directions[:, kept] / np.sqrt(variance[kept])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1; a row of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)
