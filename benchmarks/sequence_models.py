"""The claim: ``sasrec`` ranks as well as published sequence models do, trained within minutes on two cores.

Leave-last-out on the files that the papers use: everybody's last event is test, the last but one validation, the whole
catalogue less what a customer had is ranked. Early stopping and every choice are made on validation; test is read once
a row. Baselines stand beside it, and the peers that are installed (``pip install implicit``).

    python benchmarks/sequence_models.py [--only amazon_beauty_2014] [--seeds 3] [--ease] [--check] [--quick]

A data set run alone replaces its own section of the page. ``--quick`` is a made-up world of seconds, of which only the
form is checked; it writes a page only to ``--results``.
"""

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from protocol.leave_last_out import TIMELESS, LeaveLastOut, data_folder, made_up
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.embed import Encoder
from recsys_tasks.metrics import catalog_coverage, hits, ndcg_at_k, recall_at_k
from recsys_tasks.models import Material, model_class
from recsys_tasks.split import Truth

BASELINES: dict[str, dict[str, Any]] = {
    "popular": {"half_life_days": 1e6},
    "item_knn": {"half_life_days": 10.0},
}
"""A day is an event here (see the protocol)."""
EASE = {"half_life_days": 30.0, "regularization": 100.0, "max_items": 100_000}
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "amazon_beauty_2014": {
        "sasrec": {
            **TIMELESS,
            "batch_size": 128,
            "dropout": 0.5,
            "temperature": 0.07,
            "epochs": 60,
            "patience": 6,
        },
    },
    "movielens_1m": {
        "sasrec": {
            **TIMELESS,
            "blocks": 2,
            "max_length": 200,
            "dropout": 0.2,
            "batch_size": 32,
            "temperature": None,
            "text": False,
            "scale": True,
            "epochs": 90,
            "patience": 8,
        },
    },
    "a made-up world": {
        "sasrec": {**TIMELESS, "dim": 16, "max_length": 8, "epochs": 5, "learning_rate": 0.01},
    },
}
LIMITS = {
    "amazon_beauty_2014": {"recall@10": ">= 0.085", "ndcg@10": ">= 0.047", "seconds": "< 1200"},
    "movielens_1m": {"recall@10": ">= 0.3", "ndcg@10": ">= 0.172", "seconds": "< 3600"},
}
"""Of the row ``sasrec``, which has not learned from the validation events."""
COLUMNS = ("recall@10", "ndcg@10", "recall@50", "coverage@50", "validation ndcg@10", "epochs", "seconds")
PUBLISHED = {
    "amazon_beauty_2014": "SASRec .0605 / .0318, ActionPiece .0775 / .0424, FuXi-a .0809 / .0451, SASRec with sampled "
    "softmax .0921 / .0531 (recall@10 / ndcg@10, as github.com/blondered/transformer_benchmark gives them)",
    "movielens_1m": "SASRec with its own loss .2500 / .1341, gSASRec .3003 / .1726, HSTU .3097 / .1720, SASRec with "
    "full cross entropy .3152 / .1821 (recall@10 / ndcg@10, as github.com/blondered/transformer_benchmark gives them)",
}

