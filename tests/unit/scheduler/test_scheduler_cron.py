"""When cron jobs are due, and what their runs come to: tables, and a leader that plans by hand."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.cronrun import DUE_COUNTED_MAX, RUNS_ACTIVE_MAX, RUNS_KEPT, Run, RunStatus
from cube.model.outcome import Rejected, RunStarted
from cube.model.spec import (
    CronSpec,
    JobType,
    Overlap,
    ReschedulePolicy,
)
from cube.scheduler import cron
from cube.scheduler.plan import Scheduler
from cube.scheduler.why import explain
from cube.statemachine import snapshot
from tests.builders import group, job
from tests.cron_cluster import HOUR_MS, MINUTE_MS, Crontab, nightly
from tests.scheduler_cluster import one

UTC = datetime.UTC


def utc_ms(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


# Schedules


def times(spec: CronSpec, start: str, count: int) -> list[str]:
    found = []
    for at_ms in cron.times_after(spec, utc_ms(start)):
        found.append(datetime.datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()[:16])
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize(
    ("schedule", "start", "due"),
    [
        # The clock goes forward, 2:00 → 3:00 (1:00 UTC): what was due in between is due at 3:00.
        (
            "30 2 * * *",
            "2025-03-29T00:00",
            ["2025-03-29T01:30", "2025-03-30T01:00", "2025-03-31T00:30"],
        ),
        ("*/20 * * * *", "2025-03-30T00:30", ["2025-03-30T00:40", "2025-03-30T01:00", "2025-03-30T01:20"]),
        # The clock goes back, 3:00 → 2:00 (1:00 UTC): once for a time of day, each hour for hours.
        (
            "30 2 * * *",
            "2025-10-25T00:00",
            ["2025-10-25T00:30", "2025-10-26T00:30", "2025-10-27T01:30"],
        ),
        ("0 * * * *", "2025-10-25T23:30", ["2025-10-26T00:00", "2025-10-26T01:00", "2025-10-26T02:00"]),
        # Begun in the second of the two hours, when the time of day has been already.
        ("30 2 * * *", "2025-10-26T01:10", ["2025-10-27T01:30"]),
    ],
)  # fmt: skip
def test_days_on_which_the_clock_is_changed(schedule: str, start: str, due: list[str]) -> None:
    assert times(CronSpec(schedule, "Europe/Berlin"), start, len(due)) == due


def test_time_zones_count_and_local_time_is_told() -> None:
    spec = CronSpec("0 3 * * *", "Asia/Kolkata")
    assert times(spec, "2025-06-01T00:00", 1) == ["2025-06-01T21:30"]
    assert cron.local_time(spec, utc_ms("2025-06-01T21:30")) == "2025-06-02 03:00 IST"


def test_due_times_are_later_than_after_and_not_later_than_now() -> None:
    spec, at = CronSpec("* * * * *"), utc_ms("2025-06-01T12:00")
    assert cron.due_since(spec, at, at) == cron.Due(0, 0, 0, at + MINUTE_MS)
    assert cron.due_since(spec, at - 1, at) == cron.Due(1, at, 0, at + MINUTE_MS)
    assert cron.due_since(spec, at, at + 2 * MINUTE_MS + 999) == cron.Due(
        2, at + 2 * MINUTE_MS, at + MINUTE_MS, at + 3 * MINUTE_MS
    )


@pytest.mark.parametrize("schedule", ["* * * * *", "*/7 0-5 * * *", "* * 1 * *"])
def test_a_long_outage_counts_up_to_a_bound_and_finds_the_last_times(schedule: str) -> None:
    spec, at = CronSpec(schedule, "Europe/Berlin"), utc_ms("2025-01-15T12:34")
    now_ms = at + 200 * 24 * HOUR_MS
    every = [ms for ms in _until(cron.times_after(spec, at), now_ms + 40 * 24 * HOUR_MS)]
    past = [ms for ms in every if ms <= now_ms]
    assert len(past) > DUE_COUNTED_MAX
    assert cron.due_since(spec, at, now_ms) == cron.Due(
        DUE_COUNTED_MAX, past[-1], past[-2], every[len(past)]
    )


def _until(times: Any, end_ms: int) -> list[int]:
    found = []
    for ms in times:
        found.append(ms)
        if ms > end_ms:
            return found
    return found


def test_a_time_zone_that_this_node_does_not_know_is_a_problem_and_no_exception() -> None:
    cluster = Crontab()
    cluster.submit(nightly(zone="Mars/Olympus"))
    plan = cluster.plan()
    assert plan.command is None
    assert plan.explanations[0].summary == "this node does not know the time zone Mars/Olympus"
    assert "Mars/Olympus" in explain(cluster.state, cluster.now_ms, "nightly")[0].summary


# Runs


def test_a_run_begins_when_it_is_due_and_its_end_is_written_down() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    plan = cluster.plan()
    assert (plan.command, plan.wake_at_ms) == (None, cluster.now_ms + MINUTE_MS)
    cluster.after(MINUTE_MS - 1)
    assert not cluster.runs
    cluster.after(1)
    due_ms = cluster.now_ms
    cluster.settle()
    (task,) = cluster.state.tasks_under(cluster.job)
    assert (task.name, task.job, task.version) == ("nightly.g.0", "nightly", 1)
    assert cluster.told() == [(1, "running", 1)]
    cluster.now_ms += 5_000
    cluster.finish(1)
    assert cluster.runs == (
        Run(
            run=1, job_id=task.job_id, version=1, status=RunStatus.COMPLETED, completed=1,
            scheduled_at_ms=due_ms, started_at_ms=due_ms, finished_at_ms=due_ms + 5_000,
        ),
    )  # fmt: skip
    assert list(cluster.state.job_names) == ["nightly"]
    assert snapshot.load(snapshot.dump(cluster.state)) == cluster.state
    assert cluster.plan().command is None


def test_a_run_whose_task_is_given_up_has_failed_and_why_says_of_what() -> None:
    cluster = Crontab()
    cluster.submit(nightly("0 * * * *", count=2, reschedule=ReschedulePolicy(attempts=1)))
    cluster.after(HOUR_MS)
    cluster.settle()
    first, second = cluster.state.tasks_under(cluster.job)
    cluster.report(first.id, "completed", exit_code=0, released=True)
    cluster.fail(second, exit_code=3)
    cluster.plan()
    assert cluster.told() == [(1, "running", 1)]  # once more, after a delay
    cluster.now_ms += 5_000
    cluster.settle()
    cluster.fail(cluster.state.tasks_under(cluster.job)[-1], exit_code=3)
    cluster.plan()
    assert cluster.told() == [(1, "failed", 1)]
    run = cluster.runs[0]
    assert (run.completed, run.failed, run.message) == (1, 1, "nightly.g.1: exit code 3")
    cluster.now_ms += 60_000
    (found,) = explain(cluster.state, cluster.now_ms, "nightly")
    assert "the next run is due in" in found.summary
    assert found.summary.endswith("UTC")
    assert found.reasons[0].message == "run 1 failed 1m ago: nightly.g.1: exit code 3"
    assert cluster.plan().command is None


def test_a_run_of_no_tasks_is_complete() -> None:
    cluster = Crontab()
    cluster.submit(nightly(count=0))
    cluster.after(MINUTE_MS)
    cluster.plan()
    assert cluster.told() == [(1, "completed", 1)]


def test_groups_of_a_run_wait_for_each_other_also_by_the_name_of_their_job() -> None:
    cluster = Crontab()
    groups = {"a": group(), "b": group(depends_on=("nightly/a",))}
    cron_spec = CronSpec("0 * * * *")
    cluster.submit(job("nightly", groups, type=JobType.CRON, cron=cron_spec))
    cluster.after(HOUR_MS)
    cluster.settle()
    assert [task.group for task in cluster.state.tasks_under(cluster.job)] == ["a"]
    cluster.finish(1)
    cluster.settle()
    assert [task.group for task in cluster.state.tasks_under(cluster.job)] == ["a", "b"]
    cluster.finish(1)
    assert cluster.told() == [(1, "completed", 1)]


# Overlap


def test_forbid_skips_what_is_due_while_a_run_goes_on_and_says_so_in_one_entry() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.FORBID))
    for _ in range(4):
        cluster.after(MINUTE_MS)
        cluster.settle()
    assert cluster.told() == [(1, "running", 1), (0, "skipped", 3)]
    assert cluster.runs[-1].scheduled_at_ms == cluster.now_ms
    assert cluster.runs[-1].message == "run 1 has not ended, and overlap is forbid"
    (waiting,) = explain(cluster.state, cluster.now_ms, "nightly")
    assert "skipped when run 1 has not ended by then" in waiting.summary
    assert waiting.reasons[0].message.startswith("3 due times were skipped")
    cluster.finish(1)
    cluster.after(MINUTE_MS)
    assert cluster.told() == [(1, "completed", 1), (0, "skipped", 3), (2, "running", 1)]


def test_allow_runs_them_beside_each_other_up_to_a_bound() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    for _ in range(RUNS_ACTIVE_MAX + 2):
        cluster.after(MINUTE_MS)
        cluster.settle()
    assert len(cluster.state.tasks) == RUNS_ACTIVE_MAX
    assert cluster.told()[-1] == (0, "skipped", 2)
    cluster.finish(4)
    cluster.after(MINUTE_MS)
    assert cluster.told()[-1] == (RUNS_ACTIVE_MAX + 1, "running", 1)


def test_replace_stops_the_old_run_and_begins_when_it_has_ended() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.REPLACE))
    cluster.after(MINUTE_MS)
    cluster.settle()
    cluster.after(MINUTE_MS)
    plan = cluster.plan()
    assert cluster.told() == [(1, "stopped", 1), (2, "running", 1)]
    (old,) = cluster.state.tasks_under(cluster.job)
    assert (old.desired, old.desired_reason) == ("stop", "run_replaced")
    assert [one.summary for one in plan.explanations] == ["run 1 was stopped and has not ended yet"]
    cluster.settle()
    _, new = cluster.state.tasks_under(cluster.job)
    assert (new.state, new.live) == ("running", True)
    assert cluster.runs[0].message == "a younger run replaced it"
    assert not cluster.runs[0].active


# What nobody ran


def test_after_an_outage_the_latest_missed_run_runs_once_and_the_history_says_so() -> None:
    cluster = Crontab()
    cluster.submit(nightly("*/10 * * * *"))
    cluster.now_ms += 3 * HOUR_MS + 5 * MINUTE_MS
    cluster.term += 1
    cluster.scheduler = Scheduler()
    latest_ms = cluster.now_ms - cluster.now_ms % (10 * MINUTE_MS)
    cluster.plan()
    cluster.settle()
    assert cluster.told() == [(0, "missed", 17), (1, "running", 1)]
    missed, run = cluster.runs
    assert (missed.scheduled_at_ms, run.scheduled_at_ms) == (latest_ms - 10 * MINUTE_MS, latest_ms)
    assert missed.message == "nobody led when they were due"
    assert run.message == "began 5m after it was due"
    cluster.finish(1)
    assert cluster.plan().command is None


def test_what_was_due_while_the_job_was_stopped_is_nobodys() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.after(MINUTE_MS)
    cluster.settle()
    cluster.do(c.StopJob("nightly"))
    assert cluster.plan().wake_at_ms is None
    cluster.settle()
    assert [(run.status, run.active) for run in cluster.runs] == [(RunStatus.STOPPED, False)]
    cluster.now_ms += HOUR_MS + 1
    assert cluster.plan().command is None
    cluster.do(c.StartJob("nightly"))
    plan = cluster.plan()
    assert (plan.command, plan.wake_at_ms) == (None, cluster.now_ms - 1 + MINUTE_MS)


def test_a_new_schedule_counts_from_the_change_and_another_spec_changes_no_due_time() -> None:
    cluster = Crontab()
    cluster.submit(nightly("0 0 1 1 *"))
    cluster.now_ms += 90_000
    cluster.submit(nightly("* * * * *"))
    plan = cluster.plan()
    assert (plan.command, plan.wake_at_ms) == (None, cluster.now_ms + MINUTE_MS // 2)
    cluster.now_ms += MINUTE_MS  # one is due
    cluster.submit(nightly("* * * * *", command=("other",)))
    cluster.plan()
    cluster.settle()
    (run,) = cluster.runs
    assert run.version == 3
    child = cluster.state.jobs[run.job_id]
    assert (child.spec.type, child.spec.groups["g"].command) == (JobType.BATCH, ("other",))


def test_a_clock_that_goes_back_repeats_nothing() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    cluster.after(2 * MINUTE_MS)
    cluster.settle()
    due = [run.scheduled_at_ms for run in cluster.runs]
    cluster.now_ms -= 2 * MINUTE_MS
    cluster.scheduler = Scheduler()
    assert cluster.plan().command is None
    cluster.after(2 * MINUTE_MS)
    assert [run.scheduled_at_ms for run in cluster.runs] == due
    cluster.after(MINUTE_MS)
    assert len(cluster.runs) == len(due) + 1


# History, stopping, deleting


def test_the_last_runs_are_kept_with_their_tasks_and_no_more() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    for run in range(1, RUNS_KEPT + 6):
        cluster.after(MINUTE_MS)
        cluster.settle()
        cluster.finish(run)
    assert [run.run for run in cluster.runs] == list(range(6, RUNS_KEPT + 6))
    assert len(cluster.state.tasks) == RUNS_KEPT
    assert len(cluster.state.jobs) == RUNS_KEPT + 1
    assert cluster.plan().command is None


def test_a_forgotten_run_whose_node_is_away_goes_when_the_node_says_so() -> None:
    cluster = Crontab("a", "b")
    cluster.submit(nightly())
    cluster.after(MINUTE_MS)
    cluster.settle()
    (task,) = cluster.state.tasks_under(cluster.job)
    where = cluster.state.nodes[task.node_id].name
    cluster.down(where)
    cluster.settle()
    cluster.finish(1)
    for run in range(2, RUNS_KEPT + 2):
        cluster.after(MINUTE_MS)
        cluster.settle()
        cluster.finish(run)
    assert task.job_id in cluster.state.jobs  # its node has not said that the task is gone
    assert cluster.state.tasks[task.id].desired == "remove"
    cluster.report(task.id, "completed", released=True)
    assert task.job_id not in cluster.state.jobs
    assert cluster.plan().command is None


def test_a_deleted_job_ends_its_runs_and_leaves_nothing() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    for _ in range(3):
        cluster.after(MINUTE_MS)
        cluster.settle()
    cluster.do(c.DeleteJob("nightly"))
    assert len(cluster.state.job_names) == 0
    assert {task.desired for task in cluster.state.tasks.values()} == {"remove"}
    cluster.submit(nightly("0 0 1 1 *"))  # the name is free at once
    cluster.settle()
    assert [one.name for one in cluster.state.jobs.values()] == ["nightly"]
    assert dict(cluster.state.tasks) == {}


def test_runs_do_not_count_as_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cube.statemachine.jobs.JOBS_MAX", 2)
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    for _ in range(3):
        cluster.after(MINUTE_MS)
    assert not isinstance(cluster.submit(job("web", one())), Rejected)
    assert isinstance(cluster.submit(job("more", one())), Rejected)


# By hand


def test_a_run_by_hand_leaves_the_schedule_as_it_is() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.now_ms += 30_000
    started = cluster.do(c.TriggerJob("nightly"))
    assert isinstance(started, RunStarted)
    assert (started.name, started.run) == ("nightly", 1)
    cluster.settle()
    cluster.finish(1)
    cluster.after(30_000)
    assert cluster.told() == [(1, "completed", 1), (2, "running", 1)]
    assert [run.by_hand for run in cluster.runs] == [True, False]


def test_overlap_binds_runs_by_hand_too() -> None:
    cluster = Crontab()
    cluster.submit(nightly("0 0 1 1 *", overlap=Overlap.FORBID))
    cluster.do(c.TriggerJob("nightly"))
    assert refusal(cluster, "nightly") == "nightly: run 1 has not ended, and overlap is forbid"
    cluster.submit(nightly("0 0 1 1 *", overlap=Overlap.REPLACE))
    for _ in range(RUNS_ACTIVE_MAX - 1):
        cluster.do(c.TriggerJob("nightly"))
    assert "the most there may be" in refusal(cluster, "nightly")
    cluster.settle()
    assert cluster.told()[-1] == (RUNS_ACTIVE_MAX, "running", 1)
    assert len([run for run in cluster.runs if run.active]) == 1


def test_what_cannot_be_triggered() -> None:
    cluster = Crontab()
    cluster.submit(job("web", one()))
    cluster.submit(nightly())
    cluster.do(c.StopJob("nightly"))
    assert refusal(cluster, "nothing") == "there is no job nothing"
    assert "only cron jobs have runs" in refusal(cluster, "web")
    assert "cube start nightly" in refusal(cluster, "nightly")


def refusal(cluster: Crontab, name: str) -> str:
    outcome = cluster.do(c.TriggerJob(name))
    assert isinstance(outcome, Rejected)
    return outcome.message
