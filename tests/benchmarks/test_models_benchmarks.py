"""The benchmarks of models in small: they run, write their pages where they are told to, and name what fell short."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from recsys_tasks.snapshot import DAY
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from protocol.leave_last_out import END, made_up
from protocol.page import finish
from text_features import standardised


def run(script, *words, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--check", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_vaecf_ranks_as_cornac_does_in_a_made_up_world(tmp_path):
    done = run("vaecf", "--quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "within all limits"
    assert "Cornac's `score`" in (tmp_path / "vaecf.md").read_text()
    measured = json.loads((tmp_path / "vaecf.json").read_text())
    assert [limit["value"] for limit in measured["limits"]] == [pytest.approx(0, abs=0.01)]
    assert measured["quality"]["vaecf, from the history of the moment"][0]["recall@10"] > 0.5
    assert all(time > 0 for times in measured["microseconds"].values() for time in times.values())


def test_text_tells_kinds_apart_in_a_made_up_world(tmp_path):
    done = run("text_features", "--quick", "--results", str(tmp_path), "--vectors", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "no limit in a made-up world"
    test = json.loads((tmp_path / "text_features.json").read_text())["test"]
    assert test["content"]["recall@50"] == 1.0
    assert test["popular"]["recall@10"] < test["content"]["recall@10"]
    assert test["ease + content"].keys() == test["ease"].keys()


@pytest.mark.parametrize("script", ["vaecf", "text_features"])
def test_without_the_data_a_benchmark_says_so(script, tmp_path):
    done = run(script, NIGHTCART_BENCH_DATA=str(tmp_path))
    assert (done.returncode, done.stdout.startswith("skipped: ")) == (0, True)


def test_everybodys_last_event_is_test_and_the_last_but_one_validation():
    world = made_up()
    learned, validation, test = world.material().interactions, world.truth(validation=True), world.truth()
    for user in range(world.log.n_users):
        events = world.log.item_idx[world.log.of_user(user)].tolist()
        assert learned.item_idx[learned.of_user(user)].tolist() == events[:-2]
        assert validation.items[user].indices.tolist() == [events[-2]]
        assert test.items[user].indices.tolist() == [events[-1]]
        assert test.past.item_idx[test.past.of_user(user)].tolist() == events[:-1]
    assert learned.as_of == END - 2 * DAY


def test_standardised_scores_have_mean_0_and_deviation_1_and_no_opinion_is_0():
    found = standardised(np.array([[1, 3, -np.inf], [2, 2, 2], [-np.inf] * 3], np.float32))
    assert found.tolist() == [[-1, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("value", "check", "code", "last"), [(2, True, 1, "short of: x: 2"), (3, True, 0, "within")])
def test_the_last_line_names_what_fell_short(tmp_path, capsys, value, check, code, last):
    limits = [{"name": "x", "value": value, "limit": ">= 3"}]
    assert finish("page", ["# Page"], {"limits": limits}, tmp_path, check) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    assert json.loads((tmp_path / "page.json").read_text()) == {"limits": limits}
