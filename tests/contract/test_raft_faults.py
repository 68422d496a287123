"""Raft in one process, with faults that a fake has not: cuts, damage, bugs, strangers."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cube.adapters.raft import PySyncObjLog, RaftSettings, wire
from cube.adapters.raft.commands import stamped, unstamped
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.settings import LEADER_FALLBACK_MS
from cube.model.errors import BadConfig, BadPacket, OutcomeUnknown, Unavailable
from cube.ports.log import Committed, Role
from tests.ports import free_port
from tests.raft_support import (
    PROPOSE_MS,
    ListReplica,
    RealCluster,
    propose_surely,
    until,
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RealCluster]:
    made = RealCluster(tmp_path, RaftSettings(snapshot_tail=5, segment_bytes=1_000))
    yield made
    await made.close()


def node_of(cluster: RealCluster, number: int) -> RaftNode:
    log = cluster.logs[number]
    assert isinstance(log, PySyncObjLog)
    assert log._node is not None
    return log._node


class Cut:
    """The member hears nobody and is heard by nobody; its connections stay open."""

    def __init__(self, node: RaftNode) -> None:
        self._bypassed = vars(node.transport)
        self._bypassed["on_message"] = lambda _peer, _message: None
        self._bypassed["send_frame"] = lambda _peer, _frame: True

    def heal(self) -> None:
        del self._bypassed["on_message"], self._bypassed["send_frame"]


async def test_a_follower_that_was_cut_off_deposes_nobody(cluster: RealCluster) -> None:
    """L1: the library's would come back with a higher term and cost a leader."""
    leader = await cluster.found(3)
    term = leader.status().term
    cut = Cut(node_of(cluster, 2))
    await until(lambda: not cluster.logs[2].status().quorum)
    await leader.propose(b"meanwhile", PROPOSE_MS)
    await asyncio.sleep(1.5)  # several attempts to stand
    assert cluster.logs[2].status().term == term
    cut.heal()
    assert await cluster.agree() == [b"meanwhile"]
    assert (cluster.leader_number(), leader.status().term) == (0, term)


async def test_a_leader_that_is_cut_off_steps_down_and_promises_nothing(
    cluster: RealCluster,
) -> None:
    """L2: and what it had not committed is unknown, then replaced."""
    leader = await cluster.found(3)
    await leader.propose(b"before", PROPOSE_MS)
    cut = Cut(node_of(cluster, 0))
    lost = asyncio.create_task(leader.propose(b"lost", PROPOSE_MS))
    await until(lambda: cluster.leaders() not in ([], [0]) and 0 not in cluster.leaders())
    await propose_surely(cluster.logs[1], b"after")
    assert leader.status().role is Role.VOTER
    assert not leader.status().quorum
    cut.heal()
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await lost
    assert await cluster.agree() == [b"before", b"after"]


async def test_entries_that_take_long_to_apply_cost_no_leader(cluster: RealCluster) -> None:
    """A second and a half of work is committed at once: the members go on speaking meanwhile."""
    leader = await cluster.found(3)
    term = leader.status().term
    count, each_s = 1_000, 0.002
    for replica in cluster.replicas.values():
        _slow_down(replica, each_s)
    assert count * each_s > LEADER_FALLBACK_MS / 1000
    await asyncio.gather(*(leader.propose(b"%d" % number, 60_000) for number in range(count)))
    assert len(await cluster.agree()) == count
    assert (cluster.leader_number(), leader.status().term) == (0, term)


def _slow_down(replica: ListReplica, each_s: float) -> None:
    apply = replica.apply

    def slowly(index: int, term: int, at_ms: int, data: bytes) -> object:
        time.sleep(each_s)
        return apply(index, term, at_ms, data)

    replica.apply = slowly  # type: ignore[method-assign]


