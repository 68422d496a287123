"""`cube ps` and `cube task`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cube.cli.context import Settings, command, group
from cube.cli.output import Style, age, answer, clean, note, out, raw, table
from cube.cli.rollout import ENDED
from cube.model.addresses import join_address
from cube.model.views import JobView, TaskView


@command("ps")
@click.argument("job", required=False, metavar="[JOB]")
@click.option("-a", "--all", "all_", is_flag=True, help="Ended tasks too.")
@click.option("--node", default="", help="Only tasks on this node.")
@click.option("--state", default="", help="Only tasks in this state.")
def ps(settings: Settings, job: str | None, all_: bool, node: str, state: str) -> None:
    """Tasks: those that run or should, and the newest of each slot that does not."""
    client = settings.client
    found = client.job(job) if job else None  # that it does not exist is an error, no empty list
    if settings.output == "json":
        given = {"job": job or "", "node": node, "state": state, "limit": "1000"}
        raw(client.read_raw("/v1/tasks", **{key: value for key, value in given.items() if value}))
        return
    tasks = client.tasks(job or "", "", node, state)
    shown = tasks if all_ or state else present(tasks)
    if settings.output == "name":
        for task in shown:
            out(task.name)
        return
    print_tasks(settings, shown)
    if found is not None and found.type in ("batch", "cron"):
        note(_tally(found))
    elif not shown:
        note("no tasks. next: cube run FILE" if not job else f"no tasks. next: cube why {job}")


def _tally(job: JobView) -> str:
    """Of a job that ends: what became of its slots, and where the ended tasks are."""
    groups = job.groups.values()
    count, completed = sum(g.count for g in groups), sum(g.completed for g in groups)
    failed = sum(g.failed for g in groups)
    return f"{completed} of {count} completed, {failed} failed. next: cube ps -a {job.name}"


def present(tasks: Sequence[TaskView]) -> list[TaskView]:
    """Without the past: ended tasks are left out where the slot has a newer one, or is done."""
    newest: dict[str, str] = {}
    for task in tasks:
        newest[task.name] = max(newest.get(task.name, ""), task.created_at or "~")
    return [
        task
        for task in tasks
        if task.state not in ENDED
        or (task.state != "completed" and (task.created_at or "~") == newest[task.name])
    ]


def print_tasks(settings: Settings, tasks: Sequence[TaskView]) -> None:
    """A line per task."""
    if not tasks:
        return
    style = Style(settings)
    wide = settings.output == "wide"
    header = ["TASK", "NODE", "STATE", "HEALTH", "RESTARTS", "AGE", "RUNS", "PORTS"]
    header += ["VERSION", "ID", "HANDLE", "MESSAGE"] if wide else ["MESSAGE"]
    rows = []
    for task in tasks:
        ports = " ".join(
            join_address(task.address or "?", port.host)
            + (f"→{port.target}" if port.host != port.target else "")
            for port in task.ports.values()
        )
        message = clean(task.message or task.reason.replace("_", " "))
        row = [
            task.name,
            task.node_name or "–",
            style.state(task.state),
            style.state(task.health) if task.health and task.state not in ENDED else "–",
            str(task.restarts),
            age(task.started_at or task.created_at),
            task.image or task.driver,
            ports or "–",
        ]
        row += [f"v{task.version}", task.id, (task.handle or "–")[:12]] if wide else []
        rows.append([*row, message if len(message) <= 60 or wide else message[:59] + "…"])
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    table(header, rows)


@group("task")
def task() -> None:
    """Single tasks."""


@command("show")
@click.argument("name", metavar="TASK")
def task_show(settings: Settings, name: str) -> None:
    """One task with its history."""
    client = settings.client
    found = client.task(name)
    if settings.output == "json":
        raw(client.read_raw(f"/v1/tasks/{found.id}"))
        return
    print_tasks(settings, [found])
    if found.image_digest:
        out(f"image {clean(found.image or '')} is {clean(found.image_digest)}")
    out()
    rows = [
        [age(item.at), item.state, str(item.attempt), clean(item.reason), clean(item.message)]
        for item in found.history
    ]
    table(["AGO", "STATE", "ATTEMPT", "REASON", "MESSAGE"], rows)


@command("stop")
@click.argument("name", metavar="TASK")
def task_stop(settings: Settings, name: str) -> None:
    """Stop one task; a service replaces it."""
    stopped = settings.client.stop_task(name)
    answer(settings, stopped)
    note(f"{stopped.name} is stopping" if stopped.changed else f"{stopped.name} has ended already")


@command("restart")
@click.argument("name", metavar="TASK")
def task_restart(settings: Settings, name: str) -> None:
    """Restart one task in place: on its node, as its next attempt."""
    restarted = settings.client.restart_task(name)
    answer(settings, restarted)
    note(
        f"{restarted.name} restarts. next: cube task show {restarted.name}"
        if restarted.changed
        else f"{restarted.name} is on its way already"
    )


@command("signal")
@click.argument("name", metavar="TASK")
@click.argument("signal", metavar="[SIGNAL]", default="SIGHUP")
def task_signal(settings: Settings, name: str, signal: str) -> None:
    """Send a signal (SIGHUP) to one task. Should it end by that, its restart policy applies."""
    told = settings.client.signal_task(name, signal)
    answer(settings, told)
    note(f"{told.name} was sent {told.signal}")


for item in (task_show, task_restart, task_stop, task_signal):
    task.add_command(item)
