"""When a cron job is due, and what then. Pure: schedule, what is decided already and the time in, one
step out.

Schedules mean what Debian's cron makes of them: a job at a fixed time of day runs once a day, also on
the days on which the clock is changed (at the next minute that exists, and not a second time); one that
runs every so many minutes or every hour goes by elapsed time.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator, Sequence

import msgspec
from cronsim import CronSim

from cube.model.cluster import ClusterState, Job, Task
from cube.model.commands import RunEnd, RunStep
from cube.model.cronrun import DUE_COUNTED_MAX, RUNS_ACTIVE_MAX, RunStatus
from cube.model.explain import Explanation, Reason
from cube.model.lifecycle import TaskState
from cube.model.spec import CronSpec, Overlap
from cube.model.units import format_duration
from cube.scheduler import dependencies
from cube.scheduler.restart import past_of

FAILED_NAMED_MAX = 5  # tasks whose exit codes a failed run's record tells
_MINUTE_MS = 60_000
_UTC = datetime.UTC


class Decision(msgspec.Struct, frozen=True):
    """`step`: what is due now. `wake_at_ms` None: nothing will ever be. `problem`: the schedule
    cannot be read on this node."""

    step: RunStep | None = None
    wake_at_ms: int | None = None
    problem: str = ""


NOTHING_DUE = Decision()


def decide(job: Job, now_ms: int) -> Decision:
    """Of a job of type cron."""
    spec, cron = job.spec.cron, job.cron
    if spec is None or cron is None or job.stopped or job.deleted:
        return NOTHING_DUE
    try:
        due = due_since(spec, cron.after_ms, now_ms)
        if not due.count:
            return Decision(wake_at_ms=due.next_ms)
    except (KeyError, ValueError, OSError):
        return Decision(problem=f"this node does not know the time zone {spec.timezone}")
    active = len(cron.active)
    blocked = active >= (1 if spec.overlap is Overlap.FORBID else RUNS_ACTIVE_MAX)
    step = RunStep(
        job.id,
        job.version,
        cron.after_ms,
        due.last_ms,
        not blocked,
        due.count - 1,
        due.before_last_ms,
    )
    return Decision(step, due.next_ms)


class Due(msgspec.Struct, frozen=True):
    """Times of a schedule in an interval. `count` stops at DUE_COUNTED_MAX; the last two are exact.
    `next_ms`: the first one after it, None: never again."""

    count: int = 0
    last_ms: int = 0
    before_last_ms: int = 0
    next_ms: int | None = None


def due_since(spec: CronSpec, after_ms: int, now_ms: int) -> Due:
    """Those later than `after_ms` and not later than `now_ms`. Raises where the time zone is not
    known: KeyError, ValueError or OSError."""
    count, last_ms, before_last_ms = 0, 0, 0
    for at_ms in times_after(spec, after_ms):
        if at_ms > now_ms:
            return Due(count, last_ms, before_last_ms, at_ms)
        count, last_ms, before_last_ms = count + 1, at_ms, last_ms
        if count == DUE_COUNTED_MAX:
            return _many(spec, last_ms, before_last_ms, now_ms)
    return Due(count, last_ms, before_last_ms)


def _many(spec: CronSpec, from_ms: int, before_ms: int, now_ms: int) -> Due:
    """The last times up to `now_ms`, looked for in ever longer intervals before it: nobody counts the
    minutes of a year. `from_ms` and `before_ms` are the last two known."""
    back_ms = 2 * _MINUTE_MS
    while True:
        since_ms = max(from_ms - 1, now_ms - back_ms)
        found: list[int] = []
        next_ms = None
        for at_ms in times_after(spec, since_ms):
            if at_ms > now_ms:
                next_ms = at_ms
                break
            found = [*found[-1:], at_ms]
        if len(found) == 2 or since_ms < from_ms:
            return Due(DUE_COUNTED_MAX, found[-1], [before_ms, *found][-2], next_ms)
        back_ms *= 2


def next_due_ms(spec: CronSpec, after_ms: int) -> int | None:
    """The first time after `after_ms`; None: there is none in 50 years. Raises as due_since."""
    return next(times_after(spec, after_ms), None)


def next_run_ms(job: Job) -> int:
    """When its next run is due, or was if nobody has looked yet; 0: none is, or nobody here knows."""
    spec, cron = job.spec.cron, job.cron
    if spec is None or cron is None or job.stopped or job.deleted:
        return 0
    try:
        return next_due_ms(spec, cron.after_ms) or 0
    except (KeyError, ValueError, OSError):
        return 0


def times_after(spec: CronSpec, after_ms: int) -> Iterator[int]:
    """Ascending, each once."""
    last_ms = after_ms
    start = datetime.datetime.fromtimestamp(after_ms // 1000, _UTC)
    for at in CronSim(spec.schedule, start.astimezone(_zone(spec.timezone))):
        at_ms = int(at.timestamp()) * 1000
        # In the hour that a clock set back repeats, cronsim begins with times of the first pass.
        if at_ms > last_ms:
            last_ms = at_ms
            yield at_ms


def local_time(spec: CronSpec, at_ms: int) -> str:
    """For people, in the schedule's own time zone: `2026-03-29 03:00 CEST`."""
    try:
        zone = _zone(spec.timezone)
    except (KeyError, ValueError, OSError):
        zone = _UTC
    at = datetime.datetime.fromtimestamp(at_ms // 1000, _UTC).astimezone(zone)
    return at.strftime("%Y-%m-%d %H:%M %Z")


def _zone(name: str) -> datetime.tzinfo:
    return _UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


def explain_schedule(job: Job, now_ms: int) -> Explanation:
    """What is next, and what the last run came to when it went wrong."""
    groups = sorted(job.spec.groups)
    spec, cron = job.spec.cron, job.cron
    if spec is None or cron is None:
        return Explanation(job.name, groups[0], (), "waiting", "the job has no schedule")
    decision = decide(job, now_ms)
    if decision.problem:
        summary = f"no run begins: {decision.problem}"
    elif decision.step is not None:
        summary = "a run is due now"
    elif decision.wake_at_ms is None:
        summary = f"{spec.schedule} never comes again"
    else:
        left = format_duration(max(0, decision.wake_at_ms - now_ms))
        summary = f"the next run is due in {left}, at {local_time(spec, decision.wake_at_ms)}"
    active = cron.active
    if active and spec.overlap is Overlap.FORBID:
        summary += f"; skipped when run {active[0].run} has not ended by then (overlap = forbid)"
    reasons = []
    last = next((run for run in reversed(cron.runs) if run.job_id and not run.active), None)
    if last is not None and last.status is RunStatus.FAILED:
        ago = format_duration(max(0, now_ms - last.finished_at_ms))
        reasons.append(
            Reason(
                "run_failed", f"run {last.run} failed {ago} ago: {last.message or 'no task ran'}"
            )
        )
    noted = cron.runs[-1] if cron.runs else None
    if noted is not None and not noted.job_id:
        many = f"{noted.count} due times were" if noted.count > 1 else "the last due time was"
        reasons.append(Reason(f"run_{noted.status}", f"{many} {noted.status}: {noted.message}"))
    return Explanation(job.name, groups[0], (), "waiting", summary, tuple(reasons))


# Runs


def waits_for(state: ClusterState, run: Job) -> str:
    """Why nothing of the run may be placed yet: an earlier one was stopped and has not ended."""
    parent = state.jobs.get(run.parent)
    if parent is None or parent.cron is None:
        return ""
    for earlier in parent.cron.runs:
        if earlier.active and earlier.run < run.run and earlier.status is RunStatus.STOPPED:
            ids = state.ids_of_job(earlier.job_id)
            if any(not state.tasks[task_id].ended for task_id in ids):
                return f"run {earlier.run} was stopped and has not ended yet"
    return ""


def earlier_tasks(state: ClusterState, run: Job, group: str) -> list[Task]:
    """Those of the group in the runs before this one: a singleton is one in all of them."""
    parent = state.jobs.get(run.parent)
    runs = [] if parent is None else state.runs_of(parent)
    return [
        task
        for earlier in runs
        if earlier.run < run.run
        for task in state.tasks_of_job(earlier.id)
        if task.group == group
    ]


def end_of(state: ClusterState, run: Job, tasks: Sequence[Task], now_ms: int) -> RunEnd | None:
    """What is to be written down of a run of which nothing is left to do; None: something is, or it
    has been. `tasks`: all of the run."""
    parent = state.jobs.get(run.parent)
    if run.deleted or parent is None or parent.cron is None:
        return None
    if not any(one.job_id == run.id for one in parent.cron.active):
        return None
    if any(not task.ended for task in tasks):
        return None
    completed = failed = 0
    lines: list[str] = []
    given_up: set[str] = set()
    left: set[str] = set()
    for name, group in sorted(run.spec.groups.items()):
        slots: dict[int, list[Task]] = {}
        for task in tasks:
            if task.group == name:
                slots.setdefault(task.slot, []).append(task)
        for slot in range(group.count):
            past = past_of(run, group, slots.get(slot, ()), state.nodes, now_ms)
            if past.verdict == "done":
                completed += 1
            elif past.verdict == "over":
                failed += 1
                given_up.add(name)
                if past.last is not None:
                    lines.append(_how(past.last))
            else:
                left.add(name)
    started = {task.group for task in tasks}
    if not run.stopped and left - (dependencies.never_met(run.spec, given_up) - started):
        return None
    more = len(lines) - FAILED_NAMED_MAX
    told = lines[:FAILED_NAMED_MAX] + ([f"and {more} more"] if more > 0 else [])
    told += [f"{name}: never began" for name in sorted(left - started) if given_up]
    status = RunStatus.FAILED if failed else RunStatus.COMPLETED
    return RunEnd(run.id, status, completed, failed, ", ".join(told))


def _how(task: Task) -> str:
    if task.state is not TaskState.FAILED:
        return f"{task.name}: {task.desired_reason or task.state}"
    if task.exit_code is None:
        return f"{task.name}: {task.message or task.reason or 'failed'}"
    return f"{task.name}: exit code {task.exit_code}"
