"""What a shop's page reads from Redis: the old night until the new one is whole, then the new one. On a real Valkey."""

import json
import os
import signal

import pyarrow as pa
import pytest
import redis

from recsys_tasks import online_store
from recsys_tasks.errors import ContractError, TemporarilyUnavailable
from recsys_tasks.online_store import GRACE_SECONDS, OnlineStore, open_store
from recsys_tasks.settings import Settings

ONE = [("u1", ["a", "b"]), ("u2", ["c"])]
TWO = [("u1", ["z"]), ("u3", ["y", "x"])]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One embedded Valkey for the tests that do not need their own."""
    with open_store(Settings(home=tmp_path_factory.mktemp("home"), redis_url=None), "corner") as store:
        yield store.client


@pytest.fixture
def store(server):
    """An empty store."""
    server.flushall()
    return OnlineStore(server, "corner")


def as_lists(pairs):
    """A block as a file of the lake gives it."""
    readers, items = ([pair[n] for pair in pairs] for n in (0, 1))
    yield pa.array(readers, pa.string()), pa.array(items, pa.list_(pa.string()))


def publish(store, version, lists, placement="home"):
    store.load(version, placement, as_lists(lists))
    store.seal(version)
    store.activate(version)


def keys(store, version):
    return sorted(key.decode() for key in store.client.scan_iter(match=f"{store.prefix}:{version}:*"))


def test_before_the_first_night_there_is_nothing_to_read(store):
    assert store.current() is None
    assert store.get("home", "u1") is None
    assert not store.has("1")


def test_a_reader_needs_two_gets_of_documented_keys(store):
    publish(store, "20200101T000000Z-abc", ONE)
    version = store.client.get("nightcart:corner:current").decode()
    assert version == "20200101T000000Z-abc"
    assert json.loads(store.client.get(f"nightcart:corner:{version}:home:u1")) == ["a", "b"]


def test_readers_see_the_old_version_until_the_new_one_is_activated(store):
    publish(store, "1", ONE)
    assert store.load("2", "home", as_lists(TWO)) == 2
    assert (store.current(), store.get("home", "u1"), store.get("home", "u3")) == ("1", ["a", "b"], None)
    store.seal("2")
    assert (store.current(), store.get("home", "u1")) == ("1", ["a", "b"])
    store.activate("2")
    assert (store.current(), store.get("home", "u1"), store.get("home", "u2")) == ("2", ["z"], None)


def test_a_version_is_there_when_it_is_sealed_and_not_before(store):
    store.load("1", "home", as_lists(ONE))
    assert not store.has("1")
    store.seal("1")
    assert store.has("1")


def test_every_list_of_a_large_version_is_loaded(store):
    lists = [(f"u{n}", [f"i{n}", f"i{n + 1}"]) for n in range(2500)]
    assert store.load("1", "home", as_lists(lists)) == 2500
    assert store.load("1", "discover", as_lists([])) == 0
    store.seal("1")
    store.activate("1")
    assert [store.get("home", user) for user, _ in lists[::499]] == [items for _, items in lists[::499]]


def test_ids_and_items_of_any_text_come_back_as_they_were(store):
    lists = [("ü:1 *?[x]", ['"quoted"', "a,b", "ж"]), ("", [])]
    publish(store, "1", lists)
    assert [store.get("home", user) for user, _ in lists] == [items for _, items in lists]


def test_placements_and_shops_do_not_meet(store):
    publish(store, "1", ONE)
    store.load("1", "similar", as_lists([("u1", ["other"])]))
    neighbour = OnlineStore(store.client, "corner2")
    publish(neighbour, "1", TWO)
    assert (store.get("home", "u1"), store.get("similar", "u1"), neighbour.get("home", "u1")) == (
        ["a", "b"],
        ["other"],
        ["z"],
    )
    neighbour.drop("1")
    assert store.get("home", "u1") == ["a", "b"]


def test_the_version_before_expires_after_a_day_and_the_current_one_never(store):
    publish(store, "1", ONE)
    assert {store.client.ttl(key) for key in keys(store, "1")} == {-1}
    publish(store, "2", TWO)
    assert len(keys(store, "1")) == 3
    assert all(GRACE_SECONDS - 60 < store.client.ttl(key) <= GRACE_SECONDS for key in keys(store, "1"))
    assert {store.client.ttl(key) for key in keys(store, "2")} == {-1}
    assert not store.has("1")  # what expires soon must be loaded again before it can be current


def test_activating_the_current_version_again_does_not_let_it_expire(store):
    publish(store, "1", ONE)
    store.activate("1")
    assert {store.client.ttl(key) for key in keys(store, "1")} == {-1}


def test_a_version_that_was_about_to_expire_can_be_made_current_again(store):
    publish(store, "1", ONE)
    publish(store, "2", TWO)
    publish(store, "1", ONE)
    assert (store.current(), store.get("home", "u1")) == ("1", ["a", "b"])
    assert {store.client.ttl(key) for key in keys(store, "1")} == {-1}
    assert all(store.client.ttl(key) > 0 for key in keys(store, "2"))


def test_dropping_a_version_removes_every_key_of_it_and_nothing_else(store):
    publish(store, "1", ONE)
    publish(store, "10", TWO)
    store.drop("1")
    assert keys(store, "1") == []
    assert len(keys(store, "10")) == 3
    store.drop("never")
    assert store.get("home", "u1") == ["z"]


def test_the_lists_survive_the_end_of_the_embedded_server(home):
    with open_store(Settings(), "corner") as store:
        publish(store, "1", ONE)
        process = store.client.info("server")["process_id"]
    with open_store(Settings(), "corner") as store:
        assert store.client.info("server")["process_id"] != process
        assert (store.current(), store.get("home", "u1"), store.has("1")) == ("1", ["a", "b"], True)


def test_a_second_opening_meets_the_server_that_runs_and_another_home_has_its_own(home, store):
    publish(store, "other home", TWO)
    with open_store(Settings(), "corner") as first:
        assert first.current() is None
        publish(first, "1", ONE)
        with open_store(Settings(), "corner") as second:
            assert second.get("home", "u1") == ["a", "b"]
        assert first.get("home", "u1") == ["a", "b"]  # the second left it running


def test_a_home_of_any_depth_can_hold_the_embedded_server(tmp_path, home):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with open_store(Settings(home=deep), "corner") as store:
        publish(store, "1", ONE)
        assert store.get("home", "u2") == ["c"]
    assert any((deep / "valkey").iterdir())


def test_a_configured_redis_is_used_instead_of_the_embedded_one(store, home):
    path = store.client.connection_pool.connection_kwargs["path"]
    publish(store, "1", ONE)
    with open_store(Settings(home=home / "unused", redis_url=f"unix://{path}"), "corner") as other:
        assert other.get("home", "u1") == ["a", "b"]
    assert not (home / "unused").exists()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:1/0",
        "redis://user:hunter2@127.0.0.1:1",
        "redis://:h@nter2@127.0.0.1:1",
        "redis://127.0.0.1:1/0?password=hunter2",
    ],
)
def test_a_redis_that_does_not_answer_is_named_without_its_password(home, url):
    with pytest.raises(TemporarilyUnavailable) as error, open_store(Settings(redis_url=url), "corner") as store:
        store.current()
    assert "127.0.0.1:1" in str(error.value)
    assert "did not answer" in str(error.value)
    assert "NIGHTCART_REDIS_URL" in str(error.value)
    assert "nter2" not in str(error.value)


def test_an_address_that_is_no_redis_is_named_without_its_password(home):
    with (
        pytest.raises(ContractError, match="expected redis://") as error,
        open_store(Settings(redis_url="http://:hunter2@shop.example"), "corner"),
    ):
        pass
    assert "hunter2" not in str(error.value)


def test_a_home_with_a_space_or_a_very_long_path_has_a_store(home, tmp_path):
    for name in ("a home", "h" * 120):
        with open_store(Settings(home=tmp_path / name), "corner") as store:
            store.load("v1", "home", as_lists([("u", ["a"])]))
            store.activate("v1")
        with open_store(Settings(home=tmp_path / name), "corner") as store:
            assert store.get("home", "u") == ["a"]


def killed(store):
    """Lists of a night whose server is killed in the middle."""
    yield from as_lists(TWO)
    os.kill(store.client.info("server")["process_id"], signal.SIGKILL)
    yield from as_lists(ONE)


def test_a_server_that_dies_while_loading_keeps_the_old_version_and_the_next_try_ends_well(home):
    with open_store(Settings(), "corner") as store:
        publish(store, "1", ONE)
    with (
        pytest.raises(TemporarilyUnavailable, match="embedded Valkey did not answer"),
        open_store(Settings(), "corner") as store,
    ):
        store.load("2", "home", killed(store))
    with open_store(Settings(), "corner") as store:
        assert (store.current(), store.get("home", "u1"), store.has("2")) == ("1", ["a", "b"], False)
        publish(store, "2", TWO)
        assert (store.current(), store.get("home", "u1"), store.has("2")) == ("2", ["z"], True)


def test_a_server_that_came_back_empty_while_loading_is_not_taken_for_a_whole_one(home):
    with open_store(Settings(), "corner") as store:
        store.load("2", "home", as_lists(ONE))
        os.kill(store.client.info("server")["process_id"], signal.SIGKILL)
        online_store._start(home / "valkey", online_store._socket(home / "valkey"))
        store.load("2", "discover", as_lists(TWO))
        with pytest.raises(redis.ConnectionError, match="restarted while version 2 was loaded"):
            store.seal("2")
        assert not store.has("2")
        publish(store, "2", TWO)
        assert (store.has("2"), store.get("home", "u3")) == (True, ["y", "x"])


def test_a_server_that_refuses_part_of_the_lists_says_so(home, server):
    server.flushall()
    path = server.connection_pool.connection_kwargs["path"]

    def lists():
        yield from as_lists(ONE)
        server.config_set("maxmemory", "1")
        yield from as_lists(TWO)

    try:
        with (
            pytest.raises(ContractError, match="refused a command: command not allowed"),
            open_store(Settings(redis_url=f"unix://{path}"), "corner") as store,
        ):
            store.load("1", "home", lists())
    finally:
        server.config_set("maxmemory", "0")
    publish(OnlineStore(server, "corner"), "1", TWO)
    assert OnlineStore(server, "corner").get("home", "u1") == ["z"]


def test_what_a_cut_off_load_left_behind_goes_with_the_first_version_a_day_later(store, monkeypatch):
    store.load("lost", "home", as_lists(ONE))
    publish(store, "1", ONE)
    assert len(keys(store, "lost")) == 2  # somebody may be loading it now
    monkeypatch.setattr(online_store, "GRACE_SECONDS", -1)
    store.activate("1")
    assert keys(store, "lost") == []
    assert not store.client.exists(f"{store.prefix}:loading")
    assert store.get("home", "u1") == ["a", "b"]


def test_a_user_who_may_not_ask_for_info_can_load(store, home):
    path = store.client.connection_pool.connection_kwargs["path"]
    store.client.acl_setuser(
        "loader", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all", "-@dangerous"]
    )
    with open_store(Settings(redis_url=f"unix://loader:secret@{path}"), "corner") as loader:
        publish(loader, "1", ONE)
        publish(loader, "2", TWO)
        assert (loader.get("home", "u1"), loader.has("2"), loader.has("1")) == (["z"], True, False)
