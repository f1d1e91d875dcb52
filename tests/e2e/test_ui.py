"""``make ui`` as a newcomer uses it: start, look, log in, Ctrl-C."""

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.conftest import ROOT


def start(environment: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "include/ui.py"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ask(url: str, token: str | None = None, body: dict | None = None, method: str | None = None) -> dict:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = json.dumps(body).encode() if body else None
    with urlopen(Request(url, data, headers, method=method), timeout=30) as answer:
        return json.load(answer)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_airflow_comes_up_for_this_machine_only_and_leaves_nothing_behind(environment, free_port, tmp_path):
    ui = start(environment)
    family: list[psutil.Process] = []
    try:
        said = ui.stdout.readline()
        found = re.search(r"at (http://127\.0\.0\.1:\d+) +user: admin +password: (\S+)", said)
        assert found, said + ui.stdout.read()
        url, password = found.groups()
        assert url == f"http://127.0.0.1:{free_port}"

        family = psutil.Process(ui.pid).children(recursive=True)
        addresses = {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert addresses == {"127.0.0.1"}, "something listens for other machines"

        for name in ("simple_auth_manager_passwords.json.generated", "jwt_secret"):
            assert stat.S_IMODE((tmp_path / "airflow" / name).stat().st_mode) == 0o600, f"{name} can be read by others"
        with pytest.raises(HTTPError, match="401"):
            ask(f"{url}/api/v2/dags")
        token = ask(f"{url}/auth/token", body={"username": "admin", "password": password})["access_token"]
        assert nightly(url, token)["is_paused"], "a night would start by itself"
        assert ask(f"{url}/api/v2/dags/nightly/dagRuns", token)["dag_runs"] == []
        assert ask(f"{url}/api/v2/importErrors", token)["import_errors"] == []

        second = start(environment)
        complaint = second.communicate(timeout=30)[0]
        assert second.returncode == 1
        assert f"port {free_port} of 127.0.0.1 cannot be used" in complaint

        family = psutil.Process(ui.pid).children(recursive=True)
        ui.send_signal(signal.SIGINT)
        assert ui.wait(timeout=40) == 0, ui.stdout.read()
        assert [process for process in family if is_running(process)] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", free_port)) != 0, "something still listens on the port"
        for name in ("api-server", "scheduler", "dag-processor", "triggerer"):
            assert (tmp_path / "airflow" / "logs" / f"{name}.log").stat().st_size
    finally:
        ui.kill()
        for process in filter(is_running, family):
            process.kill()


def nightly(url: str, token: str) -> dict:
    """Return the DAG as soon as the DAG processor has read it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for dag in ask(f"{url}/api/v2/dags", token)["dags"]:
            if dag["dag_id"] == "nightly":
                return dag
        time.sleep(0.5)
    raise AssertionError("the DAG nightly did not come up in 30 seconds; see logs/dag-processor.log")
