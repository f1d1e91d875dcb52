"""What is measured, each in a process of its own: ``python -m ingesting.jobs <job as JSON>``."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> int:
    """Do one job and print, as the last line, its seconds, CPU seconds, peak memory in bytes and what it found."""
    job = json.loads(sys.argv[1])
    do, tell = JOBS[job["work"]](job)
    if job.get("warm"):  # the disk is not what is measured
        with Path(job["warm"]).open("rb") as file:
            while file.read(1 << 22):
                pass
    cpu, started = _cpu(), time.perf_counter()
    outcome = do()
    seconds, cpu = time.perf_counter() - started, _cpu() - cpu
    measured = {"seconds": seconds, "cpu": cpu, "peak": _high_water()}
    print(json.dumps(measured | tell(outcome)))
    return 0


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _high_water() -> float:
    """Largest memory of this process, in bytes. Linux's ``ru_maxrss`` would count the parent from before the exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


Job = tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]
KEYS = ("reviewerID", "asin", "overall", "unixReviewTime")


def _ingest(job: dict[str, Any]) -> Job:
    import ibis
    import pandas  # noqa: F401 - pyarrow imports it at the first Python object it is given

    from recsys_tasks.ingest import ingest
    from recsys_tasks.night import Night

    ibis.duckdb  # noqa: B018 - loads the backend
    night = Night(shop_file=job["shop"], as_of=job["as_of"], k=10, recipes=[])
    return lambda: ingest(night), lambda snapshot: {"snapshot": snapshot}


def _split(job: dict[str, Any]) -> Job:
    from recsys_tasks.contract import VIEWS
    from recsys_tasks.night import Night
    from recsys_tasks.snapshot import Snapshot
    from recsys_tasks.split import split_by_time, truth

    night = Night(shop_file=job["shop"], as_of=job["as_of"], k=10, recipes=[])
    shop = night.shop

    def do() -> tuple[int, dict[str, list[int]]]:
        interactions = Snapshot(night.lake, job["snapshot"]).interactions(shop)
        windows = split_by_time(night.instant, shop.windows)
        edges = {
            "validation": (windows.fit_end, windows.validation_end),
            "test": (windows.validation_end, windows.as_of),
        }
        sizes = {}
        for window, (start, end) in edges.items():
            for view in VIEWS:
                found = truth(interactions, start, end, view)
                sizes[f"{window} {view}"] = [len(found.users), int(found.items.nnz)]
        return len(interactions), sizes

    return do, lambda found: {"events": found[0], "truth": found[1]}


def _duckdb(job: dict[str, Any]) -> Job:
    import duckdb

    db = duckdb.connect()
    kinds = "{reviewerID: 'VARCHAR', asin: 'VARCHAR', overall: 'DOUBLE', unixReviewTime: 'BIGINT'}"
    query = (
        f"CREATE TABLE reviews AS SELECT {', '.join(KEYS)} "
        f"FROM read_json('{job['file']}', format='newline_delimited', columns={kinds})"
    )

    def tell(_: Any) -> dict[str, Any]:
        rows, rating, seconds = db.execute(
            "SELECT count(*), sum(overall), sum(unixReviewTime) FROM reviews WHERE reviewerID <> '' AND asin <> ''"
        ).fetchone()
        return {"lines": rows, "rating": rating, "time": int(seconds)}

    return lambda: db.execute(query), tell


def _pandas(job: dict[str, Any]) -> Job:
    import pandas as pd

    def tell(frame: Any) -> dict[str, Any]:
        sums = frame[["overall", "unixReviewTime"]].sum()
        return {"lines": len(frame), "rating": float(sums.overall), "time": int(sums.unixReviewTime)}

    return lambda: pd.read_json(job["file"], lines=True)[list(KEYS)], tell


def _polars(job: dict[str, Any]) -> Job:
    import polars as pl

    kinds = dict(zip(KEYS, (pl.String, pl.String, pl.Float64, pl.Int64), strict=True))

    def tell(frame: Any) -> dict[str, Any]:
        return {"lines": len(frame), "rating": frame["overall"].sum(), "time": frame["unixReviewTime"].sum()}

    return lambda: pl.scan_ndjson(job["file"], schema=kinds).select(KEYS).collect(), tell


def _pyarrow(job: dict[str, Any]) -> Job:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import json as arrow_json

    kinds = pa.schema(dict(zip(KEYS, (pa.string(), pa.string(), pa.float64(), pa.int64()), strict=True)))
    parse = arrow_json.ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    read = arrow_json.ReadOptions(block_size=16 << 20)

    def do() -> Any:
        with pa.input_stream(job["file"], compression="detect") as stream:
            return arrow_json.read_json(stream, read_options=read, parse_options=parse)

    def tell(table: Any) -> dict[str, Any]:
        rating, seconds = (pc.sum(table[name]).as_py() for name in KEYS[2:])
        return {"lines": len(table), "rating": rating, "time": seconds}

    return do, tell


def _make_reviews(job: dict[str, Any]) -> Job:
    from ingesting.data import make_reviews

    wanted = [job[name] for name in ("megabytes", "since", "products", "suffix")]
    return lambda: make_reviews(Path(job["file"]), *wanted), lambda _: {}


def _make_events(job: dict[str, Any]) -> Job:
    from ingesting.data import make_events

    return lambda: make_events(Path(job["file"]), job["days"], job["a_day"], job["items"]), lambda _: {}


JOBS: dict[str, Callable[[dict[str, Any]], Job]] = {
    "ingest": _ingest,
    "split": _split,
    "duckdb": _duckdb,
    "pandas": _pandas,
    "polars": _polars,
    "pyarrow": _pyarrow,
    "make_reviews": _make_reviews,
    "make_events": _make_events,
}


if __name__ == "__main__":
    raise SystemExit(main())
