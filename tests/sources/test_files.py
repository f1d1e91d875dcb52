"""The readers of CSV and JSON lines: what they make of files that real exports leave behind."""

import gzip
import json
import os

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from isal import igzip

from recsys_tasks.errors import SourceError
from recsys_tasks.sources.base import SourceFile
from recsys_tasks.sources.files import FileSource, _rejects, list_files, read_json_lines, read_table

HEAD = b"user,item\n"


@pytest.fixture
def connection():
    connection = ibis.duckdb.connect()
    yield connection
    connection.disconnect()


@pytest.fixture
def read(tmp_path, connection):
    """A function from the bytes of a file to its rows and its broken lines as (line, record)."""

    def run(name, content, columns=("user", "item"), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        file = SourceFile(name, path)
        table = read_table(connection, file, columns, **options)
        rows = [tuple(row.values()) for row in connection.to_pyarrow(table).to_pylist()]
        return rows, [(reject.line, reject.record) for reject in _rejects(connection, file)]

    return run


OBJECTS = [
    b'{"user":"x","item":1}',
    b'{"user":null}',
    b'{"user":5.0,"item":12345678901234567890123}',
    b'{"user":1e5,"item":-0.0}',
    b'{"user":1.10,"item":100000000000000000000.5}',
    b'{"user":18446744073709551616,"item":9007199254740993}',
    b'{"user":{"x": [1, 2 ,"y"]},"item":[1,  {"q":null}]}',
    b'{"user":true,"item":false}',
    b'{"user":"t\\u00e9\\n\\"q\\u0000z\\ud83d\\ude00","item":"\\/"}',
    b'{"USER":"big","item":1}',
    b'{"user":"small","ITEM":2}',
    b'{"\\u0075ser":1,"item":"x"}',
    b'{"user":NaN,"item":Infinity}',
    b'{"user":-0,"item":1E400}',
    b'  {"user" : 1 }  ',
    b'\t{"user":2}',
    '{"user":"x\u2028y","item":"ß"}'.encode(),
    b'{"user":"null","item":""}',
    b'{"user":"a","l":["x",1,null,{"z":1},["q"]]}',
    b'{"user":"a","l":null}',
    b'{"user":"a","l":[]}',
    b'{"item":"' + b"long " * 500_000 + b'"}',
]
ODDITIES = [
    b'{"user":"first","user":"second"}',
    b'{"user":1}{"user":2}',
    b'[{"user":1}, {"user":2}]',
    b'[{"user":1},',
    b"{}",
    b'{"other":1}',
    *(b"7", b"null", b'"text"', b"nope", b"// comment", b"{'user':1}", b"\x00"),
    b'{"user":1},',
    b'{"user":2',
    b'{"user":"a\tb"}',
    b'{"user":"\\ud800"}',
    *(b'{"user":"a","l":"x"}', b'{"user":"a","l":{}}', b'{"user":"a","l":7}'),
]


def both_ways(connection, path):
    """Rows and broken lines, read with numbers, and without where that is not refused."""
    file = SourceFile(path.name, path)

    def read(numbered):
        table = read_json_lines(connection, file, ("user", "item"), optional=("l",), lists=("l",), numbered=numbered)
        rows = [tuple(row.values())[1:] for row in connection.to_pyarrow(table).to_pylist()]
        return rows, [(reject.line, reject.record) for reject in _rejects(connection, file)]

    try:
        fast = read(numbered=False)
    except duckdb.Error:
        fast = read(numbered=True)
    return read(numbered=True), fast


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"], ids=["unix", "windows", "blank"])
def test_json_lines_give_the_same_whether_numbered_or_not(tmp_path, connection, end):
    path = tmp_path / "log.jsonl"
    path.write_bytes(end.join(OBJECTS) + end)
    numbered, unnumbered = both_ways(connection, path)
    assert numbered == unnumbered
    assert (len(numbered[0]), numbered[1]) == (len(OBJECTS), [])
    assert numbered[0][:3] == [("x", "1", []), (None, None, []), ("5.0", "12345678901234567890123", [])]
    assert numbered[0][18][2] == ["x", "1", None, '{"z":1}', '["q"]']


@pytest.mark.parametrize("odd", ODDITIES, ids=lambda odd: odd.decode(errors="replace"))
def test_an_odd_json_line_gives_the_same_whether_numbered_or_not(tmp_path, connection, odd):
    path = tmp_path / "log.jsonl"
    path.write_bytes(OBJECTS[0] + b"\n" + odd + b"\n" + OBJECTS[3] + b"\n")
    numbered, unnumbered = both_ways(connection, path)
    assert numbered == unnumbered
    assert len(numbered[0]) + len(numbered[1]) == 3


def test_json_lines_that_need_no_numbers_are_read_by_duckdbs_own_reader(tmp_path, connection):
    path = tmp_path / "log.jsonl"
    path.write_bytes(OBJECTS[0] + b"\n")
    row = [
        connection.to_pyarrow(read_json_lines(connection, SourceFile("a", path), ("user",), numbered=numbered))["row"]
        for numbered in (True, False)
    ]
    assert [numbers.to_pylist() for numbers in row] == [[1], [None]]


def test_a_json_key_beyond_ascii_is_found(read):
    assert read("log.jsonl", '{"größe": 1}\nx\n'.encode(), ["größe"]) == ([(1, "1")], [(2, "x")])


def test_a_key_that_is_always_null_is_there_and_one_that_no_object_has_is_not(read):
    assert read("log.jsonl", b'{"user":1,"item":null}\n', numbered=False)[0] == [(1, "1", None)]
    with pytest.raises(SourceError, match=r"column 'item' is missing \(did you mean 'items'\?\)"):
        read("log.jsonl", b'{"user":1,"items":null}\n', numbered=False)


def test_a_latin_1_file_of_json_lines_is_refused_with_its_line(read):
    with pytest.raises(SourceError, match=r"log\.jsonl: line 2 is not in utf-8; .* 'encoding: latin-1'"):
        read("log.jsonl", b'{"user":1,"item":2}\n{"user":"caf\xe9"}\n')


def test_json_lines_may_be_long_and_one_that_is_too_long_is_told(tmp_path, connection):
    path = tmp_path / "log.jsonl"
    path.write_bytes(OBJECTS[0] + b'\n{"user":"' + b"x" * (20 << 20) + b'"}\n')
    numbered, unnumbered = both_ways(connection, path)
    assert numbered == unnumbered
    assert len(numbered[0]) == 2
    path.write_bytes(OBJECTS[0] + b'\n{"user":"' + b"x" * (40 << 20) + b'"}\n')
    with pytest.raises(SourceError, match="Line: 2 Maximum line size of 33554432 bytes exceeded"):
        both_ways(connection, path)


LINES = b"".join(json.dumps({"user": n, "item": n * 7919 % 5000}).encode() + b"\n" for n in range(20_000))
TABLE = HEAD + b"".join(b'u%d,"i\n%d"\n' % (n, n * 7919 % 5000) for n in range(20_000))


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("squeeze", [gzip.compress, igzip.compress, zstd])
@pytest.mark.parametrize(("name", "content"), [("log.jsonl", LINES), ("log.csv", TABLE)], ids=["jsonl", "csv"])
def test_compressed_text_gives_what_plain_text_gives_in_one_part_or_several(read, name, content, squeeze, numbered):
    def found(name, content):
        rows, broken = read(name, content, numbered=numbered)
        return [row if numbered else row[1:] for row in rows], broken

    plain = found(name, content)
    half = len(content) // 2  # in the middle of a line
    suffix = ".zst" if squeeze is zstd else ".gz"
    for end in (suffix, suffix.upper()):
        assert found(name + end, squeeze(content)) == plain
    assert found(name + suffix, squeeze(content[:half]) + squeeze(content[half:])) == plain
    assert (len(plain[0]), plain[1]) == (20_000, [])


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize(("name", "content"), [("log.jsonl", LINES), ("log.csv", TABLE)], ids=["jsonl", "csv"])
def test_a_damaged_compressed_file_is_refused_with_how_far_it_could_be_read(read, name, content, numbered):
    squeezed, frame = gzip.compress(content), zstd(content)
    for suffix, damaged in (
        (".gz", squeezed[:-100]),
        (".gz", squeezed[:-4]),
        (".gz", squeezed[:-8] + b"abcd" + squeezed[-4:]),
        (".gz", squeezed + b"junk after the end"),
        (".gz", squeezed + squeezed[:-100]),
        (".gz", squeezed[:1000] + b"\x00" * 20 + squeezed[1020:]),
        (".gz", content),
        (".zst", frame[:-10]),
        (".zst", frame + frame[:-10]),
        (".zst", content),
    ):
        with pytest.raises(SourceError, match=rf"{name}{suffix}: cannot be read: .* after [\d,]+ bytes of content"):
            read(name + suffix, damaged, numbered=numbered)


def test_reading_compressed_files_leaves_no_descriptor_open(read):
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        read("log.csv.gz", gzip.compress(TABLE))
        with pytest.raises(SourceError):
            read("log.jsonl.gz", gzip.compress(LINES)[:-100])
    assert len(os.listdir("/dev/fd")) <= before + 1


def test_broken_lines_are_numbered_among_the_rows_whatever_blank_lines_there_are(read):
    content = HEAD + b'u1,a\n\n\nu2,"b\n\nc"\nbroken\n\r\nu3,c\n\nbad\n'.replace(b"\r", b"")
    rows, rejects = read("log.csv", content)
    assert rows == [(1, "u1", "a"), (2, "u2", "b\n\nc"), (3, "u3", "c")]
    assert rejects == [(4, "broken"), (6, "bad")]  # the header is 1, so these are rows 3 and 5
    assert read("log.csv.gz", gzip.compress(content)) == (rows, rejects)


def test_an_open_quote_is_told_with_its_row_whatever_blank_lines_and_long_fields_there_are(read):
    with pytest.raises(SourceError, match="the quote that opens at row 3 is not closed"):
        read("log.csv", HEAD + b'u1,a\n\n\nu2,b\n"u3,c\n' + b"u,i\n" * 50_000)
    assert read("long.csv", HEAD + b"u1," + b"x" * 200_000 + b"\n\nbroken\nu,i\n")[1] == [(4, "broken")]


def test_blank_lines_before_the_header_are_skipped(read):
    assert read("log.csv", b"\n\r\n\n" + HEAD + b"u,i\nbroken\n") == ([(1, "u", "i")], [(3, "broken")])


@pytest.mark.parametrize(
    "content",
    [
        b"user,item\nu1,a\r\nu2,b\nu3,c\r\n",
        b"user,item\r\nu1,a\nu2,b\r\nu3,c",
        b"user,item\ru1,a\ru2,b\ru3,c\r",
        b"user,item\r\nu1,a\ru2,b\nu3,c\r\n",
    ],
)
def test_lines_may_end_in_several_ways_in_one_file(read, content):
    rows = [(1, "u1", "a"), (2, "u2", "b"), (3, "u3", "c")]
    assert read("log.csv", content) == (rows, [])
    assert read("log.csv.gz", gzip.compress(content)) == (rows, [])


def test_line_ends_that_change_deep_in_a_file_are_seen(read):
    content = HEAD + b"u,i\n" * 200_000 + b"u,i\r\n" * 300_000
    assert len(read("log.csv", content, numbered=False)[0]) == 500_000


def test_json_lines_may_end_in_several_ways_in_one_file(read):
    rows, _ = read("log.jsonl", b'{"user":1,"item":2}\n{"user":2,"item":2}\r\nbroken\n{"user":3,"item":2}\r\n')
    assert [row[0] for row in rows] == [1, 2, 4]


TEXT = "user,item\nJürgen,é\nu2,b\n"
UTF8 = [(1, "Jürgen", "é"), (2, "u2", "b")]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "cp850"])
def test_an_encoding_is_read_when_it_is_named(read, name, encoding):
    squeeze = {".gz": gzip.compress, ".zst": zstd}.get(name[name.rindex(".") :], bytes)
    assert read(name, squeeze(TEXT.encode(encoding)), encoding=encoding) == (UTF8, [])


