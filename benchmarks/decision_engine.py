"""The claims: an agent re-orders lists only where a gain is shown, and learns no slower than a well-known library's.

``shops``: a night of the demo shop and one of Taobao (purchase, cart, favourite), up to the agent. Its order of the
ranker's first 50 stands beside the ranker's own, that of a control (the same network, taught by what customers did,
weighted by its reward, without a simulated shop) and chance: reward of an episode in the simulated shop, of customers
none of them met, and ndcg@10 of purchases in the night's test window, which chose nothing. Intervals are of customers.

``peers``: the agent beside the DQN of stable-baselines3 in ``nightcart/Shop-v0``, fitted to the demo shop: the same
customers to practise on, the same budget of steps, one thread each, in turns; then both are judged on 2,000 episodes of
customers neither has met, the same for all. That library's agent has no masks, and sees the features of all
candidates, the mask, and the mean vector of the history; it is given its default hyper-parameters, and ours where it
has them too. How much of the difference masks make is told in two ways: ours without them, and theirs kept to what is
allowed when it is judged. Beside them stand the supervised order and chance.

    python benchmarks/decision_engine.py [--only peers] [--shop NAME] [--steps N] [--seeds N] [--home DIR] [--check]

Rows of ``stable-baselines3`` are left out where it is not installed (``pip install 'nightcart[bench]'``). ``--quick``
is a made-up world of seconds, of which only the form is checked; it writes a page only to ``--results``. The demo shop
comes from its package.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gymnasium as gym
import numpy as np
import yaml
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, finish, limits_table, made_by, table
from scipy.sparse.linalg import svds

from recsys_tasks.cli import run_night
from recsys_tasks.contract import EVENT_TYPES, VIEWS
from recsys_tasks.evaluate import judged
from recsys_tasks.ingest import ingest
from recsys_tasks.metrics import bootstrap, per_user
from recsys_tasks.models import BASELINES, Material
from recsys_tasks.models.ease import EASE
from recsys_tasks.models.transformer_dqn import TransformerDQN, ordered
from recsys_tasks.night import plan
from recsys_tasks.recipe import Shelf
from recsys_tasks.simulation.agent import Agent, AgentConfig, play
from recsys_tasks.simulation.replay import Observation
from recsys_tasks.simulation.shop import FEATURES, ShopEnv, ShopVectorEnv
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import World, fit_world
from recsys_tasks.snapshot import DAY, Snapshot, microseconds
from recsys_tasks.split import truth

AS_OF = "2017-12-04"
WINDOW_DAYS = 56
"""From which the world is fitted; lists and vectors are of what was before."""
CANDIDATES, HISTORY, WIDTH = 50, 30, 32
ENVIRONMENTS = 64
EPISODES = 2_000
PEER = "stable-baselines3 DQN"

Policy = Callable[[Observation], np.ndarray]
Spent = tuple[float, float]
"""Seconds, and those of the processor."""


@dataclass(frozen=True)
class Practice:
    """A shop to practise in and to be judged in."""

    world: World
    candidates: np.ndarray
    scores: np.ndarray
    vectors: np.ndarray
    """(n_items, WIDTH) float32"""

    def arguments(self, *, judged: bool) -> dict[str, Any]:
        """Return those of the environments; every second customer is kept for judging."""
        customers = np.arange(int(judged), self.world.n_customers, 2)
        lists = {"candidates": self.candidates, "scores": self.scores, "customers": customers}
        return {"world": self.world, "history": HISTORY, **lists}


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="this part alone; other sections of the page stay")
    parser.add_argument("--steps", type=int, default=100_000, help="budget of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds")
    parser.add_argument("--shop", choices=SHOPS, help="of the part shops, this one alone; others' sections stay")
    parser.add_argument("--home", type=Path, help="where to leave the nights of shops (default: a temporary folder)")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    where = options.results or (None if options.quick else RESULTS)
    file = where / "decision_engine.json" if where else None
    measured: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    for name in [options.only] if options.only else ["peers"] if options.quick else PARTS:
        measured[name] = PARTS[name][0](options, measured.get(name, {}))
    told = {name: measured[name] for name in PARTS if name in measured}
    measured["limits"] = [limit for part in told.values() for limit in part["limits"]]
    lines = ["# The decision engine", *limits_table(measured["limits"])]
    lines += [line for name, part in told.items() for line in PARTS[name][1](part)]
    return finish("decision_engine", lines, measured, where, options.check)


def peers(options: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of all trainings, judged, and the limits."""
    practice = made_up() if options.quick else demo_shop()
    steps, episodes = (2_000, 64) if options.quick else (options.steps, EPISODES)
    chance, rows = np.random.default_rng(0), []

    def judge(name: str, seed: int, policy: Policy, spent: Spent, shop: type[ShopVectorEnv] = ShopVectorEnv) -> None:
        env, wasted = shop(EPISODES // 10, **practice.arguments(judged=True)), []

        def watched(observation: Observation) -> np.ndarray:
            action = policy(observation)
            wasted.append(~np.take_along_axis(env.action_masks(), action[:, None], 1))
            return action

        found = play(env, watched, episodes, seed=1)
        error = 1.96 * found.std(ddof=1) / len(found) ** 0.5
        row = {"name": name, "seed": seed, "reward": float(found.mean()), "+-": float(error)}
        seconds, row["cpu seconds"] = spent
        row |= {"seconds": seconds, "steps a second": steps / seconds if seconds else None}
        rows.append({**row, "wasted": float(np.mean(wasted))})
        logging.info("%s", json.dumps(rows[-1]))

    judge("chance", 0, lambda seen: best_allowed(chance.random(seen["action_mask"].shape), seen), (0, 0))
    judge("supervised order", 0, lambda seen: best_allowed(seen["features"][:, :, 0], seen), (0, 0))
    for seed in range(1 if options.quick else options.seeds):
        for name, shop in {"ours": ShopVectorEnv, "ours, without masks": Unmasked}.items():
            agent, spent = ours(practice, shop, steps, seed)
            judge(name, seed, agent.act, spent, shop)
        if find_spec("stable_baselines3"):
            for name, settings in {"": {}, ", our hyper-parameters": as_ours(AgentConfig(), steps)}.items():
                q_values, spent = theirs(practice, settings, steps, seed)
                judge(f"{PEER}{name}", seed, lambda seen, q=q_values: q(seen).argmax(1), spent)
                kept = f"{PEER}{name}, judged on what is allowed"
                judge(kept, seed, lambda seen, q=q_values: best_allowed(q(seen), seen), spent)
    packages = ["tensorflow", "gymnasium", *(["stable-baselines3", "torch"] if find_spec("stable_baselines3") else [])]
    return {"steps": steps, "rows": rows, "limits": [] if options.quick else limits(rows), "made by": made_by(packages)}


def limits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was to be shown: beside that one of the peer's ways that earns most, its reward and its time."""
    means = {row["name"]: [np.mean([r[k] for r in rows if r["name"] == row["name"]]) for k in KEYS] for row in rows}
    reward, seconds = means["ours"]
    found = [("reward, ours over the supervised order", reward / means["supervised order"][0], ">= 1")]
    if others := [mean for name, mean in means.items() if name.startswith(PEER)]:
        best, its_seconds = max(others)
        found.append((f"reward, ours over the best of {PEER}", reward / best, ">= 1"))
        found.append(("wall time, ours over that one", seconds / its_seconds, "< 0.7"))
    return [{"name": name, "value": float(value), "limit": limit} for name, value, limit in found]


KEYS = ("reward", "seconds")


def peers_section(part: dict[str, Any]) -> list[str]:
    """Return the lines of the page."""
    head = ["", "seed", "reward of an episode", "+-", "training, s", "CPU s", "steps a second", "slots wasted"]
    keys = ("name", "seed", "reward", "+-", "seconds", "cpu seconds", "steps a second", "wasted")
    rows = [["" if row[key] is None else row[key] for key in keys] for row in part["rows"]]
    lines = ["", "## Beside stable-baselines3", "", f"{part['steps']:,} steps of training each, one thread."]
    if not any(row["name"].startswith(PEER) for row in part["rows"]):
        lines += ["", "- stable-baselines3 left out: it is not installed"]
    return [*lines, *table(head, rows), "", part["made by"]]


def shops(options: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of each shop, its gate's verdicts and the seconds of learning."""
    found: dict[str, Any] = dict(known.get("shops", {}))
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        for name, as_of in SHOPS.items():
            if options.shop not in (None, name):
                continue
            home = Path(options.home or scratch).absolute() / name
            if shop := described(name, home):
                found[name] = {**of_shop(shop, as_of, home), "made by": made_by(PACKAGES)}
    limits = []
    if demo := found.get("complete_journey"):
        limits.append({"name": "learning for the demo shop, s", "value": demo["learning"]["seconds"], "limit": "< 180"})
        share = demo["recommending"]["agent"] / demo["recommending"]["supervised"]
        limits.append({"name": "recommending with the agent over without, CPU", "value": share, "limit": "< 1.2"})
    return {"shops": found, "limits": limits}


def described(name: str, home: Path) -> str | None:
    """Return the name or file of a shop; None without its data."""
    if name == "complete_journey":
        return name
    log_of = data_folder() / name / "events.parquet"
    if not log_of.exists():
        print(f"{name} skipped: {log_of} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return None
    home.mkdir(parents=True, exist_ok=True)
    columns = {column: column for column in ("user_id", "item_id", "timestamp", "event_type")}
    source = {"format": "tabular", "events": {"path": str(log_of.absolute()), "columns": columns}}
    windows = {"validation_days": 2, "test_days": 2}
    shop = {"name": name, "source": source, "time_zone": "UTC", "target": "purchase", "windows": windows}
    (home / "shop.yaml").write_text(yaml.safe_dump(shop))
    return str(home / "shop.yaml")


def of_shop(shop: str, as_of: str, home: Path) -> dict[str, Any]:
    """Run a night up to its models, teach the agent, and compare orders of the ranker's lists."""
    os.environ["NIGHTCART_HOME"] = str(home)
    night = plan(shop, as_of, datetime.now(UTC), [*BASELINES, "sasrec", "ranker"], publish=False)
    ids = run_night(night, "train")
    shelf = Shelf.open(night.lake, night.shop, ids["ingest"], ids["embed"])
    ranker = shelf.load(shelf.model_ids(night.recipes, night.windows.fit_end, night.starts)["ranker"])
    agent = TransformerDQN()
    started = clocks()
    agent.fit(replace(shelf.lesson(night.windows), sources={"ranker": ranker}))
    seconds = since(started)
    assert agent.control_ is not None
    report, verdicts, spent, rng = agent.report(), {}, dict[str, float](), np.random.default_rng(0)
    others = {"control": ordered(*agent.control_), "random": lambda seen: rng.random(seen["action_mask"].shape)}
    rows = {name: {"reward": [report[f"simulated/{name}{end}"] for end in ENDS]} for name in ORDERS}
    candidates = shelf.catalog.candidates(night.windows.validation_end)
    for view in VIEWS:
        known = truth(shelf.interactions, night.windows.validation_end, night.windows.as_of, view)
        values = {}
        known.past.of_user(0)  # what is counted once of a log, neither of them is to pay for
        for name, model in {"agent": agent, "supervised": ranker}.items():
            began = clocks()
            ranked = model.recommend(known.past, known.users, 50, candidates, exclude_seen=known.exclude_seen)
            spent[name] = spent.get(name, 0.0) + since(began)[1]
            values[name] = per_user(ranked.items, known.items)["ndcg@10"]
        observed = agent._observer(known.past)(known.users, np.where(ranked.filled, -1, ranked.items), ranked.scores)
        for name, order in others.items():
            place = np.where(observed["action_mask"] > 0, -order(observed), np.inf).argsort(1, kind="stable")
            values[name] = per_user(np.take_along_axis(ranked.items, place, 1), known.items)["ndcg@10"]
        lifts = {f"{name} over supervised": values[name] - values["supervised"] for name in values}
        ends = bootstrap({**values, **lifts})
        for name in ORDERS:
            lift, value = f"{name} over supervised", values[name]
            rows[name][view] = [float(value.mean()), *ends[name]]
            rows[name][f"{view} lift"] = [float(lifts[lift].mean()), *ends[lift]]
        verdicts[view] = judged(report, lifts["agent over supervised"], None).reason
    found = {"rows": rows, "verdicts": verdicts, "weight of Q": report["weight of Q"], "as of": as_of}
    return found | {"recommending": spent, "learning": dict(zip(("seconds", "cpu seconds"), seconds, strict=True))}


def shops_section(part: dict[str, Any]) -> list[str]:
    """Return the lines of the page."""
    lines: list[str] = []
    for name, found in part["shops"].items():
        lines += ["", f"## {name}, as of {found['as of']}", ""]
        head = ["order of the ranker's first 50", "simulated reward of an episode"]
        head += [text for view in VIEWS for text in (f"ndcg@10, {view}", "over supervised")]
        keys = ["reward", *(key for view in VIEWS for key in (view, f"{view} lift"))]
        lines += table(head, [[row, *(told(cells[key]) for key in keys)] for row, cells in found["rows"].items()])
        spent, both = found["learning"], found["recommending"]
        wall, processor = spent["seconds"], spent["cpu seconds"]
        lines += ["", f"- learning: {wall:.0f} s, {processor:.0f} s of one processor"]
        lines += [f"- weight of Q beside the supervised score: {found['weight of Q']:g}"]
        lines += [f"- lists of the test window's customers, CPU s: {both['supervised']:.1f} by the ranker, "]
        lines[-1] += f"{both['agent']:.1f} with the agent"
        lines += [f"- the gate, {view}: {verdict}" for view, verdict in found["verdicts"].items()]
        lines += ["", found["made by"]]
    return lines


def told(cell: list[float]) -> str:
    """Return a value with its interval."""
    value, low, high = cell
    return f"{value:.4f} ({low:.4f} to {high:.4f})"


ORDERS = ("supervised", "control", "agent", "random")
SHOPS = {"complete_journey": "2017-12-04T00:00:00Z", "taobao_2017": "2017-12-03T16:00:00Z"}
PACKAGES = ["tensorflow", "lightgbm", "gymnasium", "numpy"]
ENDS = ("", " low", " high")
PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., list[str]]]] = {
    "shops": (shops, shops_section),
    "peers": (peers, peers_section),
}


