"""How many commands beside tasks there are at once: those that have not ended."""

from __future__ import annotations

import asyncio

import pytest

from cube.adapters.fake_driver import FakeDriver
from cube.adapters.fake_sessions import FakeSession
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.sessions import ExecCaller, ExecOrder
from cube.services import local_tasks
from cube.services.local_tasks import DriverTasks
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import World, job_spec
from tests.unit.api.test_api_streams import eventually
from tests.unit.services.test_worker_loop import make_driver

ORDER = ExecOrder(argv=("hang",))
SOMEBODY = ExecCaller("somebody")


@pytest.mark.parametrize("cancels", [0, 1, 3])
async def test_a_command_that_has_not_ended_keeps_its_place(
    cancels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its caller has gone, and when whoever waits for its end is told to hurry."""
    monkeypatch.setattr(local_tasks, "SESSIONS_MAX", 1)
    may_end, ended = asyncio.Event(), list[FakeSession]()

    class Stubborn(FakeSession):
        async def close(self) -> None:
            await may_end.wait()
            await super().close()
            ended.append(self)

    class Driver(FakeDriver):
        async def open_exec(self, task_id: TaskId, attempt: int, order: ExecOrder) -> FakeSession:
            return Stubborn(order, asyncio.Event(), 0)

    world = World()
    [task] = world.running(job_spec())
    tasks = DriverTasks({task.driver: make_driver(Driver)}, FakeClock())
    inside = asyncio.Event()

    async def caller() -> None:
        async with tasks.exec(task, ORDER, SOMEBODY):
            inside.set()
            if cancels:
                await asyncio.sleep(3600)

    async def is_let_in() -> bool:
        try:
            async with tasks.exec(task, ORDER, SOMEBODY):
                return True
        except DriverFailed:
            return False

    first = asyncio.create_task(caller())
    await inside.wait()
    for _ in range(cancels):
        first.cancel()
        await asyncio.wait({first}, timeout=0)
        for _ in range(3):
            await asyncio.sleep(0)
    async with asyncio.timeout(10):  # who is let in waits for its own end
        assert not await is_let_in()
    may_end.set()
    await eventually(lambda: len(ended) == 1)
    await asyncio.wait({first})
    assert await is_let_in()
