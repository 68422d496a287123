"""What users do to whole jobs."""

from __future__ import annotations

import json
import sys
import time

import click

from cube.cli.context import Settings, command, group
from cube.cli.cron import job_runs, job_trigger
from cube.cli.exits import FAILED, TIMED_OUT, USAGE, CommandError
from cube.cli.jobfiles import job_files, named, read_spec
from cube.cli.output import Style, age, answer, note, out, plural, raw, table, until
from cube.cli.rollout import tasks_gone, wait_until
from cube.cli.run import follow
from cube.cli.why import job_of
from cube.client.client import Client
from cube.model.views import JobVersionView, JobView

QUIET_S = 2.0  # a wait that is longer is told
STOP_WAIT_S = 60.0  # above every usual stop_timeout


@command("scale")
@click.argument("targets", nargs=-1, required=True, metavar="JOB/GROUP=N...")
@click.option("--detach", is_flag=True, help="Do not wait.")
def scale(settings: Settings, targets: tuple[str, ...], detach: bool) -> None:
    """Change how many tasks a group has: cube scale shop/web=5. JOB=N when it has one group."""
    client = settings.client
    wanted = [_target(client, text) for text in targets]
    for job_name, group_name, count in wanted:
        began = time.monotonic()
        changed = client.scale(job_name, group_name, count)
        verb = f"scaled, {group_name} to {count}"
        follow(settings, client, changed, verb, began=began, detach=detach)


def _target(client: Client, text: str) -> tuple[str, str, int]:
    name, equals, number = text.partition("=")
    job, slash, group = name.partition("/")
    if not equals or not number.isdigit() or not job:
        raise CommandError(USAGE, f"{text!r} is not JOB/GROUP=N", hint="cube scale shop/web=5")
    if not slash:
        groups = sorted(client.job(job).groups)
        if len(groups) != 1:
            raise CommandError(
                USAGE, f"{job} has {len(groups)} groups; say which",
                hint="\n".join(f"cube scale {job}/{g}={number}" for g in groups),
            )  # fmt: skip
        group = groups[0]
    return job, group, int(number)


@command("stop")
@click.argument("name", metavar="JOB|TASK")
@click.option("--detach", is_flag=True, help="Do not wait until it has ended.")
def stop(settings: Settings, name: str, detach: bool) -> None:
    """Stop a job, which keeps its spec, or one task, which a service replaces."""
    client = settings.client
    job, task_id = job_of(client, name)
    if task_id is not None:
        stopped = client.stop_task(task_id)
        answer(settings, stopped)
        note(f"{stopped.name} is stopping. next: cube ps {job}")
        return
    changed = client.stop_job(job)
    answer(settings, changed)
    note(f"{job} is stopping" if changed.changed else f"{job} is stopped already")
    if not detach:
        _await_end(settings, client, job)
    note(f"next: cube start {job}   cube rm {job}")


def _await_end(settings: Settings, client: Client, job: str) -> None:
    timeout_s = settings.timeout_s or STOP_WAIT_S
    is_quick = wait_until(lambda: tasks_gone(client, job), min(QUIET_S, timeout_s))
    if not is_quick:
        note("waiting for tasks to end; those that ignore the stop signal are killed after")
        note(f"their group's stop_timeout, 10 s unless {job} says otherwise. Ctrl-C stops waiting")
    if not is_quick and not wait_until(lambda: tasks_gone(client, job), timeout_s):
        raise CommandError(
            TIMED_OUT, f"some tasks of {job} have not ended yet", hint=f"cube ps {job}"
        )
    note(f"all tasks of {job} have ended")


@command("start")
@click.argument("job_name", metavar="JOB")
@click.option("--detach", is_flag=True, help="Do not wait until it is healthy.")
def start(settings: Settings, job_name: str, detach: bool) -> None:
    """Start a stopped job again, as it was."""
    client = settings.client
    began = time.monotonic()
    follow(settings, client, client.start_job(job_name), "started", began=began, detach=detach)


@command("rm")
@click.argument("job_name", metavar="JOB")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--detach", is_flag=True, help="Do not wait until its tasks have ended.")
def rm(settings: Settings, job_name: str, yes: bool, detach: bool) -> None:
    """Stop a job and remove it, with its versions and history."""
    client = settings.client
    found = client.job(job_name)
    if not yes and sys.stdin.isatty():
        running = sum(group.running for group in found.groups.values())
        if not click.confirm(f"Remove {job_name} and stop its {running} running tasks?", err=True):
            raise CommandError(FAILED, "nothing was removed")
    answer(settings, client.delete_job(job_name))
    note(f"{job_name} is removed. next: cube job ls")
    del detach  # removal does not wait: a node that is down learns it when it returns


