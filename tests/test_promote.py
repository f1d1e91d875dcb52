"""The gate is one pure function: every row of the table below is a morning somebody could have."""

import pytest

from recsys_tasks.errors import TrainingError
from recsys_tasks.promote import choose_champion


def row(recipe, score, tier="everyone", over_popular=(0.0, 0.1), view="all"):
    return {
        "recipe": recipe,
        "view": view,
        "tier": tier,
        "metrics": {"ndcg@10": score},
        "interval": {"ndcg@10 over popular": list(over_popular)},
    }


def gated(score, passed):
    return {**row("transformer_dqn", score), "gate": {"passed": passed, "reason": "refused: no gain"}}


POPULAR = row("popular", 0.1, over_popular=(0, 0))

MORNINGS = {
    "the best serves": ([POPULAR, row("ease", 0.3), row("repeat", 0.2)], None, None, ("ease", True)),
    "a tie keeps the champion": ([POPULAR, row("ease", 0.3), row("repeat", 0.3)], "ease", None, ("ease", False)),
    "a tie keeps the champion, whatever its name": (
        [row("ease", 0.3), row("repeat", 0.3)],
        "repeat",
        None,
        ("repeat", False),
    ),
    "a better one takes over": ([POPULAR, row("ease", 0.3), row("repeat", 0.2)], "repeat", None, ("ease", True)),
    "the same champion does not move": ([POPULAR, row("ease", 0.3)], "ease", None, ("ease", False)),
    "worse than popular in a tier may not serve": (
        [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, -0.1)), row("repeat", 0.2)],
        None,
        None,
        ("repeat", True),
    ),
    "a tier that may be worse by chance does not count": (
        [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, 0.01)), row("repeat", 0.2)],
        None,
        None,
        ("ease", True),
    ),
    "a champion that fell below popular goes": (
        [POPULAR, row("ease", 0.05, over_popular=(-0.06, -0.04))],
        "ease",
        None,
        ("popular", True),
    ),
    "a champion that failed to train goes": ([POPULAR, row("repeat", 0.2)], "ease", None, ("repeat", True)),
    "not a number never serves": ([POPULAR, row("ease", float("nan"))], None, None, ("popular", True)),
    "a person may force a weaker one": ([POPULAR, row("ease", 0.3)], "ease", "popular", ("popular", True)),
    "an agent that passed the gate serves": (
        [row("ranker", 0.3), gated(0.3, passed=True)],
        None,
        None,
        ("transformer_dqn", True),
    ),
    "an agent that the gate refused leaves the lists as they are": (
        [row("ranker", 0.3), gated(0.4, passed=False)],
        "ranker",
        None,
        ("ranker", False),
    ),
    "an agent that serves and is refused tonight goes": (
        [row("ranker", 0.3), gated(0.4, passed=False)],
        "transformer_dqn",
        None,
        ("ranker", True),
    ),
    "the other view does not count": ([POPULAR, row("ease", 0.9, view="discovery")], None, None, ("popular", True)),
}


@pytest.mark.parametrize("morning", MORNINGS)
def test_choose_champion(morning):
    rows, champion, force, expected = MORNINGS[morning]
    decision = choose_champion(rows, "all", champion, force)
    assert (decision.recipe, decision.moved) == expected
    assert decision.reason


def test_the_reason_names_the_tier_in_which_the_champion_fell():
    rows = [POPULAR, row("ease", 0.3), row("ease", 0.01, "cold", (-0.2, -0.1))]
    assert "worse than popular for cold customers" in choose_champion(rows, "all", "ease").reason


def test_forcing_a_model_that_was_not_trained_is_an_error():
    with pytest.raises(TrainingError, match="'two_tower' was not trained tonight"):
        choose_champion([POPULAR], "all", force="two_tower")


def test_without_a_model_that_may_serve_the_night_stops():
    with pytest.raises(TrainingError, match="no model may serve"):
        choose_champion([row("ease", 0.05, over_popular=(-0.06, -0.04))], "all")


@pytest.mark.parametrize("champion", ["ranker", "transformer_dqn"])
def test_the_reason_says_why_an_agent_was_refused(champion):
    reason = choose_champion([row("ranker", 0.3), gated(0.4, passed=False)], "all", champion).reason
    assert reason.count("refused: no gain") == 1
