"""Applying what is committed, and compacting what is applied: findings S5, D5, D8 and L3.

S5: the library applies an entry again when its method or a completion callback raises, for ever or
twice. Here the index moves on before anybody is told, and an exception of the replica ends the
process: it is a bug, and going on would make the members differ.
D5, D8: the library's restart clears acknowledged entries when the snapshot is newer than the
journal's start. Here snapshot and journal are opened as one unit: what the snapshot covers is
trimmed, what follows it stays.
L3: a snapshot that jumps over the index of a waiting command settles it as unknown.

A received snapshot is loaded on a thread of its own. The log goes on meanwhile: entries behind the
snapshot are stored and acknowledged, and applied once the replica stands at it.
"""

from __future__ import annotations

import logging
import threading
import zlib
from typing import BinaryIO

from cube.adapters.raft.commands import KIND_DATA, KIND_MEMBERS, decode_members, kind_of, split
from cube.adapters.raft.configuration import Configuration
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.library import (
    REASON_DISCARDED,
    REASON_SUCCESS,
    REASON_UNKNOWN_OUTCOME,
    monotonic,
)
from cube.adapters.raft.replication import Replication
from cube.adapters.raft.snapshots import SnapshotHeader
from cube.model.errors import BadPacket
from cube.ports.log import Committed, Replica

logger = logging.getLogger(__name__)

# Entries applied in one go before messages are looked at again, and for how long: a full plan takes a
# tenth of a second, and whoever hears nothing meanwhile takes its leader for gone.
APPLY_BATCH_MAX = 2_000
APPLY_S_MAX = 0.02
# The journal is compacted at this size even if few entries made it.
JOURNAL_BYTES_MAX = 64 << 20
# The entries kept behind a snapshot are no larger than this together.
TAIL_BYTES_MAX = 4 << 20


