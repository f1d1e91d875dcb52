"""Each metric against ten lines that anybody can check, and against an independent implementation."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from recsys_tasks.metrics import (
    CUTOFFS,
    USER_METRICS,
    beyond_accuracy,
    bootstrap,
    bootstrap_sums,
    catalog_coverage,
    gini,
    hits,
    novelty,
    per_user,
)

N_USERS, N_ITEMS, K = 60, 90, 50


@pytest.fixture(scope="module")
def world():
    """Random lists, a third of them shorter than K, and for each user some wanted items, many of them in the list."""
    rng = np.random.default_rng(7)
    ranked = np.stack([rng.permutation(N_ITEMS)[:K] for _ in range(N_USERS)]).astype(np.int32)
    for user in range(0, N_USERS, 3):
        ranked[user, rng.integers(0, K) :] = -1
    wanted = np.zeros((N_USERS, N_ITEMS))
    for user in range(N_USERS):
        wanted[user, rng.choice(N_ITEMS, rng.integers(1, 70 if user % 7 == 0 else 9), replace=False)] = 1
    return ranked, sp.csr_matrix(wanted)


def recall(items, wanted, k):
    return len(set(items[:k]) & wanted) / len(wanted)


def hit_rate(items, wanted, k):
    return 1.0 if set(items[:k]) & wanted else 0.0


def ndcg(items, wanted, k):
    gained = sum(1 / math.log2(rank + 1) for rank, item in enumerate(items[:k], 1) if item in wanted)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return gained / ideal


def mrr(items, wanted, k):
    return next((1 / rank for rank, item in enumerate(items[:k], 1) if item in wanted), 0.0)


def mean_average_precision(items, wanted, k):
    found, total = 0, 0.0
    for rank, item in enumerate(items[:k], 1):
        if item in wanted:
            found += 1
            total += found / rank
    return total / len(wanted)


SLOW = {"recall": recall, "ndcg": ndcg, "hit_rate": hit_rate, "mrr": mrr, "map": mean_average_precision}


def test_the_metrics_are_these():
    assert set(USER_METRICS) == set(SLOW)
    assert CUTOFFS == (10, 50)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("k", CUTOFFS)
def test_a_metric_equals_a_plain_loop_over_every_user(world, name, k):
    ranked, wanted = world
    fast = per_user(ranked, wanted)[f"{name}@{k}"]
    lists = [[item for item in row if item >= 0] for row in ranked.tolist()]
    slow = [SLOW[name](items, set(wanted[user].indices.tolist()), k) for user, items in enumerate(lists)]
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-12)
    assert 0 < fast.mean() < 1
    assert fast.min() >= 0
    assert fast.max() <= 1


RANX = """
import json, sys
import ranx
qrels, run, names = json.load(sys.stdin)
run = ranx.Run(run)
ranx.evaluate(ranx.Qrels(qrels), run, names, return_mean=False)
json.dump(run.scores, sys.stdout)
"""


def test_the_metrics_equal_those_of_an_independent_library(world):
    pytest.importorskip("ranx")
    ranked, wanted = world
    users = [user for user in range(N_USERS) if ranked[user, 0] >= 0]  # the library knows no empty list
    qrels = {f"u{user}": {f"i{item}": 1 for item in wanted[user].indices} for user in users}
    run = {f"u{u}": {f"i{item}": float(K - rank) for rank, item in enumerate(ranked[u]) if item >= 0} for u in users}
    names = [f"{name}@{k}" for name in SLOW for k in CUTOFFS]
    uncompiled = os.environ | {"NUMBA_DISABLE_JIT": "1"}  # to compile takes far longer than to run once
    told = json.dumps([qrels, run, names])
    asked = subprocess.run([sys.executable, "-c", RANX], input=told, env=uncompiled, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    theirs = json.loads(asked.stdout)
    ours = per_user(ranked[users], wanted[users])
    for name in names:
        expected = [theirs[name][f"u{user}"] for user in users]
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-9, err_msg=name)


def test_a_perfect_list_scores_one_and_a_list_without_a_wanted_item_scores_zero():
    wanted = sp.csr_matrix(np.eye(2, 20)[[0, 0]])
    ranked = np.array([[0, *range(5, 14)], [*range(5, 15)]], np.int32)
    for name, value in per_user(ranked, wanted).items():
        assert value.tolist() == [1.0, 0.0], name


def test_a_list_shorter_than_the_cutoff_is_scored_as_if_it_ended_in_misses(world):
    ranked, wanted = world
    short = ranked[:, :7]
    padded = np.pad(short, ((0, 0), (0, K - 7)), constant_values=-1)
    assert hits(padded, wanted)[:, 7:].sum() == 0
    for name, value in per_user(short, wanted).items():
        np.testing.assert_allclose(value, per_user(padded, wanted)[name], atol=1e-12, err_msg=name)


def test_an_empty_list_scores_zero_and_is_no_item():
    wanted = sp.csr_matrix(np.eye(1, 4, k=3))  # the last item is wanted: -1 must not be taken for it
    for name, value in per_user(np.full((1, 10), -1, np.int32), wanted).items():
        assert value.tolist() == [0.0], name


def test_a_hit_of_one_user_is_none_of_another():
    wanted = sp.csr_matrix(np.array([[1, 0, 0], [0, 0, 1]]))
    assert hits(np.array([[2, 0], [2, 0]], np.int32), wanted).tolist() == [[False, True], [True, False]]


def test_coverage_is_the_share_of_candidates_in_any_first_k():
    ranked = np.array([[0, 1, 2], [1, 0, -1], [1, 3, 4]], np.int32)
    assert catalog_coverage(ranked, 1, 8) == 2 / 8
    assert catalog_coverage(ranked, 2, 8) == 3 / 8
    assert catalog_coverage(ranked, 10, 8) == 5 / 8


def test_gini_is_zero_where_all_are_shown_alike_and_grows_as_fewer_take_all():
    assert gini(np.array([[0, 1], [2, 3]]), 2, 4) == 0
    assert gini(np.array([[0], [0], [0], [0]]), 1, 4) == pytest.approx(0.75)  # (n - 1) / n: one of four takes all
    # counts 0, 1, 3: mean absolute difference (1 + 3 + 2) * 2 / 9 over twice the mean 4 / 3
    assert gini(np.array([[0], [0], [0], [1]]), 1, 3) == pytest.approx((12 / 9) / (8 / 3))
    assert gini(np.array([[0, -1], [1, -1]]), 2, 2) == 0


def test_novelty_is_the_mean_surprise_in_bits():
    n_buyers = np.array([8, 4, 1, 0])
    assert novelty(np.array([[0]]), 1, n_buyers, 8) == 0
    assert novelty(np.array([[0, 1]]), 2, n_buyers, 8) == pytest.approx((0 + 1) / 2)
    assert novelty(np.array([[1, 2], [3, -1]]), 2, n_buyers, 8) == pytest.approx((1 + 3 + 3) / 3)
    assert novelty(np.array([[1, 2], [3, -1]]), 1, n_buyers, 8) == pytest.approx((1 + 3) / 2)


def test_what_lies_beyond_accuracy_is_told_at_every_cutoff(world):
    ranked, _ = world
    found = beyond_accuracy(ranked, np.arange(N_ITEMS), N_USERS, N_ITEMS)
    assert set(found) == {f"{name}@{k}" for name in ("catalog_coverage", "gini", "novelty") for k in CUTOFFS}
    assert found["catalog_coverage@10"] == catalog_coverage(ranked, 10, N_ITEMS)
    assert found["catalog_coverage@10"] <= found["catalog_coverage@50"] <= 1
    assert found["gini@50"] == gini(ranked, 50, N_ITEMS)


def test_the_bootstrap_interval_covers_the_mean_and_is_the_same_each_time():
    values = {"ndcg": np.random.default_rng(1).random(200), "hit": np.random.default_rng(2).integers(0, 2, 200) * 1.0}
    found = bootstrap(values)
    for name, (low, high) in found.items():
        assert low < values[name].mean() < high
    assert bootstrap(values) == found
    assert bootstrap(values, seed=1) != found


def test_the_bootstrap_interval_is_that_of_the_normal_approximation():
    value = np.random.default_rng(3).normal(0.3, 0.1, 400)
    low, high = bootstrap({"x": value}, resamples=4000)["x"]
    expected = 2 * 1.96 * value.std() / math.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_the_bootstrap_interval_narrows_with_the_number_of_users():
    value = np.random.default_rng(4).random(1600)
    width = {n: np.subtract(*bootstrap({"x": value[:n]})["x"][::-1]) for n in (100, 400, 1600)}
    assert width[100] > 1.6 * width[400] > 1.6 * 1.6 * width[1600]


def test_the_bootstrap_of_a_difference_is_narrower_than_of_its_parts_where_they_rise_together():
    base = np.random.default_rng(5).random(300)
    found = bootstrap({"a": base, "b": base + 0.01, "b - a": np.full(300, 0.01)})
    assert found["b - a"][1] - found["b - a"][0] < 1e-9
    # the same draws for both: the ends of b are those of a, moved
    assert found["b"][0] == pytest.approx(found["a"][0] + 0.01)


def test_sums_over_drawn_customers_keep_columns_paired():
    values = np.random.default_rng(3).random((40, 2))
    sums = bootstrap_sums(np.column_stack([values, 3 * values[:, 0], np.ones(40)]), resamples=120)
    assert sums.shape == (120, 4)
    np.testing.assert_allclose(sums[:, 2] / sums[:, 0], 3)
    ends = np.quantile(sums[:, 1] / sums[:, 3], [0.025, 0.975])
    np.testing.assert_allclose(ends, bootstrap({"": values[:, 1]}, resamples=120)[""])
