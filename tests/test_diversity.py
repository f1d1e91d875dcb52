"""The diversity dial: what it makes of proposals, that it is off unless it is asked for, and a night with it."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_tasks import diversity
from recsys_tasks import recommend as step
from recsys_tasks.check import check
from recsys_tasks.cli import run_night
from recsys_tasks.contract import PLACEMENT_VIEW, PLACEMENTS
from recsys_tasks.diversity import ALPHA, FLOORS, Dialled, Pool, Variety, arranged, directions, divergence
from recsys_tasks.errors import ShopFileError
from recsys_tasks.inspector import customer
from recsys_tasks.models import Ranked
from recsys_tasks.night import plan
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Dial, load_shop
from recsys_tasks.tradeoff import loss
from tests.interactions import interactions
from tests.test_rules import rows_of, write_catalogue
from tests.tiny_shop import AS_OF, write_tiny_shop

N_ITEMS, GROUPS, DAY = 40, 4, 86_400_000_000


def a_variety(seed=0, days=60):
    rng = np.random.default_rng(seed)
    rows = [(int(rng.integers(6)), int(rng.integers(N_ITEMS)), float(rng.random() * days)) for _ in range(80)]
    kinds = {name: rng.random(N_ITEMS) < 0.2 for name in FLOORS}
    vectors = directions(rng.normal(size=(N_ITEMS, 8)).astype(np.float32))
    return Variety(
        vectors, rng.integers(0, GROUPS, N_ITEMS).astype(np.int32), kinds, interactions(rows, 6, N_ITEMS, days)
    )


def proposals(seed, n=6, width=15):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(N_ITEMS)[:width] for _ in range(n)]).astype(np.int32)
    for row, length in enumerate(rng.integers(1, width + 1, n)):
        items[row, length:] = -1
    return items


def pool_of(seed, variety=None, users=None) -> Pool:
    items = proposals(seed)
    ((_, pool),) = (variety or a_variety(seed)).pools(np.arange(6) if users is None else users, items)
    return pool


def naive(variety, user, items, dial, k):
    """The formula of the module's docstring, one list at a time, item by item."""
    items, chosen = [int(item) for item in items if item >= 0], []
    taste = variety.tastes(np.array([user]))[0]
    while len(chosen) < min(k, len(items)):
        best, at = -np.inf, None
        for place, item in enumerate(items, 1):
            if item in chosen:
                continue
            like = [max(0, variety.vectors[item] @ variety.vectors[other]) for other in chosen]
            mix = np.bincount(variety.group[[*chosen, item]], minlength=len(taste)) / (len(chosen) + 1)
            mixed = (1 - ALPHA) * mix + ALPHA * taste
            kl = sum(p * np.log(p / q) for p, q in zip(taste, mixed, strict=True) if p > 0)
            value = (1 - dial.mmr - dial.calibration) / np.log2(1 + place)
            value -= dial.mmr * max(like, default=0) + dial.calibration * kl
            if value > best + 1e-6:
                best, at = value, item
        chosen.append(at)
    return chosen


@pytest.mark.parametrize("dial", [Dial(mmr=0.4), Dial(calibration=0.6), Dial(mmr=0.3, calibration=0.3), Dial(mmr=1)])
@pytest.mark.parametrize("seed", range(5))
def test_each_place_goes_to_the_best_by_the_formula(dial, seed):
    variety = a_variety(seed)
    pool = pool_of(seed, variety)
    columns, _ = arranged(pool, dial, 8)
    for user, (items, own) in enumerate(zip(pool.items, columns, strict=True)):
        assert items[own[own >= 0]].tolist() == naive(variety, user, items, dial, 8)


shares = st.sampled_from([0, 0.1, 0.25, 0.5])
dials = st.builds(Dial, mmr=shares, calibration=shares, long_tail=shares, new=shares)


@settings(max_examples=60, deadline=None)
@given(dial=dials, seed=st.integers(0, 10_000), k=st.integers(1, 20))
def test_a_list_holds_proposals_only_none_twice_and_as_many_as_there_are(dial, seed, k):
    pool = pool_of(seed)
    columns, _ = arranged(pool, dial, k)
    for items, own in zip(pool.items, columns, strict=True):
        listed = own[own >= 0].tolist()
        assert len(set(listed)) == len(listed) == min(k, (items >= 0).sum())
        assert (items[listed] >= 0).all()
        assert own[: len(listed)].tolist() == listed


