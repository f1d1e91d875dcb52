"""Step 5, promote: choose the recipe that serves each placement, move its alias, refit it through ``as_of``.

Reads the leaderboard; moves the MLflow alias ``champion-<placement>`` only when ``choose_champion`` says so; writes
the refitted models and ``champions/<id>/``, whose manifest holds the decisions and all that they were made of.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recsys_tasks.contract import EVERYONE, PLACEMENT_VIEW
from recsys_tasks.errors import TrainingError
from recsys_tasks.lake import fingerprint
from recsys_tasks.night import Night
from recsys_tasks.recipe import Recipe, Shelf
from recsys_tasks.shop import Gate
from recsys_tasks.timing import timed
from recsys_tasks.tradeoff import tradeoff

log = logging.getLogger(__name__)

GUARDED = {"home": ("discovery",), "discover": ()}
"""Placement -> other views in which a challenger may not be worse. A list of ``discover`` holds no repeats."""


@dataclass(frozen=True)
class Check:
    """One thing that a challenger was asked for."""

    name: str
    passed: bool
    told: str
    """What was found, in words and numbers."""


@dataclass(frozen=True)
class Challenger:
    """A recipe beside the champion in office."""

    recipe: str
    score: float
    difference: float
    """Of the metric, from the champion's, over the same customers."""
    interval: list[float]
    """Of the difference, at ``level``."""
    level: float
    checks: list[Check]
    """First whether it is better, then the guardrails."""

    @property
    def failures(self) -> list[Check]:
        """The checks that it did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def told(self) -> str:
        """The difference in words."""
        low, high = self.interval
        return f"{self.difference:+.4f}, {100 * self.level:.4g} % interval {low:+.4f} to {high:+.4f}"


@dataclass(frozen=True)
class Decision:
    """Who serves a placement tonight, and why."""

    recipe: str
    moved: bool
    """Whether this is another recipe than the champion in office."""
    reason: str
    champion: str | None = None
    """Who was in office."""
    challengers: list[Challenger] = field(default_factory=list)
    """All others beside it, best first; empty where there was no champion, or it was not trained tonight."""


def choose_champion(
    rows: Sequence[Mapping[str, Any]],
    placement: str,
    champion: str | None = None,
    *,
    gate: Gate | None = None,
    force: str | None = None,
    by: str | None = None,
    keep: str | None = None,
    approved_by: str | None = None,
) -> Decision:
    """Return the champion of a placement.

    The champion in office stays unless a challenger is better than it, on the same customers and trained on the same
    window: the interval of the paired difference in the shop's metric must lie above 0, and the challenger must pass
    every guardrail. These are: no tier worse than the champion's or than popular's and, for ``home``, no less
    discovery (worse: an interval wholly below 0); enough coverage; time within the shop's ceiling; for an agent, what
    the simulated shop and the log say. Of several that pass the best serves.

    So that none of many equal ones wins by luck, the interval is that of 1 - (1 - confidence) / challengers
    (Bonferroni; Dunn 1961, Multiple Comparisons among Means): with no challenger better, the champion goes in at most
    (1 - confidence) / 2 of nights. Guardrails have plain intervals, since wider ones would let more through.

    Without a champion, or where it was not trained, is refused tonight or is worse than ``popular`` in a tier, the
    best recipe serves that is not either.

    Parameters
    ----------
    rows
        The leaderboard: ``recipe``, ``view``, ``tier``, ``metrics``, ``interval`` and ``over_champion`` of each row.
    placement
        ``home`` or ``discover``.
    champion
        Recipe in office, if any.
    gate
        What the shop asks for.
    force
        Name of a model that a person wants, whatever the numbers say.
    by
        Who wants it.
    keep
        Why the champion in office stays, whatever the numbers say.
    approved_by
        Who let another take over.

    Raises
    ------
    TrainingError
        No recipe qualifies, or the forced model or the kept champion was not trained.

    """
    gate = gate or Gate()
    view, metric = PLACEMENT_VIEW[placement], gate.metric
    board = {row["recipe"]: row for row in rows if row["view"] == view and row["tier"] == EVERYONE}
    score = {recipe: row["metrics"][metric] for recipe, row in board.items()}
    challengers: list[Challenger] = []
    if champion is not None and champion in score:
        challengers = [_beside(recipe, champion, rows, placement, gate) for recipe in score if recipe != champion]
        challengers.sort(key=lambda one: (one.score != one.score, -one.difference, one.recipe))
    if force:
        wanted = [recipe for recipe in score if Recipe(recipe).model == force]
        if not wanted:
            raise TrainingError(f"force_promote: {force!r} was not trained tonight; trained were {sorted(score)}")
        best = max(wanted, key=lambda recipe: score[recipe])
        reason = f"forced by {by or 'a person'}; its {metric} is {score[best]:.4f}"
        decision = Decision(best, best != champion, reason, champion, challengers)
    else:
        decision = _by_the_numbers(rows, view, board, champion, challengers, gate)
    if keep and champion:
        if champion not in score:
            raise TrainingError(
                f"{placement}: {champion} is to stay ({keep}) but was not trained tonight; the log of its train task "
                "says why. The lists published last stay current; run the night again without that for another champion"
            )
        said = f"; otherwise {Recipe(decision.recipe).label}: {decision.reason}" if decision.moved else ""
        reason = f"stays with {metric} {score[champion]:.4f} on the {view} view, whatever the numbers say: {keep}{said}"
        return replace(decision, recipe=champion, moved=False, reason=reason)
    more = f"; {keep}, but nobody is in office yet" if keep else ""
    more += f"; approved by {approved_by}" if approved_by and decision.moved else ""
    return replace(decision, reason=decision.reason + more)


def _by_the_numbers(
    rows: Sequence[Mapping[str, Any]],
    view: str,
    board: Mapping[str, Mapping[str, Any]],
    champion: str | None,
    challengers: Sequence[Challenger],
    gate: Gate,
) -> Decision:
    score = {recipe: row["metrics"][gate.metric] for recipe, row in board.items()}
    weak = {row["recipe"]: row["tier"] for row in rows if row["view"] == view and _is_below_popular(row, gate)}
    agents = {recipe: row["gate"] for recipe, row in board.items() if "gate" in row}
    refused = {recipe: found["reason"] for recipe, found in agents.items() if not found["passed"]}
    slow = {recipe for recipe, row in board.items() if not _in_time(row, gate) and recipe != champion}
    barred = {*weak, *refused, *slow}
    fit = {recipe: value for recipe, value in score.items() if recipe not in barred and value == value}
    if not fit:
        raise TrainingError(
            f"{view}: no model may serve: worse than popular in a tier are {weak}, refused are {refused}, "
            f"too slow are {sorted(slow)}, scores are {score}"
        )

    def decided(recipe: str, reason: str) -> Decision:
        others = [other for other in (refused or agents) if other != champion and agents[other]["reason"] not in reason]
        reason += "".join(f"; {Recipe(other).label} {agents[other]['reason']}" for other in others)
        return Decision(recipe, recipe != champion, reason, champion, list(challengers))

    if champion in fit:
        winner = next((one for one in challengers if not one.failures), None)
        if winner:
            reason = (
                f"takes over from {Recipe(champion).label} with {gate.metric} {winner.score:.4f} on the {view} view"
            )
            reason += f", {'; '.join(check.told for check in winner.checks)}"
            return decided(winner.recipe, reason)
        reason = f"stays with {gate.metric} {score[champion]:.4f} on the {view} view; {_why_none(challengers)}"
        return decided(champion, reason)
    best = max(fit, key=lambda recipe: (fit[recipe], recipe))
    reason = f"best {gate.metric} on the {view} view: {fit[best]:.4f} of {len(fit)} fit recipes"
    if champion:
        why = f"worse than popular for {weak[champion]} customers" if champion in weak else "not trained tonight"
        reason += f"; the champion {champion} is {refused.get(champion, why)}"
    return decided(best, reason)


def _why_none(challengers: Sequence[Challenger]) -> str:
    """Say why no challenger takes over."""
    if not challengers:
        return "there is no challenger"
    better = [one for one in challengers if one.checks[0].passed]
    if not better:
        nearest = challengers[0]
        return (
            f"no challenger is better beyond chance, the nearest of {len(challengers)} is "
            f"{Recipe(nearest.recipe).label} ({nearest.told})"
        )
    but = (f"{Recipe(one.recipe).label} ({one.told}), but {_words(one.failures)}" for one in better)
    return f"no better one passed the guardrails: {'; '.join(but)}"


def _words(checks: Sequence[Check]) -> str:
    return " and ".join(check.told for check in checks)


def _beside(recipe: str, champion: str, rows: Sequence[Mapping[str, Any]], placement: str, gate: Gate) -> Challenger:
    """Return a challenger with what the gate asks of it."""
    view, metric = PLACEMENT_VIEW[placement], gate.metric
    own = {row["tier"]: row for row in rows if (row["recipe"], row["view"]) == (recipe, view)}
    whole = own[EVERYONE]
    found = whole["over_champion"][placement]
    level = 1 - (1 - gate.confidence) / found["tries"]
    low, high = found["corrected"]
    told = (
        f"{found['value']:+.4f} over the champion ({100 * level:.4g} % interval {low:+.4f} to {high:+.4f}, "
        f"{found['tries']} challengers)"
    )
    checks = [Check("better", low > 0, told if low > 0 else f"{told}, which is not above 0")]

    worse = [
        tier for tier, row in own.items() if tier != EVERYONE and row["over_champion"][placement]["interval"][1] < 0
    ]
    below = [
        f"{own[tier]['over_champion'][placement]['value']:+.4f} beside the champion for {tier} customers"
        for tier in worse
    ]
    checks.append(Check("tiers", not worse, "; ".join(below) or "no tier worse than the champion's"))
    weak = [tier for tier, row in own.items() if _is_below_popular(row, gate)]
    told = f"worse than popular for {', '.join(weak)} customers" if weak else "no tier worse than popular's"
    checks.append(Check("popular", not weak, told))
    for other in GUARDED[placement]:
        (row,) = (row for row in rows if (row["recipe"], row["view"], row["tier"]) == (recipe, other, EVERYONE))
        beside = row["over_champion"][placement]
        ends = "{:+.4f} to {:+.4f}".format(*beside["interval"])
        told = f"{other} {beside['value']:+.4f} ({100 * gate.confidence:.4g} % interval {ends})"
        checks.append(Check(other, beside["interval"][1] >= 0, told))

    (in_office,) = (row for row in rows if (row["recipe"], row["view"], row["tier"]) == (champion, view, EVERYONE))
    name = f"catalog_coverage@{metric.partition('@')[2]}"
    covers, asked = whole["beyond_accuracy"][name], gate.coverage * in_office["beyond_accuracy"][name]
    told = f"coverage {covers:.2%} of the catalogue, at least {asked:.2%} is asked for"
    checks.append(Check("coverage", covers >= asked, told))
    ceiling = "" if gate.seconds is None else f" of at most {gate.seconds:,.0f}"
    checks.append(Check("run time", _in_time(whole, gate), f"{whole['seconds']:,.0f} s{ceiling} to train and score"))
    if "gate" in whole:
        checks.append(Check("agent", whole["gate"]["passed"], whole["gate"]["reason"]))
    return Challenger(recipe, whole["metrics"][metric], found["value"], found["corrected"], level, checks)


def _is_below_popular(row: Mapping[str, Any], gate: Gate) -> bool:
    return row["interval"][f"{gate.metric} over popular"][1] < 0


def _in_time(row: Mapping[str, Any], gate: Gate) -> bool:
    return gate.seconds is None or row["seconds"] <= gate.seconds


def evidence(rows: Sequence[Mapping[str, Any]], placement: str, gate: Gate) -> list[dict[str, Any]]:
    """Return of the leaderboard what ``choose_champion`` reads for a placement, and nothing else."""
    views, popular = (PLACEMENT_VIEW[placement], *GUARDED[placement]), f"{gate.metric} over popular"
    coverage = f"catalog_coverage@{gate.metric.partition('@')[2]}"
    found = []
    for row in rows:
        if row["view"] == views[0] or (row["view"] in views and row["tier"] == EVERYONE):
            part = {name: row[name] for name in ("recipe", "view", "tier", "users")}
            part["metrics"] = {gate.metric: row["metrics"][gate.metric]}
            part["interval"] = {popular: row["interval"][popular]}
            if placement in row.get("over_champion", {}):
                part["over_champion"] = {placement: row["over_champion"][placement]}
            if row["tier"] == EVERYONE:
                part["beyond_accuracy"] = {coverage: row["beyond_accuracy"][coverage]}
                part |= {name: row[name] for name in ("seconds", "gate") if name in row}
            found.append(part)
    return found


def proposal(night: Night, evaluation: str) -> str | None:
    """Return in words which champions in office tonight's numbers would replace; None where all stay, or none moves."""
    if not night.publish:
        return None
    rows = _leaderboard(night, evaluation)["rows"]
    decided = {placement: _decide(night, rows, placement)[0] for placement in PLACEMENT_VIEW}
    moves = {placement: found for placement, found in decided.items() if found.moved and found.champion}
    said = (f"**{placement}**: {Recipe(found.recipe).label} {found.reason}" for placement, found in moves.items())
    return "\n\n".join(said) or None


