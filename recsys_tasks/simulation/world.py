"""How the customers of one shop behave, fitted to its log: what ``nightcart/Shop-v0`` and its validity report run on.

What an agent may see, the customers' histories, is what was known before ``start``. What they prefer is learned from
the visits in [start, end) alone, so to foresee it from a history is to generalise. Letters: n customers of the world,
m items, D departments, T event types (``contract.EVENT_TYPES``), K topics.

**Preference** P(item | customer), which sums to 1 and is above 0 for every item: the customer's own counts in the
window with Dirichlet smoothing (Zhai & Lafferty 2001) towards a mixture of probabilistic latent semantic analysis
(Hofmann 1999: KL factorisation of customers x items by expectation maximisation), the customer's categories, and
popularity. Mixture and smoothing are those that say most of every second visit from the others. Popularity keeps for
items nobody met the share of those met once (Good 1953).

**Rates** of all visits before ``end``: event types by department, with Dirichlet smoothing; the hazard that a visit
ends after so many items; whether and after how many days customers come back, with and without the target event (life
table, censored at the log's end). Of the window: how much likelier than the preference says an item is by the days
since the customer last did the target event with it (``rhythm``), and its department by the items of it met in the
visit (``satiation``): observed over expected, where the preference leaves the visit itself out.

**Assumed, for a log without impressions cannot tell**: an item such as customers choose for themselves is answered,
when it is shown, with probability ``response``; any item with 1 - exp(-scale * preference * rhythm * satiation), of
which ``scale`` is set so. ``boredom`` is the share of the lowest hazard of leaving that is due to items without an
answer; the rest is having had enough. Whatever is assumed, visits of customers that choose for themselves are as long
as the log's: a visit that ends after so many items ended there, or with the slots without an answer that followed.
"""

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.snapshot import DAY, Catalog

FORMAT = 1
NEWEST = 64
"""Events of a history that are kept."""
HORIZON_DAYS = 90
"""Who has not come back after as many days, or half of what the log spans, has left."""
BUCKETS = 11
"""Of the days since the last target event with an item."""
ITERATIONS = 40
"""Of expectation maximisation."""
TOPIC_COUNTS = 5
"""Events that the shop's own topics weigh in a customer's."""
_PRIOR = 20
"""Items as expected that are added to those observed, lest few decide."""
_CHUNK = 1_000_000
_ROWS = 1024
"""Customers worked on at a time."""
_DEPARTMENTS = 256
"""Of more, the smallest count as one."""
_SAMPLE = 20_000
"""Visits that satiation is counted in."""
_ENOUGH = 100
"""Visits below which a rate is taken from a larger group."""


