"""The snapshot file: written elsewhere, sent in chunks, received and checked.

A snapshot names the index and term it stands at and the voters as of then, so that it and the
journal behind it are one unit (D8). It replaces the library's serializer, which pickles, reports a
half-received file as whole, and would let a late local one overwrite a newer received one.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from cube.adapters.raft.checksums import Checksum, crc32, crc32c
from cube.adapters.raft.files import sync_directory
from cube.adapters.raft.library import monotonic
from cube.model.errors import BadPacket

logger = logging.getLogger(__name__)

MAGIC = b"CUBESNP2"
# Version 1 is read, too.
_CHECKSUMS: dict[bytes, Checksum] = {MAGIC: crc32c, b"CUBESNP1": crc32}
_HEAD = struct.Struct("<II")  # checksum of all that follows, bytes of the header
WRITE_BYTES = READ_BYTES = 256 << 10
# Synced in portions: one large sync at the end would keep the journal's own waiting.
SYNC_BYTES = 1 << 20
# Between two slices of the encoding: long enough that the Raft thread and the event loop, which
# wait for the interpreter, get their turn.
ENCODING_PAUSE_S = 0.0005
# A snapshot that could not be written is not tried again before this: the disk is full, or the
# encoding has a bug.
RETRY_S = 10.0
CHUNK_BYTES = 256 << 10
# Of a snapshot in one answer to a member that follows.
PIECE_BYTES = 1 << 20
# Snapshots that are being read: the newest, and those that slow readers began with.
PIECES_OPEN_MAX = 4
PIECES_IDLE_S = 60.0
# A receiver's disk is not filled by a peer's mistake.
SNAPSHOT_BYTES_MAX = 4 << 30


class SnapshotHeader(msgspec.Struct, frozen=True):
    index: int
    term: int
    voters: tuple[str, ...]


class _Sending(msgspec.Struct):
    file: BinaryIO
    index: int
    offset: int


class SnapshotStore:
    """`snapshot` in the data directory. All of it belongs to the Raft thread but the encoding."""

    def __init__(self, directory: Path, wake: Callable[[], None]) -> None:
        self._path = directory / "snapshot"
        self._encoding_path = directory / "snapshot.encoding"
        self._receiving_path = directory / "snapshot.receiving"
        self._wake = wake
        self.header: SnapshotHeader | None = None
        self._encoder: threading.Thread | None = None
        self._encoded: SnapshotHeader | BaseException | None = None
        self._retry_at = 0.0
        self._sending: dict[str, _Sending] = {}
        self._sent_index: dict[str, int] = {}
        self._receiving: BinaryIO | None = None
        self._receiving_from = ""
        self._receiving_unsynced = 0

    @property
    def is_encoding(self) -> bool:
        return self._encoder is not None

    @property
    def may_encode(self) -> bool:
        return self._encoder is None and monotonic() >= self._retry_at

    @property
    def index(self) -> int:
        """What the snapshot on disk covers; 0 without one."""
        return self.header.index if self.header is not None else 0

    def load(self) -> bytes | None:
        """The replica's bytes of the snapshot, whose header is then `header`; None without one.

        Raises BadPacket when the file is damaged: the journal behind it is of no use without it.
        """
        if not self._path.exists():
            return None
        self.header, data = read_snapshot(self._path)
        return data

    def open_data(self) -> BinaryIO:
        """The replica's bytes of the present snapshot, whatever takes its place. Raises OSError."""
        return _open_data(self._path)

    # --- making one

    def start_encoding(self, header: SnapshotHeader, encode: Callable[[], Iterator[bytes]]) -> None:
        """`encode` runs on a thread and its result is on disk, beside the present snapshot, when
        finish() returns it. At most one at a time."""
        assert self._encoder is None
        self._encoded = None
        self._encoder = threading.Thread(
            target=self._encode, args=(header, encode), name="cube-raft-snapshot", daemon=True
        )
        self._encoder.start()

    def finish(self) -> SnapshotHeader | None:
        """The new snapshot, in place; None while there is none or when it failed or came late.
        Raises OSError."""
        encoder, encoded = self._encoder, self._encoded
        if encoder is None or encoded is None:
            return None
        encoder.join()
        self._encoder = None
        if isinstance(encoded, BaseException):
            logger.error("raft_snapshot_failed error=%r", encoded)
            self._encoding_path.unlink(missing_ok=True)
            self._retry_at = monotonic() + RETRY_S
            return None
        if encoded.index <= self.index:
            self._encoding_path.unlink(missing_ok=True)
            return None
        self._replace_by(self._encoding_path, encoded)
        return encoded

    def _encode(self, header: SnapshotHeader, encode: Callable[[], Iterator[bytes]]) -> None:
        try:
            write_snapshot(self._encoding_path, header, encode())
            self._encoded = header
        except Exception as error:  # noqa: BLE001 - reported by finish() on the Raft thread
            self._encoded = error
        self._wake()

    # --- sending it

    def next_chunk(self, receiver: str) -> tuple[bytes, int, bool] | None:
        """(bytes, offset, is_last), each once, in order; None when there is nothing to send. Raises
        OSError."""
        sending = self._sending.get(receiver)
        if sending is None:
            if self.header is None:
                return None
            file = self._path.open("rb")
            sending = self._sending[receiver] = _Sending(file, self.header.index, 0)
        data = sending.file.read(CHUNK_BYTES)
        offset = sending.offset
        sending.offset += len(data)
        is_last = len(data) < CHUNK_BYTES
        if is_last:
            self._sent_index[receiver] = sending.index
            self.cancel_sending(receiver)
        return data, offset, is_last

    def sent_index(self, receiver: str) -> int:
        return self._sent_index[receiver]

    def cancel_sending(self, receiver: str) -> None:
        sending = self._sending.pop(receiver, None)
        if sending is not None:
            sending.file.close()

    # --- receiving one

    def receive(self, sender: str, chunk: list[object]) -> int | None:
        """The index of the snapshot that this chunk completes, else None. It is in place if it is
        ahead of the present one; a chunk out of turn, or a damaged whole, starts over. Raises
        OSError."""
        if not chunk:
            return None
        data, offset, is_last = chunk
        assert isinstance(data, bytes)
        assert isinstance(offset, int)
        if offset == 0:
            self.stop_receiving()
            self._receiving = self._receiving_path.open("wb")
            self._receiving_from = sender
            self._receiving_unsynced = 0
        file = self._receiving
        if file is None or sender != self._receiving_from or file.tell() != offset:
            return None
        file.write(data)
        self._receiving_unsynced += len(data)
        if file.tell() > SNAPSHOT_BYTES_MAX:
            self.stop_receiving()
            return None
        if self._receiving_unsynced >= SYNC_BYTES or is_last:
            self._receiving_unsynced = 0
            file.flush()
            os.fsync(file.fileno())
        if not is_last:
            return None
        self.stop_receiving()
        try:
            header = check_snapshot(self._receiving_path)
        except BadPacket as error:
            logger.warning("raft_snapshot_refused from=%s error=%s", sender, error)
            return None
        if header.index > self.index:
            self._replace_by(self._receiving_path, header)
        return header.index

    def received_bytes(self, sender: str) -> int:
        """Of a snapshot that is on its way from `sender`."""
        file = self._receiving
        return file.tell() if file is not None and self._receiving_from == sender else 0

    def close(self) -> None:
        """Waits for an encoding under way."""
        if self._encoder is not None:
            self._encoder.join()  # the next start finds what it wrote, and begins anew
        self.stop_receiving()
        for receiver in list(self._sending):
            self.cancel_sending(receiver)

    def stop_receiving(self) -> None:
        """What has come so far is dropped; the sender starts over."""
        if self._receiving is not None:
            self._receiving.close()
            self._receiving = None

    def _replace_by(self, path: Path, header: SnapshotHeader) -> None:
        """Raises OSError; nothing may be trimmed then."""
        # Giving back the blocks of a large file takes a while, and falls to who lets go of it last.
        previous = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC) if self.header else None
        try:
            os.rename(path, self._path)
        finally:
            if previous is not None:
                threading.Thread(target=os.close, args=(previous,), daemon=True).start()
        self.header = header
        sync_directory(self._path.parent)


