"""Configuration, commands and messages: the parts of the adapter that only compute."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.adapters.raft import commands, wire
from cube.adapters.raft.configuration import Configuration
from cube.adapters.raft.settings import RaftSettings
from cube.model.errors import BadPacket

A, B, C = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"

MESSAGES: list[dict[str, Any]] = [
    {"type": "hello", "sender": A, "receiver": B, "cluster": ""},
    {
        "type": "append_entries",
        "term": 1,
        "commit_index": 3,
        "prevLogIdx": 3,
        "prevLogTerm": 1,
        "entries": [[commands.stamped(b"\x00x", 7), 4, 1], [commands.NO_OP, 5, 1]],
    },
    {"type": "hello", "sender": A, "receiver": B, "cluster": "", "node": "n"},
    {"type": "append_entries", "term": 1, "commit_index": 3, "serialized": []},
    {"type": "append_entries", "term": 1, "commit_index": 3, "serialized": [b"x", 0, True]},
    {"type": "next_node_idx", "term": 1, "next_node_idx": 4, "success": True, "reset": False},
    {"type": "request_vote", "term": 2, "last_log_index": 4, "last_log_term": 1},
    {
        "type": "request_vote",
        "term": 2,
        "last_log_index": 4,
        "last_log_term": 1,
        "transfer": True,
    },
    {"type": "response_vote", "term": 2},
    {"type": "pre_vote", "term": 2, "last_log_index": 4, "last_log_term": 1},
    {"type": "pre_vote_ok", "term": 2},
    {"type": "term_hint", "term": 9},
    {"type": "timeout_now", "term": 2},
    {"type": "apply_command", "command": b"\x00x", "request_id": 7},
    {"type": "apply_command_response", "request_id": 7, "log_idx": 8, "log_term": 2},
    {"type": "apply_command_response", "request_id": 7, "error": 4},
]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_survives_the_wire(message: dict[str, object]) -> None:
    frame = wire.encode(message)
    assert wire.LENGTH.unpack(frame[:4]) == (len(frame) - 4,)
    assert wire.decode(frame[4:]) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_a_missing_wrong_or_unknown_field_is_refused(message: dict[str, object]) -> None:
    for name in message:
        bent = [{k: v for k, v in message.items() if k != name}, {**message, name: None}]
        for one in bent:
            optional = name in ("request_id", "transfer", "node") and one.get(name, 0) is not None
            if not optional:
                with pytest.raises(BadPacket):
                    wire.decode(wire.encode(one)[4:])
    with pytest.raises(BadPacket):
        wire.decode(wire.encode({**message, "extra": 1})[4:])


def entries(*parts: list[object], **fields: object) -> dict[str, object]:
    return {**MESSAGES[1], "entries": list(parts), **fields}


@pytest.mark.parametrize(
    "message",
    [
        entries([commands.NO_OP, 4, 1], [commands.NO_OP, 6, 1]),  # a hole
        entries([commands.NO_OP, 4, 2]),  # of a term to come
        entries([commands.NO_OP, 4, 2], [commands.NO_OP, 5, 1], term=2),  # back in time
        entries([b"", 4, 1]),
        entries([b"\x03", 4, 1]),  # a kind that is none
        entries([b"\x00short", 4, 1]),
        entries([b"\x02no members", 4, 1]),
        entries([b"\x01" + bytes(2 << 20), 4, 1]),  # a record that no start would read
        entries(term=-1),
        entries(term=1 << 63, prevLogTerm=1 << 63),
        {**MESSAGES[-1], "error": 0},
        {**MESSAGES[-1], "error": 99},
        {"type": "apply_command", "command": bytes(2 << 20), "request_id": 7},
        {"type": "append_entries", "term": 1, "commit_index": 3, "serialized": [b"x", -1, True]},
    ],
)
def test_what_is_out_of_bounds_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(BadPacket):
        wire.decode(wire.encode(message)[4:])


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_bad(body: bytes) -> None:
    with contextlib.suppress(BadPacket):
        assert isinstance(wire.decode(body), dict)


def test_a_pickle_is_bytes_like_any_other() -> None:
    """X1: the library would run it."""
    with pytest.raises(BadPacket):
        wire.decode(b"cos\nsystem\n(S'true'\ntR.")


def test_the_leaders_stamp_travels_in_the_entry() -> None:
    command = commands.stamped(commands.unstamped(b"data"), 1_700_000_000_123)
    assert commands.kind_of(command) == commands.KIND_DATA
    assert commands.split(command) == (1_700_000_000_123, b"data")
    with pytest.raises(BadPacket):
        commands.split(command[:5])


@given(st.binary(max_size=60))
def test_any_bytes_are_members_or_bad(data: bytes) -> None:
    try:
        members = commands.decode_members(b"\x02" + data)
    except BadPacket:
        return
    assert commands.decode_members(commands.encode_members(members)) == members


def test_a_change_counts_from_its_own_index_and_can_be_taken_back() -> None:
    founded = Configuration(frozenset({A}))
    grown = founded.appended(5, frozenset({A, B})).appended(9, frozenset({A, B, C}))
    assert [grown.at(index) for index in (4, 5, 8, 9, 10)] == [
        frozenset({A}),
        frozenset({A, B}),
        frozenset({A, B}),
        frozenset({A, B, C}),
        frozenset({A, B, C}),
    ]
    assert grown.cut_from(9).current == frozenset({A, B})
    assert grown.cut_from(2) == founded
    assert grown.cut_from(10) == grown


@given(st.lists(st.sets(st.sampled_from([A, B, C]), min_size=1), max_size=8), st.integers(0, 20))
def test_forgetting_the_past_changes_nothing_after_it(sets: list[set[str]], index: int) -> None:
    configuration = Configuration(frozenset({A}))
    for number, members in enumerate(sets):
        configuration = configuration.appended(2 * number + 1, frozenset(members))
    rebased = configuration.rebased(index)
    assert [rebased.at(i) for i in range(index, 22)] == [
        configuration.at(i) for i in range(index, 22)
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_ms": 200},
        {"heartbeat_ms": 0},
        {"election_max_ms": 600},
        {"election_max_ms": 5_000},
        {"snapshot_every": 1},
        {"snapshot_tail": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need"):
        RaftSettings(**wrong)
