"""A search for better hyper-parameters of one model, boxed in time: Optuna on the fit window, judged on validation.

Reads the snapshot, the text vectors and what earlier searches of the model found, which is tried first. Writes
``tunings/<model>-<key>/`` (report and plot), an MLflow run a trial, and where a trial beats the shop's own recipe by
more than chance, the alias ``challenger-<model>``: from then on nights train it beside the shop's recipe, and promotion
decides as always. The test window is never read.

Other than a step of the night, a search may find something else when it is run again: a faster machine tries more.
"""

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_tasks.curves import plot_search
from recsys_tasks.errors import ContractError
from recsys_tasks.lake import fingerprint
from recsys_tasks.models import MODELS, Model, model_class
from recsys_tasks.models.base import Between, beats
from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.settings import Settings

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

REMEMBERED = 5
"""Trials of the last search that are tried again, the best first."""


def tunable(night: Night, models: Sequence[str] | None = None) -> list[str]:
    """Return the models to search for: the given ones, or all of the shop's that have something to search.

    Raises
    ------
    ContractError
        There is no such model, or nothing of it to search.

    """
    able = [name for name in MODELS if model_class(name).space]
    for name in models or []:
        if name not in able:
            why = "it learns from validation itself" if name in MODELS else "there is no such model"
            raise ContractError(f"models: {name!r} cannot be tuned, {why}; expected some of {able}")
    return list(models or [name for name in night.shop.models if name in able])


