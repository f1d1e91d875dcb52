"""How the lists did: what served, scored on what customers then did; and the series of all nights.

``series/<shop>/<night>.json`` in the lake holds one point a night, replaced at one instant when the night runs again.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from recsys_tasks import ledger
from recsys_tasks.contract import EVENT_TYPES, ITEM_ID, PLACEMENT_VIEW, TIERS, USER_ID
from recsys_tasks.errors import ContractError
from recsys_tasks.lake import Lake, replace_json
from recsys_tasks.metrics import bootstrap, bootstrap_share, gini, per_user
from recsys_tasks.models import Material, model_class
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import Catalog, Interactions, Snapshot, iso, microseconds, tiers
from recsys_tasks.split import Truth, truth
from recsys_tasks.versions import entry, heads, placements_of

K = 10
METRICS = (f"ndcg@{K}", f"recall@{K}", f"hit_rate@{K}")
REVENUE = f"revenue@{K}"
BESIDE = {"popular": {"half_life_days": 14.0}, "repeat": {"half_life_days": 90.0}}
"""Baselines that cost nothing to make again, as they would have served in the same hours."""
LEAST_BOUGHT = 30
"""Categories of which less was bought tell nothing."""


# ---- the series


def keep(lake: Lake, shop: str, point: Mapping[str, Any]) -> None:
    """Put a night's point in its place; ``night`` is the instant it looked back from, ISO 8601."""
    night = f"{datetime.fromisoformat(point['night']):%Y%m%dT%H%M%S}"
    replace_json(lake.root / "series" / shop / f"{night}.json", point, lake.drafts())


def nights(lake: Lake, shop: str, before: datetime, newest: int) -> list[dict[str, Any]]:
    """Return the newest points of the nights before an instant, oldest first."""
    files = sorted((lake.root / "series" / shop).glob("*.json"))
    files = [file for file in files if file.stem < f"{before:%Y%m%dT%H%M%S}"]
    return [json.loads(file.read_text()) for file in files[-newest:]]


# ---- what served


def what_served(lake: Lake, shop: str, since: int | None, until: int) -> tuple[str, int, int] | None:
    """Return the version that served longest in [since, until) and is still in the lake, and from when to when.

    The ledger tells when a version became current. Where a night looks back from an instant before that (an archive, a
    backfill), customers are taken to have seen it from its own ``as_of`` on. Without ``since``, only the newest counts.
    """
    begun: list[tuple[str, int, int]] = []  # version, made, begin
    for line in ledger.lines(lake):
        there = lake.has(entry("home", line["version"]))
        as_of = line.get("as_of") or (lake.manifest(entry("home", line["version"]))["as_of"] if there else None)
        if line["shop"] != shop or not as_of:
            continue
        made = microseconds(datetime.fromisoformat(as_of))
        at = microseconds(datetime.fromisoformat(line["at"]))
        begin = at if made < at < until else made
        if made < until:
            begun.append((line["version"], made, max([begin, *(b for _, _, b in begun[-1:])])))
    ends = [*(begin for _, _, begin in begun[1:]), until]
    served = [(v, max(b, since or b, made), end) for (v, made, b), end in zip(begun, ends, strict=False)]
    served = [found for found in served if found[1] < found[2] and lake.has(entry("home", found[0]))]
    return max(served if since else served[-1:], key=lambda found: found[2] - found[1], default=None)


# ---- how it did


def score(lake: Lake, shop: Shop, snapshot: Snapshot, version: str, start: int, end: int) -> dict[str, Any] | None:
    """Score a version's personal lists on the target events in [start, end); None where there are none.

    Returns ``version``, ``as_of`` (of the version), ``from`` and ``to``, and per placement (see ``_placement``).
    """
    interactions, catalog = snapshot.interactions(shop), snapshot.catalog()
    manifest = lake.manifest(entry("home", version))
    revenue = _revenue(snapshot, shop, catalog, interactions.n_users, start, end)
    made = interactions.before(microseconds(datetime.fromisoformat(manifest["as_of"])))
    found: dict[str, Any] = {}
    held = placements_of(lake, version)
    for placement, view in PLACEMENT_VIEW.items():
        if placement not in held:
            continue
        try:
            wanted = truth(interactions, start, end, view)
        except ContractError:  # nobody who was known did anything
            continue
        ranked = _served(lake, placement, version, interactions, catalog, wanted)
        had = (ranked >= 0).any(1)
        if had.any():
            wanted = Truth(wanted.past, wanted.users[had], wanted.items[had], view, end)
            found[placement] = _placement(shop, wanted, ranked[had], made, catalog, revenue)
            found[placement]["recipe"] = manifest["champions"].get(placement, {}).get("recipe")
    if not found:
        return None
    return {"version": version, "as_of": manifest["as_of"], "from": iso(start), "to": iso(end), "placements": found}


