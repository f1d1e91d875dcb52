"""Search for the highest dot products with one library, again and again, when told so.

A program of its own, for each library has its own threads, its own memory and some an interpreter of their own.

    python benchmarks/peers/top_k_search.py METHOD FOLDER K CORES

FOLDER holds vectors.npy, queries.npy and, for who can leave out what is seen, seen_items.npy and seen_starts.npy. A
line of JSON on the standard input, ``{"queries": [first, last], "rows": FILE or null}``, is answered by one with the
seconds, and the most memory in bytes that the process has had. Other keys are settings of an approximate search.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Search = Callable[..., np.ndarray]


def faiss_flat(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Exact, with a matrix of scores a block."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda queries, part: index.search(queries, k)[1]


def faiss_ivf(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Approximate: the lists of the ``probed`` nearest of ``lists`` centroids."""
    import faiss

    built = {}

    def search(queries: np.ndarray, part: slice, lists: int, probed: int) -> np.ndarray:
        if lists not in built:
            built[lists] = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
            built[lists].train(vectors)
            built[lists].add(vectors)
        built[lists].nprobe = probed
        return built[lists].search(queries, k)[1]

    return search


def implicit(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Exact, as its matrix factorisations recommend."""
    from implicit.cpu.topk import topk

    return lambda queries, part: topk(vectors, queries, k)[0]


def tensorflow(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Exact, as the layer BruteForce of TensorFlow Recommenders does it."""
    import tensorflow as tf

    items = tf.constant(vectors)

    @tf.function(input_signature=[tf.TensorSpec((None, vectors.shape[1]), tf.float32)])
    def best(queries: Any) -> Any:
        return tf.math.top_k(tf.matmul(queries, items, transpose_b=True), k).indices

    return lambda queries, part: np.concatenate([best(queries[s : s + 512]) for s in range(0, len(queries), 512)])


def scann_brute(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Exact."""
    from scann import scann_ops_pybind

    searcher = scann_ops_pybind.builder(vectors, k, "dot_product").score_brute_force().build()
    return lambda queries, part: searcher.search_batched_parallel(queries, k)[0]


def scann_tree(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Approximate: ``searched`` of ``leaves``, of whose items ``reordered`` are multiplied exactly."""
    from scann import scann_ops_pybind

    built = {}

    def search(queries: np.ndarray, part: slice, leaves: int, searched: int, reordered: int) -> np.ndarray:
        if leaves not in built:
            built[leaves] = (
                scann_ops_pybind.builder(vectors, k, "dot_product")
                .tree(leaves, searched, training_sample_size=len(vectors))
                .score_ah(2, anisotropic_quantization_threshold=0.2)
                .reorder(reordered)
                .build()
            )
        return built[leaves].search_batched_parallel(queries, k, reordered, searched)[0]

    return search


def ours_exact(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Nightcart's exact search, what is seen left out where it is told."""
    import scipy.sparse as sp

    from recsys_tasks.nearest import NearestItems

    nearest = NearestItems(vectors)
    if not (folder / "seen_items.npy").exists():
        return lambda queries, part: nearest.exact(queries, k)[0]
    items, starts = np.load(folder / "seen_items.npy", mmap_mode="r"), np.load(folder / "seen_starts.npy")

    def search(queries: np.ndarray, part: slice) -> np.ndarray:
        start = starts[part.start : part.stop + 1]
        items_of = items[start[0] : start[-1]]
        ones = np.ones(len(items_of), bool)
        return nearest.exact(
            queries, k, sp.csr_matrix((ones, items_of, start - start[0]), (len(queries), len(vectors)))
        )[0]

    return search


def ours_tree(vectors: np.ndarray, k: int, folder: Path) -> Search:
    """Nightcart's approximate search, that tunes itself on the ``tuned_on`` first queries to the recall of .999."""
    from recsys_tasks.nearest import NearestItems

    built = {}

    def search(queries: np.ndarray, part: slice, tuned_on: int) -> np.ndarray:
        if not built:
            built[0] = NearestItems.build(vectors, k, 0.999, np.load(folder / "queries.npy")[:tuned_on])
            print(built[0].tuned, file=sys.stderr)
        return built[0].search(queries, k)[0]

    return search


def main(method: str, folder: str, k: str, cores: str) -> None:
    """Answer each line."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(cores) :])
    where = Path(folder)
    vectors, queries = np.load(where / "vectors.npy"), np.load(where / "queries.npy", mmap_mode="r")
    search = globals()[method](vectors, int(k), where)
    for line in sys.stdin:
        told = json.loads(line)
        part, rows = slice(*told.pop("queries")), told.pop("rows")
        asked = np.array(queries[part])
        began = time.perf_counter()
        found = search(asked, part, **told)
        seconds = time.perf_counter() - began
        if rows:
            np.save(rows, found)
        status = Path("/proc/self/status").read_text()
        most = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        print("answer " + json.dumps({"seconds": seconds, "memory": most}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
