"""What the placements hold that no champion fills, counted from logs whose answer is known."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks import inspector
from recsys_tasks.cli import run_night
from recsys_tasks.contract import PLACEMENTS
from recsys_tasks.models.features import Rhythm
from recsys_tasks.night import plan
from recsys_tasks.online_store import open_store
from recsys_tasks.placements import NEW_DAYS, Together, due, newness, stacked
from recsys_tasks.recommend import recommend
from recsys_tasks.settings import Settings
from recsys_tasks.snapshot import DAY, Catalog
from recsys_tasks.versions import placements_of, read_lists
from tests.interactions import START, interactions
from tests.tiny_shop import AS_OF, CUSTOMERS


def a_catalog(n, known_since=None):
    names = [f"i{item}" for item in range(n)]
    since = np.zeros(n, np.int64) if known_since is None else known_since
    return Catalog(
        np.array(names, object), names, names, [""] * n, [""] * n, [""] * n, np.ones(n), np.ones(n, bool), since
    )


def test_of_two_items_bought_as_often_the_one_that_is_due_comes_first():
    # everybody buys item 0 every 10 days and item 1 every 40; customer 0 bought both 8 days ago
    rows = [(user, 0, day + user % 3) for user in range(1, 60) for day in range(2, 110, 10)]
    rows += [(user, 1, day + user % 3) for user in range(1, 60) for day in range(2, 110, 40)]
    rows += [(0, item, day) for item, every in ((0, 10), (1, 40)) for day in range(104, 0, -every)]
    log = interactions(rows, 60, 2, 112)
    pairs = Rhythm.of(log.item_idx, 2, log, log.is_target)
    score = due(log, pairs, np.zeros(2, int))
    assert score[pairs.key == 0] > 2 * score[pairs.key == 1]


def test_what_fills_a_list_up_comes_once_after_what_it_fills_and_says_its_source():
    own, scores = np.array([[4, 2, -1], [-1, -1, -1]]), np.array([[0.9, 0.5, 0], [0, 0, 0]])
    fills = [(np.array([[2, 3], [5, 1]]), "popular_category"), (np.array([[0, 1, 2, 3], [0, 1, 2, 3]]), "popular")]
    made = stacked(4, own, scores, "bought_together", fills, never=np.array([0, 5]))
    assert made.items.tolist() == [[4, 2, 3, 1], [1, 0, 2, 3]]
    assert made.sources[0].tolist() == ["bought_together"] * 2 + ["popular_category", "popular"]
    assert made.filled.tolist() == [[False, False, True, True], [True] * 4]
    assert (np.diff(made.scores) < 0).all()


def test_items_of_the_same_baskets_go_together_and_popular_ones_only_beyond_chance():
    rng = np.random.default_rng(0)
    lines = {(basket, 0) for basket in range(0, 400, 2)}  # item 0 is in every other basket
    lines |= {(basket, item) for basket in range(0, 400, 20) for item in (1, 2)}  # 1 and 2 always together
    lines |= {(basket, int(rng.integers(3, 9))) for basket in range(400)}
    basket, item = np.array(sorted(lines)).T
    together = Together.count(basket, item, 9, 5)
    best, lift = together.of(np.array([1, 2]), 3, np.ones(9, bool))
    assert best[:, 0].tolist() == [2, 1]
    expected = (20 + 20) / (20 * 20 / 400 + 20)  # in common, and by chance, both shrunk by 20 baskets
    assert lift[:, 0] == pytest.approx(expected, rel=1e-6)
    assert together.of(np.array([1]), 3, np.arange(9) != 2)[0][0, 0] != 2


def test_together_is_the_same_after_it_was_saved(tmp_path):
    together = Together.count(np.repeat(np.arange(30), 2), np.tile([3, 1], 30), 5, 4)
    together.save(tmp_path)
    for one, other in zip(
        together.of(np.arange(5), 4, np.ones(5, bool)),
        Together.load(tmp_path).of(np.arange(5), 4, np.ones(5, bool)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_new_is_what_was_first_seen_in_the_shortest_time_that_fills_a_list():
    rows = [(0, 0, 0), (0, 1, 0), (0, 2, 165), (0, 3, 180), (0, 3, 195), (0, 4, 196)]
    log = interactions(rows, 1, 6, 200)
    since = np.array([0, 0, 0, 0, 0, START + 130 * DAY])  # nobody bought item 5
    for k, expected in ((1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (4, [2, 3, 4, 5]), (6, [2, 3, 4, 5])):
        assert np.flatnonzero(newness(log, a_catalog(6, since), None, k)).tolist() == expected, k
    assert np.flatnonzero(newness(log, a_catalog(6), 25, 1)).tolist() == [3, 4]


def test_nothing_is_new_in_a_log_too_short_to_tell():
    log = interactions([(0, 0, 0), (0, 1, 9)], 1, 2, 2 * NEW_DAYS[0] - 1)
    assert not newness(log, a_catalog(2), None, 1).any()


def test_the_shop_chooses_which_lists_are_made_checked_and_published(tiny_night, tmp_path, monkeypatch):
    home, shop, _ = tiny_night
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    fewer = shop.with_name("fewer.yaml")
    fewer.write_text(shop.read_text() + "placements: [new, home, trending]\nnew_days: 75\n")
    night = plan(str(fewer), AS_OF, datetime.now(UTC))
    ids = run_night(night)
    made = ["home", "trending", "new"]
    assert list(ids["check"]) == placements_of(night.lake, ids["publish"]) == made
    assert {p for p in PLACEMENTS if night.lake.current(f"recommendations/{p}")} == set(made)
    with open_store(Settings(), night.shop.name) as store:
        for placement in made:
            lists = list(read_lists(night.lake, placement, ids["publish"]))
            assert lists
            assert all(store.get(placement, reader) == items for reader, items in lists)
        assert store.get("similar", "20000") is None
    assert set(inspector.customer(night.lake, night.shop, CUSTOMERS[20])["placements"]) == set(made)
    assert inspector.item(night.lake, night.shop, "20000")["similar"] == []


def test_lists_are_the_same_in_however_many_shards(tiny_night, monkeypatch):
    home, shop, ids = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night = plan(str(shop), AS_OF, datetime.now(UTC))
    steps = ids["promote"], ids["publish_index"], ids["ingest"], ids["embed"]
    whole = recommend(replace(night, shards=[0]), 0, *steps)
    for placement in PLACEMENTS:
        parts = [pq.read_table(night.lake.path(entry) / f"{placement}.parquet") for entry in ids["recommend"]]
        order = [("user_id", "ascending"), ("rank", "ascending")]
        one = pq.read_table(night.lake.path(whole) / f"{placement}.parquet").sort_by(order)
        assert pa.concat_tables(parts).sort_by(order).equals(one), placement
