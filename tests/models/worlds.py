"""Small worlds whose answer is known."""

import numpy as np

from recsys_tasks.models import Material
from recsys_tasks.snapshot import Catalog
from tests.interactions import interactions

SIZE = 40


def catalog(n_items, unavailable=()):
    """A catalogue of n items named i000, i001, ...; every other one is of the category ``even``."""
    available = np.ones(n_items, bool)
    available[list(unavailable)] = False
    names = [f"i{n:03}" for n in range(n_items)]
    return Catalog(
        item_ids=np.array(names, dtype=object),
        titles=names,
        texts=names,
        brands=["A"] * n_items,
        categories=["even" if n % 2 == 0 else "odd" for n in range(n_items)],
        departments=[""] * n_items,
        prices=np.where(np.arange(n_items) % 3 == 0, np.nan, 1.0 + np.arange(n_items)),
        available=available,
        known_since=np.zeros(n_items, np.int64),
    )


def material(log, items=None):
    """What a model learns from, with text that says nothing."""
    items = items or catalog(log.n_items)
    vectors = np.random.default_rng(0).normal(size=(log.n_items, 8)).astype(np.float32)
    return Material(log, items, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def checkerboard():
    """Even customers buy every even item and odd ones every odd item, but for the item of their own number.

    When they do so says nothing.
    """
    day = np.random.default_rng(0).integers(28, size=(SIZE, SIZE))
    rows = [(u, i, day[u, i]) for u in range(SIZE) for i in range(SIZE) if u % 2 == i % 2 and u != i]
    return interactions(rows, SIZE, SIZE, days=28)
