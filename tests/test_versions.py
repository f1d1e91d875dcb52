"""What readers of a version get from its files."""

import numpy as np
import pyarrow as pa
import pytest

from recsys_tasks.contract import RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.versions import entry, lists_of, read_lists

LISTS = {f"u{n}": [f"i{(n + place) % 7}" for place in range(1 + n % 4)] for n in range(9)}


@pytest.fixture
def lake(tmp_path):
    """A version whose two files are cut into row groups in the middle of lists."""
    lake, manifest = Lake(tmp_path), {"files": []}
    with lake.create(entry("home", "1"), manifest) as folder:
        for n, readers in enumerate(np.array_split(np.array(list(LISTS)), 2)):
            rows = [
                [str(reader), place + 1, item, 1.0, "warm", "ease", "Picked for you", None]
                for reader in readers
                for place, item in enumerate(LISTS[str(reader)])
            ]
            table = pa.Table.from_arrays(
                [pa.array(column) for column in zip(*rows, strict=True)], RECOMMENDATIONS.names
            )
            write_table(table.cast(RECOMMENDATIONS), folder / f"part-{n}.parquet", group_rows=3)
            manifest["files"].append({"name": f"part-{n}.parquet"})
    return lake


def test_lists_come_whole_wherever_the_file_is_cut(lake):
    assert dict(read_lists(lake, "home", "1")) == LISTS


def test_no_reader_comes_twice(lake):
    readers = [reader for block, _ in lists_of(lake, "home", "1") for reader in block.to_pylist()]
    assert readers == list(LISTS)
