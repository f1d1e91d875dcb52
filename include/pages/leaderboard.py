"""The leaderboard over time: a line a recipe, a point a night, drawn by us as SVG, so that no script is needed."""

from datetime import datetime
from math import ceil, floor, isnan, log10
from typing import Any

from recsys_tasks.contract import PLACEMENT_VIEW
from recsys_tasks.models import BASELINES
from recsys_tasks.page import MEANING
from recsys_tasks.recipe import Recipe

WIDTH, HEIGHT = 780, 320
"""Pixels of the frame; names stand to the right of it."""
LINE = 15
COLOURS = 6
DATES = 8


def metrics(nights: list[dict[str, Any]]) -> list[str]:
    """Return the names of what the nights measured, in the order of the newest."""
    return list(dict.fromkeys(name for night in nights for row in night["rows"] for name in row["values"]))


def once_a_night(nights: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one report of each night, oldest first: the newest written, before any dry run."""
    kept: dict[str, dict[str, Any]] = {}
    for night in sorted(nights, key=lambda night: (night["version"] is not None, night["written"])):
        kept[night["as_of"]] = night
    return sorted(kept.values(), key=lambda night: datetime.fromisoformat(night["as_of"]))


def views(nights: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return what is drawn of each view: ``lines`` and ticks in pixels; ``rows`` of the table, newest night first."""
    return [_view(nights, view, placement, metric) for placement, view in PLACEMENT_VIEW.items()]


def _view(nights: list[dict[str, Any]], view: str, placement: str, metric: str) -> dict[str, Any]:
    cells: dict[str, list[dict[str, Any] | None]] = {}
    intervals: dict[str, Any] = {}
    for n, night in enumerate(nights):
        for row in night["rows"]:
            value = row["values"].get(metric, float("nan"))
            if row["view"] == view and not isnan(value):
                serves = night["champions"].get(placement) == row["recipe"]
                points = cells.setdefault(row["recipe"], [None] * len(nights))
                points[n] = {"value": value, "serves": serves, "text": _date(night), "as_of": night["as_of"]}
                if n == len(nights) - 1:
                    intervals[row["recipe"]] = row["interval"].get(metric)
    champion = nights[-1]["champions"].get(placement) if nights else None
    others = [recipe for recipe in sorted(cells) if recipe not in (*BASELINES, champion)]
    rows = [
        {
            "recipe": recipe,
            "label": Recipe(recipe).label,
            "serves": recipe == champion,
            "kind": "champion-line"
            if recipe == champion
            else "baseline"
            if recipe in BASELINES
            else f"model-{others.index(recipe) % COLOURS}",
            "interval": intervals.get(recipe),
            "cells": found[::-1],
        }
        for recipe, found in cells.items()
    ]
    rows.sort(key=lambda row: [-cell["value"] if cell else float("inf") for cell in row["cells"]])
    shown = [point["value"] for found in cells.values() for point in found if point]
    up = ticks(min(shown), max(shown)) if shown else []
    at = _scale([datetime.fromisoformat(night["as_of"]).timestamp() for night in nights])
    lines = [_line(row, up, at) for row in rows]
    _spread(lines)
    every = ceil(len(nights) / DATES) or 1
    return {
        "name": view,
        "meaning": MEANING[view],
        "placement": placement,
        "rows": rows,
        "nights": [_date(night) for night in reversed(nights)],
        "lines": sorted(lines, key=lambda line: line["kind"] == "champion-line"),  # drawn last, so above the others
        "up": [(_height(tick, up), tick) for tick in up],
        "across": [(at[n], _date(night)) for n, night in enumerate(nights) if (len(nights) - 1 - n) % every == 0],
    }


def _line(row: dict[str, Any], up: list[float], at: list[float]) -> dict[str, Any]:
    points = [
        {**cell, "x": x, "y": _height(cell["value"], up)}
        for x, cell in zip(at, reversed(row["cells"]), strict=True)
        if cell
    ]
    return {"kind": row["kind"], "label": row["label"], "points": points, "label_y": points[-1]["y"]}


def _scale(times: list[float]) -> list[float]:
    """Where the nights stand, by their time; a single one in the middle."""
    if len(times) < 2:
        return [WIDTH / 2] * len(times)
    return [(time - times[0]) / (times[-1] - times[0]) * WIDTH for time in times]


def _height(value: float, up: list[float]) -> float:
    return HEIGHT - (value - up[0]) / (up[-1] - up[0]) * HEIGHT


def _spread(lines: list[dict[str, Any]]) -> None:
    """Move the names apart that would stand on each other, down first and then up from the frame's end."""
    lines.sort(key=lambda line: line["label_y"])
    floor_ = -float("inf")
    for line in lines:
        floor_ = line["label_y"] = max(line["label_y"], floor_ + LINE)
    ceiling = HEIGHT + LINE
    for line in reversed(lines):
        line["label_y"] = min(line["label_y"], ceiling)
        ceiling = line["label_y"] - LINE


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from one at or below the lowest value to one at or above the highest, at most eight."""
    span = (high - low) or abs(high) / 10 or 1.0
    power = 10.0 ** floor(log10(span))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if span <= 6 * step)
    first, last = floor(round(low / step, 6)), ceil(round(high / step, 6))
    if first == last:
        first, last = first - 1, last + 1
    return [round(n * step, 12) for n in range(first, last + 1)]


def _date(night: dict[str, Any]) -> str:
    at = datetime.fromisoformat(night["as_of"])
    return f"{at:%Y-%m-%d}" if not (at.hour or at.minute) else f"{at:%m-%d %H:%M}"
