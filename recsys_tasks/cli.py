"""``nightcart``: every step without Airflow, and the published lists for people who ask."""

import getpass
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from recsys_tasks import backtest as backtest_step
from recsys_tasks import check as check_step
from recsys_tasks import embed as embed_step
from recsys_tasks import evaluate as evaluate_step
from recsys_tasks import forget as forgetting
from recsys_tasks import index as index_step
from recsys_tasks import ingest as ingest_step
from recsys_tasks import inspector, ledger
from recsys_tasks import promote as promote_step
from recsys_tasks import publish as publish_step
from recsys_tasks import recommend as recommend_step
from recsys_tasks import report as report_step
from recsys_tasks import train as train_step
from recsys_tasks import tune as tune_step
from recsys_tasks.contract import ANONYMOUS, EVERYONE, OF_ITEMS, PLACEMENT_VIEW, PLACEMENTS, USER_ID, VIEWS
from recsys_tasks.errors import ContractError, NightcartError, NothingInLake
from recsys_tasks.lake import Lake
from recsys_tasks.night import Night, as_of_of, nights_between, plan
from recsys_tasks.online_store import open_store
from recsys_tasks.recipe import Recipe
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop, load_shop
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.tombstones import Tombstones
from recsys_tasks.validate import validate as validate_files
from recsys_tasks.versions import current, entry, placements_of, roll_back, versions

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
out = Console(width=None if sys.stdout.isatty() else 130)

