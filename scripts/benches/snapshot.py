"""What a snapshot costs the loops beside it: one member with 100,000 tasks in its state takes one,
while its Raft loop turns every 2 ms, an asyncio loop in the same process ticks every millisecond,
and a barrier is committed every 10 ms. Then one that another member sent is loaded.

A stall is how much later than asked for a loop runs, or how long one turn of it took. The time that
a turn waited for the disk to sync the journal is told apart (`journal_sync`): other programs' writes
to the same disk are in it. --dir chooses where the files are. `idle` is the same without a snapshot:
what the machine does to the loops anyway.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import immutables
import msgspec
from bench_raft import summary

from cube.adapters.raft import PySyncObjLog, RaftSettings, journal
from cube.adapters.raft.node import RaftNode
from cube.agent.garbage import keep_collections_short
from cube.model.cluster import ClusterState, Task
from cube.model.ids import TaskId
from cube.ports.log import Role
from cube.services.state_feed import StateFeed
from cube.statemachine import snapshot
from tests.builders import Machine, job
from tests.ports import free_port

TURN_S = 0.002
TICK_S = 0.001
BARRIER_S = 0.01


def big_state(tasks: int) -> ClusterState:
    """`tasks` of one job on one node, with ids as the cluster makes them."""
    machine = Machine("a")
    machine.submit(job())
    machine.place("web", "g", (0, "a", ()))
    (one,) = machine.state.tasks.values()
    dice = random.Random(1)
    made: dict[TaskId, Task] = {}
    for slot in range(tasks):
        id_ = TaskId(f"{dice.getrandbits(128):032x}")
        made[id_] = msgspec.structs.replace(one, id=id_, slot=slot, placed_reason="most room: 61 %")
    return msgspec.structs.replace(machine.state, tasks=immutables.Map(made))


class Stalls:
    def __init__(self) -> None:
        self.raft_ms: list[float] = []
        self.loop_ms: list[float] = []
        self.barrier_ms: list[float] = []
        self.sync_ms: list[float] = []
        self._in_turn_ms = 0.0  # of it, in syncs

    def watch_syncs(self) -> None:
        """Only the journal calls it by this name in its module."""
        sync = os.fdatasync

        class Timed:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def fdatasync(_, fd: int) -> None:  # noqa: N805
                began = time.perf_counter()
                sync(fd)
                self.sync_ms.append((time.perf_counter() - began) * 1000)
                self._in_turn_ms += self.sync_ms[-1]

        journal.os = Timed()  # type: ignore[assignment, attr-defined]

    def watch_poll(self, node: RaftNode) -> None:
        poller = node._poller
        poll = poller.poll
        ended = time.perf_counter()

        def timed(timeout: float) -> None:
            nonlocal ended
            began = time.perf_counter()
            self.raft_ms.append((began - ended) * 1000 - self._in_turn_ms)
            self._in_turn_ms = 0.0
            wait = min(timeout, TURN_S)
            poll(wait)
            ended = time.perf_counter()
            self.raft_ms.append(max(0.0, ended - began - wait) * 1000)

        poller.poll = timed  # type: ignore[method-assign]

    async def watch_loop(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.loop_ms.append((time.perf_counter() - began - TICK_S) * 1000)

    async def watch_barriers(self, log: PySyncObjLog) -> None:
        while True:
            began = time.perf_counter()
            await log.barrier(5_000)
            self.barrier_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(BARRIER_S)

    def take(self) -> dict[str, Any]:
        taken = {
            "raft_loop": summary(self.raft_ms),
            "asyncio_loop": summary(self.loop_ms),
            "barrier": summary(self.barrier_ms),
            "journal_sync": summary(self.sync_ms),
        }
        self.raft_ms.clear()
        self.loop_ms.clear()
        self.barrier_ms.clear()
        self.sync_ms.clear()
        return taken


async def measure(tasks: int, directory: Path, times: int) -> dict[str, Any]:
    keep_collections_short()  # as an agent does
    feed = StateFeed()
    log = PySyncObjLog(
        f"127.0.0.1:{free_port()}",
        data_dir=directory,
        replica=feed,
        stamp=lambda: 0,
        settings=RaftSettings(snapshot_tail=1),
    )
    await log.start()
    while not (log.status().ready and log.status().role is Role.LEADER):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    feed.load(snapshot.dump(big_state(tasks)), sys.maxsize)
    node = log._node
    assert node is not None
    stalls = Stalls()
    stalls.watch_poll(node)
    stalls.watch_syncs()
    watchers = [
        asyncio.create_task(stalls.watch_loop()),
        asyncio.create_task(stalls.watch_barriers(log)),
    ]
    await asyncio.sleep(2)
    idle = stalls.take()
    seconds = []
    for _ in range(times):
        await log.barrier(5_000)
        before = node.snapshots.index
        began = time.perf_counter()
        await log.compact()
        while node.snapshots.index == before:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        seconds.append(time.perf_counter() - began)
    during = stalls.take()
    seconds_load, loading = await measure_load(feed, stalls, times)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    size = (directory / "snapshot").stat().st_size
    await log.stop()
    return {
        "tasks": tasks,
        "snapshots": times,
        "snapshot_bytes": size,
        "seconds_each": [round(one, 2) for one in seconds],
        "idle": idle,
        "during": during,
        "load_seconds_each": seconds_load,
        "while_loading": loading,
    }


async def measure_load(
    feed: StateFeed, stalls: Stalls, times: int
) -> tuple[list[float], dict[str, Any]]:
    """As the log does with a snapshot that another member sent: on a thread of its own."""
    data = await asyncio.to_thread(snapshot.dump, feed.state)
    await asyncio.sleep(0.5)
    stalls.take()
    seconds = []
    loaded = [StateFeed() for _ in range(times)]  # not the one that barriers are applied to
    for fresh in loaded:
        began = time.perf_counter()
        await asyncio.to_thread(fresh.load, data, sys.maxsize)
        seconds.append(round(time.perf_counter() - began, 2))
    return seconds, stalls.take()


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench snapshot", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--dir", help="where the files are; /dev/shm has no disk in it")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="cube-bench-", dir=options.dir) as directory:
        return asyncio.run(measure(options.tasks, Path(directory), options.times))