async def test_a_member_far_behind_catches_up_by_snapshot(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    await cluster.stop(2)
    # Larger than the send window, so that it goes in several rounds.
    wanted = [bytes([i]) * 500_000 for i in range(20)]
    for data in wanted:
        await leader.propose(data, PROPOSE_MS)
    for number in (0, 1):
        await cluster.logs[number].compact()
    await until(lambda: all(node_of(cluster, n).journal.first_index > 15 for n in (0, 1)))
    wanted.append(b"after")
    await leader.propose(b"after", PROPOSE_MS)
    returned = await cluster.start(2)
    assert await cluster.agree() == wanted
    assert cluster.replicas[2].loads == 1
    assert len(returned.status().voters) == 3
    # What it installed is its own now.
    await cluster.stop(2)
    await cluster.start(2)
    assert await cluster.agree() == wanted


async def far_behind(cluster: RealCluster) -> list[bytes]:
    """Member 2 of three is down, and what it lacks is only in the others' snapshots."""
    leader = await cluster.found(3)
    await cluster.stop(2)
    wanted = [b"%d" % i for i in range(60)]
    for data in wanted:
        await leader.propose(data, PROPOSE_MS)
    for number in (0, 1):
        await cluster.logs[number].compact()
    await until(lambda: all(node_of(cluster, n).journal.first_index > 40 for n in (0, 1)))
    return wanted


async def test_a_member_that_loads_a_snapshot_goes_on_voting_and_storing(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With member 1 gone, nothing is committed without the one that loads."""
    wanted = await far_behind(cluster)
    is_loading, may_go_on = threading.Event(), threading.Event()
    load = ListReplica.load

    def slow(replica: ListReplica, data: bytes, index: int) -> None:
        is_loading.set()
        assert may_go_on.wait(30)
        load(replica, data, index)

    monkeypatch.setattr(ListReplica, "load", slow)
    returned = await cluster.start(2)
    await until(is_loading.is_set)
    await cluster.stop(1)
    leader = cluster.leader()
    wanted += [b"during", b"and more"]
    for data in wanted[-2:]:
        await leader.propose(data, PROPOSE_MS)
    term = leader.status().term
    assert returned.status().applied_index < 60
    assert cluster.replicas[2].payloads == [], "nothing is applied meanwhile"
    may_go_on.set()
    assert await cluster.agree() == wanted
    assert leader.status().term == term
    assert cluster.replicas[2].loads == 1


async def test_a_kill_while_a_snapshot_is_loaded_loses_nothing(
    cluster: RealCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await far_behind(cluster)
    is_loading, may_go_on = threading.Event(), threading.Event()

    def slow(_replica: ListReplica, _data: bytes, _index: int) -> None:
        is_loading.set()
        assert may_go_on.wait(30)

    with monkeypatch.context() as hanging:
        hanging.setattr(ListReplica, "load", slow)
        await cluster.start(2)
        await until(is_loading.is_set)
        wanted.append(b"during")
        await cluster.leader().propose(b"during", PROPOSE_MS)
        shutil.copytree(tmp_path / "2", tmp_path / "killed")
        may_go_on.set()
        await cluster.stop(2)
    shutil.rmtree(tmp_path / "2")
    shutil.move(tmp_path / "killed", tmp_path / "2")
    await cluster.start(2)
    assert await cluster.agree() == wanted


async def test_a_snapshot_that_cannot_be_read_ends_the_member(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a newer release, or a bug: going on would make the replicas differ."""
    await far_behind(cluster)

    def refuse(_replica: ListReplica, _data: bytes, _index: int) -> None:
        raise BadPacket("foreign")

    monkeypatch.setattr(ListReplica, "load", refuse)
    await cluster.start(2)
    await until(lambda: bool(cluster.fatal))
    assert str(cluster.fatal[0]) == "foreign"
    cluster.fatal.clear()


async def test_a_joiner_gets_the_snapshot_too(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    wanted = [b"%d" % i for i in range(50)]
    for data in wanted:
        await leader.propose(data, PROPOSE_MS)
    await leader.compact()
    await until(lambda: node_of(cluster, 0).journal.first_index > 40)
    await cluster.join(1)
    assert await cluster.agree() == wanted
    assert cluster.replicas[1].loads == 1


async def test_a_kill_between_snapshot_and_trim_loses_nothing(
    cluster: RealCluster, tmp_path: Path
) -> None:
    """D5: the library's restart cleared what was acknowledged after the snapshot."""
    leader = await cluster.found(1)
    wanted = [b"%d" % i for i in range(50)]
    for data in wanted:
        await leader.propose(data, PROPOSE_MS)
    await cluster.stop(0)
    directory, before = tmp_path / "0", tmp_path / "before"
    shutil.copytree(directory, before)
    await cluster.start(0)
    await cluster.logs[0].compact()
    await until(lambda: node_of(cluster, 0).journal.first_index > 40)
    await cluster.stop(0)
    # As if the trim had not happened.
    shutil.copy(directory / "snapshot", before / "snapshot")
    shutil.rmtree(directory)
    shutil.copytree(before, directory)
    await cluster.start(0)
    assert await cluster.agree() == wanted
    assert cluster.replicas[0].loads == 1
    # And the other way round: a snapshot that was received, the journal still that of before.
    await cluster.stop(0)
    shutil.rmtree(directory / "journal")
    journal = FileJournal(directory / "journal", fsync=False)
    journal.add(stamped(unstamped(b"0"), 0), 2, 1)
    journal._destroy()
    await cluster.start(0)
    assert await cluster.agree() == wanted
    await cluster.logs[0].propose(b"after", PROPOSE_MS)
    assert await cluster.agree() == [*wanted, b"after"]


async def test_a_damaged_snapshot_or_journal_stops_the_start(
    cluster: RealCluster, tmp_path: Path
) -> None:
    leader = await cluster.found(1)
    for i in range(40):
        await leader.propose(b"%d" % i, PROPOSE_MS)
    await leader.compact()
    await until(lambda: node_of(cluster, 0).journal.first_index > 30)
    await cluster.stop(0)
    directory = tmp_path / "0"
    segments = sorted((directory / "journal").iterdir())
    for path in (directory / "snapshot", segments[0], segments[-1], directory / "member"):
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(BadPacket):
            await cluster.start(0)
        path.write_bytes(whole)
    (tmp_path / "0" / "snapshot").rename(tmp_path / "gone")
    with pytest.raises(BadPacket):  # D8: the journal without what it continues
        await cluster.start(0)
    (tmp_path / "gone").rename(tmp_path / "0" / "snapshot")
    await cluster.start(0)
    assert len(await cluster.agree()) == 40


async def test_a_replica_that_raises_ends_the_member_and_applies_nothing_twice(
    cluster: RealCluster,
) -> None:
    """S5: the library tries again for ever."""
    leader = await cluster.found(1)
    calls: list[int] = []

    def fail(index: int, term: int, at_ms: int, data: bytes) -> object:
        calls.append(index)
        raise ZeroDivisionError

    cluster.replicas[0].apply = fail  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await leader.propose(b"x", PROPOSE_MS)
    with pytest.raises(Unavailable):
        await leader.propose(b"y", PROPOSE_MS)
    await cluster.stop(0)
    assert len(calls) == 1
    assert [type(error) for error in cluster.fatal] == [ZeroDivisionError]
    cluster.fatal.clear()


async def test_a_proposal_that_never_left_is_certainly_not_done(cluster: RealCluster) -> None:
    """L3: the deadline is the caller's own, even when the Raft thread hangs."""
    leader = await cluster.found(1)
    apply = cluster.replicas[0].apply
    entered, release = threading.Event(), threading.Event()

    def hang(index: int, term: int, at_ms: int, data: bytes) -> object:
        entered.set()
        release.wait(10)
        return apply(index, term, at_ms, data)

    cluster.replicas[0].apply = hang  # type: ignore[method-assign]
    first = asyncio.create_task(leader.propose(b"first", 200))
    await until(entered.is_set)
    with pytest.raises(Unavailable):
        await leader.propose(b"second", 100)
    with pytest.raises(OutcomeUnknown):
        await first
    release.set()
    await leader.propose(b"third", PROPOSE_MS)
    assert await cluster.agree() == [b"first", b"third"]


async def test_one_directory_serves_one_member(cluster: RealCluster, tmp_path: Path) -> None:
    await cluster.found(1)

    def other(address: str, directory: Path) -> PySyncObjLog:
        replica = ListReplica("other")
        return PySyncObjLog(address, data_dir=directory, replica=replica, stamp=lambda: 0)

    with pytest.raises(Unavailable, match="in use"):
        await other(f"127.0.0.1:{free_port()}", tmp_path / "0").start()
    with pytest.raises(Unavailable, match="cannot listen"):
        await other(cluster.addresses[0], tmp_path / "other").start()
    with pytest.raises(BadConfig, match="loopback"):
        await other(f"0.0.0.0:{free_port()}", tmp_path / "third").start()
    await cluster.stop(0)
    with pytest.raises(BadConfig, match="belongs to"):
        await other(f"127.0.0.1:{free_port()}", tmp_path / "0").start()


def frame(message: dict[str, Any]) -> bytes:
    return wire.encode(message)


async def test_strangers_are_turned_away(cluster: RealCluster, tmp_path: Path) -> None:
    """X1, X2, X4: nothing from an unknown connection is run, obeyed or waited for."""
    leader = await cluster.found(2)
    address = cluster.addresses[0]
    host, port = address.rsplit(":", 1)
    hello = {"type": "hello", "sender": "127.0.0.1:9", "receiver": address, "cluster": "other"}
    vote = {"type": "request_vote", "term": 99, "last_log_index": 99, "last_log_term": 99}
    here = {**hello, "cluster": str(tmp_path)}
    pickled = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "run").encode()
    attempts = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 57 << 20) + bytes(1000),
        struct.pack(">I", wire.HELLO_BYTES_MAX + 1) + bytes(1000),
        struct.pack(">I", len(pickled)) + pickled,
        frame(hello),
        frame(vote),
        frame({**here, "receiver": "127.0.0.1:1"}),
        frame({**here, "sender": "nonsense"}),
        frame({**here, "sender": address}),
        frame(here) + frame(here),
        frame(here) + struct.pack(">I", 4) + b"junk",
        frame(here) + frame({"type": "append_entries", "term": 99}),
    ]
    for attempt in attempts:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(attempt)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    # At once, each of them, and not when its time was up.
    assert node_of(cluster, 0).transport.refusals == len(attempts)
    assert not (tmp_path / "run").exists()
    await leader.propose(b"x", PROPOSE_MS)
    assert leader.status().term == 1
    assert await cluster.agree() == [b"x"]


