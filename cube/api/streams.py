"""Answers that last: written as they come, ended when either side goes.

aiohttp does not tell a handler that its client has gone before the next write, and a quiet stream
may not write for hours; so every wait here is short, and looks at the connection after each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiohttp import web

from cube.api.call import Call
from cube.api.errors import Problem
from cube.model.errors import CubeError

log = logging.getLogger(__name__)

FIRST_CHUNK_WAIT_S = 0.25  # an error that shows at once becomes a proper answer


# Of a stream to us that may pause. The usual 128 KiB are two segments of a loopback: once full, their
# sender is told of new room only by its own probe, 200 ms later, again and again.
RECEIVE_BYTES = 1 << 20
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 3  # a dead host shows in 30 s


def keep_alive(connection: object) -> None:
    """The kernel finds out when the other host has gone, however quiet both are. `connection`: a
    socket, or a transport that has one."""
    get = getattr(connection, "get_extra_info", None)
    found: Any = get("socket") if get is not None else connection
    if found is None:
        return
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
            (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
            (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        ):
            found.setsockopt(socket.IPPROTO_TCP, option, value)


def widen(connection: asyncio.BaseTransport | None) -> None:
    """The kernel takes RECEIVE_BYTES for us before it makes the sender wait."""
    found = None if connection is None else connection.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


class ClientGone(Exception):
    """The client closed its end, reads nothing any more, or may read nothing any more."""


def client_is_gone(call: Call) -> bool:
    transport = call.request.transport
    return transport is None or transport.is_closing()


def may_still(call: Call) -> bool:
    """Whoever asked could ask again. Looked at before each write and after each wait: what lasts would
    outlast its token, and be worth as much."""
    return lost_right(call) is None


def lost_right(call: Call) -> Problem | None:
    """What whoever asked would be told now; None: they would be let in."""
    try:
        call.check_still_good()
    except Problem as problem:
        return problem
    return None


def cut_off(call: Call) -> None:
    """Its token has gone before it."""
    log.info("stream_ended path=%s actor=%s reason=token_gone", call.route.path, call.actor)
    abort(call)


async def write(call: Call, response: web.StreamResponse, data: bytes) -> None:
    """Raises ClientGone; a client that takes nothing for stream_write_ms is dropped, and so is one that
    may not have it any more."""
    if not may_still(call):
        cut_off(call)
        raise ClientGone
    try:
        async with asyncio.timeout(call.api.settings.stream_write_ms / 1000):
            await response.write(data)
    except TimeoutError:
        log.warning("stream_dropped path=%s reason=slow_client", call.route.path)
        abort(call)
        raise ClientGone from None
    except ConnectionError:
        raise ClientGone from None


def abort(call: Call) -> None:
    """The client sees a broken stream rather than a complete one."""
    transport = call.request.transport
    if transport is not None:
        transport.abort()


async def relay(
    call: Call, response: web.StreamResponse, source: AsyncIterator[bytes], *, follow: bool
) -> web.StreamResponse:
    """`response` carries all of `source`. A CubeError of the source's first moments is raised; a
    later one breaks the stream."""
    poll_s = call.api.settings.stream_poll_ms / 1000
    chunks = _Chunks(source)
    try:
        await chunks.wait(FIRST_CHUNK_WAIT_S if follow else None)
        chunks.raise_if_failed()
        await response.prepare(call.request)
        while True:
            while not await chunks.wait(poll_s):
                if client_is_gone(call):
                    return response
                if not may_still(call):
                    cut_off(call)
                    return response
            chunk = chunks.take()
            if chunk is None:
                break
            await write(call, response, chunk)
        await response.write_eof()
    except ClientGone:
        pass
    except CubeError as error:
        if not response.prepared:
            raise
        log.warning("stream_broken path=%s reason=%r", call.route.path, str(error))
        abort(call)
    finally:
        await chunks.close()
    return response


class _Chunks:
    """The next chunk of an iterator, awaited in pieces without losing it."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._next: asyncio.Task[bytes | None] | None = None

    async def wait(self, timeout_s: float | None) -> bool:
        """True when the next chunk, the end or an error is there."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._pull())
        done, _ = await asyncio.wait({self._next}, timeout=timeout_s)
        return bool(done)

    def _pull(self) -> Coroutine[object, object, bytes | None]:
        async def pull() -> bytes | None:
            return await anext(self._source, None)

        return pull()

    def raise_if_failed(self) -> None:
        if self._next is not None and self._next.done() and self._next.exception() is not None:
            self._next.result()

    def take(self) -> bytes | None:
        """None at the end. Raises what the source raised."""
        task, self._next = self._next, None
        assert task is not None
        return task.result()

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # seen already, or of no interest any more
        close = getattr(self._source, "aclose", None)
        if close is not None:
            with contextlib.suppress(CubeError):
                await close()
