"""The threads of an agent take short turns."""

from __future__ import annotations

import sys
from collections.abc import Callable

# A thread that wants to go on waits for up to this long for one that computes. The loop's does so at
# each message that it waits for: while the Raft thread applies a large plan, an answer of the API took
# 8 ms with CPython's own 5 ms, and takes 2.5 ms; what the other thread gets done is the same.
TURN_S = 0.001


def take_short_turns() -> Callable[[], None]:
    """From now on, in the whole process, until the returned function is called."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    return lambda: sys.setswitchinterval(before)
