"""A database gives the rows that its export would, by days where it can; it is only read, and keeps its secrets."""

import json
import sqlite3
import threading
import time
import traceback
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

import ibis
import psutil
import pytest
import sqlalchemy as sa
import yaml

from recsys_tasks.errors import NightcartError, ShopFileError, SourceError, TemporarilyUnavailable
from recsys_tasks.shop import load_shop
from recsys_tasks.sources import database as databases
from recsys_tasks.sources import open_source
from tests.ingested import ingested
from tests.postgres import DATABASE, PASSWORD, USER, postgres_server, programs

COLUMNS = {
    "user_id": "customer",
    "item_id": "Sku",
    "timestamp": "at",
    "value": "pieces",
    "price": "price",
    "session_id": "visit",
}
EVENTS = {"table": "events", "columns": COLUMNS}
CREATE = 'CREATE TABLE events (customer {}, "Sku" {}, at {}, pieces {}, price {}, visit {}, changed {})'
KINDS = {
    "sqlite": ("TEXT", "TEXT", "TEXT", "INTEGER", "REAL", "TEXT", "TEXT"),
    "postgres": ("bigint", "text", "timestamptz", "integer", "numeric(10,2)", "uuid", "timestamp"),
}
VISIT = "5f0c8f3a-8d5e-4a53-9b6c-0a1b2c3d4e5f"
ROWS = [
    ("11", "a", "2020-01-05 10:00:00+00", "1", "2.50", VISIT, "2020-01-05 11:00:00"),
    ("12", "b,'%s'", "2020-01-05 23:30:00+00", "2", None, None, "2020-01-05 23:59:00"),
    ("11", 'ü "3"\n', "2020-01-06 00:30:00+00", "-1", "0.99", None, "2020-01-06 11:00:00"),
    ("12", "a", None, "1", "2.50", None, "2020-01-06 11:00:00"),
]


class Database:
    """A database of one of the two kinds, and how the shop file names it."""

    zone = property(lambda self: {"sqlite": "+00:00", "postgres": "+00"}[self.kind])

    def __init__(self, kind, connection, url):
        self.kind, self.url, self.execute = kind, url, connection.execute

    true = property(lambda self: {"sqlite": "1", "postgres": "true"}[self.kind])

    def numbered(self, rows):
        """What is expected of rows: each with its place, as this kind writes it, and without ``changed``."""
        return [(n, *(v and v.replace("+00", self.zone) for v in row[:-1])) for n, row in enumerate(rows, 1)]

    def fill(self, rows=ROWS):
        """Make the table of events."""
        self.execute(CREATE.format(*KINDS[self.kind]))
        for row in rows:
            self.add(row)
        return self

    def add(self, row):
        values = ", ".join(
            "NULL" if v is None else "'" + v.replace("'", "''").replace("+00", self.zone) + "'" for v in row
        )
        self.execute(f"INSERT INTO events VALUES ({values})")


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL server of this module."""
    binaries = programs()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: initdb is neither on the path nor under /usr/lib/postgresql")
    with postgres_server(binaries) as server:
        yield server


@pytest.fixture
def postgres(server, monkeypatch):
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    with server.connect() as connection:
        yield Database("postgres", connection, f"postgresql://{USER}:${{SHOP_PASSWORD}}@/{DATABASE}?host={server.host}")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.fixture
def sqlite(tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as connection:
        yield Database("sqlite", connection, "sqlite:///shop.db")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request):
    """An empty database, of each kind in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def described(tmp_path):
    """A function that writes a shop file beside the SQLite database and returns its path."""

    def write(**source):
        (tmp_path / "shop.yaml").write_text(
            yaml.safe_dump({"name": "corner", "time_zone": "Europe/London", "source": {"format": "sql", **source}})
        )
        return tmp_path / "shop.yaml"

    return write


@pytest.fixture
def source(described):
    """A function that opens the source of such a shop file."""

    def opened(**keys):
        file = described(**{"events": EVENTS, **keys})
        return open_source(load_shop(str(file), file.parent))

    return opened


def read(reader, files=None):
    """Every event row by the name of its file, without the fields that this shop does not map."""
    found = {}
    with closing(ibis.duckdb.connect().con) as con:
        connection = ibis.duckdb.from_connection(con)
        for file in reader.event_files() if files is None else files:
            with reader.fetched(file) as local:
                rows = reader.read_events(connection, local).select("row", *COLUMNS).order_by("row")
                found[file.name] = [tuple(row.values()) for row in rows.to_pyarrow().to_pylist()]
            assert reader.rejects(connection, file) == []
    return found


