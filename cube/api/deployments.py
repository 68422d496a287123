"""/v1/deployments: how versions of jobs are rolled out, and what a user may do about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from aiohttp import web

from cube.api import query
from cube.api.bodies import check_media_type, decode_json, read_body, read_nothing
from cube.api.call import JSON, Call
from cube.api.errors import Problem, did_you_mean
from cube.api.lookup import shown
from cube.api.render import rfc3339
from cube.model import commands
from cube.model.cluster import ClusterState, Job, Task
from cube.model.deployment import (
    Deployment,
    DeploymentAction,
    deployment_id,
    parse_deployment_id,
)
from cube.model.deployviews import DeploymentGroupView, DeploymentView
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.views import Page
from cube.scheduler.deployments import deadline_ms

_VERSION_DIGITS = 9  # versions in the order of their numbers, not of their letters


class RollBackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None: the last version that was healthy before the present one."""

    version: int | None = None


async def list_deployments(call: Call) -> web.Response:
    """With `latest`, the newest of each job only."""
    state, name = call.state, call.query.get("job", "")
    first = -1 if query.flag(call.query, "latest") else 0
    found = [
        (f"{job.name}/{one.version:0{_VERSION_DIGITS}}", job, one)
        for job in call.api.slots.ordered(state)
        if job.listed and name in ("", job.name)
        for one in job.deployments[first:]
    ]
    page, following = query.page_by_name(found, lambda item: item[0], call.query)
    tasks = {job.id: state.tasks_of_job(job.id) for _, job, _ in page}  # once for all its versions
    views = tuple(deployment_view(job, one, tasks[job.id]) for _, job, one in page)
    return call.json(Page(views, following, state.index))


async def show_deployment(call: Call) -> web.Response:
    job, deployment = find_deployment(call.state, call.path("deployment"))
    return call.json(_view(call.state, job, deployment))


def steer(action: DeploymentAction) -> Callable[[Call], Awaitable[web.StreamResponse]]:
    """The handler of POST …/{action}: the deployment as it is afterwards."""

    async def answer(call: Call) -> web.StreamResponse:
        word = call.path("deployment")
        job, deployment = find_deployment(call.state, word)
        data = await read_nothing(call)
        await call.propose(commands.SteerDeployment(job.name, deployment.version, action), data)
        job, deployment = find_deployment(call.state, deployment_id(job.name, deployment.version))
        return call.json(_view(call.state, job, deployment))

    return answer


async def read_roll_back(call: Call) -> tuple[RollBackBody, bytes]:
    """Nothing at all is a body too."""
    data = await read_body(call)
    if not data.strip():
        return RollBackBody(), data
    check_media_type(call, JSON)
    return decode_json(data, RollBackBody), data


def find_deployment(state: ClusterState, word: str) -> tuple[Job, Deployment]:
    """By id (`shop.v7`), or by the job's name: its newest. Raises Problem."""
    parsed = parse_deployment_id(word)
    name, version = parsed if parsed is not None else (word, 0)
    job = state.job_named(name)
    if job is None:
        hint = did_you_mean(name, state.job_names) or "GET /v1/deployments lists them"
        raise Problem("not_found", f"there is no deployment {shown(word)}", hint=hint)
    for one in reversed(job.deployments):
        if version in (0, one.version):
            return job, one
    kept = ", ".join(deployment_id(name, one.version) for one in job.deployments)
    kept_hint = f"kept are {kept}" if kept else f"{job.spec.type.value} jobs have none"
    raise Problem("not_found", f"there is no deployment {shown(word)}", hint=kept_hint)


def _view(state: ClusterState, job: Job, deployment: Deployment) -> DeploymentView:
    return deployment_view(job, deployment, state.tasks_of_job(job.id))


def deployment_view(job: Job, deployment: Deployment, tasks: Sequence[Task]) -> DeploymentView:
    """As the job's tasks show it now: `tasks` are all of them."""
    spec = job.spec_of(deployment.version)
    is_newest = deployment.version == job.version
    by_group: dict[str, list[Task]] = {}
    for task in tasks:
        if job.same_container(task.group, task.version, deployment.version):
            by_group.setdefault(task.group, []).append(task)
    groups: dict[str, DeploymentGroupView] = {}
    awaits = False
    for name, group in sorted(({} if spec is None else spec.groups).items()):
        is_gated = is_newest and deployment.is_open and job.is_gated(name)
        view = _group_view(by_group.get(name, ()), group.count, group.canaries, is_gated)
        groups[name] = view
        awaits = awaits or (is_gated and view.healthy >= group.canaries)
    serving = [task for mine in by_group.values() for task in mine if task.live and task.serving]
    due_ms = None
    if is_newest and not awaits:
        due_ms = deadline_ms(job, max([task.serving_since_ms for task in serving], default=0))
    return DeploymentView(
        id=deployment_id(job.name, deployment.version),
        job=job.name,
        from_version=deployment.from_version or None,
        version=deployment.version,
        status=deployment.status.value,
        groups=groups,
        deadline_at=None if due_ms is None else rfc3339(due_ms),
        message=": ".join(word for word in (deployment.cause, deployment.message) if word),
        created_at=rfc3339(deployment.created_at_ms),
        replaces=deployment.replaces,
        rolls_back=deployment.rolls_back or None,
        awaits_promotion=awaits,
    )


def _group_view(
    tasks: Sequence[Task], count: int, canaries: int, is_gated: bool
) -> DeploymentGroupView:
    """`tasks`: of this version."""
    live = [task for task in tasks if task.live]
    healthy = {task.slot for task in live if task.serving}
    ill = {task.slot for task in live if task.health is Health.UNHEALTHY}
    ill |= {
        task.slot
        for task in tasks
        if task.state is TaskState.FAILED and task.desired is Desired.RUN
    }
    return DeploymentGroupView(
        desired=count,
        placed=len({task.slot for task in live}),
        healthy=len(healthy),
        unhealthy=len(ill - healthy),
        canaries=canaries,
        promoted=not is_gated,
    )
