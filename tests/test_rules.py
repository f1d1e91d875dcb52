"""Rules of the shop file: what lists they leave, and that the checker, which has its own, sees each of them broken."""

import csv
import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks import recommend as step
from recsys_tasks import rules
from recsys_tasks.check import _breaks, check
from recsys_tasks.cli import run_night
from recsys_tasks.contract import ITEMS as CATALOGUE
from recsys_tasks.contract import PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.errors import CheckFailed, ShopFileError
from recsys_tasks.inspector import customer
from recsys_tasks.lake import write_table
from recsys_tasks.night import plan
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Rebuy, Rule, load_shop
from tests.tiny_shop import AS_OF, CUSTOMERS, ITEMS, write_tiny_shop

BRANDS = ("Acme", "Boot", "Calm", "")


def write_catalogue(folder):
    """A category in two levels, a brand for three items of four, a price, and customers of whom half tell their age."""
    with (folder / "items.csv").open("w", newline="") as file:
        rows = [
            (code, title, title.split()[0], f"{title.split()[0]} {n % 3}", BRANDS[n % 4], 1 + n)
            for n, (code, title) in enumerate(ITEMS)
        ]
        csv.writer(file).writerows([("id", "title", "department", "category", "brand", "price"), *rows])
    with (folder / "customers.csv").open("w", newline="") as file:
        ages = [(user, 10 + n if n % 2 else "") for n, user in enumerate(CUSTOMERS)]
        csv.writer(file).writerows([("id", "age"), *ages])
    shop = folder / "shop.yaml"
    columns = "{item_id: id, title: title, category: [department, category], brand: brand, price: price}"
    text = shop.read_text().replace(
        "    columns:\n      title: Description\n", f"    path: items.csv\n    columns: {columns}\n"
    )
    users = "  users: {path: customers.csv, columns: {user_id: id}, attributes: [age]}\nwindows:"
    shop.write_text(text.replace("windows:", users, 1))
    return shop


