"""The page and the picture of the measurements."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("json", "gz", "events", "new_day", "spark")
DRAWN = {"json", "gz", "events"}


def within(limit: dict[str, Any]) -> bool:
    """Tell whether a value keeps its limit, written ``>= 0.5``, ``> 1`` or ``< 2``."""
    sign, bound = limit["limit"].split()
    return {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[sign](
        limit["value"], float(bound)
    )


def render(page: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = ["# Ingest"]
    limits = [limit for part in PARTS for limit in page.get(part, {}).get("limits", [])]
    if limits:
        lines += ["", "| measured | value | limit | |", "|---|---|---|---|"]
        lines += [
            f"| {limit['name']} | {limit['value']:.3g} | {limit['limit']} | {'' if within(limit) else 'missed'} |"
            for limit in limits
        ]
    if page.keys() & DRAWN:
        lines += ["", "![Speed of the readers of JSON; time and peak memory against events](ingest.png)"]
    for part in PARTS:
        if part in page:
            lines += ["", *SECTIONS[part](page[part])]
            faults = page[part]["faults"]
            if "skipped" not in page[part]:
                lines += ["", f"Rows: {'; '.join(faults) if faults else 'as the generator knows them, in all runs'}."]
            lines += ["", f"`{page[part]['command']}`, {page[part]['date']}: {page[part]['machine']}."]
    return "\n".join([*lines, ""])


NAMES = {
    "ingest": "**nightcart ingest**, the whole step",
    "duckdb": "DuckDB, bare typed parse of the 4 columns",
    "polars": "polars `scan_ndjson` of the 4 columns",
    "pyarrow": "pyarrow `read_json` of the 4 columns",
    "pandas": "pandas `read_json(lines=True)`, which parses all",
}


def _reviews_section(title: str) -> Callable[[dict[str, Any]], list[str]]:
    def section(part: dict[str, Any]) -> list[str]:
        facts, events = part["facts"], part["facts"]["events"]
        lines = [
            f"## {title}",
            "",
            f"{facts['bytes'] / 1e6:,.0f} MB of JSON, {events['read']:,} reviews of {facts['distinct']['users']:,} "
            f"customers = {events['kept']:,} kept + {events['quarantined']:,} quarantined + {events['duplicates']:,} "
            f"duplicates. Ours also reads a catalogue of {facts['products']:,} products and writes the lake. The files "
            "lie in the page cache; median of the runs, with the fastest and the slowest.",
            "",
            "| | s | from, to | MB of JSON/s | of DuckDB | CPU s | peak GB | disk beside, GB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in part["rows"]:
            lines.append(
                f"| {NAMES[row['name']]} | {row['seconds']:.2f} | {row['fastest']:.2f}, {row['slowest']:.2f} "
                f"| {row['speed']:,.0f} | {row['of_duckdb']:.2f} | {row['cpu']:.1f} | {row['peak']:.2f} "
                f"| {row['spilled']:.2f} |"
            )
        return lines

    return section


def _events_section(part: dict[str, Any]) -> list[str]:
    lines = [
        "## Events in daily CSV files",
        "",
        f"A catalogue of {part['items']:,} items; one customer for a hundred events. *split* opens the "
        "interactions and makes the validation and test truths of both views. One run each.",
        "",
        "| events | customers | CSV GB | step | s | events/s | CPU s | peak GB | disk beside, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['events']:,} | {row['users']:,} | {row['bytes'] / 1e9:.2f} | {row['name']} | {row['seconds']:.1f} "
            f"| {row['events'] / row['seconds']:,.0f} | {row['cpu']:.1f} | {row['peak']:.2f} | {row['spilled']:.2f} |"
        )
    return lines


def _new_day_section(part: dict[str, Any]) -> list[str]:
    lines = [
        "## A new day",
        "",
        f"{part['days']} daily files of {part['a_day']:,} events, then one more."
        + ("" if part["faults"] else f" The last two rows left the same {part['files']} event files, byte for byte."),
        "",
        "| | s | of the first night | CPU s | peak GB |",
        "|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {row['share']:.1%} | {row['cpu']:.1f} | {row['peak']:.2f} |"
        )
    return lines


def _spark_section(part: dict[str, Any]) -> list[str]:
    if "skipped" in part:
        return ["## Engines", "", f"Not run: {part['skipped']}."]
    lines = [
        "## Engines",
        "",
        f"{part['events']:,} events in daily CSV files."
        + ("" if part["faults"] else f" Both left the same {'files' if part['same_bytes'] else 'rows'}."),
        "",
        "| engine | s | peak GB |",
        "|---|---|---|",
    ]
    return lines + [f"| {row['name']} | {row['seconds']:.1f} | {row['peak']:.2f} |" for row in part["rows"]]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "json": _reviews_section("JSON lines"),
    "gz": _reviews_section("JSON lines behind gzip"),
    "events": _events_section,
    "new_day": _new_day_section,
    "spark": _spark_section,
}


def draw(page: dict[str, Any], file: Path) -> None:
    """Draw the speed of the readers of JSON, and the time of ingest and split against the number of events."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = [part for part in ("json", "gz") if part in page]
    panels = len(bars) + ("events" in page)
    if not panels:
        return
    figure, axes = plt.subplots(1, panels, figsize=(5 * panels, 3.6), layout="constrained", squeeze=False)
    for axis, part in zip(axes[0], bars, strict=False):
        rows = page[part]["rows"][::-1]
        names = ["nightcart ingest" if row["name"] == "ingest" else row["name"] for row in rows]
        colours = ["#c44e52" if row["name"] == "ingest" else "#9aa5b1" for row in rows]
        drawn = axis.barh(names, [row["speed"] for row in rows], color=colours)
        axis.bar_label(drawn, [f"{row['speed']:,.0f}" for row in rows], padding=3)
        axis.set_xlim(0, max(row["speed"] for row in rows) * 1.18)
        axis.set_xlabel("MB of JSON a second")
        axis.set_title({"json": "JSON lines", "gz": "JSON lines, gzip"}[part])
    if "events" in page:
        axis = axes[0][-1]
        for name, colour in (("ingest", "#c44e52"), ("split", "#4c72b0")):
            rows = [row for row in page["events"]["rows"] if row["name"] == name]
            events, seconds = ([row[key] for row in rows] for key in ("events", "seconds"))
            axis.loglog(events, seconds, "o-", color=colour, label=name)
            linear = [seconds[0] * n / events[0] for n in events]
            axis.loglog(events, linear, ":", color=colour, label=None if name == "ingest" else "linear")
            for n, s, row in zip(events, seconds, rows, strict=True):
                axis.annotate(
                    f"{row['peak']:.1f} GB", (n, s), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
                )
        axis.set_xticks(events, [f"{row['millions']:g} M" for row in rows])
        axis.minorticks_off()
        axis.margins(0.15)
        axis.set_xlabel("events")
        axis.set_ylabel("seconds")
        axis.set_title("time and peak memory")
        axis.legend()
    figure.savefig(file, dpi=120, metadata={"Software": None})
    plt.close(figure)
