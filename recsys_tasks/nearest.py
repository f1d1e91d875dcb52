"""The highest dot products: exact, or approximate with ScaNN (Guo et al. 2020) where the catalogue is large."""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from recsys_tasks.errors import ContractError

if TYPE_CHECKING:
    from recsys_tasks.exact import ExactSearch

log = logging.getLogger(__name__)

EXACT_UP_TO = 10_000
"""Items up to which no tree is built."""
SORT_UP_TO = 10_000
"""Items up to which whole lines of scores are sorted; above, ``ExactSearch`` is faster."""
LEAVES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
"""Shares of the tree's leaves that may be searched,"""
REORDERED = (1, 2, 4, 8)
"""and how many times k of what is found there may be multiplied exactly."""


class Tuned(NamedTuple):
    """How a tree is searched."""

    leaves: int
    """that are searched"""
    reordered: int
    """of what is found there, how many are multiplied exactly"""


class NearestItems:
    """Search over the vectors of items.

    Parameters
    ----------
    vectors
        (n, d) float32
    searcher
        A ScaNN searcher over the same vectors, or None for exact search.
    tuned
        How the searcher is to be asked.
    bias
        (n,) float32 that is added to the products, for exact search alone.

    """

    def __init__(
        self,
        vectors: np.ndarray,
        searcher: Any = None,
        tuned: Tuned | None = None,
        bias: np.ndarray | None = None,
    ) -> None:
        self.vectors = vectors
        self.searcher = searcher
        self.tuned = tuned
        self.bias = bias

    def search(self, queries: np.ndarray, k: int, seen: sp.csr_matrix | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (q, k) rows of ``vectors`` and their dot products, highest first, without the (q, n) ``seen``.

        Behind the last of a query that has fewer stands row -1 with -inf.
        """
        if self.searcher is None or not len(queries):
            return self.exact(queries, k, seen)
        k = min(k, len(self.vectors))
        if seen is None:
            return self._ask(queries, k)
        rows, values = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        more = np.diff(seen.indptr)
        more = np.where(more, 2 ** np.ceil(np.log2(np.maximum(more, 1))), 0).astype(int)
        for extra in np.unique(more):  # few long histories do not make everybody ask for much
            asked = np.flatnonzero(more == extra)
            found, value = self._ask(queries[asked], k, extra)
            row, column = seen[asked].nonzero()
            struck = np.isin(np.arange(len(asked))[:, None] * seen.shape[1] + found, row * seen.shape[1] + column)
            kept = np.argsort(struck, 1, kind="stable")[:, :k]
            gone = np.take_along_axis(struck, kept, 1)
            rows[asked] = np.where(gone, -1, np.take_along_axis(found, kept, 1))
            values[asked] = np.where(gone, -np.inf, np.take_along_axis(value, kept, 1))
        return rows, values

    def _ask(self, queries: np.ndarray, k: int, extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
        leaves, reordered = self.tuned or (None, 0)
        k, parts = min(k + extra, len(self.vectors)), []
        reordered = min(max(reordered + extra, k), len(self.vectors))
        for start in range(0, len(queries), 4096):
            part = queries[start : start + 4096]
            parts.append(self.searcher.search_batched_parallel(part, k, reordered, leaves))
        return np.concatenate([p[0] for p in parts]).astype(np.int64), np.concatenate([p[1] for p in parts])

    def exact(self, queries: np.ndarray, k: int, seen: sp.csr_matrix | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``search`` approximates."""
        if len(self.vectors) <= SORT_UP_TO:
            return self._sorted(queries, k, seen)
        rows, values, hard = self._by_tiles.search(queries, k, seen)
        if hard.any():
            rows[hard], values[hard] = self._sorted(queries[hard], k, None if seen is None else seen[hard])
        return rows, values

    @cached_property
    def _by_tiles(self) -> "ExactSearch":
        from recsys_tasks.exact import ExactSearch  # which imports a compiler and torch

        return ExactSearch(self.vectors, self.bias)

    def _sorted(self, queries: np.ndarray, k: int, seen: sp.csr_matrix | None) -> tuple[np.ndarray, np.ndarray]:
        k, parts = min(k, len(self.vectors)), []
        for start in range(0, len(queries), 256):
            scores = queries[start : start + 256] @ self.vectors.T
            if self.bias is not None:
                scores += self.bias
            if seen is not None:
                scores[seen[start : start + 256].nonzero()] = -np.inf
            parts.append(top_k(scores, k))
        rows, values = zip(*parts, strict=True) if parts else ([np.empty((0, k), np.int32)], [np.empty((0, k))])
        return np.concatenate(rows), np.concatenate(values)

    def recall(self, k: int, queries: np.ndarray | None = None) -> float:
        """Return how much of the exact first k the search finds, over queries or 500 items evenly taken."""
        queries = self._items() if queries is None else queries
        return float(self._recalls(queries, k, self.exact(queries, k)[1]).mean())

    def _items(self, n: int = 500) -> np.ndarray:
        return self.vectors[:: max(1, len(self.vectors) // n)]

    def _recalls(self, queries: np.ndarray, k: int, best: np.ndarray) -> np.ndarray:
        """Return the recall of each query, whose exact first k have the products ``best``.

        A found item counts if it scores as high as the exact k-th one, so that equal vectors do not count as misses.
        """
        rows, _ = self.search(queries, k)
        found = np.einsum("qd,qkd->qk", queries, self.vectors[rows])
        return (found >= best[:, -1:] - 1e-4).mean(1)

    @classmethod
    def build(cls, vectors: np.ndarray, k: int, min_recall: float, queries: np.ndarray | None = None) -> "NearestItems":
        """Build a ScaNN tree that reaches ``min_recall``; exact search for few items, or without ScaNN or success.

        The recall is that of the first k of ``queries``, of what the tree will be asked for: users' vectors, say; else
        of items. A standard error is left to chance. Of what reaches it, that which reads least is taken.
        """
        if len(vectors) <= EXACT_UP_TO:
            return cls(vectors)
        try:
            from scann import scann_ops_pybind
        except ImportError as error:
            log.warning("ScaNN cannot be imported (%s): exact search is used", error)
            return cls(vectors)
        leaves = int(np.sqrt(len(vectors)) * 2)
        searcher = (
            scann_ops_pybind.builder(vectors, k, "dot_product")
            .tree(leaves, leaves, training_sample_size=min(len(vectors), 100_000), random_init=False)
            .score_ah(2, anisotropic_quantization_threshold=0.2)
            .reorder(2 * k)
            .set_n_training_threads(2)  # the same index on every machine
            .build()
        )
        found = cls(vectors, searcher)
        queries = found._items() if queries is None else queries
        best = found.exact(queries, k)[1]
        reached: dict[Tuned, float] = {}
        for times in REORDERED:
            for share in LEAVES:
                found.tuned = Tuned(max(1, int(leaves * share)), min(times * k, len(vectors)))
                recalls = found._recalls(queries, k, best)
                if recalls.mean() - recalls.std() / np.sqrt(len(recalls)) >= min_recall:
                    reached[found.tuned] = float(recalls.mean())
                    break
        if not reached:
            log.warning("ScaNN does not reach recall %.3f on these vectors: exact search is used", min_recall)
            return cls(vectors)
        n, d = vectors.shape

        def read(tuned: Tuned) -> float:  # bytes a query: 2 dimensions are 4 bits; not seconds, that nights repeat
            return tuned.leaves / leaves * n * d / 4 + tuned.reordered * d * 4

        found.tuned = min(reached, key=read)
        log.info("ScaNN, %d leaves, %s: recall@%d %.4f", leaves, found.tuned, k, reached[found.tuned])
        return found

    def save(self, folder: Path) -> None:
        """Write the ScaNN index, which holds the vectors, or without one the vectors."""
        if self.searcher is None:
            np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)
        else:
            (folder / "scann").mkdir()
            self.searcher.serialize(str(folder / "scann"), relative_path=True)
            if self.tuned:
                (folder / "tuned.json").write_text(json.dumps(self.tuned._asdict()))

    @classmethod
    def load(cls, folder: Path) -> "NearestItems":
        """Read what ``save`` wrote."""
        if not (folder / "scann").is_dir():
            return cls(np.load(folder / "vectors.npy", allow_pickle=False))
        if (folder / "scann" / "scann_docids.pkl").exists():
            raise ContractError(
                f"{folder}: holds a pickle, which Nightcart never writes nor reads; build the index again"
            )
        from scann import scann_ops_pybind

        vectors = np.load(folder / "scann" / "dataset.npy", allow_pickle=False)
        found = folder / "tuned.json"
        tuned = Tuned(**json.loads(found.read_text())) if found.exists() else None
        return cls(vectors, scann_ops_pybind.load_searcher(str(folder / "scann")), tuned)


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k highest of each row, as (n, k) column numbers and scores; equal scores by column number.

    -inf is no score: where a row has fewer than k scores, column -1 with score -inf follows. The k-th highest maximum
    of many short pieces of a row is a floor that few scores reach; only those are sorted.

    >>> columns, found = top_k(np.array([[1.0, 3.0, -np.inf, 3.0]], np.float32), 4)
    >>> columns.tolist(), found.tolist()
    ([[1, 3, 0, -1]], [[3.0, 3.0, 1.0, -inf]])

    """
    n_rows, n_columns = scores.shape
    piece = min(128, max(1, n_columns // (8 * k)))
    n_pieces = n_columns // piece
    if n_pieces > k:
        best = scores[:, : n_pieces * piece].reshape(n_rows, n_pieces, piece).max(2)
        floor = np.partition(best, n_pieces - k, axis=1)[:, n_pieces - k]
    else:
        floor = np.full(n_rows, -np.inf, scores.dtype)
    row, column = np.nonzero((scores >= floor[:, None]) & (scores > -np.inf))
    value = scores[row, column]
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)  # rank within the row, from 0
    kept = place < k
    columns = np.full((n_rows, k), -1, np.int32)
    values = np.full((n_rows, k), -np.inf, scores.dtype)
    columns[row[kept], place[kept]], values[row[kept], place[kept]] = column[kept], value[kept]
    return columns, values
