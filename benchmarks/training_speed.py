"""The claim: an epoch of ``sasrec`` takes a small part of what the library that one would pick instead needs.

The same network on the same events of Amazon Beauty: one block, 64 wide, 50 events, batches of 128 histories, sampled
softmax of 256 items. RecTools needs numpy < 2 and hence an environment of its own, whose interpreter ``--rectools``
names (``python -m venv peer; peer/bin/pip install 'rectools[torch]'``); without it that row is left out. The two take
turns. Then ours is trained as it would be used, for the time it takes to be good.

    python benchmarks/training_speed.py [--rectools peer/bin/python] [--check] [--quick] [--results DIR]

``--quick`` is a made-up world of seconds, of which only the form is checked; it writes a page only to ``--results``.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from protocol.leave_last_out import TIMELESS, LeaveLastOut, data_folder, made_up
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.embed import Encoder
from recsys_tasks.metrics import hits, recall_at_k
from recsys_tasks.models import Material
from recsys_tasks.models.sasrec import SASRec, SASRecConfig

SIZE = {**TIMELESS, "dim": 64, "max_length": 50, "batch_size": 128, "negatives": 256, "dropout": 0.2}
SIZE |= {"temperature": None, "text": False}
RECTOOLS = {
    "n_blocks": 1,
    "n_heads": 1,
    "n_factors": 64,
    "session_max_len": 50,
    "batch_size": 128,
    "loss": "sampled_softmax",
    "n_negatives": 256,
    "dropout_rate": 0.2,
}
EPOCHS = 5
"""Of ours a turn; the first also compiles and is told apart."""
TURNS = 2
USED = {**TIMELESS, "batch_size": 128, "dropout": 0.5, "temperature": 0.07, "epochs": 30, "patience": 3}


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rectools", type=Path, help="interpreter of an environment that has RecTools")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--quick", action="store_true", help="a made-up world, in seconds")
    parser.add_argument("--results", type=Path, help="where to write the page")
    options = parser.parse_args()
    folder = data_folder() / "amazon_beauty_2014"
    if not options.quick and not folder.exists():
        print(f"skipped: {folder} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    world = made_up() if options.quick else LeaveLastOut.read(folder)
    learned, test = world.material(), world.truth()
    first, ours, theirs = [], [], []
    for _ in range(TURNS):
        compiled, *warm = epochs(learned)
        first.append(compiled)
        ours += warm
        if options.rectools:
            theirs += of_rectools(options.rectools, learned)
    rows: list[list[Any]] = [["sasrec", median(ours), min(ours), max(ours), ""]]
    rows += [["sasrec, first epoch with compiling", median(first), min(first), max(first), ""]]
    limits: list[dict[str, Any]] = []
    if theirs:
        times = median(theirs) / median(ours)
        rows.append(["RecTools SASRec", median(theirs), min(theirs), max(theirs), f"{times:.1f}"])
        limits.append({"name": "times faster an epoch than RecTools", "value": times, "limit": ">= 20"})
    started = time.monotonic()
    texts = Encoder().encode(world.catalog.texts).astype(np.float32)
    embedding = time.monotonic() - started
    model = SASRec(SASRecConfig(**USED)).fit(world.material(texts))
    seconds = time.monotonic() - started
    everything = np.ones(world.catalog.n_items, bool)
    ranked = model.recommend(test.past, test.users, 10, everything, exclude_seen=True).items
    recall = float(recall_at_k(hits(ranked, test.items), np.diff(test.items.indptr), 10).mean())
    limits.append({"name": "recall@10 of a short training", "value": recall, "limit": ">= 0.075"})
    limits.append({"name": "seconds of it, encoding the text included", "value": seconds, "limit": "< 360"})
    if options.quick:  # fixed costs say nothing of the limits
        limits = []
    measured = {"limits": limits, "rows": rows, "recall@10": recall, "seconds": seconds, "curve": model.curve}
    lines = [
        "# Speed of training",
        *limits_table(limits),
        "",
        f"{'A made-up world' if options.quick else 'Amazon Beauty'}, {len(learned.interactions):,} events of "
        f"{len(test.users):,} customers; seconds an epoch, {TURNS} turns.",
        *table(["", "median", "least", "most", "times ours"], rows),
        "",
        *([] if theirs else ["- RecTools SASRec left out: no `--rectools`", ""]),
        f"The short training is `{json.dumps(USED)}`: recall@10 {recall:.4f} in {seconds:.0f} s, of which encoding the "
        f"text {embedding:.0f} s; the best epoch on validation was {model.config.epochs} of {len(model.curve)}.",
        "",
        made_by(["tensorflow", "numpy"]),
    ]
    where = options.results or (None if options.quick else RESULTS)
    return finish("training_speed", lines, measured, where, options.check)


def epochs(learned: Material) -> list[float]:
    """Return the seconds of each epoch of ours."""
    model = SASRec(SASRecConfig(**SIZE, epochs=EPOCHS)).fit(replace(learned, validation=None))
    return [point["seconds"] for point in model.curve]


def of_rectools(interpreter: Path, learned: Material) -> list[float]:
    """Return the seconds of an epoch of RecTools."""
    log = learned.interactions
    events = pd.DataFrame({"user_id": log.user_idx, "item_id": log.item_idx, "weight": 1})
    events["datetime"] = pd.to_datetime(log.time, unit="us")
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        events.to_csv(file.name, index=False)
        script = Path(__file__).parent / "peers" / "rectools_sasrec.py"
        command = [str(interpreter), str(script), file.name, json.dumps(RECTOOLS), "1"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    raise SystemExit(main())