async def test_a_peer_may_not_change_the_voters(cluster: RealCluster, tmp_path: Path) -> None:
    """X2: only the leader's own port does."""
    leader = await cluster.found(1)
    host, port = cluster.addresses[0].rsplit(":", 1)
    guest = f"127.0.0.1:{free_port()}"
    _, writer = await asyncio.open_connection(host, int(port))
    hello = {
        "type": "hello",
        "sender": guest,
        "receiver": cluster.addresses[0],
        "cluster": str(tmp_path),
    }
    command = b"\x02\x91\xad" + guest.encode()
    writer.write(frame(hello) + frame({"type": "apply_command", "command": command}))
    writer.write(frame({"type": "apply_command", "command": command, "request_id": 1}))
    await writer.drain()
    await until(lambda: node_of(cluster, 0).transport._inbound.get(guest) is not None)
    await leader.propose(b"x", PROPOSE_MS)
    assert len(leader.status().voters) == 1
    writer.close()


async def test_a_broken_connection_costs_no_leader(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    term = leader.status().term
    for _ in range(5):
        for number in (1, 2):
            links = node_of(cluster, number).transport._links
            sock = links[cluster.addresses[0]].sock
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        await propose_surely(cluster.logs[1], b"x")
    await cluster.agree()
    assert (cluster.leader_number(), leader.status().term) == (0, term)


async def test_a_burst_larger_than_the_queue_is_refused_not_lost(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    tasks = [leader.propose(b"%d" % i, 20_000) for i in range(12_000)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    done = [r for r in results if isinstance(r, Committed)]
    refused = [r for r in results if isinstance(r, Unavailable)]
    assert len(done) + len(refused) == 12_000
    assert len(cluster.replicas[0].payloads) == len(done)
