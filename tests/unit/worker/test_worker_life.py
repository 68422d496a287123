"""Whole lives of tasks on one node: real apply, worker and loop, the fake driver, virtual time."""

from __future__ import annotations

import msgspec
import pytest

from cube.model import commands as c
from cube.model.launch import RunState
from cube.model.lifecycle import Health, TaskState
from cube.model.resources import Resources
from cube.model.spec import (
    JobType,
    RestartCondition,
    RestartPolicy,
)
from cube.worker.local_task import Phase
from cube.worker.settings import WorkerSettings
from tests.virtual_time import VirtualClock
from tests.worker_world import NODE, PORTS, World, in_world, tcp_check

S = TaskState
# Attempts


def test_a_command_that_ends_before_its_start_is_answered_is_seen_to_end() -> None:
    # Found end to end: `false` exits while the driver still writes down that it was started. The
    # hint came before the answer, was dropped, and the task was "running" until the next resync,
    # a minute later.
    async def scenario(world: World) -> None:
        env = {"FAKE_RUN_FOR_MS": "10", "FAKE_START_ANSWER_MS": "50", "FAKE_EXIT_CODE": "1"}
        [id_] = world.run(type=JobType.BATCH, restart=RestartPolicy(attempts=0), env=env)
        began_ms = VirtualClock().now_ms()
        task = await world.until_state(id_, S.FAILED)
        assert task.exit_code == 1
        assert VirtualClock().now_ms() - began_ms < 1_000, "only the resync saw it"

    in_world(scenario)


def test_a_service_that_ends_is_restarted_in_place_and_given_up_after_its_restarts() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={"FAKE_RUN_FOR_MS": "50", "FAKE_EXIT_CODE": "3"})
        task = await world.until_state(id_, S.FAILED)
        assert (task.attempt, task.restarts, task.exit_code) == (4, 3, 3)
        assert task.message == "exited with code 3; 3 restarts within 600 s are used up"
        assert world.starts(id_) == 4
        at_ms = {e.attempt: e.at_ms for e in task.history if e.state is S.RUNNING}
        gaps = [at_ms[n + 1] - at_ms[n] for n in (1, 2, 3)]
        for gap, delay in zip(gaps, (1000, 2000, 4000), strict=True):
            assert delay <= gap <= delay * 1.1 + 150
        await world.until(lambda: world.task(id_).released, 1000)
        assert not world.host.attempts
        assert world.skipped == []

    in_world(scenario, WorkerSettings(loop_delay_ms=20))  # its history is to be exact


@pytest.mark.parametrize(
    ("job_type", "policy", "code", "end", "starts"),
    [
        (JobType.BATCH, RestartCondition.ON_FAILURE, 0, S.COMPLETED, 1),
        (JobType.BATCH, RestartCondition.ALWAYS, 0, S.COMPLETED, 1),
        (JobType.BATCH, RestartCondition.ON_FAILURE, 1, S.FAILED, 3),
        (JobType.SERVICE, RestartCondition.ALWAYS, 0, S.FAILED, 3),
        (JobType.SERVICE, RestartCondition.ON_FAILURE, 0, S.COMPLETED, 1),
        (JobType.SERVICE, RestartCondition.NEVER, 0, S.COMPLETED, 1),
        (JobType.SERVICE, RestartCondition.NEVER, 1, S.FAILED, 1),
        (JobType.SYSTEM, RestartCondition.ALWAYS, 1, S.FAILED, 3),
    ],
)
def test_what_follows_an_end(
    job_type: JobType, policy: RestartCondition, code: int, end: TaskState, starts: int
) -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(
            type=job_type,
            restart=RestartPolicy(policy, attempts=2),
            env={"FAKE_RUN_FOR_MS": "50", "FAKE_EXIT_CODE": str(code)},
        )
        task = await world.until_state(id_, end)
        assert (world.starts(id_), task.exit_code) == (starts, code)
        await world.until(lambda: world.task(id_).released, 2 * WorkerSettings().loop_delay_ms)

    in_world(scenario)


def test_old_restarts_are_forgotten_after_the_window() -> None:
    async def scenario(world: World) -> None:
        restart = RestartPolicy(attempts=1, window_ms=10_000)
        [id_] = world.run(restart=restart, env={"FAKE_RUN_FOR_MS": "12000", "FAKE_EXIT_CODE": "1"})
        await world.until_state(id_, S.RUNNING, attempt=5)

    in_world(scenario)


def test_restarts_of_before_an_agents_death_count() -> None:
    async def scenario(world: World) -> None:
        env = {"FAKE_RUN_FOR_MS": "3000", "FAKE_EXIT_CODE": "1"}
        [id_] = world.run(restart=RestartPolicy(attempts=2), env=env)
        await world.until_state(id_, S.RUNNING, attempt=2)
        await world.restart_agent()
        task = await world.until_state(id_, S.FAILED)
        assert task.attempt == 3

    in_world(scenario)


