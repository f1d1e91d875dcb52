"""The claim: what a night serves is better than the best simple baseline, on what customers did afterwards.

Runs the whole night of two shops as of four dates each, from a raw export to published tables, and has a judge from
outside compare the tables of ``home`` and ``discover`` with the fourteen days that came after, which the night has not
seen. The judge also scores simple baselines on the same past; the claim is the ratio to the best of them. Beside it
stands what the night itself knew: the leaderboard on its own test window, every model on it.

    python benchmarks/champion.py --judge PATH [--only online_retail] [--check] [--quick] [--home DIR]

The judge is a program: ``--lake DIR --events FILE --as-of INSTANT --days 14 --references``, one line of JSON on
stdout (``home`` and ``discover``, each with ``ndcg@10``, ``references ndcg@10``, ``ratio to best``). Its path is given
by ``--judge`` or the environment variable ``NIGHTCART_JUDGE``; without it there is nothing to run. ``--quick`` is one
night of Online Retail without neural models, of which nothing but the form is checked.

Online Retail (UCI, CC BY 4.0) is read as one CSV a day from ``online_retail_2011`` in ``NIGHTCART_BENCH_DATA``; the
demo shop comes from its package. Nights of a shop share a home, in the order of time, as they do in life.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, ROOT, made_by

DATA = data_folder()
DATES = {
    "online_retail": ("2011-06-20", "2011-07-18", "2011-08-15", "2011-09-12"),
    "complete_journey": ("2017-09-11", "2017-10-09", "2017-11-06", "2017-12-04"),
}
LIMITS = {
    "online_retail": {"home": 1.08, "discover": 1.10},
    "complete_journey": {"home": 1.0, "discover": 1.0},
}
"""Mean ratio to the best reference, at least."""
VIEW = {"home": "all", "discover": "discovery"}


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when a mean ratio is below its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, default=os.environ.get("NIGHTCART_JUDGE"), help="the judge's path")
    parser.add_argument("--only", choices=DATES, help="this shop alone; the other's section of the page stays")
    parser.add_argument("--dates", help="other dates than those of the claim, by comma; writes no page")
    parser.add_argument("--models", help="models beside the baselines, by comma (default: those of the shop file)")
    parser.add_argument("--quick", action="store_true", help="one night, no neural model; writes no page")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    parser.add_argument("--home", type=Path, help="where to leave the nights (default: a temporary folder)")
    options = parser.parse_args()
    if not options.judge or not Path(options.judge).is_file():
        print("skipped: there is no judge; give its path with --judge or NIGHTCART_JUDGE")
        return 0
    shops = [options.only] if options.only else ["online_retail"] if options.quick else list(DATES)
    official = not (options.quick or options.dates or options.models)
    file = RESULTS / "champion.json"
    page: dict[str, Any] = json.loads(file.read_text()) if official and file.exists() else {}
    models = ["ranker"] if options.quick else options.models.split(",") if options.models else None
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        for shop in shops:
            home = Path(options.home or scratch).absolute() / shop
            home.mkdir(parents=True, exist_ok=True)
            described = describe(shop, home)
            if not described:
                print(f"{shop} skipped: {DATA / 'online_retail_2011'} is not there; NIGHTCART_BENCH_DATA says where")
                continue
            dates = options.dates.split(",") if options.dates else DATES[shop]
            nights = [run(described, home, date, models, options.judge) for date in dates[: 1 if options.quick else 4]]
            page[shop] = {"nights": nights, "made by": made_by(["lightgbm", "tensorflow", "torch", "numpy", "scipy"])}
    text = render(page)
    print(text)
    if official:
        RESULTS.mkdir(exist_ok=True)
        file.write_text(json.dumps(page, indent=1) + "\n")
        file.with_suffix(".md").write_text(text)
    short = [
        f"{shop} {placement}: {mean(page[shop]['nights'], placement):.3f} < {least}"
        for shop in page
        for placement, least in LIMITS[shop].items()
        if official and mean(page[shop]["nights"], placement) < least
    ]
    print("short of: " + "; ".join(short) if short else "within all limits" if official else "ran; no limit applies")
    return 1 if options.check and short else 0


def describe(shop: str, home: Path) -> dict[str, str] | None:
    """Return the shop file and the events for the judge, written where needed; None without the data."""
    if shop == "complete_journey":
        return {"shop": shop, "events": shop}
    days = DATA / "online_retail_2011"
    if not days.is_dir():
        return None
    told = yaml.safe_load((ROOT / "include" / "shops" / "online_retail.yaml").read_text())
    told["source"]["events"]["path"] = str(days.absolute() / "*.csv")
    (home / "shop.yaml").write_text(yaml.safe_dump(told))
    rows = pd.concat([pd.read_csv(day, dtype=str) for day in sorted(days.glob("*.csv"))])
    sold = rows.CustomerID.notna() & (rows.Quantity.astype(float) > 0) & (rows.UnitPrice.astype(float) > 0)
    rows = rows[sold]
    local = pd.to_datetime(rows.InvoiceDate).dt.tz_localize("Europe/London", ambiguous=False)
    events = pd.DataFrame(
        {"user_id": rows.CustomerID, "item_id": rows.StockCode, "timestamp": local.dt.tz_convert("UTC")}
    )
    events.to_parquet(home / "events.parquet")
    return {"shop": str(home / "shop.yaml"), "events": str(home / "events.parquet")}


def run(described: dict[str, str], home: Path, date: str, models: list[str] | None, judge: Path) -> dict[str, Any]:
    """Run one night in this process, have it judged, and return what judge and leaderboard say."""
    sys.path.insert(0, str(ROOT))
    from recsys_tasks.cli import run_night
    from recsys_tasks.night import plan

    os.environ["NIGHTCART_HOME"] = str(home)
    started = time.monotonic()
    night = plan(described["shop"], f"{date}T00:00:00Z", datetime.now(UTC), models)
    ids = run_night(night)
    seconds = time.monotonic() - started
    command = [sys.executable, str(judge), "--lake", str(night.lake.root), "--events", described["events"]]
    command += ["--as-of", date, "--days", "14", "--references"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    found = json.loads(told.splitlines()[-1])
    report = json.loads((night.lake.path(ids["report"]) / "report.json").read_text())
    board = {
        placement: {
            row["recipe"]: row["metrics"]["ndcg@10"]
            for row in report["leaderboard"]
            if row["view"] == view and row["tier"] == "everyone"
        }
        for placement, view in VIEW.items()
    }
    champions = {placement: report["champions"][placement]["recipe"] for placement in VIEW}
    ratios = " ".join(f"{placement} {found[placement]['ratio to best']:.3f}" for placement in VIEW)
    print(f"{described['shop']} {date}: {ratios}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return {
        "date": date,
        "seconds": seconds,
        "judged": found,
        "leaderboard": board,
        "champions": champions,
        "failed": report["failed"],
    }


def mean(nights: list[dict[str, Any]], placement: str) -> float:
    """Return the mean ratio to the best reference."""
    return sum(night["judged"][placement]["ratio to best"] for night in nights) / len(nights)


def render(page: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = ["# The champion beside simple baselines, on what customers did afterwards", ""]
    lines += ["| shop | placement | mean ratio to the best reference | limit | |", "|---|---|---|---|---|"]
    for shop, part in page.items():
        for placement, least in LIMITS[shop].items():
            value = mean(part["nights"], placement)
            lines.append(f"| {shop} | {placement} | {value:.3f} | >= {least} | {'missed' if value < least else ''} |")
    for shop, part in page.items():
        lines += ["", f"## {shop}: 14 days after each date", ""]
        lines.append(
            "| as of | placement | served by | ndcg@10 | +- | repeat | popular | ease | ratio | customers | night, s |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
        for night in part["nights"]:
            for placement in VIEW:
                found = night["judged"][placement]
                references = " | ".join(
                    f"{found['references ndcg@10'][name]:.4f}" for name in ("repeat", "popular", "ease")
                )
                lines.append(
                    f"| {night['date']} | {placement} | {night['champions'][placement]} | {found['ndcg@10']:.4f} | "
                    f"{found['ndcg@10 +-']:.4f} | {references} | {found['ratio to best']:.3f} | "
                    f"{night['judged']['users']:,} | {night['seconds']:.0f} |"
                )
        for placement, view in VIEW.items():
            recipes = list(
                dict.fromkeys(recipe for night in part["nights"] for recipe in night["leaderboard"][placement])
            )
            lines += ["", f"What each night knew: ndcg@10 on its test window, view {view}.", ""]
            lines += ["| as of | " + " | ".join(recipes) + " |", "|---" * (len(recipes) + 1) + "|"]
            for night in part["nights"]:
                scores = night["leaderboard"][placement]
                cells = [f"{scores[recipe]:.4f}" if recipe in scores else "" for recipe in recipes]
                lines.append(f"| {night['date']} | " + " | ".join(cells) + " |")
        failed = sorted({recipe for night in part["nights"] for recipe in night["failed"]})
        lines += ["", f"Failed to train: {', '.join(failed)}."] if failed else []
        lines += ["", part["made by"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
