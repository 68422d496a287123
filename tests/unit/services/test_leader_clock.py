"""Time that is stamped into entries: never back, never still."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from cube.services.leader_clock import LeaderClock
from tests.builders import START_MS
from tests.fakes.clock import FakeClock


def test_it_is_the_wall_clock_when_nothing_is_wrong() -> None:
    clock = FakeClock()
    leader = LeaderClock(clock, lambda: 0)
    assert leader.now_ms() == START_MS
    clock.advance(5)
    assert leader.now_ms() == START_MS + 5


def test_it_goes_on_from_the_last_stamp_when_the_wall_clock_is_behind() -> None:
    clock = FakeClock()
    leader = LeaderClock(clock, lambda: START_MS + 60_000)
    assert leader.now_ms() == START_MS + 60_000
    clock.advance(7)
    assert leader.now_ms() == START_MS + 60_007
    clock.advance(60_000)
    assert leader.now_ms() == START_MS + 120_007  # it does not fall back to the wall clock


def test_a_wall_clock_set_back_is_not_followed() -> None:
    clock = FakeClock()
    leader = LeaderClock(clock, lambda: 0)
    leader.now_ms()
    clock.wall_ms -= 3_600_000
    clock.elapsed_ms += 3
    assert leader.now_ms() == START_MS + 3


def test_a_wall_clock_set_forward_is_followed() -> None:
    clock = FakeClock()
    leader = LeaderClock(clock, lambda: 0)
    leader.now_ms()
    clock.wall_ms += 3_600_000
    assert leader.now_ms() == START_MS + 3_600_000


@given(
    st.lists(
        st.tuples(st.integers(-5000, 5000), st.integers(0, 1000), st.integers(-5000, 5000)),
        max_size=40,
    )
)
def test_whatever_the_clocks_do_it_passes_as_time_does(steps: list[tuple[int, int, int]]) -> None:
    clock = FakeClock()
    applied = [START_MS]
    leader = LeaderClock(clock, lambda: applied[0])
    before = leader.now_ms()
    for jump_ms, passed_ms, applied_ms in steps:
        clock.wall_ms += jump_ms
        clock.elapsed_ms += passed_ms
        applied[0] = max(applied[0], clock.wall_ms + applied_ms)
        now = leader.now_ms()
        assert now >= before + passed_ms
        assert now >= applied[0]
        before = now
