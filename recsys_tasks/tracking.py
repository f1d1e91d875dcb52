"""MLflow: a run per recipe and night, a registered version for each, and the alias that says which one is champion.

Searches for hyper-parameters stand in an experiment of their own, a run a trial below the run of the search; what one
finds is registered under the alias ``challenger-<model>``. So do backtests, a run each.

Weights stay in the lake; a version points at the MLflow run, whose artefacts name the lake entry. MLflow is imported
on first use: it takes seconds.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from recsys_tasks.contract import PLACEMENT_VIEW
from recsys_tasks.curves import plot_curve
from recsys_tasks.errors import TemporarilyUnavailable
from recsys_tasks.lake import TEMPORARY, code_fingerprint
from recsys_tasks.recipe import Recipe
from recsys_tasks.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Defaults of ours for MLflow's settings: its own would try for minutes. A task that fails is tried again later."""


def alias(placement: str) -> str:
    """Return the MLflow alias of a placement's champion."""
    return f"champion-{placement}"


class Tracking:
    """The experiments ``nightcart-<shop>``, ``-tuning`` and ``-backtest``, and the registered ``nightcart-<shop>``."""

    def __init__(self, settings: Settings, shop: str) -> None:
        self.home = settings.home.absolute()
        self.uri = settings.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"
        self.shown = _without_password(self.uri)
        self.name = f"nightcart-{shop}"
        self.ui = _web_address(settings.mlflow_ui or settings.mlflow_tracking_uri or "")
        """Address of MLflow's pages; empty where it has none, as with SQLite."""
        self._is_embedded = not settings.mlflow_tracking_uri

    def page(self, night: str | None = None, recipe: Recipe | None = None) -> str:
        """Return the address of a recipe's run, of a night's runs, or (without a night) of the registered models.

        Empty where MLflow has no pages, or not this one.
        """
        if not self.ui or not night:
            return self.ui and f"{self.ui}/#/models/{quote(self.name)}"
        with self._client() as client:
            experiment = client.get_experiment_by_name(self.name)
            if not experiment:
                return ""
            runs = f"{self.ui}/#/experiments/{experiment.experiment_id}"
            if not recipe:
                wanted = f"tags.night = '{night}'"
                return f"{runs}?searchFilter={quote(wanted)}"
            run_id = self._known(client, experiment.experiment_id, f"{night} {recipe.text}")
            return f"{runs}/runs/{run_id}" if run_id else ""

    def champions(self) -> dict[str, Recipe]:
        """Return the champion's recipe of each placement that has one."""
        found = self._aliases()
        return {placement: found[alias(placement)] for placement in PLACEMENT_VIEW if alias(placement) in found}

    def challengers(self) -> dict[str, Recipe]:
        """Return, by model, the recipes that searches found and nights are to compare with the shop's own."""
        found = self._aliases().items()
        return {recipe.model: recipe for name, recipe in found if name == f"challenger-{recipe.model}"}

    def _aliases(self) -> dict[str, Recipe]:
        if self._is_embedded and not (self.home / "mlflow.db").exists():
            return {}  # the first night: do not pay for MLflow to say that it is empty
        with self._client() as client:
            found = client.search_registered_models(f"name = '{self.name}'")
            aliases: Mapping[str, str] = found[0].aliases if found else {}
            return {a: Recipe(client.get_model_version(self.name, v).tags["recipe"]) for a, v in aliases.items()}

    def log_training(self, night: str, recipe: Recipe, model_id: str, snapshot: str, folder: Path) -> None:
        """Record a trained model: parameters, the learning curve, its description, and a registered version; once."""
        described = json.loads((folder / "config.json").read_text())
        curve = described["curve"]
        with self._client() as client, tempfile.TemporaryDirectory(prefix=TEMPORARY) as scratch:
            run_id = self._run(client, night, recipe)
            if client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'"):
                return  # a retried task, or the same night again
            numbers = [
                *_steps(curve),
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
            if curve:
                plot_curve(curve, f"{recipe.model}, night of {night}", Path(scratch) / "curve.png")
                client.log_artifact(run_id, str(Path(scratch) / "curve.png"))
            for file in sorted(folder.iterdir()):
                if file.suffix in (".png", ".tflite") or file.name == "validity.json":
                    client.log_artifact(run_id, str(file))
            tags = {"recipe": recipe.text, "model_id": model_id, "snapshot": snapshot, "night": night}
            self._register(client, run_id, "model", tags)

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

    def log_trial(self, night: str, recipe: Recipe, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Record one trial of a search: what was tried, and what validation said."""
        with self._client() as client:
            run_id = self._trial(client, night, recipe)
            self._log(client, run_id, [(name, value, 0) for name, value in metrics.items()], recipe.config, tags)
            client.set_terminated(run_id)

    def log_search(self, night: str, model: str, metrics: Mapping[str, float], files: Iterable[Path]) -> None:
        """Record what a search gained and cost, with its report and plot."""
        with self._client() as client:
            run_id = self._search(client, night, model)
            self._log(client, run_id, [(name, value, 0) for name, value in metrics.items()])
            for file in files:
                client.log_artifact(run_id, str(file))
            client.set_terminated(run_id)

    def log_backtest(
        self, name: str, params: Mapping[str, object], metrics: Sequence[tuple[str, float, int]], files: Iterable[Path]
    ) -> None:
        """Record what a backtest found, a step a date, with its tables and plot; the same one again is that run."""
        with self._client() as client:
            run_id = self._run_of(client, f"{self.name}-backtest", name, {})
            self._log(client, run_id, (), params)
            for start in range(0, len(metrics), 1000):  # as many as MLflow takes at a time
                self._log(client, run_id, metrics[start : start + 1000])
            for file in files:
                client.log_artifact(run_id, str(file))
            client.set_terminated(run_id)

    def challenge(self, night: str, recipe: Recipe, reason: str) -> None:
        """Register the recipe that a search found, so that nights train it beside the shop's own."""
        with self._client() as client:
            tags = {"recipe": recipe.text, "night": f"search of {night}", "reason": reason}
            version = self._register(client, self._trial(client, night, recipe), "", tags)
            client.set_registered_model_alias(self.name, f"challenger-{recipe.model}", version)

    def withdraw(self, model: str) -> None:
        """Let nights train no challenger of a model any longer."""
        with self._client() as client:
            client.delete_registered_model_alias(self.name, f"challenger-{model}")

    def _register(self, client: "MlflowClient", run_id: str, folder: str, tags: Mapping[str, str]) -> str:
        if not client.search_registered_models(f"name = '{self.name}'"):
            client.create_registered_model(self.name)
        source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
        return str(client.create_model_version(self.name, source=source, run_id=run_id, tags=dict(tags)).version)

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
        """Return tonight's run of a recipe."""
        return self._run_of(client, self.name, f"{night} {recipe.text}", {"night": night, "recipe": recipe.text})

    def _search(self, client: "MlflowClient", night: str, model: str) -> str:
        """Return the run of a search, under which its trials stand."""
        return self._run_of(client, f"{self.name}-tuning", f"{night} search of {model}", {"night": night})

    def _trial(self, client: "MlflowClient", night: str, recipe: Recipe) -> str:
        parent = {"mlflow.parentRunId": self._search(client, night, recipe.model)}
        tags = {"night": night, "recipe": recipe.text, **parent}
        return self._run_of(client, f"{self.name}-tuning", f"{night} {recipe.text}", tags)

    def _run_of(self, client: "MlflowClient", name: str, key: str, tags: Mapping[str, Any]) -> str:
        """Return the run of an experiment that is known by a key; a retried task finds its first one."""
        experiment = client.get_experiment_by_name(name)
        if experiment:
            experiment_id = experiment.experiment_id
        else:
            artifacts = (self.home / "mlartifacts" / name).as_uri() if self._is_embedded else None
            experiment_id = client.create_experiment(name, artifact_location=artifacts)
        if run_id := self._known(client, experiment_id, key):
            return run_id
        return client.create_run(experiment_id, run_name=key, tags={"nightcart": _bare(key), **tags}).info.run_id

    @staticmethod
    def _known(client: "MlflowClient", experiment_id: str, key: str) -> str | None:
        found = client.search_runs([experiment_id], f"tags.nightcart = '{_bare(key)}'")
        return found[0].info.run_id if found else None

    @contextmanager
    def _client(self) -> Iterator["MlflowClient"]:
        for name, value in _MLFLOW.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            yield MlflowClient(self.uri, self.uri)
        except (MlflowException, OSError) as error:
            told = str(error).replace(self.uri, self.shown)
            raise TemporarilyUnavailable(
                f"MLflow at {self.shown} did not do as asked: {told}. The last version stays current. "
                "Check NIGHTCART_MLFLOW_TRACKING_URI and the server, and run the night again"
            ) from None


def _bare(key: str) -> str:
    """Return a key as it may stand between quotes of MLflow's filters."""
    return key.replace("'", "")


def _without_password(uri: str) -> str:
    """Return a URI as it may stand in a message.

    >>> _without_password("postgresql://night:secret@db:5432/mlflow"), _without_password("sqlite:////var/mlflow.db")
    ('postgresql://db:5432/mlflow', 'sqlite:////var/mlflow.db')

    """
    head, there, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{head}{there}{host.rpartition('@')[2]}{slash}{path}"


def _web_address(uri: str) -> str:
    """Return a web address without the password that a tracking URI may carry; empty where it is none.

    >>> _web_address("http://night:secret@mlflow:5000/"), _web_address("sqlite:///mlflow.db")
    ('http://mlflow:5000', '')

    """
    found = urlsplit(uri)
    if found.scheme not in ("http", "https"):
        return ""
    return urlunsplit((found.scheme, found.netloc.rpartition("@")[2], found.path.rstrip("/"), "", ""))


def _steps(curve: Iterable[Mapping[str, float]]) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of a learning curve: of epochs all there is to tell, of tries what validation said."""
    for n, point in enumerate(curve, start=1):
        for name, value in point.items():
            if name == "ndcg@10" or ("epoch" in point and name != "epoch"):
                yield f"validation {name}" if name == "ndcg@10" else name, value, int(point.get("epoch", n))
