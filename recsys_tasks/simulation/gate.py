"""The gate: whether an agent may put supervised lists into another order. What is not shown is refused."""

from dataclasses import dataclass

from recsys_tasks.simulation.off_policy import NOT_BELOW, Comparison, Estimate

CLICKS_MARGIN = 0.01
"""Share of the supervised lists' click ndcg@10 that may be lost."""


@dataclass(frozen=True)
class Evidence:
    """What is known of an agent beside the supervised lists that it would re-order."""

    simulated: Estimate
    """Reward of an episode in the simulated shop, agent minus supervised order, of customers it did not practise on."""
    purchases: Estimate
    """ndcg@10 of the target event on the held-out log, agent minus supervised lists, paired by customer."""
    clicks: Estimate | None = None
    """The same of views and clicks, as a share of the supervised lists' value; None where the shop has none."""
    off_policy: Comparison | None = None
    """On logged propensities, agent against supervised order; None where none were logged."""
    control: Estimate | None = None
    """As ``simulated``, agent minus the supervised control; it decides nothing."""


@dataclass(frozen=True)
class Verdict:
    """Whether the agent may re-order the lists, and why."""

    passed: bool
    reason: str


def gate(evidence: Evidence) -> Verdict:
    """Return whether the evidence bears the agent, with all that speaks against it or, passed, for it.

    >>> gate(Evidence(Estimate(0.2, 0.1, 0.3), Estimate(-0.01, -0.02, 0.0))).passed
    False

    """
    found, refused = evidence, []
    reward = f"simulated reward {_told(found.simulated)} an episode"
    purchases = f"ndcg@10 of held-out purchases {_told(found.purchases)}"
    told = [reward, purchases]
    if not found.simulated.low > 0:
        refused.append(f"{reward}, which is not above 0")
    if not found.purchases.value >= 0:
        refused.append(f"{purchases}, which is below 0")
    if found.clicks:
        clicks = f"ndcg@10 of held-out clicks {_told(found.clicks, '+.1%')} of the supervised lists'"
        told.append(clicks)
        if not found.clicks.value >= -CLICKS_MARGIN:
            refused.append(f"{clicks}, which is more than {CLICKS_MARGIN:.0%} below")
    if found.off_policy:
        told.append(found.off_policy.sentence)
        if found.off_policy.verdict != NOT_BELOW:
            refused.append(found.off_policy.sentence)
    control = ""
    if found.control and found.control.low <= 0:
        control = f"; the supervised control does as well in the simulated shop ({_told(found.control)})"
    if refused:
        return Verdict(False, f"refused: {'; '.join(refused)}{control}")
    return Verdict(True, f"passed: {'; '.join(told)}{control}")


def _told(estimate: Estimate, form: str = "+.4f") -> str:
    return f"{estimate.value:{form}}, 95 % {estimate.low:{form}} to {estimate.high:{form}}"
