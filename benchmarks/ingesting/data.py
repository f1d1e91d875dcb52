"""Made-up reviews and events, with everything that must be true of them after ingest."""

import gzip
import json
import re
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import yaml

SHOP = Path(__file__).resolve().parents[2] / "include" / "shops" / "amazon_2018.yaml"
FIRST_DAY = date(2023, 1, 1)
LINE_BYTES = 692
"""Mean length of a review's line, by which the number of lines is chosen."""
USER_STEP, ITEM_STEP = 7_368_787, 41_011
"""Ids are multiples, so that they look like ids and can be added up."""


def skewed(rng: np.random.Generator, n: int, size: int, flat: float) -> np.ndarray:
    """Return ranks below ``n`` by the law of Zipf and Mandelbrot, 1 / (rank + flat)."""
    return np.minimum(flat * (1 + n / flat) ** rng.random(size) - flat, n - 1).astype(np.int64)


REVIEW = (
    '{"overall": <overall>, <vote>"verified": <verified>, "reviewTime": "<day>", "reviewerID": "<user>", '
    '"asin": "<item>", <style>"reviewerName": <name>, "reviewText": <text>, "summary": <summary>, '
    '"unixReviewTime": <second>}\n'
)


def make_reviews(folder: Path, megabytes: int, since: str, products: int, suffix: str) -> None:
    """Write reviews and metadata like those of Amazon review data 2018, the project's shop file for them, and facts.

    Users and items are skewed and days grow to the end of September 2018. One review in a hundred
    stands there twice, and one in ten thousand has no stars, which is a bad row.
    """
    rng = np.random.default_rng(0)
    lines = megabytes * 1_000_000 // LINE_BYTES
    customers, texts = max(lines * 3 // 10, 1), min(lines, 20_000)
    days = np.arange(np.datetime64(since), np.datetime64("2018-10-01"))
    written = np.char.replace(np.datetime_as_string(days), "-", "")
    pools = {
        "user": _strings(f"A{n * USER_STEP:013d}" for n in range(customers)),
        "item": _strings(f"B{n * ITEM_STEP:09d}" for n in range(products)),
        "day": _strings(f"{d[4:6]} {int(d[6:])}, {d[:4]}" for d in written.tolist()),
        "second": _strings(str(int(s)) for s in days.astype("datetime64[s]").astype(np.int64)),
        "vote": _strings([""] * 4 + [f'"vote": "{n}", ' for n in range(2, 40)]),
        "style": _strings(["", '"style": {"Format:": " Audio CD"}, ', '"style": {"Format:": " MP3 Music"}, ']),
        "name": _strings(json.dumps(text) for text in _phrases(rng, texts, 2.0)),
        "text": _strings(json.dumps(text) for text in _phrases(rng, texts, 62.0)),
        "summary": _strings(json.dumps(text) for text in _phrases(rng, texts, 4.0)),
        "overall": _strings(f"{n}.0" for n in range(6)),
        "verified": _strings(["false", "true"]),
    }
    folder.mkdir(parents=True)
    seen: list[np.ndarray] = []
    with (
        gzip.open(folder / "reviews.json.gz", "wb", 6)
        if suffix.endswith(".gz")
        else (folder / "reviews.json").open("wb") as out
    ):
        length = 0
        for start in range(0, lines, 100_000):
            size = min(100_000, lines - start)
            passed = np.sqrt((start + np.arange(size)) / lines)  # ever more reviews a day
            rows = {
                "user": skewed(rng, customers, size, customers / 1000),
                "item": skewed(rng, products, size, 20.0),
                "day": (passed * len(days)).astype(np.int64),
                "vote": rng.integers(len(pools["vote"]), size=size) * (rng.random(size) < 0.3),
                "style": rng.integers(3, size=size),
                "overall": rng.choice([1, 2, 3, 4, 5], size, p=[0.05, 0.05, 0.08, 0.18, 0.64]),
                "verified": rng.integers(2, size=size),
                **{name: rng.integers(texts, size=size) for name in ("name", "text", "summary")},
            }
            rows["overall"][rng.random(size) < 1e-4] = 0
            twice = rng.random(size) < 0.01
            source = np.where(twice, (rng.random(size) * np.arange(size)).astype(np.int64), np.arange(size))
            rows = {name: values[source] for name, values in rows.items()}
            seen.append(np.stack([rows["user"], rows["item"], rows["day"], rows["overall"]]))
            field = {name: pools[name].take(pa.array(rows["day" if name == "second" else name])) for name in pools}
            pieces = [field[piece] if n % 2 else piece for n, piece in enumerate(re.split(r"<(\w+)>", REVIEW))]
            text = pc.binary_join_element_wise(*pieces, "")
            _, offsets, characters = text.buffers()
            whole = memoryview(characters)[: np.frombuffer(offsets, np.int32)[size]]
            out.write(whole)
            length += len(whole)
    user, item, day, stars = np.concatenate(seen, axis=1)
    second = days[day].astype("datetime64[s]").astype(np.int64)
    good = np.flatnonzero(stars > 0)
    _, first = np.unique(((user * products + item) * len(days) + day)[good] * 6 + stars[good], return_index=True)
    kept = good[first]
    (folder / "facts.json").write_text(
        json.dumps(
            {
                "bytes": length,
                "products": products,
                "raw": {"lines": lines, "rating": float(stars.sum()), "time": int(second.sum())},
                "events": {
                    "read": lines,
                    "kept": len(kept),
                    "duplicates": len(good) - len(kept),
                    "quarantined": lines - len(good),
                    "later": 0,
                },
                "sums": {
                    "value": int(stars[kept].sum()),
                    "milliseconds": int(second[kept].sum()) * 1000,
                    "users": int(user[kept].sum()) * USER_STEP,
                    "items": int(item[kept].sum()) * ITEM_STEP,
                    "users times items": int((user * item)[kept].sum()) * USER_STEP * ITEM_STEP,
                    "users times days": int((user * (second // 86_400))[kept].sum()) * USER_STEP,
                },
                "distinct": {"users": len(np.unique(user[kept])), "items": len(np.unique(item[kept]))},
            }
        )
    )
    _make_metadata(folder / "metadata.json", products, rng)
    shop = yaml.safe_load(SHOP.read_text())
    shop["source"] |= {"reviews": f"reviews{suffix}", "metadata": "metadata.json"}
    (folder / "shop.yaml").write_text(yaml.safe_dump(shop))


def _make_metadata(file: Path, products: int, rng: np.random.Generator) -> None:
    titles, told, brands = (_phrases(rng, products, words) for words in (5.0, 40.0, 2.0))
    with file.open("w") as out:
        for n, (title, text, brand) in enumerate(zip(titles, told, brands, strict=True)):
            row = {
                "category": ["CDs &amp; Vinyl", f"Genre {n % 30}"],
                "description": [text],
                "title": title,
                "brand": brand,
                "price": f"${5 + n % 40}.{n % 100:02d}",
                "asin": f"B{n * ITEM_STEP:09d}",
            }
            out.write(json.dumps(row) + "\n")


def _strings(texts: Any) -> pa.Array:
    return pa.array(texts if isinstance(texts, list) else list(texts), pa.string())


def _phrases(rng: np.random.Generator, size: int, mean_words: float) -> list[str]:
    """Texts of skewed words and skewed lengths, with what JSON must escape."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(letters[skewed(rng, len(letters), n, 8.0)]) for n in rng.integers(2, 11, 8_000)]
    words[50], words[90], words[130], words[170] = '"classic"', "\n\n", "Beyonc\u00e9", "AC\\DC"
    lengths = np.maximum(rng.lognormal(np.log(mean_words) - 0.32, 0.8, size), 1).astype(int)
    drawn = skewed(rng, len(words), int(lengths.sum()), 10.0)
    ends = np.cumsum(lengths)
    return [" ".join(words[n] for n in drawn[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


DAILY_FILES = """\
name: made-up
time_zone: UTC
source:
  format: tabular
  events:
    path: days/*.csv
    columns: {user_id: user, item_id: item, timestamp: at, event_type: type, value: quantity, price: price}
  items:
    path: catalogue.csv
    columns: {item_id: sku, title: title, category: category, price: price}
windows: {validation_days: 14, test_days: 14}
"""


def make_events(folder: Path, days: int, a_day: int, items: int) -> None:
    """Write a year of daily CSV files, a catalogue, a shop file and facts.

    Users (one for a hundred events) and items are skewed. No two events of a day are of one millisecond, but one in two
    hundred stands there twice; one in a thousand has no user, which is a bad row.
    """
    (folder / "days").mkdir(parents=True)
    users = max(days * a_day // 100, 100)
    (folder / "world.json").write_text(json.dumps({"users": users, "items": items}))
    per_day = [write_day(folder, day, a_day) for day in range(days)]
    pools = _world(users, items)
    catalogue = pa.table(
        {
            "sku": pools["item"],
            "title": _strings(f"Thing {n}" for n in range(items)),
            "category": _strings(f"Shelf {n % 400}" for n in range(items)),
            "price": pools["price"],
        }
    )
    pyarrow.csv.write_csv(catalogue, folder / "catalogue.csv")
    (folder / "shop.yaml").write_text(DAILY_FILES)
    facts = added_up(per_day) | {
        "per_day": per_day,
        "users": users,
        "items": items,
        "bytes": sum(file.stat().st_size for file in (folder / "days").iterdir()),
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def added_up(per_day: list[dict[str, dict[str, int]]]) -> dict[str, Any]:
    """Return the facts of several days together."""
    return {
        group: {name: sum(day[group][name] for day in per_day) for name in per_day[0][group]}
        for group in ("events", "sums")
    }


def write_day(folder: Path, day: int, events: int, revision: int = 0) -> dict[str, dict[str, int]]:
    """Write the file of one day and return its facts; another revision is another day's worth of events."""
    users, items = json.loads((folder / "world.json").read_text()).values()
    rng = np.random.default_rng([day, revision])
    midnight = np.datetime64(FIRST_DAY + timedelta(days=day), "ms").astype(np.int64)
    when = midnight + ((np.arange(events) + rng.random(events)) * (86_400_000 // events)).astype(np.int64)
    user, item = skewed(rng, users, events, users / 1000), skewed(rng, items, events, 20.0)
    kind = rng.choice(3, events, p=[0.85, 0.1, 0.05])
    quantity = np.where(kind == 0, 1, rng.integers(1, 5, events))
    nobody = rng.random(events) < 1e-3
    twice = np.flatnonzero(rng.random(events) < 5e-3)
    rows = np.concatenate([np.arange(events), twice])
    pools = _world(users, items)
    table = pa.table(
        {
            "user": pools["user"].take(pa.array(user[rows], mask=nobody[rows])),
            "item": pools["item"].take(pa.array(item[rows])),
            "at": pa.array(when[rows], pa.timestamp("ms", "UTC")),
            "type": pools["type"].take(pa.array(kind[rows])),
            "quantity": quantity[rows],
            "price": pools["price"].take(pa.array(item[rows])),
        }
    )
    with (folder / "days" / f"{FIRST_DAY + timedelta(days=day)}.csv").open("wb") as out:
        out.write((",".join(table.column_names) + "\n").encode())
        plain = pyarrow.csv.WriteOptions(include_header=False, quoting_style="none")
        pyarrow.csv.write_csv(table, out, plain)
    good = ~nobody
    return {
        "events": {
            "read": len(rows),
            "kept": int(good.sum()),
            "duplicates": int(good[twice].sum()),
            "quarantined": int(nobody[rows].sum()),
            "later": 0,
        },
        "sums": {
            "value": int(quantity[good].sum()),
            "milliseconds": int(when[good].sum()),
            "users": int(user[good].sum()),
            "items": int(item[good].sum()),
            "users times items": int((user * item)[good].sum()),
            "users times days": int(user[good].sum()) * int(midnight // 86_400_000),
        },
    }


@cache
def _world(users: int, items: int) -> dict[str, pa.Array]:
    """Names of users, items and types, and the items' prices."""
    price = np.random.default_rng(7).lognormal(2.5, 0.8, items) + 0.01
    return {
        "user": _strings(f"u{n:07d}" for n in range(users)),
        "item": _strings(f"i{n:06d}" for n in range(items)),
        "type": _strings(["view", "cart", "purchase"]),
        "price": pa.array(price.round(2)),
    }
