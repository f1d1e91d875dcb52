"""What every page of results has: a table of limits, tables of rows, the machine, and a last line that names misses."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from ingesting.page import within

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Return the lines of a Markdown table; numbers that are not whole get four significant digits."""
    head = list(head)
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return ["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *cells])]


def limits_table(limits: list[dict[str, Any]]) -> list[str]:
    """Return the table of what was to be shown; none where there is nothing to show."""
    if not limits:
        return []
    rows = [[limit["name"], limit["value"], limit["limit"], "" if within(limit) else "missed"] for limit in limits]
    return table(["measured", "value", "limit", ""], rows)


def finish(name: str, lines: list[str], measured: dict[str, Any], results: Path | None, check: bool) -> int:
    """Print the page, write it with its numbers as JSON, name misses on the last line; return the exit code."""
    text = "\n".join([*lines, ""])
    print(text)
    if results:
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{name}.md").write_text(text)
        (results / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
    short = [f"{limit['name']}: {limit['value']:.3g}, limit {limit['limit']}" for limit in measured["limits"]]
    short = [line for line, limit in zip(short, measured["limits"], strict=True) if not within(limit)]
    fine = "within all limits" if measured["limits"] else "no limit in a made-up world"
    print("short of: " + "; ".join(short) if short else fine)
    return 1 if check and short else 0


def made_by(packages: Iterable[str]) -> str:
    """Return command, date-free description of the machine, versions and commit."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "recsys_tasks", "benchmarks/protocol", sys.argv[0]):
        commit += " and changes"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    words = ["PATH" if word.startswith("/") else word for word in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    return (
        f"`{command}`: {os.cpu_count()} cores ({processor}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}, commit {commit}."
    )


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
