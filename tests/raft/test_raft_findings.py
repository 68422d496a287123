"""The findings that the adapter mends, each shown red on the stock library.

One scenario, two members: `stock` is pysyncobj as it is and must fail (xfail, strict: the day a
release mends it, this says so), `ours` must pass.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysyncobj
import pytest
from pysyncobj.node import Node

from cube.adapters.raft import library
from cube.adapters.raft.commands import NO_OP, stamped, unstamped
from cube.adapters.raft.library import FOLLOWER, LEADER, Peer, monotonic
from cube.adapters.raft.membership import Change
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.settings import RaftSettings, library_conf
from tests.raft_support import ListReplica

SELF, OTHER, THIRD = "127.0.0.1:11", "127.0.0.1:12", "127.0.0.1:13"
STOCK_IS_RED = pytest.mark.xfail(strict=True, reason="pysyncobj 0.3.17 has this fault")
BOTH = [pytest.param("stock", marks=STOCK_IS_RED), "ours"]


class SilentTransport:
    """The library's transport interface, going nowhere."""

    ready = True

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, _node: Node, message: dict[str, Any]) -> bool:
        self.sent.append(message)
        return True

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith(("set", "addNode", "dropNode", "destroy")):
            return lambda *_arguments: None
        raise AttributeError(name)


class StockCounter(pysyncobj.SyncObj):  # type: ignore[misc]
    def __init__(self) -> None:
        self.applied: list[int] = []
        self.fails = False
        others = [Node(OTHER), Node(THIRD)]
        super().__init__(
            Node(SELF),
            others,
            library_conf(RaftSettings()),
            nodeClass=Node,
            transport=SilentTransport(),
        )
        for node in others:
            self._SyncObj__raftNextIndex[node] = 2
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = monotonic()

    @pysyncobj.replicated  # type: ignore[untyped-decorator]
    def count(self, number: int) -> int:
        if self.fails:
            raise ValueError(number)
        self.applied.append(number)
        return number


class Bench:
    """One member in the middle of a cluster of three, and a way to poke it."""

    def __init__(self, member: Any, make_command: Callable[[int], bytes]) -> None:
        self.member = member
        self.make_command = make_command

    def receive(self, message: dict[str, Any], sender: str = OTHER) -> None:
        self.member._SyncObj__onMessageReceived(Peer(sender), message)

    def append(self, *indexes: int, term: int = 1, commit_index: int = 1) -> None:
        """A leader's message with these entries, the one before them being of the same term."""
        previous = indexes[0] - 1
        self.receive(
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit_index,
                "prevLogIdx": previous,
                "prevLogTerm": 0 if previous == 1 else term,
                "entries": [(self.make_command(index), index, term) for index in indexes],
            }
        )

    @property
    def indexes(self) -> list[int]:
        return [entry[1] for entry in self.member._SyncObj__raftLog[:]]

    def lead(self, term: int, last_index: int) -> None:
        log = self.member._SyncObj__raftLog
        for index in range(2, last_index + 1):
            log.add(NO_OP, index, term)
        self.member._SyncObj__raftCurrentTerm = term
        self.member._SyncObj__raftState = LEADER


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[RaftNode]:
    node = RaftNode(
        SELF,
        members=(OTHER, THIRD),
        directory=tmp_path,
        replica=ListReplica("self"),
        stamp=lambda: 0,
        settings=RaftSettings(),
        joining=False,
        cluster="",
    )
    node.set_configuration(node.configuration)
    yield node
    node.transport._links.clear()  # none was dialled: there is no poller yet
    node.close()
    node.close_pipe()


