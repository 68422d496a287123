"""What learners cost the leader: three voters as three processes and 0, 20 and 50 learners in a
fourth, all on loopback. The leader is this process. Learners follow whom they choose over HTTP, through
the real API, and tell the leader once a second how far they are, as agents do.

    scripts/bench learners [--counts 0,20,50] [--fsync]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import immutables
import msgspec
from aiohttp import web

from cube.adapters.http_peers import HttpPeers
from cube.adapters.raft import PySyncObjLog, RaftSettings
from cube.adapters.system_clock import SystemClock
from cube.api.app import make_app
from cube.model.cluster import Node
from cube.model.ids import NodeId
from cube.ports.cluster import LogRequest
from cube.services.heartbeats import Heartbeats
from cube.services.log_follower import LogFollower
from cube.services.state_feed import StateFeed
from tests.builders import facts
from tests.fakes.cluster import FakeClock, FakeCluster, FakeLocalTasks, FakePeers, World
from tests.fakes.housekeeping import FakeHousekeeping
from tests.fakes.served import stored_values, token_desk
from tests.ports import free_port

OPERATION = bytes(200)
SEQUENTIAL = 500
PIPELINED = 10_000
IN_FLIGHT = 500
HTTP_PORTS_ABOVE = 10_000
TIMEOUT_MS = 30_000


class Counter:
    """A replica that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, index: int, term: int, at_ms: int, data: bytes) -> object:
        self.count += 1
        return None

    def dump(self) -> Callable[[], Iterator[bytes]]:
        count = self.count
        return lambda: iter([str(count).encode()])

    def load(self, data: bytes, index: int) -> None:
        self.count = int(data)


def make(address: str, directory: Path, founder: str, *, fsync: bool) -> PySyncObjLog:
    return PySyncObjLog(
        address,
        data_dir=directory / address.replace(":", "-"),
        replica=Counter(),
        stamp=lambda: 1,
        members=() if address == founder else (founder,),
        settings=RaftSettings(fsync=fsync),
        joining=address != founder,
        cluster="bench",
    )


class Desk(FakePeers):
    """What a voter answers others: its log, and who leads."""

    def __init__(self, log: PySyncObjLog) -> None:
        super().__init__()
        self.log_here = log
        self.told: dict[str, int] = {}  # learner → how far it is

    async def log(self, request: LogRequest) -> bytes:
        return await self.log_here.feed(request.ask, request.wait_ms)

    def heartbeat(self, node_id: NodeId, log_index: int | None) -> bool:
        self.told[node_id] = log_index or 0
        return True


def http_of(raft_address: str) -> str:
    """Where a member answers HTTP: the same for all who know its Raft address."""
    host, port = raft_address.rsplit(":", 1)
    return f"{host}:{int(port) + HTTP_PORTS_ABOVE}"


async def serve(log: PySyncObjLog, address: str) -> tuple[Desk, web.AppRunner]:
    """The real API of a voter."""
    desk = Desk(log)
    world = World()
    app = make_app(
        FakeCluster(world, "n1"), FakeLocalTasks(), desk, token_desk(world),
        stored_values(world).seal, housekeeping=FakeHousekeeping(),
        clock=FakeClock(), new_id=lambda: "x" * 8,
    )  # fmt: skip
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    host, port = http_of(address).rsplit(":", 1)
    await web.TCPSite(runner, host, int(port)).start()
    return desk, runner


async def be_learner(log: PySyncObjLog, address: str, voters: Sequence[str]) -> None:
    """Follows and beats, for ever, with connections of its own."""
    remote = HttpPeers()
    leader = voters[0]
    feed = StateFeed()
    nodes = {}
    for voter in voters:
        known = facts(voter, http_address=http_of(voter), raft_address=voter)
        nodes[known.id] = Node(id=known.id, name=voter, facts=known)
    feed.state = msgspec.structs.replace(feed.state, nodes=immutables.Map(nodes))
    node_id = NodeId(address)
    follower = LogFollower(node_id, log, feed, SystemClock(), remote, dict, tuple)
    beats = Heartbeats(node_id, remote, lambda: http_of(leader), lambda: log.ask().index)
    try:
        await asyncio.gather(follower.run(), beats.run())
    finally:
        await remote.close()


