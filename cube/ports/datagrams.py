"""Gossip's way to its peers: best-effort datagrams, and one reliable exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

DATAGRAM_BYTES_MAX = 1400  # stays in one Ethernet frame with room for headers
EXCHANGE_BYTES_MAX = 4 << 20  # a full member table of some thousand nodes


class Datagrams(Protocol):
    """Addresses are "host:port"."""

    async def open(
        self,
        on_packet: Callable[[str, bytes], None],
        on_exchange: Callable[[str, bytes], Awaitable[bytes]],
    ) -> None:
        """Bound. `on_packet(sender, data)` for each datagram; `on_exchange(sender, request)` answers
        a peer's exchange. Both run on this event loop. Raises Unavailable when the port is taken."""
        ...

    async def close(self) -> None: ...

    def send(self, address: str, data: bytes) -> None:
        """Best effort, never raises, never blocks; may be lost, doubled or reordered."""
        ...

    async def exchange(self, address: str, request: bytes, timeout_ms: int) -> bytes:
        """Reliable request and answer (TCP). Raises Unavailable."""
        ...
