"""Getting commands into the log: findings L3, S6 and S7, and the leader's stamp.

S6, S7: the library's replicated methods are not used; a command is one kind byte and bytes.
L3: the library forgets a command forwarded over a dead link, and one whose reply never comes. Here
a command that could not leave is settled at once, one whose leader is lost is settled as unknown,
and the caller's own deadline settles the rest. Commands that wait are bounded in number and bytes.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Callable

from cube.adapters.raft.commands import KIND_DATA, KIND_NO_OP, kind_of, stamped
from cube.adapters.raft.election import Election
from cube.adapters.raft.library import (
    REASON_MISSING_LEADER,
    REASON_NOT_LEADER,
    REASON_QUEUE_FULL,
    REASON_REQUEST_DENIED,
    REASON_UNKNOWN_OUTCOME,
    Callback,
    Peer,
    monotonic,
)

QUEUE_COMMANDS_MAX = 10_000
QUEUE_BYTES_MAX = 64 << 20
# Taken in one tick, so that messages and heartbeats are never late because of commands.
COMMANDS_PER_TICK_MAX = 1_000
COMMANDS_PER_TICK_S_MAX = 0.02
# A forwarded command that got no reply for this long is forgotten: no caller waits longer.
REPLY_WAIT_S_MAX = 60.0


class _State(enum.Enum):
    QUEUED = enum.auto()
    TAKEN = enum.auto()
    WITHDRAWN = enum.auto()


class Submission:
    """A command on its way into the log.

    `settle` is called once on the Raft thread, with the outcome, unless withdraw() came first. When
    `on_placed` is given (a peer waits for the place, not for the outcome), it is called instead of
    `settle` once the command is in the leader's log at (index, term).
    """

    __slots__ = ("command", "on_placed", "settle", "state")

    def __init__(
        self,
        command: bytes,
        settle: Callback,
        on_placed: Callable[[int, int], None] | None = None,
    ) -> None:
        self.command = command
        self.settle = settle
        self.on_placed = on_placed
        self.state = _State.QUEUED


class SubmissionQueue:
    """Where other threads leave commands. The lock is held for a few instructions only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Submission] = deque()
        self._bytes = 0

    def put(self, submission: Submission) -> bool:
        """False when the queue is full, and nothing was done."""
        size = len(submission.command)
        with self._lock:
            if len(self._waiting) >= QUEUE_COMMANDS_MAX or self._bytes + size > QUEUE_BYTES_MAX:
                return False
            self._waiting.append(submission)
            self._bytes += size
        return True

    def take(self) -> Submission | None:
        with self._lock:
            while self._waiting:
                submission = self._waiting.popleft()
                self._bytes -= len(submission.command)
                if submission.state is _State.QUEUED:
                    submission.state = _State.TAKEN
                    return submission
        return None

    def withdraw(self, submission: Submission) -> bool:
        """True when it was still waiting: it is certain that it will not happen."""
        with self._lock:
            if submission.state is not _State.QUEUED:
                return False
            submission.state = _State.WITHDRAWN
            return True

    def __bool__(self) -> bool:
        return bool(self._waiting)


