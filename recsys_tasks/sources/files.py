"""Files as every reader takes them: found by path, folder or glob, plain or gz, whole or refused by name.

Rows carry their number, and what never became a row (a broken line) is told by ``FileSource.rejects`` with its own.
"""

import codecs
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.sources.base import Reject, Source, SourceFile
from recsys_tasks.sources.streams import (
    COMPRESSED,
    LineCount,
    blocks,
    count_lines,
    first_bytes,
    has_mixed_line_ends,
    is_compressed,
    known_encoding,
    piped,
    wrong_encoding,
)

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


class FileSource(Source):
    """A source whose files are read by the functions below."""

    def header_lines(self, file: SourceFile) -> int:
        """Return 1 for CSV; rows of other kinds are numbered by their line, or have none."""
        return 1 if FORMATS.get(_suffix(file.path)) == "csv" else 0

    def in_order(self, file: SourceFile, rows: int) -> bool:
        """Tell so of CSV, and of JSON lines where no line is blank."""
        return self.header_lines(file) == 1 or (not is_compressed(file.path) and count_lines(file.path) == rows)

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
        As the shop file has it. One that is a file or a folder is no glob, whatever signs its name holds.
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
    try:
        base, found = _found(whole)
    except (OSError, ValueError) as error:  # a name too long, or ** within a word
        raise SourceError(f"{whole}: {error} ({field}); expected the path of a file, a folder or a glob") from error
    if not found:
        raise SourceError(
            f"{whole}: no file there ({field}); expected a CSV, Parquet or JSON-lines file, a folder of them or a glob"
        )
    for name in map(str, found):
        if name != name.encode(errors="replace").decode():
            raise SourceError(f"{name!a}: this name is not in UTF-8 ({field}); give the file another one")
    return sorted((SourceFile(str(p.relative_to(base)), p) for p in found), key=lambda file: file.name)


def _found(whole: Path) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files."""
    if whole.is_file():
        return whole.parent, [whole]
    if whole.is_dir():
        inside = (Path(folder) / name for folder, _, names in os.walk(whole, onerror=_raise) for name in names)
        return whole, [p for p in inside if _is_file(p) and _suffix(p) in FORMATS and not p.name.startswith(".")]
    base = next(parent for parent in whole.parents if parent.is_dir())
    return base, [p for p in base.glob(str(whole.relative_to(base))) if _is_file(p)]


def _raise(error: OSError) -> None:
    raise error


def _is_file(path: Path) -> bool:
    """Whether it is one, or a link to one that is gone: nobody would miss that."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def read_table(
    connection: Any,
    file: SourceFile,
    columns: Sequence[str],
    remedy: str = CORRECT_THE_MAPPING,
    *,
    numbered: bool = True,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> ibis.Table:
    """Return ``row`` (from 1) and ``columns`` of a CSV, Parquet or JSON-lines file; strings, or Parquet's own types.

    A column that the path tells (``dt=2020-01-05/part.csv``) is that string in every row, whatever the file holds.

    Parameters
    ----------
    connection, file, columns
        Where, what and which.
    remedy
        What to do about a missing column, for the message.
    numbered
        False leaves ``row`` null where counting rows would slow the reading down.
    delimiter
        Of CSV; by default the one of comma, tab, semicolon and pipe that finds most columns in the header.
    encoding
        Of text, as Python names it; by default UTF-8, or UTF-16 where the file begins with its mark.

    Raises
    ------
    SourceError
        The file cannot be read, lacks a column or has it twice, or two columns are one to DuckDB.

    """
    refuse_twins(file, columns)
    told = _told_by_path(file.path)
    inside = [column for column in dict.fromkeys(columns) if column not in told]
    if _format(file) == "json":
        table = read_json_lines(connection, file, inside, remedy=remedy, numbered=numbered, encoding=encoding)
    elif _format(file) == "parquet":
        table = _read_parquet(connection, file, inside, remedy, numbered)
    else:
        table = _read_csv(connection, file, inside, remedy, numbered, delimiter, encoding)
    added = {name: ibis.literal(told[name], "string") for name in columns if name in told}
    return table.mutate(**added) if added else table


