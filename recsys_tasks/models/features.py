"""What the ranker knows of a customer and a candidate: one place, for training and for serving.

Everything is computed from a log and its ``as_of`` alone, so what is learned on an earlier window is asked in the same
way tonight. Ages and intervals are in days, before ``as_of``; what is not known is NaN, which LightGBM understands.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from recsys_tasks.models.base import codes_of
from recsys_tasks.snapshot import DAY, Catalog, Interactions

HALF_LIVES = (3.0, 7.0, 14.0, 30.0, 90.0)
"""Days over which an item's popularity is told."""
OWN_HALF_LIVES = (30.0, 90.0)
"""Days over which a customer's own events are summed up."""
TEXT_HALF_LIFE = 60.0
"""Days over which a customer's text profile forgets."""
TEXT_DIMENSIONS = 64


@dataclass(frozen=True)
class Items:
    """What the catalogue says of items, as arrays; ``n_items`` long."""

    price: np.ndarray
    """float32, 0 where unknown"""
    groups: np.ndarray
    """(n_items, 3) int32: codes of the narrowest category, the broadest and the brand; -1 where there is none"""
    text: np.ndarray
    """(n_items, d) float32, of unit length or zero"""

    NAMES: ClassVar = ("category", "department", "brand")

    @property
    def log_price(self) -> np.ndarray:
        """(n_items,) float32, NaN where unknown."""
        return np.log(np.where(self.price > 0, self.price, np.nan))

    @classmethod
    def of(cls, catalog: Catalog, text_vectors: np.ndarray) -> "Items":
        """Return the arrays; text vectors are turned to the axes of their largest variance, and the rest is cut."""
        price = np.where(catalog.prices > 0, catalog.prices, 0)
        columns = (catalog.categories, catalog.departments, catalog.brands)
        text = text_vectors.astype(np.float32)
        if text.shape[1] > TEXT_DIMENSIONS:
            _, axes = np.linalg.eigh(text.T @ text)
            text = text @ axes[:, ::-1][:, :TEXT_DIMENSIONS]
        length = np.linalg.norm(text, axis=1, keepdims=True)
        return cls(
            price.astype(np.float32),
            np.stack([_codes(column) for column in columns], 1),
            (text / np.maximum(length, 1e-9)).astype(np.float32),
        )


def _codes(values: list[str]) -> np.ndarray:
    """Return a number for each different value, -1 for none."""
    return codes_of(["", *values])[1:] - 1


