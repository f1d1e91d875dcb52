"""A shop whose customers behave as we say, and worlds fitted to it."""

from dataclasses import replace
from functools import cache

import numpy as np

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import fit_world
from recsys_tasks.snapshot import DAY
from tests.interactions import START
from tests.models.worlds import catalog

N_USERS, N_ITEMS, DAYS = 80, 60, 60
WINDOW = (START + 40 * DAY, START + 50 * DAY)
WEIGHTS = dict.fromkeys(EVENT_TYPES, 0.0) | {"view": 0.1, "cart": 0.5, "purchase": 1.0}
KINDS = {"view": 0.6, "cart": 0.3, "purchase": 0.1}
LEAVE = 0.4


def shelf():
    """Four departments; item n costs n + 1, but for every third one, whose price nobody knows."""
    return replace(catalog(N_ITEMS), departments=[f"d{n % 4}" for n in range(N_ITEMS)])


@cache
def events():
    """Visits every 1 to 4 days, which end after each item with probability ``LEAVE``; each customer likes 6 items."""
    rng = np.random.default_rng(7)
    rows = []
    for user in range(N_USERS):
        liked = rng.choice(N_ITEMS, 6, replace=False)
        day = rng.uniform(0, 3)
        while day < DAYS:
            length = min(rng.geometric(LEAVE), 12)
            pool = np.concatenate([liked, rng.permutation(np.setdiff1d(np.arange(N_ITEMS), liked))])
            weight = np.where(np.arange(N_ITEMS) < 6, 10.0, 1.0)
            items = rng.choice(pool, length, replace=False, p=weight / weight.sum())
            for minute, item in enumerate(items):
                kind = rng.choice(list(KINDS), p=list(KINDS.values()))
                rows.append((user, item, START + int(day * DAY) + minute * 60_000_000, EVENT_TYPES.index(kind)))
            day += rng.uniform(1, 4)
    user, item, time, kind = np.array(rows, np.int64).T
    return {"user": user, "item": item, "time": time, "kind": kind}


def visits(more=()):
    """The log, and rows (user, item, time, event type) more."""
    found = events()
    if more:
        user, item, time, kind = zip(*more, strict=True)
        columns = {"user": user, "item": item, "time": time, "kind": [EVENT_TYPES.index(name) for name in kind]}
        found = {name: np.concatenate([found[name], columns[name]]) for name in found}
    return Visits.of(N_USERS, N_ITEMS, WEIGHTS, "purchase", **found)


def fitted(log=None, **assumed):
    """The world of the log's window."""
    return fit_world(log or visits(), shelf(), *WINDOW, topics=4, **assumed)


@cache
def world():
    """One that is only fitted once."""
    return fitted()


def lists(of, width=20):
    """The same items for every customer, and their scores."""
    items = np.tile(np.arange(width, dtype=np.int32), (of.n_customers, 1))
    return {"world": of, "candidates": items, "scores": np.linspace(1, 0, width)[None].repeat(of.n_customers, 0)}


def certain(of, **changes):
    """A world in which every item is answered, and nobody leaves."""
    always = {"scale": 1e12, "leave": np.zeros(1), "bored": 0.0, "returns": np.ones(2)}
    return replace(of, **{**always, "rhythm": np.ones_like(of.rhythm), "satiation": np.ones(4), **changes})