def read_json_lines(
    connection: Any,
    file: SourceFile,
    required: Sequence[str],
    *,
    optional: Sequence[str] = (),
    lists: Collection[str] = (),
    remedy: str = CORRECT_THE_MAPPING,
    numbered: bool = True,
    encoding: str | None = None,
) -> ibis.Table:
    """Return ``row`` (the line; null unless ``numbered``) and the named keys of each JSON object.

    Values are strings, objects and lists as their JSON; of ``lists`` they are lists of strings, empty where the
    value is none. A key that an object lacks is null. Some object must have each of ``required``.

    Raises
    ------
    SourceError
        The file cannot be read, or no object has a required key; ``remedy`` says what to do about that.

    """
    columns = list(dict.fromkeys([*required, *optional]))
    with _translated(file):
        first = first_bytes(file.path)
        if not first:
            return _no_rows(connection, file, columns, lists)
        encoding = known_encoding(first, encoding)
        plain = not is_compressed(file.path) and encoding == "utf-8" and not first.startswith(codecs.BOM_UTF8)
        if plain and not numbered and (table := _scan_objects(connection, file, columns, required, lists)) is not None:
            return table
        lines = _read_objects(connection, file, encoding, columns, required, lists)
        if lines is None or (numbered and not lines):
            _read_lines(connection, file, encoding, columns, required, lists, remedy)
    kept = ", ".join(quoted(column) for column in columns)
    row = "rowid + 1" if lines else "row"
    return connection.sql(f"SELECT {row} AS row, {kept} FROM {_identifier(file)} WHERE ok")


def _objects(path: Path | str, columns: Sequence[str], lists: Collection[str]) -> str:
    """The columns of a file of JSON lines by DuckDB's reader of JSON, which is fast.

    It counts no lines, refuses the whole file for one broken line, and takes the line ``null`` for an object.
    """
    kinds = ", ".join(f"{_literal(c)}: '{'VARCHAR[]' if c in lists else 'VARCHAR'}'" for c in columns)
    return f"read_json({_one_file(path)}, columns={{{kinds}}}, format='newline_delimited', hive_partitioning=false)"


def _fields(columns: Sequence[str], lists: Collection[str]) -> str:
    return ", ".join(f"coalesce({quoted(c)}, []) AS {quoted(c)}" if c in lists else quoted(c) for c in columns)


def _scan_objects(
    connection: Any, file: SourceFile, columns: Sequence[str], required: Sequence[str], lists: Collection[str]
) -> ibis.Table | None:
    """The file as it is read by whoever asks, who then meets its errors; None where its head lacks a required key."""
    objects = _objects(file.path, columns, lists)
    nothing = " AND ".join(f"{quoted(c)} IS NULL" for c in required)
    try:
        (found,) = connection.raw_sql(
            f"SELECT {', '.join(f'count({quoted(c)})' for c in required)} FROM (FROM {objects} LIMIT 2048)"
        ).fetchall()
    except duckdb.Error:
        return None
    if not all(found):
        return None
    return connection.sql(
        f"SELECT CASE WHEN {nothing} THEN error('a line is no object') END::BIGINT AS row, {_fields(columns, lists)} "
        f"FROM {objects}"
    )


def _read_objects(
    connection: Any,
    file: SourceFile,
    encoding: str,
    columns: Sequence[str],
    required: Sequence[str],
    lists: Collection[str],
) -> bool | None:
    """Fill the file's table by DuckDB's reader of JSON; None where it is not to be trusted.

    Else tell whether each line is a row, so that the place of a row is its line.
    """
    name = _identifier(file)
    nothing = " AND ".join(f"{quoted(c)} IS NULL" for c in required)
    lines = LineCount()
    try:
        with piped(lines.of(blocks(file.path, encoding))) as path:
            connection.raw_sql(
                f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT NULL::BIGINT AS row, true AS ok, "
                f"NULL::VARCHAR AS text, {_fields(columns, lists)} FROM {_objects(path, columns, lists)}"
            )
    except duckdb.Error:
        return None
    ((rows, without, *found),) = connection.raw_sql(
        f"SELECT count(*), count(*) FILTER ({nothing}), {', '.join(f'count({quoted(c)})' for c in required)} "
        f"FROM {name}"
    ).fetchall()
    return rows == lines.n if without == 0 and all(found) else None


