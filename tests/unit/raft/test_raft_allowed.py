"""What is taken from whom, and what is not."""

from __future__ import annotations

import pytest

from cube.adapters.raft import wire
from cube.adapters.raft.allowed import Roles, may_speak

NOBODY = 0  # a guest
RAFT = {"append_entries", "request_vote", "pre_vote", "apply_command"}
TAKEN = {
    NOBODY: RAFT,
    Roles.LEARNER: RAFT | {"next_node_idx", "term_hint"},
    Roles.VOTER: RAFT | {"next_node_idx", "term_hint", "response_vote", "pre_vote_ok"},
    Roles.LEADER: RAFT | {"apply_command_response", "timeout_now"},
}
KINDS = sorted({kind for kinds in TAKEN.values() for kind in kinds})


def test_the_table_knows_every_message_of_the_wire() -> None:
    assert set(KINDS) == set(wire._REQUIRED) - {wire.HELLO}


@pytest.mark.parametrize("roles", list(TAKEN))
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_say_what_while_nobody_leads(roles: int, kind: str) -> None:
    assert may_speak(kind, roles, heard_a_leader=False) == (kind in TAKEN[roles])


@pytest.mark.parametrize("kind", ["append_entries", "request_vote", "pre_vote"])
def test_nobody_unknown_takes_over_from_a_leader_that_was_heard(kind: str) -> None:
    for roles in (NOBODY, Roles.LEARNER):
        assert not may_speak(kind, roles, heard_a_leader=True)
    for roles in (Roles.VOTER, Roles.LEADER, Roles.VOTER | Roles.LEADER):
        assert may_speak(kind, roles, heard_a_leader=True)