@timed
def promote(night: Night, evaluation: str, snapshot: str, vectors: str, answer: Mapping[str, Any] | None = None) -> str:
    """Decide, move aliases, refit the winners and return the id of tonight's champions.

    A night that is not to publish moves no alias. ``answer`` is what a person said to ``proposal``, where one was
    asked: ``{"approved": bool, "by": name}``, the name None where nobody answered in time. Without approval the
    champions in office stay.
    """
    lake = night.lake
    leaderboard = _leaderboard(night, evaluation)
    shelf = Shelf.open(lake, night.shop, snapshot, vectors)
    champions: dict[str, dict[str, Any]] = {}
    decisions: dict[str, dict[str, Any]] = {}
    for placement in PLACEMENT_VIEW:
        decision, record = _decide(night, leaderboard["rows"], placement, answer)
        log.info("%s: %s %s", placement, decision.recipe, decision.reason)
        if decision.moved and night.publish:
            night.tracking.crown(night.name, placement, Recipe(decision.recipe), decision.reason)
        model = shelf.refit(leaderboard["models"][decision.recipe], night.windows)
        champions[placement] = {"recipe": decision.recipe, "model": model, "reason": decision.reason}
        decisions[placement] = record
    asked = {placement: record["asked"] for placement, record in decisions.items()}
    serves = {placement: won["model"] for placement, won in champions.items()}
    inputs = {"evaluation": evaluation, "asked": asked, "serves": serves, "gate": night.shop.gate.model_dump()}
    of_curves = {"diversity": night.shop.diversity.model_dump(), "k": night.k}
    entry = f"champions/{fingerprint(inputs | of_curves)}"
    if not lake.has(entry):
        curves = {
            placement: tradeoff(shelf, leaderboard["models"][won["recipe"]], placement, night.windows, night.k)
            for placement, won in champions.items()
        }
        described = {"champions": champions, "decisions": decisions, "evaluation": evaluation, "diversity": curves}
        with lake.create(entry, described):
            pass
    return entry


