"""How like the shop's customers those of a ``World`` are: visits simulated, beside visits of the log held out from it.

The simulated customers choose for themselves, from the whole catalogue and by their hidden preference, rhythm and
satiation; nothing is shown to them, as in the log nothing is known to have been. What the world assumes of answers to
what is shown (``response``, ``boredom``) is not tested here: a log without impressions cannot.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import World, bucket
from recsys_tasks.snapshot import DAY, Catalog

POOL = 512
"""Items drawn from a customer's preference, which all the customer's choices are among."""
PANELS = {
    "visit_length": "items of a visit",
    "target_rate": "share of a visit's items with the target event",
    "event_types": "event types",
    "repeat_rate": "share of a visit's items with the target event before",
    "return_days": "days to the next visit",
    "department_transitions": "departments of one item and the next",
    "popularity": "log2 rank of the item's popularity",
    "price": "log of the item's price",
}
"""What is compared, as plots name it."""
CATEGORIES = ("event_types", "department_transitions")
SPLITS = 5
DEPARTMENTS = 40
"""Of more, the rest count as one."""
LOG = {"color": "#9aa0a6"}
MODEL = {"histtype": "step", "edgecolor": "#1a73e8", "linewidth": 1.5}


@dataclass(frozen=True)
class Measure:
    """One comparison. Distances are 0 for the same distribution, and lower is better."""

    name: str
    distance: float
    """Wasserstein over the log's standard deviation, or Jensen-Shannon (base 2, from 0 to 1) of categories"""
    yardstick: float
    """The same distance between two random halves of the log's customers, the mean of ``SPLITS``"""
    kind: str
    """``wasserstein`` or ``jensen_shannon``"""
    log: float
    """Mean in the log; of categories the share of the commonest"""
    simulated: float


@dataclass(frozen=True)
class Report:
    """What ``validity`` found."""

    measures: list[Measure]
    left_out: dict[str, str]
    """What the shop has no data for, and why"""
    customers: int
    visits: dict[str, int]
    samples: dict[str, tuple[np.ndarray, np.ndarray]]
    """Of each measure, of the log and simulated: values, or counts of categories"""
    start: int
    end: int

    def write(self, folder: Path) -> None:
        """Write ``validity.json`` and ``validity.png``."""
        described = {
            "simulated": "customers that choose for themselves by their hidden preference; nothing is shown to them",
            "start": self.start,
            "end": self.end,
            "customers": self.customers,
            "visits": self.visits,
            "measures": [asdict(measure) for measure in self.measures],
            "left_out": self.left_out,
        }
        (folder / "validity.json").write_text(json.dumps(described, indent=1) + "\n")
        plot(self, folder / "validity.png")


def validity(
    world: World, visits: Visits, catalog: Catalog, end: int, *, max_customers: int = 2000, seed: int = 0
) -> Report:
    """Compare visits of the world's customers in [world.end, end), which it was not fitted to, with simulated ones.

    Raises
    ------
    ContractError
        None of the customers came in that time, in the log or simulated.

    """
    rng = np.random.default_rng(seed)
    customers = np.arange(world.n_customers)
    if len(customers) > max_customers:
        customers = np.sort(rng.choice(customers, max_customers, replace=False))
    users = world.user[customers]
    known = visits.where((visits.time < end) & np.isin(visits.user, users))
    simulated = simulate(world, known.where(known.time < world.start), customers, end, rng)
    both = [_facts(world, part, part.began >= world.end) for part in (known, simulated)]
    if not (both[0]["customers"].size and both[1]["customers"].size):
        raise ContractError("nobody came in the time held out from the world; give it a longer one")
    left_out = {}
    if len(set(catalog.departments)) < 2:
        left_out["department_transitions"] = "the catalogue has no departments"
    if not np.isfinite(both[0]["price"]).any():
        left_out["price"] = "neither the catalogue nor the log has prices"
    if len(np.unique(known.kind)) < 2:
        left_out |= dict.fromkeys(("target_rate", "event_types"), "the log has a single type of event")
    halves = []
    for _ in range(SPLITS):
        half = (rng.random(visits.n_users) < 0.5)[known.user[known.starts]]
        halves.append([_facts(world, known, (known.began >= world.end) & (half == side)) for side in (True, False)])
    measures, samples = [], {}
    for name in PANELS:
        if name not in left_out:
            log, model = both[0][name], both[1][name]
            measure = _measure(name, log, model, [(one[name], other[name]) for one, other in halves])
            if np.isfinite([measure.distance, measure.yardstick]).all():
                measures.append(measure)
                samples[name] = (log, model)
            else:
                left_out[name] = "there are too few to compare"
    counts = {"log": len(both[0]["visit_length"]), "simulated": len(both[1]["visit_length"])}
    return Report(measures, left_out, len(customers), counts, samples, world.end, end)


