"""The prober against real sockets on loopback: it looks at what it was told to, and no further."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cube.adapters.prober import SocketProber
from cube.ports.prober import RESPONSE_BYTES_MAX

HOST = "127.0.0.1"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def prober() -> AsyncIterator[SocketProber]:
    prober = SocketProber()
    yield prober
    await prober.close()


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[int]:
    """Its port. Each connection is answered by `answer` and then closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, HOST, 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


def says(response: bytes, heard: list[bytes] | None = None) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(request)
        writer.write(response)
        await writer.drain()

    return answer


def status(code: int, extra: str = "") -> bytes:
    return f"HTTP/1.1 {code} x\r\nContent-Length: 2\r\n{extra}\r\nok".encode()


@pytest.mark.parametrize(
    ("code", "is_healthy"),
    [(200, True), (204, True), (301, True), (399, True), (400, False), (404, False), (503, False)],
)
async def test_2xx_and_3xx_are_healthy(prober: SocketProber, code: int, is_healthy: bool) -> None:
    async with server(says(status(code) if code != 204 else b"HTTP/1.1 204 x\r\n\r\n")) as port:
        probed = await prober.http(HOST, port, "/", 5000)
    assert (probed.is_healthy, probed.message) == (is_healthy, f"HTTP {code}")


async def test_the_path_and_its_query_are_asked_for_as_they_are(prober: SocketProber) -> None:
    heard: list[bytes] = []
    async with server(says(status(200), heard)) as port:
        assert (await prober.http(HOST, port, "/a%20b/../c?x=%2F", 5000)).is_healthy
    lines = heard[0].split(b"\r\n")
    assert lines[0] == b"GET /a%20b/../c?x=%2F HTTP/1.1"
    assert f"Host: {HOST}:{port}".encode() in lines


async def test_a_redirect_is_an_answer_and_is_not_followed(prober: SocketProber) -> None:
    elsewhere: list[bytes] = []
    async with server(says(status(200), elsewhere)) as other:
        redirect = status(302, f"Location: http://{HOST}:{other}/\r\n")
        async with server(says(redirect)) as port:
            assert (await prober.http(HOST, port, "/", 5000)).is_healthy
    assert elsewhere == []


@pytest.mark.parametrize(
    "path", ["@169.254.169.254/", "", "x", "//\r\nX: y", "/a b", ":80@[::1]/", "\\\\h", "/\x7f"]
)
async def test_a_path_that_leads_elsewhere_is_not_asked_for(
    prober: SocketProber, path: str
) -> None:
    heard: list[bytes] = []
    async with server(says(status(200), heard)) as port:
        probed = await prober.http(HOST, port, path, 1000)
    assert not probed.is_healthy
    assert "is not a path" in probed.message
    assert heard == []


async def test_a_path_that_looks_like_a_host_is_still_a_path(prober: SocketProber) -> None:
    heard: list[bytes] = []
    async with server(says(status(200), heard)) as port:
        await prober.http(HOST, port, "//169.254.169.254/latest", 5000)
    assert heard[0].startswith(b"GET //169.254.169.254/latest HTTP")


async def test_no_proxy_is_asked(prober: SocketProber, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    async with server(says(status(200), asked)) as proxy, server(says(status(200))) as port:
        monkeypatch.setenv("http_proxy", f"http://{HOST}:{proxy}")
        monkeypatch.setenv("no_proxy", "")
        assert (await prober.http(HOST, port, "/", 5000)).is_healthy
    assert asked == []


async def test_an_endless_body_is_read_to_its_limit_and_no_further(prober: SocketProber) -> None:
    sent = 0
    broken = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 x\r\n\r\n")
        try:
            while sent < 1 << 30:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        finally:
            broken.set()

    async with server(answer) as port:
        assert (await prober.http(HOST, port, "/", 30_000)).is_healthy
        async with asyncio.timeout(20):
            await broken.wait()
    assert RESPONSE_BYTES_MAX <= 64 * 1024
    assert sent < 64 << 20, "what the kernel buffers, and no more"


@pytest.mark.parametrize("stage", [b"", b"HTTP/1.1 200 x\r\n", b"HTTP/1.1 200 x\r\n\r\nsome"])
async def test_an_answer_that_does_not_end_is_given_up(prober: SocketProber, stage: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(stage)
        await reader.read()  # until the prober goes away

    async with server(answer) as port:
        probed = await prober.http(HOST, port, "/", 200)
    assert (probed.is_healthy, probed.message) == (False, "no answer within 200 ms")


@pytest.mark.parametrize(
    "bad",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000,
        b"HTTP/1.1 200 x\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 abc x\r\n\r\n",
        b"\x00\xff" * 50,
        b"HTTP/1.1 200 x\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
)
async def test_nonsense_is_unhealthy_and_nothing_worse(prober: SocketProber, bad: bytes) -> None:
    async with server(says(bad)) as port:
        probed = await prober.http(HOST, port, "/", 5000)
    assert not probed.is_healthy
    assert 0 < len(probed.message) <= 200


async def test_nobody_there(prober: SocketProber) -> None:
    async with server(says(b"")) as port:
        pass
    for probed in (await prober.http(HOST, port, "/", 5000), await prober.tcp(HOST, port, 5000)):
        assert (probed.is_healthy, probed.message) == (False, "connection refused")


async def test_tcp_sends_nothing(prober: SocketProber) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read())

    async with server(answer) as port:
        assert (await prober.tcp(HOST, port, 5000)).is_healthy
        async with asyncio.timeout(20):
            assert await heard.get() == b""


@pytest.mark.parametrize("port", [0, 65_536, -1])
async def test_a_port_that_cannot_be_is_unhealthy(prober: SocketProber, port: int) -> None:
    assert not (await prober.tcp(HOST, port, 1000)).is_healthy
    assert not (await prober.http(HOST, port, "/", 1000)).is_healthy


async def test_one_that_hangs_does_not_hold_up_the_others(prober: SocketProber) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    async with server(hang) as slow, server(says(status(200))) as quick:
        hung = [asyncio.create_task(prober.http(HOST, slow, "/", 60_000)) for _ in range(150)]
        async with asyncio.timeout(20):
            assert (await prober.http(HOST, quick, "/", 15_000)).is_healthy
        assert not any(task.done() for task in hung)
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
