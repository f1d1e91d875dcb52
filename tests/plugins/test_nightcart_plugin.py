"""How Airflow finds the plugin, what its import costs, and who may come in."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.conftest import PASSWORDS

ROOT = Path(__file__).resolve().parents[2]
BROWSER = {"accept": "text/html"}
PAGES = ["/recsys/", "/recsys/leaderboard", "/recsys/inspector", "/recsys/versions"]
CLOSED = [*PAGES, "/recsys/report?night=x", "/recsys/customer?id=1", "/recsys/item?id=1", "/recsys/runs/nightly/x"]
LIMIT = 0.05
"""Seconds that the plugin may add to the start of any of Airflow's processes."""


@pytest.mark.parametrize("path", CLOSED)
def test_a_program_without_a_login_is_told_in_json(client, path):
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.json()["detail"] == "Not authenticated"


def test_a_browser_without_a_login_is_sent_to_the_login_page(client):
    answer = client.get("/recsys/versions", headers=BROWSER, follow_redirects=False)
    assert answer.status_code == 302
    assert answer.headers["location"] == "/auth/login?next=http%3A%2F%2F127.0.0.1%3A8080%2Frecsys%2Fversions"


@pytest.mark.parametrize("path", CLOSED)
def test_a_bad_token_is_refused(client, path):
    assert client.get(path, headers={"Authorization": "Bearer nonsense"}).status_code == 403


@pytest.mark.parametrize("user", PASSWORDS)
@pytest.mark.parametrize("path", PAGES)
def test_who_may_read_runs_of_nightly_may_see_the_pages(client, home, login, user, path):
    answer = client.get(path, headers=login(user))
    assert answer.status_code == 200
    assert "No night has run yet" in answer.text
    assert "make nightly" in answer.text
    assert str(home / "lake") in answer.text


def test_airflow_lists_the_plugin_with_a_nav_entry_and_a_tab_on_each_run(client, admin):
    assert client.get("/api/v2/plugins/importErrors", headers=admin).json()["import_errors"] == []
    plugins = client.get("/api/v2/plugins", headers=admin).json()["plugins"]
    [plugin] = [plugin for plugin in plugins if plugin["name"] == "nightcart"]
    assert [(view["destination"], view["href"]) for view in plugin["external_views"]] == [
        ("nav", "recsys/"),
        ("dag_run", "recsys/runs/{DAG_ID}/{RUN_ID}"),
    ]
    assert plugin["fastapi_apps"][0]["url_prefix"] == "/recsys"


def test_importing_the_plugin_takes_no_time_and_imports_nothing_heavy():
    code = f"""
import runpy, sys, time, airflow.plugins_manager
before, began = set(sys.modules), time.perf_counter()
runpy.run_path({str(ROOT / "plugins" / "nightcart_plugin.py")!r})
took = time.perf_counter() - began
heavy = {{"pandas", "numpy", "pyarrow", "mlflow", "tensorflow", "fastapi", "jinja2", "recsys_tasks", "include"}}
print(took, *sorted(heavy & (set(sys.modules) - before)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    took, *heavy = ran.stdout.splitlines()[-1].split()
    assert heavy == [], "every process of Airflow imports plugins: import these when the first request comes"
    assert float(took) < LIMIT
