"""The claim: the drift watch sees what breaks, and is quiet in normal weeks.

Two shops, the last 20 weeks of each log. Each week is judged by the weeks before it, as a night would: as it was, and
with a fault put into it. Weeks with a public holiday of the shop's country, on which a shop may be closed, are told
apart. Nothing was chosen on these weeks: what can be chosen (how many neighbours, how the tail is told) was settled by
rule and looked at on weeks before them (decision 15).

    python benchmarks/drift.py [--check] [--quick]

``--quick`` is the demo shop's last 4 weeks, and writes no page. Online Retail (UCI, CC BY 4.0) is read as one CSV a day
from ``online_retail_2011`` in ``NIGHTCART_BENCH_DATA``; the demo shop comes from its package.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from protocol.leave_last_out import data_folder
from protocol.page import RESULTS, ROOT, finish, limits_table, made_by, table

sys.path.insert(0, str(ROOT))
from recsys_tasks import drift
from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.drift import WEEKDAYS, Shelves, Window
from recsys_tasks.ingest import ingest
from recsys_tasks.night import Night
from recsys_tasks.snapshot import DAY, Snapshot, microseconds

DATA = data_folder()
WEEKS = 20
ENDS = {"online_retail": "2011-10-01T00:00:00+00:00", "complete_journey": "2018-01-01T05:00:00+00:00"}
HOLIDAYS = {
    "online_retail": ["2011-05-30", "2011-08-29"],
    "complete_journey": ["2017-09-04", "2017-10-09", "2017-11-11", "2017-11-23", "2017-12-25"],
}
"""Of England, and of the United States, in the weeks that are judged."""
PURCHASE = EVENT_TYPES.index("purchase")
Fault = Callable[[Window, Shelves, np.random.Generator], Window | None]


def keep(window: Window, rows: np.ndarray) -> Window:
    """Return some rows of a window."""
    names = ("user", "item", "time", "kind", "price")
    return replace(window, **{name: getattr(window, name)[rows] for name in names})


def add(window: Window, **more: np.ndarray) -> Window:
    """Return a window with more events."""
    whole = {name: np.concatenate([getattr(window, name), new]) for name, new in more.items()}
    order = np.argsort(whole["time"], kind="stable")
    return replace(window, **{name: column[order] for name, column in whole.items()})


def lost(share: float) -> Fault:
    """So much of the events does not arrive."""
    return lambda w, _, rng: keep(w, rng.random(len(w.user)) >= share)


def twice(share: float) -> Fault:
    """So much of the events arrives twice, under other ids."""

    def fault(w: Window, _: Shelves, rng: np.random.Generator) -> Window:
        again = keep(w, rng.random(len(w.user)) < share)
        return add(w, **{name: getattr(again, name) for name in ("user", "item", "time", "kind", "price")})

    return fault


def without_type(name: str) -> Fault:
    """No event of a type arrives."""
    code = EVENT_TYPES.index(name)
    return lambda w, _, __: keep(w, w.kind != code) if (w.kind == code).any() else None


def without_a_day(w: Window, _: Shelves, rng: np.random.Generator) -> Window:
    """A day on which the shop was open is missing."""
    day = (w.time - w.start) // DAY
    counts = np.bincount(day, minlength=7)
    return keep(w, day != rng.choice(np.flatnonzero(counts > counts.max() / 5)))


def renamed(column: str, share: float) -> Fault:
    """So many of the items, or customers, have another id."""

    def fault(w: Window, _: Shelves, rng: np.random.Generator) -> Window:
        ids = getattr(w, column)
        known = ids.max() + 1
        moved = rng.random(known) < share
        return replace(w, **{column: np.where(moved[ids], ids + known, ids)})

    return fault


def prices(times: float, share: float) -> Fault:
    """So many of the prices are so many times as high."""
    return lambda w, _, rng: replace(w, price=np.where(rng.random(len(w.price)) < share, w.price * times, w.price))


def robot(size: float, known: bool) -> Fault:
    """So many more events, of items drawn at random, over as many customers as the week had, known ones or new."""

    def fault(w: Window, _: Shelves, rng: np.random.Generator) -> Window:
        n = round(len(w.user) * size)
        active = np.unique(w.user)
        users = active if known else w.user.max() + 1 + np.arange(len(active))
        more = {"user": rng.choice(users, n), "item": rng.choice(np.unique(w.item), n)}
        more |= {"time": w.start + rng.integers(0, 7 * DAY, n), "kind": np.full(n, PURCHASE, w.kind.dtype)}
        return add(w, **more, price=rng.choice(w.price, n))

    return fault


def clock(hours: float) -> Fault:
    """The clock is wrong by so much; what leaves the week at its end comes in at its beginning."""

    def fault(w: Window, _: Shelves, __: np.random.Generator) -> Window:
        moved = w.start + (w.time - w.start + round(hours * 3_600_000_000)) % (7 * DAY)
        return keep(replace(w, time=moved), np.argsort(moved, kind="stable"))

    return fault


def more_new_customers(times: float) -> Fault:
    """So many times as many customers are new: known ones come under new ids."""

    def fault(w: Window, _: Shelves, rng: np.random.Generator) -> Window | None:
        active = np.unique(w.user)
        known = active[active < w.users_before]
        n = round((times - 1) * (len(active) - len(known)))
        if not 0 < n <= len(known):
            return None
        moved = np.zeros(int(w.user.max()) + 1, bool)
        moved[rng.choice(known, n, replace=False)] = True
        return replace(w, user=np.where(moved[w.user], w.user + len(moved), w.user))

    return fault


def without_category(place: int) -> Fault:
    """The category that sells most (0), second most (1), ... is missing."""

    def fault(w: Window, shelves: Shelves, _: np.random.Generator) -> Window | None:
        if not shelves.names:
            return None
        of = shelves.of_item[w.item]
        counts = np.bincount(of + 1, minlength=len(shelves.names) + 1)[1:]
        return keep(w, of != np.argsort(-counts)[place])

    return fault


FAULTS: dict[tuple[str, str], tuple[Fault, tuple[str, ...]]] = {
    **{("events lost", f"{s:.0%}"): (lost(s), ("purchase", "customers", *WEEKDAYS)) for s in (0.25, 0.5, 0.75)},
    **{("events delivered twice", f"{s:.0%}"): (twice(s), ("purchase", "events a", *WEEKDAYS)) for s in (0.25, 0.5, 1)},
    ("a type missing", "coupons"): (without_type("coupon"), ("coupon", "share of coupon")),
    ("a type missing", "returns"): (without_type("return"), ("return", "share of return")),
    ("a day missing", "all of it"): (without_a_day, WEEKDAYS),
    **{("item ids renamed", f"{s:.0%}"): (renamed("item", s), ("new items",)) for s in (0.1, 0.5, 1)},
    **{("customer ids renamed", f"{s:.0%}"): (renamed("user", s), ("new customers",)) for s in (0.1, 0.5, 1)},
    **{("prices x 100", f"of {s:.0%}"): (prices(100, s), ("price",)) for s in (0.02, 0.1, 1)},
    **{("prices x 1.2", f"of {s:.0%}"): (prices(1.2, s), ("price",)) for s in (0.5, 1)},
    **{("prices lost", f"of {s:.0%}"): (prices(np.nan, s), ("targets with",)) for s in (0.02, 0.1, 1)},
    **{
        ("a robot as many new customers", f"+{s:.0%}"): (robot(s, False), ("new customers", "purchase", "customers"))
        for s in (0.1, 0.5, 1)
    },
    **{
        ("a robot as many known customers", f"+{s:.0%}"): (robot(s, True), ("purchase", "events a", "events of the"))
        for s in (0.1, 0.5, 1)
    },
    **{("clock wrong", f"{h} h"): (clock(h), ("time of day",)) for h in (1, 3, 6, 12)},
    **{("new customers", f"x {t}"): (more_new_customers(t), ("new customers",)) for t in (2, 4)},
    **{("a category missing", f"number {n}"): (without_category(n - 1), ("category", "purchase")) for n in (1, 2, 5)},
}
"""(what, size) -> the fault, and the beginnings of the names of the statistics that may tell of it."""
CERTAIN = [("events lost", "75%"), ("a day missing", "all of it"), ("item ids renamed", "100%")]
CERTAIN += [("customer ids renamed", "100%"), ("prices x 100", "of 100%"), ("prices lost", "of 100%")]
CERTAIN += [("events delivered twice", "100%"), ("a robot as many new customers", "+100%"), ("clock wrong", "6 h")]


def main() -> int:
    """Print and write the page; with ``--check`` return 1 when something falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the demo shop's last 4 weeks; writes no page")
    parser.add_argument("--check", action="store_true", help="exit 1 when something falls short")
    options = parser.parse_args()
    weeks, shops = (4, ["complete_journey"]) if options.quick else (WEEKS, list(ENDS))
    if not options.quick and not (DATA / "online_retail_2011").is_dir():
        print(f"skipped: {DATA / 'online_retail_2011'} is not there; NIGHTCART_BENCH_DATA says where")
        return 0
    measured: dict[str, Any] = {"shops": {}}
    with tempfile.TemporaryDirectory(prefix="nightcart-bench-") as scratch:
        for shop in shops:
            measured["shops"][shop] = run(shop, Path(scratch), weeks)
    measured["limits"] = limits_of(measured["shops"])
    measured["made by"] = made_by(["numpy", "pyarrow"])
    return finish("drift", page(measured), measured, None if options.quick else RESULTS, options.check)


