"""Whatever fails, whoever leads: a rollout takes away no more than it promised to, and ends."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from cube.api.slots import SlotsOfJobs, slots_of_job
from cube.model import commands as c
from cube.model.cluster import ClusterState, Job, Task
from cube.model.deployment import DeploymentAction, DeploymentStatus
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.spec import (
    CheckSpec,
    CheckType,
    JobSpec,
    OnUpdateFailure,
    PortSpec,
    UpdateOrder,
    UpdatePolicy,
)
from cube.scheduler.plan import Scheduler
from cube.scheduler.reconcile import at_rest, comes_up, draining_nodes, only_waits, reconcile
from cube.scheduler.slots import JobWork
from tests.scheduler_cluster import Cluster, web

NODES = ("a", "b", "c", "d")
ROLLING = frozenset({"update", "drain"})
COMMANDS = ("one", "two", "three", "broken", "slow")  # broken fails at once, slow never comes up

updates = st.builds(
    UpdatePolicy,
    parallelism=st.integers(1, 3),
    order=st.sampled_from(UpdateOrder),
    min_healthy_ms=st.sampled_from((0, 10_000)),
    canaries=st.sampled_from((0, 0, 0, 1, 2)),
    on_failure=st.sampled_from(OnUpdateFailure),
)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(COMMANDS)),
        st.tuples(st.sampled_from(("restart", "back", "promote", "pause", "resume", "fail"))),
        st.tuples(st.just("leader")),
        st.tuples(st.just("obey"), st.integers(0, 3)),
        st.tuples(st.just("crash"), st.integers(0, 9)),
        st.tuples(st.just("sick"), st.integers(0, 9)),
        st.tuples(st.just("down"), st.sampled_from(NODES)),
        st.tuples(st.just("up"), st.sampled_from(NODES)),
        st.tuples(st.just("drain"), st.sampled_from(NODES)),
        st.tuples(st.just("undrain"), st.sampled_from(NODES)),
        st.tuples(st.just("time"), st.sampled_from((1_000, 10_000, 60_000, 400_000))),
    ),
    max_size=40,
)


def check_short_cuts(state: ClusterState, now_ms: int) -> None:
    """What looks at a job in short says what the long look says."""
    for job in state.jobs.values():
        waits = only_waits(state, job, now_ms, draining_nodes(state))
        if waits is not None:
            event("only waits")
            assert waits == reconcile(state, job, now_ms)
        state.tally_of_job(job.id)  # as of a job of many tasks
        waits = comes_up(state, job, now_ms, draining_nodes(state))
        if waits is not None:
            event("comes up")
            check_nothing_is_to_be_done(state, job, now_ms, waits)
        if at_rest(state, job, draining_nodes(state)):
            event("at rest")
            work = reconcile(state, job, now_ms)
            assert msgspec.structs.replace(work, wake_at_ms=None) == JobWork()
        long, short = slots_of_job(state, job), SlotsOfJobs().standing(state, job)
        assert (short.groups, short.status) == (long.groups, long.status)


def check_nothing_is_to_be_done(state: ClusterState, job: Job, now_ms: int, waits: JobWork) -> None:
    """Nor at any time before it is woken, if nothing happens."""
    at_ms: int | None = now_ms
    while at_ms is not None and waits.wake_at_ms is not None and at_ms < waits.wake_at_ms:
        work = reconcile(state, job, at_ms)
        assert msgspec.structs.replace(work, wake_at_ms=None) == JobWork()
        assert work.wake_at_ms is None or work.wake_at_ms > at_ms
        at_ms = work.wake_at_ms


class World(Cluster):
    """A cluster of one service, whose availability is watched at each plan."""

    def __init__(self, count: int, update: UpdatePolicy) -> None:
        super().__init__(*NODES)
        self.count = count
        self.update = update
        self.submit(self.spec("one"))
        self.roll()
        assert len(self.available()) == count

    def spec(self, command: str) -> JobSpec:
        return web(
            self.count,
            update=self.update,
            command=(command,),
            ports={"http": PortSpec(80)},
            checks=(CheckSpec("c", CheckType.TCP, "http"),),
        )

    @property
    def web(self) -> Job:
        return self.state.jobs[self.state.job_names["web"]]

    def tasks(self) -> list[Task]:
        return self.state.tasks_of_job(self.web.id)

    def available(self) -> set[int]:
        return {task.slot for task in self.tasks() if task.live and task.serving}

    def plan(self) -> Any:
        check_short_cuts(self.state, self.now_ms)
        before = self.available() if hasattr(self, "update") else set()
        plan = super().plan()
        check_short_cuts(self.state, self.now_ms)
        if plan.command is None or not plan.command.stops or not before:
            return plan
        rolling = [
            self.state.tasks[stop.task_id] for stop in plan.command.stops if stop.reason in ROLLING
        ]
        after = self.available()
        gone = before - after
        if any(task.slot in gone for task in rolling):
            event("a serving task was taken away")
            assert self.update.order is UpdateOrder.STOP_FIRST, "start-first takes nothing away"
            assert len(after) >= self.count - self.update.parallelism
        return plan

    def check_total(self) -> None:
        most = self.count + self.update.parallelism + self.update.canaries
        counted = [
            task
            for task in self.tasks()
            if not task.ended and task.desired_reason not in ("replaced", "duplicate")
        ]
        assert len(counted) <= most, [
            (t.slot, t.version, t.state, t.desired_reason) for t in counted
        ]

    def happen(self, what: tuple[Any, ...]) -> None:
        match what:
            case ("submit", command):
                self.submit(self.spec(command))
            case ("restart",):
                self.do(c.RestartJob("web"))
            case ("back",):
                self.do(c.RollBackJob("web"))
            case ("promote" | "pause" | "resume" | "fail",):
                self.do(c.SteerDeployment("web", self.web.version, DeploymentAction(what[0])))
            case ("leader",):
                self.scheduler, self.term = Scheduler(), self.term + 1
            case ("obey", only):
                self.obey_some(only)
            case ("crash" | "sick", number):  # its restarts are used up; its checks fail
                running = [task for task in self.tasks() if task.state is TaskState.RUNNING]
                if running:
                    task = running[number % len(running)]
                    if what[0] == "sick":
                        self.report(task.id, "running", health=Health.UNHEALTHY)
                    elif task.desired is Desired.RUN:
                        self.fail(task)
            case ("down", name):
                if sum(node.status is NodeStatus.READY for node in self.state.nodes.values()) > 2:
                    self.down(name)
            case ("up", name):
                self.down(name, NodeStatus.READY)
            case ("drain", name):
                self.do(c.SetDrain(self.node(name), 3_600_000))
            case ("undrain", name):
                self.do(c.SetDrain(self.node(name), None))
            case ("time", ms):
                self.now_ms += ms
            case _:
                raise AssertionError(what)

    def obey_some(self, only: int) -> None:
        """Every fourth node, or all."""
        for task in self.tasks():
            if only and not task.node_id.endswith(NODES[only]):
                continue
            self.obey_one(task)

    def obey_one(self, task: Task) -> None:
        made_from = self.state.group_of(task)
        is_slow = made_from is not None and made_from.command == ("slow",)
        if not is_slow or task.desired is not Desired.RUN:
            super().obey_one(task)


@given(st.integers(1, 5), updates, happenings)
@example(
    1,
    UpdatePolicy(min_healthy_ms=0, canaries=1),
    [("restart",), ("obey", 0), ("crash", 0), ("submit", "two")],
)
@example(1, UpdatePolicy(min_healthy_ms=0, canaries=1), [("submit", "two"), ("obey", 0)])
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_rollout_keeps_its_promise_and_ends(
    count: int, update: UpdatePolicy, steps: list[tuple[Any, ...]]
) -> None:
    world = World(count, update)
    for what in steps:
        world.happen(what)
        world.plan()
        world.check_total()
    for name in NODES:
        world.happen(("undrain", name))
        world.happen(("up", name))
    world.now_ms += (
        1  # what failed before the resumption does not count, in the same moment it does
    )
    world.submit(world.spec("one"))
    world.do(c.SteerDeployment("web", world.web.version, DeploymentAction.RESUME))
    world.roll(8 * 3_600_000)
    world.do(c.SteerDeployment("web", world.web.version, DeploymentAction.PROMOTE))
    world.roll(8 * 3_600_000)
    assert world.available() == set(range(count))
    assert len([task for task in world.tasks() if task.live]) == count
    newest = world.web.deployments[-1]
    assert newest.status is DeploymentStatus.SUCCESSFUL, newest
    assert world.web.spec.groups["g"].command == ("one",)
