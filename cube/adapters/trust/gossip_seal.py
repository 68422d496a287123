"""gossip.seal.Seal with AES-256-GCM: only who has a gossip key of the cluster can say anything, and
nothing is heard twice.

Shape: version byte, 4 bytes of key id, length of the sender's id, the id, 12 random bytes of nonce;
then, encrypted: epoch (8), number (8), data; then the tag (16). Each sender encrypts with a key of
its own, derived from the cluster's, so that random nonces stay far from repeating. The cluster's id
and all that precedes the nonce is authenticated.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cube.gossip.replay import NUMBER_MAX, Bound, Numbering, Replay
from cube.gossip.seal import SEAL_BYTES_MAX
from cube.model import codec
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.trust import KEY_BYTES, key_id
from cube.ports.disk import Disk

SEALED_VERSION = 2  # 1 is cube.gossip.seal.PlainSeal
HEARD = "gossip-heard"  # file in the data directory
NONCE_BYTES = 12
TAG_BYTES = 16
SENDER_BYTES_MAX = SEAL_BYTES_MAX - 6 - NONCE_BYTES - 16 - TAG_BYTES  # a UUID has 36
CIPHERS_MAX = 8_192  # derived keys kept: every sender under two keys

log = logging.getLogger(__name__)


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What outlives a restart. `epoch`: this node's own, of the run that wrote it."""

    epoch: int
    bounds: dict[str, Bound]


_HEARD = msgspec.msgpack.Decoder(Heard)


class AesSeal:
    """One owner: the gossip loop. `disk` keeps what was heard, so that a restart forgets nothing."""

    def __init__(
        self, cluster_id: ClusterId, node_id: NodeId, keys: Sequence[bytes], disk: Disk, now_ms: int
    ) -> None:
        """A new epoch of this node has begun, durably. `keys`: the first one seals, all of them
        open. Raises Unavailable when the disk does not take it."""
        self._cluster = cluster_id.encode()
        self._me = node_id.encode()
        assert 0 < len(self._me) <= SENDER_BYTES_MAX, node_id
        self._disk = disk
        last = _read(disk)
        # Not the clock alone, which may go back; nor the count alone, which a lost file resets.
        self._numbering = Numbering(min(max(last.epoch + 1, now_ms), NUMBER_MAX))
        self._replay = Replay(last.bounds)
        self._keys: dict[bytes, bytes] = {}
        self._ciphers: dict[tuple[bytes, bytes], AESGCM] = {}
        self.set_keys(keys)
        self._write(last.bounds)

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """From now on. What is sealed with a key that is not among them is refused."""
        assert keys
        assert all(len(key) == KEY_BYTES for key in keys)
        self._keys = {bytes.fromhex(key_id(key)): key for key in keys}
        self._ciphers = {}
        in_use = bytes.fromhex(key_id(keys[0]))
        self._head = self._header(in_use, self._me)
        self._own = self._cipher(in_use, self._me)

    def seal(self, data: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        numbers = self._numbering.epoch.to_bytes(8, "big") + self._numbering.next().to_bytes(
            8, "big"
        )
        return (
            self._head
            + nonce
            + self._own.encrypt(nonce, numbers + data, self._head + self._cluster)
        )

    def open(self, data: bytes) -> bytes:
        sender, key, nonce_at = self._parse(data)
        cipher = self._cipher(key, sender)
        nonce = data[nonce_at : nonce_at + NONCE_BYTES]
        try:
            plain = cipher.decrypt(
                nonce, data[nonce_at + NONCE_BYTES :], data[:nonce_at] + self._cluster
            )
        except (InvalidTag, ValueError) as error:
            raise BadPacket("not sealed by a member of this cluster") from error
        if len(plain) < 16:
            raise BadPacket("a sealed packet without numbers")
        # Only now is the sender known to be one: nothing is kept for those who are not.
        self._keep_cipher(key, sender, cipher)
        epoch, number = int.from_bytes(plain[:8], "big"), int.from_bytes(plain[8:16], "big")
        self._take(_text(sender), epoch, number)
        return plain[16:]

    def _parse(self, data: bytes) -> tuple[bytes, bytes, int]:
        """Sender, key id, and where the nonce begins."""
        if len(data) < 6 + NONCE_BYTES + TAG_BYTES or data[0] != SEALED_VERSION:
            raise BadPacket("not a sealed packet")
        length = data[5]
        nonce_at = 6 + length
        if not 0 < length <= SENDER_BYTES_MAX or len(data) < nonce_at + NONCE_BYTES + TAG_BYTES:
            raise BadPacket("not a sealed packet")
        key, sender = data[1:5], data[6:nonce_at]
        if key not in self._keys:
            raise BadPacket("sealed with a key that is not in use here")
        if sender == self._me:
            raise BadPacket("a packet of this node's own")
        return sender, key, nonce_at

    def _take(self, sender: str, epoch: int, number: int) -> None:
        if self._replay.take(sender, epoch, number):
            # It has just started, and may refuse numbers that it heard, or may have heard, before.
            self._numbering.jump()
        if self._replay.must_save(sender):
            try:
                self._write(self._replay.bounds())
            except Unavailable as error:  # gossip is needed most when something is wrong
                log.warning("gossip_heard_not_kept cause=%s", error)

    def _write(self, bounds: dict[str, Bound]) -> None:
        self._disk.replace(HEARD, codec.encode(Heard(self._numbering.epoch, bounds)))

    def _header(self, key: bytes, sender: bytes) -> bytes:
        return bytes((SEALED_VERSION,)) + key + bytes((len(sender),)) + sender

    def _cipher(self, key: bytes, sender: bytes) -> AESGCM:
        kept = self._ciphers.get((key, sender))
        if kept is not None:
            return kept
        derived = hashlib.blake2b(
            self._cluster + b"\0" + sender,
            key=self._keys[key],
            digest_size=KEY_BYTES,
            person=b"cube-gossip-seal",
        )
        return AESGCM(derived.digest())

    def _keep_cipher(self, key: bytes, sender: bytes, cipher: AESGCM) -> None:
        if len(self._ciphers) >= CIPHERS_MAX:
            self._ciphers.clear()
        self._ciphers[key, sender] = cipher


def _text(sender: bytes) -> str:
    try:
        return sender.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadPacket("a sender whose id is no id") from error


def _read(disk: Disk) -> Heard:
    data = disk.read(HEARD)
    if data is None:
        return Heard(0, {})
    try:
        return codec.decode(data, _HEARD)
    except BadPacket as error:  # old packets may be heard once more: no reason to stay away
        log.warning("gossip_heard_damaged file=%s cause=%s", HEARD, error)
        return Heard(0, {})
