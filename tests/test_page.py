"""The page of a made-up night: what it says, and that nothing in the data can make it do more than say it."""

import json
import re
from html.parser import HTMLParser

import pytest

from recsys_tasks.page import render

EVIL = '<script>alert("1")</script>'


def row(recipe, view="all", tier="everyone", ndcg=0.1, **more):
    return {
        "recipe": recipe,
        "view": view,
        "tier": tier,
        "users": 1715,
        "metrics": {"ndcg@10": ndcg, "recall@10": 0.1, "hit_rate@10": 0.6},
        "interval": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01], "ndcg@10 over popular": [0.02, 0.04]},
        "beyond_accuracy": {"catalog_coverage@10": 0.05, "novelty@10": 4.0},
        "report": {},
        **more,
    }


def a_report(**other):
    counts = {"read": 1100, "kept": 1000, "quarantined": 90, "duplicates": 10, "later": 5, "reasons": {"value": 90}}
    return {
        "shop": "corner",
        "shop_file": "corner.yaml",
        "as_of": "2017-12-04T00:00:00+00:00",
        "version": "20171204T000000Z-0ebe522b",
        "counts": {"events": counts},
        "watermark": "2017-12-03T15:09:00+00:00",
        "warnings": [],
        "champions": {
            "home": {"recipe": "ranker", "model": "models/ranker-1", "reason": "best ndcg@10 on the all view: 0.3694"},
            "discover": {"recipe": "ease", "model": "models/ease-1", "reason": "forced by a person"},
        },
        "leaderboard": [
            *(row(recipe, view) for recipe in ("popular", "ease") for view in ("all", "discovery")),
            row("ranker", ndcg=0.3694, report={"ranking rmse": 0.2, "all/gain/trend": 0.1}),
            row("ranker", tier="loyal", ndcg=0.4),
            row("popular", tier="loyal"),
        ],
        "failed": [],
        "index": {"items": 300, "k": 50, "recall": 0.9947, "search": "scann", "vectors": "text"},
        "lists": {"home": {"rows": 500, "lists": 10}},
        "last_night": None,
        "served": [],
        "snapshot": "snapshots/1",
        "evaluation": "evaluations/1",
        **other,
    }


class Reader(HTMLParser):
    """The words of a page, and its tags with their attributes; a tag that is closed out of turn is a fault."""

    VOID = ("meta", "link", "br")

    def __init__(self, page):
        super().__init__()
        self.words, self.tags, self.open = "", [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += re.sub(r"\s+", " ", data)


def test_the_verdict_comes_first_then_champions_with_their_reasons():
    words = Reader(render(a_report())).words
    told = ["Published, and nothing to look at.", "2017-12-03 15:09 UTC", "8 h 51 min before", "models/ranker-1"]
    told += ["best ndcg@10 on the all view: 0.3694", "forced by a person", "0.3694", "+0.0200 to +0.0400"]
    assert [words.index(part) for part in told[:4]] == sorted(words.index(part) for part in told[:4])
    assert [part for part in told if part not in words] == []
    assert "ranking rmse 0.2000" in words
    assert "trend" not in words


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"warnings": ["few events"]}, "Published; look at 1 warning."),
        ({"warnings": ["few events", "old"], "failed": ["ease"]}, "look at 2 warnings and 1 model that failed."),
        ({"version": None}, "Not published, by request: what was current stays current."),
        (
            {"counts": {"items": {"read": 9, "kept": 1, "quarantined": 1, "duplicates": 1, "later": 0, "reasons": {}}}},
            "Published; look at rows of items that do not add up.",
        ),
    ],
)
def test_the_verdict_names_what_a_person_must_look_at(other, text):
    words = Reader(render(a_report(**other))).words
    assert text in words
    assert all(warning in words for warning in other.get("warnings", []))
    assert all(f"{recipe} failed to train" in words for recipe in other.get("failed", []))


def test_baselines_champions_and_what_the_gate_said_are_marked():
    gated = row("transformer_dqn", gate={"passed": False, "reason": "reward is not above 0"})
    words = Reader(render(a_report(leaderboard=[*a_report()["leaderboard"], gated]))).words
    assert "popularbaseline" in words
    assert "rankerserves home" in words
    assert "transformer_dqn is refused. reward is not above 0" in words


