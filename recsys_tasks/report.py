"""Step 10, report: what a person must know about this night, and how last night's lists did on what came since.

Reads what the other steps wrote; writes ``reports/<id>/report.json`` and, for people, ``report.html``; where the night
was published, makes it the current report.
"""

import json
import logging
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq

from recsys_tasks import ledger
from recsys_tasks.afterwards import describe, keep, nights, score, what_served
from recsys_tasks.drift import watch, watch_lists
from recsys_tasks.lake import Lake, fingerprint
from recsys_tasks.night import Night
from recsys_tasks.page import render
from recsys_tasks.rules import Facts, idle
from recsys_tasks.snapshot import Snapshot, microseconds
from recsys_tasks.timing import timed, times
from recsys_tasks.tradeoff import loss
from recsys_tasks.versions import entry, placements_of

log = logging.getLogger(__name__)

NIGHTS = 60
"""Points of the series that a report shows."""


@timed
def report(
    night: Night,
    snapshot: str,
    evaluation: str,
    champions: str,
    index: str,
    checked: dict[str, Any],
    version: str | None,
) -> str:
    """Write tonight's report and return its id; ``version`` is None where the night was not to publish."""
    lake, shop = night.lake, night.shop
    leaderboard = json.loads((lake.path(evaluation) / "leaderboard.json").read_text())
    data = lake.manifest(snapshot)
    points = nights(lake, shop.name, night.instant, NIGHTS - 1)
    found = Snapshot(lake, snapshot)
    point = tonight(night, found, version, points[-1]["night"] if points else None)
    if night.publish:
        keep(lake, shop.name, point)
    points.append(point)
    curves = lake.manifest(champions)["diversity"]
    drift = {"events": watch(found, shop), "lists": watch_lists([p["lists"] for p in points if p["lists"]], shop)}
    content = {
        "shop": shop.name,
        "shop_file": str(shop.file),
        "as_of": night.as_of,
        "version": version,
        "counts": data["counts"],
        "watermark": data["watermark"],
        "warnings": [
            *data["warnings"],
            *warnings(drift, data["warnings"]),
            *_of_rules(night, found),
            *_of_dial(night, curves),
        ],
        "force_promote": night.force_promote,
        "hold": night.hold,
        "asked_by": night.asked_by,
        "champions": lake.manifest(champions)["champions"],
        "decisions": {
            placement: {name: value for name, value in record.items() if name != "evidence"}  # the leaderboard has it
            for placement, record in lake.manifest(champions)["decisions"].items()
        },
        "leaderboard": leaderboard["rows"],
        "failed": leaderboard["failed"],
        "index": lake.manifest(index),
        "lists": checked,
        "diversity": {"max_loss": shop.diversity.max_loss, "curves": curves},
        "last_night": point["scored"],
        "series": [summary(p) for p in points],
        "drift": drift,
        **by_rules(lake, version),
        "served": ledger.served(lake, shop.name)[-10:],
        "snapshot": snapshot,
        "evaluation": evaluation,
    }
    written = f"reports/{night.instant:%Y%m%dT%H%M%S}-{fingerprint(content)}"
    if not lake.has(written):
        with lake.create(written, {"as_of": night.as_of, "version": version}) as folder:
            content["steps"] = times(night)  # they take another time when they run again: no part of the report's name
            (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
            (folder / "report.html").write_text(render(content))
    if night.publish:
        lake.point("reports", {"report": written})
    else:
        log.info("the last report stays current; `nightcart report %s` shows this night's", written)
    for recipe in leaderboard["failed"]:
        log.warning("%s failed to train and was left out", recipe)
    return written


def tonight(night: Night, snapshot: Snapshot, version: str | None, since: str | None) -> dict[str, Any]:
    """Return tonight's point of the series: how what served since the last one did, and what tonight's lists are like.

    ``scored`` is None where nothing has served or nothing has come in, ``lists`` where nothing was published.
    """
    lake, shop, until = night.lake, night.shop, microseconds(night.instant)
    last = microseconds(datetime.fromisoformat(since)) if since else None
    served = what_served(lake, shop.name, last, until)
    return {
        "night": night.as_of,
        "version": version,
        "scored": score(lake, shop, snapshot, *served) if served else None,
        "lists": describe(lake, shop.name, snapshot, version, until) if version else None,
    }


def by_rules(lake: Lake, version: str | None) -> dict[str, dict[str, dict[str, int]]]:
    """Return what each rule left out (``drops``) and raised (``moves``) in each placement; nothing without rules."""
    placements = placements_of(lake, version) if version else []
    told = {placement: lake.manifest(entry(placement, version or "")) for placement in placements}
    return {
        what: {placement: made[what] for placement, made in told.items() if made.get(what)}
        for what in ("drops", "moves")
    }


def _of_rules(night: Night, snapshot: Snapshot) -> list[str]:
    rules = night.shop.rules
    if not rules:
        return []
    items = pq.read_table(night.lake.path(snapshot.id) / "items.parquet")
    return idle(rules, Facts.of(items, {}), night.instant, night.k)


def _of_dial(night: Night, curves: dict[str, Any]) -> list[str]:
    most = night.shop.diversity.max_loss
    return [
        f"diversity: the dial of {placement} costs {lost:.1%} of ndcg@10 on the validation window, more than "
        f"diversity.max_loss ({most:.1%}); the curve below shows what less would cost"
        for placement, curve in curves.items()
        if (lost := loss(curve)) > most
    ]


def summary(point: dict[str, Any]) -> dict[str, Any]:
    """Return a point without its tiers and categories, which only the newest shows."""
    if not point["scored"]:
        return point
    short = {
        placement: {name: value for name, value in did.items() if name not in ("tiers", "categories")}
        for placement, did in point["scored"]["placements"].items()
    }
    return {**point, "scored": {**point["scored"], "placements": short}}


def warnings(drift: dict[str, Any], told: list[str]) -> list[str]:
    """Return the alarms as sentences; of the volume of all events ingest may have told already."""
    found = [alarm["text"] for part in drift.values() for alarm in part["alarms"]]
    is_told = any("checks.volume" in warning for warning in told)
    return [f"drift: {text}" for text in found if not (is_told and text.startswith("the volume of all events"))]
