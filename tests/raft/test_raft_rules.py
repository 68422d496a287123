"""The findings whose mend is a rule of this adapter rather than another piece of the algorithm:
S6 to S8, L2, L4 to L6. Red on the stock library where it can be shown there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.pickle as library_pickle
import pytest
from pysyncobj.node import Node

from cube.adapters.raft import library
from cube.adapters.raft import transport as transport_module
from cube.adapters.raft.commands import NO_OP, stamped, unstamped
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.library import LEADER, Peer, monotonic
from cube.adapters.raft.links import Link
from cube.adapters.raft.membership import Change
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.peer_tls import admit
from cube.adapters.raft.settings import LEADER_FALLBACK_MS, RaftSettings, library_conf
from cube.adapters.raft.streams import TlsStream
from cube.adapters.raft.transport import SHAKE_S_PER_TURN_MAX
from cube.model.errors import BadPacket
from cube.model.ids import NodeId
from cube.ports.log import ENTRY_BYTES_MAX
from tests.raft.test_raft_findings import (
    BOTH,
    OTHER,
    SELF,
    STOCK_IS_RED,
    THIRD,
    Bench,
    SilentTransport,
    StockCounter,
    bench,
    ours,
)
from tests.raft_support import ListReplica

__all__ = ["bench", "ours"]  # fixtures


class Earlier(pysyncobj.SyncObj):  # type: ignore[misc]
    """A release of a stock program, and the next one, which has a method more."""

    def __init__(self) -> None:
        self.called: list[str] = []
        conf = library_conf(RaftSettings())
        super().__init__(Node(SELF), [], conf, nodeClass=Node, transport=SilentTransport())

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def stop_job(self) -> None:
        self.called.append("stop_job")


class Later(Earlier):
    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def delete_job(self) -> None:
        self.called.append("delete_job")


@STOCK_IS_RED
def test_s6_s7_stock_an_entry_means_the_same_to_the_next_release() -> None:
    entry = library_pickle.dumps(Earlier()._methodToID["stop_job_v0"])
    later = Later()
    later._SyncObj__doApplyCommand(b"\x00" + entry)
    assert later.called == ["stop_job"]


def test_s6_s7_an_entry_is_the_proposers_bytes_and_nothing_else(ours: RaftNode) -> None:
    """There is one operation. What the bytes mean is the state machine's own affair."""
    bench = Bench(ours, lambda index: stamped(unstamped(b"anything %d" % index), 7))
    bench.append(2, 3, commit_index=3)
    ours._SyncObj__applyLogEntries()
    assert isinstance(ours.replica, ListReplica)
    assert ours.replica.entries == [(2, 1, 7, b"anything 2"), (3, 1, 7, b"anything 3")]


def stock_with_journal(path: Path) -> Any:
    options: Any = library_conf(RaftSettings())
    options.journalFile = str(path)
    return pysyncobj.SyncObj(
        Node(SELF), [Node(OTHER)], options, nodeClass=Node, transport=SilentTransport()
    )


@STOCK_IS_RED
def test_s8_stock_a_commit_index_beyond_the_log_commits_nothing(tmp_path: Path) -> None:
    stock = stock_with_journal(tmp_path / "journal")
    stock._SyncObj__raftLog.setRaftCommitIndex(50)
    stock._SyncObj__raftLog.onOneSecondTimer()
    stock._SyncObj__raftLog._destroy()
    again = stock_with_journal(tmp_path / "journal")
    commit_index, last_index = again._SyncObj__raftCommitIndex, again._SyncObj__raftLog[-1][1]
    again._SyncObj__raftLog._destroy()
    assert commit_index <= last_index


