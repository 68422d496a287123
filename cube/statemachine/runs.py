"""The runs of cron jobs: begun by the leader's plan or by hand, stopped, ended, forgotten.

`Job.cron.after_ms` is what makes a due time happen once: a step says after which time it was decided,
and is refused when something later has been.
"""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import MESSAGE_CHARS_MAX, Job, JobVersion
from cube.model.cronrun import (
    LATE_MS,
    RUNS_ACTIVE_MAX,
    RUNS_KEPT,
    CronState,
    Run,
    RunStatus,
    run_id,
)
from cube.model.ids import JobId
from cube.model.lifecycle import Desired, TaskState, further
from cube.model.outcome import Outcome, Rejected, RejectReason, RunStarted
from cube.model.spec import JobSpec, JobType, Overlap
from cube.model.units import format_duration
from cube.statemachine import stored
from cube.statemachine.draft import Draft
from cube.statemachine.tasks import want


def follow(draft: Draft, before: Job | None, job: Job) -> Job:
    """`job`, about to replace `before`, counts from now on where its schedule is a new one or it was
    not running by it: what would have been due until now is nobody's."""
    if job.spec.type is not JobType.CRON:
        return job
    cron = job.cron or CronState(after_ms=draft.now_ms)
    if before is None or before.stopped or _timing(before) != _timing(job):
        cron = msgspec.structs.replace(cron, after_ms=draft.now_ms)
    return msgspec.structs.replace(job, cron=cron)


def _timing(job: Job) -> tuple[str, str]:
    spec = job.spec.cron
    return ("", "") if spec is None else (spec.schedule, spec.timezone)


# Beginning


def trigger(draft: Draft, body: c.TriggerJob) -> Outcome:
    """One more run of the job, from now; its schedule is what it was."""
    job = draft.job_named(body.job)
    if job is None:
        return Rejected(RejectReason.NOT_FOUND, f"there is no job {body.job}")
    if job.spec.cron is None or job.cron is None:
        return Rejected(
            RejectReason.REFUSED, f"{job.name} is of type {job.spec.type}; only cron jobs have runs"
        )
    if job.stopped:
        return Rejected(RejectReason.REFUSED, f"job {job.name} is stopped: cube start {job.name}")
    refusal = overlap_refusal(job.cron, job.spec.cron.overlap)
    if refusal:
        return Rejected(RejectReason.REFUSED, f"{job.name}: {refusal}")
    run = _begin(draft, job, job.cron, draft.now_ms, by_hand=True)
    return RunStarted(run.job_id, job.name, run.run)


def overlap_refusal(cron: CronState, overlap: Overlap) -> str:
    """Why no run may begin now; empty: one may."""
    active = cron.active
    if active and overlap is Overlap.FORBID:
        return f"run {active[0].run} has not ended, and overlap is forbid"
    if len(active) >= RUNS_ACTIVE_MAX:
        return f"{len(active)} runs have not ended, the most there may be"
    return ""


def step(draft: Draft, body: c.RunStep) -> None:
    """What the leader found due is done, unless the job has changed or it has been done already."""
    job = draft.job(body.job_id)
    if (
        job is None
        or job.deleted
        or job.stopped
        or job.version != body.version
        or job.spec.cron is None
        or job.cron is None
        or job.cron.after_ms != body.after_ms
        or not body.after_ms < body.scheduled_at_ms <= draft.now_ms
    ):
        return
    cron = msgspec.structs.replace(job.cron, after_ms=body.scheduled_at_ms)
    refusal = overlap_refusal(cron, job.spec.cron.overlap)
    if refusal or not body.starts:
        cron = _noted(
            cron, job.version, RunStatus.SKIPPED, body.scheduled_at_ms, body.missed + 1, refusal
        )
        _put(draft, job, cron, "run_skipped")
        return
    if body.missed:
        message = (
            "nobody led when they were due" if body.missed > 1 else "nobody led when it was due"
        )
        cron = _noted(cron, job.version, RunStatus.MISSED, body.missed_at_ms, body.missed, message)
    _begin(draft, job, cron, body.scheduled_at_ms, by_hand=False)


def _version_of_run(draft: Draft, job: Job, spec: JobSpec) -> JobVersion:
    newest = job.versions[-1]
    return JobVersion(
        job.version,
        spec,
        draft.now_ms,
        newest.actor,
        uses=stored.uses_of(draft, spec),
        digests=newest.digests,
    )


def _begin(draft: Draft, job: Job, cron: CronState, scheduled_at_ms: int, *, by_hand: bool) -> Run:
    """The job has one more run, from its newest spec. With overlap = replace, the others stop."""
    assert job.spec.cron is not None
    if job.spec.cron.overlap is Overlap.REPLACE:
        cron = _stop_active(draft, cron, "a younger run replaced it", "run_replaced")
    number = cron.next_run
    while draft.job(run_id(job.id, number)) is not None:  # never, as long as ids are not used twice
        number += 1
    late_ms = draft.now_ms - scheduled_at_ms
    late = f"began {format_duration(late_ms // 1000 * 1000)} after it was due"
    run = Run(
        run=number,
        job_id=run_id(job.id, number),
        version=job.version,
        status=RunStatus.RUNNING,
        scheduled_at_ms=scheduled_at_ms,
        started_at_ms=draft.now_ms,
        by_hand=by_hand,
        message=late if late_ms >= LATE_MS else "",
    )
    spec = msgspec.structs.replace(job.spec, type=JobType.BATCH, cron=None)
    child = Job(
        id=run.job_id,
        name=job.name,
        versions=(_version_of_run(draft, job, spec),),
        created_at_ms=draft.now_ms,
        parent=job.id,
        run=run.run,
    )
    draft.put_job(child, "run_started")
    cron = msgspec.structs.replace(cron, next_run=number + 1, runs=(*cron.runs, run))
    _put(draft, job, cron, "")
    return run


