"""Readers see one whole version, whoever is killed in the midst of publication; the next try finishes the job."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from recsys_tasks.contract import PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.night import Night
from recsys_tasks.online_store import open_store
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from recsys_tasks.versions import current, read_lists
from tests.conftest import ROOT

BLOCKED_AT = {
    "a file of the version is being copied": "recsys_tasks.publish._copied",
    "a placement of the version is complete": "recsys_tasks.publish.activate",
    "lists are being loaded into Redis": "recsys_tasks.online_store.OnlineStore.load",
    "all lists are in Redis": "recsys_tasks.online_store.OnlineStore.seal",
    "the pointers are about to move": "recsys_tasks.versions.flip",
}

BLOCK = """
import pathlib, sys, time
from unittest.mock import patch
from tests.e2e.test_kill import publish_lists

def stop_here(*args, **kwargs):
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)

with patch(sys.argv[1], stop_here):
    publish_lists("new")
"""


def publish_lists(word):
    """Publish a version in which everybody's only item is called ``word``."""
    lake = Lake(Settings().lake)
    night = Night(
        shop_file=os.environ["TINY_SHOP"], as_of="2020-01-01T00:00:00+00:00", k=1, recipes=["popular"], shards=[0]
    )
    for entry, files in {
        f"lists/0000-{word}": [f"{placement}.parquet" for placement in PLACEMENTS],
        f"champions/{word}": [],
        "evaluations/one": [],
    }.items():
        if not lake.has(entry):
            with lake.create(entry, {"champions": {}}) as folder:
                (folder / "leaderboard.json").write_text('{"rows": []}')
                for name in files:
                    row = ["u", 1, word, 1.0, "cold", "popular", "Popular right now", None]
                    write_table(pa.table([[value] for value in row], schema=RECOMMENDATIONS), folder / name)
    return publish(night, [f"lists/0000-{word}"], f"champions/{word}", "evaluations/one", "snapshots/none")


def seen_by_readers():
    """What every placement says, in Parquet and in Redis; exactly one word when nothing is mixed."""
    lake = Lake(Settings().lake)
    version = current(lake)["version"]
    with open_store(Settings(), "tiny") as store:
        assert store.current() == version
        words = {store.get(placement, "u")[0] for placement in PLACEMENTS}
    for placement in PLACEMENTS:
        pointer = json.loads((lake.root / "recommendations" / placement / "_CURRENT.json").read_text())
        assert pointer["version"] == version
        words |= {items[0] for _, items in read_lists(lake, placement, version)}
    return words


@pytest.mark.parametrize("place", BLOCKED_AT)
def test_killed_while(place, home, tiny_shop, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_SHOP", str(tiny_shop))
    publish_lists("old")
    reached = tmp_path / "reached"
    with subprocess.Popen([sys.executable, "-c", BLOCK, BLOCKED_AT[place], str(reached)], cwd=ROOT) as process:
        waited = time.monotonic()
        while not reached.exists():
            assert process.poll() is None, "the publication ended before it reached the place"
            assert time.monotonic() - waited < 60
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert seen_by_readers() == {"old"}
    publish_lists("new")
    assert seen_by_readers() == {"new"}


def test_a_reader_who_never_rests_sees_one_whole_version_all_through_twenty_publications(home, tiny_shop, monkeypatch):
    monkeypatch.setenv("TINY_SHOP", str(tiny_shop))
    publish_lists("0")
    lake, over = Lake(Settings().lake), threading.Event()

    def in_redis(store):
        version = store.current()
        found = store.client.mget([f"{store.prefix}:{version}:{placement}:u" for placement in PLACEMENTS])
        return {json.loads(items)[0] for items in found}

    def in_parquet(_):
        version = current(lake)["version"]
        return {items[0] for placement in PLACEMENTS for _, items in read_lists(lake, placement, version)}

    def hammer(look, store):
        seen = []
        while not over.is_set():
            seen.append(look(store))
        return [*seen, look(store)]

    with open_store(Settings(), "tiny") as store, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(hammer, look, store) for look in (in_redis, in_parquet)]
        try:
            for night in range(1, 21):
                publish_lists(str(night))
        finally:
            over.set()
        for reader in readers:
            seen = reader.result()
            assert {len(words) for words in seen} == {1}
            nights = [int(word) for words in seen for word in words]
            assert nights == sorted(nights)
            assert nights[-1] == 20
            assert len(set(nights)) > 5
