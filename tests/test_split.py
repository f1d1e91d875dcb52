"""One split by time for everybody: nothing that is learned, chosen or scored has seen what came after."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from recsys_tasks.contract import VIEWS
from recsys_tasks.errors import ContractError
from recsys_tasks.shop import Windows as WindowLengths
from recsys_tasks.snapshot import DAY, microseconds
from recsys_tasks.split import split_by_time, truth
from tests.interactions import START, interactions

AS_OF = datetime(2020, 1, 31, tzinfo=UTC)
WINDOWS = split_by_time(AS_OF, WindowLengths(validation_days=10, test_days=5))


@pytest.fixture(scope="module")
def log():
    """Events of 40 users on random instants of 30 days, some on the very instants where windows meet."""
    rng = np.random.default_rng(0)
    rows = [
        (int(u), int(i), float(d)) for u, i, d in zip(*rng.integers(0, 40, (2, 600)), rng.random(600) * 30, strict=True)
    ]
    rows += [(u, u, day) for u in range(5) for day in (15, 25)]
    return interactions(rows, 40, 40, 30)


def test_the_windows_end_where_as_of_and_the_lengths_say():
    assert WINDOWS.as_of == microseconds(AS_OF)
    assert WINDOWS.validation_end == microseconds(AS_OF - timedelta(days=5))
    assert WINDOWS.fit_end == microseconds(AS_OF - timedelta(days=15))
    assert WINDOWS.fit_end < WINDOWS.validation_end < WINDOWS.as_of


def test_the_windows_are_the_same_instants_in_whatever_zone_as_of_is_told():
    shifted = AS_OF.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    assert split_by_time(shifted, WindowLengths(validation_days=10, test_days=5)) == WINDOWS


def test_no_fit_event_is_later_than_a_validation_event_and_none_of_these_than_a_test_event(log):
    fit = log.before(WINDOWS.fit_end)
    validation = log.before(WINDOWS.validation_end).since(WINDOWS.fit_end)
    test = log.before(WINDOWS.as_of).since(WINDOWS.validation_end)
    assert fit.time.max() < WINDOWS.fit_end == validation.time.min()
    assert validation.time.max() < WINDOWS.validation_end == test.time.min()
    assert test.time.max() < WINDOWS.as_of
    assert len(fit) + len(validation) + len(test) == len(log)
    assert min(len(fit), len(validation), len(test)) > 50


@pytest.mark.parametrize("view", VIEWS)
def test_the_past_of_a_truth_ends_where_its_window_begins(log, view):
    found = truth(log, WINDOWS.fit_end, WINDOWS.validation_end, view)
    assert found.past.time.max() < WINDOWS.fit_end
    assert found.past.as_of == WINDOWS.fit_end
    assert found.past.n_users == log.n_users


@pytest.mark.parametrize("view", VIEWS)
def test_the_truth_is_what_returning_customers_bought_in_the_window(log, view):
    start, end = WINDOWS.validation_end, WINDOWS.as_of
    found = truth(log, start, end, view)
    expected = {}
    for user, item, time in zip(log.user_idx, log.item_idx, log.time, strict=True):
        known = {i for u, i, t in zip(log.user_idx, log.item_idx, log.time, strict=True) if u == user and t < start}
        if known and start <= time < end and (view == "all" or item not in known):
            expected.setdefault(int(user), set()).add(int(item))
    assert {int(u): set(found.items[n].indices.tolist()) for n, u in enumerate(found.users)} == expected
    assert set(found.items.data) == {1}
    assert found.exclude_seen == (view == "discovery")


def test_a_repeat_counts_in_the_view_of_all_and_not_in_discovery():
    log = interactions([(0, 0, 1), (0, 0, 11), (0, 1, 11), (1, 2, 1), (1, 2, 11)], 2, 3, 20)
    window = START + 10 * DAY, START + 20 * DAY
    assert truth(log, *window, "all").items.toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    discovery = truth(log, *window, "discovery")
    assert discovery.users.tolist() == [0]
    assert discovery.items.toarray().tolist() == [[0, 1, 0]]


def test_an_item_that_was_only_looked_at_before_can_still_be_discovered():
    log = interactions([(0, 0, 1, 0.1, False), (0, 0, 11), (0, 1, 12, 0.1, False)], 1, 2, 20)
    found = truth(log, START + 10 * DAY, START + 20 * DAY, "discovery")
    assert found.items.toarray().tolist() == [[1, 0]]  # and what was only looked at in the window is not wanted


def test_something_bought_twice_in_the_window_counts_once():
    log = interactions([(0, 0, 1), (0, 1, 11), (0, 1, 12)], 1, 2, 20)
    assert truth(log, START + 10 * DAY, START + 20 * DAY, "all").items.toarray().tolist() == [[0, 1]]


def test_an_event_at_the_start_of_a_window_is_in_it_and_one_at_its_end_is_not():
    log = interactions([(0, 0, 1), (0, 1, 10), (0, 2, 20)], 1, 3, 30)
    found = truth(log, START + 10 * DAY, START + 20 * DAY, "all")
    assert found.items.toarray().tolist() == [[0, 1, 0]]
    assert found.past.item_idx.tolist() == [0]


def test_customers_without_a_history_have_a_truth_of_their_own():
    log = interactions([(0, 0, 1), (0, 1, 11), (1, 1, 12)], 3, 2, 20)
    window = START + 10 * DAY, START + 20 * DAY
    assert truth(log, *window, "all").users.tolist() == [0]
    assert truth(log, *window, "all", returning=False).users.tolist() == [1]


def test_a_window_without_a_returning_customer_is_refused_with_its_days():
    log = interactions([(0, 0, 1), (1, 1, 12)], 2, 2, 20)
    window = START + 10 * DAY, START + 20 * DAY
    with pytest.raises(ContractError, match=r"between 2020-01-11T00:00Z and 2020-01-21T00:00Z.*Check as_of"):
        truth(log, *window, "all")
    assert truth(log, *window, "all", returning=False).users.tolist() == [1]


def test_the_truth_of_a_window_leaves_the_log_as_it_was(log):
    before = log.bought.copy()
    for view in VIEWS:
        truth(log, WINDOWS.fit_end, WINDOWS.as_of, view)
    assert (before != log.bought).nnz == 0


def test_what_customers_did_otherwise_can_be_the_truth():
    log = interactions([(0, 0, 1), (0, 1, 9, 0.5, False), (0, 2, 9)], 1, 3, days=10)
    clicked = truth(log, START + 8 * DAY, log.as_of, "all", of=["click"])
    assert clicked.items.toarray().tolist() == [[0, 1, 0]]
    with pytest.raises(ContractError, match="did view or cart between"):
        truth(log, START + 8 * DAY, log.as_of, "all", of=["view", "cart"])