class Applying(Replication):
    """Committed entries go to the replica, one by one, and the journal is compacted behind them."""

    replica: Replica
    at_ms_last = 0  # newest stamp seen; a new leader's stamps do not go below it
    _is_compaction_forced = False
    _loader: threading.Thread | None = None
    _loading_index = 0  # where the replica stands once the loader has ended
    _is_loaded = False  # set by the loader at its end
    _load_error: Exception | None = None

    def load(self, data: bytes | None) -> None:
        """The replica stands at the snapshot, and all that is known to be committed is applied."""
        if data is not None:
            header = self.snapshots.header
            assert header is not None
            self.replica.load(data, header.index)
            self._SyncObj__raftLastApplied = header.index
        while self.applied_index < self.commit_index:
            self._SyncObj__applyLogEntries()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        """True when something was applied: a leader then tells the followers at once."""
        if self.is_loading and not self._finish_loading():
            return False
        first = self.applied_index + 1
        count = min(self.commit_index - self.applied_index, APPLY_BATCH_MAX)
        if count <= 0:
            return False
        position = first - self.journal.first_index
        waiting = self._SyncObj__commandsWaitingCommit
        deadline = monotonic() + APPLY_S_MAX
        for command, index, term in self.journal.entries()[position : position + count]:
            result = self._apply(command, index, term)
            self._SyncObj__raftLastApplied = index
            for wanted_term, settle in waiting.pop(index, ()):
                if wanted_term == term:
                    settle(Committed(index, term, result), REASON_SUCCESS)
                else:
                    settle(None, REASON_DISCARDED)
            if monotonic() > deadline:
                break
        if first <= self.configuration.last_index <= self.applied_index:
            self.on_membership_committed()
        return True

    def _apply(self, command: bytes, index: int, term: int) -> object:
        if kind_of(command) != KIND_DATA:
            return None
        at_ms, data = split(command)
        self.at_ms_last = max(self.at_ms_last, at_ms)
        return self.replica.apply(index, term, at_ms, data)

    def on_membership_committed(self) -> None:
        """Called once a change of the voters is applied."""
        raise NotImplementedError

    # --- snapshots

    def install_snapshot(self) -> None:
        header = self.snapshots.header
        if header is None or header.index <= self.commit_index:
            return
        self.end_loading()  # of an older one: rare, and nothing else may touch the replica
        data = self.snapshots.open_data()
        logger.info("raft_snapshot_installed index=%d term=%d", header.index, header.term)
        align_journal(self.journal, header)
        kept = self.configuration.cut_from(self.journal.last_index + 1).rebased(header.index)
        self.set_configuration(Configuration(frozenset(header.voters), kept.changes))
        self._SyncObj__raftCommitIndex = header.index
        self.journal.setRaftCommitIndex(header.index)
        waiting = self._SyncObj__commandsWaitingCommit
        for index in [index for index in waiting if index <= header.index]:
            for _, settle in waiting.pop(index):
                settle(None, REASON_UNKNOWN_OUTCOME)
        self._start_loading(data, header.index)

    def _start_loading(self, file: BinaryIO, index: int) -> None:
        def load() -> None:
            try:
                with file:
                    self.replica.load(file.read(), index)
            except Exception as error:  # noqa: BLE001 - raised on the Raft thread
                self._load_error = error
            self._is_loaded = True
            self.wake()

        self._loading_index, self._is_loaded = index, False
        self._loader = threading.Thread(target=load, name="cube-raft-load", daemon=True)
        self._loader.start()

    @property
    def is_loading(self) -> bool:
        """The replica is on its way to a received snapshot, and nothing is applied."""
        return self._loader is not None

    def _finish_loading(self) -> bool:
        """True once the replica stands at the snapshot."""
        if not self._is_loaded:
            return False
        self.end_loading()
        self.on_membership_committed()
        return True

    def end_loading(self) -> None:
        """Waits for a load under way. Raises what it raised."""
        if self._loader is not None:
            self._loader.join()
            self._loader = None
            if self._load_error is not None:
                raise self._load_error
            self._SyncObj__raftLastApplied = self._loading_index

    @property
    def _snapshot_every(self) -> int:
        every = self.settings.snapshot_every
        return every + zlib.crc32(self.address.encode()) % (every // 2)

    def force_compaction(self) -> None:
        self._is_compaction_forced = True

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        if self.snapshots.is_encoding:
            try:
                finished = self.snapshots.finish()
            except OSError as error:
                self.journal.fail(error)
                return
            if finished is not None:
                self._trim_behind(finished.index)
            return
        new_entries = self.applied_index - self.snapshots.index
        if not self.snapshots.may_encode:
            return
        is_due = (
            new_entries >= self._snapshot_every
            or (self.journal.bytes_on_disk > JOURNAL_BYTES_MAX and new_entries > 0)
            or (self._is_compaction_forced and new_entries > 0)
        )
        if is_due and self.applied_index > self.journal.first_index:
            self._is_compaction_forced = False
            index = self.applied_index
            voters = tuple(sorted(self.configuration.at(index)))
            header = SnapshotHeader(index, self.journal.term_at(index), voters)
            self.snapshots.start_encoding(header, self.replica.dump())

    def _trim_behind(self, index: int) -> None:
        """The journal starts a short tail before the snapshot's end."""
        journal = self.journal
        keep_from = max(journal.first_index, index - self.settings.snapshot_tail)
        tail = journal.entries()[keep_from - journal.first_index : index - journal.first_index]
        size = 0
        for command, entry_index, _ in reversed(tail):
            size += len(command)
            if size > TAIL_BYTES_MAX:
                keep_from = entry_index + 1
                break
        journal.trim_to(keep_from)
        self.configuration = self.configuration.rebased(index)
        logger.info("raft_compacted snapshot=%d journal_from=%d", index, keep_from)


def align_journal(journal: FileJournal, header: SnapshotHeader) -> None:
    """The journal continues the snapshot. What it holds beyond stays if it belongs to it.

    Raises BadPacket for a journal that starts after the snapshot's end: what lies between is lost.
    """
    if journal.first_index > header.index:
        raise BadPacket(
            f"the journal starts at {journal.first_index}, its snapshot ends at {header.index}"
        )
    is_continued = (
        header.index <= journal.last_index and journal.term_at(header.index) == header.term
    )
    if not is_continued:
        journal.reset(header.index, header.term)


def open_configuration(
    journal: FileJournal, header: SnapshotHeader | None, founders: frozenset[str]
) -> Configuration:
    """The voters by the snapshot and the journal behind it; without either, the `founders`."""
    configuration = Configuration(frozenset(header.voters) if header is not None else founders)
    covered = header.index if header is not None else 0
    for command, index, _ in journal.entries():
        if index > covered and kind_of(command) == KIND_MEMBERS:
            configuration = configuration.appended(index, decode_members(command))
    return configuration
