"""What the ranker adds to the suite of all models: honest features, honest windows, and being worth its while."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.contract import VIEWS
from recsys_tasks.errors import TrainingError
from recsys_tasks.metrics import hits, ndcg_at_k
from recsys_tasks.models import BASELINES
from recsys_tasks.models.features import Features, Items
from recsys_tasks.models.ranker import Ranker, RankerConfig
from recsys_tasks.snapshot import DAY
from recsys_tasks.split import truth
from tests.interactions import START, interactions
from tests.models.test_models import baselines, catalog, learned, lesson, lists, material, model
from tests.models.worlds import SIZE, checkerboard

N_USERS, N_ITEMS, DAYS = 90, 60, 70


def habits_and_tastes(seed=0):
    """Ten weeks of customers who buy three favourites every other week, and else what is new of their group's taste.

    ``repeat`` knows the favourites but not that they are due, and ``item_knn`` and ``ease`` know the taste.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        group = np.arange(user % 3, N_ITEMS, 3)
        favourites, others = np.split(rng.permutation(group), [3])
        first = rng.integers(14)
        rows += [
            (user, item, day) for n, item in enumerate(favourites) for day in range((first + 5 * n) % 14, DAYS, 14)
        ]
        rows += [(user, item, day) for item, day in zip(others, rng.integers(0, DAYS, len(others)), strict=True)]
    return interactions([(int(u), int(i), float(d) + 0.5) for u, i, d in rows], N_USERS, N_ITEMS, DAYS)


def split(log, days=14):
    """What is known, the validation truth of each view, and the test truth of each view."""
    test, validation = log.as_of - days * DAY, log.as_of - 2 * days * DAY
    return (
        log.before(validation),
        {view: truth(log, validation, test, view) for view in VIEWS},
        {view: truth(log, test, log.as_of, view) for view in VIEWS},
    )


def score(fitted, wanted):
    """ndcg@10 of each customer."""
    ranked = lists(fitted, wanted.past, 10, exclude_seen=wanted.exclude_seen, users=wanted.users)
    return ndcg_at_k(hits(ranked.items, wanted.items), np.diff(wanted.items.indptr), 10)


def test_it_beats_each_of_its_sources_where_combining_helps():
    known, validation, test = split(habits_and_tastes())
    alone = {name: model(name).fit(material(known)) for name in BASELINES}
    ranker = Ranker().fit(replace(material(known), validation=validation, sources=alone))
    for view, wanted in test.items():
        best = max(score(source, wanted).mean() for source in alone.values())
        # what is new to a customer is a matter of taste alone, of which item_knn knows all
        assert score(ranker, wanted).mean() >= best * (1.2 if view == "all" else 1.0)


def examples(log):
    """Every example of every window that the ranker would learn from, validation being the last two weeks of a log."""
    start = log.as_of - 14 * DAY
    validation = {view: truth(log, start, log.as_of, view) for view in VIEWS}
    known = replace(material(log.before(start)), validation=validation, sources=baselines(material(log.before(start))))
    ranker = Ranker(RankerConfig(earlier_windows=1))
    ranker.fit(replace(lesson("ranker", log), sources=known.sources))  # the items; the boosters are not asked
    return [ranker._examples(known, window["all"], found) for window, found in ranker._windows(known)]


def with_another_future(log):
    """The log with a rush on the first item in its last two weeks, by the customers who buy then anyway."""
    start = log.as_of - 14 * DAY
    users = np.unique(log.since(start).user_idx)
    days = (log.time - START) / DAY
    rows = list(zip(log.user_idx.tolist(), log.item_idx.tolist(), days.tolist(), strict=True))
    rush = [(int(user), 0, DAYS - 14 + hour / 24) for user in users for hour in range(1, 9)]
    return interactions([*rows, *rush], N_USERS, N_ITEMS, DAYS)


def same(one, other):
    return (
        np.array_equal(one.row, other.row)
        and np.array_equal(one.item, other.item)
        and np.array_equal(one.origin, other.origin)
        and all(np.array_equal(one.features[name], other.features[name], equal_nan=True) for name in one.features)
    )