def _read_lines(
    connection: Any,
    file: SourceFile,
    encoding: str,
    columns: Sequence[str],
    required: Sequence[str],
    lists: Collection[str],
    remedy: str,
) -> None:
    """Fill the file's table line by line, with the number of each and the text of those that are no objects."""
    name = _identifier(file)
    places = ", ".join(_literal("$." + json.dumps(column, ensure_ascii=False)) for column in columns)
    kinds = [('["VARCHAR"]' if column in lists else '"VARCHAR"') for column in columns]
    fields = [f"from_json(found[{n}], '{kind}')" for n, kind in enumerate(kinds, 1)]
    fields = [f"coalesce({field}, [])" if c in lists else field for c, field in zip(columns, fields, strict=True)]
    # Only the fields are kept: the text of a review is most of its line, and nobody asks for it.
    with piped(blocks(file.path, encoding, one_line_end=True)) as path:
        connection.raw_sql(
            f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT row, ok, if(ok, NULL, text) AS text, "
            + ", ".join(f"{field} AS {quoted(column)}" for column, field in zip(columns, fields, strict=True))
            + "".join(f", found[{columns.index(c) + 1}] IS NOT NULL AS has_{n}" for n, c in enumerate(required))
            + " FROM (SELECT *, found IS NOT NULL AND starts_with(text, '{') AS ok FROM ("
            f"SELECT *, TRY(json_extract(text, [{places}])) AS found FROM (SELECT row_number() OVER () AS row, "
            "CASE WHEN starts_with(text, '{') THEN text ELSE trim(text, ' \t\r\v\f') END AS text "  # trim is slow
            f"FROM {_lines(path)}) WHERE text <> ''))"
        )
        # found is a list of JSON: an entry is null where the key is missing, and the JSON null where it is null.
    (known,) = connection.raw_sql(
        f"SELECT {', '.join(f'bool_or(has_{n})' for n in range(len(required)))} FROM {name} WHERE ok"
    ).fetchall()
    if False in known:  # all null where there is no object to have keys, and every line is rejected
        with piped(blocks(file.path, encoding, one_line_end=True)) as path:
            keys = connection.raw_sql(
                f"SELECT DISTINCT unnest(TRY(json_keys(text))) FROM {_lines(path)} WHERE starts_with(ltrim(text), '{{')"
            ).fetchall()
        require(file.path, required, sorted(key for (key,) in keys), remedy)


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
    fields = ", ".join(f"fields[{n}] AS {quoted(column)}" for n, column in enumerate(columns, 1))
    expected = f"expected {len(columns)} fields separated by {separator!r}"
    with _translated(file):
        if not first_bytes(file.path):
            return _no_rows(connection, file, columns)
        with piped(blocks(file.path, encoding, one_line_end=True)) as path:
            connection.raw_sql(
                f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT line AS row, ok, if(ok, NULL, text) AS text, {fields}, "
                f"{_literal(expected)} AS expected "
                f"FROM (SELECT *, len(fields) = {len(columns)} AS ok FROM (SELECT *, string_split(text, "
                f"{_literal(separator)}) AS fields FROM (SELECT row_number() OVER () AS line, text "
                f"FROM {_lines(path)}) WHERE trim(text) <> ''))"
            )
    kept = ", ".join(quoted(column) for column in columns)
    return connection.sql(f"SELECT row, {kept} FROM {name} WHERE ok")


def _rejects(connection: Any, file: SourceFile) -> list[Reject]:
    name, kind = _identifier(file), FORMATS.get(_suffix(file.path))
    try:
        if kind == "csv":
            return _rejects_of_csv(connection, file)
        reason = "'expected one JSON object a line'" if kind == "json" else "expected"
        found = connection.raw_sql(f"SELECT row, {reason}, text FROM {name} WHERE NOT ok ORDER BY row").fetchall()
    except duckdb.CatalogException:  # no such table: an empty file, or Parquet, which has no lines
        return []
    return [Reject(*reject) for reject in found]


