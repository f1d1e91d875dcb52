"""Step 8, check: read tonight's rows again, from outside, and prove them before anybody sees them.

Reads the lists, the catalogue and the events as files, by SQL: it shares no code with the steps that made the rows.
"""

import logging
from typing import Any

import duckdb

from recsys_tasks.contract import ANONYMOUS, PLACEMENT_VIEW, PLACEMENTS, TIERS
from recsys_tasks.errors import CheckFailed
from recsys_tasks.night import Night
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)


@timed
def check(night: Night, lists: list[str], snapshot: str) -> dict[str, Any]:
    """Return rows and lists per placement.

    Raises
    ------
    CheckFailed
        Anything is wrong with any row; the message holds every fault with an example.

    """
    lake = night.lake
    with duckdb.connect() as db:
        days = [str(lake.root / day["file"]) for day in Snapshot(lake, snapshot).manifest["days"]]
        db.read_parquet(days).create("events")
        db.read_parquet(str(lake.path(snapshot) / "items.parquet")).create("items")
        target = night.shop.target
        db.execute(f"CREATE TABLE bought AS SELECT DISTINCT user_id, item_id FROM events WHERE event_type = '{target}'")
        faults: list[str] = []
        found: dict[str, Any] = {}
        for placement in PLACEMENTS:
            files = [str(lake.path(entry) / f"{placement}.parquet") for entry in lists]
            db.execute("DROP TABLE IF EXISTS rows")
            db.read_parquet(files).create("rows")
            for name, sql in _queries(night, placement).items():
                number, example = db.execute(f"SELECT count(*), any_value(example) FROM ({sql})").fetchone() or (0, "")
                if number:
                    faults.append(f"{placement}: {name}: {number:,} times, for example {example}")
            rows, readers = db.execute("SELECT count(*), count(DISTINCT user_id) FROM rows").fetchone() or (0, 0)
            found[placement] = {"rows": rows, "lists": readers}
    if faults:
        raise CheckFailed("tonight's lists are not published, the last version stays current:\n" + "\n".join(faults))
    for placement, counts in found.items():
        log.info("%s: %s rows in %s lists, no fault found", placement, f"{counts['rows']:,}", f"{counts['lists']:,}")
    return found


def _queries(night: Night, placement: str) -> dict[str, str]:
    """SQL that returns a row, with an ``example``, for every violation of a sentence."""
    as_of = f"TIMESTAMPTZ '{night.as_of}'"
    candidates = f"(SELECT item_id FROM items WHERE available AND (updated_at IS NULL OR updated_at < {as_of}))"
    if placement in PLACEMENT_VIEW:
        expected = f"(SELECT DISTINCT user_id FROM events UNION ALL SELECT '{ANONYMOUS}')"
    else:
        expected = "(SELECT item_id AS user_id FROM items)"
    # how many items a list could hold: all candidates, less those that this list must leave out
    left_out = {
        "home": "SELECT NULL AS user_id, NULL AS item_id WHERE false",
        "discover": "SELECT user_id, item_id FROM bought",
        "similar": "SELECT item_id AS user_id, item_id FROM items",
    }[placement]
    possible = (
        f"SELECT e.user_id, (SELECT count(*) FROM {candidates}) - count(c.item_id) AS n FROM {expected} e "
        f"LEFT JOIN ({left_out}) l ON l.user_id = e.user_id "
        f"LEFT JOIN {candidates} c ON c.item_id = l.item_id GROUP BY ALL"
    )
    queries = {
        "a list has too few or too many items": f"SELECT p.user_id AS example FROM ({possible}) p LEFT JOIN "
        "(SELECT user_id, count(*) AS n FROM rows GROUP BY ALL) r ON r.user_id = p.user_id "
        f"WHERE coalesce(r.n, 0) <> least(p.n, {night.k})",
        "a list nobody asked for": f"SELECT user_id AS example FROM rows WHERE user_id NOT IN (FROM {expected})",
        "an item twice in a list": "SELECT user_id AS example FROM rows GROUP BY user_id, item_id HAVING count(*) > 1",
        "ranks that do not run from 1": "SELECT user_id AS example FROM rows GROUP BY user_id "
        "HAVING min(rank) <> 1 OR max(rank) <> count(*) OR count(DISTINCT rank) <> count(*)",
        "an item that may not be recommended": f"SELECT item_id AS example FROM rows WHERE item_id NOT IN {candidates}",
        "an item the list must leave out": "SELECT r.user_id || ' ' || r.item_id AS example "
        f"FROM rows r JOIN ({left_out}) l "
        "ON l.user_id = r.user_id AND l.item_id = r.item_id",
        "a score that is not finite or rises down the list": "SELECT user_id AS example FROM "
        "(SELECT *, lag(score) OVER (PARTITION BY user_id ORDER BY rank) AS above FROM rows) "
        "WHERE NOT isfinite(score) OR score > above",
        "an unknown tier": f"SELECT tier AS example FROM rows WHERE tier NOT IN {TIERS}",
        "no source or reason": "SELECT user_id AS example FROM rows WHERE trim(source) = '' OR trim(reason) = ''",
    }
    if placement in PLACEMENT_VIEW:
        queries["a reason that names an item the customer never met"] = (
            "SELECT r.user_id || ' ' || r.reason_item_id AS example FROM rows r ANTI JOIN events e "
            "ON e.user_id = r.user_id AND e.item_id = r.reason_item_id WHERE r.reason_item_id IS NOT NULL"
        )
    return queries
