"""Nodes on which a group keeps failing: it goes there only when it fits nowhere else.

A function of the tasks' records. Each attempt that failed counts, restarts in place included, and
each rejection. What an older container did says nothing about the newest one.
Source: moby/swarmkit manager/scheduler/nodeinfo.go, taskFailed and countRecentFailures.
"""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import Job, Task
from cube.model.ids import NodeId
from cube.model.lifecycle import RESTART_ASKED, TaskState
from cube.model.spec import GroupSpec
from cube.scheduler.restart import up_to_date

FAILURES = 5  # of a group on one node within TROUBLE_MS: the node is avoided (as in Swarm)
TROUBLE_MS = 300_000  # a failure older than this is forgotten


def troubled(job: Job, group: GroupSpec, tasks: Sequence[Task], now_ms: int) -> dict[NodeId, int]:
    """The nodes to avoid for the group, by id, with the number of failures there. `tasks`: all that
    are remembered of the group."""
    since_ms = now_ms - TROUBLE_MS
    counted: dict[NodeId, int] = {}
    for task in tasks:
        if task.restarts == 0 and not failed_since(task, since_ms):
            continue
        count = failures_since(task, since_ms)
        if count and up_to_date(job, task):
            counted[task.node_id] = counted.get(task.node_id, 0) + count
    return {node_id: count for node_id, count in sorted(counted.items()) if count >= FAILURES}


def failed_since(task: Task, since_ms: int) -> bool:
    """It ended as failed or rejected after `since_ms`."""
    return task.state in _BAD_ENDS and task.state_at_ms > since_ms


_BAD_ENDS = frozenset({TaskState.FAILED, TaskState.REJECTED})


def failures_since(task: Task, since_ms: int) -> int:
    """Attempts of the task that failed after `since_ms`; those restarted by hand did not. Reports may
    have been merged, so attempts are counted by their numbers; a history keeps the last six or so."""
    count = 0
    for before, entry in zip(task.history, task.history[1:], strict=False):
        if entry.at_ms > since_ms:
            by_hand = entry.reason == RESTART_ASKED
            count += max(0, entry.attempt - before.attempt - by_hand) + (entry.state in _BAD_ENDS)
    return count