def clocks() -> Spent:
    """Return what clock and processor say."""
    return time.monotonic(), time.process_time()


def since(started: Spent) -> Spent:
    """Return what went by."""
    now = clocks()
    return now[0] - started[0], now[1] - started[1]


class Unmasked(ShopVectorEnv):
    """Allows everything, and tells what is wasted as one more feature."""

    def _observation(self, rows: Any = slice(None)) -> dict[str, np.ndarray]:
        seen = super()._observation(rows)
        features = np.concatenate([seen["features"], seen["action_mask"][:, :, None]], 2, dtype=np.float32)
        return {**seen, "features": features, "action_mask": np.ones_like(seen["action_mask"])}


def ours(practice: Practice, shop: type[ShopVectorEnv], steps: int, seed: int) -> tuple[Agent, Spent]:
    """Return a trained agent, and seconds of everything from its building on."""
    started = clocks()
    n_features = len(FEATURES) + (shop is Unmasked)
    agent = Agent(practice.vectors, len(EVENT_TYPES), n_features, HISTORY, AgentConfig(), seed)
    agent.train(shop(ENVIRONMENTS, **practice.arguments(judged=False)), steps)
    return agent, since(started)


class Flat(gym.ObservationWrapper):
    """Features of all candidates, the mask, and the mean vector of the history, in one row."""

    def __init__(self, env: gym.Env, vectors: np.ndarray) -> None:
        super().__init__(env)
        self.vectors = vectors
        n_candidates, n_features = env.observation_space["features"].shape
        shape = (n_candidates * n_features + n_candidates + vectors.shape[1],)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)

    def observation(self, observation: Observation) -> np.ndarray:
        """Return (d,) float32."""
        return flat({name: array[None] for name, array in observation.items()}, self.vectors)[0]


