"""Break each rule of ``rules.py`` and each query of ``check.py`` in turn, and see a test fail: who tests the tests.

    python tests/mutations.py [WORD ...]

A mutant is the product with one place of one file changed, as text; ``WORD`` chooses those whose name holds it. The
tests that fit it run in a process forked from one that has imported the libraries, on a copy of the source. Prints a
table, writes it to ``tests/mutations.md``, and exits 1 where a mutant survives. Not part of the test suite: some
minutes of one core.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RULES, CHECK, SHOP = "recsys_tasks/rules.py", "recsys_tasks/check.py", "recsys_tasks/shop.py"
ENFORCED = "tests/test_rules.py"
FIT = {
    "bought too|bought lately|re-buy|purchase|back a day|narrowest|broadest": "bought",
    "denied|of a match": "denied",
    "allowed": "allowed",
    "price": "price",
    "require|visitors are let|customers are": "required",
    "day|moment|placements": "dates or mistake or hold",
    "pin": "pin",
    "cap|kind": "cap",
    "boost|factor|tie": "boost",
}
"""Words of a mutant's name -> the tests that are tried first."""
LIBRARIES = ("torch", "mlflow", "transformers", "matplotlib", "lightgbm", "duckdb", "ibis", "pandas", "pydantic")


class Mutant(NamedTuple):
    """A change that a test must see."""

    name: str
    file: str
    text: str
    instead: str
    tests: str = ENFORCED


def rule(name: str, text: str, instead: str, file: str = RULES) -> Mutant:
    """Return a mutant of what enforces rules."""
    return Mutant(f"enforced: {name}", file, text, instead)


def query(name: str, text: str, instead: str = "false", tests: str = ENFORCED) -> Mutant:
    """Return a mutant of the checker that no longer sees something."""
    return Mutant(f"checked: {name}", CHECK, text, instead, tests)


def lists(name: str, text: str, instead: str) -> Mutant:
    """Return a mutant of the checker's queries that hold without rules."""
    return query(name, text, instead, "tests/test_check.py")


