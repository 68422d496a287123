"""The file of a saved state: what it says of itself, and every damage told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.model.errors import BadPacket
from cube.model.savedstate import (
    PREFIX_BYTES,
    DigestOf,
    SavedHeader,
    check,
    decode_head,
    encode_head,
    head_bytes,
)

STATE = b"the state"


def digest_of(data: bytes) -> DigestOf:
    found = DigestOf()
    found.add(data)
    return found


HEADER = SavedHeader(
    cluster_id="c", cluster_name="prod", index=7, term=2, digest=digest_of(STATE).hex, size=9,
    saved_at_ms=1, jobs=1, nodes=2, tasks=3, program="0.1.0",
)  # fmt: skip


def read(data: bytes) -> SavedHeader:
    length = head_bytes(data[:PREFIX_BYTES])
    header = decode_head(data[:length])
    check(header, digest_of(data[length:]))
    return header


def test_what_was_written_is_read() -> None:
    assert read(encode_head(HEADER) + STATE) == HEADER


@given(st.integers(0, len(encode_head(HEADER)) + len(STATE) - 1), st.integers(0, 7))
def test_any_flipped_bit_is_told(at: int, bit: int) -> None:
    data = bytearray(encode_head(HEADER) + STATE)
    data[at] ^= 1 << bit
    with pytest.raises(BadPacket):
        read(bytes(data))


@given(st.integers(0, len(encode_head(HEADER)) + len(STATE) - 1))
def test_any_cut_is_told(length: int) -> None:
    with pytest.raises(BadPacket):
        read((encode_head(HEADER) + STATE)[:length])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadPacket):
        read(data)


def test_another_version_and_a_header_of_no_end_are_refused() -> None:
    import msgspec

    later = msgspec.structs.replace(HEADER, version=2)
    with pytest.raises(BadPacket, match="format version 2"):
        read(encode_head(later) + STATE)
    with pytest.raises(BadPacket, match="header"):
        head_bytes(encode_head(HEADER)[:12] + b"\xff\xff\xff\x7f")
