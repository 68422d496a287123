"""Placements per second of the scheduler beside the naive loop, and what the mirror weighs.

Workload: services of 1–1,000 tasks of twenty shapes, a third with a constraint, one in eight spread
over three zones, all spread over nodes by the default policy; nodes of three sizes, a third loaded.
`with_wishes`: the same, half with an affinity or an aversion and priorities from 10 to 90.
A run is timed from the state to all plans made; each plan is applied (not timed) before the next.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import immutables
import msgspec

from cube.model import commands as c
from cube.model.cluster import ClusterState, Job, JobVersion, Node
from cube.model.ids import CommandId, JobId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.resources import NOTHING, Resources
from cube.model.spec import Affinity, Constraint, GroupSpec, JobSpec, JobType, Operator, Placement
from cube.scheduler import score
from cube.scheduler.attributes import satisfies
from cube.scheduler.plan import Scheduler
from cube.statemachine.apply import Step, apply
from tests.builders import facts, group

GIB = 1 << 30
NOW_MS = 1_700_000_000_000
SIZES = (Resources(32_000, 64 * GIB), Resources(64_000, 128 * GIB), Resources(64_000, 256 * GIB))


def cluster(count: int, seed: int = 1) -> ClusterState:
    """`count` ready nodes, a third of them part used."""
    dice = random.Random(seed)
    nodes: dict[NodeId, Node] = {}
    reserved: dict[NodeId, Resources] = {}
    for number in range(count):
        capacity = SIZES[number % 3]
        one = facts(
            f"node-{number:05}",
            id=NodeId(f"{dice.getrandbits(128):032x}"),
            capacity=capacity,
            labels={"zone": "abc"[number % 3], "disk": dice.choice(("ssd", "hdd"))},
        )
        nodes[one.id] = Node(id=one.id, name=one.name, facts=one, status=NodeStatus.READY)
        if number % 3 == 0:
            reserved[one.id] = Resources(
                capacity.cpu_milli * dice.randrange(50) // 100,
                capacity.memory_bytes * dice.randrange(50) // 100,
            )
    return ClusterState(
        nodes=immutables.Map(nodes),
        node_names=immutables.Map({node.name: node.id for node in nodes.values()}),
        reserved=immutables.Map(reserved),
        term=1,
    )


def shapes(dice: random.Random) -> list[GroupSpec]:
    found = []
    for number in range(20):
        constraints: tuple[Constraint, ...] = ()
        if number % 3 == 0:
            constraints = (Constraint("node.labels.disk", Operator.EQ, "ssd"),)
        spread = ("node.labels.zone",) if number % 8 == 1 else ()
        found.append(
            group(
                resources=Resources(dice.randrange(10, 200), dice.randrange(16, 400) << 20),
                placement=Placement(constraints=constraints, spread_over=spread),
            )
        )
    return found


WISHES = (
    Affinity("node.labels.disk", Operator.EQ, "ssd", 50),
    Affinity("node.labels.zone", Operator.EQ, "b", -30),
)


def wishing(template: GroupSpec, number: int) -> GroupSpec:
    if number % 4 > 1:
        return template
    placement = msgspec.structs.replace(template.placement, affinities=(WISHES[number % 4],))
    return msgspec.structs.replace(template, placement=placement)


def with_jobs(
    state: ClusterState, counts: list[int], seed: int, wishes: bool = False
) -> ClusterState:
    """A job of one group for each count, none of it placed."""
    dice = random.Random(seed)
    templates = shapes(dice)
    if wishes:
        templates = [wishing(template, number) for number, template in enumerate(templates)]
    jobs: dict[JobId, Job] = {}
    for number, count in enumerate(counts):
        template = templates[number % len(templates)]
        spec = JobSpec(
            f"job-{number:05}",
            JobType.SERVICE,
            {"g": msgspec.structs.replace(template, count=count)},
            priority=10 + number * 7 % 81 if wishes else 50,
        )
        job = Job(
            id=JobId(f"{number:08}"),
            name=spec.name,
            versions=(JobVersion(1, spec, NOW_MS),),
            created_at_ms=NOW_MS + number,
        )
        jobs[job.id] = job
    return msgspec.structs.replace(
        state,
        jobs=immutables.Map(jobs),
        job_names=immutables.Map({job.name: job.id for job in jobs.values()}),
    )


def applied(state: ClusterState, plan: c.ApplyPlan, number: int) -> Step:
    command = c.Command(CommandId(f"plan-{number}"), plan)
    return apply(state, c.Entry(state.index + 1, 1, NOW_MS, command))


def planned(state: ClusterState, seed: int) -> tuple[int, float, int]:
    """(placements, processor seconds in plan(), plans) until nothing is left to place.

    Processor time, not wall time: plan() waits for nothing, and the machine may be shared. The
    scheduler has seen the cluster before, as a leader's has; `cold_ms` is what that costs."""
    scheduler = Scheduler()
    scheduler.plan(with_jobs(state, [1] * 20, seed), NOW_MS, 1, "warm")
    total, spent, plans = 0, 0.0, 0
    while True:
        gc.collect()
        begun = time.process_time()
        plan = scheduler.plan(state, NOW_MS, 1, f"seed-{plans}")
        spent += time.process_time() - begun
        if plan.command is not None:
            total += sum(len(one.slots) for one in plan.command.placements)
            step = applied(state, plan.command, plans)
            begun = time.process_time()
            scheduler.note(state, step.state, step.events)
            spent += time.process_time() - begun
            state = step.state
            plans += 1
        if not plan.more:
            return total, spent, plans


