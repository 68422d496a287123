"""Cron jobs under any course of time, of leaders and of what users do meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import Job
from cube.model.cronrun import DUE_COUNTED_MAX, RUNS_ACTIVE_MAX, Run
from cube.model.outcome import PlanApplied
from cube.model.spec import CronSpec, JobType, Overlap
from cube.scheduler.plan import Scheduler
from cube.statemachine.invariants import violations
from tests.builders import START_MS, Machine, group, job

MINUTE_MS = 60_000
PERIODS = (1, 5, 15)  # minutes
ACTIONS = (
    ["plan"] * 8 + ["time"] * 5 + ["jump", "back", "leader", "lost", "again", "late"] * 2
    + ["run", "run", "complete", "complete", "fail", "stop", "start", "submit", "trigger"]
)  # fmt: skip


class World:
    """One cron job, whose leaders come and go. What each start was due at is kept for ever."""

    def __init__(self, period: int, overlap: Overlap, count: int) -> None:
        self.machine = Machine("a", "b")
        self.machine.now_ms = START_MS
        self.scheduler, self.noted = Scheduler(), Scheduler()
        self.before, self.seen = self.machine.state, len(self.machine.steps)
        self.plans = 0
        self.proposed: list[c.ApplyPlan] = []
        self.due: list[int] = []  # of every run that its schedule began
        self.overlaps: set[Overlap] = set()
        self.submit(period, overlap, count)

    def submit(self, period: int, overlap: Overlap, count: int) -> None:
        self.period_ms = period * MINUTE_MS
        self.overlaps.add(overlap)
        self.machine.submit(
            job(
                "nightly",
                {"g": group(count=count)},
                type=JobType.CRON,
                cron=CronSpec(
                    "* * * * *" if period == 1 else f"*/{period} * * * *", "UTC", overlap
                ),
            )
        )

    @property
    def job(self) -> Job:
        found = self.machine.state.job_named("nightly")
        assert found is not None
        assert found.cron is not None
        return found

    @property
    def runs(self) -> tuple[Run, ...]:
        assert self.job.cron is not None
        return self.job.cron.runs

    def propose(self) -> c.ApplyPlan | None:
        self.plans += 1
        machine = self.machine
        args = (machine.state, max(machine.now_ms, machine.state.now_ms), machine.term)
        plan = self.scheduler.plan(*args, f"seed-{self.plans}")
        assert plan == Scheduler().plan(*args, f"seed-{self.plans}")  # the past changes nothing
        for step in machine.steps[self.seen :]:
            self.noted.note(self.before, step.state, step.events)
            self.before = step.state
        self.seen = len(machine.steps)
        assert plan == self.noted.plan(*args, f"seed-{self.plans}")  # nor do the notes
        if plan.command is not None:
            self.proposed.append(plan.command)
        return plan.command

    def apply(self, command: c.ApplyPlan) -> None:
        before, known = self.job, {run.run for run in self.runs}
        active = sum(run.active for run in self.runs)
        outcome = self.machine.do(command)
        after = self.job
        assert before.cron is not None
        assert after.cron is not None
        begun = [run for run in self.runs if run.run and run.run not in known]
        assert len(begun) <= 1
        self.due += [run.scheduled_at_ms for run in begun]
        if not isinstance(outcome, PlanApplied):
            assert after is before
            return
        decided = _multiples(before.cron.after_ms, after.cron.after_ms, self.period_ms)
        if not decided:
            assert begun == []
            return
        assert after.cron.after_ms % self.period_ms == 0
        # Each due time is a run, skipped or missed: the counts add up.
        (step,) = command.run_steps
        assert step.missed + 1 == min(decided, DUE_COUNTED_MAX)
        for run in begun:
            assert run.scheduled_at_ms == after.cron.after_ms
            assert active < RUNS_ACTIVE_MAX

    def end_tasks(self, state: str) -> None:
        machine = self.machine
        for task in sorted(machine.state.tasks.values(), key=lambda task: task.id)[:2]:
            if task.ended:
                continue
            if state == "running":
                machine.report(task.id, "running")
            else:
                code = 0 if state == "completed" else 1
                machine.report(task.id, state, exit_code=code, reason="exited", released=True)

    def check(self) -> None:
        assert violations(self.machine.state) == []
        assert len(self.due) == len(set(self.due))
        assert self.due == sorted(self.due)
        if self.overlaps == {Overlap.REPLACE}:
            unended = {t.job_id for t in self.machine.state.tasks.values() if not t.ended}
            assert len(unended) <= 1


def _multiples(after_ms: int, until_ms: int, period_ms: int) -> int:
    return until_ms // period_ms - after_ms // period_ms


def _one_at_a_time(world: World) -> None:
    assert sum(run.active for run in world.runs) <= 1
    unended = {task.job_id for task in world.machine.state.tasks.values() if not task.ended}
    assert len(unended) <= 1


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(PERIODS), st.sampled_from(Overlap), st.integers(0, 2))
def test_each_due_time_happens_at_most_once_whoever_leads(
    data: st.DataObject, period: int, overlap: Overlap, count: int
) -> None:
    world = World(period, overlap, count)
    always_forbid = overlap is Overlap.FORBID
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), min_size=5, max_size=60)):
        machine = world.machine
        match action:
            case "plan":
                command = world.propose()
                if command is not None:
                    world.apply(command)
            case "time":
                machine.now_ms += data.draw(st.sampled_from([1, 20_000, MINUTE_MS, 15 * MINUTE_MS]))
            case "jump":
                machine.now_ms += data.draw(st.integers(1, 3 * 24 * 60)) * MINUTE_MS
            case (
                "back"
            ):  # the next leader's clock is behind; entries are stamped by apply's maximum
                machine.now_ms -= data.draw(st.integers(1, 120)) * MINUTE_MS
            case "leader":
                machine.term += 1
                world.scheduler = Scheduler()
            case "lost":  # proposed by a leader that died before it was committed
                world.propose()
            case "again" | "late":  # and then it was after all, or once more
                if world.proposed:
                    at = -1 if action == "again" else data.draw(st.integers(0, 9))
                    late = world.proposed[at % len(world.proposed)]
                    world.apply(late)
            case "run":
                world.end_tasks("running")
            case "complete":
                world.end_tasks("completed")
            case "fail":
                world.end_tasks("failed")
            case "stop":
                machine.do(c.StopJob("nightly"))
            case "start":
                machine.do(c.StartJob("nightly"))
            case "submit":
                kinds = [overlap] if always_forbid else [overlap, Overlap.ALLOW, Overlap.FORBID]
                kind = data.draw(st.sampled_from(kinds))
                world.submit(data.draw(st.sampled_from(PERIODS)), kind, count)
            case "trigger":
                machine.do(c.TriggerJob("nightly"))
            case _:
                raise AssertionError(action)
        if always_forbid:
            _one_at_a_time(world)
        world.check()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(PERIODS),
    st.integers(1, 60 * 24 * 40),
    st.booleans(),
    st.sampled_from(Overlap),
)
def test_an_outage_of_any_length_is_one_run_at_most(
    period: int, minutes: int, is_running: bool, overlap: Overlap
) -> None:
    world = World(period, overlap, 1)
    machine = world.machine
    if is_running:
        machine.do(c.TriggerJob("nightly"))
    before = len(machine.state.jobs)
    machine.now_ms += minutes * MINUTE_MS
    machine.term += 1
    world.scheduler = Scheduler()
    for _ in range(4):
        command = world.propose()
        if command is not None:
            world.apply(command)
        world.check()
    due = _multiples(START_MS, machine.now_ms, world.period_ms)
    is_skipped = is_running and overlap is Overlap.FORBID
    assert len(machine.state.jobs) - before == (1 if due and not is_skipped else 0)
    told = sum(run.count for run in world.runs if not run.by_hand)
    assert told == min(due, DUE_COUNTED_MAX)
