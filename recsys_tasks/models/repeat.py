"""``repeat``: what this customer buys. Own events, the older the less; the strongest baseline where people rebuy."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from recsys_tasks.models import base
from recsys_tasks.models.base import Between, Material, Model, opinionated
from recsys_tasks.snapshot import Interactions


class RepeatConfig(base.Config):
    """Configuration of ``repeat``."""

    half_life_days: float = 90.0


class Repeat(Model):
    """Sum of a customer's own events with an item, halved every ``half_life_days``."""

    name = "repeat"
    Config = RepeatConfig
    counts = True
    view = "all"
    grid: ClassVar = {"half_life_days": (30.0, 90.0, 360.0)}
    space: ClassVar = {"half_life_days": Between(5.0, 730.0, log=True)}

    def _fit(self, material: Material) -> None:
        pass  # all it needs is in the histories

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        own = histories.matrix(self.config.half_life_days).astype(np.float32)
        return lambda users: opinionated(own[users].toarray())

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Each item speaks for itself."""
        return items.astype(np.int32)

    def _state(self) -> dict[str, np.ndarray]:
        return {}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        pass
