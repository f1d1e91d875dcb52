"""MovieLens (GroupLens) in each of its three layouts; ratings at seconds since 1970, genres as the category.

================  ===============================  =============  ==============
release           files                            fields         ratings
================  ===============================  =============  ==============
20M and later     ``ratings.csv``, ``movies.csv``  commas, header  0.5 to 5
1M, 10M           ``ratings.dat``, ``movies.dat``  ``::``          1 or 0.5 to 5
100K              ``u.data``, ``u.item``           tab, ``|``      1 to 5
================  ===============================  =============  ==============

Movies of 1M and 100K are in Latin-1, those of the others in UTF-8; a file that is no UTF-8 is taken for Latin-1.
Genres have no order of broad to narrow; they stay in the order of the file. ``(no genres listed)`` and the genre
``unknown`` are none, and so is the title ``unknown`` of 100K. 1M and 100K also tell of users (``users.dat``,
``u.user``); their codes of age and occupation stay as they are. Other files of a release are not read.
"""

import codecs
from pathlib import Path
from typing import Any

import ibis

from recsys_tasks.errors import SourceError
from recsys_tasks.shop import MovieLens
from recsys_tasks.sources.base import EVENT_FIELDS, EVENT_ITEM_FIELDS, ITEM_FIELDS, EventRules, SourceFile
from recsys_tasks.sources.files import FileSource, read_separated, read_table

LAYOUTS = (("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat"), ("u.data", "u.item"))
RATINGS = ("userId", "movieId", "rating", "timestamp")
MOVIES = ("movieId", "title", "genres")
USERS = {
    "users.dat": ("::", ("userId", "gender", "age", "occupation", "zip_code")),
    "u.user": ("|", ("userId", "age", "gender", "occupation", "zip_code")),
}
"""File of users -> separator and fields, the first of them the id."""
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The flags that end a row of ``u.item``, in its order."""
REMEDY = "Give the folder of a MovieLens release as it was unpacked under source.path of the shop file"


class MovieLensSource(FileSource):
    """Reads the folder of one release, as it was unpacked."""

    def __init__(self, config: MovieLens, folder: Path) -> None:
        self.folder = folder / config.path

    @property
    def rules(self) -> EventRules:
        """Every row is a rating of 0.5 to 5, at seconds since 1970."""
        return EventRules(event_type="rating", rating_range=(0.5, 5), timestamp_unit="s", event_ids=False)

    def event_files(self) -> list[SourceFile]:
        """Return the one file of ratings."""
        return [self._files()[0]]

    def item_files(self) -> list[SourceFile]:
        """Return the one file of movies."""
        return [self._files()[1]]

    def user_files(self) -> list[SourceFile]:
        """Return the one file of users, where the release has it."""
        return [SourceFile(name, self.folder / name) for name in USERS if (self.folder / name).is_file()]

    def read_events(self, connection: Any, file: SourceFile, *, numbered: bool = True) -> ibis.Table:
        """Return the ratings."""
        if file.name == "ratings.csv":
            t = read_table(connection, file, RATINGS, REMEDY, numbered=numbered)
        else:
            t = read_separated(connection, file, RATINGS, "\t" if file.name == "u.data" else "::")
        fields = {"user_id": t.userId, "item_id": t.movieId, "timestamp": t.timestamp, "value": t.rating}
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in EVENT_FIELDS + EVENT_ITEM_FIELDS})

    def read_items(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the movies."""
        if file.name == "u.item":
            columns = ("movieId", "title", "released", "released_on_video", "url", *GENRES)
            t = read_separated(connection, file, columns, "|", _encoding(file))
            flags = [ibis.ifelse(t[genre].strip() == "1", genre, ibis.null("string")) for genre in GENRES[1:]]
            genres = ibis.array(flags)
        else:
            if file.name == "movies.csv":
                t = read_table(connection, file, MOVIES, REMEDY)
            else:
                t = read_separated(connection, file, MOVIES, "::", _encoding(file))
            genres = t.genres.nullif("(no genres listed)").split("|")
        fields = {
            "item_id": t.movieId,
            "title": t.title.strip().nullif("unknown"),
            "category": genres.filter(lambda genre: genre.notnull()),
        }
        null = ibis.null("string")
        return t.select("row", **{name: fields.get(name, null) for name in ITEM_FIELDS})

    def read_users(self, connection: Any, file: SourceFile) -> ibis.Table:
        """Return the users."""
        separator, columns = USERS[file.name]
        t = read_separated(connection, file, columns, separator, _encoding(file))
        return t.select("row", *columns[1:], user_id=t.userId)

    def _files(self) -> tuple[SourceFile, SourceFile]:
        """The ratings and the movies.

        Raises
        ------
        SourceError
            The folder holds no release, or two, or half of one.

        """
        found = [layout for layout in LAYOUTS if (self.folder / layout[0]).is_file()]
        if len(found) != 1:
            what = f"several releases: {', '.join(name for name, _ in found)}" if found else "no ratings there"
            known = ", ".join(name for name, _ in LAYOUTS)
            raise SourceError(f"{self.folder}: {what} (source.path); expected one of {known}. {REMEDY}")
        ratings, movies = (SourceFile(name, self.folder / name) for name in found[0])
        if not movies.path.is_file():
            raise SourceError(
                f"{movies.path}: no file there (source.path); expected it beside {ratings.name}. {REMEDY}"
            )
        return ratings, movies


def _encoding(file: SourceFile) -> str:
    """``utf-8`` where the whole file is, else ``latin-1``."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with file.path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
