"""Members without a vote follow any voter: over real logs, whoever dies, leads or compacts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from cube.adapters.raft import PySyncObjLog, RaftSettings, feeding
from cube.adapters.raft.feeding import (
    ANSWER_ENTRIES_MAX,
    Entries,
    Office,
    Piece,
    decode_answer,
)
from cube.adapters.raft.library import Peer
from cube.adapters.raft.node import RaftNode
from cube.model.errors import BadPacket, Unavailable
from cube.ports.log import ENTRY_BYTES_MAX, FEED_BYTES_MAX, FOLLOWERS_MAX, Ask, Role
from tests.raft_support import PROPOSE_MS, RealCluster, propose_surely, until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[RealCluster]:
    made = RealCluster(tmp_path, RaftSettings(snapshot_tail=5))
    yield made
    await made.close()


def node_of(cluster: RealCluster, number: int) -> RaftNode:
    log = cluster.logs[number]
    assert isinstance(log, PySyncObjLog)
    assert log._node is not None
    return log._node


async def learn(cluster: RealCluster, number: int) -> PySyncObjLog:
    log = await cluster.start(number, tuple(cluster.addresses.values()), joining=True)
    await until(lambda: log.status().leader is not None)
    assert isinstance(log, PySyncObjLog)
    return log


def watch_sent(node: RaftNode, address: str, told: Callable[[], None]) -> None:
    """`told` is called for each frame that the node sends there."""
    send = node.transport.send_frame

    def watch(peer: Peer, frame: bytes) -> bool:
        if peer.id == address:
            told()
        return send(peer, frame)

    node.transport.send_frame = watch  # type: ignore[method-assign]


async def test_the_leader_sends_a_learner_nothing(cluster: RealCluster) -> None:
    """Its Raft connections are for what the learner proposes; without them it follows all the same."""
    leader = await cluster.found(3)
    cluster.cut.add(0)  # nor is it asked
    learner = await learn(cluster, 3)
    sent: list[int] = []
    for number in range(3):  # an election may come in between: the rule is for whoever leads
        watch_sent(node_of(cluster, number), cluster.addresses[3], partial(sent.append, number))
    last = 0
    for number in range(50):
        last = (await leader.propose(b"%d" % number, PROPOSE_MS)).index
    await until(lambda: learner.status().applied_index >= last)
    assert sent == []
    voters = {cluster.addresses[number] for number in range(3)}

    def leads_voters_only() -> bool:
        return any(
            {p.address for p in cluster.logs[n].progress()} == voters - {cluster.addresses[n]}
            for n in cluster.leaders()
        )

    await until(leads_voters_only)
    assert {(3, 0)} & cluster.asked.keys() == set()
    await cluster.agree()


async def test_it_goes_to_another_voter_when_its_own_dies(cluster: RealCluster) -> None:
    leader = await cluster.found(3)
    learner = await learn(cluster, 3)
    follower = cluster.followers[3]
    for round_number in range(2):
        await until(lambda: follower.source is not None)
        dead = next(n for n, a in cluster.addresses.items() if a == follower.source)
        if dead == 0:
            await leader.transfer_leadership(PROPOSE_MS)
            await until(lambda: bool(cluster.leaders()))
        await cluster.stop(dead)
        await propose_surely(learner, b"round %d" % round_number)
        assert follower.source != cluster.addresses[dead]
        await cluster.start(dead)
    await propose_surely(learner, b"all are back")
    await cluster.agree()


async def test_it_keeps_the_way_to_a_leader_that_once_did_not_vote(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told who leads before it has come to the entries in which that member lost its vote and
    got it back."""
    leader = await cluster.found(3)
    once = cluster.addresses[1]
    await leader.remove_voter(once, PROPOSE_MS)
    await leader.propose(b"in between", PROPOSE_MS)
    await leader.add_voter(once, PROPOSE_MS)
    await cluster.stop(2)  # so that no other can take over
    await leader.transfer_leadership(PROPOSE_MS)
    await until(lambda: cluster.leaders() == [1])
    await cluster.start(2)
    monkeypatch.setattr(feeding, "ANSWER_ENTRIES_MAX", 1)  # it learns its past step by step
    learner = await learn(cluster, 3)
    await propose_surely(learner, b"it is heard")
    await cluster.agree()


async def test_it_goes_to_another_voter_when_the_disk_of_its_own_fails(
    cluster: RealCluster,
) -> None:
    leader = await cluster.found(3)
    learner = await learn(cluster, 3)
    follower = cluster.followers[3]
    await until(lambda: follower.source is not None)
    sick = next(n for n, a in cluster.addresses.items() if a == follower.source)
    journal = node_of(cluster, sick).journal
    journal.retry = lambda: False  # type: ignore[method-assign]
    node_of(cluster, sick).journal.fail(OSError(5, "Input/output error"))
    await until(lambda: follower.source not in (None, cluster.addresses[sick]))
    writer = leader if sick else cluster.logs[1]
    await propose_surely(writer, b"it goes on")
    await until(lambda: b"it goes on" in cluster.replicas[3].payloads)
    assert learner.status().role is Role.LEARNER
    del journal.retry
    await cluster.agree()


