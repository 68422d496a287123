"""The real API over a fake cluster, on a real socket."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, BaseRunner, Request

from cube.adapters import entropy
from cube.adapters.trust.authority import X509Certificates
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.agent.listening import GOODBYE_S
from cube.api.app import make_app
from cube.api.auth import Access
from cube.api.boundary import API
from cube.api.call import Api, ApiSettings
from cube.model import commands as c
from cube.model.trust import NodeKeys
from cube.services.keyring import Keyring
from cube.services.stored_values import StoredValues
from cube.services.token_desk import TokenDesk
from tests.fakes.cluster import FakeClock, FakeCluster, FakeLocalTasks, FakePeers, World
from tests.fakes.disk import FakeDisk
from tests.fakes.housekeeping import FakeHousekeeping

NODE_KEYS = NodeKeys(cluster_key=b"c" * 32, gossip_keys=(b"g" * 32,))
SETTINGS = ApiSettings(
    body_timeout_ms=500,
    min_index_timeout_ms=50,
    heartbeat_ms=50,
    stream_poll_ms=20,
    stream_write_ms=2_000,
    connect_timeout_ms=500,
)


@dataclass
class Served:
    """One node's API. `client` keeps no cookies and follows no redirects that a test does not ask."""

    world: World
    cluster: FakeCluster
    local_tasks: FakeLocalTasks
    peers: FakePeers
    clock: FakeClock
    server: TestServer
    client: TestClient[Request, Application]
    shared: Api
    housekeeping: FakeHousekeeping

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def get(self, path: str, status: int = 200, **headers: str) -> object:
        """The JSON of the answer, which has this status."""
        async with self.client.get(path, headers=headers) as response:
            return await read(response, status)

    async def problem(
        self, method: str, path: str, status: int, **sent: object
    ) -> dict[str, object]:
        """The problem of the answer, which has this status; and the state is as it was."""
        before = self.world.state
        async with self.client.request(method, path, **sent) as response:  # type: ignore[arg-type]
            found = await read(response, status)
        assert response.content_type == "application/problem+json"
        assert isinstance(found, dict)
        assert {"type", "title", "status", "detail", "code", "hint", "errors", "request_id"} <= set(
            found
        )
        assert found["status"] == status
        now = self.world.state
        assert (now.jobs, now.tasks, now.nodes) == (before.jobs, before.tasks, before.nodes)
        return found


async def read(response: ClientResponse, status: int = 200) -> object:
    body = await response.read()
    assert response.status == status, (response.status, body)
    assert "X-Cube-Node" in response.headers and "X-Cube-Index" in response.headers
    return msgspec.json.decode(body) if body else None


class PlainServer(TestServer):
    """As an agent runs it: aiohttp's own would cancel handlers whose client has gone, and wait a
    minute for those that wait when it closes."""

    async def _make_runner(self, **options: Any) -> BaseRunner:
        agents = {"handler_cancellation": False, "shutdown_timeout": GOODBYE_S}
        return await super()._make_runner(**{**options, **agents})


def token_desk(world: World) -> TokenDesk:
    """The real one, with the keys that every node of these tests has."""
    keyring = Keyring(FakeDisk())
    keyring.take(NODE_KEYS)
    return TokenDesk(
        lambda: world.state, keyring, X509Certificates(), open_envelope, seal_envelope,
        entropy.secret,
    )  # fmt: skip


def stored_values(world: World) -> StoredValues:
    keyring = Keyring(FakeDisk())
    keyring.take(NODE_KEYS)
    return StoredValues(lambda: world.state, keyring, open_envelope, seal_envelope)


@contextlib.asynccontextmanager
async def served(
    world: World | None = None,
    node: str = "n1",
    settings: ApiSettings = SETTINGS,
    access: Access | None = None,
) -> AsyncIterator[Served]:
    world = world or World()
    cluster = FakeCluster(world, node)
    local_tasks, peers, clock = FakeLocalTasks(), FakePeers(), FakeClock()
    housekeeping = FakeHousekeeping()
    numbers = itertools.count(1)
    app = make_app(
        cluster, local_tasks, peers, token_desk(world), stored_values(world).seal, settings, access,
        housekeeping=housekeeping,
        clock=clock,
        new_id=lambda: f"{node}-id-{next(numbers)}",
    )  # fmt: skip
    server = PlainServer(app)
    async with TestClient(server) as client:
        found = Served(
            world, cluster, local_tasks, peers, clock, server, client, app[API], housekeeping
        )
        # Others reach this node where it really listens.
        known = world.state.nodes[cluster.node_id()].facts
        facts = msgspec.structs.replace(known, http_address=found.address)
        world.apply(c.RegisterNode(facts))
        yield found
