"""Every way a shop can export its log gives the same events; a file that cannot be read says why."""

import csv
import gzip
import io
import json

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_tasks.errors import SourceError
from recsys_tasks.shop import Tabular
from recsys_tasks.sources import SourceFile
from recsys_tasks.sources.tabular import TabularSource
from tests.ingested import ingested

COLUMNS = {"user_id": "customer", "item_id": "sku", "timestamp": "at", "value": "pieces"}
ROWS = [
    {"customer": "u1", "sku": "000123", "at": "2020-01-01 10:00:00", "pieces": "1"},
    {"customer": "u,2", "sku": "b\nc", "at": "2020-01-02 10:00:00", "pieces": "2.5"},
    {"customer": 'ü"3"', "sku": "000124", "at": "2020-01-03 10:00:00", "pieces": ""},
]
EXPECTED = [(n, *(row[c] or None for c in COLUMNS.values())) for n, row in enumerate(ROWS, 1)]


def as_csv(rows, delimiter=",", end="\n", columns=()):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or COLUMNS.values(), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def source(folder, path="data", items=None, users=None, **columns):
    columns = {name: column for name, column in (COLUMNS | columns).items() if column}
    return TabularSource(
        Tabular(format="tabular", events={"path": path, "columns": columns}, items=items or {}, users=users), folder
    )


def write(folder, **files):
    """Write files into ``data``; in a name, two underscores stand for a dot."""
    (folder / "data").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "data" / name.replace("__", ".")).write_bytes(content)
    return folder


