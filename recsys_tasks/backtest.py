"""Backtest: any set of models over rolling dates, each trained and scored as the night of that date would have.

A date is a night up to evaluate that publishes nothing: its own snapshot, the same windows, the same code. It sees what
was known then and nothing later. A configuration that was found on later data knows of them, so champions and
challengers are left out: only the shop file's recipes, or those asked for, are trained. Where dates lie closer than the
test window is long, windows overlap; the intervals of the mean draw customers, each with all of their dates.

Reads the shop's log; writes what nights write, and ``backtests/<id>/`` with ``backtest.json``, ``.md`` and ``.png``.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recsys_tasks.contract import EVERYONE, USER_ID, VIEWS
from recsys_tasks.curves import plot_dates
from recsys_tasks.embed import embed
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.evaluate import evaluate
from recsys_tasks.ingest import ingest
from recsys_tasks.lake import Lake, fingerprint
from recsys_tasks.metrics import bootstrap_sums
from recsys_tasks.models import BASELINES, MODELS
from recsys_tasks.night import Night, nights_between, plan
from recsys_tasks.recipe import Recipe
from recsys_tasks.shop import Shop
from recsys_tasks.train import train_all

log = logging.getLogger(__name__)

METRICS = ("ndcg@10", "recall@10", "coverage@10")
MEAN = "mean"
"""What the rows over all dates have in place of a date."""


def nights(shop: str, first: str, last: str, every: int = 7, models: Sequence[str] | None = None) -> list[Night]:
    """Return the nights of a backtest, oldest first.

    Parameters
    ----------
    shop
        Name or path of a shop file.
    first, last
        ISO 8601 dates, for midnight in UTC, or instants with zone; both may be nights.
    every
        Days from one date to the next.
    models
        Beside the baselines: names, for the shop file's recipes, or recipes such as ``ease {"max_items": 4000}``; None
        for all of the shop file's.

    Raises
    ------
    ContractError
        A date is none, lies before the first one or after the end of the log; ``every`` is no number of days; there is
        no such model.

    """
    if every < 1:
        raise ContractError(f"every: expected a number of days from 1 on, got {every}; 7 makes a date a week")
    instants = nights_between(first, last)[::every]
    night = replace(plan(shop, instants[0].isoformat(), instants[0], publish=False), tracked=False, champions={})
    until = min(datetime.now(UTC), night.shop.archive_until or datetime.max.replace(tzinfo=UTC))
    if instants[-1] > until:
        raise ContractError(
            f"to: {instants[-1]:%Y-%m-%d} lies after {until.isoformat(timespec='seconds')}, until when there can be "
            "events to score lists on; expected an earlier date"
        )
    of_shop = [_recipe(night.shop, name) for name in (*BASELINES, *(models or night.shop.models))]
    recipes = list(dict.fromkeys(recipe.text for recipe in of_shop))
    return [replace(night, as_of=instant.isoformat(), recipes=recipes) for instant in instants]


def _recipe(shop: Shop, text: str) -> Recipe:
    name, _, config = text.strip().partition(" ")
    if name not in MODELS:
        raise ContractError(f"models: there is no model {name!r}; expected some of {list(MODELS)}")
    try:
        given = json.loads(config) if config else shop.models.get(name, {})
    except ValueError as error:
        example = 'ease {"max_items": 4000}'
        raise ContractError(f"models: {config!r} is no JSON: {error}; write a recipe like {example}") from error
    return Recipe.of(name, given)


def score(night: Night) -> str:
    """Make a date's night up to evaluate, or find it made, and return the evaluation's id.

    Raises
    ------
    ContractError
        The log does not reach this date, or not far enough back from it.

    """
    try:
        snapshot = ingest(night)
        vectors = embed(night, snapshot)
        train_all(night, snapshot, vectors)
        evaluation = evaluate(night, snapshot, vectors)
    except ContractError as error:
        raise ContractError(f"the date {night.name} cannot be scored: {error}; or choose other dates") from error
    baselines = _baselines(night.shop)
    for row in _rows_of(night, evaluation):
        if row["recipe"] not in baselines:
            head = f"{night.name}, {row['view']}, {row['recipe']}"
            log.info("%s: ndcg@10 %.4f, of the best baseline %s", head, row["ndcg@10"], _ratio(row))
    return evaluation


def summarise(nights: Sequence[Night], evaluations: Sequence[str]) -> str:
    """Write tables and plot of a backtest, tell MLflow of it, and return its id.

    Raises
    ------
    TrainingError
        No baseline was trained on one of the dates.

    """
    lake, shop = nights[0].lake, nights[0].shop
    dates = [night.name for night in nights]
    of_dates = [_rows_of(night, evaluation) for night, evaluation in zip(nights, evaluations, strict=True)]
    rows = [row for view in VIEWS for row in _means(lake, evaluations, of_dates, view)]
    rows += chain.from_iterable(of_dates)
    failed = {date: _board(lake, evaluation)["failed"] for date, evaluation in zip(dates, evaluations, strict=True)}
    baselines = _baselines(shop)
    content = {
        "shop": shop.name,
        "dates": dates,
        "windows": shop.windows.model_dump(),
        "recipes": nights[0].recipes,
        "baselines": baselines,
        "rows": rows,
        "failed": {date: recipes for date, recipes in failed.items() if recipes},
        "evaluations": dict(zip(dates, evaluations, strict=True)),
    }
    entry = f"backtests/{fingerprint(content)}"
    if not lake.has(entry):
        with lake.create(entry, {key: content[key] for key in ("shop", "dates", "recipes", "evaluations")}) as folder:
            (folder / "backtest.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
            (folder / "backtest.md").write_text(page(content))
            plot_dates(
                rows, baselines, f"{shop.name}: ndcg@10 on the test window before each date", folder / "backtest.png"
            )
    folder = lake.path(entry)
    described = {"dates": len(dates), "first": dates[0], "last": dates[-1]}
    described |= {name: recipe for recipe, name in _names(content).items()}
    files = [folder / f"backtest.{kind}" for kind in ("json", "md", "png")]
    nights[0].tracking.log_backtest(f"{_span(dates)} {entry}", described, _metrics(content), files)
    for line in page(content).splitlines():
        if f"| {MEAN} " in line:
            log.info("%s", line)
    log.info("%s: %d dates, %d models; MLflow has it too", folder, len(dates), len(nights[0].recipes))
    return entry


def page(content: dict[str, Any]) -> str:
    """Return tables a person reads, as Markdown: the means first."""
    lengths = content["windows"]
    lines = [f"# Backtest of {content['shop']}, {_span(content['dates'])}", ""]
    lines += [
        f"{len(content['dates'])} dates. Each sees what was known on it: fit, {lengths['validation_days']} days of "
        f"validation, {lengths['test_days']} days of test, which end on it. Full catalogue, 95 % intervals over "
        "customers. The ratio is to the baseline that was best on the date (in the mean: mean of the dates' ratios).",
        "",
        "![ndcg@10 over dates](backtest.png)",
    ]
    for view in VIEWS:
        lines += ["", f"## {view}", ""]
        lines.append(
            "| date | recipe | ndcg@10 | 95 % | recall@10 | coverage@10 | ratio to best baseline | customers |"
        )
        lines.append("|---|---|---|---|---|---|---|---|")
        shown = [row for row in content["rows"] if row["view"] == view]
        for row in sorted(shown, key=lambda row: (row["date"] != MEAN, row["date"], -row["ndcg@10"])):  # means first
            low, high = row["interval"]
            name = row["recipe"].replace("|", "\\|") + ("" if row["recipe"] in content["baselines"] else " *")
            lines.append(
                f"| {row['date'][:10]} | {name} | {row['ndcg@10']:.4f} | {low:.4f} to {high:.4f} | "
                f"{row['recall@10']:.4f} | {row['coverage@10']:.2%} | {_ratio(row)} | {row['customers']:,} |"
            )
    lines += ["", "\\* beside the baselines of every night"]
    lines += [f"{date}: {', '.join(failed)} failed to train" for date, failed in content["failed"].items()]
    return "\n".join([*lines, ""])


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None or row["ratio interval"] is None:
        return "none: too few hits"
    low, high = row["ratio interval"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})" + (f" {row['best']}" if row["best"] else "")


def _board(lake: Lake, evaluation: str) -> dict[str, Any]:
    return json.loads((lake.path(evaluation) / "leaderboard.json").read_text())


def _baselines(shop: Shop) -> list[str]:
    return [_recipe(shop, name).text for name in BASELINES]


def _rows_of(night: Night, evaluation: str) -> list[dict[str, Any]]:
    """Return a row a view and recipe of one date; ``ratio`` is None where the best baseline hits nothing."""
    lake, baselines, found = night.lake, _baselines(night.shop), []
    rows = [row for row in _board(lake, evaluation)["rows"] if row["tier"] == EVERYONE]
    for view in VIEWS:
        of_view = {row["recipe"]: row for row in rows if row["view"] == view}
        there = [recipe for recipe in baselines if recipe in of_view]
        if not there:
            raise TrainingError(f"{night.name}: none of {baselines} was trained, so there is nothing to compare with")
        best = max(there, key=lambda recipe: of_view[recipe]["metrics"]["ndcg@10"])
        against = of_view[best]["metrics"]["ndcg@10"]
        table = pq.read_table(lake.path(evaluation) / f"{view}.parquet")
        drawn = bootstrap_sums(np.stack([table[recipe].to_numpy() for recipe in (*of_view, best)], 1))
        for n, (recipe, row) in enumerate(of_view.items()):
            value = row["metrics"]["ndcg@10"]
            found.append(
                {
                    "date": night.name,
                    "view": view,
                    "recipe": recipe,
                    "customers": row["users"],
                    "ndcg@10": value,
                    "interval": row["interval"]["ndcg@10"],
                    "recall@10": row["metrics"]["recall@10"],
                    "coverage@10": row["beyond_accuracy"]["catalog_coverage@10"],
                    "best": best,
                    "ratio": value / against if against else None,
                    "ratio interval": _interval(_divided(drawn[:, n], drawn[:, -1])),
                }
            )
    return found


def _means(
    lake: Lake, evaluations: Sequence[str], of_dates: Sequence[Sequence[dict[str, Any]]], view: str
) -> list[dict[str, Any]]:
    """Return a row a recipe of a view: its means over the dates that it was trained on.

    For the intervals a customer is drawn with all dates at once: the same people buy on many of them.
    """
    rows_of = [{row["recipe"]: row for row in rows if row["view"] == view} for rows in of_dates]
    recipes = list(dict.fromkeys(chain.from_iterable(rows_of)))
    tables = [pq.read_table(lake.path(evaluation) / f"{view}.parquet") for evaluation in evaluations]
    customers = np.unique(np.concatenate([table[USER_ID].to_numpy() for table in tables]).astype(str))
    values = np.zeros((len(customers), len(tables), len(recipes) + 1), np.float32)  # the last one counts customers
    for date, table in enumerate(tables):
        at = np.searchsorted(customers, table[USER_ID].to_numpy().astype(str))
        values[at, date, -1] = 1
        for n, recipe in enumerate(recipes):
            if recipe in rows_of[date]:
                values[at, date, n] = table[recipe].to_numpy()
    drawn = bootstrap_sums(values.reshape(len(customers), -1)).reshape(-1, *values.shape[1:])
    found = []
    for n, recipe in enumerate(recipes):
        there = [date for date, rows in enumerate(rows_of) if recipe in rows]
        rows = [rows_of[date][recipe] for date in there]
        best = [recipes.index(row["best"]) for row in rows]
        sums = drawn[:, there, n]  # (resamples, dates)
        ratios = [row["ratio"] for row in rows]
        found.append(
            {
                "date": MEAN,
                "view": view,
                "recipe": recipe,
                "dates": len(there),
                "customers": int(values[:, there, -1].any(1).sum()),
                **{name: float(np.mean([row[name] for row in rows])) for name in METRICS},
                "interval": _interval(_divided(sums, drawn[:, there, -1]).mean(1)),
                "best": None,
                "ratio": None if None in ratios else float(np.mean(ratios)),
                "ratio interval": _interval(_divided(sums, drawn[:, there, best]).mean(1)),
            }
        )
    return found


def _divided(sums: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(sums, by, out=np.full_like(sums, np.nan), where=by > 0)


def _interval(draws: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval, None where it cannot be told."""
    return None if np.isnan(draws).any() else np.quantile(draws, [0.025, 0.975]).tolist()


def _metrics(content: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return name, value and step as MLflow draws them: a step a date, the means under names of their own."""
    names, found = _names(content), []
    for row in content["rows"]:
        head = ("mean/" if row["date"] == MEAN else "") + f"{row['view']}/{names[row['recipe']]}"
        step = 0 if row["date"] == MEAN else content["dates"].index(row["date"])
        numbers = {"ndcg@10": row["ndcg@10"], "recall@10": row["recall@10"], "ratio": row["ratio"]}
        found += [(f"{head}/{name}", value, step) for name, value in numbers.items() if value is not None]
    return found


def _names(content: dict[str, Any]) -> dict[str, str]:
    """Return recipe -> a name that MLflow takes: the model's, with a number from the second recipe of a model on."""
    models: Counter[str] = Counter()
    found = {}
    for recipe in content["recipes"]:
        model = Recipe(recipe).model
        models[model] += 1
        found[recipe] = model if models[model] == 1 else f"{model} {models[model]}"
    return found


def _span(dates: Sequence[str]) -> str:
    return f"{dates[0][:10]} to {dates[-1][:10]}"
