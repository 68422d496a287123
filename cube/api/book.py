"""The book's own API, for its readers' curl lines: /tasks, /nodes, /stats, in its spelling.

A book task is a one-task job; its ID is kept in the job's meta, its state is one of five numbers.
"""

from __future__ import annotations

from aiohttp import web

from cube.api.bodies import check_media_type, read_body, read_nothing
from cube.api.call import JSON, Call
from cube.api.errors import Problem, job_problem
from cube.api.lookup import shown
from cube.api.render import rfc3339
from cube.api.slots import Unplaced
from cube.model import commands
from cube.model.bookapi import BOOK_ID, BOOK_STATES, book_state, book_task
from cube.model.cluster import ClusterState, Job, Task
from cube.model.errors import BadConfig
from cube.model.ids import JobId
from cube.model.spec import CheckType
from cube.model.treetext import json_tree

Json = dict[str, object]


async def add_task(call: Call) -> web.Response:
    """201 with the book's task. The same ID again is an update of its job: 201 too."""
    check_media_type(call, JSON)
    data = await read_body(call)
    try:
        tree = json_tree(data)
    except BadConfig as error:
        raise job_problem(error, "bad_body") from None
    spec = book_task(tree)
    _refuse_foreign_name(call.state, spec.name, spec.meta.get(BOOK_ID, ""))
    await call.propose(commands.SubmitJob(spec, JobId(call.api.new_id())), data)
    job = call.state.job_named(spec.name)
    if job is None:  # deleted by somebody in the meantime
        raise Problem("not_found", f"job {spec.name} is gone again")
    return call.json(_rows(call, job)[0], status=201)


def _refuse_foreign_name(state: ClusterState, name: str, book_id: str) -> None:
    """A name that another job has is not taken over: the book's client thinks in ids."""
    job = state.job_named(name)
    if job is not None and (not book_id or job.spec.meta.get(BOOK_ID) != book_id):
        raise Problem(
            "refused", f"there is a job called {name} already", hint="give the task another Name"
        )


async def list_tasks(call: Call) -> web.Response:
    """Of every job: a bare list, as the book has it."""
    found = [
        row for job in call.api.slots.ordered(call.state) if job.listed for row in _rows(call, job)
    ]
    return call.json(found)


async def remove_task(call: Call) -> web.Response:
    """The one-task job that the ID stands for is gone; or one task of any job is stopped."""
    await read_nothing(call)
    word = call.path("task")
    job = _job_of(call.state, word)
    if job is not None:
        await call.propose(commands.DeleteJob(job.name))
        return web.Response(status=204)
    task = next((t for t in call.state.tasks.values() if word in (t.id, t.name)), None)
    if task is None:
        raise Problem("not_found", f"there is no task {shown(word)}", hint="GET /tasks lists them")
    await call.propose(commands.StopTask(task.id))
    return web.Response(status=204)


def _job_of(state: ClusterState, book_id: str) -> Job | None:
    found = [
        job for job in state.jobs.values() if job.listed and job.spec.meta.get(BOOK_ID) == book_id
    ]
    return min(found, key=lambda job: job.name) if found else None


def _rows(call: Call, job: Job) -> list[Json]:
    """The newest task of each slot, or its want of one."""
    newest: dict[tuple[str, int], Task | Unplaced] = {}
    for one in (job, *call.state.runs_of(job)):
        for _, row in call.api.slots.of(call.state, one).rows:
            newest[(row.group, row.slot)] = row
    return [_row(job, row) for row in newest.values()] or [_row(job, None)]


def _row(job: Job, row: Task | Unplaced | None) -> Json:
    """`row` None: the job wants nothing and nothing is left of it."""
    found: Json = {
        "ID": job.spec.meta.get(BOOK_ID) or job.name,
        "Name": job.name,
        "Job": job.name,
        "State": BOOK_STATES["completed" if job.stopped else "pending"],
    }
    group = next(iter(job.spec.groups.values()))
    if row is not None:
        group = job.spec.groups.get(row.group, group)
        found["Name"] = row.name
        if BOOK_ID not in job.spec.meta:
            found["ID"] = row.id if isinstance(row, Task) else row.name
    found |= {
        "Image": group.image,
        "Cpu": group.resources.cpu_milli / 1000,
        "Memory": group.resources.memory_bytes,
        "Disk": group.resources.disk_bytes,
        "RestartPolicy": group.restart.policy.value,
        "HealthCheck": next((c.path for c in group.checks if c.type is CheckType.HTTP), ""),
    }
    if isinstance(row, Task):
        found |= _placed(row)
    return found


def _placed(task: Task) -> Json:
    ports = {f"{port.target}/{port.protocol.value}": str(port.host) for port in task.ports}
    return {
        "State": book_state(task.state.value),
        "ContainerID": task.handle,
        "RestartCount": task.restarts,
        "ExposedPorts": {port: {} for port in ports},
        "PortBindings": ports,
        "HostPorts": {
            port: [{"HostIp": task.address, "HostPort": host}] for port, host in ports.items()
        },
        "StartTime": rfc3339(task.started_at_ms),
        "FinishTime": rfc3339(task.finished_at_ms),
    }


async def list_nodes(call: Call) -> web.Response:
    state = call.state
    members = {member.node_id: member for member in call.api.cluster.members()}
    found: list[Json] = []
    for node in sorted(state.nodes.values(), key=lambda node: node.name):
        reserved = state.reserved.get(node.id)
        member = members.get(node.id)
        stats = None if member is None else member.stats
        found.append(
            {
                "Name": node.name,
                "Ip": node.facts.advertise,
                "Api": f"{call.api.scheme}://{node.facts.http_address}",
                "Cores": node.facts.capacity.cpu_milli / 1000,
                "Memory": node.facts.capacity.memory_bytes,
                "MemoryAllocated": 0 if reserved is None else reserved.memory_bytes,
                "Disk": node.facts.capacity.disk_bytes,
                "DiskAllocated": 0 if reserved is None else reserved.disk_bytes,
                "Load": None if stats is None else stats.load_1m,
                "Role": "worker",
                "TaskCount": len(state.tasks_by_node.get(node.id) or ()),
                "Status": node.status.value,
            }
        )
    return call.json(found)


async def show_stats(call: Call) -> web.Response:
    """Of this node, as the book's worker answers."""
    here = call.api.cluster.node_id()
    stats = next((m.stats for m in call.api.cluster.members() if m.node_id == here), None)
    if stats is None:
        raise Problem("unavailable", "this node has not measured itself yet")
    return call.json(
        {
            "MemStats": {
                "MemTotal": stats.memory_total_bytes // 1024,
                "MemAvailable": (stats.memory_total_bytes - stats.memory_used_bytes) // 1024,
            },
            "DiskStats": {
                "All": stats.disk_total_bytes,
                "Used": stats.disk_used_bytes,
                "Free": stats.disk_total_bytes - stats.disk_used_bytes,
            },
            "CpuStats": {"UsagePercent": stats.cpu_percent, "Cores": stats.cpu_cores},
            "LoadStats": {"Last1Min": stats.load_1m},
            "TaskCount": len(call.state.tasks_by_node.get(here) or ()),
        }
    )
