"""Every route under every identity, and what a browser may be tricked into."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from multidict import CIMultiDict

from cube.api.auth import FORWARDED, Access, Role, Standing, check_browser, is_own_host
from cube.api.call import Kind
from cube.api.errors import Problem
from cube.api.routes import ROUTES
from cube.model import commands as c
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Done
from cube.model.trust import (
    ApiToken,
    NodeIdentity,
    NodeRole,
    TokenRole,
    format_api_token,
    secret_hash,
)
from tests.fakes.cluster import TERM, job_spec
from tests.fakes.served import Served, served

SECRET = b"s" * 32
NODE_HEADER = "X-Test-Node"  # stands for a connection that has shown that node's certificate
REMOVED = "removed-node"

# What each identity sends, and the roles of the routes that it may use.
IDS = {"viewer": "0000000a", "deployer": "0000000b", "operator": "0000000c", "expired": "0000000d"}
READS = {Role.OPEN, Role.VIEWER}
MAY = {
    "nobody": {Role.OPEN},
    "viewer": READS,
    "deployer": READS | {Role.DEPLOYER},
    "operator": READS | {Role.DEPLOYER, Role.OPERATOR},
    "node": READS | {Role.NODE},
    "expired": {Role.OPEN},
    "wrong secret": {Role.OPEN},
    "removed token": {Role.OPEN},
    "basic": {Role.OPEN},
    "garbage": {Role.OPEN},
    "removed node": {Role.OPEN},
    "another cluster's node": {Role.OPEN},
    # What a node has of a user is a ticket (test_passing_on.py); a token makes it nobody else.
    "node for an operator": READS | {Role.NODE},
    "node for a viewer": READS | {Role.NODE},
    "node with a token of its own": READS | {Role.NODE},
    "node for nobody": READS | {Role.NODE},
    "operator who says that a node sent it": READS | {Role.DEPLOYER, Role.OPERATOR},
}
FORBIDDEN = {
    "viewer", "deployer", "operator", "node", "removed node", "another cluster's node",
    "node for an operator", "node for a viewer", "node with a token of its own", "node for nobody",
    "operator who says that a node sent it",
}  # fmt: skip


def bearer(id_: str, secret: bytes = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer {format_api_token(ApiToken(id_, secret))}"}


SENDS = {
    "nobody": {},
    **{name: bearer(id_) for name, id_ in IDS.items()},
    "node": {NODE_HEADER: "some-node"},
    "wrong secret": bearer(IDS["operator"], b"x" * 32),
    "removed token": bearer("0000000e"),
    "basic": {"Authorization": "Basic b3BlcmF0b3I6b3BlcmF0b3I="},
    "garbage": {"Authorization": "Bearer " + "x" * 500},
    "removed node": {NODE_HEADER: REMOVED, **bearer(IDS["operator"])},
    "another cluster's node": {NODE_HEADER: "?", **bearer(IDS["operator"])},
    "node for an operator": {NODE_HEADER: "n", FORWARDED: "n", **bearer(IDS["operator"])},
    "node for a viewer": {NODE_HEADER: "n", FORWARDED: "n", **bearer(IDS["viewer"])},
    "node with a token of its own": {NODE_HEADER: "n", **bearer(IDS["operator"])},
    "node for nobody": {NODE_HEADER: "n", FORWARDED: "n", **bearer("0000000e")},
    "operator who says that a node sent it": {FORWARDED: "n", **bearer(IDS["operator"])},
}


def node_of(request: web.BaseRequest) -> NodeIdentity | None:
    name = request.headers.get(NODE_HEADER)
    if name == "?":
        raise BadPacket("a certificate of another cluster")
    if name is None:
        return None
    return NodeIdentity(ClusterId("cluster-1"), NodeRole.NODE, NodeId(name))


@pytest.fixture
async def guarded() -> AsyncIterator[Served]:
    async with served(access=Access(tokens=True, node_of=node_of)) as found:
        for role in TokenRole:
            made = found.world.apply(c.CreateToken(IDS[role], secret_hash(SECRET), role))
            assert made == Done()
        expiring = c.CreateToken(IDS["expired"], secret_hash(SECRET), TokenRole.OPERATOR, 1)
        assert found.world.apply(expiring) == Done()
        ban = found.world.state.node_names["n2"]
        found.world.apply(c.SetNodeStatus(TERM, ban, NodeStatus.DOWN))
        found.world.apply(c.RemoveNode(ban))
        SENDS["removed node"][NODE_HEADER] = ban
        found.clock.now = found.world.state.now_ms + 1_000
        yield found


@pytest.mark.parametrize("who", sorted(MAY))
async def test_every_route_under_every_identity(guarded: Served, who: str) -> None:
    wrong: list[str] = []
    for route in ROUTES:
        path = route.path
        for name in ("job", "task", "node", "service", "deployment", "file", "name", "verb"):
            path = path.replace(f"{{{name}}}", "nothing")
        assert "{" not in path
        before = guarded.world.state
        async with guarded.client.request(
            route.method, path, headers=SENDS[who], allow_redirects=False
        ) as response:
            status = response.status
        if route.role in MAY[who]:
            expected = status not in (401, 403)
        else:
            expected = status == (403 if who in FORBIDDEN else 401)
            expected = expected and guarded.world.state is before
            expected = expected and (status == 403 or "WWW-Authenticate" in response.headers)
        if not expected:
            wrong.append(f"{route.method} {route.path} ({route.role}): {status}")
    assert not wrong


def test_every_identity_and_role_is_in_the_table() -> None:
    assert {route.role for route in ROUTES} == set(Role)
    assert set(MAY) == set(SENDS)


async def test_a_node_that_has_not_caught_up_condemns_no_token(guarded: Served) -> None:
    """Which tokens there are is in the state that it is still reading: 503, another node knows. A
    client gives up for good when it is told 401."""
    guarded.cluster.not_joined = "this node is catching up"
    for sent in (bearer("0000000e"), bearer(IDS["operator"], b"x" * 32)):
        async with guarded.client.get("/v1/jobs", headers=sent) as response:
            assert response.status == 503
            assert "Retry-After" in response.headers
            assert (await response.json())["detail"] == "this node is catching up"
    for path, status in (("/v1/jobs", 401), ("/v1/livez", 200)):
        async with guarded.client.get(path) as response:
            assert response.status == status
    guarded.cluster.not_joined = None
    async with guarded.client.get("/v1/jobs", headers=bearer("0000000e")) as response:
        assert response.status == 401


async def test_who_did_it_is_remembered(guarded: Served) -> None:
    body = b'{"name":"shop","type":"service","groups":{"web":{"driver":"process","command":["x"]}}}'
    headers = {**bearer(IDS["deployer"]), "Content-Type": "application/json"}
    async with guarded.client.post("/v1/jobs", data=body, headers=headers) as response:
        assert response.status == 201, await response.text()
    job = guarded.world.state.job_named("shop")
    assert job is not None
    assert job.versions[-1].actor == f"token:{IDS['deployer']}"


async def test_an_idempotency_key_belongs_to_its_sender(guarded: Served) -> None:
    guarded.world.run(job_spec("shop"))
    for id_ in (IDS["deployer"], IDS["operator"]):
        headers = {**bearer(id_), "Idempotency-Key": "same"}
        async with guarded.client.post("/v1/jobs/shop/stop", headers=headers) as response:
            assert response.status in (200, 202), await response.text()
    stops = [body for body in guarded.cluster.proposed if isinstance(body, c.StopJob)]
    assert len(stops) == 2


async def test_a_token_that_is_removed_opens_nothing_any_more(guarded: Served) -> None:
    await guarded.get("/v1/nodes", 200, **bearer(IDS["viewer"]))
    guarded.world.apply(c.RemoveToken(IDS["viewer"]))
    found = await guarded.get("/v1/nodes", 401, **bearer(IDS["viewer"]))
    assert isinstance(found, dict)
    assert found["code"] == "unauthenticated"
    assert SECRET.hex() not in str(found)


async def test_a_token_in_the_query_is_none(guarded: Served) -> None:
    token = bearer(IDS["operator"])["Authorization"].removeprefix("Bearer ")
    async with guarded.client.get(f"/v1/nodes?token={token}") as response:
        assert response.status == 401
    async with guarded.client.get("/v1/nodes", headers={"Cookie": f"token={token}"}) as response:
        assert response.status == 401


async def test_a_slow_clock_does_not_lengthen_a_token(guarded: Served) -> None:
    guarded.clock.now = 0
    await guarded.get("/v1/nodes", 401, **bearer(IDS["expired"]))


async def test_without_tokens_all_is_open_but_to_browsers_of_others() -> None:
    async with served() as found:
        await found.get("/v1/raft")
        async with found.client.post("/v1/jobs/validate", data=b"") as response:
            assert response.status not in (401, 403)
        for headers, status in [
            ({"Host": "evil.example"}, 421),
            ({"Host": f"evil.example:{found.server.port}"}, 421),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
            ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
            ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
            ({"Origin": f"http://{found.address}"}, 200),
            ({"Host": f"localhost:{found.server.port}"}, 200),
        ]:
            await found.get("/v1/nodes", status, **headers)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
async def test_a_route_that_does_not_exist_is_refused_to_strangers_alike(method: str) -> None:
    async with (
        served() as found,
        found.client.request(method, "/nothing", headers={"Host": "evil.example"}) as response,
    ):
        assert response.status == 421


OWN = frozenset({"n1.internal"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:7700", "localhost.", "cube.localhost:7700", "127.0.0.1",
        "127.0.0.1:7700", "127.8.9.1:80", "[::1]", "[::1]:7700", "10.0.0.1:7700", "0.0.0.0:7700",
        "[fe80::1]:7700", "n1.internal", "N1.Internal:7700",
    ],
)  # fmt: skip
def test_names_that_are_ours(host: str) -> None:
    assert is_own_host(host, OWN)
    check_browser(CIMultiDict({"Host": host, "Origin": f"http://{host}"}), OWN)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:7700", "localhost.evil.example", "evil-localhost", "",
        "127.0.0.1.evil.example", "127.0.0.1@evil.example", "evil.example#127.0.0.1", ":7700",
        "[::1].evil.example", "[::1", "::1", "localhost:7700:evil", "localhost:x", "notlocalhost",
        "n1.internal.evil.example", "[localhost]", "127.1", "2130706433",
    ],
)  # fmt: skip
def test_names_that_are_not_ours(host: str) -> None:
    assert not is_own_host(host, OWN)
    with pytest.raises(Problem) as found:
        check_browser(CIMultiDict({"Host": host}), OWN)
    assert found.value.status == 421


@pytest.mark.parametrize(
    ("host", "origin", "is_same"),
    [
        ("localhost:7700", "http://localhost:7700", True),
        ("localhost:7700", "https://LOCALHOST:7700", True),
        ("localhost", "http://localhost:80", True),
        ("localhost", "https://localhost", True),
        ("[::1]:7700", "http://[::1]:7700", True),
        ("localhost:7700", "http://localhost:3000", False),
        ("localhost:7700", "http://localhost", False),
        ("localhost:7700", "http://127.0.0.1:7700", False),
        ("localhost:7700", "null", False),
        ("localhost:7700", "", False),
        ("localhost:7700", "file://localhost:7700", False),
        ("localhost:7700", "http://localhost:7700.evil.example", False),
        ("localhost:7700", "http://evil.example/localhost:7700", False),
        ("localhost:7700", "chrome-extension://abc", False),
    ],
)
def test_pages_of_our_own(host: str, origin: str, is_same: bool) -> None:
    headers = CIMultiDict({"Host": host, "Origin": origin})
    if is_same:
        check_browser(headers, OWN)
    else:
        with pytest.raises(Problem) as found:
            check_browser(headers, OWN)
        assert found.value.status == 403


def test_two_hosts_are_none_and_none_is_no_browser() -> None:
    check_browser(CIMultiDict(), OWN)
    with pytest.raises(Problem):
        check_browser(CIMultiDict([("Host", "localhost"), ("Host", "evil.example")]), OWN)


def test_kinds_and_standings_stay_apart() -> None:
    """A peer's route is for nodes, but for the three that make one; there is no role without a
    standing."""
    assert {str(role) for role in Role} - {"open"} <= {str(standing) for standing in Standing}
    peers = [route for route in ROUTES if route.kind is Kind.PEER]
    assert {route.path for route in peers if route.role is Role.OPEN} == {
        f"/v1/internal/{verb}" for verb in ("bootstrap", "ca", "enrol")
    }
    assert all(route.role in (Role.NODE, Role.OPEN) for route in peers)
