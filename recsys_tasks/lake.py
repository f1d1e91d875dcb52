"""Versioned storage, the place where steps meet.

Everything a step makes is an *entry*: a folder ``<lake>/<kind>/<key>/`` whose key is a fingerprint of all that went
into it. An entry is written elsewhere and appears by one rename, so it is either absent or complete; a step that finds
its entry does nothing. ``_MANIFEST.json`` in the folder says what it was made from.
"""

import ctypes
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_tasks.errors import NothingInLake, TemporarilyUnavailable

MANIFEST = "_MANIFEST.json"
CURRENT = "_CURRENT.json"
TEMPORARY = "nightcart-"
"""What the names of temporary folders begin with."""
_READABLE = 100_000
"""Longer manifests are for programs, which write them ten times as fast without line ends."""
_GROUP_ROWS = 262_144
"""Rows of a Parquet row group, where a table is written batch by batch."""


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change when any of ``inputs`` (JSON values) or the product's code changes."""
    text = json.dumps({"code": code_fingerprint(), **inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_fingerprint() -> str:
    """Return 16 hexadecimal digits of the product's own source."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_json(target: Path, content: Mapping[str, Any], drafts: Path | None = None) -> None:
    """Replace a file at one instant: a reader sees the old content or the new.

    It is written in ``drafts``, on the same disk, where somebody removes what a killed process leaves; else beside it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = (drafts or target.parent) / f".{target.name}.{os.getpid()}"
    with draft.open("w") as file:
        file.write(json.dumps(content, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)


def shard_of(identifier: str, n: int) -> int:
    """Return which of n parts an id belongs to: a hash of the id decides, so it never changes.

    >>> [shard_of(name, 3) for name in ("a", "b", "c", "d")]
    [2, 2, 1, 2]

    """
    digest = hashlib.blake2b(identifier.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % n


def write_table(table: pa.Table, path: Path, group_rows: int | None = None, dictionary_bytes: int = 1 << 20) -> None:
    """Write Parquet in the one way of the lake: zstd, no dictionary on floats, nothing of this machine in the bytes.

    Of a sorted table in small row groups a reader finds a row without reading the others. A column whose distinct
    values take more than ``dictionary_bytes`` in a row group has the rest of them written out in every row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**_parquet(table.schema), "dictionary_pagesize_limit": dictionary_bytes}
    pq.write_table(_bare(table), path, row_group_size=group_rows, **options)


def write_batches(batches: Iterable[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Write the same way what is too large for memory, however it is cut; return the number of rows."""
    written, held, rows = 0, [schema.empty_table()], 0
    with pq.ParquetWriter(path, schema, **_parquet(schema)) as writer:
        for batch in batches:
            held.append(batch)
            rows += batch.num_rows
            while rows >= _GROUP_ROWS:
                table = pa.concat_tables(held)
                writer.write_table(_bare(table.slice(0, _GROUP_ROWS)))
                held, rows, written = [table.slice(_GROUP_ROWS)], rows - _GROUP_ROWS, written + _GROUP_ROWS
        if rows:
            writer.write_table(_bare(pa.concat_tables(held)))
    return written + rows


def table_bytes(table: pa.Table) -> bytes:
    """Return what ``write_table`` writes."""
    target = io.BytesIO()
    pq.write_table(_bare(table), target, **_parquet(table.schema))
    return target.getvalue()


def _bare(table: pa.Table) -> pa.Table:
    """The table without what its rows do not tell: metadata, and where it was cut, which would move Parquet's pages."""
    return table.combine_chunks().replace_schema_metadata(None)


def _parquet(schema: pa.Schema) -> dict[str, Any]:
    columns = [column for field in schema for column in _columns(field.name, field.type)]
    floats = [name for name, kind in columns if pa.types.is_floating(kind)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name, _ in columns if name not in floats],
        "use_byte_stream_split": floats,
    }


def _columns(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yield the columns that Parquet keeps of a field, whose values may be lists and structs of others."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _columns(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind):
        yield from _columns(f"{name}.list.element", kind.value_type)
    else:
        yield name, kind


def _exchange(draft: Path, final: Path) -> None:
    """Swap two folders at one instant; where the system or the disk cannot, file by file, the manifest last."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE; see renameat2(2)
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename and rename(here, os.fsencode(draft.absolute()), here, os.fsencode(final.absolute()), swap) == 0:
        return
    for path in sorted(draft.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(final / path.name)


class Lake:
    """A folder of entries.

    Parameters
    ----------
    root
        The folder; made when the first entry is written.

    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, entry: str) -> Path:
        """Return the folder of an entry, named ``kind/key``."""
        return self.root / entry

    def has(self, entry: str) -> bool:
        """Tell whether the entry is there, and so complete; being asked for is a use, and spares it from ``expire``."""
        if not (self.path(entry) / MANIFEST).is_file():
            return False
        os.utime(self.path(entry))
        return True

    def manifest(self, entry: str) -> dict[str, Any]:
        """Return what an entry was made from and what it holds.

        Raises
        ------
        NothingInLake
            There is no such entry.

        """
        try:
            return json.loads((self.path(entry) / MANIFEST).read_text())
        except FileNotFoundError as error:
            raise NothingInLake(
                f"{self.path(entry)} is not in the lake; run the step {entry.split('/')[0]!r} comes from (or the night)"
            ) from error

    @contextmanager
    def create(self, entry: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """Give a folder to fill; it becomes the entry when the block ends well and vanishes when it does not.

        ``manifest`` is written at the end of the block, so the block may add to it.
        """
        final = self.path(entry)
        with self._draft(final.name, manifest) as draft:
            yield draft
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(final)
        except OSError:
            if not self.has(entry):
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def rewrite(self, entry: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """Give a folder to fill as ``create`` does; it takes the place of the entry that is there, at one instant."""
        final = self.path(entry)
        with self._draft(final.name, manifest) as draft:
            yield draft
        try:
            _exchange(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def _draft(self, name: str, manifest: dict[str, Any]) -> Iterator[Path]:
        """Give a folder that ends up with the manifest; it goes where the block fails."""
        draft = Path(tempfile.mkdtemp(prefix=name + "-", dir=self.drafts()))
        draft.chmod(0o755)
        try:
            yield draft
            text = json.dumps(manifest, sort_keys=True)
            if len(text) < _READABLE:
                text = json.dumps(manifest, indent=1, sort_keys=True)
            (draft / MANIFEST).write_text(text + "\n")
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def add_file(self, folder: str, content: bytes) -> tuple[str, str]:
        """Put a Parquet file named by its content into a folder, at one instant; return its name and SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        name = f"{folder}/{digest[:16]}.parquet"
        target = self.root / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = self.drafts() / f"{target.parent.name}-{target.name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.replace(target)
        return name, digest

    def point(self, folder: str, content: Mapping[str, Any]) -> None:
        """Replace ``<folder>/_CURRENT.json`` at one instant: a reader sees the old content or the new."""
        replace_json(self.root / folder / CURRENT, content, self.drafts())

    def unpoint(self, folder: str) -> None:
        """Remove ``<folder>/_CURRENT.json`` where it is there."""
        (self.root / folder / CURRENT).unlink(missing_ok=True)

    def current(self, folder: str) -> dict[str, Any] | None:
        """Return what ``<folder>/_CURRENT.json`` holds, or None where nothing was pointed at yet."""
        try:
            return json.loads((self.root / folder / CURRENT).read_text())
        except FileNotFoundError:
            return None

    def entries(self, kind: str) -> list[str]:
        """Return the entries of a kind, by name."""
        return sorted(f"{kind}/{path.parent.name}" for path in (self.root / kind).glob(f"*/{MANIFEST}"))

    def newest(self, kind: str) -> list[str]:
        """Return the three entries of a kind that were made or used last, the newest at the end.

        A step may take parts of them where that gives the same bytes as making them again.
        """
        return sorted(self.entries(kind), key=lambda entry: self.path(entry).stat().st_mtime)[-3:]

    def changed(self, entry: str) -> list[str]:
        """Return the files of an entry that are not what its manifest says under ``files``, by name and SHA-256."""
        told = ((self.path(entry) / file["name"], file["sha256"]) for file in self.manifest(entry).get("files", ()))
        return [path.name for path, digest in told if not path.is_file() or sha256(path) != digest]

    def drop(self, entry: str) -> None:
        """Remove an entry: first from sight by one rename, then from disk."""
        grave = Path(tempfile.mkdtemp(prefix="dropped-", dir=self.drafts()))
        if self.path(entry).exists():
            self.path(entry).rename(grave / "entry")
        shutil.rmtree(grave, ignore_errors=True)

    def expire(self, kinds: Sequence[str], days: float) -> list[str]:
        """Drop the entries of these kinds that nobody has used for so many days, and return their names.

        Any of them can be made again. Drafts, and temporary folders, that a killed process left behind go too.
        """
        before = time.time() - days * 86_400
        unused = [entry for kind in kinds for entry in self.entries(kind) if self.path(entry).stat().st_mtime < before]
        for entry in unused:
            self.drop(entry)
        for draft in (*self.drafts().iterdir(), *Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*/")):
            with suppress(OSError):  # somebody else's, or gone meanwhile
                if draft.stat().st_mtime < before:
                    shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        return unused

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Work with the lake beside others, while nobody is ``alone``."""
        with self._lock().open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work with the lake while no step does.

        Raises
        ------
        TemporarilyUnavailable
            A step is at work.

        """
        with self._lock().open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TemporarilyUnavailable(
                    f"{self.root}: a night (or another forgetting) is at work here, and nothing was changed; "
                    "try again when it has ended"
                ) from error
            yield

    def _lock(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / ".lock"

    def drafts(self) -> Path:
        """Return the folder of what is being made; what a killed process left there goes with ``expire``."""
        drafts = self.root / ".drafts"
        drafts.mkdir(parents=True, exist_ok=True)
        return drafts