@settings(max_examples=60, deadline=None)
@given(dial=dials, seed=st.integers(0, 10_000), k=st.integers(1, 15))
def test_the_first_places_are_the_same_however_long_the_list_is(dial, seed, k):
    pool = pool_of(seed)
    assert np.array_equal(arranged(pool, dial, k)[0], arranged(pool, dial, 15)[0][:, :k])


def test_turned_off_the_order_is_that_of_the_model():
    pool = pool_of(1)
    columns, floor_of = arranged(pool, Dial(), 15)
    assert np.array_equal(columns, np.where(pool.items >= 0, np.arange(15), -1))
    assert not floor_of.any()


@settings(max_examples=60, deadline=None)
@given(dial=dials, seed=st.integers(0, 10_000))
def test_a_floor_is_met_in_all_first_places_as_far_as_there_are_such_proposals(dial, seed):
    pool = pool_of(seed)
    columns, floor_of = arranged(pool, dial, 15)
    late = int(bool(dial.new) and bool(dial.long_tail))  # where both fall due at once one comes a place later
    for name in FLOORS:
        for kinds, own in zip(pool.kinds[name], columns, strict=True):
            for p in range(1, (own >= 0).sum() + 1):
                due = int(np.floor(getattr(dial, name) * (p - late) + 1e-6))
                assert kinds[own[:p]].sum() >= min(due, kinds.sum()) - (late and kinds.sum() <= due)
    for number, name in enumerate(FLOORS, 1):
        row, place = np.nonzero(floor_of == number)
        assert pool.kinds[name][row, columns[row, place]].all()


def variety_within(variety, items):
    vectors = variety.vectors[items]
    alike = np.maximum(vectors @ vectors.T, 0)
    return 1 - (alike.sum() - len(items)) / (len(items) * (len(items) - 1))


def test_more_mmr_never_means_less_variety_on_average():
    found = []
    for mmr in (0, 0.1, 0.3, 0.5, 0.8):
        within = []
        for seed in range(40):
            variety = a_variety(seed)
            items = np.random.default_rng(seed).permutation(N_ITEMS)[None, :30].astype(np.int32)
            ((_, pool),) = variety.pools(np.array([0]), items)
            within.append(variety_within(variety, items[0, arranged(pool, Dial(mmr=mmr), 10)[0][0]]))
        found.append(np.mean(within))
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.02


def test_calibration_brings_the_customers_own_mix():
    rows = [(0, item, 1.0) for item in range(10)] * 3  # three quarters of the first department, a quarter of the second
    rows += [(0, item, 2.0) for item in range(20, 30)]
    variety = Variety(
        np.zeros((N_ITEMS, 1)), np.repeat(np.arange(4), 10).astype(np.int32), {}, interactions(rows, 1, 40, 9)
    )
    items = np.arange(N_ITEMS, dtype=np.int32)[None, ::-1]
    variety = replace(variety, kinds=dict.fromkeys(FLOORS, np.zeros(N_ITEMS, bool)))
    ((_, pool),) = variety.pools(np.array([0]), items)
    listed = items[0, arranged(pool, Dial(calibration=0.9), 8)[0][0]]
    assert np.bincount(variety.group[listed], minlength=4).tolist() == [6, 0, 2, 0]
    taste = variety.tastes(np.array([0, -1]))
    assert np.allclose(taste, [0.75, 0, 0.25, 0])
    mixes = np.array([[0.75, 0, 0.25, 0], [0, 0.5, 0, 0.5]])
    same, other = divergence(taste, mixes)
    assert same == pytest.approx(0, abs=1e-6)
    assert other > 3


def test_the_long_tail_is_what_the_best_sellers_leave():
    rows = [(0, 0, 1.0)] * 7 + [(0, 1, 2.0)] * 2 + [(0, 2, 58.0), (0, 3, 59.0, 0.1, False)]
    log = interactions(rows, 1, 6, 60)
    assert diversity.is_long_tail(log, 0.8).tolist() == [False, False, True, True, True, True]
    assert diversity.is_long_tail(log, 0.7).tolist() == [False, True, True, True, True, True]


