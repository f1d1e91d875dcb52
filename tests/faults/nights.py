"""Nights whose steps run in processes of their own, as Airflow runs them, and in which the worst happens at any moment.

A process is forked from a server that has imported everything, so that one costs a hundredth of a second, not twenty.
A *moment* is an event after which the world may look different: a file or connection is about to be opened, renamed,
removed, written by Arrow, synced; a statement goes to MLflow's database, a command to Redis. Moments are counted in a
first run of a step; the same run again can be killed at any of them, or told from there on that the disk is full.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_tasks.contract import PLACEMENTS
from recsys_tasks.lake import CURRENT, MANIFEST, Lake, sha256
from recsys_tasks.night import Night
from recsys_tasks.online_store import _socket
from recsys_tasks.versions import entry, read_lists

PRELOADED = [
    "tests.faults.nights",
    "recsys_tasks.cli",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "torch",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "lightgbm",
    "matplotlib.backends.backend_agg",
    "sklearn",
]
STEPS = (
    "ingest",
    "embed",
    "train",
    "rank",
    "evaluate",
    "promote",
    "publish_index",
    "recommend",
    "check",
    "publish",
    "report",
)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.utime", "os.chmod"}
CHANGES |= {"fcntl.flock", "sqlite3.connect", "subprocess.Popen", "socket.connect"}
CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def take(step: str, night: Night | None, ids: dict[str, Any]) -> Any:
    """Take one step of a night, given what those before it returned; or plan one."""
    from recsys_tasks import check, embed, evaluate, index, ingest, promote, publish, recommend, report, train
    from recsys_tasks.night import plan

    if not night:
        return plan(ids["shop"], ids["as_of"], datetime.now(UTC)).to_dict()

    inputs = ids.get("ingest"), ids.get("embed")
    match step:
        case "ingest":
            return ingest.ingest(night)
        case "embed":
            return embed.embed(night, ids["ingest"])
        case "train":
            return _each(lambda recipe: train.train(night, recipe, *inputs), night.by_stage[0])
        case "rank":
            return train.rank(night, *inputs)
        case "evaluate":
            return evaluate.evaluate(night, *inputs)
        case "promote":
            return promote.promote(night, ids["evaluate"], *inputs)
        case "publish_index":
            return index.publish_index(night, ids["promote"], *inputs)
        case "recommend":
            made = ids["promote"], ids["publish_index"]
            return [recommend.recommend(night, shard, *made, *inputs) for shard in night.shards]
        case "check":
            return check.check(night, ids["recommend"], ids["ingest"])
        case "publish":
            return publish.publish(night, ids["recommend"], ids["promote"], ids["evaluate"], ids["ingest"])
        case "report":
            names = ("ingest", "evaluate", "promote", "publish_index", "check", "publish")
            return report.report(night, *(ids[name] for name in names))
    raise ValueError(step)


def _each(task: Callable[[str], str], mapped: list[str]) -> list[str]:
    """Do all mapped tasks, whatever one of them does."""
    found, errors = [], []
    for argument in mapped:
        try:
            found.append(task(argument))
        except Exception as error:  # noqa: BLE001 - it is raised below
            errors.append(error)
    if errors:
        raise errors[0]
    return found


# ---- in the process of a step


class Moments:
    """Counts the moments of this process under a folder, and at one of them does what was asked for."""

    def __init__(self, folder: Path, act: str, at: int = 1 << 60, is_torn: bool = False) -> None:
        self.folder, self.act, self.at, self.is_torn = str(folder), ACTS[act], at, is_torn
        self.names: list[str] = []
        self.is_busy = False

    def happens(self, name: str, target: Any = "") -> None:
        """Note a moment; ``name`` ends in ``!`` where something is about to change."""
        if not self.is_busy:
            self.names.append(name)
            if len(self.names) > self.at:
                self.is_busy = True
                try:
                    self.act(self, name, target)
                finally:
                    self.is_busy = False

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event of Python (PEP 578)."""
        if event == "open" and isinstance(arguments[0], str | os.PathLike | bytes):
            path, _, flags = arguments
            if os.fsdecode(path).startswith(self.folder):
                self.happens("open!" if flags & CREATES else "open", (os.fsdecode(path), flags))
        elif event in CHANGES:
            self.happens(f"{event}!")

    def before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is a moment, too."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.happens(name)
            return function(*arguments, **options)

        return wrapped

    def listen(self, stack: ExitStack) -> None:
        """Begin to count."""
        from sqlalchemy import Engine, event

        from recsys_tasks import check
        from recsys_tasks.online_store import OnlineStore

        connect = check._connect
        stack.enter_context(patch.object(check, "_connect", lambda *given: Asked(connect(*given), self)))
        for owner, function in (
            (pq, "write_table"),
            (pq.ParquetWriter, "write_table"),
            (OnlineStore, "_send"),
            (redis.Redis, "execute_command"),
            (os, "fsync"),
        ):
            name = f"{getattr(owner, '__name__', owner)}.{function}!"
            stack.enter_context(patch.object(owner, function, self.before(name, getattr(owner, function))))
        event.listen(Engine, "commit", lambda connection: self.happens("sqlite commit!"))
        event.listen(Engine, "before_cursor_execute", lambda *given: self.happens(f"sqlite {given[2].split()[0]}!"))
        sys.addaudithook(self.heard)


