"""Lists are filled up with what is popular among as much as is known of the customer."""

import numpy as np
import pytest

from recsys_tasks.backoff import BackOff, first_distinct, rise
from recsys_tasks.models import Ranked
from recsys_tasks.snapshot import Catalog
from tests.interactions import interactions

N_ITEMS = 40
DEPARTMENTS = ["tea"] * 20 + ["tools"] * 20


@pytest.fixture(scope="module")
def world():
    """The young buy items 0 to 9 and 20 to 29, the old the others; 2 bought of one department, 1 never came."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(200):
        for day in range(0, 100, 5):
            item = int(rng.integers(10)) + 10 * (user % 2) + 20 * int(rng.integers(2))
            rows.append((user, item, day + 0.001 * user))
    rows += [(user, start + item, 99.0) for user, start in ((200, 20), (201, 0)) for item in range(20)] * 2
    log = interactions(rows, 203, N_ITEMS, 100)
    names = [f"i{item}" for item in range(N_ITEMS)]
    catalog = Catalog(
        np.array(names, object),
        names,
        names,
        [""] * N_ITEMS,
        DEPARTMENTS,
        DEPARTMENTS,
        np.ones(N_ITEMS),
        np.ones(N_ITEMS, bool),
        np.zeros(N_ITEMS, np.int64),
    )
    ages = np.array(["young" if user % 2 == 0 else "old" for user in range(200)] + ["", "", "young"])
    return log, catalog, BackOff.of(log, catalog, {"age": ages}, np.ones(N_ITEMS, bool))


def nothing_said(users, k=10):
    shape = (len(users), k)
    items = np.broadcast_to(np.arange(k, dtype=np.int32), shape).copy()
    return Ranked(items, -np.sort(-np.ones(shape, np.float32)), np.ones(shape, bool), np.full(shape, "popular", object))


EVERYTHING = np.ones(N_ITEMS, bool)


def test_who_touched_a_department_gets_what_is_popular_there(world):
    _, _, back_off = world
    users = np.array([200, 201])
    made = back_off.refill(nothing_said(users), users, EVERYTHING, exclude_seen=False)
    assert [{DEPARTMENTS[item] for item in items} for items in made.items.tolist()] == [{"tools"}, {"tea"}]
    assert (made.sources == "popular_category").all()


def test_who_only_told_their_age_gets_what_others_of_that_age_buy(world):
    _, _, back_off = world
    users = np.array([202, -1])
    made = back_off.refill(nothing_said(users), users, EVERYTHING, exclude_seen=False)
    of_the_young = made.items // 10 % 2 == 0
    assert of_the_young[0].sum() >= 8 > of_the_young[1].sum()
    assert ((made.sources[0] == "popular_segment") == of_the_young[0]).all()


def test_a_visitor_gets_what_everybody_buys(world):
    log, _, back_off = world
    users = np.array([-1])
    made = back_off.refill(nothing_said(users), users, EVERYTHING, exclude_seen=False)
    popularity = log.popularity(14.0)
    assert made.items[0].tolist() == np.lexsort((np.arange(N_ITEMS), -popularity))[:10].tolist()
    assert set(made.sources[0]) <= {"popular", "trending"}


def test_what_the_model_said_stays_and_nothing_comes_twice_or_was_bought_or_is_no_candidate(world):
    log, _, back_off = world
    users = np.array([200, 7, -1])
    ranked = nothing_said(users, 30)
    ranked.items[:, 0], ranked.filled[:, 0], ranked.sources[:, 0] = 39, False, "ease"
    ranked.items[0, 5] = -1
    candidates = np.arange(N_ITEMS) % 5 > 0
    made = back_off.refill(ranked, users, candidates, exclude_seen=True)
    assert (made.items[:, 0] == 39).all()
    assert (made.sources[:, 0] == "ease").all()
    for user, items, why in zip(users, made.items, made.sources, strict=True):
        listed = items[items >= 0]
        assert len(set(listed.tolist())) == len(listed)
        replaced = items[(why != "ease") & (items >= 0)][: int(candidates.sum()) // 2]
        assert candidates[replaced].all()
        if user >= 0:
            assert not log.bought[user, replaced].toarray().any()


def test_lists_that_a_model_filled_itself_stay_as_they_are(world):
    _, _, back_off = world
    ranked = nothing_said(np.array([200]))
    ranked.filled[:] = False
    assert back_off.refill(ranked, np.array([200]), EVERYTHING, exclude_seen=False) is ranked


def test_the_same_customer_gets_the_same_list_beside_whomever(world):
    _, _, back_off = world
    whole = np.arange(-1, 203)
    together = back_off.refill(nothing_said(whole), whole, EVERYTHING, exclude_seen=False)
    for n in (0, 8, 201):
        alone = back_off.refill(nothing_said(whole[n : n + 1]), whole[n : n + 1], EVERYTHING, exclude_seen=False)
        assert alone.items[0].tolist() == together.items[n].tolist()
        assert alone.sources[0].tolist() == together.sources[n].tolist()


def test_an_item_rises_when_its_part_of_the_sales_surely_grew_and_not_when_the_whole_shop_did():
    rows = [(user, item, day) for item in range(5) for day in range(65, 100) for user in range(10 + 10 * (day > 92))]
    rows += [(20 + user, 5, day) for day in range(93, 100) for user in range(10)]  # new, and all of a sudden
    rows += [(40, 6, 99)]  # once is chance
    risen = rise(interactions(rows, 41, 7, 100))
    assert np.flatnonzero(risen).tolist() == [5]


def test_first_distinct_is_what_a_loop_over_rows_finds():
    rng = np.random.default_rng(1)
    items = rng.integers(-1, 8, (50, 12))
    for row, columns in zip(items, first_distinct(items, 5), strict=True):
        expected = list(dict.fromkeys(item for item in row.tolist() if item >= 0))[:5]
        assert [row[column] for column in columns if column >= 0] == expected
