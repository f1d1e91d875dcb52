"""Sentences a shopper can read. Each states only what the log shows, and ``check`` works it out again for every row.

Rows are told in bulk: a row's sentence is a number first, of its kind and of what it speaks of, and each different
number is put into words once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_tasks.contract import (
    BACK_OFF,
    BOUGHT_TOGETHER,
    NEW,
    PINNED,
    POPULAR,
    POPULAR_CATEGORY,
    POPULAR_SEGMENT,
    TRENDING,
)
from recsys_tasks.snapshot import DAY, Catalog, Interactions

DID = {
    "view": "looked at",
    "click": "clicked on",
    "cart": "chose",
    "favourite": "liked",
    "purchase": "bought",
    "coupon": "had a coupon for",
    "rating": "rated",
    "return": "returned",
}
"""What a customer did, by the shop's target event."""
DOES = {
    "view": "look at",
    "click": "click on",
    "cart": "choose",
    "favourite": "like",
    "purchase": "buy",
    "coupon": "have a coupon for",
    "rating": "rate",
    "return": "return",
}
"""What a customer usually does."""

OFTEN = 4
"""Days on which a customer did it that make a habit,"""
LATE = 3
"""as long as the last of them is not this many times the usual gap ago."""
SPANS = (7, 28)
"""Days of "this week" and "this month"."""
WHEN = ("", "this week", "this month")
"""In words, by what ``popular_now`` says."""
AMONG = 10
"""What is popular in a department is among its first so many of that time, or among its first tenth."""


def done_before(target: str, times: int, day: int) -> str:
    """Return the reason for an item the customer knows; ``day`` of the last time in days since 1970.

    >>> done_before("purchase", 3, 17504)
    'You bought this 3 times, last on 4 December 2017'

    """
    last = datetime.fromtimestamp(day * 86_400, UTC)
    often = "" if times == 1 else f" {times} times, last"
    return f"You {DID[target]} this{often} on {last.day} {last:%B %Y}"


