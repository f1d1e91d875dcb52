"""The benchmark of the best of many items: recall is counted against sorting, without what was seen."""

import sys

import numpy as np

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from top_k import K, best_products, made_up_world, recall


def test_recall_is_of_the_best_that_were_not_seen(tmp_path):
    made_up_world(tmp_path / "world", 20, 500)
    scores, kth = best_products(tmp_path / "world", slice(5, 15), seen=True)
    items, starts = (np.load(tmp_path / "world" / f"seen_{name}.npy") for name in ("items", "starts"))
    assert np.isneginf(scores[0, items[starts[5] : starts[6]]]).all()
    best = np.argsort(-scores, 1)
    assert recall(best[:, :K], scores, kth) == 1
    assert recall(best[:, K : 2 * K], scores, kth) == 0
    assert recall(np.column_stack([best[:, : K // 2], best[:, K : K + K // 2]]), scores, kth) == 0.5