def read(reader):
    """Rows of every file, one after another, and the broken lines of every file."""
    connection = ibis.duckdb.connect()
    rows, rejects = [], []
    for file in reader.event_files():
        table = connection.to_pyarrow(reader.read_events(connection, file).select("row", *COLUMNS).order_by("row"))
        rows += [tuple(v if v != "" else None for v in row.values()) for row in table.to_pylist()]
        rejects += [(file.name, reject) for reject in reader.rejects(connection, file)]
    connection.disconnect()
    return rows, rejects


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", as_csv(ROWS)),
        ("log.txt", as_csv(ROWS)),
        ("log.CSV", as_csv(ROWS)),
        ("log.csv.gz", gzip.compress(as_csv(ROWS))),
        ("log.tsv", as_csv(ROWS, "\t")),
        ("semicolon.csv", as_csv(ROWS, ";")),
        ("pipe.txt", as_csv(ROWS, "|")),
        ("bom.csv", b"\xef\xbb\xbf" + as_csv(ROWS)),
        ("no_last_newline.csv", as_csv(ROWS).rstrip(b"\n")),
        ("blank_lines.csv", as_csv(ROWS).replace(b"u,2", b"u,2").replace(b'\n"u,2', b'\n\n\n"u,2')),
        ("log.parquet", as_parquet(ROWS)),
        ("log.jsonl", as_json_lines(ROWS)),
        ("log.ndjson", as_json_lines(ROWS)),
        ("log.json", as_json_lines(ROWS)),
        ("log.jsonl.gz", gzip.compress(as_json_lines(ROWS))),
        ("bom.jsonl", b"\xef\xbb\xbf" + as_json_lines(ROWS)),
        ("crlf.jsonl", as_json_lines(ROWS).replace(b"\n", b"\r\n")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_file_gives_the_same_events(tmp_path, name, content):
    write(tmp_path, **{name: content})
    assert read(source(tmp_path, f"data/{name}")) == (EXPECTED, [])


def test_windows_line_ends_stay_only_inside_quotes(tmp_path):
    write(tmp_path, log__csv=as_csv(ROWS, end="\r\n"))
    assert read(source(tmp_path)) == (EXPECTED, [])


def test_a_json_line_may_hold_numbers_nulls_and_no_key_at_all(tmp_path):
    lines = [{"customer": 7, "sku": "a", "at": "2020-01-01", "pieces": 2}, {"customer": None, "sku": "b", "at": 5}]
    write(tmp_path, log__jsonl=as_json_lines(lines))
    rows, rejects = read(source(tmp_path))
    assert rows == [(1, "7", "a", "2020-01-01", "2"), (2, None, "b", "5", None)]
    assert rejects == []


def test_a_key_with_dots_and_quotes_is_one_key(tmp_path):
    write(tmp_path, log__jsonl=as_json_lines([{'who"s.id': "u", "sku": "a", "at": "2020-01-01", "pieces": 1}]))
    assert read(source(tmp_path, user_id='who"s.id'))[0][0][1] == "u"


def test_a_column_name_with_quotes_is_found_in_csv(tmp_path):
    write(tmp_path, log__csv=b'"who""s","select",sku,at,pieces\nu,x,a,2020-01-01,1\n')
    assert read(source(tmp_path, user_id='who"s'))[0] == [(1, "u", "a", "2020-01-01", "1")]


def test_a_mapped_column_that_stands_twice_is_refused_and_another_does_not_matter(tmp_path):
    write(tmp_path, log__csv=b"customer,sku,at,pieces,customer,x,x\nu,a,2020-01-01,1,other,1,2\n")
    with pytest.raises(SourceError, match=r"log\.csv: column 'customer' stands 2 times in the header"):
        read(source(tmp_path))
    (tmp_path / "data" / "log.csv").write_bytes(b"customer,sku,at,pieces,x,x\nu,a,2020-01-01,1,1,2\n")
    assert read(source(tmp_path))[0] == [(1, "u", "a", "2020-01-01", "1")]


def test_a_folder_gives_all_its_files_by_name_and_leaves_other_kinds_alone(tmp_path):
    write(tmp_path, b__csv=as_csv(ROWS[1:2]), a__jsonl=as_json_lines(ROWS[:1]), notes__pdf=b"%PDF")
    (tmp_path / "data" / "deep").mkdir()
    (tmp_path / "data" / "deep" / "c.parquet").write_bytes(as_parquet(ROWS[2:]))
    reader = source(tmp_path)
    assert [file.name for file in reader.event_files()] == ["a.jsonl", "b.csv", "deep/c.parquet"]
    assert [row[1:] for row in read(reader)[0]] == [row[1:] for row in EXPECTED]


@pytest.mark.parametrize("path", ["a**b", "x" * 300, "log\0"])
def test_a_path_that_is_none_names_its_field(tmp_path, path):
    with pytest.raises(SourceError, match=r"source\.events\.path"):
        source(tmp_path, path).event_files()


def test_a_glob_gives_the_files_it_matches_with_names_that_are_the_same_everywhere(tmp_path):
    for month in ("2020-01", "2020-02"):
        (tmp_path / "data" / month).mkdir(parents=True)
        (tmp_path / "data" / month / "log.csv").write_bytes(as_csv(ROWS))
        (tmp_path / "data" / month / "items.csv").write_bytes(b"junk")
    files = source(tmp_path, "data/*/log.csv").event_files()
    assert [file.name for file in files] == ["2020-01/log.csv", "2020-02/log.csv"]
    assert len(read(source(tmp_path, "data/*/log.csv"))[0]) == 6


def test_a_path_may_be_absolute(tmp_path):
    write(tmp_path, log__csv=as_csv(ROWS))
    (tmp_path / "elsewhere").mkdir()
    assert read(source(tmp_path / "elsewhere", str(tmp_path / "data" / "log.csv")))[0] == EXPECTED


def test_columns_may_stand_in_another_order_in_another_file(tmp_path):
    turned = as_csv(ROWS[1:], columns=("pieces", "at", "extra", "customer", "sku"))
    write(tmp_path, a__csv=as_csv(ROWS[:1]), b__csv=turned)
    assert [row[1:] for row in read(source(tmp_path))[0]] == [row[1:] for row in EXPECTED]


def test_two_files_whose_names_differ_in_case_alone_are_two_files(tmp_path):
    write(tmp_path, A__csv=b"customer,sku,at,pieces\nbroken\n", a__csv=as_csv(ROWS))
    write(tmp_path, B__jsonl=b"broken\n", b__jsonl=as_json_lines(ROWS))
    rows, rejects = read(source(tmp_path))
    assert len(rows) == 6
    assert [(name, reject.record) for name, reject in rejects] == [("A.csv", "broken"), ("B.jsonl", "broken")]


@pytest.mark.parametrize(
    "content", [as_csv(ROWS), as_parquet(ROWS), as_json_lines(ROWS)], ids=["csv", "parquet", "json"]
)
def test_a_missing_column_is_named_beside_the_one_it_may_be(tmp_path, content):
    suffix = {b"c": "csv", b"P": "parquet", b"{": "jsonl"}[content[:1]]
    write(tmp_path, **{f"log.{suffix}": content})
    with pytest.raises(SourceError) as error:
        read(source(tmp_path, user_id="custmer"))
    assert f"{tmp_path / 'data' / 'log'}.{suffix}: column 'custmer' is missing (did you mean 'customer'?)" in str(
        error.value
    )
    assert "Correct the mapping under 'columns' in the shop file" in str(error.value)
    assert all(column in str(error.value) for column in COLUMNS.values())


@pytest.mark.parametrize("path", ["nowhere.csv", "nowhere", "data/*.parquet", "data/**/*.csv"])
def test_a_path_without_a_file_names_path_and_field(tmp_path, path):
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceError, match=r"no file there \(source\.events\.path\)") as error:
        source(tmp_path, path).event_files()
    assert str(tmp_path / path) in str(error.value)


