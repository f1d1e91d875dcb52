"""Why did this customer get that? What the lists of any kept version hold and how they came about.

Everything was written down when the lists were made, so no model is run: the lists and traces of the version, the log
and the catalogue of its snapshot are read. Texts that people type reach SQL as parameters only.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_tasks import ledger
from recsys_tasks.contract import (
    ANONYMOUS,
    EVENT_TYPE,
    EVENT_TYPES,
    ITEM_ID,
    LATER_STAGES,
    OF_CUSTOMERS,
    OF_ITEMS,
    PLACEMENT_VIEW,
    PLACEMENTS,
    TIMESTAMP,
    USER_ID,
)
from recsys_tasks.errors import NothingInLake
from recsys_tasks.history import find_history
from recsys_tasks.lake import Lake, shard_of
from recsys_tasks.recipe import Recipe
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import iso
from recsys_tasks.versions import TRACES, current, entry, placements_of, versions

HISTORY_SHOWN = 100
"""Newest events of a customer."""
LEFT_OUT_SHOWN = 20
"""Proposals beside a list."""
NEAR = 5
"""Ids that are named where one is not found."""

_FACTS = (ITEM_ID, "title", "category", "brand", "price")
FILLED = "no model proposed it: the list is filled up with what is popular"
OWN = "bought before; no source has it among its first proposals"


def search(lake: Lake, shop: Shop, text: str, limit: int = 20) -> dict[str, list[dict[str, Any]]]:
    """Return customers (``user_id``, ``tier``) and items of the current version that a text may mean.

    Ids that begin with it come first, then ids and titles that hold it; upper and lower case are the same.

    Raises
    ------
    NothingInLake
        Nothing is published.

    """
    published = _published(lake, shop, None)
    with duckdb.connect() as db:
        customers = (
            f"SELECT {USER_ID}, tier FROM read_parquet($files) WHERE rank = 1 AND contains(lower({USER_ID}), $text) "
            f"ORDER BY NOT starts_with(lower({USER_ID}), $text), {USER_ID} LIMIT $limit"
        )
        found = (
            f"SELECT {', '.join(_FACTS)} FROM read_parquet($files) "
            f"WHERE starts_with(lower({ITEM_ID}), $text) OR contains(lower(title), $text) "
            f"ORDER BY lower({ITEM_ID}) <> $text, NOT starts_with(lower({ITEM_ID}), $text), title, {ITEM_ID} "
            "LIMIT $limit"
        )
        asked = {"text": text.lower(), "limit": limit}
        files = _files(lake, PLACEMENTS[0], published["version"])
        items = _rows(db, found, files=_catalogue(lake, published), **asked)
        return {
            "customers": _rows(db, customers, files=files, **asked),
            "items": [
                {**row, "title": row["title"] or row[ITEM_ID], "category": (row["category"] or [None])[-1]}
                for row in items
            ],
        }


def customer(lake: Lake, shop: Shop, user_id: str, version: str | None = None) -> dict[str, Any]:
    """Return what a version knew of a customer, the lists it made of that, and how; the current version for None.

    ``history`` holds the newest 100 events of ``n_events``, the newest first. Of each placement, ``list`` and
    ``left_out`` hold what each source, the ranker and the agent said of an item, where the version kept a trace;
    where it did not, ``note`` says so. No champion fills the other placements: they are lists alone.

    Raises
    ------
    NothingInLake
        The version is not in the lake, or has no list for the customer.

    """
    published = _published(lake, shop, version)
    with duckdb.connect() as db:
        lists = _lists_of(db, lake, user_id, published["version"])
        if not any(lists.values()):
            raise _unknown(db, lake, "customer", user_id, published)
        n_events, history = _history(db, lake, published, user_id)
        by_champion = [placement for placement in PLACEMENT_VIEW if placement in lists]
        traces = {placement: _trace(lake, placement, published["version"], user_id) for placement in by_champion}
        told = {item for trace in traces.values() if trace for item in trace["items"]}
        told |= {row[ITEM_ID] for rows in lists.values() for row in rows} | {row[ITEM_ID] for row in history}
        facts = _facts(lake, published, told)
    placements = {}
    for placement, rows in lists.items():
        champion = published["champions"].get(placement, {})
        placements[placement] = {
            "champion": Recipe(champion["recipe"]).label if champion else None,
            "model": champion.get("model"),
            **(_explained(rows, traces[placement], facts) if placement in traces else _plain(rows, facts)),
        }
    return {
        USER_ID: user_id,
        "version": published["version"],
        "as_of": published["as_of"],
        "tier": next(row["tier"] for rows in lists.values() for row in rows),
        "history": [{**row, **_named(row[ITEM_ID], facts), "price": row["price"]} for row in history],
        "n_events": n_events,
        "placements": placements,
    }


def item(lake: Lake, shop: Shop, item_id: str, version: str | None = None) -> dict[str, Any]:
    """Return an item as a version saw it: who bought it, in how many lists it stands, and what is like it.

    Raises
    ------
    NothingInLake
        The version is not in the lake, or its catalogue does not hold the item.

    """
    published = _published(lake, shop, version)
    with duckdb.connect() as db:
        found = _facts(lake, published, [item_id]).get(item_id)
        if not found:
            raise _unknown(db, lake, "item", item_id, published)
        count = f"SELECT count(*) AS n FROM read_parquet($files) WHERE {ITEM_ID} = $item"
        listed = {
            placement: _rows(db, count, files=_files(lake, placement, published["version"]), item=item_id)[0]["n"]
            for placement in placements_of(lake, published["version"])
            if placement in OF_CUSTOMERS
        }
        n_events, n_buyers = _interest(db, lake, shop, published, item_id)
        beside = {
            placement: _list(db, lake, placement, published["version"], item_id)
            for placement in placements_of(lake, published["version"])
            if placement in OF_ITEMS
        }
        facts = _facts(lake, published, [row[ITEM_ID] for rows in beside.values() for row in rows])
    return {
        **found,
        "title": found["title"] or item_id,
        "version": published["version"],
        "n_events": n_events,
        "n_buyers": n_buyers,
        "listed": listed,
        **{
            placement: [
                {"title": facts.get(row[ITEM_ID], {}).get("title") or row[ITEM_ID]}
                | {name: row[name] for name in ("rank", ITEM_ID, "score", "source", "reason")}
                for row in beside.get(placement, [])
            ]
            for placement in OF_ITEMS
        },
    }


def compare(lake: Lake, shop: Shop, user_id: str, version: str | None, other: str) -> dict[str, Any]:
    """Return by placement what a version's list of a customer ``kept`` of another version's, what is ``new``, ``gone``.

    ``before`` is the rank in the other version; ``change`` says how many places a kept item has risen.

    Raises
    ------
    NothingInLake
        A version is not in the lake, or neither has a list for the customer.

    """
    published, before = (_published(lake, shop, of) for of in (version, other))
    with duckdb.connect() as db:
        lists, earlier = (_lists_of(db, lake, user_id, of["version"]) for of in (published, before))
        if not any(lists.values()) and not any(earlier.values()):
            raise _unknown(db, lake, "customer", user_id, published)
        told = {row[ITEM_ID] for rows in (*lists.values(), *earlier.values()) for row in rows}
        facts = _facts(lake, before, told) | _facts(lake, published, told)

    def placed(row: dict[str, Any], **places: int | None) -> dict[str, Any]:
        named = _named(row[ITEM_ID], facts)
        return {ITEM_ID: row[ITEM_ID], **named, **places, "source": row["source"], "reason": row["reason"]}

    placements = {}
    for placement in (placement for placement in lists if placement in earlier):
        then = {row[ITEM_ID]: row["rank"] for row in earlier[placement]}
        now = {row[ITEM_ID] for row in lists[placement]}
        kept = [(row, then[row[ITEM_ID]]) for row in lists[placement] if row[ITEM_ID] in then]
        placements[placement] = {
            "kept": [placed(row, rank=row["rank"], before=rank, change=rank - row["rank"]) for row, rank in kept],
            "new": [placed(row, rank=row["rank"]) for row in lists[placement] if row[ITEM_ID] not in then],
            "gone": [placed(row, before=row["rank"]) for row in earlier[placement] if row[ITEM_ID] not in now],
        }
    return {
        USER_ID: user_id,
        "version": published["version"],
        "as_of": published["as_of"],
        "other": before["version"],
        "other_as_of": before["as_of"],
        "placements": placements,
    }


def _published(lake: Lake, shop: Shop, version: str | None) -> dict[str, Any]:
    """Return the manifest of a version of the shop."""
    now = current(lake)
    if now and now["shop"] != shop.name:
        now = None
    kept = versions(lake, shop) or ([now["version"]] if now else [])
    if not kept:
        raise NothingInLake(
            f"{lake.root}: nothing of the shop {shop.name} is published yet; run a night (make nightly)"
        )
    if version is None:
        version = now["version"] if now else kept[-1]
    if version not in kept:
        served = [line for line in ledger.served(lake, shop.name) if line["version"] == version]
        was = f" served until {served[-1]['to']} and was removed since" if served else " is not in the lake"
        raise NothingInLake(f"version {version}{was}; there are {', '.join(kept)}")
    return lake.manifest(entry(PLACEMENTS[0], version))


def _unknown(
    db: duckdb.DuckDBPyConnection, lake: Lake, what: str, wanted: str, published: dict[str, Any]
) -> NothingInLake:
    """Return the error that names ids like the one that is not there."""
    column, files = {
        "customer": (USER_ID, _files(lake, PLACEMENTS[0], published["version"])),
        "item": (ITEM_ID, _catalogue(lake, published)),
    }[what]
    near = (
        f"SELECT {column} AS id FROM (SELECT DISTINCT {column} FROM read_parquet($files)) "
        f"ORDER BY jaro_winkler_similarity(lower({column}), $text) DESC, {column} LIMIT $limit"
    )
    ids = [row["id"] for row in _rows(db, near, files=files, text=wanted.lower(), limit=NEAR)]
    return NothingInLake(
        f"{wanted!r} is no {what} of version {published['version']}; ids are compared as text. "
        f"The nearest are {', '.join(map(repr, ids))}"
    )


def _files(lake: Lake, placement: str, version: str) -> list[str]:
    folder = entry(placement, version)
    return [str(lake.path(folder) / file["name"]) for file in lake.manifest(folder)["files"]]


def _catalogue(lake: Lake, published: dict[str, Any]) -> list[str]:
    return [str(lake.path(published["snapshot"]) / "items.parquet")]


def _rows(db: duckdb.DuckDBPyConnection, sql: str, **given: Any) -> list[dict[str, Any]]:
    return db.execute(sql, given).to_arrow_table().to_pylist()


def _list(db: duckdb.DuckDBPyConnection, lake: Lake, placement: str, version: str, reader: str) -> list[dict[str, Any]]:
    """Return the rows of a list, best first; none where there is no list."""
    files = _likely_first(_files(lake, placement, version), reader)
    sql = f"FROM read_parquet($files) WHERE {USER_ID} = $reader ORDER BY rank"
    return _rows(db, sql, files=files[:1], reader=reader) or _rows(db, sql, files=files, reader=reader)


def _likely_first(files: list[str], reader: str) -> list[str]:
    """Return the files of a placement with the one in front that is the shard of a reader; a visitor's is the first."""
    shard = 0 if reader == ANONYMOUS else shard_of(reader, len(files))
    return [files[shard], *files[:shard], *files[shard + 1 :]]