@contextmanager
def statements(reader=None):
    """The statements that select, sent to the reader's database (to any, where there is none) meanwhile."""
    sent = []

    def note(connection, cursor, statement, *others):
        if statement.startswith("SELECT"):
            sent.append(statement)

    engine = reader.database.engine if reader else sa.Engine
    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


def test_a_table_comes_in_its_order_with_every_value_as_an_export_would_write_it(database, source):
    reader = source(url=database.fill().url)
    expected = database.numbered(ROWS)
    if database.kind == "sqlite":  # a price is a floating number there
        expected = [(*row[:5], row[5] and row[5].replace("2.50", "2.5"), *row[6:]) for row in expected]
    assert read(reader) == {"events": expected}


def test_a_query_is_run_as_it_is(database, source):
    database.fill()
    cast = "customer::text" if database.kind == "postgres" else "customer"
    query = f'SELECT {cast} AS customer, \':a %s %(b)s\' || "Sku" AS "Sku", at FROM events ORDER BY pieces; -- all'
    query = query.replace("; -- all", " -- all\n;\n")
    reader = source(url=database.url, events={"query": query, "columns": dict(list(COLUMNS.items())[:3])})
    assert [row[2][11:] for row in read(reader)["events"]][:2] == ['ü "3"\n', "a"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", "true"),
        ("7::float8", "7"),
        ("0.1::float4", "0.1"),
        ("1e20::numeric", "100000000000000000000"),
        ("12345678901234567890.123456789", "12345678901234567890.123456789"),
        ("'NaN'::numeric", "NaN"),
        ("date '2020-02-29'", "2020-02-29"),
        ("time '10:00:00.5'", "10:00:00.500000"),
        ("timestamp '2020-01-05 10:00:00.000001'", "2020-01-05 10:00:00.000001"),
        ("timestamptz '2020-01-05 10:00:00+02'", "2020-01-05 08:00:00+00"),
        ("timestamptz 'infinity'", "infinity"),
        ("interval '1 day 1 second'", "1 day, 0:00:01"),
        (f"'{VISIT}'::uuid", VISIT),
        ("''", ""),
        ("NULL", None),
    ],
)
def test_postgres_keeps_every_kind_of_value(postgres, source, value, expected):
    query = f"SELECT 'u' AS u, 'i' AS i, now() AS t, {value} AS v"
    columns = {"user_id": "u", "item_id": "i", "timestamp": "t", "value": "v"}
    assert read(source(url=postgres.url, events={"query": query, "columns": columns}))["events"][0][4] == expected


@pytest.mark.parametrize(("value", "kind"), [(r"'\x00'::bytea", "bytes"), ("ARRAY[1]", "list"), ("'{}'::json", "dict")])
def test_a_value_that_has_no_text_is_refused_with_the_cast_to_write(postgres, source, value, kind):
    query = f"SELECT 'u' AS customer, {value} AS \"Sku\", now() AS at"
    reader = source(url=postgres.url, events={"query": query, "columns": dict(list(COLUMNS.items())[:3])})
    with pytest.raises(SourceError, match=rf"source.events: column 'Sku' holds values of type {kind}.* CAST"):
        reader.event_files()


def test_the_version_of_a_whole_table_is_its_content(database, source):
    database.fill()
    before = [source(url=database.url).event_files()[0].version for _ in range(2)]
    database.add(ROWS[0])
    assert before[0] == before[1] != source(url=database.url).event_files()[0].version


def test_a_table_is_fetched_once_however_often_its_files_are_listed(sqlite, source):
    reader = source(url=sqlite.fill().url, items={"table": "events", "columns": {"item_id": "Sku"}})
    with statements(reader) as sent:
        for _ in range(3):
            read(reader)
            reader.item_files()
    assert len([statement for statement in sent if "*" not in statement]) == 2


def test_with_changed_at_each_day_is_a_file_and_no_row_is_lost(database, source):
    reader = source(url=database.fill().url, events=EVENTS | {"changed_at": "changed"})
    found = read(reader)
    assert list(found) == ["events/2020-01-05", "events/2020-01-06", "events/without-timestamp"]
    assert [[row[2] for row in rows] for rows in found.values()] == [["a", "b,'%s'"], ['ü "3"\n'], ["a"]]
    assert found["events/without-timestamp"][0][3] is None


