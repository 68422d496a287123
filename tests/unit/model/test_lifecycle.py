"""The table of a task's states, walked."""

from __future__ import annotations

import itertools

import pytest

from cube.model.lifecycle import (
    ENDED,
    NEW_ATTEMPT_STATES,
    TASK_MOVES,
    Desired,
    TaskState,
    further,
    may_move,
)

S = TaskState
ORDER = [S.PENDING, S.SCHEDULED, S.PREPARING, S.STARTING, S.RUNNING, S.STOPPING]


def test_every_state_is_in_the_table() -> None:
    assert set(TASK_MOVES) == set(TaskState)


def test_a_task_moves_forward_only() -> None:
    for earlier, later in itertools.combinations(ORDER, 2):
        assert not may_move(later, 1, earlier, 1), (later, earlier)


@pytest.mark.parametrize("state", TaskState)
def test_no_state_follows_itself(state: TaskState) -> None:
    assert not may_move(state, 1, state, 1)


def test_ends_are_final_but_for_lost() -> None:
    for end, state in itertools.product(ENDED - {S.LOST}, TaskState):
        for attempt in (1, 2):
            assert not may_move(end, 1, state, attempt)
    assert may_move(S.LOST, 1, S.RUNNING, 1)
    assert may_move(S.LOST, 1, S.COMPLETED, 1)
    assert not may_move(S.LOST, 1, S.SCHEDULED, 1)


def test_anything_but_an_end_can_be_lost() -> None:
    assert {s for s in TaskState if may_move(s, 1, S.LOST, 1)} == set(TaskState) - ENDED


def test_only_what_has_not_run_can_be_rejected() -> None:
    found = {s for s in TaskState if may_move(s, 1, S.REJECTED, 1)}
    assert found == {S.SCHEDULED, S.PREPARING, S.STARTING}


def test_attempts_count_up() -> None:
    assert may_move(S.RUNNING, 1, S.PENDING, 2)
    assert may_move(S.RUNNING, 1, S.RUNNING, 3)
    assert not may_move(S.RUNNING, 2, S.STOPPING, 1)
    for state in set(TaskState) - NEW_ATTEMPT_STATES:
        assert not may_move(S.RUNNING, 1, state, 2)


def test_desired_never_goes_back() -> None:
    order = [Desired.RUN, Desired.STOP, Desired.REMOVE]
    for (i, a), (j, b) in itertools.product(enumerate(order), enumerate(order)):
        assert further(a, b) is order[max(i, j)]
