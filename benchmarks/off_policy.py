"""The claim: off-policy intervals cover the truth where the log can tell, and ``compare`` says where it cannot.

Made-up bandits of known values, 200 logs each: overlap of the two policies good, poor and hopeless; a reward that the
linear model of ``dr`` can express and one that it cannot; 500 and 5,000 rounds. A made-up visit of two states with its
value in closed form, for fitted Q evaluation. Open Bandit: what ``bts`` earned, told from the log of ``random``, and
the reverse. Verdicts: a bad policy must be refused, a planted better one must pass.

    python benchmarks/off_policy.py [--check] [--quick] [--results DIR]

``--quick`` is the made-up parts with few logs, in seconds; it writes a page only to ``--results``. The log is
``open_bandit/impressions.parquet`` in ``NIGHTCART_BENCH_DATA``, a sample of the Open Bandit Dataset (Saito et al. 2021,
ZOZO, CC BY 4.0): ``timestamp``, ``item_id``, ``position``, ``click``, ``propensity_score``, ``user_feature_0`` to
``3``, ``behavior_policy``, ``campaign``.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.simulation.fitted_q import Trajectories, boosted, fqe
from recsys_tasks.simulation.off_policy import (
    BELOW,
    CANNOT_TELL,
    ESTIMATORS,
    MIN_EFFECTIVE_SAMPLE_SIZE,
    NOT_BELOW,
    BanditFeedback,
    Estimate,
    compare,
    evaluate,
)

LIKING = 3.0
"""How much the evaluated policy of the made-up bandits prefers what is rewarded."""
OVERLAPS = {"good": 0.0, "poor": -1.0, "hopeless": -4.0}
"""How much the one that made the log does."""
CANDIDATES = {
    "better": (1.0, 0.0),
    "better, hopeless overlap": (3.0, -4.0),
    "bad": (-1.0, 0.0),
    "bad, hopeless overlap": (-4.0, 3.0),
    "bad, just below the margin": (-0.03, 0.0),
}
"""Candidate -> how much it and the policy of the log prefer what is rewarded."""
CLIP = 10.0
DISCOUNT = 0.9
CLIPPED, DIFFERENCE = f"dr, weights to {CLIP:g}", "dr, difference"
VERDICTS = (NOT_BELOW, BELOW, CANNOT_TELL)
N_ITEMS = (34, 46)
"""Of Open Bandit's campaigns, men's and women's."""
USER_FEATURES = [f"user_feature_{n}" for n in range(4)]


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="the made-up parts with few logs, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    log = data_folder() / "open_bandit" / "impressions.parquet"
    if not options.quick and not log.exists():
        print(f"skipped: {log} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return 0
    started = time.monotonic()
    logs = 20 if options.quick else 200
    measured: dict[str, Any] = {
        "bandits": bandit_coverage(logs, (500,) if options.quick else (500, 5000))
        + rare_coverage(logs, (1000,) if options.quick else (1000, 5000)),
        "customers": customer_coverage(logs),
        "visits": visit_coverage(logs, (100,) if options.quick else (50, 100, 300, 1000), 0 if options.quick else 20),
        "open bandit": [],
        "verdicts": bandit_verdicts(logs, 1000 if options.quick else 2000),
    }
    if not options.quick:
        impressions = pd.read_parquet(log)
        measured["open bandit"] = open_bandit(impressions)
        measured["verdicts"] += planted_verdicts(impressions, 20)
    measured |= {"limits": limits_of(measured, logs), "seconds": time.monotonic() - started}
    lines = ["# Off-policy evaluation", *limits_table(measured["limits"]), *told(measured, logs)]
    lines += ["", f"{made_by(['numpy', 'lightgbm'])} {measured['seconds']:.0f} s, one thread."]
    return finish("off_policy", lines, measured, options.results or (None if options.quick else RESULTS), options.check)


def covered(of: str, name: str, truth: float, found: Sequence[Estimate], sizes: Sequence[float] = ()) -> dict[str, Any]:
    """Return how estimates of the same truth from many logs did; their effective sample sizes, where they have any."""
    estimate, low, high = np.array([(one.value, one.low, one.high) for one in found]).T
    share, asked = float(np.mean((low <= truth) & (truth <= high))), not np.isnan(low).any()
    return {
        "log": of,
        "estimator": name,
        "truth": truth,
        "effective sample size": float(np.median(sizes)) if len(sizes) else None,
        "coverage": share if asked else None,
        "binomial error": (share * (1 - share) / len(found)) ** 0.5,
        "bias": float(estimate.mean() - truth),
        "rmse": float(((estimate - truth) ** 2).mean() ** 0.5),
        "width": float(np.median(high - low)) if asked else None,
        "logs": len(found),
    }


class Bandit:
    """Eight actions; what they earn depends on four numbers of the context, linearly or (bent) on a product's sign."""

    def __init__(self, bent: bool) -> None:
        rng = np.random.default_rng(5)
        self.bent, self.base, self.slopes = bent, rng.uniform(0, 1, 8), rng.uniform(-0.5, 0.5, (4, 8))

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Return the mean rewards of contexts (n, 4): (n, 8)."""
        return self.base + (np.sign(x[:, :1] * x[:, 1:2]) * self.slopes[0] if self.bent else x @ self.slopes)

    def policy(self, x: np.ndarray, liking: float) -> np.ndarray:
        """Return the chances (n, 8) of a policy that prefers, or with a negative liking avoids, what is rewarded."""
        odds = np.exp(liking * self.mean(x))
        return odds / odds.sum(1, keepdims=True)

    def log(self, seed: int, n: int, liking: float, rounds_each: int = 1) -> BanditFeedback:
        """Return n rounds of customers of so many rounds each, who share a context and a mood (deviation 0.3)."""
        rng = np.random.default_rng(seed)
        customer = np.arange(n) // rounds_each
        x = rng.uniform(-1, 1, (n // rounds_each, 4))[customer]
        chances = self.policy(x, liking)
        action = drawn(rng, chances)
        mood = rng.normal(0, 0.3, n // rounds_each)[customer] if rounds_each > 1 else 0
        reward = self.mean(x)[np.arange(n), action] + mood + rng.normal(0, 0.3, n)
        return BanditFeedback(8, action, reward, chances[np.arange(n), action], x, customer=customer)


@cache
def value(bent: bool, liking: float) -> float:
    """Return a policy's value, over a million contexts and all actions."""
    bandit, x = Bandit(bent), np.random.default_rng(0).uniform(-1, 1, (1_000_000, 4))
    return float((bandit.policy(x, liking) * bandit.mean(x)).sum(1).mean())


def drawn(rng: np.random.Generator, chances: np.ndarray) -> np.ndarray:
    """Return an action of each row."""
    return (chances.cumsum(1) > rng.random((len(chances), 1))).argmax(1)


def bandit_coverage(logs: int, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row per world, overlap, number of rounds and estimator."""
    rows = []
    for bent, (overlap, liking), n in product((False, True), OVERLAPS.items(), rounds):
        bandit = Bandit(bent)
        truth = value(bent, LIKING)
        found = defaultdict(list)
        for seed in range(logs):
            log = bandit.log(seed, n, liking)
            asked = bandit.policy(log.context, LIKING)
            for name in ("ips", "snips"):
                found[name].append(evaluate(log, asked, name, seed=seed))
            beside = compare(log, asked, seed=seed)
            found["dr"].append(beside.candidate)
            found[DIFFERENCE].append(beside.difference)
            found[CLIPPED].append(evaluate(log, asked, "dr", clip=CLIP, seed=seed))
        of = f"{'bent' if bent else 'linear'}, {overlap} overlap, {n:,} rounds"
        for name, estimates in found.items():
            sizes = [one.effective_sample_size for one in found[CLIPPED if name == CLIPPED else "ips"]]
            earned = value(bent, liking) if name == DIFFERENCE else 0
            rows.append(covered(of, name, truth - earned, estimates, sizes))
    return rows


def rare_coverage(logs: int, rounds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row per number of rounds and estimator, where 2 to 8 rounds of a thousand are clicked."""
    rates, rows = np.linspace(0.002, 0.008, 8), []
    chances = np.exp(250 * rates) / np.exp(250 * rates).sum()
    for n in rounds:
        found = defaultdict(list)
        for seed in range(logs):
            rng = np.random.default_rng(seed)
            action = rng.integers(0, 8, n)
            clicked = (rng.random(n) < rates[action]).astype(float)
            log = BanditFeedback(8, action, clicked, np.full(n, 1 / 8))
            for name in ESTIMATORS:
                found[name].append(evaluate(log, np.tile(chances, (n, 1)), name, seed=seed))
        for name, some in found.items():
            sizes = [one.effective_sample_size for one in some]
            rows.append(covered(f"rare clicks, {n:,} rounds", name, float(chances @ rates), some, sizes))
    return rows


def customer_coverage(logs: int) -> list[dict[str, Any]]:
    """Return a row with customers as units, and one as if their rounds were independent."""
    bandit, found = Bandit(bent=False), defaultdict(list)
    for seed in range(logs):
        log = bandit.log(seed, 5000, OVERLAPS["good"], rounds_each=10)
        asked = bandit.policy(log.context, LIKING)
        for units in (log.customer, None):
            name = "dr, rounds taken for independent" if units is None else "dr, customers as units"
            found[name].append(evaluate(replace(log, customer=units), asked, seed=seed))
    of, truth = "linear, good overlap, 500 customers of 10 rounds", value(False, LIKING)
    return [covered(of, name, truth, some, [one.effective_sample_size for one in some]) for name, some in found.items()]


MOVES = np.array([[[0.6, 0.2], [0.3, 0.6]], [[0.3, 0.4], [0.1, 0.7]]])
"""Chance to go from a state (browsing, interested) by an action to a state; else the visit ends."""
EARNED = np.array([[0.0, 0.5], [1.0, 2.0]])
"""Mean reward of a state and an action."""
ASKED = np.array([[0.2, 0.8], [0.3, 0.7]])
"""The evaluated policy's chances in a state."""
LOGGED = np.array([[0.6, 0.4], [0.6, 0.4]])


def visit_value() -> float:
    """Return V = (I - discount P)^-1 r of the evaluated policy, 3 of 10 visits beginning interested."""
    moves, earned = np.einsum("sa,sat->st", ASKED, MOVES), (ASKED * EARNED).sum(1)
    return float(np.array([0.7, 0.3]) @ np.linalg.solve(np.eye(2) - DISCOUNT * moves, earned))


def visits_log(seed: int, m: int, told: bool = True, steps: int = 10, policy: np.ndarray = LOGGED) -> Trajectories:
    """Return m visits, cut off after so many steps; a state that is not told is a constant."""
    rng = np.random.default_rng(seed)
    state = (rng.random(m) < 0.3).astype(int)
    first, going, rows = state.copy(), np.arange(m), []
    for _ in range(steps):
        here = state[going]
        action = drawn(rng, policy[here])
        chances = MOVES[here, action]
        then = drawn(rng, np.hstack([chances, 1 - chances.sum(1, keepdims=True)]))
        rows.append((going, here, action, EARNED[here, action] + rng.normal(0, 1, len(going)), then))
        going = going[then < 2]
        state[rows[-1][0]] = then
    visit, here, action, reward, then = map(np.concatenate, zip(*rows, strict=True))
    after = then % 2
    state_features = np.array([[0.0], [1.0]]) if told else np.zeros((2, 1))
    both = np.array([[0.0], [1.0]])
    return Trajectories(
        visit, state_features[here], both[action], reward, then == 2,
        state_features[after], np.tile(both, (len(visit), 1, 1)), ASKED[after],
        state_features[first], np.tile(both, (m, 1, 1)), ASKED[first],
    )  # fmt: skip


def visit_coverage(logs: int, visits: Sequence[int], boosted_logs: int) -> list[dict[str, Any]]:
    """Return a row per number of visits and regressor."""
    truth, rows = visit_value(), []
    for m in visits:
        found = [fqe(visits_log(seed, m), DISCOUNT, seed=seed) for seed in range(logs)]
        rows.append(covered(f"{m:,} visits", "fqe, linear", truth, found))
    m = visits[-1]
    found = [fqe(visits_log(seed, m, told=False), DISCOUNT, seed=seed) for seed in range(logs)]
    rows.append(covered(f"{m:,} visits, state not told", "fqe, linear", truth, found))
    if boosted_logs:
        found = [
            fqe(visits_log(seed, m), DISCOUNT, boosted, iterations=60, bootstraps=0) for seed in range(boosted_logs)
        ]
        rows.append(covered(f"{m:,} visits", "fqe, boosted, 60 iterations, no interval", truth, found))
    return rows


def bandit_verdicts(logs: int, n: int) -> list[dict[str, Any]]:
    """Return a row per candidate: how often ``compare`` with the policy of the log said what."""
    rows = []
    for bent, (name, (liking, of_log)) in product((False, True), CANDIDATES.items()):
        bandit, said = Bandit(bent), []
        truth = value(bent, liking) - value(bent, of_log)
        for seed in range(logs):
            log = bandit.log(seed, n, of_log)
            said.append(compare(log, bandit.policy(log.context, liking), seed=seed).verdict)
        rows.append(verdicts(f"{'bent' if bent else 'linear'} bandit, {n:,} rounds", name, said) | {"truth": truth})
    return rows


def verdicts(of: str, candidate: str, said: Sequence[str]) -> dict[str, Any]:
    """Return how often each verdict was spoken."""
    return {"log": of, "candidate": candidate, "logs": len(said)} | {one: said.count(one) for one in VERDICTS}


class OpenBandit:
    """Impressions of one policy as rounds; the items of the two campaigns are different actions."""

    def __init__(self, impressions: pd.DataFrame, policy: str) -> None:
        rows = impressions[impressions.behavior_policy == policy]
        self.campaign = (rows.campaign == "women").to_numpy().astype(int)
        self.position = rows.position.to_numpy() - 1
        known = [pd.Categorical(rows[name], sorted(impressions[name].unique())) for name in USER_FEATURES]
        customer = np.hstack([pd.get_dummies(values).to_numpy(float) for values in known])
        self.log = BanditFeedback(
            sum(N_ITEMS),
            rows.item_id.to_numpy() + self.campaign * N_ITEMS[0],
            rows.click.to_numpy(float),
            rows.propensity_score.to_numpy(),
            np.hstack([customer, self.campaign[:, None]]),
            self.position,
        )

    def uniform(self) -> np.ndarray:
        """Return the chances (n, 80) of the policy ``random``."""
        men = np.repeat([True, False], N_ITEMS)
        chances = np.stack([men / N_ITEMS[0], ~men / N_ITEMS[1]])
        return chances[self.campaign]

    def as_logged_by(self, other: "OpenBandit") -> np.ndarray:
        """Return the chances (n, 80) with which another log shows items at the campaign and position of the rounds."""
        shown = np.zeros((2, 3, sum(N_ITEMS)))
        np.add.at(shown, (other.campaign, other.position, other.log.action), 1)
        return (shown / shown.sum(2, keepdims=True))[self.campaign, self.position]


def open_bandit(impressions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row per direction and estimator: the estimate beside the value that the policy's own log shows."""
    logs = {name: OpenBandit(impressions, name) for name in ("random", "bts")}
    rows = []
    for name, other in (("bts", "random"), ("random", "bts")):
        log = logs[other].log
        asked = logs[other].as_logged_by(logs[name]) if name == "bts" else logs[other].uniform()
        own = evaluate(logs[name].log, None, "ips")
        verdict = compare(log, asked).sentence
        for estimator, clip in [*((one, None) for one in ESTIMATORS), ("dr", 100.0)]:
            found = evaluate(log, asked, estimator, clip=clip)
            rows.append(
                {"value of": name, "from": other, "estimator": estimator + (f", weights to {clip:g}" if clip else "")}
                | {"estimate": asdict(found), "own": asdict(own), "within": own.low <= found.value <= own.high}
                | {"verdict": verdict}
            )
    return rows


def planted_verdicts(impressions: pd.DataFrame, logs: int) -> list[dict[str, Any]]:
    """Return verdicts on the log of ``random`` with its clicks and one more in a hundred impressions of some items."""
    of = OpenBandit(impressions, "random")
    said = defaultdict(list)
    for seed in range(logs):
        rng = np.random.default_rng(seed)
        good = rng.random(sum(N_ITEMS)) < 1 / 3
        reward = of.log.reward + (good[of.log.action] & (rng.random(len(of.log.action)) < 0.01))
        for name, liked in {"better": good, "bad": ~good}.items():
            chances = of.uniform() * liked
            asked = chances / chances.sum(1, keepdims=True)
            said[name].append(compare(replace(of.log, reward=reward), asked, seed=seed).verdict)
    return [verdicts("open_bandit, clicks planted", name, some) for name, some in said.items()]


def limits_of(measured: dict[str, Any], logs: int) -> list[dict[str, Any]]:
    """Return what was to be shown."""
    allowed = 3 * (0.95 * 0.05 / logs) ** 0.5
    told = [row for row in measured["bandits"] if row["estimator"] != CLIPPED]
    told = [row["coverage"] for row in told if row["effective sample size"] >= MIN_EFFECTIVE_SAMPLE_SIZE]
    visits = [row["coverage"] for row in measured["visits"] if row["coverage"] is not None and "not" not in row["log"]]
    least = f">= {0.95 - allowed:.3f}"
    limits = [
        {"name": f"least coverage of {len(told)} where the log can tell", "value": min(told), "limit": least},
        {"name": "their mean", "value": float(np.mean(told)), "limit": ">= 0.935"},
        {"name": "coverage with customers as units", "value": measured["customers"][0]["coverage"], "limit": least},
        {"name": "least coverage of fqe", "value": min(visits), "limit": least},
    ]
    for row in measured["open bandit"]:
        if row["value of"] == "bts":
            name = f"open_bandit: {row['estimator']} of bts from random within its own interval"
            limits.append({"name": name, "value": int(row["within"]), "limit": ">= 1"})
    wrong = f"< {0.025 + 3 * (0.025 * 0.975 / logs) ** 0.5:.3f}"
    for row in measured["verdicts"]:
        name, passed = f"{row['log']}: {row['candidate']}", row[NOT_BELOW] / row["logs"]
        if row["candidate"] == "better":
            limits.append({"name": f"{name} passes, share", "value": passed, "limit": ">= 0.95"})
        elif row["candidate"].startswith("better"):
            limits.append({"name": f"{name} is called below, share", "value": row[BELOW] / row["logs"], "limit": wrong})
        else:
            limits.append({"name": f"{name} passes, share", "value": passed, "limit": wrong})
    return limits


def told(measured: dict[str, Any], logs: int) -> list[str]:
    """Return the tables."""
    head = ["log", "estimator", "truth", "effective sample size", "coverage", "bias", "rmse", "width", "logs"]

    def cells(row: dict[str, Any]) -> list[Any]:
        coverage = "" if row["coverage"] is None else f"{row['coverage']:.3f} ± {row['binomial error']:.3f}"
        size = "" if row["effective sample size"] is None else f"{row['effective sample size']:,.0f}"
        numbers = [f"{row['bias']:+.4f}", f"{row['rmse']:.4f}", row["width"] or ""]
        return [row["log"], row["estimator"], f"{row['truth']:.4f}", size, coverage, *numbers, row["logs"]]

    lines = ["", "## Bandits of known value", ""]
    lines += [
        f"Coverage of 95 % intervals over {logs} logs, ± its binomial error; effective sample size and width are "
        f"medians. The limits count rows of {MIN_EFFECTIVE_SAMPLE_SIZE} effective rounds at least, without clipping: "
        "below, `compare` says that the log cannot tell. *Hopeless* stays in to show why: the weights that matter are "
        "mostly not in the log, and neither is what would tell so. Clipped weights have intervals around another "
        "value. In the *bent* world the linear model of `dr` learns nothing of the context. Of *rare clicks* some five "
        "are in a thousand rounds; an interval may have no upper end. *Difference* is `compare`'s, to the policy of "
        "the log."
    ]
    lines += table(head, map(cells, measured["bandits"] + measured["customers"]))
    lines += ["", "## Fitted Q evaluation", ""]
    lines += [
        "Visits of two states and two actions, closed-form value, discount 0.9, cut off after 10 steps (truncated) if "
        "they have not ended. With the state not told, Q cannot be expressed, and no interval knows it."
    ]
    lines += table(head, map(cells, measured["visits"]))
    if measured["open bandit"]:
        lines += ["", "## Open Bandit", ""]
        lines += [
            "Clicks an impression, 20,000 impressions a policy, men's and women's campaigns. What `bts` does is taken "
            "from its log: the shares of items at each campaign and position, since it is blind to the customer and "
            "what is asked is its mean over the week in which its posterior moved. `random` is uniform. *Own* is "
            "the mean of the policy's own log."
        ]
        head = ["value of", "from the log of", "estimator", "estimate", "95 %", "own", "95 %", "within own"]
        head += ["effective sample size", "mean weight", "clip bias"]
        rows = []
        for row in measured["open bandit"]:
            found, own = row["estimate"], row["own"]
            rows.append([row["value of"], row["from"], row["estimator"], *shown(found), *shown(own)])
            rows[-1] += ["yes" if row["within"] else "no", f"{found['effective_sample_size']:,.0f}"]
            rows[-1] += [f"{found['mean_weight']:.3f} ± {found['mean_weight_error']:.3f}", f"{found['clip_bias']:+.5f}"]
        lines += table(head, rows)
        for name in ("bts", "random"):
            row = next(row for row in measured["open bandit"] if row["value of"] == name)
            lines += ["", f"`compare` of `{name}` with `{row['from']}` on the log of the latter: {row['verdict']}"]
    lines += ["", "## Verdicts", ""]
    lines += [
        "The current policy is the one that made the log, a uniform one where overlap is not hopeless; *difference* is "
        "the truth, and 1 % of the current policy's value the margin. *Planted*: the impressions and clicks of "
        "`random`, and one more click in a hundred impressions of a third of the items, which *better* shows alone and "
        "*bad* never."
    ]
    lines += table(
        ["log", "candidate", "difference", "logs", *VERDICTS],
        [
            [row["log"], row["candidate"], f"{row['truth']:+.4f}" if "truth" in row else "", row["logs"]]
            + [row[one] for one in VERDICTS]
            for row in measured["verdicts"]
        ],
    )
    return lines


def shown(found: dict[str, float]) -> list[str]:
    """Return a value and its interval."""
    return [f"{found['value']:.5f}", f"{found['low']:.5f} to {found['high']:.5f}"]


if __name__ == "__main__":
    raise SystemExit(main())
