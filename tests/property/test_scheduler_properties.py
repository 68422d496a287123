"""The scheduler over generated clusters: exact, deterministic, never over-committing, at rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.model import codec
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import JobId, NodeId
from cube.model.launch import DriverInfo
from cube.model.lifecycle import Desired, NodeStatus, TaskState
from cube.model.outcome import PlanApplied
from cube.model.resources import Resources
from cube.model.spec import (
    Affinity,
    Constraint,
    DockerOptions,
    DriverName,
    JobSpec,
    JobType,
    MountSpec,
    MountType,
    Operator,
    Placement,
    PlacementPolicy,
    PortSpec,
    ReschedulePolicy,
)
from cube.scheduler import plan as planning
from cube.scheduler import plan_draft
from cube.scheduler.mirror import Mirror
from cube.scheduler.place import Placer
from cube.scheduler.plan import Scheduler
from cube.scheduler.plan_draft import PLAN_BYTES_MAX, PLANNED_MAX, Plan
from cube.scheduler.reconcile import reconcile
from cube.scheduler.want import Want
from cube.scheduler.why import explain
from cube.statemachine.invariants import overcommitted, violations
from tests.builders import Machine, facts, group, job
from tests.naive_placement import NaiveCluster

MIB = 1 << 20
NODES = [f"n{i}" for i in range(7)]
JOBS = ["alpha", "beta", "gamma", "delta"]


ALLOWING: list[dict[str, str]] = [
    {},
    {"allow": ""},
    {"allow": "gpus"},
    {"allow": "gpus,privileged"},
]


@st.composite
def node_facts(draw: st.DrawFn) -> c.RegisterNode:
    number = draw(st.integers(0, len(NODES) - 1))
    return c.RegisterNode(
        facts(
            NODES[number],
            advertise=f"host-{draw(st.sampled_from([number, number % 3]))}",
            capacity=Resources(
                draw(st.sampled_from([1000, 4000, 7000])),
                draw(st.sampled_from([512, 1000, 4096])) * MIB,
                draw(st.sampled_from([100, 10_000])) * MIB,
            ),
            labels={
                "zone": draw(st.sampled_from(["a", "b", "c"])),
                "rack": draw(st.sampled_from(["1", "2"])),
            },
            drivers={
                "process": DriverInfo("process", draw(st.integers(0, 9)) > 0),
                "docker": DriverInfo("docker", True, attributes=draw(st.sampled_from(ALLOWING))),
            },
            port_first=20000,
            port_last=draw(st.sampled_from([20002, 20020])),
        )
    )


ports = st.sampled_from(
    [
        {},
        {},
        {},
        {"p": PortSpec()},
        {"p": PortSpec(host=80)},
        {"b": PortSpec(), "a": PortSpec(host=20001)},
    ]
)
constraint = st.sampled_from(
    [
        Constraint("node.labels.zone", Operator.EQ, "a"),
        Constraint("node.labels.zone", Operator.NE, "b"),
        Constraint("node.labels.rack", Operator.LT, "2"),
    ]
)
affinity = st.builds(
    Affinity,
    attribute=st.just("node.labels.zone"),
    operator=st.just(Operator.EQ),
    value=st.sampled_from(["a", "b"]),
    weight=st.sampled_from([-100, -50, 50, 100]),
)
placement = st.builds(
    Placement,
    policy=st.sampled_from([None, *PlacementPolicy]),
    spread_over=st.sampled_from(
        [(), (), (), ("node.labels.zone",), ("node.labels.zone", "node.labels.rack")]
    ),
    max_per_node=st.sampled_from([0, 0, 1, 2]),
    constraints=st.one_of(st.just(()), st.tuples(constraint)),
    affinities=st.one_of(st.just(()), st.tuples(affinity)),
)
resources = st.builds(
    lambda cpu, memory, disk: Resources(cpu, memory * MIB, disk * MIB + 1),
    st.sampled_from([0, 1, 100, 333, 1500]),
    st.sampled_from([0, 1, 64, 300]),
    st.sampled_from([0, 0, 1000]),
)
groups = st.builds(
    lambda count, ports, resources, placement, command, volumes, driver: group(
        count=count,
        ports=ports,
        resources=resources,
        placement=placement,
        command=(command,),
        reschedule=ReschedulePolicy(delay_ms=1000),
        mounts=tuple(MountSpec(MountType.VOLUME, f"/{name}", name) for name in volumes),
        **driver,
    ),
    st.sampled_from([0, 1, 2, 3, 5, 9, 40]),
    ports,
    resources,
    placement,
    st.sampled_from(["one", "two"]),
    st.sampled_from(["", "", "", "u", "v", "uv"]),
    st.sampled_from(
        [
            {},
            {},
            {"driver": DriverName.DOCKER},
            {"driver": DriverName.DOCKER, "docker": DockerOptions(privileged=True, gpus="1")},
        ]
    ),
)
specs = st.builds(
    lambda name, type_, one, two, priority: job(
        name, {"one": one, "two": two}, type=type_, priority=priority
    ),
    st.sampled_from(JOBS),
    st.sampled_from([JobType.SERVICE, JobType.SERVICE, JobType.BATCH, JobType.SYSTEM]),
    groups,
    groups,
    st.sampled_from([10, 50]),
)
node_ids = st.sampled_from([NodeId(f"id-{name}") for name in NODES])
bodies = st.one_of(
    specs.map(lambda spec: c.SubmitJob(spec, JobId(f"job-{spec.name}"))),
    specs.map(lambda spec: c.SubmitJob(spec, JobId(f"job-{spec.name}"))),
    st.builds(c.StopJob, st.sampled_from(JOBS)),
    st.builds(c.SetEligibility, node_ids, st.booleans()),
    st.builds(c.SetDrain, node_ids, st.sampled_from([None, 0, 60_000])),
    st.builds(c.SetLabels, node_ids, st.sampled_from([{}, {"zone": "a"}])),
    st.builds(
        c.SetNodeStatus,
        st.just(1),
        node_ids,
        st.sampled_from([NodeStatus.READY, NodeStatus.DOWN, NodeStatus.SUSPECT]),
    ),
    st.builds(
        c.ChangeSettings,
        finished_per_slot=st.sampled_from([1, 2, 5]),
        finished_for_ms=st.sampled_from([0, 300_000]),
        finished_beyond_ms=st.sampled_from([0, 60_000]),
    ),
    node_facts(),
    st.sampled_from(["run", "run", "fail", "reject", "complete", "end", "wait"]),
)
seeds = st.lists(node_facts(), min_size=1, max_size=8)


def happen(machine: Machine, what: c.Body | str) -> None:
    """A command, or what the nodes report of their tasks, or time."""
    if not isinstance(what, str):
        machine.do(what)
        return
    machine.now_ms += 700
    if what == "wait":
        machine.now_ms += 60_000
    tasks = sorted(machine.state.tasks.values(), key=lambda task: task.id)
    for number, task in enumerate(tasks):
        if task.state is TaskState.LOST or task.ended:
            continue
        if task.desired is not Desired.RUN:
            if what == "end":
                machine.report(task.id, "completed", exit_code=0, released=True)
        elif what == "run":
            machine.report(task.id, "running", handle="1")
        elif what == "fail" and number % 3 == 0:
            machine.report(task.id, "failed", exit_code=1, released=True, reason="exited")
        elif what == "reject" and number % 3 == 0 and task.state is TaskState.SCHEDULED:
            machine.report(task.id, "rejected", released=True, reason="image_missing")
        elif what == "complete" and number % 2 == 0 and task.state is TaskState.RUNNING:
            machine.report(task.id, "completed", exit_code=0, released=True)


def wants_of(state: ClusterState, now_ms: int) -> list[Want]:
    order = sorted(
        state.jobs.values(),
        key=lambda one: (-one.spec.priority, one.created_at_ms, one.name, one.id),
    )
    return [want for one in order for want in reconcile(state, one, now_ms).wants]


def check_choices(state: ClusterState, now_ms: int, plan: Plan) -> None:
    """Every placement is the one that looking at every node for every task would have made."""
    naive = NaiveCluster(state)
    placed = list(plan.command.placements) if plan.command else []
    nodes = plan.command.nodes if plan.command else ()
    for want in wants_of(state, now_ms):
        mine = None
        if (
            placed
            and (placed[0].job_id, placed[0].group) == (want.job.id, want.group)
            and set(placed[0].slots) <= set(want.slots)
        ):
            mine = placed.pop(0)
        hosts = mine.ports if mine is not None and mine.ports else None
        slots = () if mine is None else mine.slots
        if not want.only_on:
            assert slots == want.slots[: len(slots)]
        for at, slot in enumerate(slots):
            assert mine is not None
            node_id = nodes[mine.node_at[at]]
            if want.only_on:
                assert node_id == want.only_on[want.slots.index(slot)]
                assert naive.fits(want, state.nodes[node_id], naive.on_node(want))
            else:
                assert naive.best(want) == node_id
            naive.take(want, node_id, hosts[at] if hosts else ())
        for slot in want.slots:
            if slot in slots:
                continue
            if want.only_on:
                only = state.nodes[want.only_on[want.slots.index(slot)]]
                assert not naive.fits(want, only, naive.on_node(want))
            else:
                assert naive.best(want) is None
    assert not placed


def check_applies(machine: Machine, plan: Plan) -> None:
    """Nothing of it is refused, nothing is given twice, and a second plan places nothing more."""
    if plan.command is not None:
        assert len(codec.encode(plan.command)) <= PLAN_BYTES_MAX
        outcome = machine.do(plan.command)
        assert isinstance(outcome, PlanApplied)
        assert outcome.refused == ()
    assert violations(machine.state) == []
    again = Scheduler().plan(machine.state, machine.now_ms, 1, "again")
    assert again.command is None or not again.command.placements
    for name in JOBS:
        for one in explain(machine.state, machine.now_ms, name):
            assert one.kind in ("unplaced", "waiting", "failing", "stopped")
            assert "about to be placed" not in one.summary


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(bodies, min_size=1, max_size=14))
def test_choices_are_exact_and_the_cache_is_transparent(
    nodes: list[c.RegisterNode], steps: list[c.Body | str]
) -> None:
    machine = Machine()
    for node in nodes:
        machine.do(node)
    used = Scheduler()
    for number, step in enumerate(steps):
        happen(machine, step)
        state, now_ms = machine.state, machine.now_ms
        plan = used.plan(state, now_ms, 1, f"seed-{number}")
        assert plan == Scheduler().plan(state, now_ms, 1, f"seed-{number}")
        check_choices(state, now_ms, plan)
        if number % 4 != 3:  # now and then a plan is lost on its way
            check_applies(machine, plan)


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(bodies, min_size=1, max_size=14))
def test_notes_change_nothing_but_the_work(
    nodes: list[c.RegisterNode], steps: list[c.Body | str]
) -> None:
    machine = Machine()
    for node in nodes:
        machine.do(node)
    noted = Scheduler()
    before, seen = machine.state, len(machine.steps)
    for number, step in enumerate(steps):
        happen(machine, step)
        for applied in machine.steps[seen:]:
            noted.note(before, applied.state, applied.events)
            before = applied.state
        seen = len(machine.steps)
        plan = noted.plan(machine.state, machine.now_ms, 1, f"seed-{number}")
        assert plan == Scheduler().plan(machine.state, machine.now_ms, 1, f"seed-{number}")
        if plan.command is not None:
            machine.do(plan.command)


submissions = specs.map(lambda spec: c.SubmitJob(spec, JobId(f"job-{spec.name}")))


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.lists(st.lists(submissions | bodies, min_size=3, max_size=6), min_size=1, max_size=4),
    st.sampled_from([("WANTS_MAX", 1), ("WANTS_MAX", 2), ("PLANNED_MAX", 3), ("PLANNED_MAX", 7)]),
)
def test_a_plan_that_reckons_with_the_one_ahead_of_it_is_as_good(
    nodes: list[c.RegisterNode], steps: list[list[c.Body | str]], bound: tuple[str, int]
) -> None:
    """Both are made of one state and applied one after the other, and nothing of them is refused;
    in the end everything is placed that could be."""
    machine = Machine()
    for node in nodes:
        machine.do(node)
    used = Scheduler()
    module = planning if bound[0] == "WANTS_MAX" else plan_draft
    with mock.patch.object(module, *bound), mock.patch.object(plan_draft, "_LEAST", 1):
        for number, together in enumerate(steps):
            for step in together:
                happen(machine, step)
            more = True
            while more:
                seed = f"seed-{number}-{len(machine.steps)}"
                state, now_ms = machine.state, machine.now_ms
                made = [used.plan(state, now_ms, 1, seed)]
                more, first = made[0].more, made[0].command
                if more and first is not None:
                    made.append(used.plan(state, now_ms, 1, seed + "-next", ahead=first))
                for plan in made:
                    if plan.command is not None:
                        outcome = machine.do(plan.command)
                        assert isinstance(outcome, PlanApplied)
                        assert outcome.refused == ()
                assert violations(machine.state) == []
    while (left := used.plan(machine.state, machine.now_ms, 1, "last")).command is not None:
        check_applies(machine, left)
        if not left.more:
            break


@pytest.mark.parametrize("policy", list(PlacementPolicy))
@pytest.mark.parametrize("count", [1, 2, 29, 150, 400])
@pytest.mark.parametrize("kind", [JobType.SERVICE, JobType.BATCH])
def test_choices_are_exact_where_groups_are_larger_than_the_cluster(
    policy: PlacementPolicy, count: int, kind: JobType
) -> None:
    machine = Machine()
    for i in range(30):
        capacity = Resources(1000 * (1 + i % 7), (1 + i % 5) * 1024 * MIB, 0)
        machine.do(c.RegisterNode(facts(f"node-{i:02}", capacity=capacity)))
    scheduler = Scheduler()
    for number, (cpu, memory) in enumerate([(50, 100), (700, 1), (0, 0), (1, 64)]):
        shape = group(
            count=count,
            resources=Resources(cpu, memory * MIB, 0),
            placement=Placement(policy=policy),
        )
        machine.submit(job(f"job-{number}", {"g": shape}, type=kind))
        plan = scheduler.plan(machine.state, machine.now_ms, 1, f"seed-{number}")
        check_choices(machine.state, machine.now_ms, plan)
        assert plan.command is not None
        machine.do(plan.command)
    assert overcommitted(machine.state) == []


@settings(max_examples=60, deadline=None)
@given(seeds, specs, st.sets(node_ids, max_size=4))
def test_nodes_with_trouble_are_chosen_last_and_else_as_any(
    nodes: list[c.RegisterNode], spec: JobSpec, trouble: set[NodeId]
) -> None:
    machine = Machine()
    for node in nodes:
        machine.do(node)
    machine.submit(spec)
    naive, mirror = NaiveCluster(machine.state), Mirror()
    mirror.sync(machine.state)
    placer = Placer(mirror, machine.state.settings.policy, "seed")
    for made in wants_of(machine.state, machine.now_ms):
        want = msgspec.structs.replace(made, troubled=tuple(sorted(trouble)))
        if want.only_on:
            continue
        picks = placer.place(want, len(want.slots))
        for at, row in enumerate(picks.rows):
            assert naive.best(want) == mirror.ids[row]
            naive.take(want, mirror.ids[row], picks.ports[at] if picks.ports else ())
        if len(picks.slots) < len(want.slots):
            assert naive.best(want) is None


_SCRIPT = """
import hashlib, sys
from cube.model import codec
from cube.model import commands as c
from cube.model.spec import Affinity, JobType, Placement, PortSpec
from cube.scheduler.plan import Scheduler
from tests.builders import Machine, facts, group, job
machine = Machine()
for i in range(40):
    machine.do(c.RegisterNode(facts(f"n{i}", labels={"zone": str(i % 3)})))
