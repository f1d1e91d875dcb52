"""One global split by time, the same for every user: fit < validation < test < ``as_of``.

Nothing learned before an instant has seen an event at or after it. A user's last events are not held out one by one:
that would let the model see what other customers did afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import scipy.sparse as sp

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.shop import Windows as WindowLengths
from recsys_tasks.snapshot import DAY, Interactions, microseconds


@dataclass(frozen=True)
class Windows:
    """Where each window ends; microseconds since 1970. A window begins where the one before it ends."""

    fit_end: int
    validation_end: int
    as_of: int


def split_by_time(as_of: datetime, lengths: WindowLengths) -> Windows:
    """Return the windows that end at ``as_of``.

    >>> from datetime import UTC
    >>> w = split_by_time(datetime(2017, 12, 4, tzinfo=UTC), WindowLengths(validation_days=7, test_days=14))
    >>> (w.as_of - w.validation_end) // DAY, (w.validation_end - w.fit_end) // DAY
    (14, 7)

    """
    end = microseconds(as_of)
    test_start = end - lengths.test_days * DAY
    return Windows(test_start - lengths.validation_days * DAY, test_start, end)


@dataclass(frozen=True)
class Truth:
    """What users did in a window, for users who had a history before it and have something to find."""

    past: Interactions
    """What was known when the window began."""
    users: np.ndarray
    """(n,) user_idx"""
    items: sp.csr_matrix
    """(n, n_items) 1 where the user did the target event with the item in the window"""
    view: str
    """``all``, or ``discovery``: only items the user never bought before the window."""
    end: int
    """Where the window ended; microseconds since 1970. It began at ``past.as_of``."""

    @property
    def exclude_seen(self) -> bool:
        """Whether lists of this view leave out what the user bought before."""
        return self.view == "discovery"


def truth(
    interactions: Interactions,
    start: int,
    end: int,
    view: str,
    *,
    returning: bool = True,
    of: Sequence[str] | None = None,
) -> Truth:
    """Return the truth of the window [start, end), for customers with a history or (``returning=False``) without one.

    With ``of``, it is what they did these types of events with instead of the target event.

    Raises
    ------
    ContractError
        No customer who was known before the window did the target event in it.

    """
    past = interactions.before(start)
    window = interactions.before(end).since(start)
    if of:
        window = replace(window, is_target=np.isin(window.kind, [EVENT_TYPES.index(name) for name in of]))
    wanted = window.bought.copy()
    wanted.data[:] = 1
    if view == "discovery":
        known = past.bought.copy()
        known.data[:] = 1
        wanted = wanted - wanted.multiply(known)
        wanted.eliminate_zeros()
    wanted = sp.csr_matrix(wanted)
    users = np.flatnonzero((np.diff(wanted.indptr) > 0) & ((past.active_days > 0) == returning))
    if returning and not len(users):
        what = " or ".join(of) if of else "the target event"
        raise ContractError(
            f"no returning customer did {what} between {_day(start)} and {_day(end)}, so nothing can be "
            "evaluated. Check as_of against the newest events, the target in the shop file, or give longer windows"
        )
    return Truth(past, users, wanted[users], view, end)


def _day(instant: int) -> str:
    return str(np.datetime64(instant, "us").astype("datetime64[m]")) + "Z"
