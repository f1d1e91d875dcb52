"""Text and prices that were scraped from web pages, brought to what a shopper would read."""

import html
import re
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import pyarrow as pa

_SCRIPT = re.compile(r"<(script|style)\b.*?(</\1\s*>|$)|<!--.*?(-->|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_CUT_TAG = re.compile(r"<(/?[a-z]+|[a-z]+\s+[a-z-]+\s*=[^<>]*)$", re.IGNORECASE)
"""A tag that the end of the text cuts off: ``<span class="a``."""
_JAVASCRIPT = "getTime("
_MAY_CHANGE = r"[<&]|getTime\(|[^ -~]|  |^ | $"
"""Markup, javascript, white space out of place; beyond ASCII any of it may be white space."""

_DOLLARS = r"^(?:[Ff]rom\s+)?\$?\s*(\d[\d,]*(?:\.\d+)?)(?:\s*-\s*\$?\s*(\d[\d,]*(?:\.\d+)?))?$"


def plain(text: str | None) -> str | None:
    """Return a text without markup: entities resolved, tags and scripts gone, one blank between words; None if empty.

    A text that is the javascript of a page (it calls ``getTime``) holds no word of the shop and is None.

    >>> plain('<span id="t">Rock &amp;amp; Roll</span>\\n <br/>Love <3')
    'Rock & Roll Love <3'
    >>> plain("var aPageStart = (new Date()).getTime();") is None
    True

    """
    if text is None or _JAVASCRIPT in text:
        return None
    for _ in range(3):  # "&amp;amp;" was escaped more than once
        if "&" not in text or (resolved := html.unescape(text)) == text:
            break
        text = resolved
    if "<" in text:
        text = _CUT_TAG.sub(" ", _TAG.sub(" ", _SCRIPT.sub(" ", text)))
    return " ".join(text.split()) or None


def path_of(labels: list[str | None] | None) -> list[str]:
    """Return a category path without markup and gaps, up to the first label that closes a ``<span>``.

    What follows such a label was never a category: the scraper ran on into the page's list of features.

    >>> path_of(["CDs &amp; Vinyl", "", "<b>Jazz</b>", "</span></span></span>", "Imported"])
    ['CDs & Vinyl', 'Jazz']

    """
    path = []
    for label in labels or []:
        if label is not None and "</span>" in label:
            break
        if clean := plain(label):
            path.append(clean)
    return path


@ibis.udf.scalar.pyarrow
def without_markup(text: dt.string) -> dt.string:
    """``plain`` for a column; an empty string where nothing is left, for a null may only come from a null."""
    return pa.array([plain(one) or "" for one in text.to_pylist()], pa.string())


@ibis.udf.scalar.pyarrow
def plain_path(labels: dt.Array(dt.string)) -> dt.Array(dt.string):  # type: ignore[valid-type]
    """``path_of`` for a column."""
    return pa.array([path_of(one) for one in labels.to_pylist()], pa.list_(pa.string()))


def plain_text(text: ibis.Value) -> ibis.Value:
    """``plain`` for a column. Python, which is slow, is asked only about texts that ``plain`` may change."""
    return ibis.ifelse(text.re_search(_MAY_CHANGE), without_markup(text), text)


def dollars(text: ibis.Value) -> ibis.Value:
    """Return the price that a string holds, float64; of a range the lower; null where there is none.

    ``$1,299.00``, ``$5.00 - $9.99``, ``from 12.99`` and ``12.99`` are prices; ``None`` and style sheets are not.
    """

    def number(group: int) -> Any:
        return text.strip().re_extract(_DOLLARS, group).replace(",", "").nullif("").try_cast("float64")

    lower, upper = number(1), number(2)
    return ibis.ifelse((upper < lower).fill_null(False), upper, lower)
