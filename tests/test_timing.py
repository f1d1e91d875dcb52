"""What a step is said to take: its time, the most memory of its process, and whether it only found its entry."""

import time

import numpy as np
import pytest

from recsys_tasks.night import Night
from recsys_tasks.settings import Settings
from recsys_tasks.timing import NIGHTS_KEPT, timed, times


@pytest.fixture
def night(home, tiny_shop):
    return Night(shop_file=str(tiny_shop), as_of="2020-01-01T00:00:00+00:00", k=1, recipes=[])


def test_a_step_tells_its_time_and_its_own_peak(night):
    @timed
    def greedy(night):
        time.sleep(0.05)
        return np.ones(40_000_000).sum()  # 305 MiB, given back at once

    @timed
    def modest(night):
        return 1

    assert (greedy(night), modest(night)) == (40_000_000, 1)
    first, second = times(night)
    assert (first["step"], second["step"]) == ("greedy", "modest")
    assert first["seconds"] >= 0.05 > second["seconds"]
    assert first["peak_mb"] - second["peak_mb"] > 250


def test_an_entry_that_was_there_is_reused_and_a_record_a_part_is_kept(night):
    @timed
    def make(night, snapshot, recipe):
        entry = f"models/{recipe}"
        if not night.lake.has(entry):
            with night.lake.create(entry, {}):
                pass
        return entry

    for recipe in ("ease", "ranker", "ease"):
        make(night, "snapshots/1", recipe=recipe)
    assert {step["of"]: step["reused"] for step in times(night)} == {"ease": True, "ranker": False}


def test_a_step_that_fails_leaves_no_record(night):
    @timed
    def broken(night):
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the step's own
        broken(night)
    assert times(night) == []


def test_records_of_old_nights_go(night):
    folder = Settings().home / "times" / "tiny"
    for n in range(NIGHTS_KEPT + 3):
        (folder / f"2019010{n // 10}T{n:06}").mkdir(parents=True)
    times(night)
    assert len(list(folder.iterdir())) == NIGHTS_KEPT
