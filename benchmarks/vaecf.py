"""The claim: ``vaecf`` ranks as Cornac's own scoring does, many times faster, because a batch is scored at once.

Trains on MovieLens-1M (leave-last-out, the full catalogue ranked) and has the same network score the same customers
from the same histories by Cornac, one at a time, and by ours. Baselines stand beside it. One thread.

    python benchmarks/vaecf.py [--check] [--quick] [--results DIR]

``--quick`` is a made-up world of seconds, of which only the ranking is checked; it writes a page only to ``--results``.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from protocol.leave_last_out import LeaveLastOut, data_folder, made_up
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.metrics import hits, ndcg_at_k, recall_at_k
from recsys_tasks.models import Model, model_class
from recsys_tasks.models.base import top_k
from recsys_tasks.models.vaecf import VAECF, VAECFConfig
from recsys_tasks.snapshot import Interactions
from recsys_tasks.split import Truth

CHOSEN = {"window_days": 10.0, "epochs": 80}
"""Best on validation of what was tried; a day is an event here."""
NETWORKS = {
    "chosen on validation": CHOSEN,
    "Cornac's default": {"k": 10, "autoencoder_structure": (20,)},
    "the paper's": {"k": 200, "autoencoder_structure": (600,)},
}
BASELINES: dict[str, dict[str, Any]] = {
    "popular": {"half_life_days": 1e6},
    "item_knn": {"half_life_days": 10.0},
    "ease": {"half_life_days": 30.0, "regularization": 100.0},
}
SEEDS = (0, 1, 2)
BATCH = 256
"""Customers at a time, as ``recommend`` has it."""


class WithCornac(VAECF):
    """Keeps the trained model of Cornac."""

    def _recommender(self) -> Any:
        self.cornac = super()._recommender()
        return self.cornac


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    folder = data_folder() / "movielens_1m"
    if not options.quick and not folder.exists():
        print(f"skipped: {folder} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    world = made_up() if options.quick else LeaveLastOut.read(folder)
    networks = {"chosen on validation": {**CHOSEN, "epochs": 20, "batch_size": 20}} if options.quick else NETWORKS
    learned, last = world.material(), world.truth()
    rows, fitted = [], []
    for name, config in BASELINES.items():
        kind = model_class(name)
        rows.append([name, [quality(kind(kind.Config(**config)).fit(learned), last, last.past)]])
    ours: dict[str, list[dict[str, float]]] = {"now": [], "then": [], "cornac": []}
    chosen = VAECF(VAECFConfig(**networks["chosen on validation"])).fit(learned).config
    for seed in SEEDS[:1] if options.quick else SEEDS:
        model = WithCornac(chosen, seed).fit(replace(learned, validation=None))
        fitted.append(model)
        ours["now"].append(quality(model, last, last.past))
        ours["then"].append(quality(model, last, learned.interactions))
        ours["cornac"].append(judged(cornacs_lists(model, learned.interactions, last.users), last))
    rows += [["vaecf, from the history of the moment", ours["now"]]]
    rows += [["vaecf, from the history it was trained on", ours["then"]]]
    rows += [["the same network scored by Cornac, from the latter", ours["cornac"]]]
    times = {
        name: timed(
            fitted[0]
            if name == "chosen on validation"
            else WithCornac(VAECFConfig(**{**config, "epochs": 1})).fit(replace(learned, validation=None)),
            learned.interactions,
            100 if options.quick else 1000,
        )
        for name, config in networks.items()
    }
    apart = max(abs(a["ndcg@10"] / b["ndcg@10"] - 1) for a, b in zip(ours["then"], ours["cornac"], strict=True))
    times_faster = {name: t["cornac score"] / t["batch"] for name, t in times.items()}
    limits = [{"name": "vaecf: ndcg@10 apart from Cornac's own scoring, share", "value": apart, "limit": "< 0.01"}]
    limits += [
        {"name": f"{name}: times faster a customer than Cornac's score", "value": faster, "limit": ">= 50"}
        for name, faster in times_faster.items()
        if not options.quick and name != "the paper's"  # fixed costs of a small world say nothing
    ]
    measured = {"limits": limits, "quality": dict(rows), "microseconds": times, "epochs": chosen.epochs}
    lines = [
        "# vaecf",
        *limits_table(limits),
        "",
        f"{'A made-up world' if options.quick else 'MovieLens-1M'}, {len(last.users):,} customers, "
        f"{world.catalog.n_items:,} items, {len(world.log):,} events; everybody's last event is test, the last but one "
        "validation; all items not seen before are ranked. A half-life or window of n days is one of n events.",
        *table(["model", "ndcg@10", "recall@10", "seeds"], [[name, *spread(found)] for name, found in rows]),
        "",
        f"`vaecf` is `{chosen!r}`, its epochs chosen on validation with the first seed.",
        "",
        "Microseconds a customer, one thread, median of 5 turns. *batch* is our scores of all items, "
        f"{BATCH} customers at a time; *top 10* adds the choice of the best.",
        *table(
            ["network", "Cornac's `score`", "batch", "times", "Cornac's `rank`", "Cornac's `rank(k=10)`", "top 10"],
            [
                [name, t["cornac score"], t["batch"], times_faster[name]]
                # and in the order of the head
                + [t[way] for way in ("cornac rank", "cornac rank 10", "top 10")]
                for name, t in times.items()
            ],
        ),
        "",
        made_by(["cornac", "torch", "numpy", "scipy"]),
    ]
    return finish("vaecf", lines, measured, options.results or (None if options.quick else RESULTS), options.check)


def quality(model: Model, last: Truth, histories: Interactions) -> dict[str, float]:
    """Return the metrics of lists made from these histories."""
    everything = np.ones(last.items.shape[1], bool)
    return judged(model.recommend(histories, last.users, 10, everything, exclude_seen=True).items, last)


def judged(ranked: np.ndarray, last: Truth) -> dict[str, float]:
    """Return the metrics of (n_users, 10) lists."""
    hit, wanted = hits(ranked, last.items), np.diff(last.items.indptr)
    return {
        "ndcg@10": float(ndcg_at_k(hit, wanted, 10).mean()),
        "recall@10": float(recall_at_k(hit, wanted, 10).mean()),
    }


def cornacs_lists(model: WithCornac, histories: Interactions, users: np.ndarray) -> np.ndarray:
    """Return (n_users, 10) item_idx from what Cornac's ``score`` says; it numbers users and items by itself."""
    row = np.cumsum(np.diff(model._histories(histories).indptr) > 0) - 1
    found = []
    for user in users:
        scores = np.full(histories.n_items, -np.inf, np.float32)
        scores[model.items_] = model.cornac.score(int(row[user]))
        scores[histories.bought[user].indices] = -np.inf
        found.append(top_k(scores[None], 10)[0][0])
    return np.stack(found)


