"""Where the log is worked on: DuckDB in this process, or Spark where a shop has outgrown one machine.

Both evaluate the same Ibis expressions and give equal tables. Files of the shop are always read by the same readers:
one after the other here, or each by a task of Spark.
"""

import logging
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import ibis
import pyarrow as pa

from recsys_tasks.errors import ShopFileError, TemporarilyUnavailable
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
    def keep(self, table: ibis.Table) -> ibis.Table:
        """Evaluate an expression once, for several uses; the result of the call before is let go."""

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

    def keep(self, table: ibis.Table) -> ibis.Table:
        """Put the result into a temporary table."""
        self.connection.raw_sql("DROP TABLE IF EXISTS nightcart_kept")
        return self.connection.create_table("nightcart_kept", table)

    def batches(self, table: ibis.Table) -> Iterator[pa.Table]:
        """Stream the result."""
        for batch in self.connection.to_pyarrow_batches(table, chunk_size=BATCH_ROWS):
            yield pa.Table.from_batches([batch])


class Spark(Engine):
    """A Spark session: the one that is there, or a new one at ``NIGHTCART_SPARK_MASTER``."""

    here = False

    def __init__(self) -> None:
        try:
            from pyspark.errors import PySparkRuntimeError
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ShopFileError(
                "engine: spark needs PySpark; install it with pip install 'nightcart[spark]', or remove 'engine'"
            ) from error
        try:
            self.session = (
                SparkSession.builder.master(Settings().spark_master)
                .appName("nightcart")
                .config("spark.sql.session.timeZone", "UTC")
                .config("spark.sql.execution.arrow.pyspark.enabled", "true")
                .config("spark.ui.enabled", "false")
                .getOrCreate()
            )
        except (PySparkRuntimeError, OSError) as error:
            raise TemporarilyUnavailable(
                f"Spark does not start at {Settings().spark_master}: {str(error).splitlines()[0]}. It needs Java 17 or "
                "newer (JAVA_HOME) and a master that answers (NIGHTCART_SPARK_MASTER)"
            ) from error
        self.session.conf.set("spark.sql.session.timeZone", "UTC")
        self.connection = ibis.pyspark.connect(self.session)
        self.views = 0

    def map(self, work: Callable[[Iterable[T]], Iterator[R]], things: Sequence[T]) -> list[R]:
        """Spread the things over the cluster's workers."""
        if not things:
            return []
        return self.session.sparkContext.parallelize(things, len(things)).mapPartitions(work).collect()

    def read(self, files: Sequence[Path]) -> ibis.Table:
        """Return a view of the files, which every worker must be able to reach."""
        self.views += 1
        name = f"nightcart_files_{self.views}"
        self.session.read.parquet(*(str(file) for file in files)).createOrReplaceTempView(name)
        return self.connection.table(name)

    def keep(self, table: ibis.Table) -> ibis.Table:
        """Put the result into Spark's cache."""
        self.session.catalog.clearCache()
        self.session.sql(str(ibis.to_sql(table, dialect="pyspark"))).cache().createOrReplaceTempView("nightcart_kept")
        return self.connection.table("nightcart_kept")

    def batches(self, table: ibis.Table) -> Iterator[pa.Table]:
        """Bring the result here at once: callers ask for what fits this machine."""
        found = self.session.sql(str(ibis.to_sql(table, dialect="pyspark"))).toArrow()
        if found.num_rows:
            yield found


def connect(spill: Path) -> Any:
    """Return a DuckDB connection that stays within ``NIGHTCART_MEMORY_GB`` and spills into a folder."""
    connection = ibis.duckdb.connect(temp_directory=str(spill), memory_limit=f"{Settings().memory_gb}GB")
    connection.raw_sql("SET TimeZone = 'UTC'")
    return connection


@contextmanager
def open_engine(shop: Shop) -> Iterator[Engine]:
    """Give the engine the shop file asks for.

    Raises
    ------
    ShopFileError
        ``engine: spark``, and PySpark is not installed.
    TemporarilyUnavailable
        Spark does not start: no Java, or the cluster does not answer.

    """
    if shop.engine == "spark":
        yield Spark()
        return
    with tempfile.TemporaryDirectory(prefix="nightcart-") as folder:
        engine = DuckDB(Path(folder))
        try:
            yield engine
        finally:
            engine.connection.disconnect()
