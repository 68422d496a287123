"""The agent dies and comes back; the control plane goes away: what happens to tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cube.adapters.fake_driver import FakeDriver, FakeHost
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import TaskId
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import Health, NodeStatus, TaskState
from cube.model.spec import (
    CheckSpec,
    CheckType,
    JobType,
)
from cube.statemachine.draft import Draft
from tests.virtual_time import VirtualClock
from tests.worker_world import CLUSTER, NODE, World, history, in_world

S = TaskState
# The agent dies and comes back


def test_running_tasks_are_adopted_as_they_are() -> None:
    async def scenario(world: World) -> None:
        ids = world.run(
            count=3,
            checks=(CheckSpec("x", CheckType.EXEC, command=("say", "", "0")),),
        )
        await world.until(lambda: all(world.task(i).health is Health.HEALTHY for i in ids))
        before = [world.task(id_) for id_ in ids]
        reports = len(world.reports)
        await world.kill_agent()
        await world.pass_ms(60_000)
        world.start_agent()
        await world.pass_ms(120_000)
        assert [world.task(id_) for id_ in ids] == before
        assert [world.starts(id_) for id_ in ids] == [1, 1, 1]
        assert len(world.reports) == reports, "nothing changed, so there is nothing to say"

    in_world(scenario)


def test_what_ended_while_the_agent_was_away_is_an_end() -> None:
    async def scenario(world: World) -> None:
        [service] = world.run("web")
        [batch] = world.run("sum", type=JobType.BATCH, env={"FAKE_RUN_FOR_MS": "5000"})
        await world.until_state(service, S.RUNNING)
        await world.until_state(batch, S.RUNNING)
        await world.kill_agent()
        world.host.end(NODE, service, 9, 0)
        await world.pass_ms(10_000)
        world.start_agent()
        task = await world.until_state(service, S.RUNNING, attempt=2)
        assert (task.restarts, world.starts(service)) == (1, 2)
        assert (await world.until_state(batch, S.COMPLETED)).exit_code == 0
        assert world.starts(batch) == 1

    in_world(scenario)


def test_what_vanished_while_the_agent_was_away_is_started_again_as_a_new_attempt() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        await world.kill_agent()
        world.host.attempts.clear()
        world.start_agent()
        task = await world.until_state(id_, S.PENDING)
        assert (task.attempt, task.reason) == (2, "vanished")
        await world.until_state(id_, S.RUNNING)

    in_world(scenario)


@pytest.mark.parametrize("after_ms", range(0, 60, 3))
def test_an_agent_killed_at_any_moment_of_a_start_starts_it_once(after_ms: int) -> None:
    async def scenario(world: World) -> None:
        env = {"FAKE_PREPARE_BLOCK_MS": "10", "FAKE_START_BLOCK_MS": "10"}
        [id_] = world.run(env=env)
        await world.pass_ms(after_ms)
        await world.restart_agent()
        task = await world.until_state(id_, S.RUNNING)
        await world.pass_ms(5000)
        assert (task.attempt, world.starts(id_)) == (1, 1)

    in_world(scenario)


@pytest.mark.parametrize("after_ms", range(0, 60, 3))
def test_a_batch_task_runs_once_whenever_the_agent_is_killed(after_ms: int) -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(type=JobType.BATCH, env={"FAKE_RUN_FOR_MS": "1000"})
        await world.until(lambda: world.starts(id_) == 1)
        await world.pass_ms(1000 + after_ms - 10)
        await world.restart_agent()
        task = await world.until_state(id_, S.COMPLETED)
        await world.until(lambda: world.task(id_).released)
        assert (task.exit_code, world.starts(id_)) == (0, 1)

    in_world(scenario)


def test_what_is_here_and_of_no_task_is_ended_and_removed() -> None:
    async def scenario(world: World) -> None:
        [kept] = world.run("kept")
        [gone] = world.run("gone")
        await world.until_state(kept, S.RUNNING)
        await world.until_state(gone, S.RUNNING)
        await world.kill_agent()
        world.states.do(c.SetNodeStatus(1, NODE, NodeStatus.DOWN))
        world.states.machine.state = _without(world, gone)
        world.start_agent()
        await world.until(lambda: (NODE, gone) not in world.host.attempts)
        await world.until_state(kept, S.RUNNING)
        assert world.starts(kept) == 1
        await world.until(lambda: set(world.worker.tasks) == {kept})

    in_world(scenario)


def _without(world: World, task_id: TaskId) -> ClusterState:
    state = world.states.state
    draft = Draft(state, state.index, state.term, state.now_ms)
    draft.drop_task(state.tasks[task_id])
    return draft.finish()


def test_nothing_is_touched_before_the_replica_has_caught_up() -> None:
    async def scenario(world: World) -> None:
        [a, b] = world.run(count=2)
        await world.until(lambda: world.task(b).state is S.RUNNING)
        await world.kill_agent()
        world.host.end(NODE, a, 1, 0)
        world.caught_up = False
        world.start_agent()
        world.run("more")
        await world.pass_ms(120_000)
        assert sum(world.host.starts.values()) == 2
        world.caught_up = True  # which by itself is no change of the state
        assert world.loop is not None
        world.loop.on_caught_up()
        await world.until_state(a, S.RUNNING, attempt=2)
        assert world.starts(b) == 1

    in_world(scenario)


def test_a_driver_that_is_not_open_yet_does_not_keep_the_tasks_of_another_waiting() -> None:
    class Hung(FakeDriver):
        opens = 0

        async def open(self, on_change: Callable[[Observation], None]) -> None:
            self.opens += 1
            await asyncio.Event().wait()

    async def scenario(world: World) -> None:
        [a] = world.run()
        await world.until_state(a, S.RUNNING)
        await world.kill_agent()
        world.host.end(NODE, a, 1, 0)
        hung = world.beside["another"] = Hung(CLUSTER, NODE, FakeHost(), VirtualClock())
        world.start_agent()
        assert world.loop is not None
        opening = asyncio.create_task(world.loop.open())
        await world.until_state(a, S.RUNNING, attempt=2)
        assert not opening.done()
        assert hung.opens == 1, "by open() and by run(), which do not know of each other"
        opening.cancel()

    in_world(scenario)


def test_tasks_of_an_engine_that_does_not_answer_at_boot_are_left_alone() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        await world.kill_agent()
        world.host.engine_down = True
        world.start_agent()
        [new] = world.run("new")
        await world.pass_ms(9_000)
        assert world.task(id_).state is S.RUNNING
        assert "waiting for fake" in world.task(id_).message
        assert world.task(new).state is S.SCHEDULED
        await world.pass_ms(2_000)
        task = world.task(new)
        assert (task.state, task.reason, task.released) == (S.REJECTED, "engine_down", False)
        world.host.engine_down = False
        await world.until(lambda: world.task(new).released)
        await world.until(lambda: world.task(id_).message == "")
        assert (world.task(id_).state, world.starts(id_)) == (S.RUNNING, 1)
        assert world.starts(new) == 0

    in_world(scenario)


# The control plane goes away


def test_without_a_leader_tasks_go_on_and_are_restarted_and_all_is_told_later() -> None:
    async def scenario(world: World) -> None:
        [a, b] = world.run(count=2)
        await world.until(lambda: world.task(b).state is S.RUNNING)
        world.leader = False
        commits = len(world.commits_ms)
        await world.pass_ms(10_000)
        world.host.end(NODE, a, 1, 0)
        await world.pass_ms(600_000)
        assert world.host.attempts[NODE, a].seen.state is RunState.RUNNING
        assert (world.starts(a), world.starts(b)) == (2, 1)
        assert len(world.commits_ms) == commits
        world.leader = True
        task = await world.until_state(a, S.RUNNING, attempt=2)
        assert (task.restarts, world.task(b).restarts) == (1, 0)

    in_world(scenario)


def test_reports_whose_fate_is_unknown_are_said_again() -> None:
    async def scenario(world: World) -> None:
        world.lose_answers = True
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        world.host.end(NODE, id_, 1, 0)
        await world.until_state(id_, S.RUNNING, attempt=2)
        reports = len(world.reports)
        world.lose_answers = False
        await world.pass_ms(60_000)
        assert len(world.reports) <= reports + 1, "and no more once it is to be seen"

    in_world(scenario)


def test_a_lost_task_that_still_runs_is_told_to_run() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        handle = (await world.until_state(id_, S.RUNNING)).handle
        world.states.do(c.SetNodeStatus(1, NODE, NodeStatus.DOWN))
        assert world.task(id_).state is S.LOST
        task = await world.until_state(id_, S.RUNNING)
        assert (task.handle, task.attempt, world.starts(id_)) == (handle, 1, 1)

    in_world(scenario)


def test_a_lost_task_that_was_replaced_is_stopped_without_delay_and_its_end_told() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(shutdown_delay_ms=60_000)
        await world.until_state(id_, S.RUNNING)
        world.states.machine.do(c.SetNodeStatus(1, NODE, NodeStatus.DOWN))
        world.stop(id_, "replaced")
        task = await world.until_state(id_, S.COMPLETED)
        assert task.released
        assert not world.host.attempts
        assert history(world, id_)[-2:] == ["lost/1", "completed/1"]
        assert VirtualClock().monotonic_ms() < 1000

    in_world(scenario)
