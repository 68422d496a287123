"""What people see of cron jobs."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from cube.cli import cron, output, run
from cube.cli.context import Settings
from cube.cli.exits import CommandError
from cube.model.views import GroupCounts, JobChanged, JobView, RunView

NOW = datetime.datetime(2026, 3, 29, 0, 30, tzinfo=datetime.UTC)

RUN = RunView(
    run=2, status="completed", trigger="schedule", version=1, scheduled_at="2026-03-29T00:00:00.000Z",
    started_at="2026-03-29T00:00:01.000Z", finished_at="2026-03-29T00:04:01.000Z", count=1,
    completed=3, failed=1, message="",
)  # fmt: skip
SKIPPED = RunView(
    run=None, status="skipped", trigger="schedule", version=1, scheduled_at="2026-03-28T00:00:00.000Z",
    started_at=None, finished_at=None, count=4, completed=0, failed=0, message="run 1 has not ended",
)  # fmt: skip
JOB = JobView(
    name="nightly", type="cron", version=1, status="completed", spec={}, created_at=None,
    groups={"g": GroupCounts(1)}, modified_index=1, next_run_at="2026-03-30T00:00:00.000Z",
    runs=(RUN, SKIPPED),
)  # fmt: skip


class Asked:
    """A client that knows one job."""

    def __init__(self, job: JobView = JOB) -> None:
        self._job = job

    def job(self, _name: str) -> JobView:
        return self._job

    def tasks(self, _job: str) -> list[Any]:
        return []


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "now", lambda: NOW)


def settings(job: JobView = JOB) -> Settings:
    made = Settings()
    made.no_color = True
    made._client = Asked(job)  # type: ignore[assignment]
    return made


def test_a_run_is_a_line_with_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand = msgspec.structs.replace(
        RUN, run=3, status="running", trigger="hand", finished_at=None, message="slow"
    )
    cron.print_runs(settings(), (by_hand, RUN, SKIPPED))
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        "RUN STATUS DUE TOOK TASKS VERSION MESSAGE",
        "3 running 30m ago 29m59s – v1 by hand, slow",
        "2 completed 30m ago 4m 3 completed, 1 failed v1",
        "– skipped ×4 1d ago – – v1 run 1 has not ended",
    ]


def test_a_cron_job_is_not_waited_for_and_says_when_it_is_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = JobChanged(name="nightly", version=1, changed=True, index=1)
    given = settings()
    run.follow(given, given.client, changed, "submitted", began=0.0, detach=False)
    told = capsys.readouterr().err
    assert "the next run of nightly is due in 23h30m, at 2026-03-30 00:00 UTC" in told
    assert "cube job trigger nightly" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "stopped", "next_run_at": None}, "is stopped: no run is due. next: cube start"),
        ({"next_run_at": None}, "no run of nightly is due"),
        ({"next_run_at": "2026-03-29T00:29:59.000Z"}, "is due in 0s"),
    ],
)
def test_when_the_next_run_is(changes: dict[str, Any], words: str) -> None:
    assert words in cron.next_run(msgspec.structs.replace(JOB, **changes))


def test_other_jobs_have_no_runs_to_show() -> None:
    service = msgspec.structs.replace(JOB, type="service", runs=())
    assert cron.job_runs.callback is not None
    with pytest.raises(CommandError, match="only cron jobs have runs"):
        cron.job_runs.callback(settings=settings(service), job_name="nightly")
