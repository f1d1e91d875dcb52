"""Run one night through Airflow in this process: no server, no scheduler. ``make nightly`` calls it."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Of Airflow's own lines, warnings are enough here; the steps' lines are the progress.
os.environ.setdefault("AIRFLOW__LOGGING__NAMESPACE_LEVELS", "airflow=WARNING task=WARNING alembic=WARNING")
QUIET = ("airflow", "airflow.sdk.definitions.dag", "alembic")


def main() -> int:
    """Return 0 when the night ended well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", help="name or path of a shop file")
    parser.add_argument("--as-of", help="ISO 8601 instant with zone, e.g. 2017-12-04T00:00:00Z")
    parser.add_argument("--k", type=int, nargs="?", help="length of the lists")
    parser.add_argument("--models", help="models beside the baselines, by comma")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value}
    if "models" in given:
        given["models"] = given["models"].split(",")
    if "shop" in given and Path(given["shop"]).suffix in {".yaml", ".yml"}:
        given["shop"] = str(Path(given["shop"]).absolute())
    return run(given)


def run(conf: dict) -> int:
    """Run the DAG ``nightly`` with these parameters and print how long each task took."""
    from airflow.configuration import conf as airflow_conf
    from airflow.dag_processing.dagbag import DagBag
    from airflow.utils.db import initdb
    from rich.console import Console
    from rich.table import Table

    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if not (Path(os.environ["AIRFLOW_HOME"]) / "airflow.db").exists() or "sqlite" not in airflow_conf.get(
        "database", "sql_alchemy_conn"
    ):
        initdb()
    bag = DagBag(dag_folder=str(ROOT / "dags"))
    for file, error in bag.import_errors.items():
        sys.stderr.write(f"{file}: {error}\n")
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    result = run_once(bag.dags["nightly"], conf)

    out = Console()
    tasks = sorted(result.get_task_instances(), key=lambda task: (task.start_date is None, str(task.start_date)))
    names = {"train": tasks[0].xcom_pull("recipes"), "recommend": tasks[0].xcom_pull("shards")}
    table = Table("task", "state", "seconds", title="the night, task by task", title_justify="left")
    for task in tasks:
        name = task.task_id if task.map_index < 0 else f"{task.task_id} ({names[task.task_id][task.map_index]})"
        style = "" if task.state == "success" else "red"
        table.add_row(name, str(task.state), f"{task.duration or 0:.1f}", style=style)
    out.print(table)
    if result.state != "success":
        out.print("[red]the night failed; the lists published last stay current. The first error above says why[/red]")
    return 0 if result.state == "success" else 1


def run_once(dag: Any, conf: dict[str, Any], **kwargs: Any) -> Any:
    """Run a DAG in this process and return its run. Without retries: who is at the keyboard decides.

    Without a deadline, too: ``dag.test`` of Airflow 3.3 looks for one where there is none, and fails when all is done.
    """
    dag.deadline = None
    for task in dag.task_dict.values():
        options = task.partial_kwargs if task.is_mapped else vars(task)
        options["retries"] = 0
    return dag.test(run_conf=conf, **kwargs)


if __name__ == "__main__":
    raise SystemExit(main())
