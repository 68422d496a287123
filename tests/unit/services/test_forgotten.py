"""Output of tasks that went while no agent was here is removed; that of tasks that are known never is."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.ports.driver import Driver
from cube.services.forgotten import FIRST_S, LOOK_S, REMOVED_AT_ONCE_MAX, Forgotten
from tests.fakes.cluster import World, job_spec
from tests.virtual_time import run_virtual


class Keeper:
    def __init__(self, *kept: str) -> None:
        self.ids = [TaskId(one) for one in kept]
        self.removed: list[tuple[str, bool]] = []
        self.is_down = False

    async def kept(self) -> list[TaskId]:
        if self.is_down:
            raise DriverFailed("engine_down", "x", transient=True)
        return list(self.ids)

    async def remove(self, task_id: TaskId, *, keep_logs: bool) -> None:
        self.removed.append((task_id, keep_logs))
        self.ids.remove(task_id)


class Silent:
    """A driver that does not say what it keeps."""


def forgotten(world: World, *, caught_up: bool = True, **drivers: Any) -> Forgotten:
    known = {name: cast("Driver", driver) for name, driver in drivers.items()}
    return Forgotten(lambda: world.state, lambda: caught_up, known)


async def test_only_what_no_task_has_is_removed() -> None:
    world = World()
    task, ended = world.running(job_spec("shop", web={"count": 2}))
    keeper = Keeper(task.id, "gone-1", ended.id, "gone-2")
    assert await forgotten(world, a=keeper, b=Silent()).sweep() == 2
    assert keeper.removed == [("gone-1", False), ("gone-2", False)]
    assert keeper.ids == [task.id, ended.id]


async def test_a_driver_that_is_down_does_not_keep_the_others_from_it() -> None:
    down, up = Keeper("x"), Keeper("y")
    down.is_down = True
    assert await forgotten(World(), a=down, b=up).sweep() == 1
    assert (down.removed, up.removed) == ([], [("y", False)])


async def test_a_sweep_is_bounded() -> None:
    keeper = Keeper(*(f"t{n:04}" for n in range(REMOVED_AT_ONCE_MAX + 5)))
    assert await forgotten(World(), a=keeper).sweep() == REMOVED_AT_ONCE_MAX
    assert len(keeper.ids) == 5


def test_nothing_is_removed_before_this_node_knows_what_there_is() -> None:
    async def main(caught_up: bool) -> Keeper:
        keeper = Keeper("gone")
        loop = forgotten(World(), caught_up=caught_up, a=keeper)
        running = asyncio.get_running_loop().create_task(loop.run())
        await asyncio.sleep(FIRST_S - 1)
        assert keeper.removed == []
        await asyncio.sleep(2)
        assert bool(keeper.removed) is caught_up
        keeper.ids = [TaskId("later")]
        await asyncio.sleep(LOOK_S)
        running.cancel()
        return keeper

    assert [one for one, _ in run_virtual(main(True)).removed] == ["gone", "later"]
    assert run_virtual(main(False)).removed == []
