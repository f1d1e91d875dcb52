"""The benchmark of the stores: its rows are of the contract's shape, and a small run of it measures what it says."""

import sys

import numpy as np

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from stores import VERSIONS, K, ids, limits_of, lists, loaded, page, peers, written

from recsys_tasks.contract import RECOMMENDATIONS
from recsys_tasks.lake import Lake
from recsys_tasks.online_store import open_store
from recsys_tasks.settings import Settings
from recsys_tasks.versions import read_lists


def test_generated_lists_are_of_the_products_shape():
    rows = lists(100_000, 20)
    assert rows.schema == RECOMMENDATIONS
    assert rows["rank"].to_pylist() == list(range(1, K + 1)) * 20
    assert {len(item) for item in rows["item_id"].to_pylist()} == {6}
    assert rows == lists(100_000, 20)
    assert ids(np.array([1])).to_pylist() == ["100001"]


def test_a_small_run_gives_back_one_versions_memory_and_tells_what_falls_short(home):
    lake = Lake(home / "lake")
    with open_store(Settings(), "bench") as store:
        found = written(lake, 500) | loaded(lake, store, 500, 1)
        measured = {"sizes": {500: found}, "peers": peers(lake, store, 500), "made by": "a test"}
    assert len(list(read_lists(lake, "home", VERSIONS[0]))) == 500
    assert found["parquet bytes a row"] > sum(found["parquet columns"].values()) > 5
    assert found["two versions"] > 1.5 > found["after expiry"]
    assert 451 < found["bytes by MEMORY USAGE"] <= 560
    measured["limits"] = [{**limit, "value": 1e9} for limit in limits_of(measured)]
    assert "\n".join(page(measured)).count("missed") == 4  # more users a second is no miss
