"""The API as an aiohttp application. It starts nothing but the session to other nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import web

import cube
from cube.api.auth import Access
from cube.api.boundary import API, add_headers, answering, boundary
from cube.api.call import Api, ApiSettings
from cube.api.node_connector import NodeConnector
from cube.api.routes import ROUTES
from cube.ports.clock import Clock
from cube.ports.cluster import Cluster, LocalTasks, Peers, SealSecret, TokenDesk
from cube.ports.housekeeping import Housekeeping

KEEPALIVE_S = 60.0  # an idle connection; clients open a new one without noticing
# To other nodes at once: every request and stream that is passed on holds one, and those are bounded
# (ApiSettings). Fewer would make a request wait for somebody's `logs -f` to end.
NODE_CONNECTIONS_MAX = 512


def make_app(
    cluster: Cluster,
    local_tasks: LocalTasks,
    peers: Peers,
    tokens: TokenDesk,
    seal: SealSecret,
    settings: ApiSettings | None = None,
    access: Access | None = None,
    *,
    housekeeping: Housekeeping,
    clock: Clock,
    new_id: Callable[[], str],
) -> web.Application:
    """The whole HTTP API of one node. `new_id` gives random text, different at each call.
    Without `access` nobody is asked for a token."""
    api = Api(
        cluster,
        local_tasks,
        peers,
        tokens,
        seal,
        settings or ApiSettings(),
        clock=clock,
        new_id=new_id,
        version=cube.__version__,
        access=access or Access(),
        housekeeping=housekeeping,
    )
    app = web.Application(
        middlewares=[boundary],
        client_max_size=api.settings.body_bytes_max,
        handler_args={
            # A compressed body is refused by its header; inflating it first would be the attack.
            "auto_decompress": False,
            "keepalive_timeout": KEEPALIVE_S,
        },
    )
    app[API] = api
    for route in ROUTES:
        app.router.add_route(route.method, route.path, answering(route))
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_end_streams)
    app.cleanup_ctx.append(_session)
    return app


async def _session(app: web.Application) -> AsyncIterator[None]:
    api = app[API]
    tls, peer = api.access.node_tls, api.access.peer
    if tls is None:
        connector = aiohttp.TCPConnector(limit=NODE_CONNECTIONS_MAX)
    else:
        assert peer is not None, "who shows a certificate asks for one"
        connector = NodeConnector(tls, peer, api.nodes_at, limit=NODE_CONNECTIONS_MAX)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        api.session = session
        yield
        api.session = None


async def _end_streams(app: web.Application) -> None:
    """Streams would outlast any patience of a shutdown."""
    for task in list(app[API].lasting):
        task.cancel()
