"""What the diversity dial costs and brings, before anybody turns it: accuracy against coverage, on validation.

The model that serves a placement, as it was trained on the fit window, proposes once; every setting arranges the same
proposals. The test window is not looked at, so that who chooses by the curve does not spoil the leaderboard.
"""

import logging
import time
from typing import Any

import numpy as np

from recsys_tasks.contract import PLACEMENT_VIEW
from recsys_tasks.diversity import FLOORS, PROPOSALS, Variety, arranged, divergence, likeness_vectors
from recsys_tasks.metrics import catalog_coverage, hits, ndcg_at_k
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.shop import Dial
from recsys_tasks.split import Windows, truth

log = logging.getLogger(__name__)

SETTINGS: dict[str, tuple[float, ...]] = {
    "mmr": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    "calibration": (0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    "long_tail": (0.1, 0.2, 0.3, 0.5),
    "new": (0.1, 0.2, 0.3, 0.5),
}
"""One turned, the others at 0."""
CUSTOMERS = 2000
"""At most, evenly taken."""
FIRST = 10
"""Places that are measured."""


def tradeoff(shelf: Shelf, model_id: str, placement: str, windows: Windows, k: int) -> dict[str, Any]:
    """Return the curve of a placement whose lists are k long.

    ``points`` holds a setting each: ``turned`` (which was turned; ``nothing``, or ``chosen`` for the shop file's own),
    ``dial`` with its four values, and ``metrics`` of the first ten. What can do nothing here is not turned: likeness
    without vectors, the mix of one department, a floor without items.
    """
    started = time.monotonic()
    known = truth(shelf.interactions, windows.fit_end, windows.validation_end, PLACEMENT_VIEW[placement])
    rows = np.arange(0, len(known.users), -(-len(known.users) // CUSTOMERS))
    users, wanted, candidates = known.users[rows], known.items[rows], shelf.catalog.candidates(windows.fit_end)
    model, wished = shelf.load(model_id), shelf.shop.diversity
    variety = Variety.of(known.past, shelf.catalog, likeness_vectors(shelf, model), shelf.shop)
    proposed = model.recommend(known.past, users, PROPOSALS * k, candidates, exclude_seen=known.exclude_seen).items
    settings = [("nothing", Dial())]
    able = {"mmr": variety.vectors.any(), "calibration": variety.group.any()}
    able |= {name: of[candidates].any() for name, of in variety.kinds.items()}
    settings += [(name, Dial(**{name: value})) for name in SETTINGS if able[name] for value in SETTINGS[name]]
    if chosen := wished.dial(placement):
        settings.append(("chosen", chosen))
    lists = np.full((len(settings), len(users), min(FIRST, proposed.shape[1])), -1, np.int32)
    for part, pool in variety.pools(users, proposed):
        for n, (_, dial) in enumerate(settings):
            columns, _ = arranged(pool, dial, FIRST)
            lists[n, part] = np.where(columns < 0, -1, np.take_along_axis(pool.items, np.maximum(columns, 0), 1))
    points = []
    for (turned, dial), ranked in zip(settings, lists, strict=True):
        metrics = {
            "ndcg@10": float(ndcg_at_k(hits(ranked, wanted), np.diff(wanted.indptr), FIRST).mean()),
            "catalog_coverage@10": catalog_coverage(ranked, FIRST, int(candidates.sum())),
            **described(variety, users, ranked),
        }
        points.append({"turned": turned, "dial": dial.model_dump(), "metrics": metrics})
    log.info("%s: %d settings of the dial in %.1f s", placement, len(settings), time.monotonic() - started)
    recipe = shelf.lake.manifest(model_id)["recipe"]
    return {"recipe": recipe, "label": Recipe(recipe).label, "customers": len(users), "points": points}


def loss(curve: dict[str, Any]) -> float:
    """Return the share of ndcg@10 that the shop's own setting costs; 0 without one."""
    ndcg = {point["turned"]: point["metrics"]["ndcg@10"] for point in curve["points"]}
    return 1 - ndcg["chosen"] / ndcg["nothing"] if "chosen" in ndcg and ndcg["nothing"] > 0 else 0.0


def described(variety: Variety, users: np.ndarray, ranked: np.ndarray) -> dict[str, float]:
    """Return what (n, k) first places are like.

    ``diversity@10`` is 1 less the mean likeness of any two (intra-list diversity; Smyth & McClave 2001),
    ``divergence@10`` that of the customers' mix of departments; ``long_tail@10`` and ``new@10`` are shares of places.
    """
    there, known = ranked >= 0, np.maximum(ranked, 0)
    vectors = variety.vectors[known] * there[..., None]
    n_pairs = there.sum(1) * (there.sum(1) - 1)
    alike = np.maximum(vectors @ vectors.transpose(0, 2, 1), 0)
    pairs = alike.sum((1, 2)) - np.trace(alike, axis1=1, axis2=2)
    taste = variety.tastes(users)
    mix = np.zeros(taste.shape)
    np.add.at(mix, (np.nonzero(there)[0], variety.group[ranked[there]]), 1)
    return {
        "diversity@10": float(1 - (pairs / np.maximum(n_pairs, 1)).mean()),
        "divergence@10": float(divergence(taste, mix / np.maximum(there.sum(1, keepdims=True), 1)).mean()),
        **{f"{name}@10": float(variety.kinds[name][ranked[there]].mean()) for name in FLOORS},
    }