def test_a_catalogue_without_a_file_names_its_own_field(tmp_path):
    with pytest.raises(SourceError, match=r"items\.csv: no file there \(source\.items\.path\)"):
        source(tmp_path, items={"path": "items.csv", "columns": {"item_id": "sku"}}).item_files()


def test_a_kind_of_file_nobody_knows_is_refused(tmp_path):
    write(tmp_path, log__xlsx=b"PK")
    with pytest.raises(
        SourceError, match=r"log\.xlsx: unknown kind of file; expected a name ending in one of"
    ) as error:
        read(source(tmp_path, "data/log.xlsx"))
    assert ".csv" in str(error.value)


MANY = as_csv([{**ROWS[0], "customer": f"u{n * 7919 % 5000}"} for n in range(2000)])
MANY_JSON = as_json_lines([{**ROWS[0], "customer": f"u{n * 7919 % 5000}"} for n in range(2000)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.csv.gz", gzip.compress(MANY)[:-200]),
        ("few_bytes.csv.gz", gzip.compress(MANY)[:15]),
        ("half.jsonl.gz", gzip.compress(MANY_JSON)[:-200]),
        ("no_checksum.jsonl.gz", gzip.compress(MANY_JSON)[:-4]),
        ("damaged.csv.gz", gzip.compress(MANY)[:60] + b"\0\0\0" + gzip.compress(MANY)[63:]),
        ("plain.csv.gz", MANY),
        ("junk.parquet", b"this is no Parquet file at all"),
        ("half.parquet", as_parquet(ROWS)[:-100]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unreadable_file_is_refused_by_name_with_what_to_do(tmp_path, name, content):
    write(tmp_path, **{name: content})
    with pytest.raises(SourceError) as error:
        read(source(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'data' / name}: cannot be read")
    assert "export the file again" in str(error.value)


def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch):
    write(tmp_path, log__csv=as_csv(ROWS))
    reader = source(tmp_path)
    missing = SourceFile("log.csv", tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"gone\.csv: cannot be read as csv: .*No such file"):
        reader.read_events(ibis.duckdb.connect(), missing)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"])
def test_an_empty_file_has_no_rows_and_is_warned_about(tmp_path, caplog, name):
    write(tmp_path, **{name: gzip.compress(b"") if name.endswith("gz") else b""})
    assert read(source(tmp_path)) == ([], [])
    assert f"{name} is empty: no header and no rows" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"), [("log.csv", as_csv([])), ("log.tsv", as_csv([], "\t").rstrip()), ("a.jsonl", b"\n")]
)
def test_a_file_of_a_header_alone_has_no_rows(tmp_path, name, content):
    write(tmp_path, **{name: content})
    assert read(source(tmp_path)) == ([], [])


HEAD = b"customer,sku,at,pieces\n"
GOOD = b"u1,a,2020-01-01,1\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"u9,b", "Expected Number of Columns: 4 Found: 2"),
        (b"u9", "Expected Number of Columns: 4 Found: 1"),
        (b"u9,b,2020-01-01,1,5", "Expected Number of Columns: 4 Found: 5"),
        (b"u9,b,2020-01-01,1,5,6", "Expected Number of Columns: 4 Found: 5"),
        (b'"u9"x,b,2020-01-01,1', "Value with unterminated quote found."),
    ],
    ids=["two", "one", "five", "six", "stray_quote"],
)
def test_a_broken_line_is_rejected_with_its_line_and_the_others_are_kept(tmp_path, broken, reason, end):
    write(tmp_path, log__csv=(HEAD + GOOD + broken + b"\n" + GOOD + broken + b"\n").replace(b"\n", end))
    rows, rejects = read(source(tmp_path))
    assert [row[1] for row in rows] == ["u1", "u1"]
    assert [(name, r.line, r.reason, r.record) for name, r in rejects] == [
        ("log.csv", line, reason, broken.decode()) for line in (3, 5)
    ]


