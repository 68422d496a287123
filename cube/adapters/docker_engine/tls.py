"""TLS on a connection of the event loop, of which our half can be ended while the other goes on.

asyncio's own cannot do that: a command at an engine behind TLS would never find the end of its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

READ_BYTES = 64 * 1024


class TlsStream:
    """Reader and writer in one, with the methods of asyncio's that Wire uses. Nothing is read ahead of
    who asks for it. One reader, one writer. Raises OSError (of which SSLError is one), EOFError."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
        host: str,
        limit: int,
    ) -> None:
        """`limit`: of what readuntil() looks through."""
        self._reader, self._writer, self._limit = reader, writer, limit
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._buffer = bytearray()  # a record and what a search has passed over
        self._has_ended = False

    async def handshake(self) -> None:
        try:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.do_handshake()
                    return
                self._flush()
                await self._feed()
        finally:
            self._flush()  # also why not

    # -- reading

    async def read(self, size: int) -> bytes:
        """What there is, up to `size`; nothing at the end."""
        if not self._buffer and not await self._fill():
            return b""
        return self._take(size)

    async def readexactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not await self._fill():
                raise asyncio.IncompleteReadError(bytes(self._buffer), size)
        return self._take(size)

    async def readuntil(self, separator: bytes) -> bytes:
        while (at := self._buffer.find(separator)) < 0:
            if len(self._buffer) > self._limit:
                raise asyncio.LimitOverrunError("no end within the limit", len(self._buffer))
            if not await self._fill():
                raise asyncio.IncompleteReadError(bytes(self._buffer), None)
        return self._take(at + len(separator))

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _fill(self) -> bool:
        """There is more in the buffer. False: the other end has said that nothing follows. A connection
        that just ends is an error: somebody may have cut it off."""
        while not self._has_ended:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                self._flush()
                await self._feed()
                continue
            except ssl.SSLZeroReturnError:
                data = b""
            if data:
                self._buffer += data
                return True
            self._has_ended = True
        return False

    async def _feed(self) -> None:
        data = await self._reader.read(READ_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    # -- writing

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    async def drain(self) -> None:
        await self._writer.drain()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other end finds that nothing follows. What it says can still be read."""
        # What has come is taken first: unwrap() looks for the other end's goodbye, and drops the rest.
        with contextlib.suppress(ssl.SSLError):
            while data := self._tls.read(READ_BYTES):
                self._buffer += data
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def is_closing(self) -> bool:
        return self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self._writer.is_closing():
            self._writer.write(data)
