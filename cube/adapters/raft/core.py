"""What the overrides share: the library's object with our journal, transport and configuration."""

from __future__ import annotations

from cube.adapters.raft.configuration import Configuration
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.library import LEADER, Peer, SyncObj, monotonic
from cube.adapters.raft.settings import RaftSettings, library_conf
from cube.adapters.raft.transport import PeerTransport


class RaftCore(SyncObj):
    """One member. All of it belongs to the Raft thread.

    Peers are the other voters (`otherNodes` of the library) and, at the leader, who is being added
    (`readonlyNodes`). A member without a vote dials the leader only, to forward proposals.
    """

    _is_woken = False

    def __init__(
        self,
        address: str,
        journal: FileJournal,
        configuration: Configuration,
        transport: PeerTransport,
        settings: RaftSettings,
        *,
        joining: bool,
    ) -> None:
        self.address = address
        self.journal = journal
        self.transport = transport
        self.settings = settings
        self.configuration = configuration
        self.joining = joining
        conf = library_conf(settings)
        super().__init__(Peer(address), [], conf, nodeClass=Peer, transport=transport)
        self._SyncObj__raftLog = journal
        last_term = journal[-1][2]
        self._SyncObj__raftCurrentTerm = max(journal.getCurrentTerm(), last_term)
        self._SyncObj__votedForNodeId = journal.getVotedForNodeId()
        self._SyncObj__raftCommitIndex = journal.getRaftCommitIndex()
        self._SyncObj__raftLastApplied = journal.first_index
        journal.on_fault = transport.mute
        if journal.fault:
            transport.mute()

    @property
    def is_leader(self) -> bool:
        return self._SyncObj__raftState == LEADER

    @property
    def term(self) -> int:
        return self._SyncObj__raftCurrentTerm

    @property
    def applied_index(self) -> int:
        return self._SyncObj__raftLastApplied

    @property
    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    @property
    def leader(self) -> Peer | None:
        return self._SyncObj__raftLeader

    @property
    def is_voter(self) -> bool:
        return self.address in self.configuration.current

    @property
    def quorum_size(self) -> int:
        return len(self.configuration.current) // 2 + 1

    def set_configuration(self, configuration: Configuration) -> None:
        """The voters are `configuration.current` from now on; links follow."""
        was_voter = self.is_voter
        self.configuration = configuration
        wanted = configuration.current - {self.address}
        voters = self._SyncObj__otherNodes
        known = {peer.id: peer for peer in voters | self._SyncObj__readonlyNodes}
        for peer in [peer for peer in voters if peer.id not in wanted]:
            voters.discard(peer)
            self.forget_peer(peer)
        for address in sorted(wanted - {peer.id for peer in voters}):
            peer = known.get(address) or Peer(address)
            self._SyncObj__readonlyNodes.discard(peer)
            voters.add(peer)
            self.follow_peer(peer)
        if self.is_voter != was_voter:
            for peer in voters:
                if self.is_voter:
                    self.transport.add(peer)
                else:
                    self.transport.part(peer)

    def follow_peer(self, peer: Peer) -> None:
        """`peer` is dialled by a voter, and what is known of its log is kept or starts at nothing."""
        self._SyncObj__raftNextIndex.setdefault(peer, self.journal.last_index + 1)
        self._SyncObj__raftMatchIndex.setdefault(peer, 0)
        self._SyncObj__lastResponseTime[peer] = monotonic()
        if self.is_voter:
            self.transport.add(peer)

    def forget_peer(self, peer: Peer) -> None:
        self._SyncObj__raftNextIndex.pop(peer, None)
        self._SyncObj__raftMatchIndex.pop(peer, None)
        self._SyncObj__lastResponseTime.pop(peer, None)
        self._SyncObj__connectedNodes.discard(peer)
        self.transport.drop(peer)

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        super()._SyncObj__onBecomeLeader()
        self.wake()  # alone, nobody's answer would commit the first entry

    def wake(self) -> None:
        """The next poll returns at once. From any thread."""
        if not self._is_woken:  # one byte a turn: the pipe never fills
            self._is_woken = True
            self._SyncObj__pipeNotifier.notify()
