import json
import re
import shutil
import sqlite3
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys_tasks import forget as forgetting
from recsys_tasks import inspector
from recsys_tasks.cli import app, run_night
from recsys_tasks.contract import ANONYMOUS, PLACEMENTS
from recsys_tasks.errors import ContractError, NightcartError, NothingInLake, TemporarilyUnavailable
from recsys_tasks.forget import Subject, forget, scan, without
from recsys_tasks.ingest import ingest
from recsys_tasks.lake import Lake, sha256
from recsys_tasks.night import Night, plan
from recsys_tasks.online_store import open_store
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from recsys_tasks.shop import load_shop
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.tombstones import Tombstones
from recsys_tasks.versions import TRACES, activate, current, entry, read_lists, roll_back
from tests.tiny_shop import AS_OF, COLUMNS, write_tiny_shop

USER, ITEM = "customer-zq7x41", "item-kw93vb"
"""In place of a regular's id and of an item of many lists; no chance writes these."""
NOW = datetime.fromisoformat(AS_OF)
MORE = "checks: {events_per_user_day: 40}\n"


def write_shop(folder):
    """The tiny shop, in which the two are also where ids stand seldom: in a broken line, in a bad row, as a robot."""
    shop = write_tiny_shop(folder)
    shop.write_text(shop.read_text() + MORE)
    for file in (folder / "days").iterdir():
        text = re.sub(",12029,", f",{USER},", file.read_text())
        file.write_text(re.sub(",20003,", f",{ITEM},", text))
    with (folder / "days" / "2011-04-08.csv").open("a") as file:
        file.write(f"1,{ITEM},KITCHEN CAKE STAND,some,2011-04-08 10:00:00,1.0,{USER},United Kingdom\n")
        file.write(f"broken,{USER},{ITEM},2,3,4,5,6,7,8\n")
        for n in range(50):
            file.write(f"2,20000,KITCHEN TEACUP,{n + 1},2011-04-08 11:00:00,1.0,{USER},United Kingdom\n")
    return shop


def write_april(folder):
    """The same shop, open for eleven days."""
    shop = write_shop(folder)
    for file in (folder / "days").iterdir():
        if file.stem < "2011-04":
            file.unlink()
    return load_shop(str(shop), Path())


