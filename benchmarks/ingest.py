"""The claim: ingest costs little more than reading the files, however many there are, and a new day costs a new day.

Parts, each measured on made-up data of which the generator knows every count and sum, so a fast wrong answer fails:

    json     1 GB of Amazon-like reviews through the whole step, beside the bare typed parse of DuckDB and others
    gz       the same file as one gzip stream
    events   10, 30 and 100 million events of a year in daily CSV files: ingest, and the split of the log into windows
    new_day  a year of daily files, then one more; nothing new; an old file corrected; the same in an empty home
    spark    the 10 million events by the other engine, where the shop file knows one and Spark and Java are there

    python benchmarks/ingest.py [--only json --only gz] [--check] [--quick] [--data DIR] [--keep]

Every measured thing runs in a fresh process. Its clock starts after the imports; peak memory is the larger of that
process's own high-water mark and what its whole tree held at any look, four a second. Short things run three times, by
turns with their peers, and the median counts; long ones run once. A part run alone replaces its own section of the page
and leaves the others. ``--quick`` is a small version, of which only the rows are checked.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml
from ingesting.checks import expected_truth, hashes, rows_apart, verify
from ingesting.data import FIRST_DAY, added_up, write_day
from ingesting.page import PARTS, draw, render, within

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DISK_BYTES_AN_EVENT = 350
"""CSV file, staging tables, spilled sort and lake, at the highest."""


@dataclass(frozen=True)
class Size:
    """How large the parts are."""

    megabytes: int
    since: str
    """Day of the first review."""
    products: int
    events: tuple[int, ...]
    days: int
    items: int
    night_days: int
    """Days of the first night of the part ``new_day``."""
    night_events: int
    """Events a day there."""
    repeats: int


FULL = Size(
    megabytes=1000,
    since="1998-01-01",
    products=20_000,
    events=(10_000_000, 30_000_000, 100_000_000),
    days=365,
    items=100_000,
    night_days=365,
    night_events=100_000,
    repeats=3,
)
QUICK = Size(
    megabytes=4,
    since="2018-08-01",
    products=1_000,
    events=(50_000, 100_000, 200_000),
    days=40,
    items=1_000,
    night_days=10,
    night_events=1_000,
    repeats=1,
)


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when rows are wrong or a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="run this part alone; may be given again")
    parser.add_argument("--quick", action="store_true", help="seconds instead of an hour; writes no page by itself")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--data", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the files in --data; the next run takes them")
    parser.add_argument("--results", type=Path, help=f"where to write the page (default: {RESULTS.relative_to(ROOT)})")
    options = parser.parse_args()
    if options.keep and not options.data:
        parser.error("--keep needs --data")
    size = QUICK if options.quick else FULL
    results = options.results or (None if options.quick else RESULTS)
    parts = [part for part in PARTS if part in (options.only or PARTS)]
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-", dir=_made(options.data)) as scratch:
        bench = Bench(Path(scratch), options.data if options.keep else Path(scratch), size, options.keep)
        bench.make_room(parts)
        page = _known(results)
        for part in parts:
            found = getattr(bench, part)()
            if options.quick:  # fixed costs say nothing of the limits
                found["limits"] = []
            page[part] = found | {
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "command": "python benchmarks/ingest.py" + (" --quick" if options.quick else "") + f" --only {part}",
                "machine": machine(),
            }
            if results:  # what is done is written, should a later part fail
                (results / "ingest.json").write_text(json.dumps(page, indent=1) + "\n")
    text = render(page)
    print(text)
    if results:
        (results / "ingest.md").write_text(text)
        draw(page, results / "ingest.png")
    short = [fault for part in parts for fault in page[part]["faults"]]
    short += [
        f"{limit['name']}: {limit['value']:.3g}, limit {limit['limit']}"
        for part in parts
        for limit in page[part]["limits"]
        if not within(limit)
    ]
    print("short of: " + "; ".join(short) if short else "rows as expected" if options.quick else "within all limits")
    return 1 if options.check and short else 0


def _made(folder: Path | None) -> Path | None:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(results: Path | None) -> dict[str, Any]:
    """The sections of the page that other runs have measured."""
    if not results:
        return {}
    results.mkdir(parents=True, exist_ok=True)
    file = results / "ingest.json"
    return json.loads(file.read_text()) if file.exists() else {}


def machine() -> str:
    """Return processor, memory, versions and commit."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    if _git("status", "--porcelain", "recsys_tasks", "include", "benchmarks/ingest.py", "benchmarks/ingesting"):
        commit += " and changes"
    names = ["duckdb", "ibis-framework", "pandas", "polars", "pyarrow", "pyspark"]
    versions = [f"{name} {version(name)}" for name in names if importlib.util.find_spec(name.partition("-")[0])]
    return (
        f"{os.cpu_count()} cores ({_processor()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {', '.join(versions)}, commit {commit}"
    )


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


