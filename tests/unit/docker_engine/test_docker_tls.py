"""TLS of which one direction ends before the other; the other end is Python's own, on a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cube.adapters.docker_engine.tls import TlsStream
from tests.engine_certificates import make_certificates

LIMIT = 1000
PATIENCE_S = 60.0
Serve = Callable[[ssl.SSLSocket], None]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs")
    make_certificates(directory)
    return directory


@contextlib.asynccontextmanager
async def talking_to(certs: Path, serve: Serve, ca: str = "ca") -> AsyncIterator[TlsStream]:
    """A connection to who does this. It has ended without an error of its own afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / "server.pem", certs / "server-key.pem")
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def work() -> None:
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            context.wrap_socket(theirs, server_side=True) as connection,
        ):
            try:
                serve(connection)
            except AssertionError as error:
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    reader, writer = await asyncio.open_connection(sock=ours)
    client = ssl.create_default_context(cafile=certs / f"{ca}.pem")
    stream = TlsStream(reader, writer, client, "127.0.0.1", LIMIT)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield stream
    finally:
        stream.close()
        await stream.wait_closed()
        await asyncio.to_thread(thread.join)
    assert failures == []


async def test_what_comes_after_our_end_and_what_was_on_its_way_is_read(certs: Path) -> None:
    before, after = b"b" * 200_000, b"a" * 200_000

    def serve(connection: ssl.SSLSocket) -> None:
        connection.sendall(before)  # unasked: some of it is here when our half ends
        said = b""
        while data := connection.recv(10_000):
            said += data
        assert said == b"x" * 50_000
        connection.sendall(after)
        with contextlib.suppress(ssl.SSLError):
            connection.unwrap()

    async with talking_to(certs, serve) as stream:
        await stream.handshake()
        got = await stream.readexactly(10)
        stream.write(b"x" * 50_000)
        await stream.drain()
        stream.write_eof()
        while data := await stream.read(7_000):
            got += data
        assert got == before + after
        assert await stream.read(1) == b""


async def test_lines_are_found_and_their_length_is_bounded(certs: Path) -> None:
    def serve(connection: ssl.SSLSocket) -> None:
        for piece in (b"one\r", b"\ntwo\r\nthree", b"x" * 5_000):
            connection.sendall(piece)
        connection.recv(1)

    async with talking_to(certs, serve) as stream:
        await stream.handshake()
        assert await stream.readuntil(b"\r\n") == b"one\r\n"
        assert await stream.readuntil(b"\r\n") == b"two\r\n"
        with pytest.raises(asyncio.LimitOverrunError):
            await stream.readuntil(b"\r\n")


async def test_a_connection_that_is_cut_off_is_not_taken_for_its_end(certs: Path) -> None:
    """Its other end sends no goodbye: somebody in between may have closed it."""
    async with talking_to(certs, lambda connection: connection.sendall(b"half")) as stream:
        await stream.handshake()
        assert await stream.readexactly(4) == b"half"
        with pytest.raises((OSError, EOFError)):
            await stream.read(1)


async def test_who_is_not_of_the_ca_is_refused(certs: Path) -> None:
    async with talking_to(certs, lambda connection: None, ca="strange") as stream:
        with pytest.raises(ssl.SSLCertVerificationError):
            await stream.handshake()
