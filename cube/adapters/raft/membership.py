"""Changing the voters and handing leadership over: findings S3, L4 and L5.

S3: the library lets several changes of the voters be under way at once. Here they queue: one is
appended when the one before it is committed, and never before the leader's own first entry is.
L4: adding a voter that is not up can cost the quorum. Here the new one gets the log first, without
a vote, and is added once it has it.
L5: a leader cannot remove itself: it is refused, and asked to hand leadership over first.
A joiner may vote when asked, but does not stand before its own addition is committed.

Who is being added is a read-only node of the library meanwhile: the leader sends it the log like a
follower, without counting it. Other learners are not this member's business (following.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from cube.adapters.raft.commands import MEMBERS_MAX, encode_members
from cube.adapters.raft.library import (
    REASON_MISSING_LEADER,
    REASON_NOT_LEADER,
    REASON_QUEUE_FULL,
    REASON_REQUEST_DENIED,
    REASON_SUCCESS,
    REASON_UNKNOWN_OUTCOME,
    Callback,
    Peer,
    monotonic,
)
from cube.adapters.raft.proposing import Proposing
from cube.ports.log import Progress

logger = logging.getLogger(__name__)

CHANGES_WAITING_MAX = 64
# A learner this close to the end of the log has caught up: the rest is a message or two.
CATCH_UP_ENTRIES_MAX = 100
HANDOVERS_WAITING_MAX = 16
# How often waiting changes are looked at when nothing else happens.
STEP_S = 0.025


class Change:
    """`address` is to be a voter, or none. `deadline` is on the library's clock."""

    __slots__ = ("_settle", "address", "deadline", "is_addition", "is_appended", "is_settled")

    def __init__(
        self, address: str, deadline: float, settle: Callback, *, is_addition: bool
    ) -> None:
        self.address = address
        self.deadline = deadline
        self.is_addition = is_addition
        self.is_appended = False
        self.is_settled = False
        self._settle = settle

    def settle(self, result: object, reason: int) -> None:
        if not self.is_settled:
            self.is_settled = True
            self._settle(result, reason)


class Handover(NamedTuple):
    """Somebody waits for another leader: for `to`, if not None. `deadline` is on the library's
    clock."""

    deadline: float
    settle: Callback
    to: str | None


