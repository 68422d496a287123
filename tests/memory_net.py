"""Datagrams without sockets: several members in one event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from cube.model.errors import CubeError, Unavailable
from cube.ports.datagrams import DATAGRAM_BYTES_MAX, EXCHANGE_BYTES_MAX

OnPacket = Callable[[str, bytes], None]
OnExchange = Callable[[str, bytes], Awaitable[bytes]]


class MemoryNet:
    """`cut` holds addresses that nothing reaches and that reach nothing; `is_deaf`: no datagram
    arrives anywhere, exchanges do."""

    def __init__(self) -> None:
        self.open: dict[str, MemoryDatagrams] = {}
        self.cut: set[str] = set()
        self.is_deaf = False
        self._ports = itertools.count(10_001)

    def datagrams(self, address: str | None = None) -> MemoryDatagrams:
        return MemoryDatagrams(self, address or f"10.0.0.1:{next(self._ports)}")

    def reached(self, sender: str, address: str) -> MemoryDatagrams | None:
        return None if {sender, address} & self.cut else self.open.get(address)


class MemoryDatagrams:
    def __init__(self, net: MemoryNet, address: str) -> None:
        self._net = net
        self.address = address
        self._on_packet: OnPacket | None = None
        self._on_exchange: OnExchange | None = None

    async def open(self, on_packet: OnPacket, on_exchange: OnExchange) -> None:
        if self.address in self._net.open:
            raise Unavailable(f"{self.address} is taken")
        self._on_packet, self._on_exchange = on_packet, on_exchange
        self._net.open[self.address] = self

    async def close(self) -> None:
        if self._net.open.get(self.address) is self:
            del self._net.open[self.address]

    def send(self, address: str, data: bytes) -> None:
        if len(data) <= DATAGRAM_BYTES_MAX and self.address in self._net.open:
            asyncio.get_running_loop().call_soon(self._deliver, address, data)

    async def exchange(self, address: str, request: bytes, timeout_ms: int) -> bytes:
        peer = self._net.reached(self.address, address)
        if peer is None or peer._on_exchange is None or len(request) > EXCHANGE_BYTES_MAX:
            raise Unavailable(f"no answer from {address}")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await peer._on_exchange(self.address, request)
        except (TimeoutError, CubeError) as error:
            raise Unavailable(f"no answer from {address}") from error

    def _deliver(self, address: str, data: bytes) -> None:
        peer = self._net.reached(self.address, address)
        if not self._net.is_deaf and peer is not None and peer._on_packet is not None:
            peer._on_packet(self.address, data)
