"""/v1/rebalance: what would be moved, and its beginning."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cube.model import commands as c
from cube.model.deployment import DeploymentStatus, DeploymentStep
from tests.builders import facts
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import Served, read, served

ROOT = Path(__file__).resolve().parents[3]


async def show(api: Served) -> Any:
    async with api.client.get("/v1/rebalance") as response:
        return await read(response)


async def test_the_plan_changes_nothing_and_a_start_begins_a_round() -> None:
    world = World()
    world.running(job_spec("shop", "service", web={"count": 6}))
    shop = world.state.job_named("shop")
    assert shop is not None
    step = DeploymentStep(shop.id, shop.version, DeploymentStatus.SUCCESSFUL)
    world.apply(c.ApplyPlan(world.state.term, "s", deployments=(step,)))
    world.apply(c.RegisterNode(facts("n9")))
    async with served(world) as api:
        before = world.state
        found = await show(api)
        assert world.state is before
        assert (found["running"], found["cut"]) == (False, False)
        assert "n9" in {move["to_node"] for move in found["moves"]}
        assert all(move["crowding"] > 0 for move in found["moves"])
        async with api.client.post("/v1/rebalance") as response:
            started: Any = await read(response)
        assert started == {"changed": True, "index": world.state.index}
        assert (await show(api))["running"] is True
        async with api.client.post("/v1/rebalance") as response:
            again: Any = await read(response)
        assert again["changed"] is False


async def test_nothing_to_move() -> None:
    async with served() as api:
        assert (await show(api))["moves"] == []


async def test_on_the_command_line() -> None:
    async with served() as api:

        async def cube(*arguments: str) -> tuple[int, str]:
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-m", "cube", "--addr", api.address, *arguments],
                capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
                env={**os.environ, "NO_COLOR": "1"},
            )  # fmt: skip
            return done.returncode, done.stderr

        assert await cube("rebalance", "--plan") == (0, "nothing would gain enough by a move\n")
        assert api.world.state.rebalance_since_ms == 0
        code, said = await cube("rebalance")
        assert (code, said.splitlines()[0]) == (0, "rebalancing")
        assert api.world.state.rebalance_since_ms > 0
