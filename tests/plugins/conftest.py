"""Airflow's own API server with the plugin, in this process, and a lake with two versions of a shop."""

import json

import pyarrow as pa
import pytest

from recsys_tasks.contract import PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.night import Night
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from tests.test_page import a_report

PASSWORDS = {"admin": "admin's", "operator": "operator's", "trigger": "trigger's", "eve": "eve's"}
ROLES = "admin:admin,operator:op,trigger:user,eve:viewer"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def client(tmp_path_factory, airflow_db):
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from fastapi.testclient import TestClient

    passwords = tmp_path_factory.mktemp("auth") / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        environment.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "not a secret, and long enough for the algorithm " * 2)
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", ROLES)
        purge_cached_app()
        yield TestClient(create_app(apps="core"), base_url="http://127.0.0.1:8080")
        purge_cached_app()


@pytest.fixture(scope="session")
def login(client):
    def bearer(user: str) -> dict[str, str]:
        answer = client.post("/auth/token", json={"username": user, "password": PASSWORDS[user]})
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    return bearer


@pytest.fixture(scope="session")
def viewer(login):
    return login("eve")


@pytest.fixture(scope="session")
def admin(login):
    return login("admin")


def plant(home, name, report, is_current=True):
    """Put a report where the last step of a night puts it."""
    lake = Lake(home / "lake")
    with lake.create(f"reports/{name}", {"as_of": report["as_of"], "version": report["version"]}) as folder:
        (folder / "report.json").write_text(json.dumps(report))
    if is_current:
        lake.point("reports", {"report": f"reports/{name}"})


@pytest.fixture
def two_versions(home, tmp_path):
    """Two published versions of one shop, the older first; each customer's list is another."""
    shop = tmp_path / "corner.yaml"
    columns = "{user_id: u, item_id: i, timestamp: t}"
    shop.write_text(f"name: corner\nsource: {{format: tabular, events: {{path: e.csv, columns: {columns}}}}}\n")
    lake, made = Lake(Settings().lake), []
    with lake.create("evaluations/one", {}) as folder:
        (folder / "leaderboard.json").write_text('{"rows": []}')
    champions = {"home": {"recipe": EVIL, "model": "models/x-1", "reason": f"it won {EVIL}"}}
    for day, items in ((4, ["a", "b"]), (5, ["b", "a"])):
        with lake.create(f"champions/{day}", {"champions": champions}):
            pass
        with lake.create(f"lists/{day}", {}) as folder:
            rows = [["1"] * 2, [1, 2], items, [1.0, 0.5], ["cold"] * 2, ["popular"] * 2, ["Popular"] * 2, [None] * 2]
            for placement in PLACEMENTS:
                write_table(pa.table(rows, schema=RECOMMENDATIONS), folder / f"{placement}.parquet")
        night = Night(
            str(shop), f"2017-12-{day:02}T00:00:00+00:00", 2, ["popular"], shards=[0], asked_by=f"nora {EVIL}"
        )
        made.append(publish(night, [f"lists/{day}"], f"champions/{day}", "evaluations/one", "snapshots/none"))
        plant(
            home,
            f"201712{day:02}T000000-1",
            a_report(shop="corner", shop_file=str(shop), as_of=night.as_of, version=made[-1]),
        )
    return made
