"""Copying the leader's log: findings S1 and S2.

S1: the library's follower truncates acknowledged entries on any overlap, and its leader causes
overlap, because an acknowledgement moves nextIndex back. Here a follower skips what it already has,
truncates on a conflict of terms only, and acknowledges no more than it has compared; nextIndex
never goes back on success.
S2: the library's acknowledgement carries no term, so that a stale one can advance the commit index.
Here it does, and a mismatch is dropped.

Also: a message is encoded once per content, not once per receiver; what a tick appends is sent
once; acknowledgements of a tick are sent once, after the journal is synced.
"""

from __future__ import annotations

import logging

from cube.adapters.raft import wire
from cube.adapters.raft.commands import KIND_MEMBERS, decode_members, kind_of
from cube.adapters.raft.core import RaftCore
from cube.adapters.raft.library import FOLLOWER, Entry, Message, Peer, monotonic
from cube.adapters.raft.settings import APPEND_BATCH_BYTES_MAX
from cube.adapters.raft.snapshots import SnapshotStore
from cube.model.errors import BadPacket

logger = logging.getLogger(__name__)

# Entries in one message: bounds what a follower does in one go.
APPEND_BATCH_ENTRIES_MAX = 5_000
# Sent and not yet taken by the peer's socket: beyond it, wait for the peer.
SEND_WINDOW_BYTES = 4 << 20


