"""Step 7, recommend: lists for one shard of the customers and of the items, each row with its tier, source and reason.

Reads the champions and the index; writes ``lists/<id>/<placement>.parquet``, and beside the lists of customers how they
came about, ``trace-<placement>.parquet``. The shop's rules have the last word on every list. A shard is the users (and
items) whose id hashes to it, so a shard that is run again redoes only itself.
"""

import logging
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_tasks.backoff import BackOff
from recsys_tasks.contract import (
    ANONYMOUS,
    LATER_STAGES,
    OF_ITEMS,
    PLACEMENT_VIEW,
    RECOMMENDATIONS,
    USER_ID,
    trace_schema,
)
from recsys_tasks.diversity import WHY, Dialled
from recsys_tasks.enforce import Done, places_of, ruled, rules_of
from recsys_tasks.lake import fingerprint, sha256, shard_of, write_table
from recsys_tasks.models import STAGES, Model, Ranked
from recsys_tasks.models.trace import Trace
from recsys_tasks.night import Night
from recsys_tasks.placements import Lists
from recsys_tasks.reasons import UNSPOKEN, Reasons
from recsys_tasks.recipe import Shelf
from recsys_tasks.rules import Facts
from recsys_tasks.snapshot import Interactions, tiers
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)

_TRACED_TOGETHER = 128
"""Customers of a row group: so many are read to find one."""
SENTENCES = 8 << 20
"""Bytes of distinct reasons, one an item or more, that are worth their own dictionary: it saves a seventh of a file."""


@timed
def recommend(night: Night, shard: int, champions: str, index: str, snapshot: str, vectors: str) -> str:
    """Write all lists of a shard and return their id."""
    lake, n_shards = night.lake, len(night.shards)
    models = {placement: won["model"] for placement, won in lake.manifest(champions)["champions"].items()}
    inputs = {"champions": models, "index": index, "snapshot": snapshot, "k": night.k, "shard": [shard, n_shards]}
    inputs["trace"] = night.shop.trace.model_dump()
    inputs["placements"], inputs["new_days"] = list(night.shop.placements), night.shop.new_days
    inputs |= {"rules": [rule.model_dump(mode="json") for rule in night.shop.rules]} if night.shop.rules else {}
    inputs |= {"diversity": night.shop.diversity.model_dump()} if night.shop.diversity.is_on else {}
    lists = f"lists/{shard:04d}-{fingerprint(inputs)}"
    if lake.has(lists):
        log.info("%s: nothing has changed since these lists were made, reused", lists)
        return lists
    shelf = Shelf.open(lake, night.shop, snapshot, vectors)
    facts = (
        Facts.of(pq.read_table(lake.path(snapshot) / "items.parquet"), shelf.attributes) if night.shop.rules else None
    )
    did: dict[str, Done] = {}
    made = Lists(shelf, index, night.k)
    with lake.create(lists, inputs) as folder:
        users = of_shard(shelf.interactions.user_ids, shard, n_shards)
        readers = shelf.interactions.user_ids[users].astype(str)
        if shard == 0:
            users, readers = np.append(users, -1), np.append(readers, ANONYMOUS)
        users = users[np.argsort(readers)]  # by which Parquet's readers find a list at once
        reasons = Reasons(night.shop.target, shelf.catalog, shelf.interactions, users)
        for placement, view in PLACEMENT_VIEW.items():
            if placement not in night.shop.placements:
                continue
            model = shelf.load(models[placement])
            wanted = night.shop.trace
            traced = (len(users), shelf.catalog.n_items, min(wanted.listed, night.k), wanted.left_out)
            trace = Trace(*traced) if wanted.listed else None
            rules = facts and rules_of(night, shelf, facts, placement)
            done = did[placement] = Done(rules) if rules else Done()
            dialled = Dialled.of(shelf, model, placement)
            table, told = _user_lists(
                night, shelf, model, made.back_off, users, view == "discovery", trace, done, reasons, dialled
            )
            write_table(table, folder / f"{placement}.parquet", dictionary_bytes=SENTENCES)
            if told:
                write_table(told, folder / f"trace-{placement}.parquet", _TRACED_TOGETHER)
            log.info("shard %d: %s for %d customers", shard, placement, len(users))
        items = of_shard(shelf.catalog.item_ids, shard, n_shards)
        for placement in night.shop.placements:
            if placement in PLACEMENT_VIEW:
                continue
            asked = items if placement in OF_ITEMS else users
            rules = facts and rules_of(night, shelf, facts, placement, made.is_new if placement == "new" else None)
            done = did[placement] = Done(rules) if rules else Done()
            table = _counted(night, made, placement, asked, done, reasons)
            write_table(table, folder / f"{placement}.parquet", dictionary_bytes=SENTENCES)
            log.info("shard %d: %s for %d readers", shard, placement, len(asked))
        for placement, done in did.items():
            if done.places is not None:
                write_table(places_of(folder / f"{placement}.parquet", done), folder / f"places-{placement}.parquet")
        inputs["drops"] = {placement: done.drops for placement, done in did.items()}
        inputs["moves"] = {placement: done.moves for placement, done in did.items()}
        inputs["files"] = [{"name": file.name, "sha256": sha256(file)} for file in sorted(folder.iterdir())]
    return lists


