"""What learners cost the leader: three voters as three processes and 0, 20 and 50 learners in a
fourth, all on loopback. The leader is this process.

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

from cube.adapters.raft import PySyncObjLog, RaftSettings
from tests.raft_support import free_port

OPERATION = bytes(200)
SEQUENTIAL = 500
PIPELINED = 10_000
IN_FLIGHT = 500
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


async def host(arguments: Sequence[str]) -> None:
    """The members of another process, until its stdin closes."""
    directory, founder, fsync, *addresses = arguments
    logs = [make(a, Path(directory), founder, fsync=fsync == "1") for a in addresses]
    for log in logs:
        await log.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
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
        groups = [[second], [third], *([rest] if rest else [])]
        hosts = []
        for group in groups:
            command = [sys.executable, __file__, name, founder, "1" if fsync else "0", *group]
            process = subprocess.Popen(  # noqa: ASYNC220 - nothing else is to run meanwhile
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
            )
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            hosts.append(process)
        for address in (second, third):
            await log.add_voter(address, TIMEOUT_MS)
        log.follow(frozenset(rest))
        while len([p for p in log.progress() if p.match_index]) < 2 + learners:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found = await measure(log)
        await asyncio.sleep(1)
        found["learner_lag_max_after_1_s"] = max(p.lag for p in log.progress())
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