def test_broken_lines_before_any_good_one_do_not_move_the_header(tmp_path):
    write(tmp_path, log__csv=HEAD + b"x,y\n" * 5 + GOOD)
    rows, rejects = read(source(tmp_path))
    assert [row[1:] for row in rows] == [("u1", "a", "2020-01-01", "1")]
    assert [reject.line for _, reject in rejects] == [2, 3, 4, 5, 6]


def test_a_user_whose_id_begins_like_a_comment_is_a_user(tmp_path):
    write(tmp_path, log__csv=HEAD + GOOD.replace(b"u1", b"#u1") * 3 + GOOD)
    assert [row[1] for row in read(source(tmp_path))[0]] == ["#u1", "#u1", "#u1", "u1"]


def test_a_line_that_is_not_utf_8_deep_in_a_file_is_rejected_alone(tmp_path):
    write(tmp_path, log__csv=HEAD + GOOD * 20_000 + "café,a,2020-01-01,1\n".encode("latin-1") + GOOD)
    rows, rejects = read(source(tmp_path))
    assert len(rows) == 20_001
    assert [(reject.line, "utf-8" in reject.reason) for _, reject in rejects] == [(20_002, True)]


@pytest.mark.parametrize(
    "rest", [GOOD * 3, GOOD * 3 + b'"u7",a,2020-01-01,1\n', GOOD * 130_000], ids=["few", "quote", "many"]
)
def test_a_quote_that_swallows_the_rows_after_it_is_an_error_not_one_broken_line(tmp_path, rest):
    write(tmp_path, log__csv=HEAD + GOOD + b'"u9,a,2020-01-01,1\n' + rest)
    with pytest.raises(SourceError, match=r"log\.csv: the quote that opens at row 2 is not closed"):
        read(source(tmp_path))


@pytest.mark.parametrize("broken", ["nope", "[1, 2]", '"text"', "7", "null", '{"customer": "u1"', "{'customer': 'u1'}"])
def test_a_line_that_is_no_json_object_is_rejected_and_the_others_are_kept(tmp_path, broken):
    write(tmp_path, log__jsonl=as_json_lines(ROWS[:1]) + broken.encode() + b"\n\n" + as_json_lines(ROWS[1:2]))
    rows, rejects = read(source(tmp_path))
    assert rows == [EXPECTED[0], (4, *EXPECTED[1][1:])]
    assert [(r.line, r.reason, r.record) for _, r in rejects] == [(2, "expected one JSON object a line", broken)]


def test_a_file_of_broken_json_lines_alone_is_rejected_line_by_line(tmp_path):
    write(tmp_path, log__json=json.dumps(ROWS, indent=1).encode())
    rows, rejects = read(source(tmp_path))
    assert rows == []
    assert rejects[0][1].record == "["


def test_categories_come_from_several_columns_or_from_one_that_is_split(tmp_path):
    (tmp_path / "items.csv").write_text("sku,dept,kind,path\na,Food,Fruit,Food > Fruit\n")
    connection = ibis.duckdb.connect()
    for columns, found in ((["dept", "kind"], ["Food", "Fruit"]), ("path", ["Food", "Fruit"]), ("dept", ["Food"])):
        items = {"path": "items.csv", "columns": {"item_id": "sku", "category": columns}, "category_separator": " > "}
        reader = source(tmp_path, items=items)
        table = connection.to_pyarrow(reader.read_items(connection, reader.item_files()[0]))
        assert table["category"].to_pylist() == [found]


CUSTOMERS = [{"id": "u1", "country": "FR", "age": 44}, {"id": "u2", "country": None, "age": None}]
USERS = {"path": "data", "columns": {"user_id": "id"}, "attributes": ["country", "age"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.csv",
            as_csv([{k: v or "" for k, v in row.items()} for row in CUSTOMERS], columns=("id", "country", "age")),
        ),
        ("a.jsonl", as_json_lines(CUSTOMERS)),
        ("a.parquet", as_parquet(CUSTOMERS)),
    ],
    ids=["csv", "json", "parquet"],
)
def test_customers_have_an_id_and_their_attributes_as_strings(tmp_path, name, content):
    reader = source(write(tmp_path, **{name: content}), users=USERS)
    connection = ibis.duckdb.connect()
    table = reader.read_users(connection, reader.user_files()[0]).order_by("row").to_pyarrow()
    rows = [tuple(v if v != "" else None for v in row.values()) for row in table.to_pylist()]
    assert table.column_names == ["row", "user_id", "country", "age"]
    assert rows == [(1, "u1", "FR", "44"), (2, "u2", None, None)]


