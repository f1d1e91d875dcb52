"""Ranking metrics over the full catalogue. No sampled negatives.

Letters: U users, K length of the lists. Lists are ``ranked`` (U, K) int32 of item_idx, best first, -1 where a list is
shorter. Truth is (U, n_items) CSR with 1 where the user wanted the item. Every metric of a user lies in [0, 1].
"""

from collections.abc import Hashable, Mapping
from math import exp, factorial
from typing import TypedDict, TypeVar

import numpy as np
import scipy.sparse as sp

CUTOFFS = (10, 50)
Key = TypeVar("Key", bound=Hashable)


def hits(ranked: np.ndarray, wanted: sp.csr_matrix) -> np.ndarray:
    """Return (U, K) bool: was the item at this rank wanted?

    >>> hits(np.array([[2, 0, -1]]), sp.csr_matrix([[1, 0, 0]])).tolist()
    [[False, True, False]]

    """
    n_users, n_items = wanted.shape
    width = n_items + 1
    pairs = np.repeat(np.arange(n_users, dtype=np.int64), np.diff(wanted.indptr)) * width + wanted.indices
    listed = np.arange(n_users, dtype=np.int64)[:, None] * width + np.where(ranked < 0, n_items, ranked)
    return np.isin(listed, pairs)


def recall_at_k(hit: np.ndarray, n_wanted: np.ndarray, k: int) -> np.ndarray:
    """Share of the wanted items that are among the first k; (U,)."""
    return hit[:, :k].sum(1) / n_wanted


def hit_rate_at_k(hit: np.ndarray, n_wanted: np.ndarray, k: int) -> np.ndarray:
    """1 where any wanted item is among the first k; (U,)."""
    return hit[:, :k].any(1).astype(float)


def ndcg_at_k(hit: np.ndarray, n_wanted: np.ndarray, k: int) -> np.ndarray:
    """Binary gains, discount 1 / log2(rank + 1), ideal = min(k, wanted items) (Järvelin & Kekäläinen 2002); (U,)."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(n_wanted, k) - 1]
    return hit[:, :k] @ discount[: hit[:, :k].shape[1]] / ideal


def mrr_at_k(hit: np.ndarray, n_wanted: np.ndarray, k: int) -> np.ndarray:
    """1 / rank of the first wanted item, 0 where there is none among the first k; (U,)."""
    first = hit[:, :k].argmax(1)
    return np.where(hit[:, :k].any(1), 1 / (first + 1), 0.0)


def map_at_k(hit: np.ndarray, n_wanted: np.ndarray, k: int) -> np.ndarray:
    """Average precision cut at k, over all wanted items as trec_eval has it (not over min(k, wanted)); (U,)."""
    head = hit[:, :k]
    precision = np.cumsum(head, 1) / np.arange(1, head.shape[1] + 1)
    return (precision * head).sum(1) / n_wanted


USER_METRICS = {
    "recall": recall_at_k,
    "ndcg": ndcg_at_k,
    "hit_rate": hit_rate_at_k,
    "mrr": mrr_at_k,
    "map": map_at_k,
}


def per_user(ranked: np.ndarray, wanted: sp.csr_matrix) -> dict[str, np.ndarray]:
    """Return ``{"recall@10": (U,), ...}`` for every metric and cutoff."""
    hit, n_wanted = hits(ranked, wanted), np.diff(wanted.indptr)
    return {f"{name}@{k}": metric(hit, n_wanted, k) for name, metric in USER_METRICS.items() for k in CUTOFFS}


def catalog_coverage(ranked: np.ndarray, k: int, n_candidates: int) -> float:
    """Share of the recommendable items that stand in at least one user's first k."""
    shown = np.unique(ranked[:, :k])
    return float((shown >= 0).sum() / n_candidates)


def gini(ranked: np.ndarray, k: int, n_candidates: int) -> float:
    """Gini index of how often each recommendable item is shown in a first k: 0 all alike, near 1 a few take all.

    >>> gini(np.array([[0], [1]]), 1, 2), gini(np.array([[0], [0]]), 1, 2)
    (0.0, 0.5)

    """
    shown = ranked[:, :k]
    counts = np.zeros(n_candidates)
    found = np.unique(shown[shown >= 0], return_counts=True)[1]
    counts[: len(found)] = found
    counts.sort()
    place = np.arange(1, n_candidates + 1)
    return float((2 * place - n_candidates - 1) @ counts / (n_candidates * counts.sum()))


