"""A shop file that is wrong says which file, which field, and what was expected."""

import json
import sys
import traceback
from datetime import UTC, datetime
from typing import get_args

import pytest
import yaml

from recsys_tasks.errors import ShopFileError
from recsys_tasks.metrics import CUTOFFS, USER_METRICS
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Metric, load_shop
from tests.conftest import ROOT

GOOD = """\
name: corner
time_zone: Europe/London
source:
  format: tabular
  events:
    path: events.csv
    columns: {user_id: customer, item_id: sku, timestamp: at}
"""


def described(**changes):
    """The good shop with other values; dots in a name lead inwards, None takes a key away."""
    shop = yaml.safe_load(GOOD)
    for name, value in changes.items():
        *path, last = name.split(".")
        place = shop
        for part in path:
            place = place.setdefault(part, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return shop


@pytest.fixture
def refusal(tmp_path):
    """A function from a shop (or the text of its file) to the message that refuses it."""

    def load(shop):
        file = tmp_path / "corner.yaml"
        file.write_text(shop if isinstance(shop, str) else yaml.safe_dump(shop))
        with pytest.raises(ShopFileError) as error:
            load_shop(str(file), tmp_path)
        assert str(error.value).startswith(f"{file}: ")
        return str(error.value).removeprefix(f"{file}: ")

    return load


def test_a_good_shop_has_the_defaults_and_knows_its_file(tmp_path):
    (tmp_path / "corner.yaml").write_text(GOOD)
    shop = load_shop("corner", tmp_path)
    assert shop.file == tmp_path / "corner.yaml"
    assert (shop.k, shop.windows.validation_days, shop.windows.test_days, shop.target) == (50, 14, 14, "purchase")
    assert shop == load_shop(str(tmp_path / "corner.yaml"), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("key", "value", "field", "suggestion"),
    [
        ("time_zon", "UTC", "time_zon", "time_zone"),
        ("source.events.colums", {}, "source.events.colums", "columns"),
        ("source.events.columns.user", "x", "source.events.columns.user", "user_id"),
        ("source.items.columns.titel", "x", "source.items.columns.titel", "title"),
        ("windows.validation_day", 7, "windows.validation_day", "validation_days"),
        ("tiers.loyall", 7, "tiers.loyall", "loyal"),
        ("source.events.delimeter", ";", "source.events.delimeter", "delimiter"),
        ("source.items.encodng", "latin-1", "source.items.encodng", "encoding"),
        ("source.events.derived", {}, "source.events.derived", "derive"),
        ("source.events.filters", "a > 1", "source.events.filters", "filter"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_it_may_have_meant(refusal, key, value, field, suggestion):
    message = refusal(described(**{key: value}))
    assert f"{field}: unknown key (did you mean {suggestion!r}?)" in message
    assert "remove it or correct its spelling" in message


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        (
            {"format": "amazon_2018", "review": "a.json.gz"},
            [
                "source.reviews: missing; this key is required",
                "source.metadata: missing",
                "source.review: unknown key (did you mean 'reviews'?)",
            ],
        ),
        ({"format": "rees46", "path": 7}, ["source.path: Input should be a valid string, got 7"]),
        (
            {"format": "movielens", "pth": "ml-1m"},
            ["source.path: missing", "source.pth: unknown key (did you mean 'path'?)"],
        ),
    ],
    ids=lambda value: value["format"] if isinstance(value, dict) else "",
)
def test_a_fault_of_a_known_format_is_named_by_its_key(refusal, source, faults):
    message = refusal(described(source=source))
    assert all(f"  {fault}" in message for fault in faults)


DATABASE = {
    "format": "sql",
    "url": "postgresql://shop:s3cret@db/shop",
    "events": {"table": "orders", "columns": {"user_id": "customer", "item_id": "sku", "timestamp": "at"}},
}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"connection": "shop_db"}, "source: expected either url or connection"),
        ({"url": None}, "source: expected either url or connection"),
        ({"url": "s3cret"}, "source.url: expected a URL such as postgresql://user:${SHOP_PASSWORD}@host/database"),
        ({"url": {"password": "s3cret"}}, "source.url: Input should be a valid string"),
        ({"url": None, "connection": "postgres://s3cret@db"}, "source.connection: expected the id of an Airflow conn"),
        ({"url": None, "pasword": "s3cret"}, "source.pasword: unknown key"),
        ({"events.table": None}, "source.events: expected either table or query"),
        ({"events.query": "SELECT 1"}, "source.events: expected either table or query"),
        ({"events.changed_at": "changed", "events.timestamp_format": "%d/%m/%Y"}, "source.events: changed_at needs"),
        ({"items": {"table": "products"}}, "source.items: items with a table need columns.item_id"),
        ({"items": {"query": "SELECT 1"}}, "source.items: items with a query need columns.item_id"),
        (
            {"items": {"table": "a", "query": "b", "columns": {"item_id": "c"}}},
            "items: expected either table or query",
        ),
        ({"users": {"columns": {"user_id": "id"}, "attributes": ["x"]}}, "source.users: expected either table or"),
        ({"users": {"table": "t", "columns": {"user_id": "id"}, "attributes": ["row"]}}, "'row' is taken"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_fault_of_a_database_is_named_without_its_password(refusal, changes, fault):
    shop = described(**{"source": DATABASE | {"events": dict(DATABASE["events"])}})
    for name, value in changes.items():
        *path, last = name.split(".")
        place = shop["source"]
        for part in path:
            place = place[part]
        place[last] = value
    message = refusal(shop)
    assert fault in message
    assert "s3cret" not in message


def test_what_pydantic_and_yaml_would_show_of_a_url_stays_hidden(tmp_path):
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(described(source=DATABASE, colour="red")))
    with pytest.raises(ShopFileError) as error:
        load_shop("shop", tmp_path)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))
    (tmp_path / "shop.yaml").write_text("source: {format: sql,\n url: postgresql://shop:s3cret@db/shop: }")
    with pytest.raises(ShopFileError, match="not YAML") as error:
        load_shop("shop", tmp_path)
    assert "s3cret" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:s3cret@db/shop", "postgresql://***@db/shop"),
        ("postgresql://shop:s3c@/?ret@db:5432/shop?sslpassword=s3cret", "postgresql://***@db:5432/shop?***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Ds3cret", "mssql+pyodbc:///?***"),
        ("postgresql://shop:${SHOP_PASSWORD}@${SHOP_HOST}/shop", "postgresql://***@${SHOP_HOST}/shop"),
        ("${SHOP_URL}", "${SHOP_URL}"),
        ("sqlite:///shop.db", "sqlite:///shop.db"),
    ],
)
def test_a_shop_shows_where_its_database_is_and_not_who_logs_in(tmp_path, url, shown):
    (tmp_path / "corner.yaml").write_text(yaml.safe_dump(described(source=DATABASE | {"url": url})))
    shop = load_shop("corner", tmp_path)
    assert json.loads(json.dumps(shop.source.model_dump()))["url"] == shown
    assert "s3c" not in repr(shop)


