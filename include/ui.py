"""Airflow with Nightcart's pages, for this machine only, until Ctrl-C. Started by ``make ui``.

The four processes of a real installation, each with its log in ``$AIRFLOW_HOME/logs``. Not ``airflow standalone``: that
opens log servers on every network interface and leaves its children behind when it is ended by a signal.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import TextIO
from urllib.request import urlopen

import psutil
from rich.console import Console

HOST = "127.0.0.1"
COMPONENTS = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
DEFAULTS = {
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "4",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",  # nothing runs until a person presses Trigger
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
}
"""Sized for one machine; the environment may say otherwise."""
PATIENCE = 15
"""Seconds that a process has to end by itself before it is made to."""

out = Console(highlight=False, soft_wrap=True)


class Broken(Exception):
    """Airflow cannot run; the message says why."""


def main() -> int:
    """Start Airflow, say where it is, watch it until a signal comes, and stop it; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    processes: dict[str, subprocess.Popen] = {}
    try:
        if "AIRFLOW_HOME" not in os.environ:
            raise Broken("AIRFLOW_HOME is not set; start Airflow by `make ui`, which sets it")
        home, port = Path(os.environ["AIRFLOW_HOME"]), free_port(os.environ.get("AIRFLOW_PORT", "8080"))
        url, passwords = f"http://{HOST}:{port}", home / "simple_auth_manager_passwords.json.generated"
        (home / "logs").mkdir(parents=True, exist_ok=True)
        lock = (home / "ui.lock").open("w")
        claim(lock)
        keep_secret(passwords, lambda: json.dumps({"admin": secrets.token_urlsafe(12)}))
        environment = settings(url, keep_secret(home / "jwt_secret", lambda: secrets.token_urlsafe(48)))
        with out.status("Airflow: preparing its database") as status:
            processes["db migrate"] = start("db migrate", ["db", "migrate"], environment)
            if processes["db migrate"].wait():
                check_alive(processes)
            del processes["db migrate"]
            for name, command in COMPONENTS.items():
                processes[name] = start(name, command, environment)
            while waiting := unhealthy(url):
                status.update(f"Airflow: waiting for {', '.join(waiting)}")
                check_alive(processes)
                time.sleep(0.5)
        out.print(f"Airflow is at {url}    user: admin    password: {json.loads(passwords.read_text())['admin']}")
        out.print(f"Press Trigger on the DAG nightly to run a night. Ctrl-C stops Airflow. Logs are in {home / 'logs'}")
        while True:
            check_alive(processes)
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    except Broken as error:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"make ui: {error}")
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with out.status("Airflow: stopping"):
            stop(processes)


def free_port(text: str) -> int:
    """Return the port to listen on, having seen that it is free."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise Broken(f"AIRFLOW_PORT is {text!r}; expected a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            raise Broken(
                f"port {text} of {HOST} cannot be used: {error.strerror}. "
                f"Stop what runs there, or choose another port: AIRFLOW_PORT={int(text) % 65535 + 1} make ui"
            ) from error
    return int(text)


def claim(lock: TextIO) -> None:
    """Hold the lock of this home while we live; two schedulers on one SQLite file would get in each other's way."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Broken(
            f"Airflow runs already in {Path(lock.name).parent}; stop it first, or set another NIGHTCART_HOME"
        ) from error


def keep_secret(path: Path, make: Callable[[], str]) -> str:
    """Return what the file holds; the first time, write it, for its owner's eyes only."""
    if not path.exists() or not path.stat().st_size:
        with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(make())
    path.chmod(0o600)
    return path.read_text()


def settings(url: str, jwt_secret: str) -> dict[str, str]:
    """Return the environment of all four processes."""
    fixed = {
        "AIRFLOW__API__HOST": HOST,
        "AIRFLOW__API__PORT": url.rpartition(":")[2],
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__API_AUTH__JWT_SECRET": jwt_secret,
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
    }
    return DEFAULTS | dict(os.environ) | fixed


def log_file(name: str) -> Path:
    """Return where a process writes."""
    return Path(os.environ["AIRFLOW_HOME"]) / "logs" / f"{name.replace(' ', '-')}.log"


def start(name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Start one of Airflow's processes in a session of its own, out of reach of the terminal's Ctrl-C."""
    with log_file(name).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "airflow", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def unhealthy(url: str) -> list[str]:
    """Return the parts of Airflow that do not say they are healthy yet."""
    try:
        with urlopen(f"{url}/api/v2/monitor/health", timeout=5) as answer:
            health = json.load(answer)
    except (OSError, ValueError, HTTPException):
        return ["api-server"]
    return [name.replace("_", "-") for name, said in health.items() if said["status"] != "healthy"]


def check_alive(processes: dict[str, subprocess.Popen]) -> None:
    """Raise ``Broken``, with the end of the log, when one of the processes has ended."""
    for name, process in processes.items():
        if process.poll() is not None:
            lines = log_file(name).read_text(errors="replace").splitlines()[-20:]
            raise Broken(
                f"`airflow {name}` ended with status {process.returncode}. The end of its log, {log_file(name)}:\n"
                + "\n".join(lines)
            )


def stop(processes: dict[str, subprocess.Popen]) -> None:
    """End the processes and all they started: asked first, then killed.

    A task that was running is marked as lost and tried again when Airflow is back; its step starts again from the lake.
    """
    sessions = {process.pid for process in processes.values()}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in members(sessions):
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        deadline = time.monotonic() + PATIENCE
        while members(sessions) and time.monotonic() < deadline:
            time.sleep(0.1)
    for process in processes.values():
        process.wait()


def members(sessions: set[int]) -> list[psutil.Process]:
    """Return the living processes of these sessions; a task leaves the process group, but stays in the session."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
