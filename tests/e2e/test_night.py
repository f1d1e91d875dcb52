"""The whole night of a tiny shop through Airflow, and what readers then find."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from include.nightly import run_once
from recsys_tasks.contract import ANONYMOUS, PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.lake import CURRENT, Lake
from recsys_tasks.models import BASELINES
from recsys_tasks.night import Night, plan
from recsys_tasks.online_store import open_store
from recsys_tasks.settings import Settings
from recsys_tasks.shop import load_shop
from recsys_tasks.tracking import Tracking
from recsys_tasks.versions import current, read_lists, versions
from tests.conftest import ROOT
from tests.tiny_shop import AS_OF, write_tiny_shop

MODELS = ["two_tower", "ranker"]


@pytest.fixture(scope="module")
def night(tmp_path_factory, airflow_db, dagbag):
    """A finished night of six models, run by the DAG; the folder is its home."""
    folder = tmp_path_factory.mktemp("night")
    shop = write_tiny_shop(folder / "shop")
    os.environ["NIGHTCART_HOME"] = str(folder / "home")
    os.environ["NIGHTCART_MLFLOW_UI"] = "https://mlflow.example/"
    try:
        run = run_once(dagbag.dags["nightly"], {"shop": str(shop), "as_of": AS_OF, "models": MODELS})
        yield run, shop, Lake(folder / "home" / "lake")
    finally:
        del os.environ["NIGHTCART_HOME"], os.environ["NIGHTCART_MLFLOW_UI"]


@pytest.fixture
def table(night):
    """Read a placement of the current version."""

    def read(placement):
        _, _, lake = night
        version = current(lake)["version"]
        files = sorted((lake.root / "recommendations" / placement / f"version={version}").glob("part-*"))
        return pa.concat_tables([pq.ParquetFile(file).read() for file in files])

    return read


def test_every_task_succeeds(night):
    run, _, _ = night
    assert run.state == "success"
    states = [(task.task_id, task.state) for task in run.get_task_instances()]
    assert {state for _, state in states} == {"success"}
    assert [name for name, _ in states].count("train") == 5
    assert [name for name, _ in states].count("recommend") == 2


def test_tasks_of_models_have_a_button_that_opens_mlflow(night):
    from airflow.models.serialized_dag import SerializedDagModel

    run, _, _ = night
    dag = SerializedDagModel.get_dag("nightly")
    found = {}
    for task in run.get_task_instances():
        found.setdefault(task.task_id, []).append(dag.get_task(task.task_id).get_extra_links(task, "MLflow"))
    pages = "https://mlflow.example/#/"
    assert found["promote"] == [f"{pages}models/nightcart-tiny"]
    assert found["evaluate"] == [f"{pages}experiments/1?searchFilter=tags.night%20%3D%20%272011-04-12T00%3A00%3A00Z%27"]
    assert len(set(found["train"])) == 5
    assert all(link.startswith(f"{pages}experiments/1/runs/") for link in found["train"] + found["rank"])
    assert found["ingest"] == [None]


def test_each_file_is_in_the_order_of_its_readers(night):
    _, _, lake = night
    for file in lake.root.glob("recommendations/*/version=*/part-*"):
        readers = pq.ParquetFile(file).read()["user_id"].to_pylist()
        assert readers == sorted(readers)


def test_every_customer_and_the_visitor_have_k_items(table):
    for placement in ("home", "discover"):
        rows = table(placement)
        assert rows.schema.equals(RECOMMENDATIONS)
        found = duckdb.sql("SELECT user_id, count(DISTINCT item_id) AS n FROM rows GROUP BY ALL").fetchall()
        assert len(found) == 43
        assert ANONYMOUS in dict(found)
        assert min(dict(found).values()) == 10


def test_discover_holds_nothing_the_customer_bought(night, table):
    _, _, lake = night
    events = duckdb.read_parquet(str(lake.root / "events" / "*" / "*.parquet"))  # noqa: F841
    rows = table("discover")  # noqa: F841
    bought = "SELECT DISTINCT user_id, item_id FROM events WHERE event_type = 'purchase'"
    assert duckdb.sql(f"SELECT count(*) FROM rows JOIN ({bought}) USING (user_id, item_id)").fetchone() == (0,)


def test_redis_and_parquet_hold_the_same_lists(night):
    _, _, lake = night
    version = current(lake)["version"]
    with open_store(Settings(), "tiny") as store:
        assert store.current() == version
        for placement in PLACEMENTS:
            lists = list(read_lists(lake, placement, version))
            assert bool(lists) == (placement != "new"), placement  # every item has been there from the first day
            assert all(store.get(placement, reader) == items for reader, items in lists)


def test_the_manifest_tells_files_with_hashes_and_where_they_come_from(night):
    _, _, lake = night
    folder = lake.root / "recommendations" / "home" / f"version={current(lake)['version']}"
    manifest = json.loads((folder / "_MANIFEST.json").read_text())
    assert manifest["as_of"] == AS_OF
    assert manifest["shop"] == "tiny"
    assert {"snapshot", "champions", "code", "config", "metrics", "drops"} <= set(manifest)
    assert [file["sha256"] for file in manifest["files"]] == [
        hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() for file in manifest["files"]
    ]
    assert sum(file["rows"] for file in manifest["files"]) == 430


def test_mlflow_holds_a_run_and_a_version_a_model_and_two_champions(night):
    import mlflow

    tracking = Tracking(Settings(), "tiny")
    client = mlflow.MlflowClient(tracking.uri, tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("nightcart-tiny").experiment_id])
    assert sorted(run.data.tags["recipe"] for run in runs) == sorted([*BASELINES, *MODELS])
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all({"all/ndcg_at_10", "discovery/ndcg_at_10"} <= set(run.data.metrics) for run in runs)
    assert all(run.data.tags["snapshot"].startswith("snapshots/") for run in runs)
    artifacts = {
        run.data.tags["recipe"]: [file.path for file in client.list_artifacts(run.info.run_id)] for run in runs
    }
    assert artifacts["two_tower"] == artifacts["ease"] == ["curve.png", "leaderboard.png", "model"]
    registered = client.get_registered_model("nightcart-tiny")
    assert sorted(registered.aliases) == ["champion-discover", "champion-home"]
    assert len(client.search_model_versions("name = 'nightcart-tiny'")) == 6
    assert tracking.champions()["home"].text == "ranker"


def test_the_same_night_again_reuses_everything(night, dagbag, caplog):
    _, shop, lake = night
    before = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*.parquet")}
    version = current(lake)["version"]
    run = run_once(dagbag.dags["nightly"], {"shop": str(shop), "as_of": AS_OF, "models": MODELS})
    assert run.state == "success"
    after = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*.parquet")}
    assert after.items() >= before.items()
    new = {path.relative_to(lake.root).parts[0] for path in after.keys() - before.keys()}
    assert new == {"evaluations"}  # beside the champions, who are in office now
    assert current(lake)["version"] == version
    assert versions(lake, load_shop(str(shop), Settings().shops)) == [version]


def test_a_run_may_have_no_logical_date(night, dagbag):
    """As a trigger from the command line has none."""
    _, shop, lake = night
    version = current(lake)["version"]
    run = run_once(dagbag.dags["nightly"], {"shop": str(shop), "as_of": AS_OF}, logical_date=None)
    assert run.logical_date is None
    assert run.state == "success"
    assert current(lake)["version"] == version
    assert version in versions(lake, load_shop(str(shop), Settings().shops))


def test_a_failed_model_is_left_out_and_the_night_goes_on(night, dagbag, monkeypatch):
    _, shop, lake = night
    from recsys_tasks.models.item_knn import ItemKNN

    def broken(self, material):
        raise MemoryError("no room for the neighbours")

    monkeypatch.setattr(ItemKNN, "_fit", broken)
    conf = {"shop": str(shop), "as_of": "2011-04-11T00:00:00Z", "models": ["ranker"], "force_promote": "ranker"}
    run = run_once(dagbag.dags["nightly"], {**conf, "publish": False})
    states = {(task.task_id, task.map_index): task.state for task in run.get_task_instances()}
    assert run.state == "success"
    assert "failed" in {state for (task, _), state in states.items() if task == "train"}
    report = report_of(run, lake)
    assert report["failed"] == ["item_knn"]
    served = lake.manifest(report["champions"]["home"]["model"])
    assert served["model"] == "ranker"
    assert {"ease", "popular", "repeat"} <= set(served["sources"]) <= {"ease", "popular", "repeat", "two_tower"}, (
        "two_tower is there where it is champion"
    )


def test_a_night_that_fails_leaves_the_last_version_current(night, dagbag, tmp_path):
    _, shop, lake = night
    version = current(lake)["version"]
    run = run_once(dagbag.dags["nightly"], {"shop": str(shop), "as_of": "2001-01-01T00:00:00Z"})
    assert run.state == "failed"
    assert current(lake)["version"] == version


def test_a_dry_run_publishes_nothing_and_moves_no_champion(night, dagbag):
    _, shop, lake = night
    before = current_things(lake)
    conf = {"shop": str(shop), "as_of": "2011-04-10T00:00:00Z", "publish": False, "force_promote": "popular"}
    run = run_once(dagbag.dags["nightly"], conf)
    assert run.state == "success"
    assert current_things(lake) == before
    report = report_of(run, lake)
    assert report["version"] is None
    assert report["champions"]["home"]["recipe"] == "popular"


def test_a_backfilled_night_publishes_nothing_and_moves_no_champion(night, dagbag, backfilled):
    """Though the form of a backfill sends ``publish`` as it stands there, switched on."""
    _, shop, lake = night
    before = current_things(lake)
    conf = {"shop": str(shop), "as_of": AS_OF, "publish": True, "force_promote": "popular"}
    run = run_once(dagbag.dags["nightly"], conf, logical_date=datetime(2011, 4, 9, 2, tzinfo=UTC))
    assert (run.run_type, run.state) == ("backfill", "success")
    assert current_things(lake) == before
    report = report_of(run, lake)
    assert (report["version"], report["as_of"]) == (None, "2011-04-09T02:00:00+00:00")
    assert report["champions"]["home"]["recipe"] == "popular"
    assert report["lists"]["home"]["lists"]


@pytest.fixture
def backfilled(monkeypatch):
    """``dag.test`` makes a manual run of everything; here it makes one of a backfill."""
    from airflow.serialization.definitions.dag import SerializedDAG

    make = SerializedDAG.create_dagrun

    def create_dagrun(dag, *, run_id, run_type, **kwargs):
        return make(dag, run_id=run_id.replace(run_type, "backfill"), run_type=type(run_type)("backfill"), **kwargs)

    monkeypatch.setattr(SerializedDAG, "create_dagrun", create_dagrun)


def current_things(lake):
    """The bytes of every pointer in the lake, the version in Redis, and the champions."""
    pointers = {path.parent.name: path.read_bytes() for path in lake.root.rglob(CURRENT)}
    assert set(pointers) == {*PLACEMENTS, "reports"}
    with open_store(Settings(), "tiny") as store:
        return pointers, store.current(), Tracking(Settings(), "tiny").champions()


def report_of(run, lake):
    entry = run.get_task_instances()[0].xcom_pull("report")
    return json.loads((lake.path(entry) / "report.json").read_text())


def test_the_run_key_is_the_date_unless_as_of_or_the_end_of_an_archive_says_otherwise(home):
    now = datetime(2026, 1, 2, 3, tzinfo=UTC)
    assert plan("complete_journey", None, now).as_of == "2018-01-01T05:00:00+00:00"
    backfill = datetime(2017, 6, 1, 2, tzinfo=UTC)
    assert plan("complete_journey", None, backfill).as_of == "2017-06-01T02:00:00+00:00"
    night = plan("complete_journey", "2017-12-04T01:00:00+01:00", now)
    assert night.as_of == "2017-12-04T00:00:00+00:00"
    assert Night(**json.loads(json.dumps(night.to_dict()))) == night


def test_the_same_inputs_give_the_same_bytes_in_two_homes(tmp_path):
    """Two processes, two homes, two places of the shop's files."""
    found = []
    for name in ("one", "another"):
        shop = write_tiny_shop(tmp_path / name / "shop")
        home = tmp_path / name / "a home"
        command = [str(Path(sys.executable).with_name("nightcart")), "--home", str(home), "run", "--shop", str(shop)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NIGHTCART_")}
        subprocess.run(
            [*command, "--as-of", AS_OF, "--models", ",".join(MODELS)],
            check=True,
            capture_output=True,
            cwd=ROOT,
            env=environment,
        )
        files = sorted((home / "lake" / "recommendations").rglob("*.parquet"))
        found.append({str(path.relative_to(home)): path.read_bytes() for path in files})
    assert len(found[0]) == 18  # of two shards: seven placements, and the traces of two
    assert found[0] == found[1]
