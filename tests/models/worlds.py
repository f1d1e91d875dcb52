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


def material(log, items=None, text_vectors=None):
    """What a model learns from; unless vectors are given, with text that says nothing."""
    items = items or catalog(log.n_items)
    if text_vectors is None:
        text_vectors = np.random.default_rng(0).normal(size=(log.n_items, 8))
    return Material(log, items, unit(text_vectors))


def telling(n_items):
    """Text vectors of which the even items' are alike and the odd items' are."""
    vectors = 0.1 * np.random.default_rng(0).normal(size=(n_items, 8))
    vectors[np.arange(n_items), np.arange(n_items) % 2] += 1
    return vectors


def unit(vectors):
    """Vectors of length 1, as the encoder gives them; a row of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def checkerboard():
    """Even customers buy every even item and odd ones every odd item, but for the item of their own number.

    When they do so says nothing.
    """
    day = np.random.default_rng(0).integers(28, size=(SIZE, SIZE))
    rows = [(u, i, day[u, i]) for u in range(SIZE) for i in range(SIZE) if u % 2 == i % 2 and u != i]
    return interactions(rows, SIZE, SIZE, days=28)