async def host(arguments: Sequence[str]) -> None:
    """The members of another process, until its stdin closes. `voters` None: they vote."""
    directory, founder, fsync, voters, *addresses = arguments
    logs = [make(a, Path(directory), founder, fsync=fsync == "1") for a in addresses]
    runners: list[web.AppRunner] = []
    learners: list[asyncio.Task[None]] = []
    for log, address in zip(logs, addresses, strict=True):
        await log.start()
        if voters:
            learners.append(asyncio.create_task(be_learner(log, address, voters.split(","))))
        else:
            runners.append((await serve(log, address))[1])
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for learner in learners:
        learner.cancel()
    await asyncio.gather(*learners, return_exceptions=True)
    for runner in runners:
        await runner.cleanup()
    for log in logs:
        await log.stop()


async def measure(log: PySyncObjLog) -> dict[str, Any]:
    seconds: list[float] = []
    for _ in range(SEQUENTIAL):
        began = time.perf_counter()
        await log.propose(OPERATION, TIMEOUT_MS)
        seconds.append(time.perf_counter() - began)
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            await log.propose(OPERATION, TIMEOUT_MS)

    cpu, began = cpu_s(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(PIPELINED)))
    took_s = time.perf_counter() - began
    idle_cpu, idle_began = cpu_s(), time.perf_counter()
    await asyncio.sleep(3)
    return {
        "commit_p50_ms": round(statistics.median(seconds) * 1000, 3),
        "commit_p99_ms": round(statistics.quantiles(seconds, n=100)[98] * 1000, 3),
        "pipelined_per_s": round(PIPELINED / took_s),
        "leader_cpu_ms_per_1000": round((idle_cpu - cpu) / PIPELINED * 1e6, 1),
        "leader_idle_cpu_percent": round(
            (cpu_s() - idle_cpu) / (time.perf_counter() - idle_began) * 100, 1
        ),
    }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run(learners: int, *, fsync: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        addresses: set[str] = set()
        while len(addresses) < 3 + learners:
            addresses.add(f"127.0.0.1:{free_port()}")
        founder, second, third, *rest = sorted(addresses)
        log = make(founder, Path(name), founder, fsync=fsync)
        await log.start()
        desk, runner = await serve(log, founder)
        hosts = []
        voters = ",".join((founder, second, third))
        for kind, group in (("", [second]), ("", [third]), (voters, rest)):
            if not group:
                continue
            command = [sys.executable, __file__, name, founder, str(int(fsync)), kind, *group]
            process = subprocess.Popen(  # noqa: ASYNC220 - nothing else is to run meanwhile
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
            )
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            hosts.append(process)
            if not kind:
                await log.add_voter(group[0], TIMEOUT_MS)
        while len(desk.told) < learners or min(desk.told.values(), default=9) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found = await measure(log)
        # By the last heartbeats: a second old, on a log that has been quiet for three.
        last = log.status().commit_index
        found["learner_lag_max_after_3_s"] = last - min(desk.told.values(), default=last)
        await runner.cleanup()
        await log.stop()
        for process in hosts:
            process.communicate(b"")
        return found


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench learners", description=__doc__)
    parser.add_argument("--counts", default="0,20,50")
    parser.add_argument("--fsync", action="store_true")
    wanted = parser.parse_args(args)
    counts = [int(count) for count in wanted.counts.split(",")]
    return {f"learners_{count}": asyncio.run(run(count, fsync=wanted.fsync)) for count in counts}


if __name__ == "__main__":
    asyncio.run(host(sys.argv[1:]))
