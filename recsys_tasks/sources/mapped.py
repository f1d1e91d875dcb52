"""Rows whose columns the shop file maps, wherever they come from: files of the shop, or tables of its database."""

from collections.abc import Mapping
from typing import Any

import ibis

from recsys_tasks.shop import Sql, Tabular
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.files import FileSource, read_table


class MappedSource(FileSource):
    """Reads files by the mapping of the shop file; which files there are is for the source to say."""

    config: Tabular | Sql

    @property
    def rules(self) -> EventRules:
        """What the shop file says under ``source.events``."""
        events = self.config.events
        return EventRules(
            event_type=None if events.columns.event_type else events.event_type,
            event_types={word: kind for word, kind in events.event_types.items() if kind},
            left_out=tuple(word for word, kind in events.event_types.items() if not kind),
            event_ids=events.columns.event_id is not None,
            negative_value=events.negative_value,
            timestamp_format=events.timestamp_format,
            timestamp_unit=events.timestamp_unit,
        )

    @property
    def event_columns(self) -> dict[str, Any]:
        """Field -> column of the event rows; with those of the items where these have no rows of their own."""
        columns: dict[str, Any] = self.config.events.columns.model_dump()
        if not self.config.items.place:
            columns |= {name: getattr(self.config.items.columns, name) for name in EVENT_ITEM_FIELDS}
        return columns

    @property
    def item_columns(self) -> dict[str, Any]:
        """Field -> column of the catalogue's rows."""
        return self.config.items.columns.model_dump()

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the mapped fields of one event file."""
        raw = self._raw(connection, file, self.event_columns, "events", numbered)
        return self._select(raw, EVENT_FIELDS + EVENT_ITEM_FIELDS, self.event_columns)

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one catalogue file."""
        raw = self._raw(connection, file, self.item_columns, "items", numbered=True)
        return self._select(raw, ITEM_FIELDS, self.item_columns)

    def read_users(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the id and the attributes of one file of customers."""
        users = self.config.users
        if users is None:
            return super().read_users(connection, file)
        raw = read_table(connection, file, [users.columns.user_id, *users.attributes])
        attributes = {name: raw[name].cast("string") for name in users.attributes}
        return raw.select("row", user_id=raw[users.columns.user_id], **attributes)

    def _raw(
        self, connection: Any, file: SourceFile, columns: Mapping[str, Any], table: str, numbered: bool
    ) -> ibis.Table:
        """The columns that the mapping names, and ``row``."""
        return read_table(connection, file, used(columns), numbered=numbered)

    def _select(self, raw: ibis.Table, fields: tuple[str, ...], columns: Mapping[str, Any]) -> ibis.Table:
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


def used(columns: Mapping[str, Any]) -> list[str]:
    """Return the columns that a mapping names, each once."""
    named = [mapped if isinstance(mapped, list) else [mapped] for mapped in columns.values() if mapped]
    return list(dict.fromkeys(column for columns in named for column in columns))
