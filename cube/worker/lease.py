"""Until when this node may run the tasks of groups with on_partition = "stop" (at_most_one among them).

A lease counts from when the last acknowledged heartbeat was sent, on this node's clock; the leader counts
from when it heard one, and longer (scheduler/singleton.py). At its end the task gets its stop signal,
`stop_timeout` later KILL, and by then nothing of it may run: who is late shortens the timeout.
"""

from __future__ import annotations

from cube.worker.local_task import LocalTask, Phase

_MAY_BE_RUNNING = frozenset({Phase.STARTING, Phase.RUNNING})


class Lease:
    """`from_ms` None: no leader has acknowledged this node since its host was booted, as far as is
    known. Tasks that are found running all the same are counted from `boot_ms`; nothing is begun."""

    def __init__(self, from_ms: int | None) -> None:
        self.from_ms = from_ms
        self.boot_ms: int | None = None

    def extend(self, sent_ms: int) -> None:
        self.from_ms = sent_ms if self.from_ms is None else max(self.from_ms, sent_ms)

    def end_ms(self, local: LocalTask) -> int | None:
        """None: the task needs no lease."""
        if not local.group.is_leased:
            return None
        from_ms = self.boot_ms if self.from_ms is None else self.from_ms
        assert from_ms is not None
        return from_ms + local.group.lost_after_ms

    def may_begin(self, local: LocalTask, now_ms: int) -> bool:
        end_ms = self.end_ms(local)
        return end_ms is None or (self.from_ms is not None and now_ms < end_ms)

    def is_over(self, local: LocalTask, now_ms: int) -> bool:
        end_ms = self.end_ms(local)
        return end_ms is not None and now_ms >= end_ms

    def must_stop(self, local: LocalTask, now_ms: int) -> bool:
        """Something of it may be running, nobody has asked it to end, and its time is up."""
        if not (local.is_wanted and local.may_run and local.phase in _MAY_BE_RUNNING):
            return False
        return self.is_over(local, now_ms)

    def stop_timeout_ms(self, local: LocalTask, now_ms: int) -> int:
        """What is left of the group's stop_timeout, so that KILL is in time."""
        timeout_ms = local.group.stop_timeout_ms
        end_ms = self.end_ms(local)
        return (
            timeout_ms if end_ms is None else max(0, min(timeout_ms, end_ms + timeout_ms - now_ms))
        )

    def due_ms(self, local: LocalTask) -> int | None:
        """When the task must be looked at because of its lease, if nothing happens before."""
        if local.operation or not local.may_run:
            return None
        if local.phase in _MAY_BE_RUNNING or local.phase is Phase.WITHDRAWING:
            return self.end_ms(local)
        return None
