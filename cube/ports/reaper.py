"""Ending what nodes left behind that are members no more."""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol, runtime_checkable

from cube.model.ids import NodeId


@runtime_checkable
class Reaper(Protocol):
    """What a driver can do beside its own node's tasks. Several agents of a host may do it at once."""

    async def reap(self, removed: Set[NodeId]) -> int:
        """Nothing on this host (or its engine) that has this cluster's mark and that of one of these
        nodes runs or is kept; how much was ended. What has another mark, or none, is not touched.
        Raises DriverFailed; then some of it may be left."""
        ...
