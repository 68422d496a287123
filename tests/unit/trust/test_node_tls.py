"""Handshakes over real sockets: who gets in, under which name, and after which renewal."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cube.adapters.trust import tls
from cube.adapters.trust.authority import issue, make_ca, make_key, make_request
from cube.adapters.trust.tls import NodeTls, admit, ca_only_context, unverified_context
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import NodeIdentity, NodeRole

CLUSTER = ClusterId("cluster-1")
DAY_MS = 86_400_000
DEADLINE_S = 10.0


def now_ms() -> int:
    return int(time.time() * 1000)


class Authority:
    def __init__(self, cluster: str = CLUSTER) -> None:
        self.cluster = ClusterId(cluster)
        self.key = make_key()
        self.pem = make_ca(self.cluster, self.key, now_ms())

    def node(
        self, directory: Path, name: str, *, at_ms: int | None = None, cluster: str = ""
    ) -> Path:
        """A data directory with the node's files."""
        directory.mkdir(exist_ok=True)
        key = make_key()
        identity = NodeIdentity(ClusterId(cluster or self.cluster), NodeRole.NODE, NodeId(name))
        certificate = issue(
            self.pem, self.key, make_request(key), identity, ["127.0.0.1"], at_ms or now_ms()
        )
        (directory / tls.CA).write_text(self.pem)
        (directory / tls.KEY).write_text(key)
        (directory / tls.CERTIFICATE).write_text(certificate)
        return directory