def test_json_lines_of_another_encoding_are_read_when_it_is_named(read):
    for numbered in (True, False):
        rows = read("a.jsonl", '{"user":"é","item":1}\n'.encode("cp1252"), encoding="cp1252", numbered=numbered)[0]
        assert [row[1] for row in rows] == ["é"]


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_utf_8_and_utf_16_that_begin_with_their_mark_are_known(read, name):
    squeeze = gzip.compress if name.endswith("gz") else bytes
    for encoding in ("utf-16", "utf-8-sig"):
        assert read(name, squeeze(TEXT.encode(encoding))) == (UTF8, [])


def test_a_wrong_encoding_is_refused_with_the_line_and_the_key_to_set(read):
    for content in (b"user,item\nu,a\ncaf\xe9,b\n", b"user,item,caf\xe9\nu,a,b\n"):
        line = content[: content.index(b"\xe9")].count(b"\n") + 1
        with pytest.raises(SourceError, match=rf"log\.csv: line {line} is not in utf-8; .* 'encoding: latin-1'"):
            read("log.csv", content)
    with pytest.raises(SourceError, match=r"log\.csv: line 2 is not in cp1252; .* 'encoding: utf-8'"):
        read("log.csv", b"user,item\nu,\x81\n", encoding="cp1252")
    with pytest.raises(SourceError, match=r"log\.csv: line 200002 is not in ascii"):
        read("log.csv", HEAD + b"u,i\n" * 200_000 + b"\xe9,i\n", encoding="ascii")


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
@pytest.mark.parametrize("encoding", ["idna", "punycode", "utf-32", "utf-7"])
def test_an_encoding_that_cannot_be_read_is_refused_by_name(read, name, encoding):
    with pytest.raises(SourceError, match=rf"{name}: "):
        read(name, b'user,item\n+2AA-"{",i\n', encoding=encoding)


