"""MLflow: a run per recipe and night, a registered version for each, and the alias that says which one is champion.

Weights stay in the lake; a version points at the MLflow run, whose artefacts name the lake entry. MLflow is imported
on first use: it takes seconds.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_tasks.contract import PLACEMENT_VIEW
from recsys_tasks.errors import TemporarilyUnavailable
from recsys_tasks.lake import code_fingerprint
from recsys_tasks.recipe import Recipe
from recsys_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


def alias(placement: str) -> str:
    """Return the MLflow alias of a placement's champion."""
    return f"champion-{placement}"


class Tracking:
    """The experiment ``nightcart-<shop>`` and the registered model of the same name."""

    def __init__(self, settings: Settings, shop: str) -> None:
        self.home = settings.home.absolute()
        self.uri = settings.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"
        self.name = f"nightcart-{shop}"
        self._is_embedded = not settings.mlflow_tracking_uri

    def champions(self) -> dict[str, Recipe]:
        """Return the champion's recipe of each placement that has one."""
        if self._is_embedded and not (self.home / "mlflow.db").exists():
            return {}  # the first night: do not pay for MLflow to say that it is empty
        with self._client() as client:
            found = client.search_registered_models(f"name = '{self.name}'")
            aliases: Mapping[str, str] = found[0].aliases if found else {}
            versions = {p: aliases[alias(p)] for p in PLACEMENT_VIEW if alias(p) in aliases}
            return {p: Recipe(client.get_model_version(self.name, v).tags["recipe"]) for p, v in versions.items()}

    def log_training(self, night: str, recipe: Recipe, model_id: str, snapshot: str, folder: Path) -> None:
        """Record a trained model: parameters, the learning curve, its description, and a registered version."""
        described = json.loads((folder / "config.json").read_text())
        with self._client() as client:
            run_id = self._run(client, night, recipe)
            if client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'"):
                return  # a retried task, or the same night again
            numbers = [
                *(("validation ndcg@10", point["ndcg@10"], step) for step, point in enumerate(described["curve"])),
                *((name, value, 0) for name, value in described["report"].items()),
            ]
            self._log(
                client,
                run_id,
                numbers,
                params=described["config"],
                tags={"model_id": model_id, "snapshot": snapshot, "code": code_fingerprint()},
            )
            client.log_artifact(run_id, str(folder / "config.json"), "model")
            client.log_artifact(run_id, str(folder / "_MANIFEST.json"), "model")
            if not client.search_registered_models(f"name = '{self.name}'"):
                client.create_registered_model(self.name)
            client.create_model_version(
                self.name,
                source=f"{client.get_run(run_id).info.artifact_uri}/model",
                run_id=run_id,
                tags={"recipe": recipe.text, "model_id": model_id, "snapshot": snapshot, "night": night},
            )

    def log_evaluation(
        self, night: str, recipe: Recipe, metrics: Mapping[str, float], plot: Path | None = None
    ) -> None:
        """Record the test metrics of a night's model and close its run."""
        with self._client() as client:
            run_id = self._run(client, night, recipe)
            self._log(client, run_id, [(name, value, 0) for name, value in metrics.items()])
            if plot:
                client.log_artifact(run_id, str(plot))
            client.set_terminated(run_id)

    def crown(self, night: str, placement: str, recipe: Recipe, reason: str) -> str:
        """Move the alias of a placement to tonight's version of a recipe; return the version."""
        with self._client() as client:
            versions = client.search_model_versions(f"name = '{self.name}'")
            of_tonight = [v for v in versions if v.tags.get("night") == night and v.tags.get("recipe") == recipe.text]
            version = max(of_tonight, key=lambda v: int(v.version)).version
            client.set_registered_model_alias(self.name, alias(placement), version)
            client.set_model_version_tag(self.name, version, f"reason-{placement}", reason)
            return str(version)

    @staticmethod
    def _log(
        client: "MlflowClient",
        run_id: str,
        metrics: Iterable[tuple[str, float, int]],
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write all in one transaction. MLflow takes no ``@`` in a name: ``ndcg@10`` becomes ``ndcg_at_10``."""
        from mlflow.entities import Metric, Param, RunTag

        client.log_batch(
            run_id,
            [Metric(name.replace("@", "_at_"), value, 0, step) for name, value, step in metrics],
            [Param(name, str(value)) for name, value in (params or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
        )

    def _run(self, client: "MlflowClient", night: str, recipe: Recipe) -> str:
        """Return tonight's run of a recipe; a retried task finds its first one."""
        experiment = client.get_experiment_by_name(self.name)
        if experiment:
            experiment_id = experiment.experiment_id
        else:
            artifacts = (self.home / "mlartifacts" / self.name).as_uri() if self._is_embedded else None
            experiment_id = client.create_experiment(self.name, artifact_location=artifacts)
        key = f"{night} {recipe.text}"
        found = client.search_runs([experiment_id], f"tags.nightcart = '{key.replace(chr(39), '')}'")
        if found:
            return found[0].info.run_id
        tags = {"nightcart": key.replace("'", ""), "night": night, "recipe": recipe.text}
        return client.create_run(experiment_id, run_name=key, tags=tags).info.run_id

    @contextmanager
    def _client(self) -> Iterator["MlflowClient"]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            yield MlflowClient(self.uri, self.uri)
        except (MlflowException, OSError) as error:
            raise TemporarilyUnavailable(
                f"MLflow at {self.uri} did not do as asked: {error}. Check NIGHTCART_MLFLOW_TRACKING_URI and the server"
            ) from error
