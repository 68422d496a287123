"""What members say to each other: length-prefixed msgpack, checked field by field. No pickle (X1).

The library makes and reads plain dicts; these are the only ones that may cross. Anything else is
BadPacket, so a message that reaches the algorithm has every field it will look at, of its type and
in its bounds.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from cube.adapters.raft.commands import (
    KIND_DATA,
    KIND_MEMBERS,
    KINDS,
    check_data,
    decode_members,
    kind_of,
)
from cube.adapters.raft.library import REASON_SUCCESS, REASONS, Message
from cube.model.errors import BadPacket
from cube.ports.log import ENTRY_BYTES_MAX

LENGTH = struct.Struct(">I")
# Two batches of 1 MiB fit; a longer frame is not ours (X4).
FRAME_BYTES_MAX = 8 << 20
# Two addresses, a cluster and a node; all that is taken from one who is not introduced.
HELLO_BYTES_MAX = 4 << 10
HELLO = "hello"
# Terms and indexes: what the journal's 64 bits hold, with room for a step.
NUMBER_MAX = 1 << 62
# A command as the leader stamped it (L6: none is long enough to be cut into chunks).
COMMAND_BYTES_MAX = ENTRY_BYTES_MAX + 64

_REQUIRED: dict[str, dict[str, type]] = {
    HELLO: {"sender": str, "receiver": str, "cluster": str},
    "append_entries": {"term": int, "commit_index": int},
    "next_node_idx": {"term": int, "next_node_idx": int, "reset": bool, "success": bool},
    "request_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "response_vote": {"term": int},
    "pre_vote": {"term": int, "last_log_index": int, "last_log_term": int},
    "pre_vote_ok": {"term": int},
    "term_hint": {"term": int},
    "timeout_now": {"term": int},
    "apply_command": {"command": bytes},
    "apply_command_response": {"request_id": int},
}
_OPTIONAL: dict[str, dict[str, type]] = {
    HELLO: {"node": str},
    "append_entries": {"prevLogIdx": int, "prevLogTerm": int, "entries": list, "serialized": list},
    "request_vote": {"transfer": bool},
    "apply_command": {"request_id": int},
    "apply_command_response": {"log_idx": int, "log_term": int, "error": int},
}
_decoder = msgspec.msgpack.Decoder()
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """The frame, with its length before it."""
    body = _encoder.encode(message)
    assert len(body) <= FRAME_BYTES_MAX
    return LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message in a frame's body. Raises BadPacket for all that encode() would not make."""
    try:
        message: Any = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        # Besides its own errors the decoder raises those of bad UTF-8 and of keys that do not hash.
        raise BadPacket(f"a frame is no msgpack: {error}") from None
    if not isinstance(message, dict):
        raise BadPacket("a frame is no message")
    kind = message.get("type")
    required = _REQUIRED.get(kind) if isinstance(kind, str) else None
    if required is None or not isinstance(kind, str):
        raise BadPacket(f"unknown message {kind!r:.40}")
    for name, wanted in required.items():
        if name not in message:
            raise BadPacket(f"{kind}: {name} is missing")
        _check_value(kind, name, message[name], wanted)
    _check_rest(kind, message, len(required) + 1)
    return message


def _check_value(kind: str, name: str, value: object, wanted: type) -> None:
    if type(value) is not wanted:
        raise BadPacket(f"{kind}: {name} is no {wanted.__name__}")
    if wanted is int and not 0 <= value <= NUMBER_MAX:  # type: ignore[operator]
        raise BadPacket(f"{kind}: {name} is out of bounds")


def _check_rest(kind: str, message: Message, known: int) -> None:
    optional = _OPTIONAL.get(kind, {})
    for name, wanted in optional.items():
        if name in message:
            known += 1
            _check_value(kind, name, message[name], wanted)
    if len(message) != known:
        raise BadPacket(f"{kind}: unknown fields")
    if kind == "append_entries":
        _check_append_entries(message)
    elif kind == "apply_command":
        if not 0 < len(message["command"]) <= COMMAND_BYTES_MAX:
            raise BadPacket("apply_command: empty or too long")
    elif kind == "apply_command_response":
        _check_response(message)


def _check_response(message: Message) -> None:
    if "error" in message:
        if message["error"] == REASON_SUCCESS or message["error"] not in REASONS:
            raise BadPacket("apply_command_response: an error that is none")
    elif not ("log_idx" in message and "log_term" in message):
        raise BadPacket("apply_command_response: neither a place nor an error")


def _check_append_entries(message: Message) -> None:
    if "serialized" in message:
        chunk = message["serialized"]
        kinds = [type(part) for part in chunk]
        if chunk and (kinds != [bytes, int, bool] or not 0 <= chunk[1] <= NUMBER_MAX):
            raise BadPacket("append_entries: a snapshot chunk is (bytes, offset, is_last) or empty")
        return
    if not ("prevLogIdx" in message and "prevLogTerm" in message and "entries" in message):
        raise BadPacket("append_entries: neither entries nor a snapshot")
    index, term, newest = message["prevLogIdx"], message["prevLogTerm"], message["term"]
    for entry in message["entries"]:
        index += 1
        if type(entry) is not list or len(entry) != 3:
            raise BadPacket("append_entries: an entry is a list of three")
        command, entry_index, entry_term = entry
        if (
            type(command) is not bytes
            or type(entry_index) is not int
            or type(entry_term) is not int
        ):
            raise BadPacket("append_entries: an entry is (bytes, index, term)")
        if entry_index != index or not term <= entry_term <= newest:
            raise BadPacket("append_entries: entries are not consecutive")
        term = entry_term
        _check_command(command)
    if index > NUMBER_MAX:
        raise BadPacket("append_entries: out of bounds")


def _check_command(command: bytes) -> None:
    """It can be kept and applied: what is in the journal must be readable at the next start."""
    kind = kind_of(command)
    if kind == KIND_DATA:
        check_data(command)
    elif kind == KIND_MEMBERS:
        decode_members(command)
    elif kind not in KINDS:
        raise BadPacket(f"append_entries: an entry of unknown kind {kind}")
    if len(command) > COMMAND_BYTES_MAX:
        raise BadPacket(f"append_entries: an entry of {len(command)} bytes")
