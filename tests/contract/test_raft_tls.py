"""Raft over TLS: who gets in (X3, S4), who is turned out, and that the cluster goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cube.adapters.raft import PySyncObjLog, RaftSettings, wire
from cube.adapters.raft.links import Link
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.streams import TlsStream
from cube.adapters.raft.transport import STRANGERS_MAX
from cube.adapters.trust.tls import NodeTls, ca_only_context, unverified_context
from cube.model.errors import BadConfig, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.ports.log import Role
from tests.ports import free_port
from tests.raft_support import (
    PROPOSE_MS,
    ListReplica,
    RealCluster,
    propose_surely,
    until,
)
from tests.raft_tls import Authority, MemberTls

DEADLINE_S = 10.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RealCluster]:
    made = RealCluster(tmp_path, RaftSettings(snapshot_tail=5), has_tls=True)
    yield made
    await made.close()


def node_of(cluster: RealCluster, number: int) -> RaftNode:
    log = cluster.logs[number]
    assert isinstance(log, PySyncObjLog)
    assert log._node is not None
    return log._node


def link_of(cluster: RealCluster, number: int, to: int) -> Link:
    return node_of(cluster, number).transport._links[cluster.addresses[to]]


async def link_up(cluster: RealCluster, number: int, to: int) -> Link:
    """Once it is there and up."""
    links, address = node_of(cluster, number).transport._links, cluster.addresses[to]
    await until(lambda: address in links and links[address].is_up)
    return links[address]


def recheck(cluster: RealCluster) -> None:
    for log in cluster.logs.values():
        assert isinstance(log, PySyncObjLog)
        log.recheck_peers()


def serial_of(stream: object) -> object:
    assert isinstance(stream, TlsStream)
    shown = stream.connection.getpeercert()
    assert shown is not None
    return shown["serialNumber"]


def identity(cluster: RealCluster, name: str, authority: Authority | None = None) -> NodeTls:
    """A node called `name`, of the cluster's CA or another."""
    authority = authority or cluster.authority
    assert authority is not None
    directory = authority.node(cluster.directory / f"{name}-{id(authority)}", name)
    return NodeTls(directory, ClusterId(authority.cluster))


async def is_refused(
    cluster: RealCluster, context: ssl.SSLContext | None, hello: dict[str, object]
) -> bool:
    """Member 0 hangs up on one who comes like this, greets, and stands for election."""
    host, port = cluster.addresses[0].rsplit(":", 1)
    vote = {"type": "request_vote", "term": 99, "last_log_index": 99, "last_log_term": 99}
    full = {
        "type": "hello",
        "sender": f"127.0.0.1:{free_port()}",
        "receiver": cluster.addresses[0],
        "cluster": str(cluster.directory),
        **hello,
    }
    writer = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(wire.encode(full) + wire.encode({**vote, "transfer": True}))
            return await reader.read() == b""
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        if writer is not None:
            writer.transport.abort()