def run(shop: str, home: Path, weeks: int) -> dict[str, Any]:
    """Judge the last weeks of a shop, as they were and with each fault."""
    os.environ["NIGHTCART_HOME"] = str(home / shop)
    night = Night(shop_file=described(shop, home), as_of=ENDS[shop], k=50, recipes=[])
    snapshot = Snapshot(night.lake, ingest(night))
    started = time.process_time()
    drift.watch(snapshot, night.shop)
    seconds = time.process_time() - started
    shelves = Shelves.read(snapshot)
    strange = np.full(len(shelves.of_item), -1, np.int32)  # the category of an id that nobody knows
    shelves = replace(shelves, of_item=np.concatenate([shelves.of_item, strange]))
    found = list(drift.windows(snapshot, microseconds(night.instant), 7))
    plain = [drift.measure(one, night.shop, shelves, 7) for one in found]

    def alarmed(n: int, window: Window | None = None) -> tuple[set[str], dict[str, str], float]:
        """Statistics, sentences and level of week ``n``, as it was or as it might have been."""
        last = [plain[n]] if window is None else [drift.measure(window, night.shop, shelves, 7)]
        judged = drift.judge(drift.statistics([*plain[:n], *last]), night.shop.watch.weeks_per_false_alarm)
        names = {row["name"] for row in judged["statistics"] if row["alarm"]}
        said = drift.alarms(judged["statistics"], found[n].start)
        return names, {alarm["statistic"]: alarm["text"] for alarm in said}, judged["level"]

    normal, rates = [], []
    last = range(len(found) - weeks, len(found))
    for n in last:
        names, texts, level = alarmed(n)
        days = [
            date.fromisoformat(str(np.datetime64(found[n].start, "us").astype("datetime64[D]") + k)) for k in (0, 6)
        ]
        holiday = next((day for day in HOLIDAYS[shop] if days[0] <= date.fromisoformat(day) <= days[1]), "")
        normal.append({"from": str(days[0]), "events": len(found[n].user), "level": level, "holiday": holiday})
        normal[-1] |= {"alarms": sorted(names), "texts": list(texts.values())}
    for number, ((what, size), (fault, tells)) in enumerate(FAULTS.items()):
        rng = np.random.default_rng(number)
        outcome = []
        for n in last:
            broken = fault(found[n], shelves, rng)
            if broken is not None:
                names, texts, _ = alarmed(n, broken)
                names -= set(normal[n - last[0]]["alarms"])  # what was told without the fault tells nothing of it
                example = next((text for name, text in texts.items() if name in names and name.startswith(tells)), "")
                outcome.append((any(name.startswith(tells) for name in names), bool(names), example))
        if outcome:
            rates.append({"fault": what, "size": size, "weeks": len(outcome)})
            rates[-1] |= {
                "named": float(np.mean([o[0] for o in outcome])),
                "any": float(np.mean([o[1] for o in outcome])),
            }
            rates[-1] |= {"example": next((example for *_, example in outcome if example), "")}
    nightly = nights(snapshot, night, shelves, weeks, HOLIDAYS[shop])
    return {"weeks before": len(found) - weeks, "normal": normal, "faults": rates, "seconds": seconds} | nightly