def simulate(world: World, past: Visits, customers: np.ndarray, end: int, rng: np.random.Generator) -> Visits:
    """Return the past and, after it, visits from ``world.start`` to ``end`` of customers that choose for themselves."""
    rows = [
        _simulate(world, customers[at : at + 256], (end - world.start) / DAY, rng)
        for at in range(0, len(customers), 256)
    ]
    user, item, day, kind, visit = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    order = np.lexsort((visit, user))  # stable: within a visit items stay in their order
    time = world.start + (day * DAY).astype(np.int64)
    of_user = np.concatenate([past.user, user[order]])
    again = np.argsort(of_user, kind="stable")
    number = np.concatenate([past.visit, past.visit.max(initial=0) + 1 + visit[order]])[again]
    new = (np.diff(of_user[again], prepend=-1) != 0) | (np.diff(number, prepend=-1) != 0)
    return Visits(
        past.n_users,
        past.n_items,
        past.weights,
        past.target,
        user=of_user[again].astype(np.int32),
        item=np.concatenate([past.item, item[order]])[again].astype(np.int32),
        time=np.concatenate([past.time, time[order]])[again],
        kind=np.concatenate([past.kind, kind[order]])[again].astype(np.int8),
        price=np.concatenate([past.price, world.price[item[order]]])[again],
        visit=(np.cumsum(new) - 1).astype(np.int32),
    )