def tune(
    night: Night,
    model: str,
    snapshot: str,
    vectors: str,
    minutes: float,
    told: Callable[[dict[str, Any]], None] = lambda trial: None,
) -> str:
    """Search a model's space for so many minutes and return the id of the report.

    The shop's own recipe is trained first, and its time counts; a trial that runs when time is up is given up at its
    next look at validation. ``told`` is called with each trial as it ends.

    Raises
    ------
    ContractError
        The model cannot be tuned, or the time is none.

    """
    tunable(night, [model])
    if not minutes > 0:
        raise ContractError(f"minutes: expected more than 0, got {minutes}")
    started = time.monotonic()
    shelf, windows = Shelf.open(night.lake, night.shop, snapshot, vectors), night.windows
    own = Recipe.of(model, night.shop.models.get(model, {}))
    lesson = shelf.lesson(windows)
    given = shelf.load(shelf.fit(own, windows)).validate(lesson)
    log.info("%s: the shop's recipe has ndcg@10 %.4f on validation", model, given.mean())
    deadline = started + 60 * minutes
    trials: list[dict[str, Any]] = []

    def objective(trial: "optuna.Trial") -> float:
        looks = itertools.count(1)

        def watch(found: float) -> None:
            trial.report(found, next(looks))
            if trial.should_prune() or time.monotonic() > deadline:
                raise optuna.TrialPruned

        sampled = {name: _suggest(trial, name, domain) for name, domain in model_class(model).space.items()}
        learned = _model(_recipe(own, sampled)).fit(replace(lesson, watch=watch))
        values = learned.validate(lesson)
        trial.set_user_attr("gain", float((values - given).mean()))
        trial.set_user_attr("beats", beats(values, given))
        return float(values.mean())

    def ended(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
        recipe = _recipe(own, trial.params)
        described = _described(trial, recipe, time.monotonic() - started)
        trials.append(described)
        numbers = {name: described[name] for name in ("ndcg@10", "gain", "seconds") if described[name] is not None}
        night.tracking.log_trial(night.name, recipe, numbers, {"state": described["state"]})
        log.info("%s: %s", model, _line(described, deadline - time.monotonic()))
        told(described)
        if deadline - time.monotonic() < min(trial["seconds"] for trial in trials):
            study.stop()

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(night, model, snapshot, vectors, own)
    if (left := deadline - time.monotonic()) > 0:
        study.optimize(objective, timeout=left, catch=(Exception,), callbacks=[ended])
    found = _decide(night, own, study, trials)
    report = {
        "model": model,
        "as_of": night.as_of,
        "snapshot": snapshot,
        "minutes": minutes,
        "seconds": time.monotonic() - started,
        "given": {"recipe": own.text, "ndcg@10": float(given.mean()), "customers": len(given)},
        **found,
        "trials": trials,
    }
    return _write(night, report)


def _recipe(own: Recipe, params: Mapping[str, Any]) -> Recipe:
    """Return the shop's recipe with what a trial sets, numbers to three digits: people are to read it."""
    read = {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in params.items()}
    return Recipe.of(own.model, {**own.config, **read})


def _model(recipe: Recipe) -> Model:
    return model_class(recipe.model)(model_class(recipe.model).Config(**recipe.config))


def _suggest(trial: "optuna.Trial", name: str, domain: Between | tuple[Any, ...]) -> Any:
    if isinstance(domain, tuple):
        return trial.suggest_categorical(name, domain)
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return trial.suggest_int(name, domain.low, domain.high, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def _study(night: Night, model: str, snapshot: str, vectors: str, own: Recipe) -> "optuna.Study":
    """Return tonight's study of a model, the best trials of the one before it waiting in it.

    The same night again goes on where it stopped. All studies of a home stand in one journal, ``tuning.journal``.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    home = Settings().home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(home / "tuning.journal")))
    inputs = {"recipe": own.text, "snapshot": snapshot, "vectors": vectors, "fit_end": night.windows.fit_end}
    name = f"{model} {night.name} {fingerprint(inputs)}"
    known = [study for study in optuna.get_all_study_summaries(storage) if study.study_name.startswith(f"{model} ")]
    earlier = [study for study in known if study.study_name != name and study.datetime_start]
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
    )
    study.sampler = optuna.samplers.TPESampler(seed=night.instant.toordinal() + len(study.trials))
    if earlier and not study.trials:
        last = max(earlier, key=lambda one: one.datetime_start or 0)
        for trial in _complete(optuna.load_study(storage=storage, study_name=last.study_name))[:REMEMBERED]:
            study.enqueue_trial(trial.params, skip_if_exists=True)
    return study


def _complete(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Return the trials that came to an end, the best first."""
    from optuna.trial import TrialState

    return sorted(study.get_trials(states=[TrialState.COMPLETE]), key=lambda trial: -(trial.value or 0))


def _decide(night: Night, own: Recipe, study: "optuna.Study", trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Let the best trial enter as challenger if it beats the shop's recipe; a challenger that no longer does leaves."""
    best = next((trial for trial in _complete(study) if trial.user_attrs["beats"]), None)
    old = night.tracking.challengers().get(own.model)
    if best:
        recipe = _recipe(own, best.params)
        reason = f"{best.user_attrs['gain']:+.4f} ndcg@10 on validation over {own.text}"
        night.tracking.challenge(night.name, recipe, reason)
        log.info("%s: enters as challenger, %s", recipe.text, reason)
        return {"challenger": recipe.text, "ndcg@10": best.value, "gain": best.user_attrs["gain"]}
    if old and any(trial["recipe"] == old.text and trial["state"] == "complete" for trial in trials):
        night.tracking.withdraw(own.model)
        log.info("%s: challenges no longer, it does not beat %s", old.text, own.text)
    log.info("%s: no trial beats the shop's recipe by more than chance; nothing enters", own.model)
    return {"challenger": None, "ndcg@10": None, "gain": None}


def _described(trial: "optuna.trial.FrozenTrial", recipe: Recipe, ended: float) -> dict[str, Any]:
    """Return JSON values; ``ndcg@10`` and ``gain`` are None where the trial was given up, ``ended`` in seconds."""
    duration = trial.duration
    return {
        "number": trial.number,
        "recipe": recipe.text,
        "params": {name: recipe.config[name] for name in trial.params},
        "state": {"PRUNED": "given up", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        "ndcg@10": trial.value if trial.state.name == "COMPLETE" else None,
        "gain": trial.user_attrs.get("gain"),
        "beats": trial.user_attrs.get("beats", False),
        "seconds": duration.total_seconds() if duration else 0.0,
        "ended": ended,
    }


def _line(trial: dict[str, Any], left: float) -> str:
    value = f"ndcg@10 {trial['ndcg@10']:.4f} ({trial['gain']:+.4f})" if trial["ndcg@10"] is not None else trial["state"]
    return f"trial {trial['number']}: {value} in {trial['seconds']:.0f} s, {max(left, 0):.0f} s left: {trial['params']}"


def _write(night: Night, report: dict[str, Any]) -> str:
    model, given = report["model"], report["given"]["ndcg@10"]
    entry = f"tunings/{model}-{fingerprint(report)}"
    with night.lake.create(entry, {"model": model, "as_of": night.as_of, "challenger": report["challenger"]}) as folder:
        (folder / "tuning.json").write_text(json.dumps(report, indent=1) + "\n")
        plot_search(report["trials"], given, f"search of {model}, {night.name}", folder / "tuning.png")
    numbers = {"given ndcg@10": given, "trials": float(len(report["trials"])), "seconds": report["seconds"]}
    if report["challenger"]:
        numbers |= {"best ndcg@10": report["ndcg@10"], "gain": report["gain"]}
    folder = night.lake.path(entry)
    night.tracking.log_search(night.name, model, numbers, [folder / "tuning.json", folder / "tuning.png"])
    done = [trial for trial in report["trials"] if trial["state"] == "complete"]
    best = f"{np.max([trial['ndcg@10'] for trial in done]):.4f}" if done else "none"
    log.info(
        "%s: %d trials (%d to their end) in %.0f s; ndcg@10 given %.4f, best %s; challenger: %s",
        *(model, len(report["trials"]), len(done), report["seconds"], given, best, report["challenger"] or "none"),
    )
    return entry
