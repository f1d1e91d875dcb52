"""Text on its way to DuckDB: inflated, in UTF-8 and with line ends of one kind, through a pipe where a file is not.

A pipe needs no room on disk, DuckDB parses what it has while the next is inflated, and a compressed file is proved
whole on the way: DuckDB itself takes half of a ``.gz`` for all of it without a word.
"""

import codecs
import fcntl
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from isal import igzip
from isal.igzip_lib import IsalError

from recsys_tasks.errors import SourceError

COMPRESSED = (".gz", ".zst")
SAMPLE = 1 << 18

_BLOCK = 1 << 20


def is_compressed(path: Path) -> bool:
    """Whether the name ends in ``.gz`` or ``.zst``, capitals or not."""
    return path.suffix.lower() in COMPRESSED


def first_bytes(path: Path) -> bytes:
    """Return the first ``SAMPLE`` bytes of the content, inflated; fewer where there are no more.

    Raises
    ------
    SourceError
        They are compressed and damaged.
    OSError
        The file cannot be opened.

    """
    with _inflated(path) as stream:
        return next(_read(path, stream, SAMPLE), b"")


def known_encoding(first: bytes, asked: str | None) -> str:
    """Return the encoding that the first bytes declare, else the one asked for, else ``utf-8``."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8" if asked is None else codecs.lookup(asked).name.removesuffix("-sig")


def has_mixed_line_ends(path: Path, first: bytes) -> bool:
    """Whether lines end in more than one way, judged by the first bytes and samples of what follows."""
    samples = [first]
    if not is_compressed(path) and (size := path.stat().st_size) > len(first):
        with path.open("rb") as stream:
            for part in range(1, 9):
                stream.seek(size * part // 9)
                samples.append(stream.read(SAMPLE // 4))
    samples = [sample.removeprefix(b"\n").removesuffix(b"\r") for sample in samples]  # halves of a cut pair
    pairs, feeds, returns = (sum(sample.count(end) for sample in samples) for end in (b"\r\n", b"\n", b"\r"))
    return (pairs > 0) + (feeds > pairs) + (returns > pairs) > 1


class LineCount:
    """Counts lines while they pass; the last one needs no end."""

    def __init__(self) -> None:
        self.n = 0

    def of(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the blocks."""
        last = b"\n"
        for block in blocks:
            self.n += int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))  # thrice as fast as count
            last = block[-1:] or last
            yield block
        self.n += last != b"\n"


def count_lines(path: Path) -> int:
    """Return the number of lines of a plain file."""
    lines = LineCount()
    with path.open("rb") as stream:
        for _ in lines.of(iter(lambda: stream.read(SAMPLE), b"")):
            pass
    return lines.n


def blocks(path: Path, encoding: str = "utf-8", *, one_line_end: bool = False) -> Iterator[bytes]:
    """Yield the content inflated, in UTF-8 and without a byte order mark, in blocks of about 1 MiB.

    Parameters
    ----------
    path
        Of the file, plain or compressed.
    encoding
        Of the file; UTF-8 goes through unchecked, for DuckDB checks it.
    one_line_end
        Make ``\\n`` of every ``\\r\\n`` and lone ``\\r``, inside quotes too.

    Raises
    ------
    SourceError
        The file is damaged or not of this encoding; the message says where.

    """
    decoder: Any = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
    first, held, lines = True, b"", 1
    with _inflated(path) as stream:
        for read in _read(path, stream, _BLOCK):
            block = read
            if decoder:
                try:
                    text = decoder.decode(block)
                except UnicodeDecodeError as error:
                    line = lines + error.object[: error.start].decode(encoding, "ignore").count("\n")
                    raise wrong_encoding(path, line, encoding) from error
                lines += text.count("\n")
                block = text.encode()
            if first:
                block, first = block.removeprefix(codecs.BOM_UTF8), False
            if one_line_end and (held or b"\r" in block):
                block = held + block
                held = b"\r" if block.endswith(b"\r") else b""
                block = block.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            yield block
    if held:
        yield b"\n"
    if decoder and decoder.getstate()[0]:
        raise wrong_encoding(path, lines, encoding)


@contextmanager
def piped(content: Iterable[bytes]) -> Iterator[str]:
    """Give a path from which DuckDB reads the content once; on leaving, raise what went wrong in it."""
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # else writer and reader take turns at every 64 KiB
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _BLOCK)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(_write, content, writing)
        try:
            yield f"/dev/fd/{reading}"
        finally:
            # DuckDB may have stopped early. The rest is read all the same: only its end proves the file whole.
            while os.read(reading, _BLOCK):
                pass
            os.close(reading)
            written.result()


def wrong_encoding(path: Path, line: int, encoding: str = "utf-8") -> SourceError:
    """Return the error of a file that has bytes on a line which are none of its encoding."""
    other = "latin-1, cp1252 or utf-16" if encoding == "utf-8" else "utf-8"
    return SourceError(
        f"{path}: line {line} is not in {encoding}; give the encoding of the file in the shop file, "
        f"e.g. 'encoding: {other.split(',')[0]}' ({other} are common), or export the file again in UTF-8"
    )


def _write(content: Iterable[bytes], descriptor: int) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        for block in content:
            pipe.write(block)


def _inflated(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return igzip.open(path, "rb")
        case ".zst":
            return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        case _:
            return path.open("rb")


def _read(path: Path, stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield blocks until the end; say how far it came where the compressed bytes are damaged."""
    done = 0
    while True:
        try:
            block = stream.read(size)
        except (OSError, EOFError, IsalError) as error:  # type: ignore[misc]  # its stub takes the class for a value
            raise SourceError(
                f"{path}: cannot be read: {error} after {done:,} bytes of content. The file is damaged or was not "
                "copied to its end; copy it or export the file again"
            ) from error
        if not block:
            return
        done += len(block)
        yield block
