"""The claim: a whole customer base is answered sooner than by what else one might take, with what was seen left out.

*Exact*: 50 of 100,000 made-up items for 1,000,000 made-up customers, 64 dimensions; a customer's vector leans to those
of five of the 30 items that he has seen. Peers answer a part of the customers in turns with ours, and leave out nothing
that was seen, which is easier; ours also answers all.

*Approximate*: vectors that ``two_tower`` learned from Taobao's purchases, carts and favourites, the trend as one
dimension more. Every search is tuned on some customers to find .999 of what is exact, and measured on the others.

*Lists*: ``recommend`` as a night calls it, from histories to lists, of a ``two_tower`` of 100,000 made-up items.

faiss and implicit live in an environment of their own, whose interpreter ``--peers`` names (``python -m venv peers;
peers/bin/pip install faiss-cpu implicit``); without it their rows are left out.

    python benchmarks/top_k.py [--peers peers/bin/python] [--vectors FILE] [--check] [--quick] [--results DIR]

``--vectors`` keeps the learned vectors for the next run. ``--quick`` is a small world in seconds, of which only the
form is checked; it writes a page only to ``--results``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.models import Material, base, model_class
from recsys_tasks.snapshot import DAY, Catalog, Interactions
from recsys_tasks.split import truth

K, DIMENSIONS, SEEN, FLOOR = 50, 64, 30, 0.999
ROUNDS = 5
SPEEDS = {"faiss_flat": 10, "implicit": 6, "tensorflow": 3, "scann_brute": 10, "ours_exact": 20}
"""Thousands of customers that each is asked for on two cores, so that all take about as long; on one, half of them."""
NAMES = {
    "faiss_flat": "faiss IndexFlatIP",
    "implicit": "implicit topk",
    "tensorflow": "TensorFlow matmul, math.top_k",
    "scann_brute": "ScaNN brute force",
    "ours_exact": "**Nightcart**, seen left out",
    "faiss_ivf": "faiss IVF, Flat",
    "scann_tree": "ScaNN tree, AH, reordered",
    "ours_tree": "**Nightcart**, as built",
}
TUNED_ON = 2000
GRID = {
    "faiss_ivf": [{"lists": n, "probed": p} for n in (256, 512, 1024) for p in (4, 8, 16, 24, 32, 48, 64, 96, 128)],
    "scann_tree": [
        {"leaves": n, "searched": max(1, int(n * share)), "reordered": r}
        for n in (250, 500, 1000)
        for r in (100, 200, 400)
        for share in (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
    ],
}
WEIGHTS = {"purchase": 1.0, "cart": 0.5, "favourite": 0.5}


class Worker:
    """A peer at work in a process of its own."""

    def __init__(self, method: str, folder: Path, cores: int, peers: Path | None) -> None:
        script = Path(__file__).parent / "peers" / "top_k_search.py"
        theirs = method.startswith(("faiss", "implicit"))
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1" if theirs else str(cores)}
        command = [str(peers) if theirs else sys.executable, str(script), method, str(folder), str(K), str(cores)]
        self.folder = folder
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, first: int, last: int, rows: Path | None = None, **settings: int) -> dict[str, float]:
        """Return the seconds that it took, and the memory."""
        assert self.process.stdin
        assert self.process.stdout
        told = {"queries": [first, last], "rows": rows and str(rows), **settings}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def found(self, first: int, last: int, **settings: int) -> np.ndarray:
        """Return the items."""
        rows = self.folder / "found.npy"
        self.ask(first, last, rows, **settings)
        return np.load(rows)


@contextmanager
def workers(methods: list[str], folder: Path, cores: int, peers: Path | None) -> Iterator[dict[str, Worker]]:
    """Yield the peers, started."""
    with ExitStack() as stack:
        found = {}
        for method in methods:
            worker = found[method] = Worker(method, folder, cores, peers)
            stack.callback(worker.process.communicate)
        yield found


def main() -> int:
    """Print and write what was measured; with ``--check`` return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="interpreter of an environment that has faiss and implicit")
    parser.add_argument("--vectors", type=Path, help="an .npz file that keeps the learned vectors")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    learned = options.vectors and options.vectors.exists()
    if not (options.quick or learned) and not (data_folder() / "taobao_2017").exists():
        print(
            f"skipped: {data_folder() / 'taobao_2017'} is not there; NIGHTCART_BENCH_DATA tells where public data lies"
        )
        return 0
    load = os.getloadavg()[0]
    users, items, scale = (12_000, 25_000, 0.02) if options.quick else (1_000_000, 100_000, 1.0)
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        vectors = made_up_vectors(3_000, 12_000) if options.quick else learned_vectors(options.vectors)
        told("learned vectors are there")
        folder = Path(scratch)
        made_up_world(folder / "exact", users, items)
        (folder / "approximate").mkdir()
        for name, array in vectors.items():
            np.save(folder / "approximate" / f"{name}.npy", array)
        measured: dict[str, Any] = {"exact": {}, "approximate": {}}
        for cores in (min(2, os.cpu_count() or 1), 1):
            measured["exact"][cores] = exact(folder / "exact", cores, scale, options.peers)
            measured["approximate"][cores] = approximate(folder / "approximate", cores, options.peers)
        measured["whole"] = whole(folder / "exact", users)
        measured["lists"] = lists(20_000 if scale == 1 else 1_000, items)
    measured["size"] = {"users": users, "items": items, "learned": {n: len(a) for n, a in vectors.items()}}
    measured["limits"] = [] if options.quick else limits_of(measured)
    measured["load"] = load
    measured["made by"] = made_by(["numpy", "scann", "tensorflow", "torch", "numba"])
    measured["peers made by"] = versions_of(options.peers)
    where = options.results or (None if options.quick else RESULTS)
    return finish("top_k", page(measured), measured, where, options.check)


