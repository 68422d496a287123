"""How long a thread of this process computes before another one has a turn."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

# A thread that wants to go on waits for up to this long for one that computes. The loop's does so at
# each message that it waits for: while the Raft thread applies a large plan, an answer of the API took
# 8 ms with CPython's own 5 ms, and takes 2.5 ms; what the other thread gets done is the same.
TURN_S = 0.001
# What the loop does in one go, and holds up everybody on it meanwhile, is over sooner when the Raft thread
# waits for its end: taking turns, both take twice as long. Elections wait for a second.
UNDISTURBED_S = 0.1


def take_short_turns() -> Callable[[], None]:
    """From now on, in the whole process, until the returned function is called."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    return lambda: sys.setswitchinterval(before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The thread inside goes on for UNDISTURBED_S at least, unless it waits for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(max(before, UNDISTURBED_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
