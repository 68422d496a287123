"""What earlier builds wrote is read: the entries of their logs, which lead to the same state, and that
state as they saved it.

`older_log.xz` has a few histories of all kinds of commands, accepted and refused, and one of rollouts,
a drain and a lost node; written before tasks had notes of commands beside them, and tokens had keys.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import msgspec

from cube.model import codec
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.statemachine.apply import apply
from cube.statemachine.invariants import violations
from cube.statemachine.snapshot import digest, load

LOG = Path(__file__).with_name("older_log.xz")


class History(msgspec.Struct):
    """Entries as (index, term, time, command), and the state after them; bytes in hexadecimal."""

    entries: list[tuple[int, int, int, str]]
    dump: str


HISTORIES = msgspec.convert(json.loads(lzma.decompress(LOG.read_bytes())), list[History])


def test_logs_of_earlier_builds_lead_to_the_states_that_they_saved() -> None:
    for history in HISTORIES:
        state = ClusterState()
        for index, term, at_ms, data in history.entries:
            command = codec.decode_command(bytes.fromhex(data))
            state = apply(state, c.Entry(index, term, at_ms, command)).state
        saved = load(bytes.fromhex(history.dump))
        assert state == saved
        assert digest(state) == digest(saved)
        assert violations(state) == violations(saved) == []


def test_they_have_all_that_a_state_can_hold() -> None:
    """Or the test above would not notice."""
    saved = [load(bytes.fromhex(history.dump)) for history in HISTORIES]
    for field in ("nodes", "jobs", "tasks", "volumes", "stored", "outcomes"):
        assert any(getattr(state, field) for state in saved), field
    assert any(state.trust.tokens for state in saved)
    assert any(job.cron is not None for state in saved for job in state.jobs.values())
