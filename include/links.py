"""Buttons on tasks that open what MLflow knows of them, where MLflow has a web address.

A worker finds the address when its task ends, and Airflow keeps it among the task's values (XCom); the web server
only reads it there, and never meets MLflow.
"""

from collections.abc import Callable
from typing import Any

from airflow.providers.standard.decorators.python import _PythonDecoratedOperator
from airflow.sdk import BaseOperatorLink
from airflow.sdk.bases.decorator import task_decorator_factory


class MlflowLink(BaseOperatorLink):
    """Of a model's task its run; of ``evaluate`` the night's runs; of ``promote`` the registered models."""

    name = "MLflow"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return an address, or nothing; ``ti_key`` is the task instance that has just ended."""
        from recsys_tasks.night import Night
        from recsys_tasks.recipe import Recipe

        settled = ti_key.xcom_pull(task_ids="tonight")
        if not settled or not (tracking := (night := Night(**settled)).tracking).ui:
            return ""
        if ti_key.task_id == "promote":
            return tracking.page()
        stages = dict(zip(("rank", "decide"), night.by_stage[1:], strict=True))
        recipes = [night.by_stage[0][ti_key.map_index]] if ti_key.task_id == "train" else stages.get(ti_key.task_id, [])
        return tracking.page(night.name, Recipe(recipes[0]) if len(recipes) == 1 else None)


class Tracked(_PythonDecoratedOperator):
    """What ``@task`` makes, with the button."""

    operator_extra_links = (MlflowLink(),)


def tracked(python_callable: Callable | None = None, **kwargs: Any) -> Any:
    """Decorate a task as ``@task`` does, and give it the button."""
    return task_decorator_factory(python_callable, decorated_operator_class=Tracked, **kwargs)