@pytest.fixture
def bench(request: pytest.FixtureRequest, ours: RaftNode) -> Iterator[Bench]:
    if request.param == "ours":
        yield Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
        return
    import pysyncobj.pickle as library_pickle

    stock = StockCounter()
    method = stock._methodToID["count_v0"]
    yield Bench(stock, lambda index: b"\x00" + bytes(library_pickle.dumps((method, (index,)))))


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_s1_a_duplicate_message_truncates_nothing(bench: Bench) -> None:
    bench.append(2, 3, 4, 5)
    bench.append(2, 3)  # the same again, as after a lost acknowledgement
    assert bench.indexes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_s1_a_heartbeat_behind_the_tail_truncates_nothing(bench: Bench) -> None:
    bench.append(2, 3, 4, 5)
    heartbeat = {"prevLogIdx": 3, "prevLogTerm": 1, "entries": []}
    bench.receive({"type": "append_entries", "term": 1, "commit_index": 1, **heartbeat})
    assert bench.indexes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_s1_an_acknowledgement_never_moves_the_next_index_back(bench: Bench) -> None:
    bench.lead(term=1, last_index=20)
    following = bench.member._SyncObj__raftNextIndex
    following[Peer(OTHER)] = 21  # all is sent already
    bench.receive(
        {"type": "next_node_idx", "term": 1, "next_node_idx": 5, "success": True, "reset": False}
    )
    assert bench.member._SyncObj__raftMatchIndex[Peer(OTHER)] == 4
    assert following[Peer(OTHER)] == 21


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_s2_an_acknowledgement_of_an_older_term_counts_for_nothing(bench: Bench) -> None:
    bench.lead(term=3, last_index=20)
    bench.receive(
        {"type": "next_node_idx", "term": 2, "next_node_idx": 15, "success": True, "reset": False}
    )
    assert bench.member._SyncObj__raftMatchIndex[Peer(OTHER)] == 0


@pytest.mark.parametrize("bench", BOTH, indirect=True)
def test_s5_a_callback_that_raises_applies_nothing_twice(bench: Bench) -> None:
    bench.append(2, commit_index=2)

    def fail(_result: object, _reason: int) -> None:
        raise RuntimeError("a callback's own bug")

    bench.member._SyncObj__commandsWaitingCommit[2] = [(1, fail)]
    for _ in range(3):
        with contextlib.suppress(RuntimeError):
            bench.member._SyncObj__applyLogEntries()
    replica = getattr(bench.member, "replica", None)
    applied = replica.payloads if replica is not None else bench.member.applied
    assert len(applied) == 1


def test_s1_a_conflict_of_terms_truncates_from_there_only(ours: RaftNode) -> None:
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, 3, 4, 5)
    entries = [(bench.make_command(i), i, 1 if i < 4 else 2) for i in (3, 4)]
    bench.receive(
        {
            "type": "append_entries",
            "term": 2,
            "commit_index": 1,
            "prevLogIdx": 2,
            "prevLogTerm": 1,
            "entries": entries,
        }
    )
    assert [(index, term) for _, index, term in ours.journal.entries()] == [
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
    ]


def test_s1_no_more_is_acknowledged_or_committed_than_was_compared(ours: RaftNode) -> None:
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, 3, 4, 5)
    ours._acks.clear()
    # A new leader that has 2 and 3 only, but knows 5 (of its own log) to be committed.
    bench.receive(
        {
            "type": "append_entries",
            "term": 2,
            "commit_index": 5,
            "prevLogIdx": 3,
            "prevLogTerm": 1,
            "entries": [],
        }
    )
    assert ours._acks[Peer(OTHER)]["next_node_idx"] == 4
    assert ours.commit_index == 3


def test_s1_a_committed_entry_is_never_truncated(ours: RaftNode) -> None:
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, 3, commit_index=3)
    with pytest.raises(AssertionError):
        bench.receive(
            {
                "type": "append_entries",
                "term": 2,
                "commit_index": 1,
                "prevLogIdx": 1,
                "prevLogTerm": 0,
                "entries": [(bench.make_command(2), 2, 2)],
            }
        )


def test_nothing_is_acknowledged_before_it_is_in_the_journal(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool] = []

    def send(_node: Peer, _message: dict[str, Any]) -> bool:
        states.append(ours.journal.is_dirty)
        return True

    monkeypatch.setattr(ours.transport, "send", send)
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, 3)
    assert ours.journal.is_dirty
    assert states == []
    ours.flush_acks()
    bench.receive({"type": "request_vote", "term": 9, "last_log_index": 9, "last_log_term": 9})
    ours.on_peer_silent(Peer(OTHER))
    bench.receive({"type": "request_vote", "term": 9, "last_log_index": 9, "last_log_term": 9})
    assert states == [False, False]
    assert ours.journal.getVotedForNodeId() == OTHER


