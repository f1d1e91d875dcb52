"""A real backfill: the request of Airflow's form, its scheduler, and a PostgreSQL server of this test's own."""

import re
import signal
import time
from urllib.parse import quote

import psutil
import pytest

from recsys_tasks.lake import CURRENT, Lake
from tests.conftest import ROOT
from tests.e2e.test_ui import ask, is_running, nightly, start
from tests.postgres import postgres_server, programs

NIGHTS = ["2011-04-09T02:00:00Z", "2011-04-10T02:00:00Z", "2011-04-11T02:00:00Z"]


@pytest.fixture
def on_postgres(environment, tmp_path):
    """The environment of an Airflow whose database is PostgreSQL."""
    binaries = programs()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: initdb is neither on the path nor under /usr/lib/postgresql")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "nightly.py").write_text(up_to_ingest())
    with postgres_server(binaries) as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE airflow LOGIN PASSWORD 'airflow'")
            connection.execute("ALTER ROLE airflow SET datestyle = ISO")  # psycopg reads no time zones of another
            connection.execute("CREATE DATABASE airflow OWNER airflow")
        url = f"postgresql+psycopg://airflow:airflow@/airflow?host={server.host}"
        yield environment | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": url,
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # last night's run, which Airflow would start too
        }


def test_three_nights_are_backfilled_and_nothing_becomes_current(on_postgres, tiny_shop, tmp_path):
    ui = start(on_postgres)
    family: list[psutil.Process] = []
    try:
        said = ui.stdout.readline()
        found = re.search(r"at (http://\S+) +user: admin +password: (\S+)", said)
        assert found, said + ui.stdout.read()
        url, password = found.groups()
        family = psutil.Process(ui.pid).children(recursive=True)
        token = ask(f"{url}/auth/token", body={"username": "admin", "password": password})["access_token"]
        assert nightly(url, token)["is_paused"]
        ask(f"{url}/api/v2/dags/nightly", token, {"is_paused": False}, "PATCH")
        wanted = {
            "dag_id": "nightly",
            "from_date": "2011-04-09T00:00:00Z",
            "to_date": "2011-04-11T23:59:59Z",
            "max_active_runs": 1,
            "dag_run_conf": {"shop": str(tiny_shop), "publish": True},
        }
        ask(f"{url}/api/v2/backfills", token, wanted)
        runs = finished_runs(url, token)
        told = [(run["logical_date"], run["run_type"], run["state"]) for run in runs]
        assert told == [(night, "backfill", "success") for night in NIGHTS]
        for run in runs:
            run_url = f"{url}/api/v2/dags/nightly/dagRuns/{quote(run['dag_run_id'])}"
            night = ask(f"{run_url}/taskInstances/tonight/xcomEntries/return_value?deserialize=true", token)["value"]
            assert night["publish"] is False
            tasks = ask(f"{run_url}/taskInstances", token)["task_instances"]
            assert {task["task_id"]: task["state"] for task in tasks} == {"tonight": "success", "ingest": "success"}
    finally:
        ui.send_signal(signal.SIGINT)
        ui.wait(timeout=40)
        for process in filter(is_running, family):
            process.kill()
    lake = Lake(tmp_path / "lake")
    nights = [lake.manifest(snapshot)["as_of"] for snapshot in lake.entries("snapshots")]
    assert nights == [night.replace("Z", "+00:00") for night in NIGHTS]
    assert not list(lake.root.rglob(CURRENT))


def up_to_ingest() -> str:
    """Return the DAG without what comes after ingest: whole nights would take this test minutes."""
    source = (ROOT / "dags" / "nightly.py").read_text()
    return source[: source.index("    vectors = embed(night")] + source[source.index("\n\nnightly()") :]


def finished_runs(url: str, token: str) -> list[dict]:
    """Return the runs, oldest date first, as soon as none is queued or running."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        runs = ask(f"{url}/api/v2/dags/nightly/dagRuns?order_by=logical_date", token)["dag_runs"]
        if {run["state"] for run in runs} <= {"success", "failed"}:
            return runs
        time.sleep(0.5)
    raise AssertionError(f"the backfill did not end in three minutes: {[run['state'] for run in runs]}")
