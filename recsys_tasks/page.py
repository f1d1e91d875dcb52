"""The morning report as one page: ``report.json`` in, HTML out that asks no host for anything and runs no script.

What is drawn and how it looks is in ``page.html``; here is what a person is told first, and where things lie.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import cache
from itertools import takewhile
from math import floor, isnan, log10, sqrt
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from recsys_tasks.contract import EVERYONE, PLACEMENT_VIEW, TIERS, VIEWS
from recsys_tasks.models import BASELINES
from recsys_tasks.recipe import Recipe
from recsys_tasks.shop import Dial

METRIC = "ndcg@10"
MEANING = {"all": "what they buy next, repeats count", "discovery": "what they buy for the first time"}
WIDTH, HEIGHT = 560, 300
"""Pixels of the scatter plot's frame."""
CHART = 150
"""Height of the plots over the nights."""
TRADED = {
    "catalog_coverage@10": "share of the catalogue in somebody's first ten",
    "diversity@10": "variety within a first ten (1 less the mean likeness of two)",
}
"""What the diversity dial buys, to the right of a plot."""
AMONG_WORST, AMONG_FAR = 5, 8
"""Categories, and statistics of the drift watch, that are shown at once."""
CHARACTER, LINE = 7.2, 14
"""Pixels that a character of a label is wide, and a line high."""
RISES = sorted(range(-8 * LINE, 9 * LINE, LINE), key=abs)
"""Where a label may stand, from level with its point to ever further away."""


def render(report: dict[str, Any]) -> str:
    """Return the page of a night's report, the content of ``report.json``."""
    return _template().render(
        report=report,
        verdict=verdict(report),
        lag=span(datetime.fromisoformat(report["as_of"]) - datetime.fromisoformat(report["watermark"]))
        if report["watermark"]
        else None,
        placements=list(PLACEMENT_VIEW),
        views=[_view(report, view) for view in VIEWS if any(row["view"] == view for row in report["leaderboard"])],
        told=_told(report["leaderboard"]),
        metric=METRIC,
        frame=(WIDTH, HEIGHT),
        charts=_charts(report.get("series") or []),
        chart=(WIDTH, CHART),
        among_worst=AMONG_WORST,
        tradeoffs=[
            {"placement": placement, **_tradeoff(curve, report["diversity"]["max_loss"])}
            for placement, curve in (report.get("diversity") or {"curves": {}})["curves"].items()
        ],
        drift=_drift(report.get("drift") or {}),
        longest=max((step["seconds"] for step in report.get("steps") or []), default=1.0),
    )


def verdict(report: dict[str, Any]) -> dict[str, str]:
    """Return in ``kind`` (good, look or dry) and ``text`` whether last night can be left alone."""
    look = [_several(len(report["warnings"]), "warning"), _several(len(report["failed"]), "model that failed")]
    look += [f"rows of {table} that do not add up" for table, rows in report["counts"].items() if not _adds_up(rows)]
    found = " and ".join(filter(None, look))
    text = "Published" if report["version"] else "Not published, by request: what was current stays current"
    text += f"; look at {found}" if found else ", and nothing to look at" if report["version"] else ""
    return {"kind": "look" if found else "good" if report["version"] else "dry", "text": f"{text}."}


def span(time: timedelta) -> str:
    """Return a time in its two largest units.

    >>> span(timedelta(hours=8, minutes=51, seconds=3)), span(timedelta(seconds=19))
    ('8 h 51 min', '19 s')
    """
    parts: list[str] = []
    rest = int(time.total_seconds())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        n, rest = divmod(rest, size)
        parts += [f"{n} {unit}"] if n else []
    return " ".join(parts[:2]) or "0 s"


