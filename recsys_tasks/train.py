"""Step 3, train: one recipe on the fit window, its free hyper-parameters chosen on validation.

Reads the snapshot and the text vectors. Writes ``models/<model>-<key>/`` and an MLflow run with a registered version.
"""

import logging
import time

from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf

log = logging.getLogger(__name__)


def train(night: Night, recipe: str, snapshot: str, vectors: str) -> str:
    """Train a recipe and return the model's id; the same inputs give the id of the model trained before."""
    started = time.monotonic()
    shelf = Shelf.open(night.lake, night.shop, snapshot, vectors)
    model_id = shelf.fit(Recipe(recipe), night.windows)
    log.info("%s: %s in %.0f s", recipe, model_id, time.monotonic() - started)
    night.tracking.log_training(night.name, Recipe(recipe), model_id, snapshot, night.lake.path(model_id))
    return model_id
