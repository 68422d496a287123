"""A node's own certificate is always good: renewed at half its life, without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.model.trust import NodeCertificate
from cube.ports.clock import Clock

LOOK_S = 3_600.0  # between looks: clocks may be set, and hosts sleep
RETRY_S = 60.0  # after a failure: there are 45 days

_log = logging.getLogger(__name__)


class Renewal:
    """`renew` asks the cluster for a new certificate and puts it in use (files, TLS contexts)."""

    def __init__(
        self,
        clock: Clock,
        present: Callable[[], NodeCertificate],
        renew: Callable[[], Awaitable[None]],
    ) -> None:
        self._clock = clock
        self._present = present
        self._renew = renew

    async def run(self) -> None:
        """For ever."""
        while True:
            sleep_s = await self._look()
            await asyncio.sleep(sleep_s)

    async def _look(self) -> float:
        """Renewed if it was time. How long to sleep until the next look."""
        now_ms = self._clock.now_ms()
        try:
            certificate = self._present()
            if now_ms < certificate.renew_at_ms():
                return min(LOOK_S, (certificate.renew_at_ms() - now_ms) / 1000 + 1)
            await self._renew()
        except (Unavailable, OutcomeUnknown, BadPacket) as error:
            _log.warning("certificate_not_renewed cause=%s", error)
            return RETRY_S
        _log.info("certificate_renewed not_after_ms=%d", self._present().not_after_ms)
        return RETRY_S  # should it be of another clock and be old again, not in a circle
