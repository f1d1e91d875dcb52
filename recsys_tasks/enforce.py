"""Lists that obey the shop's rules, made of what a model proposes; who is left with too few is asked for again.

Between the models, which know nothing of rules, and ``rules``, which know nothing of models: proposals are asked for
until the rules leave every list as long as it can be, and what the rules did is counted and told to the trace.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_tasks.contract import ITEM_ID, OF_ITEMS, PINNED, SHORT, USER_ID
from recsys_tasks.errors import ShopFileError
from recsys_tasks.models import Ranked
from recsys_tasks.models.trace import Trace
from recsys_tasks.night import Night
from recsys_tasks.recipe import Shelf
from recsys_tasks.rules import PLACES, RAISES, Facts, Forbids, Ruled, Rules, bought_lately, told_of
from recsys_tasks.shop import Rebuy

Ask = Callable[[np.ndarray, int, np.ndarray], tuple[Ranked, Trace | None]]
"""From (n,) readers, how many items, and (n_items,) candidates to lists, and how they came about."""

log = logging.getLogger(__name__)

_CELLS = 8_000_000
"""Proposals that rules look at together."""


@dataclass
class Done:
    """The rules of a placement, and what they did in a shard."""

    rules: Rules | None = None
    drops: dict[str, int] = field(default_factory=dict)
    """Rule -> items of the models' first k that it left out of lists, or kept from their places"""
    moves: dict[str, int] = field(default_factory=dict)
    """Rule -> items of lists that it raised or pinned"""
    places: np.ndarray | None = None
    """One a row of the lists, where boosts re-ordered them; see ``rules.PLACES``"""


def rules_of(night: Night, shelf: Shelf, facts: Facts, placement: str, among: np.ndarray | None = None) -> Rules | None:
    """Return the rules in force; None where there are none. ``among``: (n_items,) bool, what a placement is about."""
    rules, log_ = night.shop.rules_of(placement, night.instant), shelf.interactions
    if not rules:
        return None
    candidates = shelf.catalog.candidates(log_.as_of)
    candidates = candidates if among is None else candidates & among
    if not candidates.any():
        return None
    bought = bought_lately(Rebuy(days="never"), facts, log_)
    never: dict[str, Forbids] = {
        "discover": bought,
        "buy_again": lambda readers, items: ~bought(readers, items),
        **dict.fromkeys(OF_ITEMS, lambda readers, items: items == readers[:, None]),
    }
    found = Rules(rules, facts, log_, candidates, never.get(placement, lambda _, items: np.zeros(items.shape, bool)))
    if placement in SHORT and not found.allowed.any():
        log.warning("rules: they leave nothing of %d items for %s", candidates.sum(), placement)
    elif not found.allowed.any():
        raise ShopFileError(f"rules: they leave nothing of {candidates.sum():,} items for {placement}; loosen one")
    return found


