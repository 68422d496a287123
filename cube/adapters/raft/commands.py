"""The bytes of a log entry. No pickle: a kind byte, then what the kind says.

The kind bytes are the library's own (it writes NO_OP itself); VERSION, its fourth, is never used
(S6, S7: there is exactly one operation, opaque bytes).
"""

from __future__ import annotations

import struct

import msgspec

from cube.model.errors import BadPacket

KIND_DATA = 0  # at_ms of the leader that appended it (8 bytes), then the proposer's bytes
KIND_NO_OP = 1  # nothing: a new leader's first entry, and a barrier
KIND_MEMBERS = 2  # every voter from this entry on, as a msgpack list of addresses
KINDS = frozenset((KIND_DATA, KIND_NO_OP, KIND_MEMBERS))

NO_OP = bytes((KIND_NO_OP,))
_STAMP = struct.Struct(">Bq")
_DATA_PREFIX = bytes((KIND_DATA,))

# Voters of one cluster: a quorum of more is slower, never safer.
MEMBERS_MAX = 31
ADDRESS_CHARS_MAX = 300


def unstamped(data: bytes) -> bytes:
    """A proposal on its way to the leader."""
    return _DATA_PREFIX + data


def stamped(proposal: bytes, at_ms: int) -> bytes:
    """The proposal as an entry of the leader that appends it at `at_ms`."""
    return _STAMP.pack(KIND_DATA, at_ms) + proposal[1:]


def kind_of(command: bytes) -> int:
    return command[0] if command else -1


def check_data(command: bytes) -> None:
    """Raises BadPacket unless split() can split it."""
    if len(command) < _STAMP.size:
        raise BadPacket("a log entry is shorter than its stamp")


def split(command: bytes) -> tuple[int, bytes]:
    """(at_ms, data) of a KIND_DATA entry. Raises BadPacket."""
    check_data(command)
    _, at_ms = _STAMP.unpack_from(command)
    return at_ms, command[_STAMP.size :]


def encode_members(members: frozenset[str]) -> bytes:
    return bytes((KIND_MEMBERS,)) + msgspec.msgpack.encode(sorted(members))


def decode_members(command: bytes) -> frozenset[str]:
    """Raises BadPacket."""
    try:
        members = msgspec.msgpack.decode(command[1:], type=list[str])
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPacket(f"a membership entry cannot be read: {error}") from None
    if not 0 < len(members) <= MEMBERS_MAX or any(len(m) > ADDRESS_CHARS_MAX for m in members):
        raise BadPacket("a membership entry is out of bounds")
    return frozenset(members)