def test_only_days_that_are_new_or_changed_are_asked_for_again(database, source):
    events = EVENTS | {"changed_at": "changed"}
    known = {file.version for file in source(url=database.fill().url, events=events).event_files()}
    unchanged = source(url=database.url, events=events)
    assert {file.version for file in unchanged.event_files()} == known
    database.execute("UPDATE events SET pieces = 5, changed = '2020-01-07 01:00:00' WHERE \"Sku\" LIKE 'b%'")
    database.add(("13", "c", "2020-01-07 12:00:00+00", "1", None, None, "2020-01-07 12:00:00"))
    database.execute("DELETE FROM events WHERE at IS NULL")
    reader = source(url=database.url, events=events)
    with statements(reader) as sent:
        new = [file for file in reader.event_files() if file.version not in known]
        asked_what_is_new = len(sent)
        rows = read(reader, new)
    assert [(name, [row[4] for row in rows]) for name, rows in rows.items()] == [
        ("events/2020-01-05", ["1", "5"]),
        ("events/2020-01-07", ["1"]),
    ]
    assert (asked_what_is_new, len(sent)) == (2, 4), "its columns, its days, and the two days themselves"


def test_a_fetched_day_is_removed_when_it_is_read(sqlite, source):
    reader = source(url=sqlite.fill().url, events=EVENTS | {"changed_at": "changed"})
    file = reader.event_files()[0]
    with reader.fetched(file) as local:
        assert local.path.is_file()
    assert not file.path.exists()


def test_days_of_timestamps_that_count_since_1970(database, source):
    kind = "double precision" if database.kind == "postgres" else "REAL"
    database.execute(f"CREATE TABLE clicks (customer TEXT, item TEXT, ms {kind}, changed TEXT)")
    seconds = [1578182400, 1578268799.9, 1578268800]  # the last and the first of a day
    for n, second in enumerate(seconds):
        database.execute(f"INSERT INTO clicks VALUES ('u', '{n}', {second * 1000}, '')")
    columns = {"user_id": "customer", "item_id": "item", "timestamp": "ms"}
    events = {"table": "clicks", "columns": columns, "timestamp_unit": "ms", "changed_at": "changed"}
    found = read(source(url=database.url, events=events))
    assert {name: [row[2] for row in rows] for name, rows in found.items()} == {
        "events/2020-01-05": ["0", "1"],
        "events/2020-01-06": ["2"],
    }


def test_times_that_are_none_are_days_of_their_own(database, source):
    if database.kind == "postgres":
        odd = {"infinity": "infinity", "0044-03-15 10:00:00+00 BC": "0044-03-15 BC", "0001-01-01 10:00Z": "0001-01-01"}
    else:
        odd = {"yesterday": "without-timestamp", "": "without-timestamp"}
    events = EVENTS | {"changed_at": "changed"}
    found = read(source(url=database.fill([(*ROWS[0][:2], at, *ROWS[0][3:]) for at in odd]).url, events=events))
    assert set(found) == {f"events/{name}" for name in odd.values()}
    assert sum(map(len, found.values())) == len(odd)


@pytest.mark.parametrize("changed_at", [None, "changed"])
def test_a_table_without_rows_is_a_file_without_rows(database, source, changed_at):
    found = read(source(url=database.fill([]).url, events=EVENTS | {"changed_at": changed_at}))
    assert list(found.values()) == [[]]


def test_items_and_customers_have_tables_of_their_own(database, source):
    database.fill().execute("CREATE TABLE products (sku TEXT, name TEXT, path TEXT, live BOOLEAN)")
    database.execute("INSERT INTO products VALUES ('a', 'Tea', 'Food > Drinks', true)")
    database.execute("CREATE TABLE people (id INTEGER, country TEXT, age INTEGER)")
    database.execute("INSERT INTO people VALUES (11, 'SE', 40), (12, NULL, 50)")
    names = {"item_id": "sku", "title": "name", "category": "path", "available": "live"}
    items = {"table": "products", "columns": names, "category_separator": " > "}
    users = {"query": "SELECT * FROM people", "columns": {"user_id": "id"}, "attributes": ["country", "age"]}
    reader, connection = source(url=database.url, items=items, users=users), ibis.duckdb.connect()
    (item,) = reader.read_items(connection, reader.item_files()[0]).to_pyarrow().to_pylist()
    assert [item[name] for name in names] == ["a", "Tea", ["Food", "Drinks"], database.true]
    people = reader.read_users(connection, reader.user_files()[0]).to_pyarrow().to_pylist()
    assert people == [
        {"row": 1, "user_id": "11", "country": "SE", "age": "40"},
        {"row": 2, "user_id": "12", "country": None, "age": "50"},
    ]
    assert [source(url=database.url).item_files(), source(url=database.url).user_files()] == [[], []]