def test_s8_a_commit_index_beyond_the_log_commits_nothing(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", fsync=False)
    journal.setRaftCommitIndex(50)
    journal._destroy()
    assert FileJournal(tmp_path / "journal", fsync=False).getRaftCommitIndex() == 1


@pytest.mark.parametrize("kind", [pytest.param("stock", marks=STOCK_IS_RED), "ours"])
def test_l2_a_leader_that_nobody_answers_steps_down_within_two_seconds(
    kind: str, ours: RaftNode
) -> None:
    conf: Any = pysyncobj.SyncObjConf() if kind == "stock" else library_conf(RaftSettings())
    assert conf.leaderFallbackTimeout < 2.0
    if kind == "stock":
        return
    Bench(ours, lambda _index: NO_OP).lead(term=1, last_index=3)
    ours._SyncObj__lastResponseTime.update(
        dict.fromkeys([Peer(OTHER), Peer(THIRD)], monotonic() - LEADER_FALLBACK_MS / 1000 - 0.1)
    )
    ours._onTick(0.0)
    assert ours._SyncObj__raftState != LEADER


def test_l2_silence_counts_only_while_one_listens(ours: RaftNode) -> None:
    """A leader that was held up for seconds has the others' answers still to read."""
    Bench(ours, lambda _index: NO_OP).lead(term=1, last_index=3)
    ours._SyncObj__lastResponseTime.update(
        dict.fromkeys([Peer(OTHER), Peer(THIRD)], monotonic() - 10.0)
    )
    ours.late_s = 10.0
    ours._onTick(0.0)
    assert ours._SyncObj__raftState == LEADER
    ours.late_s = 0.0  # it has read them: there were none
    ours._onTick(0.0)
    assert ours._SyncObj__raftState != LEADER


def test_l1_who_was_held_up_listens_before_it_stands(ours: RaftNode) -> None:
    ours._SyncObj__raftElectionDeadline = monotonic() - 10.0
    ours.late_s = 10.0
    ours._step_election()
    assert ours._pre_vote_term == -1
    ours.late_s = 0.0
    ours._step_election()
    assert ours._pre_vote_term == ours.term


def settled_leader(ours: RaftNode) -> list[int]:
    """It leads, its own entry is committed; what changes come to is in the list."""
    Bench(ours, lambda _index: NO_OP).lead(term=1, last_index=2)
    ours._SyncObj__noopIDx = 2
    ours._SyncObj__raftCommitIndex = 2
    ours._SyncObj__applyLogEntries()
    return []


def test_l4_a_voter_that_is_not_up_is_not_added(ours: RaftNode) -> None:
    """The library appends the change at once: two of four voters are then a quorum no more."""
    reasons = settled_leader(ours)
    absent, deadline = "127.0.0.1:21", monotonic() + 60
    ours.request_change(
        Change(absent, deadline, lambda _r, reason: reasons.append(reason), is_addition=True)
    )
    for _ in range(5):
        ours.step_changes()
    assert ours.journal.last_index == 2
    assert absent not in ours.configuration.current
    assert (ours.quorum_size, reasons) == (2, [])


def test_l5_a_leader_does_not_remove_itself(ours: RaftNode) -> None:
    reasons = settled_leader(ours)
    deadline = monotonic() + 60
    ours.request_change(
        Change(SELF, deadline, lambda _r, reason: reasons.append(reason), is_addition=False)
    )
    ours.step_changes()
    assert reasons == [library.REASON_REQUEST_DENIED]
    assert SELF in ours.configuration.current


@pytest.mark.parametrize("kind", [pytest.param("stock", marks=STOCK_IS_RED), "ours"])
def test_l6_no_command_is_long_enough_to_be_cut_into_chunks(kind: str) -> None:
    conf: Any = pysyncobj.SyncObjConf() if kind == "stock" else library_conf(RaftSettings())
    longest = stamped(unstamped(bytes(ENTRY_BYTES_MAX)), 0)
    assert len(longest) < conf.appendEntriesBatchSizeBytes


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_d1_an_entry_that_is_not_on_the_leaders_disk_does_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one follower's answer it is a majority only once the leader itself has it."""
    bench.lead(term=1, last_index=5)
    member = bench.member
    member._SyncObj__raftMatchIndex[Peer(OTHER)] = 5
    if isinstance(member, RaftNode):
        assert member.journal.is_dirty
        monkeypatch.setattr(member.journal, "sync", lambda: None)
    member._onTick(0.0)
    assert member._SyncObj__raftCommitIndex == 1
    if isinstance(member, RaftNode):
        monkeypatch.undo()
        member.journal.sync()
        member._onTick(0.0)
        assert member.commit_index == 5


def test_a_voter_counts_once(ours: RaftNode) -> None:
    """The library counts answers: one voter that answers twice would elect a leader of two."""
    ours.set_configuration(
        ours.configuration.appended(9, frozenset({SELF, OTHER, THIRD, "h:4", "h:5"}))
    )
    ours._SyncObj__raftState = library.CANDIDATE
    ours._SyncObj__votesCount = 1
    ours._SyncObj__setCurrentTerm(2, SELF)
    bench = Bench(ours, lambda _index: NO_OP)
    for _ in range(4):
        bench.receive({"type": "response_vote", "term": 2})
    bench.receive({"type": "response_vote", "term": 1}, sender=THIRD)
    bench.receive({"type": "response_vote", "term": 2}, sender="h:9")
    assert not ours.is_leader
    bench.receive({"type": "response_vote", "term": 2}, sender=THIRD)
    assert ours.is_leader


def test_a_guest_deposes_nobody(ours: RaftNode) -> None:
    """Neither as a leader of a higher term, nor by a vote that a leader seems to wish, nor by a
    term that it says it has heard of."""
    bench = Bench(ours, lambda _index: NO_OP)
    bench.append(2, term=1)
    assert ours.leader == Peer(OTHER)
    guest = "h:9"
    vote = {"type": "request_vote", "term": 7, "last_log_index": 9, "last_log_term": 7}
    bench.receive({**vote, "transfer": True}, sender=guest)
    bench.receive({"type": "term_hint", "term": 7}, sender=guest)
    bench.receive({"type": "timeout_now", "term": 7}, sender=guest)
    heartbeat = {
        "type": "append_entries",
        "term": 7,
        "commit_index": 1,
        "prevLogIdx": 2,
        "prevLogTerm": 1,
        "entries": [],
    }
    bench.receive(heartbeat, sender=guest)
    assert (ours.leader, ours.term) == (Peer(OTHER), 1)
    # Once the leader is silent, it may be one that this member has not heard of.
    ours.heard_at = 0.0
    bench.receive(heartbeat, sender=guest)
    assert (ours.leader, ours.term) == (Peer(guest), 7)


def test_s4_a_node_without_its_disk_is_not_taken_for_the_one_that_was_there() -> None:
    """Over sockets: tests/contract/test_raft_tls.py."""

    class Roster:
        def is_removed(self, node_id: NodeId) -> bool:
            return node_id == "gone"

        def expected_id(self, address: str) -> NodeId | None:
            return NodeId("old") if address == OTHER else None

    roster: Any = Roster()
    admit(roster, NodeId("old"), OTHER)
    admit(roster, NodeId("new"), THIRD)
    with pytest.raises(BadPacket, match="is node old, not new"):
        admit(roster, NodeId("new"), OTHER)
    with pytest.raises(BadPacket, match="was removed"):
        admit(roster, NodeId("gone"), THIRD)


def stock_leader() -> Bench:
    """The library's member leads three, and its own first entry is committed."""
    stock = Bench(StockCounter(), lambda _index: NO_OP)
    stock.lead(term=1, last_index=2)
    stock.member._SyncObj__raftCommitIndex = stock.member._SyncObj__raftLastApplied = 2
    stock.member._SyncObj__noopIDx = 2
    return stock


@STOCK_IS_RED
def test_s3_l4_stock_one_change_of_the_voters_at_a_time_and_only_to_one_that_is_up() -> None:
    stock = stock_leader()
    for port in (21, 22):
        stock.member.addNodeToCluster(Node(f"127.0.0.1:{port}"))
    stock.member._checkCommandsToApply()
    assert len(stock.indexes) <= 2 + 1, "the second waits for the first to be committed"
    assert len(stock.member._SyncObj__otherNodes) == 2, "neither was ever up"


@STOCK_IS_RED
def test_l3_stock_a_command_that_cannot_leave_is_settled_at_once() -> None:
    stock = Bench(StockCounter(), lambda _index: NO_OP)
    stock.append(2)
    stock.member._SyncObj__transport.send = lambda _node, _message: False
    settled: list[int] = []
    stock.member.count(1, callback=lambda _result, reason: settled.append(reason))
    stock.member._checkCommandsToApply()
    assert settled


@STOCK_IS_RED
def test_l1_stock_nobody_helps_to_depose_a_leader_that_it_hears() -> None:
    stock = Bench(StockCounter(), lambda _index: NO_OP)
    stock.append(2)
    log_end = {"last_log_index": 9, "last_log_term": 9}
    stock.receive({"type": "request_vote", "term": 9, **log_end}, sender=THIRD)
    assert stock.member._SyncObj__raftCurrentTerm == 1


LAST_OF = {"s": 8, "l": 6, "d": 8}
ROWS = [f"{kind}{number + 1}" for kind, last in LAST_OF.items() for number in range(last)]


@pytest.mark.parametrize("row", ROWS)
def test_every_finding_has_a_test_of_its_own(row: str) -> None:
    """By name, in this directory: test_s6_s7_… is for both."""
    found = [
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        if row in name.split("_")[1:3]
    ]
    assert found


def test_a_guest_that_contradicts_what_is_committed_is_hung_up_on(ours: RaftNode) -> None:
    """Believed to lead for want of a leader, it must not end the process, as a voter's word does."""
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, 3, term=1, commit_index=3)
    message = {
        "type": "append_entries",
        "term": 7,
        "commit_index": 3,
        "prevLogIdx": 1,
        "prevLogTerm": 0,
        "entries": [(NO_OP, 2, 7)],
    }
    ours.heard_at = 0.0
    with pytest.raises(BadPacket):
        bench.receive(message, sender="h:9")
    assert bench.indexes == [1, 2, 3]
    with pytest.raises(AssertionError):
        bench.receive({**message, "term": 8, "entries": [(NO_OP, 2, 8)]}, sender=THIRD)


