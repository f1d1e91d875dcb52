"""The night reads a database whose connection only Airflow knows, and leaves no trace of it."""

import os
import sqlite3
from contextlib import closing

import pytest
import yaml
from airflow.models.connection import Connection
from airflow.utils.session import create_session

from include.connections import exported
from include.nightly import run_once
from recsys_tasks.errors import ShopFileError
from recsys_tasks.shop import load_shop
from recsys_tasks.sources import open_source

VARIABLE = "AIRFLOW_CONN_SHOP_DB"


@pytest.fixture
def database(tmp_path):
    """The file of a shop's database with one purchase."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE orders (customer, sku, at)")
        connection.execute("INSERT INTO orders VALUES ('u', 'i', '2020-01-05T10:00:00Z')")
        connection.commit()
    return tmp_path / "shop.db"


@pytest.fixture
def shop(tmp_path):
    """The file of a shop whose database Airflow knows as ``shop_db``."""
    events = {"table": "orders", "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "at"}}
    source = {"format": "sql", "connection": "shop_db", "events": events}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"name": "corner", "source": source}))
    return tmp_path / "shop.yaml"


@pytest.fixture
def known_to_airflow(airflow_db, database):
    """The connection as it stands in Airflow's own database."""
    with create_session() as session:
        session.add(Connection(conn_id="shop_db", conn_type="sqlite", host=str(database)))
    yield
    with create_session() as session:
        session.query(Connection).filter(Connection.conn_id == "shop_db").delete()


def test_ingest_reads_through_a_connection_of_airflow(known_to_airflow, shop, home, dagbag):
    dag = dagbag.dags["nightly"].partial_subset(["ingest"], include_upstream=True)
    run = run_once(dag, {"shop": str(shop), "as_of": "2020-02-01T00:00:00Z"})
    assert {task.task_id: task.state for task in run.get_task_instances()} == {
        "tonight": "success",
        "ingest": "success",
    }
    assert list((home / "lake" / "events").rglob("*.parquet"))
    assert VARIABLE not in os.environ


def test_a_variable_that_is_set_already_goes_first(shop, database, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"sqlite://{str(database).replace('/', '%2F')}")
    with exported(load_shop(str(shop), shop.parent)):
        assert len(open_source(load_shop(str(shop), shop.parent)).event_files()) == 1
    assert VARIABLE in os.environ


def test_a_connection_that_nobody_knows_is_refused_with_what_to_do(airflow_db, shop, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with (
        exported(load_shop(str(shop), shop.parent)),
        pytest.raises(ShopFileError, match=r"airflow connections add shop_db\), or set AIRFLOW_CONN_SHOP_DB"),
    ):
        open_source(load_shop(str(shop), shop.parent))


def test_a_shop_of_files_needs_no_connection(tiny_shop):
    before = dict(os.environ)
    with exported(load_shop(str(tiny_shop), tiny_shop.parent)):
        assert dict(os.environ) == before
