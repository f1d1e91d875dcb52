"""The claim: training that begins with last night's weights takes less time and makes no worse model.

Consecutive nights of Online Retail, ``sasrec`` alone. Each night is trained twice: from nothing, and from the weights
of the night before (the first night's are from nothing). Both choose their epochs on validation, waiting for four
without a better one; both are then refitted through ``as_of``. Beside seconds of the processor and epochs stand
ndcg@10 (discovery, all customers) on validation, on the test window, and of the refits on the fourteen days after
``as_of``, which no night has seen, with the 95 % interval of the paired difference. The interval is of these customers
and these two trainings; the rows show how much trainings from nothing differ where all data but a day is the same.
Validation flatters weights of earlier nights: those chose their epochs on windows that overlap it.

    python benchmarks/warm_start.py [--nights 5] [--first 2011-09-05] [--check] [--quick] [--home DIR]

Online Retail (UCI, CC BY 4.0) is read as one CSV a day from ``online_retail_2011`` in ``NIGHTCART_BENCH_DATA``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import yaml
from protocol.page import RESULTS, made_by

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NIGHTCART_BENCH_DATA", ROOT.parent / "shared" / "data"))
MEASURES = ("validation", "test", "afterwards")


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when warm nights are worse, or take as long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=5, help="nights after the first")
    parser.add_argument("--first", default="2011-09-05", help="date of the first night")
    parser.add_argument("--quick", action="store_true", help="one night of few epochs; writes no page")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--home", type=Path, help="where to leave the nights (default: a temporary folder)")
    options = parser.parse_args()
    if not (DATA / "online_retail_2011").is_dir():
        print(f"skipped: {DATA / 'online_retail_2011'} is not there; NIGHTCART_BENCH_DATA says where the data is")
        return 0
    config = {"epochs": 3, "dim": 16} if options.quick else {"patience": 4}
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        os.environ["NIGHTCART_HOME"] = str(options.home or scratch)
        nights = run(options.first, 1 if options.quick else options.nights, config)
    page = {"nights": nights, "made by": made_by(["tensorflow"])}
    text = render(page)
    print(text)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "warm_start.json").write_text(json.dumps(page, indent=1) + "\n")
        (RESULTS / "warm_start.md").write_text(text)
    short = [] if options.quick else shortcomings(nights)
    print(
        "short of: " + "; ".join(short) if short else "ran; no limit applies" if options.quick else "within all limits"
    )
    return 1 if options.check and short else 0


def run(first: str, nights: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Train each night from nothing and from the night before, and return what both took and are worth."""
    from recsys_tasks.embed import embed
    from recsys_tasks.ingest import ingest
    from recsys_tasks.night import plan
    from recsys_tasks.recipe import Recipe, Shelf
    from recsys_tasks.split import truth

    home = Path(os.environ["NIGHTCART_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    told = yaml.safe_load((ROOT / "include" / "shops" / "online_retail.yaml").read_text())
    told["source"]["events"]["path"] = str((DATA / "online_retail_2011").absolute() / "*.csv")
    (home / "shop.yaml").write_text(yaml.safe_dump(told))
    recipe, found, before = Recipe.of("sasrec", config), [], None

    def opened(instant: datetime) -> tuple[Any, Any]:
        night = plan(str(home / "shop.yaml"), instant.isoformat(), instant, publish=False)
        snapshot = ingest(night)
        return Shelf.open(night.lake, night.shop, snapshot, embed(night, snapshot)), night.windows

    def trained(shelf: Any, windows: Any, start: str | None) -> dict[str, Any]:
        started = time.process_time()
        fitted = shelf.fit(recipe, windows, start=start)
        middle = time.process_time()
        refitted = shelf.refit(fitted, windows)
        ended = time.process_time()
        model = shelf.load(fitted)
        test = truth(shelf.interactions, windows.validation_end, windows.as_of, model.view)
        return {
            "entry": fitted,
            "seconds": middle - started,
            "refit seconds": ended - middle,
            "epochs": len(model.curve),
            "validation": model.validate(shelf.lesson(windows)),
            "test": ndcg(model, shelf, test),
            "refit": refitted,
        }

    for n in range(nights + 1):
        instant = datetime.fromisoformat(first).replace(tzinfo=UTC) + timedelta(days=n)
        shelf, windows = opened(instant)
        later, _ = opened(instant + timedelta(days=14))
        ways = {"nothing": trained(shelf, windows, None)}
        if before:
            ways["last night"] = trained(shelf, windows, before)
        for way in ways.values():
            way["afterwards"] = afterwards(shelf, later, way.pop("refit"), windows.as_of)
        before = ways.get("last night", ways["nothing"])["entry"]
        found.append({"date": f"{instant:%Y-%m-%d}", **compared(ways)})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def ndcg(model: Any, shelf: Any, wanted: Any) -> np.ndarray:
    """Return ndcg@10 of each customer of a window."""
    from recsys_tasks.metrics import hits, ndcg_at_k

    known = shelf.catalog.candidates(wanted.past.as_of)
    ranked = model.recommend(wanted.past, wanted.users, 10, known, exclude_seen=wanted.exclude_seen)
    return ndcg_at_k(hits(ranked.items, wanted.items), np.diff(wanted.items.indptr), 10)


def afterwards(shelf: Any, later: Any, refitted: str, as_of: int) -> np.ndarray:
    """Return ndcg@10 of each customer of the two weeks after ``as_of``, of the items that the night knew."""
    from recsys_tasks.split import Truth, truth

    model = shelf.load(refitted)
    came = truth(later.interactions, as_of, later.interactions.as_of, model.view)
    row = {user: n for n, user in enumerate(shelf.interactions.user_ids)}
    users = np.array([row[user] for user in later.interactions.user_ids[came.users]])
    column = {item: n for n, item in enumerate(shelf.catalog.item_ids)}
    place = np.array([column.get(item, -1) for item in later.catalog.item_ids])
    pairs = came.items.tocoo()
    known = place[pairs.col] >= 0
    shape = (len(users), len(column))
    items = sp.csr_matrix((pairs.data[known], (pairs.row[known], place[pairs.col[known]])), shape=shape)
    told = np.diff(items.indptr) > 0
    return ndcg(model, shelf, Truth(shelf.interactions, users[told], items[told], came.view, came.end))


def compared(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return means of each way, and the 95 % intervals of the differences between them."""
    from recsys_tasks.metrics import bootstrap

    found: dict[str, Any] = {
        way: {name: float(np.mean(value)) for name, value in told.items() if name != "entry"}
        for way, told in ways.items()
    }
    if "last night" in ways:
        gains = {name: ways["last night"][name] - ways["nothing"][name] for name in MEASURES}
        found["difference"] = {name: list(bootstrap({name: gain})[name]) for name, gain in gains.items()}
    return found


def shortcomings(nights: list[dict[str, Any]]) -> list[str]:
    """Return what speaks against warm starts: a mean loss in a measure beyond 1 %, or no time won."""
    both = [night for night in nights if "last night" in night]
    fresh, warm = ([night[way] for night in both] for way in ("nothing", "last night"))
    short = [
        f"{name} {ratio - 1:+.1%}"
        for name in MEASURES
        if (ratio := sum(w[name] for w in warm) / sum(f[name] for f in fresh)) < 0.99
    ]
    spent = [sum(night["seconds"] + night["refit seconds"] for night in way) for way in (warm, fresh)]
    return [*short, *([f"time {spent[0] / spent[1]:.2f}x"] if spent[0] >= spent[1] else [])]


def render(page: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = ["# Training from last night's weights, and from nothing", ""]
    lines += ["`sasrec` (patience 4) on consecutive nights of Online Retail; ndcg@10, discovery.", ""]
    lines += ["| night | begins with | fit, CPU s | epochs | refit, CPU s | validation | test | the 14 days after |"]
    lines += ["|---" * 8 + "|"]
    for night in page["nights"]:
        for way in ("nothing", "last night"):
            if told := night.get(way):
                numbers = " | ".join(f"{told[name]:.4f}" for name in MEASURES)
                times = f"{told['seconds']:.0f} | {told['epochs']:.0f} | {told['refit seconds']:.0f}"
                lines.append(f"| {night['date']} | {way} | {times} | {numbers} |")
        if gain := night.get("difference"):
            ends = " | ".join(f"{gain[name][0]:+.4f} to {gain[name][1]:+.4f}" for name in MEASURES)
            lines.append(f"| | difference, 95 % | | | | {ends} |")
    both = [night for night in page["nights"] if "last night" in night]
    for way in ("nothing", "last night"):
        means = {name: sum(night[way][name] for night in both) / len(both) for name in both[0][way]}
        numbers = " | ".join(f"{means[name]:.4f}" for name in MEASURES)
        times = f"{means['seconds']:.0f} | {means['epochs']:.1f} | {means['refit seconds']:.0f}"
        lines.append(f"| mean | {way} | {times} | {numbers} |")
    return "\n".join([*lines, "", page["made by"], ""])


if __name__ == "__main__":
    raise SystemExit(main())
