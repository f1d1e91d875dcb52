"""Step 8, check: read tonight's rows again, from outside, and prove them before anybody sees them.

Reads the lists, the catalogue and the events as files, by SQL: it shares words with the steps that made
the rows, and no code. One shard is checked after the other, so that memory holds what the customers of one of them did.
Every reason is worked out again, and the shop's rules are written a second time, as conditions that no row may break.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from recsys_tasks.contract import (
    ANONYMOUS,
    BACK_OFF,
    BOUGHT_TOGETHER,
    EVENT_TYPES,
    NEW,
    OF_CUSTOMERS,
    OF_ITEMS,
    PINNED,
    POPULAR,
    POPULAR_CATEGORY,
    POPULAR_SEGMENT,
    RECOMMENDATIONS,
    TIERS,
    TRENDING,
)
from recsys_tasks.errors import CheckFailed
from recsys_tasks.expressions import to_sql
from recsys_tasks.lake import TEMPORARY, Lake
from recsys_tasks.night import Night
from recsys_tasks.reasons import (
    AMONG,
    CHOSEN,
    DID,
    DOES,
    INTERESTED,
    LATE,
    LIKE_YOU,
    OFTEN,
    PICKED,
    SPANS,
    readable,
    rising,
    together_with,
)
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Days, Match, Rule
from recsys_tasks.snapshot import DAY, Snapshot
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
    _refuse_changed(lake, lists)
    found: dict[str, Counter[str]] = {placement: Counter() for placement in night.shop.placements}
    faults: Faults = {}
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as spill, _connect(spill) as db:
        _state(db, night, snapshot)
        for entry in lists:
            files = {placement: lake.path(entry) / f"{placement}.parquet" for placement in night.shop.placements}
            _meet(db, night, [str(files[placement]) for placement in files if placement in OF_CUSTOMERS])
            for placement, file in files.items():
                places = lake.path(entry) / f"places-{placement}.parquet"
                db.execute("DROP TABLE IF EXISTS rows")
                db.read_parquet(str(file)).create("rows")
                db.execute("CREATE OR REPLACE TABLE readers AS SELECT DISTINCT user_id FROM rows")
                db.execute("INSERT INTO served SELECT ?, user_id FROM readers", [placement])
                found[placement].update(_counted(db))
                _search(db, night, placement, places, faults)
        for placement in night.shop.placements:  # who has no list must be one who cannot have any
            _note(faults, placement, _among_all(placement), db)
            db.execute("CREATE OR REPLACE TABLE rows AS FROM rows LIMIT 0")
            served = "SELECT user_id FROM served WHERE placement = ?"
            expected = f"{_expected(placement)} EXCEPT ({served})"
            db.execute(f"CREATE OR REPLACE TABLE readers AS {expected}", [placement])
            if _counted(db)["lists"]:
                _meet(db, night, [])
                _search(db, night, placement, None, faults)
    if faults:
        said = [
            f"{place}: {name}: {n:,} times, for example {example}" for (place, name), (n, example) in faults.items()
        ]
        raise CheckFailed("tonight's lists are not published, the last version stays current:\n" + "\n".join(said))
    for name, counted in found.items():
        log.info("%s: %s rows in %s lists, no fault found", name, f"{counted['rows']:,}", f"{counted['lists']:,}")
    return {placement: dict(counts) for placement, counts in found.items()}


def _refuse_changed(lake: Lake, lists: list[str]) -> None:
    """Remove lists whose files are not what was written, so that the next try makes them anew, and say so."""
    changed = {entry: names for entry in lists if (names := lake.changed(entry))}
    for entry in changed:
        lake.drop(entry)
    if changed:
        told = ", ".join(f"{lake.path(entry) / name}" for entry, names in changed.items() for name in names)
        raise CheckFailed(
            f"{told}: not the bytes that recommend wrote; is the disk failing? The last version stays current. "
            "These lists are removed: run the night again (in Airflow, clear recommend), and they are made anew"
        )


def _connect(spill: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"temp_directory": spill, "memory_limit": f"{Settings().memory_gb}GB"})


def _state(db: duckdb.DuckDBPyConnection, night: Night, snapshot: str) -> None:
    """Make the tables of the night: ``events``, ``items``, what is ``popular`` now, who was ``served``."""
    lake, shop = night.lake, night.shop
    days = [str(lake.root / day["file"]) for day in Snapshot(lake, snapshot).manifest["days"]]
    db.execute("SET TimeZone = 'UTC'")
    db.read_parquet(days).create_view("events")
    db.read_parquet(str(lake.path(snapshot) / "items.parquet")).create("items")
    names = db.execute("SELECT DISTINCT coalesce(category[1], '') FROM items").fetchall()
    db.execute("CREATE TABLE departments (department VARCHAR, name VARCHAR)")
    db.executemany("INSERT INTO departments VALUES (?, ?)", [(name, readable(name)) for (name,) in names])
    sold = " UNION ALL ".join(
        f"SELECT {place} AS place, item_id, department, count(*) AS n FROM events JOIN titled USING (item_id) "
        f"WHERE event_type = {_text(shop.target)} AND timestamp >= TIMESTAMPTZ '{night.as_of}' - INTERVAL {days} DAY "
        "GROUP BY ALL"
        for place, days in enumerate(SPANS, 1)
    )
    db.execute(
        "CREATE TABLE titled AS SELECT item_id, coalesce(nullif(title, ''), item_id) AS title, "
        "coalesce(category[1], '') AS department FROM items"
    )
    db.execute(
        "CREATE TABLE popular AS SELECT item_id, min(place) AS place FROM (SELECT *, "
        "rank() OVER (PARTITION BY place, department ORDER BY n DESC) AS rank, "
        f"count(*) OVER (PARTITION BY place, department) AS sold FROM ({sold})) "
        f"WHERE n > 1 AND rank <= greatest({AMONG}, sold // 10) GROUP BY ALL"
    )
    _state_counts(db, night, snapshot)
    db.execute("CREATE TABLE served (placement VARCHAR, user_id VARCHAR)")
    if shop.rules:
        _state_facts(db, night, snapshot)


def _meet(db: duckdb.DuckDBPyConnection, night: Night, files: list[str]) -> None:
    """Make ``met``, what the customers of some lists (without, of ``readers``) did with which items.

    ``times`` and ``last`` are of the target event; ``gap`` is the median of the days between two days with it, where
    these are a habit.
    """
    shop = night.shop
    target, as_of = _text(shop.target), f"epoch_us(TIMESTAMPTZ '{night.as_of}')"
    whose = f"read_parquet({files!r})" if files else "readers"
    db.execute(
        "CREATE OR REPLACE TABLE met AS WITH own AS ("
        "SELECT user_id, item_id, event_type, epoch_us(timestamp) AS us FROM events "
        f"SEMI JOIN {whose} USING (user_id)), "
        f"pairs AS (SELECT user_id, item_id, count(*) FILTER (event_type = {target}) AS times, "
        f"max(us) FILTER (event_type = {target}) AS last, "
        f"list(DISTINCT us // {DAY}) FILTER (event_type = {target}) AS days FROM own GROUP BY ALL), "
        f"often AS (SELECT * REPLACE (list_sort(days) AS days) FROM pairs WHERE len(days) >= {OFTEN}), "
        "gaps AS (SELECT user_id, item_id, list_sort(list_transform(range(2, len(days) + 1), "
        "lambda day: days[day] - days[day - 1])) AS gaps FROM often) "
        "SELECT user_id, item_id, times, last, CASE "
        f"WHEN {as_of} // {DAY} - last // {DAY} <= {LATE} * gaps[len(gaps) // 2 + len(gaps) % 2] "
        "THEN gaps[len(gaps) // 2 + len(gaps) % 2] END AS gap FROM pairs LEFT JOIN gaps USING (user_id, item_id)"
    )
    counts = ", ".join(_text(name) for name in EVENT_TYPES if shop.weight(name) > 0)
    db.execute(
        "CREATE OR REPLACE TABLE tiers AS SELECT user_id, CASE "
        f"WHEN n >= {shop.tiers.loyal} THEN 'loyal' WHEN n >= {shop.tiers.warm} THEN 'warm' "
        "WHEN n >= 1 THEN 'cold' ELSE 'anonymous' END AS tier FROM (SELECT user_id, "
        f"count(DISTINCT epoch_us(timestamp) // {DAY}) FILTER (event_type IN ({counts}) AND item_id IN "
        f"(SELECT item_id FROM items)) AS n FROM events SEMI JOIN {whose} USING (user_id) GROUP BY ALL)"
    )


def _counted(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    rows, readers = db.execute("SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM readers)").fetchone() or (
        0,
        0,
    )
    return {"rows": rows, "lists": readers}


Faults = dict[tuple[str, str], tuple[int, str]]
"""Placement and what is wrong there -> how often, and an example."""


def _search(db: duckdb.DuckDBPyConnection, night: Night, placement: str, places: Path | None, faults: Faults) -> None:
    """Add what is wrong with ``rows``, the lists of ``readers``."""
    queries = _queries(night, placement) | _of_reasons(night, placement)
    if rules := night.shop.rules_of(placement, night.instant):
        queries |= _of_rules(db, night, placement, rules, [str(places)] if places and places.exists() else [])
    _note(faults, placement, queries, db)


def _note(faults: Faults, placement: str, queries: dict[str, str], db: duckdb.DuckDBPyConnection) -> None:
    for name, sql in queries.items():
        number, example = db.execute(f"SELECT count(*), min(example) FROM ({sql})").fetchone() or (0, "")
        if number:
            before, first = faults.get((placement, name), (0, example))
            faults[placement, name] = before + number, first


def _among_all(placement: str) -> dict[str, str]:
    """SQL that returns a row for whoever has a list in two shards, or one that nobody asked for."""
    served = f"(SELECT user_id FROM served WHERE placement = {_text(placement)})"
    return {
        "a list in two shards": f"SELECT user_id AS example FROM {served} GROUP BY user_id HAVING count(*) > 1",
        "a list nobody asked for": f"SELECT user_id AS example FROM {served} EXCEPT ({_expected(placement)})",
    }


def _candidates(night: Night, placement: str = "home") -> str:
    """Return SQL of the items that lists may hold."""
    as_of = f"TIMESTAMPTZ '{night.as_of}'"
    new = " AND item_id IN (FROM new_items)" if placement == "new" else ""
    return f"(SELECT item_id FROM items WHERE available AND (updated_at IS NULL OR updated_at < {as_of}){new})"


def _expected(placement: str) -> str:
    """Whose lists there are."""
    if placement in OF_ITEMS:
        return "SELECT item_id AS user_id FROM items"
    visitors = "" if placement == "buy_again" else f" UNION ALL SELECT '{ANONYMOUS}'"  # they have bought nothing
    return f"SELECT DISTINCT user_id FROM events{visitors}"


_NOTHING = "SELECT NULL::VARCHAR AS user_id, NULL::VARCHAR AS item_id WHERE false"
LEFT_OUT = {
    "discover": "SELECT user_id, item_id FROM met WHERE times > 0",
    **dict.fromkeys(OF_ITEMS, "SELECT item_id AS user_id, item_id FROM items"),
}
"""What lists of a placement never hold."""
NEW_DAYS = (7, 14, 30, 60, 90)
"""Ages up to which an item is new; the first that fills a list counts, where the shop does not say."""


def _state_counts(db: duckdb.DuckDBPyConnection, night: Night, snapshot: str) -> None:
    """Make the tables of what placements and sources are about: ``new_items``, ``rising``, ``baskets``,
    ``traits`` of customers and in ``shares`` what customers of a trait buy more of than all.
    """
    shop, as_of = night.shop, f"epoch_us(TIMESTAMPTZ '{night.as_of}')"
    target, told = _text(shop.target), ", ".join(_text(name) for name in EVENT_TYPES if shop.weight(name) > 0)
    tasteful = f"FROM events SEMI JOIN items USING (item_id) WHERE event_type IN ({told})"
    db.execute(
        "CREATE TABLE known AS SELECT item_id, min(seen) AS since FROM (SELECT item_id, epoch_us(timestamp) AS seen "
        f"{tasteful} UNION ALL SELECT item_id, epoch_us(updated_at) FROM items) GROUP BY ALL"
    )
    days: int | None = shop.new_days
    if days is None:
        (length,) = db.execute(f"SELECT {as_of} - min(epoch_us(timestamp)) {tasteful}").fetchone() or (0,)
        able = [n for n in NEW_DAYS if 2 * n * DAY <= (length or 0)]
        new = f"SELECT count(*) FROM {_candidates(night)} JOIN known USING (item_id) WHERE since >= {as_of} - ? * {DAY}"
        enough = [n for n in able if (db.execute(new, [n]).fetchone() or (0,))[0] >= night.k]
        days = (enough or able[-1:] or [0])[0]
    db.execute(
        "CREATE TABLE new_items AS SELECT item_id FROM known "
        f"WHERE since >= {as_of} - {days} * {DAY} AND since < {as_of}"
    )
    db.execute(
        "CREATE TABLE rising AS WITH sales AS (SELECT DISTINCT user_id, item_id, "
        f"({as_of} - 1 - epoch_us(timestamp)) // {DAY} AS ago FROM events SEMI JOIN items USING (item_id) "
        f"WHERE event_type = {target} AND epoch_us(timestamp) >= {as_of} - 35 * {DAY}), counts AS ("
        "SELECT item_id, count(*) FILTER (ago < 7) AS now, count(*) FILTER (ago >= 7) AS before FROM sales "
        "GROUP BY ALL), totals AS (SELECT sum(now) AS all_now, sum(before) AS all_before FROM counts) "
        "SELECT item_id FROM counts, totals WHERE "
        "ln((now + 0.5) * (all_before + 1) / ((before + 0.5) * (all_now + 1))) "
        "- 2 * sqrt(1 / (now + 0.5) + 1 / (before + 0.5)) > -1e-9"
    )
    if "bought_together" in shop.placements:
        db.execute(
            "CREATE TABLE baskets AS SELECT DISTINCT hash(user_id, coalesce('s' || session_id, "
            f"'d' || (epoch_us(timestamp) // {DAY}))) AS basket, item_id FROM events WHERE event_type = {target}"
        )
    db.execute("CREATE TABLE traits (user_id VARCHAR, trait VARCHAR)")
    users = night.lake.path(snapshot) / "users.parquet"
    if users.exists():
        db.execute(
            "INSERT INTO traits SELECT user_id, name || '=' || value FROM "
            f"(UNPIVOT (FROM read_parquet({_text(str(users))})) ON COLUMNS(* EXCLUDE user_id)) WHERE value <> ''"
        )
        weight = " ".join(f"WHEN {_text(name)} THEN {shop.weight(name)!r}" for name in EVENT_TYPES)
        db.execute(
            "CREATE TABLE shares AS WITH sold AS (SELECT user_id, item_id, sum(CASE event_type "
            f"{weight} END * 0.5 ** (({as_of} - epoch_us(timestamp)) / {DAY} / 14)) AS n {tasteful} GROUP BY ALL), "
            "whole AS (SELECT item_id, sum(n) / (SELECT sum(n) FROM sold) AS share FROM sold GROUP BY ALL), "
            "parts AS (SELECT trait, item_id, sum(n) AS n FROM sold JOIN traits USING (user_id) GROUP BY ALL) "
            "SELECT trait, item_id FROM (SELECT *, n / sum(n) OVER (PARTITION BY trait) AS part FROM parts) "
            "JOIN whole USING (item_id) WHERE part > share"
        )
    else:
        db.execute("CREATE TABLE shares (trait VARCHAR, item_id VARCHAR)")


def _of_sources(placement: str) -> dict[str, str]:
    """Return SQL for rows that are not what their placement, or their source, is about."""
    example = "SELECT user_id || ' ' || item_id AS example FROM rows"
    of_department = (
        "SELECT m.user_id, t.department FROM met m JOIN titled t USING (item_id)"
        if placement in OF_CUSTOMERS
        else "SELECT item_id AS user_id, category[-1] AS department FROM items"
    )
    level = "department" if placement in OF_CUSTOMERS else "category[-1]"
    queries = {
        "an item that does not rise": f"{example} WHERE source = {_text(TRENDING)} AND item_id NOT IN (FROM rising)",
        "an item of another category": f"{example} JOIN (SELECT *, coalesce(category[1], '') AS department FROM items) "
        f"USING (item_id) WHERE source = {_text(POPULAR_CATEGORY)} "
        f"AND (user_id, {level}) NOT IN (SELECT (user_id, department) FROM ({of_department}))",
        "an item that customers like this one do not buy more of": f"{example} r WHERE source = "
        f"{_text(POPULAR_SEGMENT)} AND NOT EXISTS (FROM traits JOIN shares USING (trait) "
        "WHERE traits.user_id = r.user_id AND shares.item_id = r.item_id)",
    }
    if placement == "buy_again":
        bought = "(SELECT user_id, item_id FROM met WHERE times > 0)"
        queries["an item that the customer never bought"] = f"{example} ANTI JOIN {bought} USING (user_id, item_id)"
    if placement == "new":
        queries["an item that is not new"] = f"{example} WHERE item_id NOT IN (FROM new_items)"
    if placement == "bought_together":
        rows = f"(SELECT user_id, item_id FROM rows WHERE source = {_text(BOUGHT_TOGETHER)})"
        shared = (
            f"SELECT r.user_id, r.item_id FROM {rows} r JOIN baskets a ON a.item_id = r.user_id "
            "JOIN baskets b ON b.basket = a.basket AND b.item_id = r.item_id GROUP BY ALL HAVING count(*) >= 2"
        )
        queries["items that no two baskets hold together"] = (
            f"SELECT user_id || ' ' || item_id AS example FROM {rows} ANTI JOIN ({shared}) USING (user_id, item_id)"
        )
    return queries


def _queries(night: Night, placement: str) -> dict[str, str]:
    """SQL that returns a row, with an ``example``, for every violation of a sentence."""
    candidates, left_out = _candidates(night, placement), LEFT_OUT.get(placement, _NOTHING)
    # how many items a list could hold: all candidates, less those that this list must leave out
    possible = (
        "SELECT e.user_id, count(c.item_id) AS n FROM readers e LEFT JOIN met b ON b.user_id = e.user_id "
        f"AND b.times > 0 LEFT JOIN {candidates} c ON c.item_id = b.item_id GROUP BY ALL"
        if placement == "buy_again"
        else f"SELECT e.user_id, (SELECT count(*) FROM {candidates}) - count(c.item_id) AS n FROM readers e "
        f"LEFT JOIN ({left_out}) l ON l.user_id = e.user_id "
        f"LEFT JOIN {candidates} c ON c.item_id = l.item_id GROUP BY ALL"
    )
    queries = {
        "a list has too few or too many items": f"SELECT p.user_id AS example FROM ({possible}) p LEFT JOIN "
        "(SELECT user_id, count(*) AS n FROM rows GROUP BY ALL) r ON r.user_id = p.user_id "
        f"WHERE coalesce(r.n, 0) <> least(p.n, {night.k})",
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
        "a tier that the customer is not of": "SELECT r.user_id || ' ' || r.tier AS example FROM rows r "
        "LEFT JOIN tiers t USING (user_id) WHERE r.tier <> coalesce(t.tier, 'anonymous')",
        "a value is missing": "SELECT user_id AS example FROM rows WHERE "
        + " OR ".join(f"{field.name} IS NULL" for field in RECOMMENDATIONS if not field.nullable),
        "no source or reason": "SELECT user_id AS example FROM rows WHERE trim(source) = '' OR trim(reason) = ''",
    }
    if placement in OF_CUSTOMERS:
        queries["a reason that names an item the customer never met"] = (
            "SELECT r.user_id || ' ' || r.reason_item_id AS example FROM rows r ANTI JOIN met e "
            "ON e.user_id = r.user_id AND e.item_id = r.reason_item_id WHERE r.reason_item_id IS NOT NULL"
        )
    return queries | _of_sources(placement)


def _of_reasons(night: Night, placement: str) -> dict[str, str]:
    """Return SQL for rows whose sentence, or the item that it names, is not what the log says."""
    target = night.shop.target
    at_rank = (
        "CASE WHEN gap < 6 THEN [gap, 0] WHEN gap < 56 THEN [greatest(1, (2 * gap + 7) // 14), 1] "
        "ELSE [(2 * gap + 30) // 60, 2] END"
    )
    every = (
        f"'You usually {DOES[target]} this every ' || CASE WHEN every[1] > 1 THEN every[1] || ' ' ELSE '' END "
        "|| ['day', 'week', 'month'][every[2] + 1] || CASE WHEN every[1] > 1 THEN 's' ELSE '' END"
    )
    once = (
        f"'You {DID[target]} this' || CASE WHEN m.times > 1 THEN ' ' || m.times || ' times, last' ELSE '' END "
        "|| strftime(make_timestamp(m.last), ' on %-d %B %Y')"
    )
    popular = (
        "CASE WHEN p.place IS NULL THEN 'From our range' || CASE WHEN d.name = '' THEN '' ELSE ' of ' || d.name END "
        "ELSE 'Popular' || CASE WHEN d.name = '' THEN '' ELSE ' in ' || d.name END "
        "|| [' this week', ' this month'][p.place] END"
    )
    of_item = "JOIN titled i ON i.item_id = r.item_id JOIN departments d USING (department) "
    of_item += "LEFT JOIN popular p ON p.item_id = r.item_id"
    unspoken = ", ".join(_text(name) for name in (PINNED, NEW, *BACK_OFF))
    of_many = f"{_text(POPULAR)}, {_text(POPULAR_CATEGORY)}"
    if placement in OF_ITEMS:
        said = (
            f"SELECT r.*, CASE WHEN source = {_text(PINNED)} THEN {_text(CHOSEN)} "
            f"WHEN source IN ({of_many}) THEN {popular} WHEN source = {_text(BOUGHT_TOGETHER)} "
            f"THEN {_text(together_with('', target))} || q.title ELSE 'Similar to ' || q.title END AS truth, "
            f"CASE WHEN source NOT IN ({_text(PINNED)}, {of_many}) THEN r.user_id END AS named "
            f"FROM rows r {of_item} JOIN titled q ON q.item_id = r.user_id"
        )
    else:
        said = (
            f"SELECT r.*, CASE WHEN m.gap > 0 THEN {every} WHEN m.times > 0 THEN {once} "
            f"WHEN source = {_text(PINNED)} THEN {_text(CHOSEN)} WHEN source IN ({of_many}) THEN {popular} "
            f"WHEN source = {_text(POPULAR_SEGMENT)} THEN {_text(LIKE_YOU)} "
            f"WHEN source = {_text(TRENDING)} THEN {_text(rising(target))} "
            f"WHEN source = {_text(NEW)} THEN 'New' || CASE WHEN d.name = '' THEN '' ELSE ' in ' || d.name END "
            f"WHEN r.reason_item_id IS NULL THEN {_text(PICKED)} "
            f"WHEN r.reason_item_id = r.item_id THEN {_text(INTERESTED)} "
            f"ELSE 'Because you ' || CASE WHEN w.times > 0 THEN {_text(DID[target])} ELSE 'were interested in' END "
            "|| ' ' || q.title END AS truth, "
            "CASE WHEN m.times > 0 THEN r.item_id "
            f"WHEN source NOT IN ({unspoken}) THEN r.reason_item_id END AS named "
            f"FROM rows r {of_item} LEFT JOIN (SELECT *, {at_rank} AS every FROM met) m "
            "ON m.user_id = r.user_id AND m.item_id = r.item_id "
            "LEFT JOIN met w ON w.user_id = r.user_id AND w.item_id = r.reason_item_id "
            "LEFT JOIN titled q ON q.item_id = r.reason_item_id"
        )
    return {
        "a reason that the log does not bear out": "SELECT user_id || ' ' || item_id || ': ' || reason || "
        f"', expected ' || coalesce(truth, 'another') AS example FROM ({said}) "
        "WHERE reason IS DISTINCT FROM truth OR reason_item_id IS DISTINCT FROM named"
    }


FACTS = ("title", "description", "brand", "category", "department", "categories")
"""Text that expressions of rules may use, beside the item's id, ``price`` and ``updated_at``."""