def _lists_of(db: duckdb.DuckDBPyConnection, lake: Lake, user_id: str, version: str) -> dict[str, list[dict[str, Any]]]:
    held = [placement for placement in placements_of(lake, version) if placement in OF_CUSTOMERS]
    return {placement: _list(db, lake, placement, version, user_id) for placement in held}


def _trace(lake: Lake, placement: str, version: str, user_id: str) -> dict[str, Any] | None:
    """Return how a customer's list came about (``contract.trace_schema``), or None where no trace was kept."""
    files = [str(path) for path in sorted(lake.path(entry(TRACES, version)).glob(f"{placement}-*.parquet"))]
    for path in _likely_first(files, user_id) if files else ():
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            ids = file.metadata.row_group(group).column(0).statistics
            if ids and ids.has_min_max and not ids.min <= user_id <= ids.max:
                continue
            table = file.read_row_group(group)
            if (row := pc.index(table[USER_ID], user_id).as_py()) >= 0:
                return table.slice(row, 1).to_pylist()[0]
    return None


def _explained(
    rows: list[dict[str, Any]], trace: dict[str, Any] | None, facts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return a list, what it leaves out, and what the stages said of both."""
    if trace is None:
        note = "this version kept no trace, so what the sources, the ranker and the agent said is not known"
        return {**_plain(rows, facts), "note": note}
    told = {name: n for n, name in enumerate(trace["items"])}
    explained = []
    for row in rows:
        said = _said(trace, told[row[ITEM_ID]]) if row[ITEM_ID] in told else {}
        moved = _moved(trace, told[row[ITEM_ID]]) if row[ITEM_ID] in told else None
        explained.append(_row(row, facts, **said, note=moved or _note(row["source"], said, trace)))
    left_out = []
    for item_id in trace["items"][trace["listed"] :][:LEFT_OUT_SHOWN]:
        said = _said(trace, told[item_id])
        best = min(said["sources"], key=lambda name: said["sources"][name]["rank"])
        last = said["ranker"] or said["sources"][best]
        row = {"rank": None, ITEM_ID: item_id, "score": last["score"], "source": best, "reason": None}
        by = "the ranker" if said["ranker"] else best
        note = f"{by} has it in place {last['rank']}; the list ends with place {len(rows)}"
        if moved := _moved(trace, told[item_id]):
            note = moved if _rule(trace, told[item_id]) else f"{moved}; the list ends with place {len(rows)}"
        left_out.append(_row({**row, "reason_item_id": None}, facts, **said, note=note))
    return {"list": explained, "left_out": left_out, "note": None}


def _plain(rows: list[dict[str, Any]], facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"list": [_row(row, facts) for row in rows], "left_out": [], "note": None}


def _said(trace: dict[str, Any], place: int) -> dict[str, Any]:
    """Return what the stages said of one item of a trace."""

    def by(stage: dict[str, list[Any]] | None, score: str = "score") -> dict[str, Any] | None:
        known = stage and stage["rank"][place]
        return {"rank": stage["rank"][place], score: stage["score"][place]} if stage and known else None

    ranker, agent = (trace.get(stage) for stage in LATER_STAGES)
    sources = {name: said for name, stage in trace["sources"].items() if (said := by(stage))}
    return {"sources": sources, "ranker": by(ranker), "agent": by(agent, "q")}


def _rule(trace: dict[str, Any], place: int) -> str | None:
    """Return in words what the shop's rules did to one item of a trace."""
    return trace["rules"][place] if "rules" in trace else None


def _moved(trace: dict[str, Any], place: int) -> str | None:
    """Return in words where the diversity dial, and then the shop's rules, put one item of a trace."""
    before, after, why = (
        trace["dial"][name][place] if "dial" in trace else None for name in ("before", "after", "why")
    )
    said = [rule] if (rule := _rule(trace, place)) else []
    if before and why:
        by = next(
            (f"the {stage}" for stage in reversed(LATER_STAGES) if stage in trace), " and ".join(trace["sources"])
        )
        did = f"raised to {after} {why}" if after < before else f"lowered to {after} by the diversity dial"
        said.insert(0, f"place {before} by {by}, {did}")
    return "; ".join(said) or None


def _note(source: str, said: dict[str, Any], trace: dict[str, Any]) -> str | None:
    """Return in words what befell an item of a list beside being proposed and ranked."""
    if not said:
        return f"how it came about was kept for the first {trace['listed']} places only"
    ranker, agent = said["ranker"], said["agent"]
    if not said["sources"]:
        return OWN if ranker else FILLED
    if agent and agent["rank"] != ranker["rank"]:
        return f"the agent moved it from place {ranker['rank']} to {agent['rank']}"
    return None


def _row(row: dict[str, Any], facts: dict[str, dict[str, Any]], **said: Any) -> dict[str, Any]:
    return {
        "rank": row["rank"],
        ITEM_ID: row[ITEM_ID],
        **_named(row[ITEM_ID], facts),
        "score": row["score"],
        "source": row["source"],
        "reason": row["reason"],
        "because": row["reason_item_id"],
        **{"sources": {}, "ranker": None, "agent": None, "note": None, **said},
    }


def _named(item_id: str, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    known = facts.get(item_id, {})
    return {"title": known.get("title") or item_id, "category": known.get("category"), "price": known.get("price")}


def _facts(lake: Lake, published: dict[str, Any], items: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what the catalogue of a version says of items, by their ids."""
    (path,) = _catalogue(lake, published)
    table = pq.ParquetFile(path).read(columns=[*_FACTS, "available"])
    rows = pc.index_in(pa.array(sorted(set(items)), pa.string()), table[ITEM_ID]).drop_null()
    found = table.take(rows).to_pylist()
    return {row[ITEM_ID]: {**row, "category": (row["category"] or [None])[-1]} for row in found}


def _history(
    db: duckdb.DuckDBPyConnection, lake: Lake, published: dict[str, Any], user_id: str
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many events a version knew of a customer, and the newest of them, the newest first."""
    days = lake.manifest(published["snapshot"])["days"]
    files = [str(lake.root / day["file"]) for day in days]
    names = {TIMESTAMP: "time", EVENT_TYPE: "type", ITEM_ID: ITEM_ID, "price": "price"}
    if history := find_history(lake, days):
        user = pc.index(history.users, user_id).as_py()
        rows = np.flatnonzero(history.array("user") == user) if user >= 0 else np.empty(0, int)
        newest, starts = rows[-HISTORY_SHOWN:], np.cumsum([0, *(day["rows"] for day in days)])
        which = np.searchsorted(starts, newest, "right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(which)) + 1), len(which)]
        parts = [
            pq.ParquetFile(files[which[start]]).read(columns=list(names)).take(newest[start:end] - starts[which[start]])
            for start, end in pairwise(cuts)
            if end > start
        ]
        found, n_events = pa.concat_tables(parts) if parts else None, len(rows)
    else:
        log = "read_parquet($files, file_row_number=true)"
        sql = f"SELECT {', '.join(names)} FROM {log} WHERE {USER_ID} = $user ORDER BY {TIMESTAMP}, file_row_number"
        whole = db.execute(sql, {"files": files, "user": user_id}).to_arrow_table()
        found, n_events = whole.slice(max(0, len(whole) - HISTORY_SHOWN)), len(whole)
    if found is None:
        return 0, []
    found = found.set_column(0, TIMESTAMP, pc.cast(found[TIMESTAMP], pa.int64())).rename_columns(list(names.values()))
    return n_events, [{**row, "time": iso(row["time"])} for row in reversed(found.to_pylist())]


def _interest(
    db: duckdb.DuckDBPyConnection, lake: Lake, shop: Shop, published: dict[str, Any], item_id: str
) -> tuple[int, int]:
    """Return how many events a version knew of an item, and how many customers did the target event with it."""
    days = lake.manifest(published["snapshot"])["days"]
    if history := find_history(lake, days):
        code = pc.index(history.items, item_id).as_py()
        rows = np.flatnonzero(history.array("item") == code) if code >= 0 else np.empty(0, int)
        targets = rows[history.array("type")[rows] == EVENT_TYPES.index(shop.target)]
        return len(rows), len(np.unique(history.array("user")[targets]))
    sql = (
        f"SELECT count(*) AS events, count(DISTINCT {USER_ID}) FILTER ({EVENT_TYPE} = $target) AS buyers "
        f"FROM read_parquet($files) WHERE {ITEM_ID} = $item"
    )
    files = [str(lake.root / day["file"]) for day in days]
    (found,) = _rows(db, sql, files=files, target=shop.target, item=item_id)
    return found["events"], found["buyers"]