class Membership(Proposing):
    """Voters come and go one at a time, each change committed before the next; leadership is handed
    over."""

    on_joined: Callable[[], None]  # persists that this member is no longer joining
    _changes: deque[Change]
    _handovers: list[Handover]
    _handover_sent_at = 0.0

    @property
    def has_pending_steps(self) -> bool:
        return bool(self._changes or self._handovers)

    def on_membership_committed(self) -> None:
        committed = self.configuration.at(self.applied_index)
        logger.info(
            "raft_voters index=%d voters=%s", self.applied_index, ",".join(sorted(committed))
        )
        if self.joining and self.address in committed:
            self.joining = False
            self.on_joined()

    # --- changes

    def request_change(self, change: Change) -> None:
        if len(self._changes) >= CHANGES_WAITING_MAX:
            change.settle(None, REASON_QUEUE_FULL)
        else:
            self._changes.append(change)

    def step_changes(self) -> None:
        """The first waiting change is a step further, if it can be."""
        if not self.is_leader:
            while self._changes:
                change = self._changes.popleft()
                unknown = change.is_appended
                change.settle(None, REASON_UNKNOWN_OUTCOME if unknown else REASON_NOT_LEADER)
            self._keep_newcomers(frozenset())
            return
        now = monotonic()
        while self._changes:
            change = self._changes[0]
            if not change.is_settled and now > change.deadline:
                unknown = change.is_appended
                change.settle(None, REASON_UNKNOWN_OUTCOME if unknown else REASON_REQUEST_DENIED)
            if not change.is_settled and not change.is_appended:
                self._step_change(change)
            if not change.is_settled:
                return
            self._changes.popleft()
            self._keep_newcomers(frozenset(c.address for c in self._changes if c.is_addition))

    def _step_change(self, change: Change) -> None:
        is_settled_ground = (
            self.configuration.last_index <= self.commit_index
            and self._SyncObj__noopIDx is not None
            and self.applied_index >= self._SyncObj__noopIDx
        )
        if not is_settled_ground:
            return
        current = self.configuration.current
        if (change.address in current) == change.is_addition:
            change.settle(None, REASON_SUCCESS)
        elif (not change.is_addition and change.address == self.address) or (
            change.is_addition and len(current) >= MEMBERS_MAX
        ):
            change.settle(None, REASON_REQUEST_DENIED)
        elif not change.is_addition:
            self._append_voters(change, current - {change.address})
        elif self._has_caught_up(Peer(change.address)):
            self._append_voters(change, current | {change.address})

    def _has_caught_up(self, peer: Peer) -> bool:
        learners = self._SyncObj__readonlyNodes
        if peer not in learners:
            learners.add(peer)
            self.follow_peer(peer)
            return False
        matched = self._SyncObj__raftMatchIndex[peer]
        is_close = matched + CATCH_UP_ENTRIES_MAX >= self.journal.last_index
        return self.transport.is_up(peer) and matched > 0 and is_close

    def _append_voters(self, change: Change, voters: frozenset[str]) -> None:
        change.is_appended = True
        self._is_holding_sends = True  # the entry goes to the old voters and the new
        index = self.append_entry(encode_members(voters), change.settle)
        self.set_configuration(self.configuration.appended(index, voters))
        self._is_holding_sends = self._is_send_wanted = False
        if self.quorum_size == 1:
            self.wake()
        self._SyncObj__sendAppendEntries()

    def _keep_newcomers(self, adding: frozenset[str]) -> None:
        """The log is sent to nobody without a vote but to these."""
        newcomers = self._SyncObj__readonlyNodes
        for peer in [peer for peer in newcomers if peer.id not in adding]:
            newcomers.discard(peer)
            self.forget_peer(peer)

    def _SyncObj__onNodeConnected(self, node: Peer) -> None:  # noqa: N802
        """A learner may come back without its disk, before anybody knows it by name: what it had is
        asked anew. (A voter that lost its disk does not come back under its old address.)"""
        if node in self._SyncObj__readonlyNodes:
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
        super()._SyncObj__onNodeConnected(node)

    def progress(self) -> tuple[Progress, ...]:
        if not self.is_leader:
            return ()
        now = monotonic()
        peers = self._SyncObj__otherNodes | self._SyncObj__readonlyNodes
        return tuple(
            Progress(
                peer.id,
                self._SyncObj__raftMatchIndex[peer],
                self.journal.last_index - self._SyncObj__raftMatchIndex[peer],
                int((now - self._SyncObj__lastResponseTime[peer]) * 1000),
            )
            for peer in sorted(peers, key=lambda peer: peer.id)
        )

    # --- handing over

    def request_handover(self, handover: Handover) -> None:
        """The first that waits says to whom; those that come meanwhile wait for the same election."""
        heirs = [
            peer
            for peer in self._SyncObj__otherNodes
            if handover.to in (None, peer.id) and self.transport.is_up(peer)
        ]
        if len(self._handovers) >= HANDOVERS_WAITING_MAX:
            handover.settle(None, REASON_QUEUE_FULL)
        elif not self.is_leader:
            handover.settle(None, REASON_NOT_LEADER)
        elif handover.to == self.address:
            handover.settle(None, REASON_SUCCESS)
        elif not heirs:
            handover.settle(None, REASON_REQUEST_DENIED)
        else:
            self._handovers.append(handover)

    def step_handover(self) -> None:
        """New commands wait, so that a follower can catch up; then it is told to stand."""
        if not self._handovers:
            self.is_handing_over = False
            return
        now = monotonic()
        if not self.is_leader:
            # In office is who is known to be: until then a caller would find no leader.
            if self.leader is not None:
                self._end_handover(REASON_SUCCESS)
            elif now > max(handover.deadline for handover in self._handovers):
                self._end_handover(REASON_MISSING_LEADER)
            return
        if now > max(handover.deadline for handover in self._handovers):
            self._end_handover(REASON_REQUEST_DENIED)
            return
        self.is_handing_over = True
        if now - self._handover_sent_at > self.settings.election_min_ms / 1000:
            to = self._handovers[0].to
            peer = Peer(to) if to is not None else None
            self.transferLeadership(peer, self._on_handover_sent)

    def _on_handover_sent(self, _result: object, reason: int) -> None:
        if reason == REASON_SUCCESS:
            self._handover_sent_at = monotonic()

    def _end_handover(self, reason: int) -> None:
        self.is_handing_over = False
        self._handover_sent_at = 0.0
        handovers, self._handovers = self._handovers, []
        leader = self.leader.id if self.leader is not None else None
        for handover in handovers:
            is_another = reason == REASON_SUCCESS and handover.to not in (None, leader)
            handover.settle(None, REASON_REQUEST_DENIED if is_another else reason)
