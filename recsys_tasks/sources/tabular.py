"""Any CSV, Parquet or JSON-lines export, plain, gz or zst: a file, a folder or a glob; the shop file maps the columns.

Columns are the file's own, those its folders tell (``dt=2020-01-05/``) and those the shop file derives. Rows that
``filter`` is not true of carry ``FILTERED`` for their event type, so ingest counts them beside the words left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.expressions import columns_of, to_sql
from recsys_tasks.shop import Tabular
from recsys_tasks.sources.base import EventRules, SourceFile
from recsys_tasks.sources.files import CORRECT_THE_MAPPING, list_files, quoted, read_table, refuse_twins
from recsys_tasks.sources.mapped import MappedSource, used

FILTERED = "filtered"
"""The event type of rows that ``filter`` leaves out."""

_PASSES = "passes the filter"


class TabularSource(MappedSource):
    """Reads files by the mapping of the shop file; ``folder`` is where relative paths start."""

    def __init__(self, config: Tabular, folder: Path) -> None:
        self.config: Tabular = config
        self.folder = folder

    @property
    def rules(self) -> EventRules:
        """What the shop file says under ``source.events``."""
        rules = super().rules
        return replace(rules, left_out=(*rules.left_out, FILTERED)) if self.config.events.filter else rules

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

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one catalogue file; a header that stands there again has no ``item_id``."""
        items = super().read_items(connection, file)
        if not items.item_id.type().is_string():
            return items
        return items.mutate(item_id=items.item_id.nullif(self.item_columns["item_id"]))

    def _raw(
        self, connection: Any, file: SourceFile, columns: Mapping[str, Any], table: str, numbered: bool
    ) -> ibis.Table:
        files = self.config.events if table == "events" else self.config.items
        place = f"source.{table}"
        expressions = {f"{place}.derive.{name}": (name, text) for name, text in files.derive.items()}
        if table == "events" and self.config.events.filter:
            expressions[f"{place}.filter"] = (_PASSES, self.config.events.filter)
        needed, derived = [], set()
        for name, text in expressions.values():
            needed += [column for column in columns_of(text) if column not in derived]
            derived.add(name)
        mapped = used(columns)
        refuse_twins(file, [*mapped, *needed, *derived])
        raw = read_table(
            connection,
            file,
            [*dict.fromkeys([*(c for c in mapped if c not in derived), *needed])],
            " or ".join([CORRECT_THE_MAPPING, *(f"{key} ({text})" for key, (_, text) in expressions.items())]),
            numbered=numbered,
            delimiter=files.delimiter,
            encoding=files.encoding,
        )
        for key, (name, text) in expressions.items():
            raw = _with_column(connection, file, raw, key, name, text)
        return raw

    def _field(self, raw: ibis.Table, name: str, mapped: str | list[str] | None) -> ibis.Value:
        value = super()._field(raw, name, mapped)
        if name != "event_type" or _PASSES not in raw.columns:
            return value
        return ibis.ifelse(raw[_PASSES].fill_null(False), value.cast("string"), FILTERED)


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
