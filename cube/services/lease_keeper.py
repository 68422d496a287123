"""From an acknowledged heartbeat to those who need it: the node's lease file, then the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Writes in a thread: a disk that hangs must hold up neither heartbeats nor the loop. The newest
    lease counts; those it overtakes are skipped."""

    def __init__(self, write: Callable[[int], None], on_leased: Callable[[int, int], None]) -> None:
        """`write` (sent_ms) raises OSError."""
        self._write = write
        self._on_leased = on_leased
        self._newest: tuple[int, int] | None = None
        self._came = asyncio.Event()
        self._is_failing = False

    def put(self, sent_ms: int, index: int) -> None:
        """See WorkerLoop.on_leased."""
        self._newest = (sent_ms, index)
        self._came.set()

    async def run(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            assert self._newest is not None
            sent_ms, index = self._newest
            try:
                await asyncio.to_thread(self._write, sent_ms)
            except OSError as error:
                # Supervisors will end what they watch. The worker's own tasks need no file.
                if not self._is_failing:
                    _log.error("lease_not_written cause=%s", error)
                self._is_failing = True
            else:
                self._is_failing = False
            self._on_leased(sent_ms, index)