class Replication(RaftCore):
    snapshots: SnapshotStore
    heard_at = 0.0  # when a leader last spoke, by the library's clock
    _acks: dict[Peer, Message]
    _is_holding_sends = False
    _is_send_wanted = False

    # --- the follower's side

    def _SyncObj__onMessageReceived(self, node: Peer, message: Message) -> None:  # noqa: N802
        kind = message["type"]
        if kind == "append_entries":
            self._on_append_entries(node, message)
        elif kind == "next_node_idx":
            self._on_ack(node, message)
        else:
            super()._SyncObj__onMessageReceived(node, message)

    def _on_append_entries(self, node: Peer, message: Message) -> None:
        term = message["term"]
        if term < self.term:
            self.transport.send(node, {"type": "term_hint", "term": self.term})
            return
        if term == self.term and self.is_leader:
            logger.error("raft_two_leaders term=%d other=%s", term, node.id)
            return
        self._follow(node, term)
        self._SyncObj__leaderCommitIndex = message["commit_index"]
        if "serialized" in message:
            self._on_snapshot_chunk(node, message["serialized"])
        else:
            self._on_entries(node, message)

    def _follow(self, node: Peer, term: int) -> None:
        now = monotonic()
        if term > self.term:
            self._SyncObj__transferInProgress = False
            self._SyncObj__setCurrentTerm(term, None)
        if not self._SyncObj__transferInProgress:
            deadline = now + self._SyncObj__generateRaftTimeout()
            self._SyncObj__raftElectionDeadline = deadline
        if self._SyncObj__raftLeader != node:
            self._SyncObj__onLeaderChanged()
        self._SyncObj__raftLeader = node
        self._SyncObj__setState(FOLLOWER)
        self.heard_at = now

    def _on_entries(self, node: Peer, message: Message) -> None:
        journal = self.journal
        previous, previous_term = message["prevLogIdx"], message["prevLogTerm"]
        entries: list[Entry] = message["entries"]
        verified = previous + len(entries)
        if previous > journal.last_index:
            self._ack(node, journal.last_index + 1, success=False, reset=True)
            return
        if previous < journal.first_index:
            # Compacted here, hence committed here, hence the same as the leader's.
            entries = entries[journal.first_index - previous :]
            previous = journal.first_index
        elif journal.term_at(previous) != previous_term:
            self._ack(node, self._first_of_term_at(previous), success=False, reset=True)
            return
        self._store(previous + 1, entries, node)
        self._ack(node, verified + 1, success=True, reset=False)
        commit_index = min(message["commit_index"], verified)
        if commit_index > self.commit_index:
            self._SyncObj__raftCommitIndex = commit_index
            journal.setRaftCommitIndex(commit_index)

    def _first_of_term_at(self, index: int) -> int:
        """Where the leader should try next: the conflicting term is skipped as a whole."""
        term = self.journal.term_at(index)
        floor = max(self.commit_index, self.journal.first_index) + 1
        while index > floor and self.journal.term_at(index - 1) == term:
            index -= 1
        return index

    def _store(self, index: int, entries: list[Entry], sender: Peer) -> None:
        """`entries` are in the journal from `index` on; what it had of them is not touched."""
        journal = self.journal
        skip = 0
        while skip < len(entries) and index + skip <= journal.last_index:
            if journal.term_at(index + skip) != entries[skip][2]:
                self._truncate_from(index + skip, sender)
                break
            skip += 1
        configuration = self.configuration
        for command, entry_index, term in entries[skip:]:
            journal.add(command, entry_index, term)
            if kind_of(command) == KIND_MEMBERS:
                configuration = configuration.appended(entry_index, decode_members(command))
        if configuration is not self.configuration:
            self.set_configuration(configuration)

    def _truncate_from(self, index: int, sender: Peer) -> None:
        if index <= self.commit_index:
            # Raft's own safety: a committed entry conflicts with no later leader's log.
            assert sender not in self._SyncObj__otherNodes, "a leader contradicts what is committed"
            raise BadPacket("it contradicts a committed entry, and is no voter here")
        logger.info("raft_conflict from=%d last=%d", index, self.journal.last_index)
        self.journal.truncate_from(index)
        if self.configuration.last_index >= index:
            self.set_configuration(self.configuration.cut_from(index))

    def _ack(self, node: Peer, next_index: int, *, success: bool, reset: bool) -> None:
        """Kept until flush_acks(), after the journal is synced; success is cumulative."""
        kept = self._acks.get(node)
        if success and kept is not None and kept["success"] and kept["term"] == self.term:
            next_index = max(next_index, kept["next_node_idx"])
        self._acks[node] = {
            "type": "next_node_idx",
            "term": self.term,
            "next_node_idx": next_index,
            "success": success,
            "reset": reset,
        }

    def flush_acks(self) -> None:
        if self._acks:
            self.journal.sync()  # or it has a fault, and the transport is mute
            acks, self._acks = self._acks, {}
            for node, message in acks.items():
                self.transport.send(node, message)

    def _on_snapshot_chunk(self, node: Peer, chunk: list[object]) -> None:
        try:
            index = self.snapshots.receive(node.id, chunk)
            if index is not None:
                self.install_snapshot()
        except OSError as error:
            self.snapshots.stop_receiving()
            self.journal.fail(error)
            return
        if index is None:
            # Tells the leader that we are alive, and that it may send more.
            self._ack(node, self.journal.last_index + 1, success=False, reset=False)
        else:
            self._ack(node, index + 1, success=True, reset=False)

    def install_snapshot(self) -> None:
        """The state, the journal and the voters are those of the snapshot received, if it is ahead.
        Raises OSError, and nothing is changed."""
        raise NotImplementedError

    # --- the leader's side

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int,  # noqa: N803
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: N803
    ) -> list[Entry]:
        """Asked by the library's commit rule only, which counts the leader itself for every entry:
        what is not on its own disk is not there yet (D1)."""
        assert (count, maxSizeBytes) == (1, None)
        if fromIDx > self.journal.synced_index:
            return []
        return [self.journal[fromIDx - self.journal.first_index]]

    def advance_commit(self) -> None:
        """What a majority has, this leader's disk included, is committed. The library's own rule
        finds the same, one entry and member at a time, on every tick."""
        matched = self._SyncObj__raftMatchIndex
        reached = [matched[node] for node in self._SyncObj__otherNodes]
        if self.address in self.configuration.current:
            reached.append(self.journal.synced_index)
        reached.sort(reverse=True)
        index = min(reached[self.quorum_size - 1], self.journal.last_index)
        if index > self.commit_index and self.journal.term_at(index) == self.term:
            self._SyncObj__raftCommitIndex = index
            self.journal.setRaftCommitIndex(index)

    def _SyncObj__onNodeConnected(self, node: Peer) -> None:  # noqa: N802
        """A peer that comes (back) hears from its leader at once."""
        super()._SyncObj__onNodeConnected(node)
        self.snapshots.cancel_sending(node.id)
        if self.is_leader and node in self._SyncObj__raftMatchIndex:
            self._send_to(node, {}, is_heartbeat=True)

    def _on_ack(self, node: Peer, message: Message) -> None:
        matched = self._SyncObj__raftMatchIndex
        if not self.is_leader or message["term"] != self.term or node not in matched:
            return
        following = self._SyncObj__raftNextIndex
        next_index = min(message["next_node_idx"], self.journal.last_index + 1)
        if message["success"]:
            matched[node] = max(matched[node], next_index - 1)
            following[node] = max(following[node], next_index)
        elif message["reset"]:
            following[node] = max(next_index, 1)
        self._SyncObj__lastResponseTime[node] = monotonic()
        if following[node] <= self.journal.last_index:
            self._send_to(node, {}, is_heartbeat=False)

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        if self._is_holding_sends:
            self._is_send_wanted = True
            return
        period = self.settings.heartbeat_ms / 1000
        self._SyncObj__newAppendEntriesTime = monotonic() + period
        frames: dict[int, tuple[bytes, int]] = {}
        for node in self._SyncObj__otherNodes | self._SyncObj__readonlyNodes:
            if self.transport.is_up(node):
                self._send_to(node, frames, is_heartbeat=True)
            else:
                self.snapshots.cancel_sending(node.id)

    def _send_to(
        self, node: Peer, frames: dict[int, tuple[bytes, int]], *, is_heartbeat: bool
    ) -> None:
        """All that `node` lacks and its socket takes; an empty message if it lacks nothing.

        `frames` remembers what this round has encoded: next index → (frame, entries in it).
        """
        following = self._SyncObj__raftNextIndex
        while True:
            next_index = following[node]
            if next_index <= self.journal.first_index:
                self._send_snapshot_to(node, is_heartbeat=is_heartbeat)
                return
            if next_index not in frames:
                entries = self.journal.entries_from(
                    next_index, APPEND_BATCH_ENTRIES_MAX, APPEND_BATCH_BYTES_MAX
                )
                frame = wire.encode(self._append_message(next_index, entries))
                frames[next_index] = (frame, len(entries))
            frame, count = frames[next_index]
            if not self.transport.send_frame(node, frame):
                return
            following[node] = next_index + count
            if following[node] > self.journal.last_index:
                return
            if self.transport.pending_bytes(node) > SEND_WINDOW_BYTES:
                return

    def _append_message(self, next_index: int, entries: list[Entry]) -> Message:
        return {
            "type": "append_entries",
            "term": self.term,
            "commit_index": self.commit_index,
            "prevLogIdx": next_index - 1,
            "prevLogTerm": self.journal.term_at(next_index - 1),
            "entries": entries,
        }

    def _send_snapshot_to(self, node: Peer, *, is_heartbeat: bool) -> None:
        """A window of it; the peer's answers ask for more."""
        chunk: tuple[bytes, int, bool] | None = None
        while self.transport.pending_bytes(node) <= SEND_WINDOW_BYTES:
            try:
                chunk = self.snapshots.next_chunk(node.id)
            except OSError as error:
                self.journal.fail(error)
                return
            if chunk is None:
                break
            is_heartbeat = False
            if not self.transport.send(node, self._snapshot_message(list(chunk))):
                return
            if chunk[2]:
                # The peer acknowledges it once it is installed; a rejection would put this right.
                self._SyncObj__raftNextIndex[node] = self.snapshots.sent_index(node.id) + 1
                return
        if is_heartbeat:
            self.transport.send(node, self._snapshot_message([]))

    def _snapshot_message(self, chunk: list[object]) -> Message:
        return {
            "type": "append_entries",
            "term": self.term,
            "commit_index": self.commit_index,
            "serialized": chunk,
        }
