"""The command line, on a published night of the tiny shop."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys_tasks.cli import STEPS, _print_list, app
from recsys_tasks.errors import NothingInLake


@pytest.fixture
def ask(tiny_night, monkeypatch):
    """Run a command in the home of the tiny night and return what it says."""
    home, shop, _ = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))

    def run(*words):
        told = CliRunner().invoke(app, [word.replace("SHOP", str(shop)) for word in words], catch_exceptions=False)
        assert told.exit_code == 0, told.output
        return told.stdout

    return run


def test_every_step_has_a_command():
    assert len(STEPS) == 10
    told = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f" {step.replace('_', '-')} " in told for step in STEPS)


def test_recommend_shows_titles_and_reasons_and_that_redis_agrees(ask, tiny_night):
    told = json.loads(ask("recommend", "__anonymous__", "--json"))
    assert told["redis_agrees"] is True
    assert len(told["items"]) == 10
    popular = ("Popular", "From our range", "More and more")
    assert all(row["title"] and row["reason"].startswith(popular) for row in told["items"])
    assert "Redis holds the same list" in ask("recommend", "__anonymous__", "--placement", "discover", "--k", "3")


def test_similar_leaves_the_item_itself_out(ask):
    item = json.loads(ask("recommend", "__anonymous__", "--json"))["items"][0]["item_id"]
    told = json.loads(ask("similar", item, "--json"))
    assert item not in [row["item_id"] for row in told["items"]]
    assert all(row["reason"].startswith("Similar to ") for row in told["items"])


def test_the_leaderboard_has_both_views_and_all_tiers(ask):
    rows = json.loads(ask("leaderboard", "--json"))
    assert {row["view"] for row in rows} == {"all", "discovery"}
    assert {"everyone", "loyal", "warm", "cold"} <= {row["tier"] for row in rows}
    assert {row["recipe"] for row in rows} == {"popular", "repeat", "item_knn", "ease"}
    assert all(
        row["interval"]["ndcg@10"][0] <= row["metrics"]["ndcg@10"] <= row["interval"]["ndcg@10"][1] for row in rows
    )


def test_the_report_accounts_for_every_row(ask):
    told = ask("report")
    assert "rows read = " in told
    assert "published version" in told
    (page,) = [line.removeprefix("as a page: ") for line in told.splitlines() if line.startswith("as a page: ")]
    assert "Published" in Path(page).read_text()


def test_an_earlier_night_can_be_published_and_rolled_back(ask):
    now = json.loads(ask("versions", "--shop", "SHOP", "--json"))["current"]
    earlier = json.loads(ask("publish", "--shop", "SHOP", "--as-of", "2011-04-11T00:00:00Z", "--json"))["publish"]
    found = json.loads(ask("versions", "--shop", "SHOP", "--json"))
    assert (found["versions"], found["current"]) == ([now, earlier], earlier)
    ask("rollback", now, "--shop", "SHOP")
    served = json.loads(ask("versions", "--shop", "SHOP", "--json"))["served"]
    assert [(line["version"], line["reason"]) for line in served] == [
        (now, "published"),
        (earlier, "published"),
        (now, "rolled back"),
    ]
    assert all(line["champions"]["home"]["reason"] and line["by"] for line in served[1:])
    table = ask("versions", "--shop", "SHOP")
    assert all(word in table for word in ("current", "kept", "rolled back", now, earlier, "home: repeat, best ndcg@10"))
    assert json.loads(ask("recommend", "__anonymous__", "--json")) | {"items": 0} == {
        "version": now,
        "placement": "home",
        "redis_agrees": True,
        "items": 0,
    }


def test_rolling_back_to_nothing_is_an_error(ask):
    with pytest.raises(NothingInLake, match="is not in the lake; there are"):
        ask("rollback", "20010101T000000Z-00000000", "--shop", "SHOP")


def test_an_unknown_customer_is_an_error(ask):
    with pytest.raises(NothingInLake, match="'nobody' has no list"):
        ask("recommend", "nobody")


def test_a_mistake_is_told_in_a_message_and_not_in_a_traceback(tmp_path):
    command = [str(Path(sys.executable).with_name("nightcart")), "--home", str(tmp_path), "run", "--as-of"]
    told = subprocess.run([*command, "2017-12-04T00:00:00"], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "has no time zone; write 2017-12-04T00:00:00Z for UTC" in told.stderr.replace("\n", " ")
    assert "Traceback" not in told.stderr


def test_signs_of_markup_in_a_title_are_shown_as_they_are(capsys):
    row = {"rank": 1, "item_id": "[/i1]", "source": "popular", "reason": "Popular"}
    _print_list("home of [/u1]", [row], {"[/i1]": "Tea [bold] [/]"})
    told = capsys.readouterr().out
    assert all(part in told for part in ("home of [/u1]", "[/i1]", "Tea [bold] [/]"))
