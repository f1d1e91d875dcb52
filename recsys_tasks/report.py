"""Step 10, report: what a person must know about this night, and how last night's lists did on what came since.

Reads what the other steps wrote; writes ``reports/<id>/report.json`` and, for people, ``report.html``; where the night
was published, makes it the current report.
"""

import json
import logging
from datetime import datetime
from typing import Any

import numpy as np

from recsys_tasks import ledger
from recsys_tasks.contract import PLACEMENT_VIEW
from recsys_tasks.lake import Lake, fingerprint
from recsys_tasks.metrics import bootstrap, per_user
from recsys_tasks.night import Night
from recsys_tasks.page import render
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import Snapshot, microseconds
from recsys_tasks.split import truth
from recsys_tasks.versions import entry, read_lists, versions

log = logging.getLogger(__name__)


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
    content = {
        "shop": shop.name,
        "shop_file": str(shop.file),
        "as_of": night.as_of,
        "version": version,
        "counts": data["counts"],
        "watermark": data["watermark"],
        "warnings": data["warnings"],
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
        "last_night": afterwards(lake, shop, snapshot, night.instant),
        "served": ledger.served(lake, shop.name)[-10:],
        "snapshot": snapshot,
        "evaluation": evaluation,
    }
    written = f"reports/{night.instant:%Y%m%dT%H%M%S}-{fingerprint(content)}"
    if not lake.has(written):
        with lake.create(written, {"as_of": night.as_of, "version": version}) as folder:
            (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
            (folder / "report.html").write_text(render(content))
    if night.publish:
        lake.point("reports", {"report": written})
    else:
        log.info("the last report stays current; `nightcart report %s` shows this night's", written)
    for recipe in leaderboard["failed"]:
        log.warning("%s failed to train and was left out", recipe)
    return written


def afterwards(lake: Lake, shop: Shop, snapshot: str, as_of: datetime) -> dict[str, Any] | None:
    """Score the newest earlier version on the events that came between it and tonight; None where there is none.

    Returns, per placement, ndcg@10 and recall@10 with their 95 % intervals, over customers it had a list for.
    """
    earlier = {v: datetime.fromisoformat(lake.manifest(entry("home", v))["as_of"]) for v in versions(lake, shop)}
    earlier = {v: then for v, then in earlier.items() if then < as_of}
    if not earlier:
        return None
    version = max(earlier, key=lambda v: earlier[v])
    found = Snapshot(lake, snapshot)
    interactions = found.interactions(shop)
    start = microseconds(earlier[version])
    if not len(interactions.since(start)):
        return None
    item_idx = {item: n for n, item in enumerate(found.catalog().item_ids)}
    user_idx = {user: n for n, user in enumerate(interactions.user_ids)}
    scores: dict[str, Any] = {}
    for placement, view in PLACEMENT_VIEW.items():
        wanted = truth(interactions, start, interactions.as_of, view)
        row = {user: n for n, user in enumerate(wanted.users.tolist())}
        ranked = np.full((len(wanted.users), 50), -1, np.int32)
        for user, items in read_lists(lake, placement, version):
            n = row.get(user_idx.get(user, -1))
            if n is not None:
                listed = [item_idx.get(item, -1) for item in items[:50]]
                ranked[n, : len(listed)] = listed
        served = (ranked >= 0).any(1)
        values = {k: v[served] for k, v in per_user(ranked, wanted.items).items() if k in ("ndcg@10", "recall@10")}
        if served.any():
            scores[placement] = {
                "customers": int(served.sum()),
                **{name: float(value.mean()) for name, value in values.items()},
                "interval": bootstrap(values),
            }
    return {"version": version, "as_of": earlier[version].isoformat(), "placements": scores}
