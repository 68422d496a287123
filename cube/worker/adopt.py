"""What was found on the host, matched with what is wanted: at boot, and again at each resync."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.backoff import doubling_ms
from cube.model.cluster import Task
from cube.model.commands import TaskReport
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import ENDED, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.worker.answers import look, on_running
from cube.worker.health import adopted_checks
from cube.worker.inputs import WantedTask
from cube.worker.local_task import LocalTask, Phase, view_of
from cube.worker.restart import restart_times
from cube.worker.step import Step

_NEVER_RAN = frozenset({TaskState.SCHEDULED, TaskState.PREPARING, TaskState.STARTING})


def local_of(wanted: WantedTask) -> LocalTask:
    """A task of the state that is new here: held, until it is adopted."""
    view = view_of(wanted.task)
    return LocalTask(
        id=wanted.task.id,
        driver=wanted.task.driver,
        task=wanted.task,
        group=wanted.group or GroupSpec(),
        has_template=wanted.group is not None,
        job_type=wanted.job_type,
        uses=wanted.uses,
        digest=wanted.digest,
        attempt=wanted.task.attempt,
        view=view,
        told=view,
    )


def stray_of(driver: str, found: Sequence[Observation]) -> LocalTask:
    """Something with our mark that no task of the state stands for: it is on its way to its end."""
    first = found[0]
    view = TaskReport(first.task_id, first.attempt, TaskState.RUNNING)
    stray = LocalTask(
        id=first.task_id,
        driver=driver,
        task=None,
        group=GroupSpec(),
        has_template=False,
        job_type=JobType.SERVICE,
        attempt=first.attempt,
        view=view,
        told=view,
    )
    stray.is_touched = True
    clear(stray, found)
    return stray


def clear(local: LocalTask, found: Sequence[Observation]) -> None:
    """What was found is stopped if it runs, and removed; what the task ended as stays."""
    running = [seen.attempt for seen in found if seen.state is RunState.RUNNING]
    local.leftovers = running[1:]
    if running:
        local.attempt = running[0]
        local.may_run = True
        local.enter(Phase.STOPPING)
    else:
        local.enter(Phase.REMOVING)


def adopt(local: LocalTask, found: Sequence[Observation], leader_now_ms: int, step: Step) -> None:
    """The held task is where what was found of it says. Nothing that runs and is wanted is touched:
    same attempt, same handle."""
    task = local.task
    assert task is not None
    assert local.phase is Phase.HELD
    local.restarts_ms = restart_times(task, leader_now_ms, step.now_ms)
    is_over = task.ended and not (task.state is TaskState.LOST and local.is_wanted)
    if is_over or local.end is not None:
        _adopt_ended(local, task, found)
        return
    runs = [seen for seen in found if seen.state is RunState.RUNNING]
    subject = max(runs or found, key=lambda seen: seen.attempt, default=None)
    local.leftovers = [seen.attempt for seen in runs if seen is not subject]
    if subject is not None and subject.attempt >= local.attempt:
        local.attempt = subject.attempt
        on_running(local, subject, adopted_checks(local.group, task.health, step.now_ms))
        look(local, subject, step)
        return
    if subject is not None and subject.state is RunState.RUNNING:
        local.leftovers.append(subject.attempt)
    _adopt_missing(local, task, leader_now_ms, step)


def _adopt_ended(local: LocalTask, task: Task, found: Sequence[Observation]) -> None:
    if local.end is None:
        local.end = TaskState.COMPLETED if task.state is TaskState.LOST else task.state
    local.is_touched = True
    if task.released and not found:
        local.enter(Phase.DONE)
    else:
        clear(local, found)


def _adopt_missing(local: LocalTask, task: Task, leader_now_ms: int, step: Step) -> None:
    """Nothing was found of the attempt that the state speaks of."""
    if task.state is TaskState.PENDING:
        policy = local.group.restart
        recent = [at for at in local.restarts_ms if at > step.now_ms - policy.window_ms]
        delay_ms = doubling_ms(len(recent), policy.delay_ms, policy.max_delay_ms)
        waited_ms = max(0, leader_now_ms - task.state_at_ms)
        local.is_touched = True
        local.enter(Phase.WAITING, step.now_ms + max(0, delay_ms - waited_ms))
    elif task.state in _NEVER_RAN or (task.state in ENDED and not task.started_at_ms):
        local.is_touched = task.state is not TaskState.SCHEDULED or local.is_touched
        local.enter(Phase.WAITING)
    else:
        # It ran when it was last heard of. A look says whether it is really gone.
        local.may_run = local.is_touched = local.was_started = True
        local.is_hinted = True
        local.enter(Phase.RUNNING)
        local.checks = adopted_checks(local.group, task.health, step.now_ms)


def compare(local: LocalTask, found: Sequence[Observation]) -> None:
    """Resync: differences between a listing, which may be a little old, and what was believed."""
    if local.phase is Phase.HELD:
        return
    for seen in found:
        is_other = seen.attempt != local.attempt and local.phase is not Phase.DONE
        if is_other and seen.state is RunState.RUNNING and seen.attempt not in local.leftovers:
            local.leftovers.append(seen.attempt)
    mine = [seen for seen in found if seen.attempt == local.attempt]
    if local.phase is Phase.RUNNING:
        local.is_hinted |= not any(seen.state is RunState.RUNNING for seen in mine)
    elif local.phase is Phase.DONE and found:
        runs = any(seen.state is RunState.RUNNING for seen in found)
        # A listing from before its removal may still have what has ended.
        if runs or not local.is_removed:
            clear(local, found)
