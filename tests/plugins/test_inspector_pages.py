"""The inspector's pages, over what the inspector says of two versions; names in it are as hostile as can be."""

from html import unescape
from urllib.parse import quote

import pytest

from recsys_tasks import inspector
from recsys_tasks.errors import NothingInLake
from tests.plugins.conftest import EVIL

IDS = ["o'brien", 'a"b', "a/b", "../..", "%2F", "ünï 漢", "a&b=c#d?e", EVIL, "+1"]


def a_row(rank, item, **more):
    return {
        "rank": rank,
        "item_id": item,
        "title": f"title of {item}",
        "category": "TOYS",
        "price": 1.5,
        "score": 0.25,
        "source": "ease",
        "reason": f"because of {EVIL}",
        "because": "b'1",
        "sources": {"ease": {"rank": 3, "score": 0.125}},
        "ranker": {"rank": 2, "score": 2.5},
        "agent": None,
        "note": None,
        **more,
    }


@pytest.fixture
def told(two_versions, monkeypatch):
    """The inspector's answers; ``told`` collects what it was asked."""
    older, newer = two_versions
    asked = []

    def customer(lake, shop, user_id, version=None):
        asked.append((shop.name, user_id, version))
        if user_id == "nobody":
            raise NothingInLake("there is no customer 'nobody'; ids are compared as text")
        lists = {
            newer: [a_row(1, EVIL), a_row(2, "new", agent={"rank": 1, "q": 0.75}, note="moved up by a rule")],
            older: [a_row(1, "old"), a_row(2, EVIL)],
        }[version or newer]
        left = [
            a_row(
                None,
                "left",
                sources={"ease": {"rank": 1, "score": 0.5}, "popular": {"rank": 9, "score": 7.0}},
                ranker=None,
            )
        ]
        return {
            "user_id": user_id,
            "version": version or newer,
            "as_of": "2017-12-05T00:00:00+00:00",
            "tier": "loyal",
            "history": [
                {
                    "time": "2017-12-04T10:30:00+00:00",
                    "type": "purchase",
                    "item_id": "h",
                    "title": EVIL,
                    "category": None,
                    "price": None,
                }
            ],
            "n_events": 1234,
            "placements": {"home": {"champion": "ranker", "model": "models/x", "list": lists, "left_out": left}},
        }

    def item(lake, shop, item_id, version=None):
        asked.append((shop.name, item_id, version))
        return {
            "item_id": item_id,
            "title": EVIL,
            "category": ["A", "B"],
            "brand": EVIL,
            "price": None,
            "available": False,
            "version": version or newer,
            "n_events": 10_000,
            "n_buyers": 7,
            "listed": {"home": 12, "discover": 0},
            "similar": [{"rank": 1, "item_id": 'x"y', "title": None, "score": 0.5, "reason": EVIL}],
        }

    def search(lake, shop, text, limit=20):
        asked.append((shop.name, text, None))
        items = [{"item_id": i, "title": i, "category": None, "brand": None, "price": 2.0} for i in IDS]
        return {"customers": [{"user_id": i, "tier": None} for i in IDS], "items": items}

    for function in (customer, item, search):
        monkeypatch.setattr(inspector, function.__name__, function)
    return asked


def links(text, page):
    return [unescape(part.split('"')[0]) for part in text.split(f'href="/recsys/{page}?id=')[1:]]


def test_a_search_lists_customers_and_items_and_nothing_before_it(client, told, viewer):
    assert "<table" not in client.get("/recsys/inspector", headers=viewer).text
    assert told == []
    text = client.get("/recsys/inspector", params={"q": f" {EVIL} "}, headers=viewer).text
    assert told == [("corner", EVIL, None)]
    assert EVIL not in text
    assert links(text, "customer") == links(text, "item") == [quote(i, safe="") for i in IDS]


def test_nothing_found_is_said(client, told, viewer, monkeypatch):
    monkeypatch.setattr(inspector, "search", lambda *_: {"customers": [], "items": []})
    text = client.get("/recsys/inspector?q=x", headers=viewer).text
    assert "No customer&#39;s id begins with this" in text or "No customer's id begins with this" in text
    assert "No item's id begins with this" in text


@pytest.mark.parametrize("user_id", IDS)
def test_a_customers_page_is_found_by_any_id_and_escapes_all(client, told, viewer, user_id):
    answer = client.get(f"/recsys/customer?id={quote(user_id, safe='')}", headers=viewer)
    assert answer.status_code == 200
    assert told == [("corner", user_id, None)]
    assert EVIL not in answer.text
    assert f"Customer {user_id}</h1>" in unescape(answer.text)


def test_a_customers_page_tells_what_each_part_said_and_what_was_left_out(client, told, viewer):
    text = client.get("/recsys/customer?id=1", headers=viewer).text
    made, left, history = text.split("<table")[1:]
    assert "<small>champion ranker</small>" in text
    assert '<th class="n group">ease</th><th class="n group">popular</th><th class="n group">ranker</th>' in made
    assert "#3 <small>0.125</small>" in made
    assert "#2 <small>2.5</small>" in made
    assert "#1 <small>0.75</small>" in made
    assert "moved up by a rule" in made
    assert "#9 <small>7</small>" in left
    assert "2017-12-04 10:30 UTC" in history
    assert "the newest 1 of 1,234 events" in text


def test_two_versions_stand_side_by_side_with_where_each_item_went(client, told, two_versions, viewer):
    older, newer = two_versions
    text = client.get("/recsys/customer", params={"id": "1", "version": newer, "beside": older}, headers=viewer).text
    here, there, _ = text.split("<table")[1:]
    assert (f'aria-label="home of {newer}"' in here, f'aria-label="home of {older}"' in there) == (True, True)
    assert here.index("#2") < here.index(">only<")
    assert there.index(">only<") < there.index("#1")
    assert [version for _, _, version in told] == [newer, older]


@pytest.mark.parametrize("version", ["../../secret", "gone", EVIL])
def test_a_version_that_is_not_kept_is_not_asked_for(client, told, viewer, version):
    for path, name in (("customer", "version"), ("customer", "beside"), ("item", "version")):
        answer = client.get(f"/recsys/{path}", params={"id": "1", name: version}, headers=viewer)
        assert answer.status_code == 404
        assert "keeps no version" in answer.json()["detail"]
    assert told == []


def test_an_unknown_customer_is_told_in_words(client, told, viewer):
    answer = client.get("/recsys/customer?id=nobody", headers=viewer | {"accept": "text/html"})
    assert answer.status_code == 404
    assert "ids are compared as text" in answer.text


def test_an_items_page_tells_how_many_lists_hold_it_and_what_is_like_it(client, told, viewer):
    text = client.get("/recsys/item", params={"id": 'x"y'}, headers=viewer).text
    assert EVIL not in text
    for shown in (
        "A / B",
        "10,000",
        "In lists, home</dt><dd>12",
        "In lists, discover</dt><dd>0",
        "Available</dt><dd>no",
    ):
        assert shown in text
    assert links(text, "item")[0].startswith(quote('x"y', safe=""))
