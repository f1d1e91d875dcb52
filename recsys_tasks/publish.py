"""Step 9, publish: tonight's lists become a version, and the version becomes current at one instant.

Writes ``recommendations/<placement>/version=<version>/`` with ``_MANIFEST.json``, loads the same lists into Redis
under the version's own prefix, and only then moves the pointers: ``nightcart:<shop>:current`` and each placement's
``_CURRENT.json``. Killed before that, readers stay on the old version; run again, it goes on where it stopped. What
``recommend`` traced is kept as long as the version, in ``recommendations/_traces/version=<version>/``.
"""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recsys_tasks.contract import EVERYONE, PLACEMENT_VIEW
from recsys_tasks.lake import Lake, code_fingerprint, fingerprint, sha256
from recsys_tasks.night import Night
from recsys_tasks.timing import timed
from recsys_tasks.versions import TRACES, activate, entry

log = logging.getLogger(__name__)


@timed
def publish(night: Night, lists: list[str], champions: str, evaluation: str, snapshot: str) -> str | None:
    """Publish checked lists and return the version, whose name tells ``as_of`` and what it was made from.

    Returns None, and touches nothing, where the night is not to publish.
    """
    if not night.publish:
        log.info("this night is not to publish: the last version stays current")
        return None
    lake, shop = night.lake, night.shop
    version = f"{night.instant:%Y%m%dT%H%M%SZ}-{fingerprint({'shop': shop.name, 'lists': lists})[:8]}"
    leaderboard = json.loads((lake.path(evaluation) / "leaderboard.json").read_text())
    described = {
        "version": version,
        "shop": shop.name,
        "as_of": night.as_of,
        "snapshot": snapshot,
        "champions": lake.manifest(champions)["champions"],
        "code": code_fingerprint(),
        "config": fingerprint(shop.model_dump(mode="json")),
        "metrics": [row for row in leaderboard["rows"] if row["tier"] == EVERYONE],
        "k": night.k,
        "placements": list(shop.placements),
    }
    for placement in shop.placements:
        if lake.has(entry(placement, version)) and (changed := lake.changed(entry(placement, version))):
            log.warning("%s of %s: %s are not what was published, and are replaced", placement, version, changed)
            lake.drop(entry(placement, version))
        if not lake.has(entry(placement, version)):
            manifest = {**described, "placement": placement, **_by_rules(lake, lists, placement)}
            with lake.create(entry(placement, version), manifest) as folder:
                manifest["files"] = [
                    _copied(lake.path(source) / f"{placement}.parquet", folder / f"part-{n:04d}.parquet")
                    for n, source in enumerate(lists)
                ]
    traced = {
        f"{placement}-{n:04d}.parquet": origin
        for n, source in enumerate(lists)
        for placement in PLACEMENT_VIEW
        if (origin := lake.path(source) / f"trace-{placement}.parquet").is_file()
    }
    if traced and not lake.has(entry(TRACES, version)):
        manifest = {key: described[key] for key in ("version", "shop", "as_of", "snapshot", "champions", "code")}
        with lake.create(entry(TRACES, version), manifest) as folder:
            manifest["files"] = [_copied(origin, folder / name) for name, origin in traced.items()]
    forced = f", {night.force_promote} forced" if night.force_promote else ", champions held" if night.hold else ""
    activate(lake, shop, version, f"published{forced}", night.asked_by)
    if gone := lake.expire(
        ("read", "ingested", "history", "statistics", "models", "vectors", "indexes", "lists"), shop.keep_days
    ):
        log.info("%d entries of the lake were not used for %d days and are gone", len(gone), shop.keep_days)
    return version


def _by_rules(lake: Lake, lists: list[str], placement: str) -> dict[str, dict[str, int]]:
    """Return in ``drops`` and ``moves`` how many items of the lists each rule left out or raised."""
    found: dict[str, Counter[str]] = {"drops": Counter(), "moves": Counter()}
    for source in lists:
        for what, counts in found.items():
            counts.update(lake.manifest(source).get(what, {}).get(placement, {}))
    return {what: dict(counts) for what, counts in found.items()}


def _copied(origin: Path, target: Path) -> dict[str, Any]:
    """Copy one shard's file, check what arrived, and describe it."""
    shutil.copyfile(origin, target)
    return {"name": target.name, "rows": pq.ParquetFile(target).metadata.num_rows, "sha256": sha256(target)}
