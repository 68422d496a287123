"""An engine that is not there is told of once, not once a second."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.virtual_time import run_virtual
from tests.worker_world import World


def test_an_absent_engine_is_said_once_and_its_loss_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cube.services.worker_loop")

    def said() -> list[tuple[str, str]]:
        found = [(r.levelname, r.getMessage().split()[0]) for r in caplog.records]
        caplog.clear()
        return [line for line in found if line[1].startswith("recover")]

    async def main() -> None:
        world = World()
        world.host.engine_down = True
        async with world:
            await asyncio.sleep(600)
            assert said() == [("INFO", "recover_failed")]
            world.host.engine_down = False
            await asyncio.sleep(600)
            assert said() == [("INFO", "recovered"), ("INFO", "recover_restored")]
            world.host.engine_down = True
            await asyncio.sleep(600)
            assert said() == [("WARNING", "recover_failed")]

    run_virtual(main())
