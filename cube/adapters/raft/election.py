"""Who may stand for election, and when: finding L1.

The library has no pre-vote: a member that was cut off comes back with a higher term and deposes a
healthy leader. Here a member asks first whether it could win (Raft dissertation §9.6), nobody
helps to depose a leader that it hears, and whoever speaks in an old term is told the new one.
A member that joins, or was removed, never stands.

A leader whose process dies is noticed by its closing connections: the followers wait only a short
random time then, not the election timeout. Pre-vote makes this safe when it was the connection
that broke: the others still hear the leader and refuse.
"""

from __future__ import annotations

import logging
import random

from cube.adapters.raft.allowed import Roles, may_speak
from cube.adapters.raft.applying import Applying
from cube.adapters.raft.library import CANDIDATE, FOLLOWER, Message, Peer, monotonic
from cube.adapters.raft.settings import LEADER_FALLBACK_MS

logger = logging.getLogger(__name__)

# After the leader's connection closed. Wide enough that two followers rarely stand at once.
LEADER_GONE_S = (0.02, 0.15)
# After asking in vain. Asking is cheap and changes no term, so the wait is short: a member that
# learns late that the leader is gone may have refused the first time.
RETRY_S = (0.1, 0.3)
# One who is no voter here is believed to lead when no leader was heard for this many of the longest
# election timeouts: time for the voters to find another, and this member cannot have missed much.
ELECTIONS_BEFORE_A_GUEST = 2


