"""Any CSV, Parquet or JSON-lines export, plain, gz or zst: a file, a folder or a glob; the shop file maps the columns.

Columns are the file's own, those its folders tell (``dt=2020-01-05/``) and those the shop file derives. Rows that
``filter`` is not true of carry ``FILTERED`` for their event type, so ingest counts them beside the words left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.expressions import columns_of, to_sql
from recsys_tasks.shop import EventFiles, ItemFiles, Tabular
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.files import CORRECT_THE_MAPPING, FileSource, list_files, quoted, read_table, refuse_twins

FILTERED = "filtered"
"""The event type of rows that ``filter`` leaves out."""

_PASSES = "passes the filter"


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
            event_types={word: kind for word, kind in events.event_types.items() if kind},
            left_out=(
                *(word for word, kind in events.event_types.items() if not kind),
                *([FILTERED] if events.filter else []),
            ),
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

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the mapped fields of one event file."""
        columns: dict[str, Any] = self.config.events.columns.model_dump()
        if not self.config.items.path:
            columns |= {name: getattr(self.config.items.columns, name) for name in EVENT_ITEM_FIELDS}
        return self._read(connection, file, EVENT_FIELDS + EVENT_ITEM_FIELDS, columns, self.config.events, numbered)

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one catalogue file; a header that stands there again has no ``item_id``."""
        columns = self.config.items.columns.model_dump()
        items = self._read(connection, file, ITEM_FIELDS, columns, self.config.items, numbered=True)
        if not items.item_id.type().is_string():
            return items
        return items.mutate(item_id=items.item_id.nullif(columns["item_id"]))

    def _read(
        self,
        connection: Any,
        file: SourceFile,
        fields: tuple[str, ...],
        columns: Mapping[str, Any],
        files: EventFiles | ItemFiles,
        numbered: bool,
    ) -> ibis.Table:
        place = "source.events" if isinstance(files, EventFiles) else "source.items"
        expressions = {f"{place}.derive.{name}": (name, text) for name, text in files.derive.items()}
        if isinstance(files, EventFiles) and files.filter:
            expressions[f"{place}.filter"] = (_PASSES, files.filter)
        used, derived = [], set()
        for name, text in expressions.values():
            used += [column for column in columns_of(text) if column not in derived]
            derived.add(name)
        mapped = [c for one in columns.values() if one for c in ([one] if isinstance(one, str) else one)]
        refuse_twins(file, [*mapped, *used, *derived])
        raw = read_table(
            connection,
            file,
            [*dict.fromkeys([*(c for c in mapped if c not in derived), *used])],
            " or ".join([CORRECT_THE_MAPPING, *(f"{key} ({text})" for key, (_, text) in expressions.items())]),
            numbered=numbered,
            delimiter=files.delimiter,
            encoding=files.encoding,
        )
        for key, (name, text) in expressions.items():
            raw = _with_column(connection, file, raw, key, name, text)
        table = {name: self._field(raw, name, columns.get(name)) for name in fields}
        if _PASSES in derived:
            kind = table["event_type"].cast("string")
            table["event_type"] = ibis.ifelse(raw[_PASSES].fill_null(False), kind, FILTERED)
        return raw.select("row", **table)

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


def _with_column(
    connection: Any, file: SourceFile, raw: ibis.Table, key: str, name: str, expression: str
) -> ibis.Table:
    strings = [column for column, kind in raw.schema().items() if kind.is_string()]
    sql = to_sql(expression, strings)
    kept = ", ".join(quoted(column) for column in raw.columns if column != name)
    try:
        table = connection.sql(f"SELECT {kept}, {sql} AS {quoted(name)} FROM ({raw.compile()})")
    except duckdb.Error as error:
        what = str(error).splitlines()[0]
        raise SourceError(f"{file.path}: {key}: {expression!r} cannot be computed: {what}. Correct it") from error
    if name == _PASSES and not table[name].type().is_boolean():
        raise SourceError(
            f"{file.path}: {key}: {expression!r} is a {table[name].type()}; expected a condition such as Quantity > 0"
        )
    return table
