"""A plan is bounded in what it looks at, too; plans in a row look at everything."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.ids import JobId
from cube.model.outcome import PlanApplied
from cube.model.resources import Resources
from cube.model.spec import PortSpec, UpdatePolicy
from cube.scheduler import plan as planning
from cube.scheduler import plan_draft
from cube.scheduler.plan import Scheduler
from cube.scheduler.reconcile import only_waits, reconcile
from tests.builders import GIB, Machine, facts, group, job


def looks_at(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """A plan looks at so many tasks, however many jobs they are of."""
    monkeypatch.setattr(planning, "LOOKED_MAX", tasks)
    monkeypatch.setattr(planning, "JOB_LOOKS", 0)


def full_of_rollouts(jobs: int, count: int) -> Machine:
    """Every job's tasks are placed, and none of them runs yet."""
    machine = Machine()
    for name in "ab":
        machine.do(c.RegisterNode(facts(name, capacity=Resources(1_000_000, 1 << 50, GIB))))
    for number in range(jobs):
        update = UpdatePolicy(min_healthy_ms=0, deadline_ms=60_000 + 1_000 * number)
        spec = job(f"job-{number}", {"g": group(count=count, update=update)})
        machine.do(c.SubmitJob(spec, JobId(f"{number}")))
    placed = Scheduler().plan(machine.state, machine.now_ms, 1, "first")
    assert placed.command is not None
    machine.do(placed.command)
    assert len(machine.state.tasks) == jobs * count
    return machine


def test_a_rollout_whose_tasks_come_up_is_looked_at_in_short() -> None:
    machine = full_of_rollouts(1, 3)
    (one,) = machine.state.jobs.values()
    waits = only_waits(machine.state, one, machine.now_ms, frozenset())
    assert waits is not None
    assert waits.wake_at_ms == machine.now_ms + 60_000
    machine.now_ms += 60_000
    assert only_waits(machine.state, one, machine.now_ms, frozenset()) is None
    assert reconcile(machine.state, one, machine.now_ms).verdict is not None


def test_plans_that_are_cut_go_on_with_the_next_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten jobs of five tasks, and a plan looks at twenty: the third one is through, and knows when the
    first deadline of all is."""
    looks_at(monkeypatch, 20)
    machine = full_of_rollouts(10, 5)
    scheduler = Scheduler()
    plans = [scheduler.plan(machine.state, machine.now_ms, 1, str(n)) for n in range(3)]
    assert [plan.more for plan in plans] == [True, True, False]
    assert all(plan.command is None for plan in plans)
    assert plans[-1].wake_at_ms == machine.now_ms + 60_000


def test_many_small_jobs_are_placed_by_more_than_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "WANTS_MAX", 3)
    machine = Machine()
    machine.do(c.RegisterNode(facts("a", capacity=Resources(64_000, 64 * GIB, GIB))))
    for number in range(7):
        machine.submit(job(f"job-{number}", {"g": group()}))
    scheduler = Scheduler()
    placed: list[int] = []
    while True:
        plan = scheduler.plan(machine.state, machine.now_ms, 1, str(len(placed)))
        if plan.command is not None:
            placed.append(len(plan.command.placements))
            machine.do(plan.command)
        if not plan.more:
            break
    assert placed == [3, 3, 1]


def test_what_happens_between_two_slices_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of a job that this round has looked at already fails, and its slot waits again."""
    looks_at(monkeypatch, 20)
    machine = full_of_rollouts(10, 5)
    scheduler = Scheduler()
    assert scheduler.plan(machine.state, machine.now_ms, 1, "one").more
    (task, *_) = machine.state.tasks_of_job(JobId("0"))
    machine.report(task.id, "failed", released=True)
    machine.now_ms += 5_000
    made = scheduler.plan(machine.state, machine.now_ms, 1, "two")
    assert made.command is not None
    assert [(one.job_id, one.slots) for one in made.command.placements] == [("0", (task.slot,))]


