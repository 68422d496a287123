"""One member, put together: what a data directory holds, and what one turn of the thread does."""

from __future__ import annotations

import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

from cube.adapters.raft import library
from cube.adapters.raft.applying import open_configuration
from cube.adapters.raft.directory import (
    MEMBER,
    MemberFile,
    lock,
    open_journal,
    open_member,
    write_member,
)
from cube.adapters.raft.feeding import Office, View
from cube.adapters.raft.following import HEARD_S, Following
from cube.adapters.raft.library import monotonic
from cube.adapters.raft.membership import STEP_S
from cube.adapters.raft.offline import carry_out
from cube.adapters.raft.peer_tls import PeerTls
from cube.adapters.raft.proposing import SubmissionQueue
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.raft.snapshots import SnapshotStore
from cube.adapters.raft.transport import PeerTransport
from cube.ports.log import Replica

logger = logging.getLogger(__name__)

# The commit index is noted, and forgotten requests are swept, at least this often.
POLL_S_MAX = 1.0
# A voter that lacks more of what its leader has committed is no good to follow: it is catching up.
BEHIND_ENTRIES_MAX = 10_000
# A disk that failed is tried again this often.
DISK_RETRY_S = 1.0


class RaftNode(Following):
    """All of it belongs to the Raft thread, except `queue` and wake()."""

    _disk_retry_at = 0.0
    _listened_at = 0.0  # when it last read what the others had said; 0: not yet
    recovered_index = 0  # what was known to be committed when it was opened

    def __init__(
        self,
        address: str,
        *,
        members: tuple[str, ...],
        directory: Path,
        replica: Replica,
        stamp: Callable[[], int],
        settings: RaftSettings,
        joining: bool,
        cluster: str,
        tls: PeerTls | None = None,
        listen_at: str | None = None,
        lineage: str = "",
    ) -> None:
        """The log is open and its past applied; nothing listens yet.

        Raises Unavailable when the directory is in use, BadConfig when it belongs to another
        address, BadPacket when it is damaged, OSError.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = lock(directory)
        self._member_path = directory / MEMBER
        self.replica = replica
        self.stamp = stamp
        self.queue = SubmissionQueue()
        self._acks = {}
        self._pre_votes = set()
        self._votes = set()
        self._forwarded = deque()
        self._changes = deque()
        self._handovers = []
        try:
            carry_out(directory, settings)
            member = open_member(
                self._member_path, address, members, joining=joining, lineage=lineage
            )
            self.lineage = member.lineage
            self.snapshots = SnapshotStore(directory, self.wake)
            data = self.snapshots.load()
            journal = open_journal(directory / "journal", self.snapshots.header, settings)
            founders = frozenset(member.founders)
            super().__init__(
                address,
                journal,
                open_configuration(journal, self.snapshots.header, founders),
                PeerTransport(address, _kin(cluster, member.lineage), tls, listen_at),
                settings,
                joining=member.joining,
            )
            self._SyncObj__commandsWaitingCommit = defaultdict(list)
            self.transport.on_peer_silent = self.on_peer_silent
            self.before_poll(self.transport.flush)
            self.recovered_index = self.commit_index
            self.load(data)
            if self.joining and self.address in self.configuration.at(self.applied_index):
                self.joining = False  # its addition is in the snapshot, or the file was not written
        except BaseException:
            os.close(self._lock_fd)
            raise

    def listen(self) -> None:
        """Peers are dialled and can connect. Raises BadConfig, Unavailable."""
        self.transport.listen(self._poller)
        self.set_configuration(self.configuration)

    def recheck_peers(self) -> None:
        self.transport.recheck_peers()

    def before_poll(self, callback: Callable[[], None]) -> None:
        """`callback` runs in every turn, after its work and before its wait."""
        self.addOnTickCallback(callback)

    def on_joined(self) -> None:
        founders = tuple(sorted(self.configuration.current))
        member = MemberFile(self.address, founders, joining=False, lineage=self.lineage)
        try:
            write_member(self._member_path, member)
        except OSError as error:
            # The next start sees in the log that it has joined.
            self.journal.fail(error)

    def turn(self) -> None:
        """One turn of the thread: waits for a message, a command or a deadline at its end.

        Order: a vote is on disk before it is sent; a follower's entries once a turn, before the
        last, cumulative acknowledgement; the leader's own are sent first, synced while the others
        do the same, and count for a commit once they are.
        """
        self._is_woken = False
        now = monotonic()
        self.late_s = now - self._listened_at if self._listened_at else 0.0
        self.transport.on_tick(now)
        self.journal.sync()
        if self.journal.fault:
            self._step_fault(now)
        self.step_changes()
        self.step_handover()
        self.step_following()
        self._onTick(self._poll_s(now))
        self._listened_at = monotonic()
        self.flush_acks()
        self.transport.flush()

    def _step_fault(self, now: float) -> None:
        """A member whose disk failed is out of office and mute until the disk takes all that is
        not on it yet. It stays up: what it has, it can still be asked for."""
        if self.is_leader:
            self.step_down()
            self._disk_retry_at = now + DISK_RETRY_S
        elif now >= self._disk_retry_at:
            self._disk_retry_at = now + DISK_RETRY_S
            if self.journal.retry():
                self.transport.unmute()

    def _poll_s(self, now: float) -> float:
        """How long nothing can be due. 0 when something is already: this turn does it, the next
        one waits."""
        is_behind = self.commit_index > self.applied_index and not self.is_loading
        if is_behind or (self.queue and self.may_take_commands):
            return 0.0
        wake_at = min(now + POLL_S_MAX, self.transport.next_wake())
        if self.is_leader:
            wake_at = min(wake_at, self._SyncObj__newAppendEntriesTime)
        else:
            wake_at = min(wake_at, self._SyncObj__raftElectionDeadline)
        if self.journal.fault:
            wake_at = min(wake_at, self._disk_retry_at)
        if self.has_pending_steps:
            wake_at = min(wake_at, now + STEP_S)
        return max(0.0, wake_at - now)

    def hears_quorum(self) -> bool:
        """A leader: a majority answered within an election timeout. A follower: its leader spoke."""
        window = self.settings.election_max_ms / 1000
        now = monotonic()
        if self.journal.fault:
            return False
        if not self.is_leader:
            window = window if self.is_voter else HEARD_S
            return self.leader is not None and now - self.heard_at < window
        answered = self._SyncObj__lastResponseTime
        heard = sum(now - answered[peer] < window for peer in self._SyncObj__otherNodes)
        return heard + 1 >= self.quorum_size

    def view(self) -> View:
        """What those that follow this member are answered from."""
        leader = self.leader
        known = self._SyncObj__leaderCommitIndex
        is_behind = not self.is_leader and (known or 0) - self.commit_index > BEHIND_ENTRIES_MAX
        office = Office(
            self.term,
            self.address if self.is_leader else leader.id if leader is not None else "",
            self.hears_quorum() and not is_behind,
            self.transport.cluster,
        )
        return View(office, self.commit_index, self.journal.entries(), self.journal.fault)

    @property
    def is_ready(self) -> bool:
        if self.applied_index < self.recovered_index:
            return False
        if not self.is_leader:
            return True
        own_entry = self._SyncObj__noopIDx
        return own_entry is not None and self.applied_index >= own_entry

    def close(self) -> None:
        """Sockets and files are closed; the directory can be opened again."""
        self.transport.destroy()
        self.snapshots.close()
        try:
            self.end_loading()
        except Exception as error:  # noqa: BLE001 - nobody is left to be told
            logger.error("raft_load_failed error=%r", error)
        self.journal._destroy()
        os.close(self._lock_fd)

    def close_pipe(self) -> None:
        """Last of all, once nobody can call wake() any more: its descriptors may be given out again."""
        for descriptor in library.notifier_descriptors(self):
            os.close(descriptor)


def _kin(cluster: str, lineage: str) -> str:
    """What members must have in common to speak to each other: those that were left behind when a
    cluster was recovered or restored are strangers."""
    return f"{cluster}/{lineage}" if lineage else cluster
