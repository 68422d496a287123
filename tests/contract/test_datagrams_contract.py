"""The Datagrams port: the same promises of the in-memory net and of real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from cube.adapters import udp
from cube.adapters.udp import UdpDatagrams
from cube.model.errors import BadPacket, Unavailable
from cube.ports.datagrams import DATAGRAM_BYTES_MAX, EXCHANGE_BYTES_MAX, Datagrams
from tests.memory_net import MemoryNet

DEADLINE_S = 10.0
LOOPBACK = "127.0.0.1"


class Peer:
    """An open Datagrams that remembers what came, and answers exchanges as told."""

    def __init__(self, datagrams: Datagrams) -> None:
        self.datagrams = datagrams
        self.came: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.asked: list[bytes] = []
        self.answer: Callable[[bytes], bytes] = lambda request: b"re: " + request[:10]
        self.hold: asyncio.Event | None = None

    @property
    def address(self) -> str:
        if isinstance(self.datagrams, UdpDatagrams):
            return f"{LOOPBACK}:{self.datagrams.port}"
        return self.datagrams.address  # type: ignore[attr-defined, no-any-return] # the in-memory one

    async def open(self) -> Peer:
        async def on_exchange(_sender: str, request: bytes) -> bytes:
            self.asked.append(request)
            if self.hold is not None:
                await self.hold.wait()
            return self.answer(request)

        await self.datagrams.open(lambda s, d: self.came.put_nowait((s, d)), on_exchange)
        return self

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(DEADLINE_S):
            return await self.came.get()


Make = Callable[[], Datagrams]


@pytest.fixture(params=["memory", "udp"])
def make(request: pytest.FixtureRequest) -> Make:
    net = MemoryNet()
    return net.datagrams if request.param == "memory" else lambda: UdpDatagrams(LOOPBACK, 0)


@pytest.fixture
async def pair(make: Make) -> AsyncIterator[tuple[Peer, Peer]]:
    a, b = await Peer(make()).open(), await Peer(make()).open()
    yield a, b
    await a.datagrams.close()
    await b.datagrams.close()


@pytest.fixture
async def real() -> AsyncIterator[tuple[Peer, Peer]]:
    a = await Peer(UdpDatagrams(LOOPBACK, 0)).open()
    b = await Peer(UdpDatagrams(LOOPBACK, 0)).open()
    yield a, b
    await a.datagrams.close()
    await b.datagrams.close()


async def test_a_datagram_arrives_with_its_sender(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.datagrams.send(b.address, b"x" * DATAGRAM_BYTES_MAX)
    assert await b.next() == (a.address, b"x" * DATAGRAM_BYTES_MAX)


async def test_too_large_a_datagram_is_lost_and_nothing_else(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    a.datagrams.send(b.address, b"x" * (DATAGRAM_BYTES_MAX + 1))
    a.datagrams.send(b.address, b"y" * 100_000)
    a.datagrams.send(b.address, b"after")
    assert await b.next() == (a.address, b"after")


@pytest.mark.parametrize(
    "address", ["", "nowhere", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999", ":1"]
)
async def test_sending_to_no_address_never_raises(pair: tuple[Peer, Peer], address: str) -> None:
    a, b = pair
    a.datagrams.send(address, b"x")
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(address, b"x", 1_000)
    a.datagrams.send(b.address, b"after")
    assert await b.next() == (a.address, b"after")


async def test_a_closed_peer_costs_nothing(pair: tuple[Peer, Peer], make: Make) -> None:
    a, b = pair
    gone = await Peer(make()).open()
    address = gone.address
    await gone.datagrams.close()
    for _ in range(20):
        a.datagrams.send(address, b"x")
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(address, b"x", 5_000)
    a.datagrams.send(b.address, b"after")
    assert await b.next() == (a.address, b"after")


async def test_sending_when_closed_never_raises(make: Make) -> None:
    a = await Peer(make()).open()
    address = a.address
    await a.datagrams.close()
    a.datagrams.send(address, b"x")
    await a.datagrams.close()


async def test_a_taken_port_is_unavailable(pair: tuple[Peer, Peer]) -> None:
    a, _ = pair
    if isinstance(a.datagrams, UdpDatagrams):
        with pytest.raises(Unavailable):
            await Peer(UdpDatagrams(LOOPBACK, a.datagrams.port)).open()
    else:
        with pytest.raises(Unavailable):
            await Peer(a.datagrams).open()


async def test_a_closed_port_can_be_opened_again() -> None:
    first = await Peer(UdpDatagrams(LOOPBACK, 0)).open()
    port = int(first.address.rpartition(":")[2])
    await first.datagrams.close()
    second = await Peer(UdpDatagrams(LOOPBACK, port)).open()
    await second.datagrams.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, EXCHANGE_BYTES_MAX])
async def test_an_exchange_brings_request_and_answer_whole(
    pair: tuple[Peer, Peer], size: int
) -> None:
    a, b = pair
    b.answer = lambda request: request[::-1]
    request = b"ab" * (size // 2) + b"c" * (size % 2)
    answer = await a.datagrams.exchange(b.address, request, 10_000)
    assert answer == request[::-1]
    assert b.asked == [request]


async def test_too_large_an_exchange_is_refused(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(b.address, b"x" * (EXCHANGE_BYTES_MAX + 1), 5_000)
    assert b.asked == []


async def test_an_exchange_has_its_time_and_no_more(pair: tuple[Peer, Peer]) -> None:
    a, b = pair
    b.hold = asyncio.Event()
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(b.address, b"x", 50)


async def test_a_request_that_is_refused_is_unavailable(pair: tuple[Peer, Peer]) -> None:
    a, b = pair

    def refuse(_: bytes) -> bytes:
        raise BadPacket("foreign")

    b.answer = refuse
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(b.address, b"x", 5_000)
    b.answer = lambda _: b"fine"
    assert await a.datagrams.exchange(b.address, b"x", 5_000) == b"fine"


async def test_half_open_connections_block_nobody(real: tuple[Peer, Peer]) -> None:
    a, b = real
    host, _, port = b.address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(udp.ANSWERING_MAX // 2)]
    silent[0][1].write(b"\x00\x00")  # half a length
    silent[1][1].write(b"\x00\x00\x00\x09half")
    assert await a.datagrams.exchange(b.address, b"x", 5_000) == b"re: x"
    a.datagrams.send(b.address, b"y")
    assert (await b.next())[1] == b"y"
    for _, writer in silent:
        writer.transport.abort()


async def test_a_silent_connection_is_closed_in_time(
    real: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "ACCEPT_TIMEOUT_S", 0.05)
    _, b = real
    reader, writer = await asyncio.open_connection(*_split(b.address))
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.transport.abort()


async def test_a_peer_that_never_reads_its_answer_is_dropped_in_time(
    real: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "ACCEPT_TIMEOUT_S", 0.2)
    _, b = real
    b.answer = lambda _: b"x" * EXCHANGE_BYTES_MAX
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, _split(b.address))
    await loop.sock_sendall(sock, b"\x00\x00\x00\x01x")
    await until(lambda: b.asked and not answering(b))
    sock.close()


async def test_more_connections_than_can_be_answered_are_closed(
    real: tuple[Peer, Peer],
) -> None:
    a, b = real
    crowd = [await asyncio.open_connection(*_split(b.address)) for _ in range(udp.ANSWERING_MAX)]
    await until(lambda: answering(b) == udp.ANSWERING_MAX)
    with pytest.raises(Unavailable):
        await a.datagrams.exchange(b.address, b"x", 3_000)
    for _, writer in crowd:
        writer.transport.abort()
    await until(lambda: not answering(b))
    assert await a.datagrams.exchange(b.address, b"x", 5_000) == b"re: x"


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
async def test_garbage_by_tcp_is_hung_up_on_at_once(
    real: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch, frame: bytes
) -> None:
    monkeypatch.setattr(udp, "ACCEPT_TIMEOUT_S", 10 * DEADLINE_S)
    a, b = real
    reader, writer = await asyncio.open_connection(*_split(b.address))
    writer.write(frame)
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.transport.abort()
    assert await a.datagrams.exchange(b.address, b"x", 5_000) == b"re: x"
    assert b.asked == [b"x"]


async def test_an_answer_of_impossible_length_is_unavailable_at_once(
    real: tuple[Peer, Peer],
) -> None:
    a, _ = real
    done = asyncio.Event()

    async def lie(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\xff\xff\xff")
        await done.wait()
        writer.transport.abort()

    server = await asyncio.start_server(lie, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unavailable):
            await a.datagrams.exchange(f"{LOOPBACK}:{port}", b"x", 100_000)
    done.set()
    server.close()
    await server.wait_closed()


async def test_a_host_name_is_looked_up_beside_the_loop(real: tuple[Peer, Peer]) -> None:
    a, b = real
    address = f"localhost:{b.address.rpartition(':')[2]}"
    async with asyncio.timeout(DEADLINE_S):
        while b.came.empty():
            a.datagrams.send(address, b"x")  # the first ones are lost while it is looked up
            await asyncio.sleep(0.01)
    assert (await b.next())[1] == b"x"


async def test_closing_ends_exchanges_under_way(caplog: pytest.LogCaptureFixture) -> None:
    b = await Peer(UdpDatagrams(LOOPBACK, 0)).open()
    b.hold = asyncio.Event()
    a = await Peer(UdpDatagrams(LOOPBACK, 0)).open()
    asking = asyncio.create_task(a.datagrams.exchange(b.address, b"x", 30_000))
    await until(lambda: b.asked)
    async with asyncio.timeout(DEADLINE_S):
        await b.datagrams.close()
        with pytest.raises(Unavailable):
            await asking
    await a.datagrams.close()
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_closing_ends_a_connection_that_was_accepted_this_very_moment() -> None:
    datagrams = udp.UdpDatagrams("127.0.0.1", 0)
    await datagrams.open(lambda _sender, _data: None, _never)
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    datagrams._accept(reader, writer)  # its task has not had its first step
    await datagrams.close()
    assert writer.is_closing()
    late_ours, late_theirs = socket.socketpair()
    reader, late = await asyncio.open_connection(sock=late_ours)
    datagrams._accept(reader, late)
    assert late.is_closing()
    assert datagrams.answering == 0
    for each in (writer, late):
        await each.wait_closed()
    theirs.close()
    late_theirs.close()


async def _never(_sender: str, _request: bytes) -> bytes:
    raise AssertionError("nobody asks")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def answering(peer: Peer) -> int:
    assert isinstance(peer.datagrams, UdpDatagrams)
    return peer.datagrams.answering


async def until(condition: Callable[[], object]) -> None:
    for _ in range(round(DEADLINE_S * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("turns", range(6))
async def test_what_was_accepted_while_it_closes_is_closed(turns: int) -> None:
    """Or it would be open until the process ends."""
    sock = UdpDatagrams("127.0.0.1", 0)
    await sock.open(lambda _sender, _data: None, _nobody)
    with socket.create_connection(("127.0.0.1", sock.port), timeout=2) as client:
        for _ in range(turns):  # after some of them the loop has it, and nobody has been told
            await asyncio.sleep(0)
        await sock.close()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""  # no turn of the loop in between


async def _nobody(_sender: str, _data: bytes) -> bytes:
    raise AssertionError