def ruled(
    done: Done, ask: Ask, readers: np.ndarray, k: int, trace: Trace | None = None, sources: Sequence[str] = ()
) -> Ranked:
    """Return lists that obey the rules: who is left with too few proposals is asked for again, with more of them."""
    rules = done.rules
    assert rules
    n, needed = len(readers), min(rules.needed(k), int(rules.allowed.sum()))
    ranked = Ranked(
        np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32), np.zeros((n, k), bool), np.full((n, k), "", object)
    )
    counts: Counter[int] = Counter()
    places = np.zeros((n, k), np.int32)
    waiting = [(np.arange(n), rules.candidates, needed + k)]
    while waiting:
        rows, candidates, width = waiting.pop()
        width = min(width, int(candidates.sum()))
        at_once = max(1, _CELLS // max(width, 1))
        if len(rows) > at_once:
            waiting += [(rows[start : start + at_once], candidates, width) for start in range(0, len(rows), at_once)]
            continue
        asked, told = ask(readers[rows], width, candidates)
        found = rules.enforce(readers[rows], asked.items, k)
        enough = (found.place.max(1, initial=0) >= needed) & (found.items >= 0).all(1)
        enough |= (asked.items < 0).any(1)  # there is nothing more to ask for
        enough |= (width == candidates.sum()) | ~rules.allowed.any()
        _put(ranked, places, rows[enough], asked, found, enough)
        by = [found.held_back[enough], np.where(_raises(rules)[found.moved[enough]], found.moved[enough], 0)]
        if candidates is rules.candidates:  # the lists as they would be without rules
            by.append(found.forbidden[:, :k])
        for numbers in by:
            counts.update(dict(enumerate(np.bincount(numbers.ravel(), minlength=1).tolist())))
        if trace and told:
            _retrace(trace, rows, told, found, rules, enough, sources)
        if not enough.all():
            waiting.append((rows[~enough], rules.allowed, 4 * width))
    for number, rule in enumerate(rules.rules, 1):
        (done.moves if rule.kind in RAISES else done.drops)[rule.name] = counts[number]
    if rules.moves:
        done.places = places[ranked.items >= 0]
    return ranked


def _put(ranked: Ranked, places: np.ndarray, rows: np.ndarray, asked: Ranked, found: Ruled, enough: np.ndarray) -> None:
    """Write the lists of ``rows``, ``enough`` of those asked for; scores keep their values and fall down the list."""
    columns, items = found.columns[enough], found.items[enough]
    width = asked.items.shape[1]
    own, at = (columns >= 0) & (columns < width), columns.clip(0, width - 1)

    def taken(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values[enough], at, 1)

    ranked.items[rows] = items
    ranked.filled[rows] = own & taken(asked.filled)
    ranked.sources[rows] = np.where(own, taken(asked.sources), PINNED)
    score = np.where(own, taken(asked.scores), -np.inf)
    highest = score.max(1, initial=-np.inf, keepdims=True)
    score = np.where((items >= 0) & ~own, np.where(np.isfinite(highest), highest, 1), score)
    score = -np.sort(-score, axis=1)
    ranked.scores[rows] = np.where(items >= 0, score, 0)
    places[rows] = np.where(own, np.take_along_axis(found.place[enough], at, 1), 0)


def _raises(rules: Rules) -> np.ndarray:
    """Return whether rule number n raises items; number 0 is no rule."""
    return np.array([False, *(rule.kind in RAISES for rule in rules.rules)])


def _retrace(
    trace: Trace, rows: np.ndarray, told: Trace, found: Ruled, rules: Rules, enough: np.ndarray, sources: Sequence[str]
) -> None:
    """Tell of the lists as the rules left them, and beside them first of what the rules left out.

    Lists that are asked for again, all but ``enough``, are told of then; what was left out of them is told of now,
    for rules that hold for everybody are not asked twice.
    """
    if trace.rules is None:
        trace.rules = np.full(trace.items.shape, None, object)
    n, total = told.items.shape
    width = found.place.shape[1]
    columns = np.where(found.columns < width, found.columns, -1)
    trace.take(rows, 0, told, columns[:, : trace.listed])
    trace.items[rows, : trace.listed] = found.items[:, : trace.listed]
    for row, rank in zip(*np.nonzero(found.moved[:, : trace.listed] * enough[:, None]), strict=True):
        rule, column = rules.rules[found.moved[row, rank] - 1], columns[row, rank]
        place = int(found.place[row, column]) if column >= 0 else 0
        trace.rules[rows[row], rank] = told_of(rule, rank + 1, place)
    left_out, listed = np.zeros((n, total), np.int16), np.zeros((n, total + 1), bool)
    left_out[:, :width] = np.where(found.forbidden, found.forbidden, found.held_back)
    np.put_along_axis(listed, columns, True, 1)  # -1 is the column behind the last
    proposed = np.any([told.ranks.get(name, np.zeros((n, total))) > 0 for name in sources], axis=0)
    proposed &= (told.items >= 0) & ~listed[:, :total]
    rank = np.select([proposed & (left_out > 0), proposed & enough[:, None]], [0, 1], 2)
    beside = np.argsort(rank, axis=1, kind="stable")[:, : trace.left_out]
    beside = np.where(np.take_along_axis(rank, beside, 1) < 2, beside, -1)
    again = np.asarray((trace.items[rows, trace.listed :] >= 0).any(1))  # what was told of the first time stands
    trace.take(rows[~again], trace.listed, told.of(~again), beside[~again])
    for row, place in zip(*np.nonzero((beside >= 0) & ~again[:, None]), strict=True):
        if number := left_out[row, beside[row, place]]:
            trace.rules[rows[row], trace.listed + place] = told_of(rules.rules[number - 1])


def places_of(lists: Path, done: Done) -> pa.Table:
    """Return ``rules.PLACES`` of the lists of a shard."""
    table = pq.read_table(lists, columns=[USER_ID, ITEM_ID])
    return table.append_column(PLACES.field("place"), pa.array(done.places, pa.int32())).cast(PLACES)
