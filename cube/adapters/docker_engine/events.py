"""The engine's news of our containers: one thread that listens, and reconnects when it must."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable

import requests

from cube.adapters.docker_engine.channel import abort
from cube.adapters.docker_engine.engine import CONNECT_S, Client, Engine, describe, is_silence, soon
from cube.adapters.docker_engine.failures import WEATHER
from cube.adapters.docker_engine.marks import LABEL_ATTEMPT, LABEL_TASK, Marks, container_name
from cube.model.ids import TaskId

log = logging.getLogger(__name__)

# After so long without news the stream is opened anew and everything looked at again: finds a
# connection that is dead without saying so, and whatever else was missed.
SILENCE_S = 60.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
JOIN_S = 1.0

Identity = tuple[TaskId, int]


class EventStream:
    """Calls, on the loop: `on_connect()` each time it listens (what happened before is unknown then),
    `on_lost()` when the engine ended the stream,
    `on_event(task_id, attempt)` when an attempt's container has ended or vanished."""

    def __init__(
        self,
        engine: Engine,
        marks: Marks,
        on_connect: Callable[[], None],
        on_lost: Callable[[], None],
        on_event: Callable[[TaskId, int], None],
    ) -> None:
        self._engine = engine
        self._marks = marks
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._closing = threading.Event()
        self._client: Client | None = None  # of the stream; the thread's own
        self._response: requests.Response | None = None
        self._lock = threading.Lock()  # of _response, against a close() at the same moment
        self._thread = threading.Thread(target=self._listen, name="docker-events", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Nothing is called any more. A thread that waits for a hung engine ends with its timeout."""
        self._closing.set()
        with self._lock:
            if self._response is not None:
                abort(self._response)
        await asyncio.to_thread(self._thread.join, JOIN_S)

    def _listen(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._closing.is_set():
            try:
                with self._open() as response:
                    if self._hold(response):
                        backoff_s = BACKOFF_FIRST_S
                        soon(self._loop, self._on_connect)
                        for line in response.iter_lines(chunk_size=None):
                            self._read(line)
                reason = "the stream ended"
            except WEATHER as error:
                reason = describe(error)
            finally:
                with self._lock:
                    self._response = None
            log.debug("docker_events_broken reason=%r", reason)
            if not is_silence(reason):
                # Whoever answers next may be another engine, or a newer one.
                self._engine.lose(self._client)
                soon(self._loop, self._on_lost)
                self._closing.wait(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    def _open(self) -> requests.Response:
        client = self._client = self._engine.client()
        filters = {
            "type": ["container"],
            "event": ["die", "destroy"],
            "label": self._marks.filters(),
        }
        response = client.get(
            f"{client.base_url}/v{client.api_version}/events",
            params={"filters": json.dumps(filters)},
            stream=True,
            timeout=(CONNECT_S, SILENCE_S),
        )
        response.raise_for_status()
        return response

    def _hold(self, response: requests.Response) -> bool:
        """So that close() can end it. False when it came too late."""
        with self._lock:
            self._response = response
            return not self._closing.is_set()

    def _read(self, line: bytes) -> None:
        """Bad lines are passed over: the next look at everything finds what they said."""
        try:
            attributes = json.loads(line)["Actor"]["Attributes"]
            task_id, attempt = TaskId(attributes[LABEL_TASK]), int(attributes[LABEL_ATTEMPT])
            is_kept = attributes["name"] != container_name(task_id, attempt)
        except (ValueError, KeyError, TypeError):
            if line.strip():
                log.debug("docker_event_unread line=%r", line[:200])
            return
        if not is_kept and not self._closing.is_set():
            soon(self._loop, self._on_event, task_id, attempt)
