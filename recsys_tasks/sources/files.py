"""Files as every reader takes them: found by path, folder or glob, plain or gz, whole or refused by name.

Rows carry their number, and what never became a row (a broken line) is told by ``FileSource.rejects`` with its own.
"""

import csv
import gzip
import hashlib
import itertools
import json
import logging
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb
import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.sources.base import Reject, Source, SourceFile

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
"""What a file is, by the end of its name before ``.gz``."""

CORRECT_THE_MAPPING = "Correct the mapping under 'columns' in the shop file"

_ONE_FIELD = "header=false, auto_detect=false, delim='\x01', quote='', escape='', max_line_size=16777216"
"""DuckDB reads whole lines as the one column ``text``: no line of text holds the character 1."""


class FileSource(Source):
    """A source whose files are read by the functions below."""

    def header_lines(self, file: SourceFile) -> int:
        """Return 1 for CSV; rows of other kinds are numbered by their line, or have none."""
        return 1 if FORMATS.get(_suffix(file.path)) == "csv" else 0

    def rejects(self, connection: Any, file: SourceFile) -> list[Reject]:
        """Return the broken lines of a file that was read before.

        Raises
        ------
        SourceError
            A quote is left open and swallows the rows after it.

        """
        return _rejects(connection, file)


def list_files(path: str, folder: Path, field: str) -> list[SourceFile]:
    """Return the files of a path, a folder or a glob, in the order of their names.

    Parameters
    ----------
    path
        As the shop file has it.
    folder
        Where relative paths start.
    field
        Key of the shop file, for the message.

    Raises
    ------
    SourceError
        There is no such file.

    """
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


def read_table(
    connection: Any, file: SourceFile, columns: Sequence[str], remedy: str = CORRECT_THE_MAPPING
) -> ibis.Table:
    """Return ``row`` (from 1) and ``columns`` of a CSV, Parquet or JSON-lines file; strings, or Parquet's own types.

    Raises
    ------
    SourceError
        The file cannot be read, or lacks a column; ``remedy`` says what to do about that.

    """
    if _format(file) == "json":
        return read_json_lines(connection, file, columns, remedy=remedy)
    with _translated(file):
        if _is_empty(file):
            return _no_rows(columns)
        if _format(file) == "parquet":
            raw = connection.read_parquet(file.path)
            require(file.path, columns, raw.columns, remedy)
            return raw.mutate(row=ibis.row_number() + 1)
        return _read_csv(connection, file, columns, remedy)


def read_json_lines(
    connection: Any,
    file: SourceFile,
    required: Sequence[str],
    *,
    optional: Sequence[str] = (),
    lists: Collection[str] = (),
    remedy: str = CORRECT_THE_MAPPING,
) -> ibis.Table:
    """Return ``row`` (the line) and the named keys of each JSON object.

    Values are strings, objects and lists as their JSON; of ``lists`` they are lists of strings, empty where the
    value is none. A key that an object lacks is null. Some object must have each of ``required``.

    Raises
    ------
    SourceError
        The file cannot be read, or no object has a required key; ``remedy`` says what to do about that.

    """
    columns = list(dict.fromkeys([*required, *optional]))
    name = _identifier(file)
    lines = f"read_csv({_literal(file.path)}, columns={{'text': 'VARCHAR'}}, {_ONE_FIELD})"
    place = {column: "$." + json.dumps(column) for column in columns}
    fields = ", ".join(
        f"CASE WHEN ok THEN json_extract_string(text, {_literal(place[c] + ('[*]' if c in lists else ''))}) END "
        f"AS {_quoted(c)}"
        for c in columns
    )
    has = ", ".join(
        f"CASE WHEN ok THEN json_exists(text, {_literal(place[column])}) END AS has_{n}"
        for n, column in enumerate(required)
    )
    with _translated(file):
        if _is_empty(file):
            return _no_rows(columns, lists)
        # Only the fields are kept: the text of a review is most of its line, and nobody asks for it.
        connection.raw_sql(
            f"CREATE OR REPLACE TEMP TABLE {name} AS "
            f"SELECT line AS row, ok, if(ok, NULL, text) AS text, {fields}, {has} "
            "FROM (SELECT *, CASE WHEN json_valid(text) THEN json_type(text) = 'OBJECT' ELSE false END AS ok "
            f"FROM (SELECT row_number() OVER () AS line, text FROM {lines}) WHERE trim(text) <> '')"
        )
        (known,) = connection.raw_sql(
            f"SELECT {', '.join(f'bool_or(has_{n})' for n in range(len(required)))} FROM {name}"
        ).fetchall()
        if False in known:  # all null where there is no object to have keys, and every line is rejected
            keys = connection.raw_sql(
                f"SELECT DISTINCT unnest(json_keys(text)) FROM {lines} "
                "WHERE CASE WHEN json_valid(text) THEN json_type(text) = 'OBJECT' ELSE false END"
            ).fetchall()
            require(file.path, required, sorted(key for (key,) in keys), remedy)
    kept = ", ".join(_quoted(column) for column in columns)
    return connection.sql(f"SELECT row, {kept} FROM {name} WHERE ok")


