"""A task that crashes at once, for ever, must not busy the leader or the log: the real scheduler, the
real worker, real apply, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cube.api.render import task_view
from cube.model import commands as c
from cube.model.cluster import ClusterSettings, ClusterState
from cube.model.ids import JobId, NodeId
from cube.model.lifecycle import TaskState
from cube.model.spec import DriverName, ReschedulePolicy, RestartCondition, RestartPolicy
from cube.scheduler.plan import Scheduler
from cube.scheduler.why import explain
from cube.services.leader_loop import COALESCE_MS
from tests.builders import group, job
from tests.scheduler_cluster import Cluster, web
from tests.virtual_time import VirtualClock, run_virtual
from tests.worker_world import COMMIT_MS, World

MINUTE_MS = 60_000
# Entries of the log in the worst minute, plans and reports together, on one node.
ENTRIES_OF_ONE = 30  # 24 in the first minute, 20 for one that ends at once; 54 in ten minutes
ENTRIES_OF_FIFTY = 80  # fifty such tasks of one group share most entries
# With the worst that a job file can say.
WILD_ENTRIES_OF_ONE = 50
WILD_ENTRIES_OF_FIFTY = 120
S = TaskState


class LedWorld(World):
    """With a leader that plans whenever the state has moved or a timer of its plan is due."""

    def __init__(self) -> None:
        super().__init__()
        self.entries_ms: list[int] = []
        do = self.states.do

        def counted(body: c.Body) -> object:
            self.entries_ms.append(VirtualClock().monotonic_ms())
            return do(body)

        self.states.do = counted  # type: ignore[method-assign]

    async def crash(self, minutes: int, **shape: Any) -> None:
        """A job of this shape runs for so long."""
        self.states.do(c.SetEligibility(NodeId("id-b"), False))
        crash = group(driver=DriverName.FAKE, **shape)
        self.states.do(c.SubmitJob(job("crash", {"g": crash}), JobId("crash")))
        await self.pass_ms(minutes * MINUTE_MS)

    async def lead(self) -> None:
        scheduler, plans = Scheduler(), 0
        while True:
            state: ClusterState = self.states.state
            plans += 1
            plan = scheduler.plan(state, VirtualClock().now_ms(), 1, f"seed-{plans}")
            if plan.command is not None:
                await asyncio.sleep(COMMIT_MS / 1000)
                self.states.do(plan.command)
                continue
            wait_ms = 60_000
            if plan.wake_at_ms is not None:
                wait_ms = max(1, min(wait_ms, plan.wake_at_ms - VirtualClock().now_ms()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self.states.changed(state.index)
                    await asyncio.sleep(COALESCE_MS / 1000)


def worst_minute(entries_ms: list[int]) -> int:
    """The most entries within any span of a minute."""
    most = first = 0
    for last, at_ms in enumerate(entries_ms):
        while entries_ms[first] <= at_ms - MINUTE_MS:
            first += 1
        most = max(most, last - first + 1)
    return most


WILD: dict[str, dict[str, Any]] = {
    "given up at once, and no pause": {
        "restart": RestartPolicy(RestartCondition.NEVER),
        "reschedule": ReschedulePolicy(delay_ms=0, max_delay_ms=0),
    },
    "restarts without a pause or an end": {
        "restart": RestartPolicy(attempts=1_000_000, delay_ms=0, max_delay_ms=0)
    },
    "one restart, and no pause": {
        "restart": RestartPolicy(attempts=1, delay_ms=0, max_delay_ms=0),
        "reschedule": ReschedulePolicy(delay_ms=0, max_delay_ms=0),
    },
}


@pytest.mark.parametrize(("count", "bound"), [(1, ENTRIES_OF_ONE), (50, ENTRIES_OF_FIFTY)])
@pytest.mark.parametrize("run_ms", [0, 300])
def test_entries_of_a_crash_loop_are_bounded(run_ms: int, count: int, bound: int) -> None:
    async def scenario(world: LedWorld) -> None:
        env = {"FAKE_RUN_FOR_MS": str(run_ms), "FAKE_EXIT_CODE": "3"}
        await world.crash(10, count=count, env=env)
        assert len(world.host.starts) >= 20 * count, "it is a loop"
        assert worst_minute(world.entries_ms) <= bound
        assert len(world.entries_ms) <= 4 * bound, "it calms down"
        assert len(world.states.state.tasks) <= count * (ClusterSettings().finished_per_slot + 2)

    in_led_world(scenario)


@pytest.mark.parametrize(
    ("count", "minutes", "bound"), [(1, 10, WILD_ENTRIES_OF_ONE), (50, 1, WILD_ENTRIES_OF_FIFTY)]
)
@pytest.mark.parametrize("policy", list(WILD))
def test_no_policy_of_a_job_undoes_the_bound(
    policy: str, count: int, minutes: int, bound: int
) -> None:
    async def scenario(world: LedWorld) -> None:
        env = {"FAKE_RUN_FOR_MS": "300", "FAKE_EXIT_CODE": "3"}
        await world.crash(minutes, count=count, env=env, **WILD[policy])
        assert worst_minute(world.entries_ms) <= bound

    in_led_world(scenario)


def test_a_rejection_on_every_one_of_many_nodes_is_not_run_round_and_round() -> None:
    """Each node refuses at once: a host port that something else holds, say."""
    cluster = Cluster(*(f"n{number:02}" for number in range(30)))
    cluster.submit(web(1))
    before, end_ms = cluster.state.index, cluster.now_ms + 10 * MINUTE_MS
    while cluster.now_ms < end_ms:
        wake_ms = cluster.plan().wake_at_ms
        live = cluster.live("web")
        if live:
            cluster.report(live[0].id, "rejected", reason="port_taken", released=True)
            cluster.now_ms += 10
        else:
            assert wake_ms is not None
            cluster.now_ms = max(cluster.now_ms + 1, wake_ms)
        assert cluster.state.index - before <= 10 * WILD_ENTRIES_OF_ONE
    assert cluster.state.index - before > 20


@pytest.mark.parametrize(
    ("env", "exit_code", "oom_killed", "said"),
    [
        ({"FAKE_EXIT_CODE": "3"}, 3, False, "exited with code 3"),
        ({"FAKE_EXIT_CODE": "139"}, 139, False, "killed by signal 11"),
        ({"FAKE_OOM": "1"}, 137, True, "out of memory"),
    ],
)
def test_what_it_died_of_is_in_the_record_the_history_and_why(
    env: dict[str, str], exit_code: int, oom_killed: bool, said: str
) -> None:
    async def scenario(world: LedWorld) -> None:
        await world.crash(1, env=env | {"FAKE_RUN_FOR_MS": "10"})
        state = world.states.state
        newest = max(state.tasks.values(), key=lambda task: task.created_at_ms)
        for task in state.tasks.values():
            assert (task.exit_code, task.oom_killed) == (exit_code, oom_killed)
            assert said in task.message
            ended = [entry for entry in task.history if entry.state in (S.PENDING, S.FAILED)]
            assert ended
            assert all(said in entry.message for entry in ended)
        shown = task_view(newest, None, None)
        assert (shown.exit_code, shown.oom_killed, said in shown.message) == (
            exit_code, oom_killed, True
        )  # fmt: skip
        [one] = explain(state, VirtualClock().now_ms(), "crash")
        assert said in one.summary
        assert any(reason.have == f"exit code {exit_code}" for reason in one.reasons)

    in_led_world(scenario)


def in_led_world(scenario: Callable[[LedWorld], Awaitable[None]]) -> None:
    async def main() -> None:
        world = LedWorld()
        async with world:
            leader = asyncio.get_running_loop().create_task(world.lead())
            await scenario(world)
            leader.cancel()

    run_virtual(main())
