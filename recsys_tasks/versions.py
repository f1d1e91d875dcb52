"""Published versions: which is current, what they hold, and how another one becomes current."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pyarrow.parquet as pq

from recsys_tasks import ledger
from recsys_tasks.contract import ITEM_ID, PLACEMENTS, USER_ID
from recsys_tasks.errors import NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.online_store import OnlineStore, open_store
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop

log = logging.getLogger(__name__)

TRACES = "_traces"
"""Beside the placements: how the lists of customers came about."""


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
    for placement in PLACEMENTS:
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
            for placement in PLACEMENTS:
                count = store.load(version, placement, read_lists(lake, placement, version))
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


def flip(lake: Lake, store: OnlineStore, shop: Shop, version: str, reason: str, by: str | None) -> None:
    """Move every pointer to a version that is whole in both stores; where it is current already, they say as before."""
    made = lake.manifest(entry(PLACEMENTS[0], version))
    line = {"shop": shop.name, "version": version, "as_of": made["as_of"], "champions": made["champions"]}
    line |= {"at": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason, "by": by}
    if (before := current(lake)) and ledger.is_same(before, line):
        line = before
    store.activate(version)
    for placement in PLACEMENTS:
        lake.point(f"recommendations/{placement}", line)


def current(lake: Lake) -> dict[str, Any] | None:
    """Return version and shop that readers of the tables see, since when and why; None before the first night."""
    return lake.current(ledger.POINTER)


def versions(lake: Lake, shop: Shop) -> list[str]:
    """Return a shop's versions that are in the lake, oldest made current first."""
    last = {line["version"]: n for n, line in enumerate(ledger.lines(lake)) if line["shop"] == shop.name}
    return [v for v in sorted(last, key=lambda v: last[v]) if lake.has(entry(PLACEMENTS[0], v))]


def read_lists(lake: Lake, placement: str, version: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each reader's id and its items, best first; a file at a time."""
    lists = entry(placement, version)
    for file in lake.manifest(lists)["files"]:
        table = pq.ParquetFile(lake.path(lists) / file["name"]).read(columns=[USER_ID, ITEM_ID])
        readers, items = table[USER_ID].combine_chunks().dictionary_encode(), table[ITEM_ID].to_pylist()
        codes = readers.indices.to_numpy()
        starts = [0, *((codes[1:] != codes[:-1]).nonzero()[0] + 1).tolist(), len(codes)]
        for start, end in pairwise(starts):
            if end > start:
                yield readers.dictionary[int(codes[start])].as_py(), items[start:end]