def _served(lake: Lake, placement: str, version: str, log: Interactions, catalog: Catalog, wanted: Truth) -> np.ndarray:
    """The first ten of these customers, (n, K) int32 of item_idx."""
    rows = heads(lake, placement, version, K)
    readers = pa.array(log.user_ids[wanted.users], pa.string())
    n, item = (
        pc.index_in(rows[name].combine_chunks(), ids).fill_null(-1).to_numpy()
        for name, ids in ((USER_ID, readers), (ITEM_ID, pa.array(catalog.item_ids, pa.string())))
    )
    ranked = np.full((len(readers), K), -1, np.int32)
    ranked[n[n >= 0], rows["rank"].to_numpy()[n >= 0] - 1] = item[n >= 0]
    return ranked


def _placement(
    shop: Shop, wanted: Truth, ranked: np.ndarray, made: Interactions, catalog: Catalog, revenue: sp.csr_matrix
) -> dict[str, Any]:
    """Metrics of the lists with intervals, the same by tier, beside the baselines, and by category."""
    spent = sp.csr_matrix(revenue[wanted.users].multiply(wanted.items))  # (n, n_items)
    values = _values(ranked, wanted.items, spent)
    found = {"customers": len(ranked), **_summary(values), "tiers": {}, "baselines": {}}
    tier = tiers(wanted.past.active_days, shop.tiers.loyal, shop.tiers.warm)[wanted.users]
    for name in TIERS:
        if (tier == name).any():
            part = {metric: value[tier == name] for metric, value in values.items()}
            found["tiers"][name] = {"customers": int((tier == name).sum()), **_summary(part)}
    candidates = catalog.candidates(made.as_of)
    of_popular = ranked
    for name, config in BESIDE.items():
        kind = model_class(name)
        model = kind(kind.Config(**config)).fit(Material(made, catalog, np.zeros((catalog.n_items, 1), np.float32)))
        lists = model.recommend(made, wanted.users, K, candidates, exclude_seen=wanted.exclude_seen).items
        theirs = _values(lists, wanted.items, spent)
        lift = bootstrap({"": values[METRICS[0]] - theirs[METRICS[0]]})[""]
        found["baselines"][name] = {**_summary(theirs, intervals=False), "over": lift}
        of_popular = lists if name == "popular" else of_popular
    found["categories"] = _categories(wanted.items, ranked, of_popular, catalog)
    return found


def _values(ranked: np.ndarray, wanted: sp.csr_matrix, spent: sp.csr_matrix) -> dict[str, np.ndarray]:
    values = per_user(ranked, wanted)
    captured = np.asarray(spent.multiply(_listed(ranked, wanted.shape[1])).sum(1)).ravel()
    return {name: values[name] for name in METRICS} | {"captured": captured, "spent": np.asarray(spent.sum(1)).ravel()}


def _summary(values: Mapping[str, np.ndarray], intervals: bool = True) -> dict[str, Any]:
    """Means; revenue captured, None where there are no prices; 95 % intervals over customers."""
    captured, spent = values["captured"], values["spent"]
    found: dict[str, Any] = {name: float(values[name].mean()) for name in METRICS}
    found[REVENUE] = float(captured.sum() / spent.sum()) if spent.sum() > 0 else None
    if intervals:
        found["interval"] = bootstrap({name: values[name] for name in METRICS})
        found["interval"][REVENUE] = bootstrap_share(captured, spent) if spent.sum() > 0 else None
    return found


