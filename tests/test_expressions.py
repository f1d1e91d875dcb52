"""Expressions of a shop file compute a value from one row, and nothing else gets through."""

import duckdb
import pytest

from recsys_tasks.expressions import checked, columns_of, to_sql


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n * price", 7.5),
        ("-n + 10", 7),
        ("(n) > 2", True),
        ("10 > n", True),
        ("n BETWEEN 3 AND 12", True),
        ("n IN (3, 4)", True),
        ("n * price > price", True),
        ("round(price, 1)", 2.5),
        ("abs(n) = 3", True),
        ("junk * 2", None),
        ("junk > 0", None),
        ("n / 0", float("inf")),
        ("CAST(junk AS INT)", None),
        ("strptime(junk, '%d')", None),
        ("n = '03'", True),
        ("n = '3'", False),
        ("code || '-' || upper(junk)", "C7-X"),
        ("starts_with(code, 'C') AND code NOT LIKE '%9'", True),
        ("CASE WHEN code IS NULL THEN 'none' ELSE split_part(code, '7', 1) END", "C"),
        ("coalesce(nullif(code, 'C7'), 'other')", "other"),
        ("regexp_extract(code, '(\\d+)', 1)", "7"),
        ("count::INT + 1", 5),
        ('"odd ""name"', "o"),
        ("year(day)", 2020),
        ("day + INTERVAL 1 DAY > TIMESTAMP '2020-01-05'", True),
    ],
)
def test_an_expression_gives_what_a_person_expects_of_columns_of_text(text, value):
    row = "SELECT '03' AS n, '2.50' AS price, 'x' AS junk, 'C7' AS code, 4 AS count, 'o' AS \"odd \"\"name\", "
    row += "TIMESTAMP '2020-01-05' AS day"
    ((found,),) = duckdb.sql(f"SELECT {to_sql(text, ['n', 'price', 'junk', 'code'])} FROM ({row})").fetchall()
    assert found == value


@pytest.mark.parametrize(
    "text",
    [
        "(SELECT 1)",
        "n IN (SELECT n FROM t)",
        "EXISTS (SELECT 1)",
        "SELECT n",
        "n FROM t",
        "n; DROP TABLE t",
        "n AS m",
        "t.n",
        "*",
        "n, m",
        "sum(n)",
        "sum(n) OVER ()",
        "row_number() OVER ()",
        "unnest(n)",
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "getenv('HOME')",
        "getvariable('x')",
        "current_setting('home_directory')",
        "query('SELECT 1')",
        "random()",
        "now()",
        "current_date",
        "nextval('s')",
        "COLUMNS('n')",
        "n > $1",
        "n > ?",
        "list_filter(n, x -> x > 1)",
        "DROP TABLE t",
        "ATTACH 'x.db'",
        "COPY t TO 'x'",
        "n >",
        "",
        "-- nothing",
        "'open",
    ],
)
def test_what_is_no_expression_over_one_row_is_refused_as_it_stands(text):
    with pytest.raises(ValueError, match=r"xpected") as error:
        checked(text)
    assert str(error.value).startswith(repr(text))


def test_the_columns_of_an_expression_are_told_once_and_as_they_are_written():
    assert columns_of("CASE WHEN Qty > 0 THEN Qty * \"Unit Price\" ELSE 'Qty' END") == ["Qty", "Unit Price"]