def test_a_damaged_line_of_a_utf_8_file_is_rejected_alone_with_the_key_to_set(tmp_path, connection):
    path = tmp_path / "log.csv"
    path.write_bytes(HEAD + "é,a\n".encode() + b"caf\xe9,b\nu,c\n")
    file = SourceFile("log.csv", path)
    assert read_table(connection, file, ("user",)).count().to_pyarrow().as_py() == 2
    (reject,) = _rejects(connection, file)
    assert reject.line == 3
    assert "name it in the shop file, e.g. 'encoding: latin-1'" in reject.reason


@pytest.mark.parametrize("sign", [",", "\t", ";", "|", "^", "~", ":", " ", "§"])
def test_any_character_may_separate_the_fields(read, sign):
    content = f'user{sign}item\n"u{sign}1"{sign}a\n'.encode()
    assert read("log.csv", content, delimiter=sign) == ([(1, f"u{sign}1", "a")], [])


def test_a_header_may_hold_quotes_delimiters_and_line_ends(read):
    assert read("log.csv", b'"the\nuser","i;t,em"\nu,i\n', ("the\nuser", "i;t,em"))[0] == [(1, "u", "i")]


def test_columns_that_differ_in_capitals_alone_are_refused_where_both_are_used(read):
    assert read("log.csv", b"user,User,item\na,b,c\n", ("User", "item"))[0] == [(1, "b", "c")]
    with pytest.raises(SourceError, match="column 'User' cannot be told from 'user'"):
        read("log.csv", b"user,User,item\na,b,c\n", ("user", "User"))
    with pytest.raises(SourceError, match="column 'row' cannot be told from 'row'"):
        read("log.csv", b"row,item\na,b\n", ("row", "item"))


