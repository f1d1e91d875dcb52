"""Amazon Reviews 2023 as it really is: milliseconds, parents and children, prices that are null or words."""

import gzip
import json
from datetime import UTC, datetime

import pytest
import yaml

from recsys_tasks.errors import SourceError
from tests.conftest import ROOT
from tests.ingested import ingested

AS_OF = "2023-09-01T00:00:00+00:00"
REVIEW = {
    "rating": 5.0,
    "title": "Such a lovely record",
    "text": "A warm sound.<br />Twice.",
    "images": [],
    "asin": "B00YQ6X8EO",
    "parent_asin": "B00YQ6X8E0",
    "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
    "timestamp": 1588687728923,
    "helpful_vote": 0,
    "verified_purchase": True,
}
PRODUCT = {
    "main_category": "Digital Music",
    "title": "Kind of Blue [Vinyl] &amp; Booklet",
    "average_rating": 4.8,
    "rating_number": 10,
    "features": [],
    "description": ["First.", "Second &quot;take&quot;."],
    "price": 21.47,
    "images": [{"thumb": "a.jpg"}],
    "store": "Miles Davis  Format: Vinyl",
    "categories": ["CDs & Vinyl", "Jazz"],
    "details": {"Manufacturer": "Columbia"},
    "parent_asin": "B00YQ6X8E0",
    "bought_together": None,
}


@pytest.fixture
def shop(tmp_path, home):
    """A function that ingests reviews and metadata by the shop file of the project, put beside small files."""

    def run(reviews=(REVIEW,), metadata=(PRODUCT,)):
        described = yaml.safe_load((ROOT / "include" / "shops" / "amazon_2023.yaml").read_text())
        for key, rows in (("reviews", reviews), ("metadata", metadata)):
            described["source"][key] = path = described["source"][key].split("/")[-1]
            text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            (tmp_path / path).write_bytes(gzip.compress(text.encode()))
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(described))
        return ingested(tmp_path / "shop.yaml", AS_OF)

    return run


def test_a_review_is_a_rating_of_the_parent_at_its_millisecond(shop):
    found = shop()
    (event,) = found.events
    assert (event["user_id"], event["item_id"], event["event_type"], event["value"]) == (
        "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
        "B00YQ6X8E0",
        "rating",
        5.0,
    )
    assert event["timestamp"] == datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC)
    assert found.items == {
        "B00YQ6X8E0": {
            "item_id": "B00YQ6X8E0",
            "title": "Kind of Blue [Vinyl] & Booklet",
            "description": 'First. Second "take".',
            "brand": "Miles Davis Format: Vinyl",
            "category": ["CDs & Vinyl", "Jazz"],
            "price": 21.47,
            "available": True,
            "updated_at": None,
        }
    }


def test_a_review_that_stands_twice_is_a_duplicate_and_a_millisecond_later_it_is_another(shop):
    found = shop([REVIEW, REVIEW, REVIEW | {"timestamp": REVIEW["timestamp"] + 1}])
    assert (found.counts["kept"], found.counts["duplicates"]) == (2, 1)


@pytest.mark.parametrize(
    ("price", "dollars"),
    [(9, 9.0), (None, None), ("None", None), ("from 12.99", 12.99), ("12.99", 12.99), ("\u2014", None), ("", None)],
)
def test_a_price_is_a_number_or_nothing_and_never_a_fault(shop, price, dollars):
    found = shop(metadata=[PRODUCT | {"price": price}])
    assert found.items["B00YQ6X8E0"]["price"] == dollars
    assert found.quarantine == []


@pytest.mark.parametrize(
    ("categories", "main", "path"),
    [([], "Digital Music", ["Digital Music"]), (None, None, []), (["CDs &amp; Vinyl", None], "x", ["CDs & Vinyl"])],
)
def test_a_product_without_categories_has_its_main_one(shop, categories, main, path):
    other = PRODUCT | {"parent_asin": "B2"}
    found = shop(metadata=[PRODUCT | {"categories": categories, "main_category": main}, other])
    assert found.items["B00YQ6X8E0"]["category"] == path


def test_nulls_of_the_metadata_are_nulls_of_the_catalogue(shop):
    bare = PRODUCT | {"title": None, "store": None, "description": [], "price": None}
    item = shop(metadata=[bare]).items["B00YQ6X8E0"]
    assert [item[name] for name in ("title", "brand", "description", "price")] == [None] * 4


def test_bad_reviews_are_quarantined_at_their_lines(shop):
    bad = [{"rating": 0.0}, {"timestamp": "2020"}, {"timestamp": 1588687728}, {"parent_asin": ""}, {"user_id": None}]
    found = shop([REVIEW, "{", *(REVIEW | change for change in bad)])
    assert [(row["row"], row["field"]) for row in found.quarantine] == [
        (2, "line"),
        (3, "value"),
        (4, "timestamp"),
        (5, "timestamp"),
        (6, "item_id"),
        (7, "user_id"),
    ]
    assert found.quarantine[3]["reason"].endswith("lies before 1990; check the unit or the clock it came from")


def test_reviews_in_the_place_of_the_metadata_are_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match="column 'main_category' is missing") as error:
        shop(metadata=[REVIEW])
    assert "Give the files of Amazon Reviews 2023" in str(error.value)


def test_files_of_2018_are_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match="column 'user_id' is missing") as error:
        shop([{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1267660800}])
    assert "Give the files of Amazon Reviews 2023" in str(error.value)
