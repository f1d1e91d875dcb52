"""The benchmark of sequence models in small: it runs the product's own model and writes its page where it is told."""

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_the_quick_benchmark_shows_sasrec_beside_the_baselines(tmp_path):
    script = ROOT / "benchmarks" / "sequence_models.py"
    command = [sys.executable, str(script), "--quick", "--check", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "no limit in a made-up world"
    page = (tmp_path / "sequence_models.md").read_text()
    assert "| sasrec |" in page
    rows = json.loads((tmp_path / "sequence_models.json").read_text())["parts"]["a made-up world"]["rows"]
    assert {"popular", "item_knn", "ease", "sasrec"} <= set(rows)
    assert rows["sasrec"][0]["recall@10"] > rows["popular"][0]["recall@10"]  # four kinds of customers: 1 in 4 by chance
    assert all(
        0 <= run["ndcg@10"] <= run["recall@10"] <= run["recall@50"] <= 1 for runs in rows.values() for run in runs
    )


def test_the_quick_benchmark_of_training_tells_epochs_and_what_is_left_out(tmp_path):
    script = ROOT / "benchmarks" / "training_speed.py"
    command = [sys.executable, str(script), "--quick", "--check", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RecTools SASRec left out" in (tmp_path / "training_speed.md").read_text()
    measured = json.loads((tmp_path / "training_speed.json").read_text())
    assert [row[0] for row in measured["rows"]] == ["sasrec", "sasrec, first epoch with compiling"]
    assert all(0 < row[2] <= row[1] <= row[3] for row in measured["rows"])
    assert measured["recall@10"] > 0.5  # a customer buys of one of four kinds, told by the text
