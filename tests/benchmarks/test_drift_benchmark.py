"""The drift benchmark's faults break what they say; its page names weeks, rates and what missed."""

import sys

import numpy as np

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from drift import CERTAIN, FAULTS, limits_of, page

from recsys_tasks.drift import Shelves, Window
from recsys_tasks.snapshot import DAY

SHELVES = Shelves(["cups", "hats"], np.arange(100, dtype=np.int32) % 2)


def a_week():
    rng = np.random.default_rng(0)
    time = 17_000 * DAY + np.sort(rng.integers(0, 7 * DAY, 900))
    user, item = rng.integers(0, 40, 900), rng.integers(0, 50, 900)
    return Window(17_000 * DAY, user, item, time, np.full(900, 4, np.int8), np.ones(900), 30, 45)


def test_every_fault_leaves_a_week_in_order_or_says_that_it_cannot_be():
    for key, (fault, tells) in FAULTS.items():
        if key == ("a category missing", "number 5"):
            continue  # there are two
        broken = fault(a_week(), SHELVES, np.random.default_rng(1))
        assert tells
        if broken is not None:
            lengths = {len(getattr(broken, name)) for name in ("user", "item", "time", "kind", "price")}
            assert len(lengths) == 1, key
            assert (np.diff(broken.time) >= 0).all(), key
            assert 0 <= (broken.time.min(initial=broken.start) - broken.start) < 7 * DAY


def test_the_page_names_quiet_weeks_and_what_was_missed():
    normal = [{"from": "2017-08-14", "events": 9, "level": 4.5, "holiday": "", "alarms": [], "texts": []}]
    faults = [
        {"fault": what, "size": size, "weeks": 1, "named": 0.5, "any": 1.0, "example": "x"} for what, size in CERTAIN
    ]
    shop = {"weeks before": 30, "normal": normal, "faults": faults, "seconds": 0.5, "nights": 7, "loud nights": 0}
    limits = limits_of({"corner": shop})
    assert [limit["value"] for limit in limits] == [0, 0.5, 0.5]
    text = "\n".join(page({"limits": limits, "shops": {"corner": shop}, "made by": "a machine"}))
    assert "0 of them raised an alarm" in text
    assert "| corner: gross faults named, the worst of them | 0.5 | >= 0.9 | missed |" in text
    assert "| prices x 100 | of 100% | 1 | 0.5 | 1 | x |" in text
