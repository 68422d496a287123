"""/v1/jobs: from bytes to a command, and from state to the job's view."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web

from cube.api import query, render
from cube.api.bodies import check_media_type, media_type, read_body, read_json, read_nothing
from cube.api.call import JSON, Call
from cube.api.deployments import read_roll_back
from cube.api.errors import Problem, job_problem
from cube.api.lookup import find_job, shown
from cube.api.slots import JobStatus, Standing
from cube.model import commands
from cube.model.cluster import Job
from cube.model.compose.project import Composed, parse_compose
from cube.model.deployment import deployment_id
from cube.model.errors import BadConfig
from cube.model.ids import JobId
from cube.model.jobfile import parse_tree
from cube.model.jobrender import render as render_spec
from cube.model.outcome import Done, JobAccepted
from cube.model.spec import COUNT_MAX, NAME_CHARS_MAX, JobSpec, JobType
from cube.model.treetext import TEXT_BYTES_MAX, json_tree, toml_tree
from cube.model.views import JobChanged, JobValid, Page, WhyView
from cube.model.warnings import warnings
from cube.ports.cluster import Proposed
from cube.scheduler import dependencies

LOOKED_AT_ONCE = 10_000  # tasks, before the loop turns: some milliseconds
TOML = "application/toml"
_YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


class ScaleBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    group: str
    count: int


async def list_jobs(call: Call) -> web.Response:
    state = call.state
    types = query.words(call.query, "type", [word.value for word in JobType])
    statuses = query.words(call.query, "status", [word.value for word in JobStatus])
    prefix = call.query.get("prefix", "")
    jobs = [
        job
        for job in call.api.slots.ordered(state)
        if job.listed
        and job.name.startswith(prefix)
        and (types is None or job.spec.type.value in types)
    ]
    if statuses is not None:
        jobs = [job for job, one in await _standings(call, jobs) if one.status.value in statuses]
    page, following = query.page_by_name(jobs, lambda job: job.name, call.query)
    views = tuple(
        render.job_view(job, one, runs_max=1) for job, one in await _standings(call, page)
    )
    return call.json(Page(views, following, state.index))


async def _standings(call: Call, jobs: Sequence[Job]) -> list[tuple[Job, Standing]]:
    """By one state. Others have their turns in between: a hundred large jobs take a while."""
    state, slots = call.state, call.api.slots
    found: list[tuple[Job, Standing]] = []
    enough = slots.looks + LOOKED_AT_ONCE
    for job in jobs:
        found.append((job, slots.standing(state, job)))
        if slots.looks >= enough:
            await asyncio.sleep(0)
            enough = slots.looks + LOOKED_AT_ONCE
    return found


async def show_job(call: Call) -> web.Response:
    job = find_job(call.state, call.path("job"))
    view = render.job_view(job, call.api.slots.standing(call.state, job))
    return call.json(view, headers={"ETag": f'"{job.version}"'})


async def submit_job(call: Call) -> web.Response:
    expected = call.expected_version()
    spec, data, notes = await read_job(call)
    body = commands.SubmitJob(spec, JobId(call.api.new_id()), expected)
    proposed = await call.propose(body, data)
    return _changed(call, spec.name, proposed, notes + all_warnings(call, spec))


async def validate_job(call: Call) -> web.Response:
    spec, _, notes = await read_job(call)
    return call.json(
        JobValid(
            valid=True,
            name=spec.name,
            spec=render_spec(spec),
            warnings=notes + all_warnings(call, spec),
        )
    )


def all_warnings(call: Call, spec: JobSpec) -> tuple[str, ...]:
    """What the spec asks for in vain, in this version of Cube and in this cluster."""
    return (*warnings(spec), *dependencies.warnings(call.state, spec))


async def read_job(call: Call) -> tuple[JobSpec, bytes, tuple[str, ...]]:
    """The job, the body, and what a compose file says in vain.

    Raises Problem: not TOML, JSON or YAML (400), or not a job (422, every error of it)."""
    if media_type(call) in _YAML:
        data = await _read_text(call)
        composed = await asyncio.to_thread(parse_compose, data)  # up to some 0.2 s
        assert isinstance(composed, Composed), "without a directory no files are wanted"
        return composed.spec, data, composed.notes
    kind = check_media_type(call, JSON, TOML, _YAML[0])
    data = await _read_text(call)
    try:
        tree = toml_tree(data) if kind == TOML else json_tree(data)
    except BadConfig as error:
        raise job_problem(error, "bad_body") from None
    return parse_tree(tree), data, ()


async def _read_text(call: Call) -> bytes:
    data = await read_body(call)
    if len(data) > TEXT_BYTES_MAX:
        raise Problem("too_large", f"a job is at most {TEXT_BYTES_MAX} bytes, this is {len(data)}")
    return data


async def delete_job(call: Call) -> web.Response:
    name = call.path("job")
    data = await read_nothing(call)
    version = find_job_version(call, name)
    proposed = await call.propose(commands.DeleteJob(name), data)
    return _done(call, name, version, proposed, status=202)


async def scale_job(call: Call) -> web.Response:
    name = call.path("job")
    expected = call.expected_version()
    body, data = await read_json(call, ScaleBody)
    if not 0 <= body.count <= COUNT_MAX:
        raise Problem("invalid", f"count: must be between 0 and {COUNT_MAX}")
    if len(body.group) > NAME_CHARS_MAX:
        raise Problem("not_found", f"job {shown(name)} has no group {shown(body.group)}")
    command = commands.ScaleJob(name, {body.group: body.count}, expected)
    return _changed(call, name, await call.propose(command, data))


async def restart_job(call: Call) -> web.Response:
    name = call.path("job")
    expected = call.expected_version()
    data = await read_nothing(call)
    return _changed(call, name, await call.propose(commands.RestartJob(name, expected), data))


async def roll_back_job(call: Call) -> web.Response:
    name = call.path("job")
    expected = call.expected_version()
    body, data = await read_roll_back(call)
    if body.version is not None and body.version < 1:
        raise Problem("invalid", "version: must be 1 or more")
    command = commands.RollBackJob(name, body.version, expected)
    return _changed(call, name, await call.propose(command, data))


async def stop_job(call: Call) -> web.Response:
    name = call.path("job")
    data = await read_nothing(call)
    proposed = await call.propose(commands.StopJob(name), data)
    return _done(call, name, find_job_version(call, name), proposed)


async def start_job(call: Call) -> web.Response:
    name = call.path("job")
    data = await read_nothing(call)
    proposed = await call.propose(commands.StartJob(name), data)
    return _done(call, name, find_job_version(call, name), proposed)


async def list_versions(call: Call) -> web.Response:
    job = find_job(call.state, call.path("job"))
    views = tuple(render.version_view(version) for version in job.versions)
    return call.json(Page(views, None, call.state.index))


async def explain_job(call: Call) -> web.Response:
    job = find_job(call.state, call.path("job"))
    found = await call.api.cluster.why(call.state, job.name)
    explanations = tuple(render.explanation_view(one) for one in found)
    status = call.api.slots.of(call.state, job).status.value
    return call.json(WhyView(job.name, status, explanations, call.state.index))


def find_job_version(call: Call, name: str) -> int:
    """0 when there is no such job here: apply decides, this is for display."""
    job = call.state.job_named(name)
    return 0 if job is None else job.version


def _changed(
    call: Call, name: str, proposed: Proposed, found_warnings: tuple[str, ...] = ()
) -> web.Response:
    outcome = proposed.outcome
    assert isinstance(outcome, JobAccepted), outcome
    view = JobChanged(
        name=name,
        version=outcome.version,
        changed=outcome.changed,
        deployment_id=_deployment_id(call, name, outcome.version),
        index=proposed.index,
        warnings=found_warnings,
    )
    return call.json(view, status=201 if outcome.created else 200)


def _deployment_id(call: Call, name: str, version: int) -> str | None:
    """Of the version, while it is the job's newest; None: jobs of this type have none."""
    job = call.state.job_named(name)
    deployment = None if job is None else job.deployment
    if deployment is None or deployment.version != version:
        return None
    return deployment_id(name, version)


def _done(
    call: Call, name: str, version: int, proposed: Proposed, status: int = 200
) -> web.Response:
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    view = JobChanged(
        name=name,
        version=version,
        changed=outcome.changed,
        deployment_id=_deployment_id(call, name, version),
        index=proposed.index,
    )
    return call.json(view, status=status)
