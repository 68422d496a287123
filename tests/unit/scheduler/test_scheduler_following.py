"""Whom a node without a vote follows."""

from __future__ import annotations

from collections import Counter

import pytest

from cube.scheduler.following import (
    PACE_MS,
    PENALTY_MS_MAX,
    PENALTY_MS_MIN,
    REMEMBERED_MAX,
    RETRY_MS,
    STALE_MS,
    Choice,
    Result,
    Source,
    Sources,
    rank,
)

FINE, STALE, FAILED = Result.FINE, Result.STALE, Result.FAILED
VOTERS = [Source(f"v{n}") for n in range(5)]


def address(sources: Sources, candidates: list[Source], now_ms: int = 0) -> str:
    choice = sources.choose(candidates, now_ms)
    assert choice is not None
    return choice.address


def ranking(me: str, candidates: list[Source]) -> list[str]:
    return [s.address for s in sorted(candidates, key=lambda s: -rank(me, s.address))]


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], None),
        ([Source("l", is_leader=True)], "l"),
        ([Source("l", is_leader=True), Source("v")], "v"),
        ([Source("l", is_leader=True), Source("dead", is_alive=False)], "l"),
        ([Source("dead", is_alive=False), Source("node", is_voter=False)], "dead"),
        ([Source("node", is_voter=False)], "node"),
    ],
)
def test_a_live_voter_then_the_leader_then_whoever_may_vote(
    candidates: list[Source], expected: str | None
) -> None:
    for order in (candidates, candidates[::-1]):
        choice = Sources("me").choose(order, 7)
        assert choice == (None if expected is None else Choice(expected, 7))


def test_learners_spread_evenly_and_stay_where_they_are_when_one_dies() -> None:
    learners = [f"id-{n}" for n in range(300)]
    before = {me: address(Sources(me), VOTERS) for me in learners}
    counts = Counter(before.values())
    assert set(counts) == {source.address for source in VOTERS}
    assert max(counts.values()) < 2 * min(counts.values())
    without = VOTERS[1:]
    after = {me: address(Sources(me), without) for me in learners}
    assert all(after[me] == was for me, was in before.items() if was != "v0")


def test_the_next_is_asked_when_one_fails_and_the_first_again_later() -> None:
    first, second, third, *_ = ranking("me", VOTERS)
    sources = Sources("me")
    sources.on_result(first, FAILED, 100)
    assert sources.choose(VOTERS, 100) == Choice(second, 100)  # at once
    sources.on_result(second, FAILED, 100)
    assert address(sources, VOTERS, 100) == third
    assert address(sources, VOTERS, 100 + PENALTY_MS_MIN) == first


def test_who_fails_again_is_passed_over_for_longer_and_forgiven_once_it_answers() -> None:
    first = ranking("me", VOTERS)[0]
    sources, now_ms, waits = Sources("me"), 0, []
    for _ in range(10):
        sources.on_result(first, FAILED, now_ms)
        since_ms = now_ms
        while address(sources, VOTERS, now_ms) != first:
            now_ms += PENALTY_MS_MIN
        waits.append(now_ms - since_ms)
    assert waits[:4] == [PENALTY_MS_MIN * 2**n for n in range(4)]
    assert waits[-1] == PENALTY_MS_MAX
    sources.on_result(first, FINE, now_ms)
    sources.on_result(first, FAILED, now_ms)
    assert address(sources, VOTERS, now_ms + PENALTY_MS_MIN) == first


def test_when_all_fail_one_is_asked_each_second_and_every_one_in_turn() -> None:
    sources, now_ms = Sources("me"), 0
    asked = []
    for _ in range(40):
        choice = sources.choose(VOTERS, now_ms)
        assert choice is not None
        assert choice.at_ms - now_ms <= RETRY_MS
        now_ms = choice.at_ms
        asked.append(choice.address)
        sources.on_result(choice.address, FAILED, now_ms)
    assert set(asked[-15:]) == {source.address for source in VOTERS}


def test_a_stale_source_is_left_when_it_stays_so() -> None:
    first, second, *_ = ranking("me", VOTERS)
    sources = Sources("me")
    sources.on_result(first, STALE, 0)
    sources.on_result(first, STALE, STALE_MS - 1)
    assert address(sources, VOTERS, STALE_MS - 1) == first  # its leader may just have died
    sources.on_result(first, FINE, STALE_MS - 1)
    sources.on_result(first, STALE, STALE_MS)
    assert address(sources, VOTERS, STALE_MS) == first
    sources.on_result(first, STALE, 2 * STALE_MS)
    assert address(sources, VOTERS, 2 * STALE_MS) == second


def test_a_busy_log_comes_in_larger_pieces_unless_somebody_waits() -> None:
    candidates = [Source("v")]
    sources = Sources("me")
    sources.on_result("v", FINE, 100)
    assert sources.choose(candidates, 101) == Choice("v", 100 + PACE_MS)
    assert sources.choose(candidates, 101, is_awaited=True) == Choice("v", 101)
    assert sources.choose(candidates, 500) == Choice("v", 500)


def test_who_has_no_vote_says_who_leads() -> None:
    sources = Sources("me")
    told = [Source("told", is_voter=False)]
    assert address(sources, told) == "told"
    sources.on_redirect("told", "leader", 10)
    assert sources.choose(told, 10) == Choice("leader", 10)
    sources.on_result("leader", FAILED, 20)  # it was wrong, or has died
    assert address(sources, told, 20) == "told"
    sources.on_redirect("told", "told", 30)
    assert address(sources, told, 30) == "told"


def test_half_a_snapshot_is_not_thrown_away_for_a_better_source() -> None:
    first, second, *_ = ranking("me", VOTERS)
    sources = Sources("me")
    kept = sources.choose(VOTERS, 0, keep=second)
    assert kept is not None and kept.address == second
    sources.on_result(second, FAILED, 0)
    left = sources.choose(VOTERS, 0, keep=second)
    assert left is not None and left.address == first


def test_what_is_remembered_is_bounded() -> None:
    sources = Sources("me")
    for number in range(10 * REMEMBERED_MAX):
        sources.on_result(f"v{number}", FAILED, number)
    assert len(sources._records) <= REMEMBERED_MAX
