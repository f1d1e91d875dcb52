"""One suite for all models: a new one adds a line to ``MODELS`` and must pass."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from recsys_tasks import nearest
from recsys_tasks.contract import EVENT_TYPES, VIEWS
from recsys_tasks.errors import NotFittedError, TrainingError
from recsys_tasks.models import BASELINES, MODELS, STAGES, Material, base, model_class
from recsys_tasks.models.base import top_k
from recsys_tasks.models.trace import Trace
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.snapshot import DAY
from recsys_tasks.split import truth
from tests.conftest import ROOT
from tests.interactions import interactions
from tests.models.worlds import SIZE, catalog, checkerboard, material, telling

ALL = list(MODELS)
AGENT = {"width": 8, "hidden": 8, "warm_up": 200, "batch_size": 32, "tuning_steps": 20}
QUICK = {
    "two_tower": {"batch_size": 64, "epochs": 15, "dim": 16, "negatives": 8, "learning_rate": 0.01},
    "vaecf": {"batch_size": 10, "epochs": 20, "k": 8, "autoencoder_structure": (16,), "learning_rate": 0.01},
    "transformer_dqn": {"steps": 800, "environments": 16, "episodes": 8, "weights": (0.2,), "agent": AGENT},
    "sasrec": {"epochs": 20, "dim": 16, "max_length": 16, "learning_rate": 0.01, "dropout": 0.2, "temperature": 0.2},
}
COLLABORATIVE = ["item_knn", "ease", "two_tower", "vaecf", "sasrec", "ranker", "transformer_dqn"]
"""Models that learn from other customers; ``popular``, ``repeat`` and ``content`` are not meant to."""


def model(name, **config):
    return model_class(name)(model_class(name).Config(**{**QUICK.get(name, {}), **config}))


def lesson(name, log, items=None):
    """What a model learns from: all of a log; one of a later stage learns from its last week, over the stage before."""
    if name not in STAGES:
        return material(log, items)
    week = {view: truth(log, log.as_of - 7 * DAY, log.as_of, view) for view in VIEWS}
    past = material(week["all"].past, items)
    told = replace(past, validation=week, sources=baselines(past), visits=lambda: visits(log))
    return told if STAGES[name] == 2 else replace(told, sources={"ranker": model("ranker").fit(told)})


def baselines(told):
    """What a model of the second stage reads, trained."""
    return {name: model(name).fit(told) for name in BASELINES}


def visits(log):
    """The log as visits."""
    events = {"user": log.user_idx, "item": log.item_idx, "time": log.time, "kind": log.kind}
    return Visits.of(
        log.n_users, log.n_items, dict.fromkeys(EVENT_TYPES, 0.5) | {"purchase": 1.0}, "purchase", **events
    )


def again(fitted, log, items=None):
    """The model trained once more, on all of a log, as its sources are."""
    if fitted.name not in STAGES:
        return model(fitted.name).fit(material(log, items))
    below = {name: again(source, log, items) for name, source in fitted.sources_.items()}
    return fitted.refit(replace(material(log, items), sources=below))


def learned(name, log, items=None, **config):
    """A model that learned, and of a later stage was refitted through the end of the log."""
    fitted = model(name, **config).fit(lesson(name, log, items))
    return again(fitted, log, items) if name in STAGES else fitted


@cache
def of_checkerboard(name):
    """The model that learned the checkerboard, once for all who only ask it."""
    return learned(name, checkerboard())


def saved(fitted, folder):
    """Write a model, and below it those it reads."""
    folder.mkdir(exist_ok=True)
    fitted.save(folder, catalog(SIZE))
    for name, source in fitted.sources_.items():
        saved(source, folder / name)


def loaded(name, folder):
    """Read what ``saved`` wrote."""
    names = json.loads((folder / "config.json").read_text())["sources"]
    return model_class(name).load(folder, catalog(SIZE), {source: loaded(source, folder / source) for source in names})


def lists(fitted, log, k, exclude_seen=False, items=None, users=None):
    candidates = (items or catalog(log.n_items)).candidates(log.as_of)
    users = np.arange(log.n_users) if users is None else np.array(users)
    return fitted.recommend(log, users, k, candidates, exclude_seen=exclude_seen)


def test_these_are_the_models():
    assert ALL == [
        "popular",
        "repeat",
        "item_knn",
        "ease",
        "two_tower",
        "vaecf",
        "content",
        "sasrec",
        "ranker",
        "transformer_dqn",
    ]
    assert set(BASELINES) < set(ALL)
    assert all(model_class(name).name == name for name in ALL)


@pytest.mark.parametrize("name", [*COLLABORATIVE, "content"])
def test_the_withheld_item_of_the_pattern_comes_first(name):
    log = checkerboard()
    told = name == "content"
    fitted = model(name).fit(material(log, text_vectors=telling(SIZE))) if told else of_checkerboard(name)
    ranked = lists(fitted, log, 1, exclude_seen=True)
    assert (ranked.items[:, 0] == np.arange(SIZE)).mean() >= 0.95
    assert not ranked.filled.any()


@pytest.mark.parametrize("name", ALL)
def test_a_trace_changes_no_list_and_its_last_stage_has_the_order_of_the_list(name):
    log, fitted, k = checkerboard(), of_checkerboard(name), 5
    users, candidates = np.array([*range(SIZE), -1]), np.ones(SIZE, bool)
    trace = Trace(len(users), SIZE, listed=k, left_out=3)
    ranked = fitted.recommend(log, users, k, candidates, exclude_seen=False, trace=trace)
    plain = fitted.recommend(log, users, k, candidates, exclude_seen=False)
    assert all(np.array_equal(getattr(ranked, part), getattr(plain, part)) for part in ("items", "scores", "sources"))
    assert (trace.items[:, :k] == ranked.items).all()
    own = ~ranked.filled
    assert (trace.ranks[name][:, :k][own] == np.broadcast_to(np.arange(1, k + 1), own.shape)[own]).all()
    assert not any(ranks[:, :k][ranked.filled].any() for ranks in trace.ranks.values())
    later = [stage for stage, n in STAGES.items() if n <= STAGES.get(name, 1)]
    assert list(trace.ranks) == ([*fitted.witnesses, *later] if later else [name])
    for user, beside in enumerate(trace.items[:, k:]):
        assert not np.isin(beside[beside >= 0], ranked.items[user]).any()
    assert all((np.isnan(trace.scores[stage]) == (trace.ranks[stage] == 0)).all() for stage in trace.ranks)


def test_popular_ranks_by_recent_events():
    log = interactions([(0, 0, 1), (1, 0, 1), (2, 0, 1), (0, 1, 27), (1, 1, 27), (2, 2, 28)], 3, 4, days=28)
    assert lists(model("popular", half_life_days=7).fit(material(log)), log, 3).items[0].tolist() == [1, 2, 0]


def test_repeat_ranks_by_the_customers_own_recent_events_and_popularity_fills_up():
    log = interactions([(0, 0, 1), (0, 1, 27), (1, 2, 28), (2, 2, 28)], 3, 4, days=28)
    ranked = lists(model("repeat", half_life_days=30).fit(material(log)), log, 4)
    assert ranked.items[0].tolist() == [1, 0, 2, 3]
    assert ranked.filled[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", ALL)
def test_scores_never_rise_down_a_list(name):
    log = checkerboard()
    ranked = lists(of_checkerboard(name), log, SIZE)
    assert (np.diff(ranked.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", ALL)
def test_bought_items_are_left_out_when_asked(name):
    log = checkerboard()
    ranked = lists(of_checkerboard(name), log, SIZE // 2, exclude_seen=True)
    for user, items in enumerate(ranked.items):
        assert not set(items.tolist()) & set(log.bought[user].indices.tolist())


@pytest.mark.parametrize("name", ALL)
def test_unavailable_items_are_never_recommended(name):
    log = checkerboard()
    items = catalog(SIZE, unavailable=[0, 1, 2])
    ranked = lists(learned(name, log, items), log, SIZE, items=items)
    assert ranked.items.shape == (SIZE, SIZE - 3)
    assert (ranked.items >= 3).all()


@pytest.mark.parametrize("name", ALL)
def test_k_larger_than_the_catalogue_gives_every_item_once(name):
    log = checkerboard()
    ranked = lists(of_checkerboard(name), log, 10 * SIZE)
    assert (np.sort(ranked.items, axis=1) == np.arange(SIZE)).all()


@pytest.mark.parametrize("name", ALL)
def test_everybody_gets_a_full_list(name):
    """A user with one event, a user with none, a visitor; an item with no event is in the catalogue."""
    log = interactions([(0, 0, 1), (0, 1, 2), (1, 1, 3), (2, 0, 4), (2, 2, 5)], 4, 6, days=7)
    if name in STAGES:  # so little teaches no ranking: it learned in another shop, and has this one's sources
        fitted = again(of_checkerboard(name), log)
    else:
        fitted = learned(name, log, **({"batch_size": 2, "epochs": 2} if name == "two_tower" else {}))
    ranked = lists(fitted, log, 5, users=[0, 1, 3, -1])
    assert ranked.items.shape == (4, 5)
    assert all(len(set(row)) == 5 and min(row) >= 0 for row in ranked.items.tolist())
    assert ranked.filled[2:].all() or name == "popular"


@pytest.mark.parametrize("name", ALL)
def test_a_model_saved_and_loaded_in_a_fresh_process_gives_identical_lists(name, tmp_path):
    log = checkerboard()
    fitted = of_checkerboard(name)
    saved(fitted, tmp_path)
    code = (
        "import sys, json, pathlib\n"
        "from tests.models.test_models import *\n"
        f"read = loaded({name!r}, pathlib.Path(sys.argv[1]))\n"
        "ranked = lists(read, checkerboard(), 10)\n"
        "print(json.dumps([ranked.items.tolist(), ranked.scores.tolist()]))\n"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    ranked = lists(fitted, log, 10)
    assert json.loads(told.stdout) == [ranked.items.tolist(), ranked.scores.tolist()]


@pytest.mark.parametrize("name", ALL)
def test_nothing_saved_needs_unpickling(name, tmp_path):
    of_checkerboard(name).save(tmp_path, catalog(SIZE))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".npy", ".png", ".tflite"}
    for path in tmp_path.glob("*.npy"):
        np.load(path, allow_pickle=False)


@pytest.mark.parametrize("name", ALL)
def test_a_second_fit_forgets_the_first(name):
    log = checkerboard()
    other = interactions(
        [(u, i, (u + i) % 28) for u in range(SIZE) for i in range(SIZE) if u % 4 == i % 4], SIZE, SIZE, 28
    )
    fresh = lists(model(name).fit(lesson(name, log)), log, 10)
    again = lists(model(name).fit(lesson(name, other)).fit(lesson(name, log)), log, 10)
    assert (fresh.items == again.items).all()
    assert (fresh.scores == again.scores).all()


@pytest.mark.parametrize("name", [name for name in ALL if name not in STAGES])  # these ask their sources
def test_evidence_is_an_item_the_customer_bought(name):
    log = checkerboard()
    fitted = of_checkerboard(name)
    for user in (0, 1, 7):
        history = log.bought[user].indices
        witness = fitted.evidence(log, np.array([user]), np.array([[user, -1]]))[0]  # for the withheld item
        assert witness[1] == -1
        witness = witness[0]
        assert witness in history or (witness == -1 and name == "popular") or (witness == user and name == "repeat")


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("name", ["two_tower", "vaecf", "sasrec", "content"])
def test_lists_from_many_items_are_those_that_sorting_all_scores_gives(name, exclude_seen, monkeypatch):
    log, k = checkerboard(), 12
    fitted = of_checkerboard(name)
    assert fitted._dot(log)
    candidates, users = np.arange(SIZE) != 7, np.array([*range(SIZE), -1])
    log = replace(log, user_ids=np.append(log.user_ids, ["new"]))
    users = np.append(users, SIZE)  # a customer without an event
    traces = [Trace(len(users), SIZE, listed=k, left_out=3) for _ in range(2)]
    told = {"exclude_seen": exclude_seen, "trace": traces[0]}
    if name == "two_tower":  # which knows a customer by number
        users[-1] = -1
    plain = fitted.recommend(log, users, k, candidates, **told)
    monkeypatch.setattr(base, "SEARCH_FROM", 1)
    monkeypatch.setattr(nearest, "SORT_UP_TO", 0)
    searched = fitted.recommend(log, users, k, candidates, **{**told, "trace": traces[1]})
    np.testing.assert_allclose(searched.scores, plain.scores, rtol=1e-4, atol=1e-5)
    assert (searched.filled == plain.filled).all()
    assert (searched.sources == plain.sources).all()
    next_score = np.diff(plain.scores, axis=1, append=-np.inf), np.diff(plain.scores, axis=1, prepend=np.inf)
    alone = (np.abs(next_score) > 1e-4).all(0)
    assert alone[:, :-1].mean() > 0.2
    assert (searched.items == plain.items)[alone & (np.arange(k) < k - 1)].all()
    assert (traces[1].items[:, :k] == searched.items).all()
    assert (traces[1].items[:, k:] >= 0).sum() == (traces[0].items[:, k:] >= 0).sum()


def test_asking_before_learning_is_an_error():
    with pytest.raises(NotFittedError, match="call fit or load first"):
        lists(model("ease"), checkerboard(), 3)


def test_k_below_one_is_an_error():
    log = checkerboard()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        lists(model("popular").fit(material(log)), log, 0)


def test_an_empty_window_is_an_error():
    with pytest.raises(TrainingError, match="no interaction in the training window"):
        model("ease").fit(material(interactions([], 2, 2, days=7)))


def test_a_model_of_another_catalogue_is_refused(tmp_path):
    model("ease").fit(material(checkerboard())).save(tmp_path, catalog(SIZE))
    with pytest.raises(TrainingError, match="train the model again"):
        model_class("ease").load(tmp_path, catalog(SIZE + 1))


def with_validation(log, days):
    """What a model may learn before the last so many days, with their truth as validation."""
    past = truth(log, log.as_of - days * DAY, log.as_of, "all")
    learned = material(past.past)
    return Material(learned.interactions, learned.catalog, learned.text_vectors, {"all": past, "discovery": past})


def test_validation_chooses_what_is_clearly_better():
    """Tastes turned a month ago: whoever looks too far back recommends the old ones."""
    old = [(u, i, day) for u in range(30) for i in range(10) for day in (10, 20, 30)]
    new = [(u, i, day) for u in range(30) for i in range(10, 20) for day in (70, 95)]
    chosen = model("repeat").fit(with_validation(interactions(old + new, 30, 20, days=100), days=14))
    assert [point["half_life_days"] for point in chosen.curve] == [90.0, 30.0, 360.0]
    assert chosen.config.half_life_days == 30.0


def test_what_is_not_clearly_better_leaves_the_default():
    chosen = model("repeat").fit(with_validation(checkerboard(), days=14))
    assert chosen.config.half_life_days == 90.0


def test_a_value_in_the_shop_file_is_not_tried_against_others():
    pinned = model("repeat", half_life_days=7.0).fit(with_validation(checkerboard(), days=14))
    assert pinned.config.half_life_days == 7.0
    assert pinned.curve == []


@pytest.mark.parametrize("seed", range(5))
def test_top_k_is_what_sorting_gives(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 50, (20, rng.integers(1, 3000))).astype(np.float32)
    scores[rng.random(scores.shape) < 0.5] = -np.inf
    k = int(rng.integers(1, 60))
    columns, values = top_k(scores, k)
    for row, found, value in zip(scores, columns, values, strict=True):
        expected = [n for n in np.lexsort((np.arange(len(row)), -row)) if row[n] > -np.inf][:k]
        assert found[found >= 0].tolist() == expected
        assert value[: len(expected)].tolist() == row[expected].tolist()


@pytest.mark.parametrize("name", ["two_tower", "vaecf", "sasrec"])
def test_who_watches_a_training_may_end_it(name):
    """As a search does when its time is up."""

    class EnoughError(Exception):
        pass

    log, looks = checkerboard(), []

    def watch(found):
        looks.append(found)
        if len(looks) == 2:
            raise EnoughError

    week = {view: truth(log, log.as_of - 7 * DAY, log.as_of, view) for view in VIEWS}
    watched = replace(material(week["all"].past), validation=week, watch=watch)
    with pytest.raises(EnoughError):
        model(name).fit(watched)
    assert len(looks) == 2
    assert all(0 <= found <= 1 for found in looks)


def test_the_prior_moves_to_what_sells_now():
    steady = [(0, 0, day) for day in range(100)]
    log = interactions(
        [*steady, *[(0, 1, day) for day in range(50)], *[(0, 2, day) for day in range(50, 100)]], 1, 4, 100
    )
    found = base.trend(log, None)
    assert found[2] > 0.3 > found[0] > found[1] + 1
    assert found[3] == 0  # what never sold is as rare as it was
    np.testing.assert_array_equal(base.trend(log, base.TREND_HALF_LIFE_DAYS), np.zeros(4, np.float32))
