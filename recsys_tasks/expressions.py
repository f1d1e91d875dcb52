"""SQL scalar expressions of a shop file: read, checked, and made fit for columns of text.

Only what computes a value from the columns of one row is let through. Subqueries, table functions, and functions that
read files, the environment or the clock are no part of it.
"""

from collections.abc import Collection
from functools import cache

import sqlglot
from sqlglot import exp

_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg)
_COMPARISONS = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Between, exp.In)
_OF_NUMBERS = (exp.Abs, exp.Ceil, exp.Floor, exp.Round)
_FUNCTIONS = (
    *(exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Greatest, exp.Least, exp.Cast, exp.TryCast),
    *(exp.Concat, exp.ConcatWs, exp.Lower, exp.Upper, exp.Trim, exp.Substring, exp.Left, exp.Right, exp.Length),
    *(exp.Replace, exp.SplitPart, exp.StartsWith, exp.EndsWith, exp.Contains, exp.Pad, exp.Reverse, exp.MD5),
    *(exp.RegexpLike, exp.RegexpExtract, exp.RegexpReplace),
    *(exp.StrToTime, exp.TimeToStr, exp.TimestampTrunc, exp.DateTrunc, exp.Extract, exp.UnixToTime),
    *(exp.Year, exp.Month, exp.Day),
)
_GRAMMAR = (
    *(exp.Column, exp.Identifier, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Tuple, exp.Var, exp.Interval),
    *(exp.And, exp.Or, exp.Not, exp.Is, exp.Like, exp.ILike, exp.DPipe, exp.DataType, exp.DataTypeParam),
    exp.AtTimeZone,
)
_ALLOWED = {*_ARITHMETIC, *_COMPARISONS, *_OF_NUMBERS, *_FUNCTIONS, *_GRAMMAR}


def checked(text: str) -> str:
    """Return the expression as it came.

    Raises
    ------
    ValueError
        It is no SQL, or more than a scalar expression over the columns of a row.

    >>> checked("Quantity * UnitPrice")
    'Quantity * UnitPrice'

    """
    _parsed(text)
    return text


def columns_of(text: str) -> list[str]:
    """Return the columns an expression uses, in the order of their first use.

    >>> columns_of('"Unit Price" * Quantity + Quantity')
    ['Unit Price', 'Quantity']

    """
    return list(dict.fromkeys(column.name for column in _parsed(text).find_all(exp.Column, bfs=False)))


def to_sql(text: str, strings: Collection[str]) -> str:
    """Return the expression as DuckDB takes it; what cannot be computed for a row is null there.

    A column among ``strings`` that stands in arithmetic or beside a number becomes a number.

    >>> to_sql("Quantity * 2 > Limit AND Code = 'A'", ["Quantity", "Code"])
    'TRY(TRY_CAST("Quantity" AS DOUBLE) * 2 > "Limit" AND "Code" = \\'A\\')'

    """

    def as_number(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.Column) and node.name in strings and _stands_for_a_number(node):
            return exp.TryCast(this=node.copy(), to=exp.DataType.build("DOUBLE"))
        return node

    return f"TRY({_parsed(text).transform(as_number).sql('duckdb', identify=True, comments=False)})"


@cache
def _parsed(text: str) -> exp.Expr:
    try:
        found = sqlglot.parse(text, read="duckdb")
        if found and found[0]:
            found[0].sql("duckdb")
    except RecursionError as error:
        raise ValueError(f"{text[:80]!r}... is nested too deep; expected a shorter expression") from error
    except sqlglot.errors.SqlglotError as error:
        what = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{text!r} is no SQL expression: {what}. Expected one such as Quantity * UnitPrice") from error
    if len(found) != 1 or found[0] is None:
        raise ValueError(f"{text!r} is no SQL expression; expected one such as Quantity * UnitPrice")
    for node in found[0].walk():
        if type(node) not in _ALLOWED or (isinstance(node, exp.Column) and node.table):
            raise ValueError(
                f"{text!r}: {node.sql('duckdb')!r} may not stand here; expected columns of the file, literals, "
                "arithmetic, comparisons, CASE, CAST and functions of text, numbers and times"
            )
    return found[0]


def _stands_for_a_number(column: exp.Expr) -> bool:
    node, parent = column, column.parent
    while isinstance(parent, exp.Paren):
        node, parent = parent, parent.parent
    if isinstance(parent, exp.Round):
        return node is parent.this
    if isinstance(parent, (*_ARITHMETIC, *_OF_NUMBERS)):
        return True
    return isinstance(parent, _COMPARISONS) and any(_is_number(other) for other in parent.iter_expressions())


def _is_number(node: exp.Expr) -> bool:
    node = node.unnest()
    return isinstance(node, (*_ARITHMETIC, *_OF_NUMBERS)) or (isinstance(node, exp.Literal) and node.is_number)
