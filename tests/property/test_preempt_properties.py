"""Preemption on small clusters, compared with all that could have been done."""

from __future__ import annotations

import itertools
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import commands as c
from cube.model.cluster import ClusterState, Task
from cube.model.lifecycle import Desired, TaskState
from cube.model.resources import Resources
from cube.model.spec import GroupSpec, JobSpec, JobType, UpdatePolicy
from cube.scheduler.plan import Scheduler
from cube.scheduler.preempt import DELTA, VICTIMS_MAX, Preemption
from cube.scheduler.want import Want
from cube.statemachine.invariants import violations
from tests.builders import Machine, facts, group, job

sizes = st.builds(
    lambda cpu, memory: Resources(cpu, memory << 20, 0),
    st.sampled_from([0, 500, 1000, 2000]),
    st.sampled_from([1, 256, 512]),
)
shapes = st.builds(
    lambda count, resources, away: group(
        count=count, resources=resources, update=UpdatePolicy(parallelism=away)
    ),
    st.integers(0, 3),
    sizes,
    st.integers(1, 3),
)


def specs(name: str) -> st.SearchStrategy[JobSpec]:
    return st.builds(
        lambda g, h, priority, type_: job(name, {"g": g, "h": h}, priority=priority, type=type_),
        shapes,
        shapes,
        st.sampled_from([10, 20, 49, 50, 60]),
        st.sampled_from([JobType.SERVICE, JobType.SERVICE, JobType.BATCH, JobType.SYSTEM]),
    )


def cluster(nodes: int, jobs: list[JobSpec], dead: int) -> Machine:
    """Full of running tasks, of which every `dead`-th has not come up."""
    machine = Machine()
    for number in range(nodes):
        capacity = Resources(2000 + 1000 * (number % 2), 1 << 30, 0)
        machine.do(c.RegisterNode(facts(f"n{number}", capacity=capacity)))
    machine.do(c.ChangeSettings(preemption=True))
    for number, spec in enumerate(jobs):
        machine.now_ms += 1000
        machine.submit(spec)
        plan = Scheduler().plan(machine.state, machine.now_ms, 1, f"seed-{number}")
        if plan.command is not None:
            machine.do(msgspec.structs.replace(plan.command, stops=()))
    for at, task in enumerate(sorted(machine.state.tasks.values(), key=lambda task: task.id)):
        if at % dead:
            machine.report(task.id, "running", handle="1")
    return machine


def promised(state: ClusterState, tasks: tuple[Task, ...]) -> bool:
    """Every service group has count − parallelism serving tasks when these are gone."""
    gone = {task.id for task in tasks}
    for task in tasks:
        of_job = state.jobs[task.job_id]
        if of_job.spec.type is JobType.SYSTEM:
            return False
        if of_job.spec.type is JobType.BATCH:
            continue
        spec = of_job.spec.groups[task.group]
        left = {
            other.slot
            for other in state.tasks_of_job(task.job_id)
            if other.group == task.group and other.live and other.serving and other.id not in gone
        }
        # What does not serve counts as if it did: it may be about to.
        idle = sum(1 for one in tasks if one.group == task.group and not one.serving
                   and one.job_id == task.job_id)  # fmt: skip
        if len(left) - idle < spec.count - spec.update.parallelism:
            return False
    return True


def rank(state: ClusterState, tasks: tuple[Task, ...]) -> tuple[int, list[int], list[int]]:
    priorities = sorted((state.jobs[task.job_id].spec.priority for task in tasks), reverse=True)
    return len(tasks), priorities, [-at for at in sorted(task.created_at_ms for task in tasks)]


