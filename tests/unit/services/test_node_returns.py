"""A node is cut off, declared down, and comes back: what was replaced meanwhile, or is not wanted any more,
is stopped there; what was not goes on untouched. Real apply, scheduler, worker and loop; virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState, Task
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.lifecycle import Desired, NodeStatus, TaskState
from cube.model.resources import Resources
from cube.model.spec import DriverName, GroupSpec
from cube.scheduler.plan import Scheduler
from cube.statemachine.invariants import violations
from tests.builders import GIB, facts, group, job
from tests.virtual_time import VirtualClock
from tests.worker_world import NODE, States, World, in_world

COUNT = 4
B = NodeId("id-b")


class View:
    """The state as node a sees it: `frozen` while it is cut off."""

    def __init__(self, states: States) -> None:
        self._states = states
        self.frozen: ClusterState | None = None

    @property
    def state(self) -> ClusterState:
        return self._states.state if self.frozen is None else self.frozen

    async def changed(self, after_index: int) -> ClusterState:
        while self.state.index <= after_index:  # noqa: ASYNC110 - of virtual time
            await asyncio.sleep(0.01)
        return self.state


class Cluster:
    """The world's node a, a node b where everything succeeds at once, and a leader."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.scheduler = Scheduler()
        self.plans = 0
        self.view = View(world.states)
        self.connect()

    def connect(self) -> None:
        """The present agent sees what its node does."""
        assert self.world.loop is not None
        self.world.loop._states = self.view

    @property
    def tasks(self) -> list[Task]:
        return list(self.world.states.state.tasks.values())

    def on_a(self) -> dict[TaskId, Task]:
        return {task.id: task for task in self.tasks if task.node_id == NODE}

    def do(self, body: c.Body) -> None:
        self.world.states.do(body)
        assert violations(self.world.states.state) == []

    def status(self, status: NodeStatus, node_id: NodeId = NODE) -> None:
        self.do(c.SetNodeStatus(1, node_id, status))

    def room_on_b(self, tasks: int) -> None:
        self.do(c.RegisterNode(facts("b", capacity=Resources(100 * tasks, 8 * GIB, 0))))

    async def lead(self, ms: int) -> None:
        """Plans are made and carried out, for so long."""
        for _ in range(ms // 50):
            self.plans += 1
            now_ms = VirtualClock().now_ms()
            state = self.world.states.state
            plan = self.scheduler.plan(state, now_ms, 1, f"plan-{self.plans}", {})
            if plan.command is not None:
                self.do(plan.command)
            self.obey_on_b()
            await self.world.pass_ms(50)

    def obey_on_b(self) -> None:
        for task in self.tasks:
            if task.node_id != B or task.released:
                continue
            if task.desired is not Desired.RUN:
                report = c.TaskReport(task.id, 1, TaskState.COMPLETED, released=True)
            elif task.state is not TaskState.RUNNING:
                report = c.TaskReport(task.id, 1, TaskState.RUNNING, health=task.health)
            else:
                continue
            self.do(c.ReportTasks(B, (report,)))

    def live(self) -> list[Task]:
        return sorted((task for task in self.tasks if task.live), key=lambda task: task.slot)

    def runs(self, task_id: TaskId) -> bool:
        found = self.world.host.attempts.get((NODE, task_id))
        return found is not None and found.seen.state == "running"


def spec(**changes: object) -> GroupSpec:
    values = {"driver": DriverName.FAKE, "count": COUNT, "resources": Resources(100, 64 << 20, 0)}
    return group(**(values | changes))


def submit(cluster: Cluster, **changes: object) -> None:
    known = cluster.world.states.state.job_named("web")
    job_id = JobId("web") if known is None else known.id
    cluster.do(c.SubmitJob(job("web", {"g": spec(**changes)}), job_id))


async def all_on_a(cluster: Cluster) -> None:
    """The job's tasks run on a, and nothing may go to b yet."""
    cluster.do(c.SetEligibility(B, False))
    submit(cluster)
    await cluster.lead(2_000)
    assert [task.state for task in cluster.on_a().values()] == [TaskState.RUNNING] * COUNT


async def cut_off(cluster: Cluster) -> None:
    cluster.world.leader = False
    cluster.view.frozen = cluster.world.states.state
    cluster.status(NodeStatus.DOWN)
    assert {task.state for task in cluster.on_a().values()} == {TaskState.LOST}


async def come_back(cluster: Cluster) -> None:
    for task_id in cluster.on_a():
        assert cluster.runs(task_id), "cut off, it is left alone"
    cluster.world.leader = True
    cluster.view.frozen = None
    cluster.status(NodeStatus.READY)
    await cluster.lead(20_000)


def check_at_rest(cluster: Cluster, running_on_a: set[TaskId]) -> None:
    """Those run where and as they did; of all others on a nothing is left."""
    for task_id, task in cluster.on_a().items():
        assert cluster.runs(task_id) is (task_id in running_on_a), task
        assert cluster.world.starts(task_id) <= 1, "started again"
        if task_id in running_on_a:
            assert (task.state, task.attempt) == (TaskState.RUNNING, 1)
        else:
            assert task.ended
            assert task.released
            assert (NODE, task_id) not in cluster.world.host.attempts


def test_half_of_its_tasks_were_replaced() -> None:
    async def scenario(world: World) -> None:
        cluster = Cluster(world)
        await all_on_a(cluster)
        before = cluster.on_a()
        await cut_off(cluster)
        cluster.room_on_b(2)
        cluster.do(c.SetEligibility(B, True))
        await cluster.lead(5_000)
        replaced = {task.slot for task in cluster.live()}
        assert len(replaced) == 2
        cluster.do(c.SetEligibility(B, False))
        await come_back(cluster)
        kept = {task_id for task_id, task in before.items() if task.slot not in replaced}
        check_at_rest(cluster, kept)
        assert [task.slot for task in cluster.live()] == list(range(COUNT))
        gone = [task for task in cluster.on_a().values() if task.id not in kept]
        assert {task.desired_reason for task in gone} == {"replaced"}

    in_world(scenario)


def delete(cluster: Cluster) -> None:
    cluster.do(c.DeleteJob("web"))


def stop(cluster: Cluster) -> None:
    cluster.do(c.StopJob("web"))


def scale_down(cluster: Cluster) -> None:
    cluster.do(c.ScaleJob("web", {"g": 1}))


def update(cluster: Cluster) -> None:
    submit(
        cluster, env={"A": "new"}, update=msgspec.structs.replace(spec().update, min_healthy_ms=0)
    )


def nothing(_cluster: Cluster) -> None:
    pass


@pytest.mark.parametrize(
    ("happens", "kept", "wanted"),
    [
        (nothing, COUNT, COUNT),
        (delete, 0, 0),
        (stop, 0, 0),
        (scale_down, 1, 1),
        (update, 0, COUNT),
    ],
)
@pytest.mark.parametrize("agent_dies", [False, True])
def test_what_became_of_its_job_meanwhile_holds_for_its_tasks(
    happens: Callable[[Cluster], None], kept: int, wanted: int, agent_dies: bool
) -> None:
    """Nothing could be replaced: there was no other place."""

    async def scenario(world: World) -> None:
        cluster = Cluster(world)
        await all_on_a(cluster)
        before = cluster.on_a()
        await cut_off(cluster)
        if agent_dies:
            await world.kill_agent()
        happens(cluster)
        await cluster.lead(3_000)
        if agent_dies:
            world.start_agent()
            cluster.connect()
        await come_back(cluster)
        await cluster.lead(60_000)
        survivors = {task_id for task_id in before if cluster.runs(task_id)}
        assert len(survivors) == kept
        assert [task.slot for task in cluster.live()] == list(range(wanted))
        for task_id in before:
            assert world.starts(task_id) == 1
        left = {task_id for (_, task_id) in world.host.attempts}
        assert left == {task.id for task in cluster.live() if task.node_id == NODE}

    in_world(scenario)