def timed(model: WithCornac, histories: Interactions, n: int) -> dict[str, float]:
    """Return microseconds a customer of each way to score n customers."""
    users = np.flatnonzero(np.diff(model._histories(histories).indptr) > 0)
    users = np.resize(users, max(len(users), BATCH))
    scorer = model._scorer(histories)

    def batches(then: Callable[[np.ndarray], Any]) -> int:
        for start in range(0, len(users) - BATCH + 1, BATCH):
            then(scorer(users[start : start + BATCH]))
        return start + BATCH

    def one_by_one(of: Callable[[int], Any]) -> int:
        for user in range(n):
            of(user)
        return n

    ways: dict[str, Callable[[], int]] = {
        "cornac score": lambda: one_by_one(model.cornac.score),
        "batch": lambda: batches(lambda scores: scores),
        "cornac rank": lambda: one_by_one(model.cornac.rank),
        "cornac rank 10": lambda: one_by_one(lambda user: model.cornac.rank(user, k=10)),
        "top 10": lambda: batches(lambda scores: top_k(scores, 10)),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, way in ways.items():
            started = time.perf_counter()
            done = way()
            taken[name].append((time.perf_counter() - started) / done * 1e6)
    return {name: median(values) for name, values in taken.items()}


def spread(found: list[dict[str, float]]) -> list[str]:
    """Return mean and standard deviation of each metric over seeds, and their number."""
    cells = []
    for name in ("ndcg@10", "recall@10"):
        values = [one[name] for one in found]
        cells.append(f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else ""))
    return [*cells, str(len(found))]


if __name__ == "__main__":
    raise SystemExit(main())
