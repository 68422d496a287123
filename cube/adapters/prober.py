from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from cube.ports.prober import RESPONSE_BYTES_MAX, Probed

LINE_BYTES_MAX = 8 * 1024  # of a status line or header: more is not an answer we want
READ_BYTES = 16 * 1024


class SocketProber:
    """cube.ports.prober.Prober over real sockets. One session, no connection kept."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def http(self, address: str, port: int, path: str, timeout_ms: int) -> Probed:
        url = _url(address, port, path)
        if url is None:
            return Probed(False, f"{path!r} is not a path")
        try:
            async with (
                asyncio.timeout(timeout_ms / 1000),
                self._open().get(url, allow_redirects=False) as response,
            ):
                read = 0
                # To the end, so that a server that breaks off is noticed; but not for ever.
                while read < RESPONSE_BYTES_MAX:
                    chunk = await response.content.read(READ_BYTES)
                    if not chunk:
                        break
                    read += len(chunk)
                status = response.status
        except TimeoutError:
            return Probed(False, f"no answer within {timeout_ms} ms")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Probed(False, _said(error))
        return Probed(200 <= status < 400, f"HTTP {status}")

    async def tcp(self, address: str, port: int, timeout_ms: int) -> Probed:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                _, writer = await asyncio.open_connection(address, port)
        except TimeoutError:
            return Probed(False, f"no connection within {timeout_ms} ms")
        except (OSError, ValueError, OverflowError) as error:
            return Probed(False, _said(error))
        writer.close()
        return Probed(True, "connected")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # force_close: a kept connection would say nothing about new ones. limit 0: a check
                # that hangs must not make another wait; checks are bounded by the worker.
                connector=aiohttp.TCPConnector(force_close=True, limit=0, use_dns_cache=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                max_line_size=LINE_BYTES_MAX,
                max_field_size=LINE_BYTES_MAX,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"User-Agent": "cube-check"},
            )
        return self._session


def _url(address: str, port: int, path: str) -> URL | None:
    """None when the path would lead anywhere but to this address and port: `@elsewhere/`."""
    host = f"[{address}]" if ":" in address else address
    try:
        url = URL(f"http://{host}:{port}{path}", encoded=True)
        leads_here = path.startswith("/") and url.host == address.lower() and url.port == port
    except ValueError:
        return None
    has_break = any(ord(character) <= 32 or ord(character) == 127 for character in path)
    return url if leads_here and not has_break else None


def _said(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    text = str(error) or type(error).__name__
    return text[:200]
