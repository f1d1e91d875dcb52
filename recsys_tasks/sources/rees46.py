"""Behaviour data of REES46 stores: views, carts and purchases of a month a CSV file; items are columns of the rows.

``category_code`` (``electronics.smartphone``) is the path of the category. There are no titles: the label is brand and
narrowest category, ``Samsung smartphone``, as a shelf would say, and none where the row has no category. A price of 0
is one the store did not know, hence null. A row has no id and no quantity, so two pieces bought within one second of
one session cannot be told from a row that was written twice: ingest counts the second as a duplicate.

``remove_from_cart`` rows are left out and counted apart. They are no faults, so they do not belong in quarantine,
which people read to mend their export. No event type of the contract fits either: a ``return`` gives back what was
bought, which these shoppers never did. And they take nothing back of what the ``cart`` event before says, interest.
"""

from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.shop import Rees46
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.files import FileSource, list_files, read_table

COLUMNS = ("event_time", "event_type", "product_id", "category_code", "brand", "price", "user_id", "user_session")
REMEDY = "Give the event files of a REES46 store, e.g. 2019-Oct.csv, under source.path of the shop file"


class Rees46Source(FileSource):
    """Reads ``2019-Oct.csv`` and its like, plain or gz."""

    def __init__(self, config: Rees46, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @property
    def rules(self) -> EventRules:
        """Event types are the contract's words, but for ``remove_from_cart``; times name their zone."""
        return EventRules(left_out=("remove_from_cart",), event_ids=False)

    def event_files(self) -> list[SourceFile]:
        """Return the files of events."""
        return list_files(self.config.path, self.folder, "source.path")

    def item_files(self) -> list[SourceFile]:
        """Return nothing: items are columns of the event rows."""
        return []

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the events with brand and category of their items."""
        t = read_table(connection, file, COLUMNS, REMEDY, numbered=numbered)
        code, brand = t.category_code.strip().nullif(""), t.brand.strip().nullif("")
        kind = code.re_extract(r"[^.]*$", 0).replace("_", " ")
        fields = {
            "user_id": t.user_id,
            "item_id": t.product_id,
            "timestamp": t.event_time,
            "event_type": t.event_type,
            "price": ibis.ifelse(t.price.try_cast("float64") == 0, ibis.null("string"), t.price),
            "session_id": t.user_session,
            "title": ibis.coalesce(brand + " " + kind, kind).capitalize(),
            "brand": brand,
            "category": code.split("."),
        }
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in EVENT_FIELDS + EVENT_ITEM_FIELDS})
