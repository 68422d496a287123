"""What nodes say to each other, and its bytes: a version byte, then msgpack.

Any bytes are a packet or BadPacket. Sizes: every packet but Sync fits PACKET_BYTES_MAX with what it
carries of rumours; Sync travels by exchange. The envelope around these bytes is seal.py's.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from cube.gossip.member import Address, Member, Name, NameOrNone
from cube.model.errors import BadPacket
from cube.model.ids import NodeId

WIRE_VERSION = 1
PACKET_BYTES_MAX = 1_300  # a datagram of 1,400 bytes less SEAL_BYTES_MAX
MEMBERS_MAX = 4_096  # of one cluster, the dead included: bounds memory; Cube is for a few hundred
RUMOURS_MAX = 64  # in one packet: more of the smallest do not fit

Sequence = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


NOBODY = NodeId("")


class Rumour(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of what is known of a member. `accuser` is who saw a suspect fail, else empty."""

    member: Member
    accuser: NameOrNone = NOBODY


Rumours = Annotated[tuple[Rumour, ...], msgspec.Meta(max_length=RUMOURS_MAX)]


class Ping(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Are you `target`, and alive? Only `target` itself answers, with Ack of the same sequence."""

    source: Name
    target: Name
    sequence: Sequence
    rumours: Rumours = ()


class Ack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """The answer to a Ping, or, from a helper, the word that the target answered it."""

    source: Name
    sequence: Sequence
    rumours: Rumours = ()


class PingRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Please ping `target` for me. Answered by Ack if it answers, by Nack if it has not yet."""

    source: Name
    target: Name
    address: Address
    sequence: Sequence
    rumours: Rumours = ()


class Nack(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """The target has not answered me, but you and I can talk: so it is not you who is deaf."""

    source: Name
    sequence: Sequence
    rumours: Rumours = ()


class Gossip(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """News, no answer wanted."""

    source: Name
    rumours: Rumours = ()


class Sync(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """All that the source knows. By exchange only; the answer is the other's Sync."""

    source: Name
    members: Annotated[tuple[Member, ...], msgspec.Meta(max_length=MEMBERS_MAX)]


Packet = Ping | Ack | PingRequest | Nack | Gossip | Sync
Carrier = TypeVar("Carrier", Ping, Ack, PingRequest, Nack, Gossip)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)
_VERSION = bytes([WIRE_VERSION])


def encode(packet: Packet) -> bytes:
    """The packet's bytes."""
    return _VERSION + _encoder.encode(packet)


def decode(data: bytes) -> Packet:
    """The packet. Raises BadPacket for anything that encode() cannot have written."""
    if data[:1] != _VERSION:
        raise BadPacket("gossip packet of another wire version")
    try:
        return _decoder.decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadPacket(f"gossip packet: {error}") from error


def rumour_bytes(rumour: Rumour) -> int:
    """What it adds to a packet that carries it."""
    return len(_encoder.encode(rumour))
