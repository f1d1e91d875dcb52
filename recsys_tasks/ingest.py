"""Step 1, ingest: read what is new of the shop's sources, judge every row, write what is good and why the rest is not.

Reads the shop's files up to ``as_of``. Writes ``read/<key>/`` (a file of the shop, judged once in its life),
``events/date=*/`` (the log, a content-named file a day or month) and ``snapshots/<id>/`` with the catalogue, the
customers, the quarantine and a manifest that lists the days. Rows read = kept + quarantined + duplicates, for each
table; rows dated at or after ``as_of``, and those that a source leaves out because they are no event of the contract,
are counted apart and left alone. For the models the log is coded once (``history/``, see ``history``), and each
customer's and item's events are counted (``statistics/``).

A night reads only files that are new or have changed, and writes only the days that this touches: late and corrected
rows replace their day. A day's file depends on its rows alone, so any dates ingested again, in whatever order and
wherever, give the same bytes. The log is handled by Ibis expressions (see ``engine``).
"""

import logging
import tempfile
import time
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_tasks.contract import EVENTS, ITEM_ID, ITEMS, QUARANTINE, USER_ID, USERS
from recsys_tasks.engine import Engine, open_engine
from recsys_tasks.errors import CheckFailed, ContractError
from recsys_tasks.history import History, open_history
from recsys_tasks.lake import Lake, fingerprint, sha256, table_bytes, write_batches, write_table
from recsys_tasks.night import Night
from recsys_tasks.reading import BROKEN, FAULTS, ROWS, Piece, read_files
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop
from recsys_tasks.snapshot import DAY, iso, microseconds, write_statistics
from recsys_tasks.sources import Source, open_source
from recsys_tasks.timing import timed
from recsys_tasks.tombstones import Tombstones

log = logging.getLogger(__name__)

_KEY = ("user_id", "item_id", "time", "event_type", "value", "price", "session_id")
_WORDS = ("title", "description", "brand", "category")
_SHOWN = ("user_id", "item_id", "event_type", "value", "price")
_EPOCH = date(1970, 1, 1)
_ROWS_AT_ONCE = 4_000_000
"""Rows of the log that are sorted and de-duplicated at a time, for each GB of memory."""


@timed
def ingest(night: Night) -> str:
    """Write the snapshot of tonight and return its id.

    Unchanged files, mapping, ``as_of`` and code give the same id, and nothing is read again.

    Raises
    ------
    SourceError
        A file is missing, unreadable or lacks a column.
    ShopFileError
        ``timestamp_format`` is none.
    ContractError
        No event before ``as_of``, or none that may be used; or a forgetting was cut off.
    TemporarilyUnavailable
        A database or Spark does not answer, or a file was written to while it was read.

    """
    return take_in(night.shop, open_source(night.shop), night.instant, night.lake)


def take_in(shop: Shop, source: Source, as_of: datetime, lake: Lake) -> str:
    """Write the snapshot of a shop, read by its source, at an instant into a lake; see ``ingest``."""
    Tombstones.of(lake, shop.name).require_done()
    with open_engine(shop, lake.drafts()) as engine, tempfile.TemporaryDirectory(dir=lake.drafts()) as draft:
        pieces = _read(shop, source, lake, engine)
        inputs = {
            "shop": shop.model_dump(mode="json", include=_USED),
            "as_of": as_of.isoformat(),
            "pieces": [piece.entry for piece in pieces],
        }
        known = f"ingested/{fingerprint(inputs)}"
        if lake.has(known) and lake.has(snapshot := lake.manifest(known)["snapshot"]):
            log.info("%s: no source file has changed, nothing is read", snapshot)
        else:
            night = _Ingestion(shop, source, as_of, engine, lake, pieces, Path(draft))
            snapshot = night.run()
            lake.drop(known)
            with lake.create(known, {"snapshot": snapshot, "days": night.made}):
                pass
    write_statistics(lake, shop, snapshot)
    manifest = lake.manifest(snapshot)
    for line in accounting(manifest["counts"]):
        log.info(line)
    log.info("the log reaches %s", manifest["watermark"])
    for warning in manifest["warnings"]:
        log.warning(warning)
    return snapshot


_USED = {"name", "source", "time_zone", "unknown_items", "partition_by", "checks"}
"""Keys of the shop file that a snapshot depends on."""


