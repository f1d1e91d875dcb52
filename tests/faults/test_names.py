"""Names and ids that look alike, or like something else, stay what they are."""

import pytest

from recsys_tasks import reading
from recsys_tasks.errors import ContractError
from tests.faults.shops import AS_OF, AT, HEAD, ITEMS, LOG, A, B, row, write_shop
from tests.ingested import ingested


def users(found):
    return [event["user_id"] for event in found.events]


def test_two_shops_of_one_lake_share_no_file_though_size_and_times_are_the_same(tmp_path, home, monkeypatch):
    monkeypatch.setattr(reading, "_stamp", lambda file: str(file.path.stat().st_size))
    shops = [write_shop(tmp_path / name, {"log/a.csv": HEAD + line}) for name, line in (("one", A), ("two", B))]
    assert [users(ingested(shop, AS_OF)) for shop in shops] == [["a"], ["b"]]


def test_a_shop_that_is_renamed_has_a_snapshot_of_its_own_and_reads_nothing_again(tmp_path, home):
    first = ingested(write_shop(tmp_path, {"log/a.csv": LOG}), AS_OF)
    read = set(first.lake.entries("read"))
    second = ingested(write_shop(tmp_path, {}, name="other"), AS_OF)
    assert first.id != second.id
    assert first.manifest["days"] == second.manifest["days"]
    assert set(second.lake.entries("read")) == read


def test_ids_that_look_alike_are_other_ids_and_blanks_around_one_are_none_of_it(tmp_path, home):
    ids = ["é", "e\u0301", "E\u0301", "A", "a", "\u00a0a", "а", "a ", "\ta", "01", "1", "1.0"]  # noqa: RUF001
    found = ingested(write_shop(tmp_path, {"log/a.csv": HEAD + b"".join(row(one, one) for one in ids)}), AS_OF)
    assert set(users(found)) == set(found.items) == {*ids} - {"a ", "\ta"}
    assert found.counts["duplicates"] == 2


def test_ids_reach_no_path(tmp_path, home):
    ids = ["../../../escaped", "/tmp/escaped", "a/b", "..", "date=2020-01-01", "con:", "*"]
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    shop = write_shop(tmp_path / "shop", {"log/a.csv": HEAD + b"".join(row(one, one) for one in ids)})
    assert set(ingested(shop, AS_OF).items) == {*ids}
    outside = {p for p in tmp_path.rglob("*") if home not in p.parents and p != home and shop.parent not in p.parents}
    assert outside - before == {shop.parent}
    assert not [path for path in home.rglob("*") if "escaped" in path.name]


def test_as_many_words_for_event_types_as_rows_are_so_many_bad_rows(tmp_path, home):
    lines = b"".join(row(n, "i1", AT, f"word{n}") for n in range(5_000))
    columns = {"user_id": "user", "item_id": "item", "timestamp": "at", "event_type": "n"}
    found = ingested(
        write_shop(tmp_path, {"log/a.csv": HEAD + lines + row("a", n="view")}, {"columns": columns}), AS_OF
    )
    assert users(found) == ["a"]
    assert found.counts["reasons"] == {"event_type": 5_000}


@pytest.mark.parametrize("as_of", ["1989-01-01T00:00:00+00:00", "0001-01-01T00:00:00+00:00"])
def test_a_night_before_1990_is_refused_with_when_the_log_begins(tmp_path, home, as_of):
    shop = write_shop(tmp_path, {"log/a.csv": HEAD + row("old", at="1980-01-01") + row("older", at="0001-01-01") + A})
    with pytest.raises(ContractError, match=r"shop\.yaml: an empty night"):
        ingested(shop, as_of)


def test_files_of_one_name_in_two_folders_and_in_log_and_catalogue_are_other_files(tmp_path, home):
    bad = row("")
    files = {"log/x/a.csv": HEAD + A + bad, "log/y/a.csv": HEAD + bad + B, "items.csv": ITEMS}
    found = ingested(write_shop(tmp_path, files), AS_OF)
    assert users(found) == ["a", "b"]
    assert [(row["file"], row["row"]) for row in found.quarantine] == [("x/a.csv", 2), ("y/a.csv", 1)]


def test_thirty_files_are_as_good_as_one(tmp_path, home):
    found = ingested(write_shop(tmp_path, {f"log/{n:03}.csv": HEAD + row(f"u{n:03}") for n in range(30)}), AS_OF)
    assert users(found) == [f"u{n:03}" for n in range(30)]
    one = b"".join(row(f"u{n:03}") for n in range(30))
    assert (
        ingested(write_shop(tmp_path / "one", {"log/a.csv": HEAD + one}), AS_OF).manifest["days"]
        == (found.manifest["days"])
    )
