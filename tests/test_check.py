"""The checker finds every planted fault, and says where."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks.check import check
from recsys_tasks.contract import ANONYMOUS, ITEMS, PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.errors import CheckFailed
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.night import plan
from recsys_tasks.recommend import recommend
from tests.tiny_shop import AS_OF
from tests.tiny_shop import ITEMS as GOODS


@pytest.fixture
def lists(tiny_night, monkeypatch):
    """Tonight, its snapshot, and a function that checks its lists with one placement's rows changed."""
    home, shop, ids = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night = plan(str(shop), AS_OF, datetime.now(UTC))

    def check_with(placement, change, snapshot=ids["ingest"], schema=RECOMMENDATIONS):
        tables = {
            name: pa.concat_tables(
                [pq.read_table(night.lake.path(entry) / f"{name}.parquet") for entry in ids["recommend"]]
            )
            for name in PLACEMENTS
        }
        rows = tables[placement].to_pandas()
        tables[placement] = pa.Table.from_pandas(change(rows), schema, preserve_index=False)
        entry = f"lists/planted-{np.random.default_rng().integers(1 << 60)}"
        with night.lake.create(entry, {}) as folder:
            for name, table in tables.items():
                write_table(table, folder / f"{name}.parquet")
        return check(night, [entry], snapshot)

    return check_with


def put(column, row, value):
    def change(rows):
        rows.loc[row, column] = value
        return rows

    return change


def swapped(column, one, other):
    """Exchange what two rows say."""

    def change(rows):
        rows.loc[[one, other], column] = rows.loc[[other, one], column].to_numpy()
        return rows

    return change


def one_more(rows):
    """Give the first list an item that it does not hold, behind the others."""
    own, last = set(rows.item_id[:10]), rows.iloc[9].copy()
    last["rank"], last["item_id"] = 11, next(item for item in rows.item_id if item not in own)
    return pd.concat([rows, last.to_frame().T]).astype(rows.dtypes)


def named_otherwise(rows):
    """Let a sentence name another item of the same history."""
    because = rows[rows.reason_item_id.notna() & rows.reason.str.startswith("Because")]
    own = because[because.user_id == because.user_id.iloc[0]]
    other = own[own.reason_item_id != own.reason_item_id.iloc[0]].iloc[0]
    rows.loc[own.index[0], "reason_item_id"] = other.reason_item_id
    return rows


def never_bought(rows):
    """Of a list that is short, and so holds all that was bought, replace the first item by one that it lacks."""
    lengths = rows.groupby("user_id").item_id.transform("size")
    first = rows.index[lengths < 10][0]
    listed = set(rows.item_id[rows.user_id == rows.user_id[first]])
    return put("item_id", first, next(code for code, _ in GOODS if code not in listed))(rows)


def said_to_rise(rows):
    return put("source", rows.index[rows.source != "trending"][0], "trending")(rows)


def of_a_category(rows):
    """A visitor has met none."""
    return put("source", rows.index[rows.user_id == "__anonymous__"][0], "popular_category")(rows)


def said_to_be_new(rows):
    rows.loc[0] = ["12000", 1, "20000", 1.0, "warm", "new", "New", None]
    return rows


