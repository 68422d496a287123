"""What is old and large is looked at once by the garbage collector, not each time."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest

from cube.agent.garbage import LONG_S, keep_collections_short


class Clock:
    """Every look at it is `step_s` later than the one before."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self.step_s
        return self._now


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    undo: Callable[[], None] = keep_collections_short(made)
    yield made
    undo()
    gc.unfreeze()
    # Garbage that other tests left frozen (as an agent's is: cube.services.state_feed) is collected
    # here, or the next test would be blamed for it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_what_survives_a_long_full_collection_is_frozen(clock: Clock) -> None:
    kept = [[number] for number in range(5_000)]
    before = gc.get_freeze_count()
    assert before > 0, "what was there at the start is"
    clock.step_s = LONG_S / 2
    gc.collect()
    assert gc.get_freeze_count() <= before
    clock.step_s = 2 * LONG_S
    gc.collect(1)
    assert gc.get_freeze_count() <= before, "younger generations are left alone"
    gc.collect()
    assert gc.get_freeze_count() >= before + len(kept)


def test_garbage_in_a_cycle_is_collected_before_the_rest_is_frozen(clock: Clock) -> None:
    gone: list[str] = []

    class Cyclic:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            gone.append("gone")

    Cyclic()
    clock.step_s = 2 * LONG_S
    gc.collect()
    assert gone == ["gone"]