class Election(Applying):
    _pre_votes: set[str]
    _votes: set[tuple[int, str]]  # (term, voter) of those counted
    _pre_vote_term = -1  # the term in which `_pre_votes` were asked for
    _may_campaign = False  # the gate of the library's own election
    late_s = 0.0  # for how long it has not listened, at the beginning of a turn

    def _onTick(self, timeToWait: float = 0.0) -> None:  # noqa: N802, N803
        if self.is_leader:
            self._may_campaign = False
            self.heard_at = monotonic()
            # Answers that came while it was late are still to be read: silence is not held against
            # the others before.
            late_s = self.late_s if self.is_late else 0.0
            self._SyncObj__conf.leaderFallbackTimeout = LEADER_FALLBACK_MS / 1000 + late_s
            self.advance_commit()
        elif not self.is_electable:
            # The library's deadline is kept ahead, so that poll() can sleep until it.
            self._SyncObj__raftElectionDeadline = monotonic() + self.settings.election_max_ms / 1000
        else:
            self._step_election()
        self.transport.is_transfer = self._SyncObj__transferInProgress
        super()._onTick(timeToWait)
        if self._SyncObj__raftState == CANDIDATE:
            self._stand_within(RETRY_S)

    @property
    def is_electable(self) -> bool:
        return self.is_voter and not self.joining and not self.journal.fault

    @property
    def is_late(self) -> bool:
        """What the others have said meanwhile is read at the end of this turn."""
        return self.late_s > self.settings.heartbeat_ms / 1000

    def _step_election(self) -> None:
        now = monotonic()
        if self._SyncObj__transferInProgress or self.quorum_size == 1:
            self._may_campaign = True
            self._SyncObj__raftElectionDeadline = 0.0
        elif self._pre_vote_term == self.term and len(self._pre_votes) + 1 >= self.quorum_size:
            self._may_campaign = True
            self._SyncObj__raftElectionDeadline = 0.0
            self._end_pre_vote()
        elif now > self._SyncObj__raftElectionDeadline and not self.is_late:
            self._may_campaign = False
            self._SyncObj__raftElectionDeadline = float("inf")
            self._stand_within(RETRY_S)
            self._start_pre_vote()

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        """Asked by the library right before it stands for election."""
        may_campaign, self._may_campaign = self._may_campaign, False
        return may_campaign

    def _start_pre_vote(self) -> None:
        logger.debug("raft_pre_vote term=%d", self.term + 1)
        if self._SyncObj__raftLeader is not None:
            self._lose_leader()
        self._pre_votes = set()
        self._pre_vote_term = self.term
        last = self.journal[-1]
        for peer in self._SyncObj__otherNodes:
            self.transport.send(
                peer,
                {
                    "type": "pre_vote",
                    "term": self.term + 1,
                    "last_log_index": last[1],
                    "last_log_term": last[2],
                },
            )

    def _end_pre_vote(self) -> None:
        self._pre_votes = set()
        self._pre_vote_term = -1

    def roles_of(self, peer: Peer) -> int:
        roles = 0
        if peer in self._SyncObj__otherNodes:
            roles |= Roles.VOTER
        if peer in self._SyncObj__readonlyNodes:
            roles |= Roles.LEARNER
        if peer == self.leader:
            roles |= Roles.LEADER
        return roles

    def _SyncObj__onMessageReceived(self, node: Peer, message: Message) -> None:  # noqa: N802
        roles = self.roles_of(node)
        if not may_speak(message["type"], roles, heard_a_leader=self._heard_a_leader_lately()):
            return
        match message["type"]:
            case "pre_vote":
                self._on_pre_vote(node, message)
            case "pre_vote_ok":
                if message["term"] == self.term + 1:
                    self._pre_votes.add(node.id)
            case "term_hint":
                self._on_term_hint(message["term"])
            case "request_vote" if self.hears_a_leader() and not (
                message.get("transfer", False) and roles & Roles.VOTER
            ):
                pass
            case "request_vote":
                self._end_pre_vote()
                super()._SyncObj__onMessageReceived(node, message)
            case "response_vote":
                self._on_vote(node, message)
            case "append_entries":
                self._end_pre_vote()
                super()._SyncObj__onMessageReceived(node, message)
            case _:
                super()._SyncObj__onMessageReceived(node, message)

    def _on_vote(self, node: Peer, message: Message) -> None:
        """The library counts votes, not voters."""
        if message["term"] == self.term and (self.term, node.id) not in self._votes:
            self._votes = {vote for vote in self._votes if vote[0] == self.term}
            self._votes.add((self.term, node.id))
            super()._SyncObj__onMessageReceived(node, message)

    def _on_pre_vote(self, node: Peer, message: Message) -> None:
        last = self.journal[-1]
        is_up_to_date = (message["last_log_term"], message["last_log_index"]) >= (last[2], last[1])
        if message["term"] <= self.term:
            self.transport.send(node, {"type": "term_hint", "term": self.term})
        elif is_up_to_date and not self.hears_a_leader():
            self.transport.send(node, {"type": "pre_vote_ok", "term": message["term"]})

    def _on_term_hint(self, term: int) -> None:
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
            self._SyncObj__setState(FOLLOWER)
            self._lose_leader()
            deadline = monotonic() + self._SyncObj__generateRaftTimeout()
            self._SyncObj__raftElectionDeadline = deadline

    def hears_a_leader(self) -> bool:
        """A leader is in office as far as this member can tell."""
        if self.is_leader:
            return True
        silence = monotonic() - self.heard_at
        return self.leader is not None and silence < self.settings.election_min_ms / 1000

    def _heard_a_leader_lately(self) -> bool:
        """Within the time in which its voters have long elected the next one."""
        silence = monotonic() - self.heard_at
        return silence < ELECTIONS_BEFORE_A_GUEST * self.settings.election_max_ms / 1000

    def on_peer_silent(self, peer: Peer) -> None:
        """The connection that `peer` dialled closed."""
        if peer != self.leader or self.is_leader or self._SyncObj__raftState == CANDIDATE:
            return
        self._lose_leader()
        self._stand_within(LEADER_GONE_S)

    def step_down(self) -> None:
        """Out of office at once, and the others know it. What it appended and did not commit is
        settled by the next leader's log, or by its callers' deadlines."""
        logger.warning("raft_stepped_down term=%d reason=%s", self.term, self.journal.fault)
        self._SyncObj__setState(FOLLOWER)
        self._lose_leader()
        self.transport.hang_up()

    def _stand_within(self, seconds: tuple[float, float]) -> None:
        deadline = monotonic() + random.uniform(*seconds)
        self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, deadline)

    def _lose_leader(self) -> None:
        """Commands forwarded to it and not yet placed in the log are unknown from now on."""
        self._SyncObj__raftLeader = None
        self._SyncObj__onLeaderChanged()
