"""Step 3, train: one recipe on the fit window, its free hyper-parameters chosen on validation; then what ranks them.

Reads the snapshot and the text vectors, and for the second stage the models of the first. Writes
``models/<model>-<key>/`` and an MLflow run with a registered version.
"""

import logging
import time
from itertools import chain

from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)


@timed
def train(night: Night, recipe: str, snapshot: str, vectors: str) -> str:
    """Train a recipe and return the model's id; the same inputs give the id of the model trained before."""
    started = time.monotonic()
    shelf = Shelf.open(night.lake, night.shop, snapshot, vectors)
    wanted = Recipe(recipe)
    sources = shelf.sources(recipe, night.recipes, night.windows.fit_end, night.starts)
    start = night.starts.get(recipe)
    if start:
        log.info("%s: begins with the weights of %s", recipe, start)
    model_id = shelf.fit(wanted, night.windows, sources, start)
    log.info("%s: %s in %.0f s", recipe, model_id, time.monotonic() - started)
    if night.tracked:
        night.tracking.log_training(night.name, wanted, model_id, snapshot, night.lake.path(model_id))
    return model_id


def train_all(night: Night, snapshot: str, vectors: str) -> list[str | None]:
    """Train every recipe, stage after stage; whatever one of them does, the night goes on. None for one that failed."""
    return [_tolerant(night, recipe, snapshot, vectors) for recipe in chain.from_iterable(night.by_stage)]


def _tolerant(night: Night, recipe: str, snapshot: str, vectors: str) -> str | None:
    try:
        return train(night, recipe, snapshot, vectors)
    except Exception:
        log.exception("%s failed to train; the night goes on without it", recipe)
        return None


def rank(night: Night, snapshot: str, vectors: str) -> list[str]:
    """Train the second stage over all models of the first that were trained; return the ids."""
    return [train(night, recipe, snapshot, vectors) for recipe in night.by_stage[1]]


def decide(night: Night, snapshot: str, vectors: str) -> list[str]:
    """Train the third stage, which re-orders what the second says; return the ids."""
    return [train(night, recipe, snapshot, vectors) for recipe in night.by_stage[2]]
