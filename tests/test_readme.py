"""What the README and the readers' page show must run, and what they name must exist."""

import re
import shutil
import subprocess
from typing import get_args

import duckdb
import pyarrow as pa
import pytest
import yaml

from recsys_tasks.contract import ANONYMOUS, PLACEMENTS, RECOMMENDATIONS
from recsys_tasks.lake import Lake, write_table
from recsys_tasks.night import Night
from recsys_tasks.online_store import open_store
from recsys_tasks.publish import publish
from recsys_tasks.settings import Settings
from recsys_tasks.shop import SourceConfig, load_shop
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
READERS = (ROOT / "docs" / "readers.md").read_text()


def snippets(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


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
            ["1", "1", ANONYMOUS],
            [1, 2, 1],
            ["b", "a", "ж c"],
            [1.0, 0.5, 1.0],
            ["cold", "cold", "anonymous"],
            ["popular"] * 3,
            ["Popular right now"] * 3,
            [None] * 3,
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


def test_readers_in_python_get_their_list_and_strangers_that_of_everybody(published):
    with open_store(Settings(), "complete_journey") as store:
        scope = {"url": f"unix://{store.client.connection_pool.connection_kwargs['path']}"}
        exec(snippets("python", READERS)[0], scope)
        read = scope["recommendations"]
        assert [read("complete_journey", "home", who) for who in ("1", "nobody")] == [["b", "a"], ["ж c"]]


def test_readers_in_sql_see_one_list_and_all_of_them(published):
    with duckdb.connect() as db:
        before, then, *asked = [part for part in snippets("sql", READERS)[0].split(";") if part.strip()]
        db.execute(before)
        db.execute(then)
        one, models, highest = (db.execute(query).fetchall() for query in asked)
    assert one == [(1, "b", "Popular right now"), (2, "a", "Popular right now")]
    assert models == [("anonymous", "popular", 1), ("cold", "popular", 2)]
    assert sorted(highest) == [("a", 1), ("b", 1), ("ж c", 1)]


@pytest.mark.skipif(not shutil.which("node"), reason="no node on this machine to run the readers in JavaScript")
@pytest.mark.parametrize(("reader", "items"), [("1", "b a"), ("nobody", "ж c")])
def test_readers_in_javascript_get_their_list_and_strangers_that_of_everybody(published, tmp_path, reader, items):
    script = snippets("javascript", READERS)[0].replace('"home", "1"', f'"home", "{reader}"')
    with open_store(Settings(), "complete_journey") as store:
        socket = store.client.connection_pool.connection_kwargs["path"]
        (tmp_path / "reader.js").write_text(
            script.replace('net.connect(6379, "127.0.0.1")', f'net.connect("{socket}")')
        )
        ran = subprocess.run(["node", tmp_path / "reader.js"], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.stdout.strip(), ran.stderr) == (items, "")


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