def _rejects_of_csv(connection: Any, file: SourceFile) -> list[Reject]:
    name = _identifier(file)
    found = connection.raw_sql(
        f"SELECT line, any_value(error_message ORDER BY column_idx), any_value(csv_line), any_value(delimiter) "
        f"FROM {name}_rejects JOIN {name}_scans USING (scan_id) GROUP BY line ORDER BY line"
    ).fetchall()
    blank = _blank_lines(file, found[0][3], found[-1][0]) if found else []
    found = [(line - bisect(blank, line), reason, text or "") for line, reason, text, _ in found]
    for line, reason, text in found:
        if "quote" in reason and "\n" in text.strip():
            raise SourceError(
                f"{file.path}: the quote that opens at row {line - 1} is not closed, so the rows after it "
                f"cannot be told apart: {text[:80]!r}. Export the file again with its quotes doubled"
            )
    return [Reject(line, _explained(reason), text.strip("\r\n")) for line, reason, text in found]


def _explained(reason: str) -> str:
    if "utf-8" not in reason:
        return reason
    return f"{reason} If the whole file is in another encoding, name it in the shop file, e.g. 'encoding: latin-1'"


def _blank_lines(file: SourceFile, delimiter: str, last: int) -> list[int]:
    """Numbers of the blank lines among the first ``last`` records: DuckDB counts them, but gives no row for one."""
    encoding = known_encoding(first_bytes(file.path), None)

    def lines() -> Iterator[bytes]:
        rest = b""
        for block in blocks(file.path, encoding, one_line_end=True):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole

    if b"" not in lines():
        return []
    records = csv.reader((line.decode("latin-1") + "\n" for line in lines()), delimiter=delimiter)
    found: list[int] = []
    with suppress(csv.Error):  # a field of more than 128 KiB: blank lines after it stay unseen
        found.extend(number for number, record in itertools.islice(enumerate(records, 1), last) if not record)
    return found


def refuse_twins(file: SourceFile, columns: Sequence[str]) -> None:
    """Refuse columns that DuckDB, whose names know no case, would take for one.

    Raises
    ------
    SourceError
        Two columns differ in capitals alone, or one is called ``row``.

    """
    names = {"row": "row"}
    for column in columns:
        if names.setdefault(column.lower(), column) != column or column == "row":
            raise SourceError(
                f"{file.path}: column {column!r} cannot be told from {names[column.lower()]!r}: capitals do not tell "
                "columns apart, and 'row' is the number of the row. Give it another name in the export"
            )


def unreadable(file: SourceFile, error: Exception) -> SourceError:
    """Translate a library's message about a file into one that names the file and the remedy."""
    what, *more = str(error).strip().splitlines() or [type(error).__name__]
    what = " ".join([what, *(line for line in more if line.startswith("Maximum line size"))])
    return SourceError(
        f"{file.path}: cannot be read as {FORMATS.get(_suffix(file.path), 'text')}: {what}. Expected UTF-8 text or "
        "Parquet that opens whole; export the file again, or convert it (iconv -f latin1 -t utf-8)"
    )


@contextmanager
def _translated(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, OSError, UnicodeError) as error:
        if "nvalid unicode" in str(error) and (line := re.search(r"Line: (\d+)", str(error))):
            raise wrong_encoding(file.path, int(line[1])) from error
        raise unreadable(file, error) from error


def _no_rows(connection: Any, file: SourceFile, columns: Sequence[str], lists: Collection[str] = ()) -> ibis.Table:
    log.warning("%s is empty: no header and no rows", file.path)
    fields = "".join(f", NULL::VARCHAR{'[]' if c in lists else ''} AS {quoted(c)}" for c in dict.fromkeys(columns))
    return connection.sql(f"SELECT NULL::BIGINT AS row{fields} WHERE false")


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if is_compressed(path) else path).suffix.lower()


def _format(file: SourceFile) -> str:
    try:
        return FORMATS[_suffix(file.path)]
    except KeyError as error:
        raise SourceError(
            f"{file.path}: unknown kind of file; expected a name ending in one of {sorted(FORMATS)}, "
            f"plain, {' or '.join(COMPRESSED)}"
        ) from error


def _told_by_path(path: Path) -> dict[str, str | None]:
    """Columns of Hive's layout: the folder ``country=UK`` holds rows of that country."""
    pairs = [part.split("=", 1) for part in path.parent.parts if "=" in part]
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for name, value in pairs}


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


