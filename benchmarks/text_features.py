"""The claim: text finds what ids cannot: items that hardly anybody has bought yet.

Amazon Scientific 2018 (leave-last-out, the full catalogue ranked), its texts encoded by the product's own encoder. A
row is a model with its configuration, and whether it reads text; rows are compared where the item to be found has at
most five training events (*cold*), and everywhere. One thread.

    python benchmarks/text_features.py [--check] [--quick] [--results DIR] [--vectors FILE]

``--quick`` is a made-up world of seconds, of which no figure is checked; it writes a page only to ``--results``.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import torch
from protocol.leave_last_out import TIMELESS, LeaveLastOut, data_folder, made_up
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.embed import Encoder
from recsys_tasks.metrics import hits, ndcg_at_k, recall_at_k
from recsys_tasks.models import Model, model_class
from recsys_tasks.models.base import digest, top_k
from recsys_tasks.split import Truth

ID, TEXT = "id", "text"
SASREC = {**TIMELESS, "batch_size": 128, "dropout": 0.5, "temperature": 0.07, "epochs": 60, "patience": 6}
ROWS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("popular", "popular", ID, {"half_life_days": 1e6}),
    ("item_knn", "item_knn", ID, {"half_life_days": 4.0}),
    ("ease", "ease", ID, {"half_life_days": 5.0, "regularization": 100.0}),
    ("content", "content", TEXT, {"half_life_days": 2.0, "whiten": 0}),
    ("content, whitened", "content", TEXT, {"half_life_days": 2.0, "whiten": 256}),
    ("sasrec", "sasrec", ID, {**SASREC, "text": False}),
    ("sasrec with text", "sasrec", TEXT, SASREC),
]
"""What it is called in the table, the model, what it reads, and its configuration (of those tried on validation)."""
TWIN = ("sasrec", "sasrec with text")
"""One model without text and with it."""
BLENDS: list[tuple[str, dict[str, float]]] = [
    ("item_knn + content", {"item_knn": 1, "content, whitened": 1}),
    ("ease + content", {"ease": 1, "content, whitened": 1}),
    ("ease + 2 content", {"ease": 1, "content, whitened": 2}),
    ("ease + 4 content", {"ease": 1, "content, whitened": 4}),
]
"""Weights of rows above, whose scores are brought to mean 0 and deviation 1 for each customer, then added up."""
COLD = 5
"""Training events of an item that is cold, at most."""


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    parser.add_argument("--vectors", type=Path, help="where encoded texts are kept (default: the temporary folder)")
    options = parser.parse_args()
    folder = data_folder() / "amazon_scientific_2018"
    if not options.quick and not folder.exists():
        print(f"skipped: {folder} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    world = made_up() if options.quick else LeaveLastOut.read(folder)
    vectors = encoded(world.catalog.texts, options.vectors or Path(gettempdir()))
    learned = world.material(vectors)
    events = np.bincount(learned.interactions.item_idx, minlength=world.catalog.n_items)
    without = replace(learned, text_vectors=np.zeros((world.catalog.n_items, 1), np.float32))
    fitted = {}
    for name, model, what, config in ROWS:
        kind = model_class(model)
        fitted[name] = kind(kind.Config(**config)).fit(learned if what == TEXT else without)
    reads = {name: what for name, _, what, _ in ROWS} | dict.fromkeys((name for name, _ in BLENDS), TEXT)
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for window, held in {"validation": world.truth(validation=True), "test": world.truth()}.items():
        scores = {name: scored(model, held) for name, model in fitted.items()}
        scores |= {
            name: np.sum([weight * standardised(scores[row]) for row, weight in parts.items()], 0)
            for name, parts in BLENDS
        }
        measured[window] = {name: judged(found, held, events) for name, found in scores.items()}
    by_ids = [name for name in reads if reads[name] == ID]
    by_text = [name for name in reads if reads[name] == TEXT]
    looked, test = measured["validation"], measured["test"]
    all_of, cold_of = "recall@50", f"recall@50, <= {COLD} events"
    ids, text = (max(names, key=lambda name: looked[name][all_of]) for names in (by_ids, by_text))
    coldest, cold_ids = (max(names, key=lambda name: looked[name][cold_of]) for names in (by_text, by_ids))
    limits = []
    if not options.quick:
        limits = [
            ratio(f"cold items, recall@50: {coldest} of {ids}", test[coldest][cold_of], test[ids][cold_of], ">= 3"),
            ratio(
                f"cold items, recall@50: {coldest} of {cold_ids}",
                test[coldest][cold_of],
                test[cold_ids][cold_of],
                ">= 3",
            ),
            ratio(
                f"cold items, recall@50: {TWIN[1]} of {TWIN[0]}, the same model",
                test[TWIN[1]][cold_of],
                test[TWIN[0]][cold_of],
                ">= 3",
            ),
            ratio(f"all items, recall@50: {coldest} of {ids}", test[coldest][all_of], test[ids][all_of], ">= 1"),
            ratio(f"all items, recall@50: {text} of {ids}", test[text][all_of], test[ids][all_of], ">= 1"),
        ]
    names = list(next(iter(test.values())))
    share = float((events[world.truth().items.indices] <= COLD).mean())
    lines = [
        "# Text features",
        *limits_table(limits),
        "",
        f"{'A made-up world' if options.quick else 'Amazon Scientific 2018'}, {len(world.log.user_ids):,} customers, "
        f"{world.catalog.n_items:,} items, {len(world.log):,} events; everybody's last event is test, the last but one "
        f"validation; all items not seen before are ranked. {share:.1%} of the test events are of an item with at most "
        f"{COLD} training events. A half-life of n days is one of n events. Models are trained without validation and "
        "test, except that sasrec stops by validation; the rows that are compared above are the best on validation.",
        *(
            line
            for window in ("test", "validation")
            for line in [
                "",
                f"## {window.capitalize()}",
                *table(
                    ["row", "reads", *names], [[row, reads[row], *of.values()] for row, of in measured[window].items()]
                ),
            ]
        ),
        "",
        "A blend adds up the scores of its parts, each brought to mean 0 and deviation 1 for each customer.",
        "",
        made_by(["torch", "transformers", "numpy", "scipy"]),
    ]
    found = {"limits": limits, **measured}
    results = options.results or (None if options.quick else RESULTS)
    return finish("text_features", lines, found, results, options.check)


def encoded(texts: list[str], folder: Path) -> np.ndarray:
    """Return (n, d) float32 vectors, kept in the folder for the next run."""
    encoder = Encoder()
    path = folder / f"nightcart-texts-{encoder.id}-{digest(np.array(texts))}.npy"
    if not path.exists():
        unique, row = np.unique(texts, return_inverse=True)
        np.save(path, encoder.encode(unique.tolist())[row], allow_pickle=False)
    vectors = np.load(path, allow_pickle=False).astype(np.float32)
    vectors[[not text for text in texts]] = 0
    return vectors


def scored(model: Model, held: Truth) -> np.ndarray:
    """Return (n_users, n_items) float32 scores, -inf where the model has no opinion."""
    scorer = model._scorer(held.past)
    return np.concatenate([scorer(held.users[start : start + 256]) for start in range(0, len(held.users), 256)])


def standardised(scores: np.ndarray) -> np.ndarray:
    """Return scores with mean 0 and deviation 1 in each row; no opinion is 0."""
    told = np.isfinite(scores)
    n = np.maximum(told.sum(1, keepdims=True), 1).astype(np.float32)
    centred = np.where(told, scores, 0)
    centred = np.where(told, centred - centred.sum(1, keepdims=True) / n, 0)
    return centred / np.maximum(np.sqrt((centred**2).sum(1, keepdims=True) / n), 1e-9)


def judged(scores: np.ndarray, held: Truth, events: np.ndarray) -> dict[str, float]:
    """Return the metrics of the best 50 that were not bought before, where the item is cold and everywhere."""
    bought = held.past.bought[held.users].tocoo()
    scores = scores.copy()
    scores[bought.row, bought.col] = -np.inf
    hit, wanted = hits(top_k(scores, 50)[0], held.items), np.diff(held.items.indptr)
    found = {
        "recall@50": recall_at_k(hit, wanted, 50),
        "recall@10": recall_at_k(hit, wanted, 10),
        "ndcg@10": ndcg_at_k(hit, wanted, 10),
    }
    n_events = events[held.items.indices]  # of the one item to be found
    groups = {"": n_events >= 0, f", <= {COLD} events": n_events <= COLD, ", no event": n_events == 0}
    return {
        f"{name}{group}": float(values[members].mean()) if members.any() else 0.0
        for group, members in groups.items()
        for name, values in found.items()
        if not group or name == "recall@50"
    }


def ratio(name: str, value: float, other: float, limit: str) -> dict[str, Any]:
    """Return a limit on one figure divided by another."""
    return {"name": name, "value": value / other, "limit": limit}


if __name__ == "__main__":
    raise SystemExit(main())
