"""A whole cluster under one leader: nodes that only say what became of their tasks, and everything
else real. Three voters with TLS and fdatasync, each in a process of its own; the leader's has the real
leader loop, feed and API. A third process reads from that API all the while, 20 times a second.

    scripts/bench orchestrate [--sizes 100:10000,1000:100000,10000:1000000] [--during]

First all jobs are there and nothing is planned; then the leader loop starts, and the time runs until
every task is placed, committed and applied at the leader. Then (with --during: at the same time) the
nodes report: each says once of each task that it runs, what it has to say within 20 ms in one
ReportTasks, through the log of a follower. The time ends when every rollout has succeeded.

Workload: services of 100–1,000 tasks, a third with a constraint, a fifth with an affinity, an eighth
spread over three zones, three priorities; two thirds of the nodes' room is left at the end. Not real:
workers and their containers, gossip (everybody is alive), heartbeats (handed to the leader loop in
process), and all three voters share one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web
from bench_raft import Authority, MemberTls

from cube.adapters import entropy
from cube.adapters.raft import PySyncObjLog, RaftSettings
from cube.adapters.system_clock import SystemClock
from cube.agent.garbage import keep_collections_short
from cube.api.app import make_app
from cube.model import commands as c
from cube.model.deployment import DeploymentStatus
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.events import TaskEvent
from cube.model.ids import ClusterId, JobId, NodeId, TaskId
from cube.model.lifecycle import TaskState
from cube.model.resources import Resources
from cube.model.spec import Affinity, Constraint, JobSpec, Operator, Placement
from cube.ports.log import Role
from cube.scheduler.liveness import Liveness, Verdict
from cube.scheduler.plan import Scheduler
from cube.scheduler.plan_draft import Plan
from cube.services import leader_loop as loops
from cube.services.cluster_view import ClusterView, Parts
from cube.services.leader_clock import LeaderClock
from cube.services.leader_loop import LeaderLoop
from cube.services.proposer import Proposer
from cube.services.state_feed import AppliedEntry, StateFeed
from cube.services.turns import take_short_turns
from cube.services.voter_loop import VoterLoop
from tests.builders import GIB, facts, group, job
from tests.fakes.cluster import FakeLocalTasks, FakePeers, World
from tests.fakes.housekeeping import FakeHousekeeping
from tests.fakes.served import stored_values, token_desk
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}  # of the other processes
CAPACITY = Resources(64_000, 256 * GIB, 1_000 * GIB)
REPORT_DELAY_S = 0.02  # as workers': what a node has to say in that time is one report
REPORTERS = 500  # reports in flight at once
TICK_S = 0.005  # how often the loop is asked whether it is late: more often, and asking makes it so
READS_PER_S = 20
TIMEOUT_MS = 60_000
YIELD_MS = 2_000
ELECTION = RaftSettings(heartbeat_ms=300, election_min_ms=2_000, election_max_ms=3_000)


def node_name(number: int) -> str:
    return f"n{number:05}"


def shape(number: int, count: int) -> JobSpec:
    """Job `number` of the workload."""
    dice = random.Random(number)
    placement = Placement(
        constraints=(Constraint("node.labels.disk", Operator.EQ, "ssd"),)
        if number % 3 == 0
        else (),
        affinities=(Affinity("node.labels.rack", Operator.EQ, f"r{number % 10}", 20),)
        if number % 5 == 0
        else (),
        spread_over=("node.labels.zone",) if number % 8 == 1 else (),
    )
    one = group(
        count=count,
        resources=Resources(dice.randrange(50, 250), dice.randrange(64, 800) << 20, 0),
        placement=placement,
    )
    return job(f"job-{number:05}", {"g": one}, priority=(30, 50, 70)[number % 3])


# --- a member of the log


class Member:
    """The log and the state of one voter."""

    def __init__(self, address: str, founder: str, directory: Path, feed: StateFeed) -> None:
        self.feed = feed
        self.clock = SystemClock()
        self.leader_clock = LeaderClock(self.clock, lambda: feed.state.now_ms)
        self.log = PySyncObjLog(
            address,
            data_dir=directory / address.replace(":", "-"),
            replica=feed,
            stamp=self.leader_clock.now_ms,
            members=() if address == founder else (founder,),
            # A stall of the one machine for all three must not elect another leader.
            settings=ELECTION,
            joining=address != founder,
            cluster="bench",
            tls=MemberTls(directory / f"trust-{address.replace(':', '-')}", address),
        )
        self.proposer = Proposer(self.log, self.clock, TIMEOUT_MS, entropy.short_id)
        self.log.watch(self.proposer.on_log_status)

    async def start(self) -> None:
        self.feed.open(asyncio.get_running_loop())
        await self.log.start()


class Workers:
    """Every node of the cluster: whatever is placed there runs at once, and is reported."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._seen = 0
        self._tasks: dict[NodeId, list[TaskId]] = {}
        self._reporting: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(REPORTERS)
        self.entries = 0

    async def run(self) -> None:
        """From whatever is placed by now on."""
        feed = self._member.feed
        state = feed.state
        self._seen = state.index
        for task in state.tasks.values():
            if task.state is TaskState.SCHEDULED:
                self._tasks.setdefault(task.node_id, []).append(task.id)
        while True:
            for node_id in list(self._tasks):
                await self._gate.acquire()
                report = asyncio.create_task(self._report(node_id, self._tasks.pop(node_id)))
                self._reporting.add(report)
                report.add_done_callback(self._reporting.discard)
            await feed.changed(self._seen)
            await asyncio.sleep(REPORT_DELAY_S)
            self._hear()

    def _hear(self) -> None:
        events = self._member.feed.events_since(self._seen, 1 << 31)
        assert events is not None, "the nodes are too slow for the feed"
        for entry in events:
            self._seen = entry.index
            for event in entry.events:
                if isinstance(event, TaskEvent) and event.kind == "placed":
                    self._tasks.setdefault(event.node_id, []).append(event.task_id)

    async def _report(self, node_id: NodeId, tasks: list[TaskId]) -> None:
        try:
            for first in range(0, len(tasks), c.REPORTS_MAX):
                said = tuple(
                    c.TaskReport(task_id, 1, TaskState.RUNNING, handle=f"pid:{task_id}")
                    for task_id in tasks[first : first + c.REPORTS_MAX]
                )
                await self._member.proposer.propose(c.ReportTasks(node_id, said), actor="node")
                self.entries += 1
        finally:
            self._gate.release()