class Proposing(Election):
    """Commands get into the log: the leader's own, and those that others forward to it."""

    queue: SubmissionQueue
    stamp: Callable[[], int]
    is_handing_over = False  # commands wait while leadership is on its way to another
    _forwarded: deque[tuple[float, int]]  # (forget at, request id), in order

    @property
    def may_take_commands(self) -> bool:
        """False while leadership is on its way to another, and while a leader that was only just
        heard of is dialled back: a moment, bounded by the time that a dial may take."""
        if self.is_handing_over:
            return False
        leader = self.leader
        return self.is_leader or leader is None or not self.transport.is_dialling(leader)

    def _applyCommand(  # noqa: N802
        self,
        command: bytes,
        callback: object,
        commandType: int | None = None,  # noqa: N803
    ) -> None:
        """The library hands over a peer's command: (peer, request id) in place of a callback."""
        assert commandType is None
        if not isinstance(callback, tuple):
            return
        peer: Peer = callback[0]
        request_id: int = callback[1]

        def refuse(_result: object, reason: int) -> None:
            self._respond(peer, request_id, {"error": reason})

        def place(index: int, term: int) -> None:
            self._respond(peer, request_id, {"log_idx": index, "log_term": term})

        if kind_of(command) not in (KIND_DATA, KIND_NO_OP):
            refuse(None, REASON_REQUEST_DENIED)  # voters change through the leader's own port only
        elif not self.is_leader:
            refuse(None, REASON_NOT_LEADER)
        elif not self.queue.put(Submission(command, refuse, place)):
            refuse(None, REASON_QUEUE_FULL)

    def _respond(self, peer: Peer, request_id: int, answer: dict[str, int]) -> None:
        message = {"type": "apply_command_response", "request_id": request_id, **answer}
        self.transport.send(peer, message)

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        self._is_holding_sends = True
        now = monotonic()
        while self._forwarded and self._forwarded[0][0] < now:
            settle = self._SyncObj__commandsWaitingReply.pop(self._forwarded.popleft()[1], None)
            if settle is not None:
                settle(None, REASON_UNKNOWN_OUTCOME)
        super()._onTick(timeToWait)

    def _SyncObj__onNodeDisconnected(self, node: Peer) -> None:  # noqa: N802
        """What was forwarded over this connection may be in the log or not, and no reply will say."""
        super()._SyncObj__onNodeDisconnected(node)
        if node == self.leader:
            self._SyncObj__onLeaderChanged()

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Waiting commands are in the log or on their way to the leader; then what this tick has to
        say (entries, a new commit index, a heartbeat) is said to each peer once."""
        if self.may_take_commands:
            self._take_commands()
        self._is_holding_sends = False
        if self._is_send_wanted:
            self._is_send_wanted = False
            if self.is_leader:
                self._SyncObj__sendAppendEntries()
        self.transport.flush()  # the others sync while we do
        self.journal.sync()

    def _take_commands(self) -> None:
        deadline = monotonic() + COMMANDS_PER_TICK_S_MAX
        for _ in range(COMMANDS_PER_TICK_MAX):
            submission = self.queue.take()
            if submission is None:
                break
            if self.is_leader:
                self._append(submission)
            else:
                self._forward(submission)
            if monotonic() > deadline:
                break

    def _append(self, submission: Submission) -> None:
        command = submission.command
        if kind_of(command) == KIND_DATA:
            self.at_ms_last = max(self.at_ms_last, self.stamp())
            command = stamped(command, self.at_ms_last)
        if submission.on_placed is None:
            self.append_entry(command, submission.settle)
        else:
            submission.on_placed(self.append_entry(command, None), self.term)

    def append_entry(self, command: bytes, settle: Callback | None) -> int:
        """The index of the new entry; `settle` hears of its end. Leader only."""
        assert self.is_leader
        index = self.journal.last_index + 1
        self.journal.add(command, index, self.term)
        if settle is not None:
            self._SyncObj__commandsWaitingCommit[index].append((self.term, settle))
        self._SyncObj__sendAppendEntries()
        if self.quorum_size == 1:
            self.wake()  # nobody's answer will: the next tick commits it
        return index

    def _forward(self, submission: Submission) -> None:
        leader = self.leader
        if leader is None:
            submission.settle(None, REASON_MISSING_LEADER)
            return
        if submission.on_placed is not None:
            submission.settle(None, REASON_NOT_LEADER)  # a peer's: it knows better by now
            return
        if not self.is_voter and not self.transport.is_heard(leader):
            # It answers on a connection of its own, which it makes when it sees ours.
            submission.settle(None, REASON_MISSING_LEADER)
            return
        self._SyncObj__commandsLocalCounter += 1
        request_id = self._SyncObj__commandsLocalCounter
        message = {
            "type": "apply_command",
            "command": submission.command,
            "request_id": request_id,
        }
        if not self.transport.send(leader, message):
            submission.settle(None, REASON_MISSING_LEADER)
            return
        self._SyncObj__commandsWaitingReply[request_id] = submission.settle
        self._forwarded.append((monotonic() + REPLY_WAIT_S_MAX, request_id))
