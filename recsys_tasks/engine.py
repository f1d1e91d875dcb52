"""Where the log is worked on: DuckDB in this process, or Spark where a shop has outgrown one machine.

Both evaluate the same Ibis expressions and give equal tables. Files of the shop are always read by the same readers:
one after the other here, or each by a task of Spark.
"""

import logging
import os
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_tasks.errors import NightcartError, ShopFileError, TemporarilyUnavailable
from recsys_tasks.lake import TEMPORARY
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

BATCH_ROWS = 262_144
_MOST_THREADS = 8
"""Files read at a time."""


class Engine(ABC):
    """Evaluates expressions over Parquet files of the lake."""

    here = True
    """Whether ``map`` works in this process."""

    @abstractmethod
    def map(self, work: Callable[[Iterable[T]], Iterator[R]], things: Sequence[T]) -> list[R]:
        """Return what ``work`` gives for the things, in any order; it is called for some of them at a time."""

    @abstractmethod
    def read(self, files: Sequence[Path]) -> ibis.Table:
        """Return the rows of Parquet files of one schema."""

    @abstractmethod
    def held(self, table: ibis.Table) -> AbstractContextManager[ibis.Table]:
        """Give the rows of an expression that is asked for several times, evaluated once."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    @abstractmethod
    def batches(self, table: ibis.Table) -> Iterator[pa.Table]:
        """Evaluate an expression and give its rows in their order, a part at a time."""

    def table(self, table: ibis.Table) -> pa.Table:
        """Evaluate an expression whose result is small."""
        parts = list(self.batches(table))
        return pa.concat_tables(parts) if parts else table.schema().to_pyarrow().empty_table()


class DuckDB(Engine):
    """In this process; what does not fit the memory limit goes to ``spill``."""

    def __init__(self, spill: Path) -> None:
        self.connection = connect(spill)

    def map(self, work: Callable[[Iterable[T]], Iterator[R]], things: Sequence[T]) -> list[R]:
        """Let a thread a core work; each takes the next thing when it has done one."""
        waiting: SimpleQueue[T] = SimpleQueue()
        for thing in things:
            waiting.put(thing)

        def rest() -> Iterator[T]:
            said = time.monotonic()
            with suppress(Empty):
                while True:
                    yield waiting.get_nowait()
                    if time.monotonic() - said > 10:
                        said = time.monotonic()
                        log.info("%d of %d files are read", len(things) - waiting.qsize(), len(things))

        threads = min(len(things), os.cpu_count() or 1, _MOST_THREADS)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            try:
                return [found for part in pool.map(lambda _: list(work(rest())), range(threads)) for found in part]
            finally:  # after an error nothing more is begun
                list(rest())

    def read(self, files: Sequence[Path]) -> ibis.Table:
        """Return a view of the files."""
        return self.connection.read_parquet([str(file) for file in files], hive_partitioning=False)

    def batches(self, table: ibis.Table) -> Iterator[pa.Table]:
        """Stream the result."""
        schema = table.schema().to_pyarrow()
        for batch in self.connection.to_pyarrow_batches(table, chunk_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch]).cast(schema)

    @contextmanager
    def held(self, table: ibis.Table) -> Iterator[ibis.Table]:
        """Give a temporary table."""
        name = ibis.util.gen_name("held")
        try:
            yield self.connection.create_table(name, table, temp=True)
        finally:
            self.connection.raw_sql(f"DROP TABLE IF EXISTS {name}")  # Ibis's own cache is never dropped by sqlglot 30

    def close(self) -> None:
        """Disconnect."""
        self.connection.disconnect()


class Spark(Engine):
    """A Spark session: beside the one that is there, or at ``NIGHTCART_SPARK_MASTER``.

    Workers see the lake and the shop's files under the same paths. What an expression gives they write into a folder of
    the lake, each its part, and it is read from there: no result passes through the driver's Java.
    """

    here = False

    def __init__(self, shared: Path) -> None:
        try:
            from py4j.protocol import Py4JError
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ShopFileError(
                "engine: spark needs PySpark; install it with pip install 'nightcart[spark]', or remove 'engine'"
            ) from error
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        settings = Settings()
        self.shared = shared
        self.found = SparkSession.getActiveSession()
        try:
            session = self.found or (
                SparkSession.builder.master(settings.spark_master)
                .appName("nightcart")
                .config("spark.driver.memory", f"{round(settings.memory_gb * 1024)}m")
                .config("spark.log.level", "ERROR")
                .config("spark.ui.enabled", "false")
                .config("spark.ui.showConsoleProgress", "false")
                .getOrCreate()
            )
        except (PySparkException, Py4JError, OSError) as error:
            raise TemporarilyUnavailable(
                f"Spark does not start at {settings.spark_master}: {_gist(error)}. It needs Java 17 or newer "
                "(JAVA_HOME) and a master that answers (NIGHTCART_SPARK_MASTER)"
            ) from None
        self.session = session.newSession()  # views and settings of its own
        self.connection = ibis.pyspark.connect(self.session)

    def map(self, work: Callable[[Iterable[T]], Iterator[R]], things: Sequence[T]) -> list[R]:
        """Deal the things out to the workers, neighbours to different ones: what is new tends to lie together."""
        context = self.session.sparkContext
        hands = min(len(things), 4 * context.defaultParallelism)
        with _answering():
            dealt = context.parallelize([things[hand::hands] for hand in range(hands)], max(1, hands))
            results = dealt.flatMap(partial(_told, work)).collect()
        for result in results:
            if isinstance(result, NightcartError):
                raise result
        return results

    def read(self, files: Sequence[Path]) -> ibis.Table:
        """Return a view of the files."""
        name = ibis.util.gen_name("files")
        with _answering():
            self.session.read.parquet(*(_address(file) for file in files)).createTempView(name)
            return self.connection.table(name)

    def batches(self, table: ibis.Table) -> Iterator[pa.Table]:
        """Read what the workers have written, file after file: Spark names them in the order of the rows."""
        schema = table.schema().to_pyarrow()
        with tempfile.TemporaryDirectory(dir=self.shared, prefix="spark-") as folder:
            with _answering():
                self.connection.to_parquet(table, f"file://{folder}/rows")
            for file in sorted(Path(folder).glob("rows/*.parquet")):
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
                    yield pa.Table.from_batches([batch]).cast(schema)

    @contextmanager
    def held(self, table: ibis.Table) -> Iterator[ibis.Table]:
        """Give a table that is kept in the memory and on the disks of the workers."""
        with table.cache() as held:
            yield held

    def close(self) -> None:
        """Stop what was started here."""
        if not self.found:
            self.session.stop()


def _told(work: Callable[[Iterable[T]], Iterator[R]], things: Iterable[T]) -> Iterator[R | NightcartError]:
    """Work on a worker of Spark; an error of ours is a result, which Spark neither retries nor wraps."""
    try:
        yield from work(things)
    except NightcartError as error:
        yield error


@contextmanager
def _answering() -> Iterator[None]:
    """Tell what Spark itself gave up, such as a worker that was lost; a fault of an expression keeps its own error."""
    from py4j.protocol import Py4JError

    try:
        yield
    except Py4JError as error:
        raise TemporarilyUnavailable(f"Spark gave up: {_gist(error)}. Its log tells more; try again later") from None


def _gist(error: Exception) -> str:
    """The line that says what happened; Py4J puts one before it."""
    first, *others = str(error).splitlines()
    return (others[0].removeprefix(": ") if others and others[0].startswith(": ") else first).rstrip(".")


def _address(file: Path) -> str:
    """The file for Spark, which takes a bare path for one of the cluster's store, and brackets for a pattern."""
    return "file://" + re.sub(r"([\\\[\]{}*?])", r"\\\1", str(file))


def connect(spill: Path) -> Any:
    """Return a DuckDB connection that stays within ``NIGHTCART_MEMORY_GB`` and spills into a folder."""
    connection = ibis.duckdb.connect(temp_directory=str(spill), memory_limit=f"{Settings().memory_gb}GB")
    connection.raw_sql("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def open_engine(shop: Shop, shared: Path) -> Iterator[Engine]:
    """Give the engine the shop file asks for; ``shared`` is a folder for what Spark's workers write.

    Raises
    ------
    ShopFileError
        ``engine: spark``, and PySpark is not installed.
    TemporarilyUnavailable
        Spark does not start: no Java, or the cluster does not answer.

    """
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as spill:
        engine = Spark(shared) if shop.engine == "spark" else DuckDB(Path(spill))
        try:
            yield engine
        finally:
            engine.close()
