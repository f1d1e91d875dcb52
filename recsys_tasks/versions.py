"""Published versions: which is current, what they hold, and how another one becomes current."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_tasks import ledger
from recsys_tasks.contract import ITEM_ID, PLACEMENTS, USER_ID
from recsys_tasks.errors import ContractError, NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.online_store import Lists, OnlineStore, open_store
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop

log = logging.getLogger(__name__)

TRACES = "_traces"
"""Beside the placements: how the lists of customers came about."""


def placements_of(lake: Lake, version: str) -> list[str]:
    """Return the placements that a version holds; one published before its manifest told holds what is there."""
    there = [placement for placement in PLACEMENTS if lake.has(entry(placement, version))]
    return lake.manifest(entry(there[0], version)).get("placements", there) if there else []


def entry(placement: str, version: str) -> str:
    """Return where a placement's lists of a version lie in the lake, or its traces."""
    return f"recommendations/{placement}/version={version}"


def activate(lake: Lake, shop: Shop, version: str, reason: str, by: str | None = None) -> None:
    """Make a version in the lake the current one, in Redis and in Parquet; the ledger keeps reason and who asked.

    Raises
    ------
    NothingInLake
        There is no such version.

    """
    before = current(lake)
    placements = placements_of(lake, version)
    for placement in placements or PLACEMENTS[:1]:
        if not lake.has(entry(placement, version)):
            raise NothingInLake(
                f"version {version} of {placement} is not in the lake; there are {versions(lake, shop)}"
            )
    if before and before["shop"] != shop.name:
        log.warning(
            "this lake served the shop %s until now and serves %s from now on; "
            "give each shop a NIGHTCART_HOME of its own to keep both",
            before["shop"],
            shop.name,
        )
    with open_store(Settings(), shop.name) as store:
        if not store.has(version):
            for placement in placements:
                count = store.load(version, placement, lists_of(lake, placement, version))
                log.info("%s: %s lists in Redis", placement, f"{count:,}")
            store.seal(version)
        with ledger.moving(lake):
            flip(lake, store, shop, version, reason, by)
        log.info("version %s is current", version)
        kept = versions(lake, shop)
        for old in [v for v in kept if v != version][: max(0, len(kept) - shop.keep_versions)]:
            store.drop(old)
            for placement in (*PLACEMENTS, TRACES):
                lake.drop(entry(placement, old))
            log.info("version %s is older than the %d kept and was removed", old, shop.keep_versions)


def roll_back(lake: Lake, shop: Shop, version: str, reason: str = "", by: str | None = None) -> None:
    """Make an earlier version the current one again; the ledger keeps who asked and why.

    Champions stay: the next night chooses among recipes as ever, and publishes a version of its own.

    Raises
    ------
    NothingInLake
        The shop has no such version.
    ContractError
        The version serves already.

    """
    now, told = current(lake), f"rolled back: {reason}" if reason else "rolled back"
    others = [v for v in reversed(versions(lake, shop)) if not now or v != now["version"]]
    if now and now["version"] == version and now["shop"] == shop.name:
        if (now["reason"], now["by"]) != (told, by):  # else this is the same wish, cut off half-way and tried again
            raise ContractError(f"version: {version} serves already, since {now['at']}; expected one of {others}")
    elif version not in others:
        whose = f"; this lake serves {now['shop']}, give its shop file" if now and now["shop"] != shop.name else ""
        raise NothingInLake(
            f"version: {version!r} is not in the lake; there are {others} of the shop {shop.name}{whose}"
        )
    for placement in placements_of(lake, version):
        if changed := lake.changed(entry(placement, version)):
            raise ContractError(
                f"version: {version} is not what was published: {lake.path(entry(placement, version)) / changed[0]} "
                f"has another SHA-256 than its manifest says; expected one of {[v for v in others if v != version]}, "
                "or publish the night of this version again"
            )
    with lake.at_work():
        activate(lake, shop, version, told, by)


def serving(lake: Lake) -> str:
    """Return the shop file of the night that was reported last.

    Raises
    ------
    NothingInLake
        There was no such night.

    """
    found = lake.current("reports")
    if not found:
        raise NothingInLake(
            f"{lake.root} holds no report yet, so no shop is known; run a night first, or name the shop"
        )
    return json.loads((lake.path(found["report"]) / "report.json").read_text())["shop_file"]


def flip(lake: Lake, store: OnlineStore, shop: Shop, version: str, reason: str, by: str | None) -> None:
    """Move every pointer to a version that is whole in both stores; where it is current already, they say as before.

    A placement that the version does not hold has no pointer: nobody reads another version's lists beside it.
    """
    made = lake.manifest(entry(PLACEMENTS[0], version))
    line = {"shop": shop.name, "version": version, "as_of": made["as_of"], "champions": made["champions"]}
    line |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason, "by": by}
    if (before := current(lake)) and ledger.is_same(before, line):
        line = before
    store.activate(version)
    store.keep()  # or a machine that goes down now comes back with old lists in Redis and new ones in the tables
    held = placements_of(lake, version)
    for placement in PLACEMENTS:
        folder = f"recommendations/{placement}"
        lake.point(folder, line) if placement in held else lake.unpoint(folder)


def current(lake: Lake) -> dict[str, Any] | None:
    """Return version and shop that readers of the tables see, since when and why; None before the first night."""
    return lake.current(ledger.POINTER)


def versions(lake: Lake, shop: Shop) -> list[str]:
    """Return a shop's versions that are in the lake, oldest made current first."""
    last = {line["version"]: n for n, line in enumerate(ledger.lines(lake)) if line["shop"] == shop.name}
    return [v for v in sorted(last, key=lambda v: last[v]) if lake.has(entry(PLACEMENTS[0], v))]


def read_lists(lake: Lake, placement: str, version: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each reader's id and its items, best first."""
    for readers, items in lists_of(lake, placement, version):
        yield from zip(readers.to_pylist(), items.to_pylist(), strict=True)


def lists_of(lake: Lake, placement: str, version: str) -> Iterator[Lists]:
    """Yield readers and their items, in the order of the files; a row group at a time."""
    lists, columns = entry(placement, version), [USER_ID, ITEM_ID]
    for described in lake.manifest(lists)["files"]:
        file = pq.ParquetFile(lake.path(lists) / described["name"], read_dictionary=columns)
        rest = file.schema_arrow.empty_table().select(columns)
        for group in range(file.num_row_groups):
            table = pa.concat_tables([rest, file.read_row_group(group, columns)]).unify_dictionaries().combine_chunks()
            readers, items = (table[name].chunk(0) if len(table) else table[name].combine_chunks() for name in columns)
            codes = readers.indices.to_numpy()
            starts = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), len(codes))
            if group + 1 < file.num_row_groups and len(starts) > 1:  # the last list may go on in the next group
                rest, starts = table.slice(starts[-2]), starts[:-1]
            offsets = pa.array(starts, pa.int32())
            yield readers.take(offsets[:-1]).cast(pa.string()), pa.ListArray.from_arrays(offsets, items)


def heads(lake: Lake, placement: str, version: str, k: int) -> pa.Table:
    """Return the first ``k`` rows of every list: reader (``user_id``), ``rank``, ``item_id``, ``score``."""
    files = [
        lake.path(entry(placement, version)) / file["name"]
        for file in lake.manifest(entry(placement, version))["files"]
    ]
    columns = [USER_ID, "rank", ITEM_ID, "score"]
    tables = [pq.ParquetFile(file).read(columns=columns) for file in files]
    return pa.concat_tables([table.filter(pc.field("rank") <= k) for table in tables])
