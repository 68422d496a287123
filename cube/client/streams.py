"""Streams as iterators: a task's output, and events that go on through the next agent."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator

import msgspec

from cube.client.errors import NoAgent, StreamBroken
from cube.client.transport import Request, Transport

READ_BYTES = 64 * 1024
EVENT_IDLE_S = 45.0  # three heartbeats
LINE_BYTES_MAX = 1 << 20  # of an event stream
RECONNECTS_MAX = 20  # in a row without an event in between
RECONNECT_DELAY_S = 0.5


class StreamedEvent(msgspec.Struct, frozen=True):
    """`name` is the topic, or `reset`: events are missing, read the state anew."""

    id: str
    name: str
    data: dict[str, object]


def read_output(transport: Transport, request: Request, follow: bool) -> Iterator[bytes]:
    """Raises ApiProblem, NoAgent; StreamBroken when it breaks off."""
    timeout_s = None if follow else EVENT_IDLE_S
    connection, response = transport.open_stream(request, timeout_s)
    try:
        while data := response.read1(READ_BYTES):
            yield data
    except (OSError, http.client.HTTPException) as error:
        raise StreamBroken(f"the output broke off: {error!r}") from None
    finally:
        response.close()
        connection.close()


def read_events(
    transport: Transport, request: Request, *, follow: bool = True
) -> Iterator[StreamedEvent]:
    """When following, endless. Goes on at the next agent when one goes away. Raises ApiProblem,
    NoAgent, StreamBroken."""
    last_id = ""
    failures = 0
    while True:
        headers = {**request.headers, "Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        try:
            connection, response = transport.open_stream(
                msgspec.structs.replace(request, headers=headers), EVENT_IDLE_S
            )
        except NoAgent:
            failures += 1
            if failures >= RECONNECTS_MAX or not last_id:
                raise
            time.sleep(RECONNECT_DELAY_S)
            continue
        try:
            for event in _events(response):
                last_id = event.id or last_id
                failures = 0
                yield event
            if not follow:
                return
        except (OSError, http.client.HTTPException):
            pass  # it went away; so does a stream that simply ends
        finally:
            response.close()
            connection.close()
        failures += 1
        if failures >= RECONNECTS_MAX:
            raise StreamBroken("the event stream ends again and again")
        time.sleep(RECONNECT_DELAY_S)


def _events(response: http.client.HTTPResponse) -> Iterator[StreamedEvent]:
    fields: dict[str, str] = {}
    while line := response.readline(LINE_BYTES_MAX):
        text = line.decode(errors="replace").rstrip("\r\n")
        if text.startswith(":"):
            continue
        if text:
            name, _, value = text.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            data = msgspec.json.decode(fields["data"], type=dict[str, object])
            yield StreamedEvent(fields.get("id", ""), fields.get("event", "message"), data)
            fields = {}
        else:
            fields = {}
