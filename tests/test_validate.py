"""``nightcart validate`` says what a night would think of the shop's files, and imports nothing."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from recsys_tasks.cli import app

HEAD = "user,item,at,n\n"
COLUMNS = {"user_id": "user", "item_id": "item", "timestamp": "at", "value": "n"}


@pytest.fixture
def validate(tmp_path, home):
    """A function that validates a shop of these files, given by name: (exit code, what was said)."""

    def run(files, *options, items=None, as_of="2020-02-01T00:00:00Z"):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        source = {"format": "tabular", "events": {"path": "log", "columns": COLUMNS}}
        source |= {"items": items} if items else {}
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"name": "corner", "time_zone": "UTC", "source": source}))
        result = CliRunner().invoke(app, ["validate", str(tmp_path / "shop.yaml"), "--as-of", as_of, *options])
        assert not (home / "lake").exists()
        return result.exit_code, result.stdout

    return run


def test_a_clean_shop_is_told_what_it_holds(validate):
    code, said = validate({"log/a.csv": HEAD + "u1,i1,2020-01-05T10:00:00Z,1\nu2,i1,2020-01-06T10:00:00Z,2\n"})
    assert code == 0
    assert "events: 2 rows read = 2 kept + 0 quarantined + 0 duplicates" in said
    assert "2 purchase; 2 customers, 1 items, 2020-01-05T10:00:00+00:00 to 2020-01-06T10:00:00+00:00" in said
    assert "A night can be made of this" in said


def test_faults_of_one_kind_are_one_line_with_their_number_and_the_first_row(validate):
    good = "u1,i1,2020-01-05T10:00:00Z,1\n"
    files = {
        "log/a.csv": HEAD + good + "u1,i1,yesterday,1\n" + "u1,i1,'t is late,1\n",
        "log/b.csv": HEAD + ",i1,2020-01-05T10:00:00Z,1\n" + good + "broken\n",
    }
    code, said = validate(files, "--json")
    found = json.loads(said)
    assert code == 0
    assert [(f["field"], f["rows"], f["file"], f["row"]) for f in found["faults"]] == [
        ("timestamp", 2, "a.csv", 2),
        ("line", 1, "b.csv", 3),
        ("user_id", 1, "b.csv", 1),
    ]
    assert "expected ISO 8601" in found["faults"][0]["reason"]
    assert "67% of the rows of events are in quarantine" in found["warnings"][0]


def test_strict_fails_on_a_bad_row(validate):
    files = {"log/a.csv": HEAD + "u1,i1,2020-01-05T10:00:00Z,1\n,i1,2020-01-05T10:00:00Z,1\n"}
    assert validate(files)[0] == 0
    assert validate(files, "--strict")[0] == 1


def test_every_file_that_cannot_be_read_is_named_at_once(validate):
    files = {
        "log/a.csv": "who,item,at,n\nu1,i1,2020-01-05T10:00:00Z,1\n",
        "log/b.csv": HEAD + "u1,i1,2020-01-05T10:00:00Z,1\n",
        "log/c.csv.gz": b"no gz",
    }
    code, said = validate(files, "--json")
    errors = json.loads(said)["errors"]
    assert code == 1
    assert [any(name in error for error in errors) for name in ("a.csv", "b.csv", "c.csv.gz")] == [True, False, True]


def test_a_catalogue_and_a_log_that_are_not_there_are_told_at_once(validate):
    code, said = validate({}, "--json", items={"path": "items.csv", "columns": {"item_id": "sku"}})
    assert code == 1
    assert ["log: no file" in said, "items.csv: no file" in said] == [True, True]


def test_an_empty_night_is_an_error(validate):
    code, said = validate({"log/a.csv": HEAD + "u1,i1,2020-03-05T10:00:00Z,1\n"})
    assert code == 1
    assert "stops the night:" in said
    assert "the log begins at 2020-03-05" in said.replace("\n", " ")


def test_a_stale_catalogue_and_a_thin_week_are_warned_about(validate):
    rows = [f"u{n},i1,2020-01-{day:02d}T10:00:00Z,1\n" for day in range(1, 23) for n in range(5)]
    rows += [f"u{n},i1,2019-12-{day:02d}T10:00:00Z,1\n" for day in range(10, 32) for n in range(5)]
    items = {"path": "items.csv", "columns": {"item_id": "sku", "updated_at": "at"}}
    files = {"log/a.csv": HEAD + "".join(rows), "items.csv": "sku,at\ni1,2019-11-01T00:00:00Z\n"}
    code, said = validate(files, "--json", items=items)
    warnings = json.loads(said)["warnings"]
    assert code == 0
    assert "the 7 days before as_of hold 0 events, a week of the 4 before 35; expected 0.5 to 2" in warnings[0]
    assert "updated 92 days before as_of; expected at most 30" in warnings[1]
