"""The DAG of backtests as it is wired, and one run of it; what it finds is tested in ``tests/test_backtest.py``."""

import json

import pytest

from include.nightly import run_once
from recsys_tasks.lake import CURRENT, Lake
from tests.dags.test_nightly import imported


@pytest.fixture(scope="module")
def dag(dagbag):
    return dagbag.dags["backtest"]


def test_the_dag_file_imports_nothing_heavy():
    assert imported("dags/backtest.py") == imported(None), "import these inside the task bodies"


def test_the_tasks_are_a_date_after_another_and_the_summary(dag):
    assert set(dag.task_ids) == {"dates", "score", "summarise"}
    assert dag.get_task("score").partial_kwargs["max_active_tis_per_dagrun"] == 1, "a date takes the whole machine"
    assert [task.task_id for task in dag.leaves] == ["summarise"]
    assert dag.schedule is None


def test_every_failure_is_told(dag):
    silent = [task.task_id for task in dag.tasks if not (task.retries and task.on_failure_callback)]
    assert not silent, "give these tasks retries and on_failure_callback, through default_args"
    assert dag.has_on_failure_callback


def test_every_param_can_be_filled_in_by_a_person(dag):
    assert list(dag.params) == ["shop", "from", "to", "every", "models"]
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.schema.get("title"), f"param {name}: give it a title, the form shows it"
        assert param.schema.get("type"), f"param {name}: give it a type, so that a wrong value is refused"


def test_the_documentation_names_every_task(dag):
    assert not [task for task in dag.task_ids if f"**{task}**" not in dag.doc_md]


def test_a_run_scores_each_date_and_publishes_nothing(dag, airflow_db, home, tiny_shop):
    conf = {"shop": str(tiny_shop), "from": "2011-04-05", "to": "2011-04-12", "every": 7, "models": ["ease"]}
    run = run_once(dag, conf)
    assert run.state == "success"
    assert sorted(task.map_index for task in run.get_task_instances() if task.task_id == "score") == [0, 1]
    lake = Lake(home / "lake")
    (entry,) = lake.entries("backtests")
    found = json.loads((lake.path(entry) / "backtest.json").read_text())
    assert [date[:10] for date in found["dates"]] == ["2011-04-05", "2011-04-12"]
    assert not list(lake.root.rglob(CURRENT))