def _view(report: dict[str, Any], view: str) -> dict[str, Any]:
    """One view: its leaderboard, best first, the champion beside popular in each tier, and the scatter plot."""
    rows = [row for row in report["leaderboard"] if row["view"] == view]
    serves = {report["champions"][p]["recipe"]: p for p, v in PLACEMENT_VIEW.items() if v == view}
    board = [
        row
        | {"label": Recipe(row["recipe"]).label, "serves": serves.get(row["recipe"])}
        | {"kind": "champion" if row["recipe"] in serves else "baseline" if row["recipe"] in BASELINES else "model"}
        for row in sorted(rows, key=lambda row: (isnan(row["metrics"][METRIC]), -row["metrics"][METRIC]))
        if row["tier"] == EVERYONE
    ]
    tiers = [
        {
            "name": tier,
            "popular": next((row for row in rows if (row["recipe"], row["tier"]) == ("popular", tier)), None),
            "champion": champion,
        }
        for tier in TIERS
        for champion in [row for row in rows if row["recipe"] in serves and row["tier"] == tier]
    ]
    return {
        "name": view,
        "meaning": MEANING[view],
        "customers": max(row["users"] for row in rows),
        "board": board,
        "top": _top(board),
        "top_of_tiers": _top(row for tier in tiers for row in (tier["champion"], tier["popular"]) if row),
        "tiers": tiers,
        "champion": next((row["label"] for row in board if row["serves"]), None),
        "scatter": _scatter(board),
    }


def _top(rows: Iterable[dict[str, Any]]) -> float:
    """The value at which bars are as long as can be."""
    return max((end for row in rows if (end := row["interval"][METRIC][1]) > 0), default=1.0)


def _scatter(board: list[dict[str, Any]]) -> dict[str, Any]:
    """Root of coverage to the right, accuracy up: points, a place of its own for each label, and ticks."""
    drawn = [row for row in board if not isnan(row["metrics"][METRIC])]
    values = {row["recipe"]: (row["beyond_accuracy"]["catalog_coverage@10"], row["metrics"][METRIC]) for row in drawn}
    across, up = (_ticks(max(end)) for end in zip((0.0, 0.0), *values.values(), strict=True))
    at = {recipe: (sqrt(x / across[-1]) * WIDTH, HEIGHT - y / up[-1] * HEIGHT) for recipe, (x, y) in values.items()}
    taken = [(x - 6, x + 6, y) for x, y in at.values()]  # left and right end, and middle
    points: list[dict[str, Any]] = []
    for row in drawn:
        x, y = at[row["recipe"]]
        width = len(row["label"]) * CHARACTER
        places = [(left, y + rise) for rise in RISES for left in (x + 9, x - 9 - width) if 0 <= left < WIDTH - width]
        left, middle = next((place for place in places if _is_free(*place, width, taken)), (x + 9, y))
        taken.append((left, left + width, middle))
        side, end = ("start", left) if left > x else ("end", left + width)
        points.append({"label": row["label"], "kind": row["kind"], "x": x, "y": y})
        points[-1] |= {"side": side, "end": end, "middle": middle}
    return {
        "points": points,
        "across": [(sqrt(tick / across[-1]) * WIDTH, tick) for tick in across],
        "up": [(HEIGHT - tick / up[-1] * HEIGHT, tick) for tick in up],
    }


