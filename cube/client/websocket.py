"""The client's half of WebSocket (RFC 6455), as far as Cube speaks it. Bytes in, messages out: no
socket here. No extensions, no fragments longer than a message may be.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct

from cube.client.errors import BadAnswer

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL, _MASKED, _LENGTH = 0x80, 0x80, 0x7F
CONTROL_BYTES_MAX = 125


def new_key() -> str:
    return base64.b64encode(os.urandom(16)).decode()


def headers(key: str) -> dict[str, str]:
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }


def accepts(key: str, answer: str) -> bool:
    """Whether the server's Sec-WebSocket-Accept belongs to this key."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode() == answer


def frame(kind: int, data: bytes) -> bytes:
    """One whole message, masked as a client's must be."""
    size = len(data)
    if size < 126:
        head = struct.pack(">BB", _FINAL | kind, _MASKED | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", _FINAL | kind, _MASKED | 126, size)
    else:
        head = struct.pack(">BBQ", _FINAL | kind, _MASKED | 127, size)
    mask = os.urandom(4)
    return head + mask + _mask(data, mask)


def _mask(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


class Messages:
    """What the server sent, cut into messages."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._waiting = bytearray()
        self._kind = CONTINUATION  # of the message whose fragments are being gathered
        self._parts = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, data) of what is complete now. Raises BadAnswer."""
        self._waiting += data
        found = []
        while (one := self._next()) is not None:
            found.append(one)
        return found

    def _next(self) -> tuple[int, bytes] | None:
        while True:
            frame = self._take_frame()
            if frame is None:
                return None
            is_final, kind, data = frame
            if kind >= CLOSE:
                if not is_final or len(data) > CONTROL_BYTES_MAX:
                    raise BadAnswer("a WebSocket control message that is none")
                return kind, data
            if (kind == CONTINUATION) != (self._kind != CONTINUATION):
                raise BadAnswer("a WebSocket message within another")
            self._kind = kind or self._kind
            self._parts += data
            if len(self._parts) > self._bytes_max:
                raise BadAnswer("a WebSocket message that is too long")
            if is_final:
                whole, self._parts = bytes(self._parts), bytearray()
                kind, self._kind = self._kind, CONTINUATION
                return kind, whole

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        waiting = self._waiting
        if len(waiting) < 2:
            return None
        first, second = waiting[0], waiting[1]
        kind, size, begin = first & 0x0F, second & _LENGTH, 2
        if second & _MASKED or first & 0x70 or kind not in (0, TEXT, BINARY, CLOSE, PING, PONG):
            raise BadAnswer("what answers does not speak WebSocket")
        if size >= 126:
            begin = 4 if size == 126 else 10
            if len(waiting) < begin:
                return None
            size = int.from_bytes(waiting[2:begin], "big")
        if size > self._bytes_max:
            raise BadAnswer("a WebSocket message that is too long")
        if len(waiting) < begin + size:
            return None
        data = bytes(waiting[begin : begin + size])
        del waiting[: begin + size]
        return bool(first & _FINAL), kind, data