def test_what_happens_after_a_window_began_changes_no_feature_and_no_candidate():
    log = habits_and_tastes()
    before, after = examples(log), examples(with_another_future(log))
    assert len(before) == len(after) == 2
    assert all(same(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("leak", ["histories", "features"])
def test_a_planted_leak_of_the_future_is_found(leak, monkeypatch):
    """The test above can fail: here candidates, or features alone, look at the whole log, as if it were the past."""
    from recsys_tasks.models import ranker

    log, other = habits_and_tastes(), None

    def found(whole):
        def leaking(past):
            return replace(whole, as_of=past.as_of)

        with monkeypatch.context() as patched:
            if leak == "histories":
                honest = Ranker._candidates
                patched.setattr(Ranker, "_candidates", lambda self, past, *rest: honest(self, leaking(past), *rest))
            else:
                honest_features = ranker.Features
                patched.setattr(ranker, "Features", lambda past, items: honest_features(leaking(past), items))
            return examples(whole)

    other = with_another_future(log)
    assert not all(same(one, two) for one, two in zip(found(log), found(other), strict=True))


def test_no_source_has_seen_what_it_is_judged_by(monkeypatch):
    """In validation every source takes part; before it those that count, fitted as of the window's start."""
    known, validation, _ = split(habits_and_tastes())
    alone = {name: model(name).fit(material(known)) for name in BASELINES}
    monkeypatch.setattr(type(alone["ease"]), "counts", False)  # as if it were a network
    ends = []
    counted = type(alone["item_knn"])._fit
    monkeypatch.setattr(
        type(alone["item_knn"]),
        "_fit",
        lambda self, given: (ends.append(given.interactions.as_of), counted(self, given))[1],
    )
    ranker = Ranker()
    ranker.sources_ = alone
    windows = list(ranker._windows(replace(material(known), validation=validation, sources=alone)))
    starts = [window["all"].past.as_of for window, _ in windows]
    assert starts == [known.as_of, known.as_of - 14 * DAY]
    assert ends == starts[1:]
    assert [set(read) for _, read in windows] == [set(BASELINES), set(BASELINES) - {"ease"}]


def test_a_list_says_which_source_put_an_item_there():
    log = checkerboard()
    fitted = learned("ranker", log)
    ranked = lists(fitted, log, 5, exclude_seen=True)
    read = baselines(material(log))
    for user in (0, 7):
        for item, name in zip(ranked.items[user], ranked.sources[user], strict=True):
            assert item in lists(read[name], log, SIZE, exclude_seen=True).items[user]
    own = lists(fitted, log, 5).sources
    assert set(own.ravel()) <= set(BASELINES)
    assert (lists(fitted, log, 5, users=[-1]).sources == "popular").all()


def test_a_cart_that_waits_is_told_from_one_that_was_bought():
    rows = [(0, 0, 1.5, 0.5, False), (0, 1, 2.0, 0.5, False), (0, 1, 3.0), (0, 2, 3.0)]
    facts = Features(log := interactions(rows, 1, 4, 4), Items.of(catalog(4), np.zeros((4, 1), np.float32)))
    told = facts.of_pairs(np.zeros(4, int), np.arange(4))
    np.testing.assert_array_equal(told["wished_recency"], np.float32([2.5, 2.0, np.nan, np.nan]))
    np.testing.assert_array_equal(told["wished_since"], np.float32([0.0, 1.0, np.nan, np.nan]))
    assert told["wished_days"].tolist() == [1, 1, 0, 0]
    only_bought = Features(log.since(START + 3 * DAY), facts.items)
    assert "wished_days" not in only_bought.of_pairs(np.zeros(4, int), np.arange(4))


def test_without_a_source_there_is_nothing_to_rank():
    with pytest.raises(TrainingError, match="no source to rank"):
        Ranker().fit(replace(lesson("ranker", checkerboard()), sources={}))


def test_without_validation_there_is_nothing_to_learn_from():
    log = checkerboard()
    with pytest.raises(TrainingError, match="without a validation window"):
        Ranker().fit(replace(material(log), sources=baselines(material(log))))


def test_a_ranker_is_not_loaded_with_other_sources(tmp_path):
    log = checkerboard()
    learned("ranker", log).save(tmp_path, catalog(SIZE))
    fewer = {name: source for name, source in baselines(material(log)).items() if name != "ease"}
    with pytest.raises(TrainingError, match=r"sources is .*ease"):
        Ranker.load(tmp_path, catalog(SIZE), fewer)


def test_refitting_keeps_the_boosters_and_takes_the_new_sources():
    log = checkerboard()
    first = Ranker().fit(lesson("ranker", log))
    newer = baselines(material(log))
    again = first.refit(replace(material(log), sources=newer))
    assert again.boosters_ == first.boosters_
    assert again.sources_ == newer


def test_the_number_of_threads_changes_nothing():
    log = habits_and_tastes()
    known, validation, test = split(log)
    alone = {name: model(name).fit(material(known)) for name in BASELINES}
    given = replace(material(known), validation=validation, sources=alone)
    one, two = (Ranker(RankerConfig(threads=n, rounds=20)).fit(given) for n in (1, 2))
    assert (score(one, test["all"]) == score(two, test["all"])).all()
