"""A shop's database: where it is, what it is asked, and what it answers, as Parquet. It is read and never written.

No password gets out. Errors are told with the database's own first line, from which secrets are taken, and without the
driver's error behind them, for that may quote the URL.
"""

import json
import logging
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from recsys_tasks.errors import NightcartError, ShopFileError, SourceError, TemporarilyUnavailable
from recsys_tasks.shop import Rows, Sql
from recsys_tasks.sources.files import CORRECT_THE_MAPPING, require

log = logging.getLogger(__name__)

BATCH = 5_000
"""Rows held at once."""
SECONDS_BETWEEN_LINES = 10
"""How often a long read says how far it is."""

AIRFLOW_TYPES = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mssql": "mssql+pymssql",
    "oracle": "oracle+oracledb",
}
"""Airflow's type of a connection -> SQLAlchemy's dialect and driver, where they differ."""
OF_AIRFLOW_ALONE = {"cursor", "sqlalchemy_scheme", "sqlalchemy_query"}
"""Extras of an Airflow connection that are no parameters of the driver."""

FIRST_STATEMENT = {
    "postgresql": "SET TRANSACTION READ ONLY; SET LOCAL TIME ZONE 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; "
    "SET LOCAL cursor_tuple_fraction = 1",  # plan for all rows, not for the first tenth
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}
"""What begins every transaction. SQLite's file is opened for reading instead."""

AS_POSTGRES_WRITES = (
    *("date", "timestamp", "timestamptz", "uuid"),
    *("int2", "int4", "int8", "float4", "float8", "numeric"),
)
"""Types whose text is taken as it comes: sooner than by a Python value, and a time such as ``infinity`` has none."""

REFUSED = re.compile(
    "authentication failed|no password supplied|access denied|login failed|does not exist|unknown database|pg_hba.conf",
    re.IGNORECASE,
)
"""In the answer to a login: it will be the same tomorrow."""
PASSING = ("08", "40", "53", "57")
"""Classes of SQLSTATE that a second try may mend: connection lost, deadlock, out of resources, shut down."""

SECRET = re.compile("pass|pwd|secret|token|odbc_connect", re.IGNORECASE)
"""In the name of a URL's parameter."""


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


AS_TEXT: dict[type, Callable[[Any], str]] = {
    str: str,
    int: str,
    float: _number,
    bool: lambda value: "true" if value else "false",
    Decimal: lambda value: format(value, "f"),
    date: date.isoformat,
    datetime: lambda value: value.isoformat(sep=" "),
    time_of_day: time_of_day.isoformat,
    timedelta: str,
    UUID: str,
}
"""Type of a database's value -> the text that an export would have."""


