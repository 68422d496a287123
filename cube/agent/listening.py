"""The API's sockets of one node."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from aiohttp import web

from cube.config.settings import BindSettings
from cube.model.addresses import is_loopback, is_unspecified, join_address
from cube.model.errors import Unavailable

LOOPBACK = "127.0.0.1"
HANDSHAKE_S = 5.0  # of TLS: who says nothing holds a socket no longer
GOODBYE_S = 2.0  # for requests under way at shutdown
BACKLOG = 128


class ApiServer:
    """Listens from open() to close()."""

    def __init__(
        self, app: web.Application, bind: BindSettings, tls: ssl.SSLContext | None
    ) -> None:
        """`tls` None: plain HTTP."""
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_S
        )
        self._bind = bind
        self._tls = tls
        self._listeners: list[asyncio.Server] = []

    async def open(self) -> None:
        """Raises Unavailable when the port is taken."""
        await self._runner.setup()
        address, port = self._bind.address, self._bind.http
        try:
            self._listeners.append(await self._listen(address))
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {join_address(address, port)} for HTTP: {error.strerror}; "
                "another agent may be running there: choose another --http port"
            ) from error
        if not is_loopback(address) and not is_unspecified(address):
            # For who sits at this host. Several agents of one host may share the port: one gets it.
            with contextlib.suppress(OSError):
                self._listeners.append(await self._listen(LOOPBACK))

    async def _listen(self, address: str) -> asyncio.Server:
        assert self._runner.server is not None
        return await asyncio.get_running_loop().create_server(
            self._runner.server,
            address,
            self._bind.http,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_S,
            backlog=BACKLOG,
            reuse_address=True,
        )

    async def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
