"""The shell around the worker: what it does with answers, failures and floods."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.model import commands as c
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId
from cube.model.launch import DriverInfo, Launch, LogChunk, RunState
from cube.model.lifecycle import TaskState
from cube.model.resources import Resources
from cube.model.spec import MountSpec, MountType, PortSpec, Protocol, SecretRef
from cube.model.stored import StoredKind
from cube.services import worker_loop
from cube.services.driver_facts import DriverFacts
from cube.services.local_tasks import DriverTasks
from cube.worker import inputs as i
from tests import builders
from tests.unit.worker.test_worker_machine import make_task
from tests.virtual_time import VirtualClock, run_virtual
from tests.worker_world import NODE, World

S = TaskState


def in_world(scenario: Callable[[World], Any]) -> None:
    async def main() -> None:
        async with World() as world:
            await scenario(world)

    run_virtual(main())


def test_a_bug_in_a_driver_ends_the_loop_instead_of_being_forgotten() -> None:
    async def scenario(world: World) -> None:
        async def broken(self: FakeDriver, launch: Launch) -> None:
            raise ZeroDivisionError("a bug")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeDriver, "prepare", broken)
            world.run()
            with pytest.raises(ExceptionGroup) as failure:
                await world.pass_ms(100)
            assert failure.group_contains(ZeroDivisionError)
            world.forget_agent()

    in_world(scenario)


def test_starts_beyond_the_drivers_slots_wait_and_stops_do_not_wait_for_them() -> None:
    async def scenario(world: World) -> None:
        [old] = world.run("old")
        await world.until_state(old, S.RUNNING)
        ids = world.run(
            count=20, resources=Resources(1, 1, 0), env={"FAKE_START_BLOCK_MS": "10000"}
        )
        await world.pass_ms(9_000)
        world.stop(old)
        await world.until_state(old, S.COMPLETED)
        assert VirtualClock().monotonic_ms() < 10_000
        await world.pass_ms(2_000)
        assert sum(world.starts(id_) for id_ in ids) == 8
        await world.until(lambda: all(world.task(id_).state is S.RUNNING for id_ in ids))
        assert VirtualClock().monotonic_ms() < 31_000

    in_world(scenario)


def test_hints_above_the_limit_are_dropped_and_the_resync_makes_up_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_loop, "HINTS_MAX", 0)

    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        world.host.end(NODE, id_, 1, 0)
        await world.until_state(id_, S.RUNNING, attempt=2)
        assert VirtualClock().monotonic_ms() > 50_000

    in_world(scenario)


def test_a_port_test_that_fails_is_a_taken_port() -> None:
    async def scenario(world: World) -> None:
        def broken(host: str, port: int, protocol: Protocol) -> bool:
            raise OSError("no such address")

        assert world.loop is not None
        world.loop._port_free = broken
        [id_] = world.run(host_ports=(20_001,), ports={"http": PortSpec(80)})
        task = await world.until_state(id_, S.REJECTED)
        assert (task.reason, "no such address" in task.message) == ("port_taken", True)

    in_world(scenario)


def test_an_idle_node_is_idle() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        assert world.loop is not None
        world.loop.recent.clear()
        await world.pass_ms(600_000)
        assert len(world.loop.recent) <= 10 * 3, "a resync a minute: an alarm and an answer"

    in_world(scenario)


def test_a_state_that_changes_for_others_does_not_wake_the_worker() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        assert world.loop is not None
        world.loop.recent.clear()
        for _ in range(50):
            world.states.machine.submit(builders.job(f"other{world.states.state.index}"))
            world.states.wake()
            await world.pass_ms(10)
        assert len(world.loop.recent) <= 2

    in_world(scenario)


def test_of_many_states_only_the_newest_is_looked_at() -> None:
    async def scenario(world: World) -> None:
        await world.pass_ms(100)
        assert world.loop is not None
        world.loop.recent.clear()
        for number in range(5):
            world.run(f"job{number}")
            await asyncio.sleep(0)
        await world.pass_ms(10)
        seen = [x for _, inputs in world.loop.recent for x in inputs if isinstance(x, i.Wanted)]
        assert [len(wanted.tasks) for wanted in seen][-1] == 5
        assert all(a.index < b.index for a, b in itertools.pairwise(seen))

    in_world(scenario)


def test_cancelling_closes_the_drivers_and_leaves_the_tasks_alone() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        [slow] = world.run("slow", env={"FAKE_PREPARE_BLOCK_MS": "60000"})
        await world.until_state(id_, S.RUNNING)
        await world.until_state(slow, S.PREPARING)
        listeners = world.host.listeners
        assert listeners
        await world.kill_agent()
        assert not listeners
        assert world.host.attempts[NODE, id_].seen.state is RunState.RUNNING

    in_world(scenario)


# Its small neighbours


class Facts(FakeDriver):
    info = DriverInfo("fake", True)

    async def fingerprint(self) -> DriverInfo:
        return self.info


def make_driver(cls: type[FakeDriver] = FakeDriver) -> FakeDriver:
    return cls(ClusterId("c"), NodeId("n"), FakeHost(), VirtualClock())


def test_driver_facts_are_told_at_first_and_then_only_when_they_change() -> None:
    async def main() -> None:
        driver = make_driver(Facts)
        assert isinstance(driver, Facts)
        told: list[dict[str, DriverInfo]] = []

        async def on_change(infos: dict[str, DriverInfo]) -> None:
            told.append(infos)

        running = asyncio.get_running_loop().create_task(
            DriverFacts({"fake": driver}).run(on_change)
        )
        await asyncio.sleep(100)
        assert told == [{"fake": DriverInfo("fake", True)}]
        driver.info = DriverInfo("fake", False, "gone")
        await asyncio.sleep(11)
        assert told[1:] == [{"fake": DriverInfo("fake", False, "gone")}]
        running.cancel()

    run_virtual(main())


async def test_logs_come_from_the_tasks_driver_and_a_missing_one_is_said() -> None:
    class Talker(FakeDriver):
        async def logs(self, task_id: str, **_: Any) -> AsyncIterator[LogChunk]:
            yield LogChunk("stdout", f"{task_id} says".encode())

    logs = DriverTasks({"fake": make_driver(Talker)}, VirtualClock())
    what: dict[str, Any] = {"streams": ("stdout",), "tail": None, "since_ms": 0, "follow": False}
    chunks = [chunk async for chunk in logs.logs(make_task(), **what)]
    assert [chunk.data for chunk in chunks] == [b"task-1 says"]
    with pytest.raises(DriverFailed) as failure:
        logs.logs(make_task(driver="docker"), **what)
    assert failure.value.code == "no_driver"


def secret(world: World, value: bytes) -> None:
    data, fingerprint = world.values.seal("db", value)
    world.states.do(c.StoreVersion(StoredKind.SECRET, "db", data, len(value), fingerprint))


def test_a_driver_gets_the_secrets_and_nothing_else_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World) -> None:
        secret(world, b"canary")
        mounts = (MountSpec(MountType.SECRET, "db", "db", True, 0, 0o400),)
        [task_id] = world.run(env={"P": SecretRef("db")}, mounts=mounts)
        await world.until_state(task_id, S.RUNNING)
        launch = world.host.attempts[NODE, task_id].launch
        assert (launch.env["P"], launch.files[0].data) == ("canary", b"canary")
        assert "P" not in world.host.prepared[-1].env, "who pulls the image needs none"
        secret(world, b"newer")  # the job's next version is for others to make real
        world.host.end(NODE, task_id, 1, VirtualClock().now_ms())
        await world.until_state(task_id, S.RUNNING, attempt=2)
        assert world.host.attempts[NODE, task_id].launch.env["P"] == "canary"
        assert world.loop is not None
        seen = repr((world.loop.recent, world.worker.tasks, world.states.state.tasks))
        assert "canary" not in seen + caplog.text

    caplog.set_level("DEBUG")
    in_world(scenario)


def test_a_secret_that_does_not_open_fails_the_task_with_what_to_do() -> None:
    async def scenario(world: World) -> None:
        secret(world, b"canary\xff")
        [task_id] = world.run(env={"P": SecretRef("db")})
        await world.until(lambda: world.task(task_id).ended)
        task = world.task(task_id)
        assert (task.reason, task.message) == (
            "secret_not_text",
            "env P: secret db is no text; mount it as a file instead; 3 restarts within 600 s are "
            "used up",
        )  # fmt: skip

    in_world(scenario)
