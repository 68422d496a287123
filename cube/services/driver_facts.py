"""What this node's drivers say of themselves, for its NodeFacts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from cube.model.launch import DriverInfo
from cube.ports.driver import Driver

REFRESH_MS = 10_000  # how long an engine may be gone before the scheduler knows
FIRST_PAUSE_MS = 50  # doubles up to REFRESH_MS

_log = logging.getLogger(__name__)


class DriverFacts:
    """`infos` is by driver name, as last refreshed; empty before the first refresh, at whose end
    `known` is set."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        judge: Callable[[DriverInfo], DriverInfo] = lambda info: info,
    ) -> None:
        """`judge`: what this node makes of a driver's own word."""
        self._drivers = drivers
        self._judge = judge
        self.infos: dict[str, DriverInfo] = {}
        self.known = asyncio.Event()

    async def refresh(self) -> bool:
        """All drivers were asked, beside each other. True when an answer differs from the last."""
        names = sorted(self._drivers)
        answers = await asyncio.gather(*(self._drivers[name].fingerprint() for name in names))
        infos = dict(zip(names, map(self._judge, answers), strict=True))
        for name, info in infos.items():
            before = self.infos.get(name)
            if before is None or before.healthy != info.healthy:
                _log.info("driver name=%s healthy=%s reason=%s", name, info.healthy, info.reason)
        is_changed = infos != self.infos
        self.infos = infos
        self.known.set()
        return is_changed

    async def run(
        self,
        on_change: Callable[[dict[str, DriverInfo]], Awaitable[None]],
        refresh_ms: int = REFRESH_MS,
    ) -> None:
        """Refreshes for ever and tells of each change, the first refresh included. Soon and often at
        first: the drivers are opened at the same time."""
        pause_ms = FIRST_PAUSE_MS
        while True:
            if await self.refresh():
                await on_change(self.infos)
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * 2, refresh_ms)
