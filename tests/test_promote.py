"""The gate is one pure function: every row of the tables below is a morning somebody could have."""

import numpy as np
import pytest

from recsys_tasks.errors import TrainingError
from recsys_tasks.metrics import paired
from recsys_tasks.promote import choose_champion, evidence
from recsys_tasks.shop import Gate


def row(recipe, score, tier="everyone", over_popular=(0.0, 0.1), view="all", **more):
    """A row of the leaderboard; beside a champion with ``over``, the interval of the difference (and the wider one)."""
    over, wider = more.pop("over", None), more.pop("wider", None)
    if over:
        ends = {"interval": list(over), "corrected": list(wider or over)}
        more["over_champion"] = {"home": {"champion": "ease", "tries": 4, "value": sum(over) / 2, **ends}}
    return {
        "recipe": recipe,
        "view": view,
        "tier": tier,
        "users": 100,
        "metrics": {"ndcg@10": score},
        "interval": {"ndcg@10 over popular": list(over_popular)},
        "beyond_accuracy": {"catalog_coverage@10": 0.1},
        "seconds": 60.0,
        **more,
    }


def gated(score, passed):
    return {**row("transformer_dqn", score), "gate": {"passed": passed, "reason": "refused: no gain"}}


POPULAR = row("popular", 0.1, over_popular=(0, 0))

WITHOUT_A_CHAMPION = {
    "the best serves": ([POPULAR, row("ease", 0.3), row("repeat", 0.2)], None, None, "ease"),
    "worse than popular in a tier may not serve": (
        [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, -0.1)), row("repeat", 0.2)],
        None,
        None,
        "repeat",
    ),
    "a tier that may be worse by chance does not count": (
        [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, 0.01)), row("repeat", 0.2)],
        None,
        None,
        "ease",
    ),
    "a champion that fell below popular goes": (
        [
            row("popular", 0.1, over_popular=(0, 0), over=(0.04, 0.06)),
            row("popular", 0.1, view="discovery", over=(0.04, 0.06)),
            row("ease", 0.05, over_popular=(-0.06, -0.04)),
        ],
        "ease",
        None,
        "popular",
    ),
    "a champion that failed to train goes": ([POPULAR, row("repeat", 0.2)], "ease", None, "repeat"),
    "not a number never serves": ([POPULAR, row("ease", float("nan"))], None, None, "popular"),
    "what takes longer than the shop allows does not serve": (
        [POPULAR, row("ease", 0.3, seconds=20_000)],
        None,
        None,
        "popular",
    ),
    "a person may force a weaker one": ([POPULAR, row("ease", 0.3)], None, "popular", "popular"),
    "an agent that passed its gate serves": (
        [row("ranker", 0.3), gated(0.31, passed=True)],
        None,
        None,
        "transformer_dqn",
    ),
    "an agent that its gate refused leaves the lists as they are": (
        [row("ranker", 0.3), gated(0.4, passed=False)],
        None,
        None,
        "ranker",
    ),
    "the other view does not count": ([POPULAR, row("ease", 0.9, view="discovery")], None, None, "popular"),
}


@pytest.mark.parametrize("morning", WITHOUT_A_CHAMPION)
def test_without_a_champion_that_may_go_on_the_best_serves(morning):
    rows, champion, force, expected = WITHOUT_A_CHAMPION[morning]
    decision = choose_champion(rows, "home", champion, force=force)
    assert (decision.recipe, decision.moved) == (expected, True)
    assert decision.reason


def beside_ease(over=(0.01, 0.05), wider=None, tier=(-0.1, 0.1), discovery=(-0.01, 0.01), **more):
    """Ease in office, and a challenger that is better beside it unless told otherwise."""
    champion = [row("ease", 0.3), row("ease", 0.3, "cold"), row("ease", 0.1, view="discovery")]
    return [
        *champion,
        row("sasrec", 0.33, over=over, wider=wider, **more),
        row("sasrec", 0.33, "cold", over=tier),
        row("sasrec", 0.1, view="discovery", over=discovery),
    ]


