"""Any CSV, Parquet or JSON-lines export, plain or gz: a file, a folder or a glob; the shop file maps the columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.shop import Tabular
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.files import FileSource, list_files, read_table


class TabularSource(FileSource):
    """Reads files by the mapping of the shop file; ``folder`` is where relative paths start."""

    def __init__(self, config: Tabular, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def rules(self) -> EventRules:
        """What the shop file says under ``source.events``."""
        events = self.config.events
        return EventRules(
            event_type=None if events.columns.event_type else events.event_type,
            event_types=events.event_types,
            negative_value=events.negative_value,
            timestamp_format=events.timestamp_format,
            timestamp_unit=events.timestamp_unit,
        )

    def event_files(self) -> list[SourceFile]:
        """Return the files the shop file's ``source.events.path`` names."""
        return list_files(self.config.events.path, self.folder, "source.events.path")

    def item_files(self) -> list[SourceFile]:
        """Return the files of ``source.items.path``; none where items are columns of the event rows."""
        path = self.config.items.path
        return list_files(path, self.folder, "source.items.path") if path else []

    def user_files(self) -> list[SourceFile]:
        """Return the files of ``source.users.path``; none where the shop file has no users."""
        users = self.config.users
        return list_files(users.path, self.folder, "source.users.path") if users else []

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the mapped fields of one event file."""
        columns: dict[str, Any] = self.config.events.columns.model_dump()
        if not self.config.items.path:
            columns |= {name: getattr(self.config.items.columns, name) for name in EVENT_ITEM_FIELDS}
        return self._read(connection, file, EVENT_FIELDS + EVENT_ITEM_FIELDS, columns)

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one catalogue file."""
        return self._read(connection, file, ITEM_FIELDS, self.config.items.columns.model_dump())

    def read_users(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the id and the attributes of one file of customers."""
        users = self.config.users
        if users is None:
            return super().read_users(connection, file)
        raw = read_table(connection, file, [users.columns.user_id, *users.attributes])
        attributes = {name: raw[name].cast("string") for name in users.attributes}
        return raw.select("row", user_id=raw[users.columns.user_id], **attributes)

    def _read(
        self, connection: Any, file: SourceFile, fields: tuple[str, ...], columns: Mapping[str, Any]
    ) -> ibis.Table:
        used = [c for mapped in columns.values() if mapped for c in ([mapped] if isinstance(mapped, str) else mapped)]
        raw = read_table(connection, file, used)
        return raw.select("row", **{name: self._field(raw, name, columns.get(name)) for name in fields})

    def _field(self, raw: ibis.Table, name: str, mapped: str | list[str] | None) -> ibis.Value:
        if mapped is None:
            return ibis.null("string")
        if name != "category":
            return raw[mapped]
        if isinstance(mapped, list):
            return ibis.array([raw[column].cast("string") for column in mapped])
        value, separator = raw[mapped], self.config.items.category_separator
        if value.type().is_array():
            return value.cast("array<string>")
        return value.cast("string").split(separator) if separator else ibis.array([value.cast("string")])