def test_out_of_memory_is_said() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(
            restart=RestartPolicy(RestartCondition.NEVER),
            env={"FAKE_RUN_FOR_MS": "50", "FAKE_OOM": "1"},
        )
        task = await world.until_state(id_, S.FAILED)
        assert (task.oom_killed, task.exit_code, task.reason) == (True, 137, "oom_killed")

    in_world(scenario)


def test_a_crash_loop_makes_a_bounded_number_of_reports() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(
            restart=RestartPolicy(attempts=1_000_000, delay_ms=1, max_delay_ms=1),
            env={"FAKE_RUN_FOR_MS": "1", "FAKE_EXIT_CODE": "1"},
        )
        await world.pass_ms(300_000)
        assert world.starts(id_) > 1000
        assert len(world.reports) <= 5 * 30 + 30
        assert world.task(id_).attempt > 1000

    in_world(scenario)


# Starting


def test_a_taken_port_is_a_rejection_and_nothing_was_begun() -> None:
    async def scenario(world: World) -> None:
        world.taken_ports.add(20_001)
        [id_] = world.run(host_ports=(20_001,), ports=PORTS)
        task = await world.until_state(id_, S.REJECTED)
        assert task.reason == "port_taken"
        assert "20001" in task.message
        await world.until(lambda: world.task(id_).released, 1000)
        assert world.starts(id_) == 0

    in_world(scenario)


def test_ports_are_not_tested_again_when_a_start_may_have_happened() -> None:
    """The second try finds the port in use: by the task itself."""

    async def scenario(world: World) -> None:
        [id_] = world.run(
            host_ports=(20_001,),
            ports=PORTS,
            env={"FAKE_START_BLOCK_MS": "100", "FAKE_START_ERROR": "engine_down:transient"},
        )
        await world.until(lambda: "trying again" in world.task(id_).message)
        world.taken_ports.add(20_001)
        task = await world.until_state(id_, S.REJECTED)
        assert task.reason == "engine_down"

    in_world(scenario)


@pytest.mark.parametrize("step", ["PREPARE", "START"])
def test_a_passing_failure_is_tried_again_and_then_left_to_another_node(step: str) -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={f"FAKE_{step}_ERROR": "image_busy:transient"})
        await world.until(lambda: "trying again" in world.task(id_).message)
        assert world.task(id_).state in (S.PREPARING, S.STARTING)
        assert world.task(id_).reason == "image_busy"
        task = await world.until_state(id_, S.REJECTED)
        assert VirtualClock().monotonic_ms() >= 1000 + 2000 + 4000
        assert task.attempt == 1
        await world.until(lambda: world.task(id_).released, 5000)

    in_world(scenario)


@pytest.mark.parametrize("step", ["PREPARE", "START"])
def test_a_lasting_failure_is_an_attempt_that_failed(step: str) -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(
            restart=RestartPolicy(attempts=1), env={f"FAKE_{step}_ERROR": "image_missing"}
        )
        task = await world.until_state(id_, S.FAILED)
        assert (task.attempt, task.reason) == (2, "image_missing")

    in_world(scenario)


def test_not_allowed_here_is_a_rejection() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={"FAKE_START_ERROR": "not_allowed"})
        await world.until_state(id_, S.REJECTED)

    in_world(scenario)


def test_a_driver_that_the_node_does_not_have_is_a_rejection() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(driver="docker")
        task = await world.until_state(id_, S.REJECTED)
        assert (task.reason, task.released) == ("no_driver", True)

    in_world(scenario)


def test_stopping_a_task_that_is_being_prepared_cancels_that() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={"FAKE_PREPARE_BLOCK_MS": "600000"})
        await world.until_state(id_, S.PREPARING)
        world.stop(id_)
        task = await world.until_state(id_, S.COMPLETED)
        assert task.released
        assert VirtualClock().monotonic_ms() < 1000
        assert world.starts(id_) == 0

    in_world(scenario)


def test_stopping_a_task_that_is_starting_waits_for_that_and_ends_it() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={"FAKE_START_BLOCK_MS": "5000"})
        await world.until_state(id_, S.STARTING)
        world.stop(id_)
        task = await world.until_state(id_, S.COMPLETED)
        assert task.released
        assert world.starts(id_) == 1
        assert not world.host.attempts
        assert S.RUNNING not in {entry.state for entry in task.history}

    in_world(scenario)


# Planned endings


