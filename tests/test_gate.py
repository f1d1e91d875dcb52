"""The gate in a night: what evaluate shows it, what promote and the report keep of it, and who may overrule it."""

import getpass
import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from recsys_tasks.cli import app, run_night
from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.night import Night, plan
from recsys_tasks.promote import promote, proposal, recomputed
from recsys_tasks.recipe import Recipe
from tests.tiny_shop import AS_OF

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def again(tiny_night, monkeypatch):
    """A function that plans the tiny shop's night once more, now with champions in office, as a dry run."""
    home, shop, _ = tiny_night
    monkeypatch.setenv("NIGHTCART_HOME", str(home))

    def planned(**more):
        return plan(str(shop), AS_OF, NOW, **{"publish": False, **more})

    return planned


def leaderboard(night, ids):
    return json.loads((night.lake.path(ids["evaluate"]) / "leaderboard.json").read_text())


def test_a_first_night_has_nobody_to_compare_with(tiny_night, again):
    _, _, ids = tiny_night
    night = again()
    assert leaderboard(night, ids)["champions"] == {}
    assert all(row["over_champion"] == {} for row in leaderboard(night, ids)["rows"])
    assert night.lake.manifest(ids["promote"])["decisions"]["home"]["challengers"] == []


def test_who_is_in_office_is_settled_once(again):
    night = again()
    assert night.champions == {placement: recipe.text for placement, recipe in night.tracking.champions().items()}
    assert set(night.champions) == {"home", "discover"}
    assert Night(**json.loads(json.dumps(night.to_dict()))) == night


def test_every_row_tells_its_difference_from_the_champions(again):
    night = again()
    board = leaderboard(night, run_night(night, "evaluate"))
    assert board["champions"] == night.champions
    ndcg = {(row["recipe"], row["view"], row["tier"]): row["metrics"]["ndcg@10"] for row in board["rows"]}
    assert {tier for _, _, tier in ndcg} >= {"everyone", "loyal", "warm", "cold"}
    for row in board["rows"]:
        others = {placement: recipe for placement, recipe in night.champions.items() if recipe != row["recipe"]}
        assert {p: found["champion"] for p, found in row["over_champion"].items()} == others
        for placement, found in row["over_champion"].items():
            beside = ndcg[night.champions[placement], row["view"], row["tier"]]
            assert found["value"] == pytest.approx(row["metrics"]["ndcg@10"] - beside)
            (lowest, highest), (low, high) = found["corrected"], found["interval"]
            assert lowest <= low <= high <= highest
            assert found["tries"] == 3


def test_the_decision_can_be_made_again_from_the_manifest(again):
    night = again()
    made = json.loads(json.dumps(night.lake.manifest(run_night(night, "promote")["promote"])))
    for placement, record in made["decisions"].items():
        decision = recomputed(record, placement)
        won = made["champions"][placement]
        assert (
            (decision.recipe, decision.reason) == (won["recipe"], won["reason"]) == (record["recipe"], record["reason"])
        )
        assert decision.champion == night.champions[placement]
        assert [one.recipe for one in decision.challengers] == [one["recipe"] for one in record["challengers"]]
        assert len(decision.challengers) == 3
        assert {check["name"] for check in record["challengers"][0]["checks"]} >= {"better", "tiers", "coverage"}


def test_evidence_that_says_otherwise_decides_otherwise(again):
    night = again()
    record = night.lake.manifest(run_night(night, "promote")["promote"])["decisions"]["home"]
    assert not record["moved"]
    other = record["challengers"][0]["recipe"]
    for row in record["evidence"]:
        if row["recipe"] == other:
            row["over_champion"]["home"] |= {"interval": [0.1, 0.2], "corrected": [0.1, 0.2]}
            row["interval"] = {"ndcg@10 over popular": [0.1, 0.2]}
            row |= {"beyond_accuracy": {"catalog_coverage@10": 1.0}} if row["tier"] == "everyone" else {}
    assert recomputed(record, "home").recipe == other


