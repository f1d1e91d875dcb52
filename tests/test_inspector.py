"""The inspector: what it tells is what the night did, whatever is asked of it."""

import csv
import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys_tasks import inspector
from recsys_tasks.cli import app, run_night
from recsys_tasks.contract import OF_CUSTOMERS, PLACEMENT_VIEW, PLACEMENTS
from recsys_tasks.errors import NothingInLake
from recsys_tasks.lake import Lake, sha256
from recsys_tasks.night import plan
from recsys_tasks.recipe import Shelf
from recsys_tasks.versions import TRACES, activate, entry, versions
from tests.tiny_shop import AS_OF, write_tiny_shop

BEFORE = "2011-04-11T00:00:00+00:00"
ODD = """o'brien"; DROP TABLE x --"""
CUSTOMER = "12003"


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Two nights whose lists a ranker made, and a customer with an odd id: (lake, shop, ids of the steps of each)."""
    folder = tmp_path_factory.mktemp("inspected")
    shop = write_tiny_shop(folder / "shop")
    with (folder / "shop" / "days" / "2011-04-01.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["1", "20004", "KITCHEN APRON", 1, "2011-04-01 12:00:00", "0.9", ODD, "France"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        ids = {
            as_of: run_night(plan(str(shop), as_of, datetime.now(UTC), ["ranker"], force_promote="ranker"))
            for as_of in (BEFORE, AS_OF)
        }
        night = plan(str(shop), AS_OF, datetime.now(UTC))
        return night.lake, night.shop, ids


@pytest.fixture
def ask(nights, monkeypatch):
    """Run ``nightcart inspect`` in the home of the two nights and return what it says."""
    lake, shop, _ = nights
    monkeypatch.setenv("NIGHTCART_HOME", str(lake.root.parent))

    def run(*words):
        told = CliRunner().invoke(app, ["inspect", *words, "--shop", str(shop.file)], catch_exceptions=False)
        assert told.exit_code == 0, told.output
        return told.stdout

    return run


@pytest.fixture
def lake_of_its_own(nights, tmp_path, monkeypatch):
    """A copy of the lake, to take things away from."""
    lake, _, _ = nights
    shutil.copytree(lake.root, tmp_path / "home" / "lake")
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    return Lake(tmp_path / "home" / "lake")


def test_sources_and_ranker_said_what_the_inspector_tells(nights):
    lake, shop, ids = nights
    steps = ids[AS_OF]
    shelf = Shelf.open(lake, shop, steps["ingest"], steps["embed"])
    candidates = shelf.catalog.candidates(shelf.interactions.as_of)
    told = inspector.customer(lake, shop, CUSTOMER)["placements"]
    user = np.flatnonzero(shelf.interactions.user_ids == CUSTOMER)
    for placement, view in PLACEMENT_VIEW.items():
        ranker = shelf.load(told[placement]["model"])
        rows = told[placement]["list"] + told[placement]["left_out"]
        assert told[placement]["left_out"]
        assert any(row["sources"] for row in rows)

        def ranks(model, view=view):
            found = model.recommend(shelf.interactions, user, 100, candidates, exclude_seen=view == "discovery")
            own = shelf.catalog.item_ids[found.items[0][(found.items[0] >= 0) & ~found.filled[0]]]
            return {item: (n, score) for n, (item, score) in enumerate(zip(own, found.scores[0], strict=False), 1)}

        for name, source in ranker.sources_.items():
            said = ranks(source)
            for row in rows:
                expected = said.get(row["item_id"])
                assert row["sources"].get(name) == (expected and {"rank": expected[0], "score": float(expected[1])})
        said = ranks(ranker)
        assert all((row["ranker"]["rank"], row["ranker"]["score"]) == said[row["item_id"]] for row in rows)


def test_the_list_is_the_published_one_and_what_is_left_out_is_not_in_it(nights):
    lake, shop, ids = nights
    (version,) = [v for v in versions(lake, shop) if v == ids[AS_OF]["publish"]]
    told = inspector.customer(lake, shop, CUSTOMER, version)
    for placement, found in told["placements"].items():
        files = sorted(lake.path(entry(placement, version)).glob("part-*"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist() if row["user_id"] == CUSTOMER]
        names = ("rank", "item_id", "score", "source", "reason")
        assert [[row[n] for n in names] for row in found["list"]] == [[row[n] for n in names] for row in rows]
        assert [row["because"] for row in found["list"]] == [row["reason_item_id"] for row in rows]
        assert found["champion"] == ("ranker" if placement in PLACEMENT_VIEW else None)
        assert not {row["item_id"] for row in found["left_out"]} & {row["item_id"] for row in rows}
        best = [min(said["rank"] for said in row["sources"].values()) for row in found["left_out"]]
        assert best == sorted(best)
        assert len(best) <= 20


def test_a_trace_leaves_the_lists_as_they_are_and_can_be_left_out(nights, tmp_path, monkeypatch):
    lake, shop, ids = nights
    file = shop.file.with_name("plain.yaml")
    file.write_text(shop.file.read_text() + "trace: {listed: 0}\n")
    shutil.copytree(lake.root.parent, tmp_path / "home")
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "home"))
    night = plan(str(file), AS_OF, datetime.now(UTC), ["ranker"], force_promote="ranker")
    without = run_night(night, "recommend")["recommend"]
    for traced, plain in zip(ids[AS_OF]["recommend"], without, strict=True):
        names = {path.name for path in lake.path(traced).glob("*.parquet")}
        assert names - {path.name for path in night.lake.path(plain).glob("*.parquet")} == {
            f"trace-{placement}.parquet" for placement in PLACEMENT_VIEW
        }
        for placement in PLACEMENTS:
            name = f"{placement}.parquet"
            assert (lake.path(traced) / name).read_bytes() == (night.lake.path(plain) / name).read_bytes()


def test_the_manifest_tells_the_files_of_a_trace_which_are_in_the_order_of_their_readers(nights):
    lake, _, ids = nights
    folder = entry(TRACES, ids[AS_OF]["publish"])
    files = lake.manifest(folder)["files"]
    assert len(files) == 4
    for file in files:
        assert sha256(lake.path(folder) / file["name"]) == file["sha256"]
        readers = pq.read_table(lake.path(folder) / file["name"])["user_id"].to_pylist()
        assert readers == sorted(readers)
        assert len(readers) == file["rows"]


def test_history_is_the_newest_of_all_events_also_where_the_arrays_are_gone(nights, lake_of_its_own):
    lake, shop, ids = nights
    days = [lake.root / day["file"] for day in lake.manifest(ids[AS_OF]["ingest"])["days"]]
    events = pa.concat_tables([pq.ParquetFile(day).read() for day in days]).to_pylist()
    own = [row for row in events if row["user_id"] == CUSTOMER]
    told = inspector.customer(lake, shop, CUSTOMER)
    assert told["n_events"] == len(own) > 0
    expected = [(row["timestamp"].isoformat(), row["event_type"], row["item_id"], row["price"]) for row in own]
    names = ("time", "type", "item_id", "price")
    assert [tuple(row[name] for name in names) for row in told["history"]] == expected[::-1][:100]
    for history in lake_of_its_own.entries("history"):
        lake_of_its_own.drop(history)
    assert inspector.customer(lake_of_its_own, shop, CUSTOMER) == told
    assert inspector.item(lake_of_its_own, shop, "20010") == inspector.item(lake, shop, "20010")


def test_an_item_tells_its_buyers_the_lists_it_stands_in_and_what_is_like_it(nights):
    lake, shop, ids = nights
    told = inspector.item(lake, shop, "20010")
    days = [lake.root / day["file"] for day in lake.manifest(ids[AS_OF]["ingest"])["days"]]
    events = pa.concat_tables([pq.ParquetFile(day).read() for day in days]).to_pylist()
    own = [row for row in events if row["item_id"] == "20010"]
    assert told["n_events"] == len(own)
    assert told["n_buyers"] == len({row["user_id"] for row in own if row["event_type"] == "purchase"})
    assert (told["title"], told["available"]) == ("GARDEN SPADE", True)
    for placement, n in told["listed"].items():
        files = sorted(lake.path(entry(placement, told["version"])).glob("part-*"))
        assert n == sum(item == "20010" for file in files for item in pq.read_table(file)["item_id"].to_pylist())
    assert all(told["listed"][placement] for placement in PLACEMENT_VIEW)
    assert set(told["listed"]) == set(OF_CUSTOMERS)
    assert "20010" not in [row["item_id"] for row in told["bought_together"]]
    assert [row["rank"] for row in told["similar"]] == list(range(1, 11))
    assert "20010" not in [row["item_id"] for row in told["similar"]]


def test_a_version_sees_only_what_was_known_then(nights):
    lake, shop, ids = nights
    told = inspector.customer(lake, shop, "12029", ids[BEFORE]["publish"])
    assert told["as_of"] == BEFORE
    assert all(row["time"] < BEFORE for row in told["history"])
    assert told["n_events"] <= inspector.customer(lake, shop, "12029")["n_events"]


def test_two_versions_side_by_side_add_up(nights):
    lake, shop, ids = nights
    now, before = ids[AS_OF]["publish"], ids[BEFORE]["publish"]
    moved = inspector.compare(lake, shop, CUSTOMER, None, before)
    lists, earlier = (inspector.customer(lake, shop, CUSTOMER, v)["placements"] for v in (now, before))
    for placement, found in moved["placements"].items():
        ranks = {row["item_id"]: row["rank"] for row in found["kept"] + found["new"]}
        assert ranks == {row["item_id"]: row["rank"] for row in lists[placement]["list"]}
        then = {row["item_id"]: row["before"] for row in found["kept"] + found["gone"]}
        assert then == {row["item_id"]: row["rank"] for row in earlier[placement]["list"]}
        assert all(row["change"] == row["before"] - row["rank"] for row in found["kept"])
    same = inspector.compare(lake, shop, CUSTOMER, now, now)["placements"]
    assert all(not (found["new"] or found["gone"]) for found in same.values())


def test_search_takes_ids_first_and_then_titles_whatever_their_case(nights):
    lake, shop, _ = nights
    assert [row["title"] for row in inspector.search(lake, shop, "sPaDe")["items"]] == ["GARDEN SPADE"]
    found = inspector.search(lake, shop, "1200", limit=3)
    assert [row["user_id"] for row in found["customers"]] == ["12000", "12001", "12002"]
    assert {"user_id", "tier"} == set(found["customers"][0])
    assert [row["item_id"] for row in inspector.search(lake, shop, "2001", limit=2)["items"]] != []


@pytest.mark.parametrize("text", ["x' OR 1=1 --", '"; DROP TABLE x', "%", "$text", "\x00", "[/bold]"])
def test_what_people_type_is_text_and_nothing_else(nights, text):
    lake, shop, _ = nights
    for found in inspector.search(lake, shop, text).values():
        assert all(text.lower() in "".join(map(str, row.values())).lower() for row in found)
    with pytest.raises(NothingInLake, match="is no customer of version"):
        inspector.customer(lake, shop, text)
    with pytest.raises(NothingInLake, match="is no item of version"):
        inspector.item(lake, shop, text)


def test_a_customer_whose_id_is_sql_is_a_customer_like_others(nights, ask):
    lake, shop, _ = nights
    told = inspector.customer(lake, shop, ODD)
    assert [row["item_id"] for row in told["history"]] == ["20004"]
    assert len(told["placements"]["home"]["list"]) == 10
    assert [row["user_id"] for row in inspector.search(lake, shop, "O'BRIEN")["customers"]] == [ODD]
    assert json.loads(ask(ODD, "--json")) == told


def test_the_visitors_list_is_filled_up_and_says_so(nights):
    lake, shop, _ = nights
    told = inspector.customer(lake, shop, "__anonymous__")
    assert (told["history"], told["n_events"]) == ([], 0)
    assert {row["note"] for row in told["placements"]["home"]["list"]} == {inspector.FILLED}


def test_an_unknown_customer_is_told_who_is_near(nights):
    lake, shop, _ = nights
    with pytest.raises(NothingInLake, match=r"The nearest are .*'12003'"):
        inspector.customer(lake, shop, "120033")


def test_an_unknown_version_is_told_what_there_is(nights):
    lake, shop, ids = nights
    for version in ("20010101T000000Z-00000000", "../../home"):
        with pytest.raises(NothingInLake, match=f"is not in the lake; there are .*{ids[AS_OF]['publish']}"):
            inspector.customer(lake, shop, CUSTOMER, version)


def test_a_version_without_a_trace_shows_its_lists_and_a_note(nights, lake_of_its_own):
    lake, shop, _ = nights
    whole = inspector.customer(lake, shop, CUSTOMER)["placements"]["home"]
    lake_of_its_own.drop(entry(TRACES, versions(lake, shop)[-1]))
    found = inspector.customer(lake_of_its_own, shop, CUSTOMER)["placements"]["home"]
    assert [row["item_id"] for row in found["list"]] == [row["item_id"] for row in whole["list"]]
    assert not any(row["sources"] for row in found["list"])
    assert "kept no trace" in found["note"]
    assert whole["note"] is None


def test_a_version_that_is_removed_takes_its_traces_along_and_is_named_as_gone(nights, lake_of_its_own):
    lake, (_, shop, ids) = lake_of_its_own, nights
    first, second = (ids[as_of]["publish"] for as_of in (BEFORE, AS_OF))
    third = f"{second}x"
    for placement in PLACEMENTS:
        shutil.copytree(lake.path(entry(placement, second)), lake.path(entry(placement, third)))
    activate(lake, shop.model_copy(update={"keep_versions": 2}), third, "published")
    assert not lake.path(entry(TRACES, first)).exists()
    assert lake.path(entry(TRACES, second)).exists()
    with pytest.raises(NothingInLake, match=f"{first} served until .* and was removed since; there are {second}"):
        inspector.customer(lake, shop, CUSTOMER, first)


def test_before_the_first_night_there_is_nothing_to_inspect(nights, tmp_path):
    _, shop, _ = nights
    for asked in (inspector.search, inspector.customer, inspector.item):
        with pytest.raises(NothingInLake, match="published yet; run a night"):
            asked(Lake(tmp_path), shop, "12003")


def test_the_command_tells_of_a_customer_an_item_a_search_and_two_versions(ask, nights):
    _, _, ids = nights
    assert "a part of a title" in ask()
    told = ask(CUSTOMER)
    assert all(part in told for part in ("history: the newest", "home (champion: ranker)", "left out", "discover"))
    assert "in the home list of" in ask("20010")
    assert "GARDEN SPADE" in ask("spade")
    assert "kept" in ask(CUSTOMER, "--against", ids[BEFORE]["publish"])
    assert json.loads(ask("20010", "--version", ids[BEFORE]["publish"], "--json"))["version"] == ids[BEFORE]["publish"]
    with pytest.raises(NothingInLake, match="'nobody' is no customer"):
        ask("nobody")