def test_who_asked_for_a_force_is_told():
    words = Reader(render(a_report(force_promote="ease", asked_by="ada"))).words
    assert "ease was forced, whatever the leaderboard says; ada asked for it." in words


def test_what_kept_each_challenger_out_is_told():
    check = {"name": "coverage", "passed": False, "told": f"coverage 1 % {EVIL}"}
    better = {"name": "better", "passed": True, "told": "+0.0300 over the champion"}
    one = {"recipe": "sasrec", "difference": 0.03, "interval": [0.01, 0.05], "level": 0.9875, "checks": [better, check]}
    two = {**one, "recipe": "vaecf", "difference": float("nan"), "interval": [float("nan")] * 2, "checks": [better]}
    decision = {"challengers": [one, two], "gate": {"metric": "ndcg@10"}}
    words = Reader(render(a_report(decisions={"home": decision, "discover": {"challengers": []}}))).words
    assert "home: what the gate found of the challengers" in words
    assert "discover: what the gate found" not in words
    told = [
        "sasrec",
        "+0.0300",
        "0.0100 to 0.0500, 98.75 %",
        f"coverage: coverage 1 % {EVIL}",
        "vaecf",
        "none",
        "nothing",
    ]
    places = [words.index(part, words.index("what the gate found")) for part in told]
    assert places == sorted(places)


def test_who_held_the_champions_is_told():
    words = Reader(render(a_report(hold=True, asked_by="ada"))).words
    assert "The champions were held, whatever the leaderboard says; ada asked for it." in words


def test_the_lists_before_and_what_served_are_told():
    interval = {"ndcg@10": [0.3961, 0.4373], "recall@10": [0.2, 0.25]}
    did = {"customers": 756, "recall@10": 0.224, "ndcg@10": 0.4169, "interval": interval}
    line = {"version": "v1", "from": "2017-12-03T02:00:00+00:00", "to": None, "champions": {}, "reason": "rolled back"}
    words = Reader(
        render(
            a_report(
                last_night={"version": "v1", "as_of": "2017-12-03T00:00:00+00:00", "placements": {"home": did}},
                served=[{**line, "as_of": None, "by": "ada"}],
            )
        )
    ).words
    assert all(part in words for part in ("0.4169", "0.3961 to 0.4373", "756", "rolled back, asked for by ada"))


def test_no_words_of_the_data_become_tags():
    plain = a_report(last_night={"version": "v", "as_of": "2017-12-03T00:00:00+00:00", "placements": {}}, failed=["x"])
    evil = json.loads(json.dumps(plain).replace('"corner', json.dumps(EVIL)[:-1]))
    evil |= {"warnings": [EVIL], "failed": [EVIL], "version": EVIL, "snapshot": EVIL}
    evil["champions"]["home"] |= {"recipe": EVIL, "reason": EVIL}
    evil["leaderboard"].append(row(EVIL, gate={"passed": True, "reason": EVIL}))
    evil["served"] = [
        {"version": EVIL, "from": plain["as_of"], "to": None, "champions": {}, "reason": EVIL, "by": '"><b onclick=1>'}
    ]
    found = Reader(render(evil))
    assert "script" not in {tag for tag, _ in found.tags}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.words.count(EVIL) > 8


def test_nothing_is_asked_from_any_host():
    page = render(a_report())
    assert not re.search(r"(?i)https?:|//\w|@import|url\(", page)
    for _, attributes in Reader(page).tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "data:").startswith("data:")
    assert len(page) < 500_000


def test_numbers_that_are_none_are_not_drawn():
    page = render(a_report(leaderboard=[*a_report()["leaderboard"], row("sasrec", ndcg=float("nan"))], watermark=None))
    assert "nan" not in page
    assert "none" in Reader(page).words