class _Open(msgspec.Struct):
    fd: int
    size: int
    used_at: float


class SnapshotPieces:
    """The snapshot of this member for those that follow it, read on other threads, one call at a
    time. A file stays open while somebody asks for more of it, so that one which reads slowly gets
    the whole of it, replaced meanwhile or not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[int, _Open] = {}

    def has(self, index: int) -> bool:
        return index in self._open

    def read(self, index: int, offset: int) -> tuple[int, int, bytes, bool]:
        """(index, offset, data, is_last): of the snapshot at `index` what is at `offset`, or else
        the beginning of the newest one. Raises OSError, BadPacket."""
        self._expire()
        if index not in self._open or offset > self._open[index].size:
            index, offset = self._open_newest(), 0
        file = self._open[index]
        file.used_at = monotonic()
        data = os.pread(file.fd, PIECE_BYTES, offset)
        return index, offset, data, offset + len(data) >= file.size

    def close(self) -> None:
        for index in list(self._open):
            os.close(self._open.pop(index).fd)

    def _open_newest(self) -> int:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            index = _read_header(fd, self._path).index
            if index not in self._open:
                size = os.fstat(fd).st_size
                self._open[index] = _Open(os.dup(fd), size, monotonic())
        finally:
            os.close(fd)
        return index

    def _expire(self) -> None:
        oldest_first = sorted(self._open, key=lambda index: self._open[index].used_at)
        spare = len(oldest_first) - PIECES_OPEN_MAX + 1
        for place, index in enumerate(oldest_first):
            if place < spare or monotonic() - self._open[index].used_at > PIECES_IDLE_S:
                os.close(self._open.pop(index).fd)


def _read_header(fd: int, path: Path) -> SnapshotHeader:
    """Not checked against the whole: who receives it does that."""
    raw = os.pread(fd, len(MAGIC) + _HEAD.size, 0)
    if len(raw) < len(MAGIC) + _HEAD.size or raw[: len(MAGIC)] not in _CHECKSUMS:
        raise BadPacket(f"{path} is not a snapshot of this version or the one before it")
    _, head_bytes = _HEAD.unpack_from(raw, len(MAGIC))
    try:
        return msgspec.msgpack.decode(os.pread(fd, head_bytes, len(raw)), type=SnapshotHeader)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPacket(f"{path} has no readable header: {error}") from None


def write_snapshot(path: Path, header: SnapshotHeader, slices: Iterator[bytes]) -> None:
    """The snapshot is in the file, which is synced; its name is not. Raises OSError."""
    head = msgspec.msgpack.encode(header)
    checksum = crc32c(0, head)
    with path.open("wb", buffering=WRITE_BYTES) as file:
        file.write(bytes(len(MAGIC) + _HEAD.size) + head)
        unsynced = 0
        for data in slices:
            checksum = crc32c(checksum, data)
            unsynced += file.write(data)
            if unsynced >= SYNC_BYTES:
                file.flush()
                os.fdatasync(file.fileno())
                unsynced = 0
            time.sleep(ENCODING_PAUSE_S)
        file.seek(0)
        file.write(MAGIC + _HEAD.pack(checksum, len(head)))
        file.flush()
        os.fsync(file.fileno())


def read_snapshot(path: Path) -> tuple[SnapshotHeader, bytes]:
    """Raises BadPacket for a damaged file, OSError."""
    header = check_snapshot(path)
    with _open_data(path) as file:
        return header, file.read()


def _open_data(path: Path) -> BinaryIO:
    file = path.open("rb")
    _, head_bytes = _HEAD.unpack(file.read(len(MAGIC) + _HEAD.size)[len(MAGIC) :])
    file.seek(head_bytes, os.SEEK_CUR)
    return file


def check_snapshot(path: Path) -> SnapshotHeader:
    """The header of a whole and undamaged snapshot. Raises BadPacket, OSError."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + _HEAD.size)
        if len(start) < len(MAGIC) + _HEAD.size or start[: len(MAGIC)] not in _CHECKSUMS:
            raise BadPacket(f"{path} is not a snapshot of this version or the one before it")
        checksum_of = _CHECKSUMS[start[: len(MAGIC)]]
        expected, head_bytes = _HEAD.unpack_from(start, len(MAGIC))
        first = file.read(max(READ_BYTES, head_bytes))
        checksum = checksum_of(0, first)
        while data := file.read(READ_BYTES):
            checksum = checksum_of(checksum, data)
    if checksum != expected:
        raise BadPacket(f"{path} is damaged")
    try:
        return msgspec.msgpack.decode(first[:head_bytes], type=SnapshotHeader)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPacket(f"{path} has no readable header: {error}") from None
