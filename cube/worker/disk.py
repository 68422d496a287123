"""When a disk is too full for more tasks, and when it no longer is."""

from __future__ import annotations

CLEAR_PERCENT = 125  # of the least room: a disk just above it would come and go with every log line


class DiskFloor:
    """Of one file system. It is short below `free_min_bytes`, and until a quarter more than that is free
    again. 0: it never is."""

    def __init__(self, free_min_bytes: int) -> None:
        self._free_min_bytes = free_min_bytes
        self._is_short = False

    def step(self, free_bytes: int) -> bool:
        """Whether it is short, now that so much is free."""
        if free_bytes < self._free_min_bytes:
            self._is_short = True
        elif free_bytes * 100 >= self._free_min_bytes * CLEAR_PERCENT:
            self._is_short = False
        return self._is_short
