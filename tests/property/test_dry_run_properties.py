"""What a dry run says is what the run does, when nothing else happens in between: random clusters with
a past, random commands; the run is a loop of its own, with other ids and seeds."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState, Task
from cube.model.deployment import DeploymentAction, DeploymentStatus
from cube.model.dryrun import DryRun
from cube.model.ids import JobId
from cube.model.launch import DriverInfo
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.outcome import Done, JobAccepted, PlanApplied
from cube.model.resources import Resources
from cube.model.spec import (
    Affinity,
    CheckSpec,
    CheckType,
    Constraint,
    GroupSpec,
    JobSpec,
    JobType,
    MountSpec,
    MountType,
    OnPartition,
    Operator,
    Placement,
    PlacementPolicy,
    PortSpec,
    UpdateOrder,
    UpdatePolicy,
)
from cube.scheduler.plan import Scheduler
from cube.scheduler.restart import completed_by_itself
from cube.scheduler.why import explain
from cube.services.dry_run import foresee
from cube.statemachine.invariants import violations
from tests.builders import Machine, facts, group, job

MIB = 1 << 20
PORTS: list[dict[str, PortSpec]] = [
    {},
    {},
    {},
    {"p": PortSpec()},
    {"p": PortSpec(host=80)},
    {"b": PortSpec(), "a": PortSpec(host=20001)},
    {"a": PortSpec(host=20003)},
]
CHECK = CheckSpec("up", CheckType.EXEC, command=("true",))
VOLUME = MountSpec(MountType.VOLUME, "/data", "data")
DAY_MS = 24 * 3_600_000


class World(Machine):
    """A cluster with its leader and its workers. `seed` makes the ids and the ports."""

    def __init__(self, seed: str, state: ClusterState | None = None, now_ms: int = 0) -> None:
        super().__init__(state=state)
        self.seed = seed
        self.now_ms = now_ms or self.now_ms
        self.scheduler = Scheduler()
        self.plans = 0

    def plan(self) -> int | None:
        """When the scheduler wants to be asked again. The plan is applied, whole, but for verdicts
        on what does not come up: nothing is taken back, or paused."""
        self.plans += 1
        seed = f"{self.seed}-{self.plans}"
        plan = self.scheduler.plan(self.state, self.now_ms, self.term, seed)
        if plan.command is not None:
            good = [v for v in plan.command.deployments if v.status is DeploymentStatus.SUCCESSFUL]
            outcome = self.do(msgspec.structs.replace(plan.command, deployments=tuple(good)))
            assert isinstance(outcome, PlanApplied) and outcome.refused == (), outcome
        return plan.wake_at_ms

    def work(self) -> None:
        """Every node that is there does what is wanted, and all goes well."""
        for task in sorted(self.state.tasks.values(), key=lambda task: task.id):
            status = self.state.nodes[task.node_id].status
            if task.released or status in (NodeStatus.DOWN, NodeStatus.LEFT):
                continue
            if task.state is TaskState.LOST and task.desired is Desired.RUN:
                self.say(task, "running")
            elif task.ended:
                self.say(task, task.state.value, released=True, exit_code=task.exit_code)
            elif task.desired is not Desired.RUN:
                self.say(task, "stopping")
                self.say(task, "completed", released=True, exit_code=143)
            elif task.state is TaskState.PENDING and task.attempt > 1:
                pass  # it fails, and is not supposed to mend
            elif task.state is not TaskState.RUNNING or task.health is Health.UNKNOWN:
                self.say(task, "running")

    def say(self, task: Task, state: str, **changes: Any) -> None:
        self.report(task.id, state, task.attempt, health=Health.HEALTHY, **changes)

    def settle(self, ms: int = 0) -> None:
        """Nothing is left to do now, nor within `ms`."""
        ends_at_ms = self.now_ms + ms
        for _ in range(3_000):
            before = self.state
            wake_at_ms = self.plan()
            self.work()
            if (self.state.tasks, self.state.jobs) != (before.tasks, before.jobs):
                continue
            if wake_at_ms is None or wake_at_ms > ends_at_ms:
                return
            self.now_ms = wake_at_ms
        raise AssertionError("the cluster does not come to rest")


def some_node(dice: random.Random, number: int, hosts: int) -> c.RegisterNode:
    return c.RegisterNode(
        facts(
            f"n{number:02}",
            advertise=f"host-{number % hosts}",
            capacity=Resources(
                dice.choice((2000, 4000, 8000)), dice.choice((512, 1000, 4000)) * MIB, 1 << 33
            ),
            labels={"zone": dice.choice("abc"), "rack": dice.choice("12")},
            drivers={"process": DriverInfo("process", dice.random() > 0.1)},
            port_first=20000,
            port_last=20012,
        )
    )


def some_group(dice: random.Random, depends_on: tuple[str, ...] = ()) -> GroupSpec:
    zone, rack = "node.labels.zone", "node.labels.rack"
    count = dice.choice((0, 1, 1, 2, 3, 5, 9))
    return group(
        count=count,
        command=(dice.choice(("one", "two", "three")),),
        ports=dice.choice(PORTS),
        checks=dice.choice(((), (CHECK,))),
        mounts=dice.choice(((), (), (), (VOLUME,))),
        depends_on=depends_on,
        at_most_one=count <= 1 and dice.random() > 0.6,
        on_partition=dice.choice((OnPartition.KEEP, OnPartition.KEEP, OnPartition.STOP)),
        resources=Resources(
            dice.choice((0, 10, 100, 333, 1500)), dice.choice((1, 8, 64, 300)) * MIB, 0
        ),
        update=UpdatePolicy(
            parallelism=dice.choice((1, 2, 5)),
            min_healthy_ms=dice.choice((0, 9, 10_000)),
            order=dice.choice(list(UpdateOrder)),
            canaries=dice.choice((0, 0, 1, 2)),
        ),
        placement=Placement(
            policy=dice.choice([None, *PlacementPolicy]),
            spread_over=dice.choice(((), (), (zone,), (zone, rack))),
            max_per_node=dice.choice((0, 0, 0, 1, 2)),
            constraints=dice.choice(((), (), (Constraint(zone, Operator.NE, "a"),))),
            affinities=dice.choice(((), (Affinity(rack, Operator.EQ, "1", 50),))),
        ),
    )


def some_job(dice: random.Random) -> JobSpec:
    kind = dice.choice([JobType.SERVICE] * 5 + [JobType.BATCH, JobType.SYSTEM])
    groups = {"a": some_group(dice)}
    if dice.random() > 0.6:
        groups["b"] = some_group(dice, dice.choice(((), ("a",))))
    number = dice.randrange(5)
    return job(f"{kind.value}-{number}", groups, type=kind, priority=dice.choice((10, 50, 90)))


def some_past(dice: random.Random) -> World:
    world = World("past")
    world.do(c.ChangeSettings(preemption=dice.random() > 0.5))
    nodes = dice.choice((2, 4, 9))
    hosts = dice.choice((nodes, nodes, nodes // 2))
    for number in range(nodes):
        world.do(some_node(dice, number, hosts))
    for _ in range(dice.randrange(14)):
        world.now_ms += dice.choice((10, 5_000, 60_000))
        node_id = dice.choice(sorted(world.state.nodes))
        match dice.randrange(12):
            case 0:
                status = dice.choice((NodeStatus.READY, NodeStatus.DOWN, NodeStatus.SUSPECT))
                world.do(c.SetNodeStatus(1, node_id, status))
            case 1:
                world.do(c.SetEligibility(node_id, dice.random() > 0.4))
            case 2:
                world.do(c.SetDrain(node_id, dice.choice((None, 0, 5_000))))
            case 3:
                running = [t for t in world.state.tasks.values() if t.state is TaskState.RUNNING]
                for task in sorted(running, key=lambda task: (task.name, task.created_at_ms)):
                    if dice.random() > 0.7:
                        state = dice.choice(("failed", "completed"))
                        world.report(task.id, state, task.attempt, exit_code=1, released=True)
            case 4:
                placed = [t for t in world.state.tasks.values() if t.state is TaskState.SCHEDULED]
                for task in sorted(placed, key=lambda task: (task.name, task.created_at_ms)):
                    world.report(task.id, "rejected", reason="image", released=True)
            case _:
                world.submit(some_job(dice))
        if dice.random() > 0.3:
            world.plan()
        if dice.random() > 0.3:
            world.work()
    if dice.random() > 0.3:
        world.settle()
    assert violations(world.state) == []
    return world


Seen = dict[tuple[str, int], tuple[str, str]]


def what_was_said(said: DryRun, name: str) -> Seen:
    """(group, slot) → (kind of move, node), in-place updates apart."""
    [effect] = [one for one in said.jobs if one.job == name]
    found: Seen = {}
    for move in effect.moves:
        kind = "unplaced or stopped"
        if move.node:
            kind = "replace" if move.came_from else "create"
        found[move.group, move.slot] = (kind, move.node)
    return found


def what_happened(before: ClusterState, after: ClusterState, job_id: JobId) -> tuple[Seen, int]:
    """The same, read off the states; and how many tasks are of another version now."""
    slots: dict[tuple[str, int], list[Task]] = {}
    for task in after.tasks_of_job(job_id):
        slots.setdefault((task.group, task.slot), []).append(task)
    found: Seen = {}
    in_place = 0
    old_live = {(t.group, t.slot): t for t in before.tasks_of_job(job_id) if t.live}
    for key in sorted({*slots, *old_live}):
        there = sorted(slots.get(key, []), key=lambda task: task.fence)
        stays = [t for t in there if t.live or (t is there[-1] and completed_by_itself(t))]
        old, new = old_live.get(key), stays[-1] if stays else None
        if new is None:
            if old is not None:
                found[key] = ("unplaced or stopped", "")
        elif new.id not in before.tasks:
            kind = "create" if old is None else "replace"
            found[key] = (kind, after.nodes[new.node_id].name)
        elif old is not None and new.id == old.id and new.version != old.version:
            in_place += 1
    return found, in_place


def waits_only_for_itself(world: World, name: str) -> bool:
    """Everything that can has its place, and some group waits for others to complete."""
    found = explain(world.state, world.now_ms, name)
    codes = {reason.code for one in found for reason in one.reasons}
    return "depends_on" in codes and all(one.kind != "unplaced" for one in found)


def check(said: DryRun, name: str, before: ClusterState, world: World) -> None:
    found = world.state.job_named(name)
    assert found is not None
    seen, in_place = what_happened(before, world.state, found.id)
    told = what_was_said(said, name)
    [effect] = [one for one in said.jobs if one.job == name]
    assert {key: value for key, value in told.items() if key in seen or value[1]} == seen
    counts = effect.groups.values()
    assert sum(one.update_in_place for one in counts) == in_place
    kinds = [kind for kind, _ in seen.values()]
    assert sum(one.create for one in counts) == kinds.count("create")
    assert sum(one.replace for one in counts) == kinds.count("replace")
    assert sum(one.stop + one.unplaced for one in counts) >= kinds.count("unplaced or stopped")
    if found.spec.type is JobType.SERVICE:
        for group_name, spec in found.spec.groups.items():
            live = [
                task
                for task in world.state.tasks_of_job(found.id)
                if task.live and task.group == group_name and task.slot < spec.count
            ]
            unplaced = effect.groups[group_name].unplaced if group_name in effect.groups else 0
            filled = {task.slot for task in live}
            newest = {task.slot for task in live if task.version == found.version}
            # Start-first, the old task stays where the new one finds no place.
            assert spec.count - len(filled) <= unplaced <= spec.count - len(newest)


@pytest.mark.parametrize("seed", range(120))
def test_a_job_goes_where_the_plan_said(seed: int) -> None:
    dice = random.Random(seed)
    past = some_past(dice)
    before, spec = past.state, some_job(dice)
    submit = c.SubmitJob(spec, JobId("whatever"))
    said = foresee(before, past.now_ms, submit)
    assert said == foresee(before, past.now_ms, submit)
    assert said.cut == ""
    run = World(f"run-{seed}", before, past.now_ms)
    outcome = run.do(c.SubmitJob(spec, JobId(f"id-{seed}")))
    if not isinstance(outcome, JobAccepted):
        assert said.outcome == outcome
        return
    assert isinstance(said.outcome, JobAccepted)
    assert (said.outcome.version, said.outcome.changed) == (outcome.version, outcome.changed)
    # How long a batch takes nobody knows; a dry run takes no time for it.
    run.settle(0 if spec.type is JobType.BATCH and len(spec.groups) > 1 else DAY_MS)
    while run.do(c.SteerDeployment(spec.name, outcome.version, DeploymentAction.PROMOTE)) == Done():
        run.settle(DAY_MS)
    while spec.type is JobType.BATCH and waits_only_for_itself(run, spec.name):
        for task in sorted(run.state.tasks.values(), key=lambda task: task.id):
            if task.job == spec.name and task.live and task.serving:
                run.say(task, "completed", released=True, exit_code=0)
        run.settle(DAY_MS)
    check(said, spec.name, before, run)


@pytest.mark.parametrize("seed", range(80))
def test_a_node_that_is_drained_or_lost_leaves_what_the_plan_said(seed: int) -> None:
    dice = random.Random(seed)
    past = some_past(dice)
    past.settle()
    before = past.state
    node_id = dice.choice(sorted(before.nodes))
    run = World(f"run-{seed}", before, past.now_ms)
    drain, loss = c.SetDrain(node_id, 600_000), c.SetNodeStatus(1, node_id, NodeStatus.DOWN)
    command: c.SetDrain | c.SetNodeStatus = drain if seed % 2 else loss
    said = foresee(before, past.now_ms, command)
    run.do(command)
    assert said.cut == ""
    run.settle(DAY_MS)
    names = {task.job for task in before.tasks_of_node(node_id) if not task.ended}
    assert names <= {effect.job for effect in said.jobs}
    for name in sorted(names):
        check(said, name, before, run)
