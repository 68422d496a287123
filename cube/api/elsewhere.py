"""Requests about a task that only its node can answer: passed on to that node, once.

The user's token stays here. What the role of a node does not allow, the node at the other end allows
by a ticket that is signed with the token (cube.api.tickets).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web
from yarl import URL

from cube.api.auth import FORWARDED, MAY_USE, Standing, token_of
from cube.api.call import Call, Kind
from cube.api.errors import Problem, refused
from cube.api.lookup import find_task, shown
from cube.api.node_connector import WrongNode
from cube.api.slots import Unplaced
from cube.api.tickets import TICKET, Ticket, write_ticket
from cube.model.cluster import Node, Task
from cube.model.commands import KeepTokenKey
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Rejected
from cube.model.trust import ApiToken

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


def is_here(call: Call, node: Node) -> bool:
    """Raises Problem when the node asked for is not this one and cannot be asked."""
    if node.id == call.api.cluster.node_id():
        return True
    check_first(call, f"this is not node {node.name}")
    if node.status in (NodeStatus.DOWN, NodeStatus.LEFT):
        raise Problem(
            "node_unreachable", f"node {node.name} is {node.status.value}: its disk cannot be asked",
            hint=f"cube node show {node.name}",
        )  # fmt: skip
    return False


def check_first(call: Call, where: str) -> None:
    """The request may be passed on: nobody has done that yet. Raises Problem."""
    forwarder = call.request.headers.get(FORWARDED)
    if forwarder is not None:
        raise Problem("unavailable", f"{where}, not here; node {shown(forwarder)} should know")


async def ask(
    call: Call,
    node: Node,
    path: str,
    method: str = "GET",
    *,
    data: bytes | None = None,
    doing: str = "",
) -> web.Response:
    """What the other node answers to this short request. `doing`: what it changes there, if it does.
    Raises Problem."""
    try:
        async with opened(call, node, path, method, data=data) as upstream:
            return await pass_on(upstream)
    except aiohttp.ClientError as error:
        if not doing:
            raise unreachable(node, error) from None
        raise Problem(
            "outcome_unknown", f"node {node.name} was asked to {doing} and did not answer"
        ) from None


@contextlib.asynccontextmanager
async def opened(
    call: Call, node: Node, path: str, method: str = "GET", *, data: bytes | None = None,
    parameters: Mapping[str, str] | None = None, lasts: bool = False,
) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
    """The other node's answer, which has begun. `lasts`: it may be silent for as long as it likes.
    Raises Problem where the node is out of reach, and ClientError for one that was asked and broke
    off."""
    query = dict(parameters or {})
    if call.route.kind is not Kind.WRITE:
        query["min_index"] = str(call.state.index)
    read_ms = None if lasts else call.api.settings.stream_write_ms
    asked = url(call, node, path)
    try:
        async with session(call).request(
            method, asked, params=query, data=data, headers=await headers(call, node, method, asked),
            timeout=timeout(call, read_ms),
        ) as upstream:  # fmt: skip
            yield upstream
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, WrongNode) as error:
        raise unreachable(node, error) from None
    except TimeoutError as error:
        raise aiohttp.ServerTimeoutError(str(error)) from error


def url(call: Call, node: Node, path: str) -> URL:
    return URL(f"{call.api.scheme}://{node.facts.http_address}{path}")


async def headers(call: Call, node: Node, method: str, asked: URL) -> dict[str, str]:
    """Of the request to the other node. Raises Problem."""
    sent: dict[str, str] = {FORWARDED: call.api.cluster.node_id()}
    if (value := call.request.headers.get("Content-Type")) is not None:
        sent["Content-Type"] = value
    if call.identity.token_id and Standing.NODE not in MAY_USE[call.route.role]:
        sent[TICKET] = await _ticket(call, node, method, asked)
    return sent


async def _ticket(call: Call, node: Node, method: str, asked: URL) -> str:
    """What the other node lets the user in by. Raises Problem."""
    token, signer = token_of(call.request.headers.get("Authorization", "")), call.api.access.signer
    assert signer is not None, "who asks for tokens can sign with them"
    record = call.api.cluster.state().trust.tokens.get(token.id)
    if record is not None and not record.key:
        await _keep_key(call, token)
    ticket = Ticket(
        token=token.id,
        by=call.api.cluster.node_id(),
        to=node.id,
        method=method,
        path=asked.raw_path,
        made_at_ms=call.api.now_ms(),
        remote=call.remote,
    )
    return write_ticket(signer, token.secret, ticket)


async def _keep_key(call: Call, token: ApiToken) -> None:
    """The cluster knows what this token's tickets are checked with: one that was made by an older
    version says it when it is needed. Raises Problem."""
    command = KeepTokenKey(token.id, call.api.tokens.token_key(token.secret))
    proposed = await call.api.cluster.propose(command, actor=call.actor)
    call.state = call.api.cluster.state()  # the other node is to be as new
    if isinstance(proposed.outcome, Rejected):
        raise refused(proposed.outcome)


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
