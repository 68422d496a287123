"""Runs of cron jobs: what apply makes of plans that came late, and what runs share with each other."""

from __future__ import annotations

from typing import Any

import pytest

from cube.model import commands as c
from cube.model.cronrun import RUNS_ACTIVE_MAX, RUNS_KEPT, RunStatus
from cube.model.ids import JobId
from cube.model.outcome import PlanApplied
from cube.model.spec import (
    CronSpec,
    JobType,
    MountSpec,
    MountType,
    OnPartition,
    Overlap,
    ReschedulePolicy,
)
from cube.scheduler import dependencies
from cube.scheduler.plan import Scheduler
from tests.builders import START_MS, group, job
from tests.cron_cluster import HOUR_MS, MINUTE_MS, Crontab, nightly
from tests.scheduler_cluster import one

# What apply makes of a plan that came late


def step_of(cluster: Crontab, **changes: Any) -> c.ApplyPlan:
    made = cluster.job
    assert made.cron is not None
    values: dict[str, Any] = {
        "job_id": made.id,
        "version": made.version,
        "after_ms": made.cron.after_ms,
        "scheduled_at_ms": made.cron.after_ms + MINUTE_MS,
        "starts": True,
    }
    return c.ApplyPlan(cluster.term, "late", run_steps=(c.RunStep(**(values | changes)),))


def test_a_step_happens_once_whoever_proposes_it_again() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    cluster.now_ms += MINUTE_MS
    step = step_of(cluster)
    assert cluster.do(step) == cluster.do(step) == PlanApplied(0)
    assert cluster.told() == [(1, "running", 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": JobId("nobody")},
        {"version": 2},
        {"after_ms": 5},
        {"scheduled_at_ms": 5},
        {"scheduled_at_ms": START_MS * 2},
    ],
)
def test_a_step_that_does_not_fit_any_more_changes_nothing(changes: dict[str, Any]) -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.now_ms += MINUTE_MS
    before = cluster.job
    cluster.do(step_of(cluster, **changes))
    assert cluster.job is before


def test_a_step_of_a_stopped_or_deleted_job_changes_nothing() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.now_ms += MINUTE_MS
    step = step_of(cluster)
    cluster.do(c.StopJob("nightly"))
    cluster.do(step)
    assert cluster.runs == ()
    cluster.do(c.StartJob("nightly"))
    cluster.do(step)  # it counts from the start
    assert cluster.runs == ()
    cluster.do(c.DeleteJob("nightly"))
    cluster.do(step)
    assert len(cluster.state.jobs) == 0


def test_a_step_that_would_start_a_second_run_is_skipped_by_apply_itself() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.now_ms += MINUTE_MS
    cluster.do(step_of(cluster))
    cluster.now_ms += MINUTE_MS
    cluster.do(step_of(cluster))  # planned as if the first had ended
    assert cluster.told() == [(1, "running", 1), (0, "skipped", 1)]


def test_the_end_of_a_run_that_goes_on_is_not_believed() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.after(MINUTE_MS)
    cluster.settle()
    run = cluster.runs[0]
    end = c.RunEnd(run.job_id, RunStatus.COMPLETED, 1, 0)
    cluster.do(c.ApplyPlan(cluster.term, "early", run_ends=(end,)))
    assert cluster.runs == (run,)
    cluster.finish(1)
    over = cluster.runs
    cluster.now_ms += 1_000
    cluster.do(c.ApplyPlan(cluster.term, "again", run_ends=(end,)))
    assert cluster.runs == over


def test_entries_without_a_run_are_bounded_too() -> None:
    cluster = Crontab()
    cluster.submit(nightly(overlap=Overlap.ALLOW))
    for number in range(RUNS_ACTIVE_MAX + RUNS_KEPT + 3):
        cluster.after(2 * MINUTE_MS)  # one is missed each time
        if number >= RUNS_ACTIVE_MAX - 1:
            cluster.settle()
            cluster.finish(number - RUNS_ACTIVE_MAX + 2)
    notes = [run for run in cluster.runs if not run.job_id]
    assert len(notes) == RUNS_KEPT
    assert notes[-1].scheduled_at_ms == cluster.now_ms - MINUTE_MS


def test_the_volumes_of_a_cron_job_are_those_of_all_its_runs() -> None:
    cluster = Crontab("a", "b", "c")
    mount = MountSpec(MountType.VOLUME, "/data", "backups")
    cluster.submit(nightly(mounts=(mount,)))
    where = set()
    for run in range(1, 5):
        cluster.after(MINUTE_MS)
        cluster.settle()
        where.add(cluster.state.tasks_under(cluster.job)[-1].node_id)
        if run == 1:
            cluster.do(c.SetEligibility(cluster.node("c"), False))
        if run == 4:
            cluster.submit(nightly())  # the run goes on with its own spec, and its volume is known
            assert cluster.job.id in cluster.state.volumes
        cluster.finish(run)
    assert len(where) == 1
    cluster.do(c.DeleteJob("nightly"))
    assert len(cluster.state.volumes) == 0