def read_separated(
    connection: Any, file: SourceFile, columns: Sequence[str], separator: str, encoding: str = "utf-8"
) -> ibis.Table:
    """Return ``row`` (the line) and ``columns`` of a file without a header and without quotes.

    Raises
    ------
    SourceError
        The file cannot be read.

    """
    name = _identifier(file)
    fields = ", ".join(f"fields[{n}] AS {_quoted(column)}" for n, column in enumerate(columns, 1))
    expected = f"expected {len(columns)} fields separated by {separator!r}"
    with _translated(file):
        if _is_empty(file):
            return _no_rows(columns)
        connection.raw_sql(
            f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT line AS row, ok, if(ok, NULL, text) AS text, {fields}, "
            f"{_literal(expected)} AS expected "
            f"FROM (SELECT *, len(fields) = {len(columns)} AS ok FROM (SELECT *, string_split(text, "
            f"{_literal(separator)}) AS fields FROM (SELECT row_number() OVER () AS line, text FROM read_csv("
            f"{_literal(file.path)}, columns={{'text': 'VARCHAR'}}, encoding={_literal(encoding)}, {_ONE_FIELD})) "
            "WHERE trim(text) <> ''))"
        )
    kept = ", ".join(_quoted(column) for column in columns)
    return connection.sql(f"SELECT row, {kept} FROM {name} WHERE ok")


def _rejects(connection: Any, file: SourceFile) -> list[Reject]:
    name, tables = _identifier(file), connection.list_tables()
    if name in tables:
        reason = "expected" if FORMATS.get(_suffix(file.path)) != "json" else "'expected one JSON object a line'"
        found = connection.raw_sql(f"SELECT row, {reason}, text FROM {name} WHERE NOT ok ORDER BY row").fetchall()
    elif f"{name}_rejects" in tables:
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
    else:  # an empty file, or Parquet, which has no lines
        found = []
    return [Reject(line, reason, (text or "").strip("\r\n")) for line, reason, text in found]


def unreadable(file: SourceFile, error: Exception) -> SourceError:
    """Translate a library's message about a file into one that names the file and the remedy."""
    what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SourceError(
        f"{file.path}: cannot be read as {FORMATS.get(_suffix(file.path), 'text')}: {what}. Expected UTF-8 text or "
        "Parquet that opens whole; export the file again, or convert it (iconv -f latin1 -t utf-8)"
    )


@contextmanager
def _translated(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise unreadable(file, error) from error


def _is_empty(file: SourceFile) -> bool:
    """Whether a file has no byte of content, which is warned about."""
    empty = _length(file.path) == 0
    if empty:
        log.warning("%s is empty: no header and no rows", file.path)
    return empty


def _no_rows(columns: Sequence[str], lists: Collection[str] = ()) -> ibis.Table:
    kinds = {column: "array<string>" if column in lists else "string" for column in columns}
    return ibis.memtable([], schema={"row": "int64", **kinds})


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


def require(place: object, used: Sequence[str], found: Sequence[str], remedy: str) -> None:
    """Raise ``SourceError`` with the place and the remedy where a column that is used is not found."""
    for column in used:
        if column not in found:
            close = get_close_matches(column, found, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SourceError(f"{place}: column {column!r} is missing{hint}; found {list(found)}. {remedy}")


def _read_csv(connection: Any, file: SourceFile, used: Sequence[str], remedy: str) -> ibis.Table:
    opener = gzip.open if file.path.suffix == ".gz" else open
    with opener(file.path, "rt", encoding="utf-8-sig", newline="") as stream:
        first = stream.readline().rstrip("\r\n")
    headers = {d: next(csv.reader([first], delimiter=d), []) for d in ",\t;|"}
    delimiter = max(headers, key=lambda d: (len(set(used) & set(headers[d])), len(headers[d])))
    header = headers[delimiter]
    require(file.path, used, header, remedy)
    # Nothing is left to DuckDB to guess: its sniffer refuses a whole file for one stray quote among the first rows.
    columns = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(header)))
    fields = ", ".join(f"c{header.index(column)} AS {_quoted(column)}" for column in dict.fromkeys(used))
    name = _identifier(file)
    return connection.sql(
        f"SELECT row_number() OVER () AS row, {fields} FROM read_csv({_literal(file.path)}, auto_detect=false, "
        f"columns={{{columns}}}, header=true, delim={_literal(delimiter)}, quote='\"', escape='\"', "
        f"store_rejects=true, rejects_table='{name}_rejects', rejects_scan='{name}_scans', rejects_limit=0)"
    )


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