@group("job")
def job() -> None:
    """Jobs: what was submitted, and in which versions."""


@command("ls")
@click.option("--type", "type_", default="", help="service, batch, system or cron.")
@click.option("--status", default="", help="Only jobs of this status.")
def job_ls(settings: Settings, type_: str, status: str) -> None:
    """All jobs."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw("/v1/jobs", **_given(type=type_, status=status, limit="1000")))
        return
    jobs = client.jobs(type_, status)
    if settings.output == "name":
        for found in jobs:
            out(found.name)
        return
    print_jobs(settings, jobs)
    if not jobs:
        note("no jobs yet. next: cube job init > job.toml && cube run job.toml")


def _given(**query: str) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def print_jobs(settings: Settings, jobs: list[JobView]) -> None:
    """A line per job."""
    style = Style(settings)
    rows = []
    for found in jobs:
        groups = found.groups.values()
        count = sum(group.count for group in groups)
        healthy = sum(group.healthy for group in groups)
        done = sum(group.completed for group in groups)
        progress = f"{done}/{count} complete" if found.type == "batch" else f"{healthy}/{count}"
        if found.type == "cron":
            progress = f"next in {until(found.next_run_at)}" if found.next_run_at else "–"
        rows.append(
            [found.name, found.type, f"v{found.version}", style.state(found.status), progress,
             age(found.created_at)]
        )  # fmt: skip
    if rows:
        table(["JOB", "TYPE", "VERSION", "STATUS", "HEALTHY", "AGE"], rows)


@command("show")
@click.argument("job_name", metavar="JOB")
def job_show(settings: Settings, job_name: str) -> None:
    """One job with its spec, as JSON."""
    raw(settings.client.read_raw(f"/v1/jobs/{job_name}"))


@command("versions")
@click.argument("job_name", metavar="JOB")
def job_versions(settings: Settings, job_name: str) -> None:
    """The last versions of a job, newest first."""
    if settings.output == "json":
        raw(settings.client.read_raw(f"/v1/jobs/{job_name}/versions"))
        return
    versions = settings.client.versions(job_name)
    rows = [
        [f"v{item.version}", age(item.created_at), "yes" if item.stable else "–", _by(item)]
        for item in versions
    ]
    table(["VERSION", "AGE", "WAS HEALTHY", "BY"], sorted(rows, key=lambda row: -int(row[0][1:])))
    note(f"next: cube rollback {job_name} [VERSION]")


def _by(version: JobVersionView) -> str:
    """Who submitted it, or set what it was made for."""
    return f"{version.actor}: {version.reason}" if version.reason else version.actor


@command("validate")
@click.argument("words", nargs=-1, metavar="FILE|-")
@job_files
def job_validate(
    settings: Settings,
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    format_: str | None,
    profiles: tuple[str, ...],
) -> None:
    """Whether a job file or a compose file is right; every error at once. Needs no agent."""
    files = named(words, filenames, format_, profiles, "job validate")
    spec = read_spec(files)
    groups = plural(len(spec.groups), "group")
    said = " with ".join(files.names)
    verb = "is" if len(files.names) == 1 else "are"
    note(f"{said} {verb} valid: job {spec.name}, {groups}. next: cube run {files.words()}")
    del settings


@command("convert")
@click.argument("words", nargs=-1, metavar="FILE|-")
@job_files
def job_convert(
    settings: Settings,
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    format_: str | None,
    profiles: tuple[str, ...],
) -> None:
    """Compose files, or a job in JSON, as a job file on standard output. Needs no agent."""
    spec = read_spec(named(words, filenames, format_, profiles, "job convert"))
    if settings.output == "json":
        from cube.model.jobrender import render

        raw(json.dumps(render(spec)).encode())
        return
    from cube.model.jobtoml import job_toml

    out(job_toml(spec).rstrip("\n"))


@command("init")
@click.argument("name", default="hello")
def job_init(settings: Settings, name: str) -> None:
    """A small job file to begin with, on standard output."""
    from importlib.resources import files

    text = (files("cube") / "examples" / "hello.toml").read_text()
    out(text.replace('name = "hello"', f'name = "{name}"', 1).rstrip("\n"))
    del settings


for item in (
    job_ls,
    job_show,
    job_runs,
    job_trigger,
    job_versions,
    job_validate,
    job_convert,
    job_init,
):
    job.add_command(item)
