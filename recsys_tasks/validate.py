"""``nightcart validate SHOP``: what ingest would say of the shop's files, before anything is imported.

The same code reads, judges and counts, in a lake of its own that is gone afterwards.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from recsys_tasks.errors import NightcartError
from recsys_tasks.ingest import accounting, take_in
from recsys_tasks.lake import Lake
from recsys_tasks.reading import Reader
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import iso
from recsys_tasks.sources import SourceFile, open_source

log = logging.getLogger(__name__)


def validate(
    shop: Shop, as_of: datetime, progress: Callable[[int, int], Any] = lambda done, of: None
) -> dict[str, Any]:
    """Read and judge all files of a shop and return what a person should know.

    Parameters
    ----------
    shop, as_of
        See ``ingest``.
    progress
        Told after each file how many of how many are read.

    Returns
    -------
    dict
        ``errors``: what would stop the night, each with the file's name; where there are any, nothing else.
        ``counts`` and ``accounting`` of each table; ``faults``: bad rows by kind, the most frequent first, each with
        ``table``, ``field``, ``reason``, ``rows`` and the ``file`` and ``row`` of an example; ``warnings``; ``log``:
        ``events``, ``customers``, ``items``, ``first`` and ``last`` instant, events by ``types``; ``catalogue``:
        ``items`` and how many have a ``title``, a ``price``, a ``category``.

    """
    with tempfile.TemporaryDirectory(prefix="nightcart-") as folder:
        lake = Lake(Path(folder))
        source = open_source(shop)
        listed = {"events": source.event_files, "items": source.item_files, "users": source.user_files}
        files: list[tuple[str, SourceFile]] = []
        errors = []
        for table, list_them in listed.items():
            try:
                files += [(table, file) for file in list_them()]
            except NightcartError as error:
                errors.append(str(error))
        try:
            reader = Reader(shop, lake, time.time(), source)
        except NightcartError as error:
            return {"errors": [*errors, str(error)]}
        for n, (table, file) in enumerate(files, 1):
            try:
                reader.piece(table, file)
            except NightcartError as error:
                errors.append(str(error))
            progress(n, len(files))
        if not errors:
            try:
                return {"errors": [], **_told(lake, take_in(shop, source, as_of, lake))}
            except NightcartError as error:
                errors.append(str(error))
        return {"errors": errors}


def _told(lake: Lake, snapshot: str) -> dict[str, Any]:
    manifest = lake.manifest(snapshot)
    with duckdb.connect() as db:
        db.read_parquet([str(lake.root / day["file"]) for day in manifest["days"]]).create("events")
        db.read_parquet(str(lake.path(snapshot) / "items.parquet")).create("items")
        db.read_parquet(str(lake.path(snapshot) / "quarantine.parquet")).create("quarantine")

        def rows(sql: str) -> list[dict[str, Any]]:
            found = db.execute(sql)
            names = [column[0] for column in found.description or []]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

        # what a message quotes differs from row to row
        faults = rows(
            'SELECT "table", field, min(reason) AS reason, count(*) AS rows, '
            "arg_min(file, (file, row)) AS file, arg_min(row, (file, row)) AS row FROM quarantine "
            "GROUP BY \"table\", field, regexp_replace(reason, '''.*''|has [0-9]+', '') ORDER BY rows DESC, 1, 2, 3"
        )
        (log_,) = rows(
            "SELECT count(*) AS events, count(DISTINCT user_id) AS customers, count(DISTINCT item_id) AS items, "
            "epoch_us(min(timestamp)) AS first, epoch_us(max(timestamp)) AS last FROM events"
        )
        log_ |= {name: iso(log_[name]) for name in ("first", "last")}
        types = rows("SELECT event_type AS type, count(*) AS n FROM events GROUP BY 1 ORDER BY n DESC")
        (catalogue,) = rows(
            "SELECT count(*) AS items, count(title) AS title, count(price) AS price, "
            "count(*) FILTER (len(category) > 0) AS category FROM items"
        )
    return {
        "counts": manifest["counts"],
        "accounting": accounting(manifest["counts"]),
        "faults": faults,
        "warnings": manifest["warnings"],
        "log": {**log_, "types": {row["type"]: row["n"] for row in types}},
        "catalogue": catalogue,
    }
