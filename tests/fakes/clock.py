"""A clock that stands until it is moved."""

from __future__ import annotations

from tests.builders import START_MS


class FakeClock:
    """cube.ports.clock.Clock, by hand. Wall clock and monotonic clock move together, unless set."""

    def __init__(self) -> None:
        self.wall_ms = START_MS
        self.elapsed_ms = 1_000

    def advance(self, ms: int) -> None:
        self.wall_ms += ms
        self.elapsed_ms += ms

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ms(self) -> int:
        return self.elapsed_ms
