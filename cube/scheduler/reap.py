"""Which ended tasks are forgotten: a crash loop must not grow the state."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import Task
from cube.scheduler.restart import completed_by_itself
from cube.scheduler.trouble import TROUBLE_MS, failed_since

ENDED_PER_SLOT_MAX = 5  # kept: what a person looks at (Swarm's --task-history-limit)
FAILED_PER_SLOT_MAX = 10  # kept while they may make their nodes avoided: 5 on each of two nodes
BEYOND_KEEP_MS = 600_000  # of slots that are no longer wanted: long enough to read their logs


def surplus(ended: Sequence[Task], now_ms: int) -> list[Task]:
    """Of one wanted slot's ended tasks, oldest first: those to forget. The newest that completed
    by itself stays: it may be what says that the slot is done. So do those that failed lately."""
    extra = len(ended) - ENDED_PER_SLOT_MAX
    if extra <= 0:
        return []
    completed = next((task for task in reversed(ended) if completed_by_itself(task)), None)
    too_many = len(ended) - FAILED_PER_SLOT_MAX
    since_ms = now_ms - TROUBLE_MS
    return [
        task
        for at, task in enumerate(ended[:extra])
        if task.released
        and task is not completed
        and (at < too_many or not failed_since(task, since_ms))
    ]


def beyond(ended: Sequence[Task], now_ms: int) -> tuple[list[Task], int | None]:
    """Of a slot that is no longer wanted: those to forget now, and when the next one is due."""
    due: list[Task] = []
    later: list[int] = []
    for task in ended:
        if not task.released:
            continue
        at_ms = max(task.finished_at_ms, task.state_at_ms) + BEYOND_KEEP_MS
        if at_ms <= now_ms:
            due.append(task)
        else:
            later.append(at_ms)
    return due, min(later, default=None)
