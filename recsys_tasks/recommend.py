"""Step 7, recommend: lists for one shard of the customers and of the items, each row with its tier, source and reason.

Reads the champions and the index; writes ``lists/<id>/<placement>.parquet``, and beside the lists of customers how they
came about, ``trace-<placement>.parquet``. A shard is the users (and items) whose id hashes to it, so a shard that is
run again redoes only itself.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from recsys_tasks.contract import ANONYMOUS, LATER_STAGES, PLACEMENT_VIEW, RECOMMENDATIONS, USER_ID, trace_schema
from recsys_tasks.lake import fingerprint, shard_of, write_table
from recsys_tasks.models import STAGES, Model, Ranked
from recsys_tasks.models.base import FILL_HALF_LIFE_DAYS, fill, top_k
from recsys_tasks.models.trace import Trace
from recsys_tasks.nearest import NearestItems
from recsys_tasks.night import Night
from recsys_tasks.reasons import INTERESTED, PICKED, because_of, done_before, popular_in, similar_to
from recsys_tasks.recipe import Shelf
from recsys_tasks.snapshot import tiers
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
    lists = f"lists/{shard:04d}-{fingerprint(inputs)}"
    if lake.has(lists):
        log.info("%s: nothing has changed since these lists were made, reused", lists)
        return lists
    shelf = Shelf.open(lake, night.shop, snapshot, vectors)
    with lake.create(lists, inputs) as folder:
        users = of_shard(shelf.interactions.user_ids, shard, n_shards)
        readers = shelf.interactions.user_ids[users].astype(str)
        if shard == 0:
            users, readers = np.append(users, -1), np.append(readers, ANONYMOUS)
        users = users[np.argsort(readers)]  # by which Parquet's readers find a list at once
        for placement, view in PLACEMENT_VIEW.items():
            model = shelf.load(models[placement])
            wanted = night.shop.trace
            traced = (len(users), shelf.catalog.n_items, min(wanted.listed, night.k), wanted.left_out)
            trace = Trace(*traced) if wanted.listed else None
            table, told = _user_lists(night, shelf, model, users, view == "discovery", trace)
            write_table(table, folder / f"{placement}.parquet", dictionary_bytes=SENTENCES)
            if told:
                write_table(told, folder / f"trace-{placement}.parquet", _TRACED_TOGETHER)
            log.info("shard %d: %s for %d customers", shard, placement, len(users))
        items = of_shard(shelf.catalog.item_ids, shard, n_shards)
        write_table(_similar(night, shelf, items, index), folder / "similar.parquet", dictionary_bytes=SENTENCES)
        log.info("shard %d: similar for %d items", shard, len(items))
    return lists


def of_shard(ids: np.ndarray, shard: int, n_shards: int) -> np.ndarray:
    """Return the positions of the ids that belong to a shard.

    >>> sorted(n for s in range(3) for n in of_shard(np.array(["a", "b", "c", "d"]), s, 3).tolist())
    [0, 1, 2, 3]

    """
    return np.array([n for n, name in enumerate(ids) if shard_of(str(name), n_shards) == shard], np.int64)


def _user_lists(
    night: Night, shelf: Shelf, model: Model, users: np.ndarray, exclude_seen: bool, trace: Trace | None
) -> tuple[pa.Table, pa.Table | None]:
    """Return the lists, and how they came about where a trace is kept."""
    shop, log_, catalog = night.shop, shelf.interactions, shelf.catalog
    candidates = catalog.candidates(log_.as_of)
    ranked = model.recommend(log_, users, night.k, candidates, exclude_seen=exclude_seen, trace=trace)
    tier = tiers(log_.active_days, shop.tiers.loyal, shop.tiers.warm)
    last = np.zeros(log_.n_items, np.int64)
    ids, names, sources, said, because = [], [], [], [], []
    for n, user in enumerate(users):
        items = ranked.items[n][ranked.items[n] >= 0]
        evidence = np.full(len(items), -1, np.int32)
        times: dict[int, int] = {}
        if user >= 0:
            for name in dict.fromkeys(ranked.sources[n][: len(items)]):
                of_source = np.flatnonzero(ranked.sources[n][: len(items)] == name)
                witnesses = model.witnesses.get(name, model)
                evidence[of_source] = witnesses.evidence(log_, int(user), items[of_source])
            own = log_.bought[user]
            times = dict(zip(own.indices.tolist(), own.data.astype(int).tolist(), strict=True))
            events = log_.of_user(int(user))
            events = events[log_.is_target[events]]
            last[log_.item_idx[events]] = log_.time[events]  # in the order of time: the last one stays
        ids.append(ANONYMOUS if user < 0 else log_.user_ids[user])
        names.append("anonymous" if user < 0 else str(tier[user]))
        for item, source, witness in zip(items.tolist(), ranked.sources[n].tolist(), evidence.tolist(), strict=False):
            sources.append(source)
            if item in times:
                said.append(done_before(shop.target, times[item], int(last[item])))
                because.append(catalog.item_ids[item])
            elif source == "popular":
                said.append(popular_in(catalog.departments[item]))
                because.append(None)
            elif witness == item:
                said.append(INTERESTED)
                because.append(catalog.item_ids[item])
            elif witness >= 0:
                said.append(because_of(catalog.titles[witness], shop.target if witness in times else None))
                because.append(catalog.item_ids[witness])
            else:
                said.append(PICKED)
                because.append(None)
    table = _table(ids, names, catalog.item_ids, ranked, sources, said, because)
    return table, trace and _trace_table(ids, names, catalog.item_ids, model, trace)


def _trace_table(ids: Sequence[str], tier: Sequence[str], item_ids: np.ndarray, model: Model, trace: Trace) -> pa.Table:
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
    return pa.table(columns, trace_schema(sources, len(later)))


def _similar(night: Night, shelf: Shelf, items: np.ndarray, index: str) -> pa.Table:
    """Items nearest by vector; among equally near ones (to a hundredth) the more popular first."""
    catalog, folder = shelf.catalog, shelf.lake.path(index)
    source = shelf.lake.manifest(index)["vectors"].partition(" ")[0]
    nearest, rows = NearestItems.load(folder), np.load(folder / "rows.npy", allow_pickle=False)
    candidates = catalog.candidates(shelf.interactions.as_of)
    popularity = shelf.interactions.popularity(FILL_HALF_LIFE_DAYS)
    by_popularity = np.lexsort((np.arange(len(popularity)), -popularity))
    by_popularity = by_popularity[candidates[by_popularity]]
    place = np.full(catalog.n_items, -1)
    place[rows] = np.arange(len(rows))
    with_vector = np.flatnonzero(place[items] >= 0)
    k = night.k
    best = np.full((len(items), k), -1, np.int32)
    scores = np.zeros((len(items), k), np.float32)
    filled = np.zeros((len(items), k), bool)
    for start in range(0, len(with_vector), 4096):
        batch = with_vector[start : start + 4096]
        found, likeness = nearest.search(nearest.vectors[place[items[batch]]], 4 * k + 1)  # (batch, 4k + 1)
        found = rows[found]
        order_by = np.round(likeness, 2) + 0.009 * popularity[found] / (popularity.max() + 1e-9)
        order_by[found == items[batch, None]] = -np.inf
        top, value = top_k(order_by.astype(np.float32), min(k, found.shape[1]))
        top = np.take_along_axis(found, top, 1)
        top[~np.isfinite(value)] = -1
        best[batch, : top.shape[1]], scores[batch, : top.shape[1]] = top, np.where(top < 0, 0, value)
    for n in np.flatnonzero((best < 0).any(1)):
        own = int((best[n] >= 0).sum())
        more = fill(by_popularity, np.append(best[n, :own], items[n]), k - own)
        end = own + len(more)
        best[n, own:end], filled[n, own:end] = more, True
        scores[n, own:end] = (scores[n, own - 1] if own else 1) - np.arange(1, len(more) + 1) / 1024
    ranked = Ranked(best, scores, filled, np.where(filled, "popular", source).astype(object))
    listed, flat = best >= 0, np.flatnonzero((best >= 0).ravel())
    query = np.repeat(items, k)[flat]
    departments = [popular_in(catalog.departments[item]) for item in range(catalog.n_items)]
    likeness_said = [similar_to(title) for title in catalog.titles]
    is_filled = filled[listed]
    said = np.where(is_filled, np.array(departments, object)[best[listed]], np.array(likeness_said, object)[query])
    because: np.ndarray = np.where(is_filled, np.array(None), catalog.item_ids[query])
    sources = ranked.sources[listed].tolist()
    return _table(catalog.item_ids[items], ["anonymous"] * len(items), catalog.item_ids, ranked, sources, said, because)


def _table(
    ids: Sequence[str],
    tier: Sequence[str],
    item_ids: np.ndarray,
    ranked: Ranked,
    sources: Sequence[str],
    said: Sequence[str] | np.ndarray,
    because: Sequence[str | None] | np.ndarray,
) -> pa.Table:
    """One row a place of a list; ``sources``, ``said`` and ``because`` are given a row, the others a list."""
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
            pa.array(sources, pa.string()),
            pa.array(said, pa.string()),
            pa.array(because, pa.string()),
        ],
        schema=RECOMMENDATIONS,
    )
