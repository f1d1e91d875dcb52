"""``popular``: what everybody buys now. Counts that halve every few days; nothing personal."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from recsys_tasks.models import base
from recsys_tasks.models.base import Between, Material, Model, opinionated
from recsys_tasks.snapshot import Interactions


class PopularConfig(base.Config):
    """Configuration of ``popular``."""

    half_life_days: float = 14.0


class Popular(Model):
    """Recent popularity at the moment of recommending."""

    name = "popular"
    Config = PopularConfig
    counts = True
    view = "all"
    grid: ClassVar = {"half_life_days": (7.0, 14.0, 30.0, 90.0)}
    space: ClassVar = {"half_life_days": Between(1.0, 365.0, log=True)}

    def _fit(self, material: Material) -> None:
        pass  # all it needs is in the histories

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        popularity = opinionated(histories.popularity(self.config.half_life_days))
        return lambda users: np.broadcast_to(popularity, (len(users), len(popularity))).copy()

    def _state(self) -> dict[str, np.ndarray]:
        return {}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        pass
