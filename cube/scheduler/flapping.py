"""Tasks that run now and keep failing: they look well to whoever looks between two failures."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import Job, Task
from cube.model.spec import GroupSpec
from cube.model.units import format_duration
from cube.scheduler.restart import up_to_date
from cube.scheduler.trouble import failures_since

FLAPS = 3  # failures in a slot within FLAP_MS: once may be bad luck
FLAP_MS = 600_000


def flaps(job: Job, group: GroupSpec, tasks: Sequence[Task], now_ms: int) -> str | None:
    """What is said of one slot whose tasks, oldest first, are these; None: it does not flap."""
    live = next((task for task in reversed(tasks) if task.live), None)
    if live is None or not live.serving:
        return None  # that is told otherwise
    counted = [task for task in tasks if up_to_date(job, task)]
    lately = sum(failures_since(task, now_ms - FLAP_MS) for task in counted)
    if lately < FLAPS:
        return None
    parts = [f"failed {lately} times in the last {format_duration(FLAP_MS)}"]
    if live.restarts:
        parts.append(f"restarted {live.restarts} times on its node")
    if live.reschedules:
        parts.append(f"placed anew {live.reschedules} times in a row")
    up = format_duration(max(0, now_ms - live.started_at_ms))
    return f"runs for {up} now, but {', '.join(parts)}"