def _state_facts(db: duckdb.DuckDBPyConnection, night: Night, snapshot: str) -> None:
    """Make the tables that rules speak of: ``facts`` of items and ``customers``."""
    db.execute(
        "CREATE TABLE facts AS SELECT item_id, title, description, brand, category AS path, category[-1] AS category, "
        "category[1] AS department, nullif(array_to_string(category, ' > '), '') AS categories, price, updated_at, "
        f"item_id IN {_candidates(night)} AS candidate FROM items"
    )
    users = night.lake.path(snapshot) / "users.parquet"
    if users.exists():
        db.read_parquet(str(users)).create("given")
        names = [row[0] for row in db.execute("SELECT column_name FROM (DESCRIBE given)").fetchall()]
        told = [f'nullif("{name}", \'\') AS "customer_{name}"' for name in names if name != "user_id"]
        db.execute(f"CREATE TABLE customers AS SELECT {', '.join(['user_id', *told])} FROM given")
    else:
        db.execute("CREATE TABLE customers (user_id VARCHAR)")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_text, values))}]::VARCHAR[]"


def _matches(match: Match) -> str:
    where = to_sql(match.where, ["item_id", *FACTS]) if match.where else "false"
    return (
        f"(list_contains({_texts(match.items)}, item_id) "
        f"OR coalesce(list_contains({_texts(match.brands)}, brand), false) "
        f"OR coalesce(list_has_any(path, {_texts(match.categories)}), false) OR coalesce({where}, false))"
    )


