"""The benchmark of what a night serves: it needs a judge from outside, and says so."""

import os
import subprocess
import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from champion import mean, render


def test_without_a_judge_it_is_skipped_with_a_clear_line():
    environment = {name: value for name, value in os.environ.items() if name != "NIGHTCART_JUDGE"}
    command = [sys.executable, str(ROOT / "benchmarks" / "champion.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "skipped: there is no judge; give its path with --judge or NIGHTCART_JUDGE\n"


def a_night(date, home, discover):
    def judged(ratio):
        references = {"repeat": 0.3, "popular": 0.1, "ease": 0.2}
        return {"ndcg@10": 0.3 * ratio, "ndcg@10 +-": 0.02, "references ndcg@10": references, "ratio to best": ratio}

    return {
        "date": date,
        "seconds": 60.0,
        "judged": {"users": 500, "home": judged(home), "discover": judged(discover)},
        "leaderboard": {placement: {"popular": 0.1, "ranker": 0.3} for placement in ("home", "discover")},
        "champions": {"home": "ranker", "discover": "ranker"},
        "failed": [],
    }


def test_the_page_tells_the_mean_ratio_and_what_missed():
    nights = [a_night("2011-06-20", 1.0, 1.1), a_night("2011-07-18", 1.1, 1.3)]
    assert mean(nights, "discover") == 1.2000000000000002
    page = render({"online_retail": {"nights": nights, "made by": "a machine"}})
    assert "| online_retail | home | 1.050 | >= 1.08 | missed |" in page
    assert "| online_retail | discover | 1.200 | >= 1.1 |  |" in page
    assert "| 2011-07-18 | 0.1000 | 0.3000 |" in page
