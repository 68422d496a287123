"""/v1/events: what changed, as Server-Sent Events.

Each stream pulls from the node's memory of events at its own pace, so a slow client costs nothing
but its own lateness: what it missed for too long it is told with `reset`, and reads state again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence

import msgspec
from aiohttp import web

from cube.api import query
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.render import rfc3339
from cube.api.streams import ClientGone, client_is_gone, may_still, write
from cube.model.events import Event
from cube.ports.cluster import Published

TOPICS = ("cluster", "node", "job", "deployment", "task", "exec", "secret", "config")
_CURSOR = re.compile(r"(\d{1,18})(?:\.(\d{1,10}))?")
_ALL_OF_IT = 1 << 40  # above the number of events of any entry
_WRITE_BYTES = 64 * 1024  # sent at once: a plan of 10,000 placements is not one write

Cursor = tuple[int, int]  # index of an entry, number of its last event that was seen


async def stream_events(call: Call) -> web.StreamResponse:
    topics = query.words(call.query, "topic", TOPICS) or frozenset(TOPICS)
    follows = "follow" not in call.query or query.flag(call.query, "follow")
    cursor = _read_cursor(call, topics, follows=follows)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }
    )
    await response.prepare(call.request)
    try:
        await write(call, response, b": events\n\n")
        await _follow(call, response, topics, cursor, follows=follows)
    except ClientGone:
        pass
    return response


def _read_cursor(call: Call, topics: frozenset[str], *, follows: bool) -> Cursor:
    """After which event to begin: Last-Event-ID, else since; else before the last `tail` that are
    remembered, or now where there is none; who does not follow gets all."""
    tail = query.integer(call.query, "tail", 0 if follows else _ALL_OF_IT, 0)
    name, text = "Last-Event-ID", call.request.headers.get("Last-Event-ID", "")
    if not text:
        name, text = "since", call.query.get("since", "")
    if not text:
        now = call.state.index, _ALL_OF_IT
        return min(now, _before_last(call.api.cluster.events_kept(), topics, tail) or now)
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise Problem("bad_parameter", f"{name} must be an index, or index.n as an event's id is")
    return int(match[1]), _ALL_OF_IT if match[2] is None else int(match[2])


def _before_last(kept: Sequence[Published], topics: frozenset[str], count: int) -> Cursor | None:
    """After which `count` of these events come, or all of them. None: none of them."""
    found: Cursor | None = None
    for published in reversed(kept):
        for number in range(len(published.events) - 1, -1, -1):
            if count == 0:
                return found
            if _topic(published.events[number]) in topics:
                found = published.index, number - 1
                count -= 1
    return found


async def _follow(
    call: Call, response: web.StreamResponse, topics: frozenset[str], cursor: Cursor, *,
    follows: bool,
) -> None:  # fmt: skip
    cluster, settings, clock = call.api.cluster, call.api.settings, call.api.clock
    written_ms = clock.monotonic_ms()
    # The id may come from a node that is ahead of this one.
    await cluster.wait_index(cursor[0], settings.min_index_timeout_ms)
    while not client_is_gone(call) and may_still(call):
        index = cluster.state().index
        await asyncio.sleep(
            0
        )  # state is seen before its events: these are a turn of the loop later
        batch = cluster.events_since(*cursor)
        if batch is None:
            cursor = (index, _ALL_OF_IT)
            await write(call, response, _event(None, "reset", b'{"index":%d}' % index))
            written_ms = clock.monotonic_ms()
        for data in _pieces(batch or [], cursor, topics):
            await write(call, response, data)
            written_ms = clock.monotonic_ms()
        if batch:
            cursor = (batch[-1].index, _ALL_OF_IT)
            if follows:
                continue
        if not follows:
            return
        if clock.monotonic_ms() - written_ms >= settings.heartbeat_ms:
            await write(call, response, b": heartbeat\n\n")
            written_ms = clock.monotonic_ms()
        await cluster.wait_index(index + 1, min(settings.stream_poll_ms, settings.heartbeat_ms))


def _pieces(batch: list[Published], cursor: Cursor, topics: frozenset[str]) -> Iterator[bytes]:
    """The batch as text of the stream, in pieces that are fit to be written."""
    piece = bytearray()
    for published in batch:
        at = rfc3339(published.at_ms)
        for number, event in enumerate(published.events):
            if (published.index, number) <= cursor or _topic(event) not in topics:
                continue
            data = {"index": published.index, "at": at, **msgspec.to_builtins(event)}
            id_ = f"{published.index}.{number}"
            piece += _event(id_, _topic(event), msgspec.json.encode(data))
            if len(piece) >= _WRITE_BYTES:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)


def _topic(event: Event) -> str:
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _event(id_: str | None, name: str, data: bytes) -> bytes:
    """`data` is JSON without line breaks."""
    head = f"event: {name}\n" if id_ is None else f"id: {id_}\nevent: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"
