"""The claim: whatever event a shop is after, what its night would serve beats the best simple baseline.

Taobao's ten days of purchases, carts and favourites without any text, each kind of event in turn the target of a shop.
A night at the end of the log learns from eight days; its leaderboard tells, on the last two and over the whole
catalogue, how well every model ranks what customers did next, and for the first time. Nothing of those two days chose
a hyper-parameter, only which of the few recipes serves.

    python benchmarks/event_types.py [--only cart] [--models two_tower,ranker] [--check] [--home DIR]

The log is ``taobao_2017/events.parquet`` in ``NIGHTCART_BENCH_DATA`` (Alibaba, non-commercial research): ``user_id``,
``item_id``, ``event_type``, ``timestamp``.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, finish, limits_table, made_by, table

from recsys_tasks.cli import run_night
from recsys_tasks.contract import EVERYONE, PLACEMENT_VIEW
from recsys_tasks.models import BASELINES
from recsys_tasks.night import plan
from recsys_tasks.promote import choose_champion

TARGETS = ("purchase", "cart", "favourite")
AS_OF = "2017-12-03T16:00:00Z"
SHOP: dict[str, Any] = {
    "time_zone": "UTC",
    "windows": {"validation_days": 2, "test_days": 2},
}


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a baseline is not beaten."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TARGETS, help="this target alone; the others' rows of the page stay")
    parser.add_argument("--models", help="models beside the baselines, by comma; writes no page")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--home", type=Path, help="where to leave the nights (default: a temporary folder)")
    options = parser.parse_args()
    log = data_folder() / "taobao_2017" / "events.parquet"
    if not log.exists():
        print(f"skipped: {log} is not there; NIGHTCART_BENCH_DATA tells where public data lies")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    known = RESULTS / "event_types.json"
    parts: dict[str, Any] = json.loads(known.read_text())["parts"] if known.exists() else {}
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        for target in [options.only] if options.only else TARGETS:
            home = Path(options.home or scratch).absolute() / target
            parts[target] = measure(target, log.absolute(), home, options.models)
    lines, limits = render(parts)
    results = None if options.models else RESULTS  # the page is of what a shop gets
    return finish("event_types", lines, {"limits": limits, "parts": parts}, results, options.check)


def render(parts: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the lines of the page, and the limits: where a baseline serves, the ratio is 1 and the claim fails."""
    rows = [row for part in parts.values() for row in part["rows"]]
    limits = [
        {"name": f"{row['target']}, {row['view']}: champion over the best baseline", "value": row["ratio"]}
        | {"limit": "> 1"}
        for row in rows
    ]
    lines = ["# Every kind of event as target: Taobao's last two days of ten", *limits_table(limits)]
    head = ("target", "view", "customers", "served by", "ndcg@10", "95 %", "best baseline", "its ndcg@10", "95 %")
    cells = [
        [row[name] for name in ("target", "view", "customers")] + [cell for one in row["beside"] for cell in one]
        for row in rows
    ]
    lines += table(head, cells)
    for target, part in parts.items():
        recipes = list(dict.fromkeys(recipe for scores in part["leaderboard"].values() for recipe in scores))
        lines += ["", f"## {target}: ndcg@10 of every model"]
        lines += table(["view", *recipes], [[v, *map(s.get, recipes)] for v, s in part["leaderboard"].items()])
        lines += ["", f"{part['made by']} {part['seconds']:.0f} s of night up to the leaderboard."]
    return lines, limits


def measure(target: str, log: Path, home: Path, models: str | None) -> dict[str, Any]:
    """Run a night up to its leaderboard, and return what would serve beside the best baseline."""
    home.mkdir(parents=True, exist_ok=True)
    columns = {name: name for name in ("user_id", "item_id", "timestamp", "event_type")}
    source = {"format": "tabular", "events": {"path": str(log), "columns": columns}}
    (home / "shop.yaml").write_text(
        yaml.safe_dump({"name": f"taobao-{target}", "source": source, "target": target, **SHOP})
    )
    os.environ["NIGHTCART_HOME"] = str(home)
    started = time.monotonic()
    chosen = [*BASELINES, *models.split(",")] if models else None
    night = plan(str(home / "shop.yaml"), AS_OF, datetime.now(UTC), chosen)
    evaluation = run_night(night, "evaluate")["evaluate"]
    seconds = time.monotonic() - started
    board = json.loads((night.lake.path(evaluation) / "leaderboard.json").read_text())["rows"]
    rows, leaderboard = [], {}
    for placement, view in PLACEMENT_VIEW.items():
        of_view = {row["recipe"]: row for row in board if row["view"] == view and row["tier"] == EVERYONE}
        leaderboard[view] = {recipe: row["metrics"]["ndcg@10"] for recipe, row in of_view.items()}
        serves = choose_champion(board, placement).recipe
        best = max(BASELINES, key=lambda name: leaderboard[view].get(name, 0.0))
        beside = [
            [name, leaderboard[view][name], " to ".join(f"{end:.4f}" for end in of_view[name]["interval"]["ndcg@10"])]
            for name in (serves, best)
        ]
        ratio = leaderboard[view][serves] / leaderboard[view][best]
        rows.append({"target": target, "view": view, "customers": of_view[best]["users"], "ratio": ratio})
        rows[-1]["beside"] = beside
    return {
        "rows": rows,
        "leaderboard": leaderboard,
        "seconds": seconds,
        "made by": made_by(["lightgbm", "tensorflow", "numpy", "scipy"]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