class Bench:
    """The parts. Homes and DuckDB's spill files lie in ``scratch``, the shops' files in ``data``."""

    def __init__(self, scratch: Path, data: Path, size: Size, keep: bool) -> None:
        self.scratch, self.data, self.size, self.keep = scratch, data, size, keep
        self.homes = 0

    def make_room(self, parts: list[str]) -> None:
        """Say what disk the run needs, and refuse to begin without it."""
        reviews = 3.5 * self.size.megabytes / 1e3
        gigabytes = {
            "json": reviews,
            "gz": reviews,
            "events": DISK_BYTES_AN_EVENT * max(self.size.events) / 1e9,
            "new_day": DISK_BYTES_AN_EVENT * self.size.night_days * self.size.night_events / 1e9,
            "spark": DISK_BYTES_AN_EVENT * self.size.events[0] / 1e9,
        }
        needed = sum(gigabytes[part] for part in parts) if self.keep else max(gigabytes[part] for part in parts)
        free = shutil.disk_usage(self.scratch).free / 1e9
        _tell(f"needs {needed:.1f} GB of disk under {self.scratch.parent}, {free:.0f} GB are free")
        if free < needed:
            sys.exit(
                f"{self.scratch.parent}: {free:.1f} GB are free, {needed:.1f} needed; give a larger disk by --data"
            )

    def json(self) -> dict[str, Any]:
        """1 GB of JSON lines against the readers of others."""
        return self._reviews(
            ".json",
            ["duckdb", "polars", "pyarrow", "pandas"],
            lambda speed: [
                ("json: of the speed of DuckDB's bare parse", speed["ingest"] / speed["duckdb"], ">= 0.5"),
                ("json: times the speed of pandas", speed["ingest"] / speed["pandas"], ">= 10"),
            ],
        )

    def gz(self) -> dict[str, Any]:
        """The same behind gzip."""
        return self._reviews(
            ".json.gz",
            ["duckdb", "polars", "pyarrow"],
            lambda speed: [("gz: of the speed of DuckDB's bare parse", speed["ingest"] / speed["duckdb"], ">= 1.0")],
        )

    def _reviews(
        self, suffix: str, peers: list[str], limits: Callable[[dict[str, float]], list[tuple[str, float, str]]]
    ) -> dict[str, Any]:
        folder, facts = self._make(
            "reviews",
            {
                "megabytes": self.size.megabytes,
                "since": self.size.since,
                "products": self.size.products,
                "suffix": suffix,
            },
        )
        file, faults = folder / f"reviews{suffix}", []
        peers = [peer for peer in peers if importlib.util.find_spec(peer)]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ["ingest", *peers]}
        for _ in range(self.size.repeats):
            for name in runs:
                if name == "ingest":
                    run = self._ingest(folder, "2018-10-05T00:00:00+00:00", warm=str(file))
                    faults += verify(run, facts)
                    self._forget(run["home"])
                else:
                    run = self._run({"work": name, "file": str(file), "warm": str(file)})
                    faults += [
                        f"{name}{suffix}: {key} {run[key]:.0f}, expected {facts['raw'][key]:.0f}"
                        for key in facts["raw"]
                        if run[key] != facts["raw"][key]
                    ]
                runs[name].append(run)
        self._clear(folder)
        rows = [_medians(name, found) for name, found in runs.items()]
        speed = {row["name"]: facts["bytes"] / 1e6 / row["seconds"] for row in rows}
        for row in rows:
            row |= {"speed": speed[row["name"]], "of_duckdb": speed[row["name"]] / speed["duckdb"]}
        memory = (f"{suffix.rpartition('.')[2]}: peak memory of ingest, GB", rows[0]["peak"], "< 2")
        return {
            "facts": facts,
            "rows": rows,
            "faults": sorted(set(faults)),
            "limits": _limits([*limits(speed), memory]),
        }

    def events(self) -> dict[str, Any]:
        """Time and memory against the number of events."""
        rows, faults = [], []
        for number in self.size.events:
            folder, facts = self._events(self.size.days, number // self.size.days)
            as_of = _midnight(self.size.days)
            run = self._ingest(folder, as_of)
            faults += verify(run, facts)
            split = self._run(
                {"work": "split", "shop": str(folder / "shop.yaml"), "as_of": as_of, "snapshot": run["snapshot"]},
                home=run["home"],
            )
            expected = expected_truth(run, folder / "shop.yaml", as_of)
            if split["events"] != facts["events"]["kept"] or split["truth"] != expected:
                faults.append(
                    f"split of {number:,} events: {split['events']:,} events and truths {split['truth']}, "
                    f"expected {facts['events']['kept']:,} and {expected}"
                )
            shares = {
                "millions": number / 1e6,
                "events": facts["events"]["read"],
                "bytes": facts["bytes"],
                "users": facts["users"],
            }
            rows += [_medians("ingest", [run]) | shares, _medians("split", [split]) | shares]
            self._forget(run["home"])
            self._clear(folder)
        limits = []
        for name in ("ingest", "split"):
            steps = [row for row in rows if row["name"] == name]
            pace = [row["events"] / row["seconds"] for row in steps]
            most = f"{steps[-1]['millions']:g} M"
            limits.append((f"events: peak memory of {name} at {most}, GB", steps[-1]["peak"], "< 8"))
            limits.append(
                (f"events: {name}, events a second at {most} of those at the fewest", pace[-1] / pace[0], ">= 0.6")
            )
        return {"rows": rows, "faults": faults, "limits": _limits(limits), "items": self.size.items}

    def new_day(self) -> dict[str, Any]:
        """What the second night costs."""
        folder, facts = self._events(self.size.night_days, self.size.night_events)
        rows, faults = [], []
        per_day, today, tomorrow = (
            facts["per_day"],
            _midnight(self.size.night_days),
            _midnight(self.size.night_days + 1),
        )

        def night(name: str, as_of: str, home: Path | None = None) -> dict[str, Any]:
            run = self._ingest(folder, as_of, home=home)
            faults.extend(f"{name}: {fault}" for fault in verify(run, added_up(per_day)))
            rows.append(_medians(name, [run]))
            return run

        first = night("the first night", today)
        night("nothing new", today, first["home"])
        (folder / "facts.json").unlink()  # the files are about to change
        per_day.append(write_day(folder, len(per_day), self.size.night_events))
        night("one more day", tomorrow, first["home"])
        old = self.size.night_days // 3
        per_day[old] = write_day(folder, old, self.size.night_events, revision=1)
        last = night("an old file corrected", tomorrow, first["home"])
        afresh = night("the same in an empty home", tomorrow)
        if not hashes(last) == hashes(afresh) == [day["sha256"] for day in last["days"]]:
            faults.append("new_day: the files of an empty home differ from those of the home that grew")
        for run in (first, afresh):
            self._forget(run["home"])
        shutil.rmtree(folder)
        for row in rows:
            row["share"] = row["seconds"] / rows[0]["seconds"]
        return {
            "rows": rows,
            "faults": faults,
            "limits": _limits(
                [("new_day: share of the first night that one more day costs", rows[2]["share"], "< 0.05")]
            ),
            "a_day": self.size.night_events,
            "days": self.size.night_days,
            "files": len(last["days"]),
        }

    def spark(self) -> dict[str, Any]:
        """The other engine; no limit on its time."""
        found: dict[str, Any] = {"rows": [], "faults": [], "limits": []}
        sys.path.insert(0, str(ROOT))
        from recsys_tasks.shop import Shop

        if "engine" not in Shop.model_fields:
            return found | {"skipped": "the shop file knows no key `engine`"}
        if not importlib.util.find_spec("pyspark") or not shutil.which("java"):
            return found | {"skipped": "pyspark or java is not installed"}
        folder, facts = self._events(self.size.days, self.size.events[0] // self.size.days)
        described = yaml.safe_load((folder / "shop.yaml").read_text())
        days = {}
        for engine in ("duckdb", "spark"):
            (folder / f"{engine}.yaml").write_text(yaml.safe_dump(described | {"engine": engine}))
            run = self._ingest(folder, _midnight(self.size.days), shop=f"{engine}.yaml")
            found["faults"] += [f"{engine}: {fault}" for fault in verify(run, facts)]
            found["rows"].append(_medians(engine, [run]))
            days[engine] = run
        found |= {"events": facts["events"]["read"], "same_bytes": hashes(days["duckdb"]) == hashes(days["spark"])}
        if different := rows_apart(days["duckdb"], days["spark"]):
            found["faults"].append(f"spark: {different:,} rows are in the tables of one engine alone")
        for run in days.values():
            self._forget(run["home"])
        self._clear(folder)
        return found

    def _ingest(
        self, folder: Path, as_of: str, *, home: Path | None = None, shop: str = "shop.yaml", warm: str | None = None
    ) -> dict[str, Any]:
        """Ingest in an own process; return its measurements, with what the manifest tells."""
        if home is None:
            self.homes += 1
            home = self.scratch / f"home-{self.homes}"
        job = {"work": "ingest", "shop": str(folder / shop), "as_of": as_of, "warm": warm}
        run = self._run(job, home=home)
        manifest = json.loads((home / "lake" / run["snapshot"] / "_MANIFEST.json").read_text())
        return run | {"home": home, "counts": manifest["counts"]["events"], "days": manifest["days"]}

    def _run(self, job: dict[str, Any], home: Path | None = None) -> dict[str, Any]:
        """Run a job in a fresh process; return what it tells, with the peak of its tree in GB."""
        spill = self.scratch / "spill"
        spill.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("NIGHTCART_")}
        environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), kept.get("PYTHONPATH", "")]),
            "TMPDIR": str(spill),
            "SPARK_LOCAL_DIRS": str(spill),
            "NIGHTCART_HOME": str(home or self.scratch / "no-home"),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "ingesting.jobs", json.dumps(job)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        peak, spilled, done = [0.0], [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.25):
                peak[0] = max(peak[0], _tree_memory(process.pid))
                spilled[0] = max(spilled[0], _size(spill))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        told, log = process.communicate()
        done.set()
        watcher.join()
        shutil.rmtree(spill, ignore_errors=True)
        if process.returncode:
            sys.exit(f"{told}{log}\n{job} ended with {process.returncode}")
        run = json.loads(told.splitlines()[-1])
        run["peak"] = max(run["peak"], peak[0]) / 1e9
        run["spilled"] = spilled[0] / 1e9
        _tell(f"{job['work']:>8} {run['seconds']:8.1f} s {run['peak']:6.2f} GB  {job.get('shop') or job.get('file')}")
        return run

    def _events(self, days: int, a_day: int) -> tuple[Path, dict[str, Any]]:
        return self._make("events", {"days": days, "a_day": a_day, "items": self.size.items})

    def _make(self, kind: str, wanted: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        """Generate a shop's files in an own process, or take those an earlier run has left."""
        folder = self.data / "-".join([kind, *(str(value).strip(".") for value in wanted.values())])
        if not (folder / "facts.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            self._run({"work": f"make_{kind}", "file": str(folder), **wanted})
        return folder, json.loads((folder / "facts.json").read_text())

    def _forget(self, home: Path) -> None:
        shutil.rmtree(home, ignore_errors=True)

    def _clear(self, folder: Path) -> None:
        if not self.keep:
            shutil.rmtree(folder)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _midnight(day: int) -> str:
    return f"{FIRST_DAY + timedelta(days=day)}T00:00:00+00:00"


def _medians(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of a table: median seconds, and the highest peak of memory and of disk."""
    return {
        "name": name,
        "seconds": median(run["seconds"] for run in runs),
        "fastest": min(run["seconds"] for run in runs),
        "slowest": max(run["seconds"] for run in runs),
        "cpu": median(run["cpu"] for run in runs),
        "peak": max(run["peak"] for run in runs),
        "spilled": max(run["spilled"] for run in runs),
        "runs": len(runs),
    }


def _limits(limits: list[tuple[str, float, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value, "limit": limit} for name, value, limit in limits]


def _tree_memory(pid: int) -> float:
    """Bytes that a process and all below it hold now."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for member in tree:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _size(folder: Path) -> float:
    """Bytes of all files below; they may vanish meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


if __name__ == "__main__":
    raise SystemExit(main())