def best_of_all(
    state: ClusterState, priority: int, need: Resources
) -> tuple[int, list[int], list[int]] | None:
    found = []
    for node in state.nodes.values():
        tasks = [
            task
            for task in state.tasks_of_node(node.id)
            if task.live and state.jobs[task.job_id].spec.priority <= priority - DELTA
        ]
        for count in range(1, VICTIMS_MAX + 1):
            for chosen in itertools.combinations(tasks, count):
                free = state.free(node)
                for task in chosen:
                    free = free + task.resources
                if need.fits_in(free) and promised(state, chosen):
                    found.append(rank(state, chosen))
    return min(found, default=None)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 3),
    st.tuples(specs("one"), specs("two"), specs("three")),
    st.integers(2, 5),
    st.sampled_from([15, 30, 50, 59, 60, 100]),
    st.sampled_from([Resources(1000, 1 << 20, 0), Resources(2000, 600 << 20, 0)]),
)
def test_the_victims_are_the_best_that_suffice(
    nodes: int, jobs: tuple[JobSpec, ...], dead: int, priority: int, need: Resources
) -> None:
    state = cluster(nodes, list(jobs), dead).state
    if any(need.fits_in(state.free(node)) for node in state.nodes.values()):
        return  # nobody preempts where there is room
    spec = job("high", {"g": group(resources=need)}, priority=priority)
    machine = Machine(state=state)
    machine.submit(spec)
    high = machine.state.job_named("high")
    assert high is not None
    want = Want(job=high, group="g", spec=spec.groups["g"], slots=(0,))
    free = {node.id: state.free(node) for node in state.nodes.values()}
    order = sorted(free)
    chosen = tuple(Preemption(machine.state, 0, free.__getitem__, order).make_room(want, 1))
    best = best_of_all(machine.state, priority, need)
    if best is None:
        assert chosen == ()
        return
    assert rank(machine.state, chosen) == best
    [node_id] = {task.node_id for task in chosen}
    for kept in range(len(chosen)):  # none is spared in vain
        left = free[node_id]
        for task in chosen[:kept] + chosen[kept + 1 :]:
            left = left + task.resources
        assert not need.fits_in(left)
    back = tuple(Preemption(machine.state, 0, free.__getitem__, order[::-1]).make_room(want, 1))
    assert rank(machine.state, back) == best


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.tuples(specs("one"), specs("two"), specs("three")),
    st.tuples(shapes, shapes),
    st.integers(2, 5),
)
def test_no_promise_is_broken_in_the_long_run_and_it_comes_to_rest(
    nodes: int, jobs: tuple[JobSpec, ...], high: tuple[GroupSpec, GroupSpec], dead: int
) -> None:
    machine = cluster(nodes, list(jobs), dead)
    machine.submit(job("high", {"g": high[0], "h": high[1]}, priority=100))
    scheduler = Scheduler()
    taken: Counter[str] = Counter()
    for number in range(60):
        before = machine.state
        plan = scheduler.plan(before, machine.now_ms, 1, f"again-{number}")
        if plan.command is not None:
            machine.do(plan.command)
            assert violations(machine.state) == []
        told = tuple(
            before.tasks[task_id]
            for task_id in sorted(machine.state.preempted)
            if task_id not in before.preempted
        )
        assert promised(before, told)
        for task in told:
            by = machine.state.tasks[task.id].preempted_by.partition(".")[0]
            preemptor = machine.state.job_named(by)
            assert preemptor is not None
            victim = before.jobs[task.job_id].spec.priority
            assert victim <= preemptor.spec.priority - DELTA
            taken[task.name] += 1
        happened = obey(machine)
        machine.now_ms += 1000
        if plan.command is None and not happened:
            break
    else:
        raise AssertionError(f"no rest: {taken}")


def obey(machine: Machine) -> bool:
    """One task ends or comes up at a time."""
    for task in sorted(machine.state.tasks.values(), key=lambda task: task.id):
        if task.ended:
            continue
        if task.desired is not Desired.RUN:
            machine.report(task.id, "completed", exit_code=143, released=True)
            return True
        if task.state is TaskState.SCHEDULED:
            machine.report(task.id, "running", handle="1")
            return True
    return False
