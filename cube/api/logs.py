"""/v1/tasks/{task}/logs: from the node that has the task, through any node."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec
from aiohttp import web

from cube.api import elsewhere, query
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.lookup import find_placed_task, find_task
from cube.api.render import rfc3339
from cube.api.slots import Unplaced
from cube.api.streams import relay
from cube.model.cluster import Node, Task
from cube.model.errors import Unavailable
from cube.model.launch import LogChunk
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.units import format_size, parse_duration_ms

STREAMS = ("stdout", "stderr")
TAIL_MAX = 1_000_000  # lines; what a node keeps is less
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,3})?")


class LogQuery(msgspec.Struct, frozen=True):
    streams: tuple[str, ...]
    tail: int | None
    since_ms: int
    follow: bool
    timestamps: bool


async def show_logs(call: Call) -> web.StreamResponse:
    wanted = _read_query(call)
    task = find_placed_task(call.state, call.path("task"))
    if task is None:
        row = find_task(call.state, call.api.slots, call.path("task"))
        assert isinstance(row, Unplaced)
        raise Problem(
            "refused", f"{row.name} is not placed yet, so it has no output",
            hint=f"cube why {row.job.name} says why",
        )  # fmt: skip
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/plain; charset=utf-8",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }
    )
    node = elsewhere.other_node(call, task)
    if node is None:
        return await relay(call, response, _local(call, task, wanted), follow=wanted.follow)
    return await _forward(call, task, node, response, wanted)


def _read_query(call: Call) -> LogQuery:
    found = call.query
    tail_text = found.get("tail", "all")
    streams = query.words(found, "stream", STREAMS)
    return LogQuery(
        streams=tuple(s for s in STREAMS if streams is None or s in streams),
        tail=None if tail_text in ("all", "") else query.integer(found, "tail", 0, 0, TAIL_MAX),
        since_ms=_since_ms(found.get("since", ""), call.api.clock.now_ms()),
        follow=query.flag(found, "follow"),
        timestamps=query.flag(found, "timestamps"),
    )


def _since_ms(text: str, now_ms: int) -> int:
    """`10m` ago, seconds since the epoch, or RFC 3339. 0: from the beginning."""
    if not text:
        return 0
    if _SECONDS.fullmatch(text):
        return round(float(text) * 1000)
    try:
        if "T" in text or "-" in text:
            at = datetime.datetime.fromisoformat(text.replace(" ", "+"))  # an unquoted +02:00
            return round(at.timestamp() * 1000) if at.tzinfo else _no_zone()
        return max(0, now_ms - parse_duration_ms(text))
    except (ValueError, OverflowError) as error:
        raise Problem(
            "bad_parameter",
            f"since: {error}",
            hint="write 10m, 2026-01-31T12:00:00Z or Unix seconds",
        ) from None


def _no_zone() -> int:
    raise ValueError("the time has no zone")


async def _local(call: Call, task: Task, wanted: LogQuery) -> AsyncIterator[bytes]:
    """Of all attempts; when following, until the task has ended: a driver knows attempts only."""
    stamp = Stamps() if wanted.timestamps else None
    gaps = Gaps()
    # What comes after nothing was wanted is new.
    latest_ms = call.api.clock.now_ms() if wanted.tail == 0 else wanted.since_ms
    while True:
        seen = _standing(call, task)
        chunks = call.api.local_tasks.logs(
            task, streams=wanted.streams, tail=wanted.tail, since_ms=wanted.since_ms,
            follow=wanted.follow,
        )  # fmt: skip
        try:
            async for chunk in chunks:
                latest_ms = max(latest_ms, chunk.at_ms + 1)
                for piece in gaps.told(chunk):
                    yield piece.data if stamp is None else stamp.of(piece)
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        if not wanted.follow or seen is None:
            return
        await _until_it_goes_on(call, task, seen)
        wanted = msgspec.structs.replace(wanted, tail=None, since_ms=latest_ms)


Standing = tuple[int, TaskState]


def _standing(call: Call, task: Task) -> Standing | None:
    """Attempt and state by this node's state; None once the task has ended."""
    now = call.api.cluster.state().tasks.get(task.id)
    return None if now is None or now.ended else (now.attempt, now.state)


async def _until_it_goes_on(call: Call, task: Task, seen: Standing) -> None:
    """There may be more output than there was: another attempt, or the first one at last."""
    while True:
        now = _standing(call, task)
        if now is None or now[0] != seen[0] or (now != seen and now[1] is TaskState.RUNNING):
            return
        await asyncio.sleep(call.api.settings.stream_poll_ms / 1000)


class Gaps:
    """Says in the output itself, on a line of its own, where some of it is missing."""

    def __init__(self) -> None:
        self._ends_open = False  # what was sent last was not the end of a line

    def told(self, chunk: LogChunk) -> Iterator[LogChunk]:
        if chunk.dropped_bytes:
            start = "\n" if self._ends_open else ""
            text = (
                f"{start}-- cube: about {format_size(chunk.dropped_bytes)} of {chunk.stream} dropped "
                "here: it was written faster than it is read --\n"
            )
            self._ends_open = False
            yield LogChunk(chunk.stream, text.encode(), chunk.at_ms)
        if chunk.data:
            self._ends_open = not chunk.data.endswith(b"\n")
            yield chunk


class Stamps:
    """Puts the time before each line. A line's time is that of the chunk that begins it. Two streams
    share no line: one that the other breaks into goes on in a line of its own."""

    def __init__(self) -> None:
        self._open = ""  # the stream whose line is not complete, if what came last began one

    def of(self, chunk: LogChunk) -> bytes:
        if not chunk.data:
            return b""
        stamp = f"{rfc3339(chunk.at_ms) or '-'} ".encode()
        lines = chunk.data.split(b"\n")
        ends_open = bool(lines[-1])
        if not ends_open:
            lines.pop()
        goes_on = self._open == chunk.stream
        head = b"" if goes_on else stamp
        if self._open and not goes_on:
            head = b"\n" + stamp
        self._open = chunk.stream if ends_open else ""
        return head + (b"\n" + stamp).join(lines) + (b"" if ends_open else b"\n")


async def _forward(
    call: Call, task: Task, node: Node, response: web.StreamResponse, wanted: LogQuery
) -> web.StreamResponse:
    try:
        async with elsewhere.opened(
            call, node, f"/v1/tasks/{task.id}/logs", parameters=call.query, lasts=wanted.follow
        ) as upstream:
            if upstream.status != 200:
                return await elsewhere.pass_on(upstream)
            chunks = _remote(call, node, upstream)
            return await relay(call, response, chunks, follow=wanted.follow)
    except aiohttp.ClientError as error:
        raise elsewhere.unreachable(node, error) from None
    except Unavailable as error:  # before the first byte
        raise Problem("node_unreachable", str(error)) from None


async def _remote(call: Call, node: Node, upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What the other node sends. Raises Unavailable when it breaks off, or is declared down: a host
    that vanished sends nothing, not even an end."""
    poll_s = 5 * call.api.settings.stream_poll_ms / 1000
    while True:
        try:
            async with asyncio.timeout(poll_s):
                chunk = await upstream.content.readany()
        except TimeoutError:
            now = call.api.cluster.state().nodes.get(node.id)
            if now is None or now.status is NodeStatus.DOWN:
                raise Unavailable(f"node {node.name} went down") from None
            continue
        except aiohttp.ClientError as error:
            raise Unavailable(f"node {node.name} broke off: {error}") from None
        if not chunk:
            return
        yield chunk
