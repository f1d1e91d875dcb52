"""The agent in a night: practised, judged, exported, and let near the lists only by the gate."""

import json

import numpy as np
import pytest

from recsys_tasks.cli import run_night
from recsys_tasks.night import plan
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.settings import Settings
from recsys_tasks.tracking import Tracking
from tests.tiny_shop import AS_OF, write_tiny_shop

SMALL = """\
  transformer_dqn:
    {steps: 800, environments: 8, episodes: 8, weights: [0.2], agent: {width: 8, hidden: 8, warm_up: 100,
     batch_size: 32, tuning_steps: 20}}
"""


@pytest.fixture(scope="module")
def tonight(tmp_path_factory):
    """A night up to the choice of the champions, and the ids of its steps."""
    folder = tmp_path_factory.mktemp("decide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        shop = write_tiny_shop(folder / "shop")
        shop.write_text(shop.read_text() + SMALL)
        night = plan(str(shop), AS_OF, None, ["ranker", "transformer_dqn"])
        yield night, run_night(night, "promote")


def test_the_agent_stands_on_the_leaderboard_with_what_the_gate_says(tonight):
    night, ids = tonight
    rows = json.loads((night.lake.path(ids["evaluate"]) / "leaderboard.json").read_text())["rows"]
    told = {row["view"]: row for row in rows if "gate" in row}
    assert set(told) == {"all", "discovery"}
    for row in told.values():
        assert Recipe(row["recipe"]).model == "transformer_dqn"
        assert row["gate"]["reason"].startswith("passed" if row["gate"]["passed"] else "refused")
        assert row["report"]["simulated/random"] < row["report"]["simulated/supervised"]


def test_an_agent_serves_only_where_it_passed_and_the_reason_is_told(tonight):
    night, ids = tonight
    rows = json.loads((night.lake.path(ids["evaluate"]) / "leaderboard.json").read_text())["rows"]
    gates = {row["view"]: row["gate"] for row in rows if "gate" in row}
    champions = night.lake.manifest(ids["promote"])["champions"]
    for placement, view in {"home": "all", "discover": "discovery"}.items():
        serves = Recipe(champions[placement]["recipe"]).model == "transformer_dqn"
        assert gates[view]["passed"] or not serves
        assert serves or gates[view]["passed"] or gates[view]["reason"] in champions[placement]["reason"]


def test_mlflow_holds_pictures_of_practice_and_the_agent_for_litert(tonight):
    import mlflow

    _night, _ = tonight
    tracking = Tracking(Settings(), "tiny")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("nightcart-tiny").experiment_id])
    run = next(run for run in runs if run.data.tags["recipe"].startswith("transformer_dqn"))
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"practice.png", "q_values.png", "validity.png", "validity.json", "agent.tflite"} <= files
    assert "simulated/lift" in run.data.metrics


def test_the_agent_re_orders_the_head_of_the_rankers_lists_and_nothing_else(tonight):
    night, ids = tonight
    shelf = Shelf.open(night.lake, night.shop, ids["ingest"], ids["embed"])
    entries = shelf.model_ids(night.recipes, night.windows.fit_end, night.starts)
    agent = shelf.load(next(entry for text, entry in entries.items() if Recipe(text).model == "transformer_dqn"))
    past = shelf.interactions.before(night.windows.validation_end)
    users, candidates = np.flatnonzero(past.active_days > 0), shelf.catalog.candidates(past.as_of)
    before = shelf.load(entries["ranker"]).recommend(past, users, 30, candidates, exclude_seen=False)
    after = agent.recommend(past, users, 30, candidates, exclude_seen=False)
    assert (np.sort(before.items, 1) == np.sort(after.items, 1)).all()
    assert (before.items != after.items).any()
    assert (before.scores == after.scores).all()
