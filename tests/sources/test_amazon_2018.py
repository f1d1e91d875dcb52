"""Amazon review data 2018 as it really is: reviews twice, titles that are javascript, prices that are style sheets."""

import gzip
import json
from datetime import UTC, datetime

import pytest
import yaml

from recsys_tasks.errors import SourceError
from tests.conftest import ROOT
from tests.ingested import ingested

AS_OF = "2018-10-01T00:00:00+00:00"
REVIEW = {
    "overall": 5.0,
    "vote": "3",
    "verified": True,
    "reviewTime": "03 4, 2010",
    "reviewerID": "A3478QRKQDOPQ2",
    "asin": "0001393774",
    "style": {"Format:": " Audio CD"},
    "reviewerName": "jacki & co",
    "reviewText": 'A "classic".\nTwice.',
    "summary": "",
    "unixReviewTime": 1267660800,
}
PRODUCT = {
    "category": ["CDs &amp; Vinyl", "Christian", "Pop &amp; Contemporary"],
    "tech1": "",
    "description": ["1. Losing Game", "", "2. <b>I Can't</b> Wait<br>"],
    "title": "Heart to Heart",
    "also_buy": [],
    "brand": "by\n    \n    2nd Chapter of Acts",
    "rank": "399,269 in CDs & Vinyl (",
    "price": "$12.99",
    "asin": "0001393774",
}
STYLE_SHEET = ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{border-color:#adb1b8;padding:15px 12.99}"


def lines(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


@pytest.fixture
def shop(tmp_path, home):
    """A function that ingests reviews and metadata by the shop file of the project, put beside small files."""

    def run(reviews=(REVIEW,), metadata=(PRODUCT,), squeeze=gzip.compress):
        described = yaml.safe_load((ROOT / "include" / "shops" / "amazon_2018.yaml").read_text())
        for key, rows in (("reviews", reviews), ("metadata", metadata)):
            described["source"][key] = path = described["source"][key].split("/")[-1]
            (tmp_path / path).write_bytes(squeeze(rows if isinstance(rows, bytes) else lines(rows)))
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(described))
        return ingested(tmp_path / "shop.yaml", AS_OF)

    return run


def test_a_review_is_a_rating_and_the_catalogue_is_readable(shop):
    found = shop()
    (event,) = found.events
    assert (event["user_id"], event["item_id"], event["event_type"], event["value"]) == (
        "A3478QRKQDOPQ2",
        "0001393774",
        "rating",
        5.0,
    )
    assert event["timestamp"] == datetime(2010, 3, 4, tzinfo=UTC)
    assert event["price"] is None
    assert found.items["0001393774"] == {
        "item_id": "0001393774",
        "title": "Heart to Heart",
        "description": "1. Losing Game 2. I Can't Wait",
        "brand": "by 2nd Chapter of Acts",
        "category": ["CDs & Vinyl", "Christian", "Pop & Contemporary"],
        "price": 12.99,
        "available": True,
        "updated_at": None,
    }


def test_reviews_and_products_that_stand_twice_are_counted_as_duplicates(shop):
    found = shop([REVIEW, REVIEW, REVIEW | {"overall": 4.0}], [PRODUCT, PRODUCT | {"title": "Heart To Heart"}])
    assert (found.manifest["counts"]["events"]["read"], found.manifest["counts"]["events"]["duplicates"]) == (3, 1)
    assert (found.manifest["counts"]["items"]["read"], found.manifest["counts"]["items"]["duplicates"]) == (2, 1)
    assert len(found.items) == 1


@pytest.mark.parametrize("bad", [0, 6.0, -1, None, "five", ""])
def test_a_rating_that_is_none_of_1_to_5_is_quarantined_at_its_line(shop, bad):
    found = shop([REVIEW, REVIEW | {"overall": bad}])
    (row,) = found.quarantine
    assert (row["file"], row["row"], row["field"]) == ("CDs_and_Vinyl.json.gz", 2, "value")


def test_a_rating_outside_tells_the_range(shop):
    assert shop([REVIEW, REVIEW | {"overall": 6.0}]).quarantine[0]["reason"] == (
        "value '6.0' is no rating; expected 1 to 5"
    )


def test_a_review_without_a_key_or_with_a_broken_line_is_quarantined_and_the_others_are_kept(shop):
    nameless = {key: value for key, value in REVIEW.items() if key != "reviewerID"}
    found = shop([nameless, '{"overall": 5.0, "asin"', REVIEW, REVIEW | {"unixReviewTime": "soon"}])
    assert [(row["row"], row["field"]) for row in found.quarantine] == [(1, "user_id"), (2, "line"), (4, "timestamp")]
    assert found.quarantine[2]["reason"] == "timestamp 'soon' is no instant; expected seconds since 1970"
    assert found.manifest["counts"]["events"]["kept"] == 1


def test_a_review_of_a_product_that_the_metadata_lacks_is_kept(shop):
    found = shop([REVIEW, REVIEW | {"asin": "B00000000X"}])
    assert len(found.events) == 2
    assert found.items["B00000000X"]["title"] is None


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Rock &amp; Roll", "Rock & Roll"),
        ("Rock &amp;amp; Roll &#39;n&#39; Blues", "Rock & Roll 'n' Blues"),
        ('<span id="productTitle" class="a-size-large">Abbey Road</span>', "Abbey Road"),
        ('Abbey Road <span class="a-size-lar', "Abbey Road"),
        ("&lt;i&gt;Aida&lt;/i&gt;", "Aida"),
        ("  Two\n\n   Lines\t", "Two Lines"),
        ("I <3 You; 1 < 2 > 0", "I <3 You; 1 < 2 > 0"),
        ("<style>.a{color:red}</style>Blue<script>var x = 1 < 2;</script>", "Blue"),
        ("var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();\n" + "x=1;" * 20_000, None),
        ("", None),
        ("<br/>", None),
        (None, None),
    ],
)
def test_a_title_is_what_a_shopper_would_read(shop, title, clean):
    found = shop(metadata=[PRODUCT | {"title": title}])
    assert found.items["0001393774"]["title"] == clean
    assert found.quarantine == []


