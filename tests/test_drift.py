"""The watch of a made-up shop: 45 weeks of views, carts and purchases that rise, with weekdays, noise and new faces."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys_tasks import drift
from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.drift import Shelves, Window
from recsys_tasks.shop import load_shop
from recsys_tasks.snapshot import DAY
from tests.tiny_shop import SHOP_FILE

WEEKS, ITEMS, MONDAY = 45, 400, 17_000 // 7 * 7 + 4
SHELVES = Shelves(["cups", "hats", "pens", "rugs"], np.arange(3 * ITEMS, dtype=np.int32) % 4)
VIEW, CART, PURCHASE = (EVENT_TYPES.index(name) for name in ("view", "cart", "purchase"))
WEEKDAY = np.array([1.2, 1, 1, 1.1, 1.4, 2, 0.6])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    file = tmp_path_factory.mktemp("shop") / "shop.yaml"
    file.write_text(SHOP_FILE.replace("Europe/London", "UTC"))
    return load_shop(str(file), Path())


@pytest.fixture(scope="module")
def weeks():
    """Windows that rise by a percent a week and vary by a few."""
    rng, found, users, items = np.random.default_rng(0), [], 300, ITEMS // 2
    for week in range(WEEKS):
        n = round(4000 * 1.01**week * np.exp(rng.normal(0, 0.05)))
        active = np.concatenate([rng.choice(users, 200, replace=False), users + np.arange(rng.poisson(15))])
        start = (MONDAY + 7 * week) * DAY
        day = rng.choice(7, n, p=WEEKDAY / WEEKDAY.sum())
        hour = np.clip(rng.normal(14, 3, n), 0, 23.9)
        grown = min(items + rng.poisson(2), ITEMS)
        time = np.sort(start + day * DAY + (hour * 3_600_000_000).astype(np.int64))
        found.append(
            Window(
                start=start,
                user=rng.choice(active, n),
                item=rng.integers(0, grown, n),
                time=time,
                kind=rng.choice([VIEW, CART, PURCHASE], n, p=[0.7, 0.1, 0.2]).astype(np.int8),
                price=np.exp(rng.normal(1, 0.5, n)),
                users_before=users,
                items_before=items,
            )
        )
        users, items = int(active.max()) + 1, grown
    return found


@pytest.fixture(scope="module")
def measured(weeks, shop):
    return [drift.measure(week, shop, SHELVES, 7) for week in weeks]


@pytest.fixture
def watched(weeks, measured, shop):
    """What the watch says of the last week, as it is or as it is broken."""

    def watch(broken=None):
        last = drift.measure(broken, shop, SHELVES, 7) if broken else measured[-1]
        judged = drift.judge(drift.statistics([*measured[:-1], last]), 52)
        return {alarm["statistic"]: alarm["text"] for alarm in drift.alarms(judged["statistics"], weeks[-1].start)}

    return watch


def kept(week, rows):
    return replace(week, **{name: getattr(week, name)[rows] for name in ("user", "item", "time", "kind", "price")})


def half(week):
    return kept(week, slice(None, None, 2))


def without_purchases(week):
    return kept(week, week.kind != PURCHASE)


def without_wednesday(week):
    return kept(week, (week.time - week.start) // DAY != 2)


def with_renamed_items(week):
    return replace(week, item=week.item + ITEMS)


def with_renamed_customers(week):
    return replace(week, user=week.user + week.user.max() + 1)


def in_pence(week):
    return replace(week, price=week.price * 100)


def without_prices(week):
    return replace(week, price=np.full(len(week.price), np.nan))


def in_another_zone(week):
    return replace(week, time=week.start + (week.time - week.start + 5 * DAY // 24) % (7 * DAY))


def without_hats(week):
    return kept(week, SHELVES.of_item[week.item] != 1)


def flooded(week):
    """As many events again, spread over customers that nobody has seen."""
    more = replace(week, user=week.user.max() + 1 + np.arange(len(week.user)) % 300)
    both = (np.concatenate([getattr(week, name), getattr(more, name)]) for name in ("user", "item", "kind", "price"))
    time = np.concatenate([week.time, more.time])
    return replace(week, **dict(zip(("user", "item", "kind", "price"), both, strict=True)), time=time)


@pytest.mark.parametrize(
    ("broken", "statistic", "text"),
    [
        (half, "view", "the volume of all events fell to 5"),
        (without_purchases, "purchase", "while that of views and carts did not: check that the export of purchases"),
        (without_wednesday, "Wednesdays", "fell to 0% of usual for its day of the week: check that its export"),
        (with_renamed_items, "new items", "100.0%, usual 0."),
        (with_renamed_customers, "new customers", "were customer ids renamed"),
        (in_pence, "price", "times the usual: pence for pounds?"),
        (without_prices, "targets with a price", "0.0%, usual 100.0%"),
        (in_another_zone, "time of day", "moved by +5."),
        (without_hats, "category hats", "'hats' has 0.0%"),
        (flooded, "new customers", "is it a robot"),
    ],
)
def test_what_breaks_is_named_with_its_likely_cause(broken, statistic, text, weeks, watched):
    said = watched(broken(weeks[-1]))
    assert text in said[statistic], said


def test_weeks_as_they_are_stay_quiet(weeks, measured):
    loud = []
    for n in range(len(weeks) - 20, len(weeks)):
        judged = drift.judge(drift.statistics(measured[: n + 1]), 52)
        loud += [(n, row["name"], row["distance"]) for row in judged["statistics"] if row["alarm"]]
    assert loud == []
    assert json.loads(json.dumps(judged)) == judged


def test_the_alarm_level_is_that_of_the_tail_and_a_fifth_of_catastrophes_hardly_moves_it():
    rng = np.random.default_rng(1)
    far = rng.exponential(1, 4000)  # an exponential tail is told exactly: once in 1000 looks is ln 1000
    assert drift.alarm_level(far, 1000) == pytest.approx(np.log(1000), rel=0.1)
    far[:40] = 1e6
    assert drift.alarm_level(far, 1000) == pytest.approx(np.log(1000), rel=0.12)


def test_a_steady_trend_is_no_surprise_and_a_break_of_it_is():
    rising = 0.1 * np.arange(30.0)
    noise = np.full(30, 1e-3)
    _, expected, unit = drift.distances(drift.Statistic("x", "amount", rising, noise))
    assert abs(rising[-1] - expected) < unit
    rising[-1] -= 0.5
    _, expected, unit = drift.distances(drift.Statistic("x", "amount", rising, noise))
    assert rising[-1] - expected < -20 * unit


def nights(n, **last):
    rng = np.random.default_rng(2)
    found = []
    for _ in range(n):
        numbers = {"coverage@10": 0.2, "gini@10": 0.8, "overlap@10": 0.9, "score": 5.0}
        numbers = {name: value * (1 + rng.normal(0, 0.01)) for name, value in numbers.items()}
        found.append({"home": {"recipe": "ease", **numbers}})
    found[0]["home"]["overlap@10"] = None
    found[-1]["home"] |= last
    return found


def test_lists_that_lean_on_few_items_or_change_too_much_are_told(shop):
    assert drift.watch_lists(nights(30), shop)["alarms"] == []
    [alarm] = drift.watch_lists(nights(30, **{"overlap@10": 0.3}), shop)["alarms"]
    assert alarm["text"].startswith("home: how much of a first ten was in the list before is 0.3, usual 0.9")
    [alarm] = drift.watch_lists(nights(30, **{"coverage@10": 0.05}), shop)["alarms"]
    assert "lists lean on few items" in alarm["text"]


def test_a_new_champion_begins_a_new_history(shop):
    found = drift.watch_lists(nights(30, recipe="ranker", score=99.0), shop)
    assert (found["unable"], found["alarms"]) == ("no champion has served 12 nights yet", [])
