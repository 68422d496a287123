"""What other nodes may answer, and what becomes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web

from cube.adapters import http_peers
from cube.adapters.http_peers import ANSWER_BYTES_MAX, HttpPeers
from cube.model.addresses import join_address
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest, LogRequest
from cube.ports.log import FEED_BYTES_MAX, Ask
from cube.ports.remote import Redirected

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST = JoinRequest(
    node_id=NodeId("n"), name="n", raft_address="r:1", gossip_address="g:1", http_address="h:1",
    version="0",
)  # fmt: skip
GRANT = JoinGrant(cluster_id="x", cluster_name="X", voters=("l:1",), gossip_seeds=("l:2",))
LOG_REQUEST = LogRequest(
    node_id=NodeId("n"), was_member=True, ask=Ask(5, 2, "2 l:1 1", 4, 3), wait_ms=10
)
VIEW = BootstrapView(node_id=NodeId("n"), cluster_id=None, expect=3, vouches_for=None)


@pytest.fixture
async def peers() -> AsyncIterator[HttpPeers]:
    made = HttpPeers()
    yield made
    await made.close()


class Server:
    """Somebody who answers everything in one way."""

    def __init__(self) -> None:
        self.answer: Handler = self._nothing
        self.seen: list[tuple[str, str, bytes]] = []
        self.address = ""

    async def _nothing(self, _request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.path, await request.read()))
        return await self.answer(request)

    def says(self, status: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)

        async def answer(_request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=data, headers=headers)

        self.answer = answer


async def serve(host: str) -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    server.address = join_address(host, runner.addresses[0][1])
    yield server
    await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async for made in serve("127.0.0.1"):
        yield made


def calls(peers: HttpPeers, address: str) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: peers.join(address, REQUEST),
        lambda: peers.remove_vote(address, NodeId("n")),
        lambda: peers.heartbeat(address, NodeId("n"), 7),
        lambda: peers.bootstrap(address),
        lambda: peers.log(address, LOG_REQUEST),
    ]


async def test_what_is_asked_and_answered(peers: HttpPeers, server: Server) -> None:
    server.says(200, GRANT)
    assert await peers.join(server.address, REQUEST) == GRANT
    await peers.remove_vote(server.address, NodeId("n"))
    assert await peers.heartbeat(server.address, NodeId("n"), 7) is None
    for lease in (41, None):
        server.says(200, {"noted": True, "index": 1, "lease_index": lease})
        assert await peers.heartbeat(server.address, NodeId("n"), 7, wants_lease=True) == lease
    server.says(200, VIEW)
    assert await peers.bootstrap(server.address) == VIEW
    request = msgspec.json.encode(REQUEST)
    leased = b'{"node_id":"n","log_index":7,"wants_lease":true}'
    assert server.seen == [
        ("POST", "/v1/internal/join", request),
        ("POST", "/v1/internal/remove_vote", b'{"node_id":"n"}'),
        ("POST", "/v1/internal/heartbeat", b'{"node_id":"n","log_index":7}'),
        *[("POST", "/v1/internal/heartbeat", leased)] * 2,
        ("GET", "/v1/internal/bootstrap", b""),
    ]


async def test_an_ipv6_peer(peers: HttpPeers) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async for server in serve("::1"):
        server.says(200, VIEW)
        assert await peers.bootstrap(server.address) == VIEW


@pytest.mark.parametrize("number", range(5))
async def test_another_node_is_to_be_asked(peers: HttpPeers, server: Server, number: int) -> None:
    server.says(409, {"status": 409, "leader": "10.0.0.9:7700", "detail": "not me"})
    with pytest.raises(Redirected) as caught:
        await calls(peers, server.address)[number]()
    assert caught.value.leader == "10.0.0.9:7700"


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, b'{"detail": "no leader is known"}'),
        (500, b""),
        (404, b"<html>"),
        (409, b'{"leader": 7}'),
        (409, b'{"leader": ""}'),
        (400, b'{"detail": "\xff"}'),
        (400, b"[" * 100_000),
        (301, b""),
    ],
)
async def test_a_refusal_is_unavailable(
    peers: HttpPeers, server: Server, number: int, status: int, body: bytes
) -> None:
    server.says(status, body, Location=f"http://{server.address}/elsewhere")
    with pytest.raises(Unavailable, match=str(status)):
        await calls(peers, server.address)[number]()
    assert len(server.seen) == 1  # nobody is followed anywhere


async def test_the_reason_is_told(peers: HttpPeers, server: Server) -> None:
    server.says(503, {"detail": "the moon is in the wrong place"})
    with pytest.raises(Unavailable, match="moon"):
        await peers.join(server.address, REQUEST)


async def test_only_a_change_of_votes_can_be_unknown(peers: HttpPeers, server: Server) -> None:
    """The others change nothing at the peer; who calls them does not expect it."""
    server.says(504, {"detail": "on the way"})
    join, remove_vote, heartbeat, bootstrap, log = calls(peers, server.address)
    for call in (join, heartbeat, bootstrap, log):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(OutcomeUnknown):
        await remove_vote()


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b"[]", b'{"cluster_id": "\xff"}',
                                  b"[" * 100_000, b'{"cluster_id": 1}'])  # fmt: skip
async def test_garbage_is_unavailable(peers: HttpPeers, server: Server, body: bytes) -> None:
    server.says(200, body)
    with pytest.raises(Unavailable, match="not a Cube agent"):
        await peers.join(server.address, REQUEST)
    with pytest.raises(Unavailable, match="not a Cube agent"):
        await peers.bootstrap(server.address)


async def test_an_answer_in_pieces_is_read_whole(peers: HttpPeers, server: Server) -> None:
    """A cluster of hundreds has an answer of several packets."""
    seeds = tuple(f"10.0.{n // 250}.{n % 250}:7702" for n in range(5_000))
    grant = msgspec.structs.replace(GRANT, gossip_seeds=seeds)
    data = msgspec.json.encode(grant)

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(data), 20_000):
            await response.write(data[start : start + 20_000])
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response

    server.answer = in_pieces
    assert await peers.join(server.address, REQUEST) == grant


async def test_an_endless_answer_is_not_read(peers: HttpPeers, server: Server) -> None:
    sent = [0]

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent[0] += 65536

    server.answer = endless
    with pytest.raises(Unavailable):
        await peers.join(server.address, REQUEST)
    assert sent[0] < 20 * ANSWER_BYTES_MAX


async def test_a_piece_of_the_log_is_asked_for_and_bounded(
    peers: HttpPeers, server: Server
) -> None:
    queries: list[dict[str, str]] = []
    size = [FEED_BYTES_MAX]

    async def answer(request: web.Request) -> web.StreamResponse:
        queries.append(dict(request.query))
        return web.Response(body=bytes(size[0]))

    server.answer = answer
    assert await peers.log(server.address, LOG_REQUEST) == bytes(FEED_BYTES_MAX)
    assert queries == [
        {
            "node": "n", "member": "1", "after": "5", "term": "2", "office": "2 l:1 1",
            "snapshot": "4", "offset": "3", "wait_ms": "10",
        }
    ]  # fmt: skip
    size[0] += 1
    with pytest.raises(Unavailable, match="more than"):
        await peers.log(server.address, LOG_REQUEST)


async def test_silence_ends(
    peers: HttpPeers, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JOIN_TIMEOUT_S", "VOTE_TIMEOUT_S", "HEARTBEAT_TIMEOUT_S", "LOG_LATE_S"):
        monkeypatch.setattr(http_peers, name, 0.05)

    async def silent(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    server.answer = silent
    join, remove_vote, heartbeat, bootstrap, log = calls(peers, server.address)
    for call in (join, heartbeat, bootstrap, log):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(OutcomeUnknown):
        await remove_vote()  # it was asked for, and may be on its way


async def test_who_hangs_up_was_not_there(peers: HttpPeers, server: Server) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.answer = hang_up
    with pytest.raises(Unavailable):
        await peers.join(server.address, REQUEST)


@pytest.mark.parametrize("number", range(5))
async def test_nobody_at_the_address(peers: HttpPeers, number: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"cannot reach {address}"):
            await calls(peers, address)[number]()


@pytest.mark.parametrize(
    "address", ["", ":", "host:99999", "[::1", "a b:80", "host:80/path", "user@host:80", "x" * 5000]
)
async def test_what_is_no_address_is_unavailable(peers: HttpPeers, address: str) -> None:
    """A redirect may name anything."""
    with pytest.raises(Unavailable):
        await peers.join(address, REQUEST)
