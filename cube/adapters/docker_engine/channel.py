"""From a blocking reader on a thread to a coroutine: in order, bounded, and closable from either end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import requests

from cube.adapters.docker_engine.engine import soon
from cube.model.errors import DriverFailed

T = TypeVar("T")

WAITING_BYTES_MAX = 256 * 1024  # between thread and coroutine; then the engine is made to wait


class Channel(Generic[T]):
    """One thread puts, one coroutine takes. Closing it wakes a thread that is blocked in a read."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._wake = asyncio.Event()
        self._items: list[T] = []
        self._waiting_bytes = 0
        self._is_done = False
        self._error: DriverFailed | None = None
        self._response: requests.Response | None = None
        self.is_closed = False

    # -- the thread's end -------------------------------------------------------------------------

    def attach(self, response: requests.Response) -> None:
        """`response` is what the thread is going to block on."""
        with self._changed:
            self._response = response
            if self.is_closed:
                abort(response)

    def put(self, item: T, size_bytes: int) -> bool:
        """False: nobody wants any more. Blocks while too much waits."""
        with self._changed:
            while self._waiting_bytes >= WAITING_BYTES_MAX and not self.is_closed:
                self._changed.wait()
            if self.is_closed:
                return False
            self._items.append(item)
            self._waiting_bytes += size_bytes
            is_first = len(self._items) == 1
        if is_first:
            soon(self._loop, self._wake.set)
        return True

    def finish(self, error: DriverFailed | None = None) -> None:
        """Nothing follows: the last thing the thread does here."""
        with self._changed:
            self._is_done, self._error = True, error
        soon(self._loop, self._wake.set)

    # -- the coroutine's end ----------------------------------------------------------------------

    async def batches(self) -> AsyncIterator[list[T]]:
        """All that came, some at a time; ends when the thread finished, or raises what it met."""
        while True:
            self._wake.clear()
            with self._changed:
                items, self._items = self._items, []
                self._waiting_bytes = 0
                is_done, error = self._is_done, self._error
                self._changed.notify()
            if items:
                yield items
            elif not is_done:
                await self._wake.wait()
            elif error is not None:
                raise error
            else:
                return

    def close(self) -> None:
        """The thread ends soon: its read ends, its put says False. Idempotent."""
        with self._changed:
            if not self.is_closed:
                self.is_closed = True
                self._changed.notify()
                if self._response is not None and not self._is_done:
                    abort(self._response)


def socket_of(response: requests.Response) -> socket.socket | None:
    """Where a streamed answer comes from. None once it was read to its end.

    Source: docker.types.daemon.CancellableStream.close, which knows the same private path."""
    with contextlib.suppress(AttributeError):
        answer: Any = response.raw
        raw = answer._fp.fp.raw
        found = getattr(raw, "_sock", None) or getattr(raw, "sock", None)
        if isinstance(found, socket.socket):
            return found
    return None


def abort(response: requests.Response) -> None:
    """Whoever reads it, on whatever thread, finds its end now."""
    connection = socket_of(response)
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def wait_for_ever(response: requests.Response) -> None:
    """The headers came in time; what follows may be silent for days."""
    connection = socket_of(response)
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.settimeout(None)
