"""What is said of a row is what the log says, whoever works it out."""

from statistics import median_low

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_tasks.contract import PINNED, POPULAR
from recsys_tasks.reasons import LATE, OFTEN, Deeds, Reasons, popular_now
from recsys_tasks.snapshot import DAY
from tests.interactions import interactions
from tests.models.worlds import catalog

N_USERS, N_ITEMS, DAYS = 5, 4, 60
PURCHASES = st.lists(
    st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(0, DAYS - 1)), max_size=60
)


def a_log(rows):
    return interactions(sorted(rows, key=lambda row: row[2]), N_USERS, N_ITEMS, DAYS)


@given(PURCHASES, st.sets(st.integers(0, N_USERS - 1), min_size=1))
def test_habits_and_last_times_are_those_of_a_customer_and_an_item(rows, users):
    log = a_log(rows)
    deeds = Deeds.of(log, np.array([*sorted(users), -1]))
    readers = np.arange(-1, N_USERS)
    found = deeds.find(readers, np.tile(np.arange(N_ITEMS), (len(readers), 1)))
    for reader, places in zip(readers.tolist(), found.tolist(), strict=True):
        for item, place in enumerate(places):
            days = [
                int(time // DAY)
                for user, other, time in zip(log.user_idx, log.item_idx, log.time, strict=True)
                if user == reader and other == item and reader in users
            ]
            assert (place < 0) == (not days)
            if days:
                different = sorted(set(days))
                gaps = np.diff(different).tolist()
                fresh = bool(gaps) and log.as_of // DAY - different[-1] <= LATE * median_low(gaps)
                assert deeds.times[place] == len(days)
                assert deeds.last[place] == different[-1]
                assert deeds.gap[place] == (median_low(gaps) if len(different) >= OFTEN and fresh else 0)


@given(PURCHASES)
def test_what_is_popular_now_was_bought_lately_and_more_than_once(rows):
    log = a_log(rows)
    now = popular_now(log, np.zeros(N_ITEMS, int))
    lately = {days: np.bincount([i for _, i, d in rows if d >= DAYS - days], minlength=N_ITEMS) for days in (7, 28)}
    assert now.tolist() == [
        1 if week > 1 else 2 if month > 1 else 0 for week, month in zip(*lately.values(), strict=True)
    ]


def test_every_kind_of_sentence():
    habit = [(0, 0, day) for day in (30, 37, 44, 51)]
    log = a_log([*habit, (0, 1, 40), (1, 2, 59), (2, 2, 59)])
    reasons = Reasons("purchase", catalog(N_ITEMS), log, np.array([0, -1]))
    lists = np.array([[0, 1, 2, 3, 3], [2, 3, 1, -1, -1]])
    sources = np.array([["ease", "ease", POPULAR, "ease", PINNED], [POPULAR, POPULAR, "ease", "", ""]], object)
    witness = np.array([[0, 1, -1, 1, -1], [-1] * 5])
    said, because = reasons.to_customers(np.array([0, -1]), lists, sources, witness)
    titles, ids = reasons.catalog.titles, reasons.catalog.item_ids
    assert said.to_pylist() == [
        "You usually buy this every week",
        "You bought this on 10 February 2020",
        "Popular this week",
        f"Because you bought {titles[1]}",
        "Chosen for you by the shop",
        "Popular this week",
        "From our range",
        "Picked for you",
    ]
    assert because.to_pylist() == [ids[0], ids[1], None, ids[1], None, None, None, None]


def test_to_items_it_is_said_what_is_alike():
    reasons = Reasons("purchase", catalog(N_ITEMS), a_log([]), np.array([], int))
    said, because = reasons.to_items(
        np.array([2]), np.array([[0, 1, 3]]), np.array([["ease", POPULAR, PINNED]], object)
    )
    assert said.to_pylist() == [
        f"Similar to {reasons.catalog.titles[2]}",
        "From our range",
        "Chosen for you by the shop",
    ]
    assert because.to_pylist() == [reasons.catalog.item_ids[2], None, None]