def test_a_table_of_another_schema_is_named_with_it(postgres, source):
    postgres.fill().execute('CREATE SCHEMA "Old Shop"; CREATE VIEW "Old Shop".log AS SELECT * FROM events LIMIT 1')
    try:
        assert len(read(source(url=postgres.url, events=EVENTS | {"table": "Old Shop.log"}))["events"]) == 1
    finally:
        postgres.execute('DROP SCHEMA "Old Shop" CASCADE')


def test_a_night_of_the_database_is_the_night_of_its_export(database, described, home, tmp_path):
    lines = [",".join('"' + (v or "").replace('"', '""') + '"' for v in row) for row in ROWS]
    (tmp_path / "log.csv").write_text("\n".join(["customer,Sku,at,pieces,price,visit,changed", *lines]))
    rules = {"columns": COLUMNS, "negative_value": "return"}
    items = {"columns": {"title": "Sku"}}
    shops = [
        described(format="tabular", events=rules | {"path": "log.csv"}, items=items),
        described(url=database.fill().url, events=rules | {"table": "events"}, items=items),
    ]
    exported, direct = [ingested(shop, "2020-02-01T00:00:00+00:00") for shop in map(with_its_own_name, shops)]
    assert direct.counts == exported.counts
    assert (direct.events, direct.items) == (exported.events, exported.items)
    assert [row["reason"] for row in direct.quarantine] == ["timestamp is missing; expected an instant"]
    assert direct.counts["kept"] == 3


def test_a_second_night_asks_for_the_changed_day_alone_and_equals_the_whole_read_anew(database, described, home):
    def night(**changed):
        events = EVENTS | {"negative_value": "return"} | changed
        shop = described(url=database.url, events=events, items={"columns": {"title": "Sku"}})
        return ingested(shop, "2020-02-01T00:00:00+00:00")

    database.fill()
    first = night(changed_at="changed")
    database.execute("UPDATE events SET pieces = 5, changed = '2020-01-07 01:00:00' WHERE \"Sku\" LIKE 'b%'")
    with statements() as sent:
        second = night(changed_at="changed")
    assert len(sent) == 3, "its columns, its days, and the one day"
    days = [{day["date"]: day["sha256"] for day in found.manifest["days"]} for found in (first, second)]
    assert [date for date in days[0] if days[0][date] != days[1][date]] == ["2020-01-05"]
    whole = night()
    assert (second.events, second.items, second.counts) == (whole.events, whole.items, whole.counts)
    assert sorted(event["value"] for event in second.events) == [1.0, 1.0, 5.0]
    (bad,) = second.quarantine
    assert (bad["file"], bad["row"]) == ("events/without-timestamp", 1)
    assert bad["reason"] == "timestamp is missing; expected an instant"
    assert (bad["reason"], bad["record"]) == tuple(whole.quarantine[0][name] for name in ("reason", "record"))


def with_its_own_name(shop):
    """The shop file moved aside, so that the next one may be written."""
    kept = shop.with_name(f"{len(list(shop.parent.glob('*.yaml')))}.yaml")
    kept.write_text(shop.read_text())
    return kept


def test_a_long_read_says_how_far_it_is(sqlite, source, monkeypatch, caplog):
    monkeypatch.setattr(databases, "BATCH", 2)
    monkeypatch.setattr(databases, "SECONDS_BETWEEN_LINES", 0)
    caplog.set_level("INFO", logger="recsys_tasks")
    assert len(read(source(url=sqlite.fill().url))["events"]) == 4
    assert [line.split(",")[0] for line in caplog.messages] == [
        "source.events: 2 rows so far",
        "source.events: 4 rows so far",
    ]


def test_a_hundred_thousand_rows_pass_through_little_memory(postgres, source, monkeypatch):
    monkeypatch.setattr(databases, "BATCH", 1_000)
    size, rows = 2_000, 100_000
    query = f"SELECT i AS customer, repeat('x', {size}) AS \"Sku\", now() AS at FROM generate_series(1, {rows}) i"
    reader = source(url=postgres.url, events={"query": query, "columns": dict(list(COLUMNS.items())[:3])})
    with watched() as memory:
        (file,) = reader.event_files()
    connection = ibis.duckdb.connect()
    assert reader.read_events(connection, file).count().to_pyarrow().as_py() == rows
    assert memory["peak"] - memory["before"] < 0.7 * size * rows, "the answer was held as a whole"


