"""Other nodes, as scripts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest, LogRequest
from cube.ports.log import Progress


class FakeRemote:
    """cube.ports.remote.RemoteNodes. What an address answers is a function that is put there;
    nobody is at any other address. `asked` has every call: (verb, address)."""

    def __init__(self) -> None:
        self.joins: dict[str, Callable[[JoinRequest], JoinGrant]] = {}
        self.beats: dict[str, Callable[[NodeId], None]] = {}
        self.leases: dict[str, int] = {}  # the index that goes with one
        self.log_index_told: int | None = None  # by the last heartbeat
        self.logs: dict[str, Callable[[LogRequest], Awaitable[bytes]]] = {}
        self.views: dict[str, Callable[[], BootstrapView]] = {}
        self.transfers: dict[str, Callable[[NodeId | None], None]] = {}
        self.progresses: dict[str, Callable[[], tuple[Progress, ...]]] = {}
        self.asked: list[tuple[str, str]] = []

    async def join(self, address: str, request: JoinRequest) -> JoinGrant:
        self.asked.append(("join", address))
        if address not in self.joins:
            raise Unavailable(f"cannot reach {address}")
        return self.joins[address](request)

    async def remove_vote(self, address: str, node_id: NodeId) -> None:
        self.asked.append(("remove_vote", address))
        if address not in self.beats:
            raise Unavailable(f"cannot reach {address}")

    async def transfer(self, address: str, node_id: NodeId | None) -> None:
        self.asked.append(("transfer", address))
        if address not in self.transfers:
            raise Unavailable(f"cannot reach {address}")
        self.transfers[address](node_id)

    async def progress(self, address: str) -> tuple[Progress, ...]:
        self.asked.append(("progress", address))
        if address not in self.progresses:
            raise Unavailable(f"cannot reach {address}")
        return self.progresses[address]()

    async def heartbeat(
        self, address: str, node_id: NodeId, log_index: int, *, wants_lease: bool = False
    ) -> int | None:
        self.log_index_told = log_index
        self.asked.append(("heartbeat", address))
        if address not in self.beats:
            raise Unavailable(f"cannot reach {address}")
        self.beats[address](node_id)
        return self.leases.get(address) if wants_lease else None

    async def log(self, address: str, request: LogRequest) -> bytes:
        self.asked.append(("log", address))
        if address not in self.logs:
            raise Unavailable(f"cannot reach {address}")
        return await self.logs[address](request)

    async def bootstrap(self, address: str) -> BootstrapView:
        self.asked.append(("bootstrap", address))
        if address not in self.views:
            raise Unavailable(f"cannot reach {address}")
        return self.views[address]()

    async def close(self) -> None:
        pass
