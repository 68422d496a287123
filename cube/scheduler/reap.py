"""Which ended tasks are forgotten: a crash loop must not grow the state, nor the nodes' disks."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import ClusterSettings, Task
from cube.scheduler.restart import completed_by_itself
from cube.scheduler.trouble import TROUBLE_MS, failed_since

FAILED_PER_SLOT_MAX = 10  # kept while they may make their nodes avoided: 5 on each of two nodes


def surplus(
    ended: Sequence[Task], settings: ClusterSettings, now_ms: int
) -> tuple[list[Task], int | None]:
    """Of one wanted slot's ended tasks, oldest first: those to forget now, too many or too old, and
    when the next one is due. The newest stays, and the newest that completed by itself: they say
    what the slot waits for, or that it is done. So do those that failed lately."""
    if len(ended) <= 1:
        return [], None
    last = ended[-1]
    completed = next((task for task in reversed(ended) if completed_by_itself(task)), None)
    extra = len(ended) - settings.finished_per_slot
    too_many = len(ended) - max(FAILED_PER_SLOT_MAX, settings.finished_per_slot)
    since_ms = now_ms - TROUBLE_MS
    keep_ms = settings.finished_for_ms
    due: list[Task] = []
    later: list[int] = []
    for at, task in enumerate(ended):
        if not task.released or task is completed or task is last:
            continue
        old_at_ms = _ended_at_ms(task) + keep_ms if keep_ms else None
        if at < extra or (old_at_ms is not None and old_at_ms <= now_ms):
            if at < too_many or not failed_since(task, since_ms):
                due.append(task)
        elif old_at_ms is not None:
            later.append(old_at_ms)
    return due, min(later, default=None)


def beyond(
    ended: Sequence[Task], settings: ClusterSettings, now_ms: int
) -> tuple[list[Task], int | None]:
    """Of a slot that is no longer wanted: those to forget now, and when the next one is due."""
    due: list[Task] = []
    later: list[int] = []
    for task in ended:
        if not task.released:
            continue
        at_ms = _ended_at_ms(task) + settings.finished_beyond_ms
        if at_ms <= now_ms:
            due.append(task)
        else:
            later.append(at_ms)
    return due, min(later, default=None)


def _ended_at_ms(task: Task) -> int:
    return max(task.finished_at_ms, task.state_at_ms)