MUTANTS = [
    # what leaves items out
    rule(
        "nothing is denied",
        "        return matching(rule.name, rule.deny, facts)",
        "        return np.zeros(len(facts), bool)",
    ),
    rule(
        "nothing is kept to what is allowed",
        "return ~matching(rule.name, rule.allow, facts)",
        "return np.zeros(len(facts), bool)",
    ),
    rule("items of a match are not looked at", "facts.among(ITEM_ID, match.items)", "facts.among(ITEM_ID, [])"),
    rule("brands of a match are not looked at", 'facts.among("brand", match.brands)', 'facts.among("brand", [])'),
    rule("categories of a match are not looked at", "    if match.categories:\n", "    if False:\n"),
    rule(
        "only the narrowest category counts",
        "wanted.isdisjoint(path) for path",
        "wanted.isdisjoint(path[-1:]) for path",
    ),
    rule(
        "conditions of a match are not looked at",
        "found | facts.truth(rule, match.where) if match.where else found",
        "found",
    ),
    rule("a price band forbids nothing", "return outside(rule.price, facts)", "return np.zeros(len(facts), bool)"),
    rule("the lowest price is out", "(price >= low)", "(price > low)"),
    rule("the highest price is out", "(price <= high)", "(price < high)"),
    rule("the lower end of a band is ignored", "(price >= low) & ", ""),
    rule(
        "an unknown price is let through",
        "return ~((price >= low) & (price <= high))",
        "return (price < low) | (price > high)",
    ),
    rule(
        "what is required of items is not",
        'return ~facts.truth(rule.name, rule.require or "")',
        "return np.zeros(len(facts), bool)",
    ),
    rule(
        "what is required of customers is not",
        "return lambda readers, items: ~fit[",
        "return lambda readers, items: False & fit[",
    ),
    rule("customers are taken for one another", "group[readers]", "group[readers - 1]"),
    rule(
        "visitors are let through",
        "return lambda readers, items: ~fit[group[readers][:, None], items]",
        "return lambda readers, items: ~fit[group[readers][:, None], items] & (readers >= 0)[:, None]",
    ),
    # what was bought
    rule("nothing was bought lately", "(age[at] < wait[items])", "False"),
    rule("an item may come back a day early", "(age[at] < wait[items])", "(age[at] < wait[items] - 1)"),
    rule("an item comes back a day late", "(age[at] < wait[items])", "(age[at] < wait[items] + 1)"),
    rule(
        "the first purchase counts, not the last",
        "np.flatnonzero(log.is_target)[::-1]",
        "np.flatnonzero(log.is_target)",
    ),
    rule("views count as purchases", "np.flatnonzero(log.is_target)[::-1]", "np.arange(len(log.is_target))[::-1]"),
    rule("the broadest category has the word", "rebuy.categories[named[-1]]", "rebuy.categories[named[0]]"),
    rule("categories of a re-buy are ignored", "facts.paths if rebuy.categories else ()", "()"),
    rule("never is as null", '{"never": np.inf, None: 0.0}', '{"never": 0.0, None: 0.0}'),
    # caps
    rule("a cap caps nothing", "return count >= cap.at_most", "return np.zeros(count.shape, bool)"),
    rule("a cap lets one more through", "return count >= cap.at_most", "return count > cap.at_most"),
    rule("a cap lets one less through", "return count >= cap.at_most", "return count >= cap.at_most - 1"),
    rule(
        "a cap ends a place early",
        "            if slot <= cap.first:\n                over.append",
        "            if slot < cap.first:\n                over.append",
    ),
    rule(
        "a cap ends a place late",
        "            if slot <= cap.first:\n                over.append",
        "            if slot <= cap.first + 1:\n                over.append",
    ),
    rule("what has no kind is capped", "fits & (group >= 0) & full(", "fits & full("),
    rule("pins are not counted for caps", "+= change * rows", "+= 0 * rows"),
    # boosts
    rule(
        "boosts raise nothing",
        "return place / factor - places - 0.5 * ((factor > 1) | (places > 0))",
        "return place.astype(float)",
    ),
    rule("a factor is ignored", "return place / factor - places", "return place - places"),
    rule("places of a boost are ignored", "return place / factor - places", "return place / factor"),
    rule("a tie goes to the item that is not boosted", " - 0.5 * ((factor > 1) | (places > 0))", ""),
    rule(
        "two boosts do not add up",
        "self._places[found] += rule.boost.places",
        "self._places[found] = rule.boost.places",
    ),
    rule(
        "two factors do not multiply",
        "self._factor[found] *= rule.boost.factor",
        "self._factor[found] = rule.boost.factor",
    ),
    rule(
        "too few proposals are asked for",
        "return int(np.ceil((k + self._places.max(initial=0) + 1) * self._factor.max(initial=1)))",
        "return k",
    ),
    # pins
    rule(
        "pins are ignored",
        "found = {rule.name: rule.pin.slot for rule in rules if rule.pin and rule.pin.slot <= k}",
        "found: dict[str, int] = {}",
    ),
    rule(
        "a pin stands a place too low",
        "found = {rule.name: rule.pin.slot for",
        "found = {rule.name: rule.pin.slot + 1 for",
    ),
    rule("a pin in the last place is ignored", "rule.pin.slot <= k}", "rule.pin.slot < k}"),
    rule(
        "a pin beats what forbids",
        "self.candidates[pinned] & (self.forbidden(readers, pinned) == 0) &",
        "self.candidates[pinned] &",
    ),
    rule("what cannot be bought is pinned", "wanted = self.candidates[pinned] & ", "wanted = "),
    rule("a pin beats what a placement leaves out", " & ~self.never(readers, pinned)", ""),
    rule("a pinned item stands twice", "is_open[:, :first_pin] &= ~(", "is_open[:, :first_pin] &= True | ("),
    rule("a pin beats a cap", "wanted[:, p] &= (slot > cap.first) | (kind < 0) | ~full(count[row, kind], cap)", "pass"),
    # where and when
    rule(
        "the first day of a rule is ignored",
        "placement in self.placements and begun and",
        "placement in self.placements and",
        SHOP,
    ),
    rule("the last day of a rule is ignored", "and begun and not over", "and begun", SHOP),
    rule("a rule holds on the day it ends", "self.to <= as_of", "self.to < as_of", SHOP),
    rule("a rule begins a moment late", "self.from_ <= as_of", "self.from_ < as_of", SHOP),
    rule("placements are ignored", "return placement in self.placements and begun", "return begun", SHOP),
    # the checker of rules
    query("nothing is denied", "        return _matches(rule.deny)", "        return 'false'"),
    query("everything is allowed", 'return f"NOT {_matches(rule.allow)}"', "return 'false'"),
    query(
        "every price is right",
        'return f"(price IS NULL OR coalesce(price < {low}, false) OR coalesce(price > {high}, false))"',
        'return "false"',
    ),
    query("an unknown price is right", "(price IS NULL OR coalesce", "(coalesce"),
    query("nothing is required", 'return f"NOT coalesce({to_sql(rule.require, strings)}, false)"', "return 'false'"),
    query(
        "what is unknown fulfils what is required",
        'return f"NOT coalesce({to_sql(rule.require, strings)}, false)"',
        'return f"NOT coalesce({to_sql(rule.require, strings)}, true)"',
    ),
    query("items of a match", "list_contains({_texts(match.items)}, item_id)", "false"),
    query("brands of a match", "coalesce(list_contains({_texts(match.brands)}, brand), false)", "false"),
    query("categories of a match", "coalesce(list_has_any(path, {_texts(match.categories)}), false)", "false"),
    query("conditions of a match", "OR coalesce({where}, false))", "OR false)"),
    query(
        "nothing was bought too lately",
        'JOIN ({soon}) USING (user_id, item_id)"',
        'JOIN ({soon}) USING (user_id, item_id) WHERE false"',
    ),
    query("the default of a re-buy", "coalesce(w.days, {default})", "coalesce(w.days, 0)"),
    query("the narrowest category of a re-buy", "arg_max(days, level)", "arg_min(days, level)"),
    query("any number of a kind", "HAVING count(*) > {rule.cap.at_most}", "HAVING count(*) > {rule.cap.at_most} + 1"),
    query("where a cap ends", 'WHERE rank <= {rule.cap.first} "', 'WHERE rank <= {rule.cap.first} - 1 "'),
    query("a pin is not looked for", "WHERE rank IS DISTINCT FROM {rule.pin.slot} ", "WHERE false "),
    query("the order of boosts", "AND a.rank < b.rank AND a.key > b.key + 1e-9", "AND false"),
    query(
        "the order of boosts without caps",
        "FROM ({out_of_order}) WHERE above > key + 1e-9",
        "FROM ({out_of_order}) WHERE false",
    ),
    query(
        "a list too short under rules",
        "(SELECT * FROM (SELECT * FROM lengths WHERE n < {night.k}) ",
        "(SELECT * FROM (SELECT * FROM lengths WHERE false) ",
    ),
    # the checker of all lists
    lists("wrong K", "WHERE coalesce(r.n, 0) <> least(p.n, {night.k})", "WHERE false"),
    lists("too many", "coalesce(r.n, 0) <> least(", "coalesce(r.n, 0) < least("),
    lists("a missing list", "WHERE coalesce(r.n, 0) <> ", "WHERE r.n <> "),
    lists("visitors have no list", " UNION ALL SELECT '{ANONYMOUS}'", ""),
    lists("a list nobody asked for", "FROM {served} EXCEPT ({_expected(placement)})", "FROM {served} WHERE false"),
    lists("a list in two shards", "FROM {served} GROUP BY user_id HAVING count(*) > 1", "FROM {served} WHERE false"),
    lists("a value that is missing", '" OR ".join(f"{field.name} IS NULL"', '" AND ".join(f"{field.name} IS NULL"'),
    lists("a tier of somebody else", "WHERE r.tier <> coalesce(t.tier, 'anonymous')", "WHERE false"),
    lists("a sentence that is not so", "reason IS DISTINCT FROM truth OR ", ""),
    lists("an item that a sentence does not name", " OR reason_item_id IS DISTINCT FROM named", ""),
    lists("lists that are not what recommend wrote", "    if changed:\n", "    if False:\n"),
    lists("an item twice", "GROUP BY user_id, item_id HAVING count(*) > 1", "GROUP BY user_id, item_id HAVING false"),
    lists("ranks from 0", "HAVING min(rank) <> 1 OR ", "HAVING "),
    lists("a rank left out", " OR max(rank) <> count(*)", ""),
    lists("a rank twice", " OR count(DISTINCT rank) <> count(*)", ""),
    lists("an item of no catalogue", 'WHERE item_id NOT IN {candidates}",', 'WHERE false",'),
    lists("unavailable items", "FROM items WHERE available AND (updated_at", "FROM items WHERE (updated_at"),
    lists("items from the future", "(updated_at IS NULL OR updated_at < {as_of})", "true"),
    lists(
        "something bought in discover",
        "SELECT user_id, item_id FROM met WHERE times > 0",
        "SELECT user_id, item_id FROM met WHERE false",
    ),
    lists(
        "an item similar to itself",
        '"similar": "SELECT item_id AS user_id, item_id FROM items"',
        '"similar": "SELECT item_id AS user_id, item_id FROM items WHERE false"',
    ),
    lists("a score that is not finite", "WHERE NOT isfinite(score) OR score > above", "WHERE score > above"),
    lists("an unsorted list", "WHERE NOT isfinite(score) OR score > above", "WHERE NOT isfinite(score)"),
    lists("an unknown tier", "WHERE tier NOT IN {TIERS}", "WHERE false"),
    lists("no source", "WHERE trim(source) = '' OR trim(reason) = ''", "WHERE trim(reason) = ''"),
    lists("no reason", "WHERE trim(source) = '' OR trim(reason) = ''", "WHERE trim(source) = ''"),
    lists("a reason that names what the customer never met", "WHERE r.reason_item_id IS NOT NULL", "WHERE false"),
    lists("faults are counted and forgotten", "    if faults:\n", "    if False:\n"),
]


