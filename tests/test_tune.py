"""Searches on the tiny shop, whose own recipe of ``ease`` is a bad one."""

import json
from datetime import UTC, datetime

import pytest
import yaml

from recsys_tasks import tune as tuning
from recsys_tasks.cli import app, run_night
from recsys_tasks.errors import ContractError
from recsys_tasks.models import MODELS, model_class
from recsys_tasks.models.base import Between
from recsys_tasks.night import plan
from recsys_tasks.tune import tunable, tune
from tests.tiny_shop import AS_OF, write_tiny_shop

GIVEN = 'ease {"half_life_days": 1.0, "regularization": 1000000.0}'
EARLIER = "2011-04-11T00:00:00+00:00"
MINUTES = 0.1


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A home with a search as of the day before and one as of the last day: (plan of a night, report by as_of)."""
    folder = tmp_path_factory.mktemp("tune")
    shop = write_tiny_shop(folder / "shop")
    described = yaml.safe_load(shop.read_text())
    described["models"]["ease"] = {"half_life_days": 1.0, "regularization": 1e6}
    shop.write_text(yaml.safe_dump(described))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))

        def night(as_of=AS_OF):
            return plan(str(shop), as_of, datetime.now(UTC), publish=False)

        yield night, {as_of: search(night(as_of)) for as_of in (EARLIER, AS_OF)}


def search(night):
    """Search ``ease`` and return the report."""
    ids = run_night(night, "embed")
    entry = tune(night, "ease", ids["ingest"], ids["embed"], MINUTES)
    folder = night.lake.path(entry)
    assert (folder / "tuning.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "tuning.json").read_text())


def test_what_beats_the_shops_recipe_is_trained_beside_it_from_then_on(searched):
    night, reports = searched
    found = reports[AS_OF]
    assert found["given"]["recipe"] == GIVEN
    assert found["gain"] > 0
    assert found["ndcg@10"] == max(trial["ndcg@10"] for trial in found["trials"] if trial["ndcg@10"] is not None)
    assert night().tracking.challengers()["ease"].text == found["challenger"]
    assert [recipe for recipe in night().recipes if recipe.startswith("ease")] == [GIVEN, found["challenger"]]


def test_a_search_keeps_to_its_time(searched):
    _, reports = searched
    assert all(0 < report["seconds"] < 60 * MINUTES + 30 for report in reports.values())  # the slowest of machines


def test_a_search_begins_with_the_best_trials_of_the_last_one(searched):
    _, reports = searched
    before = sorted((t for t in reports[EARLIER]["trials"] if t["ndcg@10"] is not None), key=lambda t: -t["ndcg@10"])
    tried = [trial["recipe"] for trial in reports[AS_OF]["trials"]]
    expected = [trial["recipe"] for trial in before[: tuning.REMEMBERED]][: len(tried)]
    assert expected
    assert tried[: len(expected)] == expected


def test_mlflow_holds_a_run_a_trial_below_the_run_of_the_search(searched):
    import mlflow

    night, reports = searched
    tracking = night().tracking
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    experiment = client.get_experiment_by_name("nightcart-tiny-tuning").experiment_id
    runs = client.search_runs([experiment], f"tags.night = '{night().name}'", max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.metrics["trials"] for run in parents] == [len(reports[AS_OF]["trials"])]
    assert [file.path for file in client.list_artifacts(parents[0].info.run_id)] == ["tuning.json", "tuning.png"]
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    told = {trial["recipe"]: trial["ndcg@10"] for trial in reports[AS_OF]["trials"]}
    assert {run.data.tags["recipe"]: run.data.metrics["ndcg_at_10"] for run in trials} == pytest.approx(told)
    assert all({"half_life_days", "regularization"} == set(run.data.params) for run in trials)


def test_where_nothing_beats_the_shops_recipe_its_challenger_leaves(searched, monkeypatch):
    night, reports = searched
    old = reports[AS_OF]["challenger"]
    monkeypatch.setattr(tuning, "beats", lambda values, given: False)
    monkeypatch.setattr(tuning, "fingerprint", lambda inputs: "another")  # a study of its own
    found = search(night())
    assert old in [trial["recipe"] for trial in found["trials"]]
    assert found["challenger"] is None
    assert night().tracking.challengers() == {}
    assert [recipe for recipe in night().recipes if recipe.startswith("ease")] == [GIVEN]


def test_the_command_prints_what_was_tried(searched):
    from typer.testing import CliRunner

    night, _ = searched
    words = ["tune", "--shop", night().shop_file, "--as-of", AS_OF, "--model", "popular", "--minutes", "0.03"]
    told = CliRunner().invoke(app, words, catch_exceptions=False)
    assert told.exit_code == 0
    assert "the shop's: popular" in told.stdout
    assert "half_life_days" in told.stdout
    assert "enters" in told.stdout


@pytest.mark.parametrize(("model", "why"), [("ranker", "learns from validation"), ("best", "no such model")])
def test_what_cannot_be_tuned_is_refused(searched, model, why):
    night, _ = searched
    with pytest.raises(ContractError, match=why):
        tunable(night(), [model])
    assert set(tunable(night())) == {"popular", "repeat", "item_knn", "ease"}


def test_a_search_needs_time(searched):
    night, _ = searched
    with pytest.raises(ContractError, match="minutes: expected more than 0"):
        tune(night(), "ease", "snapshots/none", "vectors/none", 0)


@pytest.mark.parametrize("name", [name for name in MODELS if model_class(name).space])
def test_a_space_holds_the_grid_and_only_values_that_the_model_takes(name):
    model = model_class(name)
    assert set(model.grid) <= set(model.space), "a trial must set all that a night would choose"
    for field, domain in model.space.items():
        ends = (domain.low, domain.high) if isinstance(domain, Between) else domain
        for value in ends:
            assert getattr(model.Config(**{field: value}), field) == value
