"""The checker finds every planted fault, and says where."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks.check import check
from recsys_tasks.contract import PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.errors import CheckFailed
from recsys_tasks.lake import write_table
from recsys_tasks.night import plan
from tests.tiny_shop import AS_OF


@pytest.fixture
def lists(tiny_night, monkeypatch):
    """Tonight, its snapshot, and a function that checks its lists with one placement's rows changed."""
    home, shop, ids = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night = plan(str(shop), AS_OF, datetime.now(UTC))

    def check_with(placement, change):
        tables = {
            name: pa.concat_tables(
                [pq.read_table(night.lake.path(entry) / f"{name}.parquet") for entry in ids["recommend"]]
            )
            for name in PLACEMENTS
        }
        rows = tables[placement].to_pandas()
        tables[placement] = pa.Table.from_pandas(change(rows), RECOMMENDATIONS, preserve_index=False)
        entry = f"lists/planted-{np.random.default_rng().integers(1 << 60)}"
        with night.lake.create(entry, {}) as folder:
            for name, table in tables.items():
                write_table(table, folder / f"{name}.parquet")
        return check(night, [entry], ids["ingest"])

    return check_with


def put(column, row, value):
    def change(rows):
        rows.loc[row, column] = value
        return rows

    return change


FAULTS = {
    "a customer without a list": ("home", lambda r: r[r.user_id != r.user_id[0]], "too few or too many items"),
    "a list that is one short": ("home", lambda r: r.drop(index=[9]), "too few or too many items"),
    "a customer nobody knows": ("home", lambda r: r.replace({"user_id": {r.user_id[0]: "nobody"}}), "nobody asked for"),
    "an item twice": ("home", lambda r: put("item_id", 1, r.item_id[0])(r), "an item twice"),
    "a rank left out": ("home", put("rank", 9, 11), "ranks that do not run from 1"),
    "an item of no catalogue": ("discover", put("item_id", 0, "ghost"), "may not be recommended"),
    "a score that is not finite": ("home", put("score", 0, float("inf")), "not finite or rises"),
    "a score that rises": ("home", put("score", 5, 1e9), "not finite or rises"),
    "a tier of no kind": ("home", put("tier", 0, "gold"), "unknown tier"),
    "an empty reason": ("similar", put("reason", 0, "  "), "no source or reason"),
    "a reason from somebody else's history": ("home", put("reason_item_id", 0, "ghost"), "never met"),
    "an item similar to itself": ("similar", lambda r: put("item_id", 0, r.user_id[0])(r), "must leave out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_night(lists, fault):
    placement, change, message = FAULTS[fault]
    with pytest.raises(CheckFailed, match=message) as caught:
        lists(placement, change)
    assert placement in str(caught.value)
    assert "last version stays current" in str(caught.value)


def test_something_bought_in_the_list_of_new_items_stops_the_night(lists, tiny_night):
    home, _, _ = tiny_night
    events = pq.read_table(sorted((home / "lake" / "events").glob("*/*.parquet"))).to_pandas()
    user = events.user_id[0]

    def change(rows):
        rows.loc[rows.index[rows.user_id == user][0], "item_id"] = events.item_id[0]
        return rows

    with pytest.raises(CheckFailed, match="must leave out"):
        lists("discover", change)


def test_lists_without_fault_pass(lists):
    found = lists("home", lambda rows: rows)
    assert found["home"] == {"rows": 430, "lists": 43}
    assert found["similar"]["lists"] == 30
