"""The DAG that rolls back: what its form offers, and what readers see after a run of it."""

import json
import shutil
import time
from datetime import UTC, datetime

import pytest
from airflow.dag_processing.dagbag import DagBag

from include import alerts, published
from include.nightly import run_once
from recsys_tasks import ledger
from recsys_tasks.cli import run_night
from recsys_tasks.errors import ContractError, NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.night import plan
from recsys_tasks.online_store import open_store
from recsys_tasks.settings import Settings
from recsys_tasks.shop import load_shop
from recsys_tasks.versions import current, read_lists, roll_back
from tests.conftest import ROOT
from tests.dags.test_nightly import imported


@pytest.fixture(scope="module")
def rolled(tiny_night, tmp_path_factory):
    """A home of two versions, the second one current: (lake, shop, first, second)."""
    home, shop, ids = tiny_night
    copied = tmp_path_factory.mktemp("rollback") / "home"
    shutil.copytree(home, copied, ignore=shutil.ignore_patterns("*.sock"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(copied))
        second = run_night(plan(str(shop), "2011-04-11T00:00:00Z", datetime.now(UTC)), "publish")["publish"]
        yield Lake(copied / "lake"), load_shop(str(shop), Settings().shops), ids["publish"], second


def parsed():
    """Read the DAG file as Airflow does when the lake has changed."""
    bag = DagBag(dag_folder=str(ROOT / "dags" / "rollback.py"))
    assert bag.import_errors == {}
    return bag.dags["rollback"]


def test_the_dag_file_imports_nothing_heavy():
    assert imported("dags/rollback.py") == imported(None), "it is parsed again and again"


def test_the_form_offers_the_versions_that_are_kept_but_not_the_current_one(rolled):
    _, _, first, second = rolled
    param = parsed().params.get_param("version")
    assert param.schema["enum"] == [first]
    assert param.schema["values_display"][first].startswith("as of 2011-04-12 00:00; home repeat, discover ")
    assert "; served from 20" in param.schema["values_display"][first]
    assert second in param.description


@pytest.mark.usefixtures("home")
def test_without_a_lake_the_form_takes_any_text():
    assert published.choices() == ({}, None)
    assert "enum" not in parsed().params.get_param("version").schema


def test_a_ledger_of_ten_years_is_read_in_no_time_and_broken_lines_are_passed_over(home):
    lists = home / "lake" / "recommendations"
    (lists / "home" / "version=v3999").mkdir(parents=True)
    (lists / "home" / "version=v3999" / "_MANIFEST.json").write_text("{}")
    line = {
        "as_of": "2017-12-04T00:00:00+00:00",
        "at": "2017-12-04T02:10:00+00:00",
        "champions": {},
        "reason": "x" * 200,
    }
    told = [json.dumps({**line, "version": f"v{n}"}) for n in range(4000)]
    (lists / "ledger.jsonl").write_text("\n".join([*told, "[]", "{broken", '{"version": "v3999"']) + "\n")
    started = time.process_time()
    found, now = published.choices()
    assert time.process_time() - started < 0.1, "it is read at every parse"
    assert now is None
    assert found == {"v3999": "as of 2017-12-04 00:00; champions not told; served from 2017-12-04 02:10 UTC"}


def test_readers_see_the_older_version_and_the_ledger_tells_who_and_why(rolled, airflow_db, monkeypatch):
    lake, shop, first, second = rolled
    assert current(lake)["version"] == second
    monkeypatch.setenv("NIGHTCART_DEADLINE", "6")
    dag = parsed()
    dag.deadline = alerts.deadline()  # with which Airflow's own dag.test fails at its end
    run = run_once(dag, {"version": first, "reason": "empty lists"})  # the shop is that of the last report
    assert run.state == "success"
    assert current(lake)["version"] == first
    last = ledger.served(lake, shop.name)[-1]
    assert (last["version"], last["reason"]) == (first, "rolled back: empty lists")
    assert last["by"] == run.triggering_user_name == "dag_test"
    reader, items = next(read_lists(lake, "home", first))
    with open_store(Settings(), shop.name) as store:
        assert store.get("home", reader) == items
    assert parsed().params.get_param("version").schema["enum"] == [second]


def test_a_roll_back_leaves_champions_as_they_are_and_the_next_night_publishes(rolled):
    lake, shop, first, second = rolled
    before = plan(str(shop.file), "2011-04-12T00:00:00Z", datetime.now(UTC)).tracking.champions()
    other = second if current(lake)["version"] == first else first
    roll_back(lake, shop, other, "again", "ada")
    night = plan(str(shop.file), "2011-04-10T00:00:00Z", datetime.now(UTC))
    assert night.tracking.champions() == before
    version = run_night(night, "publish")["publish"]
    assert current(lake)["version"] == version != other


def test_what_serves_already_or_was_never_published_is_refused_with_what_there_is(rolled):
    lake, shop, *_ = rolled
    now = current(lake)["version"]
    with pytest.raises(ContractError, match=rf"version: {now} serves already, since .*; expected one of \['2011"):
        roll_back(lake, shop, now, "oops", "ada")
    with pytest.raises(NothingInLake, match=r"version: 'v1' is not in the lake; there are \['2011.* of the shop tiny"):
        roll_back(lake, shop, "v1", "oops", "ada")
    another = shop.model_copy(update={"name": "other"})
    with pytest.raises(NothingInLake, match="this lake serves tiny, give its shop file"):
        roll_back(lake, another, now, "oops", "ada")


def test_the_same_wish_tried_again_is_no_mistake(rolled):
    lake, shop, *_ = rolled
    other = next(iter(published.choices()[0]))
    for _ in range(2):
        roll_back(lake, shop, other, "tried again", "ada")
    assert [line["reason"] for line in ledger.lines(lake)].count("rolled back: tried again") == 1


def test_the_form_says_what_comes_next(dagbag):
    dag = dagbag.dags["rollback"]
    assert dag.schedule is None
    assert dag.has_on_failure_callback
    assert "next run of `nightly` publishes" in dag.doc_md
    for name in ("version", "reason", "shop"):
        assert dag.params.get_param(name).schema.get("title")