@dataclass(frozen=True)
class World:
    """The fitted behaviour; a row of it is a customer that was known at ``start`` and came in the window."""

    start: int
    """microseconds since 1970; histories end here, and episodes begin"""
    end: int
    target: str
    response: float
    boredom: float
    scale: float
    bored: float
    """probability of leaving after a slot without an answer"""
    smoothing: float
    """counts that the mixture weighs in a preference"""
    user: np.ndarray
    """(n,) int32 user_idx, ascending"""
    weights: np.ndarray
    """(T,) float32 reward of each event type"""
    history_item: np.ndarray
    """(n, NEWEST) int32 item_idx + 1 of the newest events before ``start``, right-aligned; 0 for none"""
    history_kind: np.ndarray
    """(n, NEWEST) int8 place in EVENT_TYPES + 1"""
    bought_start: np.ndarray
    """(n + 1,) int64 where a customer's pairs begin in the three arrays that follow"""
    bought_item: np.ndarray
    """int32, ascending: items of the target events before ``start``"""
    bought_times: np.ndarray
    """int32"""
    bought_days: np.ndarray
    """float32 days from the newest one to ``start``"""
    department: np.ndarray
    """(m,) int32"""
    category: np.ndarray
    """(m,) int32 the narrowest one, which lies in one department"""
    price: np.ndarray
    """(m,) float32 of the catalogue, else the mean of those paid before ``start``; NaN where neither is known"""
    known_popularity: np.ndarray
    """(m,) int32 events before ``start``: what an agent may know"""
    popularity: np.ndarray
    """(m,) float64, sums to 1: share of the events in the window, hidden from agents like what follows"""
    mixture: np.ndarray
    """(3,) float64 weight of topics, categories, popularity"""
    topics_of: np.ndarray
    """(n, K) float32, rows sum to 1"""
    items_of: np.ndarray
    """(K, m) float32, rows sum to 1"""
    own_start: np.ndarray
    """(n + 1,) int64"""
    own_item: np.ndarray
    """int32, ascending: items of the window"""
    own_times: np.ndarray
    """float32"""
    kinds: np.ndarray
    """(T + 1, D, T) float64, sums to 1 over the last: what is done with an item that is answered, by what was done with
    the one before it in the visit (its place in EVENT_TYPES + 1, 0 for the first), and by department"""
    leave: np.ndarray
    """(M,) float64 probability of leaving after the 1st, 2nd ... answer of a visit; the last one holds for all later"""
    ends: np.ndarray
    """(M,) float64 probability that a visit of the log ends after so many items: ``leave`` or bored before the next"""
    returns: np.ndarray
    """(2,) float64 probability of coming back within the horizon, without and with the target event in the visit"""
    gaps: np.ndarray
    """(2, hours) float64, rows sum to 1: after how many hours those who come back do"""
    rhythm: np.ndarray
    """(buckets,) float64; the first one for pairs without a target event, then by ``bucket``"""
    satiation: np.ndarray
    """(4,) float64 after 0, 1, 2, 3 or more items of the department"""

    @property
    def n_customers(self) -> int:
        """Number of customers."""
        return len(self.user)

    @property
    def n_items(self) -> int:
        """Number of items of the catalogue."""
        return len(self.department)

    def __deepcopy__(self, memo: Any) -> "World":
        """Return itself, for it does not change; Gymnasium copies the arguments of environments."""
        return self

    def assuming(self, response: float, seed: int = 0) -> "World":
        """Return the same customers with another assumed chance of an answer; nothing is fitted again."""
        world = replace(self, response=response, **_leaving(self.ends, response, self.boredom))
        return replace(world, scale=_scale(world, np.random.default_rng(seed)))

    def preference(self, customers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return P(item | customer), float64 in the shape of ``items`` (n, c), of customers (n,); 0 for item -1."""
        found = np.empty(items.shape)
        for start in range(0, len(items), _ROWS):
            part = slice(start, start + _ROWS)
            of, item = customers[part, None], items[part]
            counts = self.own(of, item) + self.smoothing * self.mixed(of, item)
            found[part] = np.where(item >= 0, counts / (self.totals[of] + self.smoothing), 0)
        return found

    def own(self, customers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the counts in the window, of arrays that broadcast."""
        return self._own.find(customers, items)[0]

    def mixed(self, customers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return what the counts are smoothed towards, of arrays that broadcast."""
        return np.tensordot(self.mixture, self._tastes.parts(customers, items), 1)

    def departments(self, customers: np.ndarray) -> np.ndarray:
        """Return P(department | customer), (n, D) float64."""
        to = _groups(self.department)
        share = self.popularity @ to
        totals = self.totals[customers, None]
        own = (self._tastes.counts[customers] @ to).toarray()
        by_category = (own + share) / (1 + totals)
        mixed = self.mixture[0] * (self.topics_of[customers] @ (self.items_of @ to)) + self.mixture[1] * by_category
        return (own + self.smoothing * (mixed + self.mixture[2] * share)) / (totals + self.smoothing)

    def preferences(self, customers: np.ndarray) -> np.ndarray:
        """Return (n, m) float64, rows sum to 1."""
        total = self.totals[customers, None]
        found = self._tastes.dense(customers, self.mixture)
        found *= self.smoothing / (total + self.smoothing)
        for row, customer in enumerate(customers):
            own = slice(self.own_start[customer], self.own_start[customer + 1])
            found[row, self.own_item[own]] += self.own_times[own] / (total[row] + self.smoothing)
        return found

    def draws(self, customers: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return (n_customers, n) int32 items drawn from the preferences."""
        found = np.empty((len(customers), n), np.int32)
        for start in range(0, len(customers), 32):
            part = slice(start, start + 32)
            for row, chance in zip(found[part], self.preferences(customers[part]).cumsum(1), strict=True):
                row[:] = np.searchsorted(chance, rng.random(n) * chance[-1], "right").clip(0, self.n_items - 1)
        return found

    def bought(self, customers: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how often the target event was done before ``start`` and how many days before (inf): (n, c) each."""
        times, days = self._bought.find(customers[:, None], items)
        return times, np.where(times > 0, days, np.inf)

    @cached_property
    def _own(self) -> "_Pairs":
        return _Pairs(self.own_start, self.own_item, self.n_items, self.own_times)

    @cached_property
    def _bought(self) -> "_Pairs":
        return _Pairs(self.bought_start, self.bought_item, self.n_items, self.bought_times, self.bought_days)

    @cached_property
    def totals(self) -> np.ndarray:
        """(n,) float64 items of the window's visits."""
        sums = np.concatenate([[0.0], np.cumsum(self.own_times, dtype=np.float64)])
        return np.diff(sums[self.own_start])

    @cached_property
    def _tastes(self) -> "_Tastes":
        counts = sp.csr_matrix((self.own_times, self.own_item, self.own_start), (self.n_customers, self.n_items))
        return _Tastes(counts, self.category, self.popularity, self.topics_of, self.items_of)

    @cached_property
    def kind_steps(self) -> np.ndarray:
        """(T + 1, D, T - 1): as many of them as a draw from [0, 1) reaches are the place of the event type."""
        return _steps(self.kinds)

    @cached_property
    def gap_steps(self) -> np.ndarray:
        """(2, hours - 1): as many of them as a draw from [0, 1) reaches are the hours."""
        return _steps(self.gaps)

    def save(self, folder: Path) -> None:
        """Write ``world.json`` and one ``.npy`` file an array."""
        described: dict[str, Any] = {"format": FORMAT}
        for name, value in self._state().items():
            if isinstance(value, np.ndarray):
                np.save(folder / f"{name}.npy", value, allow_pickle=False)
            else:
                described[name] = value
        (folder / "world.json").write_text(json.dumps(described, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "World":
        """Read what ``save`` wrote.

        Raises
        ------
        ContractError
            It is of another format.

        """
        described = json.loads((folder / "world.json").read_text())
        if described.pop("format") != FORMAT:
            raise ContractError(f"{folder}: a world of another format; fit it again")
        arrays = [field.name for field in fields(cls) if field.name not in described]
        return cls(**described, **{name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in arrays})

    def _state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def bucket(days: np.ndarray) -> np.ndarray:
    """Return the place in ``World.rhythm``: 0 for never (inf), 1 below a day, 2 below 2 days, 3 below 4 ... 10.

    >>> bucket(np.array([np.inf, 0.5, 1, 3, 1000])).tolist()
    [0, 1, 2, 3, 10]

    """
    known = np.isfinite(days)
    place = 2 + np.floor(np.log2(np.maximum(np.where(known, days, 1), 0.5)))
    return np.where(known, np.minimum(place, BUCKETS - 1), 0).astype(np.intp)


def _steps(shares: np.ndarray) -> np.ndarray:
    """Cumulative shares; nothing reaches beyond the last one above 0, however they are rounded."""
    steps = shares.cumsum(-1)
    return np.where(steps > 1 - 1e-9, 2, steps)[..., :-1]


class _Pairs:
    """Numbers by customer and item, 0 for pairs that are not there."""

    def __init__(self, start: np.ndarray, item: np.ndarray, n_items: int, *values: np.ndarray) -> None:
        customer = np.repeat(np.arange(len(start) - 1), np.diff(start))
        self.n_items = n_items
        self.keys = np.append(customer * n_items + item, np.iinfo(np.int64).max)
        self.values = [np.append(value, np.zeros(1, value.dtype)) for value in values]

    def find(self, customers: np.ndarray, items: np.ndarray) -> list[np.ndarray]:
        """Return the values of each customer and item; item -1 is no pair."""
        wanted = customers.astype(np.int64) * self.n_items + items
        place = np.searchsorted(self.keys, wanted)
        place = np.where((self.keys[place] == wanted) & (items >= 0), place, len(self.keys) - 1)
        return [value[place] for value in self.values]


def fit_world(
    visits: Visits,
    catalog: Catalog,
    start: int,
    end: int,
    *,
    response: float = 0.1,
    boredom: float = 0.5,
    topics: int = 32,
    max_customers: int = 20_000,
    seed: int = 0,
) -> World:
    """Return the behaviour of customers known before ``start`` who came in [start, end).

    Parameters
    ----------
    visits
        The log; what came at or after ``end`` is not read.
    catalog
        For departments and prices.
    start, end
        Microseconds since 1970.
    response, boredom
        What is assumed, see above; from 0 to 1.
    topics
        K, of the preferences.
    max_customers
        Of more, so many are drawn at random.
    seed
        Of that draw, and of where the topics begin.

    Raises
    ------
    ContractError
        Nobody who was known before ``start`` came in the window, or ``response`` or ``boredom`` is no share.

    """
    if not (0 < response < 1 and 0 <= boredom <= 1):
        raise ContractError(f"response {response}, boredom {boredom}: expected shares, response above 0 and below 1")
    rng = np.random.default_rng(seed)
    past = visits.where(visits.time < start)
    known = visits.where(visits.time < end)
    window = known.between(start, end)
    user = np.intersect1d(past.user, window.user)
    if not len(user):
        raise ContractError(f"no customer known before {start} came before {end}; give a longer window or history")
    if len(user) > max_customers:
        user = np.sort(rng.choice(user, max_customers, replace=False))
    category, department = _codes(catalog)
    window = _rows_of(window, user)
    hidden = _preferences(window, user, category, topics, seed)
    rates = _rates(known, department)
    price = np.where(np.isfinite(catalog.prices), catalog.prices, _mean_price(past))
    world = World(
        start=start,
        end=end,
        target=visits.target,
        response=response,
        boredom=boredom,
        scale=1.0,
        user=user.astype(np.int32),
        weights=np.array([visits.weights[name] for name in EVENT_TYPES], np.float32),
        department=department,
        category=category,
        price=price.astype(np.float32),
        known_popularity=np.bincount(past.item, minlength=visits.n_items).astype(np.int32),
        rhythm=np.ones(BUCKETS),
        satiation=np.ones(4),
        **_histories(_rows_of(past, user), user, start),
        **hidden,
        **rates,
        **_leaving(rates["ends"], response, boredom),
    )
    world = replace(world, rhythm=_rhythm(world, _rows_of(known, user)), satiation=_satiation(world, window))
    return replace(world, scale=_scale(world, rng))


def _codes(catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """(m,) int32 number of each item's category, and of its department."""
    department = np.unique(np.array(catalog.departments, str), return_inverse=True)[1]
    narrowest = np.unique(np.array(catalog.categories, str), return_inverse=True)[1]
    category = np.unique(department * len(narrowest) + narrowest, return_inverse=True)[1]
    rank = np.argsort(np.argsort(-np.bincount(department), kind="stable"))
    return category.astype(np.int32), np.minimum(rank, _DEPARTMENTS - 1)[department].astype(np.int32)


def _rows_of(visits: Visits, users: np.ndarray) -> Visits:
    return visits.where(np.isin(visits.user, users))


def _mean_price(visits: Visits) -> np.ndarray:
    """(m,) mean of the prices paid; NaN where none is known."""
    told = visits.price > 0
    total = np.bincount(visits.item[told], visits.price[told], minlength=visits.n_items)
    with np.errstate(invalid="ignore"):
        return total / np.bincount(visits.item[told], minlength=visits.n_items)


def _histories(past: Visits, user: np.ndarray, start: int) -> dict[str, Any]:
    """What was known of each customer at ``start``."""
    row = np.searchsorted(user, past.user)
    ends = np.searchsorted(row, np.arange(len(user)), "right")
    column = NEWEST - (ends[row] - np.arange(len(past)))
    kept = column >= 0
    item, kind = np.zeros((len(user), NEWEST), np.int32), np.zeros((len(user), NEWEST), np.int8)
    item[row[kept], column[kept]] = past.item[kept] + 1
    kind[row[kept], column[kept]] = past.kind[kept] + 1
    target = past.is_target
    key, place, times = np.unique(
        row[target] * past.n_items + past.item[target], return_inverse=True, return_counts=True
    )
    newest = np.zeros(len(key), np.int64)
    np.maximum.at(newest, place, past.time[target])
    return {
        "history_item": item,
        "history_kind": kind,
        "bought_start": np.searchsorted(key, np.arange(len(user) + 1) * past.n_items),
        "bought_item": (key % past.n_items).astype(np.int32),
        "bought_times": times.astype(np.int32),
        "bought_days": ((start - newest) / DAY).astype(np.float32),
    }


def _rates(known: Visits, department: np.ndarray) -> dict[str, Any]:
    """Event types, ends of visits and coming back, of all visits."""
    kind = known.kind.astype(np.intp)
    before = np.append(0, kind[:-1] + 1)[: len(kind)]
    before[known.starts] = 0
    counts = np.zeros((len(EVENT_TYPES) + 1, department.max() + 1, len(EVENT_TYPES)))
    np.add.at(counts, (before, department[known.item], kind), 1)
    shares = counts.sum((0, 1)) / counts.sum()
    after = counts.sum(1, keepdims=True) + _PRIOR * shares  # (T + 1, 1, T)
    of_department = counts.sum(0) + _ENOUGH * shares  # (D, T)
    with np.errstate(invalid="ignore"):
        kinds = np.where(shares > 0, of_department * after / shares, 0)  # as if what came before did not know it
    lengths = known.lengths
    at_risk = len(lengths) - np.cumsum(np.bincount(lengths))[:-1]  # at 1, 2, ... items
    several = max(int((at_risk >= _ENOUGH).sum()), 1)
    ends = np.bincount(lengths, minlength=several + 1)[1:several] / at_risk[: several - 1]
    rest = lengths[lengths >= several] - several
    ends = np.append(ends, len(rest) / (rest + 1).sum())
    returns, gaps = _returns(known)
    return {"kinds": kinds / kinds.sum(-1, keepdims=True), "ends": ends, "returns": returns, "gaps": gaps}


def _leaving(ends: np.ndarray, response: float, boredom: float) -> dict[str, Any]:
    """What part of ``ends`` is having had enough, and what being bored before the next answer."""
    bored_first = boredom * ends.min()
    bored = min(1.0, response * bored_first / ((1 - response) * (1 - bored_first)))
    goes_on = response / (response + (1 - response) * bored)
    return {"bored": bored, "leave": np.clip(1 - (1 - ends) / goes_on, 0, 1)}


def _returns(known: Visits) -> tuple[np.ndarray, np.ndarray]:
    """Life table: P(back within the horizon) (2,) and after how many hours (2, hours), without and with the target."""
    begun, end = known.began, known.time.max()
    gap = known.gap_days
    back = np.isfinite(gap)
    hours = 24 * np.where(back, gap, (end - begun) / DAY)
    horizon = 24 * int(np.clip((end - begun.min()) / DAY / 2, 1, HORIZON_DAYS))
    with_target = np.bincount(known.number, known.is_target) > 0
    returns, gaps = np.empty(2), np.empty((2, horizon))
    for group in (0, 1):
        members = with_target == group if (with_target == group).sum() >= _ENOUGH else np.ones(len(gap), bool)
        hour = np.minimum(hours[members].astype(int), horizon)
        came = np.bincount(hour[back[members]], minlength=horizon + 1)[:horizon]
        censored = np.bincount(hour[~back[members]], minlength=horizon + 1)[:horizon]
        left = len(hour) - np.concatenate([[0], np.cumsum(came + censored)[:-1]])
        hazard = came / np.maximum(left - censored / 2, 1)
        away = np.cumprod(1 - hazard)
        share = np.concatenate([[1], away[:-1]]) * hazard
        returns[group] = share.sum()
        gaps[group] = share / share.sum() if share.sum() > 0 else 1 / horizon
    return returns, gaps


def _preferences(window: Visits, user: np.ndarray, category: np.ndarray, topics: int, seed: int) -> dict[str, Any]:
    """Learn the hidden preferences; mixture and smoothing are chosen on every second visit."""
    row = np.searchsorted(user, window.user)
    visits_before = window.number - window.number[np.searchsorted(row, row)]
    odd = visits_before % 2 == 1
    shape = (len(user), window.n_items)

    def counts(rows: Any) -> sp.csr_matrix:
        return sp.csr_matrix((np.ones(len(row[rows]), np.float32), (row[rows], window.item[rows])), shape)

    weight, smoothing = np.full(3, 1 / 3), 10.0
    if odd.any():
        half, of, items = counts(~odd), row[odd], window.item[odd]
        parts = _tastes(half, category, topics, seed).parts(of, items)  # (3, events)
        for _ in range(50):
            of_part = weight[:, None] * parts
            weight = (of_part / of_part.sum(0)).mean(1)
        own, total, mixed = _at(half, of, items), np.asarray(half.sum(1)).ravel()[of], weight @ parts
        grid = 2.0 ** np.arange(-2, 14)
        smoothing = float(max(grid, key=lambda c: np.log((own + c * mixed) / (total + c)).sum()))
    whole = counts(slice(None))
    found = _tastes(whole, category, topics, seed)
    return {
        "mixture": weight,
        "smoothing": smoothing,
        "popularity": found.popularity,
        "topics_of": found.topics_of,
        "items_of": found.items_of,
        "own_start": whole.indptr.astype(np.int64),
        "own_item": whole.indices,
        "own_times": whole.data,
    }


@dataclass(frozen=True)
class _Tastes:
    """Three guesses at what a customer chooses, as in ``World``."""

    counts: sp.csr_matrix
    category: np.ndarray
    popularity: np.ndarray
    topics_of: np.ndarray
    items_of: np.ndarray

    def parts(self, customers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return P(item | customer) by topics, categories and popularity, (3, ...), of arrays that broadcast."""
        topics = np.einsum("...k,...k->...", self.topics_of[customers], self._of_item[items])
        met = self._met.find(customers, self.category[items])[0]
        within = (met * self._within[items] + self.popularity[items]) / (1 + self._totals[customers])
        return np.stack([topics, within, self.popularity[items]])

    def dense(self, customers: np.ndarray, mixture: np.ndarray) -> np.ndarray:
        """Return the mixture of the three, (n, m) float64."""
        met = self._categories[customers].toarray()[:, self.category]
        found = mixture[1] * (met * self._within + self.popularity) / (1 + self._totals[customers, None])
        found += mixture[0] * (self.topics_of[customers] @ self.items_of) + mixture[2] * self.popularity
        return found

    @cached_property
    def _categories(self) -> sp.csr_matrix:
        """(n, categories) counts."""
        found = self.counts.astype(np.float64) @ _groups(self.category)
        found.sort_indices()
        return found

    @cached_property
    def _met(self) -> "_Pairs":
        found = self._categories
        return _Pairs(found.indptr, found.indices, found.shape[1], found.data)

    @cached_property
    def _totals(self) -> np.ndarray:
        return np.asarray(self.counts.sum(1)).ravel()

    @cached_property
    def _of_item(self) -> np.ndarray:
        return np.ascontiguousarray(self.items_of.T)

    @cached_property
    def _within(self) -> np.ndarray:
        """(m,) share of each item in its category."""
        return self.popularity / np.bincount(self.category, self.popularity)[self.category]


def _groups(code: np.ndarray) -> sp.csr_matrix:
    """Return (m, groups) 1 where an item is of a group."""
    return sp.csr_matrix((np.ones(len(code)), code, np.arange(len(code) + 1)), (len(code), code.max() + 1))


def _tastes(counts: sp.csr_matrix, category: np.ndarray, topics: int, seed: int) -> _Tastes:
    """Learn from (n, m) counts."""
    n, m = counts.shape
    of_item = np.asarray(counts.sum(0)).ravel().astype(np.float64)
    unseen = (of_item == 0).sum()
    missing = min((of_item == 1).sum() / of_item.sum(), 0.5) if unseen else 0
    popularity = np.where(of_item > 0, (1 - missing) * of_item / of_item.sum(), missing / max(unseen, 1))
    popularity = np.maximum(popularity, 1e-12)
    popularity /= popularity.sum()
    rng = np.random.default_rng(seed)
    topics_of = rng.dirichlet(np.ones(topics), n).astype(np.float32)
    items_of = (popularity * rng.uniform(0.5, 1.5, (topics, m))).astype(np.float32)
    items_of /= items_of.sum(1, keepdims=True)
    coo = counts.tocoo()
    for _ in range(ITERATIONS):
        of_item_t = np.ascontiguousarray(items_of.T)
        expected = np.concatenate(
            [
                np.einsum("ek,ek->e", topics_of[coo.row[part]], of_item_t[coo.col[part]])
                for part in (slice(at, at + _CHUNK) for at in range(0, coo.nnz, _CHUNK))
            ]
        )
        ratio = sp.csr_matrix((counts.data / expected, counts.indices, counts.indptr), counts.shape)
        by_customer, by_item = topics_of * (ratio @ of_item_t), of_item_t * (ratio.T @ topics_of)
        topics_of = by_customer + TOPIC_COUNTS * by_customer.sum(0) / by_customer.sum()
        topics_of /= topics_of.sum(1, keepdims=True)
        items_of = by_item.T / by_item.sum(0)[:, None]
    return _Tastes(counts, category, popularity, topics_of, np.ascontiguousarray(items_of))


def _at(counts: sp.csr_matrix, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return single entries of a matrix."""
    return np.asarray(counts[row, column]).ravel()


def _rhythm(world: World, known: Visits) -> np.ndarray:
    """Observed over expected items of the window's visits, by the days since the target event with them."""
    row, begun = np.searchsorted(world.user, known.user), known.began[known.number]
    inside = begun >= world.start
    observed = np.bincount(bucket(known.days_since_target[inside]), minlength=BUCKETS)
    key = row.astype(np.int64) * world.n_items + known.item
    pairs = np.unique(key[known.is_target])
    place = np.searchsorted(pairs, key).clip(0, max(len(pairs) - 1, 0))
    listed = pairs[place] == key if len(pairs) else np.zeros(len(key), bool)
    newest = np.full(len(pairs), -np.inf)
    earlier = ~inside & known.is_target
    np.maximum.at(newest, place[earlier], known.time[earlier])
    of, item = pairs // world.n_items, pairs % world.n_items
    own, mixed, total = world.own(of, item), world.smoothing * world.mixed(of, item), world.totals
    begins = np.searchsorted(of, np.arange(world.n_customers + 1))
    rows = np.flatnonzero(inside)
    visit = known.number[rows]
    turn = visit - visit[np.searchsorted(row[rows], row[rows])]  # 0 for a customer's first visit of the window
    expected = np.zeros(BUCKETS)
    for now in range(turn.max() + 1):
        met = rows[turn == now]
        customers, first, size = np.unique(row[met], return_index=True, return_counts=True)
        which = np.repeat(np.arange(len(customers)), np.diff(begins)[customers])
        at = np.concatenate([np.arange(begins[c], begins[c + 1]) for c in customers])
        itself = np.zeros(len(pairs), bool)
        itself[place[met[listed[met]]]] = True
        others = total[customers] - size + world.smoothing
        chance = size[which] * (own[at] - itself[at] + mixed[at]) / others[which]
        expected += np.bincount(bucket((begun[met[first]][which] - newest[at]) / DAY), chance, BUCKETS)
        expected[0] += size.sum() - chance.sum()
        done = met[known.is_target[met]]
        newest[place[done]] = known.time[done]
    return (observed + _PRIOR) / (expected + _PRIOR)


def _satiation(world: World, window: Visits) -> np.ndarray:
    """Observed over expected items of the window's visits, by the items of their department before them."""
    n_departments = world.department.max() + 1
    if n_departments == 1:
        return np.ones(4)
    window = window.where(window.number % max(len(window.starts) // _SAMPLE, 1) == 0)
    starts, lengths = window.starts, window.lengths
    row = np.searchsorted(world.user, window.user[starts])
    department = world.department[window.item]
    chance = world.departments(row) * (world.totals[row] + world.smoothing)[:, None]
    np.subtract.at(chance, (window.number, department), 1)  # leave the visit itself out
    chance = np.maximum(chance, 0) / (world.totals[row] - lengths + world.smoothing)[:, None]
    met = np.zeros(chance.shape, np.intp)
    observed, expected = np.zeros(4), np.zeros(4)
    for position in range(min(lengths.max(), 50)):
        now = np.flatnonzero(lengths > position)
        of = department[starts[now] + position]
        after = np.minimum(met[now], 3)
        expected += np.bincount(after.ravel(), chance[now].ravel(), 4)
        observed += np.bincount(after[np.arange(len(now)), of], minlength=4)
        met[now, of] += 1
    return (observed + _PRIOR) / (expected + _PRIOR)


def _scale(world: World, rng: np.random.Generator) -> float:
    """Return the scale at which items as customers choose them are answered with probability ``response``."""
    customers = rng.choice(world.n_customers, min(world.n_customers, 256), replace=False)
    items = world.draws(customers, 256, rng)
    times = world.rhythm[bucket(world.bought(customers, items)[1])]
    chance = world.preference(customers, items) * times
    low, high = 0.0, 60.0  # of the logarithm
    for _ in range(60):
        middle = (low + high) / 2
        found = np.average(-np.expm1(-np.exp(middle) * chance), weights=times)
        low, high = (middle, high) if found < world.response else (low, middle)
    return float(np.exp(low))
