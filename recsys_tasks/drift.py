"""The drift watch: is the last week like the shop's own weeks before it, and are the lists like those of past nights?

A statistic of tonight is held against the median of the five windows before it, less what that is usually off by; so a
window is compared with windows of the same weekdays, and a steady trend is no surprise. How far is far is learned from
the shop: every past window is judged by the others as tonight is, and the alarm level is where the tail of all these
distances, of all statistics together, is reached once in ``weeks_per_false_alarm`` (decision 15).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import exp, log, sin
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_tasks.contract import EVENT_TYPES, ITEM_ID
from recsys_tasks.history import History
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import DAY, Snapshot, microseconds

NEIGHBOURS = 5
"""Windows before a window whose median is what is expected of it, but for a steady trend; two may be catastrophes."""
LEAST = 12
"""Past windows without which nothing is judged."""
MOST = 60
"""Past windows that are looked at."""
FLOOR = 0.02
"""What a statistic is taken to vary by at least: 2 % of an amount, a fiftieth of the arc of a share."""
WEEKDAYS = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")
SHOWN_SHARE = 0.02
"""Categories with less of the events are not watched one by one."""

Form = Literal["count", "amount", "share", "hours", "score"]


@dataclass(frozen=True)
class Window:
    """The events of one window, in the order of time."""

    start: int
    """microseconds since 1970"""
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    kind: np.ndarray
    price: np.ndarray
    """float, NaN where there is none"""
    users_before: int
    """Ids from this one on appear here for the first time: they are numbered in the order in which they come."""
    items_before: int


@dataclass(frozen=True)
class Statistic:
    """One number of every window, the newest last, on a scale on which it varies alike whether it is large or small."""

    name: str
    form: Form
    values: np.ndarray
    """(n,) logarithm of an amount (of a count and a half), arc sine of the root of a share, hours, or a score"""
    noise: np.ndarray
    """(n,) what chance alone varies it by: one standard deviation"""


# ---- the two watches


def watch(snapshot: Snapshot, shop: Shop) -> dict[str, Any]:
    """Hold the last window before ``as_of`` against the windows before it.

    Returns ``unable`` (why nothing can be judged yet, else None), ``level``, a row a statistic in ``statistics`` (see
    ``judge``) and ``alarms``, each with ``statistic`` and ``text``: how far, and the likely cause.
    """
    days = shop.watch.window_days
    end = microseconds(datetime.fromisoformat(snapshot.manifest["as_of"]))
    shelves = Shelves.read(snapshot)
    measured = [measure(one, shop, shelves, days) for one in windows(snapshot, end, days)]
    if len(measured) <= LEAST:
        have = f"{max(len(measured) - 1, 0)} windows of {days} days lie before the last one"
        return _unable(f"the log is too short to tell what is usual: {have}, {LEAST} are needed")
    judged = judge(statistics(measured), shop.watch.weeks_per_false_alarm * 7 / days)
    return {"unable": None, **judged, "alarms": alarms(judged["statistics"], end - days * DAY)}


def watch_lists(nights: Sequence[Mapping[str, Any]], shop: Shop) -> dict[str, Any]:
    """Hold tonight's lists against those of the nights before, oldest first; a row each, as ``watch`` returns it.

    ``nights`` have ``recipe`` and the numbers in ``LISTS``, by placement. A change of champion begins a new history.
    """
    found: list[Statistic] = []
    for placement, now in (nights[-1] if nights else {}).items():
        same: list[Mapping[str, Any]] = []
        for night in reversed(nights):
            if night.get(placement, {}).get("recipe") != now["recipe"]:
                break
            same.insert(0, night[placement])
        for name, form in LISTS.items():
            x = np.array([_SCALE[form](one[name]) for one in same if one[name] is not None])[-MOST - 1 :]
            if len(x) > LEAST:
                found.append(Statistic(f"{placement}: {name}", form, x, np.zeros(len(x))))
    if not found:
        return _unable(f"no champion has served {LEAST} nights yet")
    judged = judge(found, shop.watch.weeks_per_false_alarm * 7)
    return {"unable": None, **judged, "alarms": [_of_lists(row) for row in judged["statistics"] if row["alarm"]]}


def _unable(why: str) -> dict[str, Any]:
    return {"unable": why, "level": None, "statistics": [], "alarms": []}


# ---- what is measured of a window


def windows(snapshot: Snapshot, end: int, days: int) -> Iterator[Window]:
    """Yield the windows of so many days before ``end`` that lie in the log as a whole, oldest first."""
    found, length = snapshot.history(), days * DAY
    time = found.array("time")
    n = min(MOST + 1, int((end - time[0]) // length)) if len(time) else 0
    edges = [end - k * length for k in range(n, -1, -1)]
    rows = np.searchsorted(time, edges).tolist()
    for start, (first, last) in zip(edges, pairwise(rows), strict=False):
        yield window(found, start, slice(first, last), snapshot.prices(first, last))


def window(history: History, start: int, rows: slice, price: np.ndarray) -> Window:
    """Return some rows of a history as a window."""
    user, item, time, kind = (history.array(name) for name in ("user", "item", "time", "type"))
    before = (int(ids[: rows.start].max(initial=-1)) + 1 for ids in (user, item))
    return Window(start, user[rows], item[rows], time[rows], kind[rows], price, *before)


@dataclass(frozen=True)
class Shelves:
    """Which category an item of the log belongs to."""

    names: list[str]
    of_item: np.ndarray
    """(n_items of the history,) place in ``names``, -1 where the shop does not say"""

    @classmethod
    def read(cls, snapshot: Snapshot) -> "Shelves":
        """Return the broadest categories of the catalogue."""
        items = pq.read_table(snapshot.lake.path(snapshot.id) / "items.parquet", columns=[ITEM_ID, "category"])
        broadest = [path[0] if path else "" for path in items["category"].to_pylist()]
        names = sorted({name for name in broadest if name})
        place = {name: n for n, name in enumerate(names)} | {"": -1}
        codes = np.array([*(place[name] for name in broadest), -1], np.int32)
        known = pc.index_in(snapshot.history().items, items[ITEM_ID].combine_chunks()).fill_null(-1)
        return cls(names, codes[known.to_numpy()])


def measure(window: Window, shop: Shop, shelves: Shelves, days: int) -> dict[tuple[str, Form], tuple[float, float]]:
    """Return (name, form) -> value and noise of one window."""
    n = len(window.user)
    found: dict[tuple[str, Form], tuple[float, float]] = {}
    kinds = np.bincount(window.kind, minlength=len(EVENT_TYPES))
    for name, count in zip(EVENT_TYPES, kinds.tolist(), strict=True):
        found[name, "count"] = _count(count)
        found[f"share of {name}", "share"] = _share(count, n)
    for day, count in enumerate(np.bincount((window.time - window.start) // DAY, minlength=days).tolist()):
        found[_weekday(window.start, day), "count"] = _count(count)
    users, items = np.bincount(window.user), np.bincount(window.item)
    active, sold = int((users > 0).sum()), int((items > 0).sum())
    found["customers", "count"] = _count(active)
    found["events a customer", "amount"] = (log((n + 0.5) / (active + 0.5)), 1 / np.sqrt(active + 1))
    found["new customers", "share"] = _share(int((users[window.users_before :] > 0).sum()), active)
    found["new items", "share"] = _share(int((items[window.items_before :] > 0).sum()), sold)
    for name, counts in (("ten busiest customers", users), ("ten most sought items", items)):
        found[f"events of the {name}", "share"] = _share(int(np.sort(counts)[-10:].sum()), n)
    of_target = window.price[window.kind == EVENT_TYPES.index(shop.target)]
    priced = np.log(of_target[of_target > 0])
    if len(priced):
        found["price", "amount"] = float(priced.mean()), float(priced.std() / np.sqrt(len(priced)))
    found["targets with a price", "share"] = _share(len(priced), len(of_target))
    angle = (window.time + _offset(window.start, shop)) % DAY / DAY * 2 * np.pi
    x, y = (float(part.mean()) if n else 0.0 for part in (np.cos(angle), np.sin(angle)))
    spread = np.sqrt(-2 * np.log(max(np.hypot(x, y), 1e-6))) * 24 / (2 * np.pi)
    found["time of day", "hours"] = float(np.arctan2(y, x) * 24 / (2 * np.pi)), float(spread / np.sqrt(n + 1))
    sold_of = np.bincount(shelves.of_item[window.item] + 1, minlength=len(shelves.names) + 1)[1:]
    for name, count in zip(shelves.names, sold_of.tolist(), strict=True):
        found[f"category {name}", "share"] = _share(count, n)
    return found


def _weekday(start: int, day: int) -> str:
    """The name of the day of the week, so many days after an instant; of a longer window, one name for each week's."""
    return WEEKDAYS[(start // DAY + 3 + day) % 7] + (f" of week {day // 7 + 1}" if day >= 7 else "")


def _count(count: int) -> tuple[float, float]:
    return log(count + 0.5), 1 / float(np.sqrt(count + 1))


def _share(part: int, whole: int) -> tuple[float, float]:
    return float(np.arcsin(np.sqrt(part / whole))) if whole else 0.0, 0.5 / float(np.sqrt(whole + 1))


def _offset(instant: int, shop: Shop) -> int:
    """What the shop's clocks are ahead of UTC by, in microseconds."""
    if shop.time_zone is None:
        return 0
    then = datetime.fromtimestamp(instant / 1_000_000, UTC).astimezone(ZoneInfo(shop.time_zone))
    return round((then.utcoffset() or timedelta()).total_seconds() * 1_000_000)


def statistics(measured: Sequence[Mapping[tuple[str, Form], tuple[float, float]]]) -> list[Statistic]:
    """Return what is worth watching of measured windows, oldest first: what past windows have enough of."""
    found = []
    for name, form in dict.fromkeys(key for one in measured for key in one):
        pairs = [one.get((name, form), (np.nan, np.nan)) for one in measured]
        values, noise = (np.array(part, float) for part in zip(*pairs, strict=True))
        unknown = np.isnan(values)
        if unknown[-1] or unknown.mean() > 0.5:
            continue
        values[unknown], noise[unknown] = np.median(values[~unknown]), np.median(noise[~unknown])
        if form == "hours":  # round the clock: from the middle of the past, half a day back and ahead
            middle = np.angle(np.exp(2j * np.pi * values[:-1] / 24).sum()) * 24 / (2 * np.pi)
            values = (values - middle + 12) % 24 - 12 + middle
        is_known, past = True, values[:-1]
        if name.startswith("category "):
            is_known &= bool(np.sin(np.median(past)) ** 2 >= SHOWN_SHARE)
        elif form == "count":
            is_known &= bool((past > log(0.5)).any())  # a type that never came, a day on which the shop is closed
        elif form == "share":
            is_known &= bool(((past > 0) & (past < np.pi / 2)).any()) or name.startswith(("new ", "targets "))
        if is_known:
            found.append(Statistic(name, form, values, noise))
    return found


# ---- how far is far


def distances(statistic: Statistic) -> tuple[np.ndarray, float, float]:
    """Return how far each past window lay from what was expected of it, in units of what is usual, and tonight's terms.

    These are the value expected tonight and the unit. Each past window is judged by the others, as tonight is.
    """
    x, n = statistic.values, len(statistic.values)
    before = np.array([np.median(x[w - NEIGHBOURS : w]) for w in range(NEIGHBOURS, n)])
    off = x[NEIGHBOURS:] - before
    noise = np.sqrt(1 + 1 / NEIGHBOURS) * np.median(statistic.noise)
    least = max(noise, FLOOR * abs(float(np.median(x))) if statistic.form == "score" else FLOOR)
    past = off[:-1]
    far = np.empty(len(past))
    for w in range(len(past)):
        others = np.delete(past, w)
        middle = np.median(others)
        far[w] = (past[w] - middle) / max(1.4826 * float(np.median(np.abs(others - middle))), least)
    middle = float(np.median(past))
    unit = max(1.4826 * float(np.median(np.abs(past - middle))), least)
    return far, float(before[-1]) + middle, float(unit)


def alarm_level(far: np.ndarray, looks: float) -> float:
    """Return the distance that chance reaches once in so many looks at a statistic, from (n,) past distances.

    The tail is taken for exponential, as steep as it is between the median and the upper quartile: a quarter of the
    past may have been catastrophes without moving it.
    """
    middle, start = np.quantile(np.abs(far), [0.5, 0.75])
    return float(start + (start - middle) / log(2) * max(0.0, log(0.25 * looks)))


def judge(found: Sequence[Statistic], looks: float) -> dict[str, Any]:
    """Return the level and what each statistic is tonight, was expected to be, and may be without an alarm.

    ``looks`` is how often the watch looks in the time in which one false alarm is borne.
    """
    told = [(statistic, *distances(statistic)) for statistic in found]
    level = alarm_level(np.concatenate([far for _, far, _, _ in told]), looks * len(told))
    rows = []
    for statistic, _, expected, unit in told:
        now = float(statistic.values[-1])
        shown = _SHOWN[statistic.form]
        rows.append(
            {
                "name": statistic.name,
                "form": statistic.form,
                "value": shown(now),
                "expected": shown(expected),
                "low": shown(expected - level * unit),
                "high": shown(expected + level * unit),
                "distance": (now - expected) / unit,
                "alarm": abs(now - expected) > level * unit,
            }
        )
    return {"level": level, "statistics": rows}


def _of_share(arc: float) -> float:
    return sin(min(max(arc, 0.0), np.pi / 2)) ** 2


_SHOWN: Mapping[Form, Callable[[float], float]] = {
    "count": lambda value: max(exp(value) - 0.5, 0.0),
    "amount": lambda value: exp(value),
    "share": _of_share,
    "hours": lambda value: value % 24,
    "score": lambda value: value,
}
_SCALE: Mapping[Form, Callable[[float], float]] = {
    "count": lambda value: log(value + 0.5),
    "amount": lambda value: log(max(value, 1e-9)),
    "share": lambda part: float(np.arcsin(np.sqrt(part))),
    "hours": lambda value: value,
    "score": lambda value: value,
}
LISTS: Mapping[str, Form] = {"coverage@10": "amount", "gini@10": "share", "overlap@10": "share", "score": "score"}
"""What is watched of a placement's lists: share of the catalogue in a first ten, how unevenly, how much of a first ten
was in the list before, and the mean score of a first place."""


# ---- what is said


def alarms(rows: Sequence[Mapping[str, Any]], start: int) -> list[dict[str, str]]:
    """Return what a person is told of the rows that are too far off, the likely cause of several told once."""
    of = {row["name"]: row for row in rows}
    far = {row["name"]: row for row in rows if row["alarm"]}
    volumes = [name for name in EVENT_TYPES if name in of]
    moved = [name for name in volumes if name in far]
    told = {name: _volume(name, moved, volumes, of) for name in moved}
    if moved == volumes and len({of[name]["value"] < of[name]["expected"] for name in moved}) == 1:
        most = max(moved, key=lambda name: of[name]["expected"])
        told = {most: _volume("", [most], volumes, of)}
    for name, row in far.items():
        follows = name == "customers" or name.startswith((*WEEKDAYS, "share of ", "events a customer"))
        if name not in volumes and not (moved and follows):
            told[name] = _said(name, row, start)
    return [{"statistic": name, "text": text} for name, text in told.items()]


def _went(row: Mapping[str, Any]) -> str:
    ratio = row["value"] / max(row["expected"], 1e-9)
    return f"fell to {ratio:.0%} of usual" if ratio < 1 else f"rose to {ratio:.3g} times the usual"


def _volume(name: str, moved: Sequence[str], volumes: Sequence[str], of: Mapping[str, Mapping[str, Any]]) -> str:
    row = of[name or moved[0]]
    fell = row["value"] < row["expected"]
    others = [f"{other}s" for other in volumes if other not in moved]
    text = f"the volume of {name + 's' if name else 'all events'} {_went(row)}"
    text += f" while that of {' and '.join(others)} did not" if others and name else ""
    if fell:
        return f"{text}: check that {'the export of ' + name + 's' if others and name else 'every export'} came whole"
    return f"{text}: check that every export came once, and look for a robot or a campaign"


def _said(name: str, row: Mapping[str, Any], start: int) -> str:
    went, low = _went(row), row["value"] < row["expected"]
    shares = f"{row['value']:.1%}, usual {row['expected']:.1%}"
    if name.startswith(WEEKDAYS):
        day = np.datetime64(next(start // DAY + n for n in range(28) if _weekday(start, n) == name), "D")
        cause = "check that its export came whole, unless it was a holiday" if low else "was a day delivered twice?"
        return f"the events of {day} {went} for its day of the week: {cause}"
    if name.startswith("category "):
        cause = "check its items in the export and in the catalogue" if low else "a campaign, or another tree?"
        return f"{name.removeprefix('category ')!r} has {shares} of the events: {cause}"
    if name.startswith("share of "):
        return f"{name.removeprefix('share of ')}s are {shares} of the events: check the exports of all types"
    if name == "time of day":
        by = (row["value"] - row["expected"] + 12) % 24 - 12
        return f"the clock of the events moved by {by:+.1f} h: check the time zone of the export"
    if name == "price":
        ratio = row["value"] / max(row["expected"], 1e-9)
        other = "pence for pounds?" if 20 < ratio < 500 or 20 < 1 / ratio < 500 else "another currency, tax or unit?"
        return f"prices {went}: {other}"
    causes = {
        "new customers": f"{shares} of the customers are new: "
        + ("were new ones lost?" if low else "were customer ids renamed, or is it a robot or a campaign?"),
        "new items": f"{shares} of the items are new: "
        + ("were new ones lost?" if low else "were item ids renamed, or a catalogue added?"),
        "targets with a price": f"{shares} of the target events have a price: check the column of prices",
        "customers": f"the number of customers {went}: " + ("check the export" if low else "a robot under many names?"),
        "events a customer": f"events a customer {went}: "
        + ("check that the export is whole" if low else "delivered twice, or a robot?"),
    }
    return causes.get(name, f"{name}: {shares}: {'did a robot leave?' if low else 'a robot, or a campaign?'}")


def _of_lists(row: Mapping[str, Any]) -> dict[str, str]:
    placement, _, name = row["name"].partition(": ")
    low = row["value"] < row["expected"]
    said = {
        "coverage@10": "the share of the catalogue that is in somebody's first ten",
        "gini@10": "how unevenly the first tens show the items (Gini)",
        "overlap@10": "how much of a first ten was in the list before",
        "score": "the mean score of a first place",
    }[name]
    causes = {
        "coverage@10": "lists lean on few items: look at the catalogue and at what the model was given",
        "gini@10": "lists lean on few items: look at the catalogue and at what the model was given",
        "overlap@10": "lists changed more than they do: look at the data of the night",
        "score": "the model answers otherwise than it did: look at the data of the night and its training",
    }
    expects_low = name in ("coverage@10", "overlap@10")
    cause = causes[name] if name == "score" or low == expects_low else "the other way round than a fault would: look"
    return {
        "statistic": row["name"],
        "text": f"{placement}: {said} is {row['value']:.3g}, usual {row['expected']:.3g}: {cause}",
    }
