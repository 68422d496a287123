from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The only source of time above the pure floors."""

    def now_ms(self) -> int:
        """Wall clock, ms since the epoch. May jump; differs between nodes; for stamps and display."""
        ...

    def monotonic_ms(self) -> int:
        """Never goes back, on no other scale than this process's. For elapsed time and deadlines."""
        ...