def told(line: str) -> None:
    """Tell how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def made_up_world(folder: Path, n_users: int, n_items: int) -> None:
    """Write vectors, queries and what each customer has seen."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n_items, DIMENSIONS)) * np.exp(0.2 * rng.normal(size=(n_items, 1)))
    np.save(folder / "vectors.npy", vectors := vectors.astype(np.float32))
    queries = np.lib.format.open_memmap(folder / "queries.npy", "w+", np.float32, (n_users, DIMENSIONS))
    starts, all_seen = [np.zeros(1, np.int64)], []
    for first in range(0, n_users, 50_000):
        n = min(50_000, n_users - first)
        drawn = np.sort(rng.integers(0, n_items, (n, SEEN)), 1)
        liked = vectors[rng.permuted(drawn, axis=1)[:, :5]].mean(1)
        queries[first : first + n] = liked + 0.5 * rng.normal(size=(n, DIMENSIONS))
        new = np.diff(drawn, axis=1, prepend=-1) > 0
        all_seen.append(drawn[new].astype(np.int32))
        starts.append(starts[-1][-1] + new.sum(1).cumsum())
    np.save(folder / "seen_items.npy", np.concatenate(all_seen))
    np.save(folder / "seen_starts.npy", np.concatenate(starts))


def made_up_vectors(n_users: int, n_items: int) -> dict[str, np.ndarray]:
    """Return what stands for learned vectors when in a hurry."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    parts = {"queries": n_users, "vectors": n_items}
    return {
        name: (centres[rng.integers(0, 50, n)] + 0.5 * rng.normal(size=(n, 16))).astype(np.float32)
        for name, n in parts.items()
    }


def learned_vectors(kept: Path | None) -> dict[str, np.ndarray]:
    """Return what ``two_tower`` learned: vectors with the trend as one dimension more, and queries with a 1."""
    if kept and kept.exists():
        return dict(np.load(kept))
    log = taobao()
    past = truth(log, log.as_of - DAY, log.as_of, "discovery")
    n = log.n_items
    catalog = Catalog(
        item_ids=np.arange(n).astype(str).astype(object),
        titles=[""] * n,
        texts=[""] * n,
        brands=[""] * n,
        categories=[""] * n,
        departments=[""] * n,
        prices=np.full(n, np.nan),
        available=np.ones(n, bool),
        known_since=np.zeros(n, np.int64),
    )
    material = Material(past.past, catalog, np.zeros((n, 1), np.float32), {"discovery": past, "all": past})
    model = model_class("two_tower")().fit(material)
    told(f"two_tower: {model.curve}")
    dot = model._dot(log)
    assert dot
    queries = dot.queries(np.flatnonzero(log.active_days > 0))
    found = {
        "vectors": np.column_stack([dot.vectors, dot.bias]),
        "queries": np.column_stack([queries, np.ones(len(queries), np.float32)])[
            np.random.default_rng(0).permutation(len(queries))
        ],
    }
    if kept:
        np.savez(kept, **found)
    return found


def taobao() -> Interactions:
    """Return all of the log."""
    import pyarrow.parquet as pq

    events = pq.read_table(data_folder() / "taobao_2017" / "events.parquet").to_pandas()
    events = events[events["event_type"].isin(WEIGHTS)].sort_values("timestamp", kind="stable")
    user_ids, user = np.unique(events["user_id"].astype(str), return_inverse=True)
    item_ids, item = np.unique(events["item_id"].astype(str), return_inverse=True)
    at = events["timestamp"].to_numpy().astype("datetime64[us]").astype(np.int64)
    return Interactions(
        user_ids=user_ids.astype(object),
        n_items=len(item_ids),
        user_idx=user.astype(np.int32),
        item_idx=item.astype(np.int32),
        time=at,
        weight=events["event_type"].map(WEIGHTS).to_numpy(np.float32),
        rating=np.full(len(at), np.nan, np.float32),
        kind=events["event_type"].map(EVENT_TYPES.index).to_numpy(np.int8),
        is_target=(events["event_type"] == "purchase").to_numpy(),
        as_of=int(at[-1]) + 1,
    )


def best_products(folder: Path, part: slice, *, seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the products of the queries with all items, and the K-th highest of each; -inf where ``seen``."""
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy", mmap_mode="r")[part]
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if seen:
        items, start = np.load(folder / "seen_items.npy", mmap_mode="r"), np.load(folder / "seen_starts.npy")
        start = start[part.start : part.stop + 1]
        of = items[start[0] : start[-1]]
        scores[sp.csr_matrix((np.ones(len(of)), of, start - start[0]), scores.shape).nonzero()] = -np.inf
    return scores, -np.partition(-scores, K - 1, axis=1)[:, K - 1 : K]


