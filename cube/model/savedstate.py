"""A saved state as a file: a header that says what it is, then the state as a snapshot has it. Pure.

    "CUBESAV1", CRC-32 of the header, its length (4 bytes each, little-endian), the header (msgpack),
    then `size` bytes whose BLAKE2b digest the header has

Nothing in it opens anything: secrets in the state are sealed with the cluster key, which is not.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

import msgspec

from cube.model.errors import BadPacket

MAGIC = b"CUBESAV1"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII")
PREFIX_BYTES = _PREFIX.size
HEADER_BYTES_MAX = 4_096  # a cluster's name and a few numbers
DIGEST_BYTES = 16  # as cube.statemachine.snapshot.digest: equal states, equal digests


class SavedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is of the state, in hex; `size` its bytes; `term` of the entry at `index`."""

    version: int = FORMAT_VERSION
    cluster_id: str
    cluster_name: str
    index: int
    term: int
    digest: str
    size: int
    saved_at_ms: int
    jobs: int
    nodes: int
    tasks: int
    program: str  # the version of Cube that saved it


class DigestOf:
    """Of bytes that come in pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.size = 0

    def add(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()


def encode_head(header: SavedHeader) -> bytes:
    """What the file begins with."""
    body = msgspec.msgpack.encode(header)
    assert len(body) <= HEADER_BYTES_MAX
    return _PREFIX.pack(MAGIC, zlib.crc32(body), len(body)) + body


def head_bytes(prefix: bytes) -> int:
    """How long the head is whose first PREFIX_BYTES these are. Raises BadPacket."""
    if len(prefix) < PREFIX_BYTES or prefix[: len(MAGIC)] != MAGIC:
        raise BadPacket("it is no saved state of this version")
    _, _, length = _PREFIX.unpack_from(prefix)
    if length > HEADER_BYTES_MAX:
        raise BadPacket("its header is damaged")
    return PREFIX_BYTES + int(length)


def decode_head(head: bytes) -> SavedHeader:
    """Raises BadPacket."""
    length = head_bytes(head)
    _, checksum, _ = _PREFIX.unpack_from(head)
    body = head[PREFIX_BYTES:length]
    if len(head) < length or zlib.crc32(body) != checksum:
        raise BadPacket("its header is damaged")
    try:
        header = msgspec.msgpack.decode(body, type=SavedHeader)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPacket(f"its header cannot be read: {error}") from None
    if header.version != FORMAT_VERSION:
        raise BadPacket(f"it has format version {header.version}, not {FORMAT_VERSION}")
    return header


def check(header: SavedHeader, found: DigestOf) -> None:
    """`found` is of all that follows the head. Raises BadPacket."""
    if found.size != header.size:
        raise BadPacket(f"it has {found.size} bytes of state, and should have {header.size}")
    if found.hex != header.digest:
        raise BadPacket("it is damaged: its state does not match its checksum")