@pytest.mark.parametrize("what", ["room", "port"])
def test_what_is_ahead_has_its_room_and_its_ports(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Two jobs of two tasks, and one has room for three, or is to have port 80 for itself. The second
    plan is made before the first one is applied."""
    monkeypatch.setattr(planning, "WANTS_MAX", 1)
    machine = Machine()
    machine.do(c.RegisterNode(facts("a", capacity=Resources(3_000, 64 * GIB, GIB))))
    for name in ("first", "second"):
        if what == "room":
            spec = group(count=2, resources=Resources(1_000, 0, 0))
        else:
            spec = group(ports={"http": PortSpec(host=80)})
        machine.submit(job(name, {"g": spec}))
    scheduler = Scheduler()
    one = scheduler.plan(machine.state, machine.now_ms, 1, "one")
    assert one.command is not None and one.more
    two = scheduler.plan(machine.state, machine.now_ms, 1, "two", ahead=one.command)
    placed = [] if two.command is None else [len(p.slots) for p in two.command.placements]
    assert placed == ([1] if what == "room" else [])
    for plan in (one, two):
        if plan.command is not None:
            outcome = machine.do(plan.command)
            assert isinstance(outcome, PlanApplied) and outcome.refused == ()
    # Nothing of it is remembered when the first one came to nothing.
    machine.do(c.StopJob("first"))
    first = machine.state.job_named("first")
    assert first is not None
    for task in machine.state.tasks_of_job(first.id):
        machine.report(task.id, "completed", exit_code=0, released=True)
    last = scheduler.plan(machine.state, machine.now_ms, 1, "three")
    assert last.command is not None
    assert [placement.job_id for placement in last.command.placements] == [
        job.id for job in machine.state.jobs.values() if job.name == "second"
    ]


def test_a_job_that_is_ahead_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_draft, "PLANNED_MAX", 20)
    machine = Machine()
    machine.do(c.RegisterNode(facts("a", capacity=Resources(64_000, 64 * GIB, GIB))))
    machine.submit(job("large", {"g": group(count=50)}))
    machine.submit(job("small", {"g": group(count=5)}))
    scheduler = Scheduler()
    one = scheduler.plan(machine.state, machine.now_ms, 1, "one")
    assert one.command is not None and one.more
    two = scheduler.plan(machine.state, machine.now_ms, 1, "two", ahead=one.command)
    assert two.command is not None
    large, small = one.command.placements, two.command.placements
    assert [len(p.slots) for p in (*large, *small)] == [20, 5]
    assert large[0].job_id != small[0].job_id


def test_a_less_important_job_does_not_take_the_room_of_one_that_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan was full in the middle of a job that needs all there is."""
    monkeypatch.setattr(plan_draft, "PLANNED_MAX", 20)
    machine = Machine()
    machine.do(c.RegisterNode(facts("a", capacity=Resources(30_000, 64 * GIB, GIB))))
    resources = Resources(1_000, 0, 0)
    machine.submit(job("large", {"g": group(count=30, resources=resources)}, priority=80))
    machine.submit(job("small", {"g": group(count=5, resources=resources)}, priority=20))
    scheduler = Scheduler()
    one = scheduler.plan(machine.state, machine.now_ms, 1, "one")
    assert one.command is not None and one.more
    two = scheduler.plan(machine.state, machine.now_ms, 1, "two", ahead=one.command)
    assert two.command is None and two.more
    machine.do(one.command)
    three = scheduler.plan(machine.state, machine.now_ms, 1, "three")
    assert three.command is not None
    machine.do(three.command)
    assert [task.job for task in machine.state.tasks.values()] == ["large"] * 30


def test_a_large_job_in_trouble_does_not_keep_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of its tasks fails between any two plans, and looking at it is all that a plan may do."""
    looks_at(monkeypatch, 100)
    machine = Machine()
    machine.do(c.RegisterNode(facts("a", capacity=Resources(64_000, 64 * GIB, GIB))))
    machine.submit(job("large", {"g": group(count=40)}))
    scheduler = Scheduler()
    plan = scheduler.plan(machine.state, machine.now_ms, 1, "first")
    assert plan.command is not None
    machine.do(plan.command)
    for task_id in sorted(machine.state.tasks):
        machine.report(task_id, "running")
    for number in range(3):
        machine.submit(job(f"small-{number}", {"g": group()}))
    ids = sorted(machine.state.tasks)
    for number in range(6):
        machine.report(ids[number], "failed", exit_code=1, released=True)
        machine.now_ms += 5_000
        plan = scheduler.plan(machine.state, machine.now_ms, 1, str(number))
        if plan.command is not None:
            machine.do(plan.command)
    placed = {task.job for task in machine.state.tasks.values()}
    assert placed == {"large", "small-0", "small-1", "small-2"}
    replaced = [task for task in machine.state.tasks.values() if task.id not in ids]
    assert sum(task.job == "large" for task in replaced) >= 3
