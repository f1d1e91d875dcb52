"""The reports in a lake: which nights there are, and the shop that it serves."""

import json
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from recsys_tasks import versions
from recsys_tasks.contract import EVERYONE
from recsys_tasks.errors import NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop, load_shop


def shop_name(lake: Lake) -> str | None:
    """Return the shop that this lake serves; where it serves none yet, that of its newest report."""
    if now := versions.current(lake):
        return now["shop"]
    return next((night["shop"] for night in _newest_first(lake)), None)


def shop_of(lake: Lake) -> Shop:
    """Return the description of the shop that this lake serves.

    Raises
    ------
    NothingInLake
        No night has run yet.
    ShopFileError
        Its shop file is not where its last night read it.

    """
    name = shop_name(lake)
    if not name:
        raise NothingInLake(f"{lake.root} holds no night yet; trigger the DAG nightly, or type `make nightly`")
    [last] = nights(lake, name, 1) or [{"shop_file": name}]
    return load_shop(last["shop_file"], Settings().shops)


def nights(lake: Lake, shop: str, limit: int) -> list[dict[str, Any]]:
    """Return what the newest reports of a shop tell, newest first; see ``_summary``."""
    return list(islice((night for night in _newest_first(lake) if night["shop"] == shop), limit))


def current(lake: Lake) -> str | None:
    """Return the name of the report of the night published last, or of the newest where that one is gone."""
    pointed = lake.current("reports")
    if pointed and (lake.path(pointed["report"]) / "report.json").is_file():
        return pointed["report"].removeprefix("reports/")
    return next((night["name"] for night in _newest_first(lake)), None)


def read(lake: Lake, name: str) -> dict[str, Any]:
    """Return ``report.json`` of a night.

    Raises
    ------
    NothingInLake
        There is no such report.

    """
    if f"reports/{name}" not in lake.entries("reports"):  # the name comes from outside and must not lead elsewhere
        raise NothingInLake(f"the lake holds no report {name!r}; it may have been removed")
    return json.loads((lake.path(f"reports/{name}") / "report.json").read_text())


def _newest_first(lake: Lake) -> Any:
    return (_summary(lake.path(entry)) for entry in sorted(lake.entries("reports"), reverse=True))


@lru_cache(maxsize=512)
def _summary(folder: Path) -> dict[str, Any]:
    """What lists and leaderboards need of a report, which never changes once it is written."""
    report = json.loads((folder / "report.json").read_text())
    return {
        "name": folder.name,
        "written": (folder / "report.json").stat().st_mtime,
        **{key: report[key] for key in ("shop", "shop_file", "as_of", "version")},
        "champions": {placement: won["recipe"] for placement, won in report["champions"].items()},
        "rows": [
            {
                "recipe": row["recipe"],
                "view": row["view"],
                "values": row["metrics"] | row["beyond_accuracy"],
                "interval": row["interval"],
            }
            for row in report["leaderboard"]
            if row["tier"] == EVERYONE
        ],
    }
