"""What the models see of a snapshot: indices that mean the same all night, and weights that fade."""

from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from recsys_tasks.contract import CUSTOMERS, ITEM_STATISTICS
from recsys_tasks.errors import NothingInLake
from recsys_tasks.ingest import ingest
from recsys_tasks.night import Night
from recsys_tasks.snapshot import DAY, Snapshot, tiers, write_statistics
from tests.interactions import START, interactions
from tests.tiny_shop import AS_OF as TINY_AS_OF


def test_a_weight_halves_with_every_half_life():
    log = interactions([(0, 0, 10), (0, 1, 5), (0, 2, 0), (1, 0, 0, 0.5)], 2, 3, 10)
    np.testing.assert_allclose(log.matrix(half_life_days=5).toarray(), [[1, 0.5, 0.25], [0.125, 0, 0]])
    np.testing.assert_allclose(log.matrix().toarray(), [[1, 1, 1], [0.5, 0, 0]])
    np.testing.assert_allclose(log.matrix_of(1, 5).toarray(), [[0.125, 0, 0]])


def test_the_age_of_an_event_is_counted_from_what_the_observer_knows():
    log = interactions([(0, 0, 0), (0, 1, 5)], 1, 2, 10)
    np.testing.assert_allclose(log.age_days, [10, 5])
    np.testing.assert_allclose(log.before(START + 5 * DAY).age_days, [5])
    np.testing.assert_allclose(log.before(START + 5 * DAY).matrix(half_life_days=5).toarray(), [[0.5, 0]])


def test_events_of_a_pair_add_up_or_the_newest_stands_alone():
    log = interactions(
        [(0, 0, 0), (0, 0, 5), (0, 0, 10), (0, 1, 0, 0.1), (0, 1, 5, 0.9), (1, 1, 0, 0.9), (1, 1, 5, 0.1)], 2, 2, 10
    )
    np.testing.assert_allclose(log.matrix(half_life_days=5).toarray(), [[1.75, 0.025 + 0.45], [0, 0.225 + 0.05]])
    np.testing.assert_allclose(log.matrix(half_life_days=5, count="last").toarray(), [[1, 0.45], [0, 0.05]], rtol=1e-6)
    assert log.matrix(count="last").nnz == 3


def test_of_two_events_at_one_instant_the_later_in_the_log_is_the_newest():
    log = interactions([(0, 0, 5, 0.25), (0, 0, 5, 0.75)], 1, 1, 10)
    assert log.matrix(count="last").toarray().tolist() == [[0.75]]


def test_the_row_of_a_user_is_the_row_of_the_matrix():
    rng = np.random.default_rng(0)
    log = interactions(
        [(int(u), int(i), float(d)) for u, i, d in zip(*rng.integers(0, 9, (2, 200)), rng.random(200), strict=True)],
        9,
        9,
        2,
    )
    for half_life, user in ((3, 0), (1, 0), (3, 8)):
        expected = log.matrix(half_life, count="last")[user]
        assert (log.matrix_of(user, half_life) != expected).nnz == 0


def test_popularity_is_the_sum_of_faded_weights():
    log = interactions([(0, 0, 10), (1, 0, 5), (1, 2, 0, 0.5)], 2, 4, 10)
    np.testing.assert_allclose(log.popularity(5), [1.5, 0, 0.125, 0])
    np.testing.assert_allclose(log.popularity(5), log.matrix(5).toarray().sum(0))


def test_bought_counts_the_target_event_alone():
    log = interactions([(0, 0, 1), (0, 0, 2), (0, 1, 3, 0.1, False), (1, 1, 4)], 2, 2, 10)
    assert log.bought.toarray().tolist() == [[2, 0], [0, 1]]


def test_active_days_are_different_days_in_utc():
    log = interactions([(0, 0, 1.0), (0, 1, 1.99), (0, 0, 2.0), (2, 0, 5)], 3, 2, 10)
    assert log.active_days.tolist() == [2, 0, 1]


def test_the_events_of_a_user_are_in_the_order_of_time():
    log = interactions([(1, 0, 3), (0, 1, 2), (1, 2, 1)], 3, 3, 10)
    assert log.item_idx[log.of_user(1)].tolist() == [2, 0]
    assert log.item_idx[log.of_user(0)].tolist() == [1]
    assert log.of_user(2).tolist() == []


def test_before_and_since_part_the_log_without_loss_or_overlap():
    log = interactions([(0, 0, 1), (0, 1, 2), (0, 2, 2), (0, 3, 3)], 1, 4, 10)
    instant = START + 2 * DAY
    assert log.before(instant).item_idx.tolist() == [0]
    assert log.since(instant).item_idx.tolist() == [1, 2, 3]
    assert log.before(instant).n_users == log.since(instant).n_users == 1
    assert (log.before(instant).as_of, log.since(instant).as_of) == (instant, log.as_of)


def test_a_customer_is_in_the_tier_that_the_days_say():
    found = tiers(np.array([0, 1, 2, 3, 9, 10, 50]), loyal=10, warm=3)
    assert found.tolist() == ["anonymous", "cold", "cold", "warm", "warm", "loyal", "loyal"]


ITEMS = """\
sku,name,make,kind,text,price,on,at
i2,Tea,Acme,Food > Drinks > Tea,Leaves,2.5,yes,2020-01-02T00:00:00Z
i1,,,,,,no,
i3,Jug,,Kitchen,,4,yes,2020-01-20T00:00:00Z
"""
EVENTS = """\
user,item,at,kind,n
u2,i1,2020-01-05T10:00:00Z,purchase,1
u1,i2,2020-01-06T10:00:00Z,view,
u3,i3,2020-01-07T10:00:00Z,return,1
u2,i2,2020-01-04T10:00:00Z,rating,4
u1,i2,2020-01-08T10:00:00Z,purchase,2
"""


