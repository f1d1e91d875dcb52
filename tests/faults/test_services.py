"""What a night says, and leaves as it was, when a service is away, a disk is full or a published file was changed."""

import shutil
import subprocess
import time
from contextlib import suppress

import pytest

from recsys_tasks.errors import ContractError
from recsys_tasks.settings import Settings
from recsys_tasks.shop import load_shop
from recsys_tasks.versions import entry, roll_back
from tests.faults.nights import STEPS, Theatre, contents, readers_see, tracked
from tests.tiny_shop import AS_OF

AWAY = "127.0.0.1:1"
"""Nobody answers on this port."""


@pytest.fixture(scope="module")
def checked(evening):
    """Take tonight's steps before publication, and put the home aside as it is then; return what they gave."""
    theatre, ids = evening.ill, {}
    theatre.back_to("evening")
    for step in STEPS[: STEPS.index("publish")]:
        ids[step] = theatre.step(step, evening.night, ids)["result"]
    theatre.keep("checked")
    return ids


def test_a_night_without_mlflow_ends_before_it_began_and_says_what_to_do(evening):
    evening.ill.back_to("evening")
    away = {"NIGHTCART_MLFLOW_TRACKING_URI": f"http://night:secret@{AWAY}"}
    started = time.monotonic()
    found = evening.ill.step("plan", None, {"shop": evening.night.shop_file, "as_of": AS_OF}, environment=away)
    assert time.monotonic() - started < 60
    assert found["error"] == "TemporarilyUnavailable"
    assert f"MLflow at http://{AWAY} did not do as asked" in found["message"]
    assert "last version stays current. Check NIGHTCART_MLFLOW_TRACKING_URI" in found["message"]
    assert "secret" not in found["message"]
    assert set(readers_see(evening.ill.home)) == {evening.old}


def test_an_mlflow_that_was_away_while_models_were_trained_is_told_of_them_by_evaluate(evening, checked):
    theatre, ids = evening.ill, {}
    theatre.back_to("checked")
    expected = tracked(theatre.home)
    theatre.back_to("evening")
    for step in ("ingest", "embed"):
        ids[step] = theatre.step(step, evening.night, ids)["result"]
    before = tracked(theatre.home)
    away = {"NIGHTCART_MLFLOW_TRACKING_URI": f"http://{AWAY}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for step in ("train", "rank"):
        found = theatre.step(step, evening.night, ids, environment=away)
        assert (found["error"], AWAY in found["message"]) == ("TemporarilyUnavailable", True)
    assert tracked(theatre.home) == before
    assert theatre.step("evaluate", evening.night, ids)["result"] == checked["evaluate"]
    theatre.step("promote", evening.night, {**ids, "evaluate": checked["evaluate"]})
    assert tracked(theatre.home) == expected


def test_without_redis_the_last_version_stays_until_it_answers_again(evening, checked):
    theatre = evening.ill
    theatre.back_to("checked")
    found = theatre.step(
        "publish", evening.night, checked, environment={"NIGHTCART_REDIS_URL": f"redis://:secret@{AWAY}"}
    )
    assert found["error"] == "TemporarilyUnavailable"
    assert f"{AWAY} did not answer" in found["message"]
    assert "secret" not in found["message"]
    assert set(readers_see(theatre.home)) == {evening.old}
    version = theatre.step("publish", evening.night, checked)["result"]
    assert set(readers_see(theatre.home)) == {version}


def test_a_published_file_that_was_changed_is_not_rolled_back_to_and_is_made_anew(evening, checked, monkeypatch):
    theatre, shop = evening.ill, load_shop(evening.night.shop_file, Settings().shops)
    theatre.back_to("checked")
    version = theatre.step("publish", evening.night, checked)["result"]
    whole = contents(theatre.home)
    monkeypatch.setenv("NIGHTCART_HOME", str(theatre.home))
    roll_back(theatre.lake, shop, evening.old)
    file = theatre.lake.path(entry("discover", version)) / "part-0001.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ContractError, match=r"is not what was published: .*part-0001\.parquet has another SHA"):
        roll_back(theatre.lake, shop, version)
    assert set(readers_see(theatre.home)) == {evening.old}
    assert theatre.step("publish", evening.night, checked)["result"] == version
    assert set(readers_see(theatre.home)) == {version}
    found = contents(theatre.home)
    assert {name for name in found if found[name] != whole.get(name)} == {"recommendations/ledger.jsonl"}


@pytest.fixture
def disk(tmp_path):
    """Give a function that makes a small disk of so many KB, or makes it larger; skip where that is forbidden."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"]), "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk here")
        return folder

    yield size
    with suppress(FileNotFoundError):
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("room", [150, 700])
def test_on_a_disk_that_is_really_full_the_night_stops_and_goes_on_when_there_is_room(
    evening, checked, disk, room, tmp_path
):
    home = evening.ill.folder / "evening"
    used = sum(-(-file.stat().st_size // 4096) * 4 for file in home.rglob("*") if file.is_file())
    folder = disk(used + room)
    theatre = Theatre(folder, tmp_path / "scratch")
    shutil.copytree(home, theatre.home)
    ids, failed = {}, None
    try:
        for step in STEPS:
            found = theatre.step(step, evening.night, ids)
            if "error" in found:
                failed = found
                assert found["error"] == "TemporarilyUnavailable", found
                assert "is full" in found["message"], found
                disk(used + 60_000, "remount")
                assert len(set(readers_see(theatre.home))) == 1
                found = theatre.step(step, evening.night, ids)
            assert step in ("check", "publish", "report") or found["result"] == checked[step]
            ids[step] = found["result"]
        assert failed
        assert set(readers_see(theatre.home)) == {ids["publish"]}
    finally:
        theatre.end()
