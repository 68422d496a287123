"""The only wire format: one version byte, then msgpack by the model's own types.

Unknown fields are refused: a command of a newer release must stop an older one, not be half applied.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from cube.model.commands import Command
from cube.model.errors import BadPacket

FORMAT_VERSION = 1

_T = TypeVar("_T")
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_COMMAND_DECODER = msgspec.msgpack.Decoder(Command)


def encode(value: object) -> bytes:
    """Equal values give equal bytes, whatever the order of their mappings."""
    return bytes((FORMAT_VERSION,)) + _ENCODER.encode(value)


def encode_map_head(length: int) -> bytes:
    """What encode() begins with for a map or struct of `length` fields; behind it belong as many
    names and values, each by encode_part(). So a large value can be encoded piece by piece."""
    return bytes((FORMAT_VERSION,)) + struct.pack(">BH", 0xDE, length)


def encode_list_head(length: int) -> bytes:
    """As encode_map_head(), for a list inside it."""
    return struct.pack(">BI", 0xDD, length)


def encode_part(value: object) -> bytes:
    return _ENCODER.encode(value)


def decode(data: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    """The value that encode() was given. Raises BadPacket on anything else."""
    if not data or data[0] != FORMAT_VERSION:
        raise BadPacket(
            f"format version {data[0] if data else 'missing'}, expected {FORMAT_VERSION}"
        )
    return decode_part(memoryview(data)[1:], decoder)


def decode_part(data: memoryview | msgspec.Raw, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
    """The value that encode_part() was given. Raises BadPacket on anything else."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BadPacket(str(error)) from error


def encode_command(command: Command) -> bytes:
    return encode(command)


def decode_command(data: bytes) -> Command:
    """Raises BadPacket."""
    return decode(data, _COMMAND_DECODER)