def test_a_held_champion_stays_and_the_report_says_who_held_it(again):
    night = again(hold=True, asked_by="ada")
    ids = run_night(night)
    report = json.loads((night.lake.path(ids["report"]) / "report.json").read_text())
    assert (report["hold"], report["asked_by"]) == (True, "ada")
    for placement, champion in night.champions.items():
        assert report["champions"][placement]["recipe"] == champion
        assert "held by ada" in report["champions"][placement]["reason"]
        assert report["decisions"][placement]["asked"]["keep"] == "held by ada"
    assert "The champions were held" in (night.lake.path(ids["report"]) / "report.html").read_text()


def test_the_command_line_can_hold(again, tiny_night):
    home, shop, _ = tiny_night
    words = ["--home", str(home), "--quiet", "promote", "--shop", str(shop), "--as-of", AS_OF, "--no-publish", "--hold"]
    told = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    record = again().lake.manifest(json.loads(told.stdout)["promote"])["decisions"]["home"]
    assert record["asked"]["keep"] == f"held by {getpass.getuser()}"


def test_hold_and_force_promote_exclude_each_other(again):
    with pytest.raises(ContractError, match="'ease' cannot become champion while the champions are held; give one"):
        again(hold=True, force_promote="ease")


def forced(again, **more):
    """A night that would move both champions, up to its evaluation."""
    in_office = {Recipe(text).model for text in again().champions.values()}
    night = again(force_promote=min({"popular", "repeat", "ease"} - in_office), asked_by="ada", **more)
    return night, run_night(night, "evaluate")


def test_a_proposal_tells_who_would_take_over_and_none_is_made_where_none_moves(again):
    night, ids = forced(again, publish=True)
    said = proposal(night, ids["evaluate"])
    assert f"**home**: {night.force_promote} forced by ada" in said
    assert "**discover**" in said
    dry, ids = forced(again)
    assert proposal(dry, ids["evaluate"]) is None, "a dry run moves no champion, so there is nothing to approve"
    held = again(hold=True, publish=True)
    assert proposal(held, run_night(held, "evaluate")["evaluate"]) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"approved": False, "by": "grace"}, "grace rejected the change"),
        ({"approved": False, "by": None}, "nobody approved the change in time"),
    ],
)
def test_without_approval_the_champion_in_office_stays(again, answer, told):
    night, ids = forced(again)
    made = night.lake.manifest(promote(night, ids["evaluate"], ids["ingest"], ids["embed"], answer))
    for placement, champion in night.champions.items():
        assert made["champions"][placement]["recipe"] == champion
        assert told in made["champions"][placement]["reason"]
        assert recomputed(made["decisions"][placement], placement).reason == made["champions"][placement]["reason"]


def test_with_approval_the_other_serves_and_the_reason_names_who_approved(again):
    night, ids = forced(again)
    answer = {"approved": True, "by": "grace"}
    made = night.lake.manifest(promote(night, ids["evaluate"], ids["ingest"], ids["embed"], answer))
    assert Recipe(made["champions"]["home"]["recipe"]).model == night.force_promote
    assert made["champions"]["home"]["reason"].endswith("; approved by grace")


def test_a_champion_that_cannot_be_kept_stops_the_night(again):
    night = again(hold=True)
    night.champions["home"] = "vaecf"
    ids = run_night(night, "evaluate")
    with pytest.raises(TrainingError, match=r"home: vaecf is to stay .* but was not trained tonight"):
        promote(night, ids["evaluate"], ids["ingest"], ids["embed"])


def test_the_same_night_with_its_own_champions_in_office_makes_nothing_new(again, tiny_night):
    _, _, ids = tiny_night
    second = run_night(again())
    assert second["promote"] != ids["promote"], "the decision is another: they stay"
    assert (second["publish_index"], second["recommend"]) == (ids["publish_index"], ids["recommend"])
