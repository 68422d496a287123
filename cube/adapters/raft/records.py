"""The bytes of the log's segment files: what a file begins with, batches, records. Pure.

A segment is a header and then batches. A batch is what one sync carries: a mark and the records
behind it. A mark is written only after everything before it in the file was synced. This is what
tells the two kinds of damage apart:

- Behind the last whole mark anything may be missing, in any order: the disk was on its way when the
  power went. Nobody was told of it, so the whole batch is cut.
- Before a whole mark nothing may be missing: it was on the disk, and was perhaps acknowledged.

Marks carry their own offset and the segment's random salt, so that neither the bytes of a command
nor those of an older file can pass for one. A quiet log gets an empty batch, so that the last
records are covered, too.

Version 3. Version 2, the same with CRC-32 for CRC-32C, is read, too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from cube.adapters.raft.checksums import Checksum, crc32, crc32c

MAGIC = b"CUBELOG3"
_CHECKSUMS: dict[bytes, Checksum] = {MAGIC: crc32c, b"CUBELOG2": crc32}
_SEGMENT = struct.Struct("<8sIQQQ")  # magic, checksum of the rest, number, salt, previous length
_SEGMENT_REST = struct.Struct("<QQQ")
SEGMENT_HEAD_BYTES = _SEGMENT.size
_MARK_MAGIC = b"\xc5\xbeMk"
_MARK = struct.Struct("<4sIQQI")  # magic, checksum of the rest, salt, offset, bytes of the records
_MARK_REST = struct.Struct("<QQI")
_RECORD = struct.Struct("<IIBQQ")  # bytes of the body, its checksum; the body: type, index, term
_CHECKED_FROM = 8  # where in a record its body starts
_FIXED = struct.Struct("<BQQ")  # what every body begins with
# No record of ours is longer: an entry of 1 MiB and its head. A length beyond it is damage.
RECORD_BYTES_MAX = 4 << 20

ENTRY = 1  # data: the command
TRUNCATE = 2  # entries at `index` and above are gone
HARD = 3  # `index` is the commit index, data the address voted for in `term`
RESET = 4  # the log starts behind (index, term) and holds nothing else

# type, index, term, data
Record = tuple[int, int, int, bytes]


class SegmentHead(msgspec.Struct, frozen=True):
    """`previous_bytes`: how much of the segment before this one counts; the rest failed.
    `is_appendable`: it is of this version; one of an older version is only read."""

    number: int
    salt: int
    previous_bytes: int
    is_appendable: bool = True


class Damage(Exception):
    """Bytes that were synced are not what was written. `offset` is the first of them."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.offset = offset


class Tail(msgspec.Struct, frozen=True):
    """Where the whole batches end, where the last one starts, and how many bytes of a torn one
    follow."""

    end: int
    last_batch: int
    torn_bytes: int


def encode_head(head: SegmentHead) -> bytes:
    rest = _SEGMENT_REST.pack(head.number, head.salt, head.previous_bytes)
    return MAGIC + struct.pack("<I", crc32c(0, rest)) + rest


def decode_head(data: bytes) -> SegmentHead:
    """Raises Damage."""
    if len(data) < _SEGMENT.size or data[: len(MAGIC)] not in _CHECKSUMS:
        raise Damage(0, "it does not begin like a segment of this version or the one before it")
    magic, checksum, number, salt, previous_bytes = _SEGMENT.unpack_from(data)
    if _CHECKSUMS[magic](0, data[len(MAGIC) + 4 : _SEGMENT.size]) != checksum:
        raise Damage(0, "its header does not match its checksum")
    return SegmentHead(number, salt, previous_bytes, magic == MAGIC)


def encode_record(kind: int, index: int, term: int, data: bytes) -> bytes:
    checksum = crc32c(crc32c(0, _FIXED.pack(kind, index, term)), data)
    return _RECORD.pack(_FIXED.size + len(data), checksum, kind, index, term) + data


