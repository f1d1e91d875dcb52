"""Tables of the shop's database, or queries to it; the shop file maps the columns.

Each table is fetched into Parquet, every value as the text that an export to CSV would have, and is read from there
like any file. With ``changed_at`` the event log is a file a day: one query asks how many rows each day has and when it
last changed, and a day is fetched when somebody wants to read it. Rows without a timestamp are a file of their own.
"""

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from recsys_tasks.lake import fingerprint, sha256
from recsys_tasks.shop import Rows, Shop, Sql
from recsys_tasks.sources.base import SourceFile
from recsys_tasks.sources.database import Database, selectable, whole
from recsys_tasks.sources.mapped import MappedSource, used

WITHOUT_TIMESTAMP = "without-timestamp"
"""Name of the file of rows that have none."""
A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}


class SqlSource(MappedSource):
    """Reads a database by the mapping of the shop file.

    Raises
    ------
    ShopFileError
        The URL or the connection cannot be understood; no connection is made yet.
    SourceError
        There is no such SQLite file.

    """

    def __init__(self, config: Sql, shop: Shop) -> None:
        self.config: Sql = config
        self.database = Database(config, shop.file)
        self._folder = tempfile.TemporaryDirectory(prefix="nightcart-")
        weakref.finalize(self, self._folder.cleanup)
        self._days: dict[str, sa.Select[Any]] = {}

    def event_files(self) -> list[SourceFile]:
        """Return the whole log, fetched; with ``changed_at`` a file for each day of it, not fetched yet.

        Raises
        ------
        TemporarilyUnavailable
            The database does not answer.
        SourceError
            It refuses the login, a table or the SQL; or a mapped column is missing.

        """
        return self._event_files

    def item_files(self) -> list[SourceFile]:
        """Return the catalogue, fetched; nothing where items are columns of the event rows. Raises as above."""
        return self._item_files

    def user_files(self) -> list[SourceFile]:
        """Return the customers, fetched; nothing where the shop file has no users. Raises as above."""
        return self._user_files

    @contextmanager
    def fetched(self, file: SourceFile) -> Iterator[SourceFile]:
        """Fetch a day for the time of its reading. Raises as ``event_files``."""
        if file.path.exists():  # the whole table
            yield file
            return
        if file.name not in self._days:  # listed by another process
            self.event_files()
        self.database.write(self._days[file.name], used(self.event_columns), file.path, "source.events")
        try:
            yield file
        finally:
            file.path.unlink()

    @cached_property
    def _event_files(self) -> list[SourceFile]:
        events = self.config.events
        if not events.changed_at:
            return [self._whole("events", events, used(self.event_columns))]
        wanted = [*used(self.event_columns), events.changed_at]
        self.database.require(wanted, self.database.columns(events, "source.events"), "source.events")
        rows, day = selectable(events), self._day()
        counted = sa.select(day, sa.func.count(), sa.func.max(sa.column(events.changed_at))).select_from(rows)
        with self.database.connected("source.events") as connection:
            # a log without rows is one file without rows
            found = connection.execute(counted.group_by(day)).tuples().all() or [(None, 0, None)]
        columns: list[sa.ColumnElement[Any]] = [sa.column(column) for column in used(self.event_columns)]
        files = []
        for key, count, changed in found:
            name = f"events/{self._name(key)}"
            self._days[name] = sa.select(*columns).select_from(rows).where(self._within(day, key))
            seen = {"database": self.database.name, "events": events.model_dump(), "day": str(key)}
            version = fingerprint({**seen, "rows": count, "changed": str(changed)})
            files.append(SourceFile(name, Path(self._folder.name) / f"{name}.parquet", version))
        return sorted(files, key=lambda file: file.name)

    @cached_property
    def _item_files(self) -> list[SourceFile]:
        items = self.config.items
        return [self._whole("items", items, used(self.item_columns))] if items.place else []

    @cached_property
    def _user_files(self) -> list[SourceFile]:
        users = self.config.users
        return [self._whole("users", users, [users.columns.user_id, *users.attributes])] if users else []

    def _whole(self, name: str, rows: Rows, columns: list[str]) -> SourceFile:
        """All rows in one file; its version is its content."""
        field, path = f"source.{name}", Path(self._folder.name) / f"{name}.parquet"
        columns = list(dict.fromkeys(columns))
        if rows.table:  # SQLite takes a quoted name that is no column for a string
            self.database.require(columns, self.database.columns(rows, field), field)
        self.database.write(whole(rows, columns), columns, path, field)
        return SourceFile(name, path, sha256(path))

    def _day(self) -> sa.ColumnElement[Any]:
        """The day of an event row: in UTC where the timestamp has a zone, else as it stands there."""
        if unit := self.config.events.timestamp_unit:
            return sa.cast(self._instant, sa.BigInteger) // A_DAY[unit]
        return sa.func.date(self._instant) if self._is_sqlite else sa.cast(self._instant, sa.Date)

    def _within(self, day: sa.ColumnElement[Any], key: Any) -> sa.ColumnElement[bool]:
        """Whether a row is of this day. The range, a day wider on both sides, lets the database use an index."""
        if key is None:
            return day.is_(None)
        same = day == sa.literal(key, day.type)
        if self._is_sqlite:  # its text and its numbers cannot be compared
            return same
        instant, unit = self._instant, self.config.events.timestamp_unit
        low: Any
        high: Any
        try:
            if unit:
                low, high = (int(key) - 1) * A_DAY[unit], (int(key) + 2) * A_DAY[unit]
            else:
                low, high = (date.fromisoformat(str(key)) + timedelta(n) for n in (-1, 2))
        except (ValueError, OverflowError):  # PostgreSQL's infinity
            return same
        kind = sa.BigInteger() if unit else sa.Date()
        return sa.and_(instant >= sa.literal(low, kind), instant < sa.literal(high, kind), same)

    def _name(self, key: Any) -> str:
        if key is None:
            return WITHOUT_TIMESTAMP
        try:
            return str(date(1970, 1, 1) + timedelta(int(key)) if self.config.events.timestamp_unit else key)
        except OverflowError:
            return str(key)

    @property
    def _instant(self) -> sa.ColumnElement[Any]:
        return sa.column(self.config.events.columns.timestamp)

    @property
    def _is_sqlite(self) -> bool:
        return self.database.engine.dialect.name == "sqlite"
