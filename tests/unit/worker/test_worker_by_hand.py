"""Restarts in place that somebody asked for."""

from __future__ import annotations

from cube.model import commands as c
from cube.model.lifecycle import RESTART_ASKED, Desired, TaskState
from cube.model.spec import RestartCondition, RestartPolicy
from cube.worker.settings import WorkerSettings
from tests.virtual_time import VirtualClock
from tests.worker_world import NODE, World, in_world

S = TaskState
EXACT = WorkerSettings(loop_delay_ms=20)  # histories are to be exact


def test_what_runs_is_stopped_and_runs_again_whatever_its_policy() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(restart=RestartPolicy(policy=RestartCondition.NEVER, attempts=0))
        await world.until_state(id_, S.RUNNING)
        for attempt in (2, 3):
            world.states.do(c.RestartTask(id_))
            await world.until(
                lambda n=attempt: (
                    world.task(id_).attempt == n  # type: ignore[misc]
                    and world.task(id_).state is S.RUNNING
                ),
                20_000,
            )
            assert world.starts(id_) == attempt
        assert world.task(id_).desired is Desired.RUN
        asked = [e for e in world.task(id_).history if e.reason == RESTART_ASKED]
        assert {e.attempt for e in asked} == {2, 3}
        assert "by hand" in asked[0].message
        await world.pass_ms(120_000)
        assert world.starts(id_) == 3, "asked for once, done once"

    in_world(scenario, EXACT)


def test_restarts_by_hand_are_no_failures_of_the_policy() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(restart=RestartPolicy(attempts=1))
        await world.until_state(id_, S.RUNNING)
        for attempt in (2, 3, 4):
            world.states.do(c.RestartTask(id_))
            await world.until(
                lambda n=attempt: (
                    world.task(id_).attempt == n  # type: ignore[misc]
                    and world.task(id_).state is S.RUNNING
                ),
                20_000,
            )
        world.host.end(NODE, id_, 1, VirtualClock().now_ms())  # its first failure
        await world.until(lambda: world.task(id_).attempt == 5, 20_000)
        await world.until_state(id_, S.RUNNING)

    in_world(scenario, EXACT)


def test_what_backs_off_starts_now() -> None:
    async def scenario(world: World) -> None:
        hour_ms = 3_600_000
        policy = RestartPolicy(attempts=3, delay_ms=hour_ms, max_delay_ms=hour_ms)
        [id_] = world.run(restart=policy)
        await world.until_state(id_, S.RUNNING)
        world.host.end(NODE, id_, 1, VirtualClock().now_ms())
        await world.until_state(id_, S.PENDING)
        world.states.do(c.RestartTask(id_))
        await world.until(lambda: world.task(id_).state is S.RUNNING, 5_000)
        assert world.task(id_).attempt == 2 and world.starts(id_) == 2
        world.host.end(NODE, id_, 1, VirtualClock().now_ms())  # the next wait is a wait again
        await world.until_state(id_, S.PENDING)
        await world.pass_ms(hour_ms // 2)
        assert world.starts(id_) == 2

    in_world(scenario, EXACT)


def test_an_agent_that_dies_in_between_does_it_once_it_is_back() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        await world.kill_agent()
        world.states.do(c.RestartTask(id_))
        world.start_agent()
        await world.until(
            lambda: world.task(id_).attempt == 2 and world.task(id_).state is S.RUNNING, 60_000
        )
        await world.pass_ms(120_000)
        assert world.starts(id_) == 2

    in_world(scenario)
