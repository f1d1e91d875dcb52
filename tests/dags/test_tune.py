"""The DAG of searches as it is wired, and one run of it; what a search does is tested in ``tests/test_tune.py``."""

import json

import pytest

from include.nightly import run_once
from recsys_tasks.lake import Lake
from tests.dags.test_nightly import imported
from tests.tiny_shop import AS_OF


@pytest.fixture(scope="module")
def dag(dagbag):
    return dagbag.dags["tune"]


def test_the_dag_file_imports_nothing_heavy():
    assert imported("dags/tune.py") == imported(None), "import these inside the task bodies"


def test_the_tasks_are_the_data_and_a_search_a_model(dag):
    assert set(dag.task_ids) == {"tonight", "models", "ingest", "embed", "tune"}
    assert dag.get_task("tune").is_mapped
    assert [task.task_id for task in dag.roots] == ["tonight"], "every task takes its settings from tonight"
    assert [task.task_id for task in dag.leaves] == ["tune"]


def test_it_runs_when_a_person_asks_and_not_beside_itself(dag):
    assert dag.schedule is None
    assert dag.max_active_runs == 1, "two runs would write to one study"
    assert dag.get_task("tune").partial_kwargs["max_active_tis_per_dagrun"] == 1, (
        "searches at once slow each other down"
    )


def test_every_failure_is_told(dag):
    silent = [task.task_id for task in dag.tasks if not (task.retries and task.on_failure_callback)]
    assert not silent, "give these tasks retries and on_failure_callback, through default_args"
    assert dag.has_on_failure_callback


def test_every_param_can_be_filled_in_by_a_person(dag):
    assert list(dag.params) == ["shop", "models", "minutes", "as_of"]
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.schema.get("title"), f"param {name}: give it a title, the form shows it"
        assert param.schema.get("type"), f"param {name}: give it a type, so that a wrong value is refused"
        param.resolve()


def test_the_documentation_names_every_task(dag):
    missing = [task for task in dag.task_ids if f"**{task}**" not in dag.doc_md]
    assert not missing, "describe these tasks in the DAG's doc_md, the name in bold"


def test_a_run_searches_each_model_and_publishes_nothing(dag, airflow_db, home, tiny_shop):
    conf = {"shop": str(tiny_shop), "models": ["popular", "repeat"], "minutes": 0.05, "as_of": AS_OF}
    run = run_once(dag, conf)
    assert run.state == "success"
    lake = Lake(home / "lake")
    reports = [json.loads((lake.path(entry) / "tuning.json").read_text()) for entry in lake.entries("tunings")]
    assert {report["model"] for report in reports} == {"popular", "repeat"}
    assert all(report["given"]["ndcg@10"] > 0 for report in reports)
    assert lake.current("reports") is None
