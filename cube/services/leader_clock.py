from __future__ import annotations

from collections.abc import Callable

from cube.ports.clock import Clock


class LeaderClock:
    """The time that is stamped into entries and that plans are made at.

    Never below the last stamp this node knows of, and never standing still because of that: when
    the wall clock is behind (it was set back, or an earlier leader's was ahead), time goes on from
    the last stamp by elapsed monotonic time. Called from the log's thread and the main loop; a race
    between the two costs a repeated millisecond at worst, which apply's own maximum takes care of.
    """

    def __init__(self, clock: Clock, last_applied_ms: Callable[[], int]) -> None:
        self._clock = clock
        self._last_applied_ms = last_applied_ms
        self._base = (0, clock.monotonic_ms())

    def now_ms(self) -> int:
        stamp_ms, at_ms = self._base
        monotonic_ms = self._clock.monotonic_ms()
        now_ms = max(
            self._clock.now_ms(), stamp_ms + (monotonic_ms - at_ms), self._last_applied_ms()
        )
        self._base = (now_ms, monotonic_ms)
        return now_ms
