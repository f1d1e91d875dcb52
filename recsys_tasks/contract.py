"""Names and schemas of every table that leaves a step: written once here, and nowhere else as a literal."""

from collections.abc import Sequence
from typing import Final, Literal, get_args

import pyarrow as pa

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"
EVENT_TYPE: Final = "event_type"

EVENT_TYPES: Final = ("view", "click", "cart", "favourite", "purchase", "coupon", "rating", "return")
TIERS: Final = ("loyal", "warm", "cold", "anonymous")
VIEWS: Final = ("all", "discovery")
Placement = Literal["home", "discover", "buy_again", "similar", "bought_together", "trending", "new"]
PLACEMENTS: Final[tuple[Placement, ...]] = get_args(Placement)
"""All there are; a shop may choose among them (``placements``), but ``home`` stands for its version."""
PLACEMENT_VIEW: Final[dict[str, str]] = {"home": "all", "discover": "discovery"}
"""Which view of the leaderboard decides the champion of a placement; no champion fills the others."""
OF_ITEMS: Final = ("similar", "bought_together")
"""Placements whose readers are items: an item page asks for them. Customers read the others."""
OF_CUSTOMERS: Final = tuple(placement for placement in PLACEMENTS if placement not in OF_ITEMS)
SHORT: Final = ("buy_again", "new")
"""Placements that are no longer than what they are about: nothing else fills them up, so a list may be missing."""
EVERYONE: Final = "everyone"
"""The leaderboard's row over all customers that had a history; ``anonymous`` ones, who had none, have their own."""
ANONYMOUS: Final = "__anonymous__"
"""The user id under which the list for visitors is published."""

PINNED: Final = "pinned"
"""The source of an item that nothing but a rule of the shop proposed."""
POPULAR: Final = "popular"
"""The source of what many buy, and of what fills up a list."""
POPULAR_SEGMENT: Final = "popular_segment"
"""Of what customers with the same attributes buy more of than others,"""
POPULAR_CATEGORY: Final = "popular_category"
"""of what is popular in a department the customer met, or in the category of an item,"""
TRENDING: Final = "trending"
"""of what takes a larger part of the shop's sales than before,"""
NEW: Final = "new"
BUY_AGAIN: Final = "buy_again"
BOUGHT_TOGETHER: Final = "bought_together"
"""and of the placements of these names."""
BACK_OFF: Final = (POPULAR, POPULAR_SEGMENT, POPULAR_CATEGORY, TRENDING)
"""Sources of what fills up the lists of customers."""

_TIME = pa.timestamp("us", tz="UTC")

EVENTS: Final = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(TIMESTAMP, _TIME, nullable=False),
        pa.field(EVENT_TYPE, pa.string(), nullable=False),
        pa.field("value", pa.float64()),  # rating, quantity, discount of a coupon
        pa.field("price", pa.float64()),
        pa.field("session_id", pa.string()),
        pa.field("event_id", pa.string()),
    ]
)
"""One row an event, sorted by time. Written by ingest (one file a day), read by every later step."""

ITEMS: Final = pa.schema(
    [
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("category", pa.list_(pa.string())),  # broad to narrow
        pa.field("price", pa.float64()),
        pa.field("available", pa.bool_(), nullable=False),
        pa.field("updated_at", _TIME),
    ]
)
"""The catalogue as of the night, sorted by item_id. Written by ingest, read by every later step."""

USERS: Final = pa.schema([pa.field(USER_ID, pa.string(), nullable=False)])
"""Customers the shop knows something of, sorted by user_id: beside the id a string column for each attribute the shop
has. Written by ingest where the source has such files, read by models that use attributes."""

CUSTOMERS: Final = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("targets", pa.int64(), nullable=False),  # events that recommendations are to bring about
        pa.field("active_days", pa.int64(), nullable=False),  # days (UTC) with an event
        pa.field("first_day", pa.date32()),
        pa.field("last_day", pa.date32()),
    ]
)
"""Every customer of the log, in the order of their first events: a row is a ``user_idx``. Events that say something of
a taste count."""

ITEM_STATISTICS: Final = pa.schema(
    [
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("targets", pa.int64(), nullable=False),
        pa.field("active_days", pa.int64(), nullable=False),
        pa.field("first_day", pa.date32()),
        pa.field("last_day", pa.date32()),
    ]
)
"""Every item of the catalogue, sorted by item_id: a row is an ``item_idx``."""

QUARANTINE: Final = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),  # events | items | users
        pa.field("file", pa.string(), nullable=False),  # name relative to the source
        pa.field("row", pa.int64(), nullable=False),  # data row in the file, from 1
        pa.field("field", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # what came, what was expected
        pa.field("record", pa.string()),  # the row as it came, name=value
    ]
)
"""Rows that were not used, each with its reason. Written by ingest, read by people."""

RECOMMENDATIONS: Final = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),  # an item id for item placements
        pa.field("rank", pa.int16(), nullable=False),  # from 1
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # higher is better; comparable within one list only
        pa.field("tier", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # the model or the count that put it there
        pa.field("reason", pa.string(), nullable=False),  # a sentence a shopper can read
        pa.field("reason_item_id", pa.string()),
    ]
)
"""The product. Written by recommend, proven by check, made current by publish, read by the shop."""


_DIAL = pa.struct([("before", pa.list_(pa.int32())), ("after", pa.list_(pa.int32())), ("why", pa.list_(pa.string()))])
LATER_STAGES: Final = ("ranker", "agent")
"""What puts the proposals of the sources in order, and then in another."""


def trace_schema(sources: Sequence[str], later: int, rules: bool = False, dial: bool = False) -> pa.Schema:
    """Return the schema of how the lists of one placement came about: a row a customer, sorted by user_id.

    ``items`` are the first ``listed`` items of the list, then proposals that it leaves out, best first. Each stage has
    a rank (from 1) and a score for each of them, null where it does not propose the item. So many ``LATER_STAGES`` as
    the champion has are columns; an agent's score is its Q. Where the shop has ``rules``, a column says what they did
    to each item, null where nothing; where a diversity ``dial`` is on, ``before`` and ``after`` say from which place to
    which it moved an item (null for none), and ``why``. Written by recommend, kept by publish, read by the inspector.
    """
    said = pa.struct([("rank", pa.list_(pa.int32())), ("score", pa.list_(pa.float32()))])
    return pa.schema(
        [
            pa.field(USER_ID, pa.string(), nullable=False),
            pa.field("tier", pa.string(), nullable=False),
            pa.field("listed", pa.int16(), nullable=False),
            pa.field("items", pa.list_(pa.string()), nullable=False),
            pa.field("sources", pa.struct([(name, said) for name in sources]), nullable=False),
            *(pa.field(stage, said, nullable=False) for stage in LATER_STAGES[:later]),
            *([pa.field("rules", pa.list_(pa.string()), nullable=False)] if rules else []),
            *([pa.field("dial", _DIAL, nullable=False)] if dial else []),
        ]
    )