def test_equal_texts_are_alike_and_no_text_is_like_nothing():
    vectors = np.random.default_rng(0).normal(size=(100, 384)).astype(np.float32) + 3  # a narrow cone
    vectors[1], vectors[2] = vectors[0], 0
    found = directions(vectors)
    assert found.shape == (100, diversity.DIMENSIONS)
    assert found[0] @ found[1] == pytest.approx(1, abs=1e-5)
    assert not found[2].any()
    assert abs(np.mean(found[3:] @ found[0])) < 0.1
    assert not directions(np.zeros((5, 384), np.float32)).any()


def asking(items):
    """Proposals with falling scores, each by a source of its own name."""

    def ask(users, k, candidates):
        found = items[users, :k]
        scores = np.where(found >= 0, 9 - np.arange(found.shape[1]), 0).astype(np.float32)
        return Ranked(found, scores, found % 2 == 0, np.array([f"by {n}" for n in range(N_ITEMS)], object)[found]), None

    return ask


@pytest.mark.parametrize("width", [5, 9, 12])
def test_scores_fall_down_the_list_and_sources_follow_their_items(width, monkeypatch):
    items, variety = proposals(3), a_variety(3)
    dialled = Dialled(Dial(mmr=0.5, new=0.2), variety)
    asked = (asking(items), 5, ["by"], np.arange(6), width, np.ones(N_ITEMS, bool))
    found, _ = dialled.lists(*asked)
    there = found.items >= 0
    assert found.items.shape == (6, width)
    assert (np.diff(np.where(there, found.scores, -1), axis=1) <= 0).all()
    assert (found.sources[there] == np.array([f"by {item}" for item in found.items[there]])).all()
    assert (found.filled[there] == (found.items[there] % 2 == 0)).all()
    assert not np.array_equal(found.items, items[:, :width])
    monkeypatch.setattr(diversity, "_CELLS", 1)
    again, _ = dialled.lists(*asked)
    assert np.array_equal(found.items, again.items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{home: {mmr: 1.5}}", "diversity.home.mmr: Input should be less than or equal to 1, got 1.5"),
        ("{home: {mmr: .nan}}", "diversity.home.mmr"),
        (
            "{home: {mmr: 0.7, calibration: 0.5}}",
            "mmr and calibration are weights; expected at most 1 together, found 1.2",
        ),
        ("{discover: {long_tail: 0.9, new: 0.2}}", "long_tail and new are shares of one list; expected at most 1"),
        ("{home: {mrr: 0.1}}", r"diversity.home.mrr: unknown key \(did you mean 'mmr'\?\)"),
        ("{similar: {mmr: 0.1}}", "diversity.similar: unknown key"),
        ("{head: 1}", "diversity.head: Input should be less than 1"),
    ],
)
def test_a_mistake_is_told_with_its_field_and_what_was_expected(tmp_path, text, message):
    shop = tmp_path / "shop.yaml"
    shop.write_text(f"name: t\nsource: {{format: complete_journey}}\ndiversity: {text}\n")
    with pytest.raises(ShopFileError, match=message):
        load_shop(str(shop), Settings().shops)


DIAL = "diversity: {home: {mmr: 0.4, calibration: 0.2, long_tail: 0.2}, discover: {new: 0.3, mmr: 0.3}}\nnew_days: 60\n"


