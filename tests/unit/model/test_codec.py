"""The wire format: what is not exactly ours is BadPacket."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import msgspec
import msgspec.inspect as inspect
import pytest
from hypothesis import given

from cube.model import codec
from cube.model import commands as c
from cube.model.errors import BadPacket
from cube.model.ids import CommandId, JobId
from cube.statemachine import snapshot
from tests.builders import Machine, job

COMMAND = c.Command(CommandId("k"), c.SubmitJob(job("web"), JobId("j"), 3), "me", "digest")


def structs(type_: inspect.Type, seen: set[type]) -> Iterator[type[msgspec.Struct]]:
    """Every struct that can stand somewhere inside."""
    if isinstance(type_, inspect.StructType):
        if type_.cls not in seen:
            seen.add(type_.cls)
            yield type_.cls
            for field in type_.fields:
                yield from structs(field.type, seen)
        return
    inner: list[inspect.Type] = [
        value
        for name in ("item_type", "key_type", "value_type")
        if (value := getattr(type_, name, None)) is not None
    ]
    inner += [*getattr(type_, "item_types", ()), *getattr(type_, "types", ())]
    for value in inner:
        yield from structs(value, seen)


def test_no_struct_of_the_log_or_of_snapshots_ignores_what_it_does_not_know() -> None:
    """A command of a newer release must stop an older one, not be half applied."""
    seen: set[type] = set()
    found = [
        struct
        for root in (c.Command, snapshot.Snapshot)
        for struct in structs(inspect.type_info(root), seen)
    ]
    assert len(found) > 40
    lenient = [s.__name__ for s in found if not s.__struct_config__.forbid_unknown_fields]
    assert lenient == []


def test_a_command_of_a_newer_release_is_not_half_understood() -> None:
    tree: Any = msgspec.msgpack.decode(codec.encode_command(COMMAND)[1:])
    tree[1]["only_if_monday"] = True
    with pytest.raises(BadPacket, match="only_if_monday"):
        codec.decode_command(b"\x01" + msgspec.msgpack.encode(tree))


def test_a_longer_array_is_not_half_understood() -> None:
    tree: Any = msgspec.msgpack.decode(codec.encode_command(COMMAND)[1:])
    with pytest.raises(BadPacket):
        codec.decode_command(b"\x01" + msgspec.msgpack.encode([*tree, "more"]))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named(version: int) -> None:
    data = bytes((version,)) + codec.encode_command(COMMAND)[1:]
    with pytest.raises(BadPacket, match=f"version {version}, expected 1"):
        codec.decode_command(data)


def test_nothing_is_no_command() -> None:
    with pytest.raises(BadPacket, match="missing"):
        codec.decode_command(b"")


def test_mappings_are_encoded_in_one_order() -> None:
    assert codec.encode({"a": 1, "b": 2}) == codec.encode({"b": 2, "a": 1})


@given(st.binary(max_size=64), st.booleans())
def test_any_bytes_are_a_command_or_bad(data: bytes, has_version: bool) -> None:
    with contextlib.suppress(BadPacket):
        codec.decode_command(b"\x01" + data if has_version else data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_a_command_or_bad(position: int, byte: int) -> None:
    data = bytearray(codec.encode_command(COMMAND))
    data[position % len(data)] = byte
    with contextlib.suppress(BadPacket):
        codec.decode_command(bytes(data))


def test_a_snapshot_that_is_cut_is_bad() -> None:
    machine = Machine("n1")
    machine.submit(job("web"))
    machine.place("web", "g", (0, "n1", ()))
    data = snapshot.dump(machine.state)
    assert snapshot.load(data) == machine.state
    for length in range(len(data)):
        with pytest.raises(BadPacket):
            snapshot.load(data[:length])
