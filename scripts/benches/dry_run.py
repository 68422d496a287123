"""How long `cube plan` and `cube why` think, and for how long at a time the event loop waits meanwhile.

Workload: 1,000 nodes of 8 cores in three zones, 100 services of 100 tasks on them, all running; then a
new job of 100 tasks, a rolling update of 100 one by one, a node lost and drained, and a job of 100
tasks that fits nowhere.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from cube.agent.garbage import keep_collections_short
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import JobId
from cube.model.lifecycle import NodeStatus
from cube.model.resources import Resources
from cube.model.spec import JobSpec, Placement
from cube.services.dry_run import foresee
from cube.services.remedies import why
from tests.builders import GIB, facts, group, job
from tests.scheduler_cluster import Cluster

MIB = 1 << 20


def full_cluster(nodes: int, jobs: int, tasks: int) -> Cluster:
    cluster = Cluster()
    for number in range(nodes):
        cluster.do(
            c.RegisterNode(
                facts(
                    f"n{number:05}",
                    labels={"zone": "abc"[number % 3]},
                    capacity=Resources(8000, 16 * GIB, 100 * GIB),
                )
            )
        )
    for number in range(jobs):
        cluster.submit(shape(f"job-{number}", tasks, Resources(100 + number, 64 * MIB, 0)))
    cluster.settle()
    return cluster


def shape(name: str, count: int, need: Resources, command: str = "one") -> JobSpec:
    spread = Placement(spread_over=("node.labels.zone",))
    return job(
        name, {"g": group(count=count, resources=need, command=(command,), placement=spread)}
    )


def timed(work: Callable[[], object], runs: int) -> dict[str, Any]:
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1000)
    return {
        "median_ms": round(statistics.median(found), 1),
        "max_ms": round(max(found), 1),
        "longest_wait_of_the_loop_ms": round(asyncio.run(longest_wait_ms(work)), 1),
    }


async def longest_wait_ms(work: Callable[[], object]) -> float:
    """Of a loop that wants to go on each millisecond while the work is done in a thread."""
    doing = asyncio.create_task(asyncio.to_thread(work))
    longest, last = 0.0, time.perf_counter()
    while not doing.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1000


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="bench dry_run")
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(args)
    cluster = full_cluster(given.nodes, given.nodes // 10, 100)
    cluster.steps.clear()  # an agent keeps one state, and its collections short
    keep_collections_short()
    state, now_ms, runs = cluster.state, cluster.now_ms, given.runs
    node = sorted(state.nodes)[given.nodes // 2]

    def plan(state: ClusterState, spec: JobSpec) -> Callable[[], object]:
        return lambda: foresee(state, now_ms, c.SubmitJob(spec, JobId("new")))

    updated = shape("job-7", 100, Resources(107, 64 * MIB, 0), "two")
    lost = c.SetNodeStatus(state.term, node, NodeStatus.DOWN)
    result = {
        "new_job": timed(plan(state, shape("new", 100, Resources(200, 256 * MIB, 0))), runs),
        "update_one_by_one": timed(plan(state, updated), runs),
        "lose": timed(lambda: foresee(state, now_ms, lost), runs),
        "drain": timed(lambda: foresee(state, now_ms, c.SetDrain(node, 300_000)), runs),
    }
    cluster.submit(shape("big", 100, Resources(7900, 15 * GIB, 0)))
    cluster.plan()
    crowded = cluster.state
    result["why"] = timed(lambda: why(crowded, now_ms, "big"), runs)
    return {"nodes": given.nodes, "tasks": len(state.tasks), **result}