@contextmanager
def watched():
    """Bytes of this process before, and the most of them meanwhile."""
    process, done = psutil.Process(), threading.Event()
    memory = {"before": process.memory_info().rss, "peak": 0}

    def look():
        while not done.is_set():
            memory["peak"] = max(memory["peak"], process.memory_info().rss)
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    yield memory
    done.set()
    thread.join()


@pytest.mark.parametrize("statement", ["DELETE FROM events RETURNING *", "UPDATE events SET pieces = 0 RETURNING *"])
def test_nothing_is_written(database, source, statement):
    reader = source(url=database.fill().url, events={"query": statement, "columns": COLUMNS})
    with pytest.raises(SourceError, match=r"source\.events"):
        reader.event_files()
    assert database.execute("SELECT count(*), sum(pieces) FROM events").fetchone() == (4, 3)


def test_what_a_function_would_write_is_refused_by_postgres(postgres, source):
    postgres.execute("CREATE SEQUENCE counter")
    query = "SELECT nextval('counter') AS customer, 'a' AS \"Sku\", now() AS at"
    reader = source(url=postgres.url, events={"query": query, "columns": dict(list(COLUMNS.items())[:3])})
    with pytest.raises(SourceError, match="read-only transaction"):
        reader.event_files()


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({"table": "evnts"}, ["evnts", "Tables there: ['events']"]),
        ({"table": "nowhere.events"}, ["nowhere", "the name of a table"]),
        ({"columns": COLUMNS | {"item_id": "sku"}}, ["'sku' is missing (did you mean 'Sku'?)", "'visit'", "'columns'"]),
        ({"changed_at": "touched"}, ["'touched' is missing", "'changed'"]),
        ({"query": "SELECT customer FROM events"}, ["'Sku' is missing; found ['customer']"]),
        ({"query": "SELECT customer FROM events", "changed_at": "changed"}, ["'Sku' is missing; found ['customer']"]),
        ({"query": "SELEC 1"}, ["syntax error", "Expected one SELECT"]),
        ({"query": "SELECT *, customer FROM events"}, ["column 'customer' stands there 2 times", "AS"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_mapping_is_named_with_what_is_there(database, source, events, expected):
    table = {} if "query" in events else {"table": "events"}
    reader = source(url=database.fill().url, events={"columns": COLUMNS, **table, **events})
    with pytest.raises(SourceError) as error:
        reader.event_files()
    assert "source.events: " in str(error.value)
    assert all(part in str(error.value) for part in expected), str(error.value)
    told_no_secret(error.value)


def told_no_secret(error):
    """Neither the message nor the traceback shows the password, quoted or not."""
    text = "".join(traceback.format_exception(error))
    assert PASSWORD not in text
    assert quote(PASSWORD, safe="") not in text
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("url", "kind", "expected"),
    [
        ("postgresql://shop:${SHOP_PASSWORD}@127.0.0.1:1/shop", TemporarilyUnavailable, "Connection refused"),
        ("postgresql://shop:${SHOP_PASSWORD}@/shop?host=/nowhere", TemporarilyUnavailable, "does not answer"),
        ("postgresql://shop:x${SHOP_PASSWORD}@/postgres?host=HOST", SourceError, "authentication failed"),
        ("postgresql://nobody:${SHOP_PASSWORD}@/postgres?host=HOST", SourceError, "authentication failed"),
        ("postgresql://shop:${SHOP_PASSWORD}@/nowhere?host=HOST", SourceError, '"nowhere" does not exist'),
        ("postgresql://@/postgres?user=shop&host=HOST&password=wrong-s3cret", SourceError, "authentication failed"),
        ("postgresql://shop:${SHOP_PASSWORD}@/postgres?host=HOST&colour=s3cret", SourceError, "colour"),
    ],
)
def test_only_a_database_that_does_not_answer_is_worth_a_second_try(postgres, server, source, url, kind, expected):
    reader = source(url=url.replace("HOST", server.host))
    with pytest.raises(NightcartError) as error:
        reader.event_files()
    assert type(error.value) is kind
    assert expected in str(error.value)
    told_no_secret(error.value)


def test_a_connection_that_breaks_is_worth_a_second_try(postgres, source):
    query = "SELECT pg_terminate_backend(pg_backend_pid())::text AS customer, 'a' AS \"Sku\", now() AS at"
    reader = source(url=postgres.url, events={"query": query, "columns": dict(list(COLUMNS.items())[:3])})
    with pytest.raises(TemporarilyUnavailable, match="the database broke off"):
        reader.event_files()


def test_sqlite_never_makes_a_file(source, tmp_path):
    with pytest.raises(SourceError, match=r"shop\.db: no SQLite file there \(source.url\)"):
        source(url="sqlite:///shop.db")
    assert not (tmp_path / "shop.db").exists()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"url": "postgresql://shop:${NO_SUCH_VARIABLE}@host/shop"}, "no variable 'NO_SUCH_VARIABLE'; set it"),
        ({"url": "postgresql://shop:xyz@s3cret@host/shop"}, "SQLAlchemy cannot read it; expected dialect+driver://"),
        ({"url": "nosuchbase://shop:s3cret@host/shop"}, "no driver for nosuchbase"),
        ({"url": "mysql+nosuchdriver://shop:s3cret@host/shop"}, "no driver for mysql+nosuchdriver"),
        ({"connection": "no_such"}, "no connection 'no_such'; add it to Airflow (airflow connections add no_such), or"),
        ({"connection": "broken"}, "AIRFLOW_CONN_BROKEN is no connection of Airflow; expected a URI such as postgres:"),
        ({"connection": "typeless"}, "AIRFLOW_CONN_TYPELESS is no connection of Airflow"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_is_read(source, monkeypatch, keys, expected):
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN", '{"password": "s3cret"')
    monkeypatch.setenv("AIRFLOW_CONN_TYPELESS", '{"password": "s3cret"}')
    with pytest.raises(ShopFileError) as error:
        source(**keys)
    assert expected in str(error.value)
    assert "shop.yaml: source" in str(error.value)
    told_no_secret(error.value)


CONNECTIONS = {
    "postgres://shop:s3cret%2F@db:5433/log": "postgresql+psycopg://shop:s3cret%2F@db:5433/log",
    "postgres://db/log?__extra__=%7B%22a%22%3A+%7B%7D%2C+%22connect_timeout%22%3A+5%7D": (
        "postgresql+psycopg://db/log?connect_timeout=5"
    ),
    '{"conn_type": "postgres", "login": "shop", "password": "p@", "host": "db", "schema": "log", "port": 5432, '
    '"extra": {"sslmode": "require", "cursor": "dictcursor"}}': (
        "postgresql+psycopg://shop:p%40@db:5432/log?sslmode=require"
    ),
    '{"conn_type": "mssql", "host": "db", "port": "1433", "extra": "{\\"charset\\": \\"utf8\\"}"}': (
        "mssql+pymssql://db:1433?charset=utf8"
    ),
    "mysql://shop:p@db/log": "mysql://shop:p@db/log",
    "sqlite://%2Fdata%2Fshop.db": "sqlite:////data/shop.db",
    "sqlite:///data%2Fshop.db": "sqlite:///data/shop.db",
}


@pytest.mark.parametrize(("connection", "expected"), CONNECTIONS.items())
def test_both_forms_of_airflows_connections_are_urls_of_sqlalchemy(connection, expected):
    assert databases._of_airflow(connection) == sa.make_url(expected)


def test_airflow_itself_writes_what_is_understood():
    from airflow.sdk import Connection

    written = Connection(
        conn_id="shop_db",
        conn_type="postgres",
        host="/run/pg",
        login="shop",
        password=PASSWORD,
        schema="log",
        extra=json.dumps({"sslmode": "require", "nested": {"a": 1}}),
    ).get_uri()
    url = databases._of_airflow(written)
    assert (url.host, url.username, url.password, url.database) == ("/run/pg", "shop", PASSWORD, "log")
    assert dict(url.query) == {"sslmode": "require"}


def test_no_password_is_in_the_lake(postgres, described, home, server):
    quoted = quote(PASSWORD, safe="")
    shop = described(
        url=f"postgresql://{USER}:{quoted}@/{DATABASE}?host={server.host}",
        events=EVENTS | {"negative_value": "return"},
        items={"columns": {"title": "Sku"}},
    )
    postgres.fill()
    night = ingested(shop, "2020-02-01T00:00:00+00:00")
    assert night.manifest["shop"]["source"]["url"] == f"postgresql://***@/{DATABASE}?***"
    for path in home.rglob("*"):
        with suppress(IsADirectoryError):
            assert b"s3cret" not in path.read_bytes(), path
    assert "s3cret" not in repr(load_shop(str(shop), home))