def _read_parquet(connection: Any, file: SourceFile, used: Sequence[str], remedy: str, numbered: bool) -> ibis.Table:
    with _translated(file):
        if file.path.stat().st_size == 0:
            return _no_rows(connection, file, used)
        found = connection.sql(f"FROM read_parquet({_one_file(file.path)}, hive_partitioning=false)").columns
        require(file.path, used, found, remedy)
        return connection.sql(
            f"SELECT {', '.join(['file_row_number + 1 AS row', *map(quoted, used)])} "
            f"FROM read_parquet({_one_file(file.path)}, file_row_number=true, hive_partitioning=false)"
        )


def _read_csv(
    connection: Any,
    file: SourceFile,
    used: Sequence[str],
    remedy: str,
    numbered: bool,
    delimiter: str | None,
    encoding: str | None,
) -> ibis.Table:
    with _translated(file):
        first = first_bytes(file.path)
        if not first:
            return _no_rows(connection, file, used)
        encoding = known_encoding(first, encoding)
        skipped, delimiter, header = _header(file, first, encoding, used, delimiter)
        require(file.path, used, header, remedy)
        for column in used:
            if header.count(column) > 1:
                raise SourceError(
                    f"{file.path}: column {column!r} stands {header.count(column)} times in the header, so its values "
                    "cannot be told apart; give the columns different names"
                )
        # Nothing is left to DuckDB to guess: its sniffer refuses a whole file for one stray quote among the first rows.
        columns = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(header)))
        fields = [f"c{header.index(column)} AS {quoted(column)}" for column in used]
        name = _identifier(file)

        def rows(path: Path | str) -> str:
            row = "row_number() OVER ()" if numbered else "NULL::BIGINT"
            return (
                f"SELECT {', '.join([f'{row} AS row', *fields])} FROM read_csv({_one_file(path)}, auto_detect=false, "
                f"columns={{{columns}}}, header=true, skip={skipped}, delim={_literal(delimiter)}, quote='\"', "
                f"escape='\"', store_rejects=true, rejects_table='{name}_rejects', rejects_scan='{name}_scans', "
                "rejects_limit=0, hive_partitioning=false)"
            )

        if not (is_compressed(file.path) or encoding != "utf-8" or has_mixed_line_ends(file.path, first)):
            return connection.sql(rows(file.path))
        with piped(blocks(file.path, encoding, one_line_end=True)) as path:
            connection.raw_sql(f"CREATE OR REPLACE TEMP TABLE {name}_rows AS {rows(path)}")
        return connection.sql(f"FROM {name}_rows")


def _header(
    file: SourceFile, first: bytes, encoding: str, used: Sequence[str], delimiter: str | None
) -> tuple[int, str, list[str]]:
    """The blank lines before the header, the delimiter, and the header."""
    decoder = codecs.getincrementaldecoder(encoding)
    try:
        text = decoder().decode(first).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        text = decoder("ignore").decode(first).removeprefix("\ufeff")
        if encoding != "utf-8" or text.isascii():  # else the line is damaged, and is rejected alone
            line = first[: error.start].decode(encoding, "ignore").count("\n") + 1
            raise wrong_encoding(file.path, line, encoding) from error
    best: tuple[int, str, list[str]] = (0, ",", [])
    stream = io.StringIO(text[: 1 << 16], newline="")
    for sign in [delimiter] if delimiter else ",\t;|":
        stream.seek(0)
        records = csv.reader(stream, delimiter=sign)
        skipped, header = next(((n, record) for n, record in enumerate(records) if record), (0, []))
        if (len({*used} & {*header}), len(header)) > (len({*used} & {*best[2]}), len(best[2])):
            best = skipped, sign, header
    return best


def _lines(path: str) -> str:
    """The lines of a file as a relation of the one column ``text``: no line of text holds the character 1."""
    return (
        f"read_csv({_one_file(path)}, columns={{'text': 'VARCHAR'}}, header=false, auto_detect=false, delim='\x01', "
        "quote='', escape='', max_line_size=33554432, hive_partitioning=false)"
    )


def quoted(column: str) -> str:
    """Return the name of a column as it stands in SQL."""
    return '"' + column.replace('"', '""') + '"'


def _one_file(path: Path | str) -> str:
    """The path for DuckDB, which would take the signs of a glob in a name for a glob."""
    return _literal(re.sub(r"([*?[])", r"[\1]", str(path)))


def _literal(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
