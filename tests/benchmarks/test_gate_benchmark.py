"""The benchmark of the gate: its made-up nights are what they say, and its page tells what falls short."""

import sys

import numpy as np
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from gate import NIGHTS, a_night, a_view, limits_of, page, told
from protocol.page import within

from recsys_tasks.metrics import per_user


def test_an_equal_model_is_as_good_and_a_knowing_one_better():
    rng, tier = np.random.default_rng(0), np.full(2000, "warm")
    lists, wanted = a_view(
        rng, tier, {name: np.full(2000, known) for name, known in zip("abc", (0.5, 0.5, 1), strict=True)}
    )
    ndcg = {name: per_user(ranked, wanted)["ndcg@10"] for name, ranked in lists.items()}
    assert ndcg["a"].mean() == pytest.approx(ndcg["b"].mean(), abs=0.01)
    assert ndcg["c"].mean() > ndcg["a"].mean() + 0.05
    assert 0.5 < np.corrcoef(ndcg["a"], ndcg["b"])[0, 1] < 0.95
    assert (ndcg["a"] == 0).mean() > 0.4


@pytest.mark.parametrize(
    ("kind", "promoted", "failed"),
    [("worse", None, "better"), ("better", "challenger 1", None), ("better, but discovers less", None, "discovery")],
)
def test_a_night_goes_through_the_gate(kind, promoted, failed):
    night = a_night(0, 400, kind)
    assert night["promoted"] == promoted
    assert failed in night["failed"] if failed else night["failed"] == []


def test_the_page_tells_shares_and_what_falls_short():
    fine = {
        "promoted": None,
        "failed": ["better"],
        "best mean": True,
        "ndcg": 0.2,
        "zeros": 0.5,
        "zeros, discovery": 0.7,
    }
    fine |= {"difference": 0.01, "correlation": 0.8}
    crowned = fine | {"promoted": "challenger 1", "failed": []}
    nights = {kind: [crowned if kind.startswith("better") and "but" not in kind else fine] * 4 for kind in NIGHTS}
    rows = [told(kind, of) for kind, of in nights.items()]
    assert all(within(limit) for limit in limits_of(rows))
    assert "| equal | 1 | 4 | +0.0100 | 0.0% ± 0.0% | 100.0% | better 4 |" in page(rows, 600)
    rows = [told(kind, [crowned, *of[1:]]) for kind, of in nights.items()]
    short = [limit["name"] for limit in limits_of(rows) if not within(limit)]
    assert {"worse: promoted", "equal: promoted", "best of 8 equal: promoted"} < set(short)
