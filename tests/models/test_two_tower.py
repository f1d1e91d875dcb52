"""What the two towers read, and that it counts."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.models.two_tower import TwoTower, TwoTowerConfig, _examples
from recsys_tasks.snapshot import DAY
from recsys_tasks.split import truth
from tests.interactions import interactions
from tests.models.worlds import SIZE, catalog, checkerboard, material, telling

QUICK = {"batch_size": 64, "epochs": 15, "dim": 16, "negatives": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def fitted():
    """Two towers that learned the checkerboard but for its last two customers and items, with texts that tell."""
    log = checkerboard()
    known = (log.user_idx < SIZE - 2) & (log.item_idx < SIZE - 2)
    names = ("user_idx", "item_idx", "time", "weight", "rating", "is_target")
    part = replace(log, **{name: getattr(log, name)[known] for name in names})
    return TwoTower(TwoTowerConfig(**QUICK)).fit(material(part, text_vectors=telling(SIZE)))


def test_a_customer_who_came_after_training_is_known_by_what_he_did(fitted):
    log = checkerboard()
    ranked = fitted.recommend(log, np.array([SIZE - 2, SIZE - 1]), 5, np.ones(SIZE, bool), exclude_seen=False)
    assert (ranked.items % 2 == [[0], [1]]).all()
    assert not ranked.filled.any()


def test_an_item_that_nobody_bought_is_told_by_its_text(fitted):
    log = checkerboard()
    new = np.isin(np.arange(SIZE), [SIZE - 2, SIZE - 1])
    ranked = fitted.recommend(log, np.arange(SIZE - 2), 1, new, exclude_seen=False)
    assert (ranked.items[:, 0] % 2 == np.arange(SIZE - 2) % 2).all()


def test_an_item_that_nobody_bought_says_nothing_of_whom_has_it_in_his_history(fitted):
    said = np.abs(fitted.query_["items"]).sum(1) > 0
    assert said.tolist() == [True] * (SIZE - 2) + [False] * 2


def test_an_example_is_the_first_event_of_a_pair_told_by_earlier_baskets_newest_first():
    log = interactions([(0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 1, 3), (0, 4, 4), (1, 2, 1)], 2, 5, days=5)
    found = _examples(log, TwoTowerConfig(history=3), held_out=0)
    told = zip(found["user_idx"].tolist(), found["item_idx"].tolist(), found["last"].tolist(), strict=True)
    assert sorted(told) == [
        (0, 1, [-1, -1, -1]),
        (0, 2, [1, -1, -1]),
        (0, 3, [1, -1, -1]),
        (0, 4, [1, 3, 2]),
        (1, 2, [-1, -1, -1]),
    ]
    assert found["rated"].all()


def test_attributes_of_customers_tell_their_taste():
    """Every customer's first purchase is even or odd by what the shop knows of him; he did nothing before."""
    rng = np.random.default_rng(0)
    rows = [(user, int(item), user % 28) for user in range(200) for item in (2 * rng.integers(0, 10) + user % 2,)]
    rows += [(user, int(item), 27.5) for user in range(200) for item in (2 * rng.integers(0, 10) + user % 2,)]
    log = interactions(rows, 202, 20, days=28)
    kinds = np.array(["even", "odd"] * 101)
    known = replace(material(log), attributes={"kind": kinds})
    model = TwoTower(TwoTowerConfig(**QUICK, by_user=False, text=False, history=1)).fit(known)
    none = np.full((2, 1), -1)
    vectors = model._vectors(np.array([200, 201]), none)  # two who did nothing
    liked = (vectors @ model.item_vectors_.T).reshape(2, 10, 2).mean(1)  # (customer, even or odd)
    assert (liked.argmax(1) == [0, 1]).all()


def test_the_ranking_task_is_measured_on_what_it_was_not_taught():
    """Odd items are only looked at, even ones bought: weights of 0.1 and 1."""
    rng = np.random.default_rng(0)
    pairs = [
        (user, int(item), int(day))
        for user in range(60)
        for item, day in zip(*rng.integers(0, 28, (2, 20)), strict=True)
    ]
    log = interactions([(u, i, d, 0.1 if i % 2 else 1.0, i % 2 == 0) for u, i, d in pairs], 60, 28, days=35)
    late = interactions([(0, 1, 30), *[(u, i, d) for u, i, d in pairs]], 60, 28, days=35)
    window = truth(late, log.as_of - 6 * DAY, log.as_of, "all")
    learned = replace(material(log, catalog(28)), validation={"all": window, "discovery": window})
    model = TwoTower(TwoTowerConfig(**QUICK, ranking_weight=1.0)).fit(learned)
    assert set(model.report()) == {"ranking rmse", "ranking auc"}
    assert model.report()["ranking auc"] > 0.9
    assert model.report()["ranking rmse"] < 0.45  # 0.45 is what their mean would give


def test_what_training_reported_is_kept_with_the_model(fitted, tmp_path):
    fitted.reported = {"ranking rmse": 0.5}
    fitted.save(tmp_path, catalog(SIZE))
    assert TwoTower.load(tmp_path, catalog(SIZE)).report() == {"ranking rmse": 0.5}
