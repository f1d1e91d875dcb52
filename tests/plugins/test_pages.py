"""Report, leaderboard and versions as a browser gets them, and who may roll back."""

import json
import re
from html import escape

import pytest

from include.pages.leaderboard import ticks
from recsys_tasks import ledger, versions
from recsys_tasks.lake import Lake
from recsys_tasks.page import render
from recsys_tasks.settings import Settings
from tests.plugins.conftest import EVIL, plant
from tests.test_page import a_report, row

OURS = {"Origin": "http://127.0.0.1:8080"}


def as_of(day):
    return f"2017-12-{day:02}T00:00:00+00:00"


def test_the_report_page_frames_the_current_report_and_lists_the_nights(client, home, viewer):
    for day in (3, 4, 5):
        plant(home, f"201712{day:02}T000000-a", a_report(as_of=as_of(day)), is_current=day == 4)
    text = client.get("/recsys/", headers=viewer).text
    assert 'src="/recsys/report?night=20171204T000000-a"' in text
    nights = re.findall(r'<option value="(\w+-a)"( selected)?>(\S+ \S+) UTC, \S+( \(current\))?<', text)
    assert nights == [
        ("20171205T000000-a", "", "2017-12-05 00:00", ""),
        ("20171204T000000-a", " selected", "2017-12-04 00:00", " (current)"),
        ("20171203T000000-a", "", "2017-12-03 00:00", ""),
    ]
    earlier = client.get("/recsys/?night=20171203T000000-a", headers=viewer).text
    assert 'src="/recsys/report?night=20171203T000000-a"' in earlier


def test_the_framed_report_is_the_nights_own_page_and_may_run_no_script(client, home, viewer):
    plant(home, "20171204T000000-a", a_report(warnings=[EVIL]))
    answer = client.get("/recsys/report?night=20171204T000000-a", headers=viewer)
    assert answer.text == render(a_report(warnings=[EVIL]))
    assert EVIL not in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("night", ["gone", "../evaluations/one", "..%2F..%2Fsecret", EVIL])
def test_a_night_that_is_not_in_the_lake_is_not_found(client, home, viewer, night):
    plant(home, "20171204T000000-a", a_report())
    with Lake(home / "lake").create("evaluations/one", {}) as folder:
        (folder / "report.json").write_text(json.dumps(a_report()))
    for path in ("/recsys/", "/recsys/report"):
        answer = client.get(path, params={"night": night}, headers=viewer | {"accept": "text/html"})
        assert answer.status_code == 404
        assert EVIL not in answer.text


def test_a_report_of_an_earlier_format_is_shown_as_it_was_written(client, home, viewer):
    old = a_report()
    del old["watermark"]
    plant(home, "20171204T000000-a", old)
    path = "/recsys/report?night=20171204T000000-a"
    assert "earlier Nightcart" in client.get(path, headers=viewer).json()["detail"]
    (home / "lake" / "reports" / "20171204T000000-a" / "report.html").write_text("as it was")
    assert client.get(path, headers=viewer).text == "as it was"


def test_a_current_report_that_was_removed_gives_way_to_the_newest(client, home, viewer):
    plant(home, "20171204T000000-a", a_report())
    Lake(home / "lake").point("reports", {"report": "reports/gone"})
    assert "night=20171204T000000-a" in client.get("/recsys/", headers=viewer).text


def test_the_pages_run_no_script_but_their_own_and_ask_nothing_of_other_hosts(client, two_versions, admin):
    for path in ("", "leaderboard", "versions", "inspector"):
        answer = client.get(f"/recsys/{path}", headers=admin)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'sha256-" in policy
        assert "http" not in answer.text.replace("http-equiv", "")
        assert answer.headers["cache-control"] == "private, no-cache", (
            "a shop's customers must not lie in a shared cache"
        )
        assert EVIL not in answer.text


class FakeRuns:
    """A run of ``nightly`` in Airflow's own database, and what its last task gave."""

    def __init__(self, run_id):
        from datetime import UTC, datetime

        from airflow.models.dag import DagModel
        from airflow.models.dagbundle import DagBundleModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunType
        from sqlalchemy import select

        with create_session() as session:
            if not session.get(DagModel, "nightly"):
                if not session.get(DagBundleModel, "dags-folder"):
                    session.add(DagBundleModel(name="dags-folder"))
                    session.flush()
                session.add(DagModel(dag_id="nightly", bundle_name="dags-folder", fileloc="nightly.py"))
                session.flush()
            if not session.scalar(select(DagRun.id).where(DagRun.run_id == run_id)):
                now = datetime.now(UTC)
                session.add(
                    DagRun(dag_id="nightly", run_id=run_id, run_type=DagRunType.MANUAL, run_after=now, start_date=now)
                )


