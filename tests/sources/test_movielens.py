"""MovieLens as it really is: three layouts, two encodings, titles with commas, movies without a genre."""

from datetime import UTC, datetime

import ibis
import pytest
import yaml

from recsys_tasks.errors import SourceError
from recsys_tasks.shop import MovieLens
from recsys_tasks.sources.movielens import MovieLensSource
from tests.conftest import ROOT
from tests.ingested import ingested

AS_OF = "2003-03-01T00:00:00+00:00"
FLAGS = {"Toy Story (1995)": "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0", "unknown": "1" + "|0" * 18}
U_ITEM = (
    f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story|{FLAGS['Toy Story (1995)']}\n"
    f"267|unknown||||{FLAGS['unknown']}\n"
    f"543|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Mis%E9rables|{'0|' * 8}1{'|0' * 10}\n"
)
RELEASES = {
    "ml-1m": {
        "ratings.dat": b"1::1::5::978300760\n1::73::3::978302109\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n73::Misérables, Les (1995)::Drama\n".encode(
            "latin-1"
        ),
    },
    "ml-10m": {
        "ratings.dat": b"1::1::5::978300760\n1::73::3.0::978302109\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Children's|Comedy\n73::Misérables, Les (1995)::Drama\n".encode(),
    },
    "ml-32m": {
        "ratings.csv": b"userId,movieId,rating,timestamp\r\n1,1,5.0,978300760\r\n1,73,3.0,978302109\r\n",
        "movies.csv": (
            "movieId,title,genres\r\n1,Toy Story (1995),Animation|Children's|Comedy\r\n"
            '73,"Misérables, Les (1995)",Drama\r\n'
        ).encode(),
        "tags.csv": b"userId,movieId,tag,timestamp\r\n",
    },
    "ml-100k": {
        "u.data": b"1\t1\t5\t978300760\n1\t543\t3\t978302109\n",
        "u.item": U_ITEM.encode("latin-1"),
        "u1.base": b"1\t1\t5\t978300760\n",
    },
}


@pytest.fixture
def shop(tmp_path, home):
    """A function that ingests the files of a release by the shop file of the project."""

    def run(files, as_of=AS_OF):
        described = yaml.safe_load((ROOT / "include" / "shops" / "movielens.yaml").read_text())
        described["source"]["path"] = "release"
        (tmp_path / "release").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "release" / name).write_bytes(content)
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(described))
        return ingested(tmp_path / "shop.yaml", as_of)

    return run


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gives_the_same_ratings_and_movies(shop, release):
    found = shop(RELEASES[release])
    other = "543" if release == "ml-100k" else "73"
    assert [(e["user_id"], e["item_id"], e["event_type"], e["value"], e["timestamp"]) for e in found.events] == [
        ("1", "1", "rating", 5.0, datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC)),
        ("1", other, "rating", 3.0, datetime(2000, 12, 31, 22, 35, 9, tzinfo=UTC)),
    ]
    assert {item: (found.items[item]["title"], found.items[item]["category"]) for item in ("1", other)} == {
        "1": ("Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
        other: ("Misérables, Les (1995)", ["Drama"]),
    }
    assert found.quarantine == []


def test_the_unknown_movie_has_neither_title_nor_genre(shop):
    item = shop(RELEASES["ml-100k"]).items["267"]
    assert (item["title"], item["category"]) == (None, [])


def test_no_genres_listed_are_no_genres(shop):
    movies = b"movieId,title,genres\n1,Toy Story (1995),(no genres listed)\n73,Les,Drama\n"
    assert not shop(RELEASES["ml-32m"] | {"movies.csv": movies}).items["1"]["category"]


@pytest.mark.parametrize("name", ["ml-1m", "ml-100k"])
def test_bad_lines_are_quarantined_at_their_lines_and_the_others_are_kept(shop, name):
    log, between = ("u.data", b"\t") if name == "ml-100k" else ("ratings.dat", b"::")
    rows = [
        b"1::1::5::978300760",
        b"1::1::5",
        b"",
        b"2::1::6::978300760",
        b"3::1::0::978300760",
        b"4::999::5::978300760",
    ]
    rows += [b"5::1::4::soon", b"1::1::5::978300760", b"6::1::4::978300760::9"]
    found = shop(RELEASES[name] | {log: b"\r\n".join(rows).replace(b"::", between) + b"\r\n"})
    assert [(row["row"], row["field"]) for row in found.quarantine] == [
        (2, "line"),
        (4, "value"),
        (5, "value"),
        (6, "item_id"),
        (7, "timestamp"),
        (9, "line"),
    ]
    assert found.quarantine[0]["reason"] == f"broken line: expected 4 fields separated by {between.decode()!r}"
    assert (found.counts["read"], found.counts["kept"], found.counts["duplicates"]) == (8, 1, 1)


def test_a_broken_line_of_the_csv_is_quarantined_at_its_row(shop):
    ratings = b"userId,movieId,rating,timestamp\n1,1,5.0,978300760\n1,1\n1,73,9,978302109\n"
    found = shop(RELEASES["ml-32m"] | {"ratings.csv": ratings})
    assert [(row["row"], row["field"]) for row in found.quarantine] == [(2, "line"), (3, "value")]


@pytest.mark.parametrize(
    ("name", "line", "age", "occupation"),
    [("users.dat", "1::F::1::10::48067\n", "1", "10"), ("u.user", "1|24|F|technician|48067\n", "24", "technician")],
)
def test_a_release_that_tells_of_users_gives_their_attributes(tmp_path, name, line, age, occupation):
    (tmp_path / name).write_text(line + "broken\n")
    source = MovieLensSource(MovieLens(format="movielens", path="."), tmp_path)
    (file,) = source.user_files()
    connection = ibis.duckdb.connect()
    (user,) = source.read_users(connection, file).to_pyarrow().to_pylist()
    attributes = {"gender": "F", "age": age, "occupation": occupation, "zip_code": "48067"}
    assert user == {"row": 1, "user_id": "1"} | attributes
    assert [reject.line for reject in source.rejects(connection, file)] == [2]


def test_a_release_without_users_has_no_files_of_them(tmp_path):
    assert MovieLensSource(MovieLens(format="movielens", path="."), tmp_path).user_files() == []


def test_a_folder_without_a_release_is_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match=r"release: no ratings there \(source\.path\); expected one of ratings\.csv"):
        shop({"README": b""})


def test_a_folder_of_two_releases_is_refused(shop):
    with pytest.raises(SourceError, match=r"several releases: ratings\.dat, u\.data"):
        shop(RELEASES["ml-1m"] | RELEASES["ml-100k"])


def test_ratings_without_movies_are_refused(shop):
    with pytest.raises(SourceError, match=r"movies\.dat: no file there .* expected it beside ratings\.dat"):
        shop({"ratings.dat": RELEASES["ml-1m"]["ratings.dat"]})


def test_an_empty_file_of_ratings_is_an_empty_night_and_not_a_crash(shop, caplog):
    with pytest.raises(Exception, match="an empty night"):
        shop(RELEASES["ml-1m"] | {"ratings.dat": b""})
    assert "ratings.dat is empty" in caplog.text


def test_a_csv_of_other_columns_is_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match="column 'userId' is missing") as error:
        shop(RELEASES["ml-32m"] | {"ratings.csv": b"user,movie\n1,1\n"})
    assert "Give the folder of a MovieLens release" in str(error.value)