def recomputed(record: Mapping[str, Any], placement: str) -> Decision:
    """Return the decision again from what a manifest of champions holds of it, under ``decisions``."""
    return choose_champion(record["evidence"], placement, gate=Gate(**record["gate"]), **record["asked"])


def _leaderboard(night: Night, evaluation: str) -> dict[str, Any]:
    return json.loads((night.lake.path(evaluation) / "leaderboard.json").read_text())


def _decide(
    night: Night, leaderboard: Sequence[Mapping[str, Any]], placement: str, answer: Mapping[str, Any] | None = None
) -> tuple[Decision, dict[str, Any]]:
    """Return the decision of a placement, and all that it was made of as JSON values."""
    gate = night.shop.gate
    rows = evidence(leaderboard, placement, gate)
    asked: dict[str, Any] = {"champion": night.champions.get(placement), "force": night.force_promote, "keep": None}
    asked["by"] = night.asked_by if night.force_promote else None
    if night.hold:
        asked["keep"] = f"held by {night.asked_by or 'a person'}"
    decision = choose_champion(rows, placement, gate=gate, **asked)
    if answer and decision.moved and decision.champion and not answer["approved"]:
        asked["keep"] = f"{answer['by']} rejected the change" if answer["by"] else "nobody approved the change in time"
        decision = choose_champion(rows, placement, gate=gate, **asked)
    elif answer and decision.moved:
        asked["approved_by"] = answer["by"]
        decision = choose_champion(rows, placement, gate=gate, **asked)
    return decision, {**asdict(decision), "asked": asked, "gate": gate.model_dump(), "evidence": rows}