def recall(found: np.ndarray, scores: np.ndarray, kth: np.ndarray) -> float:
    """Return the share of ``found`` (q, K) that is among the best; what scores as high as the K-th is."""
    return float((np.take_along_axis(scores, found.astype(np.int64), 1) >= kth - 1e-4).mean())


def exact(folder: Path, cores: int, scale: float, peers: Path | None) -> dict[str, dict[str, float]]:
    """Return users a second of each, in turns, and its recall."""
    methods = [m for m in SPEEDS if peers or not m.startswith(("faiss", "implicit"))]
    rates: dict[str, list[float]] = {method: [] for method in methods}
    found: dict[str, dict[str, float]] = {}
    with workers(methods, folder, cores, peers) as at_work:
        for method, worker in at_work.items():
            scores, kth = best_products(folder, slice(0, 200), seen=method == "ours_exact")
            found[method] = {"recall": recall(worker.found(0, 200), scores, kth)}
        for turn in range(ROUNDS):
            for method, worker in at_work.items():
                n = max(500, int(SPEEDS[method] * 500 * cores * scale))
                first = int(turn * 100_000 * scale)
                rates[method].append(n / worker.ask(first, first + n)["seconds"])
            told(f"exact, {cores} cores: " + ", ".join(f"{m} {of[-1]:,.0f}" for m, of in rates.items()))
    return {m: {**found[m], "median": median(of), "least": min(of), "most": max(of)} for m, of in rates.items()}


def approximate(folder: Path, cores: int, peers: Path | None) -> dict[str, dict[str, Any]]:
    """Return users a second of each, tuned, in turns, and its recall on customers it was not tuned on."""
    methods = [m for m in ("faiss_ivf", "scann_tree", "ours_tree", "ours_exact") if peers or m != "faiss_ivf"]
    rates: dict[str, list[float]] = {method: [] for method in methods}
    found: dict[str, dict[str, Any]] = {}
    last = len(np.load(folder / "queries.npy", mmap_mode="r"))
    with workers(methods, folder, cores, peers) as at_work:
        scores, kth = best_products(folder, slice(0, TUNED_ON), seen=False)
        chosen = {"ours_tree": {"tuned_on": TUNED_ON}, "ours_exact": {}}
        for method in set(GRID) & set(methods):
            chosen[method] = tuned(at_work[method], GRID[method], scores, kth)
        told(f"approximate, {cores} cores: {chosen}")
        part = slice(TUNED_ON, min(last, 3 * TUNED_ON))
        scores, kth = best_products(folder, part, seen=False)
        for method, worker in at_work.items():
            of = recall(worker.found(part.start, part.stop, **chosen[method]), scores, kth)
            found[method] = {"recall": of, "settings": chosen[method]}
        for _ in range(ROUNDS):
            for method, worker in at_work.items():
                seconds = worker.ask(TUNED_ON, last, **chosen[method])["seconds"]
                rates[method].append((last - TUNED_ON) / seconds)
            told(f"approximate, {cores} cores: " + ", ".join(f"{m} {of[-1]:,.0f}" for m, of in rates.items()))
    return {m: {**found[m], "median": median(of), "least": min(of), "most": max(of)} for m, of in rates.items()}


