"""Amazon review data of 2018 (Ni, Li and McAuley, UCSD): reviews as ratings of 1 to 5, and a scraped catalogue.

The catalogue is what a scraper found on product pages. Titles, brands, descriptions and categories lose their markup,
and a title that is a page's javascript is null. Prices are US dollars; a range is its lower end, and anything else
(style sheets, mostly) is null, for the product is as good without. The file holds products twice; ingest counts the
second row as a duplicate, and so it does a review that stands there twice.
"""

from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.shop import Amazon2018
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.cleaning import dollars, plain_path, plain_text
from recsys_tasks.sources.files import FileSource, list_files, read_json_lines

REMEDY = "Give the files of Amazon review data 2018 under source.reviews and source.metadata of the shop file"


class Amazon2018Source(FileSource):
    """Reads ``<category>.json.gz`` or ``<category>_5.json.gz``, and ``meta_<category>.json.gz``."""

    def __init__(self, config: Amazon2018, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def rules(self) -> EventRules:
        """Every row is a rating of 1 to 5, at seconds since 1970."""
        return EventRules(event_type="rating", rating_range=(1, 5), timestamp_unit="s", event_ids=False)

    def event_files(self) -> list[SourceFile]:
        """Return the files of reviews."""
        return list_files(self.config.reviews, self.folder, "source.reviews")

    def item_files(self) -> list[SourceFile]:
        """Return the files of metadata."""
        return list_files(self.config.metadata, self.folder, "source.metadata")

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the reviews, verified or not."""
        required = ("reviewerID", "asin", "overall", "unixReviewTime")
        t = read_json_lines(connection, file, required, remedy=REMEDY, numbered=numbered)
        fields = {"user_id": t.reviewerID, "item_id": t.asin, "timestamp": t.unixReviewTime, "value": t.overall}
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in EVENT_FIELDS + EVENT_ITEM_FIELDS})

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the products; ``price`` in US dollars."""
        optional, lists = ("description", "category", "brand", "price"), ("description", "category")
        t = read_json_lines(connection, file, ("asin", "title"), optional=optional, lists=lists, remedy=REMEDY)
        fields = {
            "item_id": t.asin,
            "title": plain_text(t.title),
            "description": plain_text(t.description.join(" ")),
            "brand": plain_text(t.brand),
            "category": plain_path(t.category),
            "price": dollars(t.price),
        }
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in ITEM_FIELDS})
