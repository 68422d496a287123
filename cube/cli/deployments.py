"""`cube deployment`, `cube rollback`, `cube restart`."""

from __future__ import annotations

import time

import click

from cube.cli.context import Settings, command, group
from cube.cli.exits import FAILED, USAGE, CommandError
from cube.cli.output import Style, age, answer, clean, note, out, raw, table
from cube.cli.rollout import POLL_S
from cube.cli.run import follow
from cube.model.deployviews import DeploymentView

OVER = ("successful", "failed", "rolled_back")


@command("restart")
@click.argument("job_name", metavar="JOB")
@click.option("--detach", is_flag=True, help="Do not wait until it is done.")
def restart(settings: Settings, job_name: str, detach: bool) -> None:
    """Replace every task of a job by a new one with the same spec, as its update policy says. A batch
    job runs again."""
    client = settings.client
    began = time.monotonic()
    follow(settings, client, client.restart_job(job_name), "restarts", began=began, detach=detach)


@command("rollback")
@click.argument("job_name", metavar="JOB")
@click.argument("version", required=False, metavar="[VERSION]")
@click.option("--detach", is_flag=True, help="Do not wait until it is done.")
def rollback(settings: Settings, job_name: str, version: str | None, detach: bool) -> None:
    """Go back to an older version of a job: the last that was healthy, or VERSION. It becomes a new
    version."""
    number: int | None = None
    if version is not None:
        text = version.removeprefix("v")
        if not text.isdigit() or int(text) < 1:
            raise CommandError(
                USAGE, f"{version!r} is no version", hint=f"cube job versions {job_name}"
            )
        number = int(text)
    client = settings.client
    began = time.monotonic()
    changed = client.roll_back(job_name, number)
    verb = "has the spec of " + ("an older version" if number is None else f"v{number}")
    follow(settings, client, changed, verb, began=began, detach=detach)


@group("deployment")
def deployment() -> None:
    """How versions of jobs are rolled out. ID is JOB.vN, or JOB for its newest."""


@command("ls")
@click.argument("job", required=False, metavar="[JOB]")
def deployment_ls(settings: Settings, job: str | None) -> None:
    """Deployments, the newest of each job last."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/deployments", **({"job": job} if job else {}), limit="1000"))
        return
    if job:
        client.job(job)  # says so when there is none
    found = client.deployments(job or "")
    if settings.output == "name":
        for one in found:
            out(one.id)
        return
    if found:
        print_deployments(settings, found)
    else:
        note("no deployments yet: services and system jobs have one for each version")


def print_deployments(settings: Settings, found: list[DeploymentView]) -> None:
    """A line per deployment."""
    style = Style(settings)
    rows = [
        [
            one.id,
            f"v{one.from_version}" if one.from_version else "–",
            style.state(one.status),
            _progress(one),
            age(one.created_at),
            clean(_said(one)),
        ]
        for one in found
    ]
    table(["DEPLOYMENT", "FROM", "STATUS", "HEALTHY", "AGE", "MESSAGE"], rows)


def _progress(one: DeploymentView) -> str:
    groups = one.groups.values()
    return f"{sum(g.healthy for g in groups)}/{sum(g.desired for g in groups)}"


def _said(one: DeploymentView) -> str:
    if one.awaits_promotion:
        return "canaries are healthy, waiting for cube deployment promote"
    return one.message


@command("show")
@click.argument("name", metavar="ID|JOB")
def deployment_show(settings: Settings, name: str) -> None:
    """One deployment, group by group."""
    client = settings.client
    found = client.deployment(name)
    if settings.output == "json":
        raw(client.read_raw(f"/v1/deployments/{found.id}"))
        return
    _print_one(settings, found)


def _print_one(settings: Settings, found: DeploymentView) -> None:
    print_deployments(settings, [found])
    out()
    rows = [
        [
            name,
            str(one.desired),
            str(one.placed),
            str(one.healthy),
            str(one.unhealthy),
            "–" if not one.canaries else f"{one.canaries}{'' if one.promoted else ' waiting'}",
        ]
        for name, one in sorted(found.groups.items())
    ]
    table(["GROUP", "DESIRED", "PLACED", "HEALTHY", "UNHEALTHY", "CANARIES"], rows)
    _next(found)


def _next(found: DeploymentView) -> None:
    if found.awaits_promotion:
        note(f"next: cube deployment promote {found.id}   cube deployment fail {found.id}")
    elif found.status == "paused":
        note(f"next: cube deployment resume {found.id}   cube deployment fail {found.id}")
    elif found.status == "running":
        note(f"next: cube deployment watch {found.id}   cube deployment pause {found.id}")
    else:
        note(f"next: cube status {found.job}")


@command("watch")
@click.argument("name", metavar="ID|JOB")
def deployment_watch(settings: Settings, name: str) -> None:
    """Follow a deployment to its end. Exit: 0 successful, 1 failed or rolled back."""
    client = settings.client
    found = client.deployment(name)
    said = ""
    began = time.monotonic()
    while True:
        line = f"{found.id} {found.status}, {_progress(found)} healthy"
        if _said(found):
            line += f": {clean(_said(found))}"
        if line != said:
            note(line)
            said = line
        if found.status in OVER:
            break
        if settings.timeout_s is not None and time.monotonic() - began > settings.timeout_s:
            raise CommandError(FAILED, f"{found.id} is {found.status} yet")
        time.sleep(POLL_S)
        found = client.deployment(found.id)
    if settings.output == "json":
        raw(client.read_raw(f"/v1/deployments/{found.id}"))
    if found.status != "successful":
        raise CommandError(FAILED, f"{found.id} {found.status}", hint=f"cube why {found.job}")


def _steering(action: str, sentence: str, said: str) -> click.Command:
    @command(action)
    @click.argument("name", metavar="ID|JOB")
    def steer(settings: Settings, name: str) -> None:
        found = settings.client.steer(name, action)
        answer(settings, found)
        note(f"{found.id} {said}, it is {found.status}")
        _next(found)

    steer.help = sentence
    return steer


for item in (
    deployment_ls,
    deployment_show,
    deployment_watch,
    _steering("promote", "The canaries are good: go on with the others.", "is promoted"),
    _steering("pause", "Replace nothing more until it is resumed.", "goes no further"),
    _steering("resume", "Go on with a paused deployment.", "goes on"),
    _steering("fail", "Give the version up, and go back to the one before.", "is given up"),
):
    deployment.add_command(item)