def tuned(worker: Worker, grid: list[dict[str, int]], scores: np.ndarray, kth: np.ndarray) -> dict[str, int]:
    """Return the setting that answers soonest of those that reach the floor; the one that finds most if none does."""
    reached, recalls = {}, {}
    for n, settings in enumerate(grid):
        recalls[n] = recall(worker.found(0, TUNED_ON, **settings), scores, kth)
        if recalls[n] >= FLOOR:
            reached[n] = min(worker.ask(0, TUNED_ON, **settings)["seconds"] for _ in range(3))
    best = min(reached, key=lambda n: reached[n]) if reached else max(recalls, key=lambda n: recalls[n])
    return grid[best]


def whole(folder: Path, n_users: int) -> dict[str, float]:
    """Return seconds and memory of ours for everybody, on all cores."""
    with workers(["ours_exact"], folder, os.cpu_count() or 1, None) as at_work:
        at_work["ours_exact"].ask(0, 600)
        found = at_work["ours_exact"].ask(0, n_users)
    told(f"whole: {found}")
    return found


def lists(n_users: int, n_items: int) -> dict[str, float]:
    """Return users a second of ``recommend`` of a made-up ``two_tower``, on one core and on all."""
    rng = np.random.default_rng(0)
    n, dim, history = n_users * SEEN, 64, 30
    at = np.sort(rng.integers(0, 365 * DAY, n))
    log = Interactions(
        user_ids=np.arange(n_users).astype(str).astype(object),
        n_items=n_items,
        user_idx=rng.integers(0, n_users, n).astype(np.int32),
        item_idx=(rng.zipf(1.2, n) % n_items).astype(np.int32),
        time=at,
        weight=np.ones(n, np.float32),
        rating=np.full(n, np.nan, np.float32),
        kind=np.zeros(n, np.int8),
        is_target=np.ones(n, bool),
        as_of=365 * DAY,
    )
    vectors = rng.normal(size=(n_items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = model_class("two_tower")()
    query = {
        "items": vectors,
        "users": np.zeros((n_users, dim), np.float32),
        "attributes": np.zeros((1, 8), np.float32),
        "attribute_codes": np.zeros((n_users, 0), np.int32),
        "places": np.zeros(history, np.float32),
        "kernel_0": rng.normal(size=(2 * dim, 2 * dim)).astype(np.float32) / 16,
        "bias_0": np.zeros(2 * dim, np.float32),
        "kernel_1": rng.normal(size=(2 * dim, dim)).astype(np.float32) / 16,
        "bias_1": np.zeros(dim, np.float32),
    }
    model._restore({"item_vectors": vectors, **{f"query_{name}": array for name, array in query.items()}})
    model.is_fitted = True
    candidates, users = np.ones(n_items, bool), np.arange(n_users)
    assert log.bought.nnz
    found: dict[str, float] = {}
    cores = sorted(os.sched_getaffinity(0))
    model.recommend(log, users[:1000], K, candidates, exclude_seen=True)
    for name, used in {"one core": cores[-1:], "all cores": cores}.items():
        os.sched_setaffinity(0, used)
        torch.set_num_threads(len(used))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            ranked = model.recommend(log, users, K, candidates, exclude_seen=True)
            seconds.append(time.perf_counter() - began)
        assert (ranked.items >= 0).all()
        found[name] = n_users / median(seconds)
    before, base.SEARCH_FROM = base.SEARCH_FROM, n_items + 1
    began = time.perf_counter()
    model.recommend(log, users[:1024], K, candidates, exclude_seen=True)
    found["all cores, sorting all scores"] = min(n_users, 1024) / (time.perf_counter() - began)
    base.SEARCH_FROM = before
    told(f"lists: {found}")
    return found


def limits_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is claimed: how much faster on one core or on all, whichever is less; approximate on all."""
    exact, near = (measured[part][max(measured[part])] for part in ("exact", "approximate"))
    wanted = {"faiss_flat": 1.5, "implicit": 2.5, "tensorflow": 4.0, "scann_brute": 1.0}
    found = [
        {
            "name": f"exact, times as fast as {NAMES[peer]}",
            "value": min(of["ours_exact"]["median"] / of[peer]["median"] for of in measured["exact"].values()),
            "limit": f">= {times:g}",
        }
        for peer, times in wanted.items()
        if peer in exact
    ]
    best = max(near[peer]["median"] for peer in ("faiss_ivf", "scann_tree") if peer in near)
    return [
        *found,
        {"name": "exact, recall", "value": exact["ours_exact"]["recall"], "limit": ">= 1"},
        {
            "name": "learned vectors, recall of what build made",
            "value": near["ours_tree"]["recall"],
            "limit": f">= {FLOOR}",
        },
        {
            "name": "learned vectors, speed over the faster approximate peer",
            "value": near["ours_tree"]["median"] / best,
            "limit": ">= 0.9",
        },
        {"name": "memory for everybody, GB", "value": measured["whole"]["memory"] / 1e9, "limit": "<= 4"},
    ]


def versions_of(peers: Path | None) -> str:
    """Return the versions of the peers of the other environment."""
    if not peers:
        return "faiss and implicit left out: no `--peers`"
    code = "from importlib.metadata import version as v; print(f\"faiss {v('faiss-cpu')}, implicit {v('implicit')}\")"
    return subprocess.run([str(peers), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def page(measured: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown page."""
    size = measured["size"]
    lines = ["# The best of many items for everybody", *limits_table(measured["limits"])]
    lines += [
        "",
        f"## Exact: {K} of {size['items']:,} items, {DIMENSIONS} dimensions, {size['users']:,} customers",
        "",
        f"Customers a second, medians of {ROUNDS} rounds in which all take turns on a part of the customers. Ours "
        f"leaves out what was seen ({SEEN} items); peers leave out nothing and are asked for {K}, which is easier. "
        "Recall is against float64, ours with what was seen left out.",
    ]
    for cores, found in measured["exact"].items():
        ours = found["ours_exact"]["median"]
        rows = [[NAMES[m], *_rates(f), f"{ours / f['median']:.2f}", f"{f['recall']:.4f}"] for m, f in found.items()]
        lines += ["", f"{'One core' if cores == 1 else f'{cores} cores'}:"]
        lines += table(["", "median", "range", "ours is times as fast", "recall"], rows)
    whole, listed, learned = measured["whole"], measured["lists"], size["learned"]
    names = {**NAMES, "ours_exact": "**Nightcart**, exact"}
    busy = f"The load average was {measured['load']:.1f} when it began: what ran beside it took from the cores, which "
    busy += "hurts most who needs all of them at once, as faiss does. Rounds on one core say more."
    lines += [
        "",
        f"All {size['users']:,} customers, ours: {whole['seconds']:.1f} s, {size['users'] / whole['seconds']:,.0f} a "
        f"second; the process had at most {whole['memory'] / 1e9:.2f} GB, libraries, inputs and lists included.",
        "",
        f"## Approximate: {K} of {learned['vectors']:,} items, learned vectors, {learned['queries']:,} customers",
        "",
        f"`two_tower` of Taobao, the trend as one dimension more. All were tuned on {TUNED_ON:,} customers to a recall "
        f"of {FLOOR}: peers to what answers soonest of a grid, or finds most where nothing of it reaches the recall; "
        "ours by `NearestItems.build`, which takes exact search where no setting of its tree does. Recall is that of "
        "the other customers.",
    ]
    for cores, found in measured["approximate"].items():
        rows = [[names[m], *_rates(f), f"{f['recall']:.4f}", json.dumps(f["settings"])] for m, f in found.items()]
        lines += ["", f"{'One core' if cores == 1 else f'{cores} cores'}:"]
        lines += table(["", "customers a second", "range", "recall", "settings"], rows)
    lines += ["", f"## Lists: the whole of `recommend`, {size['items']:,} items, what was bought left out"]
    lines += table(["", "customers a second"], [[name, f"{value:,.0f}"] for name, value in listed.items()])
    lines += ["", busy] if measured["load"] > 0.5 else []
    return [*lines, "", measured["made by"], "", f"Peers: {measured['peers made by']}."]


def _rates(found: dict[str, float]) -> list[str]:
    return [f"{found['median']:,.0f}", f"{found['least']:,.0f} to {found['most']:,.0f}"]


if __name__ == "__main__":
    raise SystemExit(main())