@pytest.mark.parametrize(
    ("price", "dollars"),
    [
        ("$12.99", 12.99),
        ("$1,299.00", 1299.0),
        ("$5.00 - $9.99", 5.0),
        ("$9.99 - $5.00", 5.0),
        (" $7 ", 7.0),
        (STYLE_SHEET, None),
        ("$12.99 " + STYLE_SHEET, None),
        ("", None),
        (None, None),
        ("Currently unavailable", None),
    ],
)
def test_a_price_is_dollars_or_nothing_and_never_a_fault(shop, price, dollars):
    found = shop(metadata=[PRODUCT | {"price": price}])
    assert found.items["0001393774"]["price"] == dollars
    assert found.manifest["counts"]["items"]["quarantined"] == 0


def test_a_category_path_ends_where_the_scraper_ran_into_the_features(shop):
    scraped = ["CDs &amp; Vinyl", " <b>Jazz</b> ", "", "</span></span></span>", "Imported"]
    assert shop(metadata=[PRODUCT | {"category": scraped}]).items["0001393774"]["category"] == ["CDs & Vinyl", "Jazz"]
    assert shop(metadata=[PRODUCT | {"category": ""}]).items["0001393774"]["category"] == []


def test_keys_that_no_product_has_are_null(shop):
    found = shop(metadata=[{"asin": "0001393774", "title": "Heart to Heart"}])
    assert (found.items["0001393774"]["brand"], found.items["0001393774"]["price"]) == (None, None)


def test_reviews_in_the_place_of_the_metadata_are_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match=r"meta_CDs_and_Vinyl\.json\.gz: column 'title' is missing") as error:
        shop(metadata=[REVIEW])
    assert "under source.reviews and source.metadata of the shop file" in str(error.value)


def test_half_a_download_is_refused_by_name(shop):
    many = [REVIEW | {"reviewerID": f"A{n * 7919 % 5000}"} for n in range(3000)]
    with pytest.raises(SourceError, match=r"CDs_and_Vinyl\.json\.gz: cannot be read: .* bytes of content"):
        shop(many, squeeze=lambda content: gzip.compress(content)[: -len(gzip.compress(content)) // 3])


def test_missing_files_are_named_with_their_key(shop, tmp_path):
    shop()
    (tmp_path / "meta_CDs_and_Vinyl.json.gz").unlink()
    with pytest.raises(SourceError, match=r"no file there \(source\.metadata\)"):
        ingested(tmp_path / "shop.yaml", AS_OF)
