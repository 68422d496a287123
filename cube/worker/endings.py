"""How attempts and tasks end: as asked, by themselves, or given up."""

from __future__ import annotations

from cube.model.launch import Observation, RunState
from cube.model.lifecycle import PARTITIONED, RESTART_ASKED, TaskState
from cube.model.units import format_duration
from cube.worker.local_task import Cause, LocalTask, Phase, first_health
from cube.worker.restart import Final, after_end
from cube.worker.step import Step

# Endings planned for the sake of the task's clients: who has just looked it up is still served.
# `cube stop`, removal and the end of a lost task do not wait.
DELAYED_REASONS = frozenset({"scale_down", "update", "rollout", "drain", "rebalance"})

# What shells and the container's init mean by these; a program may mean something else.
_SHELL_CODES = {126: "a command that cannot be executed?", 127: "command not found?"}
SIGNAL_EXIT_BASE = 128  # exit codes above it: killed by signal (code - 128)


def shutdown_delay_ms(local: LocalTask) -> int:
    """Between leaving discovery (state `stopping`) and the signal."""
    if local.task is None or local.is_stopping_quietly:
        return 0
    is_planned = local.task.desired_reason in DELAYED_REASONS or bool(local.task.preempted_by)
    return local.group.shutdown_delay_ms if is_planned else 0


def end_as_asked(local: LocalTask, step: Step) -> None:
    """The task is on its way to its end, by the shortest way from where it is."""
    is_serving = local.phase is Phase.RUNNING
    local.end = TaskState.COMPLETED
    local.cause = None
    if not local.may_run:
        _remove(local)
        return
    delay_ms = shutdown_delay_ms(local) if is_serving else 0
    if delay_ms:
        local.enter(Phase.WITHDRAWING, step.now_ms + delay_ms)
    else:
        local.enter(Phase.STOPPING)
    if local.task is not None and not local.is_stopping_quietly:
        local.say(TaskState.STOPPING, reason=local.task.desired_reason)


def lose_lease(local: LocalTask) -> None:
    """No leader has acknowledged this node for so long that another task may soon take its place: it
    is stopped, and has failed once it has ended."""
    local.end = TaskState.FAILED
    local.cause = None
    local.is_hinted = local.kill = False
    local.enter(Phase.STOPPING)
    silence = format_duration(local.group.lost_after_ms)
    local.say(
        TaskState.STOPPING,
        reason=PARTITIONED,
        message=f"no leader acknowledged its node for {silence}",
    )


def restart(local: LocalTask, step: Step) -> bool:
    """As somebody asked: what runs is stopped as at its end, and what waits need not. True when the
    phase has changed."""
    if local.phase is Phase.WAITING:
        local.due_ms = None
        return True
    fail_attempt(local, Cause(RESTART_ASKED, "restarted by hand"), step, kill=False)
    return True


def finish(
    local: LocalTask,
    state: TaskState,
    reason: str,
    message: str,
    *,
    exit_code: int | None = None,
    oom_killed: bool = False,
) -> None:
    """It has ended by itself, or is given up for good: said at once, cleaned up next."""
    local.end = state
    local.cause = None
    local.say(state, reason=reason, message=message, exit_code=exit_code, oom_killed=oom_killed)
    if local.may_run:
        local.kill = True
        local.enter(Phase.STOPPING)
    else:
        _remove(local)


def fail_attempt(local: LocalTask, cause: Cause, step: Step, *, kill: bool) -> None:
    """The attempt is over for this cause, once it is sure that nothing of it runs."""
    if local.may_run:
        local.cause = cause
        local.kill = kill
        local.enter(Phase.FAILING)
    else:
        conclude(local, cause, step)


def conclude(local: LocalTask, cause: Cause, step: Step) -> None:
    """Nothing of the attempt runs any more: another one follows, or the task has ended."""
    assert not local.may_run
    local.cause = None
    local.is_hinted = False
    if not local.is_wanted:
        local.end = TaskState.COMPLETED
        local.say(
            TaskState.STOPPING if local.task is not None else None,
            reason=local.view.reason,
            exit_code=cause.exit_code,
            oom_killed=cause.oom_killed,
        )
        _remove(local)
        return
    if cause.reason == RESTART_ASKED:
        _begin_again(local, cause, f"{cause.message}: attempt {local.attempt + 1}", step.now_ms)
        return
    policy = local.group.restart
    now_ms = step.now_ms
    local.restarts_ms = [at for at in local.restarts_ms if at > now_ms - policy.window_ms]
    verdict = after_end(
        policy, local.job_type, cause.is_success, len(local.restarts_ms), local.id, local.attempt
    )
    if isinstance(verdict, Final):
        message = cause.message
        if verdict.exhausted:
            window_s = policy.window_ms / 1000
            message += f"; {policy.attempts} restarts within {window_s:g} s are used up"
        finish(
            local,
            verdict.state,
            cause.reason,
            message,
            exit_code=cause.exit_code,
            oom_killed=cause.oom_killed,
        )
        return
    local.restarts_ms.append(now_ms)
    message = f"{cause.message}; attempt {local.attempt + 1} in {verdict.delay_ms / 1000:.1f} s"
    _begin_again(local, cause, message, now_ms + verdict.delay_ms)


def _begin_again(local: LocalTask, cause: Cause, message: str, due_ms: int) -> None:
    """The next attempt waits until then."""
    local.attempt += 1
    local.checks = {}
    local.was_started = False
    local.enter(Phase.WAITING, due_ms)
    local.say(
        TaskState.PENDING,
        reason=cause.reason,
        message=message,
        health=first_health(local.group),
        handle="",
        exit_code=cause.exit_code,
        oom_killed=cause.oom_killed,
    )


def settle(local: LocalTask) -> None:
    """Nothing of the task is left here, and the state may know."""
    local.enter(Phase.DONE)
    if local.end is not None:
        view = local.view
        local.say(local.end, reason=view.reason, message=view.message, released=True)


def cause_of(seen: Observation) -> Cause:
    """Why it does not run, from what the driver saw."""
    if seen.state is RunState.GONE:
        return Cause("vanished", seen.reason or "nothing is left of its container or process")
    code = seen.exit_code
    if seen.message:
        return Cause(seen.reason, seen.message, code, oom_killed=seen.oom_killed)
    if seen.oom_killed:
        return Cause("oom_killed", "killed: out of memory", code, oom_killed=True)
    if code is None:
        return Cause("exited", seen.reason or "ended; its exit code is not known")
    if code > SIGNAL_EXIT_BASE:
        why = f" ({seen.reason})" if seen.reason else ""
        return Cause("exited", f"killed by signal {code - SIGNAL_EXIT_BASE}{why}", code)
    if code in _SHELL_CODES:
        message = f"exited with code {code} ({seen.reason or _SHELL_CODES[code]})"
        return Cause("exited", message, code)
    return Cause("exited", f"exited with code {code}", code, is_success=code == 0)


def _remove(local: LocalTask) -> None:
    if local.is_touched:
        local.enter(Phase.REMOVING)
    else:
        settle(local)
