"""Any CSV, Parquet or JSON-lines export, plain or gz: a file, a folder or a glob; the shop file maps the columns."""

import csv
import gzip
import hashlib
import itertools
import json
import logging
import zlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb
import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.shop import Tabular
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, Reject, Source, SourceFile

log = logging.getLogger(__name__)

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}


class TabularSource(Source):
    """Reads files by the mapping of the shop file; ``folder`` is where relative paths start."""

    def __init__(self, config: Tabular, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._empty: set[SourceFile] = set()

    def event_files(self) -> list[SourceFile]:
        """Return the files the shop file's ``source.events.path`` names."""
        return _list_files(self.config.events.path, self.folder, "source.events.path")

    def item_files(self) -> list[SourceFile]:
        """Return the files of ``source.items.path``; none where items are columns of the event rows."""
        path = self.config.items.path
        return _list_files(path, self.folder, "source.items.path") if path else []

    def read_events(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one event file."""
        columns: dict[str, Any] = self.config.events.columns.model_dump()
        if not self.config.items.path:
            columns |= {name: getattr(self.config.items.columns, name) for name in EVENT_ITEM_FIELDS}
        return self._read(connection, file, EVENT_FIELDS + EVENT_ITEM_FIELDS, columns)

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the mapped fields of one catalogue file."""
        return self._read(connection, file, ITEM_FIELDS, self.config.items.columns.model_dump())

    def rejects(self, connection: Any, file: SourceFile) -> list[Reject]:
        """Return broken lines of a CSV file, or lines of a JSON file that are not a JSON object.

        Raises
        ------
        SourceError
            A quote is left open and swallows the rows after it.

        """
        name = _identifier(file)
        if file in self._empty:
            found = []
        elif _format(file) == "json":
            found = connection.raw_sql(
                f"SELECT line, 'expected one JSON object a line', text FROM {name} WHERE NOT ok ORDER BY line"
            ).fetchall()
        elif _format(file) == "csv" and f"{name}_rejects" in connection.list_tables():
            found = connection.raw_sql(
                f"SELECT line, any_value(error_message ORDER BY column_idx), any_value(csv_line)"
                f" FROM {name}_rejects GROUP BY line ORDER BY line"
            ).fetchall()
            for line, reason, text in found:
                if "quote" in reason and "\n" in (text or "").strip():
                    raise SourceError(
                        f"{file.path}: the quote that opens at row {line - 1} is not closed, so the rows after it "
                        f"cannot be told apart: {text[:80]!r}. Export the file again with its quotes doubled"
                    )
        else:
            found = []
        return [Reject(line, reason, (text or "").strip("\r\n")) for line, reason, text in found]

    def _read(
        self, connection: Any, file: SourceFile, fields: tuple[str, ...], columns: Mapping[str, Any]
    ) -> ibis.Table:
        used = [c for mapped in columns.values() if mapped for c in ([mapped] if isinstance(mapped, str) else mapped)]
        try:
            if _length(file.path) == 0:
                log.warning("%s is empty: no header and no rows", file.path)
                self._empty.add(file)
                kinds = {name: "array<string>" if name == "category" else "string" for name in fields}
                return ibis.memtable([], schema={"row": "int64", **kinds})
            if _format(file) == "parquet":
                raw = connection.read_parquet(file.path)
                _require(file, used, raw.columns)
                raw = raw.mutate(row=ibis.row_number() + 1)
            elif _format(file) == "csv":
                raw = _read_csv(connection, file, used)
            else:
                raw = _read_json_lines(connection, file, used)
        except (duckdb.Error, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise unreadable(file, error) from error
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


def unreadable(file: SourceFile, error: Exception) -> SourceError:
    """Translate a library's message about a file into one that names the file and the remedy."""
    what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SourceError(
        f"{file.path}: cannot be read as {_format(file)}: {what}. Expected UTF-8 text or Parquet that opens whole; "
        "export the file again, or convert it (iconv -f latin1 -t utf-8)"
    )


def _list_files(path: str, folder: Path, field: str) -> list[SourceFile]:
    whole = folder / path
    if any(sign in path for sign in "*?["):
        base = Path(*itertools.takewhile(lambda part: not any(sign in part for sign in "*?["), whole.parts))
        found = [p for p in base.glob(str(whole.relative_to(base))) if p.is_file()]
    elif whole.is_dir():
        found = [p for p in whole.rglob("*") if p.is_file() and _suffix(p) in FORMATS]
        base = whole
    else:
        found, base = ([whole] if whole.is_file() else []), whole.parent
    if not found:
        raise SourceError(
            f"{whole}: no file there ({field}); expected a CSV, Parquet or JSON-lines file, a folder of them or a glob"
        )
    return sorted((SourceFile(str(p.relative_to(base)), p) for p in found), key=lambda file: file.name)


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _format(file: SourceFile) -> str:
    try:
        return FORMATS[_suffix(file.path)]
    except KeyError as error:
        raise SourceError(
            f"{file.path}: unknown kind of file; expected a name ending in one of {sorted(FORMATS)}, plain or .gz"
        ) from error


def _length(path: Path) -> int:
    """Bytes of content. Reading a .gz to its end proves it whole, for DuckDB takes half of one without a word."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with gzip.open(path) as stream:
        return sum(len(block) for block in iter(lambda: stream.read(1 << 20), b""))


def _identifier(file: SourceFile) -> str:
    """A table name of this file alone: two folders may hold files of one name, and DuckDB's names know no case."""
    return "file_" + hashlib.sha256(str(file.path).encode()).hexdigest()[:32]


def _require(file: SourceFile, used: list[str], found: list[str] | tuple[str, ...]) -> None:
    for column in used:
        if column not in found:
            close = get_close_matches(column, found, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SourceError(
                f"{file.path}: column {column!r} is missing{hint}; found {list(found)}. "
                "Correct the mapping under 'columns' in the shop file"
            )


def _read_csv(connection: Any, file: SourceFile, used: list[str]) -> ibis.Table:
    opener = gzip.open if file.path.suffix == ".gz" else open
    with opener(file.path, "rt", encoding="utf-8-sig", newline="") as stream:
        first = stream.readline().rstrip("\r\n")
    headers = {d: next(csv.reader([first], delimiter=d), []) for d in ",\t;|"}
    delimiter = max(headers, key=lambda d: (len(set(used) & set(headers[d])), len(headers[d])))
    header = headers[delimiter]
    _require(file, used, header)
    # Nothing is left to DuckDB to guess: its sniffer refuses a whole file for one stray quote among the first rows.
    columns = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(header)))
    fields = ", ".join(f"c{header.index(column)} AS {_quoted(column)}" for column in dict.fromkeys(used))
    name = _identifier(file)
    return connection.sql(
        f"SELECT row_number() OVER () AS row, {fields} FROM read_csv({_literal(file.path)}, auto_detect=false, "
        f"columns={{{columns}}}, header=true, delim={_literal(delimiter)}, quote='\"', escape='\"', "
        f"store_rejects=true, rejects_table='{name}_rejects', rejects_scan='{name}_scans', rejects_limit=0)"
    )


def _read_json_lines(connection: Any, file: SourceFile, used: list[str]) -> ibis.Table:
    name = _identifier(file)
    connection.raw_sql(
        f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT row_number() OVER () AS line, text, "
        "CASE WHEN json_valid(text) THEN json_type(text) = 'OBJECT' ELSE false END AS ok "
        f"FROM read_csv({_literal(file.path)}, "
        "columns={'text': 'VARCHAR'}, header=false, auto_detect=false, delim='\x01', quote='', escape='', "
        "max_line_size=16777216)"
    )
    connection.raw_sql(f"DELETE FROM {name} WHERE text IS NULL OR trim(text) = ''")
    found = connection.raw_sql(
        f"SELECT DISTINCT unnest(json_keys(text)) FROM (SELECT text FROM {name} WHERE ok)"
    ).fetchall()
    if found:  # else there is no object to have keys, and every line is rejected
        _require(file, used, sorted(key for (key,) in found))
    fields = ", ".join(
        f"json_extract_string(text, {_literal('$.' + json.dumps(column))}) AS {_quoted(column)}"
        for column in dict.fromkeys(used)
    )
    return connection.sql(f"SELECT line AS row, {fields} FROM {name} WHERE ok")


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
