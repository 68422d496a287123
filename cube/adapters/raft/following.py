"""Following the log from any other member: what a learner does instead of hearing a leader.

A learner asks (cube.services.log_follower does, over HTTP), and what it is answered is taken here: only
committed entries, so that all it can ever have to take back is a tail of its own, from when it was
a voter, which the committed entries contradict. It acknowledges nothing and nobody counts on it.

Who leads it learns from the answers, too, and keeps a connection to that member: proposals go to the
leader over it, as a follower's do, and their places in the log come back.

A voter that hears no leader may follow as well: it may have been removed, and not know it yet. What
is committed contradicts no vote, and no acknowledgement that still counts.
"""

from __future__ import annotations

import logging

from cube.adapters.raft.feeding import Answer, Entries, Office, Piece
from cube.adapters.raft.library import Peer, monotonic
from cube.adapters.raft.membership import Membership
from cube.model.errors import BadPacket
from cube.ports.log import Ask, Taken

logger = logging.getLogger(__name__)

# A learner that nobody has told of a leader for this long knows none: several answers are missing.
HEARD_S = 4.0


class Following(Membership):
    _guide: Peer | None = None  # who is dialled because it leads, by a member without a vote

    def ask(self) -> Ask:
        """What follows the last entry that is known to be committed."""
        return Ask(self.commit_index, self.journal.term_at(self.commit_index))

    def take(self, source: str, answer: Answer) -> Taken:
        """See cube.ports.log.Log. Raises BadPacket; OSError when a piece cannot be stored."""
        office = answer.office
        if office.cluster != self.transport.cluster:
            raise BadPacket("it is of another cluster, or of the history before a recovery")
        if self.is_leader or (self.is_voter and self.hears_a_leader()):
            return Taken(self.ask(), is_current=office.is_current, is_more=False)
        if isinstance(answer, Piece):
            resumed = self._take_piece(source, answer)
            is_more = True
        else:
            self._take_entries(source, answer)
            resumed, is_more = 0, answer.commit_index > self.commit_index
        self._hear_of(office)
        ask = self.ask()
        if resumed:
            assert isinstance(answer, Piece)
            ask = Ask(ask.index, ask.term, snapshot=answer.index, offset=resumed)
        elif not is_more:
            ask = Ask(ask.index, ask.term, str(office))
        return Taken(ask, office.is_current, is_more)

    def _take_entries(self, source: str, answer: Entries) -> None:
        journal = self.journal
        entries = list(answer.entries)
        index, term = answer.previous_index, answer.previous_term
        if index > journal.last_index:
            return  # an answer to what was asked before a restart
        if index >= journal.first_index and journal.term_at(index) != term:
            if index > self.commit_index:
                return
            raise BadPacket(f"entry {index} is committed here in another term: another history")
        for _, known_index, known_term in entries[: max(0, self.commit_index - index)]:
            if known_index >= journal.first_index and journal.term_at(known_index) != known_term:
                raise BadPacket(f"entry {known_index} is committed here in another term")
        fresh = entries[max(0, self.commit_index - index) :]
        if not fresh:
            return
        self._be_of_term(fresh[-1][2])
        self._store(fresh[0][1], fresh, Peer(source))
        self._SyncObj__raftCommitIndex = fresh[-1][1]
        journal.setRaftCommitIndex(fresh[-1][1])

    def _take_piece(self, source: str, piece: Piece) -> int:
        """Where the next piece begins; 0 when there is none, or it starts over."""
        try:
            index = self.snapshots.receive(source, [piece.data, piece.offset, piece.is_last])
            if index is None and piece.is_last:
                raise BadPacket("a snapshot did not arrive whole")
            if index is None:
                return self.snapshots.received_bytes(source)
            header = self.snapshots.header
            if header is not None:
                self._be_of_term(header.term)
            self.install_snapshot()
        except OSError as error:
            self.snapshots.stop_receiving()
            self.journal.fail(error)
        return 0

    def _be_of_term(self, term: int) -> None:
        """Nobody holds an entry of a term that it does not know of."""
        self._on_term_hint(term)

    def _hear_of(self, office: Office) -> None:
        """A member without a vote knows the leader by what others say; a voter by its voice only."""
        self._be_of_term(office.term)
        # A learner that stood for election once may be of a term that nobody else has reached.
        if self.is_voter or (office.term < self.term and not office.is_current):
            return
        if self.leader is not None and self.leader.id != office.leader:
            self._lose_leader()
        if office.leader and office.leader != self.address:
            if self.leader is None:
                self._SyncObj__raftLeader = Peer(office.leader)
            if office.is_current:
                self.heard_at = monotonic()

    def step_following(self) -> None:
        """A leader that nobody speaks of is lost; the one that is known is dialled."""
        is_lost = self.leader is not None and monotonic() - self.heard_at > HEARD_S
        if not self.is_voter and is_lost:
            self._lose_leader()
        wanted = None if self.is_voter else self.leader
        # Its connection is dropped by an old entry, too, in which it did not vote.
        is_dialled = wanted is None or self.transport.dials(wanted)
        if wanted == self._guide and is_dialled:
            return
        previous, self._guide = self._guide, wanted
        is_kept = (
            self.is_voter and previous is not None and previous.id in self.configuration.current
        )
        if previous is not None and previous != wanted and not is_kept:
            self.transport.part(previous)
        if wanted is not None:
            self.transport.add(wanted)