BESIDE_A_CHAMPION = {
    "a better one takes over": (beside_ease(), {}, "sasrec", None),
    "a worse one does not": (beside_ease(over=(-0.05, -0.01)), {}, "ease", "better"),
    "a tie keeps the champion": (beside_ease(over=(-0.01, 0.05)), {}, "ease", "better"),
    "the end on zero is a tie": (beside_ease(over=(0.0, 0.05)), {}, "ease", "better"),
    "better by chance of many tries is a tie": (beside_ease(wider=(-0.01, 0.07)), {}, "ease", "better"),
    "worse in a tier keeps the champion": (beside_ease(tier=(-0.2, -0.1)), {}, "ease", "tiers"),
    "less discovery keeps the champion": (beside_ease(discovery=(-0.02, -0.01)), {}, "ease", "discovery"),
    "worse than popular in a tier keeps the champion": (
        beside_ease(over_popular=(-0.2, -0.1)),
        {},
        "ease",
        "popular",
    ),
    "half the coverage is enough": (
        beside_ease(beyond_accuracy={"catalog_coverage@10": 0.05}),
        {},
        "sasrec",
        None,
    ),
    "less keeps the champion": (
        beside_ease(beyond_accuracy={"catalog_coverage@10": 0.049}),
        {},
        "ease",
        "coverage",
    ),
    "the shop may ask for as much": (beside_ease(), {"coverage": 1}, "sasrec", None),
    "and for less": (beside_ease(beyond_accuracy={"catalog_coverage@10": 0.001}), {"coverage": 0}, "sasrec", None),
    "too slow keeps the champion": (beside_ease(seconds=61), {"seconds": 60}, "ease", "run time"),
    "without a ceiling any time will do": (beside_ease(seconds=1e6), {"seconds": None}, "sasrec", None),
    "an agent that its gate refused keeps the champion": (
        beside_ease(gate={"passed": False, "reason": "refused: no gain"}),
        {},
        "ease",
        "agent",
    ),
    "not a number keeps the champion": (beside_ease(over=(np.nan, np.nan)), {}, "ease", "better"),
}


@pytest.mark.parametrize("morning", BESIDE_A_CHAMPION)
def test_a_champion_goes_only_for_a_better_one_inside_the_guardrails(morning):
    rows, gate, expected, failed = BESIDE_A_CHAMPION[morning]
    decision = choose_champion(rows, "home", "ease", gate=Gate(**gate))
    assert (decision.recipe, decision.moved) == (expected, expected != "ease")
    (challenger,) = decision.challengers
    assert [check.name for check in challenger.failures] == ([failed] if failed else [])
    assert all(check.told for check in challenger.checks)


def test_of_several_that_are_better_the_best_takes_over():
    rows = [
        *beside_ease(),
        row("ranker", 0.4, over=(0.05, 0.15)),
        row("ranker", 0.4, "cold", over=(0.0, 0.1)),
        row("ranker", 0.1, view="discovery", over=(-0.01, 0.01)),
    ]
    decision = choose_champion(rows, "home", "ease")
    assert decision.recipe == "ranker"
    assert [one.recipe for one in decision.challengers] == ["ranker", "sasrec"]


def test_the_best_that_a_guardrail_stops_leaves_office_to_the_next():
    rows = [
        *beside_ease(),
        row("ranker", 0.4, over=(0.05, 0.15)),
        row("ranker", 0.4, "cold", over=(-0.2, -0.1)),
        row("ranker", 0.1, view="discovery", over=(-0.01, 0.01)),
    ]
    assert choose_champion(rows, "home", "ease").recipe == "sasrec"


def test_the_reason_tells_the_evidence_in_words():
    assert choose_champion(beside_ease(), "home", "ease").reason == (
        "takes over from ease with ndcg@10 0.3300 on the all view, +0.0300 over the champion (98.75 % interval +0.0100 "
        "to +0.0500, 4 challengers); no tier worse than the champion's; no tier worse than popular's; "
        "discovery +0.0000 (95 % interval -0.0100 to +0.0100); coverage 10.00% of the catalogue, at least 5.00% is "
        "asked for; 60 s of at most 14,400 to train and score"
    )
    assert choose_champion(beside_ease(over=(-0.01, 0.05)), "home", "ease").reason == (
        "stays with ndcg@10 0.3000 on the all view; no challenger is better beyond chance, the nearest of 1 is "
        "sasrec (+0.0200, 98.75 % interval -0.0100 to +0.0500)"
    )
    assert choose_champion(beside_ease(tier=(-0.2, -0.1)), "home", "ease").reason == (
        "stays with ndcg@10 0.3000 on the all view; no better one passed the guardrails: "
        "sasrec (+0.0300, 98.75 % interval +0.0100 to +0.0500), but -0.1500 beside the champion for cold customers"
    )


def test_discover_asks_for_nothing_of_the_view_with_repeats():
    rows = [
        {**one, "view": "discovery", "over_champion": {"discover": one["over_champion"]["home"]}}
        if "over_champion" in one
        else {**one, "view": "discovery"}
        for one in beside_ease()
        if one["view"] == "all"
    ]
    decision = choose_champion(rows, "discover", "ease")
    assert decision.recipe == "sasrec"
    assert "discovery" not in [check.name for check in decision.challengers[0].checks]


