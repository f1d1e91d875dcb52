"""The page as a browser and as a program gets it, from Airflow's own API server."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {"admin": "admin's", "eve": "eve's"}
PNG = b"\x89PNG\r\n\x1a\nnot really"
BROWSER = {"accept": "text/html"}


@pytest.fixture(scope="module")
def client(tmp_path_factory, airflow_db):
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from fastapi.testclient import TestClient

    passwords = tmp_path_factory.mktemp("auth") / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        environment.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "not a secret, and long enough for the algorithm " * 2)
        environment.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "admin:admin,eve:viewer")
        purge_cached_app()
        yield TestClient(create_app(apps="core"), base_url="http://127.0.0.1:8080")
        purge_cached_app()


@pytest.fixture(scope="module")
def viewer(client):
    return login(client, "eve")


def login(client, user: str) -> dict[str, str]:
    answer = client.post("/auth/token", json={"username": user, "password": PASSWORDS[user]})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def row(recipe: str, view: str, ndcg: float, tier: str = "everyone") -> dict:
    return {
        "recipe": recipe,
        "view": view,
        "tier": tier,
        "users": 1715,
        "metrics": {"ndcg@10": ndcg, "recall@10": 0.1255, "recall@50": 0.2397},
        "interval": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01]},
        "beyond_accuracy": {"catalog_coverage@10": 0.0669},
    }


def a_report(**other) -> dict:
    nothing = {"read": 0, "kept": 0, "quarantined": 0, "duplicates": 0, "later": 0, "reasons": {}}
    return {
        "shop": "corner <b>shop</b>",
        "as_of": "2017-12-04T00:00:00+00:00",
        "version": "20171204T000000Z-0ebe522b",
        "counts": {
            "events": {
                "read": 1354113,
                "kept": 1345933,
                "quarantined": 8150,
                "duplicates": 30,
                "later": 115194,
                "reasons": {"value": 8150},
            },
            "items": nothing,
        },
        "watermark": "2017-12-03T23:58:11+00:00",
        "warnings": ["the 7 days before as_of hold <b>3</b> events"],
        "champions": {
            "home": {"recipe": "repeat", "model": "models/repeat-1", "reason": "best ndcg@10 on the all view"},
            "discover": {"recipe": "ease", "model": "models/ease-1", "reason": "forced by a person"},
        },
        "leaderboard": [
            row("popular", "all", 0.1606),
            row("repeat", "all", 0.3491),
            row("repeat", "all", 0.9999, tier="loyal"),
            row("ease", "discovery", 0.0322) | {"report": {"ranking rmse": 0.2265, "all/gain/trend": 0.1}},
            row("<script>alert(1)</script>", "discovery", 0.0298),
        ],
        "failed": [],
        "index": {"items": 92331, "k": 50, "recall": 0.9947, "search": "scann", "vectors": "text"},
        "lists": {"home": {"rows": 123250, "lists": 2465}},
        "last_night": None,
        "snapshot": "snapshots/20171204T000000-1",
        "evaluation": "evaluations/1",
        **other,
    }


def plant(home: Path, report: dict) -> None:
    """Put a report and its plot where the last step of a night puts them."""
    from recsys_tasks.lake import Lake

    lake = Lake(home / "lake")
    with lake.create("reports/20171204T000000-1", {}) as folder:
        (folder / "report.json").write_text(json.dumps(report))
    lake.point("reports", {"report": "reports/20171204T000000-1"})
    with lake.create(report["evaluation"], {}) as folder:
        (folder / "leaderboard.png").write_bytes(PNG)


@pytest.mark.parametrize("path", ["/recsys/", "/recsys/leaderboard.png"])
def test_a_program_without_a_login_is_told_in_json(client, path):
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.json()["detail"] == "Not authenticated"


def test_a_browser_without_a_login_is_sent_to_the_login_page(client):
    answer = client.get("/recsys/", headers=BROWSER, follow_redirects=False)
    assert answer.status_code == 302
    assert answer.headers["location"] == "/auth/login?next=http%3A%2F%2F127.0.0.1%3A8080%2Frecsys%2F"


@pytest.mark.parametrize("path", ["/recsys/", "/recsys/leaderboard.png"])
def test_a_bad_token_is_refused(client, path):
    assert client.get(path, headers={"Authorization": "Bearer nonsense"}).status_code == 403


@pytest.mark.parametrize("user", PASSWORDS)
def test_who_may_read_runs_of_nightly_may_see_the_page(client, home, user):
    assert client.get("/recsys/", headers=login(client, user)).status_code == 200


def test_before_the_first_night_the_page_says_how_to_run_one(client, home, viewer):
    answer = client.get("/recsys/", headers=viewer)
    assert "No night has run yet" in answer.text
    assert "make nightly" in answer.text
    assert str(home / "lake") in answer.text
    assert client.get("/recsys/leaderboard.png", headers=viewer).status_code == 404


def test_a_report_that_was_removed_is_no_report(client, home, viewer):
    from recsys_tasks.lake import Lake

    Lake(home / "lake").point("reports", {"report": "reports/gone"})
    assert "No night has run yet" in client.get("/recsys/", headers=viewer).text


def test_the_page_shows_the_last_night(client, home, viewer):
    plant(home, a_report())
    text = client.get("/recsys/", headers=viewer).text
    for shown in [
        "2017-12-04 00:00 UTC",
        "20171204T000000Z-0ebe522b",
        "1,354,113",
        "1,345,933",
        "8,150 quarantined for a bad value",
        "The log reaches",
        "the 7 days before as_of hold &lt;b&gt;3&lt;/b&gt; events",
        "115,194 not used",
        "0.3491",
        "0.3391 to 0.3591",
        "6.69 %",
        "best ndcg@10 on the all view",
        "forced by a person",
    ]:
        assert shown in text
    assert "0.9999" not in text, "the leaderboard is over everyone; tiers have their own rows in report.json"
    assert text.index('"wrap">repeat') < text.index('"wrap">popular'), "the best model comes first"
    assert "ease: ranking rmse 0.2265</p>" in text, "what a model says of its training stands below, without details"
    assert text.count('class="champion"') == 2
    assert 'class="warning"' not in text


def test_the_page_shows_a_real_night_of_another_k(client, tiny_night, viewer, monkeypatch):
    monkeypatch.setenv("NIGHTCART_HOME", str(tiny_night[0]))
    page = client.get("/recsys/", headers=viewer)
    assert page.status_code == 200
    assert "recall@10 1.0000" in page.text


def test_whatever_the_report_says_is_escaped(client, home, viewer):
    plant(home, a_report(failed=["<script>alert(2)</script>"]))
    text = client.get("/recsys/", headers=viewer).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;script&gt;alert(2)&lt;/script&gt; failed to train" in text
    assert "corner &lt;b&gt;shop&lt;/b&gt;" in text


def test_no_script_but_its_own_may_run_and_nothing_is_asked_of_other_hosts(client, home, viewer):
    plant(home, a_report())
    answer = client.get("/recsys/", headers=viewer)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "http" not in answer.text
    assert answer.headers["cache-control"] == "private, no-cache", "a customer's shop must not lie in a shared cache"


def test_it_warns_of_failed_models_and_rows_that_do_not_add_up(client, home, viewer):
    report = a_report(failed=["two_tower"])
    report["counts"]["events"]["kept"] -= 1
    plant(home, report)
    text = client.get("/recsys/", headers=viewer).text
    assert "two_tower failed to train" in text
    assert "The rows of events do not add up" in text


def test_it_shows_how_the_lists_of_the_night_before_did(client, home, viewer):
    did = {"customers": 412, "ndcg@10": 0.2133, "recall@10": 0.1002, "interval": {"ndcg@10": [0.19, 0.23]}}
    last = {"version": "1", "as_of": "2017-12-03T00:00:00+00:00", "placements": {"home": did}}
    plant(home, a_report(last_night=last))
    text = client.get("/recsys/", headers=viewer).text
    assert "2017-12-03 00:00 UTC" in text
    assert "0.2133" in text


def test_the_plot_comes_from_the_evaluation(client, home, viewer):
    plant(home, a_report())
    assert 'src="leaderboard.png' in client.get("/recsys/", headers=viewer).text
    answer = client.get("/recsys/leaderboard.png", headers=viewer)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == PNG


def test_airflow_lists_the_plugin_without_errors(client):
    admin = login(client, "admin")
    assert client.get("/api/v2/plugins/importErrors", headers=admin).json()["import_errors"] == []
    plugins = client.get("/api/v2/plugins", headers=admin).json()["plugins"]
    [plugin] = [plugin for plugin in plugins if plugin["name"] == "nightcart"]
    [view] = plugin["external_views"]
    assert (view["name"], view["destination"], view["href"], view["url_route"]) == (
        "Recsys",
        "nav",
        "recsys/",
        "recsys",
    )
    assert plugin["fastapi_apps"][0]["url_prefix"] == "/recsys"


def test_importing_the_plugin_imports_nothing_heavy():
    code = f"""
import runpy, sys, airflow.plugins_manager
before = set(sys.modules)
runpy.run_path({str(ROOT / "plugins" / "nightcart_plugin.py")!r})
heavy = {{"pandas", "numpy", "pyarrow", "mlflow", "tensorflow", "fastapi", "jinja2", "recsys_tasks"}}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]", "every process of Airflow imports plugins: import these in functions"


def test_the_report_that_is_planted_here_has_the_keys_of_the_real_one():
    """The page must not be tested against a report that no night writes."""
    source = Path(importlib.util.find_spec("recsys_tasks.report").origin).read_text()
    for key in a_report():
        assert f'"{key}":' in source, f"recsys_tasks/report.py no longer writes {key!r}; change the page and this test"