def flat(observation: Observation, vectors: np.ndarray) -> np.ndarray:
    """Return (n, d) float32; ``vectors`` (n_items + 1, WIDTH), the first for none."""
    there = (observation["history"] > 0).sum(1, keepdims=True)
    history = vectors[observation["history"]].sum(1) / np.maximum(there, 1)
    parts = (observation["features"].reshape(len(there), -1), observation["action_mask"], history)
    return np.hstack(parts).astype(np.float32)


def as_ours(config: AgentConfig, steps: int) -> dict[str, Any]:
    """Return our hyper-parameters, those that DQN of stable-baselines3 has; it steps one environment."""
    return {
        "gamma": config.discount,
        "n_steps": config.n_steps,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "buffer_size": config.capacity,
        "learning_starts": config.warm_up,
        "train_freq": ENVIRONMENTS // config.updates,
        "target_update_interval": config.target_every * ENVIRONMENTS // config.updates,
        "exploration_fraction": config.exploration,
        "exploration_final_eps": config.epsilon[1],
    }


def theirs(
    practice: Practice, settings: dict[str, Any], steps: int, seed: int
) -> tuple[Callable[[Observation], np.ndarray], Spent]:
    """Return a trained agent's Q of all candidates, and seconds; default hyper-parameters but for the settings."""
    import torch
    from stable_baselines3 import DQN

    torch.set_num_threads(1)
    vectors = np.vstack([np.zeros((1, WIDTH), np.float32), practice.vectors])
    started = clocks()
    env = Flat(ShopEnv(**practice.arguments(judged=False)), vectors)
    settings = {"buffer_size": steps, **settings}  # of a million by default, more than there will be
    agent = DQN("MlpPolicy", env, seed=seed, device="cpu", **settings).learn(steps)
    spent = since(started)

    def q_values(observation: Observation) -> np.ndarray:
        with torch.no_grad():
            return agent.q_net(torch.from_numpy(flat(observation, vectors))).numpy()

    return q_values, spent


