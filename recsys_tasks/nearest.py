"""Nearest items by dot product: exact, or approximate with ScaNN (Guo et al. 2020) where the catalogue is large."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from recsys_tasks.errors import ContractError
from recsys_tasks.models.base import top_k

log = logging.getLogger(__name__)

EXACT_UP_TO = 10_000
"""Items up to which exact search is fast enough."""
LEAVES = (0.05, 0.1, 0.2, 0.4)
"""Shares of the tree's leaves searched, tried in turn until the recall is reached."""


class NearestItems:
    """Search over the vectors of items.

    Parameters
    ----------
    vectors
        (n, d) float32
    searcher
        A ScaNN searcher over the same vectors, or None for exact search.

    """

    def __init__(self, vectors: np.ndarray, searcher: Any = None) -> None:
        self.vectors = vectors
        self.searcher = searcher

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (q, k) rows of ``vectors`` and their dot products, highest first."""
        k = min(k, len(self.vectors))
        if self.searcher is None:
            return self.exact(queries, k)
        parts = [self.searcher.search_batched_parallel(queries[s : s + 4096], k) for s in range(0, len(queries), 4096)]
        return np.concatenate([p[0] for p in parts]).astype(np.int64), np.concatenate([p[1] for p in parts])

    def exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``search`` approximates."""
        parts = [top_k(queries[s : s + 256] @ self.vectors.T, k) for s in range(0, len(queries), 256)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def recall(self, k: int, n_queries: int = 500) -> float:
        """Return how much of the exact first k the search finds, over items evenly taken as queries.

        A found item counts if it scores as high as the exact k-th one, so that equal vectors do not count as misses.
        """
        queries = self.vectors[:: max(1, len(self.vectors) // n_queries)]
        _, best = self.exact(queries, k)
        rows, _ = self.search(queries, k)
        found = np.einsum("qd,qkd->qk", queries, self.vectors[rows])
        return float((found >= best[:, -1:] - 1e-4).mean())

    @classmethod
    def build(cls, vectors: np.ndarray, k: int, min_recall: float) -> "NearestItems":
        """Build a ScaNN tree that reaches ``min_recall``; exact search for few items, or without ScaNN or success."""
        if len(vectors) <= EXACT_UP_TO:
            return cls(vectors)
        try:
            from scann import scann_ops_pybind
        except ImportError as error:
            log.warning("ScaNN cannot be imported (%s): exact search is used", error)
            return cls(vectors)
        leaves = int(np.sqrt(len(vectors)) * 2)
        for share in LEAVES:
            searcher = (
                scann_ops_pybind.builder(vectors, k, "dot_product")
                .tree(
                    leaves,
                    max(1, int(leaves * share)),
                    training_sample_size=min(len(vectors), 100_000),
                    random_init=False,
                )
                .score_ah(2, anisotropic_quantization_threshold=0.2)
                .reorder(2 * k)
                .set_n_training_threads(2)  # the same index on every machine
                .build()
            )
            found = cls(vectors, searcher)
            recall = found.recall(k)
            log.info("ScaNN, %.0f %% of %d leaves searched: recall@%d %.4f", share * 100, leaves, k, recall)
            if recall >= min_recall:
                return found
        log.warning("ScaNN does not reach recall %.3f on these vectors: exact search is used", min_recall)
        return cls(vectors)

    def save(self, folder: Path) -> None:
        """Write the ScaNN index, which holds the vectors, or without one the vectors."""
        if self.searcher is None:
            np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)
        else:
            (folder / "scann").mkdir()
            self.searcher.serialize(str(folder / "scann"), relative_path=True)

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
        return cls(vectors, scann_ops_pybind.load_searcher(str(folder / "scann")))