def cold_ms(state: ClusterState) -> float:
    """The first plan of a new leader, for one task: columns and masks are built."""
    begun = time.process_time()
    Scheduler().plan(with_jobs(state, [1], 0), NOW_MS, 1, "cold")
    return round((time.process_time() - begun) * 1000, 1)


def naive(state: ClusterState, most: int) -> float:
    """Placements per processor second of a plain loop over all nodes for each task: the same filters
    (the constraints once per group) and the same E-PVM score, no numpy, no heap."""
    free = {node.id: node.facts.capacity for node in state.nodes.values()}
    used = {node_id: state.reserved.get(node_id, NOTHING) for node_id in free}
    jobs = sorted(state.jobs.values(), key=lambda job: job.name)
    done, begun = 0, time.process_time()
    for job in jobs:
        shape = job.spec.groups["g"]
        need = shape.resources
        good = [
            node.id
            for node in state.nodes.values()
            if node.accepts_tasks
            and all(satisfies(node, wish) for wish in shape.placement.constraints)
        ]
        on_node = dict.fromkeys(good, 0)
        for _ in range(shape.count):
            best, best_key = None, (1 << 60, 0.0)
            for node_id in good:
                have, taken = free[node_id], used[node_id]
                cpu = (taken.cpu_milli + need.cpu_milli) / have.cpu_milli
                memory = (taken.memory_bytes + need.memory_bytes) / have.memory_bytes
                if cpu > 1.0 or memory > 1.0:
                    continue
                x, y = taken.cpu_milli / have.cpu_milli, taken.memory_bytes / have.memory_bytes
                cost = score.BASE**cpu - score.BASE**x + score.BASE**memory - score.BASE**y
                key = (on_node[node_id], cost)
                if key < best_key:
                    best, best_key = node_id, key
            if best is None:
                break
            used[best] = used[best] + need
            on_node[best] += 1
            done += 1
            if done >= most:
                return done / (time.process_time() - begun)
    return done / (time.process_time() - begun)


def counts_for(nodes: int, tasks: int, seed: int) -> list[int]:
    """Group sizes 1–1,000, log-uniform, `tasks` in all."""
    dice = random.Random(seed)
    counts: list[int] = []
    while sum(counts) < tasks:
        counts.append(min(round(10 ** dice.uniform(0, 3)), tasks - sum(counts)))
    return counts


def rates(make: Callable[[int], ClusterState], runs: int) -> dict[str, Any]:
    found = []
    tasks = plans = 0
    for run in range(runs):
        tasks, seconds, plans = planned(make(run), run)
        found.append(tasks / seconds)
    return {
        "placements_per_cpu_s": round(statistics.median(found)),
        "min": round(min(found)),
        "max": round(max(found)),
        "runs": runs,
        "tasks": tasks,
        "plans": plans,
    }


def weight(nodes: int) -> dict[str, Any]:
    """Bytes the scheduler holds per node, the state not counted."""
    state = with_jobs(cluster(nodes), counts_for(nodes, nodes, 3), 3)
    tracemalloc.start()
    scheduler = Scheduler()
    scheduler.plan(state, NOW_MS, 1, "seed")
    gc.collect()
    held = sum(
        one.size
        for one in tracemalloc.take_snapshot()
        .filter_traces([tracemalloc.Filter(True, "*/cube/scheduler/*")])
        .statistics("filename")
    )
    tracemalloc.stop()
    return {"nodes": nodes, "bytes": held, "bytes_per_node": round(held / nodes)}


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="bench scheduler")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer nodes and runs, for tests")
    given = parser.parse_args(args)
    sizes = (100, 1_000) if given.quick else (100, 1_000, 10_000)
    runs = 2 if given.quick else given.runs
    tasks = {100: 5_000, 1_000: 50_000, 10_000: 100_000}
    naive_tasks = {100: 2_000, 1_000: 200, 10_000: 20}
    grouped, with_wishes = {}, {}
    for nodes in sizes:
        base = cluster(nodes)

        def make(run: int, base: ClusterState = base, nodes: int = nodes) -> ClusterState:
            return with_jobs(base, counts_for(nodes, tasks[nodes], run), run)

        figures = rates(make, runs)
        figures["naive_per_cpu_s"] = round(naive(make(0), naive_tasks[nodes]))
        figures["ratio"] = round(figures["placements_per_cpu_s"] / figures["naive_per_cpu_s"], 1)
        grouped[str(nodes)] = figures

        def make_wishing(run: int, base: ClusterState = base, nodes: int = nodes) -> ClusterState:
            return with_jobs(base, counts_for(nodes, tasks[nodes], run), run, wishes=True)

        with_wishes[str(nodes)] = rates(make_wishing, runs)
    largest = sizes[-1]
    base = cluster(largest)
    single = rates(lambda run: with_jobs(base, [1] * 4_000, run), runs)
    single["nodes"] = largest
    return {
        "grouped": grouped,
        "with_wishes": with_wishes,
        "single_replicas": single,
        "first_plan_ms": {str(nodes): cold_ms(cluster(nodes)) for nodes in sizes},
        "mirror": weight(largest),
        "targets": {"grouped_1000": 300_000, "grouped_10000": 100_000, "single_10000": 8_000},
    }