async def follow(address: str, founder: str, directory: Path) -> None:
    """A voter in this process, and the nodes when it is told so; a line in, a line out."""
    logging.basicConfig(level=os.environ.get("CUBE_LOG_LEVEL", "WARNING"))
    member = Member(address, founder, directory, StateFeed())
    await member.start()
    workers = Workers(member)
    running: asyncio.Task[None] | None = None
    keep_collections_short()
    take_short_turns()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, _, rest = line.strip().partition(" ")
        if word == "work":
            running = asyncio.create_task(workers.run())
        elif word == "yield":
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await member.log.transfer_leadership(YIELD_MS, founder)
        elif word == "reach":
            await member.feed.wait_index(int(rest), TIMEOUT_MS)
        print(json.dumps({"rss": psutil.Process().memory_info().rss, "entries": workers.entries}))
        sys.stdout.flush()
    if running is not None:
        running.cancel()
    await member.log.stop()


# --- who reads


async def read(base: str) -> None:
    """Asks, one request after another and at most READS_PER_S, until stdin closes; then tells when it
    asked, what, and how many seconds the answer took."""
    paths = (
        "/v1/jobs?limit=20", "/v1/tasks?job=job-00001&limit=100", "/v1/nodes?limit=20",
        "/v1/status", "/v1/jobs/job-00002",
    )  # fmt: skip
    asked: list[tuple[float, str, float]] = []
    closed = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    async with aiohttp.ClientSession() as session:
        print("ready", flush=True)
        number = 0
        while not closed.done():
            path = paths[number % len(paths)]
            number += 1
            began = time.monotonic()
            async with session.get(base + path) as answer:
                await answer.read()
                assert answer.status == 200, (path, answer.status)
            took = time.monotonic() - began
            asked.append((began, path.partition("?")[0], took))
            await asyncio.sleep(max(0.0, 1 / READS_PER_S - took))
    print(json.dumps(asked), flush=True)