async def test_a_snapshot_in_many_pieces_then_entries_and_a_restart(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cube.adapters.raft.snapshots.PIECE_BYTES", 1_000)
    leader = await cluster.found(3)
    for number in range(300):
        await leader.propose(b"%d" % number, PROPOSE_MS)
    for number in range(3):
        await cluster.logs[number].compact()
    await until(lambda: all(node_of(cluster, n).snapshots.index for n in range(3)))
    learner = await learn(cluster, 3)
    await propose_surely(learner, b"after")
    await cluster.agree()
    assert cluster.replicas[3].loads == 1
    # Restarted, it has all that it had, and goes on from there.
    await cluster.stop(3)
    await leader.propose(b"while it was away", PROPOSE_MS)
    again = await cluster.start(3)
    assert again.status().role is Role.LEARNER
    assert len(cluster.replicas[3].payloads) >= 300
    await propose_surely(again, b"back")
    await cluster.agree()


async def test_a_snapshot_that_is_replaced_while_it_is_fetched_is_fetched_whole(
    cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cube.adapters.raft.snapshots.PIECE_BYTES", 200)
    leader = await cluster.found(1)
    assert isinstance(leader, PySyncObjLog)

    def first_index() -> int:
        assert leader._feed.view is not None
        return leader._feed.view.entries[0][1]

    async def write_and_compact(count: int) -> int:
        for number in range(count):
            await leader.propose(b"%d" % number, PROPOSE_MS)
        before = node_of(cluster, 0).snapshots.index
        await leader.compact()
        # Until those who ask are answered from the shorter journal.
        await until(lambda: leader._feed.view is not None and first_index() > max(before, 1))
        return node_of(cluster, 0).snapshots.index

    first = await write_and_compact(100)
    ask = Ask(1, 0)
    second = 0
    pieces: list[Piece] = []
    while not pieces or not pieces[-1].is_last:
        answer = decode_answer(await leader.feed(ask, 0))
        assert isinstance(answer, Piece)
        assert answer.index == first
        pieces.append(answer)
        ask = Ask(1, 0, "", answer.index, answer.offset + len(answer.data))
        if len(pieces) == 2:
            second = await write_and_compact(100)
    assert len(pieces) > 3
    assert [p.offset for p in pieces] == [200 * n for n in range(len(pieces))]
    newest = decode_answer(await leader.feed(Ask(1, 0), 0))
    assert isinstance(newest, Piece)
    assert newest.index == second


async def test_a_removed_voter_takes_its_uncommitted_tail_back(cluster: RealCluster) -> None:
    """It led, and appended what nobody else has; the others elected another and removed it."""
    leader = await cluster.found(3)
    await leader.propose(b"kept", PROPOSE_MS)
    await cluster.agree()
    committed = leader.status().commit_index
    for number in (1, 2):
        await cluster.stop(number)
    tails = [asyncio.create_task(leader.propose(b"lost %d" % n, 500)) for n in range(5)]
    await until(lambda: node_of(cluster, 0).journal.last_index >= committed + 5)
    await asyncio.gather(*tails, return_exceptions=True)
    await cluster.stop(0)
    for number in (1, 2):
        await cluster.start(number)
    await until(lambda: bool(cluster.leaders()))
    await cluster.leader().remove_voter(cluster.addresses[0], PROPOSE_MS)
    for number in range(20):
        await propose_surely(cluster.leader(), b"%d" % number)
    back = await cluster.start(0)
    assert node_of(cluster, 0).journal.last_index >= committed + 5
    # By its own log it votes; nobody leads it, so it looks around, and learns better.
    await until(lambda: back.status().role is Role.LEARNER)
    await propose_surely(back, b"as a learner")
    payloads = await cluster.agree()
    assert not any(payload.startswith(b"lost") for payload in payloads)


async def test_compaction_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """The journal is trimmed under those who read it, again and again."""
    settings = RaftSettings(snapshot_every=20, snapshot_tail=2, segment_bytes=4_096)
    cluster = RealCluster(tmp_path, settings)
    try:
        leader = await cluster.found(3)
        learner = await learn(cluster, 3)
        cluster_wide = [b"%d" % number for number in range(600)]
        for start in range(0, 600, 20):
            batch = cluster_wide[start : start + 20]
            await asyncio.gather(*(leader.propose(data, PROPOSE_MS) for data in batch))
            if start % 100 == 0:
                await cluster.stop(3)
                learner = await learn_again(cluster)
        await propose_surely(learner, b"end")
        payloads = await cluster.agree()
        assert b"end" in payloads  # once or, after an outcome unknown, again
        assert sorted(cluster_wide) == sorted(p for p in payloads if p != b"end")
        assert node_of(cluster, 3).journal.first_index > 400
    finally:
        await cluster.close()


async def learn_again(cluster: RealCluster) -> PySyncObjLog:
    log = await cluster.start(3)
    assert isinstance(log, PySyncObjLog)
    return log


async def test_large_entries_come_in_bounded_answers(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    large = bytes(ENTRY_BYTES_MAX)
    for _ in range(4):
        await leader.propose(large, PROPOSE_MS)
    ask = Ask(1, 0)
    seen = 0
    while ask.index < leader.status().commit_index:
        data = await leader.feed(ask, 0)
        assert len(data) <= FEED_BYTES_MAX
        answer = decode_answer(data)
        assert isinstance(answer, Entries)
        assert 0 < len(answer.entries) <= ANSWER_ENTRIES_MAX
        seen += sum(len(entry[0]) > ENTRY_BYTES_MAX for entry in answer.entries)
        ask = Ask(answer.entries[-1][1], answer.entries[-1][2])
    assert seen == 4
    learner = await learn(cluster, 1)
    await propose_surely(learner, b"x")
    await cluster.agree()


async def test_all_who_stand_at_the_same_place_share_one_answer(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    await leader.barrier(PROPOSE_MS)
    ask = leader.ask()
    waiting = [asyncio.create_task(leader.feed(ask, 5_000)) for _ in range(20)]
    first = await asyncio.gather(*waiting)  # nobody knew who leads: that is news
    assert all(answer is first[0] for answer in first)
    office = str(decode_answer(first[0]).office)
    ask = Ask(ask.index, ask.term, office)
    waiting = [asyncio.create_task(leader.feed(ask, 5_000)) for _ in range(20)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await leader.propose(b"x", PROPOSE_MS)
    answers = await asyncio.gather(*waiting)
    assert all(answer is answers[0] for answer in answers)
    decoded = decode_answer(answers[0])
    assert isinstance(decoded, Entries)
    assert [entry[1] for entry in decoded.entries] == [ask.index + 1]


async def test_what_is_not_answered(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    await leader.propose(b"x", PROPOSE_MS)
    last = leader.ask()
    with pytest.raises(Unavailable, match="not yet"):
        await leader.feed(Ask(last.index + 1, last.term), 0)
    with pytest.raises(Unavailable, match="history"):
        await leader.feed(Ask(last.index, last.term + 1), 0)
    office = str(decode_answer(await leader.feed(last, 0)).office)
    quiet = Ask(last.index, last.term, office)
    waiting = [asyncio.create_task(leader.feed(quiet, 5_000)) for _ in range(FOLLOWERS_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="follow this one"):
        await leader.feed(last, 0)
    await cluster.stop(0)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, Unavailable), result
    with pytest.raises(Unavailable):
        await leader.feed(last, 0)


async def test_another_history_changes_nothing(cluster: RealCluster) -> None:
    leader = await cluster.found(1)
    await leader.propose(b"x", PROPOSE_MS)
    learner = await learn(cluster, 1)
    await until(lambda: learner.status().commit_index >= leader.status().commit_index)
    cluster.cut.add(1)
    await until(lambda: cluster.followers[1].source is None)
    before = list(node_of(cluster, 1).journal.entries())
    last = learner.ask()
    office = Office(last.term, cluster.addresses[0], True, str(cluster.directory))

    def encode(previous: int, term: int, *entries: tuple[bytes, int, int]) -> bytes:
        commit = previous + len(entries)
        return msgspec.msgpack.encode(Entries(office, commit, previous, term, list(entries)))

    no_op = b"\x01"
    for answer in (
        encode(last.index, last.term + 1, (no_op, last.index + 1, last.term + 1)),
        encode(last.index - 1, before[-2][2], (no_op, last.index, last.term + 5)),
        encode(last.index, last.term, (no_op, last.index + 2, last.term)),
        encode(last.index, last.term, (b"\x07", last.index + 1, last.term)),
        encode(last.index, last.term, (no_op, last.index + 1, last.term - 1)),
        encode(last.index, last.term)[:-1],
        b"",
    ):
        with pytest.raises(BadPacket):
            await learner.take("x", answer)
    foreign = msgspec.structs.replace(office, cluster=f"{cluster.directory}/recovered")
    entries = [(no_op, last.index + 1, last.term)]
    with pytest.raises(BadPacket, match="another cluster"):
        await learner.take(
            "x",
            msgspec.msgpack.encode(
                Entries(foreign, last.index + 1, last.index, last.term, entries)
            ),
        )
    assert list(node_of(cluster, 1).journal.entries()) == before
    # Nor does a leader take anything, and an old answer is no answer.
    await leader.take("x", encode(last.index, last.term, (no_op, last.index + 1, last.term)))
    await learner.take("x", encode(last.index + 9, last.term))
    assert list(node_of(cluster, 1).journal.entries()) == before
    assert leader.ask() == last
