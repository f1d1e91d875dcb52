"""What must have come out of an ingest, counted by DuckDB over the files it wrote."""

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import yaml


def verify(run: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Return what differs from the generator's knowledge: counts of the manifest, rows and sums of the files."""
    faults = [
        f"{name}: {run['counts'][name]:,}, expected {expected:,}"
        for name, expected in facts["events"].items()
        if run["counts"][name] != expected
    ]
    sums = {
        "kept": "count(*)",
        "value": "sum(value)",
        "milliseconds": "sum(milliseconds)",
        "users": "sum(user)",
        "items": "sum(item)",
        "users times items": "sum(user * item)",
        "users times days": "sum(user * (milliseconds // 86400000))",
    }
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        found = db.execute(
            f"SELECT {', '.join(sums.values())} FROM (SELECT value, epoch_ms(timestamp) AS milliseconds, "
            "substr(user_id, 2)::HUGEINT AS user, substr(item_id, 2)::HUGEINT AS item FROM read_parquet($1))",
            [_files(run)],
        ).fetchone()
    names = list(sums)
    expected = (facts["events"]["kept"], *(facts["sums"][name] for name in names[1:]))
    faults += [
        f"{name} in the files: {got:,}, expected {wanted:,}"
        for name, got, wanted in zip(names, map(int, found), expected, strict=True)
        if got != wanted
    ]
    if sum(day["rows"] for day in run["days"]) != found[0]:
        faults.append("rows of the days: the manifest's differ from the files'")
    return faults


def _files(run: dict[str, Any]) -> list[str]:
    return [str(run["home"] / "lake" / day["file"]) for day in run["days"]]


def hashes(run: dict[str, Any]) -> list[str]:
    """Return the SHA-256 of every event file, as they lie there."""
    found = []
    for name in _files(run):
        with open(name, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found


def rows_apart(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Return how many rows only one of two runs has."""
    with duckdb.connect() as db:
        sides = [_files(one), _files(other)]
        return sum(
            db.execute(
                "SELECT count(*) FROM (FROM read_parquet($1) EXCEPT ALL FROM read_parquet($2))", list(pair)
            ).fetchone()[0]
            for pair in (sides, sides[::-1])
        )


def expected_truth(run: dict[str, Any], shop_file: Path, as_of: str) -> dict[str, list[int]]:
    """Return users and pairs of every window and view, by SQL over the files that ingest wrote."""
    lengths = yaml.safe_load(shop_file.read_text())["windows"]
    end = datetime.fromisoformat(as_of)
    test = end - timedelta(days=lengths["test_days"])
    validation = test - timedelta(days=lengths["validation_days"])
    found = {}
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        db.execute(
            "CREATE VIEW log AS SELECT user_id u, item_id i, timestamp t, event_type = 'purchase' bought "
            f"FROM read_parquet({_files(run)!r})"
        )
        for window, start, stop in (("validation", validation, test), ("test", test, end)):
            pairs = "SELECT DISTINCT u, i FROM log WHERE bought AND t >= $1 AND t < $2 AND u IN "
            pairs += "(SELECT u FROM log WHERE t < $1)"
            before = " EXCEPT SELECT u, i FROM log WHERE bought AND t < $1"
            for view, query in (("all", pairs), ("discovery", pairs + before)):
                counted = f"SELECT count(DISTINCT u), count(*) FROM ({query})"
                found[f"{window} {view}"] = list(db.execute(counted, [start, stop]).fetchone())
    return found
