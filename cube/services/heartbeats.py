"""Every node's heartbeat to the leader."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.remote import Redirected, RemoteNodes

HEARTBEAT_S = 1.0

_log = logging.getLogger(__name__)


class Heartbeats:
    """Once a second this node tells the leader that it is there, and how far its log goes; the leader
    need not tell itself."""

    def __init__(
        self,
        node_id: NodeId,
        remote: RemoteNodes,
        leader_http: Callable[[], str | None],
        log_index: Callable[[], int],
    ) -> None:
        self._log_index = log_index
        self._node_id = node_id
        self._remote = remote
        self._leader_http = leader_http
        self._failing = False

    async def run(self) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            next_s = now_s() + HEARTBEAT_S  # a slow answer must not stretch the interval
            leader = self._leader_http()
            if leader is not None:
                await self._beat(leader)
            await asyncio.sleep(max(0.0, next_s - now_s()))

    async def _beat(self, leader: str) -> None:
        try:
            await self._remote.heartbeat(leader, self._node_id, self._log_index())
        except (Unavailable, Redirected) as error:
            if not self._failing:
                _log.warning("heartbeat_failed leader=%s cause=%s", leader, error)
            self._failing = True
        else:
            if self._failing:
                _log.info("heartbeat_restored leader=%s", leader)
            self._failing = False