def _breaks(rule: Rule) -> str | None:
    """Return the condition on an item (and a customer) under which a rule forbids it; None of other kinds of rules."""
    if rule.deny:
        return _matches(rule.deny)
    if rule.allow:
        return f"NOT {_matches(rule.allow)}"
    if rule.price:
        low, high = ("NULL" if end is None else f"{end!r}" for end in (rule.price.min, rule.price.max))
        return f"(price IS NULL OR coalesce(price < {low}, false) OR coalesce(price > {high}, false))"
    if rule.require:
        strings = ["item_id", *FACTS, *(f"customer_{name}" for name in rule.customers)]
        return f"NOT coalesce({to_sql(rule.require, strings)}, false)"
    return None


def _too_soon(rule: Rule, night: Night) -> str:
    """Return SQL of who must not yet be shown which item again."""
    rebuy = rule.exclude_bought
    assert rebuy

    def days(given: Days) -> str:
        return "'inf'::DOUBLE" if given == "never" else f"{given or 0}::DOUBLE"

    default, named = days(rebuy.days), [f"({_text(name)}, {days(given)})" for name, given in rebuy.categories.items()]
    named = named or ["('', 0::DOUBLE)"]
    return (
        "SELECT b.user_id, b.item_id FROM met b LEFT JOIN (SELECT item_id, arg_max(days, level) AS days FROM "
        "(SELECT item_id, unnest(path) AS name, generate_subscripts(path, 1) AS level FROM facts) "
        f"JOIN (VALUES {', '.join(named)}) n(name, days) USING (name) GROUP BY ALL) w ON w.item_id = b.item_id "
        f"WHERE (epoch_us(TIMESTAMPTZ '{night.as_of}') - b.last) / {DAY} < coalesce(w.days, {default})"
    )


