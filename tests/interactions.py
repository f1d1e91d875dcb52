"""Interactions written by hand, for tests of what comes after ingest."""

from datetime import UTC, datetime

import numpy as np

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.snapshot import DAY, Interactions, microseconds

START = microseconds(datetime(2020, 1, 1, tzinfo=UTC))


def interactions(rows, n_users, n_items, days):
    """Build a log that ends after so many days, from rows (user, item, day[, weight[, is_target]]) in any order."""
    rows = sorted(((*row, *(1.0, True)[len(row) - 3 :]) for row in rows), key=lambda row: row[2])
    user, item, day, weight, target = zip(*rows, strict=True) if rows else ((),) * 5
    return Interactions(
        user_ids=np.array([f"u{n}" for n in range(n_users)], dtype=object),
        n_items=n_items,
        user_idx=np.array(user, np.int32),
        item_idx=np.array(item, np.int32),
        time=START + (np.array(day, np.float64) * DAY).astype(np.int64),
        weight=np.array(weight, np.float32),
        rating=np.full(len(rows), np.nan, np.float32),
        kind=np.where(np.array(target, bool), *map(EVENT_TYPES.index, ("purchase", "click"))).astype(np.int8),
        is_target=np.array(target, bool),
        as_of=START + days * DAY,
    )
