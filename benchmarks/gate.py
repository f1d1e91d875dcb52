"""The claim: the gate never promotes a worse challenger, keeps a champion from an equal one, and promotes a better one.

200 made-up nights of each kind (1,000 of equal ones, whose rate is small), through the night's own code: lists ->
metrics of each customer -> rows of the leaderboard with their intervals -> ``choose_champion``. A customer wants a few
of 200 items; a model's scores are what they want plus noise, most of which the models share, as models that learned
from the same log do. An equal challenger differs from the champion in nothing but its own noise, so that it is as good
by construction. Beside each number stands what taking the best mean would have done.

    python benchmarks/gate.py [--check] [--quick] [--results DIR]

``--quick`` is a few nights of few customers, in seconds; it writes a page only to ``--results``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.evaluate import board
from recsys_tasks.metrics import beyond_accuracy, per_user
from recsys_tasks.promote import choose_champion
from recsys_tasks.shop import Gate

CANDIDATES, LISTED, N_ITEMS = 200, 50, 600
SHARED = 0.8
"""Part of the variance of a model's noise that all models have in common."""
SIGNAL = {"all": 0.9, "discovery": 0.3}
"""How much the champion knows of what customers want, in standard deviations of the noise."""
TIERS = {"loyal": 0.5, "warm": 0.3, "cold": 0.2}
"""Shares of the customers."""
NIGHTS: dict[str, list[dict[str, float]]] = {
    "worse": [{"all": 0.85, "discovery": 0.85}],
    "equal": [{}],
    "best of 8 equal": [{}] * 8,
    "a little better": [{"all": 1.1, "discovery": 1.1}],
    "better": [{"all": 1.4, "discovery": 1.4}],
    "better beside 7 equal": [{"all": 1.4, "discovery": 1.4}, *[{}] * 7],
    "better, but worse for cold customers": [{"all": 1.7, "discovery": 1.7, "cold": 0.2}],
    "better, but discovers less": [{"all": 1.4, "discovery": 0.2}],
}
"""Kind -> challengers, each with what it knows beside the champion: in a view, and of that for a tier."""
NEVER = ("worse", "better, but worse for cold customers", "better, but discovers less")
EQUAL = ("equal", "best of 8 equal")
ALWAYS = ("better", "better beside 7 equal")


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a few nights of few customers, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    started = time.monotonic()
    customers = 200 if options.quick else 400
    nights = {kind: 5 if options.quick else 1000 if kind in EQUAL else 200 for kind in NIGHTS}
    rows = [told(kind, [a_night(seed, customers, kind) for seed in range(nights[kind])]) for kind in NIGHTS]
    measured: dict[str, Any] = {"nights": rows, "limits": [] if options.quick else limits_of(rows)}
    measured["seconds"] = time.monotonic() - started
    lines = ["# The gate", *limits_table(measured["limits"]), *page(rows, customers)]
    lines += ["", f"{made_by(['numpy', 'scipy'])} {measured['seconds']:.0f} s, one thread."]
    return finish("gate", lines, measured, options.results or (None if options.quick else RESULTS), options.check)


def a_night(seed: int, customers: int, kind: str) -> dict[str, Any]:
    """Return who was promoted on a made-up night, and what was known of the first challenger."""
    rng = np.random.default_rng([seed, list(NIGHTS).index(kind)])
    tier = rng.choice(list(TIERS), customers, p=list(TIERS.values()))
    models = {"popular": {"all": 0.2, "discovery": 0.2}, "champion": {}}
    models |= {f"challenger {n}": knows for n, knows in enumerate(NIGHTS[kind], start=1)}
    rows, values = [], {}
    for view, signal in SIGNAL.items():
        lists, wanted = a_view(rng, tier, {name: signal * knowing(tier, view, of) for name, of in models.items()})
        values[view] = {name: per_user(ranked, wanted) for name, ranked in lists.items()}
        whole = {
            name: {"beyond_accuracy": beyond_accuracy(ranked, np.ones(N_ITEMS), customers, N_ITEMS), "seconds": 1.0}
            for name, ranked in lists.items()
        }
        found = board(view, tier, values[view], {}, {"home": "champion"}, Gate())
        rows += [row | (whole[row["recipe"]] if row["tier"] == "everyone" else {}) for row in found]
    decision = choose_champion(rows, "home", "champion")
    ndcg = {name: of["ndcg@10"] for name, of in values["all"].items()}
    champion, first = ndcg["champion"], ndcg["challenger 1"]
    return {
        "promoted": decision.recipe if decision.moved else None,
        "failed": [check.name for one in decision.challengers[:1] for check in one.failures],
        "best mean": max(ndcg, key=lambda name: ndcg[name].mean()) != "champion",
        "ndcg": float(champion.mean()),
        "zeros": float((champion == 0).mean()),
        "zeros, discovery": float((values["discovery"]["champion"]["ndcg@10"] == 0).mean()),
        "difference": float((first - champion).mean()),
        "correlation": float(np.corrcoef(first, champion)[0, 1]),
    }


