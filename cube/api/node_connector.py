"""Connections to other nodes, on which nothing is sent before the node at the other end has shown that
it is the one whose address this is."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from cube.model.errors import BadPacket
from cube.model.ids import NodeId
from cube.model.trust import NodeIdentity


class WrongNode(aiohttp.ClientConnectionError):
    """Another node answers, or nobody who proves to be one. Nothing was sent."""


class NodeConnector(aiohttp.TCPConnector):
    """`peer`: whose certificate a connection has shown; raises BadPacket. `nodes_at`: who may answer
    at `host:port`."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        peer: Callable[[ssl.SSLObject], NodeIdentity],
        nodes_at: Callable[[str], Collection[NodeId]],
        *,
        limit: int,
    ) -> None:
        super().__init__(limit=limit, ssl=tls)
        self._peer = peer
        self._nodes_at = nodes_at

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """See aiohttp. Raises WrongNode, too."""
        connection = await super().connect(req, traces, timeout)
        try:
            self._check(connection, f"{req.url.host_subcomponent}:{req.url.port}")
        except BadPacket as error:
            connection.close()
            raise WrongNode(str(error)) from None
        return connection

    def _check(self, connection: Connection, address: str) -> None:
        shown = connection.transport.get_extra_info("ssl_object") if connection.transport else None
        if shown is None:
            raise BadPacket(f"no certificate was shown at {address}")
        node_id = self._peer(shown).node_id
        if node_id not in self._nodes_at(address):
            raise BadPacket(f"node {node_id} answers at {address}, which is not its address")
