"""One task, one step further (after swarmkit's exec.Do): the phase says which instruction is next, its
answer (answers.py) says which phase follows. Nothing here knows of other tasks."""

from __future__ import annotations

import functools

from cube.model.lifecycle import TaskState
from cube.model.spec import CheckType
from cube.worker.endings import end_as_asked, finish, lose_lease, restart, shutdown_delay_ms
from cube.worker.health import CheckState
from cube.worker.instructions import Cancel, Inspect, Kill, Prepare, Probe, Remove, Start, Stop
from cube.worker.launch import LaunchRefused, build_launch
from cube.worker.local_task import BEFORE_ENDING, LocalTask, Phase, first_health
from cube.worker.step import Step

NO_LEASE = "no_lease"  # Task.reason while one that needs a lease is not started for want of it


def advance(local: LocalTask, step: Step) -> None:
    """All that can be done for the task now is under way."""
    while _go_on(local, step):
        pass
    if local.phase is Phase.RUNNING and local.is_wanted:
        for check in local.checks.values():
            if not check.token and check.due_ms <= step.now_ms:
                _probe(local, check, step)


def _go_on(local: LocalTask, step: Step) -> bool:
    """True when the phase changed, so that there may be more to do."""
    if local.phase is Phase.HELD:
        return False
    if local.operation:
        if local.phase is Phase.PREPARING and not local.is_wanted and not local.is_cancelling:
            local.is_cancelling = True
            step.instructions.append(Cancel(local.operation))
        return False
    if not local.leftovers and not local.is_wanted and local.phase in BEFORE_ENDING:
        end_as_asked(local, step)
        return True
    if step.lease.must_stop(local, step.now_ms):
        lose_lease(local)
        return True
    if local.phase is Phase.WITHDRAWING and (
        not shutdown_delay_ms(local) or step.lease.is_over(local, step.now_ms)
    ):
        local.due_ms = None  # it was to be removed meanwhile, or there is no time left for it
    if _is_to_restart(local):
        return restart(local, step)
    if local.due_ms is not None and step.now_ms < local.due_ms:
        return False
    local.due_ms = None
    if local.leftovers:
        step.give(local, functools.partial(_stop, local, local.leftovers[0], step))
        return False
    return _do(local, step)


def _is_to_restart(local: LocalTask) -> bool:
    """Somebody has asked for another attempt, and this one is not it."""
    if local.task is None or local.leftovers or not local.is_wanted:
        return False
    after = local.task.restart_after
    if local.phase is Phase.WAITING:  # for the attempt after that one
        return local.due_ms is not None and after == local.attempt - 1 and after > 0
    return local.phase is Phase.RUNNING and local.cause is None and after >= local.attempt


def _do(local: LocalTask, step: Step) -> bool:
    """The phase's instruction is given, or there is none and the next phase has come (True)."""
    match local.phase:
        case Phase.WAITING:
            local.prepared = None
            local.enter(Phase.PREPARING)
            _say_on_the_way(local, TaskState.PREPARING)
            return True
        case Phase.PREPARING if local.prepared is not None:
            return on_prepared(local)
        case Phase.PREPARING | Phase.STARTING:
            return _launch(local, step)
        case Phase.RUNNING if local.cause is not None:
            local.enter(Phase.FAILING)
            return True
        case Phase.RUNNING:
            if local.is_hinted:
                local.is_hinted = False
                step.give(local, lambda t: Inspect(t, local.driver, local.id, local.attempt))
        case Phase.WITHDRAWING:
            local.enter(Phase.STOPPING)
            return True
        case Phase.FAILING | Phase.STOPPING:
            step.give(local, functools.partial(_stop, local, local.attempt, step))
        case Phase.REMOVING if _is_evidence(local):
            pass  # the state's showing its end brings us here again
        case Phase.REMOVING:
            keeps = local.task is not None
            local.logs_removed = not keeps
            step.give(local, lambda t: Remove(t, local.driver, local.id, keep_logs=keeps))
        case Phase.DONE:
            if local.task is None and local.is_touched and not local.logs_removed:
                local.enter(Phase.REMOVING)
                return True
        case Phase.HELD:
            raise AssertionError("held tasks are left alone")
    return False


def _is_evidence(local: LocalTask) -> bool:
    """What is left of the task is the only trace of how it ended: were it removed, and this process
    to die before the state knows, a batch task that is done would be run again."""
    task = local.task
    if task is None or not local.is_wanted or local.end is None:
        return False
    return not task.ended or task.state is TaskState.LOST


def on_prepared(local: LocalTask) -> bool:
    """It is started once its image is the one that the job's version runs on every node: the first
    that was reported. True when there is something to do."""
    # A lost task that has not begun can tell the state of nothing but its start.
    is_unheard = local.task is not None and local.task.state is TaskState.LOST and not local.digest
    # Both empty: no registry knows it, each node has its own.
    if local.prepared == local.digest or is_unheard:
        local.enter(Phase.STARTING)
        _say_on_the_way(local, TaskState.STARTING)
        return True
    if local.digest:
        local.prepared = None  # another node was first, and the tag has another meaning here
        return True
    if local.view.image_digest != local.prepared:
        _say_on_the_way(local, TaskState.PREPARING)
    return False


def _say_on_the_way(local: LocalTask, state: TaskState) -> None:
    # Why the attempt before it ended is of interest until this one runs.
    view = local.view
    local.say(
        state,
        reason=view.reason,
        message=view.message,
        health=first_health(local.group),
        image_digest=local.prepared or "",
    )


def _launch(local: LocalTask, step: Step) -> bool:
    task = local.task
    assert task is not None, "only wanted tasks are launched"
    if not local.has_template:
        finish(local, TaskState.FAILED, "template_missing", "its job's version is forgotten")
        return True
    if local.phase is Phase.STARTING and not step.lease.may_begin(local, step.now_ms):
        if local.view.reason != NO_LEASE:
            local.say(reason=NO_LEASE, message="waits until a leader acknowledges this node")
        return False
    launch = build_launch(
        task,
        local.group,
        local.attempt,
        step.node,
        step.lease.from_ms,
        local.uses,
        digest=local.digest or local.prepared or "",
    )
    if isinstance(launch, LaunchRefused):
        finish(local, TaskState.FAILED, launch.code, launch.message)
        return True
    local.is_touched = True
    local.is_removed = local.logs_removed = False
    if local.phase is Phase.PREPARING:
        step.give(local, functools.partial(Prepare, driver=local.driver, launch=launch))
        return False
    tests_ports = not local.was_started
    local.was_started = local.may_run = True
    step.give(
        local,
        functools.partial(Start, driver=local.driver, launch=launch, test_ports=tests_ports),
    )
    return False


def _stop(local: LocalTask, attempt: int, step: Step, token: int) -> Stop | Kill:
    if local.kill:
        return Kill(token, local.driver, local.id, attempt)
    timeout_ms = step.lease.stop_timeout_ms(local, step.now_ms)
    return Stop(token, local.driver, local.id, attempt, local.group.stop_signal, timeout_ms)


def _probe(local: LocalTask, check: CheckState, step: Step) -> None:
    """Its own address and port only: what a job file says of hosts never reaches a prober."""
    assert local.task is not None
    spec = check.spec
    port = 0
    if spec.type is not CheckType.EXEC:
        port = next((p.host for p in local.task.ports if p.name == spec.port), 0)
    step.give_probe(
        local,
        check,
        lambda token: Probe(
            token, local.driver, local.id, local.attempt, spec, step.node.advertise, port
        ),
    )
