"""What every reader gives: files, and each file as a table of raw fields that nobody has judged yet."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.shop import EventType

EVENT_FIELDS = ("user_id", "item_id", "timestamp", "event_type", "value", "price", "session_id", "event_id")
ITEM_FIELDS = ("item_id", "title", "description", "brand", "category", "price", "available", "updated_at")
EVENT_ITEM_FIELDS = ("title", "description", "brand", "category")
"""Fields of the catalogue that an event row may carry where the shop has no item files."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the shop, or one part of a table that is fetched as a file."""

    name: str
    """Relative to the source, so it is the same on every machine."""
    path: Path
    version: str | None = None
    """What tells this content from an earlier one's; None where the size and the times of ``path`` do."""


@dataclass(frozen=True)
class Reject:
    """A line that has no fields to judge: too many, too few, or not JSON."""

    line: int
    """Physical line in the file, from 1."""
    reason: str
    record: str


@dataclass(frozen=True)
class EventRules:
    """How ingest is to understand the raw fields of an event row. The defaults are what the contract says."""

    event_type: EventType | None = None
    """Type of every row; None where the field ``event_type`` tells it."""
    event_types: Mapping[str, EventType] = field(default_factory=dict)
    """The shop's word -> event type, beside the contract's own words."""
    left_out: tuple[str, ...] = ()
    """Words of the shop for what is no event of the contract: such rows are counted apart and left alone."""
    negative_value: Literal["quarantine", "return"] = "quarantine"
    """What a purchase with a negative value is: a bad row, or a return."""
    rating_range: tuple[float, float] | None = None
    """Lowest and highest rating there is; a rating outside, or none, is a bad row."""
    event_ids: bool = True
    """Whether rows carry ids of their own; without one, a row equal in every field is the same event."""
    timestamp_format: str | None = None
    """strptime format, where timestamps are not ISO 8601."""
    timestamp_unit: Literal["s", "ms", "us"] | None = None
    """For timestamps that count since 1970."""


class Source(ABC):
    """A shop's files. Ingest calls ``read_*`` for each file and judges the rows itself, by ``rules``."""

    @property
    def rules(self) -> EventRules:
        """How the raw fields of an event row are to be understood."""
        return EventRules()

    @abstractmethod
    def event_files(self) -> list[SourceFile]:
        """Return the files of the event log, in the order of their names."""

    @abstractmethod
    def item_files(self) -> list[SourceFile]:
        """Return the files of the catalogue; empty where items are columns of the event rows."""

    def user_files(self) -> list[SourceFile]:
        """Return the files of customers' attributes; empty where the shop has none."""
        return []

    @contextmanager
    def fetched(self, file: SourceFile) -> Iterator[SourceFile]:
        """Give the file with a ``path`` that can be read here; files on disk already can."""
        yield file

    @abstractmethod
    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the rows of one file: ``row`` (from 1), ``EVENT_FIELDS`` and ``EVENT_ITEM_FIELDS``, all unjudged.

        Fields are strings, or the file's own numbers and timestamps; a field the shop does not map is null. With
        ``numbered=False`` a reader may leave ``row`` null where counting rows would slow it down, and DuckDB may fail
        when the rows are asked for: then they are to be read with numbers, which tells what is wrong.

        Raises
        ------
        SourceError
            The file cannot be read, or a mapped column is missing.

        """

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the rows of one catalogue file: ``row`` and ``ITEM_FIELDS``; ``category`` is a list or null.

        Raises
        ------
        SourceError
            As ``read_events``; or the source has no catalogue files, its items being columns of the event rows.

        """
        raise SourceError(f"{file.path}: this source has no catalogue files; its items are columns of the event rows")

    def read_users(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the rows of one file of customers: ``row``, ``user_id`` and a column of strings for each attribute.

        Raises
        ------
        SourceError
            As ``read_events``; or the source has no files of customers.

        """
        raise SourceError(f"{file.path}: this source has no files of customers")

    def rejects(self, connection: Any, file: SourceFile) -> list[Reject]:
        """Return the lines of a file, already read, that never became rows."""
        return []

    def in_order(self, file: SourceFile, rows: int) -> bool:
        """Tell whether, of so many rows that were read without numbers, the n-th is row n of the file."""
        return True

    def header_lines(self, file: SourceFile) -> int:
        """Return the lines before the first row, where ``row`` counts rows; 0 where ``row`` is the line itself."""
        return 0