@pytest.fixture
def night(tmp_path, home):
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "events.csv").write_text(EVENTS)
    columns = {"user_id": "user", "item_id": "item", "timestamp": "at", "event_type": "kind", "value": "n"}
    item_columns = {"item_id": "sku", "title": "name", "brand": "make", "category": "kind", "description": "text"}
    items = {
        "path": "items.csv",
        "columns": item_columns | {"price": "price", "available": "on", "updated_at": "at"},
        "category_separator": ">",
    }
    source = {"format": "tabular", "events": {"path": "events.csv", "columns": columns}, "items": items}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"name": "corner", "source": source}))
    return Night(shop_file=str(tmp_path / "shop.yaml"), as_of="2020-02-01T00:00:00+00:00", k=10, recipes=[])


def test_items_stand_in_the_order_of_their_ids_and_users_in_that_of_their_first_events(night):
    snapshot = Snapshot(night.lake, ingest(night))
    catalog, log = snapshot.catalog(), snapshot.interactions(night.shop)
    assert catalog.item_ids.tolist() == ["i1", "i2", "i3"]
    assert log.user_ids.tolist() == ["u2", "u1", "u3"]
    assert log.n_items == catalog.n_items == 3
    assert [(log.user_ids[u], catalog.item_ids[i]) for u, i in zip(log.user_idx, log.item_idx, strict=True)] == [
        ("u2", "i2"),
        ("u2", "i1"),
        ("u1", "i2"),
        ("u1", "i2"),
    ]
    assert log.as_of == night.windows.as_of


def test_events_carry_the_weight_of_their_type_and_ratings_their_value(night):
    log = Snapshot(night.lake, ingest(night)).interactions(night.shop)
    np.testing.assert_allclose(log.weight, [1.0, 1.0, 0.1, 1.0])
    np.testing.assert_allclose(log.rating, [4, np.nan, np.nan, np.nan])
    assert log.is_target.tolist() == [False, True, False, True]
    assert log.user_ids[2] == "u3"  # only a return: no taste, yet a customer of the shop
    assert log.active_days.tolist() == [2, 2, 0]


def test_the_catalogue_holds_what_lists_reasons_and_encoders_need(night):
    catalog = Snapshot(night.lake, ingest(night)).catalog()
    assert catalog.titles == ["i1", "Tea", "Jug"]
    assert catalog.texts == ["", "Tea. Acme. Food > Drinks > Tea. Leaves", "Jug. Kitchen"]
    assert catalog.categories == ["", "Tea", "Kitchen"]
    assert catalog.departments == ["", "Food", "Kitchen"]
    assert catalog.brands == ["", "Acme", ""]
    np.testing.assert_allclose(catalog.prices, [np.nan, 2.5, 4])


def test_a_candidate_is_available_and_known_before_the_instant(night):
    catalog = Snapshot(night.lake, ingest(night)).catalog()
    assert catalog.available.tolist() == [False, True, True]
    assert catalog.candidates(night.windows.as_of).tolist() == [False, True, True]
    assert catalog.candidates(START + 10 * DAY).tolist() == [False, True, False]
    assert catalog.candidates(START + 1 * DAY).tolist() == [False, False, False]  # known from that instant, not before


def test_a_snapshot_that_is_not_there_names_the_step_that_writes_it(night):
    with pytest.raises(NothingInLake, match="snapshots/none is not in the lake"):
        Snapshot(night.lake, "snapshots/none")


def test_each_customers_and_items_events_are_counted_once_a_night(tiny_shop, home):
    night = Night(shop_file=str(tiny_shop), as_of=TINY_AS_OF, k=10, recipes=[])
    snapshot = ingest(night)
    folder = night.lake.path(write_statistics(night.lake, night.shop, snapshot))
    log = Snapshot(night.lake, snapshot).interactions(night.shop)
    customers = pq.read_table(folder / "customers.parquet")
    items = pq.read_table(folder / "items.parquet")
    assert customers.schema.equals(CUSTOMERS)
    assert items.schema.equals(ITEM_STATISTICS)
    assert customers["user_id"].to_pylist() == log.user_ids.tolist()
    for n, row in enumerate(customers.to_pylist()):
        times = log.time[log.of_user(n)]
        assert row["events"] == len(times)
        assert row["targets"] == log.bought[n].sum()
        assert row["active_days"] == len(set((times // DAY).tolist()))
        found = [_date(times[0]), _date(times[-1])] if len(times) else [None, None]
        assert [row["first_day"], row["last_day"]] == found
    assert sum(items["events"].to_pylist()) == len(log)
    assert items["targets"].to_pylist() == log.bought.sum(0).A1.astype(int).tolist()


def _date(microseconds):
    return datetime.fromtimestamp(int(microseconds) / 1_000_000, UTC).date()


def test_days_with_an_event_are_the_same_counted_on_busy_days_and_on_quiet_ones():
    rng = np.random.default_rng(0)
    for n_events, n_days in ((400, 5), (60, 50)):
        rows = zip(*rng.integers(0, 20, (2, n_events)), rng.random(n_events) * n_days, strict=True)
        log = interactions([(int(user), int(item), float(day)) for user, item, day in rows], 21, 20, n_days + 1)
        active, first, last = log.days(log.user_idx, log.n_users)
        for user in range(log.n_users):
            days = sorted({int(time // DAY) for time in log.time[log.user_idx == user]})
            found = [active[user], first[user], last[user]]
            assert found == ([len(days), days[0], days[-1]] if days else [0, -1, -1])
