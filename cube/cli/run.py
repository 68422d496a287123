"""`cube run`."""

from __future__ import annotations

import json
import sys
import time

import click

from cube.cli.context import Settings, command
from cube.cli.cron import next_run
from cube.cli.exits import INTERRUPTED, USAGE, CommandError
from cube.cli.jobfiles import FORMATS, job_files, named, read_job, unnamed
from cube.cli.output import note, out, raw
from cube.cli.rollout import Watch, serves
from cube.client.client import Client
from cube.model.addresses import join_address
from cube.model.views import JobChanged, JobView


@command("run", context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, metavar="[FILE|-] [-- CMD...]")
@job_files
@click.option("--image", metavar="IMAGE", help="Run this image, without a file.")
@click.option("--name", metavar="N", help="Name of the job that is made from --image or CMD.")
@click.option("--count", type=int, default=1, help="How many tasks.")
@click.option("-p", "--publish", multiple=True, metavar="HOST:TARGET", help="Publish a port.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="An environment variable.")
@click.option("--detach", is_flag=True, help="Do not wait until it is healthy.")
@click.option("--check-version", type=int, metavar="N", help="Only if the job is at version N.")
def run_command(
    settings: Settings,
    words: tuple[str, ...],
    filenames: tuple[str, ...],
    format_: str | None,
    profiles: tuple[str, ...],
    image: str | None,
    name: str | None,
    count: int,
    publish: tuple[str, ...],
    env: tuple[str, ...],
    detach: bool,
    check_version: int | None,
) -> None:
    """Submit a job file (or compose file, or - for standard input) and watch it become healthy.

    Without a file: cube run --image IMAGE [-- CMD...], or cube run -- CMD... for a process.
    """
    client = settings.client
    before, after = _files_and_command(words)
    if not before and not filenames:
        if not after and not image:
            hint = "\n".join([unnamed("run") or "cube run FILE", *WITHOUT_FILE])
            raise CommandError(USAGE, "what should run?", hint=hint)
        words = after
        if profiles:
            raise CommandError(USAGE, "--profile is for compose files, and none is named")
        data, content_type = _made(image, words, name, count, publish, env), FORMATS["json"]
    else:
        if image or name or publish or env or count != 1:
            raise CommandError(USAGE, "--image, --name, --count, -p and -e go without a file")
        files = named(before, filenames, format_, profiles, "run")
        data, content_type = read_job(files)
        if content_type == FORMATS["json"] and _is_book_task(data):
            _run_book_task(settings, client, data)
            return
    began = time.monotonic()
    changed = client.submit(data, content_type, check_version)
    follow(settings, client, changed, "submitted", began=began, detach=detach)


WITHOUT_FILE = ("cube run --image IMAGE", "cube run -- CMD...", "cube job init > job.toml")


def _files_and_command(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What are files, what the command. click has taken the `--` away; the command line has it."""
    arguments = sys.argv[1:]
    after = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    return words[: len(words) - len(after)], tuple(after)


def _made(
    image: str | None, words: tuple[str, ...], name: str | None, count: int,
    publish: tuple[str, ...], env: tuple[str, ...],
) -> bytes:  # fmt: skip
    from cube.model.bookapi import simple_job
    from cube.model.errors import BadConfig
    from cube.model.jobrender import render

    try:
        spec = simple_job(
            image=image or "", command=words, name=name or "", count=count, publish=publish, env=env
        )
    except BadConfig as bad:
        raise CommandError(
            USAGE,
            "this is no job",
            "\n".join(str(error) for error in bad.errors),
            "cube run --help",
        ) from None
    return json.dumps(render(spec)).encode()


def follow(
    settings: Settings,
    client: Client,
    changed: JobChanged,
    verb: str,
    *,
    began: float,
    detach: bool,
) -> None:
    """The job is as its new version says, its way there shown; or the wait is over and says why."""
    for warning in changed.warnings:
        note(f"warning: {warning}")
    if not changed.changed:
        note(f"{changed.name} v{changed.version}: nothing has changed")
    else:
        note(f"{changed.name} v{changed.version} {verb}. Ctrl-C leaves it running.")
    if changed.changed or not detach:
        found = client.job(changed.name)
        if found.type == "cron":  # its runs come when they are due: nothing to wait for
            _end(settings, client, changed.name)
            note(next_run(found))
            return
    if detach:
        _end(settings, client, changed.name)
        note(f"next: cube status {changed.name}")
        return
    watch = Watch(client, changed.name, changed.version, settings.timeout_s, changed.deployment_id)
    try:
        job = watch.until_done()
    except KeyboardInterrupt:
        note(f"\n{changed.name} goes on without us. next: cube status {changed.name}")
        raise click.exceptions.Exit(INTERRUPTED) from None
    took = time.monotonic() - began
    if watch.awaits_promotion:
        note(f"the canaries of {job.name} v{job.version} are healthy")
        _end(settings, client, job.name)
        name = changed.deployment_id
        note(f"next: cube deployment promote {name}   cube deployment fail {name}")
        return
    word = "complete" if job.type == "batch" else "live"
    note(f"{job.name} v{job.version} is {word} in {took:.1f}s")
    _end(settings, client, job.name)
    note(f"next: cube ps {job.name}   cube logs {job.name}   cube status {job.name}")


def _end(settings: Settings, client: Client, name: str) -> None:
    if settings.output == "json":
        raw(client.read_raw(f"/v1/jobs/{name}"))
    elif settings.output == "name":
        out(name)
    else:
        _addresses(client, client.job(name))


def _addresses(client: Client, job: JobView) -> None:
    """Where what serves can be reached: standard output, for pipes."""
    for task in client.tasks(job.name):
        if task.desired == "run" and serves(task):
            for port in task.ports.values():
                scheme = "http://" if port.protocol == "tcp" else "udp://"
                out(f"  {task.name}  {scheme}{join_address(task.address or '?', port.host)}")


def _is_book_task(data: bytes) -> bool:
    try:
        tree = json.loads(data)
    except ValueError:
        return False
    return isinstance(tree, dict) and "Task" in tree and "groups" not in tree


def _run_book_task(settings: Settings, client: Client, data: bytes) -> None:
    answer = client.submit_book_task(data)
    if settings.output == "json":
        raw(answer)
    note("the task is a job of its own. next: cube ps")