# --- the leader


class Watch:
    """What held the leader's loop and its Raft thread, and for how long."""

    def __init__(self) -> None:
        self.plan_ms: list[float] = []
        self.plan_cpu_ms: list[float] = []
        self.note_ms: list[float] = []
        self.look_ms: list[float] = []
        self.apply_plan_ms: list[float] = []
        self.apply_other_ms: list[float] = []
        self.late_ms: list[float] = []

    async def tick(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.late_ms.append((time.perf_counter() - began - TICK_S) * 1000)

    def take(self) -> dict[str, Any]:
        found = {name: summary(values) for name, values in vars(self).items() if values}
        for values in vars(self).values():
            values.clear()
        return found

    @contextlib.contextmanager
    def timing(self, values: list[float], cpu: list[float] | None = None) -> Iterator[None]:
        began, cpu_began = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            values.append((time.perf_counter() - began) * 1000)
            if cpu is not None:
                cpu.append((time.thread_time() - cpu_began) * 1000)

    def scheduler(watch) -> type[Scheduler]:  # noqa: N805
        class Timed(Scheduler):
            def plan(self, *given: Any, **named: Any) -> Plan:
                with watch.timing(watch.plan_ms, watch.plan_cpu_ms):
                    return super().plan(*given, **named)

            def note(self, *given: Any) -> None:
                with watch.timing(watch.note_ms):
                    super().note(*given)

        return Timed

    def liveness(watch) -> Liveness:  # noqa: N805
        class Timed(Liveness):
            def decide(self, *given: Any) -> Verdict:
                with watch.timing(watch.look_ms):
                    return super().decide(*given)

        return Timed()

    def feed(watch) -> StateFeed:  # noqa: N805
        class Timed(StateFeed):
            def apply(self, index: int, term: int, at_ms: int, data: bytes) -> AppliedEntry:
                is_plan = data.find(b"plan", 0, 200) > 0
                with watch.timing(watch.apply_plan_ms if is_plan else watch.apply_other_ms):
                    return super().apply(index, term, at_ms, data)

        return Timed()


def summary(values: Sequence[float]) -> dict[str, float | int]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[int(len(ordered) * 0.99)], 1),
        "max": round(ordered[-1], 1),
        "sum": round(sum(ordered)),
    }


