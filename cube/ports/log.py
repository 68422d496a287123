"""The replicated log: the only door to consensus."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec


class Role(enum.StrEnum):
    LEADER = "leader"
    VOTER = "voter"  # a follower or a candidate
    LEARNER = "learner"  # fetches the log from others, applies it, forwards proposals; no vote


class Voter(msgspec.Struct, frozen=True, order=True):
    """A member of the quorum. `address` is host:port of its Raft listener, unique in the cluster."""

    address: str


class LogStatus(msgspec.Struct, frozen=True):
    """What this node believes now. `leader` is the leader's Raft address, or None when unknown.

    `quorum` is True when this node is a leader that hears from a majority, or follows a leader it
    has heard from within the election timeout. `ready` is True once the log of earlier runs has
    been applied as far as it was known to be committed and, at a leader, a barrier of its own term
    has been applied. `fault` says why this member cannot take part at present ("disk: No space left
    on device"); it is empty when all is well, and again once the cause is gone. `lineage` names the
    history that this member is part of: empty, until the cluster is recovered or restored.
    """

    role: Role
    term: int
    leader: str | None
    commit_index: int
    applied_index: int
    voters: tuple[Voter, ...]
    quorum: bool
    ready: bool
    fault: str = ""
    lineage: str = ""


class Ask(msgspec.Struct, frozen=True):
    """What a member that follows the log asks of another one: what comes after (index, term), the last
    entry that it knows to be committed. `office` is who leads as far as it has heard, in the words
    of the last answer: an answer waits while there is nothing new of either. While a snapshot is
    on its way, `snapshot` is the index it stands at, and `offset` the bytes that are there."""

    index: int
    term: int
    office: str = ""
    snapshot: int = 0
    offset: int = 0


class Taken(msgspec.Struct, frozen=True):
    """What became of an answer. `is_current`: who gave it hears a leader and is not behind it.
    `next`: what to ask the same member next. `is_more`: it has more, at once."""

    next: Ask
    is_current: bool
    is_more: bool


class Progress(msgspec.Struct, frozen=True):
    """Another member as the leader sees it. `match_index`: its log is known to be the leader's up
    to there; 0 until it has answered this leader. `lag`: entries of the leader's log that are not
    known to be in its own. `silent_ms`: since it last answered, or since this leader took office or
    began to follow it up."""

    address: str
    match_index: int
    lag: int
    silent_ms: int


class Committed(msgspec.Struct, frozen=True):
    """An entry of ours is committed and applied on this node; `result` is what Replica.apply returned."""

    index: int
    term: int
    result: object


class Replica(Protocol):
    """What the log drives. One call at a time, in index order, on the log's own thread; only the
    load of a dump that another member sent is on a thread of its own."""

    def apply(self, index: int, term: int, at_ms: int, data: bytes) -> object:
        """Apply a committed entry. Must not raise; the adapter treats an exception as a bug and ends
        the process. `at_ms` was stamped by the leader that appended it (Log's `stamp`)."""
        ...

    def dump(self) -> Callable[[], Iterator[bytes]]:
        """Take a reference of the state as of the last applied entry, at once (no copying); the
        returned function encodes it, on any thread, in slices of a millisecond's work or so. The
        log pauses between them: a thread that only computes holds all others up."""
        ...

    def load(self, data: bytes, index: int) -> None:
        """Replace the state by a dump, which stood at `index`. Raises BadPacket for foreign bytes."""
        ...


class Log(Protocol):
    """A replicated, totally ordered, durable list of opaque entries.

    Contract: an entry whose propose() returned is applied on every member, in the same order, and
    survives kill -9 of any minority (of all members at once, too: what was acknowledged is there
    after the restart). A leader's entries carry `at_ms` from the leader's own stamp function,
    called at append. The adapter runs on a thread of its own: no method blocks the caller's loop.
    """

    async def start(self) -> None:
        """The log is open, its past applied as far as known committed, and the member listens."""
        ...

    async def stop(self) -> None:
        """Closed and flushed; pending proposals have raised OutcomeUnknown or Unavailable. A leader
        offers its leadership to a caught-up follower first. Idempotent."""
        ...

    async def propose(self, data: bytes, timeout_ms: int) -> Committed:
        """Commit and apply `data` (≤ ENTRY_BYTES_MAX), from any member.

        Raises Unavailable: it is certain that it did not and will not happen (no leader known, the
        queue is full, too large, this member has a fault: the message says which). Raises OutcomeUnknown:
        leader lost or deadline passed on the way; the entry may still be committed later.
        """
        ...

    async def barrier(self, timeout_ms: int) -> int:
        """The applied index here, at or above every entry committed before the call, cluster-wide.
        Raises Unavailable when there is no leader to ask within the timeout."""
        ...

    def status(self) -> LogStatus:
        """Cheap, from any thread."""
        ...

    def watch(self, callback: Callable[[LogStatus], None]) -> None:
        """`callback` is called on the event loop that called start(), whenever role, term, leader,
        voters, quorum, ready or fault changed."""
        ...

    def ask(self) -> Ask:
        """What this member would ask of another one now; the first of a conversation. Cheap."""
        ...

    def is_awaited(self) -> bool:
        """Somebody here waits for an entry to be committed and applied. Cheap."""
        ...

    async def feed(self, ask: Ask, wait_ms: int) -> bytes:
        """What this member answers another one, at most FEED_BYTES_MAX: committed entries, or a piece
        of its snapshot where they are compacted; as soon as there is something new, after `wait_ms`
        without. From any member, whoever leads: what is committed is the same everywhere. Raises
        Unavailable: it has less than the asker, a fault, too many followers, or another history."""
        ...

    async def take(self, source: str, answer: bytes) -> Taken:
        """What feed() of the member `source` (any name, the same for the pieces of a snapshot)
        answered is stored and applied here, and who leads is known; of a leader, or of a voter that
        hears one, nothing changes but what it lacked. Nobody is told: a learner acknowledges nothing.
        Raises BadPacket for what feed() would not answer, Unavailable."""
        ...

    def progress(self) -> tuple[Progress, ...]:
        """The other voters and who is being added, by address; some tenths of a second old. Empty
        where this member does not lead."""
        ...

    async def add_voter(self, address: str, timeout_ms: int) -> None:
        """`address`, which has caught up with the log before its vote counts, is a voter, committed.
        Leader only, one change at a time (waits its turn); a member already there is success.
        Raises Unavailable, OutcomeUnknown."""
        ...

    async def remove_voter(self, address: str, timeout_ms: int) -> None:
        """`address` is no voter, committed. Leader only; the leader cannot remove itself."""
        ...

    async def transfer_leadership(self, timeout_ms: int, to: str | None = None) -> None:
        """Another caught-up voter leads: the one at `to`, when given. Leader only. Raises
        Unavailable when there is none, or another one than `to` was elected."""
        ...


ENTRY_BYTES_MAX = 1 << 20  # 1 MiB: one append batch (consensus.md, L6)
# Nodes without a vote that a cluster is made for: each holds two idle connections to the leader.
LEARNERS_MAX = 200
# Members that wait for this one's answers at once: beyond it they ask another voter.
FOLLOWERS_MAX = 128
# An answer of feed(), at most: a batch, or one entry of any size, with room for what is said about it.
FEED_BYTES_MAX = 8 << 20
