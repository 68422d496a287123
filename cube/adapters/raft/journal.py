"""The log on disk: entries, term, vote and commit index in segments that are only appended to.

The library's own journal loses entries when it is killed while it compacts (D4), takes a damaged
record for a command (D3), forgets the vote when a second file cannot be read (D2), never syncs
(D1), dies of a full disk (D6), never shrinks (D7) and lets a stored commit index point beyond the
last entry (S8). This one appends batches of checked records (see records.py), starts a new file
when one is full, drops the files that a snapshot covers, and clamps.

Nothing reaches the disk before `sync()`: the caller syncs before it tells anyone. A sync that fails
sets `fault` and calls `on_fault`; nothing since the last good sync counts, all of it is kept in
memory, and retry() writes it to a new segment. A file is never synced again after it failed once:
the kernel forgets what it could not write, and says that all is well the next time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cube.adapters.raft import records
from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.files import sync_directory, write_all
from cube.adapters.raft.library import Entry
from cube.adapters.raft.records import ENTRY, HARD, RESET, SEGMENT_HEAD_BYTES, TRUNCATE
from cube.model.errors import BadPacket

logger = logging.getLogger(__name__)

# A full segment is followed by a new one. Small enough that a log which is compacted often stays
# small, large enough that the new file's syncs are rare.
SEGMENT_BYTES = 8 << 20
# A segment grows by zeros ahead of its records: most syncs then change no metadata, and cost half.
ALLOCATE_BYTES = 256 << 10
# A disk that was full has room again when this much fits: less would be full again at once.
RESUME_BYTES = 1 << 20
_SUFFIX = ".log"
_HINT = (
    "entries that this member acknowledged may lie there. Bring the file back as it was, or remove "
    "this member from the cluster, delete its data directory and let it join anew"
)


class _Segment(msgspec.Struct):
    number: int
    path: Path
    max_index: int = 0  # of all entries in it, also of those that were replaced later
    size: int = 0  # bytes that count


class FileJournal:
    """The library's journal interface (camelCase, positions in the list) over a directory.

    Invariant: never empty; indexes are consecutive; the first entry is the one before the first
    that can still be sent (index 1 of a new log, or one that a snapshot covers).
    """

    def __init__(self, directory: Path, *, fsync: bool, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Open or create. Raises BadPacket for damage that is not a torn tail, OSError."""
        self._directory = directory
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        self.on_fault: Callable[[], None] = lambda: None
        self.fault = ""  # why nothing can be written; empty when all is well
        self._entries: list[Entry] = []
        self._term = 0
        self._vote: str | None = None
        self._commit_index = 1
        self._commit_index_written = 1
        self._buffer: list[bytes] = []
        self._buffer_max_index = 0
        self._needs_segment = False
        self._is_reset = False  # the next segment makes those before it worthless
        self._is_closed = True  # a mark follows the last batch
        self.torn_bytes = 0
        self._segments: list[_Segment] = []
        self._fd = -1
        self._salt = 0
        self._offset = 0  # where the next batch goes; what is before it is synced
        self._allocated = 0
        paths = self._find_segments()
        if paths:
            self._recover(paths)
            if not self._entries:
                raise BadPacket(f"{directory} holds no entry: {_HINT}")
        else:
            self.reset(1, 0)
            if self.fault:
                raise OSError(self.fault)
        self.synced_index = self.last_index
        self._commit_index = min(self._commit_index, self.last_index)  # S8

    # --- what the library calls

    def add(self, command: bytes, idx: int, term: int) -> None:
        assert idx == self.last_index + 1, "a hole in the log"
        self._entries.append((command, idx, term))
        self._buffer.append(records.encode_record(ENTRY, idx, term, command))
        self._buffer_max_index = max(self._buffer_max_index, idx)

    def __getitem__(self, position: int) -> Entry:
        return self._entries[position]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """On disk when it returns, or `fault` is set: the library sends votes right after."""
        if (term, votedForNodeId) != (self._term, self._vote):
            assert term >= self._term, "the term never goes back"
            self._term, self._vote = term, votedForNodeId
            self._buffer.append(self._hard_record())
            self.sync()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._vote

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The commit index is a hint for the next start; once a second is enough. When there is
        none to note, a mark shows that the last batch was synced."""
        if self.fault:
            return
        if self._commit_index != self._commit_index_written:
            self._buffer.append(self._hard_record())
        elif not self._buffer and not self._is_closed:
            try:
                self._write_batch([])
            except OSError as error:
                self.fail(error)
            self._is_closed = True

    def _destroy(self) -> None:
        if self._fd >= 0:
            self.onOneSecondTimer()
            self.sync()
            self.onOneSecondTimer()
            os.close(self._fd)
            self._fd = -1

    # --- what our own overrides call

    @property
    def first_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    @property
    def is_dirty(self) -> bool:
        return bool(self._buffer)

    @property
    def bytes_on_disk(self) -> int:
        """Of all segments, without what is allocated ahead."""
        return sum(segment.size for segment in self._segments)

    def term_at(self, index: int) -> int:
        return self._entries[index - self.first_index][2]

    def entries(self) -> Sequence[Entry]:
        """All of them, oldest first; a view, to be read at once."""
        return self._entries

    def entries_from(self, index: int, count_max: int, bytes_max: int) -> list[Entry]:
        """Entries from `index` on, at least one if there is one, until `bytes_max` is reached."""
        position = index - self.first_index
        assert position >= 0
        found: list[Entry] = []
        size = 0
        for entry in self._entries[position : position + count_max]:
            size += len(entry[0])
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def truncate_from(self, index: int) -> None:
        """Entries at `index` and above are gone."""
        assert self.first_index < index
        del self._entries[index - self.first_index :]
        self.synced_index = min(self.synced_index, index - 1)
        self._buffer.append(records.encode_record(TRUNCATE, index, 0, b""))

    def trim_to(self, index: int) -> None:
        """`index` is the first entry kept; segments with nothing else are gone. A kill leaves more
        than this, never less (D4)."""
        assert self.first_index <= index <= self.last_index
        self._entries = self._entries[index - self.first_index :]
        while len(self._segments) > 1 and self._segments[0].max_index < index:
            self._drop_oldest()

    def reset(self, index: int, term: int) -> None:
        """The log starts after a snapshot that ends at (index, term), and holds nothing else."""
        self._entries = [(NO_OP, index, term)]
        self._commit_index = max(self._commit_index, index)
        self.synced_index = 0
        self._buffer = [records.encode_record(RESET, index, term, b"")]
        self._buffer_max_index = index
        self._needs_segment = self._is_reset = True
        self.sync()

    def sync(self) -> None:
        """Everything added so far is in the file (and on the disk, with fsync), or `fault` is set:
        then nothing that was not synced before may be told to anyone."""
        if not self._buffer or self.fault:
            return
        try:
            if self._needs_segment or self._offset >= self._segment_bytes:
                self._start_segment(ALLOCATE_BYTES)
            else:
                self._write_batch(self._buffer)
                if self._fsync:
                    os.fdatasync(self._fd)
                self._allocate_ahead()
        except OSError as error:
            self.fail(error)
            return
        self._on_synced()

    def fail(self, error: OSError) -> None:
        """Nothing is written before retry() succeeds."""
        if not self.fault:
            self.fault = f"disk: {error.strerror or error}"
            logger.error("raft_disk_failed error=%s directory=%s", error, self._directory)
            self.on_fault()

    def retry(self) -> bool:
        """True when there is no fault (any more), and everything added so far is on the disk."""
        if self.fault:
            try:
                self._start_segment(RESUME_BYTES)
            except OSError as error:
                logger.debug("raft_disk_still_failed error=%s", error)
                return False
            self.fault = ""
            self._on_synced()
            logger.warning("raft_disk_is_back directory=%s", self._directory)
        return True

    # --- the files

    def _on_synced(self) -> None:
        self._buffer.clear()
        self.synced_index = self.last_index
        self._is_closed = False

    def _hard_record(self) -> bytes:
        self._commit_index_written = self._commit_index
        vote = (self._vote or "").encode()
        return records.encode_record(HARD, self._commit_index, self._term, vote)

    def _write_batch(self, batch: list[bytes]) -> None:
        data = records.encode_batch(self._salt, self._offset, batch)
        write_all(self._fd, data, self._offset)
        # A failed sync leaves the offset ahead; no more is written to this file then, and the next
        # one says how much of it counts.
        self._offset += len(data)
        segment = self._segments[-1]
        segment.max_index = max(segment.max_index, self._buffer_max_index)

    def _allocate_ahead(self) -> None:
        """The segment's size, after a good sync, and zeros ahead of the next records."""
        self._segments[-1].size = self._offset
        if self._fsync and self._offset + ALLOCATE_BYTES // 4 > self._allocated:
            start = max(self._offset, self._allocated)
            try:
                write_all(self._fd, bytes(ALLOCATE_BYTES), start)
            except OSError:
                logger.debug("raft_disk_is_nearly_full")  # the next batch may still fit
            self._allocated = start + ALLOCATE_BYTES

    def _start_segment(self, allocate_bytes: int) -> None:
        """A new file with term, vote and all that is buffered, on disk, follows the present ones.
        Raises OSError, and leaves the present ones as they are."""
        previous = self._segments[-1] if self._segments else None
        number = previous.number + 1 if previous else 1
        salt = int.from_bytes(os.urandom(8), "little")
        head = records.SegmentHead(number, salt, previous.size if previous else 0)
        batch = records.encode_batch(salt, SEGMENT_HEAD_BYTES, [self._hard_record(), *self._buffer])
        data = records.encode_head(head) + batch
        path = self._directory / f"{number:010d}{_SUFFIX}"
        fresh = path.with_suffix(".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            zeros = bytes(allocate_bytes) if self._fsync else b""
            write_all(fd, data + zeros, 0)
            if self._fsync:
                os.fsync(fd)
            os.rename(fresh, path)
            if self._fsync:
                sync_directory(self._directory)
        except OSError:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._salt, self._offset = fd, salt, len(data)
        self._allocated = len(data) + len(zeros)
        self._segments.append(_Segment(number, path, self._buffer_max_index, len(data)))
        self._buffer_max_index = 0
        if self._is_reset:
            while len(self._segments) > 1:
                self._drop_oldest()
        self._needs_segment = self._is_reset = False

    def _drop_oldest(self) -> None:
        """Oldest first: what a power cut brings back continues with what is still there."""
        segment = self._segments.pop(0)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("raft_segment_stays path=%s error=%s", segment.path, error)

    def _find_segments(self) -> list[tuple[int, Path]]:
        """Oldest first. What a kill left half made is gone."""
        self._directory.mkdir(exist_ok=True, mode=0o700)
        for path in self._directory.glob("*.new"):
            path.unlink()
        return find_segments(self._directory)

    def _recover(self, paths: list[tuple[int, Path]]) -> None:
        heads: list[records.SegmentHead] = []
        contents: list[bytes] = []
        for number, path in paths:
            contents.append(path.read_bytes())
            try:
                heads.append(records.decode_head(contents[-1]))
                if heads[-1].number != number:
                    raise records.Damage(0, f"it is number {heads[-1].number} by its header")
            except records.Damage as damage:
                raise _refusal(path, damage) from None
        tail: records.Tail | None = None
        for position, (number, path) in enumerate(paths):
            is_last = position == len(paths) - 1
            limit = None if is_last else heads[position + 1].previous_bytes
            self._segments.append(_Segment(number, path))
            try:
                tail = self._replay_segment(contents[position], heads[position], limit)
            except records.Damage as damage:
                raise _refusal(path, damage) from None
        assert tail is not None
        self._reopen(contents[-1], heads[-1], tail)

    def _replay_segment(
        self, data: bytes, head: records.SegmentHead, limit: int | None
    ) -> records.Tail:
        segment = self._segments[-1]
        for found in records.read_records(data, head.salt, limit):
            if isinstance(found, records.Tail):
                segment.size = found.end
                return found
            kind, index, term, content = found
            if kind == ENTRY:
                if self._entries and index != self.last_index + 1:
                    raise records.Damage(0, f"there is a hole before entry {index}")
                self._entries.append((content, index, term))
                segment.max_index = max(segment.max_index, index)
            elif kind == TRUNCATE:
                if self._entries:
                    del self._entries[max(0, index - self.first_index) :]
            elif kind == HARD:
                self._commit_index = self._commit_index_written = index
                self._term, self._vote = term, content.decode() or None
            elif kind == RESET:
                self._entries = [(NO_OP, index, term)]
                segment.max_index = max(segment.max_index, index)
            else:
                raise records.Damage(0, f"it has a record of unknown type {kind}")
        raise AssertionError("the tail comes last")

    def _reopen(self, data: bytes, head: records.SegmentHead, tail: records.Tail) -> None:
        """The newest segment is ready to be appended to, and what was read of it is on the disk.

        A killed process may have left its last batch in the page cache only, and if its sync had
        failed, the kernel thinks that it is written. So it is written again.
        """
        self.torn_bytes = tail.torn_bytes
        self._salt, self._offset = head.salt, tail.end
        self._fd = os.open(self._segments[-1].path, os.O_RDWR | os.O_CLOEXEC)
        if tail.torn_bytes:
            logger.warning("raft_torn_tail bytes=%d offset=%d", tail.torn_bytes, tail.end)
            os.ftruncate(self._fd, tail.end)
        self._allocated = tail.end if tail.torn_bytes else len(data)
        write_all(self._fd, data[tail.last_batch : tail.end], tail.last_batch)
        if self._fsync:
            os.fsync(self._fd)
        self._is_closed = False
        if not head.is_appendable:
            # Not with a record of its own: a disk that is full is weather, not a refused start.
            self._needs_segment = True
            self._buffer.append(self._hard_record())
            self.sync()


def find_segments(directory: Path) -> list[tuple[int, Path]]:
    """The segments in order, from the last gap on.

    Older ones are dropped oldest first, so there is no gap; if a file system forgets part of that,
    what is before the gap was covered by a snapshot. Whether it was is checked against it.
    """
    found: list[tuple[int, Path]] = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        if not path.stem.isdigit():
            continue
        if found and int(path.stem) != found[-1][0] + 1:
            found.clear()
        found.append((int(path.stem), path))
    return found


def _refusal(path: Path, damage: records.Damage) -> BadPacket:
    return BadPacket(f"{path} is damaged at byte {damage.offset}: {damage}; {_HINT}")