class Database:
    """One database of the shop.

    Parameters
    ----------
    config
        The shop file's ``source``.
    shop_file
        Where it stands; the path of an SQLite file is relative to its folder.

    Raises
    ------
    ShopFileError
        The URL is none, a variable or the connection is not in the environment, or the driver is not installed.
    SourceError
        There is no such SQLite file.

    """

    def __init__(self, config: Sql, shop_file: Path) -> None:
        url = _url_of(config, shop_file)
        self.name = f"{url.drivername}://{url.host or ''}/{url.database or ''}"
        if url.get_backend_name() == "sqlite":
            url = _read_only_file(url, shop_file.parent)
        self._secrets = [str(url.password)] if url.password else []
        self._secrets += [str(value) for name, value in url.query.items() if SECRET.search(name)]
        try:
            self.engine = sa.create_engine(url, pool_pre_ping=True)
        except (ImportError, sa.exc.ArgumentError) as error:
            raise ShopFileError(
                f"{shop_file}: source: there is no driver for {url.drivername}: {self._line(error)}. Install one "
                "(pip install 'nightcart[postgres]' brings PostgreSQL's), or name another: dialect+driver://"
            ) from None
        weakref.finalize(self, self.engine.dispose)

    @contextmanager
    def connected(self, field: str) -> Iterator[sa.Connection]:
        """Give a connection in a transaction that can only read; ``field`` of the shop file is named in errors.

        Raises
        ------
        TemporarilyUnavailable
            The database does not answer, or stopped answering.
        SourceError
            It refuses: the login, a table, the SQL.

        """
        try:
            connection = self.engine.connect()
        except sa.exc.SQLAlchemyError as error:
            raise self._unconnected(error) from None
        try:
            with connection:
                self._prepare(connection)
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise self._refused(error, field) from None

    def columns(self, rows: Rows, field: str) -> list[str]:
        """Return the names of the columns there are, without reading a row.

        Raises
        ------
        TemporarilyUnavailable, SourceError
            As ``connected``; where there is no such table, the message names those there are.

        """
        try:
            with self.connected(field) as connection:
                nothing = sa.select(sa.text("*")).select_from(selectable(rows)).where(sa.false())
                return list(connection.execute(nothing).keys())
        except SourceError as error:
            raise SourceError(f"{error}{self._tables(rows)}") from None

    def require(self, columns: Sequence[str], found: Sequence[str], field: str) -> None:
        """Raise ``SourceError`` where a column is missing, or stands there twice."""
        place = f"{self.name}: {field}"
        for column in columns:
            if found.count(column) > 1:
                raise SourceError(
                    f"{place}: column {column!r} stands there {found.count(column)} times; give each a name of its "
                    "own (SELECT ... AS ...)"
                )
        require(place, columns, found, CORRECT_THE_MAPPING)

    def write(self, statement: sa.Executable, columns: Sequence[str], path: Path, field: str) -> None:
        """Write columns of the answer as strings, a row for a row and in its order, holding ``BATCH`` rows at once.

        Raises
        ------
        TemporarilyUnavailable
            As ``connected``.
        SourceError
            As ``connected``; or a column is missing, or holds what has no text, such as bytes.

        """
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([(column, pa.string()) for column in columns])
        start = told = time.monotonic()
        count = 0
        with self.connected(field) as connection:
            answer = connection.execution_options(stream_results=True).execute(statement)
            found = list(answer.keys())
            self.require(columns, found, field)
            places = [found.index(column) for column in columns]
            with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
                for rows in answer.partitions(BATCH):
                    values = list(zip(*rows, strict=True))
                    texts = [self._texts(values[n], column, field) for n, column in zip(places, columns, strict=True)]
                    writer.write_batch(pa.record_batch(texts, schema))
                    count += len(rows)
                    if (now := time.monotonic()) - told > SECONDS_BETWEEN_LINES:
                        told = now
                        log.info(
                            "%s: %s rows so far, %s a second", field, f"{count:,}", f"{count / (now - start):,.0f}"
                        )

    def _texts(self, values: Sequence[Any], column: str, field: str) -> pa.Array:
        kinds = set(map(type, values)) - {type(None)}
        if kinds <= {str}:
            return pa.array(values, pa.string())
        for kind in kinds:
            if kind not in AS_TEXT:
                raise SourceError(
                    f"{self.name}: {field}: column {column!r} holds values of type {kind.__name__}; expected text, "
                    "numbers, dates, times or booleans. Give a query that makes text of it, e.g. CAST(... AS TEXT)"
                )
        return pa.array([None if value is None else AS_TEXT[type(value)](value) for value in values], pa.string())

    def _prepare(self, connection: sa.Connection) -> None:
        if statement := FIRST_STATEMENT.get(self.engine.dialect.name):
            connection.exec_driver_sql(statement)
        if self.engine.driver == "psycopg":
            from psycopg.types.string import TextLoader

            for kind in AS_POSTGRES_WRITES:
                connection.connection.dbapi_connection.adapters.register_loader(kind, TextLoader)  # type: ignore[union-attr]

    def _unconnected(self, error: sa.exc.SQLAlchemyError) -> NightcartError:
        line = self._line(error)
        if isinstance(error, sa.exc.ProgrammingError) or REFUSED.search(line):  # the former: no such parameter
            return SourceError(
                f"{self.name}: the database lets nobody in: {line}. Correct user, password and database under "
                "source.url of the shop file, or of the Airflow connection"
            )
        return TemporarilyUnavailable(
            f"{self.name}: the database does not answer: {line}. Start it, or correct host and port under source.url "
            "of the shop file, or of the Airflow connection"
        )

    def _refused(self, error: sa.exc.SQLAlchemyError, field: str) -> NightcartError:
        line = self._line(error)
        state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
        lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
        if lost or state.startswith(PASSING) or "database is locked" in line:
            return TemporarilyUnavailable(f"{self.name}: {field}: the database broke off: {line}. Try again later")
        return SourceError(
            f"{self.name}: {field}: {line}. Expected one SELECT, or the name of a table, that the database's user may "
            "read; correct it in the shop file"
        )

    def _line(self, error: Exception) -> str:
        """The first line of what the database or its driver says, without secrets."""
        text = str(getattr(error, "orig", None) or error).strip()
        line = text.splitlines()[0].rstrip(".") if text else type(error).__name__
        for secret in self._secrets:
            for form in {secret, quote(secret, safe="")}:
                line = line.replace(form, "***")
        return line

    def _tables(self, rows: Rows) -> str:
        """The tables there are, for a message; nothing where the table is there or they cannot be listed."""
        if not rows.table:
            return ""
        schema, _, name = rows.table.rpartition(".")
        try:
            with self.engine.connect() as connection:
                there = sa.inspect(connection)
                if there.has_table(name, schema or None):
                    return ""
                tables = sorted([*there.get_table_names(schema or None), *there.get_view_names(schema or None)])
        except sa.exc.SQLAlchemyError:
            return ""
        return f". Tables there: {tables}"


