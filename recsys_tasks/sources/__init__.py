"""One reader per format. ``open_source`` gives the reader a shop file asks for."""

from recsys_tasks.shop import Amazon2018, Amazon2023, CompleteJourney, MovieLens, Rees46, Shop, Sql, Tabular
from recsys_tasks.sources.amazon_2018 import Amazon2018Source
from recsys_tasks.sources.amazon_2023 import Amazon2023Source
from recsys_tasks.sources.base import EventRules, Source, SourceFile
from recsys_tasks.sources.complete_journey import CompleteJourneySource
from recsys_tasks.sources.movielens import MovieLensSource
from recsys_tasks.sources.rees46 import Rees46Source
from recsys_tasks.sources.sql import SqlSource
from recsys_tasks.sources.tabular import TabularSource

__all__ = ["EventRules", "Source", "SourceFile", "open_source"]


def open_source(shop: Shop) -> Source:
    """Return the reader of the shop's source; no file is read yet."""
    folder = shop.file.parent
    match shop.source:
        case CompleteJourney():
            return CompleteJourneySource()
        case Tabular():
            return TabularSource(shop.source, folder)
        case Sql():
            return SqlSource(shop.source, shop)
        case Amazon2018():
            return Amazon2018Source(shop.source, folder)
        case Amazon2023():
            return Amazon2023Source(shop.source, folder)
        case Rees46():
            return Rees46Source(shop.source, folder)
        case MovieLens():
            return MovieLensSource(shop.source, folder)
