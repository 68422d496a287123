"""One node in virtual time: real apply, real worker and loop, the fake driver. Tests are the leader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.model import commands as c
from cube.model.cluster import ClusterState, Task
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.lifecycle import TaskState
from cube.model.spec import CheckSpec, CheckType, DriverName, JobType, PortSpec
from cube.model.trust import NodeKeys
from cube.ports.driver import Driver
from cube.ports.prober import Probed
from cube.services.keyring import Keyring
from cube.services.stored_values import StoredValues
from cube.services.worker_loop import WorkerLoop
from cube.worker.machine import Worker
from cube.worker.settings import WorkerSettings
from tests import builders
from tests.fakes.disk import FakeDisk
from tests.virtual_time import VirtualClock, run_virtual

CLUSTER = ClusterId("cluster")
NODE = NodeId("id-a")
COMMIT_MS = 5
PATIENCE_MS = 3_600_000


class FakeProber:
    """Answers what it is told to, by port; `hangs` ports only after their timeout."""

    def __init__(self) -> None:
        self.bad: set[int] = set()
        self.hangs: set[int] = set()
        self.asked: list[tuple[str, int]] = []

    async def http(self, address: str, port: int, path: str, timeout_ms: int) -> Probed:
        return await self.tcp(address, port, timeout_ms)

    async def tcp(self, address: str, port: int, timeout_ms: int) -> Probed:
        self.asked.append((address, port))
        if port in self.hangs:
            await asyncio.sleep(timeout_ms / 1000)
            return Probed(False, f"no answer within {timeout_ms} ms")
        await asyncio.sleep(0.001)
        return Probed(port not in self.bad, "refused" if port in self.bad else "")


class States:
    """A state feed: what tests and reports commit."""

    def __init__(self) -> None:
        self.machine = builders.Machine("a", "b")
        self._event = asyncio.Event()

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    async def changed(self, after_index: int) -> ClusterState:
        while self.state.index <= after_index:
            await self._event.wait()
        return self.state

    def do(self, body: c.Body) -> Any:
        self.machine.now_ms = VirtualClock().now_ms()
        outcome = self.machine.do(body)
        self.wake()
        return outcome

    def wake(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()


class World:
    """Use as `async with World() as world`. `skipped` collects reports that changed nothing."""

    def __init__(self, settings: WorkerSettings | None = None) -> None:
        self.settings = settings or WorkerSettings()
        self.states = States()
        self.host = FakeHost()
        self.prober = FakeProber()
        self.taken_ports: set[int] = set()
        self.leased_from_ms: int | None = None
        self.caught_up = True
        self.leader = True
        self.lose_answers = False
        self.reports: list[c.TaskReport] = []
        self.commits_ms: list[int] = []
        self.skipped: list[c.TaskReport] = []
        self.beside: dict[str, Driver] = {}  # further drivers of the next agent
        self.loop: WorkerLoop | None = None
        self._agent: asyncio.Task[None] | None = None

    async def __aenter__(self) -> World:
        self.start_agent()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill_agent()
        self.host.halt()

    @property
    def values(self) -> StoredValues:
        keyring = Keyring(FakeDisk())
        keyring.take(NodeKeys(cluster_key=b"k" * 32, gossip_keys=(b"g" * 32,)))
        return StoredValues(lambda: self.states.state, keyring, open_envelope, seal_envelope)

    def start_agent(self) -> None:
        clock = VirtualClock()
        drivers = {**self.beside, "fake": FakeDriver(CLUSTER, NODE, self.host, clock)}
        names = sorted(drivers)
        self.worker = Worker(self.settings, CLUSTER, NODE, "host-a", names, self.leased_from_ms)
        self.loop = WorkerLoop(
            self.worker,
            NODE,
            drivers,
            self.prober,
            clock,
            self.states,
            lambda: self.caught_up,
            self._propose,
            lambda _host, port, _protocol: port not in self.taken_ports,
            self.values,
        )
        self._agent = asyncio.get_running_loop().create_task(self.loop.run())

    async def kill_agent(self) -> None:
        """Without warning: what it was doing is not finished."""
        if self._agent is None:
            return
        if self._agent.done():
            await self._agent
        self.host.listeners.clear()
        self._agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._agent
        self._agent = None

    def forget_agent(self) -> None:
        """It has ended by itself, and the test has seen how."""
        self._agent = None

    async def restart_agent(self) -> None:
        await self.kill_agent()
        self.start_agent()

    async def _propose(self, body: c.ReportTasks) -> None:
        await asyncio.sleep(COMMIT_MS / 1000)
        if not self.leader:
            raise Unavailable("no leader")
        before = self.states.state
        self.states.do(body)
        self.commits_ms.append(VirtualClock().monotonic_ms())
        self.reports.extend(body.reports)
        for report in body.reports:
            old, new = before.tasks.get(report.task_id), self.states.state.tasks.get(report.task_id)
            if old is not None and old is new:
                self.skipped.append(report)
        if self.lose_answers:
            raise OutcomeUnknown("the link broke")

    def lease(self, sent_ms: int | None = None, index: int | None = None) -> None:
        """A heartbeat that was sent at that time, or just now, is acknowledged."""
        assert self.loop is not None
        sent_ms = VirtualClock().monotonic_ms() if sent_ms is None else sent_ms
        self.leased_from_ms = sent_ms  # what the lease file would have
        self.loop.on_leased(sent_ms, self.states.state.index if index is None else index)

    # What a leader does

    def run(
        self,
        name: str = "web",
        *,
        count: int = 1,
        type: JobType = JobType.SERVICE,  # noqa: A002
        host_ports: tuple[int, ...] = (),
        **group: Any,
    ) -> list[TaskId]:
        """A job with `count` tasks, all placed here. `env` values say how the fake misbehaves."""
        spec = builders.job(
            name,
            {"g": builders.group(**({"driver": DriverName.FAKE, "count": count} | group))},
            type=type,
        )
        before = set(self.states.state.tasks)
        self.states.machine.now_ms = VirtualClock().now_ms()
        self.states.machine.submit(spec)
        self.states.machine.place(name, "g", *((slot, "a", host_ports) for slot in range(count)))
        self.states.wake()
        found = set(self.states.state.tasks) - before
        assert len(found) == count
        return sorted(found, key=lambda id_: self.states.state.tasks[id_].slot)

    def stop(self, task_id: TaskId, reason: str = "job_stopped") -> None:
        self.states.do(c.ApplyPlan(1, "", stops=(c.PlannedStop(task_id, reason),)))

    def reap(self, task_id: TaskId) -> None:
        self.states.do(c.ApplyPlan(1, "", reaps=(task_id,)))

    # What can be seen

    def task(self, task_id: TaskId) -> Task:
        return self.states.state.tasks[task_id]

    def starts(self, task_id: TaskId) -> int:
        """How often anything of the task was really started."""
        return sum(n for (id_, _), n in self.host.starts.items() if id_ == task_id)

    async def until(self, claim: Callable[[], Any], patience_ms: int = PATIENCE_MS) -> None:
        """The claim holds. Looked at each 5 ms of virtual time."""
        for _ in range(patience_ms // 5):
            if claim():
                return
            if self._agent is not None and self._agent.done():
                await self._agent
            await asyncio.sleep(0.005)
        tasks = [msgspec.to_builtins(task) for task in self.states.state.tasks.values()]
        raise AssertionError(f"not within {patience_ms} ms; {tasks}")

    async def until_state(self, task_id: TaskId, state: TaskState, attempt: int = 0) -> Task:
        await self.until(
            lambda: (
                self.task(task_id).state is state
                and (not attempt or self.task(task_id).attempt == attempt)
            )
        )
        return self.task(task_id)

    async def pass_ms(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)
        if self._agent is not None and self._agent.done():
            await self._agent


PORTS = {"http": PortSpec(80)}


def tcp_check(**changes: object) -> CheckSpec:
    return CheckSpec("c", CheckType.TCP, port="http", **changes)  # type: ignore[arg-type]


def in_world(
    scenario: Callable[[World], Awaitable[None]], settings: WorkerSettings | None = None
) -> None:
    async def main() -> None:
        async with World(settings) as world:
            await scenario(world)

    run_virtual(main())


def history(world: World, task_id: TaskId) -> list[str]:
    return [f"{entry.state}/{entry.attempt}" for entry in world.task(task_id).history]
