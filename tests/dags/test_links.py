"""The button that opens MLflow, on the published night of the tiny shop; ``tests/e2e/test_night.py`` presses it."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from include.links import MlflowLink
from recsys_tasks.night import plan
from recsys_tasks.settings import Settings
from recsys_tasks.tracking import Tracking
from tests.tiny_shop import AS_OF

TRACKED = {"train", "rank", "decide", "evaluate", "promote"}


@pytest.fixture
def link(tiny_night, monkeypatch):
    """Return the address that a task of the tiny night gets."""
    home, shop, _ = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night = plan(str(shop), AS_OF, datetime.now(UTC)).to_dict()

    def get(task_id, map_index=-1):
        ti = SimpleNamespace(task_id=task_id, map_index=map_index, xcom_pull=lambda task_ids: night)
        return MlflowLink().get_link(None, ti_key=ti)

    return get


def test_a_models_task_opens_its_run_evaluate_those_of_the_night_and_promote_the_registry(
    link, monkeypatch, tiny_night
):
    import mlflow

    monkeypatch.setenv("NIGHTCART_MLFLOW_UI", "http://127.0.0.1:5000/")
    tracking = Tracking(Settings(), "tiny")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    run_id = link("train", 1).rpartition("/runs/")[2]
    assert client.get_run(run_id).data.tags["recipe"] == "repeat"
    assert link("promote") == "http://127.0.0.1:5000/#/models/nightcart-tiny"
    assert link("evaluate").endswith("?searchFilter=tags.night%20%3D%20%272011-04-12T00%3A00%3A00Z%27")


def test_where_mlflow_has_no_web_address_there_is_no_button(link):
    assert {link(task, 0) for task in TRACKED} == {""}


def test_a_run_that_never_settled_has_no_button():
    ti = SimpleNamespace(task_id="train", map_index=0, xcom_pull=lambda task_ids: None)
    assert MlflowLink().get_link(None, ti_key=ti) == ""


def test_the_tasks_of_models_have_the_button(dagbag):
    tasks = dagbag.dags["nightly"].tasks
    assert {
        task.task_id for task in tasks if any(link.name == "MLflow" for link in task.operator_extra_links)
    } == TRACKED
