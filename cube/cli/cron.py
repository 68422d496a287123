"""Runs of cron jobs: shown, and begun by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from cube.cli.context import Settings, command
from cube.cli.exits import FAILED, CommandError
from cube.cli.output import Style, age, answer, clean, note, raw, table, until
from cube.model.views import JobView, RunView


@command("runs")
@click.argument("job_name", metavar="JOB")
def job_runs(settings: Settings, job_name: str) -> None:
    """The last runs of a cron job, newest first."""
    if settings.output == "json":
        raw(settings.client.read_raw(f"/v1/jobs/{job_name}/runs"))
        return
    found = settings.client.job(job_name)
    if found.type != "cron":
        raise CommandError(
            FAILED, f"{job_name} is of type {found.type}; only cron jobs have runs",
            hint=f"cube ps -a {job_name}",
        )  # fmt: skip
    print_runs(settings, found.runs)
    note(next_run(found))


def print_runs(settings: Settings, runs: Sequence[RunView]) -> None:
    """A line per run."""
    style = Style(settings)
    rows = []
    for run in runs:
        many = f" ×{run.count}" if run.count > 1 else ""
        took = "–"
        if run.started_at is not None:
            ended = None if run.finished_at is None else datetime.fromisoformat(run.finished_at)
            took = age(run.started_at, ended)
        tasks = f"{run.completed} completed, {run.failed} failed" if run.finished_at else "–"
        trigger = "by hand" if run.trigger == "hand" else ""
        rows.append(
            [str(run.run or "–"), style.state(run.status) + many, f"{age(run.scheduled_at)} ago",
             took, tasks, f"v{run.version}", clean(", ".join(filter(None, [trigger, run.message])))]
        )  # fmt: skip
    if rows:
        table(["RUN", "STATUS", "DUE", "TOOK", "TASKS", "VERSION", "MESSAGE"], rows)


def next_run(job: JobView) -> str:
    """A sentence, and the next useful command."""
    if job.status in ("stopped", "stopping"):
        return f"{job.name} is stopped: no run is due. next: cube start {job.name}"
    if job.next_run_at is None:
        return f"no run of {job.name} is due. next: cube job trigger {job.name}"
    at = job.next_run_at[:16].replace("T", " ")
    return (
        f"the next run of {job.name} is due in {until(job.next_run_at)}, at {at} UTC. "
        f"next: cube job trigger {job.name}   cube logs {job.name}"
    )


@command("trigger")
@click.argument("job_name", metavar="JOB")
def job_trigger(settings: Settings, job_name: str) -> None:
    """Start a run of a cron job now; its schedule stays as it is."""
    started = settings.client.trigger(job_name)
    answer(settings, started)
    note(f"run {started.run} of {job_name} has begun. next: cube job runs {job_name}")