def _charts(series: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plots over the nights: ndcg@10 and revenue of what served, beside baselines, and how much of a list stayed."""
    nights = [datetime.fromisoformat(point["night"]) for point in series]
    did = {p: [((point["scored"] or {}).get("placements") or {}).get(p) for point in series] for p in PLACEMENT_VIEW}
    found = []
    for metric, title in ((METRIC, METRIC), ("revenue@10", "revenue captured@10")):
        for placement, points in did.items():
            lines = {"served": [one and one[metric] for one in points]}
            for name in ("popular", "repeat"):
                lines[name] = [one and one["baselines"][name][metric] for one in points]
            band = [one and one["interval"][metric] for one in points]
            found.append(_chart(f"{placement}: {title}", nights, lines, band))
    stayed = [point["lists"] or {} for point in series]
    kept = {p: [one.get(p, {}).get("overlap@10") for one in stayed] for p in PLACEMENT_VIEW}
    found.append(_chart("what stayed of a first ten", nights, kept, []))
    return [chart for chart in found if chart]


def _chart(
    title: str, nights: list[datetime], lines: dict[str, list[float | None]], band: list[list[float] | None]
) -> dict[str, Any] | None:
    """Lines over the nights with the interval of the first of them; None without two nights to join."""
    if max(sum(value is not None for value in values) for values in lines.values()) < 2:
        return None
    shown = [n for n in range(len(nights)) if any(values[n] is not None for values in lines.values())]
    first, last = nights[shown[0]], nights[shown[-1]]
    across = [(night - first) / (last - first) * WIDTH if last > first else 0.0 for night in nights]
    tops = [value for values in lines.values() for value in values if value is not None]
    up = _ticks(max([*tops, *(ends[1] for ends in band if ends)]))

    def place(n: int, value: float) -> str:
        return f"{across[n]:.1f} {CHART - value / up[-1] * CHART:.1f}"

    drawn = [
        {"name": name, "at": [place(n, value) for n, value in known], "now": known[-1][1]}
        for name, values in lines.items()
        if (known := [(n, value) for n, value in enumerate(values) if value is not None])
    ]
    sure = [(n, ends) for n, ends in enumerate(band) if ends]
    edge = [place(n, ends[1]) for n, ends in sure] + [place(n, ends[0]) for n, ends in reversed(sure)]
    return {
        "title": title,
        "lines": drawn,
        "band": "L".join(edge),
        "up": [(CHART - tick / up[-1] * CHART, tick) for tick in up],
        "from": first,
        "to": last,
    }


def _tradeoff(curve: dict[str, Any], max_loss: float) -> dict[str, Any]:
    """The settings of the diversity dial, what each costs, and a plot of accuracy against what each kind is for."""
    (nothing,) = (point for point in curve["points"] if point["turned"] == "nothing")
    best = nothing["metrics"][METRIC]
    points = [
        {**point, "kept": point["metrics"][METRIC] / best if best > 0 else 1.0, "said": _setting(point["dial"])}
        for point in curve["points"]
    ]
    kinds = list(dict.fromkeys(point["turned"] for point in points if point["turned"] in point["dial"]))
    furthest = [
        max(
            (point for point in points if point["turned"] == kind and point["kept"] >= 1 - max_loss),
            key=_turn,
            default={},
        )
        for kind in kinds
    ]
    ends = [points[0], *filter(None, furthest), *(point for point in points if point["turned"] == "chosen")]
    plots = []
    for name, title in TRADED.items():
        xs, ys = ([point["metrics"][metric] for point in points] for metric in (name, METRIC))
        across, up = _ticks_of(min(xs), max(xs)), _ticks_of(min(ys), max(ys))

        def at(point: dict[str, Any], name: str = name, across: Any = across, up: Any = up) -> tuple[float, float]:
            x, y = (point["metrics"][metric] for metric in (name, METRIC))
            return (x - across[0]) / (across[-1] - across[0]) * WIDTH, HEIGHT * (up[-1] - y) / (up[-1] - up[0])

        placed = [(*at(point), point) for point in points]
        plots.append(
            {
                "title": title,
                "lines": [
                    {"name": kind, "points": [one for one in placed if one[2]["turned"] in ("nothing", kind)]}
                    for kind in kinds
                ],
                "off": placed[0],
                "chosen": next((one for one in placed if one[2]["turned"] == "chosen"), None),
                "across": [((tick - across[0]) / (across[-1] - across[0]) * WIDTH, tick) for tick in across],
                "up": [(HEIGHT * (up[-1] - tick) / (up[-1] - up[0]), tick) for tick in up],
            }
        )
    return {**curve, "points": points, "ends": ends, "plots": plots, "kinds": kinds, "max_loss": max_loss}


def _turn(point: dict[str, Any]) -> float:
    return sum(point["dial"].values())


def _setting(dial: dict[str, float]) -> str:
    """The values of a dial that are not 0.

    >>> _setting({"mmr": 0.3, "calibration": 0.0, "long_tail": 0.1, "new": 0.0})
    'mmr 0.3, long_tail 0.1'
    """
    return ", ".join(f"{name} {value:g}" for name in Dial.model_fields if (value := dial[name])) or "off"


def _drift(drift: dict[str, Any]) -> dict[str, Any]:
    """What the watch says: alarms, why it says nothing, and its statistics, those farthest off first."""
    parts = list(drift.values())
    rows = [
        row | {"off": row["distance"] / part["level"]}  # of the way to an alarm
        for part in parts
        for row in part["statistics"]
    ]
    rows.sort(key=lambda row: -abs(row["off"]))
    return {
        "watched": bool(drift),
        "unable": [part["unable"] for part in parts if part["unable"]],
        "alarms": [alarm["text"] for part in parts for alarm in part["alarms"]],
        "groups": [group for group in (rows[:AMONG_FAR], rows[AMONG_FAR:]) if group],
    }


def _measured(value: float, form: str) -> str:
    """A statistic of the drift watch as people write it.

    >>> _measured(1234.5, "count"), _measured(3.14159, "amount"), _measured(0.5, "share"), _measured(13.25, "hours")
    ('1,234', '3.14', '50.0%', '13:15')
    """
    if form == "hours":
        return f"{int(value) % 24:02}:{int(value % 1 * 60):02}"
    if form == "share":
        return f"{value:.1%}"
    return f"{value:,.0f}" if form == "count" else f"{value:.3g}"


def _is_free(left: float, middle: float, width: float, taken: list[tuple[float, float, float]]) -> bool:
    return not any(a < left + width and left < b and abs(other - middle) < LINE for a, b, other in taken)


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0 to one at or above the highest, at most seven.

    >>> _ticks(0.37)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    """
    if not highest > 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(highest))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if highest <= 6 * step)
    below = takewhile(lambda n: (n - 1) * step < highest, range(9))
    return [round(n * step, 12) for n in below]


