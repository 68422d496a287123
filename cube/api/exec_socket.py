"""/v1/tasks/{task}/exec: a command beside a task over a WebSocket, through any node.

The first message is the order (cube.model.sessions); until it came, this end says nothing. Each side
takes what it can pass on, and no more: a slow terminal makes the command wait, not the memory grow.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from cube.api import elsewhere
from cube.api.call import Call
from cube.api.errors import IN_SHORT, Problem, problem_in_short, problem_of
from cube.api.streams import client_is_gone, keep_alive, lost_right, may_still, widen
from cube.model.cluster import Node, Task
from cube.model.errors import CubeError
from cube.model.lifecycle import NodeStatus
from cube.model.sessions import (
    MESSAGE_BYTES_MAX,
    STREAM_BYTES,
    ExecCaller,
    ExecOrder,
    FromCommand,
    ToCommand,
)
from cube.ports.session import Session

GOODBYE_S = 2.0  # for the other end to close the socket as well
Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

_ORDER = msgspec.json.Decoder(ExecOrder)
_FROM_COMMAND = msgspec.json.Decoder(FromCommand)
_TO_COMMAND = msgspec.json.Decoder(ToCommand)


async def open_exec(call: Call) -> web.StreamResponse:
    if call.request.headers.get("Upgrade", "").lower() != "websocket":
        raise Problem(
            "bad_request", "this route speaks WebSocket only", hint="cube exec TASK -- COMMAND"
        )
    task = elsewhere.find_live_task(call, call.path("task"))
    node = elsewhere.other_node(call, task)
    if node is not None:
        return await _forward(call, task, node)
    socket = await _accept(call)
    await _until_one_ends(
        lambda: client_is_gone(call) or not may_still(call), call, _serve(call, task, socket)
    )
    await _say_goodbye(call, socket)
    return socket


async def _say_goodbye(
    call: Call, socket: web.WebSocketResponse, *, has_ended: bool = False
) -> None:
    """It is closed. Whose right has ended is told so, if the last message was not sent before."""
    problem = None if has_ended else lost_right(call)
    if problem is not None and not client_is_gone(call):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):  # it may take nothing any more
                await _refuse(call, socket, problem)
    with contextlib.suppress(ConnectionError, RuntimeError):
        await socket.close()


async def _accept(call: Call) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(
        timeout=GOODBYE_S, max_msg_size=MESSAGE_BYTES_MAX, compress=False
    )
    await socket.prepare(call.request)
    keep_alive(call.request.transport)
    widen(call.request.transport)
    return socket


async def _serve(call: Call, task: Task, socket: web.WebSocketResponse) -> None:
    """Until either end is done. What goes wrong is the last message."""
    try:
        order = await _read_order(call, socket)
        if order is None:
            return
        async with call.api.local_tasks.exec(task, order, _caller(call)) as session:
            await _say(socket, FromCommand(started=True))
            await _until_one_ends(
                lambda: False, call, _take(socket, session), _give(call, task, socket, session)
            )
    except Problem as problem:
        await _refuse(call, socket, problem)
    except CubeError as error:
        await _refuse(call, socket, problem_of(error))
    except ConnectionError:
        pass  # the client has gone


def _caller(call: Call) -> ExecCaller:
    identity = call.identity
    state = call.api.cluster.state()
    token = state.trust.tokens.get(identity.token_id)
    by = state.nodes.get(identity.node_id)
    return ExecCaller(
        actor=identity.actor,
        role=identity.standing.value if identity.token_id else "",
        name="" if token is None else token.description,
        remote=call.remote,
        through="" if by is None else by.name,
    )


async def _read_order(call: Call, socket: web.WebSocketResponse) -> ExecOrder | None:
    """None: the client has gone. Raises Problem."""
    try:
        async with asyncio.timeout(call.api.settings.body_timeout_ms / 1000):
            message = await socket.receive()
    except TimeoutError:
        raise Problem("body_timeout", "no order came: the first message says what to run") from None
    if message.type is not WSMsgType.TEXT:
        if message.type is WSMsgType.BINARY:
            raise Problem("bad_body", "the first message is the order, as text")
        return None
    try:
        order = _ORDER.decode(message.data)
    except msgspec.MsgspecError as error:
        raise Problem("invalid", f"the order: {error}") from None
    if trouble := order.trouble():
        raise Problem("invalid", trouble)
    return order


async def _take(socket: Socket, session: Session) -> None:
    """Input to the command, until the client goes. Raises Problem."""
    while True:
        message = await socket.receive()
        match message.type:
            case WSMsgType.BINARY:
                await session.write(message.data)
            case WSMsgType.TEXT:
                try:
                    told = _TO_COMMAND.decode(message.data)
                except msgspec.MsgspecError as error:
                    raise Problem("invalid", f"a message to the command: {error}") from None
                if told.resize is not None:
                    await session.resize(*told.resize)
                if told.end_input:
                    await session.end_input()
            case _:
                return


async def _give(call: Call, task: Task, socket: Socket, session: Session) -> None:
    """Output of the command, then its exit code."""
    async for piece in session.output():
        await socket.send_bytes(STREAM_BYTES[piece.stream] + piece.data)
    code = await session.exit_code()
    now = call.api.cluster.state().tasks.get(task.id)
    is_over = now is None or now.ended or now.attempt != task.attempt
    reason = "the task has ended" if code is None or is_over else ""
    await _say(socket, FromCommand(ended=True, exit_code=code, reason=reason))


async def _say(socket: Socket, message: FromCommand) -> None:
    await socket.send_str(msgspec.json.encode(message).decode())


async def _refuse(call: Call, socket: Socket, problem: Problem) -> None:
    view = msgspec.to_builtins(problem.view(call.request.headers.get("X-Request-Id", "")))
    with contextlib.suppress(ConnectionError):
        await _say(socket, FromCommand(problem=view))


async def _forward(call: Call, task: Task, node: Node) -> web.StreamResponse:
    url = elsewhere.url(call, node, f"/v1/tasks/{task.id}/exec")
    connecting = elsewhere.session(call).ws_connect(
        url, params={"min_index": str(call.state.index)},
        headers=await elsewhere.headers(call, node, "GET", url),
        timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE_S), max_msg_size=MESSAGE_BYTES_MAX,
    )  # fmt: skip
    try:
        async with asyncio.timeout(
            (call.api.settings.connect_timeout_ms + call.api.settings.min_index_timeout_ms) / 1000
        ):
            upstream = await connecting
    except aiohttp.WSServerHandshakeError as error:
        said = error.headers.get(IN_SHORT, "") if error.headers is not None else ""
        raise problem_in_short(said) or elsewhere.unreachable(node, error) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise elsewhere.unreachable(node, error) from None
    async with upstream:
        socket = await _accept(call)

        def is_gone() -> bool:
            now = call.api.cluster.state().nodes.get(node.id)
            is_down = now is None or now.status is NodeStatus.DOWN
            return is_down or client_is_gone(call) or not may_still(call)

        with contextlib.suppress(ConnectionError):
            keep_alive(upstream.get_extra_info("socket"))
            back = _Copy(upstream, socket)
            await _until_one_ends(is_gone, call, _Copy(socket, upstream).run(), back.run())
        await _say_goodbye(call, socket, has_ended=back.has_ended)
    return socket


class _Copy:
    """`has_ended`: the last message of a command has been passed on."""

    def __init__(self, source: Socket, sink: Socket) -> None:
        self._source, self._sink = source, sink
        self.has_ended = False

    async def run(self) -> None:
        async for message in self._source:
            if message.type is WSMsgType.BINARY:
                await self._sink.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                self.has_ended = self.has_ended or _is_last(message.data)
                await self._sink.send_str(message.data)


def _is_last(text: str) -> bool:
    try:
        told = _FROM_COMMAND.decode(text)
    except msgspec.MsgspecError:  # not for us to judge
        return False
    return told.ended or told.problem is not None


async def _until_one_ends(
    is_gone: Callable[[], bool], call: Call, *works: Coroutine[object, object, None]
) -> None:
    """The first that ends is the end of all, or that `is_gone` says so: who waits to write does not
    notice that nobody reads. Raises what the first one raised."""
    tasks = {asyncio.create_task(work) for work in works}
    poll_s = call.api.settings.stream_poll_ms / 1000
    done: set[asyncio.Task[None]] = set()
    try:
        while not done and not is_gone():
            done, _ = await asyncio.wait(tasks, timeout=poll_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        failed = [task.exception() for task in tasks if not task.cancelled()]
    for error in failed:
        if error is not None:
            raise error