def novelty(ranked: np.ndarray, k: int, n_buyers: np.ndarray, n_users: int) -> float:
    """Mean self-information -log2(share of users who bought the item) over the first k (Zhou et al. 2010), in bits.

    An item nobody bought counts as bought by one user.
    """
    shown = ranked[:, :k]
    return float(-np.log2(np.maximum(n_buyers[shown[shown >= 0]], 1) / n_users).mean())


def beyond_accuracy(ranked: np.ndarray, n_buyers: np.ndarray, n_users: int, n_candidates: int) -> dict[str, float]:
    """Return coverage, Gini and novelty at every cutoff."""
    found = {}
    for k in CUTOFFS:
        found[f"catalog_coverage@{k}"] = catalog_coverage(ranked, k, n_candidates)
        found[f"gini@{k}"] = gini(ranked, k, n_candidates)
        found[f"novelty@{k}"] = novelty(ranked, k, n_buyers, n_users)
    return found


def bootstrap(values: Mapping[Key, np.ndarray], seed: int = 0, resamples: int = 1000) -> dict[Key, tuple[float, float]]:
    """Return the 95 % percentile interval of each mean, over users drawn with replacement (Poisson weights).

    All metrics see the same draws, so the interval of a difference is that of the difference's own values.
    """
    names = list(values)
    means = _resampled(np.stack([values[name] for name in names], 1), seed, resamples)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


class Difference(TypedDict):
    """By how much the mean of a metric differs from that of a reference, over the same users."""

    value: float
    interval: list[float]
    """At the confidence asked for."""
    corrected: list[float]
    """At a level so much higher that all intervals hold at once."""


def paired(
    values: Mapping[str, np.ndarray], reference: np.ndarray, confidence: float, tries: int
) -> dict[str, Difference]:
    """Return how the means differ from that of a reference, by a paired bootstrap over the users of all of them.

    Parameters
    ----------
    values
        (U,) values of a metric, of each of the compared.
    reference
        (U,) values of the same users.
    confidence
        Of the intervals, e.g. 0.95.
    tries
        How many are compared with the reference. The corrected intervals have the level 1 - (1 - confidence) / tries
        (Bonferroni's inequality; Dunn 1961): the chance that any of them lies wholly above 0 although none is better
        is at most (1 - confidence) / 2, however the compared depend on each other.

    """
    names, outside = list(values), (1 - confidence) / 2
    resamples = max(1000, round(10 * tries / outside))  # ten of them lie outside, at either end
    means = _resampled(np.stack([values[name] - reference for name in names], 1), 0, resamples)
    low, lowest, high, highest = np.quantile(
        means, [outside, outside / tries, 1 - outside, 1 - outside / tries], axis=0
    ).tolist()
    return {
        name: Difference(
            value=float((values[name] - reference).mean()),
            interval=[low[n], high[n]],
            corrected=[lowest[n], highest[n]],
        )
        for n, name in enumerate(names)
    }


_CHANCES = [exp(-1) / factorial(k) for k in range(9)]
_POISSON = np.repeat(np.arange(9.0), np.diff(np.rint(2**16 * np.cumsum([0, *_CHANCES])).astype(int)))
"""A number of the Poisson distribution of mean 1 for each of 16 random bits, a tenth of the time of drawing it."""


def _resampled(table: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Return (resamples, n) means of a (U, n) table over users drawn with replacement."""
    sums = bootstrap_sums(np.column_stack([table, np.ones(len(table))]), seed, resamples)
    return sums[:, :-1] / np.maximum(sums[:, -1:], 1)


def bootstrap_sums(table: np.ndarray, seed: int = 0, resamples: int = 1000) -> np.ndarray:
    """Return (resamples, n) sums of (U, n) values over users drawn with replacement, the same draws for all columns.

    A ratio, or whatever else is made of sums, has the interval that it has over the draws.
    """
    rng, sums = np.random.default_rng(seed), np.empty((resamples, table.shape[1]))
    for start in range(0, resamples, 50):
        part = sums[start : start + 50]
        part[:] = _POISSON[rng.integers(0, len(_POISSON), (len(part), len(table)), np.uint16)] @ table
    return sums


def bootstrap_share(part: np.ndarray, whole: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float]:
    """Return the 95 % percentile interval of ``part.sum() / whole.sum()``, (U,) each, users drawn as above."""
    parts, wholes = bootstrap_sums(np.column_stack([part, whole]), seed, resamples).T
    low, high = np.quantile(parts / np.maximum(wholes, 1e-12), [0.025, 0.975])
    return float(low), float(high)
