"""When a slot whose old task was not heard to have ended may be filled again. Pure.

A leased task (on_partition = "stop", at_most_one) runs while a leader acknowledges its node, and
`lost_after` longer, counted on the node's clock from the *sending* of the last heartbeat that was
acknowledged. Then the node stops it, with KILL after `stop_timeout`, whatever it can or cannot reach.
So the leader needs no word of the node to know that the task is gone; it waits.

It waits from the last heartbeat that it heard itself, or from the start of its own leadership. What an
earlier leader acknowledged lies before that: an acknowledgement that carries a lease is given after a
barrier in the leader's own term (LeaderLoop.lease), and no term commits anything once a later one has
begun. Without the barrier a leader that was cut off would go on for as long as it believes to lead:
LEADER_FALLBACK_MS of the raft adapter, 1.5 s, and longer when it was paused. So nothing of the margin
is for elections; it is for clocks and for lateness.

The time is monotonic: a wall clock that is set forward must not end a wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.spec import DriverName, GroupSpec
from cube.model.units import format_duration

# How much faster one clock may run than another, in thousandths. Quartz is off by 0.1 at most, and
# NTP slews by 0.5 on each side.
CLOCK_DRIFT_PER_MILLE = 10
# From the moment at which a task is to be killed to its end: timers of a busy node, a look of the
# supervisor (a quarter of a second), and a kill that takes several rounds.
LATENESS_MS = 2_000

_GONE = (NodeStatus.DOWN, NodeStatus.LEFT)


class Held(msgspec.Struct, frozen=True):
    """Why a slot is not filled. `until_ms`: when it will be, on the leader's clock, if the leader
    stays and the node is silent; 0: only the node's word ends it."""

    until_ms: int
    detail: str


def wait_ms(job: Job, task: Task) -> int | None:
    """How long after its node was last heard a task has surely ended. None: it has no lease. The
    longest of the job's versions counts: the node may not have heard of the newest."""
    made_from = _group(job, task)
    if made_from is None or not made_from.is_leased:
        return None
    lease_ms = max(
        group.lost_after_ms + group.stop_timeout_ms
        for version in job.versions
        if (group := version.spec.groups.get(task.group)) is not None and group.is_leased
    )
    return lease_ms + lease_ms * CLOCK_DRIFT_PER_MILLE // 1000 + LATENESS_MS


def _group(job: Job, task: Task) -> GroupSpec | None:
    spec = job.spec_of(task.version)
    return None if spec is None else spec.groups.get(task.group)


def held(
    state: ClusterState,
    job: Job,
    group: GroupSpec,
    tasks: Sequence[Task],
    slots: Sequence[int],
    now_ms: int,
    silent_ms: Mapping[NodeId, int] | None,
) -> dict[int, Held]:
    """Those of the empty `slots` that must stay so. `tasks`: all of the group. `silent_ms`: for how
    long this leader is sure that nobody has acknowledged a node; None: the caller leads nothing, and
    the state's times are what it can go by."""
    found: dict[int, Held] = {}
    if not group.is_leased:
        return found
    for task in tasks:
        if task.released or not (group.at_most_one or task.state is TaskState.LOST):
            continue
        why = _held_by(state, job, task, now_ms, silent_ms)
        if why is None:
            continue
        for slot in slots if group.at_most_one else (task.slot,):
            if slot in slots and _is_longer(why, found.get(slot)):
                found[slot] = why
    return found


def _is_longer(why: Held, known: Held | None) -> bool:
    if known is None or why.until_ms == 0:
        return True
    return known.until_ms != 0 and why.until_ms > known.until_ms


def _held_by(
    state: ClusterState,
    job: Job,
    task: Task,
    now_ms: int,
    silent_ms: Mapping[NodeId, int] | None,
) -> Held | None:
    """None: the task has ended by now, for sure."""
    node = state.nodes.get(task.node_id)
    where = task.node_id if node is None else node.name
    unsaid = f"{where} has not said that {task.name} ({task.id}) is gone"
    if node is None or node.status not in _GONE:
        return Held(0, unsaid)
    needed_ms = wait_ms(state.jobs.get(task.job_id, job), task)  # of an earlier run: another job
    if needed_ms is None:
        return Held(0, f"{unsaid}, and it was placed without a lease: it may run on")
    left_ms = needed_ms - _silence_ms(node, now_ms, silent_ms)
    if left_ms <= 0:
        return None
    detail = f"{unsaid}: unheard, it stops there within {format_duration(needed_ms)}"
    if task.driver == DriverName.DOCKER:
        detail += ", unless the agent there is dead and the container is not (see CUBE_FENCE)"
    return Held(now_ms + left_ms, detail)


def _silence_ms(node: Node, now_ms: int, silent_ms: Mapping[NodeId, int] | None) -> int:
    if silent_ms is not None:
        return silent_ms.get(node.id, 0)
    return max(0, now_ms - node.status_at_ms)
