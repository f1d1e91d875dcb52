"""Step 4, evaluate: one leaderboard over the test window, read once a night.

Full catalogue, one global split by time, both views, per tier, 95 % intervals; beside every model stands by how much it
differs from the champions in office, which were trained tonight like itself. Reads the snapshot and tonight's models;
writes ``evaluations/<id>/leaderboard.json``, a plot, and ``<view>.parquet``: every customer's ndcg@10, a column a
recipe. A model that failed to train is named and left out.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_tasks.contract import EVERYONE, TIERS, USER_ID, VIEWS
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.lake import fingerprint, write_table
from recsys_tasks.metrics import CUTOFFS, beyond_accuracy, bootstrap, paired, per_user
from recsys_tasks.models import Model
from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.shop import Gate
from recsys_tasks.simulation.gate import Evidence, Verdict, gate
from recsys_tasks.simulation.off_policy import Estimate
from recsys_tasks.snapshot import Interactions, tiers
from recsys_tasks.split import Truth, Windows, truth
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)

CLICKS = ("view", "click")
"""Types of events that an agent may not do without for the sake of others."""


@timed
def evaluate(night: Night, snapshot: str, vectors: str) -> str:
    """Score tonight's models on the test window and return the evaluation's id.

    Raises
    ------
    TrainingError
        No model was trained.
    ContractError
        Nobody did the target event in the test window.

    """
    lake, shop, windows = night.lake, night.shop, night.windows
    shelf = Shelf.open(lake, shop, snapshot, vectors)
    ids = shelf.model_ids(night.recipes, windows.fit_end, night.starts)
    models = {recipe: model_id for recipe, model_id in ids.items() if lake.has(model_id)}
    failed = sorted(set(ids) - set(models))
    if not models:
        raise TrainingError(f"none of {night.recipes} was trained; the logs of the train tasks say why")
    for recipe in failed:
        log.warning("%s was not trained and is left out tonight; the log of its train task says why", recipe)
    asked = {"champions": night.champions, "metric": shop.gate.metric, "confidence": shop.gate.confidence}
    described = {"models": models, "failed": failed, **asked}
    evaluation = f"evaluations/{fingerprint({**described, 'test': windows.as_of})}"
    if not lake.has(evaluation):
        start = windows.validation_end
        candidates = shelf.catalog.candidates(start)
        loaded = {recipe: shelf.load(model_id) for recipe, model_id in models.items()}
        rows: list[dict[str, Any]] = []
        customers: dict[str, pa.Table] = {}
        for view in VIEWS:
            known = truth(shelf.interactions, start, windows.as_of, view)
            new = truth(shelf.interactions, start, windows.as_of, view, returning=False)
            tier = tiers(known.past.active_days, shop.tiers.loyal, shop.tiers.warm)[known.users]
            of_recipe: dict[str, dict[str, np.ndarray]] = {}
            of_strangers: dict[str, dict[str, np.ndarray]] = {}
            whole: dict[str, dict[str, Any]] = {}
            for recipe in sorted(models, key=lambda text: (text != "popular", Recipe(text).stage)):
                started = time.monotonic()
                ranked = _lists(loaded[recipe], known, candidates)
                seconds = shelf.seconds(models[recipe]) + time.monotonic() - started
                values = of_recipe[recipe] = per_user(ranked, known.items)
                beyond = beyond_accuracy(
                    ranked, np.diff(known.past.bought.tocsc().indptr), known.past.n_users, int(candidates.sum())
                )
                report = loaded[recipe].report()
                whole[recipe] = {"beyond_accuracy": beyond, "report": report, "seconds": seconds}
                if loaded[recipe].gated:
                    (supervised,) = lake.manifest(models[recipe])["sources"].values()
                    before = next(text for text, entry in models.items() if entry == supervised)
                    both, lift = (loaded[recipe], loaded[before]), values["ndcg@10"] - of_recipe[before]["ndcg@10"]
                    clicks = _lift_of_clicks(*both, shelf.interactions, windows, view, candidates)
                    whole[recipe]["gate"] = asdict(judged(report, lift, clicks))
                    log.info("%s, %s: %s", recipe, view, whole[recipe]["gate"]["reason"])
                if len(new.users):
                    strangers = np.broadcast_to(
                        _lists(loaded[recipe], new, candidates, anonymous=True), (len(new.users), 50)
                    )
                    of_strangers[recipe] = per_user(strangers, new.items)
                log.info("%s, %s: ndcg@10 %.4f", recipe, view, values["ndcg@10"].mean())
            scores = {recipe: values["ndcg@10"].astype(np.float32) for recipe, values in of_recipe.items()}
            customers[view] = pa.table({USER_ID: pa.array(known.past.user_ids[known.users], pa.string()), **scores})
            found = board(view, tier, of_recipe, of_strangers, night.champions, shop.gate)
            rows += [row | (whole[row["recipe"]] if row["tier"] == EVERYONE else {}) for row in found]
        leaderboard = {"rows": rows, **described, "as_of": night.as_of, "snapshot": snapshot}
        with lake.create(evaluation, {**described, "snapshot": snapshot}) as folder:
            (folder / "leaderboard.json").write_text(json.dumps(leaderboard, indent=1) + "\n")
            plot(rows, folder / "leaderboard.png")
            for view, table in customers.items():
                write_table(table, folder / f"{view}.parquet")
    rows = json.loads((lake.path(evaluation) / "leaderboard.json").read_text())["rows"]
    for recipe, model_id in models.items() if night.tracked else ():
        # told of already, unless MLflow was away when it was trained
        night.tracking.log_training(night.name, Recipe(recipe), model_id, snapshot, lake.path(model_id))
        night.tracking.log_evaluation(
            night.name, Recipe(recipe), flat_metrics(rows, recipe), lake.path(evaluation) / "leaderboard.png"
        )
    return evaluation


def board(
    view: str,
    tier: np.ndarray,
    values: Mapping[str, Mapping[str, np.ndarray]],
    of_strangers: Mapping[str, Mapping[str, np.ndarray]],
    champions: Mapping[str, str],
    gate: Gate,
) -> list[dict[str, Any]]:
    """Return the rows of a view: of everyone, of each tier and of those without a history.

    Parameters
    ----------
    view
        ``all`` or ``discovery``.
    tier
        (U,) tier of each customer.
    values
        Recipe -> metric -> (U,) its value for each customer; first those of ``popular``, or what stands for it.
    of_strangers
        The same for customers without a history; they are not compared with ``popular``.
    champions
        Placement -> recipe in office. Each row has ``over_champion``: placement -> its difference in the gate's metric.
        One that was not trained tonight is compared with nobody, and none with itself.
    gate
        What is compared, and how surely.

    """
    groups = {EVERYONE: np.ones(len(tier), bool)} | {name: tier == name for name in TIERS}
    rows = []
    for name, members in groups.items():
        if members.any():
            part = {recipe: {m: value[members] for m, value in of.items()} for recipe, of in values.items()}
            rows += _rows(view, name, part, next(iter(part.values())), champions, gate)
    return rows + (_rows(view, "anonymous", of_strangers, None, champions, gate) if of_strangers else [])


def _rows(
    view: str,
    tier: str,
    values: Mapping[str, Mapping[str, np.ndarray]],
    popular: Mapping[str, np.ndarray] | None,
    champions: Mapping[str, str],
    gate: Gate,
) -> list[dict[str, Any]]:
    """Return a row a recipe, of the same customers; all are resampled at once."""
    table = {(recipe, name): value for recipe, of in values.items() for name, value in of.items()}
    for recipe, of in values.items():
        for name in ("ndcg@10", gate.metric):
            table[recipe, f"{name} over popular"] = of[name] - (popular or of)[name]
    interval = bootstrap(table)
    beside: dict[str, dict[str, Any]] = {recipe: {} for recipe in values}
    for placement, champion in champions.items():
        others = {recipe: of[gate.metric] for recipe, of in values.items() if recipe != champion}
        if champion in values and others:
            found = paired(others, values[champion][gate.metric], gate.confidence, len(others))
            for recipe, difference in found.items():
                beside[recipe][placement] = {"champion": champion, "tries": len(others), **difference}
    return [
        {
            "recipe": recipe,
            "view": view,
            "tier": tier,
            "users": len(of["ndcg@10"]),
            "metrics": {name: float(value.mean()) for name, value in of.items()},
            "interval": {name: list(ends) for (of_recipe, name), ends in interval.items() if of_recipe == recipe},
            "over_champion": beside[recipe],
        }
        for recipe, of in values.items()
    ]


def flat_metrics(rows: list[dict[str, Any]], recipe: str) -> dict[str, float]:
    """Return the metrics of a recipe as MLflow wants them: ``{"all/ndcg@10": 0.3, "all/loyal/ndcg@10": ...}``."""
    found: dict[str, float] = {}
    for row in rows:
        if row["recipe"] == recipe:
            head = row["view"] if row["tier"] == EVERYONE else f"{row['view']}/{row['tier']}"
            values = row["metrics"] if row["tier"] == EVERYONE else {"ndcg@10": row["metrics"]["ndcg@10"]}
            found |= {f"{head}/{name}": value for name, value in (values | row.get("beyond_accuracy", {})).items()}
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw ndcg@10 of every model with its interval, a panel a view; baselines are grey."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from recsys_tasks.models import BASELINES

    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, view in zip(figure.subplots(1, len(VIEWS)), VIEWS, strict=True):
            shown = [row for row in rows if row["view"] == view and row["tier"] == EVERYONE]
            shown.sort(key=lambda row: row["metrics"]["ndcg@10"])
            value = np.array([row["metrics"]["ndcg@10"] for row in shown])
            ends = np.array([row["interval"]["ndcg@10"] for row in shown])
            colours = ["#9aa0a6" if row["recipe"] in BASELINES else "#1a73e8" for row in shown]
            axes.barh(range(len(shown)), value, color=colours, height=0.6)
            axes.set_yticks(range(len(shown)), [Recipe(row["recipe"]).label for row in shown])
            axes.errorbar(
                value, range(len(shown)), xerr=np.abs(ends.T - value), fmt="none", ecolor="#202124", capsize=3, lw=1
            )
            axes.set_title(f"{view}: ndcg@10 on the test window, 95 % interval", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def judged(report: Mapping[str, float], lift: np.ndarray, clicks: Estimate | None) -> Verdict:
    """Return what the gate says of an agent, of its own report and (n_customers,) ndcg@10 over what it re-orders."""

    def simulated(name: str) -> Estimate:
        return Estimate(*(report[f"simulated/{name}{end}"] for end in ("", " low", " high")))

    return gate(Evidence(simulated("lift"), _mean(lift), clicks, control=simulated("lift over control")))


def _lift_of_clicks(
    model: Model, supervised: Model, interactions: Interactions, windows: Windows, view: str, candidates: np.ndarray
) -> Estimate | None:
    """Return the lift of ndcg@10 of views and clicks, as a share of the supervised lists'; None without any."""
    try:
        known = truth(interactions, windows.validation_end, windows.as_of, view, of=CLICKS)
    except ContractError:
        return None
    new, old = (per_user(_lists(one, known, candidates), known.items)["ndcg@10"] for one in (model, supervised))
    return _mean((new - old) / max(old.mean(), 1e-9))


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap({"": values})[""])


def _lists(model: Model, known: Truth, candidates: np.ndarray, anonymous: bool = False) -> np.ndarray:
    users = np.array([-1]) if anonymous else known.users
    ranked = model.recommend(known.past, users, max(CUTOFFS), candidates, exclude_seen=known.exclude_seen)
    missing = max(CUTOFFS) - ranked.items.shape[1]
    return np.pad(ranked.items, ((0, 0), (0, missing)), constant_values=-1)