@pytest.mark.parametrize(
    ("reason", "waits"),
    [
        ("scale_down", True),
        ("drain", True),
        ("update", True),
        ("rebalance", True),
        ("job_stopped", False),
        ("task_stopped", False),
        ("drain_deadline", False),
    ],
)
def test_the_signal_waits_for_shutdown_delay_when_others_may_still_be_on_their_way(
    reason: str, waits: bool
) -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(shutdown_delay_ms=2000)
        await world.until_state(id_, S.RUNNING)
        at_ms = VirtualClock().monotonic_ms()
        world.stop(id_, reason)
        if waits:
            task = await world.until_state(id_, S.STOPPING)
            assert world.host.attempts[NODE, id_].seen.state is RunState.RUNNING
        task = await world.until_state(id_, S.COMPLETED)
        passed_ms = VirtualClock().monotonic_ms() - at_ms
        assert (passed_ms >= 2000) == waits
        assert passed_ms < 2200
        assert task.released
        assert task.exit_code == 143

    in_world(scenario)


def test_a_removal_cuts_the_delay_short() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(shutdown_delay_ms=60_000)
        await world.until_state(id_, S.RUNNING)
        world.stop(id_, "scale_down")
        await world.until_state(id_, S.STOPPING)
        world.states.do(c.DeleteJob("web"))
        await world.until(lambda: id_ not in world.states.state.tasks, 1000)
        assert not world.host.attempts

    in_world(scenario)


def test_a_deaf_task_is_killed_after_stop_timeout_and_is_completed_all_the_same() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(stop_timeout_ms=3000, env={"FAKE_IGNORE_SIGTERM": "1"})
        await world.until_state(id_, S.RUNNING)
        world.stop(id_)
        task = await world.until_state(id_, S.COMPLETED)
        assert task.exit_code == 137
        assert 3000 <= VirtualClock().monotonic_ms() < 3500

    in_world(scenario)


def test_output_is_kept_until_the_task_is_forgotten() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(env={"FAKE_STDOUT": "hello\n"})
        await world.until_state(id_, S.RUNNING)
        world.stop(id_)
        await world.until_state(id_, S.COMPLETED)
        assert world.host.output[NODE, id_]
        await world.restart_agent()
        await world.pass_ms(1000)
        assert world.host.output[NODE, id_]
        world.reap(id_)
        await world.until(lambda: (NODE, id_) not in world.host.output, 1000)
        assert not world.worker.tasks

    in_world(scenario)


def test_a_stop_that_the_engine_does_not_answer_is_tried_until_it_does() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        world.host.engine_down = True
        world.stop(id_)
        await world.pass_ms(100_000)
        assert world.task(id_).state is S.STOPPING
        assert "the fake engine is down" in world.task(id_).message
        assert not world.task(id_).released
        world.host.engine_down = False
        await world.until_state(id_, S.COMPLETED)

    in_world(scenario)


# Many


def test_a_thousand_tasks_share_log_entries() -> None:
    async def scenario(world: World) -> None:
        ids = world.run(count=1000, resources=Resources(1, 1, 0))
        await world.until(lambda: all(world.task(id_).state is S.RUNNING for id_ in ids))
        assert len(world.commits_ms) <= 4
        commits = len(world.commits_ms)
        world.states.do(c.DeleteJob("web"))
        await world.until(lambda: not world.states.state.tasks)
        assert len(world.commits_ms) - commits <= 4

    in_world(scenario)


# Drift


def test_a_lost_hint_is_made_up_for() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        world.host.listeners.clear()
        world.host.end(NODE, id_, 1, 0)
        await world.until_state(id_, S.RUNNING, attempt=2)
        assert VirtualClock().monotonic_ms() < 65_000

    in_world(scenario)


def test_a_container_that_somebody_removed_is_replaced() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run()
        await world.until_state(id_, S.RUNNING)
        del world.host.attempts[NODE, id_]
        task = await world.until_state(id_, S.PENDING)
        assert task.reason == "vanished"

    in_world(scenario)


def test_an_update_in_place_changes_the_checks_and_nothing_else() -> None:
    async def scenario(world: World) -> None:
        [id_] = world.run(host_ports=(20_001,), ports=PORTS)
        await world.until_state(id_, S.RUNNING)
        job = world.states.state.job_named("web")
        assert job is not None
        group = msgspec.structs.replace(job.spec.groups["g"], checks=(tcp_check(interval_ms=1000),))
        world.states.machine.submit(msgspec.structs.replace(job.spec, groups={"g": group}))
        world.states.do(c.ApplyPlan(1, "", updates=((id_, 2),)))
        await world.until(lambda: world.task(id_).health is Health.HEALTHY, 2000)
        assert world.starts(id_) == 1
        assert world.worker.tasks[id_].phase is Phase.RUNNING

    in_world(scenario)