def test_a_file_whose_name_holds_the_signs_of_a_glob_is_that_file(tmp_path, read):
    (tmp_path / "log1.csv").write_bytes(HEAD + b"other,b\n")
    for name in ("log[1].csv", "log?.csv", "log*.csv"):
        assert read(name, HEAD + b"u,i\n")[0] == [(1, "u", "i")]
        assert [file.name for file in list_files(name, tmp_path, "path")] == [name]
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x.csv").write_bytes(HEAD)
    assert [file.name for file in list_files("a[1]", tmp_path, "path")] == ["x.csv"]
    assert [file.name for file in list_files("a[1]/*.csv", tmp_path, "path")] == ["x.csv"]
    assert [file.name for file in list_files("log[0-9].csv", tmp_path, "path")] == ["log1.csv"]


def test_hidden_files_of_a_folder_are_left_alone(tmp_path):
    for name in ("log.csv", "._log.csv", ".part.csv"):
        (tmp_path / name).write_bytes(HEAD)
    assert [file.name for file in list_files(".", tmp_path, "path")] == ["log.csv"]


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b"user\nu\n"), ("a.jsonl", b'{"user":"u"}\n'), ("a.parquet", parquet([{"user": "u"}]))],
    ids=["csv", "jsonl", "parquet"],
)
def test_folders_tell_columns_that_the_files_lack(read, name, content, numbered):
    columns = ("user", "country", "dt")
    folder = "dt=2020-01-05/country=United%20Kingdom"
    rows, _ = read(f"{folder}/{name}", content, columns, numbered=numbered)
    assert [row[1:] for row in rows] == [("u", "United Kingdom", "2020-01-05")]
    rows, _ = read(f"dt=__HIVE_DEFAULT_PARTITION__/country=UK/{name}", content, columns, numbered=numbered)
    assert [row[1:] for row in rows] == [("u", "UK", None)]


def test_reading_a_file_again_does_not_double_its_broken_lines(read):
    for numbered in (False, True):
        rows, rejects = read("log.csv", HEAD + b"u,i\nbroken\n", numbered=numbered)
    assert (rows, rejects) == ([(1, "u", "i")], [(3, "broken")])


def test_a_file_that_is_a_folder_is_refused_by_name(tmp_path, connection):
    for name in ("folder.csv", "folder.jsonl", "folder.csv.gz", "folder.parquet", "folder.csv.zst"):
        (tmp_path / name).mkdir()
        with pytest.raises(SourceError, match=f"{name}: cannot be read"):
            read_table(connection, SourceFile(name, tmp_path / name), ("user",))


def test_header_lines_knows_capitals_and_both_kinds_of_compression(tmp_path):
    names = ("a.CSV", "a.csv.GZ", "a.tsv.zst", "a.jsonl.gz", "a.parquet")
    assert [FileSource.header_lines(None, SourceFile(name, tmp_path / name)) for name in names] == [1, 1, 1, 0, 0]
