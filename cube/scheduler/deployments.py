"""The leader's verdict on a job's newest deployment: a function of the state alone."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import Job, Task
from cube.model.deployment import Deployment, DeploymentStatus, DeploymentStep
from cube.model.lifecycle import TaskState
from cube.model.spec import GroupSpec, OnUpdateFailure
from cube.model.units import format_duration
from cube.scheduler.group_pass import GroupPass
from cube.scheduler.slots import WorkDraft

REJECTIONS_MAX = 3  # in a slot: so many nodes cannot all be wrong


def judge(draft: WorkDraft, passes: Sequence[GroupPass], has_leftovers: bool) -> None:
    """The draft's verdict is set when there is one, and its wake when time alone may bring one.
    `has_leftovers`: tasks of groups that the newest version has no more."""
    job = draft.job
    deployment = job.deployment
    if deployment is None or not deployment.may_be_decided or job.stopped or job.deleted:
        return
    is_settled = not has_leftovers and all(one.progress.unsettled == 0 for one in passes)
    if is_settled and not any(job.is_gated(name) for name in job.spec.groups):
        _say(draft, deployment, DeploymentStatus.SUCCESSFUL)
        return
    if deployment.status is not DeploymentStatus.RUNNING:
        for one in passes:
            draft.wake(one.progress.due_ms)
        return
    for one in passes:
        failure = _failure(one)
        if failure:
            _fail(draft, deployment, failure, [one.group])
            return
    _watch_deadline(draft, deployment, passes)


def _say(
    draft: WorkDraft,
    deployment: Deployment,
    status: DeploymentStatus,
    message: str = "",
    roll_back: bool = False,
) -> None:
    draft.verdict = DeploymentStep(draft.job.id, deployment.version, status, message, roll_back)


def _fail(
    draft: WorkDraft, deployment: Deployment, message: str, groups: Sequence[GroupSpec]
) -> None:
    """As the groups that are to blame wish it."""
    if not deployment.may_go_back:
        _say(draft, deployment, DeploymentStatus.FAILED, message)
    elif any(group.update.on_failure is OnUpdateFailure.PAUSE for group in groups):
        _say(draft, deployment, DeploymentStatus.PAUSED, message)
    else:
        _say(draft, deployment, DeploymentStatus.FAILED, message, roll_back=True)


def _failure(one: GroupPass) -> str:
    """Why this version will not do, as far as its tasks show it; empty when they do not."""
    rejections: dict[int, int] = {}
    for task in one.failures():
        if task.state is TaskState.FAILED:
            return f"{task.name} failed: {last_words(task)}"
        rejections[task.slot] = rejections.get(task.slot, 0) + 1
        if rejections[task.slot] >= REJECTIONS_MAX:
            return f"{task.name} was refused {REJECTIONS_MAX} times: {last_words(task)}"
    return ""


def last_words(task: Task) -> str:
    said = task.message or task.reason or task.state.value
    if task.exit_code is not None and str(task.exit_code) not in said:
        said = f"{said} (exit code {task.exit_code})"
    return said


def _watch_deadline(draft: WorkDraft, deployment: Deployment, passes: Sequence[GroupPass]) -> None:
    """Progress is a task that came up. Canaries that wait for a person are in no hurry."""
    behind = [one for one in passes if one.progress.unsettled]
    if not behind or all(one.is_waiting_for_promotion() for one in behind):
        return
    due_ms = deadline_ms(draft.job, max(one.progress.came_up_ms for one in passes))
    if due_ms is None or draft.now_ms < due_ms:
        draft.wake(due_ms)
        for one in passes:
            draft.wake(one.progress.due_ms)
        return
    names = ", ".join(_behind(one, deployment.version) for one in behind)
    limit = format_duration(max(one.group.update.deadline_ms for one in passes))
    message = f"nothing has come up for {limit}; not healthy yet: {names}"
    _fail(draft, deployment, message, [one.group for one in behind])


def _behind(one: GroupPass, version: int) -> str:
    """How much of the group is not as wanted, and what the first of its new tasks says of that."""
    said = [
        task
        for task in one.tasks
        if task.version == version and not task.serving and (task.message or task.reason)
    ]
    text = f"{one.progress.unsettled} of {one.name}"
    if not said:
        return text
    first = min(said, key=lambda task: (task.slot, -task.created_at_ms, task.id))
    return f"{text} ({first.name}: {last_words(first)})"


def deadline_ms(job: Job, came_up_ms: int) -> int | None:
    """When the newest deployment fails if nothing comes up until then."""
    deployment = job.deployment
    if deployment is None or deployment.status is not DeploymentStatus.RUNNING:
        return None
    longest_ms = max((group.update.deadline_ms for group in job.spec.groups.values()), default=0)
    return max(deployment.clock_at_ms, came_up_ms) + longest_ms
