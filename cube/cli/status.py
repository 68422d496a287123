"""`cube status`."""

from __future__ import annotations

import click

from cube.cli.context import Settings, command
from cube.cli.cron import next_run, print_runs
from cube.cli.jobs import print_jobs
from cube.cli.output import Style, age, clean, note, out, plural, raw, table
from cube.cli.tasks import present, print_tasks
from cube.client.client import Client
from cube.model.units import format_size
from cube.model.views import JobView, NodeView

BAR_CELLS = 10
RUNS_SHOWN = 5  # cube job runs shows all


@command("status")
@click.argument("job", required=False, metavar="[JOB]")
def status(settings: Settings, job: str | None) -> None:
    """The cluster at a glance, or one job with its groups and tasks."""
    client = settings.client
    if settings.output == "json":
        raw(client.read_raw(f"/v1/jobs/{job}" if job else "/v1/status"))
        return
    if job:
        _job(settings, client, client.job(job))
    else:
        _cluster(settings, client)


def _cluster(settings: Settings, client: Client) -> None:
    style = Style(settings)
    seen = client.status()
    nodes = client.nodes()
    jobs = client.jobs()
    ready = sum(1 for node in nodes if node.status == "ready")
    leader = seen.leader.name if seen.leader else style.paint("none", "red")
    out(
        f"Cluster {style.paint(seen.cluster_name, 'bold')}   {ready}/{len(nodes)} nodes ready   "
        f"leader {leader} (term {seen.term})   raft commit {seen.commit_index}, "
        f"lag {seen.commit_index - seen.applied_index}"
    )
    _room(nodes)
    for warning in seen.warnings:
        out(f"! {warning}")
    if not seen.quorum:
        out(style.paint("! no quorum: reads are served, writes are not", "red"))
        members = seen.members
        out(
            f"  gossip hears {members.alive} of {plural(len(nodes), 'node')}; without a leader "
            "nobody updates what is shown of the others"
        )
    if jobs:
        out()
        print_jobs(settings, jobs)
    for found in jobs:
        waiting = sum(group.pending + group.failed for group in found.groups.values())
        if waiting and found.status in ("pending", "degraded", "failed"):
            out(f"! {plural(waiting, 'task')} of {found.name} not running: cube why {found.name}")
    note("next: cube ps   cube node ls" if jobs else "no jobs yet. next: cube job init > job.toml")


def _room(nodes: list[NodeView]) -> None:
    cpu = sum(node.capacity.cpu for node in nodes if node.status == "ready")
    memory = sum(node.capacity.memory for node in nodes if node.status == "ready")
    cpu_used = sum(node.reserved.cpu for node in nodes if node.status == "ready")
    memory_used = sum(node.reserved.memory for node in nodes if node.status == "ready")
    tasks = sum(node.tasks for node in nodes)
    out(
        f"Tasks   {tasks}   CPU {_bar(cpu_used, cpu)} {cpu_used:.2f}/{cpu:g} cores reserved   "
        f"MEM {_bar(memory_used, memory)} {format_size(memory_used)} / {format_size(memory)}"
    )


def _bar(used: float, whole: float) -> str:
    cells = 0 if whole <= 0 else min(BAR_CELLS, round(BAR_CELLS * used / whole))
    return "[" + "#" * cells + "-" * (BAR_CELLS - cells) + "]"


def _job(settings: Settings, client: Client, job: JobView) -> None:
    style = Style(settings)
    out(
        f"{style.paint(job.name, 'bold')} v{job.version}   {job.type}   "
        f"{style.state(job.status)}   created {age(job.created_at)} ago"
    )
    ends = job.type in ("batch", "cron")
    rows = [
        [name, str(g.count), str(g.running), str(g.completed if ends else g.healthy),
         str(g.pending), str(g.failed)]
        for name, g in sorted(job.groups.items())
    ]  # fmt: skip
    middle = "COMPLETED" if ends else "HEALTHY"
    table(["GROUP", "COUNT", "RUNNING", middle, "PENDING", "FAILED"], rows)
    for image, digest in sorted(job.digests.items()):
        out(f"image {clean(image)} is {clean(digest)}")
    if job.runs:
        out()
        print_runs(settings, job.runs[:RUNS_SHOWN])
    tasks = present(client.tasks(job.name))
    if tasks:
        out()
        print_tasks(settings, tasks)
    if job.type == "cron":
        note(next_run(job))
        return
    waiting = sum(group.pending + group.failed for group in job.groups.values())
    note(f"next: cube why {job.name}" if waiting else f"next: cube logs {job.name}")
