"""A night that goes well, and the same night with everything that can happen to it."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from recsys_tasks import ledger
from recsys_tasks.night import Night
from tests.faults.nights import STEPS, Theatre, contents, left_over, readers_see, tracked
from tests.tiny_shop import AS_OF, write_tiny_shop

SEED, KILLS, FULL, RESTARTS = 7, 5, 1, 4
"""Faults of each step: kills, more than half of them where something is about to change, and full disks; and of
publish, the step that talks to Redis, kills of Redis alone."""
LAST_WEEK = 7
"""Days of the log that the night before did not have."""


@dataclass
class Evening:
    """Two homes with last night's version, before tonight: in one of them all will go well."""

    well: Theatre
    ill: Theatre
    night: Night
    old: str
    """The version that serves."""


@dataclass
class Outcome:
    """What a fault did, and what running the step again made of it."""

    step: str
    act: str
    told: str
    """Where it was, for the message of a failing test"""
    found: dict[str, Any] | None
    """What the step told, None where it was killed"""
    seen: list[str]
    """Versions that readers saw then"""
    again: dict[str, Any]
    differs: set[str]
    """Files of the lake that are not as in the home in which all went well"""
    in_mlflow: bool
    """Whether MLflow holds the same as there"""
    left_over: list[str]
    """What lay about then"""
    after_expiry: list[str]
    """What is left over of that when drafts have become old"""
    kept: set[tuple[str, int, int]] = field(default_factory=set)
    """Files of lists that were whole before the step was run again"""
    after: set[tuple[str, int, int]] = field(default_factory=set)


@dataclass
class Endured:
    """A whole night of it."""

    evening: Evening
    outcomes: list[Outcome]
    new: str
    served: list[str]
    """What the ledger says"""
    seen: list[str]

    def of(self, *acts: str) -> list[Outcome]:
        """Return the outcomes of these faults."""
        found = [outcome for outcome in self.outcomes if outcome.act in acts]
        assert found
        return found


@pytest.fixture(scope="session")
def evening(tmp_path_factory):
    """Make both homes."""
    folder = tmp_path_factory.mktemp("faults")
    shop = write_tiny_shop(folder / "shop")
    shop.write_text(shop.read_text() + "  ranker: {}\n")
    late = sorted((folder / "shop" / "days").iterdir())[-LAST_WEEK:]
    for file in late:
        file.rename(folder / file.name)
    theatres = Theatre(folder / "well"), Theatre(folder / "ill")
    old = [theatre.whole(theatre.plan(str(shop), "2011-04-05T00:00:00+00:00"))["publish"] for theatre in theatres]
    assert old[0] == old[1]
    for file in late:
        (folder / file.name).rename(folder / "shop" / "days" / file.name)
    nights = [theatre.plan(str(shop), AS_OF) for theatre in theatres]
    assert nights[0] == nights[1]
    theatres[1].keep("evening")
    yield Evening(*theatres, nights[0], old[0])
    for theatre in theatres:
        theatre.end()


def drawn(moments: list[str], rng: np.random.Generator) -> list[int]:
    """Draw the moments of kills."""
    changes = [n for n, name in enumerate(moments) if name.endswith("!")]
    found = rng.choice(changes, KILLS // 2 + 1, replace=False).tolist()
    others = [n for n in range(len(moments)) if n not in found]
    return found + rng.choice(others, KILLS - len(found), replace=False).tolist()


def faults(step: str, moments: list[str], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draw what is to happen to a step."""
    acts = ("killed", "killed_with_redis")
    found = [
        {"act": acts[rng.integers(2)], "at": at, "is_torn": bool(rng.random() < 0.5)} for at in drawn(moments, rng)
    ]
    if step == "recommend":  # the second shard is written, and not yet to be seen
        found.append({"act": "killed", "at": [n for n, name in enumerate(moments) if name == "os.rename!"][2]})
    writes = [n for n, name in enumerate(moments) if name == "open!"]
    found += [{"act": "disk_full", "at": int(at)} for at in rng.choice(writes, FULL)]
    if step == "publish":
        asked = [n for n, name in enumerate(moments) if name.startswith(("Redis", "OnlineStore"))]
        found += [{"act": "redis_killed", "at": int(at)} for at in rng.choice(asked[1:-1], RESTARTS, replace=False)]
    return found


@pytest.fixture(scope="session")
def endured(evening):
    """Let every fault happen in every step, from the same state each time, and run the step again each time."""
    well, ill, night = evening.well, evening.ill, evening.night
    ill.back_to("evening")
    rng, ids, outcomes = np.random.default_rng(SEED), {}, []
    for step in STEPS:
        done = well.step(step, night, ids)
        expected, in_mlflow = contents(well.home), tracked(well.home)
        ill.keep("before")
        for n, fault in enumerate(faults(step, done["moments"], rng)):
            if n:
                ill.back_to("before")
            at = fault["at"]
            told = f"{step}: {fault['act']} at {at} of {len(done['moments'])}, {done['moments'][at]}"
            first = ill.step(step, night, ids, **fault)
            seen, kept, left = readers_see(ill.home), written(ill, "lists/0000-*/*.parquet"), [*left_over(ill.home)]
            again = ill.step(step, night, ids)
            found = contents(ill.home)
            differs = {name for name in {**found, **expected} if found.get(name) != expected.get(name)}
            is_same = tracked(ill.home) == in_mlflow
            after = written(ill, "lists/0000-*/*.parquet")
            ill.expire_drafts()
            old = [*left_over(ill.home)]
            outcomes.append(
                Outcome(step, fault["act"], told, first, seen, again, differs, is_same, left, old, kept, after)
            )
        ids[step] = done["result"]
    seen, served = readers_see(ill.home), [line["version"] for line in ledger.lines(ill.lake)]
    return Endured(evening, outcomes, ids["publish"], served, seen)


def written(theatre: Theatre, pattern: str) -> set[tuple[str, int, int]]:
    """Return name, inode and time of writing of files of the lake."""
    found = ((path, os.stat(path)) for path in theatre.lake.root.glob(pattern))
    return {(str(path), told.st_ino, told.st_mtime_ns) for path, told in found}