def test_handshakes_get_a_share_of_each_turn(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Slow(TlsStream):
        def __init__(self) -> None:
            """No socket: shake() is all that is asked of it."""

        def shake(self) -> bool:
            clock[0] += 0.6 * SHAKE_S_PER_TURN_MAX
            return True

    monkeypatch.setattr(transport_module, "monotonic", lambda: clock[0])
    assert [ours.transport.shake(Slow()) for _ in range(4)] == [True, True, False, False]
    ours.transport.on_tick(clock[0])
    assert ours.transport.shake(Slow())


def test_what_was_said_leaves_before_the_thread_waits(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its disk (the others sync meanwhile), and for its peers."""
    story: list[str] = []

    class Said(Link):
        def __init__(self) -> None:
            """No connection: flush() is all that is asked of it."""

        def flush(self) -> None:
            story.append("left")

    def note(event: str, *_arguments: object) -> None:
        story.append(event)
        ours.transport.flush_later(Said())

    note("said")
    monkeypatch.setattr(ours.journal, "sync", lambda: note("synced"))
    monkeypatch.setattr(ours._poller, "poll", lambda _timeout: note("waited"))
    ours._SyncObj__raftElectionDeadline = float("inf")
    ours._onTick(0.0)
    ours.transport.flush()
    assert story == ["said", "left", "synced", "left", "waited", "left"]
