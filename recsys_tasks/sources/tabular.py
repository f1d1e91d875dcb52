"""Any CSV, Parquet or JSON-lines export, plain or gz: a file, a folder or a glob; the shop file maps the columns."""

from pathlib import Path

from recsys_tasks.shop import Tabular
from recsys_tasks.sources.base import SourceFile
from recsys_tasks.sources.files import list_files
from recsys_tasks.sources.mapped import MappedSource


class TabularSource(MappedSource):
    """Reads files by the mapping of the shop file; ``folder`` is where relative paths start."""

    def __init__(self, config: Tabular, folder: Path) -> None:
        self.config: Tabular = config
        self.folder = folder

    def event_files(self) -> list[SourceFile]:
        """Return the files the shop file's ``source.events.path`` names."""
        return list_files(self.config.events.path, self.folder, "source.events.path")

    def item_files(self) -> list[SourceFile]:
        """Return the files of ``source.items.path``; none where items are columns of the event rows."""
        path = self.config.items.path
        return list_files(path, self.folder, "source.items.path") if path else []

    def user_files(self) -> list[SourceFile]:
        """Return the files of ``source.users.path``; none where the shop file has no users."""
        users = self.config.users
        return list_files(users.path, self.folder, "source.users.path") if users else []
