"""A cron job in a cluster whose leader plans by hand."""

from __future__ import annotations

from typing import Any

from cube.model.cluster import Job
from cube.model.cronrun import Run
from cube.model.spec import CronSpec, JobSpec, JobType, Overlap
from tests.builders import START_MS, job
from tests.scheduler_cluster import Cluster, one

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def nightly(
    schedule: str = "* * * * *",
    overlap: Overlap = Overlap.FORBID,
    zone: str = "UTC",
    **changes: Any,
) -> JobSpec:
    spec = CronSpec(schedule, zone, overlap)
    return job("nightly", one(**changes), type=JobType.CRON, cron=spec)


class Crontab(Cluster):
    """A cluster whose clock stands at the full hour."""

    def __init__(self, *nodes: str) -> None:
        super().__init__(*(nodes or ("a",)))
        self.now_ms = START_MS - START_MS % HOUR_MS + HOUR_MS

    @property
    def job(self) -> Job:
        found = self.state.job_named("nightly")
        assert found is not None
        return found

    @property
    def runs(self) -> tuple[Run, ...]:
        assert self.job.cron is not None
        return self.job.cron.runs

    def after(self, ms: int) -> None:
        self.now_ms += ms
        self.plan()

    def finish(self, run: int, exit_code: int = 0) -> None:
        """Every unfinished task of the run ends."""
        child = next(one for one in self.state.runs_of(self.job) if one.run == run)
        for task in self.state.tasks_of_job(child.id):
            if not task.ended:
                state = "failed" if exit_code else "completed"
                self.report(task.id, state, exit_code=exit_code, reason="exited", released=True)
        self.plan()

    def told(self) -> list[tuple[int, str, int]]:
        return [(run.run, run.status.value, run.count) for run in self.runs]