FAULTS = {
    "a customer without a list": ("home", lambda r: r[r.user_id != r.user_id[0]], "too few or too many items"),
    "a visitor without a list": ("home", lambda r: r[r.user_id != ANONYMOUS], "too few or too many items"),
    "an item without a list": ("similar", lambda r: r[r.user_id != r.user_id[0]], "too few or too many items"),
    "a placement without rows": ("discover", lambda r: r[:0], "too few or too many items"),
    "a list that is one short": ("home", lambda r: r.drop(index=[9]), "too few or too many items"),
    "a list that is one too long": ("home", one_more, "too few or too many items"),
    "a customer nobody knows": ("home", lambda r: r.replace({"user_id": {r.user_id[0]: "nobody"}}), "nobody asked for"),
    "an item twice": ("home", lambda r: put("item_id", 1, r.item_id[0])(r), "an item twice"),
    "a rank left out": ("home", put("rank", 9, 11), "ranks that do not run from 1"),
    "a rank twice": ("home", put("rank", 4, 4), "ranks that do not run from 1"),
    "ranks from 0": ("home", lambda r: r.assign(rank=r["rank"] - 1), "ranks that do not run from 1"),
    "a list out of order": ("home", swapped("rank", 0, 9), "not finite or rises"),
    "an item of no catalogue": ("discover", put("item_id", 0, "ghost"), "may not be recommended"),
    "a score that is not finite": ("home", put("score", 0, float("inf")), "not finite or rises"),
    "a score that is below all": ("similar", put("score", 9, float("-inf")), "not finite or rises"),
    "a score that rises": ("home", put("score", 5, 1e9), "not finite or rises"),
    "a tier of no kind": ("home", put("tier", 0, "gold"), "unknown tier"),
    "an empty reason": ("similar", put("reason", 0, "  "), "no source or reason"),
    "a source that is not told": ("home", put("source", 0, ""), "no source or reason"),
    "a reason from somebody else's history": ("home", put("reason_item_id", 0, "ghost"), "never met"),
    "a reason for a visitor from somebody's history": (
        "home",
        lambda r: put("reason_item_id", r.index[r.user_id == ANONYMOUS][0], r.item_id[0])(r),
        "never met",
    ),
    "a reason that is not so": ("home", put("reason", 0, "You usually buy this every day"), "log does not bear out"),
    "a reason that names another item": ("discover", lambda r: named_otherwise(r), "log does not bear out"),
    "an item that is said to be like another": (
        "similar",
        lambda r: put("reason", 0, "Similar to KITCHEN SOMETHING")(r),
        "log does not bear out",
    ),
    "a tier of somebody else": (
        "home",
        lambda r: put("tier", 0, "cold" if r.tier[0] == "loyal" else "loyal")(r),
        "not of",
    ),
    "a reason that names no item": (
        "home",
        lambda r: put("reason_item_id", r.index[r.reason_item_id.notna()][0], None)(r),
        "log does not bear out",
    ),
    "a repeat of what was never bought": ("buy_again", never_bought, "never bought"),
    "a repeat less than there is": (
        "buy_again",
        lambda r: r[(r.user_id != r.user_id[0]) | (r["rank"] < r["rank"][r.user_id == r.user_id[0]].max())],
        "too few",
    ),
    "repeats for a visitor": (
        "buy_again",
        lambda r: r.replace({"user_id": {r.user_id[0]: "__anonymous__"}}),
        "nobody asked for",
    ),
    "an item that is said to rise": ("trending", said_to_rise, "does not rise"),
    "an item of another category": ("trending", of_a_category, "of another category"),
    "an item that is not new": ("new", said_to_be_new, "not new"),
    "items that no basket holds": ("bought_together", put("item_id", 0, "ghost"), "no two baskets"),
    "what goes with itself": ("bought_together", lambda r: put("item_id", 0, r.user_id[0])(r), "must leave out"),
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


@pytest.mark.parametrize("column", [name for name in RECOMMENDATIONS.names if name != "reason_item_id"])
def test_a_value_that_is_missing_stops_the_night(lists, column):
    nullable = pa.schema([field.with_nullable(True) for field in RECOMMENDATIONS])

    def change(rows):
        rows[column] = [None, *rows[column].tolist()[1:]]
        return rows

    with pytest.raises(CheckFailed, match="home: a value is missing"):
        lists("home", change, schema=nullable)


@pytest.mark.parametrize("fault", ["sold out", "not in the catalogue yet"])
def test_an_item_that_cannot_be_bought_stops_the_night(lists, tiny_night, fault):
    home, _, ids = tiny_night
    lake, planted = Lake(home / "lake"), f"snapshots/planted-{fault.replace(' ', '-')}"
    items = pq.read_table(lake.path(ids["ingest"]) / "items.parquet").to_pandas()
    if fault == "sold out":
        items.loc[0, "available"] = False
    else:
        items["updated_at"] = items.updated_at.astype("datetime64[us, UTC]")
        items.loc[0, "updated_at"] = pd.Timestamp(AS_OF)
    if not lake.has(planted):
        with lake.create(planted, lake.manifest(ids["ingest"])) as folder:
            write_table(pa.Table.from_pandas(items, ITEMS, preserve_index=False), folder / "items.parquet")
    with pytest.raises(CheckFailed, match=f"may not be recommended: .* for example {items.item_id[0]}"):
        lists("home", lambda rows: rows, snapshot=planted)


def flipped(content):
    """Change one bit in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-100], lambda content: b""])
def test_lists_that_are_not_the_bytes_that_were_written_are_refused_and_made_anew(tiny_night, monkeypatch, damage):
    home, shop, ids = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night, made = plan(str(shop), AS_OF, datetime.now(UTC)), ids["recommend"][1]
    file = night.lake.path(made) / "discover.parquet"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with pytest.raises(CheckFailed, match="not the bytes that recommend wrote") as caught:
        check(night, ids["recommend"], ids["ingest"])
    assert str(file) in str(caught.value)
    assert "run the night again" in str(caught.value)
    inputs = ids["promote"], ids["publish_index"], ids["ingest"], ids["embed"]
    assert [recommend(night, shard, *inputs) for shard in night.shards] == ids["recommend"]
    assert file.read_bytes() == content
    check(night, ids["recommend"], ids["ingest"])


def test_lists_without_fault_pass(lists):
    found = lists("home", lambda rows: rows)
    assert found["home"] == {"rows": 430, "lists": 43}
    assert found["similar"]["lists"] == 30