def ingested(shop, as_of=AS_OF):
    """What an ingest of a shop wrote."""
    night = Night(shop_file=str(shop.file), as_of=as_of, k=10, recipes=[])
    return Snapshot(night.lake, ingest(night))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The home and the shop of a published night, and the ids of its steps."""
    folder = tmp_path_factory.mktemp("forget")
    shop = write_shop(folder / "shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTCART_HOME", str(folder / "home"))
        ids = run_night(plan(str(shop), AS_OF, NOW))
    return folder / "home", shop, ids


@pytest.fixture
def lake(home, published):
    """A copy of that home for one test."""
    shutil.copytree(published[0], home)
    return Lake(Settings().lake)


@pytest.fixture
def shop(published):
    return load_shop(str(published[1]), Path())


def everywhere(home, word):
    """The files of a home that hold a word, and keys and values of its Redis, however they are packed."""
    found = [str(path) for path in home.rglob("*") if path.is_file() and word in unpacked(path)]
    with open_store(Settings(), "tiny") as store:
        keys = list(store.client.scan_iter())
        values = [store.client.get(key) for key in keys if store.client.type(key) == b"string"]
    return found + [text for text in map(repr, keys + values) if word in text]


def unpacked(path):
    raw = path.read_bytes()
    text = raw.decode("latin-1") + raw.decode("utf-32-le", errors="ignore")
    if path.suffix == ".parquet":
        text += repr(pq.ParquetFile(path).read().to_pylist())
    if path.suffix == ".npy":
        text += repr(np.load(path).astype(str).ravel().tolist())
    if path.suffix == ".db":
        with sqlite3.connect(path) as db:
            text += "\n".join(db.iterdump())
    return text


def faults(lake, version):
    """Whatever a reader of a version would stumble over."""
    found = []
    for placement in (*PLACEMENTS, TRACES):
        folder = lake.path(entry(placement, version))
        for file in lake.manifest(entry(placement, version))["files"]:
            table = pq.ParquetFile(folder / file["name"]).read()
            if sha256(folder / file["name"]) != file["sha256"] or table.num_rows != file["rows"]:
                found.append((placement, file["name"], "is not what the manifest says"))
            if placement != TRACES:
                ranks = table.to_pandas().groupby("user_id")["rank"].apply(list)
                found += [(reader, rank) for reader, rank in ranks.items() if rank != list(range(1, len(rank) + 1))]
    return found


def test_after_it_and_another_night_no_byte_of_the_home_names_the_customer_or_the_item(lake, shop, home):
    for subject in (Subject("user", USER), Subject("item", ITEM)):
        assert everywhere(home, subject.id)
        before, left = forget(lake, shop, subject)
        assert sum(before.values()) > 0
        assert not left
        assert everywhere(home, subject.id) == []
    first = current(lake)["version"]
    run_night(plan(str(shop.file), AS_OF, NOW))
    assert current(lake)["version"] != first
    for word in (USER, ITEM):
        assert everywhere(home, word) == []
    assert "12028" in {reader for reader, _ in read_lists(lake, "home", current(lake)["version"])}
    roll_back(lake, shop, first)
    for word in (USER, ITEM):
        assert everywhere(home, word) == []
    assert faults(lake, first) == []


def test_the_next_log_is_that_of_a_shop_which_never_knew_them(home, tmp_path, monkeypatch):
    shop, other = write_april(tmp_path / "shop"), write_april(tmp_path / "other")
    lake = ingested(shop).lake
    for subject in (Subject("user", USER), Subject("item", ITEM)):
        assert not forget(lake, shop, subject)[1]
    ours = ingested(shop).manifest
    for file in (tmp_path / "other" / "days").iterdir():
        lines = file.read_text().splitlines()
        file.write_text("\n".join(line for line in lines if USER not in line and ITEM not in line) + "\n")
    monkeypatch.setenv("NIGHTCART_HOME", str(tmp_path / "elsewhere"))
    theirs = ingested(other).manifest
    assert ours["days"] == theirs["days"]
    assert ours["files"]["items.parquet"] == theirs["files"]["items.parquet"]


def test_lists_close_up_and_both_stores_stay_equal(lake, shop):
    version = current(lake)["version"]
    was = {placement: dict(read_lists(lake, placement, version)) for placement in PLACEMENTS}
    goes = f"nightcart:tiny:{version}:home:{next(r for r, items in was['home'].items() if ITEM in items)}"
    with open_store(Settings(), "tiny") as store:
        store.client.expire(goes, 3600)
    forget(lake, shop, Subject("item", ITEM))
    with open_store(Settings(), "tiny") as store:
        assert 0 < store.client.ttl(goes) <= 3600
    for placement in PLACEMENTS:
        now = dict(read_lists(lake, placement, version))
        assert now == {
            reader: [item for item in items if item != ITEM]
            for reader, items in was[placement].items()
            if reader != ITEM
        }
        with open_store(Settings(), "tiny") as store:
            assert {reader: store.get(placement, reader) for reader in now} == now
    assert faults(lake, version) == []
    rows = [
        row
        for path in lake.path(entry("discover", version)).glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["reason"] for row in rows if "CAKE STAND" in row["reason"]} == set()


def test_what_was_told_of_other_customers_can_still_be_inspected(lake, shop):
    was = inspector.customer(lake, shop, "12028")
    forget(lake, shop, Subject("user", USER))
    assert inspector.customer(lake, shop, "12028") == was
    with pytest.raises(NothingInLake, match="is no customer"):
        inspector.customer(lake, shop, USER)
    forget(lake, shop, Subject("item", ITEM))
    now = inspector.customer(lake, shop, "12028")
    for placement, told in was["placements"].items():
        for part in ("list", "left_out"):
            kept = [row for row in told[part] if row["item_id"] != ITEM]
            found = now["placements"][placement][part]
            assert [(row["item_id"], row["sources"]) for row in found] == [(r["item_id"], r["sources"]) for r in kept]


def test_a_customer_and_an_item_of_one_name_are_not_taken_for_each_other():
    lists = pa.table(
        {
            "user_id": ["1", "1", "2", "2"],
            "rank": pa.array([1, 2, 1, 2], pa.int16()),
            "item_id": ["3", "1", "1", "4"],
            "reason": ["a", "b", "c", "Because you bought one"],
            "reason_item_id": [None, None, "3", "1"],
        }
    )

    def left(placement, kind):
        table = without(
            lists, Path("recommendations") / placement / "version=1" / "part-0000.parquet", Subject(kind, "1")
        )
        return [(row["user_id"], row["rank"], row["item_id"]) for row in table.to_pylist()], table["reason"].to_pylist()

    assert left("home", "user") == ([("2", 1, "1"), ("2", 2, "4")], ["c", "Because you bought one"])
    assert left("home", "item") == ([("1", 1, "3"), ("2", 1, "4")], ["a", "Picked for you"])
    assert left("similar", "item") == ([("2", 1, "4")], ["Picked for you"])


def test_a_short_id_is_searched_where_ids_stand_and_nowhere_else(lake, shop):
    assert set(scan(lake, shop, Subject("user", "12028"))) >= {"Redis, home", "lake/events", "lake/read"}
    assert not scan(lake, shop, Subject("item", "12028"))
    before, left = forget(lake, shop, Subject("user", "12028"))
    assert "lake/recommendations/similar" not in before
    assert not left


def test_a_tombstone_does_not_tell_the_id(lake, shop, home):
    forget(lake, shop, Subject("user", USER))
    tombstones = Tombstones.of(lake, "tiny")
    assert USER not in tombstones.path.read_text()
    assert tombstones.until("user", ["12028", USER]).keys() == {USER}
    assert not tombstones.until("item", [USER])
    first = tombstones.content["forgotten"][0]["hash"]
    other = Tombstones(home / "other.json")
    other.put("user", USER, NOW, done=True)
    assert other.content["forgotten"][0]["hash"] != first


def test_a_customer_who_comes_back_is_known_by_what_happens_from_then_on(home, tmp_path):
    shop, tomorrow = write_april(tmp_path / "shop"), "2011-04-13T00:00:00+00:00"
    lake = ingested(shop).lake
    forget(lake, shop, Subject("user", USER), NOW)
    forget(lake, shop, Subject("item", ITEM), NOW)
    with (tmp_path / "shop" / "days" / "2011-04-12.csv").open("w") as file:
        rows = f"7,20000,TEACUP,1,2011-04-12 09:00:00,1.0,{USER},X", f"8,{ITEM},STAND,1,2011-04-12 09:00:00,1,9,X"
        file.write("\n".join([",".join(COLUMNS), *rows]) + "\n")
    history = ingested(shop, tomorrow).history()
    known = Counter(history.users.take(pa.array(history.array("user"))).to_pylist())
    assert known[USER] == 1
    assert "9" not in known
    assert ITEM not in history.items.to_pylist()
    forget(lake, shop, Subject("user", USER), datetime(2011, 4, 14, tzinfo=UTC))
    assert USER not in ingested(shop, tomorrow).history().users.to_pylist()


def test_it_happens_once_and_a_stranger_changes_nothing(lake, shop, home):
    forget(lake, shop, Subject("user", USER), NOW)
    was = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.is_file()}
    assert forget(lake, shop, Subject("user", USER)) == (Counter(), Counter())
    with pytest.raises(NothingInLake, match="nothing was changed"):
        forget(lake, shop, Subject("user", "customer-99"))
    with pytest.raises(ContractError, match="visitors"):
        forget(lake, shop, Subject("user", ANONYMOUS))
    assert {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.is_file()} == was


@pytest.mark.parametrize("step", ["_rewrite", "_blank_out", "open_store", "drop"])
def test_cut_off_it_goes_on_when_it_is_asked_again_and_no_night_runs_before(lake, shop, home, monkeypatch, step):
    calls = Counter()
    owner = Lake if step == "drop" else forgetting
    real = getattr(owner, step)

    def killed(*given):
        calls[step] += 1
        if calls[step] == 2:
            raise KeyboardInterrupt
        return real(*given)

    (home / "ours.log").write_text("nothing\n")
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            forget(lake, shop, Subject("item", ITEM))
    with pytest.raises(ContractError, match="cut off"):
        ingested(shop)
    assert forget(lake, shop, Subject("item", ITEM))[1] == Counter()
    assert everywhere(home, ITEM) == []
    Tombstones.of(lake, shop.name).require_done()


def test_lists_that_were_made_before_it_are_never_published(lake, shop, published):
    *_, ids = published
    forget(lake, shop, Subject("user", USER))
    lake.drop(entry("home", ids["publish"]))
    night = Night(shop_file=str(shop.file), as_of=AS_OF, k=10, recipes=[])
    with pytest.raises(NothingInLake, match="lists/"):
        publish(night, ids["recommend"], ids["promote"], ids["evaluate"], ids["ingest"])


def test_it_waits_for_no_night_and_no_step_runs_beside_it(lake, shop):
    with lake.at_work(), pytest.raises(TemporarilyUnavailable, match="a night"):
        forget(lake, shop, Subject("user", USER))
    begun, ended = threading.Event(), threading.Event()

    def step():
        begun.set()
        with lake.at_work():
            ended.set()

    with lake.alone():
        thread = threading.Thread(target=step)
        thread.start()
        begun.wait()
        assert not ended.wait(0.1)
    thread.join()
    assert ended.is_set()


def test_readers_see_whole_lists_at_every_moment(lake, shop):
    version = current(lake)["version"]
    was = {placement: dict(read_lists(lake, placement, version)) for placement in PLACEMENTS}
    stop, seen, wrong = threading.Event(), [], []

    def read():
        folder = lake.path(entry("home", version))
        while not stop.is_set():
            for reader, items in [
                (reader, group["item_id"].tolist())
                for path in folder.glob("part-*.parquet")
                for reader, group in pq.read_table(path).to_pandas().groupby("user_id")
            ]:
                whole = was["home"][reader]
                if items not in (whole, [item for item in whole if item != ITEM]):
                    wrong.append((reader, items))
            seen.append(json.loads((folder / "_MANIFEST.json").read_text())["version"])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        forget(lake, shop, Subject("item", ITEM))
    finally:
        stop.set()
        thread.join()
    assert set(seen) == {version}
    assert wrong == []


def test_a_version_that_left_redis_comes_back_without_them(lake, shop):
    version = current(lake)["version"]
    forget(lake, shop, Subject("user", USER))
    with open_store(Settings(), "tiny") as store:
        store.drop(version)
    activate(lake, shop, version, "again")
    with open_store(Settings(), "tiny") as store:
        assert store.get("home", USER) is None
        assert store.get("home", "12028")


def test_logs_lose_the_id_and_keep_their_length(lake, shop, home):
    log = home / "airflow" / "logs" / "task.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"for example {USER} {ITEM}, not {USER}9\n")
    assert scan(lake, shop, Subject("user", USER))["airflow/logs"] == 1
    assert not forget(lake, shop, Subject("user", USER))[1]
    assert log.read_text() == f"for example {'x' * len(USER)} {ITEM}, not {USER}9\n"


def test_the_command_says_where_it_was_and_fails_while_anything_is_left(lake, shop, home):
    def command(*words):
        result = CliRunner().invoke(app, ["--home", str(home), "forget", *words, "--shop", str(shop.file)])
        return result.exit_code, result.output or repr(result.exception)

    assert command("--scan", USER)[0] == 1
    code, told = command(USER, "--json")
    assert code == 0
    assert json.loads(told)["left"] == {}
    assert json.loads(told)["found"]["lake/events"] > 0
    code, told = command(USER)
    assert (code, "is nowhere" in told) == (0, True)
    (home / "notes.txt").write_text(f"call {ITEM}")
    code, told = command("--item", ITEM)
    assert (code, "still somewhere" in told) == (1, True)
    with pytest.raises(NightcartError, match="one of the two"):
        CliRunner().invoke(app, ["forget"], catch_exceptions=False)