def nights(snapshot: Snapshot, night: Night, shelves: Shelves, weeks: int, holidays: list[str]) -> dict[str, int]:
    """Count nights and nights with an alarm of the same weeks looked at every night, those with a holiday left out."""
    count = loud = 0
    for back in range(7):
        found = list(drift.windows(snapshot, microseconds(night.instant) - back * DAY, 7))
        measured = [drift.measure(one, night.shop, shelves, 7) for one in found]
        for n in range(len(found) - weeks, len(found)):
            first = np.datetime64(found[n].start, "us")
            if any(
                first <= np.datetime64(day) + np.timedelta64(12, "h") < first + np.timedelta64(7, "D")
                for day in holidays
            ):
                continue
            rows = drift.judge(drift.statistics(measured[: n + 1]), night.shop.watch.weeks_per_false_alarm)
            count, loud = count + 1, loud + any(row["alarm"] for row in rows["statistics"])
    return {"nights": count, "loud nights": loud}


def described(shop: str, home: Path) -> str:
    """Return the shop file."""
    if shop == "complete_journey":
        return shop
    told = yaml.safe_load((ROOT / "include" / "shops" / "online_retail.yaml").read_text())
    told["source"]["events"]["path"] = str((DATA / "online_retail_2011").absolute() / "*.csv")
    file = home / "online_retail.yaml"
    file.write_text(yaml.safe_dump(told))
    return str(file)


