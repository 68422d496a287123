"""A task starts with the image that its job's version runs everywhere."""

from __future__ import annotations

from cube.model import commands as c
from cube.model.lifecycle import TaskState
from tests.worker_world import NODE, World, in_world

ONE, TWO = (f"sha256:{digit * 64}" for digit in "12")
IMAGE = "app:1"


def test_what_it_prepared_is_agreed_on_before_it_starts() -> None:
    async def scenario(world: World) -> None:
        world.host.digests[IMAGE] = ONE
        world.leader = False
        [task_id] = world.run(image=IMAGE)
        await world.until(lambda: len(world.host.prepared) == 1)
        await world.pass_ms(60_000)
        assert world.starts(task_id) == 0, "nobody may know yet what the version runs"
        world.leader = True
        task = await world.until_state(task_id, TaskState.RUNNING)
        assert task.image_digest == ONE
        assert world.states.state.digest_for(task) == ONE
        assert [one.image_digest for one in world.host.prepared] == [""]

    in_world(scenario)


def test_a_node_whose_tag_means_something_else_runs_what_was_first() -> None:
    async def scenario(world: World) -> None:
        world.host.digests[IMAGE] = TWO
        world.leader = False
        first, second = world.run(image=IMAGE, count=2)
        await world.until(lambda: len(world.host.prepared) == 2)
        # Meanwhile another node was heard.
        one = c.TaskReport(first, 1, TaskState.PREPARING, image_digest=ONE)
        world.states.do(c.ReportTasks(NODE, (one,)))
        world.leader = True
        task = await world.until_state(second, TaskState.RUNNING)
        assert task.image_digest == ONE
        assert world.host.prepared[-1].image_digest == ONE
        assert world.starts(second) == 1

    in_world(scenario)


def test_later_attempts_and_tasks_do_not_ask_again() -> None:
    async def scenario(world: World) -> None:
        world.host.digests[IMAGE] = ONE
        [task_id] = world.run(image=IMAGE)
        await world.until_state(task_id, TaskState.RUNNING)
        world.host.digests[IMAGE] = TWO
        world.host.end(world.task(task_id).node_id, task_id, 1, 0)
        task = await world.until_state(task_id, TaskState.RUNNING, attempt=2)
        assert task.image_digest == ONE
        assert [one.image_digest for one in world.host.prepared] == ["", ONE]

    in_world(scenario)


def test_an_image_without_a_digest_starts_at_once() -> None:
    async def scenario(world: World) -> None:
        world.leader = False
        [task_id] = world.run(image="made-here")
        await world.until(lambda: world.starts(task_id) == 1)

    in_world(scenario)


def test_an_agent_that_dies_before_it_was_agreed_begins_again() -> None:
    async def scenario(world: World) -> None:
        world.host.digests[IMAGE] = ONE
        world.leader = False
        [task_id] = world.run(image=IMAGE)
        await world.until(lambda: len(world.host.prepared) == 1)
        await world.restart_agent()
        world.leader = True
        task = await world.until_state(task_id, TaskState.RUNNING)
        assert (task.image_digest, world.starts(task_id)) == (ONE, 1)

    in_world(scenario)


def test_a_task_that_waits_for_it_can_be_stopped() -> None:
    async def scenario(world: World) -> None:
        world.host.digests[IMAGE] = ONE
        world.leader = False
        [task_id] = world.run(image=IMAGE)
        await world.until(lambda: len(world.host.prepared) == 1)
        world.stop(task_id)
        world.leader = True
        task = await world.until_state(task_id, TaskState.COMPLETED)
        assert (task.exit_code, world.starts(task_id)) == (None, 0)

    in_world(scenario)
