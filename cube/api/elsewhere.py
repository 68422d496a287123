"""Requests about a task that only its node can answer: passed on to that node, once.

The user's own token goes along: what the role of a node does not allow, the node at the other end
allows by the user's.
"""

from __future__ import annotations

import aiohttp
from aiohttp import web

from cube.api.auth import FORWARDED
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.lookup import find_task, shown
from cube.api.slots import Unplaced
from cube.model.cluster import Node, Task

ANSWER_BYTES_MAX = 16 << 20  # short answers are passed on whole: the use of 10,000 tasks is 4 MB


def find_live_task(call: Call, word: str) -> Task:
    """The task of this name, which has not ended. Raises Problem."""
    row = find_task(call.state, call.api.slots, word)
    if isinstance(row, Unplaced):
        raise Problem(
            "refused", f"{row.name} is not placed yet, so nothing of it runs",
            hint=f"cube why {row.job.name} says why",
        )  # fmt: skip
    if row.ended:
        raise Problem(
            "refused", f"{row.name} has ended ({row.state.value}), so nothing of it runs",
            hint=f"cube logs {row.name} has its last words, cube task show {row.name} its history",
        )  # fmt: skip
    return row


def other_node(call: Call, task: Task) -> Node | None:
    """Who has the task; None: this node. Raises Problem."""
    if task.node_id == call.api.cluster.node_id():
        return None
    check_first(call, f"task {task.name} is on node {task.node_id}")
    node = call.state.nodes.get(task.node_id)
    if node is None:
        raise Problem("node_unreachable", f"node {task.node_id}, which had {task.name}, is gone")
    return node


def check_first(call: Call, where: str) -> None:
    """The request may be passed on: nobody has done that yet. Raises Problem."""
    forwarder = call.request.headers.get(FORWARDED)
    if forwarder is not None:
        raise Problem("unavailable", f"{where}, not here; node {shown(forwarder)} should know")


async def ask(call: Call, node: Node, path: str, method: str = "GET") -> web.Response:
    """What the other node answers to this short request. Raises Problem."""
    try:
        async with session(call).request(
            method, url(call, node, path), params={"min_index": str(call.state.index)},
            headers=headers(call), timeout=timeout(call, call.api.settings.stream_write_ms),
        ) as upstream:  # fmt: skip
            return await pass_on(upstream)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise unreachable(node, error) from None


def url(call: Call, node: Node, path: str) -> str:
    return f"{call.api.scheme}://{node.facts.http_address}{path}"


def headers(call: Call) -> dict[str, str]:
    sent: dict[str, str] = {FORWARDED: call.api.cluster.node_id()}
    for name in ("Authorization", "Content-Type"):
        if value := call.request.headers.get(name):
            sent[name] = value
    return sent


def timeout(call: Call, read_ms: int | None) -> aiohttp.ClientTimeout:
    """`read_ms`: of silence; None: as long as it takes."""
    return aiohttp.ClientTimeout(
        total=None,
        sock_connect=call.api.settings.connect_timeout_ms / 1000,
        sock_read=None if read_ms is None else read_ms / 1000,
    )


def session(call: Call) -> aiohttp.ClientSession:
    found = call.api.session
    assert found is not None, "the app is running"
    return found


def unreachable(node: Node, error: Exception) -> Problem:
    what = str(error) or type(error).__name__
    return Problem(
        "node_unreachable",
        f"node {node.name} ({node.facts.http_address}) does not answer: {what}",
        hint=f"cube node show {node.name}",
    )


async def pass_on(upstream: aiohttp.ClientResponse) -> web.Response:
    """The other node's short answer, as it is."""
    body = bytearray()
    async for piece in upstream.content.iter_any():
        body += piece
        if len(body) > ANSWER_BYTES_MAX:
            raise Problem("node_unreachable", "the node's answer is too long")
    sent = {"Content-Type": upstream.headers.get("Content-Type", "application/problem+json")}
    if "Retry-After" in upstream.headers:
        sent["Retry-After"] = upstream.headers["Retry-After"]
    return web.Response(status=upstream.status, body=bytes(body), headers=sent)