def test_the_tab_on_a_run_says_clearly_where_there_is_no_report(client, home, viewer):
    FakeRuns("manual__2017-12-04T00:00:00+00:00")
    text = client.get("/recsys/runs/nightly/manual__2017-12-04T00%3A00%3A00%2B00%3A00", headers=viewer).text
    assert "This run has no report" in text
    assert "runs of the DAG nightly" in client.get("/recsys/runs/tune/x", headers=viewer).text
    assert client.get("/recsys/runs/nightly/none", headers=viewer).status_code == 404


def test_the_tab_on_a_run_shows_the_report_of_that_run(client, home, viewer, monkeypatch):
    from airflow.models.xcom import XComModel

    plant(home, "20171203T000000-a", a_report(as_of=as_of(3)), is_current=False)
    plant(home, "20171204T000000-a", a_report())
    FakeRuns("manual__1")
    asked = {}

    def wrote(**query):
        from sqlalchemy import literal, select

        asked.update(query)
        return select(literal("reports/20171203T000000-a"))

    monkeypatch.setattr(XComModel, "get_many", wrote)
    monkeypatch.setattr(XComModel, "deserialize_value", lambda wrote: wrote)
    text = client.get("/recsys/runs/nightly/manual__1", headers=viewer).text
    assert asked == {
        "run_id": "manual__1",
        "key": "return_value",
        "task_ids": "report",
        "dag_ids": "nightly",
        "limit": 1,
    }
    assert 'src="/recsys/report?night=20171203T000000-a"' in text


def board(ranker, ease, popular=0.1):
    return [
        row("ranker", ndcg=ranker),
        row("ease", ndcg=ease),
        row("popular", ndcg=popular),
        row(EVIL, ndcg=0.2),
        row("ranker", ndcg=0.9, tier="loyal"),
        row("ease", "discovery", ndcg=0.05),
    ]


@pytest.fixture
def three_nights(home):
    champions = a_report()["champions"]
    for day, serves, rows in [
        (3, "ease", board(0.2, 0.3)),
        (4, "ranker", board(0.4, 0.31)),
        (5, "ranker", board(0.41, 0.3)),
    ]:
        won = champions | {"home": champions["home"] | {"recipe": serves}}
        plant(home, f"201712{day:02}T000000-a", a_report(as_of=as_of(day), champions=won, leaderboard=rows))
    plant(
        home, "20171205T000000-b", a_report(as_of=as_of(5), version=None, leaderboard=board(0.9, 0.9)), is_current=False
    )
    return home


def test_the_leaderboard_has_a_line_a_recipe_with_champions_marked_and_baselines_grey(client, three_nights, viewer):
    text = client.get("/recsys/leaderboard", headers=viewer).text
    [every, new] = text.split("<h2>")[1:]
    assert every.startswith("all: what they buy next")
    assert new.startswith("discovery: what they buy for the first time")
    assert every.count("<polyline") == 4
    assert every.count('<g class="baseline">') == 2
    assert every.count('<g class="champion-line">') == 1
    assert every.count('class="serves"') == 3, "each night's champion has its ring"
    assert "ease, 2017-12-03: 0.3000, champion" in every
    assert "ranker, 2017-12-05: 0.4100, champion" in every
    assert "0.9000" not in text, "neither a tier's row nor a dry run's stands for the night"
    assert every.index('<td title="ranker">') < every.index('<td title="ease">') < every.index('<td title="popular">')
    assert EVIL not in text
    assert escape(EVIL) in text


