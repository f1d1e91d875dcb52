"""A night in which the worst happens, again and again, in every step: readers notice nothing, and it ends as it should.

What happens when is drawn with a seed (``conftest``) from the moments at which a step touches the world (``nights``).
"""

from collections import Counter

from recsys_tasks.contract import PLACEMENTS
from tests.faults.conftest import KILLS
from tests.faults.nights import STEPS

KILLED = ("killed", "killed_with_redis")


def test_a_night_is_killed_more_than_fifty_times_and_in_every_step(endured):
    kills = endured.of(*KILLED)
    assert [one.told for one in kills if one.found is not None] == []  # each of them ended the process
    assert len(kills) > 50
    assert min(Counter(one.step for one in kills).values()) >= KILLS
    assert {one.step for one in kills} == set(STEPS)


def test_whatever_happens_readers_see_whole_versions_that_move_in_one_order(endured):
    """``seen`` holds Redis, then each placement's table: a kill between two pointers leaves the later ones behind."""
    old, new = endured.evening.old, endured.new
    for one in endured.outcomes:
        assert len(one.seen) == 1 + len(PLACEMENTS)
        before = one.seen.count(old)
        assert one.seen == [new] * (len(one.seen) - before) + [old] * before, one.told
        assert one.step in ("publish", "report") or set(one.seen) == {old}, one.told
        assert one.step != "report" or set(one.seen) == {new}, one.told


def test_a_step_run_again_gives_the_bytes_of_a_night_to_which_nothing_happened(endured):
    for one in endured.outcomes:
        assert "error" not in one.again, f"{one.told}: {one.again}"
        assert one.differs == set(), one.told


def test_mlflow_holds_each_run_and_each_version_once(endured):
    assert [one.told for one in endured.outcomes if not one.in_mlflow] == []


def test_the_night_is_published_once_and_the_ledger_says_so(endured):
    assert set(endured.seen) == {endured.new} != {endured.evening.old}
    assert endured.served == [endured.evening.old, endured.new]


def test_what_killed_processes_left_behind_lies_among_the_drafts_and_goes_with_them(endured):
    left = [name for one in endured.outcomes for name in one.left_over]
    assert left
    assert {name.partition("/")[0] for name in left} == {".drafts"}
    assert [one.told for one in endured.outcomes if one.after_expiry] == []


def test_a_full_disk_is_told_with_what_to_do_and_the_last_version_stays(endured):
    full = endured.of("disk_full")
    assert {one.step for one in full} == set(STEPS)
    for one in full:
        assert one.found["error"] == "TemporarilyUnavailable", f"{one.told}: {one.found}"
        assert "is full" in one.found["message"], one.told
        assert str(endured.evening.ill.home) in one.found["message"]
        assert "free some space" in one.found["message"]


def test_a_redis_that_dies_while_it_is_loaded_is_named_and_the_last_version_stays(endured):
    """Where it dies when all is done, nobody asks it any more, and the version is out."""
    told = [one for one in endured.of("redis_killed") if "error" in one.found]
    assert told
    for one in endured.of("redis_killed"):
        if one in told:
            assert one.found["error"] == "TemporarilyUnavailable", f"{one.told}: {one.found}"
            assert "did not answer" in one.found["message"]
        else:
            assert set(one.seen) == {endured.new}, one.told


def test_a_killed_shard_redoes_only_itself(endured):
    both = [one for one in endured.of(*KILLED) if one.step == "recommend" and one.kept]
    assert both
    for one in both:
        assert one.kept <= one.after, one.told
