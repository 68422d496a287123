"""The envelope around every packet and exchange. The machine never sees it; the shell applies it."""

from __future__ import annotations

import hashlib
import zlib
from typing import Protocol

from cube.model.errors import BadPacket
from cube.model.ids import ClusterId

SEAL_BYTES_MAX = 100  # what any seal may add: key id, sender, epoch, counter, nonce and tag fit

PLAIN_VERSION = 1
_CLUSTER_BYTES = 8  # 2^64: two clusters on one network do not collide by chance
_CRC_BYTES = 4
_HEADER_BYTES = 1 + _CLUSTER_BYTES + _CRC_BYTES


class Seal(Protocol):
    """Keeps out what was not sealed by a member of this cluster, as far as it can tell."""

    def seal(self, data: bytes) -> bytes:
        """`data` in its envelope, at most SEAL_BYTES_MAX longer."""
        ...

    def open(self, data: bytes) -> bytes:
        """What was sealed. Raises BadPacket for anything else, whatever the bytes."""
        ...


class PlainSeal:
    """Keeps out accidents, not attackers: other clusters, other programs, damaged bytes.

    Shape: version byte, 8 bytes of the cluster id's hash, CRC-32 of all the rest, data.
    """

    def __init__(self, cluster_id: ClusterId) -> None:
        digest = hashlib.blake2b(cluster_id.encode(), digest_size=_CLUSTER_BYTES).digest()
        self._mark = bytes([PLAIN_VERSION]) + digest

    def seal(self, data: bytes) -> bytes:
        return self._mark + self._crc(data) + data

    def open(self, data: bytes) -> bytes:
        if data[: len(self._mark)] != self._mark:
            raise BadPacket("not sealed for this cluster")
        body = data[_HEADER_BYTES:]
        if data[len(self._mark) : _HEADER_BYTES] != self._crc(body):
            raise BadPacket("checksum does not match")
        return body

    def _crc(self, body: bytes) -> bytes:
        return zlib.crc32(body, zlib.crc32(self._mark)).to_bytes(_CRC_BYTES, "big")
