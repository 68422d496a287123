"""Full collections stay short, whatever the size of the state.

CPython's collector looks at every container that is old each time it collects its oldest generation,
and holds up every thread meanwhile: a quarter of a second with 100,000 tasks. Reference counts free
nearly everything here; the collector is for cycles, which are made and lost young. So what has
survived a full collection that took long is not looked at again.

Cost: what is frozen, and only later becomes garbage in a cycle, is not given back. A full
collection freezes when about ten thousand new objects have grown old: what stays for good is what
was open at that moment (a few connections).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

LONG_S = 0.01
# CPython's own are 700, 10, 10: the second generation would look at 7,000 objects in one go, and a
# full collection at 70,000. With these it is 3,000 and 11,000.
_THRESHOLDS = (700, 4, 4)
_OLDEST = 2


def keep_collections_short(now: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """What is there is frozen, and so is what survives a long full collection from now on, until
    the returned function is called."""
    began = 0.0

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if info["generation"] != _OLDEST:
            return
        if phase == "start":
            began = now()
        elif now() - began >= LONG_S:
            gc.freeze()  # no garbage is among it: it has just been collected

    def undo() -> None:
        gc.callbacks.remove(watch)
        gc.set_threshold(*before)

    before = gc.get_threshold()
    gc.set_threshold(*_THRESHOLDS)
    gc.collect()
    gc.freeze()
    gc.callbacks.append(watch)
    return undo
