"""Nights that begin with the weights of the night before."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml

from recsys_tasks.lake import Lake, code_fingerprint
from recsys_tasks.models import model_class
from recsys_tasks.night import plan
from recsys_tasks.recipe import Recipe, Shelf, starts
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Training, load_shop
from recsys_tasks.snapshot import DAY
from recsys_tasks.split import Windows
from tests.interactions import START, interactions
from tests.models.worlds import SIZE, catalog
from tests.tiny_shop import AS_OF

RECIPE = Recipe.of(
    "sasrec",
    {"epochs": 40, "patience": 4, "dim": 16, "max_length": 16, "learning_rate": 0.01, "temperature": 0.2},
)


def shelf(lake, days):
    """A shop whose even customers buy even items and odd ones odd, in an order of their own, as of a day."""
    rng = np.random.default_rng(0)
    rows = [
        (user, 2 * int(item) + user % 2, day + 0.5)
        for user in range(SIZE)
        for day, item in enumerate(rng.permutation(SIZE // 2))
        if day < days
    ]
    with lake.create(f"snapshots/{days}", {}):
        pass
    with lake.create("vectors/one", {}) as folder:
        np.save(folder / "unique.npy", np.zeros((1, 4), np.float16))
        np.save(folder / "row.npy", np.zeros(SIZE, np.int64))
    log = interactions(rows, SIZE, SIZE, days)
    shop = load_shop("complete_journey", Settings().shops)
    return Shelf(lake, shop, f"snapshots/{days}", "vectors/one", catalog(SIZE), log)


def windows(days):
    end = START + days * DAY
    return Windows(end - 6 * DAY, end - 3 * DAY, end)


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """The lake after three trainings: one night, the next from its weights, and the next from nothing."""
    lake = Lake(tmp_path_factory.mktemp("lake"))
    first = shelf(lake, 18).fit(RECIPE, windows(18))
    again = shelf(lake, 19)
    return lake, first, again.fit(RECIPE, windows(19), start=first), again.fit(RECIPE, windows(19))


def test_a_night_that_begins_with_weights_takes_fewer_epochs_and_is_no_worse(nights):
    lake, _, warm, fresh = nights
    second = shelf(lake, 19)
    models = [second.load(entry) for entry in (warm, fresh)]
    assert len(models[0].curve) < len(models[1].curve)
    quality, expected = (model.validate(second.lesson(windows(19))).mean() for model in models)
    assert quality > 0.95 * expected


def test_the_manifest_says_what_training_began_with(nights):
    lake, first, warm, fresh = nights
    assert [lake.manifest(entry)["start"] for entry in (first, warm, fresh)] == [None, first, None]
    assert warm != fresh


def test_the_same_inputs_give_the_same_id_and_bytes(nights, tmp_path):
    lake, _, warm, _ = nights
    other = Lake(tmp_path)
    first = shelf(other, 18).fit(RECIPE, windows(18))
    assert shelf(other, 19).fit(RECIPE, windows(19), start=first) == warm
    files = {path.name: path.read_bytes() for path in lake.path(warm).glob("*.npy")}
    assert files == {path.name: path.read_bytes() for path in other.path(warm).glob("*.npy")}


def test_a_refit_goes_on_from_weights_only_where_few_epochs_were_chosen_for_that(nights):
    lake, _, warm, fresh = nights
    refitted = [shelf(lake, 19).refit(entry, windows(19)) for entry in (warm, fresh)]
    assert [lake.manifest(entry)["start"] for entry in refitted] == [warm, None]
    assert refitted[0] != refitted[1]


def test_a_night_begins_with_its_last_earlier_one_and_never_with_what_saw_its_test_window(nights):
    lake, first, warm, fresh = nights
    found = starts(lake, [RECIPE, Recipe("sasrec"), Recipe("ease")], windows(20))
    assert found[RECIPE.text] in (warm, fresh)
    assert set(found) == {RECIPE.text}
    assert starts(lake, [RECIPE], windows(19)) == {RECIPE.text: first}
    assert starts(lake, [RECIPE], windows(18)) == {}
    assert starts(lake, [RECIPE], replace(windows(20), validation_end=windows(17).validation_end)) == {}
    shelf(lake, 19).refit(fresh, windows(19))  # its end lies before a much later night's, but nobody validated it
    assert starts(lake, [RECIPE], windows(40))[RECIPE.text] in (warm, fresh)


def test_a_full_retrain_comes_on_dates_that_are_the_same_for_every_run():
    training = Training(warm_start=True, full_every_days=7)
    week = [
        training.begins_with_weights(datetime(2011, 4, day, hour, tzinfo=UTC))
        for day in range(1, 15)
        for hour in (0, 23)
    ]
    assert week.count(False) == 4
    assert week[:14] == week[14:]
    assert not Training(full_every_days=7).begins_with_weights(datetime(2011, 4, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("day", "publish", "begins"),
    [("2011-04-12", True, True), ("2011-04-10", True, False), ("2011-04-12", False, False)],
)
def test_tonight_begins_with_weights_unless_it_is_a_full_or_an_unpublished_night(home, tiny_shop, day, publish, begins):
    described = yaml.safe_load(tiny_shop.read_text())
    described |= {"models": {"sasrec": {}}, "training": {"warm_start": True, "full_every_days": 7}}
    tiny_shop.write_text(yaml.safe_dump(described))
    assert datetime.fromisoformat(AS_OF).toordinal() % 7 == 2, "the tenth is the day of the full retrain"
    manifest = {"recipe": "sasrec", "code": code_fingerprint(), "end": 0, "validation_end": DAY}
    with Lake(home / "lake").create("models/sasrec-old", manifest):
        pass
    night = plan(str(tiny_shop), f"{day}T00:00:00Z", datetime.now(UTC), publish=publish)
    assert night.starts == ({"sasrec": "models/sasrec-old"} if begins else {})


def test_only_models_that_make_use_of_weights_are_said_to():
    assert model_class("sasrec").warm_starts
    assert not model_class("ease").warm_starts
