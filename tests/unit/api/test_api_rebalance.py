"""/v1/rebalance: what would be moved, and its beginning."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.deployment import DeploymentStatus, DeploymentStep
from tests.builders import facts
from tests.fakes.cluster import World, job_spec
from tests.fakes.served import Served, read, served


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