def of_shard(ids: np.ndarray, shard: int, n_shards: int) -> np.ndarray:
    """Return the positions of the ids that belong to a shard.

    >>> sorted(n for s in range(3) for n in of_shard(np.array(["a", "b", "c", "d"]), s, 3).tolist())
    [0, 1, 2, 3]

    """
    return np.array([n for n, name in enumerate(ids) if shard_of(str(name), n_shards) == shard], np.int64)


def _user_lists(
    night: Night,
    shelf: Shelf,
    model: Model,
    back_off: BackOff,
    users: np.ndarray,
    exclude_seen: bool,
    trace: Trace | None,
    done: Done,
    reasons: Reasons,
    dialled: Dialled | None = None,
) -> tuple[pa.Table, pa.Table | None]:
    """Return the lists, and how they came about where a trace is kept."""
    log_, catalog = shelf.interactions, shelf.catalog
    candidates = catalog.candidates(log_.as_of)

    def ask(users: np.ndarray, k: int, candidates: np.ndarray) -> tuple[Ranked, Trace | None]:
        told = Trace(len(users), catalog.n_items, k, trace.left_out) if trace else None
        ranked = model.recommend(log_, users, k, candidates, exclude_seen=exclude_seen, trace=told)
        return back_off.refill(ranked, users, candidates, exclude_seen, told), told

    proposers = list(model.witnesses) or [model.name]
    varied = partial(dialled.lists, ask, night.k, proposers) if dialled else ask
    if done.rules:
        ranked = ruled(done, varied, users, night.k, trace, proposers)
    elif dialled:
        ranked, told = varied(users, night.k, candidates)
        if trace and told:
            trace.shorten(told)
    else:
        ranked = model.recommend(log_, users, night.k, candidates, exclude_seen=exclude_seen, trace=trace)
        ranked = back_off.refill(ranked, users, candidates, exclude_seen, trace)
    ids, tier = _of_customers(night, log_, users)
    said, because = reasons.to_customers(users, ranked.items, ranked.sources, _evidence(model, log_, users, ranked))
    table = _table(ids, tier, catalog.item_ids, ranked, said, because)
    return table, trace and _trace_table(ids, tier, catalog.item_ids, model, trace)


def _evidence(model: Model, log_: Interactions, users: np.ndarray, ranked: Ranked) -> np.ndarray:
    """Return (n, k) the item of the history that speaks for each item, by the model that put it there; -1 for none."""
    found = np.full(ranked.items.shape, -1, np.int32)
    for name in pd.unique(ranked.sources.ravel()):
        if name in UNSPOKEN:
            continue
        own = (ranked.sources == name) & (ranked.items >= 0) & (users >= 0)[:, None]
        rows, width = np.flatnonzero(own.any(1)), own.sum(1).max(initial=0)
        columns = np.argsort(~own[rows], axis=1, kind="stable")[:, :width]  # those of the source first
        there = np.take_along_axis(own[rows], columns, 1)
        items = np.where(there, np.take_along_axis(ranked.items[rows], columns, 1), -1)
        speaks = model.witnesses.get(name, model).evidence(log_, users[rows], items)
        at = np.broadcast_to(rows[:, None], columns.shape)
        found[at[there], columns[there]] = speaks[there]
    return found


