"""The states of tasks and nodes, and every move between them.

Rules: all transitions of a task's state are in TASK_MOVES; nothing else in Cube knows which state
may follow which. A task moves forward only within one attempt. A new attempt (restart in place)
begins at `pending` or later, from any state that is not an end.

    pending → scheduled → preparing → starting → running → stopping → completed | failed
                    └──────────┴──────────┴→ rejected          any but an end → lost

`lost` is an end for everybody but its own node: when the node comes back before the task was
replaced (desired is still `run`), the task goes on as what its node says it is.
"""

from __future__ import annotations

import enum


class TaskState(enum.StrEnum):
    PENDING = "pending"  # backing off before its next attempt, on its node
    SCHEDULED = "scheduled"  # placed; its node has not taken it up yet
    PREPARING = "preparing"  # image pull, directories
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"  # ended because it was asked to, or a batch task that exited 0
    FAILED = "failed"  # ended otherwise, and its restarts in place are used up
    REJECTED = "rejected"  # its node refused it before it ran
    LOST = "lost"  # its node was declared down


class Desired(enum.StrEnum):
    """Written by the manager (apply) only; moves run → stop → remove, never back."""

    RUN = "run"
    STOP = "stop"
    REMOVE = "remove"


# Task.reason of one that its node stopped because no leader acknowledged it for long enough: an end that
# is nobody's fault, so it counts as a loss, not as a failure.
PARTITIONED = "partitioned"


# Task.reason of one that begins another attempt because somebody asked for it: no failure, and not
# counted as one.
RESTART_ASKED = "restart_requested"


# Node.status_reason of one that would be declared down, were not too many at once: in the state, so that
# every node can tell.
BRAKED = "looks down, and so do too many others at once: its tasks are not replaced"


class Health(enum.StrEnum):
    """Written by the task's node. NONE: the group has no checks."""

    NONE = "none"
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class NodeStatus(enum.StrEnum):
    """Written by the leader's membership loop; a node that is down is suspect as soon as it reports
    that a task of its runs."""

    READY = "ready"
    SUSPECT = "suspect"
    DOWN = "down"
    LEFT = "left"


_S = TaskState
ENDED = frozenset({_S.COMPLETED, _S.FAILED, _S.REJECTED, _S.LOST})
# Of which there is no index by state: most tasks are in one of them at all times, so it would cost each
# of them an entry to save a look at few others.
UNINDEXED = frozenset({_S.SCHEDULED, _S.RUNNING})
_UNDER_WAY = {_S.STOPPING, _S.COMPLETED, _S.FAILED, _S.LOST}

TASK_MOVES: dict[TaskState, frozenset[TaskState]] = {
    _S.PENDING: frozenset({_S.PREPARING, _S.STARTING, _S.RUNNING, *_UNDER_WAY}),
    _S.SCHEDULED: frozenset({_S.PREPARING, _S.STARTING, _S.RUNNING, _S.REJECTED, *_UNDER_WAY}),
    _S.PREPARING: frozenset({_S.STARTING, _S.RUNNING, _S.REJECTED, *_UNDER_WAY}),
    _S.STARTING: frozenset({_S.RUNNING, _S.REJECTED, *_UNDER_WAY}),
    _S.RUNNING: frozenset(_UNDER_WAY),
    _S.STOPPING: frozenset({_S.COMPLETED, _S.FAILED, _S.LOST}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.LOST: frozenset({_S.PENDING, _S.RUNNING, _S.STOPPING, _S.COMPLETED, _S.FAILED}),
}

NEW_ATTEMPT_STATES = frozenset(
    {_S.PENDING, _S.PREPARING, _S.STARTING, _S.RUNNING, _S.STOPPING, _S.COMPLETED, _S.FAILED}
)

_DESIRED_ORDER = {Desired.RUN: 0, Desired.STOP: 1, Desired.REMOVE: 2}


def may_move(state: TaskState, attempt: int, to_state: TaskState, to_attempt: int) -> bool:
    """Whether a report may take a task from (state, attempt) to (to_state, to_attempt)."""
    if to_attempt == attempt:
        return to_state in TASK_MOVES[state]
    if to_attempt > attempt:
        return to_state in NEW_ATTEMPT_STATES and (state not in ENDED or state is TaskState.LOST)
    return False


def further(desired: Desired, wanted: Desired) -> Desired:
    """The later of the two: desired never goes back."""
    return max(desired, wanted, key=_DESIRED_ORDER.__getitem__)