def test_an_unknown_key_that_looks_like_none_is_refused_without_a_suggestion(refusal):
    assert "qqqqqq: unknown key; remove it" in refusal(described(qqqqqq=1))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("k", "many", "k: Input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ("k", 0, "k: Input should be greater than or equal to 1, got 0"),
        ("shards", 5000, "shards: Input should be less than or equal to 4096, got 5000"),
        ("windows.test_days", 0, "windows.test_days: Input should be greater than or equal to 1, got 0"),
        ("name", "Corner Shop", "name: String should match pattern"),
        ("target", "sale", "target: Input should be 'view', 'click', 'cart'"),
        ("event_weights", {"view": -1}, "event_weights.view: Input should be greater than or equal to 0, got -1"),
        ("source.events.event_types", {"buy": "purchas"}, "source.events.event_types.buy: Input should be 'view'"),
        ("source.events.timestamp_unit", "ns", "source.events.timestamp_unit: Input should be 's', 'ms' or 'us'"),
        (
            "source.events.delimiter",
            "::",
            "source.events.delimiter: '::' cannot separate fields; expected one",
        ),
        ("source.events.delimiter", '"', "source.events.delimiter: '\"' cannot separate fields"),
        (
            "source.events.encoding",
            "latin1000",
            "source.events.encoding: 'latin1000' is no encoding; expected",
        ),
        ("source.events.encoding", "base64", "source.events.encoding: 'base64' is no encoding"),
        ("source.events.filter", "Quantity >", "source.events.filter: 'Quantity >' is no SQL expression"),
        ("source.events.filter", "", "source.events.filter: '' is no SQL expression"),
        ("source.events.derive", {"n": "getenv('HOME')"}, "source.events.derive.n: \"getenv('HOME')\": "),
        ("source.items", {"encoding": "latin-1"}, "source.items: encoding is for items with a path"),
        ("source.events.columns.user_id", "", "source.events.columns.user_id: String should have at least 1 character"),
        ("source.events.filter", "(" * 2000 + "n" + ")" * 2000, "is nested too deep; expected a shorter expression"),
        ("event_weights", {"view": float("inf")}, "event_weights.view: Input should be a finite number, got inf"),
        ("archive_until", "9999-12-31T23:59:59-01:00", "archive_until: 9999-12-31T23:59:59-01:00 is no instant in UTC"),
        ("unknown_items", "drop", "unknown_items: Input should be 'quarantine' or 'keep', got 'drop'"),
        ("models", ["popular"], "models: Input should be a valid dictionary, got ['popular']"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected_and_what_came(refusal, key, value, expected):
    assert expected in refusal(described(**{key: value}))


@pytest.mark.parametrize(
    "key", ["name", "source", "source.events", "source.events.path", "source.events.columns.item_id"]
)
def test_a_missing_key_is_named(refusal, key):
    assert f"{key}: missing; this key is required" in refusal(described(**{key: None}))


def test_a_source_without_a_known_format_names_the_known_ones(refusal):
    for shop in (described(**{"source.format": "excel"}), described(**{"source.format": None})):
        message = refusal(shop)
        assert "source" in message
        assert "format" in message
    message = refusal(described(**{"source.format": "excel"}))
    assert all(
        repr(known) in message
        for known in ("complete_journey", "tabular", "sql", "amazon_2018", "amazon_2023", "rees46", "movielens")
    )
    assert "'excel'" in message


def test_all_faults_of_a_file_are_told_at_once(refusal):
    message = refusal(described(k=0, colour="red", **{"source.events.path": None}))
    assert message.startswith("3 fault(s)\n")
    assert all(field in message for field in ("\n  k: ", "\n  colour: ", "\n  source.events.path: "))


def test_a_shop_file_that_is_not_yaml_is_refused(refusal):
    assert "not YAML" in refusal("name: [corner\nsource: {")


@pytest.fixture
def usual_stack():
    """Python's own limit of recursion, which other libraries of this process may have raised."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("encoder: 2020-13-45", "'2020-13-45' on line 8 is no timestamp"),
        ("k: !!int many", "'many' on line 8 is no int"),
        ("k: !!timestamp now", "'now' on line 8 is no timestamp"),
        ("k: 0x_", "'0x_' on line 8 is no int"),
        ('encoder: "\\ud800"', "'\\ud800' on line 8 is no str"),
        ('"\\ud800": 1', "'\\ud800' on line 8 is no str"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("tiers: !!map none", "expected a mapping node, but found scalar"),
        ("models: " + "[" * 2000, "nested too deep"),
    ],
)
def test_yaml_that_python_cannot_hold_is_refused_with_its_line(refusal, usual_stack, text, expected):
    assert refusal(GOOD + text + "\n").startswith("not YAML: ")
    assert expected in refusal(GOOD + text + "\n")


def test_aliases_of_aliases_do_not_fill_the_message(refusal):
    levels = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert len(refusal(GOOD + "tiers:\n  l0: &l0 [lol]\n" + levels + "  warm: *l11\n")) < 5_000


@pytest.mark.parametrize(
    ("text", "key", "first", "second"),
    [
        (GOOD + "name: other\n", "name", 1, 8),
        (GOOD.replace("    path: events.csv\n", "    path: a.csv\n    path: b.csv\n"), "path", 6, 7),
        (GOOD + "event_weights: {view: 1, cart: 1,\n view: 2}\n", "view", 8, 9),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(refusal, text, key, first, second):
    assert f"key {key!r} on line {second} stands on line {first} already" in refusal(text)


def test_a_shop_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "corner.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ShopFileError, match=r"corner\.yaml: not YAML"):
        load_shop("corner", tmp_path)


@pytest.mark.parametrize("text", ["", "- name\n- source\n", "corner\n"])
def test_a_shop_file_without_keys_is_refused(refusal, text):
    assert "expected keys such as 'name' and 'source'" in refusal(text)


@pytest.mark.parametrize("asked", ["nowhere", "nowhere.yaml", "folder/nowhere.yml"])
def test_a_missing_shop_file_is_named_beside_the_shops_there_are(tmp_path, asked):
    (tmp_path / "corner.yaml").write_text(GOOD)
    with pytest.raises(ShopFileError, match="no such shop file") as error:
        load_shop(asked, tmp_path)
    assert "nowhere.y" in str(error.value)
    assert "['corner']" in str(error.value)


@pytest.mark.parametrize("zone", ["Europe/Londn", "", "/etc/passwd", "../UTC", "BST+1h"])
def test_a_time_zone_nobody_knows_is_refused(refusal, zone):
    message = refusal(described(time_zone=zone))
    assert f"time_zone: {zone!r} is no time zone; expected an IANA name such as UTC or Europe/London" in message


def test_an_archive_end_without_a_zone_is_refused_with_the_one_to_write(refusal):
    message = refusal(described(archive_until="2018-01-01T05:00:00"))
    assert "archive_until: 2018-01-01T05:00:00 has no time zone; write 2018-01-01T05:00:00Z for UTC" in message


def test_an_archive_end_with_a_zone_becomes_utc(tmp_path):
    (tmp_path / "corner.yaml").write_text(GOOD + "archive_until: 2018-06-01T05:00:00+02:00\n")
    assert load_shop("corner", tmp_path).archive_until == datetime(2018, 6, 1, 3, tzinfo=UTC)


@pytest.mark.parametrize("loyal", [3, 2])
def test_tiers_in_the_wrong_order_are_refused(refusal, loyal):
    message = refusal(described(tiers={"loyal": loyal, "warm": 3}))
    assert f"tiers: warm (3) must be less than loyal ({loyal})" in message


def test_items_of_their_own_files_need_the_column_of_their_id(refusal):
    message = refusal(described(**{"source.items.path": "items.csv", "source.items.columns.title": "name"}))
    assert "source.items: items with a path need columns.item_id, the column that holds the item's id" in message


@pytest.mark.parametrize("names", [["user_id"], ["Row"], ["country", "Country"]])
def test_attributes_of_customers_have_names_of_their_own(refusal, names):
    users = {"path": "customers.csv", "columns": {"user_id": "id"}, "attributes": names}
    message = refusal(described(**{"source.users": users}))
    assert f"source.users: attributes: {names[-1]!r} is taken; expected every name once" in message


def test_customers_without_an_attribute_are_refused(refusal):
    users = {"path": "customers.csv", "columns": {"user_id": "id"}, "attributes": []}
    assert "source.users.attributes: " in refusal(described(**{"source.users": users}))


def test_the_weight_of_an_event_type_is_the_shops_own_or_the_default(tmp_path):
    (tmp_path / "corner.yaml").write_text(GOOD + "event_weights: {view: 0.3}\n")
    shop = load_shop("corner", tmp_path)
    assert [shop.weight(kind) for kind in ("view", "purchase", "return")] == [0.3, 1.0, 0.0]


SHOPS = sorted((ROOT / "include" / "shops").glob("*.yaml"))


def test_the_shops_of_the_project_are_these():
    assert {"complete_journey", "online_retail", "amazon_2018", "amazon_2023", "rees46", "movielens", "sql"} <= {
        path.stem for path in SHOPS
    }
    assert Settings().shops == ROOT / "include" / "shops"


@pytest.mark.parametrize("path", SHOPS, ids=lambda path: path.stem)
def test_every_shop_of_the_project_can_be_loaded(path):
    shop = load_shop(path.stem, path.parent)
    assert shop.name == path.stem
    assert shop.time_zone is not None


def test_the_gate_knows_every_metric_of_the_leaderboard():
    assert set(get_args(Metric)) == {f"{name}@{k}" for name in USER_METRICS for k in CUTOFFS}


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("gate.metric", "ndcg", "gate.metric: Input should be 'recall@10', 'ndcg@10'"),
        ("gate.confidence", 95, "gate.confidence: Input should be less than or equal to 0.99, got 95"),
        ("gate.coverage", -0.1, "gate.coverage: Input should be greater than or equal to 0, got -0.1"),
        ("gate.seconds", 0, "gate.seconds: Input should be greater than 0, got 0"),
        ("gate.second", 60, "gate.second: unknown key (did you mean 'seconds'?)"),
    ],
)
def test_a_gate_that_could_not_decide_is_refused(refusal, key, value, fault):
    assert fault in refusal(described(**{key: value}))


def test_a_gate_may_let_challengers_train_for_any_time(tmp_path):
    (tmp_path / "corner.yaml").write_text(f"{GOOD}gate: {{seconds: null, metric: recall@50}}\n")
    gate = load_shop(str(tmp_path / "corner.yaml"), tmp_path).gate
    assert (gate.seconds, gate.metric, gate.confidence, gate.coverage) == (None, "recall@50", 0.95, 0.5)
