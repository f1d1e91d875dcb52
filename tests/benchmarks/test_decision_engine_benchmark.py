"""The benchmark of the decision engine in small, and what its rows are made of."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from decision_engine import PEER, best_allowed, flat, limits


def test_the_form_in_small(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "decision_engine.py"), "--quick", "--check", "--only", "peers"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "no limit in a made-up world"
    rows = {row["name"]: row for row in json.loads((tmp_path / "decision_engine.json").read_text())["peers"]["rows"]}
    assert rows["ours"]["wasted"] == 0 < rows["ours, without masks"]["wasted"]
    assert rows["chance"]["steps a second"] is None
    assert "## Beside stable-baselines3" in (tmp_path / "decision_engine.md").read_text()


def test_limits_are_beside_the_way_of_the_peer_that_earns_most():
    rows = [
        {"name": "supervised order", "reward": 2.0, "seconds": 0},
        {"name": "ours", "reward": 4.0, "seconds": 9},
        {"name": "ours", "reward": 2.0, "seconds": 11},
        {"name": PEER, "reward": 1.0, "seconds": 40},
        {"name": f"{PEER}, other", "reward": 2.5, "seconds": 20},
        {"name": f"{PEER}, hasty", "reward": 2.0, "seconds": 2},
    ]
    assert [limit["value"] for limit in limits(rows)] == pytest.approx([1.5, 1.2, 0.5])
    assert [limit["value"] for limit in limits(rows[:3])] == pytest.approx([1.5])


def test_an_observation_in_one_row_has_the_mean_of_its_history():
    vectors = np.array([[0.0, 0], [1, 0], [3, 2]])
    observation = {
        "history": np.array([[0, 1, 2], [0, 0, 0]]),
        "features": np.arange(8.0).reshape(2, 2, 2),
        "action_mask": np.array([[1, 0], [1, 1]], np.int8),
    }
    assert flat(observation, vectors).tolist() == [[0, 1, 2, 3, 1, 0, 2, 1], [4, 5, 6, 7, 1, 1, 0, 0]]


def test_the_best_is_of_what_is_allowed():
    mask = {"action_mask": np.array([[1, 0, 1]], np.int8)}
    assert best_allowed(np.array([[1.0, 9, 3]]), mask).tolist() == [2]