log = logging.getLogger("sequence_models")


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(LIMITS), help="run this data set; may be given again")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ease", action="store_true", help="EASE too: minutes and gigabytes for 12,101 items")
    parser.add_argument("--no-refit", action="store_true", help="leave the rows refitted with validation out")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    results = options.results or (None if options.quick else RESULTS)
    known = results / "sequence_models.json" if results else None
    parts = json.loads(known.read_text())["parts"] if known and known.exists() else {}
    for name in ["a made-up world"] if options.quick else options.only or list(LIMITS):
        folder = data_folder() / name
        if options.quick:
            world = made_up()
        elif folder.exists():
            world = LeaveLastOut.read(folder)
        else:
            print(f"skipped: {folder} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
            continue
        seeds, ease = 1 if options.quick else options.seeds, options.ease or options.quick
        parts[name] = measure(name, world, seeds, ease=ease, refit=not options.no_refit)
    limits = [
        {"name": f"{part}: sasrec {metric}", "value": mean(run[metric] for run in parts[part]["rows"]["sasrec"])}
        | {"limit": limit}
        for part in parts
        for metric, limit in LIMITS.get(part, {}).items()
    ]
    lines = ["# Models of the order of events"]
    if limits:
        lines += limits_table(limits)
    for name, part in parts.items():
        lines += section(name, part)
    return finish("sequence_models", lines, {"limits": limits, "parts": parts}, results, options.check)


def measure(name: str, world: LeaveLastOut, seeds: int, *, ease: bool, refit: bool) -> dict[str, Any]:
    """Train every model and judge its lists; one dict a run, by the name of the row."""
    test = world.truth()
    started = time.monotonic()
    with_text = any(config.get("text", True) for config in CONFIGS[name].values())
    learned = world.material(Encoder().encode(world.catalog.texts).astype(np.float32) if with_text else None)
    embedding = time.monotonic() - started
    rows: dict[str, list[dict[str, float]]] = {}
    for row, config in {**BASELINES, **({"ease": EASE} if ease else {})}.items():
        rows[row] = [of_product(row, config, 0, learned, test)]
    left_out = []
    for row, (package, peer) in PEERS.items():
        if importlib.util.find_spec(package):
            rows[row] = [peer(learned, test)]
        else:
            left_out.append(f"{row}: {package} is not installed")
    for row, config in CONFIGS[name].items():
        text_seconds = embedding if config.get("text", True) else 0.0
        rows[row] = [of_product("sasrec", config, seed, learned, test, text_seconds) for seed in range(seeds)]
        if refit:
            again = f"{row}, refitted with the validation events"
            rows[again] = [of_refit(config, seed, learned, test, run) for seed, run in enumerate(rows[row])]
    return {
        "rows": rows,
        "configs": CONFIGS[name],
        "left out": left_out,
        "embedding": embedding if with_text else None,
        "customers": len(test.users),
        "items": world.catalog.n_items,
        "events": len(world.log),
        "made by": made_by(["tensorflow", "numpy", "scipy"]),
    }


def of_product(
    name: str, config: dict[str, Any], seed: int, learned: Material, test: Truth, seconds: float = 0.0
) -> dict[str, float]:
    """Train a model of the product and judge it; ``seconds`` were spent before."""
    kind = model_class(name)
    started = time.monotonic() - seconds
    model = kind(kind.Config(**config), seed).fit(learned)
    seconds = time.monotonic() - started
    everything = np.ones(test.items.shape[1], bool)
    ranked = model.recommend(test.past, test.users, 50, everything, exclude_seen=True).items
    found = {**judged(ranked, test), "seconds": seconds, "validation ndcg@10": float(model.validate(learned).mean())}
    if "epochs" in kind.Config.model_fields:
        found["epochs"] = model.config.epochs
    log.info("%s, seed %d: %s", name, seed, found)
    return found


def of_refit(
    config: dict[str, Any], seed: int, learned: Material, test: Truth, found: dict[str, float]
) -> dict[str, float]:
    """Train ``sasrec`` again as a night does, on all that came before the test, for as long as validation chose.

    Papers mostly give what is ``found`` without.
    """
    kind = model_class("sasrec")
    started = time.monotonic() - found["seconds"]
    chosen = kind.Config(**{**config, "epochs": int(found["epochs"])})
    model = kind(chosen, seed).fit(Material(test.past, learned.catalog, learned.text_vectors))
    seconds = time.monotonic() - started
    ranked = model.recommend(test.past, test.users, 50, np.ones(test.items.shape[1], bool), exclude_seen=True).items
    refitted = {**judged(ranked, test), "seconds": seconds, "epochs": found["epochs"]}
    log.info("sasrec refitted, seed %d: %s", seed, refitted)
    return refitted


def judged(ranked: np.ndarray, test: Truth) -> dict[str, float]:
    """Return the metrics of (n_users, 50) lists."""
    hit, wanted = hits(ranked, test.items), np.diff(test.items.indptr)
    return {
        "recall@10": float(recall_at_k(hit, wanted, 10).mean()),
        "ndcg@10": float(ndcg_at_k(hit, wanted, 10).mean()),
        "recall@50": float(recall_at_k(hit, wanted, 50).mean()),
        "coverage@50": catalog_coverage(ranked, 50, test.items.shape[1]),
    }


def implicit_als(learned: Material, test: Truth) -> dict[str, float]:
    """Alternating least squares of ``implicit``, as it is; the fold-in of the newest event is its own."""
    from implicit.als import AlternatingLeastSquares

    started = time.monotonic()
    model = AlternatingLeastSquares(factors=64, random_state=0)
    model.fit(learned.interactions.bought, show_progress=False)
    seconds = time.monotonic() - started
    ranked, _ = model.recommend(test.users, test.past.bought[test.users], N=50, recalculate_user=True)
    return {**judged(ranked.astype(np.int32), test), "seconds": seconds}


PEERS: dict[str, tuple[str, Callable[[Material, Truth], dict[str, float]]]] = {
    "implicit's ALS": ("implicit", implicit_als),
}


def section(name: str, part: dict[str, Any]) -> list[str]:
    """Return the lines on one data set."""
    lines = [
        "",
        f"## {name}",
        "",
        f"{part['customers']:,} customers, {part['items']:,} items, {part['events']:,} events."
        + (f" Published: {PUBLISHED[name]}." if name in PUBLISHED else ""),
        *table(["model", *COLUMNS, "seeds"], [[row, *spread(runs), len(runs)] for row, runs in part["rows"].items()]),
        "",
        *(f"- {row}: `{json.dumps(config)}`" for row, config in part["configs"].items()),
        *(f"- left out: {line}" for line in part["left out"]),
    ]
    if part["embedding"]:
        lines.append(f"- seconds with text hold {part['embedding']:.0f} s of encoding it, which a night does only once")
    return [*lines, "", part["made by"]]


def spread(runs: list[dict[str, float]]) -> list[str]:
    """Return the mean of each column over seeds, with the standard deviation."""
    cells = []
    for column in COLUMNS:
        values = [run[column] for run in runs if column in run]
        places = 0 if column in ("epochs", "seconds") else 4
        cell = f"{mean(values):.{places}f}" if values else ""
        cells.append(cell + (f" ± {stdev(values):.{places}f}" if len(values) > 1 else ""))
    return cells


if __name__ == "__main__":
    raise SystemExit(main())