def test_what_waits_for_other_jobs_in_vain_is_warned_about() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.submit(job("seed", {"load": group()}))
    names = ("nightly/g", "seed/laod", "seed/load", "later/x", "web/other")
    spec = job("web", {"g": group(depends_on=names), "other": group()})
    assert dependencies.warnings(cluster.state, spec) == [
        "groups.g.depends_on: job nightly runs by schedule and is never up; the group waits for ever",
        "groups.g.depends_on: job seed has no group laod (did you mean `seed/load`?); "
        "the group waits until it has",
        "groups.g.depends_on: there is no job later yet; the group waits until it comes",
    ]
    cluster.do(c.StopJob("seed"))
    assert "job seed is stopped" in dependencies.warnings(cluster.state, spec)[2]


def test_a_singleton_is_one_in_all_runs() -> None:
    """A run that replaces one whose node is out of reach waits as its own replacement would."""
    cluster = Crontab("a", "b")
    cluster.submit(
        nightly(overlap=Overlap.REPLACE, at_most_one=True, on_partition=OnPartition.STOP)
    )
    cluster.after(MINUTE_MS)
    cluster.settle()
    (old,) = cluster.state.tasks_under(cluster.job)
    cluster.now_ms += MINUTE_MS - 1
    cluster.down(cluster.state.nodes[old.node_id].name)
    cluster.now_ms += 1
    cluster.plan()
    cluster.plan()
    assert cluster.told() == [(1, "stopped", 1), (2, "running", 1)]
    assert len(cluster.state.tasks) == 1
    (waiting,) = cluster.plan().explanations
    assert "has not said that nightly.g.0" in waiting.summary
    cluster.now_ms += MINUTE_MS  # longer than its lease
    cluster.scheduler = Scheduler()
    cluster.settle()
    assert len({task.node_id for task in cluster.state.tasks.values()}) == 2


def test_what_waits_for_a_group_that_was_given_up_ends_the_run_with_it() -> None:
    """Else a job with overlap = forbid would never run again."""
    cluster = Crontab()
    groups = {
        "a": group(reschedule=ReschedulePolicy(attempts=1)),
        "b": group(depends_on=("a",)),
        "c": group(depends_on=("nightly/b",)),
        "d": group(),
    }
    cluster.submit(job("nightly", groups, type=JobType.CRON, cron=CronSpec("0 * * * *")))
    cluster.after(HOUR_MS)
    cluster.settle()
    for _ in range(2):
        task = next(one for one in cluster.state.tasks.values() if one.group == "a" and one.live)
        cluster.fail(task, exit_code=7)
        cluster.now_ms += 6_000
        cluster.settle()
    assert cluster.told() == [(1, "running", 1)]  # d is left
    cluster.finish(1)
    assert cluster.told() == [(1, "failed", 1)]
    run = cluster.runs[0]
    assert (run.completed, run.failed) == (1, 1)
    assert run.message == "nightly.a.0: exit code 7, b: never began, c: never began"


def test_many_schedules_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cube.scheduler.plan.SCHEDULES_MAX", 2)
    cluster = Crontab()
    for number in range(5):
        spec = CronSpec("* * * * *")
        cluster.submit(job(f"j{number}", one(count=0), type=JobType.CRON, cron=spec))
    for left in (True, True, False):
        plan = cluster.plan()
        assert plan.command is None
        assert plan.wake_at_ms == cluster.now_ms + (0 if left else MINUTE_MS)
    cluster.now_ms += MINUTE_MS
    begun = 0
    for _ in range(12):  # what has begun and ended is read once more, each time
        before, begun = begun, 0
        cluster.plan()
        begun = sum(bool(one.parent) for one in cluster.state.jobs.values())
        assert begun - before <= 2
    assert begun == 5
    cluster.plan()
    assert cluster.plan().wake_at_ms == cluster.now_ms + MINUTE_MS


def test_nothing_is_placed_for_a_cron_job_itself() -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    outcome = cluster.place("nightly", "g", (0, "a", ()))
    assert isinstance(outcome, PlanApplied)
    assert (outcome.placed, outcome.refused_count) == (0, 1)


@pytest.mark.parametrize(
    "status", [s for s in RunStatus if s not in (RunStatus.COMPLETED, RunStatus.FAILED)]
)
def test_what_is_no_end_of_a_run_ends_none(status: RunStatus) -> None:
    cluster = Crontab()
    cluster.submit(nightly())
    cluster.do(c.TriggerJob("nightly"))
    before = cluster.runs
    end = c.RunEnd(before[0].job_id, status, 0, 0)
    cluster.do(c.ApplyPlan(cluster.term, "odd", run_ends=(end,)))
    assert cluster.runs == before
