"""The fitted behaviour, against a log whose customers behave as we say."""

from dataclasses import fields, replace

import numpy as np
import pytest
import yaml

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.shop import load_shop
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import World, fit_world
from recsys_tasks.snapshot import DAY, Snapshot
from tests.ingested import ingested
from tests.interactions import START
from tests.simulation.shops import KINDS, LEAVE, N_ITEMS, N_USERS, WEIGHTS, WINDOW, fitted, shelf, visits, world

HIDDEN = ("mixture", "smoothing", "popularity", "topics_of", "items_of", "own_item", "own_times")
MINUTE = 60_000_000


def log(rows, session=None):
    """Visits of rows (user, item, minute, event type)."""
    user, item, minute, kind = zip(*rows, strict=True)
    return Visits.of(
        5,
        9,
        WEIGHTS,
        "purchase",
        user=np.array(user),
        item=np.array(item),
        time=START + np.array(minute) * MINUTE,
        kind=np.array([EVENT_TYPES.index(name) for name in kind]),
        session=None if session is None else np.array(session),
    )


def short():
    """A shelf of the nine items of ``log``."""
    whole = shelf()
    return replace(whole, **{field.name: getattr(whole, field.name)[:9] for field in fields(whole)})


def same(one, other, names=None):
    """Are two worlds alike in every field, or in those named?"""
    names = names or [field.name for field in fields(World)]
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "price") for name in names)


def test_half_an_hour_ends_a_visit_where_the_log_has_no_sessions():
    found = log([(1, 0, 0, "view"), (1, 1, 30, "view"), (1, 2, 61, "view"), (2, 3, 61, "view")])
    assert found.lengths.tolist() == [2, 1, 1]


def test_sessions_hold_however_long_they_are_and_overlap():
    rows = [(1, 0, 0, "view"), (1, 1, 1, "view"), (1, 2, 500, "view"), (1, 3, 501, "view")]
    found = log(rows, session=[0, 1, 0, 1])
    assert found.item.tolist() == [0, 2, 1, 3]
    assert found.lengths.tolist() == [2, 2]


def test_an_item_of_a_visit_is_one_row_with_its_strongest_event():
    found = log([(1, 0, 0, "view"), (1, 0, 1, "purchase"), (1, 0, 2, "cart"), (1, 4, 3, "cart")])
    assert found.item.tolist() == [0, 4]
    assert [EVENT_TYPES[kind] for kind in found.kind] == ["purchase", "cart"]


def test_days_since_the_target_event_count_from_earlier_visits_alone():
    day = 24 * 60
    rows = [(1, 0, 0, "purchase"), (1, 1, 0, "view"), (1, 0, 3 * day, "view"), (1, 1, 3 * day, "view")]
    rows += [(1, 0, 5 * day, "purchase"), (2, 0, 6 * day, "purchase")]
    found = log(rows)
    rows = zip(found.user.tolist(), found.number.tolist(), found.item.tolist(), found.days_since_target, strict=True)
    assert {row[:3]: row[3] for row in rows} == {
        (1, 0, 0): np.inf,
        (1, 0, 1): np.inf,
        (1, 1, 0): 3,
        (1, 1, 1): np.inf,
        (1, 2, 0): 5,
        (2, 3, 0): np.inf,
    }


def test_preferences_are_probabilities_of_every_item():
    found = world().preferences(np.arange(world().n_customers))
    assert found.sum(1) == pytest.approx(1)
    assert found.min() > 0
    items = np.tile(np.arange(N_ITEMS), (world().n_customers, 1))
    assert world().preference(np.arange(world().n_customers), items) == pytest.approx(found)


def test_preferences_foresee_what_customers_choose_after_the_window():
    later = visits().between(WINDOW[1], WINDOW[1] + 10 * DAY)
    row = np.searchsorted(world().user, later.user)
    chance = world().preferences(np.arange(world().n_customers))[row, later.item]
    assert np.log(chance).mean() > np.log(world().popularity[later.item]).mean() + 0.1  # nats


def test_preferences_never_use_events_before_the_window():
    user = int(world().user[3])
    planted = fitted(visits([(user, 9, START + n * DAY, "purchase") for n in range(30)]))
    assert same(planted, world(), HIDDEN)
    assert not same(planted, world(), ["bought_times"])


def test_nothing_at_or_after_the_end_is_read():
    planted = fitted(visits([(n, 9, WINDOW[1] + n * DAY, "purchase") for n in range(30)]))
    assert same(planted, world())


def test_histories_never_hold_events_of_the_window():
    user = int(world().user[3])
    planted = fitted(visits([(user, 9, WINDOW[0], "purchase")]))
    known = ["history_item", "history_kind", "bought_item", "bought_times", "bought_days", "known_popularity", "price"]
    assert same(planted, world(), known)
    assert not same(planted, world(), ["own_times"])


def test_rates_are_those_of_the_log():
    found, known = world(), visits().where(visits().time < WINDOW[1])
    n = len(known)
    for name, share in KINDS.items():
        of_all = (known.kind == EVENT_TYPES.index(name)).mean()
        assert of_all == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
        assert found.kinds[..., EVENT_TYPES.index(name)] == pytest.approx(share, abs=0.12)
    begun = len(known.lengths)
    assert found.ends[0] == pytest.approx(LEAVE, abs=4 * np.sqrt(LEAVE * (1 - LEAVE) / begun))
    assert found.returns.min() > 0.98
    days = (found.gaps * (np.arange(found.gaps.shape[1]) + 0.5) / 24).sum(1)
    assert days == pytest.approx(2.5, abs=0.15)


