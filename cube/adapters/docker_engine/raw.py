"""Connections to the engine on the event loop itself, for what goes both ways or is large.

The SDK blocks, and keeps what comes together with an answer's headers to itself; here a slow reader
makes the engine wait, and no thread is held. Everything else goes through the SDK (engine.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

from cube.adapters.docker_engine.engine import CONNECT_S, Engine
from cube.adapters.docker_engine.failures import engine_down, explain, shorten
from cube.adapters.docker_engine.tls import TlsStream
from cube.model.errors import DriverFailed

HEAD_BYTES_MAX = 64 * 1024
PROBLEM_BYTES_MAX = 64 * 1024  # of an answer that says no
READ_BYTES = 32 * 1024
DEFAULT_SOCKET = "/var/run/docker.sock"
WEATHER = (OSError, EOFError, asyncio.LimitOverrunError, ValueError)


class Wire:
    """One connection. `status` and `headers` (names in lower case) are those of the last answer."""

    def __init__(
        self, reader: asyncio.StreamReader | TlsStream, writer: asyncio.StreamWriter | TlsStream
    ) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}

    async def ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b""
    ) -> None:
        """Sends the request and reads the head of the answer. Raises what is in WEATHER."""
        await self.begin(method, target, {"Content-Length": str(len(body)), **headers})
        self.writer.write(body)
        await self.writer.drain()
        await self.read_head()

    async def begin(self, method: str, target: str, headers: dict[str, str]) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: docker"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    async def read_head(self) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ", 2)[1])
        pairs = (line.partition(":") for line in lines if ":" in line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}

    async def body(self) -> AsyncIterator[bytes]:
        """Of the answer whose head was read, in pieces, to its end. Raises what is in WEATHER, also
        when it ends too soon."""
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            left = int(self.headers.get("content-length", "-1"))
            async for piece in self._piece(left):
                yield piece
            return
        while size := int((await self._line()).partition(b";")[0], 16):
            async for piece in self._piece(size):
                yield piece
            if await self._line():
                raise ValueError("a chunk is longer than it says")
        while await self._line():  # trailers
            pass

    async def _piece(self, left: int) -> AsyncIterator[bytes]:
        """So many bytes; below 0: all that come."""
        while left:
            data = await self.reader.read(READ_BYTES if left < 0 else min(left, READ_BYTES))
            if not data:
                if left > 0:
                    raise EOFError("the answer is cut off")
                return
            left -= len(data) if left > 0 else 0
            yield data

    async def _line(self) -> bytes:
        return (await self.reader.readuntil(b"\r\n"))[:-2]

    async def send_chunk(self, data: bytes) -> None:
        """Of a body that was begun with Transfer-Encoding: chunked. Empty: its end."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def problem(self) -> DriverFailed:
        """What the answer that was no success means."""
        with contextlib.suppress(*WEATHER, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                size = int(self.headers.get("content-length", PROBLEM_BYTES_MAX))
                data = await self.reader.read(min(size, PROBLEM_BYTES_MAX))
                message = json.loads(data[data.find(b"{") : data.rfind(b"}") + 1])["message"]
                text = shorten(str(message))
                code, transient, _ = explain(text) or ("engine_error", self.status >= 500, "")
                return DriverFailed(code, f"the engine says: {text}", transient=transient)
        return DriverFailed("engine_error", f"the engine says: {self.status}", transient=True)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(*WEATHER):
            await self.writer.wait_closed()


async def connect(engine: Engine) -> Wire:
    """Raises DriverFailed."""
    await engine.check()
    where = engine.where
    url = str(where.get("base_url") or f"unix://{DEFAULT_SOCKET}")
    try:
        async with asyncio.timeout(CONNECT_S):
            return await _open(url, where)
    except (*WEATHER, TimeoutError) as error:
        raise engine_down(f"the Docker Engine at {url}: {str(error) or 'timed out'}") from None


async def _open(url: str, where: dict[str, Any]) -> Wire:
    scheme, _, rest = url.partition("://")
    if scheme in ("unix", "http+unix"):
        path = "/" + urllib.parse.unquote(rest).lstrip("/")
        return Wire(*await asyncio.open_unix_connection(path, limit=HEAD_BYTES_MAX))
    if scheme not in ("tcp", "http", "https"):
        raise DriverFailed(
            "not_supported", f"no way to talk to an engine at {scheme}://", transient=False
        )
    parts = urllib.parse.urlsplit(f"//{rest}")
    tls = _context(where) if scheme == "https" or where.get("tls") else None
    port = parts.port or (2375 if tls is None else 2376)
    host = parts.hostname or "localhost"
    reader, writer = await asyncio.open_connection(host, port, limit=HEAD_BYTES_MAX)
    if tls is None:
        return Wire(reader, writer)
    stream = TlsStream(reader, writer, tls, host, HEAD_BYTES_MAX)
    try:
        await stream.handshake()
    except BaseException:
        writer.close()
        raise
    return Wire(stream, stream)


def _context(where: dict[str, Any]) -> ssl.SSLContext:
    """As the SDK's TLSConfig says it."""
    config = where.get("tls")
    context = ssl.create_default_context(cafile=getattr(config, "ca_cert", None))
    if not getattr(config, "verify", True):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if getattr(config, "assert_hostname", None) is False:
        context.check_hostname = False
    if cert := getattr(config, "cert", None):
        context.load_cert_chain(*cert)
    return context