class Features:
    """Facts of a log at its ``as_of``, asked for blocks of pairs of a customer and an item."""

    def __init__(self, log: Interactions, items: Items) -> None:
        self.log = log
        self.items = items
        self.today = log.as_of / DAY

    @cached_property
    def _pairs(self) -> "Rhythm":
        return Rhythm.of(self.log.item_idx, self.log.n_items, self.log)

    @cached_property
    def _wishes(self) -> "Rhythm | None":
        """Events that are no target: carts, favourites and views, say, where purchases are."""
        wish = ~self.log.is_target
        return Rhythm.of(self.log.item_idx, self.log.n_items, self.log, wish) if wish.any() else None

    @cached_property
    def _groups(self) -> list["Rhythm | None"]:
        found: list[Rhythm | None] = []
        for codes in self.items.groups.T:
            code = codes[self.log.item_idx]
            n = int(codes.max()) + 1
            told = code >= 0
            found.append(Rhythm.of(code, n, self.log, told) if n > 1 else None)
        return found

    @cached_property
    def of_users(self) -> dict[str, np.ndarray]:
        """(n_users,) float32 a feature."""
        log, pairs = self.log, self._pairs
        n = log.n_users
        active, first, last = log.days(log.user_idx, n)
        events = np.bincount(log.user_idx, minlength=n)
        distinct = np.bincount(pairs.row, minlength=n)
        again = np.bincount(pairs.row, weights=pairs.days > 1, minlength=n)
        bought_days = np.bincount(pairs.row, weights=pairs.days, minlength=n)
        log_price = self.items.log_price[pairs.column].astype(np.float64)
        priced = np.isfinite(log_price)
        n_priced = np.bincount(pairs.row[priced], minlength=n)
        price = np.bincount(pairs.row[priced], weights=log_price[priced], minlength=n)
        square = np.bincount(pairs.row[priced], weights=log_price[priced] ** 2, minlength=n)
        popularity = self.of_items["popularity_90"]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_price = price / n_priced
            found = {
                "user_events": events,
                "user_days": active,
                "user_items": distinct,
                "user_recency": np.where(active > 0, self.today - last, np.nan),
                "user_tenure": np.where(active > 0, self.today - first, np.nan),
                "user_interval": np.where(active > 1, (last - first) / (active - 1), np.nan),
                "user_basket": bought_days / active,
                "user_repeat_share": again / distinct,
                "user_price": mean_price,
                "user_price_spread": np.sqrt(np.maximum(square / n_priced - mean_price**2, 0)),
                "user_mainstream": np.bincount(pairs.row, weights=np.log1p(popularity[pairs.column]), minlength=n)
                / distinct,
            }
        return {name: value.astype(np.float32) for name, value in found.items()}

    @cached_property
    def of_items(self) -> dict[str, np.ndarray]:
        """(n_items,) float32 a feature."""
        log, pairs = self.log, self._pairs
        n = log.n_items
        sold, first, last = log.days(log.item_idx, n)
        buyers = np.bincount(pairs.column, minlength=n)
        again = np.bincount(pairs.column, weights=pairs.days > 1, minlength=n)
        interval = pairs.interval
        known = np.isfinite(interval)
        n_known = np.bincount(pairs.column[known], minlength=n)
        popularity = {h: log.popularity(h) for h in HALF_LIVES}
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                **{f"popularity_{h:.0f}": value for h, value in popularity.items()},
                # of a steady seller both sums are its daily sales times half-life / ln 2
                "trend_7_to_30": popularity[7.0] / 7 / (popularity[30.0] / 30 + 0.01),
                "trend_14_to_90": popularity[14.0] / 14 / (popularity[90.0] / 90 + 0.01),
                "item_buyers": buyers,
                "item_days": sold,
                "item_age": np.where(sold > 0, self.today - first, np.nan),
                "item_idle": np.where(sold > 0, self.today - last, np.nan),
                "item_repeat_rate": again / (buyers + 1.0),
                "item_interval": np.bincount(pairs.column[known], weights=interval[known], minlength=n) / n_known,
                "item_price": self.items.log_price,
            }
        return {name: value.astype(np.float32) for name, value in found.items()}

    @cached_property
    def _profiles(self) -> np.ndarray:
        """(n_users, d) float32 of unit length: what a customer's items say, the newest the loudest."""
        profile = self.log.matrix(TEXT_HALF_LIFE).astype(np.float32) @ self.items.text
        return profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)

    def of_pairs(self, users: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
        """Return (n_pairs,) float32 a feature of ``users[i]`` and ``items[i]``, in a fixed order of names."""
        of_user = {name: value[users] for name, value in self.of_users.items()}
        of_item = {name: value[items] for name, value in self.of_items.items()}
        found = {**of_user, **of_item}
        found |= {f"own_{name}": value for name, value in self._pairs.ask(users, items, self.today).items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            found["own_due_of_item"] = found["own_recency"] / of_item["item_interval"]
            found["own_share"] = found["own_days"] / of_user["user_days"]
        if self._wishes is not None:
            wished = self._wishes.ask(users, items, self.today)
            found |= {f"wished_{kind}": wished[kind] for kind in ("days", "recency", "weight_30")}
            found["wished_since"] = wished["recency"] - found["own_recency"]  # 0 where the wish is the newest event
        for name, codes, rhythm in zip(self.items.NAMES, self.items.groups.T, self._groups, strict=True):
            if rhythm is not None:
                of_group = rhythm.ask(users, codes[items], self.today)
                found |= {f"{name}_{kind}": of_group[kind] for kind in ("days", "recency", "due", "weight_90")}
                with np.errstate(divide="ignore", invalid="ignore"):
                    found[f"{name}_share"] = of_group["days"] / of_user["user_days"]
        with np.errstate(divide="ignore", invalid="ignore"):
            found["price_difference"] = of_item["item_price"] - of_user["user_price"]
            found["price_surprise"] = np.abs(found["price_difference"]) / (of_user["user_price_spread"] + 0.1)
        found["text_likeness"] = np.einsum("nd,nd->n", self._profiles[users], self.items.text[items])
        return {name: value.astype(np.float32, copy=False) for name, value in found.items()}


@dataclass(frozen=True)
class Rhythm:
    """How often and when each customer came back to each item (or category, or brand); sorted by ``key``."""

    key: np.ndarray
    """(n,) int64, user * n_columns + column"""
    n_columns: int
    days: np.ndarray
    """(n,) different days (UTC) with an event"""
    first: np.ndarray
    last: np.ndarray
    """(n,) days since 1970, with the time of day"""
    weights: dict[float, np.ndarray]
    """By half-life, the weights of the events halved with their age."""

    @classmethod
    def of(cls, column: np.ndarray, n_columns: int, log: Interactions, told: np.ndarray | None = None) -> "Rhythm":
        """Count the events of each user and ``column`` (n_events,); ``told`` says which events take part."""
        rows: slice | np.ndarray = slice(None) if told is None else np.flatnonzero(told)
        key = log.user_idx[rows].astype(np.int64) * n_columns + column[rows]
        order = np.argsort(key, kind="stable")  # in a pair, in the order of time
        key, time = key[order], log.time[rows][order]
        day, when = time // DAY, time / DAY
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        new_day = np.ones(len(key), bool)
        new_day[1:] = (np.diff(key) != 0) | (np.diff(day) != 0)
        ends = np.append(starts[1:], len(key)) - 1
        weight, age = log.weight[rows][order], log.age_days[rows][order]
        sums = {h: np.add.reduceat(weight * 0.5 ** (age / h), starts) if len(key) else age for h in OWN_HALF_LIVES}
        n_days = np.add.reduceat(new_day, starts, dtype=np.int64) if len(key) else starts
        return cls(key[starts], n_columns, n_days, when[starts], when[ends], sums)

    @property
    def row(self) -> np.ndarray:
        """(n,) the customer."""
        return self.key // self.n_columns

    @property
    def column(self) -> np.ndarray:
        """(n,) the item, category or brand."""
        return self.key % self.n_columns

    @property
    def interval(self) -> np.ndarray:
        """(n,) mean days between two visits; NaN for one visit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.days > 1, (self.last - self.first) / (self.days - 1), np.nan)

    def ask(self, users: np.ndarray, columns: np.ndarray, today: float) -> dict[str, np.ndarray]:
        """Return what is known of pairs; a pair without an event has 0 days and no recency."""
        key = users.astype(np.int64) * self.n_columns + columns
        place = np.minimum(np.searchsorted(self.key, key), max(len(self.key) - 1, 0))
        known = (self.key[place] == key) & (columns >= 0) if len(self.key) else np.zeros(len(key), bool)
        if not len(self.key):
            place, empty = np.zeros(len(key), np.int64), np.full(1, np.nan)
            days, last, interval, weights = np.zeros(1), empty, empty, dict.fromkeys(OWN_HALF_LIVES, np.zeros(1))
        else:
            days, last, interval, weights = self.days, self.last, self.interval, self.weights
        recency = np.where(known, today - last[place], np.nan)
        interval = np.where(known, interval[place], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            due = recency / np.maximum(interval, 1.0)
        found = {"days": np.where(known, days[place], 0), "recency": recency, "interval": interval, "due": due}
        return found | {f"weight_{h:.0f}": np.where(known, value[place], 0) for h, value in weights.items()}
