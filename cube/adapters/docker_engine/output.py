"""What tasks have written, over all attempts whose containers are still there."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

import docker.errors
import msgspec
import requests

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.channel import Channel, wait_for_ever
from cube.adapters.docker_engine.engine import CONNECT_S, Engine, describe
from cube.adapters.docker_engine.failures import WEATHER, engine_down, refused
from cube.adapters.docker_engine.frames import read_frames
from cube.adapters.docker_engine.marks import Found, Marks, time_ns
from cube.model.errors import DriverFailed
from cube.model.ids import TaskId
from cube.model.launch import LogChunk

TAIL_BYTES_MAX = 8 << 20  # held in memory to find the last lines; older ones are left out
READ_SILENCE_S = 30.0  # when not following, the engine has everything at hand
STAMP_BYTES = 30  # "2006-01-02T15:04:05.000000000Z", then a space


class Wanted(msgspec.Struct, frozen=True):
    """`since_ns` 0: from the beginning. `tail` None: all."""

    streams: tuple[str, ...]
    tail: int | None = None
    since_ns: int = 0
    follow: bool = False


class Line(msgspec.Struct, frozen=True):
    """One entry of the engine's log: a line, or 16 KiB of a longer one."""

    stream: str
    data: bytes
    at_ns: int


async def read_output(
    engine: Engine, marks: Marks, task_id: TaskId, wanted: Wanted
) -> AsyncIterator[LogChunk]:
    """cube.ports.driver.Driver.logs. Follows into a later attempt that is there when one has ended."""
    found = await _containers_of(engine, marks, task_id)
    if not found:
        return
    since_ns, newest = wanted.since_ns, found[-1]
    past = msgspec.structs.replace(wanted, follow=False)
    if wanted.tail is not None:
        for line in await _last_lines(engine, found, past, wanted.tail):
            since_ns = line.at_ns + 1
            yield _chunk(line)
    else:
        for earlier in found if not wanted.follow else found[:-1]:
            async for line in _read(engine, earlier, past):
                yield _chunk(line)
    if not wanted.follow:
        return
    # From the last line that was sent; with none sent and a tail of 0, from now.
    live = Wanted(wanted.streams, 0 if wanted.tail == 0 else None, since_ns, follow=True)
    one: Found | None = newest
    while one is not None:
        async for line in _read(engine, one, live):
            yield _chunk(line)
        ended = one.attempt
        later = await _containers_of(engine, marks, task_id)
        one = next((other for other in later if other.attempt > ended), None)
        live = msgspec.structs.replace(live, tail=None, since_ns=wanted.since_ns)


def _chunk(line: Line) -> LogChunk:
    return LogChunk(line.stream, line.data, line.at_ns // 1_000_000)


async def _containers_of(engine: Engine, marks: Marks, task_id: TaskId) -> list[Found]:
    return await engine.call(partial(containers.listing, marks=marks, task_id=task_id))


async def _last_lines(engine: Engine, found: list[Found], wanted: Wanted, count: int) -> list[Line]:
    """Of all attempts together, oldest first."""
    lines: list[Line] = []
    for one in reversed(found):
        missing = count - len(lines)
        if missing <= 0:
            break
        # The engine counts both streams, so it can only help when both are wanted.
        is_both = len(set(wanted.streams)) > 1
        asked = msgspec.structs.replace(wanted, tail=missing if is_both else None)
        kept: deque[Line] = deque()
        size_bytes = 0
        async for line in _read(engine, one, asked):
            kept.append(line)
            size_bytes += len(line.data)
            while len(kept) > missing or size_bytes > TAIL_BYTES_MAX:
                size_bytes -= len(kept.popleft().data)
        lines = [*kept, *lines]
    return lines


async def _read(engine: Engine, one: Found, wanted: Wanted) -> AsyncIterator[Line]:
    if not wanted.streams:
        return
    channel: Channel[Line] = Channel()
    await engine.spawn("logs", lambda: _read_blocking(engine, one.id, wanted, channel))
    try:
        async for batch in channel.batches():
            for line in batch:
                yield line
    finally:
        channel.close()


def _read_blocking(
    engine: Engine, container_id: str, wanted: Wanted, channel: Channel[Line]
) -> None:
    """On a thread: finishes the channel. A container that is gone has no output."""
    failure: DriverFailed | None = None
    try:
        with _request(engine, container_id, wanted) as response:
            channel.attach(response)
            if response.status_code == requests.codes.not_found:
                pass
            elif response.status_code >= requests.codes.bad_request:
                failure = refused(docker.errors.APIError(response.reason, response, response.text))
            else:
                if wanted.follow:
                    wait_for_ever(response)
                _pass_on(response, channel.put)
    except (*WEATHER, ValueError) as error:
        if not channel.is_closed:
            failure = engine_down(f"the output broke off: {describe(error)}")
    channel.finish(failure)


def _request(engine: Engine, container_id: str, wanted: Wanted) -> requests.Response:
    """Not the SDK's logs(): that one drops which stream a piece is of."""
    client = engine.client()
    return client.get(
        f"{client.base_url}/v{client.api_version}/containers/{container_id}/logs",
        params=_parameters(wanted),
        stream=True,
        timeout=(CONNECT_S, READ_SILENCE_S),
    )


def _parameters(wanted: Wanted) -> dict[str, str | int]:
    seconds, ns = divmod(wanted.since_ns, 1_000_000_000)
    parameters: dict[str, str | int] = {
        "stdout": int("stdout" in wanted.streams),
        "stderr": int("stderr" in wanted.streams),
        "timestamps": 1,
        "follow": int(wanted.follow),
        "tail": "all" if wanted.tail is None else str(wanted.tail),
    }
    if wanted.since_ns > 0:
        parameters["since"] = f"{seconds}.{ns:09}"
    return parameters


def _pass_on(response: requests.Response, put: Callable[[Line, int], bool]) -> None:
    for stream, data in read_frames(response):
        at_ns = 0
        if data[STAMP_BYTES : STAMP_BYTES + 1] == b" ":
            at_ns = time_ns(data[:STAMP_BYTES].decode(errors="replace"))
            data = data[STAMP_BYTES + 1 :]
        if not put(Line(stream, data, at_ns), len(data)):
            return