class Asked:
    """A connection of DuckDB each of whose methods is a moment."""

    def __init__(self, connection: Any, moments: Moments) -> None:
        self.connection, self.moments = connection, moments

    def __getattr__(self, name: str) -> Any:
        return self.moments.before("duckdb", getattr(self.connection, name))

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def killed(moments: Moments, name: str, target: Any) -> None:
    """End this process, before or (where a file is created or emptied) after what was about to happen."""
    if moments.is_torn and name == "open!":
        os.close(os.open(*target))
    os.kill(os.getpid(), signal.SIGKILL)


def killed_with_redis(moments: Moments, name: str, target: Any) -> None:
    """End this process and the embedded Valkey, as when the machine goes down."""
    _end_redis(signal.SIGKILL)
    killed(moments, name, target)


def redis_killed(moments: Moments, name: str, target: Any) -> None:
    """End the embedded Valkey alone, once."""
    if len(moments.names) == moments.at + 1:
        _end_redis(signal.SIGKILL)


def disk_full(moments: Moments, name: str, target: Any) -> None:
    """Refuse from now on to write."""
    if name in ("open!", "os.mkdir!", "os.link!", "os.fsync!") or "write_table" in name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target[0] if target else None)


ACTS = {act.__name__: act for act in (killed, killed_with_redis, redis_killed, disk_full)}


def _step(
    step: str, home: str, night: dict[str, Any] | None, ids: dict[str, Any], fault: dict[str, Any], told: str
) -> None:
    """Run in the forked process; write what came of it, where it lives to tell."""
    import logging

    logging.disable(logging.WARNING)
    os.environ["NIGHTCART_HOME"] = home
    os.environ.update(fault.pop("environment", {}))
    tempfile.tempdir = fault.pop("temporary")
    moments = Moments(Path(home).parent, **{"act": "killed", **fault})
    with ExitStack() as stack:
        moments.listen(stack)
        try:
            found = {"result": take(step, Night(**night) if night else None, ids)}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what a person gets to see
            found = {"error": type(error).__name__, "message": str(error)}
        moments.is_busy = True
    found["moments"] = moments.names
    Path(told).write_text(json.dumps(found))


# ---- in the process of the test


class Theatre:
    """A home, and processes that take steps of its nights."""

    def __init__(self, folder: Path, scratch: Path | None = None) -> None:
        self.folder, self.home, self.scratch = folder, folder / "home", scratch or folder
        (self.scratch / "tmp").mkdir(parents=True)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    @property
    def lake(self) -> Lake:
        """The lake of the home."""
        return Lake(self.home / "lake")

    def plan(self, shop: str, as_of: str) -> Night:
        """Plan a night."""
        return Night(**self.step("plan", None, {"shop": shop, "as_of": as_of})["result"])

    def step(self, step: str, night: Night | None, ids: dict[str, Any], **fault: Any) -> dict[str, Any] | None:
        """Take a step; return what it told, or None where it was killed."""
        told = self.scratch / "told"
        told.unlink(missing_ok=True)
        fault = {"temporary": str(self.scratch / "tmp"), **fault}
        arguments = (step, str(self.home), night and night.to_dict(), ids, fault, str(told))
        process = self.context.Process(target=_step, args=arguments)
        process.start()
        process.join(120)
        if process.exitcode == -signal.SIGKILL:
            assert not told.exists()
            return None
        assert process.exitcode == 0, process.exitcode
        return json.loads(told.read_text())

    def whole(self, night: Night) -> dict[str, Any]:
        """Take every step of a night."""
        ids: dict[str, Any] = {}
        for step in STEPS:
            found = self.step(step, night, ids)
            assert "error" not in found, found
            ids[step] = found["result"]
        return ids

    def keep(self, name: str) -> None:
        """Put a copy of the home aside, as it is between two steps."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.home, self.folder / name, ignore=shutil.ignore_patterns("*.sock"))

    def back_to(self, name: str) -> None:
        """Make the home what it was."""
        _end_redis(signal.SIGKILL, self.home)
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / name, self.home)

    def expire_drafts(self) -> None:
        """Let drafts, and the temporary folders of the home's processes, be old."""
        with patch.object(tempfile, "tempdir", str(self.scratch / "tmp")):
            self.lake.expire([], days=-1)

    def end(self) -> None:
        """End a Valkey that a killed night left behind."""
        _end_redis(signal.SIGKILL, self.home)


def _client(home: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(_socket(home.absolute() / "valkey")), retry=Retry(NoBackoff(), 0))