def _ticks_of(lowest: float, highest: float) -> list[float]:
    """Round numbers from one at or below the lowest to one at or above the highest.

    >>> _ticks_of(0.31, 0.37)
    [0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37]
    """
    step = _ticks(max(highest - lowest, 1e-3 * max(abs(highest), 1e-3)))[1]
    first, last = floor(lowest / step + 1e-9), -floor(-highest / step + 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _told(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What models have to say of their training; details, with a slash in their names, stay in the JSON."""
    said = {
        row["recipe"]: {name: value for name, value in row["report"].items() if "/" not in name}
        for row in rows
        if row.get("report")
    }
    return {recipe: numbers for recipe, numbers in said.items() if numbers}


def _adds_up(rows: dict[str, Any]) -> bool:
    return rows["read"] == rows["kept"] + rows["quarantined"] + rows["duplicates"]


def _several(n: int, thing: str) -> str:
    head, _, tail = thing.partition(" ")
    return f"{n} {head}{'s' if n > 1 else ''} {tail}".rstrip() if n else ""


FILTERS: dict[str, Callable[..., Any]] = {
    "score": lambda value: f"{value:.4f}" if not isnan(value) else "none",
    "difference": lambda value: f"{value:+.4f}" if not isnan(value) else "none",
    "percent": lambda share: f"{share:.2%}",
    "tick": lambda value: f"{value:g}",
    "count": lambda n: f"{n:,}",
    "pixels": lambda value: f"{value:.1f}",
    "instant": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC",
    "label": lambda recipe: Recipe(recipe).label,
    "adds_up": _adds_up,
    "measured": _measured,
    "some": lambda value, digits=4: "none" if value is None else f"{value:.{digits}f}",
    "seconds": lambda value: f"{value:.1f} s" if value < 60 else span(timedelta(seconds=value)),
}


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= FILTERS
    return environment.from_string(Path(__file__).with_name("page.html").read_text())
