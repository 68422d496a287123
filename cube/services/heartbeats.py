"""Every node's heartbeat to the leader, and the lease that comes back with its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.clock import Clock
from cube.ports.remote import Redirected, RemoteNodes

HEARTBEAT_S = 1.0

_log = logging.getLogger(__name__)


class Leases:
    """What heartbeats ask for, and give, where tasks run that need a lease."""

    def __init__(
        self,
        clock: Clock,
        wanted: Callable[[], bool],
        ask_here: Callable[[], Awaitable[int | None]],
        on_leased: Callable[[int, int], None],
    ) -> None:
        """`ask_here`: LeaderLoop.lease for this node itself. `on_leased` (sent_ms, index): see
        WorkerLoop.on_leased."""
        self.clock = clock
        self.wanted = wanted
        self.ask_here = ask_here
        self.on_leased = on_leased


class Heartbeats:
    """Once a second this node tells the leader that it is there, and how far its log goes; the leader
    need not tell itself, but for a lease."""

    def __init__(
        self,
        node_id: NodeId,
        remote: RemoteNodes,
        leader_http: Callable[[], str | None],
        log_index: Callable[[], int],
        leases: Leases | None = None,
    ) -> None:
        self._log_index = log_index
        self._node_id = node_id
        self._remote = remote
        self._leader_http = leader_http
        self._leases = leases
        self._failing = False
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """The next heartbeat is sent at once: somebody waits for a lease."""
        self._hurry.set()

    async def run(self) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            next_s = now_s() + HEARTBEAT_S  # a slow answer must not stretch the interval
            self._hurry.clear()
            leader = self._leader_http()
            if leader is not None:
                await self._beat(leader)
            else:
                await self._beat_here()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_s - now_s())):
                    await self._hurry.wait()

    async def _beat(self, leader: str) -> None:
        leases = self._leases
        wants_lease = leases is not None and leases.wanted()
        sent_ms = leases.clock.monotonic_ms() if leases is not None else 0
        try:
            index = await self._remote.heartbeat(
                leader, self._node_id, self._log_index(), wants_lease=wants_lease
            )
        except (Unavailable, Redirected) as error:
            if not self._failing:
                _log.warning("heartbeat_failed leader=%s cause=%s", leader, error)
            self._failing = True
        else:
            if self._failing:
                _log.info("heartbeat_restored leader=%s", leader)
            self._failing = False
            if leases is not None and index is not None:
                leases.on_leased(sent_ms, index)

    async def _beat_here(self) -> None:
        """A leader leases to itself what its followers confirm, too."""
        leases = self._leases
        if leases is None or not leases.wanted():
            return
        sent_ms = leases.clock.monotonic_ms()
        index = await leases.ask_here()
        if index is not None:
            leases.on_leased(sent_ms, index)
