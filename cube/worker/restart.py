"""Whether an attempt that ended is followed by another one here, and when."""

from __future__ import annotations

import hashlib

import msgspec

from cube.model.backoff import doubling_ms
from cube.model.cluster import Task
from cube.model.ids import TaskId
from cube.model.lifecycle import RESTART_ASKED, TaskState
from cube.model.spec import JobType, RestartCondition, RestartPolicy

JITTER_PART = 10  # restarts are spread over up to a tenth of their delay: no herd after an outage
DELAY_MS_MIN = 100  # a policy without delay must not become a busy loop


class RestartAfter(msgspec.Struct, frozen=True):
    delay_ms: int


class Final(msgspec.Struct, frozen=True):
    """`exhausted`: it would have been restarted, had restarts been left."""

    state: TaskState
    exhausted: bool = False


def after_end(
    policy: RestartPolicy,
    job_type: JobType,
    is_success: bool,
    recent_restarts: int,
    task_id: TaskId,
    attempt: int,
) -> RestartAfter | Final:
    """What follows the end of `attempt`, which nobody asked for. `is_success`: it ran and exited 0.
    `recent_restarts`: those within the policy's window."""
    if is_success:
        runs_to_an_end = job_type in (JobType.BATCH, JobType.CRON)
        if runs_to_an_end or policy.policy is not RestartCondition.ALWAYS:
            return Final(TaskState.COMPLETED)
    if policy.policy is RestartCondition.NEVER:
        return Final(TaskState.FAILED)
    if recent_restarts >= policy.attempts:
        return Final(TaskState.FAILED, exhausted=True)
    delay_ms = doubling_ms(recent_restarts + 1, policy.delay_ms, policy.max_delay_ms)
    delay_ms = max(delay_ms, DELAY_MS_MIN)
    return RestartAfter(delay_ms + spread_ms(f"{task_id}/{attempt}", delay_ms // JITTER_PART))


def spread_ms(key: str, span_ms: int) -> int:
    """0 ≤ result ≤ span_ms, the same for the same key: jitter without dice."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (span_ms + 1)


def restart_times(task: Task, leader_now_ms: int, now_ms: int) -> list[int]:
    """When the task's remembered restarts were, on this process's monotonic scale (so possibly
    negative): an agent that was started again goes on counting where the last one was."""
    first_seen: dict[int, int] = {}
    for entry in task.history:
        if entry.attempt > 1 and entry.reason != RESTART_ASKED:
            first_seen.setdefault(entry.attempt, entry.at_ms)
    return [now_ms - max(0, leader_now_ms - at_ms) for at_ms in first_seen.values()]
