"""Nights that wait for a person, through Airflow: its own park, answer and time-out; only the scheduler's loop is not.

``dag.test`` leaves a task that waits where it is until an answer comes from outside, as the scheduler does.
"""

import json
import threading
import time

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from fastapi.testclient import TestClient

from include.nightly import run_once
from recsys_tasks.lake import Lake
from recsys_tasks.promote import recomputed
from recsys_tasks.settings import Settings
from recsys_tasks.tracking import Tracking
from recsys_tasks.versions import current
from tests.conftest import ROOT
from tests.tiny_shop import AS_OF, write_tiny_shop

NIGHTS = {"approved": "2011-04-11", "rejected": "2011-04-10", "not answered": "2011-04-09"}


@pytest.fixture(scope="module")
def api(tmp_path_factory, airflow_db):
    """Airflow's API server, for one who may answer."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    passwords = tmp_path_factory.mktemp("auth") / "passwords.json"
    passwords.write_text(json.dumps({"ada": "ada's"}))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        environment.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "not a secret, and long enough for the algorithm " * 2)
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "ada:op")
        purge_cached_app()
        client = TestClient(create_app(apps="core"), base_url="http://127.0.0.1:8080")
        answer = client.post("/auth/token", json={"username": "ada", "password": "ada's"})
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client
        purge_cached_app()


def nightly():
    """The DAG, read anew: ``dag.test`` leaves a run's params in it."""
    return DagBag(dag_folder=str(ROOT / "dags")).dags["nightly"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory, api):
    """A shop whose first night, which asked nobody, made its champions."""
    folder = tmp_path_factory.mktemp("approval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        file = write_tiny_shop(folder / "shop")
        conf = {"shop": str(file), "as_of": AS_OF, "require_approval": True}
        assert run_once(nightly(), conf).state == "success", "nobody is in office, so nobody is asked"
        yield file


def champions():
    return {placement: recipe.text for placement, recipe in Tracking(Settings(), "tiny").champions().items()}


def parked():
    """Return the task instance that waits for a person, if any."""
    from airflow.models.taskinstance import TaskInstance

    with create_session() as session:
        return session.query(TaskInstance).filter(TaskInstance.state == TaskInstanceState.AWAITING_INPUT).first()


def waiting():
    """Return the id, run and time-out of the task that waits, as soon as there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := parked():
            return found.task_id, found.run_id, found.trigger_timeout
        time.sleep(0.2)
    raise AssertionError("no task waits for a person")


def night(shop, date, answer, hours=4):
    """Run a night that wants another champion of both placements; return its run, and what held while it waited."""
    lake, seen = Lake(Settings().lake), {}
    force = "repeat" if champions()["home"] != "repeat" else "popular"

    def person():
        task, run, until = waiting()
        seen.update(task=task, version=current(lake)["version"], champions=champions(), report=lake.current("reports"))
        answer(f"/api/v2/dags/nightly/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails", until)

    thread = threading.Thread(target=person)
    before = {"version": current(lake)["version"], "champions": champions(), "report": lake.current("reports")}
    thread.start()
    conf = {"shop": str(shop), "as_of": f"{date}T00:00:00Z", "force_promote": force}
    run = run_once(nightly(), conf | {"require_approval": True, "approval_hours": hours})
    thread.join()
    assert seen == before | {"task": "approve"}, "while it waits, all that is current stays as it is"
    assert run.state == "success"
    assert {task.state for task in run.get_task_instances()} == {"success"}, "no answer skips a task"
    made = lake.manifest(run.get_task_instances()[0].xcom_pull("promote"))
    version = current(lake)["version"]
    assert version.startswith(date.replace("-", "")), "tonight's lists are made and published, whatever the answer"
    return force, before["champions"], made


def test_after_an_approval_the_new_champion_takes_over(shop, api):
    def approve(url, _until):
        asked = api.get(url).json()
        assert "**home**" in asked["body"]
        assert "forced by" in asked["body"]
        assert "without an answer in 4 hours, the champion in office stays" in asked["body"]
        assert api.patch(url, json={"chosen_options": ["Approve"], "params_input": {}}).status_code == 200

    force, _, made = night(shop, NIGHTS["approved"], approve)
    assert champions() == {"home": force, "discover": force}
    assert made["champions"]["home"]["reason"].endswith("; approved by ada")


def test_after_a_reject_the_champion_in_office_stays_and_its_lists_are_published(shop, api):
    def reject(url, _until):
        assert api.patch(url, json={"chosen_options": ["Reject"], "params_input": {}}).status_code == 200

    force, before, made = night(shop, NIGHTS["rejected"], reject)
    assert champions() == before
    assert made["champions"]["home"]["recipe"] == before["home"] != force
    assert "whatever the numbers say: ada rejected the change; otherwise" in made["champions"]["home"]["reason"]


def test_no_answer_in_time_is_a_reject(shop, api):
    def sleep_through(_url, until):
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

        assert until is not None
        while parked():
            time.sleep(0.2)
            SchedulerJobRunner.check_awaiting_input_timeouts(SchedulerJobRunner.__new__(SchedulerJobRunner))

    force, before, made = night(shop, NIGHTS["not answered"], sleep_through, hours=0.0001)
    assert champions() == before
    assert made["champions"]["home"]["recipe"] == before["home"] != force
    assert "nobody approved the change in time" in made["champions"]["home"]["reason"]
    record = made["decisions"]["home"]
    assert recomputed(record, "home").reason == made["champions"]["home"]["reason"]
