"""What the README shows must run, and what it names must exist."""

import re
from typing import get_args

import duckdb
import pyarrow as pa
import pytest
import yaml

from recsys_tasks.contract import PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.night import Night
from recsys_tasks.online_store import open_store
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from recsys_tasks.shop import SourceConfig, load_shop
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def published(home, tmp_path, monkeypatch):
    """A published version of the demo shop in ``var/`` of the working folder, as a newcomer has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTCART_HOME", "var")
    lake = Lake(Settings().lake)
    with lake.create("evaluations/one", {}) as folder:
        (folder / "leaderboard.json").write_text('{"rows": []}')
    with lake.create("champions/one", {"champions": {}}):
        pass
    with lake.create("lists/one", {}) as folder:
        rows = [
            ["1", "1"],
            [1, 2],
            ["b", "a"],
            [1.0, 0.5],
            ["cold"] * 2,
            ["popular"] * 2,
            ["Popular right now"] * 2,
            [None] * 2,
        ]
        for placement in PLACEMENTS:
            write_table(pa.table(rows, schema=RECOMMENDATIONS), folder / f"{placement}.parquet")
    night = Night("complete_journey", "2018-01-01T00:00:00+00:00", 2, ["popular"], shards=[0])
    return publish(night, ["lists/one"], "champions/one", "evaluations/one", "snapshots/none")


def test_the_pandas_snippet_reads_a_customers_list(published):
    scope = {}
    exec(snippets("python")[0], scope)
    assert scope["mine"].item_id.tolist() == ["b", "a"]


def test_the_duckdb_snippet_reads_a_customers_list(published):
    with duckdb.connect() as db:
        *before, select = [part for part in snippets("sql")[0].split(";") if part.strip()]
        for statement in before:
            db.execute(statement)
        assert [row[:2] for row in db.execute(select).fetchall()] == [(1, "b"), (2, "a")]


def test_the_redis_snippet_reads_a_customers_list(published):
    with open_store(Settings(), "complete_journey") as store:
        socket = store.client.connection_pool.connection_kwargs["path"]
        scope = {"url": f"unix://{socket}"}
        exec(snippets("python")[1], scope)
    assert scope["items"] == ["b", "a"]


def test_the_shop_in_ten_lines_is_a_shop(tmp_path):
    text = snippets("yaml")[0]
    assert len([line for line in text.splitlines() if line.strip()]) <= 11
    (tmp_path / "my_shop.yaml").write_text(text)
    assert load_shop(str(tmp_path / "my_shop.yaml"), tmp_path).name == "my_shop"


def test_the_options_of_an_export_belong_to_the_shop_in_ten_lines(tmp_path):
    shop, options = (yaml.safe_load(text) for text in snippets("yaml")[:2])
    shop["source"]["events"] |= options
    (tmp_path / "my_shop.yaml").write_text(yaml.safe_dump(shop))
    assert load_shop(str(tmp_path / "my_shop.yaml"), tmp_path).source.events.delimiter == "^"


def test_the_table_of_steps_names_the_tasks_in_their_order(dagbag):
    steps = re.findall(r"^\| \d+ \| `(\w+)`[^|]*\| `([\w/.]+)` \|", README, re.MULTILINE)
    names = [name for name, _ in steps]
    assert " ".join(names) == "ingest embed train evaluate promote publish_index recommend check publish report"
    assert all((ROOT / module).is_file() for _, module in steps)
    assert set(names) < set(dagbag.dags["nightly"].task_dict)


def test_every_setting_of_the_environment_is_described():
    described = set(re.findall(r"`(NIGHTCART_\w+)`", README))
    known = {f"NIGHTCART_{name.upper()}" for name in Settings.model_fields}
    assert known - described == {"NIGHTCART_SHOPS"}


def test_the_two_commands_come_first():
    assert README.index("make nightly") < README.index("make test") < README.index("## ")
    assert (ROOT / "benchmarks" / "results" / "demo_night.md").is_file()


def test_the_table_of_known_formats_names_every_format_and_its_shop_file():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+\.yaml)` \| [^|]+ \| [^|]+ \|$", README, re.MULTILINE)
    formats = {config.model_fields["format"].annotation.__args__[0] for config in get_args(SourceConfig)}
    assert {name for name, _ in rows} == formats - {"complete_journey", "tabular", "sql"}
    for name, file in rows:
        assert load_shop(str(ROOT / "include" / "shops" / file), ROOT).source.format == name
