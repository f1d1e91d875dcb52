"""Amazon Reviews 2023 (Hou et al., McAuley Lab): reviews as ratings of 1 to 5, at milliseconds, and product metadata.

An item is the ``parent_asin``: colours and sizes of a product are its children, and the metadata knows parents alone.
Prices are US dollars: a number, ``from 12.99`` (the lower end), or null where the file has null, ``None`` or a dash.
The store stands for the brand. A product without ``categories`` has its ``main_category``.
"""

from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.shop import Amazon2023
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.cleaning import dollars, plain_path, plain_text
from recsys_tasks.sources.files import FileSource, list_files, read_json_lines

REMEDY = "Give the files of Amazon Reviews 2023 under source.reviews and source.metadata of the shop file"


class Amazon2023Source(FileSource):
    """Reads ``<category>.jsonl.gz`` and ``meta_<category>.jsonl.gz``."""

    def __init__(self, config: Amazon2023, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def rules(self) -> EventRules:
        """Every row is a rating of 1 to 5, at milliseconds since 1970."""
        return EventRules(event_type="rating", rating_range=(1, 5), timestamp_unit="ms", event_ids=False)

    def event_files(self) -> list[SourceFile]:
        """Return the files of reviews."""
        return list_files(self.config.reviews, self.folder, "source.reviews")

    def item_files(self) -> list[SourceFile]:
        """Return the files of metadata."""
        return list_files(self.config.metadata, self.folder, "source.metadata")

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the reviews, verified or not."""
        required = ("user_id", "parent_asin", "rating", "timestamp")
        t = read_json_lines(connection, file, required, remedy=REMEDY, numbered=numbered)
        fields = {"user_id": t.user_id, "item_id": t.parent_asin, "timestamp": t.timestamp, "value": t.rating}
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in EVENT_FIELDS + EVENT_ITEM_FIELDS})

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the products; ``price`` in US dollars."""
        optional = ("description", "categories", "store", "price")
        lists = ("description", "categories")
        required = ("parent_asin", "title", "main_category")  # a review has a title too
        t = read_json_lines(connection, file, required, optional=optional, lists=lists, remedy=REMEDY)
        path = plain_path(t.categories)
        fields = {
            "item_id": t.parent_asin,
            "title": plain_text(t.title),
            "description": plain_text(t.description.join(" ")),
            "brand": plain_text(t.store),
            "category": ibis.ifelse(path.length() > 0, path, plain_path(ibis.array([t.main_category]))),
            "price": dollars(t.price),
        }
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in ITEM_FIELDS})
