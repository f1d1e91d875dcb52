"""What one ingest of a shop file wrote, read back from disk; the same for the tests of every format."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from recsys_tasks.contract import EVENTS, ITEMS, QUARANTINE
from recsys_tasks.ingest import ingest
from recsys_tasks.lake import Lake
from recsys_tasks.night import Night


@dataclass
class Ingested:
    """What one ingest wrote, read back from disk."""

    lake: Lake
    id: str

    @property
    def manifest(self):
        return self.lake.manifest(self.id)

    @property
    def counts(self):
        return self.manifest["counts"]["events"]

    @property
    def log(self):
        return [row for day in self.manifest["days"] for row in self.read(self.lake.root / day["file"], EVENTS)]

    @property
    def events(self):
        """What a model sees: the log without the items that the catalogue does not know."""
        known = set(self.items)
        return [row for row in self.log if row["item_id"] in known]

    @property
    def items(self):
        return {row["item_id"]: row for row in self.read(self.lake.path(self.id) / "items.parquet", ITEMS)}

    @property
    def quarantine(self):
        return self.read(self.lake.path(self.id) / "quarantine.parquet", QUARANTINE)

    @staticmethod
    def read(path, schema):
        table = pq.ParquetFile(path).read()
        assert table.schema.equals(schema)
        return table.to_pylist()

    def adds_up(self):
        """Rows read = kept + quarantined + duplicates, by the files and not by the manifest's own word."""
        counts = self.manifest["counts"]
        for table, c in counts.items():
            assert c["read"] == c["kept"] + c["quarantined"] + c["duplicates"]
            assert c["quarantined"] == sum(c["reasons"].values())
            assert c["quarantined"] == sum(row["table"] == table for row in self.quarantine)
        assert counts["events"]["kept"] == len(self.events)
        assert len(self.log) == sum(day["rows"] for day in self.manifest["days"])
        if "items" in counts:
            kept = counts["items"]["kept"]
            assert len(self.items) >= kept
        return self


def ingested(shop_file: Path, as_of: str) -> Ingested:
    """Ingest the shop, prove that its rows add up, and return what was written."""
    night = Night(shop_file=str(shop_file), as_of=as_of, k=10, recipes=[])
    return Ingested(night.lake, ingest(night)).adds_up()
