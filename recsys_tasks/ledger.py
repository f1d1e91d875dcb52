"""The ledger: which version served, made by which models, from when to when, and why.

``recommendations/ledger.jsonl`` keeps what the pointer ``_CURRENT.json`` has said, a line each time it moved. The
pointer comes first: whoever moves it next writes down what a killed process did not, so no line is lost, written twice
or out of order. MLflow keeps no history of its aliases.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import IO, Any

from recsys_tasks.contract import PLACEMENTS
from recsys_tasks.lake import Lake

LEDGER = "recommendations/ledger.jsonl"
POINTER = f"recommendations/{PLACEMENTS[0]}"
"""The first pointer that moves stands for all placements: they serve one version."""


@contextmanager
def moving(lake: Lake) -> Iterator[None]:
    """Hold the ledger while the pointer moves, one process at a time; note what it said before and says after."""
    path = lake.root / LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _note(lake, file)
        yield
        _note(lake, file)


def _note(lake: Lake, file: IO[bytes]) -> None:
    """Append what the pointer says, unless it is the last line; a line that a killed process left half goes."""
    file.seek(0)
    whole = file.read()
    file.truncate(whole.rfind(b"\n") + 1)
    for line in lines(lake)[whole.count(b"\n") :]:
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def lines(lake: Lake) -> list[dict[str, Any]]:
    """Return all that the pointer has said, oldest first; what it says now is the last, noted already or not.

    Each has ``at`` (ISO 8601, UTC), ``shop``, ``version`` and ``reason``; newer ones ``by`` (a person, or None where a
    schedule did it), ``as_of`` and ``champions`` (recipe, model and reason of each placement) too.
    """
    path, now = lake.root / LEDGER, lake.current(POINTER)
    written = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    noted = [json.loads(line) for line in written if line.endswith(b"\n")]
    if not now or "at" not in now or (noted and is_same(noted[-1], now)):  # older pointers told only a version
        return noted
    return [*noted, now]


def is_same(line: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two lines speak of the same version of the same shop."""
    return (line["shop"], line["version"]) == (other["shop"], other["version"])


def served(lake: Lake, shop: str) -> list[dict[str, Any]]:
    """Return a shop's intervals, oldest first: its line, and ``from`` and ``to``, None for the current."""
    told = lines(lake)
    return [
        {"as_of": None, "by": None, "champions": {}, **line, "from": line["at"], "to": after and after["at"]}
        for line, after in zip_longest(told, told[1:])
        if line["shop"] == shop
    ]