def test_event_types_that_the_shop_lacks_have_no_chance():
    lacking = [n for n, name in enumerate(EVENT_TYPES) if name not in KINDS]
    assert not world().kinds[..., lacking].any()


def test_leaving_and_boredom_together_end_visits_as_often_as_the_log():
    for response, boredom in ((0.1, 0.0), (0.3, 0.5), (0.6, 1.0)):
        found = fitted(response=response, boredom=boredom)
        goes_on = response / (response + (1 - response) * found.bored)
        assert 1 - (1 - found.leave) * goes_on == pytest.approx(found.ends)
        assert (found.bored > 0) == (boredom > 0)


def test_items_as_customers_choose_them_are_answered_as_often_as_assumed():
    found = fitted(response=0.25)
    every = found.preferences(np.arange(found.n_customers))
    assert (every * -np.expm1(-found.scale * every)).sum(1).mean() == pytest.approx(0.25, abs=0.06)


def test_a_rhythm_in_the_log_is_found():
    rng = np.random.default_rng(0)
    rows = []  # every customer buys item 0 every 8 days, and others at random every day
    for user in range(40):
        for day in range(64):
            item = 0 if (day + user) % 8 == 0 else rng.integers(1, 20)
            rows.append((user, item, START + day * DAY, EVENT_TYPES.index("purchase")))
    user, item, time, kind = np.array(rows).T
    regular = Visits.of(40, N_ITEMS, WEIGHTS, "purchase", user=user, item=item, time=time, kind=kind)
    found = fit_world(regular, shelf(), START + 32 * DAY, START + 64 * DAY, topics=2).rhythm
    assert found[5] > 1.3 * found[2:4].max()  # 8 days and more, against 1 to 4


def test_a_saved_world_is_the_same_after_loading(tmp_path):
    world().save(tmp_path)
    assert same(World.load(tmp_path), world())
    (tmp_path / "world.json").write_text('{"format": 0}')
    with pytest.raises(ContractError, match="fit it again"):
        World.load(tmp_path)


def test_fitting_again_gives_the_same_world():
    assert same(fitted(), world())


def test_customers_beyond_the_most_are_left_out():
    assert fitted(max_customers=30).n_customers == 30 < world().n_customers <= N_USERS


def test_raises_when_nobody_came_in_the_window():
    with pytest.raises(ContractError, match="longer window"):
        fit_world(visits(), shelf(), WINDOW[1], WINDOW[1])
    with pytest.raises(ContractError, match="expected shares"):
        fitted(response=1.0)


def test_a_shop_without_target_events_or_second_visits_has_a_world():
    rows = [(user, user + n, day * 24 * 60 + n, "view") for user in range(5) for day in (0, 40) for n in range(3)]
    found = fit_world(log(rows), short(), START + 20 * DAY, START + 60 * DAY, topics=2)
    assert found.n_customers == 5
    assert found.preferences(np.arange(5)).sum(1) == pytest.approx(1)
    assert not len(found.bought_item)
    assert found.kinds[..., EVENT_TYPES.index("view")] == pytest.approx(1)


def test_visits_are_read_from_a_snapshot_with_sessions_and_prices(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    rows = ["user,item,when,kind,price,basket"]
    rows += ["ann,pen,2020-01-01T10:00:00Z,view,2.5,b1", "ann,cup,2020-01-01T12:00:00Z,buy,4.0,b1"]
    rows += ["ann,pen,2020-01-01T12:00:01Z,buy,2.0,b2", "bob,cup,2020-01-02T09:00:00Z,view,,b3"]
    rows += ["bob,cup,2020-01-02T09:01:00Z,back,4.0,b3"]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    names = {"user_id": "user", "item_id": "item", "timestamp": "when", "event_type": "kind", "price": "price"}
    words = {"buy": "purchase", "view": "view", "back": "return"}
    source = {"path": "log.csv", "columns": names | {"session_id": "basket"}, "event_types": words}
    shop = {"name": "baskets", "source": {"format": "tabular", "events": source}}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(shop))
    found = ingested(tmp_path / "shop.yaml", "2020-02-01T00:00:00Z")
    snapshot = Snapshot(found.lake, found.id)
    read = Visits.read(snapshot, load_shop(str(tmp_path / "shop.yaml"), tmp_path))
    items = snapshot.item_ids().to_pylist()
    told = [(int(v), items[i], EVENT_TYPES[k]) for v, i, k in zip(read.number, read.item, read.kind, strict=True)]
    assert told == [(0, "pen", "view"), (0, "cup", "purchase"), (1, "pen", "purchase"), (2, "cup", "view")]
    assert read.price.tolist()[:3] == [2.5, 4.0, 2.0]
    assert np.isnan(read.price[3])


def test_another_assumption_needs_no_other_fit():
    one, other = fitted(response=0.1).assuming(0.3), fitted(response=0.3)
    assert one.response == 0.3
    for name, value in vars(other).items():
        np.testing.assert_array_equal(getattr(one, name), value, err_msg=name)
