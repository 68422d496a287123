"""Who computes, and for how long."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from cube.services.turns import TURN_S, UNDISTURBED_S, take_short_turns, undisturbed


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_turns_are_as_long_as_was_asked_for_and_only_then() -> None:
    before = sys.getswitchinterval()
    undo = take_short_turns()
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    with contextlib.suppress(RuntimeError), undisturbed():
        assert sys.getswitchinterval() == pytest.approx(UNDISTURBED_S)
        raise RuntimeError
    assert sys.getswitchinterval() == pytest.approx(TURN_S)
    undo()
    assert sys.getswitchinterval() == pytest.approx(before)
