"""The benchmark of every kind of event as target: it needs public data, and says so."""

import os
import subprocess
import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from event_types import render
from ingesting.page import within


def test_without_the_data_it_is_skipped_with_a_clear_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "event_types.py"), "--check"]
    environment = {**os.environ, "NIGHTCART_BENCH_DATA": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "taobao_2017" / "events.parquet"
    assert done.stdout == f"skipped: {log} is not there; NIGHTCART_BENCH_DATA tells where public data lies\n"


def test_a_baseline_that_serves_itself_is_a_miss():
    def part(name, ratio):
        beside = [[name, 0.1 * ratio, "0.0 to 0.2"], ["repeat", 0.1, "0.0 to 0.2"]]
        row = {"target": "cart", "view": "all", "customers": 5, "ratio": ratio, "beside": beside}
        return {"rows": [row], "leaderboard": {"all": {"repeat": 0.1}}, "made by": "a machine", "seconds": 1.0}

    lines, limits = render({"cart": part("repeat", 1.0), "purchase": part("ranker", 1.2)})
    assert [within(limit) for limit in limits] == [False, True]
    assert "| cart, all: champion over the best baseline | 1 | > 1 | missed |" in lines
