"""What removed nodes have left on this host is ended: by whoever is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed
from cube.model.ids import NodeId
from cube.ports.reaper import Reaper

LOOK_S = 60.0  # for what came, or could not be ended, since: an engine was away, a host came back

_log = logging.getLogger(__name__)


class States(Protocol):
    """cube.services.state_feed.StateFeed, or a test's."""

    @property
    def state(self) -> ClusterState: ...

    async def changed(self, after_index: int) -> ClusterState: ...


class Orphans:
    """A removed id never comes back (TrustState), so however old the replica is that says so, what
    bears it belongs to nobody. A node leaves its own things alone, whatever it hears of itself."""

    def __init__(self, states: States, node_id: NodeId, reapers: Mapping[str, Reaper]) -> None:
        """`reapers` by driver."""
        self._states = states
        self._node_id = node_id
        self._reapers = reapers
        self._failures: dict[str, str] = {}  # code of the last try, by driver

    async def run(self) -> None:
        """For ever: after each removal, and each LOOK_S."""
        while True:
            known = self._states.state.trust.removed_nodes
            removed = known.keys() - {self._node_id}
            if removed:
                for name, reaper in sorted(self._reapers.items()):
                    await self._reap(name, reaper, removed)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._other_than(known)
            except TimeoutError:
                continue

    async def _reap(self, name: str, reaper: Reaper, removed: set[NodeId]) -> None:
        try:
            ended = await reaper.reap(removed)
        except DriverFailed as failed:
            if failed.code != self._failures.get(name):  # where there is no engine, it is said once
                _log.info("orphans_left driver=%s code=%s %s", name, failed.code, failed.message)
            self._failures[name] = failed.code
            return
        _ = self._failures.pop(name, None)
        if ended:
            _log.warning("orphans_ended driver=%s count=%d", name, ended)

    async def _other_than(self, known: Mapping[NodeId, int]) -> None:
        index = -1
        while True:
            state = await self._states.changed(index)
            if state.trust.removed_nodes is not known:
                return
            index = state.index