def test_the_reason_names_the_tier_in_which_the_champion_fell():
    rows = [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, -0.1))]
    rows[0] = row("popular", 0.1, over_popular=(0, 0), over=(-0.2, -0.1))
    rows.append(row("popular", 0.1, view="discovery", over=(-0.2, -0.1)))
    assert "worse than popular for cold customers" in choose_champion(rows, "home", "ease").reason


def test_a_kept_champion_stays_whatever_the_numbers_say():
    decision = choose_champion(beside_ease(), "home", "ease", keep="held by ada")
    assert (decision.recipe, decision.moved) == ("ease", False)
    assert decision.reason.startswith(
        "stays with ndcg@10 0.3000 on the all view, whatever the numbers say: held by ada"
    )
    assert "otherwise sasrec: takes over from ease" in decision.reason
    assert decision.challengers[0].failures == []


def test_a_champion_that_was_not_trained_cannot_be_kept():
    with pytest.raises(TrainingError, match="vaecf is to stay \\(held by ada\\) but was not trained tonight"):
        choose_champion([POPULAR], "home", "vaecf", keep="held by ada")


def test_where_nobody_is_in_office_there_is_nobody_to_keep():
    decision = choose_champion([POPULAR], "home", keep="held by ada")
    assert (decision.recipe, decision.moved) == ("popular", True)
    assert decision.reason.endswith("held by ada, but nobody is in office yet")


def test_who_forced_and_who_approved_is_told():
    reason = choose_champion(beside_ease(), "home", "ease", force="sasrec", by="ada", approved_by="grace").reason
    assert reason == "forced by ada; its ndcg@10 is 0.3300; approved by grace"
    assert "approved" not in choose_champion(beside_ease(), "home", "ease", force="ease", approved_by="grace").reason


def test_forcing_a_model_that_was_not_trained_is_an_error():
    with pytest.raises(TrainingError, match="'two_tower' was not trained tonight"):
        choose_champion([POPULAR], "home", force="two_tower")


def test_without_a_model_that_may_serve_the_night_stops():
    with pytest.raises(TrainingError, match="no model may serve"):
        choose_champion([row("ease", 0.05, over_popular=(-0.06, -0.04))], "home")


def test_the_reason_says_why_an_agent_was_refused():
    reason = choose_champion([row("ranker", 0.3), gated(0.4, passed=False)], "home", "transformer_dqn2").reason
    assert reason.count("refused: no gain") == 1


def test_another_metric_decides_where_the_shop_says_so():
    rows = beside_ease()
    for one in rows:
        one["metrics"], one["interval"] = {"recall@50": 0.5}, {"recall@50 over popular": [0, 1]}
        one["beyond_accuracy"] = {"catalog_coverage@50": 0.2}
    decision = choose_champion(rows, "home", "ease", gate=Gate(metric="recall@50"))
    assert decision.recipe == "sasrec"
    assert "with recall@50 0.5000" in decision.reason


def test_what_is_kept_of_the_leaderboard_gives_the_same_decision():
    rows = beside_ease()
    kept = evidence(rows, "home", Gate())
    assert choose_champion(kept, "home", "ease") == choose_champion(rows, "home", "ease")
    assert len(kept) == len(rows)


def test_corrected_intervals_are_as_much_wider_as_there_are_tries():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 1, 2000)
    values = {"same": reference, "noise": reference + rng.normal(0, 1, 2000), "more": reference + 0.5}
    found = paired(values, reference, 0.95, 3)
    assert found["same"] == {"value": 0, "interval": [0, 0], "corrected": [0, 0]}
    assert found["more"]["corrected"] == pytest.approx([0.5, 0.5])
    low, high = found["noise"]["interval"]
    lowest, highest = found["noise"]["corrected"]
    assert (highest - lowest) / (high - low) == pytest.approx(2.394 / 1.960, rel=0.05)  # normal quantiles


def test_intervals_of_means_hold_both_ends_of_the_normal_one():
    rng = np.random.default_rng(1)
    noise = rng.normal(0.1, 1, 5000)
    found = paired({"x": noise}, np.zeros(5000), 0.9, 1)["x"]
    half = 1.645 * noise.std() / np.sqrt(5000)
    assert found["interval"] == pytest.approx([noise.mean() - half, noise.mean() + half], abs=0.002)
    assert found["corrected"] == found["interval"]