def _noted(
    cron: CronState, version: int, status: RunStatus, at_ms: int, count: int, message: str
) -> CronState:
    """Due times without a run are in the history; those in a row share an entry."""
    last = cron.runs[-1] if cron.runs else None
    runs = cron.runs
    if last is not None and last.status is status:
        runs, count = runs[:-1], count + last.count
    note = Run(
        version=version,
        status=status,
        scheduled_at_ms=at_ms,
        count=count,
        message=message[:MESSAGE_CHARS_MAX],
    )
    return msgspec.structs.replace(cron, runs=(*runs, note))


# Ending


def stop_all(draft: Draft, job: Job) -> Job:
    """`job`, about to be stored, has no run that is meant to go on."""
    if job.cron is None:
        return job
    cron = _stop_active(draft, job.cron, "the job was stopped", "job_stopped")
    return msgspec.structs.replace(job, cron=cron)


def _stop_active(draft: Draft, cron: CronState, message: str, reason: str) -> CronState:
    runs = []
    for run in cron.runs:
        if run.status is RunStatus.RUNNING:
            child = draft.job(run.job_id)
            if child is not None:
                _rest(draft, child, "run_stopping", reason)
            run = msgspec.structs.replace(run, status=RunStatus.STOPPED, message=message)
        runs.append(run)
    return msgspec.structs.replace(cron, runs=tuple(runs))


def _rest(draft: Draft, child: Job, kind: str, reason: str) -> None:
    """Nothing of the run is meant to run. What has ended stays what it was; a lost task may be back."""
    draft.put_job(msgspec.structs.replace(child, stopped=True), kind)
    for task in draft.tasks_of_job(child.id):
        if not task.ended or task.state is TaskState.LOST:
            want(draft, task, Desired.STOP, reason)


def end(draft: Draft, body: c.RunEnd) -> None:
    """The run is in the history with what came of it, and the oldest beyond RUNS_KEPT is gone."""
    child = draft.job(body.job_id)
    parent = None if child is None else draft.job(child.parent)
    if child is None or parent is None or parent.cron is None:
        return
    if body.status not in (RunStatus.COMPLETED, RunStatus.FAILED):
        return  # no end: another would be a run that is over and not
    if any(not task.ended for task in draft.tasks_of_job(child.id)):
        return
    runs = list(parent.cron.runs)
    for at, run in enumerate(runs):
        if run.job_id == child.id and run.active:
            was_stopped = run.status is RunStatus.STOPPED
            status = RunStatus.STOPPED if was_stopped else body.status
            message = "" if was_stopped else body.message[:MESSAGE_CHARS_MAX]
            runs[at] = msgspec.structs.replace(
                run,
                status=status,
                finished_at_ms=draft.now_ms,
                completed=body.completed,
                failed=body.failed,
                message="; ".join(part for part in (run.message, message) if part),
            )
            _rest(draft, child, f"run_{status}", "run_over")
            cron = msgspec.structs.replace(parent.cron, runs=tuple(runs))
            _put(draft, parent, cron, "")
            return


def _put(draft: Draft, job: Job, cron: CronState, kind: str) -> None:
    """Stored, with no more history than is kept."""
    gone = _surplus(cron)
    cron = msgspec.structs.replace(cron, runs=tuple([run for run in cron.runs if run not in gone]))
    draft.put_job(msgspec.structs.replace(job, cron=cron), kind)
    for run in gone:
        forget(draft, run.job_id)


def _surplus(cron: CronState) -> list[Run]:
    """What finished before the newest RUNS_KEPT finished runs, and as many entries without a run."""
    over = [run for run in cron.runs if not run.active]
    runs = [at for at, run in enumerate(over) if run.job_id]
    first = runs[-RUNS_KEPT] if len(runs) > RUNS_KEPT else 0
    notes = [run for run in over[first:] if not run.job_id]
    return over[:first] + notes[:-RUNS_KEPT]


def forget(draft: Draft, job_id: JobId) -> None:
    """No record is left of the run, but of tasks whose node has not said that they are gone."""
    child = draft.job(job_id)
    if child is not None:
        draft.put_job(msgspec.structs.replace(child, deleted=True, stopped=True), "")
        remove_tasks(draft, child)


def forget_all(draft: Draft, job: Job) -> None:
    """The runs of a job that is deleted."""
    for run in () if job.cron is None else job.cron.runs:
        forget(draft, run.job_id)


def remove_tasks(draft: Draft, job: Job) -> None:
    """Of a deleted job: what it left is removed from the nodes, and forgotten as they say so."""
    for task in draft.tasks_of_job(job.id):
        if task.released:
            draft.drop_task(task)
        else:
            draft.put_task(
                msgspec.structs.replace(
                    task,
                    desired=further(task.desired, Desired.REMOVE),
                    desired_reason="job_deleted",
                ),
                "desired",
            )
    draft.drop_job_if_over(job.id)