def _trace_table(ids: np.ndarray, tier: np.ndarray, item_ids: np.ndarray, model: Model, trace: Trace) -> pa.Table:
    """One row a list; see ``contract.trace_schema``."""
    there = trace.items >= 0
    offsets = pa.array(np.concatenate([[0], there.sum(1).cumsum()]), pa.int32())

    def said(name: str) -> pa.Array:
        rank, score = (of.get(name, np.zeros(there.shape))[there] for of in (trace.ranks, trace.scores))
        parts = [
            pa.ListArray.from_arrays(offsets, pa.array(part, kind, mask=rank == 0))
            for part, kind in ((rank, pa.int32()), (score, pa.float32()))
        ]
        return pa.StructArray.from_arrays(parts, ["rank", "score"])

    sources = list(model.witnesses) or [model.name]
    later = [name for name, stage in STAGES.items() if stage <= STAGES.get(model.name, 1)]
    columns = {
        USER_ID: pa.array(ids, pa.string()),
        "tier": pa.array(tier, pa.string()),
        "listed": pa.array(there[:, : trace.listed].sum(1), pa.int16()),
        "items": pa.ListArray.from_arrays(offsets, pa.array(item_ids, pa.string()).take(pa.array(trace.items[there]))),
        "sources": pa.StructArray.from_arrays([said(name) for name in sources], sources),
        **{role: said(name) for role, name in zip(LATER_STAGES, later, strict=False)},
    }
    if trace.rules is not None:
        columns["rules"] = pa.ListArray.from_arrays(offsets, pa.array(trace.rules[there], pa.string()))
    if trace.dial is not None:
        parts = [trace.dial[there][:, n] for n in range(3)]
        values = [pa.array(part, pa.int32(), mask=part == 0) for part in parts[:2]]
        values.append(pa.array(np.array(WHY, object)[parts[2]], pa.string(), mask=parts[0] == parts[1]))
        lists = [pa.ListArray.from_arrays(offsets, part) for part in values]
        columns["dial"] = pa.StructArray.from_arrays(lists, ["before", "after", "why"])
    is_told = (trace.rules is not None, trace.dial is not None)
    return pa.table(columns, trace_schema(sources, len(later), *is_told))


def _counted(night: Night, made: Lists, placement: str, readers: np.ndarray, done: Done, reasons: Reasons) -> pa.Table:
    """Return the lists of a placement that no champion fills; readers are customers, or items."""
    catalog, log_ = made.catalog, made.log
    candidates, ask = catalog.candidates(log_.as_of), made.ask(placement)
    ranked = ruled(done, ask, readers, night.k) if done.rules else ask(readers, night.k, candidates)[0]
    if placement in OF_ITEMS:
        ids, tier = catalog.item_ids[readers], np.full(len(readers), "anonymous", object)
        said, because = reasons.to_items(readers, ranked.items, ranked.sources)
    else:
        ids, tier = _of_customers(night, log_, readers)
        nobody = np.full(ranked.items.shape, -1, np.int32)
        said, because = reasons.to_customers(readers, ranked.items, ranked.sources, nobody)
    return _table(ids, tier, catalog.item_ids, ranked, said, because)


def _of_customers(night: Night, log_: Interactions, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and the tiers of (n,) user_idx; -1 is a visitor."""
    known, limits = users >= 0, night.shop.tiers
    tier = np.full(len(users), "anonymous", object)
    tier[known] = tiers(log_.active_days[users[known]], limits.loyal, limits.warm)
    ids = np.full(len(users), ANONYMOUS, object)
    ids[known] = log_.user_ids[users[known]]
    return ids, tier


def _table(
    ids: np.ndarray, tier: np.ndarray, item_ids: np.ndarray, ranked: Ranked, said: pa.Array, because: pa.Array
) -> pa.Table:
    """One row a place of a list; ``said`` and ``because`` are given a row, the others a list."""
    listed = ranked.items >= 0  # (n, k), True at the head of each row
    lengths = listed.sum(1)
    rank = np.broadcast_to(np.arange(1, listed.shape[1] + 1, dtype=np.int16), listed.shape)[listed]
    lists = pa.array(np.repeat(np.arange(len(ids)), lengths))
    return pa.table(
        [
            pa.array(ids, pa.string()).take(lists),
            pa.array(rank),
            pa.array(item_ids, pa.string()).take(pa.array(ranked.items[listed])),
            pa.array(ranked.scores[listed]),
            pa.array(tier, pa.string()).take(lists),
            pa.array(ranked.sources[listed], pa.string()),
            said,
            because,
        ],
        schema=RECOMMENDATIONS,
    )
