"""Tasks that need a lease run while leaders acknowledge their node, and `lost_after` longer."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.ids import TaskId
from cube.model.launch import LaunchLease, RunState
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.spec import OnPartition, RestartPolicy
from tests.virtual_time import VirtualClock
from tests.worker_world import NODE, World, history, in_world

LOST_AFTER_MS = 5_000
STOP_TIMEOUT_MS = 3_000


def leased(world: World, **group: object) -> TaskId:
    """A task whose group needs a lease, which it has not got yet."""
    settings = {
        "on_partition": OnPartition.STOP,
        "lost_after_ms": LOST_AFTER_MS,
        "stop_timeout_ms": STOP_TIMEOUT_MS,
    }
    [task] = world.run(**(settings | group))  # type: ignore[arg-type]
    return task


def attempt_of(world: World, task: TaskId):  # type: ignore[no-untyped-def]
    return world.host.attempts.get((NODE, task))


def runs(world: World, task: TaskId) -> bool:
    attempt = attempt_of(world, task)
    return attempt is not None and attempt.seen.state is RunState.RUNNING


def now_ms() -> int:
    return VirtualClock().monotonic_ms()


def test_it_is_started_once_a_leader_acknowledged_the_node() -> None:
    async def scenario(world: World) -> None:
        asked: list[int] = []
        assert world.loop is not None
        world.loop.on_lease_wanted = lambda: asked.append(now_ms())
        task = leased(world)
        await world.until_state(task, TaskState.STARTING)
        assert asked, "nobody is told that a lease is wanted"
        await world.pass_ms(60_000)
        assert world.starts(task) == 0
        world.lease()
        await world.until_state(task, TaskState.RUNNING)
        assert world.loop.wants_lease
        lease = attempt_of(world, task).launch.lease
        assert lease == LaunchLease(world.leased_from_ms or 0, LOST_AFTER_MS)

    in_world(scenario)


def test_a_lease_counts_once_the_state_that_goes_with_it_is_known() -> None:
    """A leader that has placed a replacement says so in that state."""

    async def scenario(world: World) -> None:
        task = leased(world)
        await world.until_state(task, TaskState.STARTING)
        world.lease(index=world.states.state.index + 1)
        await world.pass_ms(1_000)
        assert world.starts(task) == 0
        world.stop(task)  # what the leader had committed before it gave the lease
        await world.pass_ms(1_000)
        assert world.starts(task) == 0
        assert world.task(task).released

    in_world(scenario)


def test_renewed_it_runs_on_and_is_left_alone() -> None:
    async def scenario(world: World) -> None:
        task = leased(world)
        for _ in range(100):
            world.lease()
            await world.pass_ms(1_000)
        assert history(world, task)[-1] == "running/1"
        assert world.starts(task) == 1
        assert world.skipped == []

    in_world(scenario)


def test_unacknowledged_it_is_stopped_on_time_and_has_failed() -> None:
    async def scenario(world: World) -> None:
        task = leased(world)
        world.lease()
        sent_ms = world.leased_from_ms or 0
        await world.until_state(task, TaskState.RUNNING)
        world.leader = False
        await world.until(lambda: not runs(world, task))
        assert sent_ms + LOST_AFTER_MS <= now_ms() < sent_ms + LOST_AFTER_MS + 20
        await world.pass_ms(3_600_000)
        assert attempt_of(world, task) is not None, "its end is not known yet: that is evidence"
        world.leader = True
        world.lease()
        ended = await world.until_state(task, TaskState.FAILED)
        assert (ended.reason, ended.exit_code) == ("partitioned", 143)
        assert "no leader acknowledged its node for 5s" in ended.message
        await world.until(lambda: world.task(task).released)
        assert world.starts(task) == 1
        assert attempt_of(world, task) is None

    in_world(scenario)


def test_what_ignores_its_signal_is_killed_within_the_lease() -> None:
    async def scenario(world: World) -> None:
        task = leased(world, env={"FAKE_IGNORE_SIGTERM": "1"})
        world.lease()
        sent_ms = world.leased_from_ms or 0
        await world.until_state(task, TaskState.RUNNING)
        await world.until(lambda: not runs(world, task))
        assert now_ms() <= sent_ms + LOST_AFTER_MS + STOP_TIMEOUT_MS + 20

    in_world(scenario)


@pytest.mark.parametrize("late_ms", [0, 1_000, STOP_TIMEOUT_MS, 60_000])
def test_an_agent_that_is_back_late_has_less_time_to_stop_it(late_ms: int) -> None:
    """The agent was dead meanwhile; its lease file says when the lease began."""

    async def scenario(world: World) -> None:
        task = leased(world, env={"FAKE_IGNORE_SIGTERM": "1"})
        world.lease()
        sent_ms = world.leased_from_ms or 0
        await world.until_state(task, TaskState.RUNNING)
        await world.kill_agent()
        await world.pass_ms(LOST_AFTER_MS + late_ms)
        assert runs(world, task)
        world.start_agent()
        await world.until(lambda: not runs(world, task))
        limit_ms = max(sent_ms + LOST_AFTER_MS + STOP_TIMEOUT_MS, sent_ms + LOST_AFTER_MS + late_ms)
        assert now_ms() <= limit_ms + 200

    in_world(scenario)


def test_an_agent_that_is_back_in_time_takes_it_up_again() -> None:
    async def scenario(world: World) -> None:
        task = leased(world)
        world.lease()
        await world.until_state(task, TaskState.RUNNING)
        await world.pass_ms(LOST_AFTER_MS // 2)
        await world.restart_agent()
        for _ in range(20):
            world.lease()
            await world.pass_ms(1_000)
        assert world.starts(task) == 1
        assert history(world, task)[-1] == "running/1"

    in_world(scenario)


def test_it_is_not_restarted_in_place_without_a_lease() -> None:
    async def scenario(world: World) -> None:
        task = leased(world, restart=RestartPolicy(delay_ms=2 * LOST_AFTER_MS))
        world.lease()
        await world.until_state(task, TaskState.RUNNING)
        world.host.end(NODE, task, 1, 0)
        await world.until_state(task, TaskState.PENDING, 2)
        await world.pass_ms(60_000)  # the restart's delay is over, and so is the lease
        assert world.starts(task) == 1
        world.lease()
        await world.until_state(task, TaskState.RUNNING, 2)

    in_world(scenario)


def test_lost_and_not_replaced_it_ends_for_everybody_when_its_node_is_back() -> None:
    async def scenario(world: World) -> None:
        task = leased(world)
        world.lease()
        await world.until_state(task, TaskState.RUNNING)
        world.leader = False
        world.states.do(c.SetNodeStatus(1, NODE, NodeStatus.DOWN))
        await world.pass_ms(LOST_AFTER_MS + STOP_TIMEOUT_MS)
        assert not runs(world, task)
        world.leader = True
        await world.until_state(task, TaskState.FAILED)
        assert world.task(task).reason == "partitioned"
        assert world.states.state.nodes[NODE].status is NodeStatus.DOWN, "nothing runs on it"

    in_world(scenario)


def test_its_withdrawal_is_cut_short_by_the_end_of_the_lease() -> None:
    async def scenario(world: World) -> None:
        task = leased(world, shutdown_delay_ms=60_000)
        world.lease()
        sent_ms = world.leased_from_ms or 0
        await world.until_state(task, TaskState.RUNNING)
        world.stop(task, "scale_down")
        await world.until_state(task, TaskState.STOPPING)
        await world.until(lambda: not runs(world, task))
        assert now_ms() <= sent_ms + LOST_AFTER_MS + 20

    in_world(scenario)


def test_others_do_not_care() -> None:
    async def scenario(world: World) -> None:
        [task] = world.run()
        await world.until_state(task, TaskState.RUNNING)
        assert world.loop is not None
        assert not world.loop.wants_lease
        world.leader = False
        await world.pass_ms(3_600_000)
        assert runs(world, task)

    in_world(scenario)