def limits_of(shops: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is claimed: quiet weeks are quiet, gross faults are named, and the watch is cheap."""
    limits = []
    for shop, found in shops.items():
        quiet = [week for week in found["normal"] if not week["holiday"]]
        name = f"{shop}: weeks with a false alarm, of {len(quiet)} without a holiday"
        limits.append({"name": name, "value": sum(bool(week["alarms"]) for week in quiet), "limit": "< 2"})
        gross = [row["named"] for row in found["faults"] if (row["fault"], row["size"]) in CERTAIN]
        limits.append(
            {"name": f"{shop}: gross faults named, the worst of them", "value": min(gross), "limit": ">= 0.9"}
        )
        limits.append(
            {"name": f"{shop}: the watch of a night, seconds of processor", "value": found["seconds"], "limit": "< 2"}
        )
    return limits


def page(measured: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown page."""
    lines = ["# The drift watch: quiet weeks and broken ones", *limits_table(measured["limits"])]
    for shop, found in measured["shops"].items():
        normal = found["normal"]
        loud = [week for week in normal if week["alarms"]]
        lines += ["", f"## {shop}", ""]
        lines.append(
            f"{len(normal)} weeks, from {normal[0]['from']} to the end of the log, each judged by those before it (at "
            f"least {found['weeks before']}). {len(loud)} of them raised an alarm as they were:"
        )
        rows = [[week["from"], week["holiday"], f"{week['level']:.2f}", "; ".join(week["texts"])] for week in loud]
        lines += table(["week from", "holiday in it", "level", "alarms"], rows) if rows else ["", "None."]
        lines += [
            "",
            f"Looked at every night of these weeks: {found['loud nights']} of {found['nights']} nights, those with ",
        ]
        lines[-1] += "a holiday in their last seven days left out, raised an alarm."
        head = ["fault", "size", "weeks", "named", "any alarm", "what is said, for example"]
        keys = ("fault", "size", "weeks", "named", "any", "example")
        lines += ["", "The same weeks with a fault: in which share of them an alarm names it."]
        lines += table(head, [[row[key] for key in keys] for row in found["faults"]])
    return [*lines, "", measured["made by"]]


if __name__ == "__main__":
    raise SystemExit(main())