@pytest.fixture(scope="module")
def tonight(tmp_path_factory):
    """A night of the tiny shop with a catalogue, without rules; its home, shop file and the ids of its steps."""
    folder = tmp_path_factory.mktemp("rules")
    write_tiny_shop(folder / "shop")
    shop = write_catalogue(folder / "shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        night = plan(str(shop), AS_OF, datetime.now(UTC))
        yield night, shop, run_night(night)


@pytest.fixture
def ruled(tonight, tmp_path_factory):
    """Make the lists of the night with rules; return the night and the ids of the lists."""
    night, shop, ids = tonight

    def make(text):
        folder = tmp_path_factory.mktemp("shop")
        (folder / "rules.yaml").write_text(text)
        content = shop.read_text().replace("path: days", f"path: {shop.parent}/days")
        for name in ("items.csv", "customers.csv"):
            content = content.replace(f"path: {name}", f"path: {shop.parent}/{name}")
        (folder / "shop.yaml").write_text(content + "rules: rules.yaml\n")
        with_rules = replace(night, shop_file=str(folder / "shop.yaml"))
        inputs = ids["promote"], ids["publish_index"], ids["ingest"], ids["embed"]
        return with_rules, [step.recommend(with_rules, shard, *inputs) for shard in night.shards]

    return make


def rows_of(night, lists, placement):
    files = [night.lake.path(entry) / f"{placement}.parquet" for entry in lists]
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()


KINDS = {
    "bought": "exclude_bought: {days: 30, categories: {KITCHEN: never, KITCHEN 1: 3, PARTY: null}}",
    "denied items": "deny: {items: ['20003', '20011'], categories: [PARTY 0], brands: [Boot]}",
    "denied by condition": "deny: {where: \"title LIKE '%A%' AND price > 12\"}",
    "allowed": "allow: {categories: [GARDEN], brands: [Calm]}",
    "price": "price: {min: 4, max: 25}",
    "required": "require: price > 5 OR brand = 'Acme'",
    "required of customers": "require: \"department <> 'PARTY' OR customer_age >= 18\"",
    "cap": "cap: {by: department, at_most: 3, first: 6}",
    "cap of a brand": "cap: {by: brand, at_most: 1, first: 8}",
    "cap beyond what there is": "cap: {by: department, at_most: 2, first: 10}",
    "boost": "boost: {brands: [Acme], places: 3, factor: 2}",
    "pin": "pin: {item: '20017', slot: 2}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_rule_alone_holds_in_every_row_and_is_counted(ruled, tonight, kind):
    night, lists = ruled(f"- name: it\n  {KINDS[kind]}\n")
    check(night, lists, tonight[2]["ingest"])
    what = "moves" if kind in ("boost", "pin") else "drops"
    assert sum(night.lake.manifest(entry)[what]["home"]["it"] for entry in lists) > 0


def test_rules_hold_in_the_placements_that_no_champion_fills(ruled, tonight):
    deny = "- {name: no party, deny: {categories: [PARTY]}}\n"
    weeks = "- {name: not so soon, exclude_bought: {days: 21}}\n"
    night, lists = ruled(deny + weeks + "- {name: never again, exclude_bought: {}}\n")
    check(night, lists, tonight[2]["ingest"])
    again = rows_of(night, lists, "buy_again")
    assert len(again) > 0  # what forbids all repeats does not speak of the placement of repeats
    for placement in ("buy_again", "trending", "bought_together"):
        assert not rows_of(night, lists, placement).item_id.str.startswith("2002").any()
        assert sum(night.lake.manifest(entry)["drops"][placement]["no party"] for entry in lists) > 0
    assert sum(night.lake.manifest(entry)["drops"]["buy_again"]["not so soon"] for entry in lists) > 0


def test_a_rule_that_leaves_nothing_of_what_is_new_does_not_stop_the_night(ruled, tonight):
    night, lists = ruled("- {name: none, placements: [new], deny: {where: price > 0}}\n")
    check(night, lists, tonight[2]["ingest"])
    assert rows_of(night, lists, "new").empty


PIN_PARTY = [f"pin: {{item: '{20020 + n}', slot: {slot}}}" for n, slot in enumerate((2, 3, 5, 9))]
CONTRARY = {
    "pins that a cap has no room for": [KINDS["cap"], *PIN_PARTY],
    "pins below the end of a short list": [KINDS["cap beyond what there is"], *PIN_PARTY],
    "boosts and two caps": [KINDS["boost"], KINDS["cap"], KINDS["cap of a brand"]],
    "pins of what is denied or bought": [KINDS["price"], "exclude_bought: {}", *PIN_PARTY],
    "boosts, caps and pins": [KINDS["boost"], "boost: {where: price > 15, places: 2}", KINDS["cap"], *PIN_PARTY],
}


@pytest.mark.parametrize("kind", CONTRARY)
def test_rules_that_contradict_each_other_leave_lists_that_the_checker_accepts(ruled, tonight, kind):
    night, lists = ruled("".join(f"- name: it {n}\n  {text}\n" for n, text in enumerate(CONTRARY[kind])))
    check(night, lists, tonight[2]["ingest"])
    assert rows_of(night, lists, "home").groupby("user_id").size().min() > 4


def test_all_rules_together_hold_in_every_row_and_each_is_counted(ruled, tonight):
    kinds = {kind: text for kind, text in KINDS.items() if kind not in ("allowed", "cap beyond what there is")}
    night, lists = ruled("".join(f"- name: {kind}\n  {text}\n" for kind, text in kinds.items()))
    check(night, lists, tonight[2]["ingest"])
    made = [night.lake.manifest(entry) for entry in lists]
    counts = {**made[0]["drops"]["home"], **made[0]["moves"]["home"]}
    assert set(counts) == set(kinds)
    assert {"bought", "denied items", "price", "boost"} <= {kind for kind, n in counts.items() if n}
    assert "bought" not in made[0]["drops"]["similar"]


def no_filter(monkeypatch):
    monkeypatch.setattr(rules.Rules, "_forbid", lambda self, number, items: None)


def no(name, value):
    return lambda monkeypatch: monkeypatch.setattr(rules, name, value)


def never(*_):
    return lambda readers, items: np.zeros(items.shape, bool)


BROKEN = {
    "bought": no("bought_lately", never),
    "denied items": no_filter,
    "denied by condition": no_filter,
    "allowed": no_filter,
    "price": no_filter,
    "required": no_filter,
    "required of customers": no("unfit", never),
    "cap": no("full", lambda count, cap: np.zeros(count.shape, bool)),
    "cap of a brand": no("full", lambda count, cap: np.zeros(count.shape, bool)),
    "boost": no("raised", lambda place, factor, places: place.astype(float)),
    "pin": no("slots", lambda found, k: {}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_checker_sees_when_a_rule_is_not_enforced(ruled, tonight, monkeypatch, kind):
    BROKEN[kind](monkeypatch)
    night, lists = ruled(f"- name: {kind} broken\n  placements: [home]\n  {KINDS[kind]}\n")
    with pytest.raises(CheckFailed, match=f"home: rule '{kind} broken'"):
        check(night, lists, tonight[2]["ingest"])


def swapped(rows, item):
    """Put an item in the first place of a list that does not hold it."""
    user = next(user for user, own in rows.groupby("user_id") if item not in set(own.item_id) and user != item)
    rows.loc[rows.index[rows.user_id == user][0], "item_id"] = item
    return rows


def upside_down(rows):
    rows["item_id"] = rows.groupby("user_id").item_id.transform(lambda items: items.to_numpy()[::-1])
    return rows


PLANTED = {
    "denied items": lambda rows: swapped(rows, "20003"),
    "denied by condition": lambda rows: swapped(rows, "20021"),
    "allowed": lambda rows: swapped(rows, "20000"),
    "price": lambda rows: swapped(rows, "20001"),
    "required": lambda rows: swapped(rows, "20001"),
    "required of customers": lambda rows: swapped(rows, "20025"),
    "bought": lambda rows: rows.assign(item_id="20000"),
    "boost": upside_down,
    "pin": upside_down,
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_violation_is_caught(ruled, tonight, kind):
    night, lists = ruled(f"- name: it\n  placements: [home]\n  {KINDS[kind]}\n")
    check_changed(night, lists, tonight[2]["ingest"], PLANTED[kind], "home: rule 'it'")


def test_a_list_that_is_short_without_need_is_caught(ruled, tonight):
    night, lists = ruled(f"- name: it\n  {KINDS['cap beyond what there is']}\n")
    assert set(rows_of(night, lists, "home").groupby("user_id").size()) == {6}
    check_changed(night, lists, tonight[2]["ingest"], lambda rows: rows[rows["rank"] < 6], "too few or too many")


def check_changed(night, lists, snapshot, change, message):
    tables = {name: rows_of(night, lists, name) for name in PLACEMENTS}
    tables["home"] = change(tables["home"])
    entry = f"lists/planted-{np.random.default_rng().integers(1 << 60)}"
    with night.lake.create(entry, {}) as folder:
        for name, rows in tables.items():
            write_table(pa.Table.from_pandas(rows, RECOMMENDATIONS, preserve_index=False), folder / f"{name}.parquet")
        for origin in lists:
            for file in night.lake.path(origin).glob("places-*"):
                told = pq.read_table(file)
                there = folder / file.name
                write_table(pa.concat_tables([pq.read_table(there), told]) if there.exists() else told, there)
    with pytest.raises(CheckFailed, match=message):
        check(night, [entry], snapshot)


def test_without_rules_in_force_the_lists_are_the_same_bytes(ruled, tonight):
    night, lists = ruled("- {name: long ago, to: 2001-01-01, deny: {items: ['20000']}}\n")
    for with_rules, without in zip(lists, tonight[2]["recommend"], strict=True):
        for name in (*(f"{placement}.parquet" for placement in PLACEMENTS), "trace-home.parquet"):
            files = [night.lake.path(entry) / name for entry in (with_rules, without)]
            assert files[0].read_bytes() == files[1].read_bytes()


def test_lists_are_full_though_nearly_everything_is_denied(ruled, tonight):
    night, lists = ruled("- {name: it, allow: {categories: [GARDEN]}}\n")
    for placement in ("home", "similar"):
        rows = rows_of(night, lists, placement)
        sizes = rows.groupby("user_id").size()
        assert (sizes.min(), sizes.max()) == ((10, 10) if placement == "home" else (9, 10))
        assert set(rows.item_id.str[:4]) == {"2001"}


def test_what_only_a_pin_proposed_says_that_the_shop_chose_it(ruled):
    night, lists = ruled("".join(f"- name: it {n}\n  {text}\n" for n, text in enumerate(PIN_PARTY)))
    for placement in ("home", "similar"):
        rows = rows_of(night, lists, placement)
        chosen = rows[rows.source == "pinned"]
        assert len(chosen)
        assert set(chosen.item_id) <= {"20020", "20021", "20022", "20023"}
        known = chosen.reason_item_id.notna()  # bought before, which says more
        assert set(chosen[~known].reason) == {"Chosen for you by the shop"}


def test_the_inspector_and_the_counts_tell_which_rule_it_was(ruled, tonight):
    ids = tonight[2]
    text = "- {name: season, pin: {item: '20017', slot: 2}}\n- {name: dear, price: {max: 20}}\n"
    night, lists = ruled(text + "- {name: own brand, boost: {brands: [Acme], places: 20}}\n")
    rows = rows_of(night, lists, "home")
    assert set(rows[rows["rank"] == 2].item_id) == {"20017"}
    from recsys_tasks.publish import publish
    from recsys_tasks.report import by_rules

    version = publish(night, lists, ids["promote"], ids["evaluate"], ids["ingest"])
    told = customer(night.lake, night.shop, "12030", version)["placements"]["home"]
    notes = {row["item_id"]: row["note"] for row in told["list"]}
    assert notes["20017"] == "pinned to place 2 by the rule 'season'"
    assert any(note and note.startswith("raised from place") for note in notes.values())
    assert any(row["note"] == "left out by the rule 'dear'" for row in told["left_out"])
    counts = by_rules(night.lake, version)
    assert counts["drops"]["home"]["dear"] > 0
    assert set(counts["moves"]["home"]) == {"season", "own brand"}
    assert json.dumps(counts)


def test_names_that_the_catalogue_lacks_are_a_warning(ruled, tonight):
    far = "- {name: far, pin: {item: '20001', slot: 11}}\n"
    night, lists = ruled("- {name: it, deny: {items: ['20000', nowhere], categories: [BOATS]}}\n" + far)
    check(night, lists, tonight[2]["ingest"])
    facts = rules.Facts.of(pq.read_table(night.lake.path(tonight[2]["ingest"]) / "items.parquet"), {})
    assert rules.idle(night.shop.rules, facts, night.instant, night.k) == [
        "rules: 'it' names an item that the catalogue does not have: 'nowhere'",
        "rules: 'it' names a category that the catalogue does not have: 'BOATS'",
        "rules: 'far' pins an item to place 11 of lists of 10",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("require: customer_height > 3", "there is no customer_height; there are: customer_age"),
        ("price: {max: 0.5}", "leave nothing of 30 items for home; loosen one"),
        ("require: price > [3]", "may not stand here"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_an_error_that_names_it(ruled, text, message):
    with pytest.raises(ShopFileError, match=message):
        ruled(f"- name: it\n  {text}\n")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{name: a, dney: {items: [x]}}", r"rules.0.dney: unknown key \(did you mean 'deny'\?\)"),
        ("{name: a}", "rules.0: expected one of exclude_bought, .*; found none of them"),
        ("{name: a, deny: {items: [x]}, price: {min: 1}}", "found deny, price"),
        ("{name: a, deny: {items: [007]}}", "rules.0.deny.items.0: 7 is not text; expected .* in quotes"),
        ("{name: a, deny: {}}", "expected at least one of items, categories, brands and where"),
        ("{name: a, deny: {where: 'colour = 1'}}", "no item has 'colour'; expected item_id, title"),
        ("{name: a, price: {min: 4, max: 2}}", r"min \(4\) must not be above max \(2\)"),
        ("{name: a, boost: {brands: [x]}}", "expected a factor above 1, or places above 0"),
        ("{name: a, pin: {item: a, slot: 0}}", "rules.0.pin.slot: .* greater than or equal to 1"),
        ("{name: a, pin: {item: a, slot: 1}, from: 2026-02-01, to: 2026-01-01}", "from .* must lie before to"),
        ("{name: a, exclude_bought: {days: 3}, placements: [similar]}", "similar is read by items, not by customers"),
        ("{name: a, pin: {item: a, slot: 1}}\n- {name: b, pin: {item: b, slot: 1}}", "'a' and 'b' both pin slot 1"),
        ("{name: a, price: {min: 1}}\n- {name: a, price: {max: 9}}", "the name 'a' stands twice"),
    ],
)
def test_a_mistake_is_told_with_its_field_and_what_was_expected(tmp_path, rule, message):
    shop = tmp_path / "shop.yaml"
    shop.write_text(f"name: t\nsource: {{format: complete_journey}}\nrules:\n- {rule}\n")
    with pytest.raises(ShopFileError, match=message):
        load_shop(str(shop), Settings().shops)


def test_rules_hold_from_a_date_to_before_another(tmp_path):
    shop = tmp_path / "shop.yaml"
    rule = "{name: a, pin: {item: a, slot: 1}, from: 2026-12-01, to: 2026-12-25T00:00:00Z, placements: [home]}"
    shop.write_text(f"name: t\nsource: {{format: complete_journey}}\nrules:\n- {rule}\n")
    found = load_shop(str(shop), Settings().shops)
    days = [(11, 30), (12, 1), (12, 24), (12, 25)]
    assert [len(found.rules_of("home", datetime(2026, *day, tzinfo=UTC))) for day in days] == [0, 1, 1, 0]
    assert found.rules_of("discover", datetime(2026, 12, 2, tzinfo=UTC)) == []


def facts_of(*prices):
    """Items 0, 1, ... of these prices, in a catalogue that tells nothing else."""
    rows = [{"item_id": str(n), "price": price, "available": True} for n, price in enumerate(prices)]
    return rules.Facts.of(pa.Table.from_pylist(rows, CATALOGUE), {})


def a_rule(**kind):
    return Rule.model_validate({"name": "it", **kind})


def in_force(*found, facts, candidates=None):
    """The rules of a placement that leaves nothing out, in a shop in which nobody bought anything."""
    everything = np.ones(len(facts), bool) if candidates is None else candidates
    return rules.Rules(found, facts, None, everything, lambda readers, items: np.zeros(items.shape, bool))


def test_an_item_of_unknown_price_lies_in_no_band_for_the_rules_and_for_the_checker():
    rule = a_rule(price={"min": 1})
    assert rules.outside(rule.price, facts_of(None, 0.5, 1.0, 9.0)).tolist() == [True, True, False, False]
    prices = "(VALUES (NULL::DOUBLE), (0.5), (1.0), (9.0)) AS items(price)"
    found = duckdb.sql(f"SELECT {_breaks(rule)} FROM {prices}").fetchall()
    assert found == [(True,), (True,), (False,), (False,)]


def test_what_was_only_looked_at_was_not_bought():
    events = {"user_idx": [0, 0], "item_idx": [0, 1], "time": [0, 0], "is_target": [True, False]}
    log = SimpleNamespace(n_items=2, as_of=1, **{name: np.array(value) for name, value in events.items()})
    forbids = rules.bought_lately(Rebuy(days="never"), facts_of(1.0, 1.0), log)
    assert forbids(np.array([0]), np.array([[0, 1]])).tolist() == [[True, False]]


def test_a_boost_asks_for_as_many_proposals_as_it_may_raise():
    found = in_force(a_rule(boost={"items": ["0"], "places": 3, "factor": 2}), facts=facts_of(1.0))
    assert found.needed(10) == 28  # place 28 of a boosted item is 28 / 2 - 3 = 11, which place 10.5 may not be


def test_a_pin_holds_in_the_last_place_and_not_behind_it():
    assert rules.slots([a_rule(pin={"item": "0", "slot": 10})], 10) == {"it": 10}
    assert rules.slots([a_rule(pin={"item": "0", "slot": 11})], 10) == {}


@pytest.mark.parametrize("is_sold", [True, False])
def test_what_is_not_sold_is_not_pinned(is_sold):
    candidates = np.array([is_sold, True, True])
    found = in_force(a_rule(pin={"item": "0", "slot": 1}), facts=facts_of(1.0, 1.0, 1.0), candidates=candidates)
    made = found.enforce(np.array([0]), np.array([[1, 2]], np.int32), 2)
    assert made.items.tolist() == [[0, 1] if is_sold else [1, 2]]


def one_too_many(rows):
    """Exchange the item in the last place of a cap with one further down whose department is full above."""
    department = {code: title.split()[0] for code, title in ITEMS}
    for _, own in rows.groupby("user_id"):
        kinds = own.item_id.map(department)
        full = [kind for kind, n in kinds[own["rank"] < 6].value_counts().items() if n == 3]
        below = own.index[(own["rank"] > 6) & kinds.isin(full)]
        last = own.index[own["rank"] == 6][0]
        if len(below) and kinds[last] not in full:
            moved = ["item_id", "source", "reason", "reason_item_id"]
            rows.loc[[last, below[0]], moved] = rows.loc[[below[0], last], moved].to_numpy()
            return rows
    raise AssertionError("no list has such items")


def test_one_item_too_many_in_the_last_place_of_a_cap_is_caught(ruled, tonight):
    night, lists = ruled(f"- name: it\n  {KINDS['cap']}\n")
    check_changed(night, lists, tonight[2]["ingest"], one_too_many, "home: rule 'it': more of one department than 3")


def test_boosts_out_of_order_beside_a_cap_that_is_not_the_reason_are_caught(ruled, tonight):
    night, lists = ruled(f"- name: it\n  {KINDS['boost']}\n- name: wide\n  cap: {{by: brand, at_most: 9, first: 9}}\n")
    check_changed(night, lists, tonight[2]["ingest"], upside_down, "home: rule 'it': an item that stands too low")
