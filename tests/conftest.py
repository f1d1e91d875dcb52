"""Airflow and TensorFlow read their settings when they are imported, so the environment is set before anything else."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_airflow_home = tempfile.mkdtemp(prefix="airflow-test-")
os.environ.update(
    AIRFLOW_HOME=_airflow_home,
    AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "dags"),
    AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW__CORE__UNIT_TEST_MODE="False",
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{_airflow_home}/airflow.db",
    AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
    TF_CPP_MIN_LOG_LEVEL="3",
)
sys.path.insert(0, str(ROOT))


def pytest_unconfigure(config):
    shutil.rmtree(_airflow_home, ignore_errors=True)


@pytest.fixture(scope="session")
def airflow_db():
    """The metadata database of this session, with its tables."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture(scope="session")
def dagbag():
    """Every DAG of the project, parsed once."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(ROOT / "dags"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of this test alone: lake, MLflow and the embedded Valkey live here."""
    for name in [name for name in os.environ if name.upper().startswith("NIGHTCART_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny_shop(tmp_path):
    """The path of a small shop's file; its log ends at ``tests.tiny_shop.AS_OF``."""
    from tests.tiny_shop import write_tiny_shop

    return write_tiny_shop(tmp_path / "shop")


@pytest.fixture(scope="session")
def tiny_night(tmp_path_factory):
    """A published night of the tiny shop with the baselines, made once: (home, shop file, ids of the steps)."""
    from datetime import UTC, datetime

    from recsys_tasks.cli import run_night
    from recsys_tasks.night import plan
    from tests.tiny_shop import AS_OF, write_tiny_shop

    folder = tmp_path_factory.mktemp("tiny")
    shop = write_tiny_shop(folder / "shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        ids = run_night(plan(str(shop), AS_OF, datetime.now(UTC)))
    return folder / "home", shop, ids
