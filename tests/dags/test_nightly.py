"""The DAG as it is wired; what its steps do is tested where they live."""

import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag

from tests.tiny_shop import AS_OF

ROOT = Path(__file__).resolve().parents[2]
STEPS = ["ingest", "embed", "train", "evaluate", "promote", "publish_index", "recommend", "check", "publish", "report"]
HEAVY = [
    "tensorflow",
    "torch",
    "mlflow",
    "scann",
    "pandas",
    "numpy",
    "transformers",
    "pyarrow",
    "duckdb",
    "ibis",
    "lightgbm",
    "optuna",
]


@pytest.fixture(scope="module")
def nightly(dagbag):
    return dagbag.dags["nightly"]


def test_every_dag_file_imports(dagbag):
    assert dagbag.import_errors == {}, "mend the DAG file named here"


def test_there_are_exactly_these_dags(dagbag):
    assert set(dagbag.dags) == {"backtest", "nightly", "rollback", "tune"}, (
        "a DAG came or went: change this set, the README and the docs with it"
    )


def test_every_dag_file_parses_in_less_than_a_second(dagbag):
    slow = {stat.file: stat.duration for stat in dagbag.dagbag_stats if stat.duration.total_seconds() >= 1}
    assert not slow, "the scheduler parses these again and again: move their imports into the task bodies"


def test_the_dag_file_imports_nothing_heavy():
    assert imported("dags/nightly.py") == imported(None), "import these inside the task bodies"


def imported(dag_file: str | None) -> set[str]:
    """Return the heavy modules that a process has after importing ``airflow.sdk``, and the DAG file if there is one."""
    code = f"""
import runpy, sys, airflow.sdk
if {dag_file!r}:
    runpy.run_path({dag_file!r})
print(*(name for name in {HEAVY} if name in sys.modules))
"""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.splitlines()[-1].split())


def test_the_tasks_are_tonight_what_is_mapped_over_and_the_ten_steps(nightly):
    assert set(nightly.task_ids) == {"tonight", "recipes", "rank", "decide", "shards", "approve", *STEPS}, (
        "a task came or went: tell doc_md and docs"
    )


def test_the_ten_steps_run_in_their_order(nightly):
    for before, after in pairwise(STEPS):
        upstream = nightly.get_task(after).get_flat_relative_ids(upstream=True)
        assert before in upstream, f"{after} must come after {before}: pass it what {before} returns"


def test_later_stages_are_trained_between_their_sources_and_evaluate(nightly):
    rank, decide = nightly.get_task("rank"), nightly.get_task("decide")
    assert "train" in rank.upstream_task_ids, "the ranker reads what every model of the first stage says"
    assert "rank" in decide.upstream_task_ids, "the agent re-orders what the ranker says"
    assert "evaluate" in decide.downstream_task_ids, "both stand on tonight's leaderboard"
    assert rank.trigger_rule == decide.trigger_rule == "all_done", "a source that failed to train must only drop out"


def test_a_person_may_be_asked_between_the_numbers_and_the_champions_and_is_not_by_default(nightly):
    approve = nightly.get_task("approve")
    assert "evaluate" in approve.upstream_task_ids
    assert approve.downstream_task_ids == {"promote"}, "promote reads the answer and decides what follows from it"
    assert nightly.params["require_approval"] is False
    assert approve.defaults == ["Reject"], "no answer in time must be a no"


def test_tonight_comes_before_everything(nightly):
    assert [task.task_id for task in nightly.roots] == ["tonight"], "every task takes its settings from tonight"
    assert [task.task_id for task in nightly.leaves] == ["report"], "the report comes last and tells of all the others"


@pytest.mark.parametrize(("run_type", "publishes"), [("scheduled", True), ("manual", True), ("backfill", False)])
def test_a_backfilled_run_publishes_nothing_and_looks_back_from_its_date(
    nightly, home, tiny_shop, monkeypatch, run_type, publishes
):
    tonight = nightly.get_task("tonight").python_callable
    date = datetime(2011, 4, 10, 2, tzinfo=UTC)
    params = {name: nightly.params[name] for name in nightly.params}
    params |= {"shop": str(tiny_shop), "as_of": AS_OF, "publish": True}
    run = SimpleNamespace(run_type=run_type, logical_date=date, run_after=date, triggering_user_name="ada")
    monkeypatch.setitem(tonight.__globals__, "get_current_context", lambda: {"dag_run": run, "params": params})
    night = tonight()
    assert night["asked_by"] == "ada", "the ledger tells who asked for a night"
    assert night["publish"] is publishes, "a past night must not replace what the shop reads, whatever the form says"
    assert night["as_of"] == (AS_OF if publishes else date.isoformat())


def test_every_failure_is_retried_and_told(nightly):
    silent = [task.task_id for task in nightly.tasks if not task.retries or not task.on_failure_callback]
    assert not silent, "give these tasks retries and on_failure_callback, through default_args"
    assert nightly.has_on_failure_callback, "a run that fails as a whole must be told too: set on_failure_callback"


@pytest.mark.parametrize(("hours", "is_told"), [("6", True), ("", False)])
def test_a_late_night_is_told_where_the_environment_says_when(monkeypatch, hours, is_told):
    monkeypatch.setenv("NIGHTCART_DEADLINE", hours)
    bag = DagBag(dag_folder=str(ROOT / "dags" / "nightly.py"))
    assert (bag.dags["nightly"].deadline is not None) is is_told, "set deadline=alerts.deadline()"


def test_two_nights_never_run_at_once(nightly):
    assert nightly.max_active_runs == 1, "two runs would move the same pointers: set max_active_runs=1"


def test_every_param_can_be_filled_in_by_a_person(nightly):
    assert list(nightly.params), "the DAG takes no params; a person could not choose a shop or a date"
    for name in nightly.params:
        param = nightly.params.get_param(name)
        assert param.schema.get("title"), f"param {name}: give it a title, the form shows it"
        assert param.schema.get("type"), (
            f"param {name}: give it a type, so that a wrong value is refused before the run"
        )
        param.resolve()


def test_the_documentation_names_the_ten_steps_in_their_order(nightly):
    places = [nightly.doc_md.find(f"**{step}**") for step in STEPS]
    missing = [step for step, place in zip(STEPS, places, strict=True) if place < 0]
    assert not missing, "describe these steps in the DAG's doc_md, the name in bold"
    assert places == sorted(places), "doc_md must list the steps in the order in which they run"


def test_outlets_are_the_assets_of_include(nightly):
    from airflow.sdk import Asset

    from include import assets

    known = {asset.name for asset in vars(assets).values() if isinstance(asset, Asset)}
    outlets = [outlet for task in nightly.tasks for outlet in task.outlets]
    assert all(isinstance(outlet, Asset) for outlet in outlets), "an outlet must be an Asset, or no DAG can wait for it"
    assert {outlet.name for outlet in outlets} == known, (
        "every asset of include/assets.py is written by exactly one task"
    )
    assert len(outlets) == len(known), "every asset of include/assets.py is written by exactly one task"