def test_labels_of_points_at_one_place_stand_apart():
    crowd = [row(name) for name in ("popular", "repeat", "item_knn", "ease", "content", "sasrec")]
    page = render(a_report(leaderboard=crowd, champions=a_report()["champions"]))
    places = re.findall(r'<text class="name" x="([^"]+)" y="([^"]+)"', page)
    assert len(set(places)) == len(crowd)


def did(ndcg):
    part = {"ndcg@10": ndcg, "recall@10": 0.2, "hit_rate@10": 0.5, "revenue@10": ndcg / 2}
    return {
        **part,
        "customers": 756,
        "recipe": "ranker",
        "interval": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01], "revenue@10": [0.01, 0.9]},
        "tiers": {"loyal": {**part, "customers": 99, "interval": {}}},
        "baselines": {name: {**part, "ndcg@10": 0.1, "over": [0.1, 0.2]} for name in ("popular", "repeat")},
        "categories": [{"category": EVIL, "bought": 31, "captured": 0.01, "popular": 0.2}],
    }


def nights(*values):
    return [
        {
            "night": f"2017-12-{n:02}T00:00:00+00:00",
            "version": f"v{n}",
            "scored": value
            and {"version": "v", "as_of": "2017-12-01T00:00:00+00:00", "placements": {"home": did(value)}},
            "lists": {"home": {"overlap@10": 0.8, "recipe": "ranker"}},
        }
        for n, value in enumerate(values, start=1)
    ]


def test_the_nights_are_drawn_with_their_interval_and_gaps_are_left_out():
    found = Reader(page := render(a_report(series=nights(None, 0.41, 0.42, None, 0.40))))
    assert "home: ndcg@10" in found.words
    assert "served 0.400" in found.words
    assert "discover: ndcg@10" not in found.words
    [line] = re.findall(r'class="line l0" d="M(0\.0 [\d.L ]+)"><title>served', page)[:1]
    assert line.count("L") == 2
    assert len(re.findall('class="band"', page)) == 2


def test_one_night_draws_nothing():
    assert "Night by night" not in Reader(render(a_report(series=nights(0.41)))).words


def test_tiers_baselines_revenue_and_the_worst_categories_stand_beside_what_served():
    last = {"version": "v1", "as_of": "2017-12-03T00:00:00+00:00", "placements": {"home": did(0.4)}}
    found = Reader(render(a_report(last_night=last)))
    parts = [
        "loyal customers",
        "popular, in its place",
        "0.2000",
        "0.0100 to 0.9000",
        "Categories served worst",
        "1.00%",
    ]
    assert [part for part in parts if part not in found.words] == []
    assert EVIL in found.words
    assert "script" not in {tag for tag, _ in found.tags}


def test_drift_tells_what_is_off_first_and_why_it_cannot_judge():
    row = {"name": "price", "form": "amount", "value": 300.0, "expected": 3.0, "low": 2.0, "high": 4.0}
    rows = [{**row, "name": "new items", "form": "share", "value": 0.1, "distance": 0.5, "alarm": False}]
    rows += [{**row, "distance": 60.0, "alarm": True}]
    events = {"unable": None, "level": 5.0, "statistics": rows, "alarms": [{"statistic": "price", "text": "pence?"}]}
    lists = {"unable": "no champion has served 12 nights yet", "level": None, "statistics": [], "alarms": []}
    words = Reader(render(a_report(drift={"events": events, "lists": lists}, warnings=["drift: pence?"]))).words
    assert words.index("drift: pence?") < words.index("1 out of the ordinary") < words.index("Not judged: no champion")
    assert words.index("price") < words.index("new items")
    assert "10.0%" in words


def test_each_step_tells_time_and_memory_and_what_was_reused():
    step = {"step": "train", "of": "ease", "seconds": 75.0, "peak_mb": 1234.5, "reused": False, "at": ""}
    steps = [step, {**step, "step": "recommend", "of": 0, "seconds": 0.12, "reused": True}]
    words = Reader(
        render(a_report(steps=steps, drops={"home": {"no tobacco": 1203}}, moves={"home": {"own": 7}}))
    ).words
    parts = ["1 min 15 s", "1,234 MB", "shard 0", "0.1 s", "reused", "no tobacco", "1,203", "own"]
    assert [part for part in parts if part not in words] == []
