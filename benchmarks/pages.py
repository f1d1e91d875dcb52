"""The claim: the pages answer in under a second, and their plugin adds under 50 ms to the start of Airflow's processes.

Asks every page of Airflow's API server, in this process, over the lake of ``NIGHTCART_HOME``: once to warm up, then
twenty times, every time of another customer or item; the median and the slowest are told. Without a published version
there, only the import is measured, and no page of results is written.

    NIGHTCART_HOME=var python benchmarks/pages.py [--check] [--results DIR]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from protocol.page import RESULTS, finish, limits_table, made_by, table

ROOT = Path(__file__).resolve().parents[1]
PAGE_LIMIT, IMPORT_LIMIT = 1.0, 0.050
"""Seconds."""
TIMES = 20
IMPORT = """
import runpy, sys, time, airflow.plugins_manager
began = time.perf_counter()
runpy.run_path(sys.argv[1])
print(time.perf_counter() - began)
"""


def main() -> int:
    """Print what was measured; with ``--check`` return 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write the page")
    options = parser.parse_args()
    took = importing()
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        asked = asking(Path(scratch))
    limits = [{"name": "importing the plugin, seconds", "value": took, "limit": f"< {IMPORT_LIMIT}"}]
    limits += [
        {"name": f"{page}, median seconds", "value": found["median"], "limit": f"< {PAGE_LIMIT}"}
        for page, found in asked.items()
    ]
    rows = [[page, found["median"], found["slowest"]] for page, found in asked.items()]
    lines = ["# Pages", *limits_table(limits), *table(["page", "median, s", f"slowest of {TIMES}, s"], rows)]
    lines += ["", made_by(["apache-airflow", "duckdb", "pyarrow"])]
    results = options.results if asked else None
    return finish("pages", lines, {"limits": limits, "pages": asked}, results, options.check)


def importing() -> float:
    """Return the seconds that the plugin's import takes in a process that has loaded Airflow's plugin manager."""
    command = [sys.executable, "-c", IMPORT, str(ROOT / "plugins" / "nightcart_plugin.py")]
    runs = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(TIMES))
    return median(float(run.stdout.splitlines()[-1]) for run in runs)


def asking(scratch: Path) -> dict[str, dict[str, float]]:
    """Return the seconds of each kind of page, or nothing where no version is published."""
    sys.path.insert(0, str(ROOT))
    from recsys_tasks.contract import ANONYMOUS
    from recsys_tasks.lake import Lake
    from recsys_tasks.settings import Settings
    from recsys_tasks.versions import current, read_lists

    lake = Lake(Settings().lake)
    now = current(lake)
    if not now:
        print(f"skipped: {lake.root} holds no published version; run `make nightly`, or set NIGHTCART_HOME")
        return {}
    lists = (found for found in read_lists(lake, "home", now["version"]) if found[0] != ANONYMOUS)
    asked = list(islice(cycle(list(islice(lists, 1 + TIMES))), 1 + TIMES))
    pages: dict[str, list[str]] = {page: [page] * len(asked) for page in ("", "leaderboard", "versions", "inspector")}
    pages["inspector?q="] = [f"inspector?q={quote(reader[:3])}" for reader, _ in asked]
    pages["customer"] = [f"customer?id={quote(reader, safe='')}" for reader, _ in asked]
    pages["item"] = [f"item?id={quote(items[n % len(items)], safe='')}" for n, (_, items) in enumerate(asked)]
    ask, headers = client(scratch)
    found = {}
    for page, paths in pages.items():
        seconds = []
        for path in paths:
            began = time.perf_counter()
            answer = ask.get(f"/recsys/{path}", headers=headers)
            seconds.append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
        found[f"/recsys/{page}"] = {"median": median(seconds[1:]), "slowest": max(seconds[1:])}
    return found


def client(scratch: Path) -> tuple[Any, dict[str, str]]:
    """Return Airflow's API server as a client, and the header of a login, both of this run alone."""
    (scratch / "passwords.json").write_text(json.dumps({"eve": "eve"}))
    os.environ |= {
        "AIRFLOW_HOME": str(scratch),
        "AIRFLOW__CORE__DAGS_FOLDER": str(scratch),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "eve:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(scratch / "passwords.json"),
        "AIRFLOW__API_AUTH__JWT_SECRET": "not a secret, and long enough for the algorithm " * 2,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{scratch}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    from airflow.api_fastapi.app import create_app
    from airflow.utils.db import initdb
    from fastapi.testclient import TestClient

    initdb()
    ask = TestClient(create_app(apps="core"), base_url="http://127.0.0.1:8080")
    token = ask.post("/auth/token", json={"username": "eve", "password": "eve"}).json()["access_token"]
    return ask, {"Authorization": f"Bearer {token}", "Accept": "text/html"}


if __name__ == "__main__":
    raise SystemExit(main())