def _simulate(world: World, customers: np.ndarray, days: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Return user, item, day since ``world.start``, kind and visit of each event, in the order of happening."""
    n = len(customers)
    pool = world.draws(customers, POOL, rng)  # (n, POOL), an item as often as it is preferred
    of_pool = world.department[pool]
    last = -world.bought(customers, pool)[1]
    target = EVENT_TYPES.index(world.target)

    def gap(group: np.ndarray) -> np.ndarray:
        return ((rng.random((len(group), 1)) >= world.gap_steps[group]).sum(1) + rng.random(len(group))) / 24

    day = gap(np.ones(n, np.intp)) * rng.random(n)  # where in its gap a customer is at the start
    rhythm = world.rhythm[bucket(day[:, None] - last)]
    met, with_target = np.zeros(pool.shape, np.intp), np.zeros(n, bool)
    visit, items, before = np.zeros(n, np.intp), np.zeros(n, np.intp), np.zeros(n, np.intp)
    shown = np.zeros(pool.shape, bool)
    found: list[tuple[np.ndarray, ...]] = []
    here = np.flatnonzero(day < days)
    while len(here):
        chance = (rhythm[here] * world.satiation[np.minimum(met[here], 3)] * ~shown[here]).cumsum(1)
        some = chance[:, -1] > 0
        choice = (rng.random((len(here), 1)) * chance[:, -1:] < chance).argmax(1)
        item = pool[here, choice]
        department = world.department[item]
        kind = (rng.random((len(here), 1)) >= world.kind_steps[before[here], department]).sum(1)
        found.append(tuple(x[some] for x in (world.user[customers[here]], item, day[here], kind, visit[here])))
        before[here] = kind + 1
        same = (pool[here] == item[:, None]) & some[:, None]
        shown[here] |= same
        met[here] += of_pool[here] == department[:, None]
        did = same & (kind == target)[:, None]
        last[here] = np.where(did, day[here, None], last[here])
        with_target[here] |= did.any(1)
        items[here] += 1
        over = ~some | (rng.random(len(here)) < world.ends[np.minimum(items[here], len(world.ends)) - 1])
        leaving = here[over]
        group = with_target[leaving].astype(np.intp)
        back = rng.random(len(leaving)) < world.returns[group]
        day[leaving] = np.where(back, day[leaving] + gap(group), np.inf)
        visit[leaving] += 1
        items[leaving], before[leaving], met[leaving], with_target[leaving], shown[leaving] = 0, 0, 0, False, False
        leaving = leaving[day[leaving] < days]
        rhythm[leaving] = world.rhythm[bucket(day[leaving, None] - last[leaving])]
        here = here[day[here] < days]
    if not found:
        return [np.empty(0, int)] * 5
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _facts(world: World, visits: Visits, inside: np.ndarray) -> dict[str, np.ndarray]:
    """What is compared, of the visits that are ``inside``, (n_visits,) bool."""
    rows = inside[visits.number]
    number = np.unique(visits.number[rows], return_inverse=True)[1]
    item, kind = visits.item[rows], visits.kind[rows]

    def share(of: np.ndarray) -> np.ndarray:
        return np.bincount(number, of[rows]) / np.maximum(np.bincount(number), 1)

    gap = visits.gap_days[inside]
    rank = np.empty(world.n_items)
    rank[np.argsort(-world.known_popularity, kind="stable")] = np.arange(1, world.n_items + 1)
    commonest = np.argsort(-np.bincount(world.department, world.known_popularity), kind="stable")[:DEPARTMENTS]
    place = np.full(world.department.max() + 1, len(commonest))
    place[commonest] = np.arange(len(commonest))
    department, n = place[world.department[item]], len(commonest) + 1
    follows = number[1:] == number[:-1]
    price = world.price[item]
    return {
        "customers": np.unique(visits.user[rows]),
        "visit_length": visits.lengths[inside].astype(float),
        "target_rate": share(visits.is_target),
        "event_types": np.bincount(kind, minlength=len(EVENT_TYPES)).astype(float),
        "repeat_rate": share(np.isfinite(visits.days_since_target)),
        "return_days": gap[np.isfinite(gap)],
        "department_transitions": np.bincount((department[:-1] * n + department[1:])[follows], minlength=n * n).astype(
            float
        ),
        "popularity": np.log2(rank[item]),
        "price": np.log(price[price > 0]),
    }


def _measure(name: str, log: np.ndarray, model: np.ndarray, halves: list[tuple[np.ndarray, np.ndarray]]) -> Measure:
    if name in CATEGORIES:
        commonest = int(log.argmax())
        means = [float(counts[commonest] / max(counts.sum(), 1)) for counts in (log, model)]
        apart = [float(jensenshannon(*pair, base=2)) for pair in [(log, model), *halves]]
    else:
        deviation = float(log.std()) or 1.0
        means = [float(values.mean()) if len(values) else float("nan") for values in (log, model)]
        apart = [_wasserstein(*pair) / deviation for pair in [(log, model), *halves]]
    kind = "jensen_shannon" if name in CATEGORIES else "wasserstein"
    return Measure(name, apart[0], float(np.mean(apart[1:])), kind, means[0], means[1])


def _wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    return float(wasserstein_distance(one, other)) if len(one) and len(other) else float("nan")


def plot(report: Report, path: Path) -> None:
    """Draw a panel for each measure."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8}):
        columns = min(4, len(report.measures))
        rows = -(-len(report.measures) // columns)
        figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(report.measures) :]:
            axes.axis("off")
        for axes, measure in zip(panels, report.measures, strict=False):
            log, model = report.samples[measure.name]
            if measure.name in CATEGORIES:
                _draw_categories(axes, log / log.sum(), model / max(model.sum(), 1))
            else:
                _draw_values(axes, log, model)
            short = {"wasserstein": "W/sd", "jensen_shannon": "JS"}[measure.kind]
            numbers = f"{short} {measure.distance:.3f} (two halves of the log {measure.yardstick:.3f})"
            axes.set_title(f"{PANELS[measure.name]}\n{numbers}", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False)
        figure.suptitle("Customers that choose for themselves, simulated, beside the log held out", fontsize=10)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_values(axes: Any, log: np.ndarray, model: np.ndarray) -> None:
    both = np.concatenate([log, model])
    low, high = np.quantile(both, [0, 0.99])
    whole = bool((both == np.round(both)).all()) and high - low < 60
    bins = np.arange(low - 0.5, high + 1.5) if whole else np.linspace(low, max(high, low + 1e-9), 31)
    for sample, name, style in ((log, "log", LOG), (model, "simulated", MODEL)):
        axes.hist(
            np.clip(sample, bins[0], bins[-1]), bins, weights=np.full(len(sample), 1 / len(sample)), label=name, **style
        )
    axes.set_ylabel("share")


def _draw_categories(axes: Any, log: np.ndarray, model: np.ndarray) -> None:
    if len(log) == len(EVENT_TYPES):
        met = np.flatnonzero(log + model)
        axes.bar(np.arange(len(met)) - 0.2, log[met], 0.4, color=LOG["color"])
        axes.bar(np.arange(len(met)) + 0.2, model[met], 0.4, color=MODEL["edgecolor"])
        axes.set_xticks(range(len(met)), [EVENT_TYPES[kind] for kind in met])
        axes.set_ylabel("share")
        return
    both = (log > 0) & (model > 0)
    ends = [min(log[both].min(), model[both].min()), max(log.max(), model.max())]
    axes.loglog(log[both], model[both], ".", ms=3, color=MODEL["edgecolor"])
    axes.loglog(ends, ends, lw=1, color=LOG["color"])
    axes.set_xlabel("share in the log")
    axes.set_ylabel("simulated")
