"""What users do to jobs. One function per command."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import JOBS_MAX, Job, JobVersion
from cube.model.lifecycle import Desired
from cube.model.outcome import Done, JobAccepted, Outcome, Rejected, RejectReason
from cube.model.spec import COUNT_MAX, JobSpec, JobType
from cube.statemachine import cycles, deployments, runs, stored
from cube.statemachine.draft import Draft
from cube.statemachine.tasks import want
from cube.statemachine.volumes import forget_unused


def submit(draft: Draft, body: c.SubmitJob, actor: str) -> Outcome:
    """The job exists with this spec as its newest version, and is not stopped."""
    job = draft.job_named(body.spec.name)
    refusal = _version_refusal(body.spec.name, job, body.expected_version)
    if refusal is not None:
        return refusal
    refusal = stored.refusal(draft, body.spec)
    if refusal is not None:
        return refusal
    uses = stored.uses_of(draft, body.spec)
    if job is None:
        if draft.job_count() >= JOBS_MAX:
            return Rejected(RejectReason.LIMIT, f"the cluster has {JOBS_MAX} jobs, its limit")
        if draft.job(body.new_id) is not None:
            return Rejected(RejectReason.INVALID, f"job id {body.new_id} is in use")
        cycle = cycles.refusal(draft, body.spec)
        if cycle is not None:
            return cycle
        job = Job(
            id=body.new_id,
            name=body.spec.name,
            versions=(JobVersion(1, body.spec, draft.now_ms, actor, uses=uses),),
            created_at_ms=draft.now_ms,
        )
        draft.put_job(deployments.begin(draft, runs.follow(draft, None, job)), "submitted")
        return JobAccepted(job.id, job.name, 1, changed=True, created=True)
    if job.spec == body.spec and job.versions[-1].uses == uses and not job.stopped:
        return JobAccepted(job.id, job.name, job.version, changed=False, created=False)
    if job.spec.type is not body.spec.type:
        return Rejected(
            RejectReason.REFUSED,
            f"job {job.name} is of type {job.spec.type}; delete it before it becomes a "
            f"{body.spec.type}",
        )
    return _new_version(draft, job, body.spec, actor, "submitted", uses=uses)


def _new_version(
    draft: Draft,
    job: Job,
    spec: JobSpec,
    actor: str,
    kind: str,
    generation: int | None = None,
    uses: dict[str, int] | None = None,
) -> Outcome:
    """`generation`, `uses` None: those of the newest version."""
    cycle = cycles.refusal(draft, spec)
    if cycle is not None:
        return cycle
    newest, before = job.versions[-1], job
    generation = newest.generation if generation is None else generation
    uses = newest.uses if uses is None else uses
    if spec != job.spec or generation != newest.generation or uses != newest.uses:
        job = deployments.add_version(draft, job, spec, actor, generation, uses)
    else:
        job = deployments.reopen(draft, msgspec.structs.replace(job, stopped=False))
    draft.put_job(runs.follow(draft, before, job), kind)
    forget_unused(draft, job)
    return JobAccepted(job.id, job.name, job.version, changed=True, created=False)


def _version_refusal(name: str, job: Job | None, expected: int | None) -> Rejected | None:
    present = 0 if job is None else job.version
    if expected is None or expected == present:
        return None
    if expected == 0:
        return Rejected(RejectReason.CONFLICT, f"job {name} exists already, at version {present}")
    if present == 0:
        return Rejected(RejectReason.CONFLICT, f"there is no job {name}")
    return Rejected(RejectReason.CONFLICT, f"job {name} is at version {present}, not {expected}")


def _missing(name: str) -> Rejected:
    return Rejected(RejectReason.NOT_FOUND, f"there is no job {name}")


def _at_version(draft: Draft, name: str, expected: int | None) -> Job | Rejected:
    """The job, which is there and at the version that the caller named."""
    job = draft.job_named(name)
    if job is None:
        return _missing(name)
    return _version_refusal(name, job, expected) or job


def scale(draft: Draft, body: c.ScaleJob, actor: str) -> Outcome:
    """The named groups have these counts, as a new version of the job."""
    job = _at_version(draft, body.job, body.expected_version)
    if isinstance(job, Rejected):
        return job
    if job.spec.type is JobType.SYSTEM:
        return Rejected(
            RejectReason.REFUSED, f"{job.name} runs one task on each node; it has no count to set"
        )
    groups = dict(job.spec.groups)
    for group, count in sorted(body.counts.items()):
        if group not in groups:
            known = ", ".join(sorted(groups))
            return Rejected(
                RejectReason.NOT_FOUND, f"job {job.name} has no group {group}; it has {known}"
            )
        if not 0 <= count <= COUNT_MAX:
            return Rejected(RejectReason.INVALID, f"count must be between 0 and {COUNT_MAX}")
        if groups[group].at_most_one and count > 1:
            return Rejected(RejectReason.REFUSED, f"{job.name}/{group} is at_most_one")
        groups[group] = msgspec.structs.replace(groups[group], count=count)
    spec = msgspec.structs.replace(job.spec, groups=groups)
    if spec == job.spec and not job.stopped:
        return JobAccepted(job.id, job.name, job.version, changed=False, created=False)
    return _new_version(draft, job, spec, actor, "scaled")


def restart(draft: Draft, body: c.RestartJob, actor: str) -> Outcome:
    """A new version of the same spec whose tasks are new containers."""
    job = _at_version(draft, body.job, body.expected_version)
    if isinstance(job, Rejected):
        return job
    if job.spec.type is JobType.CRON:
        return Rejected(RejectReason.REFUSED, f"{job.name} runs by schedule; trigger a run instead")
    newest = job.versions[-1]
    return _new_version(
        draft, job, newest.spec, actor, "restarted", max(v.generation for v in job.versions) + 1
    )


def roll_back(draft: Draft, body: c.RollBackJob, actor: str) -> Outcome:
    """The spec of an older version is the newest one, with the secrets and configs it had."""
    job = _at_version(draft, body.job, body.expected_version)
    if isinstance(job, Rejected):
        return job
    older = job.versions[:-1]
    if not older:
        return Rejected(
            RejectReason.REFUSED, f"job {job.name} has one version only, nothing to go back to"
        )
    if body.version is None:
        entry = next((one for one in reversed(older) if one.stable), older[-1])
    else:
        known = job.entry_of(body.version)
        if known is None:
            kept = ", ".join(str(one.version) for one in job.versions)
            return Rejected(
                RejectReason.NOT_FOUND,
                f"job {job.name} has no version {body.version} any more; it has {kept}",
            )
        entry = known
    if entry is job.versions[-1] and not job.stopped:
        return JobAccepted(job.id, job.name, job.version, changed=False, created=False)
    gone = stored.lost(draft, entry.uses)
    if gone:
        return Rejected(
            RejectReason.REFUSED,
            f"version {entry.version} of {job.name} uses {gone}, which is gone",
        )
    return _new_version(draft, job, entry.spec, actor, "rolled_back", entry.generation, entry.uses)


def stop(draft: Draft, body: c.StopJob) -> Outcome:
    """The job keeps its spec and has no task that is meant to run."""
    job = draft.job_named(body.job)
    if job is None:
        return _missing(body.job)
    if job.stopped:
        return Done(changed=False)
    job = deployments.close(draft, runs.stop_all(draft, job), "the job was stopped")
    draft.put_job(msgspec.structs.replace(job, stopped=True), "stopped")
    for task in draft.tasks_of_job(job.id):
        want(draft, task, Desired.STOP, "job_stopped")
    return Done()


def start(draft: Draft, body: c.StartJob, actor: str) -> Outcome:
    """The job is not stopped; the scheduler places what is missing. A service has the newest secrets
    and configs, as a new version where it had others."""
    job = draft.job_named(body.job)
    if job is None:
        return _missing(body.job)
    if not job.stopped:
        return Done(changed=False)
    newest, uses = job.versions[-1], stored.uses_of(draft, job.spec)
    if uses != newest.uses and job.spec.type in (JobType.SERVICE, JobType.SYSTEM):
        started = deployments.add_version(
            draft, job, job.spec, actor, newest.generation, uses, reason="secrets have changed"
        )
    else:
        started = deployments.reopen(draft, msgspec.structs.replace(job, stopped=False))
    draft.put_job(runs.follow(draft, job, started), "started")
    return Done()


def delete(draft: Draft, body: c.DeleteJob) -> Outcome:
    """The name is free; what the job left is removed from the nodes, and forgotten as they say so."""
    job = draft.job_named(body.job)
    if job is None:
        return _missing(body.job)
    draft.put_job(msgspec.structs.replace(job, deleted=True, stopped=True), "deleted")
    draft.drop_volumes(job.id, lambda _volume: True)
    runs.forget_all(draft, job)
    runs.remove_tasks(draft, job)
    return Done()
