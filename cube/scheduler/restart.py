"""What a slot's past allows: place now, wait, or never again. A function of the tasks alone.

Restarts in place are the worker's. Here: rescheduling of failed tasks with doubling delays, nodes to
stay away from after a rejection, lost tasks whose node has come back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cube.model.backoff import doubling_ms
from cube.model.cluster import Job, Node, Task
from cube.model.ids import NodeId
from cube.model.lifecycle import PARTITIONED, Desired, NodeStatus, TaskState
from cube.model.spec import GroupSpec, JobType, RestartCondition

REJECTED_DELAY_MS = 30_000  # a node that has just refused a task is not asked again at once
REJECTED_DELAY_MAX_MS = 900_000
REJECTED_AT_ONCE = 5  # in a row, each elsewhere at once; then, on many nodes, with pauses
REJECTED_PAUSE_MS = 1_000  # doubles
REJECTED_PAUSE_MAX_MS = 30_000
LOOP_DELAY_MS = (
    100  # least delay of a replacement, whatever the job says; doubles with each failure
)
LOOP_DELAY_MAX_MS = 10_000  # six replacements a minute at most, in the long run
LOOP_GRID_MS = 1_000  # slots that fail again and again are replaced by one plan a second
RETURNED_WAIT_MS = 5_000  # a node that is back says within this what became of its lost tasks
GOOD_RUN_MS = (
    600_000  # a task that ran so long and then failed is a first failure (Kubernetes: 10 min)
)


class SlotPast(msgspec.Struct, frozen=True):
    """`verdict`: place | wait (until `until_ms`) | done (it completed) | over (attempts used up,
    or it was stopped for good). `failed_on`: where it failed last. `avoid`: nodes that rejected it,
    until when."""

    verdict: str
    until_ms: int = 0
    failed_on: NodeId | None = None
    avoid: Mapping[NodeId, int] = {}
    last: Task | None = None


_FRESH = SlotPast("place")


def up_to_date(job: Job, task: Task, version: int = 0) -> bool:
    """The task may go on (or count as done) as one of `version`; 0: the newest."""
    return job.same_container(task.group, task.version, version or job.version)


def completed_by_itself(task: Task) -> bool:
    """It ended well and not because it was asked to."""
    if task.state is not TaskState.COMPLETED:
        return False
    if task.desired is Desired.RUN:
        return True
    # The wish came after the end when nothing shows that the task ever began to stop.
    stopping = any(
        entry.state is TaskState.STOPPING and entry.attempt == task.attempt
        for entry in task.history
    )
    return task.exit_code == 0 and not stopping


def past_of(
    job: Job,
    group: GroupSpec,
    ended: Sequence[Task],
    nodes: Mapping[NodeId, Node],
    now_ms: int,
    version: int = 0,
) -> SlotPast:
    """What the slot's ended tasks, oldest first, mean for a new one of `version` (0: the newest),
    whose template `group` is."""
    if not ended:
        return _FRESH
    last = ended[-1]
    if job.spec.type is JobType.BATCH:
        for task in reversed(ended):
            if completed_by_itself(task) and up_to_date(job, task, version):
                return SlotPast("done", last=task)
        if last.desired_reason == "task_stopped" and up_to_date(job, last, version):
            return SlotPast("over", last=last)
    if not up_to_date(job, last, version):
        return SlotPast("place", last=last)  # what failed before was something else
    match last.state:
        case TaskState.LOST:
            return _after_loss(last, nodes.get(last.node_id), now_ms)
        case TaskState.FAILED if last.reason == PARTITIONED:
            return SlotPast("place", last=last)
        case TaskState.FAILED if last.desired is Desired.RUN:
            return _after_failure(group, last, now_ms)
        case TaskState.REJECTED:
            return _after_rejection(ended, last, now_ms)
        case TaskState.COMPLETED if last.desired is Desired.RUN:
            if group.restart.policy is RestartCondition.ALWAYS:
                return _after_failure(group, last, now_ms)  # must not spin
            return SlotPast("done", last=last)
    return SlotPast("place", avoid=_avoid(ended, now_ms), last=last)


def retry_at_ms(group: GroupSpec, failed: Task) -> int | None:
    """When a failed task's replacement is due; None: never, its attempts are used up."""
    policy = group.reschedule
    if policy.attempts and failed.reschedules >= policy.attempts:
        return None
    good = failed.started_at_ms and failed.finished_at_ms - failed.started_at_ms >= GOOD_RUN_MS
    number = 1 if good else failed.reschedules + 1
    delay_ms = max(
        doubling_ms(number, policy.delay_ms, policy.max_delay_ms),
        doubling_ms(number, LOOP_DELAY_MS, LOOP_DELAY_MAX_MS),
    )
    due_ms = failed.finished_at_ms + delay_ms
    return due_ms if number == 1 else -(-due_ms // LOOP_GRID_MS) * LOOP_GRID_MS


def _after_failure(group: GroupSpec, last: Task, now_ms: int) -> SlotPast:
    due_ms = retry_at_ms(group, last)
    if due_ms is None:
        return SlotPast("over", failed_on=last.node_id, last=last)
    if due_ms > now_ms:
        return SlotPast("wait", due_ms, last.node_id, last=last)
    return SlotPast("place", failed_on=last.node_id, last=last)


def _after_rejection(ended: Sequence[Task], last: Task, now_ms: int) -> SlotPast:
    """Elsewhere at once. But where every one of many nodes refuses it, the way round is not run."""
    in_a_row = 0
    for task in reversed(ended):
        if task.state is not TaskState.REJECTED:
            break
        in_a_row += 1
    if in_a_row >= REJECTED_AT_ONCE:
        number = in_a_row - REJECTED_AT_ONCE + 1
        pause_ms = doubling_ms(number, REJECTED_PAUSE_MS, REJECTED_PAUSE_MAX_MS)
        until_ms = last.state_at_ms + pause_ms
        if until_ms > now_ms:
            return SlotPast("wait", until_ms, last=last)
    return SlotPast("place", avoid=_avoid(ended, now_ms), last=last)


def _after_loss(last: Task, node: Node | None, now_ms: int) -> SlotPast:
    """At once, unless its node is back and may still say that the task never stopped."""
    if last.released or last.desired is not Desired.RUN or node is None:
        return SlotPast("place", last=last)
    if node.status in (NodeStatus.DOWN, NodeStatus.LEFT):
        return SlotPast("place", last=last)
    until_ms = node.status_at_ms + RETURNED_WAIT_MS
    if until_ms > now_ms and node.status_at_ms > last.state_at_ms:
        return SlotPast("wait", until_ms, last=last)
    return SlotPast("place", last=last)


def _avoid(ended: Sequence[Task], now_ms: int) -> dict[NodeId, int]:
    """Nodes that rejected this slot's tasks: 30 s after the first time, then doubling."""
    rejections: dict[NodeId, list[int]] = {}
    for task in ended:
        if task.state is TaskState.REJECTED:
            rejections.setdefault(task.node_id, []).append(task.state_at_ms)
    until = {
        node_id: max(times) + doubling_ms(len(times), REJECTED_DELAY_MS, REJECTED_DELAY_MAX_MS)
        for node_id, times in rejections.items()
    }
    return {node_id: ms for node_id, ms in sorted(until.items()) if ms > now_ms}