for i in range(12):
    spread = ("node.labels.zone",) if i % 2 else ()
    shape = group(count=i * 3, ports={"p": PortSpec(), "q": PortSpec()},
                  placement=Placement(spread_over=spread))
    kind = JobType.SYSTEM if i % 5 == 4 else JobType.SERVICE
    machine.submit(job(f"job-{i}", {"a": shape, "b": shape}, type=kind))
plan = Scheduler().plan(machine.state, machine.now_ms, 1, "seed")
print(hashlib.sha256(codec.encode(plan)).hexdigest())
"""


def test_a_plan_is_the_same_under_any_hash_seed() -> None:
    root = Path(__file__).parents[2]
    digests = set()
    for hash_seed in ("1", "2"):
        environment: dict[str, Any] = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(root),
        }
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_full_plan_says_so_and_the_rest_follows() -> None:
    machine = Machine()
    for i in range(3000):
        machine.do(
            c.RegisterNode(
                facts(
                    f"n{i}",
                    id=NodeId(f"{i:036}"),
                    capacity=Resources(64_000, 1 << 40, 0),
                )
            )
        )
    small = group(count=25_000, resources=Resources(1, MIB, 0), ports={"p": PortSpec()})
    machine.submit(job("many", {"g": small}))
    scheduler = Scheduler()
    sizes = []
    for number in range(10):
        plan = scheduler.plan(machine.state, machine.now_ms, 1, f"seed-{number}")
        if plan.command is None:
            break
        assert len(codec.encode(plan.command)) <= PLAN_BYTES_MAX
        sizes.append(sum(len(one.slots) for one in plan.command.placements))
        assert sizes[-1] <= PLANNED_MAX
        machine.do(plan.command)
        assert plan.more or sum(sizes) == 25_000
    assert sum(sizes) == 25_000
    assert min(sizes[:-1]) == PLANNED_MAX
    assert len(machine.state.tasks) == 25_000
    assert msgspec.to_builtins(violations(machine.state)) == []
