"""The runs of a cron job: what its record in the state says of them.

A run is a Job of its own, of type batch, with `parent` set: whatever places and restarts batch tasks
needs to know nothing of schedules. What is kept here, with the parent, is the history.
"""

from __future__ import annotations

import enum

import msgspec

from cube.model.ids import JobId

RUNS_KEPT = 10  # finished runs, with their tasks' records and output: what a person looks back at
RUNS_ACTIVE_MAX = 10  # unfinished ones of one job: a run that hangs must not fill the cluster
DUE_COUNTED_MAX = 1_000  # due times counted as missed or skipped in one go; more is only "many"
LATE_MS = 60_000  # a run that begins later than this after it was due says so


class RunStatus(enum.StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"  # due while an earlier run went on, and overlap did not allow a second
    MISSED = "missed"  # due while nobody led; a later one ran
    STOPPED = "stopped"  # by a user, or replaced; its tasks may take a while to end


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run, or due times that had none: then `run` is 0, `job_id` empty, and the entry stands for
    `count` of them in a row, of which the latest was at `scheduled_at_ms`."""

    run: int = 0
    job_id: JobId = JobId("")
    version: int
    status: RunStatus
    scheduled_at_ms: int  # when it was due; by hand: when somebody asked
    started_at_ms: int = 0
    finished_at_ms: int = 0  # 0: not yet
    by_hand: bool = False
    count: int = 1
    completed: int = 0  # tasks, counted when it finished
    failed: int = 0
    message: str = ""

    @property
    def active(self) -> bool:
        """Begun and not finished; also while its tasks are being stopped."""
        return bool(self.job_id) and not self.finished_at_ms


class CronState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a cron job remembers. `after_ms`: only times later than this are due; it never goes back,
    so no due time is decided twice. `runs`: oldest first."""

    after_ms: int
    next_run: int = 1
    runs: tuple[Run, ...] = ()

    @property
    def active(self) -> tuple[Run, ...]:
        return tuple([run for run in self.runs if run.active])


def run_id(parent: JobId, run: int) -> JobId:
    """The job id of a run. Ids in order are runs in order."""
    return JobId(f"{parent}.{run:06d}")
