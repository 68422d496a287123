"""What is done to a running task where it is, through any node: signals."""

from __future__ import annotations

import re

import aiohttp
import msgspec
from aiohttp import web

from cube.api import elsewhere
from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem
from cube.model.views import TaskSignalled

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
    url = elsewhere.url(call, node, f"/v1/tasks/{task.id}/signal")
    try:
        async with elsewhere.session(call).post(
            url, data=data, headers=elsewhere.headers(call),
            timeout=elsewhere.timeout(call, call.api.settings.stream_write_ms),
        ) as upstream:  # fmt: skip
            return await elsewhere.pass_on(upstream)
    except aiohttp.ClientConnectorError as error:
        raise elsewhere.unreachable(node, error) from None
    except (aiohttp.ClientError, TimeoutError):
        raise Problem(
            "outcome_unknown",
            f"node {node.name} was asked to signal {task.name} and did not answer",
        ) from None