def _end_redis(how: signal.Signals, home: Path | None = None) -> None:
    with _client(home or Path(os.environ["NIGHTCART_HOME"])) as client:
        try:
            os.kill(client.info("server")["process_id"], how)
        except (redis.ConnectionError, FileNotFoundError):
            return
        while True:  # until it is gone
            try:
                client.ping()
            except redis.ConnectionError:
                return


# ---- what there is to see


def readers_see(home: Path, shop: str = "tiny") -> list[str]:
    """Return the versions that Redis and the placements' tables show, in the order in which they move; each whole."""
    from recsys_tasks.online_store import open_store
    from recsys_tasks.settings import Settings

    lake, seen = Lake(home / "lake"), []
    with _client(home) as client:
        try:
            client.ping()
            _whole_in_redis(client, lake, shop, seen)
        except redis.ConnectionError:  # nobody serves between two nights of an embedded store: who asks starts it
            with open_store(Settings(home=home, redis_url=None), shop) as store:
                _whole_in_redis(store.client, lake, shop, seen)
    for placement in PLACEMENTS:
        version = lake.current(f"recommendations/{placement}")["version"]
        manifest = lake.manifest(entry(placement, version))
        for file in manifest["files"]:
            assert sha256(lake.path(entry(placement, version)) / file["name"]) == file["sha256"]
        seen.append(version)
    return seen


def _whole_in_redis(client: redis.Redis, lake: Lake, shop: str, seen: list[str]) -> None:
    version = client.get(f"nightcart:{shop}:current").decode()
    for placement in PLACEMENTS:
        lists = list(read_lists(lake, placement, version))
        found = client.mget([f"nightcart:{shop}:{version}:{placement}:{reader}" for reader, _ in lists])
        assert [json.loads(text) for text in found] == [items for _, items in lists]
    seen.append(version)


TIMES = {"seconds", "at", "from", "to", "steps"}
"""What two runs of the same night tell differently: how long it took, and when a version began to serve."""
_REPORT = re.compile(r"(reports/\d{8}T\d{6}-)[0-9a-f]{16}")
"""A report tells times, and is named by what it tells."""
_TOOK = re.compile(r"[\d,]+ s( of at most [\d,]+)? to train and score")


def contents(home: Path) -> dict[str, str]:
    """Return a digest of each file of a home's lake, without what differs between two runs of the same night.

    That is: in JSON ``TIMES`` and the sentence of the gate on time; the name of a report, and its page, which is
    written from it. Drafts are no content.
    """
    found = {}
    for path in sorted((home / "lake").rglob("*")):
        name = str(path.relative_to(home / "lake"))
        if path.is_file() and not name.startswith(".drafts"):
            found[_REPORT.sub(r"\1", name)] = _digest(path)
    return found


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".html":
        return "a page"
    if path.suffix in (".json", ".jsonl"):
        told = [
            _timeless(json.loads(line)) for line in (content.splitlines() if path.suffix == ".jsonl" else [content])
        ]
        content = _TOOK.sub("", _REPORT.sub(r"\1", json.dumps(told, sort_keys=True))).encode()
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def tracked(home: Path) -> list[tuple[Any, ...]]:
    """Return what MLflow holds of a shop: its runs with what they tell, its versions and aliases."""
    with sqlite3.connect(f"file:{home / 'mlflow.db'}?mode=ro", uri=True) as db:
        found = []
        for sql in (
            "SELECT r.name, r.status, r.lifecycle_stage, (SELECT group_concat(k) FROM (SELECT key || '=' || value AS k "
            "FROM params p WHERE p.run_uuid = r.run_uuid ORDER BY 1)), (SELECT group_concat(k) FROM (SELECT key || "
            "step AS k FROM metrics m WHERE m.run_uuid = r.run_uuid AND key <> 'seconds' ORDER BY 1)) FROM runs r",
            "SELECT t.value, v.status FROM model_versions v JOIN model_version_tags t USING (name, version) "
            "WHERE t.key = 'recipe'",
            "SELECT alias, t.value FROM registered_model_aliases a JOIN model_version_tags t "
            "ON t.name = a.name AND t.version = a.version WHERE t.key IN ('recipe', 'night')",
        ):
            found += sorted(db.execute(sql).fetchall())
    return found


def left_over(home: Path) -> Iterator[str]:
    """Yield hidden files of a lake, and drafts: what a killed process left behind."""
    for path in sorted((home / "lake").rglob("*")):
        if path.name.startswith(".") and path.name not in (".drafts", ".lock"):
            yield str(path.relative_to(home / "lake"))
    for path in (home / "lake" / ".drafts").iterdir():
        yield str(path.relative_to(home / "lake"))


def manifests(lake: Lake) -> list[Path]:
    """Return the manifests and pointers of a lake."""
    return sorted([*lake.root.rglob(MANIFEST), *lake.root.rglob(CURRENT)])
