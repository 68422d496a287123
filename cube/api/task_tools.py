"""What running tasks are asked, and told, where they are, through any node: use and signals."""

from __future__ import annotations

import asyncio
import re

import msgspec
from aiohttp import web

from cube.api import elsewhere
from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.lookup import find_node
from cube.api.render import rfc3339
from cube.api.slots import place_of
from cube.model.cluster import Task
from cube.model.errors import DriverFailed
from cube.model.launch import TaskStats
from cube.model.lifecycle import TaskState
from cube.model.views import NodeStatsView, TaskSignalled, TaskStatsView

ASKED_AT_ONCE = 8  # as many as a driver has threads

_SIGNAL = re.compile(r"(SIG)?(?!SIG$)[A-Z]{2,10}[0-9]{0,2}|SIGRTM(IN|AX)[+-][0-9]{1,2}|[1-9][0-9]?")


class _SignalBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: str


async def signal_task(call: Call) -> web.Response:
    """Nothing here repeats it; but a client that loses the answer may, and then it comes twice."""
    body, data = await read_json(call, _SignalBody)
    name = body.signal.upper()
    if not _SIGNAL.fullmatch(name):
        raise Problem("invalid", f"{body.signal[:32]!r} is no signal", hint="SIGHUP, HUP or 1")
    task = elsewhere.find_live_task(call, call.path("task"))
    node = elsewhere.other_node(call, task)
    if node is None:
        await call.api.local_tasks.signal(task, name, call.actor)
        return call.json(TaskSignalled(task.id, task.name, name))
    return await elsewhere.ask(
        call, node, f"/v1/tasks/{task.id}/signal", "POST", data=data, doing=f"signal {task.name}"
    )


async def show_stats(call: Call) -> web.Response:
    task = elsewhere.find_live_task(call, call.path("task"))
    node = elsewhere.other_node(call, task)
    if node is not None:
        return await elsewhere.ask(call, node, f"/v1/tasks/{task.id}/stats")
    return call.json(_view(task, await call.api.local_tasks.stats(task)))


async def show_node_stats(call: Call) -> web.Response:
    """Of all tasks of the node at once: what `cube top` asks again and again."""
    node = find_node(call.state, call.path("node"))
    if node.id != call.api.cluster.node_id():
        elsewhere.check_first(call, f"this is not node {node.id}")
        return await elsewhere.ask(call, node, f"/v1/nodes/{node.id}/stats")
    running = [t for t in call.state.tasks_of_node(node.id) if t.state is TaskState.RUNNING]
    slots = asyncio.Semaphore(ASKED_AT_ONCE)
    failed: dict[str, str] = {}

    async def look(task: Task) -> TaskStatsView | None:
        async with slots:
            try:
                return _view(task, await call.api.local_tasks.stats(task))
            except DriverFailed as failure:
                if failure.code != "not_running":  # it has just ended
                    failed[task.id] = failure.message
                return None

    found = await asyncio.gather(*(look(task) for task in sorted(running, key=place_of)))
    tasks = tuple(view for view in found if view is not None)
    return call.json(NodeStatsView(id=node.id, name=node.name, tasks=tasks, failed=failed))


def _view(task: Task, stats: TaskStats) -> TaskStatsView:
    return TaskStatsView(
        id=task.id,
        name=task.name,
        node_id=task.node_id,
        attempt=task.attempt,
        at=rfc3339(stats.at_ms),
        at_ms=stats.at_ms,
        cpu_seconds=None if stats.cpu_ms is None else stats.cpu_ms / 1000,
        memory_bytes=stats.memory_bytes,
        memory_limit_bytes=stats.memory_limit_bytes,
        pids=stats.pids,
        read_bytes=stats.read_bytes,
        written_bytes=stats.written_bytes,
        received_bytes=stats.received_bytes,
        sent_bytes=stats.sent_bytes,
    )