def selectable(rows: Rows) -> sa.FromClause:
    """Return the table, or the query as a table of its own."""
    if rows.table:
        schema, _, name = rows.table.rpartition(".")
        return sa.table(name, schema=schema or None)
    return sa.text(f"{_statement(rows)}\n").columns().subquery("rows_of_the_shop")


def whole(rows: Rows, columns: Sequence[str]) -> sa.Executable:
    """Return the statement for all rows: the shop's query as it is, or the columns of a table."""
    if rows.query:
        return sa.text(_statement(rows))
    return sa.select(*map(sa.column, columns)).select_from(selectable(rows))


def _statement(rows: Rows) -> str:
    """The query with its colons escaped: they are the shop's own, not SQLAlchemy's parameters."""
    return str(rows.query).strip().rstrip(";").replace(":", r"\:")


def _url_of(config: Sql, shop_file: Path) -> sa.URL:
    if config.connection:
        name = f"AIRFLOW_CONN_{config.connection.upper()}"
        if not os.environ.get(name):
            raise ShopFileError(
                f"{shop_file}: source.connection: there is no connection {config.connection!r}; add it to Airflow "
                f"(airflow connections add {config.connection}), or set {name} to its URI or JSON"
            )
        try:
            return _of_airflow(os.environ[name])
        except (ValueError, TypeError, AttributeError):
            raise ShopFileError(
                f"{shop_file}: source.connection: {name} is no connection of Airflow; expected a URI such as "
                "postgres://user:password@host:5432/database, or JSON with conn_type, host, login, password, schema"
            ) from None
    try:
        url = sa.make_url(_filled(config.url.get_secret_value() if config.url else "", shop_file))
        if "@" in (url.host or ""):
            raise ValueError("a password with an @ that is not quoted ends too soon")
    except (sa.exc.ArgumentError, ValueError):
        raise ShopFileError(
            f"{shop_file}: source.url: SQLAlchemy cannot read it; expected dialect+driver://user:password@host:port/"
            "database, with signs such as @ and / of a password written as %40 and %2F"
        ) from None
    return url.set(drivername=AIRFLOW_TYPES.get(url.drivername, url.drivername))


def _filled(url: str, shop_file: Path) -> str:
    """The URL with the environment's values; those before the ``@`` are user and password, and are quoted."""

    def value(found: re.Match[str]) -> str:
        try:
            return os.environ[found[1]]
        except KeyError:
            raise ShopFileError(
                f"{shop_file}: source.url: the environment has no variable {found[1]!r}; set it, or correct its name"
            ) from None

    variable = re.compile(r"\$\{(\w+)\}")
    login, at, rest = url.rpartition("@")
    return variable.sub(lambda found: quote(value(found), safe=""), login) + at + variable.sub(value, rest)


def _of_airflow(text: str) -> sa.URL:
    """The URL of a connection in Airflow's JSON or URI form."""
    if text.lstrip().startswith("{"):
        known = json.loads(text)
        extra = known.get("extra") or {}
        extra = json.loads(extra) if isinstance(extra, str) else extra
    else:
        parts = urlsplit(text)
        host = re.sub(r":\d*$", "", parts.netloc.rpartition("@")[2])
        known = {
            "conn_type": parts.scheme,
            "host": unquote(host),
            "login": unquote(parts.username or ""),
            "password": unquote(parts.password or ""),
            "schema": unquote(parts.path.removeprefix("/")),
            "port": parts.port,
        }
        extra = dict(parse_qsl(parts.query, keep_blank_values=True))
        extra = json.loads(extra["__extra__"]) if "__extra__" in extra else extra
    kind = known["conn_type"].lower().replace("-", "_") if known.get("conn_type") else ""
    if not kind:
        raise ValueError("a connection has a type")
    if kind == "sqlite":  # Airflow keeps the path as the host
        return sa.URL.create("sqlite", database=known.get("host") or known.get("schema"))
    return sa.URL.create(
        AIRFLOW_TYPES.get(kind, kind),
        username=known.get("login") or None,
        password=known.get("password") or None,
        host=known.get("host") or None,
        port=int(known["port"]) if known.get("port") else None,
        database=known.get("schema") or None,
        query={
            name: str(value)
            for name, value in extra.items()
            if isinstance(value, str | int | float) and name not in OF_AIRFLOW_ALONE
        },
    )


def _read_only_file(url: sa.URL, folder: Path) -> sa.URL:
    """SQLite would make a file that is missing, and write into one that is there."""
    path = folder / (url.database or "")
    if not path.is_file():
        raise SourceError(f"{path}: no SQLite file there (source.url); expected a path, relative to the shop file")
    return url.set(database=path.absolute().as_uri(), query={"mode": "ro", "uri": "true"})