def accounting(counts: dict[str, Any]) -> list[str]:
    """Return a line a table: rows read = kept + quarantined + duplicates."""
    lines = []
    for table, c in counts.items():
        line = (
            f"{table}: {c['read']:,} rows read = {c['kept']:,} kept + {c['quarantined']:,} quarantined "
            f"+ {c['duplicates']:,} duplicates"
        )
        apart = [f"{c['later']:,} later rows left alone"] if c["later"] else []
        apart += [f"{n:,} {word} rows left out" for word, n in c.get("left_out", {}).items()]
        line += f" ({', '.join(apart)})" if apart else ""
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in c["reasons"].items())
        lines.append(f"{line}; quarantined for {reasons}" if reasons else line)
    return lines


def _read(shop: Shop, source: Source, lake: Lake, engine: Engine, only: Container[str] | None = None) -> list[Piece]:
    """Return the pieces of all files, in the order of their names; read those that are new or have changed.

    With ``only``, files of the log with these names are read again to number their rows.
    """
    files = [("events", file) for file in source.event_files() if only is None or file.name in only]
    files += [("items", file) for file in source.item_files() if only is None]
    files += [("users", file) for file in source.user_files() if only is None]
    described: dict[str, Any] = {
        "shop_file": str(shop.file),
        "lake": lake.root,
        "now": time.time(),
        "number": only is not None,
    }
    read = partial(read_files, **described, source=source if engine.here else None)
    pieces = engine.map(read, files)
    fresh = sum(piece.fresh for piece in pieces)
    log.info("%d files, %d of them new or changed", len(pieces), fresh)
    return sorted(pieces, key=lambda piece: (piece.table, piece.file))


@dataclass
class _Part:
    """What one file of the log is to hold: a day, a month or a year."""

    start: int
    """Days since 1970, in UTC; the first day."""
    end: int
    """The day after the last."""
    rows: int
    """Good rows before ``as_of``, duplicates among them."""
    busiest: int
    """Most good rows of a day."""
    files: list[str]
    key: str = ""

    @property
    def date(self) -> str:
        """The first day, ISO 8601."""
        return (_EPOCH + timedelta(days=self.start)).isoformat()


