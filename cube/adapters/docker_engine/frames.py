"""The engine's multiplexed streams: eight bytes of header, then a piece of one of the two outputs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import requests

HEADER = struct.Struct(">BxxxL")
STREAMS = {1: "stdout", 2: "stderr"}
FRAME_BYTES_MAX = 1 << 20  # the engine writes 16 KiB (logs) or 32 KiB (exec) at a time


def read_frames(response: requests.Response) -> Iterator[tuple[str, bytes]]:
    """(stream, data) until the answer ends. A cut frame is an end; nonsense is a ValueError."""
    raw = response.raw
    while len(header := raw.read(HEADER.size)) == HEADER.size:
        kind, size = HEADER.unpack(header)
        if kind > max(STREAMS) or size > FRAME_BYTES_MAX:
            raise ValueError(f"not a frame of the engine's: {header!r}")
        data = raw.read(size) if size else b""
        if len(data) < size:
            return
        if kind in STREAMS and data:
            yield STREAMS[kind], data