@contextlib.asynccontextmanager
async def server(node: NodeTls, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Tells each peer who it is; hangs up on those that it may not know. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said = str(node.peer(writer.get_extra_info("ssl_object")).node_id)
        except BadPacket as error:
            said = f"no: {error}"
        with contextlib.suppress(OSError):
            writer.write(said.encode() + b"\n")
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context or node.server)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def ask(port: int, context: ssl.SSLContext) -> tuple[str, ssl.SSLObject]:
    """What the server says, and the connection. Raises OSError (ssl.SSLError) when refused."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            said = await reader.readline()
        finally:
            writer.transport.abort()
            with contextlib.suppress(
                OSError
            ):  # gone before the loop is: nothing is left to collect
                await writer.wait_closed()
        if not said:
            raise ConnectionResetError("hung up")
        return said.decode().strip(), writer.get_extra_info("ssl_object")


async def test_two_nodes_know_each_other(tmp_path: Path) -> None:
    ca = Authority()
    a, b = (NodeTls(ca.node(tmp_path / name, name), CLUSTER) for name in "ab")
    async with server(a) as port:
        said, connection = await ask(port, b.client)
    assert said == "b"
    assert a.peer(connection) == b.peer(connection)
    assert b.peer(connection).node_id == "a"
    assert connection.version() == "TLSv1.3"


async def test_strangers_do_not_get_in(tmp_path: Path) -> None:
    ca, other = Authority(), Authority()
    a = NodeTls(ca.node(tmp_path / "a", "a"), CLUSTER)
    stranger = NodeTls(other.node(tmp_path / "s", "a"), CLUSTER)
    past = now_ms() - 91 * DAY_MS
    expired = NodeTls(ca.node(tmp_path / "e", "e", at_ms=past), CLUSTER)
    future = NodeTls(ca.node(tmp_path / "f", "f", at_ms=now_ms() + DAY_MS), CLUSTER)
    old = NodeTls(ca.node(tmp_path / "o", "o"), CLUSTER).client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with server(a) as port:
        for context in (
            ca_only_context(ca.pem), unverified_context(), stranger.client, expired.client,
            future.client, old,
        ):  # fmt: skip
            with pytest.raises(OSError):
                await ask(port, context)
    for node in (stranger, expired, future):
        async with server(node) as port:
            with pytest.raises(ssl.SSLError):
                await ask(port, a.client)


async def test_a_nodes_certificate_cannot_sign_others(tmp_path: Path) -> None:
    ca = Authority()
    a = NodeTls(ca.node(tmp_path / "a", "a"), CLUSTER)
    evil = ca.node(tmp_path / "evil", "evil")
    sub = Authority()
    sub.key, sub.pem = (evil / tls.KEY).read_text(), (evil / tls.CERTIFICATE).read_text()
    forged = sub.node(tmp_path / "forged", "leader")
    chain = (forged / tls.CERTIFICATE).read_text() + sub.pem
    (forged / tls.CERTIFICATE).write_text(chain)
    (forged / tls.CA).write_text(ca.pem)
    client = NodeTls(forged, CLUSTER).client
    async with server(a) as port:
        with pytest.raises(OSError):
            await ask(port, client)


async def test_the_same_ca_key_does_not_join_two_clusters(tmp_path: Path) -> None:
    ca = Authority()
    a = NodeTls(ca.node(tmp_path / "a", "a"), CLUSTER)
    b = NodeTls(ca.node(tmp_path / "b", "b", cluster="cluster-2"), CLUSTER)
    async with server(a) as port:
        assert (await ask(port, b.client))[0] == "no: a certificate of another cluster"


async def test_users_come_without_a_certificate_and_nodes_with_theirs(tmp_path: Path) -> None:
    ca, other = Authority(), Authority()
    a, b = (NodeTls(ca.node(tmp_path / name, name), CLUSTER) for name in "ab")
    stranger = NodeTls(other.node(tmp_path / "s", "s"), CLUSTER)
    stranger.client.check_hostname = False
    stranger.client.verify_mode = ssl.CERT_NONE
    async with server(a, a.api_server) as port:
        assert (await ask(port, ca_only_context(ca.pem)))[0] == "no: a peer without a certificate"
        assert (await ask(port, b.client))[0] == "b"
        with pytest.raises(OSError):
            await ask(port, stranger.client)
        users = ssl.create_default_context(cadata=ca.pem)  # as curl --cacert: checks the host
        assert (await ask(port, users))[0].startswith("no:")


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    ca = Authority()
    a, b = (NodeTls(ca.node(tmp_path / name, name), CLUSTER) for name in "ab")
    async with server(a) as port:
        _, before = await ask(port, b.client)
        ca.node(tmp_path / "a", "a")
        a.renew()
        _, after = await ask(port, b.client)
    first, second = before.getpeercert(), after.getpeercert()
    assert first is not None and second is not None
    assert first["serialNumber"] != second["serialNumber"]


async def test_a_context_that_another_thread_uses_is_replaced_not_changed(tmp_path: Path) -> None:
    """Changed while it makes a connection, it crashes the process (OpenSSL 3.0)."""
    ca = Authority()
    a, b = (NodeTls(ca.node(tmp_path / name, name), CLUSTER) for name in "ab")
    old = a.raft_server, a.raft_client
    async with server(a, a.raft_server) as port:
        _, before = await ask(port, b.raft_client)
    ca.node(tmp_path / "a", "a")
    a.renew()
    assert old[0] is not a.raft_server and old[1] is not a.raft_client
    async with server(a, old[0]) as port:
        _, still = await ask(port, b.raft_client)
    async with server(a, a.raft_server) as port:
        said, after = await ask(port, b.raft_client)
    shown = [connection.getpeercert() for connection in (before, still, after)]
    serials = [one and one["serialNumber"] for one in shown]
    assert said == "b"
    assert serials[0] == serials[1] != serials[2]


def test_files_that_do_not_fit_are_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"ca\.crt"):
        NodeTls(tmp_path, CLUSTER)
    ca = Authority()
    directory = ca.node(tmp_path / "a", "a")
    (directory / tls.KEY).write_text(make_key())
    with pytest.raises(Unavailable, match=r"node\.crt"):
        NodeTls(directory, CLUSTER)
    with pytest.raises(BadPacket):
        ca_only_context("no certificate")


def test_who_was_removed_may_not_speak() -> None:
    identity = NodeIdentity(CLUSTER, NodeRole.NODE, NodeId("a"))
    assert admit(identity, lambda _: False) == "a"
    assert admit(identity, lambda _: False, NodeId("a")) == "a"
    with pytest.raises(BadPacket, match="was removed"):
        admit(identity, lambda node_id: node_id == "a")
    with pytest.raises(BadPacket, match="not b"):
        admit(identity, lambda _: False, NodeId("b"))