@pytest.fixture(scope="module")
def tonight(tmp_path_factory):
    """A published night of the tiny shop with a catalogue and the dial on; the night and the ids of its steps."""
    folder = tmp_path_factory.mktemp("dial")
    write_tiny_shop(folder / "shop")
    shop = write_catalogue(folder / "shop")
    shop.write_text(shop.read_text() + DIAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        night = plan(str(shop), AS_OF, datetime.now(UTC))
        yield night, run_night(night)


@pytest.fixture
def again(tonight, tmp_path):
    """Make the lists of the night with another end of the shop file; return the night and the ids of the lists."""
    night, ids = tonight

    def make(text):
        shop = night.shop.file
        content = shop.read_text().replace(DIAL, text).replace("path: days", f"path: {shop.parent}/days")
        for name in ("items.csv", "customers.csv"):
            content = content.replace(f"path: {name}", f"path: {shop.parent}/{name}")
        (tmp_path / "shop.yaml").write_text(content)
        other = replace(night, shop_file=str(tmp_path / "shop.yaml"))
        inputs = ids["promote"], ids["publish_index"], ids["ingest"], ids["embed"]
        return other, [step.recommend(other, shard, *inputs) for shard in other.shards]

    return make


def test_a_night_with_the_dial_passes_the_checks_and_its_report_has_the_curve(tonight):
    night, ids = tonight
    folder = night.lake.path(ids["report"])
    told = json.loads((folder / "report.json").read_text())["diversity"]
    for placement in PLACEMENT_VIEW:
        curve = told["curves"][placement]
        by_kind = {point["turned"] for point in curve["points"]}
        assert {"nothing", "mmr", "calibration", "long_tail", "chosen"} <= by_kind
        assert curve["points"][-1]["dial"] == getattr(night.shop.diversity, placement).model_dump()
        varied = [p["metrics"]["diversity@10"] for p in curve["points"] if p["turned"] in ("nothing", "mmr")]
        assert varied[-1] > varied[0]
    page = (folder / "report.html").read_text()
    assert page.count("the shop's</text>") == 4
    assert "mmr 0.4, calibration 0.2, long_tail 0.2" in page


def test_a_dial_that_costs_more_than_the_shop_allows_is_a_warning(tonight):
    night, ids = tonight
    report = json.loads((night.lake.path(ids["report"]) / "report.json").read_text())
    costs = {placement: loss(curve) for placement, curve in report["diversity"]["curves"].items()}
    warned = {
        placement for placement in costs if any(f"the dial of {placement} costs" in w for w in report["warnings"])
    }
    assert warned == {placement for placement, lost in costs.items() if lost > 0.05}
    assert warned  # the tiny shop's dial is turned too far


def test_without_the_dial_the_lists_are_the_same_bytes_as_with_all_at_0(again):
    made = [again(text)[1] for text in ("", "diversity: {home: {mmr: 0}, head: 0.5}\n")]
    night, with_dial = again(DIAL)
    assert made[0] == made[1]
    differs = {
        p: rows_of(night, made[0], p).item_id.tolist() != rows_of(night, with_dial, p).item_id.tolist()
        for p in PLACEMENTS
    }
    assert {p for p, is_other in differs.items() if is_other} == {"home", "discover"}
    names = pq.read_schema(night.lake.path(made[0][0]) / "trace-home.parquet").names
    assert "dial" not in names


RULES = "rules: [{name: few, cap: {by: department, at_most: 2, first: 5}}, {name: dear, price: {max: 20}}]\n"


def test_rules_have_the_last_word_over_the_dial(again, tonight):
    night, lists = again(DIAL + RULES)
    check(night, lists, tonight[1]["ingest"])
    alone = again(RULES)[1]
    assert rows_of(night, lists, "home").item_id.tolist() != rows_of(night, alone, "home").item_id.tolist()


def test_the_inspector_tells_what_the_dial_did(tonight):
    night, _ = tonight
    for placement in PLACEMENT_VIEW:
        notes = [
            row["note"]
            for user in ("12000", "12001", "12005")
            for row in customer(night.lake, night.shop, user)["placements"][placement]["list"]
        ]
        assert any(" raised to " in (note or "") and "for variety" in note for note in notes)
        assert any(" by the diversity dial" in (note or "") for note in notes)
    floors = [
        row["note"]
        for user in (f"120{n}" for n in range(10, 42))
        for row in customer(night.lake, night.shop, user)["placements"]["home"]["list"]
    ]
    assert any("as an item of the long tail" in (note or "") for note in floors)


def test_the_inspector_names_the_dial_and_then_the_rule(again, tonight):
    from recsys_tasks.publish import publish

    night, lists = again(DIAL + RULES)
    _, ids = tonight
    version = publish(night, lists, ids["promote"], ids["evaluate"], ids["ingest"])
    found = [customer(night.lake, night.shop, f"120{n}", version)["placements"]["home"] for n in range(10, 20)]
    notes = [row["note"] for told in found for row in told["list"] + told["left_out"]]
    for rule in ("few", "dear"):
        assert any((note or "").endswith(f" by the diversity dial; left out by the rule '{rule}'") for note in notes)
