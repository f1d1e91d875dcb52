"""Where an Airflow of a test's own lives."""

import os
import socket
from pathlib import Path

import pytest

from tests.conftest import ROOT


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(home: Path, port: int) -> dict[str, str]:
    """What the Makefile sets, and a port of its own; nothing that this test session set for itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "NIGHTCART_"))}
    clean.pop("PYTHONDONTWRITEBYTECODE", None)
    return clean | {
        "NIGHTCART_HOME": str(home),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW_PORT": str(port),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }


@pytest.fixture
def free_port() -> int:
    return a_free_port()


@pytest.fixture
def environment(tmp_path, free_port) -> dict[str, str]:
    return environment_of(tmp_path, free_port)
