"""The benchmark of warm starts: it needs public data, and says so."""

import os
import subprocess
import sys

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from warm_start import render, shortcomings


def test_without_the_data_it_is_skipped_with_a_clear_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "warm_start.py"), "--check"]
    environment = {**os.environ, "NIGHTCART_BENCH_DATA": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"skipped: {tmp_path / 'online_retail_2011'} is not there")


def way(seconds, ndcg):
    told = {"seconds": seconds, "refit seconds": 5.0, "epochs": 9.0}
    return {**told, "validation": ndcg, "test": ndcg, "afterwards": ndcg}


def test_the_page_tells_means_and_what_falls_short():
    gain = {name: [-0.01, 0.02] for name in ("validation", "test", "afterwards")}
    nights = [{"date": "2011-09-05", "nothing": way(30.0, 0.04)}]
    nights += [{"date": "2011-09-06", "nothing": way(30.0, 0.04), "last night": way(20.0, 0.041), "difference": gain}]
    assert shortcomings(nights) == []
    assert "| mean | last night | 20 | 9.0 | 5 | 0.0410 | 0.0410 | 0.0410 |" in render(
        {"nights": nights, "made by": ""}
    )
    nights[1]["last night"] = way(31.0, 0.039)
    assert shortcomings(nights) == ["validation -2.5%", "test -2.5%", "afterwards -2.5%", "time 1.03x"]