def test_s3_a_change_waits_for_the_one_before_it_and_for_the_leaders_own_entry(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library accepted four at once, none of them committed."""
    monkeypatch.setattr(ours, "_has_caught_up", lambda _peer: True)
    Bench(ours, lambda _index: NO_OP).lead(term=1, last_index=2)
    ours._SyncObj__noopIDx = 2
    settled: list[tuple[str, int]] = []
    for address in ("127.0.0.1:21", "127.0.0.1:22"):
        ours.request_change(
            Change(
                address,
                monotonic() + 60,
                lambda _result, reason, address=address: settled.append((address, reason)),  # type: ignore[misc]
                is_addition=True,
            )
        )

    def step(commit_index: int) -> int:
        ours._SyncObj__raftCommitIndex = commit_index
        ours._SyncObj__applyLogEntries()
        ours.step_changes()
        return ours.journal.last_index

    assert step(1) == 2  # the leader's own first entry is not committed
    assert step(2) == 3
    assert step(2) == 3  # the first change is not committed
    assert len(ours.configuration.current) == 4
    assert step(3) == 4
    assert settled == [("127.0.0.1:21", library.REASON_SUCCESS)]
    assert len(ours.configuration.current) == 5


def test_l1_nobody_helps_to_depose_a_leader_that_it_hears(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = SilentTransport()
    sent = transport.sent
    monkeypatch.setattr(ours.transport, "send", transport.send)
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2)
    last = {"last_log_index": 9, "last_log_term": 9}
    bench.receive({"type": "pre_vote", "term": 2, **last}, THIRD)
    bench.receive({"type": "request_vote", "term": 5, **last}, THIRD)
    assert sent == []
    assert ours.term == 1
    # Once the leader's connection is gone it may be replaced.
    ours.on_peer_silent(Peer(OTHER))
    bench.receive({"type": "pre_vote", "term": 2, **last}, THIRD)
    bench.receive({"type": "request_vote", "term": 2, **last}, THIRD)
    assert [message["type"] for message in sent] == ["pre_vote_ok", "response_vote"]


def test_l1_a_leader_of_an_old_term_is_told(
    ours: RaftNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = SilentTransport()
    sent = transport.sent
    monkeypatch.setattr(ours.transport, "send", transport.send)
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2, term=4)
    bench.append(2, term=3)
    assert sent == [{"type": "term_hint", "term": 4}]
    bench.receive({"type": "term_hint", "term": 6})
    assert (ours.term, ours.leader) == (6, None)


def test_l1_asking_first_changes_no_term(ours: RaftNode) -> None:
    ours._SyncObj__raftElectionDeadline = 0.0
    ours._step_election()
    assert ours.term == 0
    assert not ours._SyncObj__connectedToAnyone()  # the library's own election stays closed
    ours._SyncObj__onMessageReceived(Peer(THIRD), {"type": "pre_vote_ok", "term": 1})
    ours._step_election()
    assert ours._SyncObj__connectedToAnyone()


def test_a_vote_from_outside_the_voters_does_not_count(ours: RaftNode) -> None:
    ours._SyncObj__raftElectionDeadline = 0.0
    ours._step_election()
    ours._SyncObj__onMessageReceived(Peer("127.0.0.1:99"), {"type": "pre_vote_ok", "term": 1})
    ours._step_election()
    assert not ours._SyncObj__connectedToAnyone()


def test_l3_a_command_that_cannot_leave_is_settled_at_once(ours: RaftNode) -> None:
    from cube.adapters.raft.proposing import Submission

    settled: list[int] = []
    bench = Bench(ours, lambda index: stamped(unstamped(b"%d" % index), 0))
    bench.append(2)
    assert ours._SyncObj__raftState == FOLLOWER
    ours.queue.put(Submission(unstamped(b"x"), lambda _r, reason: settled.append(reason)))
    ours._checkCommandsToApply()  # the leader is known, and about to be dialled
    assert settled == []
    ours.transport._links[OTHER].close()  # in vain
    ours._checkCommandsToApply()
    assert settled == [library.REASON_MISSING_LEADER]


def test_every_private_name_in_use_exists_in_this_release(ours: RaftNode) -> None:
    assert library.library_version() == "0.3.17"
    missing = library.missing_names(ours)
    assert not missing, f"this release of pysyncobj no longer has: {', '.join(missing)}"


def test_a_dropped_private_name_is_named(ours: RaftNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pysyncobj.SyncObj, "_SyncObj__sendAppendEntries")
    del ours._SyncObj__noopIDx
    assert library.missing_names(ours) == ["sendAppendEntries", "noopIDx"]


def test_every_private_name_in_use_is_listed() -> None:
    package = Path(library.__file__).parent
    used = {
        name
        for path in package.glob("*.py")
        if path.name != "library.py"
        for name in re.findall(r"_SyncObj__(\w+)", path.read_text())
    }
    assert used
    assert used <= library.listed_names()