ShopOption = Annotated[str, typer.Option("--shop", help="Name or path of a shop file.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="ISO 8601 instant with zone; default now.")]
Models = Annotated[str | None, typer.Option("--models", help="Models beside the baselines, by comma.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEMO = "complete_journey"
SERVED_SHOWN = 20

Step = Literal[
    "ingest", "embed", "train", "evaluate", "promote", "publish_index", "recommend", "check", "publish", "report"
]
STEPS = get_args(Step)


@app.callback()
def main(
    home: Annotated[Path | None, typer.Option(help="Where everything lives; default NIGHTCART_HOME or var/.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings.")] = False,
) -> None:
    """Nightcart: recommendations for every customer, every night."""
    if home:
        os.environ["NIGHTCART_HOME"] = str(home)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("recsys_tasks").setLevel(logging.WARNING if quiet else logging.INFO)


def run_night(night: Night, until: str = "report") -> dict[str, Any]:
    """Run the steps in their order up to ``until``; what is in the lake already is reused. Return the ids they gave."""
    ids: dict[str, Any] = {}

    def step(name: str, make: Any) -> bool:
        ids[name] = make()
        return name == until

    if step("ingest", lambda: ingest_step.ingest(night)):
        return ids
    snapshot = ids["ingest"]
    if step("embed", lambda: embed_step.embed(night, snapshot)):
        return ids
    vectors = ids["embed"]
    if step("train", lambda: train_step.train_all(night, snapshot, vectors)):
        return ids
    if step("evaluate", lambda: evaluate_step.evaluate(night, snapshot, vectors)):
        return ids
    if step("promote", lambda: promote_step.promote(night, ids["evaluate"], snapshot, vectors)):
        return ids
    champions = ids["promote"]
    if step("publish_index", lambda: index_step.publish_index(night, champions, snapshot, vectors)):
        return ids
    index = ids["publish_index"]
    shards = track(night.shards, "recommend", console=Console(stderr=True), transient=True)
    if step(
        "recommend", lambda: [recommend_step.recommend(night, s, champions, index, snapshot, vectors) for s in shards]
    ):
        return ids
    lists = ids["recommend"]
    if step("check", lambda: check_step.check(night, lists, snapshot)):
        return ids
    if step("publish", lambda: publish_step.publish(night, lists, champions, ids["evaluate"], snapshot)):
        return ids
    step(
        "report",
        lambda: report_step.report(night, snapshot, ids["evaluate"], champions, index, ids["check"], ids["publish"]),
    )
    return ids


def _step_command(name: str) -> None:
    def command(
        shop: ShopOption = DEMO,
        as_of: AsOf = None,
        models: Models = None,
        k: Annotated[int | None, typer.Option(help="Length of the lists.")] = None,
        publish: Annotated[bool, typer.Option(help="Publish, or leave all that is current as it is.")] = True,
        force_promote: Annotated[str | None, typer.Option(help="Make this model champion.")] = None,
        hold: Annotated[
            bool, typer.Option("--hold", help="Keep the champions, whatever the leaderboard says.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        wanted = models.split(",") if models else None
        night = plan(shop, as_of, datetime.now(UTC), wanted, k, publish, force_promote, _person(), hold)
        with night.lake.at_work():
            ids = run_night(night, "report" if name == "run" else name)
        if as_json:
            out.print_json(data=ids)
        elif name in ("run", "report"):
            print_report(night.lake, ids["report"])
        else:
            out.print(ids[name])

    command.__doc__ = "Run the whole night." if name == "run" else f"Run the night up to the step {name}."
    app.command(name.replace("_", "-"))(command)


for _name in ("run", *(step for step in STEPS if step not in ("recommend", "report"))):
    _step_command(_name)


@app.command()
def validate(
    shop: Annotated[str, typer.Argument(help="Name or path of a shop file.")] = DEMO,
    as_of: AsOf = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on any bad row or warning.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a night would think of the shop's files, and import nothing. Exit 1 where it would stop the night."""
    description = _shop(shop)
    logging.getLogger("recsys_tasks").setLevel(logging.ERROR)
    bar = Progress(SpinnerColumn(), *Progress.get_default_columns(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("reading", total=None)
        found = validate_files(
            description,
            as_of_of(description, as_of, datetime.now(UTC)),
            lambda done, of: bar.update(task, completed=done, total=of),
        )
    if as_json:
        out.print_json(data=found)
    else:
        _print_validation(description, found)
    if found["errors"] or (strict and (found["faults"] or found["warnings"])):
        raise typer.Exit(1)


def _print_validation(shop: Shop, found: dict[str, Any]) -> None:
    out.rule(escape(f"{shop.name}: {shop.file}"))
    for error in found["errors"]:
        out.print(f"[red]stops the night:[/red] {escape(error)}")
    if found["errors"]:
        return
    for line in found["accounting"]:
        out.print(escape(line))
    if found["faults"]:
        table = Table("table", "field", "rows", "example", "what is wrong", title="in quarantine", title_justify="left")
        for fault in found["faults"][:20]:
            example = escape(f"{fault['file']} row {fault['row']:,}")
            table.add_row(fault["table"], fault["field"], f"{fault['rows']:,}", example, escape(fault["reason"]))
        out.print(table)
    if len(found["faults"]) > 20:
        out.print(f"and {len(found['faults']) - 20} kinds more (--json shows all)")
    log_, catalogue = found["log"], found["catalogue"]
    types = ", ".join(f"{n:,} {kind}" for kind, n in log_["types"].items())
    out.print(
        f"the log: {types}; {log_['customers']:,} customers, {log_['items']:,} items, {log_['first']} to {log_['last']}"
    )
    out.print(
        f"the catalogue: {catalogue['items']:,} items, {catalogue['title']:,} with a title, "
        f"{catalogue['price']:,} with a price, {catalogue['category']:,} with a category"
    )
    for warning in found["warnings"]:
        out.print(f"[yellow]look at this:[/yellow] {escape(warning)}")
    out.print("[green]A night can be made of this.[/green] Nothing was imported.")


@app.command()
def backfill(
    first: Annotated[str, typer.Option("--from", help="Date (midnight UTC) or ISO 8601 instant with zone.")],
    last: Annotated[str, typer.Option("--to", help="The same; it is included.")],
    shop: ShopOption = DEMO,
    until: Annotated[Step, typer.Option(help="The last step of each night.")] = "ingest",
    models: Models = None,
    k: Annotated[int | None, typer.Option(help="Length of the lists.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest every night of a range again, one a day, or run each up to another step. Publishes nothing."""
    lake, told = _lake(), Console(stderr=as_json, soft_wrap=True, highlight=False)
    known = {str(path.relative_to(lake.root)) for path in (lake.root / "events").glob("*/*.parquet")}
    done = {}
    for instant in nights_between(first, last):
        night = plan(shop, instant.isoformat(), instant, models.split(",") if models else None, k, publish=False)
        done[night.name] = run_night(night, until)
        snapshot = lake.manifest(done[night.name]["ingest"])
        files, rows = {day["file"] for day in snapshot["days"]}, sum(day["rows"] for day in snapshot["days"])
        told.print(
            f"{night.name}: {rows:,} rows, {len(files - known)} of {len(files)} {night.shop.partition_by}s "
            f"new or changed, watermark {snapshot['watermark']}"
        )
        known |= files
    if as_json:
        out.print_json(data=done)


@app.command()
def tune(
    shop: ShopOption = DEMO,
    model: Annotated[list[str] | None, typer.Option(help="Again for each; default all of the shop's.")] = None,
    minutes: Annotated[float, typer.Option(help="For each model, the shop's own recipe included.")] = 10,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Search better hyper-parameters; what beats the shop's recipe enters the next nights as challenger."""
    night = plan(shop, as_of, datetime.now(UTC), publish=False)
    models = tune_step.tunable(night, model)
    ids = run_night(night, "embed")
    found = {}
    for name in models:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{name}, the shop's own recipe", total=60 * minutes)

            def told(trial: dict[str, Any], bar: Progress = bar, task: Any = task, name: str = name) -> None:
                bar.update(task, completed=trial["ended"], description=f"{name}, {trial['number'] + 1} trials")

            entry = tune_step.tune(night, name, ids["ingest"], ids["embed"], minutes, told)
        found[name] = json.loads((night.lake.path(entry) / "tuning.json").read_text())
        if not as_json:
            _print_tuning(found[name])
    if as_json:
        out.print_json(data=found)


def _print_tuning(found: dict[str, Any]) -> None:
    given, done = found["given"], [trial for trial in found["trials"] if trial["state"] == "complete"]
    seconds = found["seconds"]
    title = f"{found['model']}: {len(found['trials'])} trials, {len(done)} to their end, in {seconds:.0f} s"
    table = Table("trial", "ndcg@10", "gain", "seconds", "configuration", title=title, title_justify="left")
    table.add_row("", f"{given['ndcg@10']:.4f}", "", "", escape(f"the shop's: {given['recipe']}"))
    for trial in sorted(done, key=lambda trial: -trial["ndcg@10"])[:10]:
        numbers = (f"{trial['ndcg@10']:.4f}", f"{trial['gain']:+.4f}", f"{trial['seconds']:.1f}")
        words = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in trial["params"].items()
        )
        table.add_row(str(trial["number"]), *numbers, escape(words), style="bold" if trial["beats"] else "")
    out.print(table)
    if found["challenger"]:
        gain = f"{found['gain']:+.4f} ndcg@10 on validation"
        out.print(f"enters as challenger, {gain}: [bold]{escape(found['challenger'])}[/bold]")
    else:
        out.print("nothing enters: no trial beats the shop's recipe by more than one standard error")


@app.command()
def backtest(
    first: Annotated[str, typer.Option("--from", help="Date (midnight UTC) or ISO 8601 instant with zone.")],
    last: Annotated[str, typer.Option("--to", help="The same; no date is after it.")],
    every: Annotated[int, typer.Option(help="Days from one date to the next.")] = 7,
    shop: ShopOption = DEMO,
    model: Annotated[
        list[str] | None, typer.Option(help="Again for each: a name or a recipe; default all of the shop's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train and score models on rolling dates, each as the night of that date would have. Publishes nothing."""
    nights = backtest_step.nights(shop, first, last, every, model)
    bar = track(nights, f"{len(nights)} dates", console=Console(stderr=True), transient=True)
    entry = backtest_step.summarise(nights, [backtest_step.score(night) for night in bar])
    folder = nights[0].lake.path(entry)
    content = json.loads((folder / "backtest.json").read_text())
    if as_json:
        out.print_json(data=content)
        return
    for view in VIEWS:
        title = f"{view}: mean of {len(nights)} dates; the ratio is to the best baseline of each date"
        table = Table(title=title, title_justify="left")
        for column in ("recipe", "dates", "ndcg@10", "95 %", "recall@10", "coverage@10", "ratio", "95 %"):
            table.add_column(column, justify="left" if column == "recipe" else "right")
        rows = [row for row in content["rows"] if (row["date"], row["view"]) == (backtest_step.MEAN, view)]
        for row in sorted(rows, key=lambda row: -row["ndcg@10"]):
            numbers = (f"{row['ndcg@10']:.4f}", _interval(row["interval"], 4), f"{row['recall@10']:.4f}")
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            rest = (f"{row['coverage@10']:.2%}", ratio, _interval(row["ratio interval"], 3))
            style = "" if row["recipe"] in content["baselines"] else "bold"
            table.add_row(escape(Recipe(row["recipe"]).label), str(row["dates"]), *numbers, *rest, style=style)
        out.print(table)
    for date, failed in content["failed"].items():
        out.print(f"[red]{date}: {escape(', '.join(failed))} failed to train[/red]")
    out.print(f"every date, and a plot: {folder}", soft_wrap=True, markup=False, highlight=False)


def _interval(ends: list[float] | None, digits: int) -> str:
    return f"{ends[0]:.{digits}f}-{ends[1]:.{digits}f}" if ends else ""


@app.command()
def report(
    entry: Annotated[str | None, typer.Argument(help="An id, reports/...; default the night published last.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a night's report: where its page is, accounting, leaderboard, and what three customers get."""
    if as_json:
        out.print_json(data=_report(_lake(), entry))
    else:
        print_report(_lake(), entry)


@app.command()
def leaderboard(as_json: AsJson = False) -> None:
    """Print every model of the night published last beside the baselines."""
    content = _report(_lake())
    if as_json:
        out.print_json(data=content["leaderboard"])
    else:
        _print_leaderboard(content)


@app.command(name="recommend")
def show_recommendations(
    user: Annotated[str, typer.Argument(help="User id, or __anonymous__ for a visitor.")],
    placement: Annotated[str, typer.Option(help="home, buy_again, trending and so on.")] = "home",
    k: Annotated[int, typer.Option(help="How many to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Print a customer's published list, from Parquet, and say whether Redis holds the same."""
    _show_list(user, placement, k, as_json)


@app.command()
def similar(item: str, k: int = 10, as_json: AsJson = False) -> None:
    """Print the items most like an item."""
    _show_list(item, "similar", k, as_json)


@app.command()
def inspect(
    what: Annotated[str | None, typer.Argument(metavar="CUSTOMER_OR_ITEM", help="An id, or a part of a title.")] = None,
    shop: ShopOption = DEMO,
    version: Annotated[str | None, typer.Option(help="One that is kept; default the current.")] = None,
    against: Annotated[str | None, typer.Option(help="Another version, to set a customer's lists beside.")] = None,
    k: Annotated[int, typer.Option(help="How many rows to show of each table.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Tell why a customer got a list: history, what sources, ranker and agent said, what the list leaves out."""
    if what is None:
        out.print(
            "Whom or what? nightcart inspect with the id of a customer or an item, or a part of a title to search for; "
            "--version looks into an earlier version, --against sets two side by side"
        )
        return
    lake, description = _lake(), _shop(shop)
    if against:
        compared = inspector.compare(lake, description, what, version, against)
        out.print_json(data=compared) if as_json else _print_compared(compared, k)
        return
    found: dict[str, Any]
    try:
        found, show = inspector.customer(lake, description, what, version), _print_customer
    except NothingInLake as unknown:
        try:
            found, show = inspector.item(lake, description, what, version), _print_item
        except NothingInLake:
            found, show = inspector.search(lake, description, what), _print_hits
            if version or not any(found.values()):
                raise unknown from None
    out.print_json(data=found) if as_json else show(found, k)


def _print_customer(found: dict[str, Any], k: int) -> None:
    out.rule(escape(f"{found['user_id']} ({found['tier']}), version {found['version']} as of {found['as_of']}"))
    shown = found["history"][:k]
    table = Table("time", "event", "item", "title", "price", title_justify="left")
    table.title = f"history: the newest {len(shown)} of {found['n_events']:,} events"
    for row in shown:
        price = "" if row["price"] is None else f"{row['price']:.2f}"
        table.add_row(*map(escape, (_minute(row["time"]), row["type"], row["item_id"], row["title"], price)))
    out.print(table)
    for placement, told in found["placements"].items():
        for name, rows in ((placement, told["list"]), (f"{placement}, left out", told["left_out"])):
            if rows:
                champion = f" (champion: {told['champion']})" if told["champion"] else ""
                _print_explained(f"{name}{champion}", rows[:k])
        if told["note"]:
            out.print(f"[yellow]{escape(told['note'])}[/yellow]")


def _print_explained(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=escape(title), title_justify="left")
    for column in ("rank", "item", "title", "why", "sources", "ranker", "agent"):
        table.add_column(column, justify="right" if column in ("rank", "ranker", "agent") else "left")
    for row in rows:
        best = sorted(row["sources"].items(), key=lambda told: told[1]["rank"])
        sources = ", ".join(f"{name} {told['rank']}" for name, told in best)
        later = (f"{row[stage]['rank']}" if row[stage] else "" for stage in ("ranker", "agent"))
        why = "; ".join(filter(None, (row["reason"], row["note"])))
        words = (str(row["rank"] or ""), row["item_id"], row["title"], why, sources, *later)
        table.add_row(*map(escape, words))
    out.print(table)


def _print_compared(found: dict[str, Any], k: int) -> None:
    out.rule(escape(f"{found['user_id']}: version {found['version']} against {found['other']}"))
    for placement, told in found["placements"].items():
        kept, new, gone = (told[name] for name in ("kept", "new", "gone"))
        table = Table("rank", "before", "item", "title", "reason", title_justify="left")
        table.title = f"{placement}: {len(kept)} kept, {len(new)} new, {len(gone)} gone"
        now = sorted(kept + new, key=lambda row: row["rank"])[:k]
        for row in [*now, *gone[:k]]:
            places = [str(row.get(name, "")) for name in ("rank", "before")]
            change = row.get("change", 0)
            places[1] += f" ({change:+d})" if change else ""
            style = "" if "before" in row and "rank" in row else "green" if "rank" in row else "red"
            table.add_row(*map(escape, (*places, row["item_id"], row["title"], row["reason"])), style=style)
        out.print(table)


def _print_item(found: dict[str, Any], k: int) -> None:
    out.rule(escape(f"{found['item_id']}: {found['title']}, version {found['version']}"))
    facts = [f"{name} {found[name]}" for name in ("category", "brand", "price") if found[name] is not None]
    facts += ["available" if found["available"] else "not available"]
    facts += [f"{found['n_events']:,} events", f"{found['n_buyers']:,} buyers"]
    facts += [f"in the {placement} list of {n:,} customers" for placement, n in found["listed"].items()]
    out.print(escape("; ".join(facts)))
    for placement in OF_ITEMS:
        table = Table("rank", "item", "title", "score", title=placement, title_justify="left")
        for row in found[placement][:k]:
            table.add_row(*map(escape, (str(row["rank"]), row["item_id"], row["title"], f"{row['score']:.4f}")))
        out.print(table)


def _print_hits(found: dict[str, Any], k: int) -> None:
    for name, rows in found.items():
        if rows:
            table = Table(*rows[0], title=name, title_justify="left")
            for row in rows[:k]:
                table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
            out.print(table)


@app.command(name="versions")
def list_versions(shop: ShopOption = DEMO, as_json: AsJson = False) -> None:
    """Print what served from when to when, and why; the current version and those that can be rolled back to marked."""
    lake, description = _lake(), _shop(shop)
    found, now, served = versions(lake, description), current(lake), ledger.served(lake, description.name)
    if as_json:
        out.print_json(data={"versions": found, "current": now and now["version"], "served": served})
        return
    title = f"{description.name}: what served; versions that are kept can be rolled back to"
    table = Table(title=escape(title), title_justify="left")
    for column in ("", "version", "as of", "from", "to", "champions", "reason"):
        table.add_column(column, no_wrap=column == "version")
    for line in served[-SERVED_SHOWN:]:
        is_current = line is served[-1] and not line["to"]
        state = "current" if is_current else "kept" if line["version"] in found else "gone"
        won = (f"{placement}: {recipe.label}" for placement, recipe, _ in _champions(line))
        times = (_minute(line[name]) for name in ("as_of", "from", "to"))
        reason = line["reason"] + (f", asked for by {line['by']}" if line["by"] else "")
        row = (state, line["version"], *times, "\n".join(won), reason)
        table.add_row(*map(escape, row), style="bold" if is_current else "")
    out.print(table)
    if len(served) > SERVED_SHOWN:
        out.print(f"and {len(served) - SERVED_SHOWN} earlier (--json shows all)")
    for placement, recipe, why in _champions(served[-1]) if served else ():
        out.print(escape(f"{placement}: {recipe.label}, {why}"))


def _champions(line: dict[str, Any]) -> list[tuple[str, Recipe, str]]:
    found = line["champions"]
    return [(p, Recipe(found[p]["recipe"]), found[p]["reason"]) for p in PLACEMENT_VIEW if p in found]


def _minute(instant: str | None) -> str:
    return f"{datetime.fromisoformat(instant):%Y-%m-%d %H:%M}" if instant else ""


@app.command()
def rollback(
    version: str, reason: Annotated[str, typer.Option(help="Why, for the ledger.")] = "", shop: ShopOption = DEMO
) -> None:
    """Make an earlier version current again, in Parquet and in Redis. Champions stay, and the next night publishes."""
    roll_back(_lake(), _shop(shop), version, reason, _person())
    out.print(f"version {version} is current")


@app.command()
def forget(
    user: Annotated[str | None, typer.Argument(help="User id.")] = None,
    item: Annotated[str | None, typer.Option(help="Item id, in place of a user.")] = None,
    scan: Annotated[
        bool, typer.Option("--scan", help="Only say where the id is; exit 1 where it is anywhere.")
    ] = False,
    shop: ShopOption = DEMO,
    as_json: AsJson = False,
) -> None:
    """Forget a customer or an item, everywhere and in every night to come; exit 1 where the id still is somewhere."""
    if (user is None) == (item is None):
        raise ContractError("expected the id of a customer, or --item and the id of an item; give one of the two")
    lake, description = _lake(), _shop(shop)
    subject = forgetting.Subject("item", item) if item is not None else forgetting.Subject("user", str(user))
    before: forgetting.Found | None = None
    if scan:
        left = forgetting.scan(lake, description, subject)
    else:
        before, left = forgetting.forget(lake, description, subject)
    line = Tombstones.of(lake, description.name).line(subject.kind, subject.id)
    if as_json:
        out.print_json(data={"found": before, "left": left, "forgotten": line and line["at"]})
    else:
        for title, found in (("found and removed", before), ("there" if scan else "left", left)):
            if found:
                table = Table("place", "times", title=title, title_justify="left")
                for place, n in found.items():
                    table.add_row(escape(place), f"{n:,}")
                out.print(table)
        told = f"{subject.kind} {subject.id} is {'still somewhere, see above' if left else 'nowhere'}"
        out.print(escape(told + (f"; forgotten at {line['at']}" if line else "")))
        if left and not scan:
            out.print("What is left was not written by a step; look at these files, and give the command again")
        if before:
            out.print("The next night reads all files of the shop and trains everything anew")
        if not subject.is_distinctive:
            out.print("so short an id was searched where ids stand, not in free text: logs, pages, titles")
    if left:
        raise typer.Exit(1)


def _person() -> str:
    """Return who runs this command; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _lake() -> Lake:
    return Lake(Settings().lake)


def _shop(name: str) -> Shop:
    return load_shop(name, Settings().shops)


def _report(lake: Lake, report: str | None = None) -> dict[str, Any]:
    return json.loads((_report_folder(lake, report) / "report.json").read_text())


def _report_folder(lake: Lake, report: str | None = None) -> Path:
    found = {"report": report} if report else lake.current("reports")
    if not found:
        raise NothingInLake(f"{lake.root} holds no report yet; run a night first (make nightly, or nightcart run)")
    lake.manifest(found["report"])  # tells where there is none
    return lake.path(found["report"])


def published_list(lake: Lake, placement: str, reader: str) -> list[dict[str, Any]]:
    """Return the rows of one list of the current version.

    Raises
    ------
    NothingInLake
        Nothing is published, or not for this id.

    """
    now = current(lake)
    if placement not in PLACEMENTS or not now:
        raise NothingInLake(
            f"{lake.root}: nothing is published under {placement!r}; expected one of {PLACEMENTS} after a night"
        )
    held = placements_of(lake, now["version"])
    if placement not in held:
        raise NothingInLake(f"version {now['version']} has no {placement}; it has {', '.join(held)}")
    table = pq.read_table(
        sorted(lake.path(entry(placement, now["version"])).glob("part-*.parquet")), filters=pc.field(USER_ID) == reader
    )
    if not table.num_rows:
        raise NothingInLake(
            f"{reader!r} has no list in {placement}, version {now['version']}; ids are compared as text"
        )
    return table.sort_by("rank").to_pylist()


def _titles(lake: Lake, placement: str, version: str) -> dict[str, str]:
    catalog = Snapshot(lake, lake.manifest(entry(placement, version))["snapshot"]).catalog()
    return dict(zip(catalog.item_ids, catalog.titles, strict=True))


def _show_list(reader: str, placement: str, k: int, as_json: bool) -> None:
    lake = _lake()
    rows = published_list(lake, placement, reader)
    now = current(lake) or {}
    titles = _titles(lake, placement, now["version"])
    with open_store(Settings(), now["shop"]) as store:
        online = store.get(placement, reader)
    same = online == [row["item_id"] for row in rows]
    if as_json:
        data = [{**row, "title": titles[row["item_id"]]} for row in rows[:k]]
        out.print_json(data={"version": now["version"], "placement": placement, "redis_agrees": same, "items": data})
        return
    _print_list(f"{placement} of {reader}", rows[:k], titles)
    out.print(f"version {now['version']}; Redis holds {'the same list' if same else escape(f'ANOTHER list: {online}')}")


def _print_list(title: str, rows: list[dict[str, Any]], titles: dict[str, str]) -> None:
    table = Table("rank", "item", "title", "source", "reason", title=escape(title), title_justify="left")
    for row in rows:
        words = (row["item_id"], titles[row["item_id"]], row["source"], row["reason"])
        table.add_row(str(row["rank"]), *map(escape, words))
    out.print(table)


def _print_leaderboard(content: dict[str, Any]) -> None:
    champions = {view: content["champions"][placement]["recipe"] for placement, view in PLACEMENT_VIEW.items()}
    for view, champion in champions.items():
        rows = [row for row in content["leaderboard"] if row["view"] == view and row["tier"] == EVERYONE]
        rows.sort(key=lambda row: -row["metrics"]["ndcg@10"])
        what = "what they buy next, repeats count" if view == "all" else "what they buy for the first time"
        table = Table(title=f"{view}: {what}; {rows[0]['users']:,} customers", title_justify="left")
        for column in (
            "model",
            "ndcg@10",
            "95 %",
            "recall@10",
            "recall@50",
            "hit_rate@10",
            "mrr@10",
            "coverage@10",
            "novelty@10",
        ):
            table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column != "model")
        for row in rows:
            m, b, (low, high) = row["metrics"], row["beyond_accuracy"], row["interval"]["ndcg@10"]
            numbers = (m["recall@10"], m["recall@50"], m["hit_rate@10"], m["mrr@10"], b["catalog_coverage@10"])
            name = escape(Recipe(row["recipe"]).label)
            name = f"[bold]{name} ★[/bold]" if row["recipe"] == champion else name
            table.add_row(
                name,
                f"{m['ndcg@10']:.4f}",
                f"{low:.4f}-{high:.4f}",
                *(f"{number:.4f}" for number in numbers),
                f"{b['novelty@10']:.1f}",
            )
        out.print(table)
    reports = {row["recipe"]: row["report"] for row in content["leaderboard"] if row["tier"] == EVERYONE}
    for recipe, told in reports.items():
        if said := [f"{name} {value:.4f}" for name, value in told.items() if "/" not in name]:  # the others are details
            out.print(f"{escape(Recipe(recipe).label)}: {', '.join(said)}")
    for recipe in content["failed"]:
        out.print(f"[red]{escape(recipe)} failed to train and was left out[/red]")


def print_report(lake: Lake, report: str | None = None) -> None:
    """Print accounting, leaderboard and the lists of a loyal, a warm and a cold customer (where there are such)."""
    content = _report(lake, report)
    out.rule(f"{content['shop']}, night of {content['as_of']}")
    if (page := _report_folder(lake, report) / "report.html").is_file():  # not of nights before there were pages
        out.print(f"as a page: {page}", soft_wrap=True, markup=False, highlight=False)
    for line in ingest_step.accounting(content["counts"]):
        out.print(escape(line))
    out.print(f"the log reaches {content['watermark']}")
    for warning in content["warnings"]:
        out.print(f"[yellow]look at this:[/yellow] {escape(warning)}")
    _print_leaderboard(content)
    for placement, champion in content["champions"].items():
        out.print(f"{placement}: [bold]{champion['recipe']}[/bold], {champion['reason']}")
    if content["last_night"]:
        for placement, score in content["last_night"]["placements"].items():
            low, high = score["interval"]["ndcg@10"]
            out.print(
                f"lists of {content['last_night']['as_of']} since then, {placement}: ndcg@10 {score['ndcg@10']:.4f} "
                f"({low:.4f}-{high:.4f}), {score['customers']:,} customers"
            )
    if not content["version"]:
        out.print("not published: this night left all that is current as it was")
        return
    if (current(lake) or {}).get("version") != content["version"]:
        out.print(f"published as version {content['version']}, which is not the current one")
        return
    home = pq.read_table(
        sorted(lake.path(entry("home", content["version"])).glob("part-*.parquet")), columns=[USER_ID, "tier"]
    )
    readers, tier = (home[name].to_numpy(zero_copy_only=False) for name in (USER_ID, "tier"))
    titles = _titles(lake, "home", content["version"])
    chosen = [min(readers[tier == name]) for name in ("loyal", "warm", "cold") if (tier == name).any()]
    more = [reader for reader in np.unique(readers) if reader not in chosen and reader != ANONYMOUS]
    for reader in (chosen + more)[:3]:
        rows = published_list(lake, "home", reader)
        _print_list(f"home of {reader} ({rows[0]['tier']})", rows[:5], titles)
        _print_list(f"discover of {reader}", published_list(lake, "discover", reader)[:5], titles)
    counts = [f"{placement} {found['rows']:,} rows" for placement, found in content["lists"].items()]
    index = content["index"]
    out.print(
        f"index: {index['search']} search of {index['items']:,} {index['vectors']} vectors, "
        f"recall@{index['k']} {index['recall']:.4f} against exact search"
    )
    out.print(f"published version {content['version']}: {', '.join(counts)}")


def entry_point() -> None:
    """Run the command line; errors of Nightcart are one message, not a traceback."""
    try:
        app()
    except NightcartError as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from error