def habit(target: str, days: int) -> str:
    """Return the reason for an item that a customer comes back for; ``days`` are usually between two times.

    >>> [habit("purchase", days) for days in (1, 3, 7, 20)]  # doctest: +NORMALIZE_WHITESPACE
    ['You usually buy this every day', 'You usually buy this every 3 days', 'You usually buy this every week',
     'You usually buy this every 3 weeks']
    >>> habit("purchase", 60)
    'You usually buy this every 2 months'

    """
    if days < 6:
        number, unit = days, "day"
    elif days < 56:
        number, unit = max(1, (2 * days + 7) // 14), "week"
    else:
        number, unit = (2 * days + 30) // 60, "month"
    return f"You usually {DOES[target]} this every {unit if number == 1 else f'{number} {unit}s'}"


def because_of(title: str, target: str | None) -> str:
    """Return the reason that names an item of the history; ``target`` is None where the customer did less than that.

    >>> because_of("tea", "purchase"), because_of("tea", None)
    ('Because you bought tea', 'Because you were interested in tea')

    """
    return f"Because you {DID[target] if target else 'were interested in'} {title}"


def together_with(title: str, target: str) -> str:
    """Return the reason of the placement ``bought_together``: several baskets hold both items.

    >>> together_with("tea", "purchase"), together_with("tea", "view")
    ('Often bought together with tea', 'Often chosen together with tea')

    """
    return f"Often {'bought' if target == 'purchase' else 'chosen'} together with {title}"


def rising(target: str) -> str:
    """Return the reason for an item whose part of the shop's sales has risen.

    >>> rising("purchase")
    'More and more customers buy this'

    """
    return f"More and more customers {DOES[target]} this"


def new_in(department: str) -> str:
    """Return the reason for an item that has not been known for long.

    >>> new_in("GROCERY"), new_in("")
    ('New in Grocery', 'New')

    """
    return f"New in {readable(department)}" if department else "New"


def similar_to(title: str) -> str:
    """Return the reason of the placement ``similar``."""
    return f"Similar to {title}"


def popular_in(department: str, when: str = "") -> str:
    """Return the reason for an item that many customers buy; ``when`` is empty where they do not just now.

    >>> popular_in("GROCERY", "this week"), popular_in("", "this month"), popular_in("Tea"), popular_in("")
    ('Popular in Grocery this week', 'Popular this month', 'From our range of Tea', 'From our range')

    """
    name = readable(department)
    if when:
        return f"Popular in {name} {when}" if name else f"Popular {when}"
    return f"From our range of {name}" if name else "From our range"


def readable(department: str) -> str:
    """Return the name of a department as a sentence has it: not all in capitals."""
    return department.capitalize() if department.isupper() else department


LIKE_YOU = "Popular with customers like you"
"""For an item that customers of the same age, country or the like buy more of than others."""

INTERESTED = "You were interested in this"
"""For an item the customer looked at, or did something else with than the shop's target."""

PICKED = "Picked for you"
"""Where the model can name no single item of the history."""

CHOSEN = "Chosen for you by the shop"
"""For an item that a rule put there."""


@dataclass(frozen=True)
class Deeds:
    """What some customers did with which items, by the shop's target event. All arrays are (n_pairs,)."""

    users: np.ndarray
    """(n,) user_idx of the customers, ascending"""
    n_items: int
    keys: np.ndarray
    """int64, place in ``users`` * n_items + item_idx, ascending"""
    times: np.ndarray
    last: np.ndarray
    """Day (UTC) of the last time, since 1970"""
    gap: np.ndarray
    """Median of the days between two days with the item (of two middle ones the shorter); 0 where it is no habit"""

    @classmethod
    def of(cls, log: Interactions, users: np.ndarray) -> "Deeds":
        """Look up what (n,) user_idx did."""
        users = np.sort(users[users >= 0])
        place = np.full(log.n_users, -1, np.int64)
        place[users] = np.arange(len(users))
        rows = np.flatnonzero(log.is_target & (place[log.user_idx] >= 0))
        pair = place[log.user_idx[rows]] * log.n_items + log.item_idx[rows]
        on = np.sort(pair << 16 | log.time[rows] // DAY)  # a day in 16 bits lasts until 2149
        new_pair, new_day = np.diff(on >> 16, prepend=-1) != 0, np.diff(on, prepend=-1) != 0
        keys, times = on[new_pair] >> 16, np.diff(np.append(np.flatnonzero(new_pair), len(on)))
        last = on[np.append(np.flatnonzero(new_pair)[1:], len(on)) - 1] & 0xFFFF if len(on) else on
        code = np.cumsum(new_pair) - 1
        gaps = np.diff(on[new_day], prepend=0)[~new_pair[new_day]]  # within a pair, a difference is of days alone
        of = code[new_day][~new_pair[new_day]]
        gaps = np.sort(of << 16 | gaps) & 0xFFFF
        n_gaps = np.bincount(of, minlength=len(keys))
        middle = np.cumsum(n_gaps) - n_gaps + np.maximum(n_gaps - 1, 0) // 2
        gap = gaps[np.minimum(middle, max(len(gaps) - 1, 0))] if len(gaps) else np.zeros(len(keys), np.int64)
        is_habit = (n_gaps + 1 >= OFTEN) & (log.as_of // DAY - last <= LATE * gap)
        return cls(users, log.n_items, keys, times, last, np.where(is_habit, gap, 0))

    def find(self, readers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return (n, k) which pair the (n,) user_idx and (n, k) item_idx are; -1 where they are none."""
        if not len(self.keys):
            return np.full(items.shape, -1)
        place = np.searchsorted(self.users, readers).clip(max=len(self.users) - 1)
        known = (self.users[place] == readers)[:, None] & (items >= 0)
        wanted = place[:, None] * self.n_items + items
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(known & (self.keys[at] == wanted), at, -1)


def popular_now(log: Interactions, departments: np.ndarray) -> np.ndarray:
    """Return (n_items,) how popular each item is in its department: 1 this week, 2 this month, 0 neither.

    It is where two or more bought it in that time, and it is among the first ``AMONG`` of the department, or the first
    tenth of what was bought there.
    """
    found = np.zeros(log.n_items, np.int8)
    for number, days in reversed(list(enumerate(SPANS, 1))):
        rows = log.is_target & (log.time >= log.as_of - days * DAY)
        count = np.bincount(log.item_idx[rows], minlength=log.n_items)
        of = pd.Series(count[count > 0]).groupby(departments[count > 0])
        rank, sold = of.rank("min", ascending=False).to_numpy(), of.transform("size").to_numpy()
        found[np.flatnonzero(count)[(rank <= np.maximum(AMONG, sold // 10)) & (count[count > 0] > 1)]] = number
    return found


UNSPOKEN = (PINNED, NEW, *BACK_OFF)
"""Sources for which no item of the history speaks."""

_KINDS = (
    "done",
    "habit",
    "because",
    "popular",
    "interested",
    "picked",
    "chosen",
    "similar",
    "like you",
    "rising",
    "new",
    "together",
)
_SHIFT = 48


class Reasons:
    """What can truly be said of the rows of lists.

    Parameters
    ----------
    target
        The shop's target event.
    catalog, log
        Of the night.
    users
        (n,) user_idx of the customers spoken to; -1 for a visitor.

    """

    def __init__(self, target: str, catalog: Catalog, log: Interactions, users: np.ndarray) -> None:
        self.target, self.catalog = target, catalog
        self.deeds = Deeds.of(log, users)
        self.departments, self.department = np.unique(np.array(catalog.departments, str), return_inverse=True)
        self.now = popular_now(log, self.department)

    def to_customers(
        self, readers: np.ndarray, items: np.ndarray, sources: np.ndarray, witness: np.ndarray
    ) -> tuple[pa.Array, pa.Array]:
        """Return the sentence, and the ``reason_item_id``, of every item of (n, k) lists, row by row.

        ``witness`` is (n, k), the item of the history that speaks for each, -1 where there is none.
        """
        deed = self.deeds.find(readers, items)
        bought_witness = self.deeds.find(readers, np.where(witness >= 0, witness, -1)) >= 0
        of, speaks = np.where(deed >= 0, items, -1), (deed < 0) & ~np.isin(sources, UNSPOKEN)
        of = np.where(speaks, witness, of)
        there = items >= 0
        at = np.maximum(deed, 0)
        times, last, gap = (
            values[at] if len(values) else at for values in (self.deeds.times, self.deeds.last, self.deeds.gap)
        )
        codes = np.select(
            [
                (deed >= 0) & (gap > 0),
                deed >= 0,
                sources == PINNED,
                (sources == POPULAR) | (sources == POPULAR_CATEGORY),
                sources == POPULAR_SEGMENT,
                sources == TRENDING,
                sources == NEW,
                witness == items,
                witness >= 0,
            ],
            [
                _code("habit", gap),
                _code("done", times << 16 | last),
                _code("chosen", 0),
                self._popular(items),
                _code("like you", 0),
                _code("rising", 0),
                _code("new", self.department[items]),
                _code("interested", 0),
                _code("because", witness.astype(np.int64) << 1 | bought_witness),
            ],
            _code("picked", 0),
        )
        return self._said(codes[there]), self._named(of[there])

    def to_items(self, readers: np.ndarray, items: np.ndarray, sources: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """Return the same of lists of items that go with (n,) others."""
        like = np.broadcast_to(readers[:, None], items.shape)
        pinned, popular = sources == PINNED, np.isin(sources, (POPULAR, POPULAR_CATEGORY))
        codes = np.select(
            [pinned, popular, sources == BOUGHT_TOGETHER],
            [_code("chosen", 0), self._popular(items), _code("together", like)],
            _code("similar", like),
        )
        there = items >= 0
        return self._said(codes[there]), self._named(np.where(pinned | popular, -1, like)[there])

    def _popular(self, items: np.ndarray) -> np.ndarray:
        return _code("popular", self.department[items] << 2 | self.now[items])

    def _named(self, items: np.ndarray) -> pa.Array:
        return pa.array(self.catalog.item_ids, pa.string()).take(pa.array(items, mask=items < 0))

    def _said(self, codes: np.ndarray) -> pa.Array:
        numbers, different = pd.factorize(codes)
        said = [self._sentence(_KINDS[code >> _SHIFT], code & (1 << _SHIFT) - 1) for code in different.tolist()]
        return pa.array(said, pa.string()).take(pa.array(numbers))

    def _sentence(self, kind: str, about: int) -> str:
        titles = self.catalog.titles
        write: dict[str, Callable[[], Any]] = {
            "done": lambda: done_before(self.target, about >> 16, about & 0xFFFF),
            "habit": lambda: habit(self.target, about),
            "because": lambda: because_of(titles[about >> 1], self.target if about & 1 else None),
            "popular": lambda: popular_in(
                str(self.departments[about >> 2]), ("", "this week", "this month")[about & 3]
            ),
            "interested": lambda: INTERESTED,
            "picked": lambda: PICKED,
            "chosen": lambda: CHOSEN,
            "similar": lambda: similar_to(titles[about]),
            "like you": lambda: LIKE_YOU,
            "rising": lambda: rising(self.target),
            "new": lambda: new_in(str(self.departments[about])),
            "together": lambda: together_with(titles[about], self.target),
        }
        return write[kind]()


def _code(kind: str, about: np.ndarray | int) -> np.ndarray:
    return np.int64(_KINDS.index(kind)) << _SHIFT | np.asarray(about, np.int64)