def _listed(ranked: np.ndarray, n_items: int) -> sp.csr_matrix:
    rows, places = np.nonzero(ranked >= 0)
    ones = np.ones(len(rows), np.float32)
    return sp.csr_matrix((ones, (rows, ranked[rows, places])), shape=(len(ranked), n_items))


def _categories(
    wanted: sp.csr_matrix, ranked: np.ndarray, of_popular: np.ndarray, catalog: Catalog
) -> list[dict[str, Any]]:
    """What was bought of each category, and the shares that these lists and popular's held; least gain first."""
    names, code = np.unique(np.array(catalog.departments), return_inverse=True)

    def by_category(items: sp.csr_matrix) -> np.ndarray:
        return np.bincount(code[sp.csr_matrix(items).indices], minlength=len(names))

    bought = by_category(wanted)
    ours, theirs = (by_category(wanted.multiply(_listed(lists, len(code)))) for lists in (ranked, of_popular))
    rows = [
        {"category": str(names[n]), "bought": int(bought[n]), "captured": float(ours[n] / bought[n])}
        | {"popular": float(theirs[n] / bought[n])}
        for n in np.flatnonzero(bought >= LEAST_BOUGHT)
        if names[n]
    ]
    return sorted(rows, key=lambda row: (row["captured"] - row["popular"], row["captured"]))


def _revenue(snapshot: Snapshot, shop: Shop, catalog: Catalog, n_users: int, start: int, end: int) -> sp.csr_matrix:
    """(n_users, n_items) price times quantity of the target events in [start, end); a missing quantity is 1."""
    history = snapshot.history()
    first, last = np.searchsorted(history.array("time"), [start, end]).tolist()
    user, item, kind, quantity = (history.array(name)[first:last] for name in ("user", "item", "type", "value"))
    place = pc.index_in(history.items, pa.array(catalog.item_ids, pa.string())).fill_null(-1).to_numpy()[item]
    price = snapshot.prices(first, last)
    rows = (kind == EVENT_TYPES.index(shop.target)) & (place >= 0) & (price > 0)
    worth = price * np.where(np.isnan(quantity), 1, quantity)
    return sp.csr_matrix((worth[rows], (user[rows], place[rows])), shape=(n_users, catalog.n_items))


# ---- what tonight's lists are like


def describe(lake: Lake, shop: str, snapshot: Snapshot, version: str, as_of: int) -> dict[str, Any]:
    """Return what the drift watch reads of a version's personal lists (``drift.LISTS``) and who made them.

    ``overlap@10`` is against the version that served before it, over readers of both; None where there is none.
    """
    told = [line["version"] for line in ledger.lines(lake) if line["shop"] == shop]
    before = told[told.index(version) - 1] if version in told[1:] and told.index(version) else None
    before = before if before and lake.has(entry("home", before)) else None
    catalog = snapshot.catalog()
    n_candidates = int(catalog.candidates(as_of).sum())
    champions = lake.manifest(entry("home", version))["champions"]
    found = {}
    held = placements_of(lake, version)
    for placement in (placement for placement in PLACEMENT_VIEW if placement in held):
        rows = heads(lake, placement, version, K)
        then = before if before and lake.has(entry(placement, before)) else None
        item = rows[ITEM_ID].combine_chunks().dictionary_encode().indices.to_numpy()
        found[placement] = {
            "recipe": champions.get(placement, {}).get("recipe"),
            f"coverage@{K}": len(np.unique(item)) / n_candidates,
            f"gini@{K}": gini(item[:, None], 1, n_candidates),
            f"overlap@{K}": _overlap(rows, heads(lake, placement, then, K)) if then else None,
            "score": float(pc.mean(rows.filter(pc.field("rank") == 1)["score"]).as_py()),
            "before": before,
        }
    return found


def _overlap(now: pa.Table, then: pa.Table) -> float | None:
    with duckdb.connect() as db:
        db.register("now", now)
        db.register("before", then)
        found = db.execute(
            "SELECT avg((was.rank IS NOT NULL)::INT) FROM now LEFT JOIN before AS was USING (user_id, item_id) "
            "WHERE now.user_id IN (SELECT user_id FROM before)"
        ).fetchone()
    return found[0] if found else None
