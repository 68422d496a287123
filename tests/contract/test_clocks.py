"""Clocks: what code may rely on."""

from __future__ import annotations

import time

from cube.adapters import entropy
from cube.adapters.system_clock import SystemClock


def test_the_wall_clock_is_ms_since_the_epoch() -> None:
    before = time.time_ns() // 1_000_000
    now = SystemClock().now_ms()
    assert type(now) is int
    assert before <= now <= time.time_ns() // 1_000_000


def test_monotonic_time_never_goes_back_and_passes() -> None:
    clock = SystemClock()
    first = last = clock.monotonic_ms()
    assert type(first) is int
    deadline = time.monotonic() + 10
    while last == first:
        now = clock.monotonic_ms()
        assert now >= last
        last = now
        assert time.monotonic() < deadline
    assert abs(last - time.monotonic() * 1000) < 5_000


def test_ids_are_not_repeated() -> None:
    assert len({entropy.new_id() for _ in range(1000)}) == 1000
    short = {entropy.short_id() for _ in range(1000)}
    assert len(short) == 1000
    assert all(len(id_) == 16 and int(id_, 16) >= 0 for id_ in short)
    assert entropy.dice().random() != entropy.dice().random()