def encode_batch(salt: int, offset: int, records: Iterable[bytes]) -> bytes:
    """The batch that is to be written at `offset`."""
    data = b"".join(records)
    rest = _MARK_REST.pack(salt, offset, len(data))
    return _MARK_MAGIC + struct.pack("<I", crc32c(0, rest)) + rest + data


def read_records(data: bytes, salt: int, limit: int | None) -> Iterator[Record | Tail]:
    """Every record of a segment's whole batches in order, then its Tail. `data` is all of it, and
    its head is known to be whole.

    `limit` is how much of it counts, when a later segment says so: then all of that must be whole.
    A batch counts as a whole or not at all: it was acknowledged after the whole was synced.
    Raises Damage.
    """
    checksum = _CHECKSUMS[data[: len(MAGIC)]]
    offset, last_batch = SEGMENT_HEAD_BYTES, 0
    bad = offset  # the first byte that is no part of a whole record
    size = len(data) if limit is None else limit
    if size > len(data):
        raise Damage(len(data), f"it ends here, and should have {size} bytes")
    while offset < size and (length := _mark_at(data, offset, salt, checksum)) is not None:
        batch, bad_offset = _batch_at(data, offset + _MARK.size, length, size, checksum)
        if bad_offset is not None:
            bad = bad_offset
            break
        yield from batch
        last_batch, offset = offset, offset + _MARK.size + length
        bad = offset
    if limit is None:
        _expect_torn(data, salt, bad, checksum)
    elif bad != limit:
        raise Damage(bad, f"the next segment shows that it was whole up to {limit}")
    if last_batch == 0:
        # The first batch is in the file before the file has its name.
        raise Damage(offset, "its first batch is not whole")
    yield Tail(offset, last_batch, 0 if limit is not None else len(data[offset:].rstrip(b"\0")))


def _batch_at(
    data: bytes, offset: int, length: int, size: int, checksum: Checksum
) -> tuple[list[Record], int | None]:
    """The records of a batch; where the first one that is not whole starts, if there is one."""
    batch: list[Record] = []
    end = offset + length
    while offset < end:
        record, following = _record_at(data, offset, min(end, size), checksum)
        if record is None:
            return batch, offset
        batch.append(record)
        offset = following
    return batch, None


def _expect_torn(data: bytes, salt: int, end: int, checksum: Checksum) -> None:
    """Nothing from `end` on shows that what is there was synced. Raises Damage."""
    later = data.find(_MARK_MAGIC, end)
    while later >= 0:
        if _mark_at(data, later, salt, checksum) is not None:
            raise Damage(end, f"the mark at {later} shows that it was whole once")
        later = data.find(_MARK_MAGIC, later + 1)


def _mark_at(data: bytes, offset: int, salt: int, checksum: Checksum) -> int | None:
    """How many bytes of records the mark here announces; None when there is no whole mark."""
    if len(data) - offset < _MARK.size or data[offset : offset + 4] != _MARK_MAGIC:
        return None
    _, expected, found_salt, found_offset, length = _MARK.unpack_from(data, offset)
    if (found_salt, found_offset) != (salt, offset):
        return None
    whole = checksum(0, data[offset + 8 : offset + _MARK.size]) == expected
    return int(length) if whole else None


def _record_at(data: bytes, offset: int, end: int, checksum: Checksum) -> tuple[Record | None, int]:
    """The whole record here and where it ends."""
    if end - offset < _RECORD.size:
        return None, offset
    length, expected, kind, index, term = _RECORD.unpack_from(data, offset)
    start = offset + _CHECKED_FROM
    following = start + length
    if not _FIXED.size <= length <= RECORD_BYTES_MAX or following > end:
        return None, offset
    content_at = start + _FIXED.size
    content = data[content_at:following]
    if checksum(checksum(0, data[start:content_at]), content) != expected:
        return None, offset
    return (kind, index, term, content), following
