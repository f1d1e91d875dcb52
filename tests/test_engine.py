"""Spark gives the same night as DuckDB, to the byte; what goes wrong there is told as it is told here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from recsys_tasks.engine import DuckDB, Spark, open_engine
from recsys_tasks.errors import ShopFileError, SourceError, TemporarilyUnavailable
from recsys_tasks.lake import write_table
from recsys_tasks.shop import load_shop
from tests.ingested import ingested
from tests.tiny_shop import AS_OF, write_tiny_shop

JAVA = shutil.which("java") or os.environ.get("JAVA_HOME")


@pytest.fixture(scope="module")
def session():
    """One Spark session of two workers for all tests; small queries are not worth compiling well."""
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed: pip install 'nightcart[spark]'")
    if not JAVA:
        pytest.skip("Spark needs Java 17 or newer: there is no java in PATH, nor JAVA_HOME")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.log.level": "OFF",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
    }
    builder = sql.SparkSession.builder.master("local[2]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def put(folder: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))


def with_a_catalogue(folder: Path):
    """Broken lines, bad rows, robots, unknown items, customers; a second night corrects events by their ids."""
    head = "user,item,at,kind,n,price,visit,id\n"
    fields = ("user_id", "item_id", "timestamp", "event_type", "value", "price", "session_id", "event_id")
    events = {"path": "log", "columns": dict(zip(fields, head.strip().split(","), strict=True))}
    columns = {"item_id": "sku", "title": "name", "category": "kind", "price": "price", "updated_at": "at"}
    items = {"path": "items.csv", "columns": columns, "category_separator": ">"}
    users = {"path": "users.csv", "columns": {"user_id": "id"}, "attributes": ["country", "Shoe size"]}
    rows = [
        f"u{n % 7},i{n % 5},2020-01-{1 + n % 9:02}T0{n % 10}:00:00Z,purchase,{n % 3 + 1},{n}.5,v{n},e{n}\n"
        for n in range(90)
    ]
    robots = [f"r{n % 2},i{n % 5},2020-01-0{3 + n % 2}T05:00:0{n}Z,view,0.00001,20000000,,\n" for n in range(10)]
    odd = [
        "u1,i1\n",
        ",i1,2020-01-02,view,,,,\n",
        "u1,i1,2020-01-02,view,,-1,,\n",
        "ü'\\,i9,2020-01-02T00:00:00Z,view,1e-5,12345678.9,,\n",
        "u1,i9'\\,2020-01-03T00:00:00Z,view,1e16,,,\n",
        "u1,i1,2020-01-04,view,,,,\n",
        "u1,i1,2020-01-04,view,,,,\n",
        "u1,i1,2020-01-04,view,-0.0,,,\n",
        "u1,i1,2020-01-04,view,0.0,,,\n",
        "u2,i2,2020-03-04,view,,,,\n",
    ]
    files = {
        "shop.yaml": {
            "name": "corner",
            "time_zone": "UTC",
            "source": {"format": "tabular", "events": events, "items": items, "users": users},
            "checks": {"events_per_user_day": 3},
        },
        "log/a.csv": head + "".join(rows[:50]),
        "log/b.csv": head + "".join(rows[40:] + odd),
        "log/c.csv": head + "".join(robots),
        "items.csv": "sku,name,kind,price,at\ni0,Tea,Food > Tea,1,2019-12-01\ni1,Jug,,2,\n"
        "i2,Cup, > Ware,2e7,2019-01-01\ni2,Old,,,2018-01-01\n"
        "i3,Late,,1,2020-02-01\ni3,Pan,,1,\ni4,Pot,,free,\n,None,,,\ni4,Lid,,1,\nbroken\n",
        "users.csv": "id,country,Shoe size\nu1,UK,42\nu2,,\n,FR,\nu1,DE,43\nu3, FR ,x\n",
    }
    put(folder, files)
    yield "2020-01-08T12:00:00+00:00"
    put(folder, {"log/d.csv": head + "".join(row.replace("purchase,1", "purchase,7") for row in rows[30:60])})
    yield "2020-01-10T00:00:00+00:00"


def of_rees46(folder: Path):
    """Brands and categories stand in the rows; words are left out; a file of the log holds a month."""
    head = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    kinds = ("view", "cart", "remove_from_cart", "purchase")
    codes = ("electronics.smartphone", "electronics", "", "furniture.living_room.sofa", "electronics.audio")

    def month(number: int) -> str:
        return head + "".join(
            f"2019-{number}-{1 + n % 28:02} 10:00:{n % 60:02} UTC,{kinds[n % 4]},{n % 6},1,{codes[n * n % 5]},"
            f"{('acme', '', 'Zed')[n % 3]},{n % 4}.25,{n % 11},s{n % 13}\n"
            for n in range(200)
        )

    shop = {"name": "store", "source": {"format": "rees46", "path": "data"}, "partition_by": "month"}
    put(folder, {"shop.yaml": shop, "data/2019-Oct.csv": month(10)})
    yield "2019-11-01T00:00:00+00:00"
    put(folder, {"data/2019-Nov.csv": month(11)})
    yield "2019-11-20T12:00:00+00:00"


def of_a_file_a_day(folder: Path):
    """Local time, folders that look like Hive's, titles in the rows."""
    write_tiny_shop(folder)
    for path in sorted((folder / "days").iterdir()):
        if path.stem > "2011-03-20":
            put(folder, {f"days/date={path.stem}/a.csv": path.read_text()})
        path.unlink()
    shop = yaml.safe_load((folder / "shop.yaml").read_text())
    shop["source"]["events"]["path"] = "days/*/*.csv"
    put(folder, {"shop.yaml": shop})
    yield AS_OF