def test_another_metric_and_other_lengths_can_be_asked_for(client, three_nights, viewer):
    text = client.get("/recsys/leaderboard?metric=hit_rate@10&nights=7", headers=viewer).text
    assert "hit_rate@10 of each night" in text
    assert "0.6000" in text
    odd = client.get(f"/recsys/leaderboard?metric={EVIL}&nights=100000", headers=viewer).text
    assert "ndcg@10 of each night" in odd


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.31, 0.372, [0.3, 0.32, 0.34, 0.36, 0.38]),
        (0.2, 0.2, [0.195, 0.2, 0.205]),
        (0.0, 0.0, [-0.2, 0.0, 0.2]),
        (1.0, 7.3, [0.0, 2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_ticks_are_round_numbers_around_all_values(low, high, wanted):
    assert ticks(low, high) == wanted


def test_the_ledger_is_shown_with_the_current_version_marked(client, two_versions, admin):
    text = client.get("/recsys/versions", headers=admin).text
    older, newer = two_versions
    assert text.index(newer) < text.index(older)
    assert text.count(">current</span>") == 1
    assert text.count("Roll back to this") == 1
    assert f'data-version="{older}"' in text
    assert escape(f"asked for by nora {EVIL}") in text


def test_a_viewer_sees_no_button_and_may_not_roll_back(client, two_versions, viewer):
    text = client.get("/recsys/versions", headers=viewer).text
    assert "data-version=" not in text
    assert "<dialog" not in text
    answer = client.post("/recsys/rollback", json={"version": two_versions[0], "reason": "x"}, headers=viewer)
    assert answer.status_code == 403
    assert versions.current(Lake(Settings().lake))["version"] == two_versions[1]


@pytest.mark.parametrize("user", ["admin", "operator", "trigger"])
def test_who_may_trigger_nightly_may_roll_back_and_the_ledger_tells_who_and_why(client, two_versions, login, user):
    older = two_versions[0]
    answer = client.post("/recsys/rollback", json={"version": older, "reason": f"odd {EVIL}"}, headers=login(user))
    assert answer.status_code == 200
    assert answer.json() == {"current": older}
    lake = Lake(Settings().lake)
    assert versions.current(lake)["version"] == older
    last = ledger.served(lake, "corner")[-1]
    assert (last["reason"], last["by"]) == (f"rolled back: odd {EVIL}", user)
    text = client.get("/recsys/versions", headers=login(user)).text
    assert escape(f"rolled back: odd {EVIL}, asked for by {user}") in text
    assert EVIL not in text


def test_who_may_trigger_nightly_but_not_the_dag_rollback_may_not_roll_back(client, two_versions, admin, monkeypatch):
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.models.dag import DagModel

    monkeypatch.setattr(DagModel, "get_current", lambda dag_id: dag_id == "rollback")
    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", lambda _, *, details, **__: details.id == "nightly")
    answer = client.post("/recsys/rollback", json={"version": two_versions[0], "reason": "x"}, headers=admin)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OURS, 200),
        ({}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        (OURS | {"Content-Type": "text/plain"}, 415),
        (OURS | {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_with_a_cookie_only_our_own_page_may_roll_back(client, two_versions, admin, headers, status):
    body = json.dumps({"version": two_versions[0], "reason": "x"})
    cookie = {"Cookie": f"_token={admin['Authorization'].removeprefix('Bearer ')}"}
    sent = {"Content-Type": "application/json"} | cookie | headers
    assert client.post("/recsys/rollback", content=body, headers=sent).status_code == status


def test_an_anonymous_program_may_not_roll_back(client, two_versions):
    body = {"version": two_versions[0], "reason": "x"}
    assert client.post("/recsys/rollback", json=body, headers=OURS).status_code == 401


@pytest.mark.parametrize(
    "body", [{"version": "v"}, {"version": "v", "reason": ""}, {"version": "v", "reason": "x" * 501}, []]
)
def test_a_roll_back_without_a_reason_is_refused(client, two_versions, admin, body):
    assert client.post("/recsys/rollback", json=body, headers=admin).status_code == 422


def test_only_versions_of_this_shop_that_are_kept_can_be_rolled_back_to(client, two_versions, admin):
    for version in ("gone", "../x", EVIL):
        answer = client.post("/recsys/rollback", json={"version": version, "reason": "x"}, headers=admin)
        assert answer.status_code == 404
        assert "is not in the lake" in answer.json()["detail"]
    lines = Settings().lake / ledger.LEDGER
    lines.write_text(lines.read_text().replace('"shop": "corner"', '"shop": "other"', 1))
    answer = client.post("/recsys/rollback", json={"version": two_versions[0], "reason": "x"}, headers=admin)
    assert answer.status_code == 404


def test_a_real_night_is_shown(client, tiny_night, viewer, monkeypatch):
    monkeypatch.setenv("NIGHTCART_HOME", str(tiny_night[0]))
    name = tiny_night[2]["report"].removeprefix("reports/")
    assert f'src="/recsys/report?night={name}"' in client.get("/recsys/", headers=viewer).text
    assert "recall@10 1.0000" in client.get(f"/recsys/report?night={name}", headers=viewer).text
    assert tiny_night[2]["publish"] in client.get("/recsys/versions", headers=viewer).text
    assert client.get("/recsys/leaderboard", headers=viewer).text.count("<polyline") == 8
