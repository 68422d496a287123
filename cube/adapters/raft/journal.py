"""The log on disk: entries, term, vote and commit index in one append-only file.

The library's own journal loses entries when it is killed while it compacts (D4), takes a damaged
record for a command (D3), forgets the vote when a second file cannot be read (D2) and lets a stored
commit index point beyond the last entry (S8). This one appends records with a checksum, replaces
the file by rename, and clamps. Nothing reaches the file before `sync()`: the caller syncs before
it acknowledges anything. `fsync=False` survives kill -9, not a power cut.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.library import Entry
from cube.model.errors import BadPacket

_HEAD = struct.Struct("<II")  # bytes of the body, crc32 of the body
_BODY = struct.Struct("<BQQ")  # type, index, term
_ENTRY = 1  # data: the command
_TRUNCATE = 2  # entries at `index` and above are gone
_HARD = 3  # `index` is the commit index, data the address voted for in `term`
MAGIC = b"CUBEJNL1"
# No record of ours is longer: an entry of 1 MiB and its head. A length beyond it is damage.
RECORD_BYTES_MAX = 4 << 20


class FileJournal:
    """The library's journal interface (camelCase, positions in the list) over one file.

    Invariant: never empty; indexes are consecutive; the first entry is the one before the first
    that can still be sent (index 1 of a new log, or the last one a snapshot covers).
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        """Open or create. Raises BadPacket for damage that is not a torn tail, OSError."""
        self._path = path
        self._fsync = fsync
        self._entries: list[Entry] = []
        self._term = 0
        self._vote: str | None = None
        self._commit_index = 1
        self._commit_index_written = 1
        self._buffer: list[bytes] = []
        self.bytes_written = 0
        self.torn_bytes = 0
        self._fd = -1
        if path.exists():
            self._recover()
        else:
            self._entries = [(NO_OP, 1, 0)]
            self._rewrite()
        self._commit_index = min(self._commit_index, self.last_index)  # S8

    # --- what the library calls

    def add(self, command: bytes, idx: int, term: int) -> None:
        assert idx == self.last_index + 1, "a hole in the log"
        self._entries.append((command, idx, term))
        self._buffer.append(_record(_ENTRY, idx, term, command))

    def __getitem__(self, position: int) -> Entry:
        return self._entries[position]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """On disk when it returns: the library sends votes right after."""
        if (term, votedForNodeId) != (self._term, self._vote):
            self._term, self._vote = term, votedForNodeId
            self._buffer.append(self._hard_record())
            self.sync()

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._vote

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The commit index is a hint for the next start; once a second is enough."""
        if self._commit_index != self._commit_index_written:
            self._buffer.append(self._hard_record())

    def _destroy(self) -> None:
        if self._fd >= 0:
            self.onOneSecondTimer()
            self.sync()
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
        self._buffer.append(_record(_TRUNCATE, index, 0, b""))

    def trim_to(self, index: int) -> None:
        """`index` is the first entry kept. Atomic: a kill leaves the old file or the new one (D4)."""
        self._entries = self._entries[index - self.first_index :]
        self._rewrite()

    def reset(self, index: int, term: int) -> None:
        """The log starts after a snapshot that ends at (index, term), and holds nothing else."""
        self._entries = [(NO_OP, index, term)]
        self._commit_index = max(self._commit_index, index)
        self._rewrite()

    def sync(self) -> None:
        """Everything added so far is in the file (and on the disk, with fsync). Raises OSError."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._buffer.clear()
        _write_all(self._fd, data)
        self.bytes_written += len(data)
        if self._fsync:
            os.fdatasync(self._fd)

    # --- the file

    def _hard_record(self) -> bytes:
        self._commit_index_written = self._commit_index
        return _record(_HARD, self._commit_index, self._term, (self._vote or "").encode())

    def _rewrite(self) -> None:
        self._buffer.clear()
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        records = [MAGIC, self._hard_record()]
        records += [_record(_ENTRY, index, term, command) for command, index, term in self._entries]
        data = b"".join(records)
        _write_all(fd, data)
        if self._fsync:
            os.fsync(fd)
        os.rename(fresh, self._path)
        if self._fsync:
            sync_directory(self._path.parent)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self.bytes_written = len(data)

    def _recover(self) -> None:
        data = self._path.read_bytes()
        if data[: len(MAGIC)] != MAGIC:
            raise BadPacket(f"{self._path} is not a journal of this version")
        offset = len(MAGIC)
        while offset < len(data):
            body, end = _read_record(data, offset)
            if body is None:
                break
            self._replay(body)
            offset = end
        if not self._entries:
            raise BadPacket(f"{self._path} holds no entry")
        self.torn_bytes = len(data) - offset
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self._fd, offset)
        os.lseek(self._fd, offset, os.SEEK_SET)
        self.bytes_written = offset

    def _replay(self, body: bytes) -> None:
        kind, index, term = _BODY.unpack_from(body)
        data = body[_BODY.size :]
        if kind == _ENTRY:
            if self._entries and index != self.last_index + 1:
                raise BadPacket(f"{self._path} has a hole before entry {index}")
            self._entries.append((data, index, term))
        elif kind == _TRUNCATE:
            del self._entries[index - self.first_index :]
        elif kind == _HARD:
            self._commit_index = self._commit_index_written = index
            self._term, self._vote = term, data.decode() or None
        else:
            raise BadPacket(f"{self._path} has a record of unknown type {kind}")


def _record(kind: int, index: int, term: int, data: bytes) -> bytes:
    body = _BODY.pack(kind, index, term) + data
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _read_record(data: bytes, offset: int) -> tuple[bytes | None, int]:
    """The record at `offset` and where it ends; (None, offset) for a torn tail.

    A tail is torn when the write that made it was cut short: no whole record follows. Raises
    BadPacket when one does (D3): entries that were acknowledged may lie there, so cutting would be
    a silent loss.
    """
    body = _body_at(data, offset)
    if body is not None:
        return body, offset + _HEAD.size + len(body)
    for later in range(offset + 1, len(data) - _HEAD.size - _BODY.size + 1):
        if _body_at(data, later) is not None:
            raise BadPacket(f"the journal is damaged at byte {offset}, before its end")
    return None, offset


def _body_at(data: bytes, offset: int) -> bytes | None:
    """The body of a whole record that starts here, if one does."""
    if len(data) - offset < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack_from(data, offset)
    start = offset + _HEAD.size
    if not _BODY.size <= length <= min(RECORD_BYTES_MAX, len(data) - start):
        return None
    body = data[start : start + length]
    return body if zlib.crc32(body) == checksum else None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """`path` holds `data`, durably; a kill leaves the old content or the new."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    sync_directory(path.parent)
