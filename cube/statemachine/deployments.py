"""Deployments: begun with a version, judged by the leader, steered by users."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import Job, JobVersion
from cube.model.deployment import (
    DEPLOYMENTS_MAX,
    Deployment,
    DeploymentAction,
    DeploymentStatus,
    DeploymentStep,
)
from cube.model.ids import JobId
from cube.model.outcome import Done, Outcome, Rejected, RejectReason
from cube.model.spec import VERSIONS_MAX, JobSpec, JobType
from cube.statemachine import images
from cube.statemachine.draft import Draft


def add_version(
    draft: Draft,
    job: Job,
    spec: JobSpec,
    actor: str,
    generation: int,
    uses: dict[str, int],
    *,
    rolls_back: int = 0,
    reason: str = "",
) -> Job:
    """The job with `spec` and `uses` as its newest version, not stopped, and with a deployment under
    way for it where its type has such. Not stored yet. Versions that tasks use, or that a failure would go
    back to, are kept besides the newest."""
    version = job.version + 1
    job = _settle(draft, job)
    from_version = last_stable(job)
    in_use = {task.version for task in draft.tasks_of_job(job.id) if not task.released}
    in_use.add(from_version)
    older = [one for one in job.versions[: 1 - VERSIONS_MAX] if one.version in in_use]
    entry = JobVersion(
        version, spec, draft.now_ms, actor, generation=generation, uses=uses, reason=reason
    )
    after = msgspec.structs.replace(
        job, versions=(*older, *job.versions[1 - VERSIONS_MAX :], entry), stopped=False
    )
    return begin(draft, images.inherited(after), from_version, rolls_back)


def _settle(draft: Draft, job: Job) -> Job:
    """A version that serves at full count when the next one comes is one to go back to, whether or
    not it has served for min_healthy yet: whoever submits the next one has seen it serve. Canaries that
    nobody has promoted are none, though they may be as many as the group has tasks."""
    deployment = job.deployment
    if deployment is None or deployment.status is not DeploymentStatus.RUNNING:
        return job
    if any(job.is_gated(name) for name in job.spec.groups):
        return job
    serving = {
        (task.group, task.slot)
        for task in draft.tasks_of_job(job.id)
        if task.live and task.serving and job.same_container(task.group, task.version, job.version)
    }
    wanted = {
        (name, slot) for name, group in job.spec.groups.items() for slot in range(group.count)
    }
    if job.spec.type is JobType.SYSTEM or not wanted <= serving:
        return job
    job = _put(draft, job, deployment, DeploymentStatus.SUCCESSFUL, "")
    return _succeeded(draft, job, deployment)


def last_stable(job: Job) -> int:
    """The newest version that was healthy at full count; 0: none, or forgotten."""
    return max([one.version for one in job.versions if one.stable], default=0)


def begin(draft: Draft, job: Job, from_version: int = 0, rolls_back: int = 0) -> Job:
    """The job with a deployment of its newest version; one that was open is superseded."""
    if job.spec.type not in (JobType.SERVICE, JobType.SYSTEM):
        return job
    job = close(draft, job, f"superseded by version {job.version}")
    began = Deployment(
        version=job.version,
        from_version=from_version,
        replaces=from_version > 0 and _replaces(job, from_version),
        rolls_back=rolls_back,
        created_at_ms=draft.now_ms,
        status_at_ms=draft.now_ms,
        clock_at_ms=draft.now_ms,
        cause=job.versions[-1].reason,
    )
    kept = job.deployments[-(DEPLOYMENTS_MAX - 1) :]
    return msgspec.structs.replace(job, deployments=(*kept, began))


def _replaces(job: Job, from_version: int) -> bool:
    base = job.spec_of(from_version)
    assert base is not None, "it is among the versions"
    return any(
        name in base.groups and not job.same_container(name, from_version, job.version)
        for name in job.spec.groups
    )


def close(draft: Draft, job: Job, message: str) -> Job:
    """The newest deployment has failed if it was open."""
    newest = job.deployments[-1] if job.deployments else None
    if newest is None or not newest.is_open:
        return job
    return _put(draft, job, newest, DeploymentStatus.FAILED, message)


def reopen(draft: Draft, job: Job) -> Job:
    """A job that starts again goes on with the rollout that stopping it ended."""
    newest = job.deployment
    if newest is None or newest.status is not DeploymentStatus.FAILED:
        return job
    fresh = msgspec.structs.replace(newest, clock_at_ms=draft.now_ms)
    return _put(draft, job, fresh, DeploymentStatus.RUNNING, "")


def _put(
    draft: Draft, job: Job, deployment: Deployment, status: DeploymentStatus, message: str
) -> Job:
    """The job with that deployment changed."""
    after = msgspec.structs.replace(
        deployment, status=status, message=message, status_at_ms=draft.now_ms
    )
    return msgspec.structs.replace(
        job,
        deployments=tuple(
            after if one.version == deployment.version else one for one in job.deployments
        ),
    )


def step(draft: Draft, item: DeploymentStep) -> bool:
    """The leader's verdict is carried out, if the job and its deployment are still those it was
    about."""
    job = draft.job(JobId(item.job_id))
    if job is None or job.deleted or job.stopped:
        return False
    deployment = job.deployment
    if (
        deployment is None
        or deployment.version != item.version
        or not deployment.may_be_decided
        or deployment.status is item.status
    ):
        return False
    job = _put(draft, job, deployment, item.status, item.message)
    if item.status is DeploymentStatus.SUCCESSFUL:
        job = _succeeded(draft, job, deployment)
    kind = ""
    if item.status is DeploymentStatus.FAILED and item.roll_back:
        rolled = _roll_back(draft, job, deployment)
        kind, job = ("rolled_back", rolled) if rolled is not None else ("", job)
    draft.put_job(job, kind)
    return True


def _succeeded(draft: Draft, job: Job, deployment: Deployment) -> Job:
    """Its version is one to go back to; what it took back is rolled back now."""
    versions = tuple(
        msgspec.structs.replace(one, stable=True) if one.version == deployment.version else one
        for one in job.versions
    )
    job = msgspec.structs.replace(job, versions=versions)
    for one in job.deployments:
        if one.version == deployment.rolls_back and one.status is DeploymentStatus.FAILED:
            message = f"{one.message}; version {deployment.from_version} is back"
            job = _put(draft, job, one, DeploymentStatus.ROLLED_BACK, message)
    return job


def _roll_back(draft: Draft, job: Job, deployment: Deployment) -> Job | None:
    """None when there is nothing to go back to."""
    entry = job.entry_of(deployment.from_version) if deployment.may_go_back else None
    if entry is None:
        return None
    return add_version(
        draft, job, entry.spec, f"rollback of version {deployment.version}", entry.generation,
        entry.uses, rolls_back=deployment.version,
    )  # fmt: skip


def steer(draft: Draft, body: c.SteerDeployment) -> Outcome:
    """The newest deployment of the job is promoted, paused, goes on, or has failed."""
    job = draft.job_named(body.job)
    if job is None:
        return Rejected(RejectReason.NOT_FOUND, f"there is no job {body.job}")
    deployment = next((one for one in job.deployments if one.version == body.version), None)
    if deployment is None:
        return Rejected(
            RejectReason.NOT_FOUND, f"job {body.job} has no deployment of version {body.version}"
        )
    name = f"the deployment of {job.name} version {deployment.version}"
    if not deployment.is_open:
        if body.action is DeploymentAction.PROMOTE and deployment.promoted:
            return Done(changed=False)
        return Rejected(RejectReason.REFUSED, f"{name} is {deployment.status}, it is over")
    status = deployment.status
    match body.action:
        case DeploymentAction.PROMOTE:
            return _promote(draft, job, deployment, name)
        case DeploymentAction.PAUSE if status is DeploymentStatus.PAUSED:
            return Done(changed=False)
        case DeploymentAction.PAUSE:
            job = _put(draft, job, deployment, DeploymentStatus.PAUSED, "paused by hand")
        case DeploymentAction.RESUME if status is DeploymentStatus.RUNNING:
            return Done(changed=False)
        case DeploymentAction.RESUME:
            resumed = msgspec.structs.replace(deployment, clock_at_ms=draft.now_ms)
            job = _put(draft, job, resumed, DeploymentStatus.RUNNING, "")
        case DeploymentAction.FAIL:
            job = _put(draft, job, deployment, DeploymentStatus.FAILED, "failed by hand")
            job = _roll_back(draft, job, deployment) or job
    draft.put_job(job, "")
    return Done()


def _promote(draft: Draft, job: Job, deployment: Deployment, name: str) -> Outcome:
    if deployment.promoted:
        return Done(changed=False)
    groups = [group for group in sorted(job.spec.groups) if job.is_gated(group)]
    if not groups:
        return Rejected(RejectReason.REFUSED, f"{name} has no canaries to promote")
    serving = {
        (task.group, task.slot)
        for task in draft.tasks_of_job(job.id)
        if task.live and task.serving and task.version == deployment.version
    }
    for group in groups:
        count = job.spec.groups[group].canaries
        healthy = sum((group, slot) in serving for slot in range(count))
        if healthy < count:
            return Rejected(
                RejectReason.REFUSED, f"{healthy} of {count} canaries of {group} are healthy"
            )
    promoted = msgspec.structs.replace(deployment, promoted=True, clock_at_ms=draft.now_ms)
    draft.put_job(_put(draft, job, promoted, deployment.status, deployment.message), "")
    return Done()
