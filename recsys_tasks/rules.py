"""The shop's rules, enforced last: whatever the models, the agent and the fill propose becomes a list here.

Rules that leave items out come first; then boosts put the rest in another order; then the list is written place by
place: pins at their slots, and else the next item that no cap forbids. So what forbids is stronger than what wishes.
Letters: n readers (customers, or items in ``similar``), K proposals of each, k places of a list, P pins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_tasks.contract import ITEM_ID, USER_ID
from recsys_tasks.errors import ShopFileError
from recsys_tasks.expressions import to_sql
from recsys_tasks.shop import CUSTOMER, Band, Cap, Match, Rebuy, Rule
from recsys_tasks.snapshot import DAY, Interactions, microseconds

Forbids = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From (n,) readers and (n, K) item_idx to (n, K) bool: what must not stand in their lists."""

RAISES = ("boost", "pin")
"""Kinds of rules that move items up; the others take them out of their places."""

PLACES = pa.schema(
    [pa.field(USER_ID, pa.string()), pa.field(ITEM_ID, pa.string()), pa.field("place", pa.int32(), nullable=False)]
)
"""Of every row of the lists that boosts re-ordered: its place among what no rule leaves out, 0 for what is only pinned.
Written by recommend, read by check."""


@dataclass(frozen=True)
class Facts:
    """What rules may ask of the items of a snapshot, in the order of ``item_idx``, and of its customers."""

    table: pa.Table
    """``shop.ITEM_FACTS``"""
    paths: list[list[str]]
    """The categories of each item, broad to narrow"""
    attributes: dict[str, np.ndarray]
    """Name -> (n_users,) text of the customers, empty where the shop does not know"""

    @classmethod
    def of(cls, items: pa.Table, attributes: dict[str, np.ndarray]) -> "Facts":
        """Take the catalogue (``contract.ITEMS``), and what the shop knows of its customers."""
        paths = [list(path or []) for path in items["category"].to_pylist()]
        columns = {name: items[name] for name in (ITEM_ID, "title", "description", "brand", "price", "updated_at")}
        columns["category"] = pa.array([path[-1] if path else None for path in paths], pa.string())
        columns["department"] = pa.array([path[0] if path else None for path in paths], pa.string())
        columns["categories"] = pa.array([" > ".join(path) or None for path in paths], pa.string())
        return cls(pa.table(columns), paths, attributes)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.table)

    def place(self, item_id: str) -> int:
        """Return the ``item_idx`` of an item, -1 of one that the catalogue lacks."""
        return pc.index(self.table[ITEM_ID], item_id).as_py()

    def among(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Return (n_items,) bool: the items whose value in a column is one of these."""
        return pc.is_in(self.table[name], pa.array(values, pa.string())).to_numpy()

    def codes(self, name: str) -> np.ndarray:
        """Return (n_items,) int64, a number for each value of a column; -1 for none."""
        values = pc.dictionary_encode(self.table[name].combine_chunks())
        return pc.fill_null(values.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def truth(self, rule: str, condition: str, customers: pa.Table | None = None) -> np.ndarray:
        """Return (n_items,) bool where a condition is true; with m ``customers``, (m, n_items).

        Raises
        ------
        ShopFileError
            The condition compares what cannot be compared.

        """
        facts = self.table.append_column("row", pa.array(np.arange(len(self))))
        m = 1 if customers is None else len(customers)
        others = pa.table({"other": np.arange(m)}) if customers is None else customers
        text = {field.name for table in (facts, others) for field in table.schema if pa.types.is_string(field.type)}
        sql = f"SELECT other, row FROM facts, others WHERE {to_sql(condition, text)}"
        with duckdb.connect() as db:
            db.execute("SET TimeZone = 'UTC'")
            db.register("facts", facts)
            db.register("others", others)
            try:
                found = db.execute(sql).to_arrow_table()
            except duckdb.Error as error:
                gist = str(error).splitlines()[0]
                raise ShopFileError(
                    f"rules: {rule!r}: {condition!r} cannot be computed: {gist}. Expected a condition over an item's "
                    "title, price and so on that holds or does not"
                ) from error
        true = np.zeros((m, len(self)), bool)
        true[found["other"].to_numpy(), found["row"].to_numpy()] = True
        return true if customers is not None else true[0]

    def customers(self, rule: Rule) -> tuple[np.ndarray, pa.Table]:
        """Return (n_users + 1,) the group of each customer and, last, of visitors, and a row for each group.

        A group are customers who have the attributes that a rule asks for in common.

        Raises
        ------
        ShopFileError
            The shop's customers have no such attribute.

        """
        for name in rule.customers:
            if name not in self.attributes:
                known = ", ".join(CUSTOMER + name for name in sorted(self.attributes)) or "none, see source.users"
                raise ShopFileError(f"rules: {rule.name!r}: there is no {CUSTOMER}{name}; there are: {known}")
        columns = [np.append(self.attributes[name], "") for name in rule.customers]
        groups, codes = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        named = {
            CUSTOMER + name: pa.array([value or None for value in groups[:, n].tolist()], pa.string())
            for n, name in enumerate(rule.customers)
        }
        return codes.reshape(-1), pa.table({**named, "other": np.arange(len(groups))})


def matching(rule: str, match: Match, facts: Facts) -> np.ndarray:
    """Return (n_items,) bool: the items that a match tells of."""
    found = facts.among(ITEM_ID, match.items) | facts.among("brand", match.brands)
    if match.categories:
        wanted = set(match.categories)
        found |= np.array([not wanted.isdisjoint(path) for path in facts.paths], bool)
    return found | facts.truth(rule, match.where) if match.where else found


def outside(band: Band, facts: Facts) -> np.ndarray:
    """Return (n_items,) bool: the items whose price does not lie in the band, or is unknown."""
    price = facts.table["price"].to_numpy(zero_copy_only=False).astype(np.float64)
    low, high = (-np.inf if band.min is None else band.min), (np.inf if band.max is None else band.max)
    return ~((price >= low) & (price <= high))


def unfit(rule: Rule, facts: Facts) -> Forbids:
    """Forbid customers the items of which a condition is not true for them; what is unknown is not true."""
    group, customers = facts.customers(rule)
    fit = facts.truth(rule.name, rule.require or "", customers)
    return lambda readers, items: ~fit[group[readers][:, None], items]


def bought_lately(rebuy: Rebuy, facts: Facts, log: Interactions) -> Forbids:
    """Forbid customers what they bought, for as long as the item's narrowest named category says."""
    limits = {"never": np.inf, None: 0.0}
    wait = np.full(len(facts), limits.get(rebuy.days, rebuy.days), np.float64)  # type: ignore[arg-type]
    for item, path in enumerate(facts.paths if rebuy.categories else ()):
        named = [name for name in path if name in rebuy.categories]
        if named:
            days = rebuy.categories[named[-1]]
            wait[item] = limits.get(days, days)  # type: ignore[arg-type]
    rows = np.flatnonzero(log.is_target)[::-1]
    keys, newest = np.unique(log.user_idx[rows].astype(np.int64) * log.n_items + log.item_idx[rows], return_index=True)
    age = (log.as_of - log.time[rows[newest]]) / DAY  # days since a customer last bought an item

    def forbids(readers: np.ndarray, items: np.ndarray) -> np.ndarray:
        wanted = readers[:, None].astype(np.int64) * log.n_items + items
        at = np.searchsorted(keys, wanted).clip(max=max(len(keys) - 1, 0))
        return (keys[at] == wanted) & (readers >= 0)[:, None] & (age[at] < wait[items]) if len(keys) else wanted < 0

    return forbids


def raised(place: np.ndarray, factor: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the order that boosts ask for; of two at one place the boosted item comes first."""
    return place / factor - places - 0.5 * ((factor > 1) | (places > 0))


def full(count: np.ndarray, cap: Cap) -> np.ndarray:
    """Tell whether a kind has all the places that a cap leaves it."""
    return count >= cap.at_most


def slots(rules: Sequence[Rule], k: int) -> dict[str, int]:
    """Return rule -> slot of the pins that have one in lists of k, from the top."""
    found = {rule.name: rule.pin.slot for rule in rules if rule.pin and rule.pin.slot <= k}
    return dict(sorted(found.items(), key=lambda pin: pin[1]))


@dataclass(frozen=True)
class Ruled:
    """What rules made of (n, K) proposals."""

    columns: np.ndarray
    """(n, k) int64, which proposal stands in each place; K for a pinned item that nothing else proposed; -1 for none"""
    items: np.ndarray
    """(n, k) int32"""
    place: np.ndarray
    """(n, K) int64, place of each proposal among those that no rule forbids, from 1; 0 of the others"""
    forbidden: np.ndarray
    """(n, K) int16, the first rule that leaves a proposal out, from 1; 0 where none does"""
    moved: np.ndarray
    """(n, k) int16, the rule that pinned or raised the item in each place, or held it back, from 1; 0 where none did"""
    held_back: np.ndarray
    """(n, K) int16, the cap that kept a proposal from its place, from 1; 0 where none did"""


class Rules:
    """The rules of one placement in one night.

    Parameters
    ----------
    rules
        Those in force (``Shop.rules_of``).
    facts, log
        Of the night's snapshot.
    candidates
        (n_items,) bool, what may be recommended at all.
    never
        What lists of the placement never hold, whatever is pinned: in ``discover``, what the customer bought.

    """

    def __init__(
        self, rules: Sequence[Rule], facts: Facts, log: Interactions, candidates: np.ndarray, never: Forbids
    ) -> None:
        self.rules, self.candidates, self.never = list(rules), candidates, never
        self.allowed = candidates.copy()
        """(n_items,) bool: candidates that no rule forbids to everybody."""
        self._filters: list[tuple[int, Forbids]] = []
        self._caps: list[tuple[int, Cap, np.ndarray]] = []
        self._factor, self._places = np.ones(len(facts)), np.zeros(len(facts))
        self._booster = np.zeros(len(facts), np.int16)
        for number, rule in enumerate(rules, 1):
            if rule.exclude_bought:
                self._filters.append((number, bought_lately(rule.exclude_bought, facts, log)))
            elif rule.customers:
                self._filters.append((number, unfit(rule, facts)))
            elif rule.cap:
                self._caps.append((number, rule.cap, facts.codes(rule.cap.by)))
            elif rule.boost:
                found = matching(rule.name, rule.boost, facts)
                self._factor[found] *= rule.boost.factor
                self._places[found] += rule.boost.places
                self._booster[found & (self._booster == 0)] = number
            elif not rule.pin:
                self._forbid(number, _left_out(rule, facts))
        pinned = {rule.name: facts.place(rule.pin.item) for rule in rules if rule.pin}
        self._pinned = {name: item for name, item in pinned.items() if item >= 0}
        self._number = {rule.name: number for number, rule in enumerate(rules, 1)}

    def _forbid(self, number: int, items: np.ndarray) -> None:
        self.allowed &= ~items
        self._filters.append((number, lambda _, proposed: items[proposed]))

    def needed(self, k: int) -> int:
        """Return how many proposals decide on k places: a boost may bring the last of so many into the list."""
        return int(np.ceil((k + self._places.max(initial=0) + 1) * self._factor.max(initial=1)))

    @cached_property
    def moves(self) -> bool:
        """Whether any rule changes the order of what is allowed."""
        return bool(self._booster.any())

    def forbidden(self, readers: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return (n, K) int16, the first rule that forbids each item of (n, K) to its reader, from 1; 0 for none."""
        found = np.zeros(items.shape, np.int16)
        for number, forbids in self._filters:
            found[forbids(readers, items) & (found == 0)] = number
        found[items < 0] = 0
        return found

    def enforce(self, readers: np.ndarray, items: np.ndarray, k: int) -> Ruled:
        """Write the lists of (n,) readers from (n, K) proposals, best first and -1 behind the last."""
        n, width = items.shape
        forbidden = self.forbidden(readers, items)
        alive = (items >= 0) & (forbidden == 0)
        place = np.cumsum(alive, 1) * alive
        known = np.maximum(items, 0)
        key = raised(place, self._factor[known], self._places[known]) if self.moves else place
        order = np.argsort(np.where(alive, key, np.inf), axis=1, kind="stable")
        pins = {name: slot for name, slot in slots(self.rules, k).items() if name in self._pinned}
        pinned = np.tile(np.array([self._pinned[name] for name in pins], np.int64), (n, 1)).reshape(n, len(pins))
        held_back = np.zeros(items.shape, np.int16)
        if pins or self._caps:
            wanted = self.candidates[pinned] & (self.forbidden(readers, pinned) == 0) & ~self.never(readers, pinned)
            everything = np.concatenate([np.take_along_axis(known, order, 1), pinned], 1)
            is_open = np.concatenate([np.take_along_axis(alive, order, 1), np.zeros(wanted.shape, bool)], 1)
            at, by_pin, held = self._written(everything, is_open, wanted, pins, k)
            np.put_along_axis(held_back, order, held[:, :width], 1)
        else:
            everything, at, by_pin = np.take_along_axis(known, order, 1), np.tile(np.arange(k), (n, 1)), None
            at[(at >= width) | (at >= alive.sum(1)[:, None])] = -1
        there = at >= 0
        listed = np.where(there, np.take_along_axis(everything, np.maximum(at, 0), 1), -1).astype(np.int32)
        columns = np.where(there, np.take_along_axis(order, at.clip(0, width - 1), 1), -1)
        rank_of, place_of = np.arange(1, k + 1), np.take_along_axis(place, columns.clip(0, width - 1), 1)
        moved = np.where(there & (at < width) & (rank_of < place_of), self._booster[listed], 0)
        if by_pin is not None:
            own = at >= width  # a pin's own column, though the item may be proposed as well
            row, rank = np.nonzero(own)
            same = items[row] == listed[row, rank, None]
            columns[row, rank] = np.where(same.any(1), same.argmax(1), width)
            held = np.where(there & ~own, np.take_along_axis(held_back, columns.clip(0, width - 1), 1), 0)
            moved = np.select([by_pin > 0, (held > 0) & (rank_of > place_of)], [by_pin, held], moved)
        return Ruled(columns, listed, place, forbidden, moved, held_back)

    def _written(
        self, items: np.ndarray, is_open: np.ndarray, wanted: np.ndarray, pins: dict[str, int], k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Write lists place by place; one that cannot reach a pin's slot takes the pinned item as any other.

        Of (n, K + P) items in the order wanted, the pinned ones last, those in ``is_open`` may be taken; of (n, P)
        pins those ``wanted``. Returns (n, k) columns, -1 for none, and the pin that put each there, and (n, K + P) the
        cap that held an item back.
        """
        n, total = items.shape
        row, first_pin = np.arange(n), total - len(pins)
        groups = [group[items] for _, _, group in self._caps]
        counts = [np.zeros((n, int(group.max(initial=-1)) + 2), np.int32) for _, _, group in self._caps]  # -1: no kind
        by_pin, held = np.zeros((n, k), np.int16), np.zeros((n, total), np.int16)

        def reserve(p: int, slot: int, rows: np.ndarray, change: int) -> None:
            for (_, cap, _), group, count in zip(self._caps, groups, counts, strict=True):
                if slot <= cap.first:
                    count[row, group[:, first_pin + p]] += change * rows

        for p, slot in enumerate(pins.values()):
            for (_, cap, _), group, count in zip(self._caps, groups, counts, strict=True):
                kind = group[:, first_pin + p]
                wanted[:, p] &= (slot > cap.first) | (kind < 0) | ~full(count[row, kind], cap)
            reserve(p, slot, wanted[:, p], 1)
            is_open[:, :first_pin] &= ~((items[:, :first_pin] == items[:, first_pin + p, None]) & wanted[:, p, None])
        columns, over = np.full((n, k), -1, np.int64), np.zeros(n, bool)
        for slot in range(1, k + 1):
            here, column = np.zeros(n, bool), np.full(n, -1)
            for p, (name, its) in enumerate(pins.items()):
                if its == slot:
                    here = wanted[:, p].copy()
                    column[here] = first_pin + p
                    by_pin[here, slot - 1] = self._number[name]
                    wanted[:, p] = False
            column = np.where(here, column, self._next(is_open, groups, counts, slot, held))
            if (stuck := (column < 0) & wanted.any(1)).any():
                for p, its in enumerate(pins.values()):
                    freed = stuck & wanted[:, p]
                    reserve(p, its, freed, -1)
                    wanted[:, p] &= ~freed
                    is_open[:, first_pin + p] |= freed
                column = np.where(stuck, self._next(is_open, groups, counts, slot, held), column)
            over |= column < 0
            column = np.where(over, -1, column)
            columns[:, slot - 1] = column
            taken = np.flatnonzero((column >= 0) & ~here)
            is_open[taken, column[taken]] = False
            for group, count in zip(groups, counts, strict=True):
                count[taken, group[taken, column[taken]]] += 1
        return columns, by_pin, held

    def _next(
        self, is_open: np.ndarray, groups: list[np.ndarray], counts: list[np.ndarray], slot: int, held: np.ndarray
    ) -> np.ndarray:
        """Return (n,) the first open column of each row that no cap forbids in a slot; -1 for none."""
        row, fits = np.arange(len(is_open)), is_open.copy()
        over = []
        for (number, cap, _), group, count in zip(self._caps, groups, counts, strict=True):
            if slot <= cap.first:
                over.append((number, fits & (group >= 0) & full(count[row[:, None], group], cap)))
                fits &= ~over[-1][1]
        at = fits.argmax(1)
        found = np.where(fits[row, at], at, -1)
        for number, passed in over:  # what would have stood here
            held[passed & (held == 0) & (np.arange(fits.shape[1]) < found[:, None])] = number
        return found


def _left_out(rule: Rule, facts: Facts) -> np.ndarray:
    """Return (n_items,) bool: what a rule forbids to everybody."""
    if rule.deny:
        return matching(rule.name, rule.deny, facts)
    if rule.allow:
        return ~matching(rule.name, rule.allow, facts)
    if rule.price:
        return outside(rule.price, facts)
    return ~facts.truth(rule.name, rule.require or "")


def told_of(rule: Rule, rank: int = 0, place: int = 0) -> str:
    """Return in words what a rule did to an item that stands at ``rank`` and would have stood at ``place``; 0 for not.

    >>> told_of(Rule(name="own brand", boost={"brands": ("Own",), "places": 5}), 2, 7)
    "raised from place 7 to 2 by the rule 'own brand'"

    """
    if not rank:
        return f"left out by the rule {rule.name!r}"
    if rule.pin:
        return f"pinned to place {rule.pin.slot} by the rule {rule.name!r}"
    did = "raised" if rule.boost else "held back"
    return f"{did} from place {place} to {rank} by the rule {rule.name!r}"


def idle(rules: Sequence[Rule], facts: Facts, as_of: datetime, k: int) -> list[str]:
    """Return a sentence for each rule that names what the catalogue does not have, or a slot behind lists of k."""
    ids, brands = (set(facts.table[name].to_pylist()) for name in (ITEM_ID, "brand"))
    known = {"item": ids, "brand": brands, "category": {name for path in facts.paths for name in path}}
    found = []
    for rule in rules:
        if rule.to and microseconds(rule.to) <= microseconds(as_of):
            continue
        match = rule.deny or rule.allow or rule.boost or Match.model_construct()
        named = {
            "item": (*match.items, *([rule.pin.item] if rule.pin else [])),
            "brand": match.brands,
            "category": (*match.categories, *(rule.exclude_bought.categories if rule.exclude_bought else ())),
        }
        for what, names in named.items():
            if missing := [name for name in names if name not in known[what]]:
                shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if missing[5:] else "")
                what = "an item" if what == "item" else f"a {what}"
                found.append(f"rules: {rule.name!r} names {what} that the catalogue does not have: {shown}")
        if rule.pin and rule.pin.slot > k:
            found.append(f"rules: {rule.name!r} pins an item to place {rule.pin.slot} of lists of {k}")
    return found
