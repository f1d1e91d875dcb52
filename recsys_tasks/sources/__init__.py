"""One reader per format. ``open_source`` gives the reader a shop file asks for."""

from recsys_tasks.shop import CompleteJourney, Shop
from recsys_tasks.sources.base import EventRules, Source, SourceFile
from recsys_tasks.sources.complete_journey import CompleteJourneySource
from recsys_tasks.sources.tabular import TabularSource

__all__ = ["EventRules", "Source", "SourceFile", "open_source"]


def open_source(shop: Shop) -> Source:
    """Return the reader of the shop's source; no file is read yet."""
    if isinstance(shop.source, CompleteJourney):
        return CompleteJourneySource()
    return TabularSource(shop.source, shop.file.parent)