def _of_rules(
    db: duckdb.DuckDBPyConnection, night: Night, placement: str, rules: list[Rule], places: list[str]
) -> dict[str, str]:
    """Return SQL for every violation of the rules, and of lists that are as long as the rules let them be."""
    db.execute("CREATE OR REPLACE TABLE denied (item_id VARCHAR)")
    db.execute(f"CREATE OR REPLACE TABLE barred AS {LEFT_OUT.get(placement, _NOTHING)}")
    db.execute("CREATE OR REPLACE TABLE boosts (item_id VARCHAR, factor DOUBLE, places DOUBLE)")
    db.execute("CREATE OR REPLACE TABLE pins (item_id VARCHAR, slot INTEGER)")
    known = "FROM rows JOIN facts USING (item_id) LEFT JOIN customers USING (user_id)"
    example, queries, personal = "user_id || ' ' || item_id AS example", {}, []
    caps = [rule.cap for rule in rules if rule.cap]
    for rule in rules:
        breaks, name = _breaks(rule), f"rule {rule.name!r}"
        if breaks:
            queries[f"{name}: an item that it leaves out"] = f"SELECT {example} {known} WHERE {breaks}"
        if breaks and rule.customers:
            personal.append(f"NOT {breaks}")
        elif breaks:
            db.execute(f"INSERT INTO denied SELECT item_id FROM facts WHERE {breaks}")
        elif rule.exclude_bought:
            soon = _too_soon(rule, night)
            db.execute(f"INSERT INTO barred {soon}")
            queries[f"{name}: something bought too lately"] = (
                f"SELECT {example} FROM rows JOIN ({soon}) USING (user_id, item_id)"
            )
        elif rule.cap:
            queries[f"{name}: more of one {rule.cap.by} than {rule.cap.at_most}"] = (
                f"SELECT user_id || ' ' || {rule.cap.by} AS example {known} WHERE rank <= {rule.cap.first} "
                f"AND {rule.cap.by} IS NOT NULL GROUP BY user_id, {rule.cap.by} HAVING count(*) > {rule.cap.at_most}"
            )
        elif rule.boost:
            found = f"FROM facts WHERE {_matches(rule.boost)}"
            db.execute(f"INSERT INTO boosts SELECT item_id, {rule.boost.factor!r}, {rule.boost.places} {found}")
        elif rule.pin and rule.pin.slot <= night.k:
            db.execute("INSERT INTO pins VALUES (?, ?)", [rule.pin.item, rule.pin.slot])
    not_barred = "(user_id, item_id) NOT IN (SELECT (user_id, item_id) FROM barred)"
    alone = ["item_id IN (FROM new_items)"] if placement == "new" else []
    could = f"(SELECT * FROM facts WHERE {' AND '.join(['candidate', 'item_id NOT IN (FROM denied)', *alone])})"
    pairs = f"CROSS JOIN {could}"
    if placement == "buy_again":
        bought = "(SELECT user_id, item_id FROM met WHERE times > 0)"
        pairs = f"JOIN {bought} USING (user_id) JOIN {could} USING (item_id)"
        alone = [f"(user_id, item_id) IN (SELECT (user_id, item_id) FROM {bought})"]
    allowed = " AND ".join(["candidate", "item_id NOT IN (FROM denied)", not_barred, *alone, *personal])
    db.execute(
        "CREATE OR REPLACE TABLE listed AS SELECT user_id, item_id, rank, brand, category, department, "
        "item_id IN (SELECT item_id FROM pins) AS pinned FROM rows JOIN facts USING (item_id)"
    )
    db.execute(
        "CREATE OR REPLACE TABLE lengths AS SELECT e.user_id, count(r.item_id) AS n "
        "FROM readers e LEFT JOIN rows r ON r.user_id = e.user_id GROUP BY ALL"
    )
    # of a list that is short, every item that it could hold stands in it, or a cap is full where it would stand
    open_caps = " AND ".join(
        f"NOT (n < {cap.first} AND (SELECT count(*) FROM listed l "
        f"WHERE l.user_id = s.user_id AND l.{cap.by} = s.{cap.by}) >= {cap.at_most})"
        for cap in caps
    )
    queries["a list has too few or too many items"] = (
        "SELECT s.user_id || ' ' || s.item_id AS example FROM "
        f"(SELECT * FROM (SELECT * FROM lengths WHERE n < {night.k}) "
        f"{pairs} LEFT JOIN customers USING (user_id) WHERE {allowed} "
        "AND (user_id, item_id) NOT IN (SELECT (user_id, item_id) FROM rows)) s "
        + (f"WHERE {open_caps} " if caps else "")
        + f"UNION ALL SELECT user_id AS example FROM lengths WHERE n > {night.k}"
    )
    for rule in rules:
        if rule.pin and rule.pin.slot <= night.k:
            # pins above it may have filled a cap; a list that ends before the slot has it higher, or not
            excused = " OR ".join(
                f"({rule.pin.slot <= cap.first} AND (SELECT count(*) FROM listed l JOIN pins USING (item_id) "
                f"WHERE l.user_id = s.user_id AND l.{cap.by} = s.{cap.by} AND l.rank = slot "
                f"AND slot < {rule.pin.slot}) >= {cap.at_most})"
                for cap in caps
            )
            queries[f"rule {rule.name!r}: not at its slot"] = (
                f"SELECT s.user_id AS example FROM (SELECT * FROM lengths CROSS JOIN "
                f"(SELECT * FROM facts WHERE item_id = {_text(rule.pin.item)}) LEFT JOIN customers USING (user_id) "
                f"LEFT JOIN (SELECT user_id, item_id, rank FROM rows) USING (user_id, item_id) WHERE {allowed}) s "
                f"WHERE rank IS DISTINCT FROM {rule.pin.slot} "
                f"AND NOT (n < {night.k} AND coalesce(rank, 0) < {rule.pin.slot}) AND NOT ({excused or 'false'})"
            )
    if any(rule.boost for rule in rules):
        queries |= _of_boosts(db, [rule for rule in rules if rule.boost], caps, places)
    return queries


