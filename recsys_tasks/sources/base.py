"""What every reader gives: files, and each file as a table of raw fields that nobody has judged yet."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis

EVENT_FIELDS = ("user_id", "item_id", "timestamp", "event_type", "value", "price", "session_id", "event_id")
ITEM_FIELDS = ("item_id", "title", "description", "brand", "category", "price", "available", "updated_at")
EVENT_ITEM_FIELDS = ("title", "description", "brand", "category")
"""Fields of the catalogue that an event row may carry where the shop has no item files."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the shop. ``name`` is relative to the source, so it is the same on every machine."""

    name: str
    path: Path


@dataclass(frozen=True)
class Reject:
    """A line that has no fields to judge: too many, too few, or not JSON."""

    line: int
    """Physical line in the file, from 1."""
    reason: str
    record: str


class Source(ABC):
    """A shop's files. Ingest calls ``read_*`` for each file and judges the rows itself."""

    @abstractmethod
    def event_files(self) -> list[SourceFile]:
        """Return the files of the event log, in the order of their names."""

    @abstractmethod
    def item_files(self) -> list[SourceFile]:
        """Return the files of the catalogue; empty where items are columns of the event rows."""

    @abstractmethod
    def read_events(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the rows of one file: ``row`` (from 1), ``EVENT_FIELDS`` and ``EVENT_ITEM_FIELDS``, all unjudged.

        Fields are strings, or the file's own numbers and timestamps; a field the shop does not map is null.

        Raises
        ------
        SourceError
            The file cannot be read, or a mapped column is missing.

        """

    @abstractmethod
    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the rows of one catalogue file: ``row`` and ``ITEM_FIELDS``; ``category`` is a list or null."""

    def rejects(self, connection: Any, file: SourceFile) -> list[Reject]:
        """Return the lines of a file, already read, that never became rows."""
        return []
