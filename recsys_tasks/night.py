"""What tonight is: the parameters of one run, settled once and handed from step to step as a small dict."""

import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from recsys_tasks.errors import ContractError, ShopFileError
from recsys_tasks.lake import Lake
from recsys_tasks.models import BASELINES, MODELS, STAGES
from recsys_tasks.recipe import Recipe, starts
from recsys_tasks.settings import Settings
from recsys_tasks.shop import Shop, load_shop
from recsys_tasks.split import Windows, split_by_time
from recsys_tasks.tracking import Tracking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Night:
    """One night of one shop. Every step takes it first; it is made of JSON values, so it crosses tasks as it is."""

    shop_file: str
    as_of: str
    """The instant the night looks back from, ISO 8601 in UTC. No event at or after it is used."""
    k: int
    recipes: list[str]
    """Recipes to train and compare, written by ``Recipe.text``."""
    publish: bool = True
    """Whether champions, lists and report of this night become the current ones; without, none of them moves."""
    force_promote: str | None = None
    """Name of a model that is made champion whatever the leaderboard says."""
    hold: bool = False
    """Whether the champions in office stay, whatever the leaderboard says."""
    champions: dict[str, str] = field(default_factory=dict)
    """Placement -> recipe in office when the night began, which challengers are compared with."""
    asked_by: str | None = None
    """The person who asked for this night, for the ledger; None where a schedule did."""
    tracked: bool = True
    """Whether MLflow keeps a run of every model; the dates of a backtest leave that to the backtest."""
    shards: list[int] = field(default_factory=list)
    starts: dict[str, str] = field(default_factory=dict)
    """Recipe -> earlier model whose weights its training begins with tonight; the others begin with nothing."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; ``Night(**night.to_dict()) == night``."""
        return asdict(self)

    @property
    def name(self) -> str:
        """What MLflow and people call this night."""
        return f"{self.instant:%Y-%m-%dT%H:%M:%SZ}"

    @property
    def instant(self) -> datetime:
        """``as_of`` as a datetime in UTC."""
        return datetime.fromisoformat(self.as_of)

    @property
    def by_stage(self) -> list[list[str]]:
        """Recipes that are trained on their own; then those that read what these say, and so on."""
        stages = range(1, max(STAGES.values()) + 1)
        return [[recipe for recipe in self.recipes if Recipe(recipe).stage == stage] for stage in stages]

    @property
    def shop(self) -> Shop:
        """The shop file, read again."""
        return load_shop(self.shop_file, Settings().shops)

    @property
    def lake(self) -> Lake:
        """The lake of this home."""
        return Lake(Settings().lake)

    @property
    def tracking(self) -> Tracking:
        """The MLflow experiment and registered model of this shop."""
        return Tracking(Settings(), self.shop.name)

    @property
    def windows(self) -> Windows:
        """Where fit, validation and test end."""
        return split_by_time(self.instant, self.shop.windows)


def plan(
    shop: str,
    as_of: str | None,
    run_key: datetime,
    models: list[str] | None = None,
    k: int | None = None,
    publish: bool = True,
    force_promote: str | None = None,
    asked_by: str | None = None,
    hold: bool = False,
) -> Night:
    """Settle what tonight is.

    Parameters
    ----------
    shop
        Name or path of a shop file.
    as_of
        ISO 8601 instant with zone, or None for ``run_key`` (of an archive: its end, where ``run_key`` is later).
    run_key
        When the run is for: the scheduler's logical date.
    models
        Models to train beside the baselines and the champions, each with its challenger; None for the shop file's.
    k, publish, force_promote, asked_by, hold
        See ``Night``.

    Raises
    ------
    ContractError
        ``as_of`` is no instant or has no time zone; ``hold`` and ``force_promote`` at once.
    ShopFileError
        The shop file is wrong, or names a model there is none of.

    """
    if hold and force_promote:
        raise ContractError(
            f"hold and force_promote: {force_promote!r} cannot become champion while the champions are held; "
            "give one of the two"
        )
    settings = Settings()
    description = load_shop(shop, settings.shops)
    instant = as_of_of(description, as_of, run_key)
    wanted = list(models or description.models)
    for name in [*wanted, *description.models, *([force_promote] if force_promote else [])]:
        if name not in MODELS:
            raise ShopFileError(
                f"{description.file}: models: there is no model {name!r}; expected some of {list(MODELS)}"
            )
    if force_promote and force_promote not in wanted:
        wanted.append(force_promote)
    names = list(dict.fromkeys([*BASELINES, *wanted]))
    recipes = [Recipe.of(name, description.models.get(name, {})) for name in names]
    tracking = Tracking(settings, description.name)
    champions = tracking.champions()
    recipes += [champion for champion in champions.values() if champion.model in MODELS]
    recipes += [challenger for model, challenger in tracking.challengers().items() if model in names]
    recipes = list(dict.fromkeys(recipes))
    begun: dict[str, str] = {}
    if publish and description.training.begins_with_weights(instant):  # else a backfill would depend on its order
        begun = starts(Lake(settings.lake), recipes, split_by_time(instant, description.windows))
    return Night(
        shop_file=str(description.file),
        as_of=instant.isoformat(),
        k=k or description.k,
        recipes=[recipe.text for recipe in recipes],
        publish=publish,
        force_promote=force_promote,
        hold=hold,
        champions={placement: recipe.text for placement, recipe in champions.items()},
        asked_by=asked_by,
        shards=list(range(description.shards)),
        starts=begun,
    )


def as_of_of(shop: Shop, as_of: str | None, run_key: datetime) -> datetime:
    """Return the instant that a night looks back from; see ``plan``."""
    if as_of:
        return _instant(as_of, "as_of")
    instant = run_key.astimezone(UTC)
    return min(instant, shop.archive_until) if shop.archive_until else instant


def nights_between(first: str, last: str) -> list[datetime]:
    """Return the instants of a night a day, from the first to the last, both included.

    Parameters
    ----------
    first
        ISO 8601 date, for midnight in UTC, or instant with zone. Every night is at its time of day, in UTC.
    last
        Date of the last night, or an instant that no night is after.

    Raises
    ------
    ContractError
        One of them is no date and no instant, has no zone, or lies before the other.

    """
    start = _instant(first, "from", or_date=True)
    end = _instant(last, "to", or_date=True)
    if _is_date(last):
        end = datetime.combine(end, start.timetz())
    if end < start:
        raise ContractError(f"to: {last!r} lies before from, {first!r}; expected the same night or a later one")
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def _instant(text: str, field: str, or_date: bool = False) -> datetime:
    """Return an instant in UTC; the message of an error names the field that a person filled in."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        expected = "ISO 8601 with a zone, such as 2017-12-04T00:00:00Z"
        expected += ", or a date, such as 2017-12-04" if or_date else ""
        raise ContractError(f"{field}: {text!r} is no instant; expected {expected}") from error
    if or_date and _is_date(text):
        return instant.replace(tzinfo=UTC)
    if instant.tzinfo is None:
        raise ContractError(f"{field}: {text!r} has no time zone; write {instant.isoformat()}Z for UTC")
    return instant.astimezone(UTC)


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
