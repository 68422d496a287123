"""ports.trust.JoinRemote over real TLS: what leaves this host, and to whom."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from cube.adapters.trust.authority import X509Certificates, make_request
from cube.adapters.trust.http_join import ANSWER_BYTES_MAX, CA_PATH, ENROL_PATH, HttpJoin
from cube.adapters.trust.tls import NodeTls
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import JoinToken, NodeKeys
from cube.ports.trust import EnrolGrant, EnrolRefusal, EnrolRequest, RefusalCode
from cube.services.enrolment import CERTIFICATE, Enrolment
from cube.services.keyring import Keyring
from tests.fakes.disk import FakeDisk
from tests.unit.trust.test_enrolment import Desk
from tests.unit.trust.test_node_tls import CLUSTER, Authority

KEYS = NodeKeys(cluster_key=b"c" * 32, gossip_keys=(b"g" * 32,))
GRANT = EnrolGrant(certificate_pem="pem", keys=KEYS)
REFUSAL = EnrolRefusal(RefusalCode.WRONG_SECRET, "no")
REQUEST = EnrolRequest(node_id=NodeId("n"), secret=b"s" * 16, request_pem="csr")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(context: ssl.SSLContext | None, ca: Answer, enrol: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(CA_PATH, ca)
    app.router.add_post(ENROL_PATH, enrol)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def says(body: bytes | str, status: int = 200) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, status=status)

    return answer


@pytest.fixture
def node(tmp_path: Path) -> tuple[Authority, NodeTls]:
    ca = Authority()
    return ca, NodeTls(ca.node(tmp_path / "a", "a"), CLUSTER)


async def test_a_grant_and_a_refusal_come_through(node: tuple[Authority, NodeTls]) -> None:
    ca, tls = node
    told: list[EnrolRequest] = []

    async def enrol(request: web.Request) -> web.StreamResponse:
        told.append(msgspec.json.decode(await request.read(), type=EnrolRequest))
        answer, status = (GRANT, 200) if len(told) == 1 else (REFUSAL, 403)
        return web.Response(body=msgspec.json.encode(answer), status=status)

    async with served(tls.api_server, says(ca.pem), enrol) as address:
        assert await HttpJoin().ca(address) == ca.pem
        assert await HttpJoin().enrol(address, ca.pem, REQUEST) == GRANT
        assert await HttpJoin().enrol(address, ca.pem, REQUEST) == REFUSAL
    assert told == [REQUEST, REQUEST]


async def test_who_only_shows_the_ca_is_told_nothing(
    node: tuple[Authority, NodeTls], tmp_path: Path
) -> None:
    """In between: it passes the real CA on, and has no certificate of it."""
    ca, _ = node
    impostor = NodeTls(Authority().node(tmp_path / "i", "a"), CLUSTER)
    told: list[bytes] = []

    async def enrol(request: web.Request) -> web.StreamResponse:
        told.append(await request.read())
        return web.Response(body=msgspec.json.encode(GRANT))

    for context in (impostor.api_server, None):  # and one that speaks no TLS at all
        async with served(context, says(ca.pem), enrol) as address:
            with pytest.raises(Unavailable):
                await HttpJoin().enrol(address, ca.pem, REQUEST)
    assert told == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200), (b"{}", 200), (b"\xff\xfe", 200), (b"[" * 50_000, 200), (b"", 403), (b"{}", 403),
        (b"x" * (ANSWER_BYTES_MAX + 1), 200), (msgspec.json.encode(GRANT), 302), (b"", 500),
        (b'{"certificate_pem": "", "keys": {"cluster_key": "c2VjcmV0", "gossip_keys": []}}', 200),
    ],
)  # fmt: skip
async def test_other_answers_are_weather(
    node: tuple[Authority, NodeTls], body: bytes, status: int
) -> None:
    ca, tls = node
    async with served(tls.api_server, says(body, status), says(body, status)) as address:
        with pytest.raises(Unavailable) as found:
            await HttpJoin().enrol(address, ca.pem, REQUEST)
        assert "c2Vjc" not in str(found.value)
        if status == 200 and len(body) <= ANSWER_BYTES_MAX:
            with contextlib.suppress(BadPacket):
                await HttpJoin().ca(address)
        else:
            with pytest.raises(Unavailable):
                await HttpJoin().ca(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "", "127.0.0.1:99999"])
async def test_nobody_there(address: str) -> None:
    with pytest.raises(Unavailable):
        await HttpJoin().ca(address)


async def test_a_whole_join_by_token(tmp_path: Path) -> None:
    desk = Desk()
    authority = Authority("cluster")
    authority.pem = desk.ca
    authority.key = desk.ca_key
    tls = NodeTls(authority.node(tmp_path / "a", "a"), ClusterId("cluster"))

    async def enrol(request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=EnrolRequest)
        answer = desk.desk.enrol(request.remote or "", asked)
        status = 403 if isinstance(answer, EnrolRefusal) else 200
        return web.Response(body=msgspec.json.encode(answer), status=status)

    disk = FakeDisk()
    enrolment = Enrolment(disk, Keyring(disk), HttpJoin(), X509Certificates(), lambda _: None)
    async with served(tls.api_server, says(desk.ca), enrol) as address:
        wrong = JoinToken(desk.token.fingerprint, b"x" * 16)
        refusal = await enrolment.run([address], wrong, NodeId("n3"), ["127.0.0.1"])
        assert refusal is not None and refusal.code is RefusalCode.WRONG_SECRET
        assert await enrolment.run([address], desk.token, NodeId("n3"), ["127.0.0.1"]) is None
    for name, data in disk.files.items():
        (tmp_path / "a" / name).write_bytes(data)
    joined = NodeTls(tmp_path / "a", ClusterId("cluster"))
    assert joined.client is not None
    assert b"BEGIN CERTIFICATE" in disk.files[CERTIFICATE]
    assert make_request(disk.files["node.key"].decode()).startswith("-----BEGIN CERT")