async def test_all_that_members_say_is_in_tls(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    await leader.propose(b"x", PROPOSE_MS)
    for number in range(3):
        for other in {0, 1, 2} - {number}:
            link = await link_up(cluster, number, other)
            assert isinstance(link._stream, TlsStream)
            assert link._stream.connection.version() == "TLSv1.3"
            assert link.node_id == f"node-{other}"
            transport, address = node_of(cluster, number).transport, cluster.addresses[other]
            await until(lambda t=transport, a=address: a in t._inbound)  # type: ignore[misc]
            assert transport._inbound[address].node_id == f"node-{other}"
    assert await cluster.agree() == [b"x"]


async def test_nobody_else_gets_in_and_the_cluster_goes_on(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    term = leader.status().term
    assert cluster.authority is not None
    elsewhere = Authority("cluster-2")
    elsewhere.key, elsewhere.pem = cluster.authority.key, cluster.authority.pem
    old = identity(cluster, "old").client
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    cluster.roster.removed.add(NodeId("removed"))
    stranger = identity(cluster, "node-1", Authority()).client
    stranger.verify_mode = ssl.CERT_NONE  # it would take any server
    member = identity(cluster, "node-4").client
    at_1 = {"sender": cluster.addresses[1]}
    strangers: dict[str, tuple[ssl.SSLContext | None, dict[str, object]]] = {
        "without TLS": (None, {"node": "node-1"}),
        "without a certificate": (ca_only_context(cluster.authority.pem), {}),
        "without a certificate or a CA": (unverified_context(), {}),
        "another CA": (stranger, {"node": "node-1", **at_1}),
        "another cluster": (identity(cluster, "node-1", elsewhere).client, {"node": "node-1"}),
        "an old TLS": (old, {"node": "old"}),
        "a removed node": (identity(cluster, "removed").client, {"node": "removed"}),
        "another node's name": (member, {"node": "node-1", **at_1}),
        "no name": (member, {}),
        "another node's address": (member, {"node": "node-4", **at_1}),
        "another cluster's name": (member, {"node": "node-4", "cluster": "other"}),
    }
    for kind, (context, hello) in strangers.items():
        assert await is_refused(cluster, context, hello), kind
    # The one who differs from a member in nothing is heard, so that the above says something.
    assert not await is_refused_soon(cluster, member, {"node": "node-4"})
    await leader.propose(b"x", PROPOSE_MS)
    assert (cluster.leader_number(), leader.status().term) == (0, term)
    assert await cluster.agree() == [b"x"]


async def is_refused_soon(
    cluster: RealCluster, context: ssl.SSLContext, hello: dict[str, object]
) -> bool:
    """As is_refused(), for one who is let in: True unless member 0 knows it as a peer."""
    sender = f"127.0.0.1:{free_port()}"
    attempt = asyncio.create_task(is_refused(cluster, context, {**hello, "sender": sender}))
    with contextlib.suppress(TimeoutError):
        await until(lambda: sender in node_of(cluster, 0).transport._inbound, DEADLINE_S)
    is_in = sender in node_of(cluster, 0).transport._inbound
    attempt.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attempt
    return not is_in


async def test_a_wiped_voter_does_not_come_back_under_its_address(cluster: RealCluster) -> None:
    """S4: it has lost what it promised; it is another node by now, and not the one known there."""
    leader = await cluster.found(3)
    await leader.propose(b"kept", PROPOSE_MS)
    await cluster.stop(2)
    shutil.rmtree(cluster.directory / "2")
    authority, address = cluster.authority, cluster.addresses[2]
    assert authority is not None
    log = PySyncObjLog(
        address,
        data_dir=cluster.directory / "2",
        replica=ListReplica("wiped"),
        stamp=lambda: 0,
        members=(cluster.addresses[0], cluster.addresses[1]),
        cluster=str(cluster.directory),
        tls=MemberTls(cluster.directory / "trust-new", authority, "node-new", cluster.roster),
    )
    await log.start()
    try:
        # It tries to be heard, and to vote, until it has been refused several times.
        await until(lambda: node_of(cluster, 0).transport.refusals >= 5)
        assert not link_of(cluster, 0, 2).is_up
        assert not node_of(cluster, 0).transport.is_up(link_of(cluster, 0, 2).peer)
        assert log.status().leader is None
        await leader.propose(b"without it", PROPOSE_MS)
        # With the leader gone, its vote would make a majority.
        await cluster.stop(0)
        with pytest.raises(Unavailable):
            await cluster.logs[1].barrier(3_000)
        assert cluster.logs[1].status().role is Role.VOTER
        await cluster.start(0)
        await propose_surely(cluster.logs[1], b"after")
        assert await cluster.agree() == [b"kept", b"without it", b"after"]
    finally:
        await log.stop()
    assert log.status().applied_index <= 1


async def test_a_removed_node_is_turned_out_at_once(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    await leader.remove_voter(cluster.addresses[2], PROPOSE_MS)
    transport, address = node_of(cluster, 0).transport, cluster.addresses[2]
    # Without a vote it stays connected: it forwards what is proposed there.
    await until(lambda: cluster.logs[2].status().role is Role.LEARNER)
    await propose_surely(cluster.logs[2], b"heard")
    cluster.cut.add(2)
    cluster.roster.removed.add(NodeId("node-2"))
    recheck(cluster)
    await until(lambda: cluster.followers[2].source is None)
    await until(lambda: address not in transport._links and address not in transport._inbound)
    await leader.propose(b"not heard", PROPOSE_MS)
    refusals = transport.refusals
    await until(lambda: transport.refusals >= refusals + 3)  # it tries
    assert address not in transport._links
    assert cluster.replicas[2].payloads == [b"heard"]
    await cluster.stop(2)


async def test_a_renewed_certificate_is_shown_to_who_connects_next(cluster: RealCluster) -> None:
    leader = await cluster.found(2)
    before = serial_of((await link_up(cluster, 0, 1))._stream)
    tls = node_of(cluster, 1).transport.tls
    assert isinstance(tls, MemberTls)
    assert cluster.authority is not None
    cluster.authority.node(cluster.directory / "trust-1", "node-1")
    tls.node.renew()
    assert serial_of(link_of(cluster, 0, 1)._stream) == before
    await cluster.stop(1)
    assert not link_of(cluster, 0, 1).is_up
    await cluster.start(1)
    assert serial_of((await link_up(cluster, 0, 1))._stream) != before
    await propose_surely(leader, b"x")


async def test_a_member_listens_elsewhere_than_it_is_dialled(cluster: RealCluster) -> None:
    address = cluster.addresses[0] = f"127.0.0.1:{free_port()}"
    log = PySyncObjLog(
        address,
        data_dir=cluster.directory / "0",
        replica=ListReplica("replica-0"),
        stamp=lambda: 0,
        cluster=str(cluster.directory),
        tls=cluster.tls_of(0),
        listen_at=address.replace("127.0.0.1", "0.0.0.0"),
    )
    await log.start()
    cluster.logs[0] = log
    await until(lambda: log.status().role is Role.LEADER and log.status().ready)
    await cluster.join(1)
    await propose_surely(cluster.logs[1], b"x")


async def test_off_loopback_only_with_tls_and_an_address_to_dial(
    cluster: RealCluster, tmp_path: Path
) -> None:
    port = free_port()
    cluster.addresses[0] = f"127.0.0.1:{port}"

    async def start(address: str, listen_at: str, tls: MemberTls | None) -> None:
        log = PySyncObjLog(
            address,
            data_dir=tmp_path / "other",
            replica=ListReplica("other"),
            stamp=lambda: 0,
            tls=tls,
            listen_at=listen_at,
        )
        try:
            await log.start()
        finally:
            await log.stop()
            shutil.rmtree(tmp_path / "other", ignore_errors=True)

    tls = cluster.tls_of(0)
    with pytest.raises(BadConfig, match="loopback"):
        await start(f"127.0.0.1:{port}", f"0.0.0.0:{port}", None)
    with pytest.raises(BadConfig, match="can dial"):
        await start(f"0.0.0.0:{port}", f"0.0.0.0:{port}", tls)
    with pytest.raises(Unavailable, match="cannot listen"):
        await start(f"127.0.0.1:{port}", "no address", tls)
    await start(f"127.0.0.1:{port}", f"0.0.0.0:{port}", tls)


async def test_a_crowd_that_says_nothing_keeps_nobody_out(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    await cluster.stop(2)
    host, port = cluster.addresses[0].rsplit(":", 1)
    transport = node_of(cluster, 0).transport
    crowd = []
    try:
        for _ in range(STRANGERS_MAX + 50):
            connection = await asyncio.open_connection(host, int(port))
            connection[1].write(b"\x16\x03\x01\x02\x00\x01")  # the start of a handshake
            crowd.append(connection)
        reader, _ = crowd[0]
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""  # the oldest made way, long before its time was up
        assert len(transport._strangers) <= STRANGERS_MAX
        await cluster.start(2)
        await leader.propose(b"x", PROPOSE_MS)
        assert await cluster.agree() == [b"x"]
    finally:
        for _, writer in crowd:
            writer.transport.abort()


async def test_an_impostor_at_a_members_address_is_told_nothing(cluster: RealCluster) -> None:
    """Neither one that never answers, nor one with a certificate of another CA."""
    leader = await cluster.found(3)
    term = leader.status().term
    await cluster.stop(2)
    host, port = cluster.addresses[2].rsplit(":", 1)
    heard: list[bytes] = []
    transport = node_of(cluster, 0).transport

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    impostor = identity(cluster, "node-2", Authority()).server
    impostor.verify_mode = ssl.CERT_NONE
    for context in (None, impostor):
        heard.clear()
        refusals = transport.refusals
        server = await asyncio.start_server(listen, host, int(port), ssl=context)
        async with server:
            if context is None:
                await until(lambda: len(heard) >= 2, 30)  # given up, and dialled again
                assert all(data[:1] == b"\x16" for data in heard)  # handshakes, and no more
            else:
                await until(lambda seen=refusals: transport.refusals >= seen + 3)  # type: ignore[misc]
                assert not any(heard)
            assert not link_of(cluster, 0, 2).is_up
            await leader.propose(b"meanwhile", PROPOSE_MS)
    await cluster.start(2)
    assert await cluster.agree() == [b"meanwhile", b"meanwhile"]
    assert (cluster.leader_number(), leader.status().term) == (0, term)