def knowing(tier: np.ndarray, view: str, of: dict[str, float]) -> np.ndarray:
    """Return (U,) how much a model knows of each customer beside the champion."""
    return of.get(view, 1.0) * np.array([of.get(name, 1.0) for name in tier])


def a_view(
    rng: np.random.Generator, tier: np.ndarray, knows: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], sp.csr_matrix]:
    """Return the lists (U, 50) of every model, and what customers wanted (U, n_items)."""
    shape = (len(tier), CANDIDATES)
    items = rng.random((len(tier), N_ITEMS), np.float32) * np.linspace(1, 0.7, N_ITEMS, dtype=np.float32)
    items = np.argpartition(-items, CANDIDATES, axis=1)[:, :CANDIDATES].astype(np.int32)
    liking = rng.normal(0, 1, shape)
    n_wanted = np.minimum(rng.geometric(0.3, len(tier)), 20)
    order = np.argsort(-(1.5 * liking + rng.gumbel(0, 1, shape)), axis=1)  # drawn without replacement
    chosen = np.arange(CANDIDATES) < n_wanted[:, None]
    row = np.repeat(np.arange(len(tier)), n_wanted)
    column = np.take_along_axis(items, order, 1)[chosen]
    wanted = sp.csr_matrix((np.ones(len(row)), (row, column)), (len(tier), N_ITEMS))
    shared = rng.normal(0, SHARED**0.5, shape)
    lists = {}
    for name, known in knows.items():
        score = known[:, None] * liking + shared + rng.normal(0, (1 - SHARED) ** 0.5, shape)
        lists[name] = np.take_along_axis(items, np.argsort(-score, axis=1)[:, :LISTED], 1)
    return lists, wanted


def told(kind: str, nights: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what came of all nights of a kind."""
    mean = {
        name: float(np.mean([night[name] for night in nights]))
        for name in ("best mean", "ndcg", "zeros", "zeros, discovery", "difference", "correlation")
    }
    promoted = [night["promoted"] for night in nights]
    failed = [name for night in nights for name in night["failed"]]
    return {
        "kind": kind,
        "challengers": len(NIGHTS[kind]),
        "nights": len(nights),
        "promoted": sum(one is not None for one in promoted) / len(nights),
        "the first promoted": promoted.count("challenger 1") / len(nights),
        "failed": {name: failed.count(name) for name in dict.fromkeys(sorted(failed))},
        **mean,
    }


def limits_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was to be shown; a chance of 2.5 % shows in 1,000 nights as less than 4 % (three deviations)."""
    of = {row["kind"]: row for row in rows}
    limits = [{"name": f"{kind}: promoted", "value": of[kind]["promoted"], "limit": "< 0.005"} for kind in NEVER]
    limits += [{"name": f"{kind}: promoted", "value": of[kind]["promoted"], "limit": "< 0.04"} for kind in EQUAL]
    limits += [
        {"name": f"{kind}: it is promoted", "value": of[kind]["the first promoted"], "limit": ">= 0.95"}
        for kind in ALWAYS
    ]
    return limits


def page(rows: list[dict[str, Any]], customers: int) -> list[str]:
    """Return the lines of the page below the limits."""
    typical = next(row for row in rows if row["kind"] == "equal")
    head = (
        "the challenger is",
        "challengers",
        "nights",
        "difference in ndcg@10",
        "promoted",
        "by the best mean",
        "stopped by",
    )
    cells = [
        (
            row["kind"],
            row["challengers"],
            row["nights"],
            f"{row['difference']:+.4f}",
            f"{row['promoted']:.1%} ± {(row['promoted'] * (1 - row['promoted']) / row['nights']) ** 0.5:.1%}",
            f"{row['best mean']:.1%}",
            ", ".join(f"{name} {times}" for name, times in row["failed"].items()),
        )
        for row in rows
    ]
    return [
        "",
        f"How often another champion was crowned on made-up nights of {customers:,} customers each, with the gate's "
        "defaults (95 %, widened for the number of challengers; home, guarded by tiers and discovery). The "
        f"champion's ndcg@10 is {typical['ndcg']:.3f}; it is 0 for {typical['zeros']:.0%} of the customers (discovery: "
        f"{typical['zeros, discovery']:.0%}), and an equal challenger's correlates with it by "
        f"{typical['correlation']:.2f}. *By the best mean* is how often the highest ndcg@10 was not the champion's. "
        "*Difference* is the first challenger's mean, *stopped by* the checks that the nearest one failed.",
        *table(head, cells),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
