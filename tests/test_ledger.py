"""What the ledger tells of which version served when, with retries, kills and two processes; on a real Valkey."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from unittest.mock import patch

import pytest

from recsys_tasks import ledger
from recsys_tasks.contract import PLACEMENTS
from recsys_tasks.errors import NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.night import plan
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from recsys_tasks.shop import load_shop
from recsys_tasks.versions import activate, entry, placements_of, roll_back, versions


@pytest.fixture
def shop(home, tiny_shop):
    return load_shop(str(tiny_shop), Settings().shops)


@pytest.fixture
def lake(shop):
    """A lake with three versions that nobody made current yet."""
    lake = Lake(Settings().lake)
    for version in ("v1", "v2", "v3"):
        champions = {"home": {"recipe": "ease", "model": f"models/ease-{version}", "reason": f"best in {version}"}}
        for placement in PLACEMENTS:
            with lake.create(entry(placement, version), {"as_of": AS_OF, "champions": champions, "files": []}):
                pass
    return lake


AS_OF = "2011-04-12T00:00:00+00:00"


def told(lake):
    return [line["version"] for line in ledger.lines(lake)]


def written(lake):
    return [json.loads(line)["version"] for line in (lake.root / ledger.LEDGER).read_text().splitlines()]


def test_a_version_of_fewer_placements_can_be_rolled_back_to_and_nobody_reads_another_beside_it(lake, shop):
    first = ("home", "discover", "similar")  # all there were before manifests told
    for placement in set(PLACEMENTS) - set(first):
        lake.drop(entry(placement, "v1"))
    activate(lake, shop, "v1", "night of one")
    activate(lake, shop, "v2", "night of two")
    assert lake.current("recommendations/trending")["version"] == "v2"
    roll_back(lake, shop, "v1")
    assert placements_of(lake, "v1") == list(first)
    pointed = {placement for placement in PLACEMENTS if lake.current(f"recommendations/{placement}")}
    assert pointed == set(first)
    assert ledger.served(lake, "tiny")[-1]["version"] == "v1"
    roll_back(lake, shop, "v2")
    assert {lake.current(f"recommendations/{placement}")["version"] for placement in PLACEMENTS} == {"v2"}


def test_a_placement_that_the_manifest_tells_of_must_be_there(lake, shop):
    made = {"as_of": AS_OF, "champions": {}, "files": [], "placements": ["home", "trending"]}
    with lake.create(entry("home", "v4"), made):
        pass
    with pytest.raises(NothingInLake, match="v4 of trending is not in the lake"):
        activate(lake, shop, "v4", "night of four")


def test_an_empty_lake_has_served_nothing(tmp_path):
    assert ledger.lines(Lake(tmp_path)) == ledger.served(Lake(tmp_path), "tiny") == []


def test_a_roll_back_closes_an_interval_and_opens_another(lake, shop):
    activate(lake, shop, "v1", "night of one")
    activate(lake, shop, "v2", "night of two, ease forced", "ada")
    activate(lake, shop, "v1", "rolled back", "grace")
    first, second, third = ledger.served(lake, "tiny")
    assert [line["version"] for line in (first, second, third)] == ["v1", "v2", "v1"]
    assert (first["to"], second["to"], third["to"]) == (second["from"], third["from"], None)
    assert [(line["reason"], line["by"]) for line in (first, second, third)] == [
        ("night of one", None),
        ("night of two, ease forced", "ada"),
        ("rolled back", "grace"),
    ]
    assert second["champions"]["home"] == {"recipe": "ease", "model": "models/ease-v2", "reason": "best in v2"}
    assert second["as_of"] == AS_OF
    assert versions(lake, shop) == ["v2", "v1"]
    assert ledger.served(lake, "another shop") == []


def test_a_retry_adds_nothing_and_changes_no_word(lake, shop):
    activate(lake, shop, "v1", "night of one", "ada")
    before = (lake.root / ledger.LEDGER).read_bytes(), lake.current(ledger.POINTER)
    activate(lake, shop, "v1", "a retry", "somebody else")
    assert ((lake.root / ledger.LEDGER).read_bytes(), lake.current(ledger.POINTER)) == before


def test_killed_between_pointer_and_ledger_the_line_is_told_at_once_and_written_next_time(lake, shop):
    activate(lake, shop, "v1", "night of one")
    with patch.object(ledger, "_note", side_effect=[None, InterruptedError]), pytest.raises(InterruptedError):
        activate(lake, shop, "v2", "night of two", "ada")
    assert (written(lake), told(lake)) == (["v1"], ["v1", "v2"])
    moved = ledger.lines(lake)[-1]
    activate(lake, shop, "v3", "night of three")
    assert written(lake) == told(lake) == ["v1", "v2", "v3"]
    assert ledger.lines(lake)[1] == moved
    assert (moved["reason"], moved["by"]) == ("night of two", "ada")


def test_half_a_line_of_a_killed_process_is_written_again_whole(lake, shop):
    activate(lake, shop, "v1", "night of one")
    activate(lake, shop, "v2", "night of two")
    path = lake.root / ledger.LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert told(lake) == ["v1", "v2"]
    activate(lake, shop, "v2", "night of two")
    assert path.read_bytes() == whole


def test_lines_of_before_there_were_champions_in_them_are_read(lake, shop):
    old = {"at": "2011-04-01T00:00:00+00:00", "shop": "tiny", "version": "v1", "reason": "night of one"}
    lake.point(ledger.POINTER, {"shop": "tiny", "version": "v1"})
    (lake.root / ledger.LEDGER).write_text(json.dumps(old) + "\n")
    activate(lake, shop, "v2", "night of two")
    first, second = ledger.served(lake, "tiny")
    assert (first["champions"], first["as_of"], first["to"]) == ({}, None, second["from"])


def test_a_published_night_tells_what_was_forced_and_who_asked(tiny_night, monkeypatch):
    home, shop_file, ids = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    night = plan(str(shop_file), AS_OF, datetime.now(UTC), force_promote="ease", asked_by="ada")
    with patch("recsys_tasks.publish.activate") as activated:
        version = publish(night, ids["recommend"], ids["promote"], ids["evaluate"], ids["ingest"])
    assert version == ids["publish"]
    assert activated.call_args.args[2:] == (version, "published, ease forced", "ada")


TURNS = """
import sys
from pathlib import Path
from recsys_tasks import ledger
from recsys_tasks.lake import Lake

lake = Lake(Path(sys.argv[1]))
for n in range(50):
    with ledger.moving(lake):
        lake.point(ledger.POINTER, {"shop": "tiny", "version": f"{sys.argv[2]}{n}", "at": "", "reason": ""})
"""


def test_two_processes_lose_no_line(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", TURNS, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = told(Lake(tmp_path))
    assert len(found) == 100
    assert [version for version in found if version[0] == "a"] == [f"a{n}" for n in range(50)]


def test_a_move_that_was_cut_after_the_first_pointer_is_noted_and_goes_on(lake, shop):
    activate(lake, shop, "v1", "night of one")
    point, moved = Lake.point, []

    def once(self, folder, content):
        if moved:
            raise InterruptedError
        moved.append(folder)
        point(self, folder, content)

    with patch.object(Lake, "point", once), pytest.raises(InterruptedError):
        activate(lake, shop, "v2", "night of two")
    activate(lake, shop, "v2", "night of two")
    assert written(lake) == ["v1", "v2"]
    assert {lake.current(f"recommendations/{placement}")["version"] for placement in PLACEMENTS} == {"v2"}
