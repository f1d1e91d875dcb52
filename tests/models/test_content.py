"""``content`` knows items by their text alone."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.models.content import whitening
from tests.interactions import interactions
from tests.models.test_models import lists, model
from tests.models.worlds import catalog, material, telling

SIX = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0], [0.7, 0, 1], [0, 0, 0]])
"""Items 0 and 1 are alike, so are 2 and 3; 4 is a little like 0; 5 has no text."""


def fitted_on(rows, vectors=SIX, items=None, days=28, **config):
    log = interactions(rows, max(row[0] for row in rows) + 1, len(vectors), days)
    return model("content", **config).fit(material(log, items, vectors)), log


def test_an_item_without_any_event_is_ranked_by_its_text():
    fitted, log = fitted_on([(0, 0, 1), (1, 2, 1)])
    ranked = lists(fitted, log, 6, exclude_seen=True)
    assert ranked.items[0, :2].tolist() == [1, 4]
    assert ranked.items[1, 0] == 3
    assert ranked.filled[0].tolist() == [False] * 4 + [True, False]


def test_an_item_or_a_customer_without_text_gets_no_score():
    fitted, log = fitted_on([(0, 0, 1), (1, 5, 1)])
    scores = fitted._scorer(log)(np.arange(2))
    assert np.isfinite(scores).tolist() == [[True] * 5 + [False], [False] * 6]
    assert scores[0, 0] == pytest.approx(1)


def test_what_was_bought_last_weighs_most():
    rows = [(0, 0, 1), (0, 2, 27)]
    fitted, log = fitted_on(rows, half_life_days=7.0)
    assert lists(fitted, log, 1, exclude_seen=True).items[0] == 3
    turned, log = fitted_on([(0, 0, 27), (0, 2, 1)], half_life_days=7.0)
    assert lists(turned, log, 1, exclude_seen=True).items[0] == 1


def test_evidence_is_the_item_of_the_history_with_the_most_similar_text():
    fitted, log = fitted_on([(0, 0, 20), (0, 2, 27)])
    assert fitted.evidence(log, np.array([0]), np.array([[1, 3, 5]])).tolist() == [[0, 2, -1]]


def test_a_customer_who_came_after_training_is_scored_too():
    fitted, _ = fitted_on([(0, 0, 1)])
    later = interactions([(0, 0, 1), (1, 2, 30)], 2, 6, days=40)
    assert lists(fitted, later, 1, exclude_seen=True, users=[1]).items[0] == 3


def test_identical_texts_are_kept_once_and_score_alike():
    vectors = SIX[[0, 2, 0, 2, 0, 5]]
    fitted, log = fitted_on([(0, 0, 1)], vectors)
    assert len(fitted.vectors_) == 3
    np.testing.assert_allclose(fitted._scorer(log)(np.array([0]))[0], [1, 0, 1, 0, 1, -np.inf])
    assert fitted.item_vectors().shape == vectors.shape


def test_the_category_filter_leaves_categories_of_the_history_alone():
    items = replace(catalog(6), categories=["a", "b", "b", "a", "", "a"])
    fitted, log = fitted_on([(0, 0, 1), (1, 1, 1), (2, 4, 1)], items=items, same_category=True)
    found = np.isfinite(fitted._scorer(log)(np.arange(3)))
    assert [np.flatnonzero(row).tolist() for row in found] == [[0, 3], [1, 2], [4]]


def test_the_price_filter_leaves_prices_near_those_of_the_history_and_unknown_ones():
    items = replace(catalog(6), prices=np.array([10.0, 19.9, 20.1, 5.1, np.nan, 10.0]))
    fitted, log = fitted_on([(0, 0, 1), (1, 4, 1)], items=items, price_band=2.0)
    found = np.isfinite(fitted._scorer(log)(np.arange(2)))
    assert np.flatnonzero(found[0]).tolist() == [0, 1, 3, 4]
    assert np.flatnonzero(found[1]).tolist() == [0, 1, 2, 3, 4]  # no price in the history, no filter


def test_the_typical_price_is_the_geometric_mean_weighted_by_recency():
    items = replace(catalog(6), prices=np.array([1.0, 100.0, 9.0, 11.0, 50.0, np.nan]))
    even, log = fitted_on([(0, 0, 27), (0, 1, 27)], items=items, price_band=1.2)
    assert np.flatnonzero(np.isfinite(even._scorer(log)(np.array([0]))[0])).tolist() == [2, 3]
    late, log = fitted_on([(0, 0, 1), (0, 1, 27)], items=items, price_band=2.5, half_life_days=7.0)
    assert np.flatnonzero(np.isfinite(late._scorer(log)(np.array([0]))[0])).tolist() == [1, 4]


@pytest.mark.parametrize("components", [3, 8, 50])
def test_whitened_vectors_have_the_identity_as_their_covariance(components):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + 5
    mean, matrix = whitening(vectors, components)
    white = (vectors - mean) @ matrix
    assert white.shape == (200, min(components, 8))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(white.shape[1]), atol=1e-9)


def test_directions_without_variance_are_left_out_of_whitening():
    flat = np.random.default_rng(0).normal(size=(20, 5)) * [1, 1, 0, 2, 0]
    assert whitening(flat, 5)[1].shape == (5, 3)


def test_whitening_sees_only_the_texts_that_were_known_when_the_window_ended():
    vectors = telling(12)
    log = interactions([(0, 0, 1), (1, 1, 2)], 2, 12, days=28)
    known = np.where(np.arange(12) < 8, 0, log.as_of)
    items = replace(catalog(12), known_since=known)
    other = vectors.copy()
    other[8:] = np.random.default_rng(1).normal(size=(4, 8))
    one, two = (
        model("content", whiten=3).fit(material(log, items, text)).item_vectors()[:8] for text in (vectors, other)
    )
    np.testing.assert_allclose(one, two, atol=1e-6)