def run(mutant: Mutant | None, tests: str, nights: Path, chosen: str = "") -> tuple[int, str]:
    """Return pytest's exit status, and the test that failed first or what pytest said last."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy, log = Path(folder), Path(folder) / "log"
        for name in ("recsys_tasks", "include", "tests", "dags", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        if mutant:
            file = copy / mutant.file
            text = file.read_text()
            if text.count(mutant.text) != 1:
                return -1, f"{mutant.text!r} stands {text.count(mutant.text)} times in {mutant.file}"
            file.write_text(text.replace(mutant.text, mutant.instead))
        child = os.fork()
        if not child:
            _test(copy, log, nights / Path(tests).stem, [tests, "-k", chosen])
        _, status = os.waitpid(child, 0)
        said = log.read_text()
        failed = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", said, re.MULTILINE)
        return os.waitstatus_to_exitcode(status), failed[0].partition("::")[2] if failed else said[-300:]


def _test(copy: Path, log: Path, night: Path, arguments: list[str]) -> None:
    """Run tests in this process, which ends with pytest's status."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    import pytest

    from recsys_tasks import cli

    real = cli.run_night

    def run_night(planned: Any) -> dict[str, Any]:
        """Give the night that the tests made without a mutant: what is to be broken comes after it."""
        home = Path(os.environ["NIGHTCART_HOME"])
        if not night.exists():
            ids = real(planned)
            shutil.copytree(home, night, ignore=shutil.ignore_patterns("*.sock"))
            (night / "ids.json").write_text(json.dumps(ids))
        shutil.copytree(night / "lake", home / "lake", dirs_exist_ok=True)
        return json.loads((night / "ids.json").read_text())

    cli.run_night = run_night
    status = pytest.main(["-x", "-q", "-W", "ignore", "-p", "no:cacheprovider", "--no-header", *arguments])
    sys.stdout.flush()
    os._exit(int(status))