def test_a_shop_file_without_users_has_no_files_of_them(tmp_path):
    reader = source(tmp_path)
    assert reader.user_files() == []
    with pytest.raises(SourceError, match="this source has no files of customers"):
        reader.read_users(ibis.duckdb.connect(), SourceFile("a.csv", tmp_path / "a.csv"))


def test_an_attribute_that_no_column_holds_is_named(tmp_path):
    reader = source(write(tmp_path, a__jsonl=as_json_lines(CUSTOMERS)), users=USERS | {"attributes": ["contry"]})
    with pytest.raises(SourceError, match=r"column 'contry' is missing \(did you mean 'country'\?\)"):
        reader.read_users(ibis.duckdb.connect(), reader.user_files()[0])


def test_customers_without_a_file_name_their_own_field(tmp_path):
    with pytest.raises(SourceError, match=r"customers\.csv: no file there \(source\.users\.path\)"):
        source(tmp_path, users=USERS | {"path": "customers.csv"}).user_files()


SALES = (
    b"customer,sku,at,pieces,price,kind\n"
    b"u1,a,2020-01-01,2,1.50,sale\n"
    b"u2,b,2020-01-02,-3,2,sale\n"
    b"u3,C7,2020-01-03,1,10,loan\n"
    b"u4,d,2020-01-04,many,1,sale\n"
)


def sales(folder, columns=(), **events):
    write(folder, log__csv=SALES)
    described = {"path": "data", "columns": COLUMNS | dict(columns), **events}
    return TabularSource(Tabular(format="tabular", events=described), folder)


def events_of(reader, **options):
    connection = ibis.duckdb.connect()
    (file,) = reader.event_files()
    return connection.to_pyarrow(reader.read_events(connection, file, **options)).to_pylist()


@pytest.mark.parametrize("numbered", [True, False])
def test_a_derived_column_is_mapped_like_one_of_the_file(tmp_path, numbered):
    derive = {"revenue": "pieces * price", "twice": "revenue * 2", "sku": "upper(sku)"}
    reader = sales(tmp_path, {"value": "twice", "price": "revenue"}, derive=derive)
    rows = events_of(reader, numbered=numbered)
    assert [(row["item_id"], row["value"], row["price"]) for row in rows] == [
        ("A", 6.0, 3.0),
        ("B", -12.0, -6.0),
        ("C7", 20.0, 10.0),
        ("D", None, None),
    ]


def test_rows_that_the_filter_is_not_true_of_carry_a_word_that_is_left_out(tmp_path):
    reader = sales(tmp_path, filter="pieces > 0 AND NOT starts_with(sku, 'C')")
    assert reader.rules.left_out == ("filtered",)
    assert [row["event_type"] for row in events_of(reader)] == [None, "filtered", "filtered", "filtered"]
    kinds = [row["event_type"] for row in events_of(sales(tmp_path, {"event_type": "kind"}, filter="pieces > 0"))]
    assert kinds == ["sale", "filtered", "loan", "filtered"]


def test_rows_left_out_by_filter_or_by_word_are_counted_apart(tmp_path, home):
    write(tmp_path, log__csv=SALES)
    (tmp_path / "shop.yaml").write_text(
        "{name: corner, time_zone: UTC, source: {format: tabular, events: {path: data, "
        "columns: {user_id: customer, item_id: sku, timestamp: at, event_type: kind}, "
        "event_types: {sale: purchase, loan: null}, filter: pieces > 0}}}"
    )
    counts = ingested(tmp_path / "shop.yaml", "2020-02-01T00:00:00+00:00").counts
    assert counts["left_out"] == {"filtered": 2, "loan": 1}
    assert (counts["kept"], counts["quarantined"]) == (1, 0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"filter": "peices > 0"}, r"column 'peices' is missing \(did you mean 'pieces'\?\).*source\.events\.filter"),
        ({"derive": {"x": "Price * 2"}}, r"column 'Price' is missing \(did you mean 'price'\?\).*events\.derive\.x"),
        ({"derive": {"x": "customer + at"}, "filter": "x"}, r"events\.filter: 'x' is a float64; expected a condition"),
        ({"derive": {"x": "upper(price * 2)"}}, r"events\.derive\.x: 'upper\(price \* 2\)' cannot be computed: Binder"),
        ({"derive": {"Pieces": "price * 2"}}, "column 'Pieces' cannot be told from 'pieces'"),
    ],
)
def test_an_expression_that_does_not_fit_the_file_is_named_by_its_key(tmp_path, events, message):
    with pytest.raises(SourceError, match=message) as error:
        events_of(sales(tmp_path, **events))
    assert str(error.value).startswith(f"{tmp_path / 'data' / 'log.csv'}: ")


