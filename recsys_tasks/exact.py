"""Exact search for the highest dot products, without what is seen, at the speed of small numbers.

Items pass by in tiles that stay in the cache. A tile's products are of vectors rounded to bfloat16, where this machine
multiplies those faster, and come rounded to bfloat16. How far a product can be off is known (Cauchy-Schwarz on what
rounding takes away), so what may belong to the k best is kept, a few items more than k, and multiplied once more in
float32: nothing is lost. What a customer has seen is struck out in the tile; nobody is asked for more than k.

Rows whose scores are so much alike that too many may belong to the k best are done by sorting whole lines.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp
from numba import njit

TILE = 2048
"""Items multiplied at once."""
BLOCK = 512
"""Queries multiplied at once: with a tile, 2 MB of bfloat16."""
PIECE = 64
"""Products compared at once with the lowest that may count."""
LANES = 128
"""Of the first tile: maxima of so many groups of items say what may count from the start."""
NONE = np.int32(np.iinfo(np.int32).min)


class ExactSearch:
    """Search over (n, d) float32 vectors, each with a ``bias`` that is added to its products.

    ``kind`` is the type of torch in which tiles are multiplied; by default the one that is faster here.
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray | None = None, kind: Any = None) -> None:
        import torch

        self.vectors = np.ascontiguousarray(vectors, np.float32)
        n, d = self.vectors.shape
        self.bias = np.zeros(n, np.float32) if bias is None else bias.astype(np.float32)
        exact, added = torch.zeros((-(-n // TILE) * TILE, d)), torch.from_numpy(self.bias)
        exact[:n] = torch.from_numpy(self.vectors)
        self.kind = kind or _faster(exact[:TILE])
        rounded = exact.to(self.kind)
        self.tiles = torch.zeros((len(exact), d + 2), dtype=self.kind)  # a bias and what rounding takes away from it
        self.tiles[:, :d] = rounded
        self.tiles[:n, d] = added.to(self.kind)
        self.tiles[:n, d + 1] = (added - self.tiles[:n, d].float()).to(self.kind)
        self.longest = float(exact.norm(dim=1).max())
        self.taken = float((exact - rounded.float()).norm(dim=1).max())  # by rounding, at most
        self.added = float(added.abs().max())

    def search(
        self, queries: np.ndarray, k: int, seen: sp.csr_matrix | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (q, k) rows of the vectors, -1 where there are no more, their products and which queries were hard.

        Equal products stand in the order of rows. ``seen`` (q, n), with sorted indices, is left out. Lines of hard
        queries are empty: too many items have, within float32's doubt, the same product.
        """
        import torch

        q, k = len(queries), min(k, len(self.vectors))
        queries = np.ascontiguousarray(queries, np.float32)
        rows, values = np.full((q, k), -1, np.int32), np.full((q, k), -np.inf, np.float32)
        hard = np.zeros(q, bool)
        start = np.zeros(q + 1, np.int64) if seen is None else seen.indptr.astype(np.int64)
        struck = np.zeros(0, np.int32) if seen is None else seen.indices.astype(np.int32, copy=False)
        small = self.kind == torch.bfloat16
        rough = 1 / 250 if small else 0.0  # of a product, by rounding one down and one up: 2 / 2^9, and a little

        def block(at: int) -> None:
            part = slice(at, at + BLOCK)
            exact = torch.from_numpy(queries[part])
            rounded = torch.ones((len(exact), self.tiles.shape[1]), dtype=self.kind)
            rounded[:, :-2] = exact
            doubt = self._doubt(exact, rounded[:, :-2].float())
            n, width = len(exact), 3 * k + 2 * PIECE
            products = torch.empty((n, TILE), dtype=self.kind)
            bits = products.view(torch.int16 if small else torch.int32).numpy()
            found, order = np.empty((n, width), np.int32), np.empty((n, width), np.int32)
            count, bars = np.zeros(n, np.int64), np.full(n, NONE + (1 << 16), np.int32)
            for first in range(0, len(self.tiles), TILE):
                torch.mm(rounded, self.tiles[first : first + TILE].T, out=products)
                _keep(bits, first, len(self.vectors), k, doubt, rough, start[at:], struck, count, bars, order, found)
            limits = (k, doubt, rough)
            _again(queries[part], self.vectors, self.bias, *limits, count, order, found, rows[part], values[part])
            hard[part] = count < 0

        threads = torch.get_num_threads()
        try:  # a block a thread: small products are not worth sharing
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(block, range(0, q, BLOCK)))
        finally:
            torch.set_num_threads(threads)
        if small and hard.any():
            again = np.flatnonzero(hard)
            careful = ExactSearch(self.vectors, self.bias, torch.float32)
            found = careful.search(queries[again], k, None if seen is None else seen[again])
            rows[again], values[again], hard[again] = found
        return rows, values, hard

    def _doubt(self, exact: Any, rounded: Any) -> np.ndarray:
        """Return (n,) float32, how far the products of a query can be off before they are rounded themselves."""
        length = exact.norm(dim=1)
        by_rounding = length * self.taken + (exact - rounded).norm(dim=1) * (self.longest + self.taken)
        most = (length + 1) * (self.longest + self.taken) + self.added  # a sum of products, each without its sign
        by_adding = (self.vectors.shape[1] + 4) * 2.0**-23 * most + 2.0**-17 * self.added  # two halves of a bias
        return (by_rounding + by_adding).numpy()


def _faster(tile: Any) -> Any:
    """Return the type of number, bfloat16 or float32, in which torch multiplies faster here."""
    import torch

    seconds = {}
    for kind in (torch.bfloat16, torch.float32):
        one, spent = tile.to(kind), []
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(one[:BLOCK], one.T)
            spent.append(time.perf_counter() - began)
        seconds[kind] = min(spent)
    return min(seconds, key=lambda kind: seconds[kind])


@njit(nogil=True, cache=True, inline="always")
def _ordered(bits: Any, shift: Any) -> Any:
    """Return the int32 that is ordered as the number with these bits; int16 are those of bfloat16, to be shifted."""
    wide = np.int32(np.int32(bits) << shift)
    return np.int32(wide ^ np.int32(np.int32(wide >> 31) & 0x7FFFFFFF))


@njit(nogil=True, cache=True)
def _bar(ordered: np.ndarray, k: int, doubt: float, rough: float) -> Any:
    """Return the lowest, as ``_ordered``, that may belong to the k best when these are among the products."""
    kth = np.empty(1, np.int32)
    kth[0] = _ordered(np.partition(ordered, len(ordered) - k)[len(ordered) - k], np.int32(0))
    value = kth.view(np.float32)
    value[0] -= 2 * doubt + rough * (abs(value[0]) + 2 * doubt)
    return _ordered(kth[0], np.int32(0))


@njit(nogil=True, cache=True)
def _keep(
    tile: np.ndarray,
    first: int,
    n_items: int,
    k: int,
    doubt: np.ndarray,
    rough: float,
    start: np.ndarray,
    seen: np.ndarray,
    count: np.ndarray,
    bars: np.ndarray,
    order: np.ndarray,
    found: np.ndarray,
) -> None:
    """Add to the ``count`` items ``found`` of each row those of a tile that may be among the k best.

    The tile (n, TILE) holds the bits of the products with items from ``first`` on. Products of what is found stand, as
    ``_ordered``, in ``order``; below ``bars`` none counts. A row where too many count has ``count`` -1 from then on.
    """
    none = tile.dtype.type(-1)
    shift = np.int32(32 - 8 * tile.itemsize)
    piece_of, lanes_of, groups = np.uint64(PIECE), np.uint64(LANES), np.uint64(TILE // LANES)
    best = np.empty(LANES, np.int32)
    for row in range(len(tile)):
        line, n, bar = tile[row], count[row], bars[row]
        if n < 0:
            continue
        at = start[row] + np.searchsorted(seen[start[row] : start[row + 1]], first)
        while at < start[row + 1] and seen[at] < first + TILE:
            line[seen[at] - first] = none
            at += 1
        for item in range(n_items - first, TILE):
            line[item] = none
        if first == 0 and k <= LANES // 2:
            for lane in range(lanes_of):
                best[lane] = NONE
            for group in range(groups):
                for lane in range(lanes_of):  # unsigned, lest negative places are looked for and nothing is parallel
                    best[lane] = max(best[lane], _ordered(line[group * lanes_of + lane], shift))
            bar = max(bar, _bar(best, k, doubt[row], rough))
        for piece in range(np.uint64(TILE // PIECE)):
            highest = NONE
            for place in range(piece_of):
                highest = max(highest, _ordered(line[piece * piece_of + place], shift))
            if highest < bar:
                continue
            if n > found.shape[1] - PIECE:
                bar = max(bar, _bar(order[row, :n], k, doubt[row], rough))
                n = _sift(order[row], found[row], n, bar)
                if n > found.shape[1] - PIECE:
                    n = -1
                    break
            for place in range(piece_of):
                value = _ordered(line[piece * piece_of + place], shift)
                if value >= bar:
                    order[row, n] = value
                    found[row, n] = first + np.int64(piece * piece_of + place)
                    n += 1
        count[row], bars[row] = n, bar


@njit(nogil=True, cache=True)
def _sift(order: np.ndarray, found: np.ndarray, n: int, bar: int) -> int:
    """Keep of the first n what is not lower than the bar, in its order, and return how many that are."""
    kept = 0
    for place in range(n):
        if order[place] >= bar:
            order[kept], found[kept] = order[place], found[place]
            kept += 1
    return kept


@njit(nogil=True, cache=True, fastmath=True)
def _again(
    queries: np.ndarray,
    vectors: np.ndarray,
    bias: np.ndarray,
    k: int,
    doubt: np.ndarray,
    rough: float,
    count: np.ndarray,
    order: np.ndarray,
    found: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
) -> None:
    """Multiply again, in float32, what was found, and write the k best of each row to ``rows`` and ``values``."""
    d = np.uint64(queries.shape[1])
    for row in range(len(queries)):
        n = count[row]
        if n > k:
            n = _sift(order[row], found[row], n, _bar(order[row, :n], k, doubt[row], rough))
        if n <= 0:
            continue
        query, products = queries[row], np.empty(n, np.float32)
        for place in range(n):
            vector, total = vectors[found[row, place]], np.float32(0)
            for x in range(d):
                total += query[x] * vector[x]
            products[place] = -(total + bias[found[row, place]])
        best = np.argsort(products, kind="mergesort")[:k]
        for place in range(len(best)):
            rows[row, place] = found[row, best[place]]
            values[row, place] = -products[best[place]]
