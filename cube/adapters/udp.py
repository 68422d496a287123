"""The Datagrams port on asyncio: UDP for packets, and TCP on the same port number for exchanges.

An exchange is one connection: 4 bytes of length (big endian) and the request; the same for the
answer; closed. What is said inside is sealed by the caller: nothing here looks into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
from collections.abc import Awaitable, Callable

from cube.model.errors import BadPacket, CubeError, Unavailable
from cube.ports.datagrams import DATAGRAM_BYTES_MAX, EXCHANGE_BYTES_MAX

log = logging.getLogger(__name__)

LENGTH_BYTES = 4
# Of the loop, until a connection that it has just accepted is known to this module, which ends it.
ACCEPT_TURNS = 8
ACCEPT_TIMEOUT_S = (
    5.0  # for a whole exchange as its answerer: a silent peer costs this long, no more
)
ANSWERING_MAX = 32  # exchanges answered at once; bounds memory to this × EXCHANGE_BYTES_MAX
UNSENT_BYTES_MAX = (
    256 * 1024
)  # waiting for a full socket; beyond it datagrams are lost, as they may be
NAMES_MAX = 1_024  # host names remembered
NAME_TTL_S = 60.0  # then a name is looked up again
PORT_ATTEMPTS = 20  # port 0: to find one that is free for both UDP and TCP

OnPacket = Callable[[str, bytes], None]
OnExchange = Callable[[str, bytes], Awaitable[bytes]]


class UdpDatagrams:
    """`dropped` counts datagrams that were not sent or not passed on: too large, no address."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._on_exchange: OnExchange | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._names: dict[str, tuple[float, str]] = {}
        self._family = 0
        self.dropped = 0

    @property
    def port(self) -> int:
        """The bound one, when 0 was asked for."""
        return self._port

    @property
    def answering(self) -> int:
        """Exchanges that peers have begun and not ended."""
        return len(self._answering)

    async def open(self, on_packet: OnPacket, on_exchange: OnExchange) -> None:
        assert self._transport is None
        self._on_exchange = on_exchange
        attempts = PORT_ATTEMPTS if self._port == 0 else 1
        for attempt in range(1, attempts + 1):
            try:
                await self._bind(on_packet)
                return
            except OSError as error:
                is_taken = error.errno == errno.EADDRINUSE
                if not is_taken or attempt == attempts:
                    raise Unavailable(
                        f"gossip cannot listen on {self._host}:{self._port}: {error}"
                    ) from error

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        server, self._server = self._server, None
        if server is not None:
            # Nobody is accepted any more, and who was is known, before the server closes: asyncio 3.11
            # loses a connection that is between the two.
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            for _ in range(ACCEPT_TURNS):
                await asyncio.sleep(0)
            server.close()
        tasks = [*self._answering, *self._lookups.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    def send(self, address: str, data: bytes) -> None:
        transport = self._transport
        target = self._resolved(address)
        if (
            transport is None
            or transport.is_closing()
            or target is None
            or len(data) > DATAGRAM_BYTES_MAX
            or _unsent_bytes(transport) > UNSENT_BYTES_MAX
        ):
            self.dropped += 1
            return
        try:
            transport.sendto(data, target)
        except OSError:
            self.dropped += 1

    async def exchange(self, address: str, request: bytes, timeout_ms: int) -> bytes:
        if len(request) > EXCHANGE_BYTES_MAX:
            raise Unavailable(f"exchange of {len(request)} bytes is too large")
        try:
            host, port = _split(address)
            async with asyncio.timeout(timeout_ms / 1000):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    await _write_frame(writer, request)
                    return await _read_frame(reader)
                finally:
                    await _end(writer)
        except (OSError, ValueError, EOFError, BadPacket) as error:  # TimeoutError is an OSError
            raise Unavailable(f"exchange with {address}: {error!r}") from error

    async def _bind(self, on_packet: OnPacket) -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._accept, self._host, self._port)
        family, bound = server.sockets[0].family, server.sockets[0].getsockname()
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Receiver(self, on_packet),
                local_addr=(self._host, bound[1]),
                family=family,
            )
        except OSError:
            server.close()
            await server.wait_closed()
            raise
        self._transport, self._server = transport, server
        self._family, self._port = family, bound[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's logs an error when it is cancelled by close().
        if self._server is None or len(self._answering) >= ANSWERING_MAX:
            writer.transport.abort()  # too many, or it was accepted while close() began
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._answering.add(task)
        task.add_done_callback(lambda task: self._served(task, writer))

    def _served(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self._answering.discard(task)
        if not writer.is_closing():  # it was cancelled before its first step
            writer.transport.abort()
        if not task.cancelled() and task.exception() is not None:
            log.error("exchange_failed cause=%r", task.exception())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = writer.get_extra_info("peername")
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                await self._answer(_joined(peer), reader, writer)
        except (OSError, EOFError, CubeError) as error:
            log.debug("exchange_refused reason=%r", error)
        finally:
            await _end(writer)

    async def _answer(
        self, sender: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = await _read_frame(reader)
        assert self._on_exchange is not None
        answer = await self._on_exchange(sender, request)
        await _write_frame(writer, answer)

    def _resolved(self, address: str) -> tuple[str, int] | None:
        """Where to send. None while a name is looked up: the loop never waits for DNS here."""
        try:
            host, port = _split(address)
        except ValueError:
            return None
        if _is_numeric(host):
            return host, port
        now_s = asyncio.get_running_loop().time()
        known = self._names.get(host)
        if known is None or known[0] < now_s:
            self._look_up(host)
        return (known[1], port) if known is not None else None

    def _look_up(self, host: str) -> None:
        if host in self._lookups or len(self._lookups) >= ANSWERING_MAX:
            return
        if len(self._names) >= NAMES_MAX:
            self._names.clear()
        task = asyncio.get_running_loop().create_task(self._remember(host))
        self._lookups[host] = task
        task.add_done_callback(lambda _: self._lookups.pop(host, None))

    async def _remember(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, family=self._family)
        except OSError as error:
            log.warning("name_unknown host=%s reason=%r", host, error)
            return
        self._names[host] = (loop.time() + NAME_TTL_S, str(found[0][4][0]))


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, owner: UdpDatagrams, on_packet: OnPacket) -> None:
        self._owner = owner
        self._on_packet = on_packet

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > DATAGRAM_BYTES_MAX:
            self._owner.dropped += 1
            return
        self._on_packet(_joined(addr), data)

    def error_received(self, exc: Exception) -> None:
        """A peer's port was closed: nothing to do, gossip will notice that it is silent."""


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    if length > EXCHANGE_BYTES_MAX:
        raise BadPacket(f"exchange of {length} bytes is too large")
    return await reader.readexactly(length)


async def _end(writer: asyncio.StreamWriter) -> None:
    if writer.transport.get_write_buffer_size() > 0:
        writer.transport.abort()  # close() would wait for the peer to read, which it may never do
    else:
        writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _write_frame(writer: asyncio.StreamWriter, data: bytes) -> None:
    assert len(data) <= EXCHANGE_BYTES_MAX
    writer.transport.set_write_buffer_limits(high=0)  # so that drain() means: all handed over
    writer.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    await writer.drain()


def _unsent_bytes(transport: asyncio.DatagramTransport) -> int:
    # The selector loop's transport can tell; asyncio's interface just does not declare it.
    assert isinstance(transport, asyncio.WriteTransport)
    return transport.get_write_buffer_size()


def _split(address: str) -> tuple[str, int]:
    """Raises ValueError for what is not host:port."""
    host, colon, port_text = address.rpartition(":")
    port = int(port_text)
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not 0 < port < 65536:
        raise ValueError(f"not host:port: {address!r}")
    return host, port


def _joined(socket_address: tuple[str, int]) -> str:
    host, port = socket_address[0], socket_address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