def best_allowed(values: np.ndarray, observation: Observation) -> np.ndarray:
    """Return (n,) the highest of each row that the mask allows."""
    return np.where(observation["action_mask"] > 0, values, -np.inf).argmax(1)


def demo_shop() -> Practice:
    """Return the demo shop: lists of EASE, vectors of a truncated SVD, both of what was before the world's window."""
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as home:
        os.environ["NIGHTCART_HOME"] = home
        night = plan("complete_journey", f"{AS_OF}T00:00:00Z", datetime.now(UTC), publish=False)
        snapshot = Snapshot(night.lake, ingest(night))
        visits, catalog = Visits.read(snapshot, night.shop), snapshot.catalog()
        end = microseconds(night.instant)
        start = end - WINDOW_DAYS * DAY
        past = snapshot.interactions(night.shop).before(start)
    world = fit_world(visits, catalog, start, end)
    model = EASE().fit(Material(past, catalog, np.zeros((catalog.n_items, 1), np.float32)))
    known = catalog.candidates(start)
    lists = model.recommend(past, world.user, CANDIDATES, known, exclude_seen=False)
    _, strength, vectors = svds(past.matrix().sign().astype(np.float32), WIDTH, random_state=0)
    return Practice(world, lists.items, lists.scores, (vectors.T * np.sqrt(strength)).astype(np.float32))


