"""An entry is absent or complete, and a pointer is old or new: never anything between."""

import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks import lake as lake_module
from recsys_tasks.errors import NothingInLake
from recsys_tasks.lake import CURRENT, MANIFEST, Lake, fingerprint, sha256, write_batches, write_table


@pytest.fixture
def lake(tmp_path):
    return Lake(tmp_path / "lake")


def files(lake):
    """Every file of the lake, drafts and hidden ones too."""
    return {str(path.relative_to(lake.root)): path.read_text() for path in lake.root.rglob("*") if path.is_file()}


def test_an_entry_is_absent_until_its_block_ends_and_complete_then(lake):
    manifest = {"made_from": "flour"}
    with lake.create("bread/1", manifest) as folder:
        (folder / "loaf.txt").write_text("crust")
        assert not lake.has("bread/1")
        assert not lake.path("bread/1").exists()
        assert lake.entries("bread") == []
        manifest["slices"] = 12  # the block may add what it found
    assert lake.has("bread/1")
    assert lake.manifest("bread/1") == {"made_from": "flour", "slices": 12}
    assert (lake.path("bread/1") / "loaf.txt").read_text() == "crust"
    assert lake.entries("bread") == ["bread/1"]
    assert set(files(lake)) == {"bread/1/loaf.txt", f"bread/1/{MANIFEST}"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing_behind(lake, error):
    with pytest.raises(error), lake.create("bread/1", {}) as folder:  # noqa: PT012
        (folder / "loaf.txt").write_text("half")
        raise error
    assert not lake.has("bread/1")
    assert not lake.path("bread/1").exists()
    assert files(lake) == {}


def test_a_manifest_that_is_not_json_leaves_nothing_behind(lake):
    with pytest.raises(TypeError), lake.create("bread/1", {"oven": object()}):
        pass
    assert not lake.has("bread/1")
    assert files(lake) == {}


def test_a_second_making_of_an_entry_is_harmless_and_the_first_stays(lake):
    for text in ("first", "second"):
        with lake.create("bread/1", {"text": text}) as folder:
            (folder / "loaf.txt").write_text(text)
    assert lake.manifest("bread/1") == {"text": "first"}
    assert (lake.path("bread/1") / "loaf.txt").read_text() == "first"
    assert len(files(lake)) == 2


def test_of_two_that_make_an_entry_at_once_the_first_to_end_stays(lake):
    with lake.create("bread/1", {"by": "slow"}) as slow:
        (slow / "a").write_text("slow")
        with lake.create("bread/1", {"by": "fast"}) as fast:
            (fast / "a").write_text("fast")
            assert slow != fast
    assert lake.manifest("bread/1") == {"by": "fast"}
    assert (lake.path("bread/1") / "a").read_text() == "fast"


def test_an_entry_may_lie_deep(lake):
    with lake.create("recommendations/home/version=1", {}):
        pass
    assert lake.has("recommendations/home/version=1")
    assert lake.entries("recommendations/home") == ["recommendations/home/version=1"]
    assert not lake.has("recommendations/home")


def test_an_entry_can_be_read_by_others_as_the_users_mask_allows(lake):
    with lake.create("bread/1", {}):
        pass
    assert lake.path("bread/1").stat().st_mode & 0o777 == 0o755


def test_a_missing_entry_is_named_with_the_step_it_comes_from(lake):
    with pytest.raises(NothingInLake) as error:
        lake.manifest("snapshots/20200101T000000-abc")
    assert str(lake.path("snapshots/20200101T000000-abc")) in str(error.value)
    assert "'snapshots'" in str(error.value)
    assert "run the step" in str(error.value)


def test_a_folder_without_a_manifest_is_no_entry(lake):
    lake.path("bread/1").mkdir(parents=True)
    assert not lake.has("bread/1")
    assert lake.entries("bread") == []
    with pytest.raises(NothingInLake):
        lake.manifest("bread/1")


def test_dropping_removes_an_entry_and_its_files_and_nothing_else(lake):
    for key in "12":
        with lake.create(f"bread/{key}", {}) as folder:
            (folder / "loaf.txt").write_text(key)
    lake.drop("bread/1")
    lake.drop("bread/never")
    assert lake.entries("bread") == ["bread/2"]
    assert set(files(lake)) == {"bread/2/loaf.txt", f"bread/2/{MANIFEST}"}


def test_an_entry_can_be_made_again_after_it_was_dropped(lake):
    for text in ("first", "second"):
        with lake.create("bread/1", {"text": text}):
            pass
        if text == "first":
            lake.drop("bread/1")
    assert lake.manifest("bread/1") == {"text": "second"}


def test_nothing_is_current_before_the_first_pointing(lake):
    assert lake.current("recommendations/home") is None


def test_pointing_replaces_the_pointer_by_one_rename(lake, monkeypatch):
    lake.point("recommendations/home", {"version": "1"})
    target = lake.root / "recommendations" / "home" / CURRENT
    reader = target.open()  # somebody who is in the middle of reading
    seen = []
    fsync = os.fsync

    def look(descriptor):
        seen.append(json.loads(target.read_text()))  # the new content is on disk, and readers still see the old
        fsync(descriptor)

    monkeypatch.setattr(lake_module.os, "fsync", look)
    lake.point("recommendations/home", {"version": "2"})
    assert seen == [{"version": "1"}]
    assert json.loads(reader.read()) == {"version": "1"}
    reader.close()
    assert lake.current("recommendations/home") == {"version": "2"}
    assert set(files(lake)) == {f"recommendations/home/{CURRENT}"}


def test_a_pointing_that_fails_leaves_the_old_pointer(lake):
    lake.point("recommendations/home", {"version": "1"})
    with pytest.raises(TypeError):
        lake.point("recommendations/home", {"version": object()})
    assert lake.current("recommendations/home") == {"version": "1"}


def test_a_file_named_by_its_content_is_added_once(lake):
    name, digest = lake.add_file("events/date=2020-01-01", b"first")
    assert name == f"events/date=2020-01-01/{digest[:16]}.parquet"
    before = (lake.root / name).stat()
    assert lake.add_file("events/date=2020-01-01", b"first") == (name, digest)
    other, _ = lake.add_file("events/date=2020-01-01", b"second")
    assert files(lake) == {name: "first", other: "second"}
    assert (lake.root / name).stat().st_mtime_ns == before.st_mtime_ns


def test_a_fingerprint_is_the_same_in_any_order_and_changes_with_any_input():
    inputs = {"shop": "corner", "files": {"a.csv": "1", "b.csv": "2"}, "k": 10}
    base = fingerprint(inputs)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert fingerprint({"k": 10, "files": {"b.csv": "2", "a.csv": "1"}, "shop": "corner"}) == base
    others = [
        {**inputs, "k": 11},
        {**inputs, "k": "10"},
        {**inputs, "files": {"a.csv": "1"}},
        {**inputs, "files": {"a.csv": "2", "b.csv": "1"}},
        {**inputs, "more": None},
    ]
    assert len({base, *map(fingerprint, others)}) == 6


def test_a_fingerprint_changes_with_the_code(monkeypatch):
    base = fingerprint({"k": 10})
    monkeypatch.setattr(lake_module, "code_fingerprint", lambda: "0" * 16)
    assert fingerprint({"k": 10}) != base


def test_the_fingerprint_of_the_code_is_that_of_every_source_file(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    for name, text in (("lake.py", "a"), ("models/ease.py", "b"), ("notes.txt", "c")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(lake_module, "__file__", str(tmp_path / "lake.py"))

    def found():
        return lake_module.code_fingerprint.__wrapped__()

    base = found()
    (tmp_path / "notes.txt").write_text("other")
    assert found() == base
    (tmp_path / "models" / "ease.py").write_text("other")
    changed = found()
    assert changed != base
    (tmp_path / "models" / "ease.py").rename(tmp_path / "models" / "knn.py")
    assert found() not in {base, changed}


def test_a_table_is_written_in_the_same_bytes_each_time_and_read_back_as_it_was(tmp_path):
    table = pa.table(
        {"id": ["a", "b", None], "score": [0.1, float("nan"), None], "tags": [["x"], [], None], "n": [1, 2, 3]}
    )
    table = table.replace_schema_metadata({"host": "this machine"})
    for name in ("one", "deep/two"):
        write_table(table, tmp_path / name)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "deep" / "two")
    found = pq.ParquetFile(tmp_path / "one").read()
    assert str(found.to_pydict()) == str(table.to_pydict())
    assert not found.schema.metadata


def test_what_nobody_used_for_days_is_dropped_and_what_was_used_stays(tmp_path):
    lake = Lake(tmp_path)
    for entry in ("models/old", "models/used", "models/new", "reports/old"):
        with lake.create(entry, {}):
            pass
    (tmp_path / ".drafts" / "left-by-a-kill").mkdir()
    long_ago = time.time() - 10 * 86_400
    for name in ("models/old", "models/used", "reports/old", ".drafts/left-by-a-kill"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert lake.has("models/used")
    assert lake.expire(["models"], days=7) == ["models/old"]
    assert lake.entries("models") == ["models/new", "models/used"]
    assert lake.entries("reports") == ["reports/old"]
    assert list((tmp_path / ".drafts").iterdir()) == []


def test_the_bytes_of_batches_do_not_tell_how_they_were_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(lake_module, "_GROUP_ROWS", 100)
    table = pa.table({"n": range(250), "word": [str(n) for n in range(250)]})
    for cut in (1, 30, 100, 250):
        batches = (table.slice(start, cut) for start in range(0, 250, cut))
        assert write_batches(batches, table.schema, tmp_path / f"{cut}.parquet") == 250
    assert len({sha256(path) for path in tmp_path.iterdir()}) == 1
    assert pq.ParquetFile(tmp_path / "1.parquet").num_row_groups == 3


@pytest.mark.parametrize("system", [None, object()], ids=["swaps names", "cannot swap names"])
def test_an_entry_is_rewritten_as_a_whole_or_not_at_all(tmp_path, monkeypatch, system):
    if system:
        monkeypatch.setattr("recsys_tasks.lake.ctypes.CDLL", lambda name: system)
    lake = Lake(tmp_path)
    with lake.create("kind/key", {"made": 1}) as folder:
        (folder / "part").write_text("old")
    with pytest.raises(FileNotFoundError), lake.rewrite("kind/key", {"made": 2}) as folder:
        (folder / "missing").read_text()
    assert (lake.path("kind/key") / "part").read_text() == "old"
    with lake.rewrite("kind/key", {"made": 2}) as folder:
        (folder / "part").write_text("new")
    assert (lake.path("kind/key") / "part").read_text() == "new"
    assert lake.manifest("kind/key") == {"made": 2}
    assert list(lake.drafts().iterdir()) == []
