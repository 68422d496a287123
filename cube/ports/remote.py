"""How a node asks another node something, outside of gossip and the log."""

from __future__ import annotations

from typing import Protocol

from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest, LogRequest
from cube.ports.log import Progress


class RemoteNodes(Protocol):
    """Addresses are HTTP host:port. Every call is bounded in time and raises Unavailable when the
    peer cannot be reached, is not ready, or refuses; `Redirected` when another node must be asked."""

    async def join(self, address: str, request: JoinRequest) -> JoinGrant: ...

    async def remove_vote(self, address: str, node_id: NodeId) -> None:
        """Raises OutcomeUnknown as well."""
        ...

    async def transfer(self, address: str, node_id: NodeId | None) -> None:
        """See Peers. Raises OutcomeUnknown as well."""
        ...

    async def progress(self, address: str) -> tuple[Progress, ...]: ...

    async def heartbeat(
        self, address: str, node_id: NodeId, log_index: int, *, wants_lease: bool = False
    ) -> int | None:
        """`log_index`: the last entry that this node knows to be committed. Returns what Peers.lease
        does when one was wanted, else None."""
        ...

    async def log(self, address: str, request: LogRequest) -> bytes:
        """What the node there answers (Log.feed); it may take its time, up to `request.wait_ms`."""
        ...

    async def bootstrap(self, address: str) -> BootstrapView: ...

    async def close(self) -> None: ...


class Redirected(Exception):
    """Ask the node at `leader` (HTTP host:port) instead."""

    def __init__(self, leader: str) -> None:
        super().__init__(f"ask {leader}")
        self.leader = leader
