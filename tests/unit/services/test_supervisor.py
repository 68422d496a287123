from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from cube.services.supervisor import RESTART_MAX_S, keep_running
from tests.virtual_time import run_virtual


def test_a_loop_that_dies_is_told_of_and_begun_again_ever_more_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at_s: list[float] = []

    async def run() -> None:
        at_s.append(asyncio.get_running_loop().time())
        if len(at_s) < 9:
            raise ValueError("a bug")

    with caplog.at_level(logging.CRITICAL):
        run_virtual(keep_running("leader", run))
    gaps = [after - before for before, after in itertools.pairwise(at_s)]
    assert [round(gap) for gap in gaps] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert gaps[-1] <= RESTART_MAX_S + 1
    assert len(caplog.records) == 8
    assert "a bug" in caplog.text


def test_a_loop_that_lived_long_is_begun_again_soon() -> None:
    at_s: list[float] = []

    async def run() -> None:
        now = asyncio.get_running_loop().time
        at_s.append(now())
        if len(at_s) == 4:
            return
        await asyncio.sleep(100 if len(at_s) == 3 else 0)
        raise ValueError("a bug")

    run_virtual(keep_running("leader", run))
    assert round(at_s[3] - at_s[2] - 100) == 1


def test_cancellation_is_no_death() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(keep_running("leader", asyncio.Event().wait))  # type: ignore[arg-type]
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())