def test_an_expression_that_gives_no_value_is_refused_by_file(tmp_path, home):
    write(tmp_path, log__csv=SALES)
    (tmp_path / "shop.yaml").write_text(
        "{name: corner, source: {format: tabular, events: {path: data, derive: {pieces: interval 1 day}, "
        "columns: {user_id: customer, item_id: sku, timestamp: at, value: pieces}}}}"
    )
    with pytest.raises(SourceError, match=r"log\.csv: cannot be read: .*interval"):
        ingested(tmp_path / "shop.yaml", "2020-02-01T00:00:00+00:00")


def test_numbers_of_parquet_and_json_stand_in_expressions_as_they_are(tmp_path):
    rows = [{"customer": "u", "sku": "a", "at": "2020-01-01", "pieces": 2, "price": 1.5}]
    for name, content in (("log.parquet", as_parquet(rows)), ("log.jsonl", as_json_lines(rows))):
        write(tmp_path, **{name: content})
        columns = COLUMNS | {"value": "revenue"}
        events = {"path": f"data/{name}", "columns": columns, "derive": {"revenue": "pieces * price"}}
        (row,) = events_of(TabularSource(Tabular(format="tabular", events=events), tmp_path))
        assert row["value"] == 3.0


def test_delimiter_and_encoding_are_those_of_the_shop_file(tmp_path):
    write(tmp_path, log__csv="customer^sku^at^pieces\nJürgen^a^2020-01-01^1\n".encode("cp1252"))
    events = {"path": "data", "columns": COLUMNS, "delimiter": "^", "encoding": "cp1252"}
    (row,) = events_of(TabularSource(Tabular(format="tabular", events=events), tmp_path))
    assert (row["user_id"], row["value"]) == ("Jürgen", "1")


def test_folders_tell_columns_of_events_in_mapping_and_expressions(tmp_path):
    folder = tmp_path / "data" / "dt=2020-01-05" / "country=UK"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_bytes(b"customer,sku\nu1,a\n")
    columns = {"user_id": "customer", "item_id": "sku", "timestamp": "dt", "session_id": "visit"}
    events = {"path": "data", "columns": columns, "derive": {"visit": "customer || '-' || country"}}
    (row,) = events_of(TabularSource(Tabular(format="tabular", events=events), tmp_path))
    assert (row["timestamp"], row["session_id"]) == ("2020-01-05", "u1-UK")


def test_a_header_that_stands_again_in_a_catalogue_is_no_item(tmp_path):
    (tmp_path / "items.csv").write_text("sku,name\na,Tea\nsku,name\nb,Jug\n")
    connection = ibis.duckdb.connect()
    reader = source(tmp_path, items={"path": "items.csv", "columns": {"item_id": "sku", "title": "name"}})
    items = connection.to_pyarrow(reader.read_items(connection, reader.item_files()[0]))
    assert items["item_id"].to_pylist() == ["a", None, "b"]


def test_a_header_that_stands_again_among_events_is_quarantined(tmp_path, home):
    write(tmp_path, log__csv=HEAD + GOOD + HEAD + GOOD.replace(b"u1", b"u2"))
    described = {"format": "tabular", "events": {"path": "data", "columns": COLUMNS}}
    (tmp_path / "shop.yaml").write_text(json.dumps({"name": "corner", "time_zone": "UTC", "source": described}))
    found = ingested(tmp_path / "shop.yaml", "2020-02-01T00:00:00+00:00")
    assert [(bad["row"], bad["field"]) for bad in found.quarantine] == [(2, "timestamp")]
    assert found.counts["kept"] == 2