class _Ingestion:
    """One night: pieces in, a snapshot out."""

    def __init__(
        self, shop: Shop, source: Source, as_of: datetime, engine: Engine, lake: Lake, pieces: list[Piece], work: Path
    ) -> None:
        self.shop, self.source, self.engine, self.lake = shop, source, engine, lake
        self.instant, self.as_of = as_of, microseconds(as_of)
        self.of = {table: [p for p in pieces if p.table == table] for table in ("events", "items", "users")}
        self.counts: dict[str, Any] = {}
        self.temporary, self.tables = work / "tables", 0
        self.strangers: Path | None = None
        self.listed = self.strange_rows = 0
        self.draft = work / "snapshot"
        self.draft.mkdir()

    def run(self) -> str:
        """Write the snapshot and return its id."""
        census = self._census()
        self.made = self._write_days(self._parts(census))
        days = list(self.made.values())
        if not days:
            self._count_events(census, days)  # tells what is wrong
        history = open_history(self.lake, days)
        if self.of["items"]:
            catalogue = self._catalogue()
            strangers = history.items.filter(pc.invert(pc.is_in(history.items, catalogue[ITEM_ID].combine_chunks())))
        else:
            catalogue, strangers = self._items_of_events(days), pa.array([], pa.string())
        if self.shop.unknown_items == "keep":
            bare = [{ITEM_ID: item, "available": True} for item in strangers.to_pylist()]
            catalogue = pa.concat_tables([catalogue, pa.Table.from_pylist(bare, ITEMS)])
        elif len(strangers):
            self._refuse_strangers(history, strangers)
        self._count_events(census, days)
        write_table(catalogue.sort_by(ITEM_ID), self.draft / "items.parquet")
        if self.of["users"]:
            write_table(self._users(), self.draft / "users.parquet")
        self._write_quarantine(days)
        described: dict[str, Any] = {
            "shop": self.shop.model_dump(mode="json", include=_USED),
            "as_of": self.instant.isoformat(),
            "counts": self.counts,
            "days": days,
            "watermark": iso(max(day["last"] for day in days)),
            "files": {path.name: sha256(path) for path in sorted(self.draft.iterdir())},
        }
        forgotten = Tombstones.of(self.lake, self.shop.name).digest
        described |= {"forgotten": forgotten} if forgotten else {}
        # What came from as_of on is no part of it: a night ingested again when the log has grown is the same.
        counts = {table: {name: n for name, n in c.items() if name != "later"} for table, c in self.counts.items()}
        snapshot = f"snapshots/{self.instant:%Y%m%dT%H%M%S}-{fingerprint({**described, 'counts': counts})}"
        if not self.lake.has(snapshot):
            described["warnings"] = self._warnings(census, catalogue)
            with self.lake.create(snapshot, described) as folder:
                for path in sorted(self.draft.iterdir()):
                    path.rename(folder / path.name)
        return snapshot

    def _rows(self, table: str, files: Iterable[str] | None = None) -> ibis.Table:
        wanted = set(files) if files is not None else None
        found = [piece for piece in self.of[table] if wanted is None or piece.file in wanted]
        return self.engine.read([self.lake.path(piece.entry) / ROWS for piece in found])

    def _census(self) -> list[dict[str, Any]]:
        """How many rows of which kind each file holds, day by day; what is dated from ``as_of`` on is ``later``."""
        today, cut = divmod(self.as_of, DAY)
        known, open_ = [], set()
        for piece in self.of["events"]:
            for row in piece.census:
                day = row["day"]
                if day == today and cut:  # only the rows tell
                    open_.add(piece.file)
                else:
                    known.append({**row, "file": piece.file} | ({"kind": "later"} if (day or 0) >= today else {}))
        if open_:
            rows = self._rows("events", open_).filter(ibis._.day == today)
            kind = ibis.cases(
                (rows.time >= self.as_of, "later"),
                (rows.left_out.notnull(), "left out"),
                (rows.reason.notnull(), "bad"),
                else_="good",
            )
            field = ibis.ifelse(rows.reason.notnull(), rows.field, ibis.null("string"))
            by = {"file": rows.file, "day": rows.day, "kind": kind, "word": rows.left_out, "field": field}
            known += self.engine.table(rows.group_by(**by).aggregate(n=rows.count())).to_pylist()
        return known

    def _refuse_strangers(self, history: History, strangers: pa.Array) -> None:
        """List the events of items that the catalogue does not know; the log keeps them, no model sees them."""
        strange = np.zeros(len(history.items), bool)
        strange[pc.index_in(strangers, history.items).to_numpy()] = True
        self.strange_rows = int(np.bincount(history.array("item"), minlength=len(strange))[strange].sum())
        listed = self._temporary(pa.table({"strange_id": strangers}))
        rows = self._good(self._rows("events"))
        rows = rows.semi_join(listed, rows.item_id == listed.strange_id)
        robots = [(user, on) for day in self.made.values() for user, on in day["robots"]]
        if robots:
            users, on = zip(*robots, strict=True)
            refused = self._temporary(pa.table({"robot": pa.array(users), "on": pa.array(on, pa.int32())}))
            rows = rows.anti_join(refused, [rows.user_id == refused.robot, rows.day == refused.on])
        said = "item_id '" + rows.item_id.substr(0, 80) + "' is not in the catalogue; expected a known item"
        found = _refuse(rows, "item_id", said)
        if not all(piece.numbered for piece in self.of["events"]):
            files = self.engine.table(found.select("file").distinct())["file"].to_pylist()
            if unnumbered := self._unnumbered(files):
                self._number(unnumbered)
                self._refuse_strangers(history, strangers)
                return
        self.strangers = self.temporary / "strangers.parquet"
        self.listed = write_batches((_as_faults(table) for table in self.engine.batches(found)), FAULTS, self.strangers)

    def _unnumbered(self, files: Iterable[str]) -> list[str]:
        wanted = set(files)
        return [piece.file for piece in self.of["events"] if piece.file in wanted and not piece.numbered]

    def _number(self, files: list[str]) -> None:
        """Read files again whose rows nobody had numbered, for a person wants to know which ones are bad."""
        numbered = {piece.file: piece for piece in _read(self.shop, self.source, self.lake, self.engine, only=files)}
        self.of["events"] = [numbered.get(piece.file, piece) for piece in self.of["events"]]

    def _good(self, rows: ibis.Table) -> ibis.Table:
        return rows.filter(rows.reason.isnull(), rows.left_out.isnull(), rows.time < self.as_of)

    def _temporary(self, table: pa.Table) -> ibis.Table:
        self.tables += 1
        path = self.temporary / f"{self.tables}.parquet"
        write_table(table, path)
        return self.engine.read([path])

    def _parts(self, census: list[dict[str, Any]]) -> list[_Part]:
        """What the files of the log are to hold, and a key that tells what went into each."""
        entries = {piece.file: piece.entry for piece in self.of["events"]}
        by_part: dict[tuple[int, int], dict[str, Any]] = {}
        for row in census:
            if row["kind"] == "good":
                found = by_part.setdefault(
                    _bounds(row["day"], self.shop.partition_by), {"days": Counter(), "files": set()}
                )
                found["days"][row["day"]] += row["n"]
                found["files"].add(row["file"])
        parts = []
        for (start, end), found in sorted(by_part.items()):
            files = sorted(found["files"])
            made_of = {
                "pieces": [entries[file] for file in files],
                "start": start,
                "end": end,
                "cut": self.as_of if start * DAY < self.as_of < end * DAY else None,
                "robot": self.shop.checks.events_per_user_day,
            }
            days = found["days"]
            parts.append(_Part(start, end, sum(days.values()), max(days.values()), files, fingerprint(made_of)))
        return parts

    def _write_days(self, parts: list[_Part]) -> dict[str, dict[str, Any]]:
        """Write the parts of the log that are new or touched by something new; return all, by key, in order of time."""
        done = self._known_days()
        todo = [part for part in parts if part.key not in done]
        log.info("%d of %d %ss of the log are new or changed", len(todo), len(parts), self.shop.partition_by)
        most = max(1, int(_ROWS_AT_ONCE * Settings().memory_gb))
        said, rows, total = time.monotonic(), 0, sum(part.rows for part in todo)
        for batch in _batches(parts, done, most):
            done |= self._write_batch(batch)
            rows += sum(part.rows for part in batch)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log.info("%d of %d million rows in their place", rows // 1_000_000, total // 1_000_000)
        return {part.key: done[part.key] for part in parts}

    def _known_days(self) -> dict[str, dict[str, Any]]:
        """What the last nights wrote, by key."""
        nights = self.lake.newest("ingested")
        found = {key: day for entry in nights for key, day in self.lake.manifest(entry)["days"].items()}
        return {key: day for key, day in found.items() if (self.lake.root / day["file"]).is_file()}

    def _write_batch(self, parts: list[_Part]) -> dict[str, dict[str, Any]]:
        files = sorted({file for part in parts for file in part.files})
        rows = self._rows("events", files)
        good = self._good(rows).filter(rows.day >= parts[0].start, rows.day < parts[-1].end)
        bad, robots = None, []
        most = self.shop.checks.events_per_user_day
        if max(part.busiest for part in parts) > most:
            rates = good.group_by(robot="user_id", on="day").aggregate(n=good.count())
            found = self.engine.table(rates.filter(rates.n > most))
            if found.num_rows and (unnumbered := self._unnumbered(files)):
                self._number(unnumbered)
                return self._write_batch(parts)
            if found.num_rows:
                robots = sorted((row["robot"], row["on"]) for row in found.to_pylist())
                listed = self._temporary(found)
                theirs = good.inner_join(listed, [good.user_id == listed.robot, good.day == listed.on])
                said = (
                    "user_id '"
                    + theirs.user_id.substr(0, 80)
                    + "' has "
                    + theirs.n.cast("string")
                    + f" events on this day (UTC); expected at most {most} (checks.events_per_user_day)"
                )
                bad = _refuse(theirs, "user_id", said)
                good = good.anti_join(listed, [good.user_id == listed.robot, good.day == listed.on])
        days: dict[str, dict[str, Any]] = {part.key: {"date": part.date} for part in parts}
        with_words, with_ids = "title" in rows.columns, self.source.rules.event_ids
        if with_words:
            with self.engine.held(_without_duplicates(good, with_ids)) as held:
                self._write_events(held, parts, days)
                self._write_facts(held, parts, days)
        else:  # equal rows meet in the sort: to count them there is cheaper
            kept = _without_duplicates(good, with_ids) if with_ids else good.mutate(copies=ibis.literal(1, "int64"))
            self._write_events(kept, parts, days)
        if bad is not None:
            self._write_refused(bad, parts, days)
        for part in parts:
            days[part.key]["robots"] = [(user, day) for user, day in robots if part.start <= day < part.end]
        return days

    def _write_events(self, kept: ibis.Table, parts: list[_Part], days: dict[str, dict[str, Any]]) -> None:
        """The log itself; a column without a value is neither sorted nor moved."""
        files = {file for part in parts for file in part.files}
        empty = [set(piece.empty) for piece in self.of["events"] if piece.file in files]
        order = ("time", "user_id", "item_id", "event_type", "value", "price", "session_id", "event_id")
        filled = [name for name in order if not all(name in columns for columns in empty)]
        in_order = kept.select(*filled, "copies").order_by([ibis.asc(name, nulls_first=True) for name in filled])
        with ThreadPoolExecutor(2) as pool:  # Parquet is written while the next rows are put in order
            writing: deque[Future[None]] = deque()
            for part, table in _cut(self.engine.batches(in_order), parts, in_order):
                writing.append(pool.submit(self._write_day, part, table, days[part.key]))
                if len(writing) > 4:
                    writing.popleft().result()
            for written in writing:
                written.result()

    def _write_facts(self, kept: ibis.Table, parts: list[_Part], days: dict[str, dict[str, Any]]) -> None:
        """What rows tell of their items, where there is no catalogue."""
        facts = kept.group_by("day", "item_id", *_WORDS, "price").aggregate(n=kept.count())
        facts = facts.mutate(time=facts.day.cast("int64") * DAY).drop("day")
        facts = facts.order_by([ibis.asc(name, nulls_first=True) for name in ("time", "item_id", "price", *_WORDS)])
        for part, table in _cut(self.engine.batches(facts), parts, facts):
            days[part.key]["items"], _ = self.lake.add_file(f"items/date={part.date}", table_bytes(table))

    def _write_day(self, part: _Part, table: pa.Table, day: dict[str, Any]) -> None:
        copies = pc.sum(table["copies"]).as_py() or 0
        table = _distinct(table)
        table = table.rename_columns({"time": "timestamp"})
        columns = [
            table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
            for field in EVENTS
        ]
        name, digest = self.lake.add_file(
            f"events/date={part.date}", table_bytes(pa.table(columns, EVENTS.names).cast(EVENTS))
        )
        day |= {
            "file": name,
            "sha256": digest,
            "rows": table.num_rows,
            "duplicates": copies - table.num_rows,
            "last": table["timestamp"][-1].as_py() if table.num_rows else 0,
            "refused": {},
        }

    def _write_refused(self, bad: ibis.Table, parts: list[_Part], days: dict[str, dict[str, Any]]) -> None:
        """Rows that only the whole log shows to be bad."""
        bad = bad.order_by(["time", "file", "row", "field"])
        for part, table in _cut(self.engine.batches(bad), parts, bad):
            if table.num_rows:
                name, _ = self.lake.add_file(f"quarantine/date={part.date}", table_bytes(_as_faults(table)))
                reasons = Counter(table["field"].to_pylist())
                days[part.key] |= {"refused": dict(sorted(reasons.items())), "quarantine": name}

    def _count_events(self, census: list[dict[str, Any]], days: list[dict[str, Any]]) -> None:
        """Settle the accounting of the log; that nothing is lost is proven here, for each part was counted apart."""
        by_kind: Counter[str] = Counter()
        words: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for row in census:
            by_kind[row["kind"]] += row["n"]
            if row["kind"] == "left out":
                words[row["word"]] += row["n"]
            elif row["kind"] == "bad":
                reasons[row["field"]] += row["n"]
        bad = by_kind["bad"]
        for day in days:
            reasons.update(day["refused"])
        reasons.update({"item_id": self.listed} if self.listed else {})
        kept, duplicates = (sum(day[name] for day in days) for name in ("rows", "duplicates"))
        kept, duplicates = kept - self.strange_rows, duplicates - (self.listed - self.strange_rows)
        quarantined = sum(reasons.values())
        if by_kind["good"] + bad != kept + quarantined + duplicates:
            raise CheckFailed(
                f"{self.shop.file}: rows were lost between the files and the log: {by_kind['good'] + bad:,} were read, "
                f"but {kept:,} kept, {quarantined:,} quarantined, {duplicates:,} duplicates. "
                "This is a fault of Nightcart; please report it"
            )
        self.counts["events"] = {
            "read": by_kind["good"] + bad,
            "kept": kept,
            "quarantined": quarantined,
            "duplicates": duplicates,
            "later": by_kind["later"],
            "reasons": dict(sorted(reasons.items())),
            **({"left_out": dict(sorted(words.items()))} if words else {}),
        }
        if not kept:
            raise ContractError(self._empty_night())

    def _faults(self, table: str) -> ibis.Table | None:
        """The quarantine of a table's pieces, without what is dated after ``as_of``."""
        files = [self.lake.path(piece.entry) / BROKEN for piece in self.of[table] if piece.bad]
        if not files:
            return None
        faults = self.engine.read(files)
        return faults.filter(faults.time.isnull() | (faults.time < self.as_of))

    def _reasons(self, table: str) -> Counter[str]:
        faults = self._faults(table)
        if faults is None:
            return Counter()
        counted = self.engine.table(faults.group_by("field").aggregate(n=faults.count()))
        return Counter({row["field"]: row["n"] for row in counted.to_pylist()})

    def _catalogue(self) -> pa.Table:
        """The items as of tonight; of several rows of an item the newest, by ``updated_at``, then by place."""
        rows = self._rows("items")
        later = (rows.updated_at >= self.as_of).fill_null(False)
        newest = [rows.updated_at.desc(nulls_first=False), rows.file.desc(), rows.row.desc()]
        good = rows.filter(rows.reason.isnull(), ~later)
        first = good.mutate(copy=ibis.row_number().over(ibis.window(group_by="item_id", order_by=newest)))
        kept = self.engine.table(first.filter(first.copy == 0).select(*ITEMS.names))
        self._count("items", rows, later, kept.num_rows)
        return kept.cast(ITEMS)

    def _users(self) -> pa.Table:
        """The customers the shop knows something of; of several rows of one the last stays."""
        rows = self._rows("users")
        last = ibis.window(group_by="user_id", order_by=[rows.file.desc(), rows.row.desc()])
        first = rows.filter(rows.reason.isnull()).mutate(copy=ibis.row_number().over(last))
        kept = self.engine.table(first.filter(first.copy == 0).select("user_id", "attributes").order_by("user_id"))
        self._count("users", rows, ibis.literal(False), kept.num_rows)
        attributes = kept["attributes"].combine_chunks()
        columns = {field.name: attributes.field(n) for n, field in enumerate(attributes.type)}
        return pa.table({USER_ID: kept[USER_ID], **columns}).cast(
            pa.schema([*USERS, *(pa.field(name, pa.string()) for name in columns)])
        )

    def _count(self, table: str, rows: ibis.Table, later: ibis.Value, kept: int) -> None:
        """Settle the accounting of a table whose copies are all duplicates."""
        kinds = rows.group_by(later=later, good=rows.reason.isnull()).aggregate(n=rows.count())
        found = {(row["later"], row["good"]): row["n"] for row in self.engine.table(kinds).to_pylist()}
        reasons = self._reasons(table)
        good = found.get((False, True), 0)
        self.counts[table] = {
            "read": good + sum(reasons.values()),
            "kept": kept,
            "quarantined": sum(reasons.values()),
            "duplicates": good - kept,
            "later": found.get((True, True), 0) + found.get((True, False), 0),
            "reasons": dict(sorted(reasons.items())),
        }

    def _items_of_events(self, days: list[dict[str, Any]]) -> pa.Table:
        """Items of a shop without a catalogue: each with its most frequent words and its median price."""
        facts = self.engine.read([self.lake.root / day["items"] for day in days])

        def most_frequent(column: str) -> ibis.Table:
            rows = facts.filter(facts[column].notnull())
            counted = rows.group_by("item_id", column).aggregate(times=rows.n.sum())
            window = ibis.window(group_by="item_id", order_by=[ibis.desc("times"), ibis.asc(column)])
            return counted.mutate(place=ibis.row_number().over(window)).filter(ibis._.place == 0)

        priced = facts.filter(facts.price.notnull()).group_by("item_id", "price").aggregate(times=ibis._.n.sum())
        upwards = ibis.window(group_by="item_id", order_by="price")
        priced = priced.mutate(
            below=priced.times.sum().over(
                ibis.window(group_by="item_id", order_by="price", preceding=None, following=0)
            ),
            all=priced.times.sum().over(ibis.window(group_by="item_id")),
        )
        priced = priced.filter(priced.below * 2 >= priced.all)
        priced = priced.mutate(place=ibis.row_number().over(upwards)).filter(ibis._.place == 0)
        items = facts.select("item_id").distinct()
        for column, found in [("price", priced), *((name, most_frequent(name)) for name in _WORDS)]:
            items = items.left_join(found.select("item_id", column), "item_id").drop("item_id_right")
        found = self.engine.table(items)
        none = {"available": pa.array([True] * found.num_rows), "updated_at": pa.nulls(found.num_rows, pa.int64())}
        columns = {name: found[name] if name in found.column_names else none[name] for name in ITEMS.names}
        return pa.table(columns).cast(ITEMS)

    def _write_quarantine(self, days: list[dict[str, Any]]) -> None:
        """All bad rows, in the order of their files; out of core, for it may be most of an export."""
        faults = [found for table in self.of if (found := self._faults(table)) is not None]
        refused = [self.lake.root / day["quarantine"] for day in days if "quarantine" in day]
        refused += [self.strangers] if self.strangers else []
        faults += [self.engine.read(refused)] if refused else []
        path = self.draft / "quarantine.parquet"
        if not faults:
            write_table(QUARANTINE.empty_table(), path)
            return
        rows = ibis.union(*faults) if len(faults) > 1 else faults[0]
        rows = rows.select(*QUARANTINE.names).order_by(QUARANTINE.names)
        write_batches((batch.cast(QUARANTINE) for batch in self.engine.batches(rows)), QUARANTINE, path)

    def _empty_night(self) -> str:
        where = f"{self.shop.file}: an empty night: no usable event before as_of {self.instant.isoformat()}"
        count, files = self.counts["events"], len(self.of["events"])
        faults, only_broken = self._faults("events"), set(count["reasons"]) == {"line"}
        bad: list[dict[str, Any]] = []
        if faults is not None:
            listed = faults.filter(only_broken | (faults.field != "line")).order_by(["file", "row"])
            bad = self.engine.table(listed.limit(1)).to_pylist()
        if bad:
            first = bad[0]
            if only_broken:
                return (
                    f"{where}: none of {count['read']:,} lines could be used. "
                    f"The first, {first['file']} line {first['row']}: {first['reason']}. Export the file again"
                )
            return (
                f"{where}, though {count['read']:,} were read. "
                f"The first, {first['file']} row {first['row']}: {first['reason']}. "
                f"Faults by field: {count['reasons']}; correct the mapping in the shop file"
            )
        if count["quarantined"]:
            return (
                f"{where}, though {count['read']:,} were read. Faults by field: {count['reasons']}; see the catalogue"
            )
        if count["later"]:
            rows = self._rows("events")
            good = rows.filter(rows.reason.isnull(), rows.left_out.isnull())
            (first,) = self.engine.table(good.aggregate(time=good.time.min())).to_pylist()
            if first["time"] is None:
                return f"{where}, and none of {count['later']:,} later rows is usable. Check the clock they came from"
            return f"{where}; the log begins at {iso(first['time'])}. Give a later as_of"
        others = "".join(f", {n:,} {word} rows left out" for word, n in count.get("left_out", {}).items())
        return f"{where}: {count['read']:,} rows in {files} file(s){others}. Check that the export ran"

    def _warnings(self, census: list[dict[str, Any]], catalogue: pa.Table) -> list[str]:
        """What a person should look at; the night goes on."""
        checks, said = self.shop.checks, []
        for table, count in self.counts.items():
            if count["quarantined"] > checks.quarantined * count["read"]:
                reasons = ", ".join(f"{reason}: {n:,}" for reason, n in count["reasons"].items())
                said.append(
                    f"{count['quarantined'] / count['read']:.0%} of the rows of {table} are in quarantine ({reasons}); "
                    f"expected at most {checks.quarantined:.0%} (checks.quarantined)"
                )
        by_day: Counter[int] = Counter()
        for row in census:
            if row["kind"] == "good":
                by_day[row["day"]] += row["n"]
        today = self.as_of // DAY
        weeks = [sum(by_day[today - 7 * week - day] for day in range(1, 8)) for week in range(5)]
        usual = median(weeks[1:])
        fewest, most = checks.volume
        if min(by_day) <= today - 35 and not fewest * usual <= weeks[0] <= most * usual:
            said.append(
                f"the 7 days before as_of hold {weeks[0]:,} events, a week of the 4 before {usual:,.0f}; expected "
                f"{fewest:g} to {most:g} times as many (checks.volume). Check that every export came, and came once"
            )
        newest = pc.max(catalogue["updated_at"]).as_py()
        if newest and (age := (self.instant - newest).total_seconds() / 86_400) > checks.catalogue_days:
            said.append(
                f"the newest item of the catalogue was updated {age:.0f} days before as_of; expected at most "
                f"{checks.catalogue_days:g} (checks.catalogue_days). Check that its export ran"
            )
        return said


@cache
def _bounds(day: int, partition_by: str) -> tuple[int, int]:
    """First day of the part that a day (since 1970) belongs to, and the day after its last."""
    if partition_by == "day":
        return day, day + 1
    first = (_EPOCH + timedelta(days=day)).replace(day=1)
    after = (first + timedelta(days=31)).replace(day=1)
    if partition_by == "year":
        first = first.replace(month=1)
        after = first.replace(year=first.year + 1)
    return (first - _EPOCH).days, (after - _EPOCH).days


def _batches(parts: list[_Part], done: Container[str], most: int) -> Iterator[list[_Part]]:
    """Neighbouring parts that are to be written, as many at a time as hold ``most`` rows."""
    batch: list[_Part] = []
    for part in parts:
        if batch and (part.key in done or sum(p.rows for p in batch) + part.rows > most):
            yield batch
            batch = []
        if part.key not in done:
            batch.append(part)
    if batch:
        yield batch


def _cut(tables: Iterator[pa.Table], parts: list[_Part], like: ibis.Table) -> Iterator[tuple[_Part, pa.Table]]:
    """Give each part its rows of a stream that is in the order of time."""
    waiting = iter(parts)
    part, held = next(waiting), [like.schema().to_pyarrow().empty_table()]
    for table in tables:
        held[0] = held[0].cast(table.schema)
        times = table["time"].to_numpy()
        start = 0
        while (end := int(np.searchsorted(times, part.end * DAY))) < len(times):
            yield part, pa.concat_tables([*held, table.slice(start, end - start)])
            part, held, start = next(waiting), held[:1], end
        held.append(table.slice(start))
    yield part, pa.concat_tables(held)
    for part in waiting:
        yield part, held[0]


def _distinct(table: pa.Table) -> pa.Table:
    """Of rows that are equal in every field, and so neighbours, the first."""
    if table.num_rows < 2:
        return table
    equal: Any = None
    for column in table.drop_columns("copies").combine_chunks().itercolumns():
        here, before = column.chunk(0)[1:], column.chunk(0)[:-1]
        same = pc.fill_null(pc.equal(here, before), False)
        if column.null_count:
            same = pc.or_(same, pc.and_(pc.is_null(here), pc.is_null(before)))
        equal = same if equal is None else pc.and_(equal, same)
        if not pc.any(equal).as_py():
            return table
    return table.filter(pa.concat_arrays([pa.array([True]), pc.invert(equal)]))


def _refuse(rows: ibis.Table, field: str, reason: ibis.Value) -> ibis.Table:
    """Good rows, with what is wrong with them."""
    said = {"table": ibis.literal("events"), "field": ibis.literal(field), "reason": reason}
    return rows.select("file", "row", "time", *_SHOWN, **said)


def _as_faults(refused: pa.Table) -> pa.Table:
    """Refused rows as the quarantine has them. Their record is written here, for engines write numbers differently."""
    texts = [pc.fill_null(refused[name].cast(pa.string()), "") for name in _SHOWN]
    parts = [pc.binary_join_element_wise(name, text, "=") for name, text in zip(_SHOWN, texts, strict=True)]
    record = pc.binary_join_element_wise(*parts, ", ")
    return refused.append_column("record", record).select(FAULTS.names).cast(FAULTS)


def _without_duplicates(rows: ibis.Table, with_ids: bool) -> ibis.Table:
    """One row an event, and how many ``copies`` of it came.

    Of an event with an id, what stands last in the files of that day (in UTC) stays: it may correct what came before.
    Without an id, a row that is the same in every field is the same event.
    """
    words = [name for name in _WORDS if name in rows.columns]
    if not with_ids:
        first = {name: rows[name].min() for name in words} | {"event_id": ibis.null("string")}
        return rows.group_by("day", *_KEY).aggregate(copies=rows.count(), **first)
    nothing = ibis.literal("")
    same = [ibis.ifelse(rows.event_id.notnull(), nothing, rows[name].cast("string").fill_null("")) for name in _KEY]
    by = [rows.day, rows.event_id, *same]
    last = ibis.window(group_by=by, order_by=[rows.file.desc(), rows.row.desc()])
    numbered = rows.mutate(copy=ibis.row_number().over(last), copies=rows.count().over(ibis.window(group_by=by)))
    return numbered.filter(numbered.copy == 0)