class Child:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        self._asking = asyncio.Lock()

    async def line(self) -> str:
        assert self._process.stdout is not None
        return await asyncio.to_thread(self._process.stdout.readline)

    async def ask(self, words: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(words + "\n")
            self._process.stdin.flush()
            found: dict[str, Any] = json.loads(await self.line())
        return found

    async def end(self) -> str:
        """Whatever it had left to say."""
        return (await asyncio.to_thread(self._process.communicate))[0]


async def at_most(count: int, jobs: Sequence[Callable[[], Awaitable[object]]]) -> None:
    gate = asyncio.Semaphore(count)

    async def one(work: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            await work()

    await asyncio.gather(*(one(work) for work in jobs))


async def warm_up() -> None:
    """As an agent's (cube.agent): numpy takes a tenth of a second."""
    await asyncio.to_thread(importlib.import_module, "cube.scheduler.place")


class Leader:
    """The first voter, with all that a leader does."""

    def __init__(self, address: str, directory: Path) -> None:
        self.watch = Watch()
        self.member = Member(address, address, directory, self.watch.feed())
        member, node_id = self.member, NodeId(address)
        self._alive: dict[NodeId, str] = {}
        self.loop = LeaderLoop(
            node_id,
            member.log,
            member.feed,
            member.clock,
            member.leader_clock,
            member.proposer.propose,
            lambda: self._alive,
            entropy.short_id,
            self.watch.liveness,
            warm_up,
        )
        member.log.watch(self.loop.on_log_status)
        self._view = ClusterView(node_id, member.feed)
        voter_loop = VoterLoop(
            member.log, address, member.feed, member.clock, _Nobody(), lambda: None, 3, 10_000  # type: ignore[arg-type]
        )  # fmt: skip
        self._view.attach(
            Parts(member.log, member.proposer, member.leader_clock, tuple, voter_loop)
        )
        self._view.obstacle = None
        self._runner: web.AppRunner | None = None
        self.losses = 0  # of leadership

    async def serve(self) -> str:
        """The API; returns where it is."""
        app = make_app(
            self._view, FakeLocalTasks(), FakePeers(), token_desk(World()),
            stored_values(World()).seal, housekeeping=FakeHousekeeping(),
            clock=self.member.clock, new_id=entropy.short_id,
        )  # fmt: skip
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{port}"

    async def fill(self, nodes: int, counts: Sequence[int]) -> None:
        """The cluster has its nodes, and the jobs that nobody plans yet."""
        propose = self.member.proposer.propose
        await propose(c.InitCluster(ClusterId("bench"), "bench"))

        def register(number: int) -> Callable[[], Awaitable[object]]:
            name = node_name(number)
            known = facts(
                name,
                advertise=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
                capacity=CAPACITY,
                labels={
                    "zone": "abc"[number % 3],
                    "disk": "ssd" if number % 7 else "hdd",
                    "rack": f"r{number % 20}",
                },
            )
            self._alive[known.id] = "alive"
            return lambda: propose(c.RegisterNode(known))

        def submit(number: int, count: int) -> Callable[[], Awaitable[object]]:
            command = c.SubmitJob(shape(number, count), JobId(f"{number:016x}"))
            return lambda: propose(command)

        await at_most(200, [register(number) for number in range(nodes)])
        await at_most(200, [submit(number, count) for number, count in enumerate(counts)])

    async def beat(self) -> None:
        """Of every node, once a second."""
        while True:
            for node_id in self._alive:
                self.loop.heartbeat(node_id)
            await asyncio.sleep(1)

    async def stay(self, followers: Sequence[Child]) -> None:
        """Nobody else has a leader loop: who is elected yields, and that it happened is counted."""
        log = self.member.log
        while True:
            await asyncio.sleep(0.1)
            if log.status().role is not Role.LEADER:
                self.losses += 1
                while log.status().role is not Role.LEADER:
                    for follower in followers:
                        await follower.ask("yield")

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self.member.log.stop()


class _Nobody:
    """RemoteNodes of a leader that asks nobody."""


async def until(condition: Callable[[], bool], limit_s: float = 1_800.0) -> float:
    """When it came true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come to an end"
        await asyncio.sleep(0.02)
    return time.monotonic()


async def run(nodes: int, tasks: int, *, during: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cube-bench-orchestrate-") as name:
        directory = Path(name)
        authority = Authority()
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        for address in addresses:
            authority.enrol(directory / f"trust-{address.replace(':', '-')}", address)
        leader = Leader(addresses[0], directory)
        followers: list[Child] = []
        try:
            await leader.member.start()
            await until(lambda: leader.member.log.status().ready)
            for address in addresses[1:]:
                follower = Child("follow", address, addresses[0], name)
                followers.append(follower)
                assert await follower.line() == "ready\n"
                await leader.member.log.add_voter(address, TIMEOUT_MS)
            return await measure(leader, followers, nodes, tasks, during=during)
        finally:
            for follower in followers:
                await follower.end()
            await leader.close()


async def measure(
    leader: Leader, followers: Sequence[Child], nodes: int, tasks: int, *, during: bool
) -> dict[str, Any]:
    feed, watch = leader.member.feed, leader.watch
    size = min(1_000, max(1, tasks // 100))
    counts = [size] * (tasks // size)
    await leader.fill(nodes, counts)
    for follower in followers:
        await follower.ask(f"reach {feed.state.index}")
    undo, undo_turns = keep_collections_short(), take_short_turns()
    reader = Child("read", await leader.serve())
    assert await reader.line() == "ready\n"
    loops.Scheduler = watch.scheduler()  # type: ignore[attr-defined]
    rss_before = psutil.Process().memory_info().rss
    first_index = feed.state.index
    watch.take()
    background = [
        asyncio.create_task(work) for work in (leader.beat(), watch.tick(), leader.stay(followers))
    ]
    reached = 0.0
    try:
        if during:
            await followers[-1].ask("work")
        began = time.monotonic()
        background.append(asyncio.create_task(leader.loop.run()))
        placed = await until(lambda: len(feed.state.tasks) >= tasks)
        watched, rss = watch.take(), psutil.Process().memory_info().rss
        if not during:
            for follower in followers:
                await follower.ask(f"reach {feed.state.index}")
            reached = time.monotonic()
            await followers[-1].ask("work")
        work_began = began if during else time.monotonic()
        ended = await until(lambda: not rolling_out(feed))
        told = await followers[-1].ask(f"reach {feed.state.index}")
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        asked = json.loads(await reader.end())
        undo()
        undo_turns()
    assert all(task.state is TaskState.RUNNING for task in feed.state.tasks.values())
    assert len(feed.state.tasks) == tasks
    found: dict[str, Any] = {
        "nodes": nodes,
        "tasks": tasks,
        "jobs": len(counts),
        "planned_and_committed_s": round(placed - began, 2),
        "tasks_per_s": round(tasks / (placed - began)),
    }
    if not during:
        found["at_both_followers_s"] = round(reached - began, 2)
    return found | {
        "until_rolled_out_s": round(ended - work_began, 2),
        "leader_changes": leader.losses,
        "report_entries": told["entries"],
        "entries": feed.state.index - first_index,
        "reads_ms": {
            "while_placing": reads(asked, began, placed),
            "while_reporting": reads(asked, work_began, ended),
        },
        "leader_bytes_per_task": round((rss - rss_before) / tasks),
        "leader_rss_mb": round(psutil.Process().memory_info().rss / 1e6),
        "follower_rss_mb": round(told["rss"] / 1e6),
        "while_placing_ms": watched,
        "while_reporting_ms": watch.take(),
    }


def rolling_out(feed: StateFeed) -> bool:
    return any(
        job.deployment is None or job.deployment.status is not DeploymentStatus.SUCCESSFUL
        for job in feed.state.jobs.values()
    )


def reads(asked: list[tuple[float, str, float]], since: float, until: float) -> dict[str, Any]:
    """What was asked in that time."""
    by_path: dict[str, list[float]] = {}
    for began, path, took in asked:
        if since <= began <= until:
            by_path.setdefault(path, []).append(took * 1000)
    if not by_path:
        return {}
    every = [took for values in by_path.values() for took in values]
    return {"all": summary(every)} | {
        path: summary(values) for path, values in sorted(by_path.items())
    }


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="bench orchestrate")
    parser.add_argument("--sizes", default="100:10000,1000:100000,10000:1000000")
    parser.add_argument("--during", action="store_true", help="reports from the start")
    given = parser.parse_args(args)
    logging.basicConfig(level=os.environ.get("CUBE_LOG_LEVEL", "WARNING"))
    found = {}
    for size in given.sizes.split(","):
        nodes, tasks = (int(number) for number in size.split(":"))
        found[f"{nodes}_nodes_{tasks}_tasks"] = asyncio.run(run(nodes, tasks, during=given.during))
    return {"targets": {"planned_and_committed_s": 40, "reads_p99_ms": 250, "plan_ms": 50}, **found}


if __name__ == "__main__":
    if sys.argv[1] == "follow":
        asyncio.run(follow(sys.argv[2], sys.argv[3], Path(sys.argv[4])))
    else:
        asyncio.run(read(sys.argv[2]))
