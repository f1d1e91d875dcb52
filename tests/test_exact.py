"""The search in tiles is held against sorting whole lines of float64 scores."""

import numpy as np
import pytest
import scipy.sparse as sp

from recsys_tasks import exact, nearest
from recsys_tasks.exact import ExactSearch
from recsys_tasks.nearest import NearestItems

K = 20


def world(kind, n_items=5000, n=40, d=16):
    """Queries, vectors, their bias and what is seen."""
    rng = np.random.default_rng(3)
    queries, vectors, bias = rng.normal(size=(n, d)), rng.normal(size=(n_items, d)), np.zeros(n_items)
    if kind == "biased":
        bias = -rng.exponential(30, n_items)
    if kind == "outlier":  # its rounding takes more than others differ by
        vectors[77] = -1000
    if kind == "negative":
        queries, vectors = np.abs(queries), -np.abs(vectors)
    if kind == "copies":
        vectors[1000:1090] = vectors[0] * 3
    history = rng.integers(1, 300, n)
    history[:3] = 0
    rows = np.repeat(np.arange(n), history)
    best = np.argsort(-(queries @ vectors.T + bias), 1)[:, :300]  # what is seen are the best
    seen = sp.csr_matrix((np.ones(len(rows)), (rows, best[rows, rng.integers(0, 300, len(rows))])), (n, n_items))
    seen.sum_duplicates()
    return queries.astype(np.float32), vectors.astype(np.float32), bias.astype(np.float32), seen


def sorted_lines(queries, vectors, bias, seen, k=K):
    scores = queries.astype(float) @ vectors.T.astype(float) + bias
    scores[seen.nonzero()] = -np.inf
    rows = np.argsort(-scores, 1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("rounded", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["normal", "biased", "negative", "copies", "outlier"])
def test_nothing_is_lost_by_rounding(kind, rounded, monkeypatch):
    import torch

    monkeypatch.setattr(exact, "_faster", lambda tile: getattr(torch, rounded))
    queries, vectors, bias, seen = world(kind)
    rows, values, hard = ExactSearch(vectors, bias).search(queries, K, seen)
    expected, scores = sorted_lines(queries, vectors, bias, seen)
    assert not hard.any()
    assert (np.sort(rows, 1) == np.sort(expected, 1)).all()
    np.testing.assert_allclose(values, scores, rtol=1e-5, atol=1e-5)
    assert (np.diff(values, axis=1) <= 0).all()


def test_equal_products_stand_in_the_order_of_rows():
    _, vectors, _, _ = world("copies")
    rows, _, _ = ExactSearch(vectors).search(vectors[:1], K)
    assert rows[0].tolist() == [*range(1000, 1000 + K)]


def test_a_catalogue_of_equal_items_is_hard_and_answered_all_the_same(monkeypatch):
    monkeypatch.setattr(nearest, "SORT_UP_TO", 100)
    vectors = np.ones((3000, 4), np.float32)
    assert ExactSearch(vectors).search(vectors[:2], K)[2].all()
    rows, values = NearestItems(vectors).search(vectors[:2], K)
    assert rows.tolist() == [[*range(K)]] * 2
    assert (values == 4).all()


def test_who_has_seen_nearly_everything_gets_the_rest():
    vectors = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    left = [5, 2100, 2999]
    seen = np.ones((1, 3000))
    seen[0, left] = 0
    rows, values, _ = ExactSearch(vectors).search(vectors[:1], K, sp.csr_matrix(seen))
    assert sorted(rows[0, :3].tolist()) == left
    assert (rows[0, 3:] == -1).all()
    assert (values[0, 3:] == -np.inf).all()


def test_blocks_of_queries_are_answered_like_single_ones(monkeypatch):
    queries, vectors, _, seen = world("normal")
    whole = ExactSearch(vectors).search(queries, K, seen)
    monkeypatch.setattr(exact, "BLOCK", 7)
    for one, other in zip(whole, ExactSearch(vectors).search(queries, K, seen), strict=True):
        np.testing.assert_array_equal(one, other)