def made_up() -> Practice:
    """Return a world of 200 customers who buy what is of their own of six departments."""
    from recsys_tasks.snapshot import Catalog

    rng, n_users, n_items = np.random.default_rng(0), 200, 120
    user = np.repeat(np.arange(n_users), 60)
    own = rng.random(len(user)) < 0.7
    item = np.where(own, user % 6 + 6 * rng.integers(0, n_items // 6, len(user)), rng.integers(0, n_items, len(user)))
    time_of = np.sort(rng.integers(0, 100, (n_users, 60)), 1).ravel() * DAY
    kind = np.full(len(user), EVENT_TYPES.index("purchase"))
    weights = {name: float(name == "purchase") for name in EVENT_TYPES}
    visits = Visits.of(n_users, n_items, weights, "purchase", user=user, item=item, time=time_of, kind=kind)
    empty = np.full(n_items, "", object)
    departments = np.array([str(n % 6) for n in range(n_items)], object)
    catalog = Catalog(
        item_ids=np.array([f"{n:03d}" for n in range(n_items)], object),
        titles=empty, texts=empty, brands=empty, categories=departments, departments=departments,
        prices=np.ones(n_items, np.float32), available=np.ones(n_items, bool), known_since=np.zeros(n_items, np.int64),
    )  # fmt: skip
    world = fit_world(visits, catalog, 50 * DAY, 100 * DAY, topics=4)
    candidates = np.array([rng.permutation(n_items)[:20] for _ in range(world.n_customers)], np.int32)
    scores = np.tile(np.linspace(1, 0, 20, dtype=np.float32), (len(candidates), 1))
    return Practice(world, candidates, scores, np.eye(n_items, WIDTH, dtype=np.float32))


if __name__ == "__main__":
    raise SystemExit(main())