@pytest.mark.parametrize("shop", [with_a_catalogue, of_rees46, of_a_file_a_day])
def test_spark_writes_the_bytes_that_duckdb_writes(shop, tmp_path, home, session, monkeypatch):
    folder = tmp_path / "a shop"
    for as_of in shop(folder):
        nights, files = {}, {}
        for engine in ("duckdb", "spark"):
            monkeypatch.setenv("NIGHTCART_HOME", str(home / f"[{engine}] %20"))
            described = yaml.safe_load((folder / "shop.yaml").read_text())
            put(folder, {f"{engine}.yaml": described | {"engine": engine}})
            nights[engine] = night = ingested(folder / f"{engine}.yaml", as_of)
            root = night.lake.root
            files[engine] = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        assert nights["spark"].manifest == nights["duckdb"].manifest
        assert nights["spark"].quarantine == nights["duckdb"].quarantine
        assert nights["spark"].id == nights["duckdb"].id
        assert files["spark"] == files["duckdb"]


def test_a_file_that_a_worker_cannot_read_is_named_as_it_is_here(tmp_path, home, session):
    *_, _ = of_rees46(tmp_path)
    put(tmp_path, {"shop.yaml": yaml.safe_load((tmp_path / "shop.yaml").read_text()) | {"engine": "spark"}})
    (tmp_path / "data" / "2019-Oct.csv").write_text("when,what\n1,2\n")
    with pytest.raises(SourceError, match=r"2019-Oct\.csv.*event_time"):
        ingested(tmp_path / "shop.yaml", AS_OF)


def test_what_spark_gives_up_is_worth_a_retry(tmp_path, session):
    def dies(things):
        os._exit(1)

    with pytest.raises(TemporarilyUnavailable, match=r"Spark gave up: .*Python worker exited"):
        list(Spark(tmp_path).map(dies, ["a file"]))


@pytest.mark.parametrize("kind", [DuckDB, Spark])
def test_what_is_held_is_let_go_and_rows_come_in_their_order(kind, tmp_path, request):
    if kind is Spark:
        request.getfixturevalue("session")
    engine = kind(tmp_path)
    files = [tmp_path / f"{name}.parquet" for name in "ab"]
    for n, file in enumerate(files):
        write_table(pa.table({"n": pa.array(range(n, 5000, 2), pa.int32())}), file)
    before = engine.connection.list_tables()
    with engine.held(engine.read(files).order_by("n")) as held:
        assert engine.table(held.order_by(held.n.desc()))["n"].to_pylist() == list(range(5000))[::-1]
        assert engine.table(held.filter(held.n < 0)).equals(pa.table({"n": pa.array([], pa.int32())}))
    left = set(engine.connection.list_tables()) - set(before)
    assert not [name for name in left if "held" in name or "cached" in name]
    assert sorted(tmp_path.iterdir()) == files
    engine.close()


def test_a_session_that_the_night_started_it_stops(tmp_path, home):
    pytest.importorskip("pyspark")
    if not JAVA:
        pytest.skip("Spark needs Java 17 or newer")
    put(tmp_path, {"shop.yaml": {"name": "a", "engine": "spark", "source": {"format": "complete_journey"}}})
    code = (
        "import sys; from pathlib import Path; from pyspark.sql import SparkSession\n"
        "from recsys_tasks.engine import open_engine; from recsys_tasks.shop import load_shop\n"
        "with open_engine(load_shop(sys.argv[1], Path()), Path()) as engine:\n"
        "    print(sorted(engine.map(lambda things: (sys.executable for _ in things), [1])))\n"
        "print(SparkSession.getActiveSession())\n"
    )
    environment = os.environ | {"NIGHTCART_SPARK_MASTER": "local[1]", "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"}
    environment.pop("PYSPARK_PYTHON", None)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "shop.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.splitlines() == [str([sys.executable]), "None"]


def test_without_java_the_error_says_what_spark_needs(tmp_path, home):
    pytest.importorskip("pyspark")
    code = (
        "from pathlib import Path; from recsys_tasks.engine import Spark; from recsys_tasks.errors import *\n"
        "try: Spark(Path())\n"
        "except TemporarilyUnavailable as error: print(error, error.__cause__)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAVA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.startswith("Spark does not start at local[*]: ")
    assert ran.stdout.endswith(
        "It needs Java 17 or newer (JAVA_HOME) and a master that answers (NIGHTCART_SPARK_MASTER) None\n"
    )


def test_without_pyspark_the_error_says_how_to_install_it(tmp_path, home, monkeypatch):
    put(tmp_path, {"shop.yaml": {"name": "a", "engine": "spark", "source": {"format": "complete_journey"}}})
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with (
        pytest.raises(ShopFileError, match=r"pip install 'nightcart\[spark\]'"),
        open_engine(load_shop(str(tmp_path / "shop.yaml"), tmp_path), tmp_path),
    ):
        pass
