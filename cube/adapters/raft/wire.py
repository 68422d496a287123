"""What members say to each other: length-prefixed msgpack, checked field by field. No pickle (X1).

The library makes and reads plain dicts; these are the only ones that may cross. Anything else is
BadPacket, so a message that reaches the algorithm has every field it will look at, of its type.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from cube.adapters.raft.library import Message
from cube.model.errors import BadPacket

LENGTH = struct.Struct(">I")
# Two batches of 1 MiB fit; a longer frame is not ours (X4).
FRAME_BYTES_MAX = 8 << 20
HELLO = "hello"

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
        if type(message.get(name)) is not wanted:
            raise BadPacket(f"{kind}: {name} is missing or no {wanted.__name__}")
    _check_rest(kind, message, len(required) + 1)
    return message


def _check_rest(kind: str, message: Message, known: int) -> None:
    optional = _OPTIONAL.get(kind, {})
    for name, wanted in optional.items():
        if name in message:
            known += 1
            if type(message[name]) is not wanted:
                raise BadPacket(f"{kind}: {name} is no {wanted.__name__}")
    if len(message) != known:
        raise BadPacket(f"{kind}: unknown fields")
    if kind == "append_entries":
        _check_append_entries(message)
    elif kind == "apply_command" and not message["command"]:
        raise BadPacket("apply_command: empty")
    elif kind == "apply_command_response" and not (
        "error" in message or ("log_idx" in message and "log_term" in message)
    ):
        raise BadPacket("apply_command_response: neither a place nor an error")


def _check_append_entries(message: Message) -> None:
    if "serialized" in message:
        chunk = message["serialized"]
        kinds = [type(part) for part in chunk]
        if chunk and kinds != [bytes, int, bool]:
            raise BadPacket("append_entries: a snapshot chunk is (bytes, offset, is_last) or empty")
        return
    if not ("prevLogIdx" in message and "prevLogTerm" in message and "entries" in message):
        raise BadPacket("append_entries: neither entries nor a snapshot")
    index = message["prevLogIdx"]
    for entry in message["entries"]:
        index += 1
        if type(entry) is not list or [type(part) for part in entry] != [bytes, int, int]:
            raise BadPacket("append_entries: an entry is (bytes, index, term)")
        if entry[1] != index or not entry[0]:
            raise BadPacket("append_entries: entries are empty or not consecutive")
