"""A small shop with tastes that can be learned: ten weeks of daily CSV files of the shape of UCI Online Retail.

Customers and items fall into three groups. A customer buys mostly from the group of their taste and comes back to a
few favourites, so the best next item is mostly one of the group, and is seldom the shop's most popular one. The files
also hold what real exports hold: rows without a customer, cancellations, a second wording of a title, rows written
twice, and customers who came once or twice.
"""

import csv
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

AS_OF = "2011-04-12T00:00:00+00:00"
"""The end of the log. London changed to summer time on 27 March, so the last two weeks are an hour off UTC."""
FIRST_DAY = datetime(2011, 2, 1)  # noqa: DTZ001 - the shop writes local time
DAYS = 70
COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
GROUPS = {
    "KITCHEN": ("TEACUP", "TEAPOT", "JUG", "CAKE STAND", "APRON", "EGG TIMER", "BREAD BIN", "WHISK", "TRAY", "COASTER"),
    "GARDEN": ("SPADE", "LANTERN", "BIRD TABLE", "TWINE", "PLANTER", "GLOVES", "HAMMOCK", "KNEELER", "SEEDS", "GNOME"),
    "PARTY": (
        "BUNTING",
        "BALLOONS",
        "CANDLES",
        "PAPER CUPS",
        "GARLAND",
        "INVITES",
        "CROWN",
        "STRAWS",
        "RIBBON",
        "MASK",
    ),
}
ITEMS = [
    (f"{20000 + 10 * n + i}", f"{group} {noun}")
    for n, group in enumerate(GROUPS)
    for i, noun in enumerate(GROUPS[group])
]
"""StockCode and Description of 30 items; the tens digit of the code is the group."""
CUSTOMERS = [f"{12000 + n}" for n in range(42)]
ONCE_OR_TWICE = CUSTOMERS[30:36]
"""Customers with one or two days on which they bought."""
NEW = CUSTOMERS[36:]
"""Customers who first bought in the last week."""

SHOP_FILE = """\
name: tiny
time_zone: Europe/London
source:
  format: tabular
  events:
    path: days/*.csv
    columns:
      user_id: CustomerID
      item_id: StockCode
      timestamp: InvoiceDate
      value: Quantity
      price: UnitPrice
      session_id: InvoiceNo
    negative_value: return
  items:
    columns:
      title: Description
windows:
  validation_days: 7
  test_days: 7
k: 10
shards: 2
models:
  popular: {}
  repeat: {}
  item_knn: {}
  ease: {}
"""


def group_of(item_id: str) -> int:
    """Return which of the three groups an item belongs to."""
    return (int(item_id) - 20000) // 10


def taste_of(user_id: str) -> int:
    """Return the group that a customer likes."""
    return (int(user_id) - 12000) % 3


def write_tiny_shop(folder: Path, seed: int = 0) -> Path:
    """Write ``days/<date>.csv`` and ``shop.yaml`` into a folder; return the path of the latter."""
    rng = np.random.default_rng(seed)
    by_day: dict[int, list[list[object]]] = {day: [] for day in range(DAYS)}
    invoice = 536000
    favourites = {user: taste_of(user) * 10 + rng.choice(10, 3, replace=False) for user in CUSTOMERS}
    for day in range(DAYS):
        for user in _visitors(day, rng):
            invoice += 1
            when = FIRST_DAY + timedelta(days=day, minutes=int(rng.integers(8 * 60, 20 * 60)))
            for item in _basket(user, favourites[user], rng):
                by_day[day].append(_row(invoice, item, when, int(rng.integers(1, 7)), user, rng))
            if rng.random() < 0.05:  # the last line is taken back: a cancellation
                *_, last = by_day[day]
                by_day[day].append([f"C{invoice}", last[1], last[2], -int(last[3]), *last[4:]])
        if day % 2:  # somebody who gave no name
            when = FIRST_DAY + timedelta(days=day, hours=12)
            by_day[day].append(_row(900000 + day, int(rng.integers(30)), when, 1, "", rng))
        if day % 10 == 3:  # a line written twice
            by_day[day].append(by_day[day][0])

    (folder / "days").mkdir(parents=True)
    for day, rows in by_day.items():
        with (folder / "days" / f"{FIRST_DAY + timedelta(days=day):%Y-%m-%d}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    (folder / "shop.yaml").write_text(SHOP_FILE)
    return folder / "shop.yaml"


def _visitors(day: int, rng: np.random.Generator) -> list[str]:
    """Who buys on a day: regulars by their habit, some once or twice, new ones in the last week."""
    regular = [user for n, user in enumerate(CUSTOMERS[:30]) if rng.random() < 0.06 + 0.011 * n]
    seldom = [user for n, user in enumerate(ONCE_OR_TWICE) if day == 10 + 5 * n or (n % 2 and day == 66)]
    new = [user for n, user in enumerate(NEW) if day == 63 + n]
    return regular + seldom + new


def _basket(user: str, favourites: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Up to five items: many of them favourites, most of the rest of the customer's taste."""
    found: list[int] = []
    for draw in rng.random(int(rng.integers(3, 6))):
        if draw < 0.4:
            found.append(int(rng.choice(favourites)))
        elif draw < 0.85:
            found.append(taste_of(user) * 10 + int(rng.integers(10)))
        else:
            found.append(int(rng.integers(30)))
    return list(dict.fromkeys(found))


def _row(invoice: int, item: int, when: datetime, quantity: int, user: str, rng: np.random.Generator) -> list[object]:
    code, title = ITEMS[item]
    if rng.random() < 0.1:
        title = f"{title} VINTAGE"
    time, price = f"{when:%Y-%m-%d %H:%M:%S}", f"{0.5 + item / 10:.2f}"
    return [invoice, code, title, quantity, time, price, user, "United Kingdom"]
