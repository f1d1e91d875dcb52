"""The benchmark of every kind of event as target: it needs public data, and says so."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_without_the_data_it_is_skipped_with_a_clear_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "event_types.py"), "--check"]
    environment = {**os.environ, "NIGHTCART_BENCH_DATA": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "taobao_2017" / "events.parquet"
    assert done.stdout == f"skipped: {log} is not there; NIGHTCART_BENCH_DATA tells where public data lies\n"
