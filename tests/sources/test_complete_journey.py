"""The demo shop as the package has it: purchases, the coupons redeemed with them, and what is known of households."""

from collections import Counter

import ibis
import pytest
import yaml

from recsys_tasks.sources import complete_journey
from recsys_tasks.sources.complete_journey import CompleteJourneySource
from tests.ingested import ingested


@pytest.fixture(scope="module")
def source():
    return CompleteJourneySource()


@pytest.fixture(scope="module")
def connection():
    connection = ibis.duckdb.connect()
    yield connection
    connection.disconnect()


@pytest.fixture(scope="module")
def coupons(source, connection):
    return source.read_events(connection, source.event_files()[0]).order_by("row", "event_id").to_pyarrow().to_pylist()


def test_every_redemption_is_a_row_with_the_purchases_it_made_cheaper_or_without_an_item(coupons):
    found = [row for row in coupons if row["item_id"]]
    assert {row["row"] for row in coupons} == set(range(1, 2103))
    assert (len(coupons), len(found), len({row["row"] for row in found})) == (2192, 1220, 1130)
    assert len({row["event_id"] for row in found}) == 1173


def test_a_coupon_is_an_event_beside_the_purchase_it_made_cheaper(source, connection, coupons):
    (coupon,) = (row for row in coupons if row["row"] == 3)
    purchases = source.read_events(connection, source.event_files()[1])
    bought = purchases.filter(purchases.event_id == "31242775833-1090676").to_pyarrow().to_pylist()[0]
    assert bought | {"row": 3, "event_type": "coupon", "value": 1.0, "event_id": "coupon-31242775833-1090676"} == coupon
    assert (coupon["user_id"], coupon["timestamp"].isoformat()) == ("165", "2017-01-03T17:03:19")


def test_a_coupon_redeemed_late_in_the_evening_meets_its_purchase_of_the_next_day_in_utc(coupons):
    found = Counter(row["timestamp"].hour for row in coupons if row["item_id"])
    assert sum(found[hour] for hour in range(5)) > 100


def test_a_redemption_without_a_purchase_is_dated_as_the_package_has_it(coupons):
    assert coupons[0]["timestamp"].isoformat() == "2017-01-01T00:00:00"
    assert (coupons[0]["user_id"], coupons[0]["item_id"], coupons[0]["event_id"]) == ("1029", None, None)


def test_a_household_is_known_by_its_demographics_and_what_is_not_known_is_null(source, connection):
    (file,) = source.user_files()
    users = source.read_users(connection, file).order_by("row").to_pyarrow().to_pylist()
    assert len({user["user_id"] for user in users}) == len(users) == 801
    assert users[0] == {
        "row": 1,
        "user_id": "1",
        "age": "65+",
        "income": "35-49K",
        "home_ownership": "Homeowner",
        "marital_status": "Married",
        "household_size": "2",
        "household_comp": "2 Adults No Kids",
        "kids_count": "0",
    }
    assert users[2]["home_ownership"] is None


@pytest.mark.parametrize("name", ["coupon_redemptions.parquet", "coupons.parquet", "transactions.parquet"])
def test_redemptions_are_another_version_when_any_file_they_are_read_with_is(source, monkeypatch, tmp_path, name):
    before = source.event_files()[0].version
    (tmp_path / name).write_bytes(b"another")
    packaged = complete_journey._path
    monkeypatch.setattr(
        complete_journey, "_path", lambda wanted: tmp_path / wanted if wanted == name else packaged(wanted)
    )
    assert source.event_files()[0].version != before


def test_of_the_redemptions_of_a_month_coupons_are_kept_and_the_others_are_in_quarantine(tmp_path, home):
    shop = {"name": "journey", "source": {"format": "complete_journey"}, "time_zone": "UTC"}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(shop))
    found = ingested(tmp_path / "shop.yaml", "2017-02-01T00:00:00+00:00")
    kept = [row for row in found.events if row["event_type"] == "coupon"]
    purchases = {row["event_id"] for row in found.events if row["event_type"] == "purchase"}
    lost = [row for row in found.quarantine if row["file"] == "coupon_redemptions.parquet"]
    assert {row["event_id"].removeprefix("coupon-") for row in kept} <= purchases
    assert [(row["row"], row["field"]) for row in lost] == [(row, "item_id") for row in (1, 2, 4, 5, 6)]
    assert (found.counts["read"], len(kept), found.counts["duplicates"]) == (124_070, 14, 0)
