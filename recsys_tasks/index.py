"""Step 6, publish_index: an index of item vectors, its recall measured against exact search.

The vectors are those of the first champion that has any, else those of the text. Reads the champions and the text
vectors; writes ``indexes/<id>/``. The placement ``similar`` is answered from it, and ``bought_together`` from what it
counts of the baskets.
"""

import json
import logging

import numpy as np

from recsys_tasks.lake import fingerprint
from recsys_tasks.nearest import NearestItems
from recsys_tasks.night import Night
from recsys_tasks.placements import Together, baskets
from recsys_tasks.recipe import Shelf
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)

MIN_RECALL = 0.98
"""Below this, exact search is used instead."""


@timed
def publish_index(night: Night, champions: str, snapshot: str, vectors: str) -> str:
    """Build the index and return its id; ``rows.npy`` says which item each vector is."""
    lake = night.lake
    models = {placement: won["model"] for placement, won in lake.manifest(champions)["champions"].items()}
    inputs = {"champions": models, "vectors": vectors, "k": night.k, "baskets": None}
    if "bought_together" in night.shop.placements:
        inputs["baskets"] = {"snapshot": snapshot, "target": night.shop.target}
    index = f"indexes/{fingerprint(inputs)}"
    if lake.has(index):
        log.info("%s: champions and catalogue have not changed, reused", index)
        return index
    shelf = Shelf.open(lake, night.shop, snapshot, vectors)
    name, item_vectors = "text", shelf.text_vectors
    for champion in lake.manifest(champions)["champions"].values():
        found = shelf.load(champion["model"]).item_vectors()
        if found is not None:
            name, item_vectors = champion["recipe"], found
            break
    rows = np.flatnonzero(shelf.catalog.candidates(shelf.interactions.as_of) & item_vectors.any(1))
    nearest = NearestItems.build(np.ascontiguousarray(item_vectors[rows]), 4 * night.k, MIN_RECALL)
    recall = nearest.recall(night.k) if len(rows) else 1.0
    described = {
        "vectors": name,
        "items": len(rows),
        "search": "exact" if nearest.searcher is None else "scann",
        "k": night.k,
        "recall": recall,
    }
    log.info("index of %s: %s", name, json.dumps(described))
    with lake.create(index, described) as folder:
        nearest.save(folder)
        np.save(folder / "rows.npy", rows, allow_pickle=False)
        if inputs["baskets"]:
            lines = baskets(Snapshot(lake, snapshot), night.shop, shelf.interactions.as_of)
            Together.count(*lines, shelf.catalog.n_items, 4 * night.k).save(folder)
    return index