def fitting(mutant: Mutant) -> str:
    """Return which tests are likely to see a mutant, as pytest's ``-k`` has it."""
    return next((words for pattern, words in FIT.items() if re.search(pattern, mutant.name)), "")


def main(words: list[str]) -> int:
    """Return 1 where a mutant survives, or the tests fail without one."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    for name in LIBRARIES:
        __import__(name)
    nights = Path(tempfile.mkdtemp(prefix="mutant-nights-"))
    for tests in sorted({mutant.tests for mutant in chosen}):
        status, said = run(None, tests, nights)
        if status:
            sys.stderr.write(f"{tests} fails without a mutant: {said}\n")
            return 1
    lines = ["| mutant | file | killed by |", "|---|---|---|"]
    survived = []
    for mutant in chosen:
        started = time.monotonic()
        status, said = run(mutant, mutant.tests, nights, fitting(mutant)) if fitting(mutant) else (0, "")
        if status in (0, 5):  # nobody saw it, or there are no such tests
            status, said = run(mutant, mutant.tests, nights)
        if status != 1:
            survived.append(mutant.name)
            said = "**survives**" if not status else f"**no mutant**: {said}"
        lines.append(f"| {mutant.name} | `{Path(mutant.file).name}` | {said} |".replace("\n", " "))
        sys.stdout.write(f"{lines[-1]} {time.monotonic() - started:.0f} s\n")
        sys.stdout.flush()
    if not words:
        head = f"{len(chosen) - len(survived)} of {len(chosen)} mutants killed (`python tests/mutations.py`)\n\n"
        (ROOT / "tests" / "mutations.md").write_text(head + "\n".join(lines) + "\n")
    shutil.rmtree(nights)
    for name in survived:
        sys.stdout.write(f"survives: {name}\n")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
