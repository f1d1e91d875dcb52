"""Behaviour data of REES46 stores as it really is: brands and categories that are missing, carts that are emptied."""

import gzip
from datetime import UTC, datetime

import pytest
import yaml

from recsys_tasks.errors import ContractError, SourceError
from recsys_tasks.ingest import accounting
from tests.conftest import ROOT
from tests.ingested import ingested

AS_OF = "2019-12-01T00:00:00+00:00"
HEAD = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
PHONE = "1004856,2053013555631882655,electronics.smartphone,samsung,130.76"
BARE = "44600062,2103807459595387724,,,35.79"


def row(kind, product=PHONE, at="2019-10-01 00:00:00 UTC", user="541312140", session="72d76fde-8bb3-4e00"):
    return f"{at},{kind},{product},{user},{session}\n"


@pytest.fixture
def shop(tmp_path, home):
    """A function that ingests rows, or files by name, by the shop file of the project."""

    def run(rows, as_of=AS_OF):
        described = yaml.safe_load((ROOT / "include" / "shops" / "rees46.yaml").read_text())
        described["source"]["path"] = "rees46"
        (tmp_path / "rees46").mkdir(exist_ok=True)
        for name, text in (rows if isinstance(rows, dict) else {"2019-Oct.csv": HEAD + rows}).items():
            content = text.encode()
            (tmp_path / "rees46" / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(described))
        return ingested(tmp_path / "shop.yaml", as_of)

    return run


def test_views_carts_and_purchases_are_events_with_their_session_and_price(shop):
    found = shop(
        row("view") + row("cart", at="2019-10-01 00:00:05 UTC") + row("purchase", at="2019-10-01 00:01:00 UTC")
    )
    assert [event["event_type"] for event in found.events] == ["view", "cart", "purchase"]
    assert found.events[1] == {
        "user_id": "541312140",
        "item_id": "1004856",
        "timestamp": datetime(2019, 10, 1, 0, 0, 5, tzinfo=UTC),
        "event_type": "cart",
        "value": None,
        "price": 130.76,
        "session_id": "72d76fde-8bb3-4e00",
        "event_id": None,
    }
    assert found.quarantine == []


def test_items_come_from_the_rows_with_a_label_of_brand_and_narrowest_category(shop):
    unbranded = "7,8,appliances.environment.air_conditioner,,9.00"
    branded = "9,8,,bosch,9.00"
    found = shop("".join(row("view", product) for product in (PHONE, BARE, unbranded, branded)))
    assert {item: (r["title"], r["brand"], r["category"], r["price"]) for item, r in found.items.items()} == {
        "1004856": ("Samsung smartphone", "samsung", ["electronics", "smartphone"], 130.76),
        "44600062": (None, None, None, 35.79),
        "7": ("Air conditioner", None, ["appliances", "environment", "air_conditioner"], 9.0),
        "9": (None, "bosch", None, 9.0),
    }


def test_a_category_that_only_another_month_names_is_the_items(shop):
    nameless = PHONE.replace("electronics.smartphone", "").replace("samsung", "")
    later = row("view", at="2019-11-02 00:00:00 UTC")
    found = shop({"2019-Oct.csv": HEAD + row("view", nameless) * 3, "2019-Nov.csv.gz": HEAD + later})
    assert (found.items["1004856"]["brand"], found.items["1004856"]["category"]) == (
        "samsung",
        ["electronics", "smartphone"],
    )
    assert found.counts["duplicates"] == 2


def test_a_price_of_nothing_is_unknown(shop):
    found = shop(row("view", PHONE.replace("130.76", "0.00")) + row("cart"))
    assert sorted((event["price"] is None, event["event_type"]) for event in found.events) == [
        (False, "cart"),
        (True, "view"),
    ]
    assert found.items["1004856"]["price"] == 130.76


def test_rows_that_empty_a_cart_are_left_out_and_counted_apart(shop):
    late = row("remove_from_cart", at="2019-12-01 00:00:00 UTC")
    broken = row("remove_from_cart", user="", at="soon")
    found = shop(row("cart") + row("remove_from_cart") * 2 + late + broken)
    assert [event["event_type"] for event in found.events] == ["cart"]
    assert found.counts["left_out"] == {"remove_from_cart": 3}
    assert (found.counts["read"], found.counts["later"]) == (1, 1)
    assert accounting(found.manifest["counts"]) == [
        "events: 1 rows read = 1 kept + 0 quarantined + 0 duplicates "
        "(1 later rows left alone, 3 remove_from_cart rows left out)"
    ]


def test_a_night_of_emptied_carts_alone_is_refused_with_their_number(shop):
    with pytest.raises(ContractError, match=r"an empty night: .* 2 remove_from_cart rows left out"):
        shop(row("remove_from_cart") * 2)


def test_bad_rows_are_quarantined_at_their_rows(shop):
    bad = [row("wish"), row("view", user=""), "2019-10-01 00:00:00 UTC,view\n", row("view", at="2019-10-01 00:00:00")]
    found = shop(row("view") + "".join(bad[:3]) + row("cart", PHONE.replace("130.76", "-79.37")) + row("purchase"))
    assert [(r["row"], r["field"]) for r in found.quarantine] == [
        (2, "event_type"),
        (3, "user_id"),
        (4, "line"),
        (5, "price"),
    ]
    assert found.counts["kept"] == 2


def test_another_csv_file_is_refused_with_what_to_do(shop):
    with pytest.raises(SourceError, match=r"2019-Oct\.csv: column 'event_time' is missing") as error:
        shop({"2019-Oct.csv": "a,b\n1,2\n"})
    assert "Give the event files of a REES46 store" in str(error.value)


def test_a_folder_without_files_is_refused_with_its_key(shop):
    with pytest.raises(SourceError, match=r"rees46: no file there \(source\.path\)"):
        shop({})
