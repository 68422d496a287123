"""What the answers to a task's instructions, and the results of its probes, make of it."""

from __future__ import annotations

from cube.model.backoff import doubling_ms
from cube.model.launch import Observation, RunState
from cube.model.lifecycle import ENDED, RESTART_ASKED, Health, TaskState
from cube.worker.advance import on_prepared
from cube.worker.endings import cause_of, conclude, fail_attempt, finish, settle
from cube.worker.health import CheckState, demands_restart, fresh_checks, overall
from cube.worker.inputs import CANCELLED, InstructionFailed, ProbeResult
from cube.worker.local_task import Cause, LocalTask, Phase
from cube.worker.step import Step

# Nothing has run and another node may well do better: not an attempt that failed.
REJECT_CODES = frozenset(
    {"port_taken", "engine_down", "not_allowed", "no_driver", "network_missing", "device_missing",
     "mount_missing", "init_missing"}
)  # fmt: skip


def on_done(local: LocalTask, seen: Observation | None, digest: str, step: Step) -> None:
    """The task's operation succeeded. `digest`: of the image that it prepared."""
    local.operation = 0
    local.tries = 0
    if local.leftovers:
        local.leftovers.pop(0)
        return
    match local.phase:
        case Phase.PREPARING:
            local.is_cancelling = False
            local.prepared = digest
            on_prepared(local)
        case Phase.STARTING:
            assert seen is not None
            on_running(local, seen, fresh_checks(local.group, step.now_ms))
            look(local, seen, step)
        case Phase.RUNNING:
            assert seen is not None
            look(local, seen, step)
        case Phase.FAILING:
            assert seen is not None
            assert local.cause is not None
            local.may_run = local.kill = False
            cause = local.cause
            ended = Cause(cause.reason, cause.message, seen.exit_code, seen.oom_killed)
            conclude(local, ended, step)
        case Phase.STOPPING:
            assert seen is not None
            local.may_run = local.kill = False
            why = local.view.message
            _note_exit(local, seen)
            if local.is_wanted and local.end is not None and local.view.state not in ENDED:
                # It was stopped for want of a lease: what is left of it stays until the state knows.
                local.say(local.end, reason=local.view.reason, message=why)
            local.enter(Phase.REMOVING)
        case Phase.REMOVING:
            local.is_removed = True
            settle(local)
        case Phase.HELD | Phase.WAITING | Phase.WITHDRAWING | Phase.DONE:
            raise AssertionError(f"{local.phase} has no instruction")


def on_running(local: LocalTask, seen: Observation, checks: dict[str, CheckState]) -> None:
    """The attempt runs, or ran at least; `checks` are those of before, when it was adopted."""
    local.enter(Phase.RUNNING)
    local.checks = checks
    local.may_run = local.is_touched = local.was_started = True
    # Reports are merged: what began by hand may be told of only now, and its history shall say so.
    by_hand = local.view.reason == RESTART_ASKED
    local.say(
        TaskState.RUNNING,
        reason=RESTART_ASKED if by_hand else "",
        message=local.view.message if by_hand else "",
        handle=seen.handle,
        health=overall(checks),
        exit_code=None,
        oom_killed=False,
    )


def look(local: LocalTask, seen: Observation, step: Step) -> None:
    """What the driver says is true of the running attempt is taken up."""
    if seen.state is RunState.RUNNING:
        if seen.handle != local.view.handle:
            view = local.view
            local.say(reason=view.reason, message=view.message, handle=seen.handle)
        return
    local.may_run = False
    conclude(local, cause_of(seen), step)


def on_failed(local: LocalTask, failure: InstructionFailed, step: Step) -> None:
    """The task's operation did not succeed."""
    local.operation = 0
    settings = step.settings
    if local.phase in (Phase.PREPARING, Phase.STARTING) and not local.leftovers:
        _on_start_failed(local, failure, step)
        return
    local.tries += 1
    retry_ms = doubling_ms(local.tries, settings.stop_retry_ms, settings.stop_retry_ms_max)
    local.due_ms = step.now_ms + retry_ms
    if local.leftovers:
        return
    if local.phase is Phase.RUNNING:
        local.is_hinted = True  # nothing is known: it is left alone, and asked about again
        return
    if local.phase is Phase.REMOVING and local.end is not None:
        # Its end is true already; that something is left of it is what `released` is for.
        local.say(local.end, reason=local.view.reason, message=local.view.message)
    if local.phase is Phase.REMOVING and failure.code == "still_running":
        tries, due_ms = local.tries, local.due_ms
        local.may_run = local.kill = True
        local.enter(Phase.STOPPING, due_ms)
        local.tries = tries
    if local.view.state not in ENDED:
        local.say(reason=failure.code, message=f"not ended yet: {failure.message}")


def _on_start_failed(local: LocalTask, failure: InstructionFailed, step: Step) -> None:
    if failure.code == CANCELLED:
        local.is_cancelling = False
        return
    local.is_cancelling = False
    if not failure.transient and local.tries == 0:
        local.may_run = False  # a try before this one may have done it all the same
    if not local.is_wanted:
        return
    settings = step.settings
    if failure.transient and local.tries < settings.start_retries_max:
        local.tries += 1
        retry_ms = doubling_ms(local.tries, settings.start_retry_ms, settings.start_retry_ms_max)
        local.due_ms = step.now_ms + retry_ms
        local.say(reason=failure.code, message=f"{failure.message}; trying again")
        return
    if local.attempt == 1 and (failure.transient or failure.code in REJECT_CODES):
        finish(local, TaskState.REJECTED, failure.code, failure.message)
    else:
        fail_attempt(local, Cause(failure.code, failure.message), step, kill=True)


def _note_exit(local: LocalTask, seen: Observation) -> None:
    if local.view.state in ENDED or seen.state is not RunState.EXITED:
        return
    local.say(
        reason=local.view.reason,
        message=cause_of(seen).message,
        exit_code=seen.exit_code,
        oom_killed=seen.oom_killed,
    )


def on_probe(local: LocalTask, check: CheckState, result: ProbeResult, step: Step) -> None:
    """A check of the task's present attempt was answered."""
    turned_bad = check.on_result(
        result.is_healthy, result.message, step.now_ms, step.settings.probe_start_ms
    )
    if local.phase is not Phase.RUNNING:
        return
    say_health(local)
    if turned_bad and demands_restart(check) and local.is_wanted:
        local.cause = Cause("unhealthy", f"check {check.spec.name}: {check.message}")
        local.kill = False
        local.due_ms = None


def say_health(local: LocalTask) -> None:
    """The view has the checks' overall result, and what is wrong, when something is."""
    health = overall(local.checks)
    bad = [check for check in local.checks.values() if check.status is Health.UNHEALTHY]
    if not bad:
        if health is not local.view.health:
            local.say(health=health)
        return
    message = "; ".join(f"check {check.spec.name}: {check.message}" for check in bad)
    if health is not local.view.health or message != local.view.message:
        local.say(health=health, reason="unhealthy", message=message)