def _of_boosts(db: duckdb.DuckDBPyConnection, rules: list[Rule], caps: list[Any], places: list[str]) -> dict[str, str]:
    """Return SQL for rows that do not stand in the order that boosts ask for, and for which no cap is the reason."""
    if places:
        db.execute("DROP TABLE IF EXISTS places")
        db.read_parquet(places).create("places")
    else:
        db.execute("CREATE OR REPLACE TABLE places (user_id VARCHAR, item_id VARCHAR, place INTEGER)")
    db.execute(
        "CREATE OR REPLACE TABLE keyed AS SELECT l.*, place / coalesce(factor, 1) - coalesce(up, 0) "
        "- CASE WHEN factor IS NULL THEN 0 ELSE 0.5 END AS key FROM listed l JOIN places USING (user_id, item_id) "
        "LEFT JOIN (SELECT item_id, product(factor) AS factor, sum(places) AS up FROM boosts GROUP BY ALL) "
        "USING (item_id) WHERE NOT pinned"
    )
    blocked = " OR ".join(
        f"(a.rank <= {cap.first} AND (SELECT count(*) FROM listed l "
        f"WHERE l.user_id = b.user_id AND l.{cap.by} = b.{cap.by} "
        f"AND (l.rank < a.rank OR l.pinned AND l.rank <= {cap.first})) "
        # a pin keeps its place under the cap, until the list ends before its slot
        "+ (SELECT count(*) FROM pins JOIN facts f USING (item_id) JOIN lengths n ON n.user_id = b.user_id "
        f"WHERE slot BETWEEN n.n + 1 AND {cap.first} AND f.{cap.by} = b.{cap.by} "
        f"AND (b.user_id, pins.item_id) NOT IN (SELECT (user_id, item_id) FROM listed)) >= {cap.at_most})"
        for cap in caps
    )
    out_of_order = "SELECT * FROM (SELECT *, lag(key) OVER (PARTITION BY user_id ORDER BY rank) AS above FROM keyed)"
    pairs = (
        f"SELECT b.user_id || ' ' || b.item_id AS example FROM keyed a JOIN keyed b ON a.user_id = b.user_id "
        f"AND a.rank < b.rank AND a.key > b.key + 1e-9 WHERE NOT ({blocked})"
    )
    adjacent = f"SELECT user_id || ' ' || item_id AS example FROM ({out_of_order}) WHERE above > key + 1e-9"
    names = ", ".join(repr(rule.name) for rule in rules)
    return {
        f"rule {names}: an item that stands too low": pairs if caps else adjacent,
        "a row whose place before the boosts is not told": "SELECT user_id || ' ' || item_id AS example FROM listed "
        "ANTI JOIN places USING (user_id, item_id)",
    }
