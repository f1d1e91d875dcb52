"""Step 5, promote: choose the recipe that serves each placement, move its alias, refit it through ``as_of``.

Reads the leaderboard; moves the MLflow alias ``champion-<placement>`` only when ``choose_champion`` says so; writes
the refitted models and ``champions/<id>/``.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recsys_tasks.contract import EVERYONE, PLACEMENT_VIEW
from recsys_tasks.errors import TrainingError
from recsys_tasks.lake import fingerprint
from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Decision:
    """Who serves a placement tonight, and why."""

    recipe: str
    moved: bool
    """Whether this is another recipe than last night's champion."""
    reason: str


def choose_champion(
    rows: Sequence[dict[str, Any]], view: str, champion: str | None = None, force: str | None = None
) -> Decision:
    """Return the champion of a view.

    The best ``ndcg@10`` among the recipes that are not worse than ``popular`` in any tier and were not refused by the
    gate; worse means that the 95 % interval of the paired difference lies below zero. A tie keeps the champion.

    Parameters
    ----------
    rows
        The leaderboard: ``recipe``, ``view``, ``tier``, ``metrics`` and ``interval`` of each row.
    view
        ``all`` or ``discovery``.
    champion
        Recipe that serves now, if any.
    force
        Name of a model that a person wants, whatever the numbers say.

    Raises
    ------
    TrainingError
        No recipe qualifies, or the forced model was not trained.

    """
    of_view = [row for row in rows if row["view"] == view]
    score = {row["recipe"]: row["metrics"][METRIC] for row in of_view if row["tier"] == EVERYONE}
    if force:
        wanted = [recipe for recipe in score if Recipe(recipe).model == force]
        if not wanted:
            raise TrainingError(f"force_promote: {force!r} was not trained tonight; trained were {sorted(score)}")
        best = max(wanted, key=lambda recipe: score[recipe])
        return Decision(best, best != champion, f"forced by a person; its {METRIC} is {score[best]:.4f}")
    weak = {row["recipe"]: row["tier"] for row in of_view if row["interval"][f"{METRIC} over popular"][1] < 0}
    gates = {row["recipe"]: row["gate"] for row in of_view if "gate" in row}
    refused = {recipe: found["reason"] for recipe, found in gates.items() if not found["passed"]}
    barred = {*weak, *refused}
    fit = {recipe: value for recipe, value in score.items() if recipe not in barred and value == value}
    if not fit:
        raise TrainingError(
            f"{view}: no model may serve: worse than popular in a tier are {weak}, refused are {refused}, "
            f"scores are {score}"
        )
    best = max(fit, key=lambda recipe: (fit[recipe], recipe == champion, recipe))
    text = f"best {METRIC} on the {view} view: {fit[best]:.4f} of {len(fit)} fit recipes"
    others = [recipe for recipe in (refused or gates) if recipe != champion]
    text += "".join(f"; {Recipe(recipe).label} {gates[recipe]['reason']}" for recipe in others)
    if champion and champion not in fit:
        why = f"worse than popular for {weak[champion]} customers" if champion in weak else "not trained tonight"
        why = refused.get(champion, why)
        return Decision(best, True, f"{text}; the champion {champion} is {why}")
    if champion and best != champion:
        return Decision(best, True, f"{text}, {fit[best] - fit[champion]:+.4f} over the champion {champion}")
    return Decision(best, champion is None, text)


@timed
def promote(night: Night, evaluation: str, snapshot: str, vectors: str) -> str:
    """Decide, move aliases, refit the winners and return the id of tonight's champions.

    A night that is not to publish moves no alias.
    """
    lake = night.lake
    leaderboard = json.loads((lake.path(evaluation) / "leaderboard.json").read_text())
    before = night.tracking.champions()
    shelf = Shelf.open(lake, night.shop, snapshot, vectors)
    champions: dict[str, dict[str, Any]] = {}
    for placement, view in PLACEMENT_VIEW.items():
        champion = before[placement].text if placement in before else None
        decision = choose_champion(leaderboard["rows"], view, champion, night.force_promote)
        log.info("%s: %s serves (%s)", placement, decision.recipe, decision.reason)
        if decision.moved and night.publish:
            night.tracking.crown(night.name, placement, Recipe(decision.recipe), decision.reason)
        model = shelf.refit(leaderboard["models"][decision.recipe], night.windows)
        champions[placement] = {"recipe": decision.recipe, "model": model, "reason": decision.reason}
    described = {"champions": champions, "evaluation": evaluation}
    entry = f"champions/{fingerprint(described)}"
    if not lake.has(entry):
        with lake.create(entry, described):
            pass
    return entry
