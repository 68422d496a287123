"""Raft alone: three voters as three processes on loopback, fdatasync on, TLS between them as between
agents; `--plain` without; `--compare` both, one after the other. `--busy` keeps every core busy with
other work meanwhile. Then etcd, where it is installed, and Cube's own API.

Every figure that varies from run to run is measured several times: the median is told, and all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_raft import (
    OPERATION_BYTES,
    SIZE,
    Process,
    busy_cores,
    cluster_of,
    summary,
)
from benches import cluster, etcd

# Of what is measured several times.
RUNS_OF_ONE = 5


async def run_latency(count: int = 2_000, **settings: Any) -> dict[str, Any]:
    """One proposal after the other, at the leader and through a follower."""
    async with cluster_of(SIZE, **settings) as processes:
        leader = await processes.leader()
        follower = next(process for process in processes.all if process is not leader)
        await leader.request("latency", count=100)
        return {
            "leader": summary(await leader.request("latency", count=count)),
            "follower": summary(await follower.request("latency", count=count)),
            "count": count,
        }


async def run_throughput(
    count: int = 20_000, window: int = 512, size: int = OPERATION_BYTES, **settings: Any
) -> dict[str, Any]:
    """`window` proposals of `size` bytes in flight, at the leader and through a follower."""
    workload = {"count": count, "window": window, "size": size}
    found: dict[str, Any] = {**workload, "runs": RUNS_OF_ONE}
    async with cluster_of(SIZE, **settings) as processes:
        leader = await processes.leader()
        follower = next(process for process in processes.all if process is not leader)
        for name, member in (("leader", leader), ("follower", follower)):
            await member.request("throughput", workload={**workload, "count": 2_000})
            before = [await process.request("cpu") for process in processes.all]
            runs = [
                await member.request("throughput", workload=workload) for _ in range(RUNS_OF_ONE)
            ]
            after = [await process.request("cpu") for process in processes.all]
            rates = [run["per_s"] for run in runs]
            cpu_s = sum(after) - sum(before)
            found[name] = {
                "per_s": round(statistics.median(rates)),
                "all_per_s": rates,
                # Of all members, for an operation: says more than the clock on a busy machine.
                "cpu_us": round(cpu_s / (RUNS_OF_ONE * count) * 1e6),
                "failed": sum(run["failed"] for run in runs),
            }
    return found


async def run_batches(count: int = 100, items: int = 1_000, **settings: Any) -> dict[str, Any]:
    """Entries of 1,000 items of 200 bytes, as a plan that places 1,000 tasks is one entry; one after
    the other, and four in flight."""
    size = items * OPERATION_BYTES
    found: dict[str, Any] = {"items": items, "bytes": size, "count": count, "runs": RUNS_OF_ONE}
    async with cluster_of(SIZE, **settings) as processes:
        leader = await processes.leader()
        follower = next(process for process in processes.all if process is not leader)
        for name, member in (("leader", leader), ("follower", follower)):
            for window in (1, 4):
                workload = {"count": count, "window": window, "size": size}
                runs = [
                    await member.request("throughput", workload=workload)
                    for _ in range(RUNS_OF_ONE)
                ]
                rates = [run["per_s"] * items for run in runs]
                found[f"{name}_{window}_in_flight_items_per_s"] = round(statistics.median(rates))
    return found


async def run_failover(kills: int = 50, **settings: Any) -> dict[str, Any]:
    """kill -9 of the leader to the next write committed through a survivor."""
    times = []
    async with cluster_of(SIZE, **settings) as processes:
        for number in range(kills):
            leader = await processes.leader()
            survivors = [process for process in processes.running() if process is not leader]
            for survivor in survivors:
                await survivor.request("barrier", timeout_ms=10_000)
            began = time.perf_counter()
            await leader.kill()
            times.append((await first_commit(survivors, number) - began) * 1000)
            await leader.start()
    return {
        "kills": kills,
        "min_ms": round(min(times), 1),
        "median_ms": round(statistics.median(times), 1),
        "max_ms": round(max(times), 1),
        "all_ms": [round(one) for one in times],
    }


async def first_commit(survivors: list[Process], number: int) -> float:
    """When the first write was committed, trying both survivors in turn."""
    attempt = 0
    while True:
        attempt += 1
        survivor = survivors[attempt % len(survivors)]
        data = f"{number}-{attempt}".encode().hex()
        try:
            await survivor.request("propose", data=data, timeout_ms=2_000)
        except RuntimeError:
            await asyncio.sleep(0.002)
        else:
            return time.perf_counter()


async def run_restart(entries: int = 100_000, **settings: Any) -> dict[str, Any]:
    """From the start of a killed member's process until it has applied `entries` again that no
    snapshot covers: a follower of three, and a cluster of one."""
    results: dict[str, Any] = {"entries": entries}
    for size in (SIZE, 1):
        workload = {"count": entries, "window": 512, "size": OPERATION_BYTES}
        async with cluster_of(size, snapshot_every=10 * entries, **settings) as processes:
            leader = await processes.leader()
            await leader.request("throughput", workload=workload)
            index = await leader.request("barrier", timeout_ms=10_000)
            member = processes.all[-1]
            await member.request("barrier", timeout_ms=10_000)
            await member.kill()
            began = time.perf_counter()
            await member.start()
            started = time.perf_counter() - began
            while True:
                status = await member.request("status")
                if status["ready"] and status["applied"] >= index:
                    break
                await asyncio.sleep(0.005)
            whole = time.perf_counter() - began
            path = Path(member.options["data_dir"]) / "journal"
            results[f"of_{size}"] = {
                "listening_s": round(started, 3),
                "applied_and_ready_s": round(whole, 3),
                "cpu_s": round(await member.request("cpu"), 2),
                "journal_bytes": sum(one.stat().st_size for one in path.iterdir()),
            }
    return results


async def run_idle(seconds: float = 10.0, **settings: Any) -> dict[str, Any]:
    """Percent of a core that each member takes while nothing happens."""
    async with cluster_of(SIZE, **settings) as processes:
        leader = await processes.leader()
        await asyncio.sleep(2)
        ordered = [leader, *(process for process in processes.all if process is not leader)]
        before = [await process.request("cpu") for process in ordered]
        await asyncio.sleep(seconds)
        after = [await process.request("cpu") for process in ordered]
    percent = [round((b - a) / seconds * 100, 2) for a, b in zip(before, after, strict=True)]
    return {"leader_percent": percent[0], "followers_percent": percent[1:], "seconds": seconds}


def sync_cost() -> dict[str, float]:
    """What one append of 300 bytes and its fdatasync cost where the members' files are."""
    times = []
    with tempfile.NamedTemporaryFile(prefix="cube-bench-raft-") as file:
        for _ in range(1_000):
            began = time.perf_counter()
            os.write(file.fileno(), bytes(300))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return summary(times)


async def run_all(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {"fsync": not options.no_fsync}
    for name in ("heartbeat_ms", "election_min_ms", "election_max_ms"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    runs: dict[str, Callable[[], Any]] = {
        "latency": lambda: run_latency(**settings),
        "throughput": lambda: run_throughput(**settings),
        "throughput_2k": lambda: run_throughput(size=2_000, **settings),
        "batches": lambda: run_batches(**settings),
        "restart": lambda: run_restart(**settings),
        "failover": lambda: run_failover(options.kills, **settings),
        "idle": lambda: run_idle(**settings),
    }
    cores = os.cpu_count() or 1
    results: dict[str, Any] = {
        "settings": dict(settings),
        "busy": options.busy,
        "append_and_fdatasync": sync_cost(),
    }
    async with busy_cores(cores if options.busy else 0):
        for name, run in runs.items():
            if options.only not in (None, name):
                continue
            if options.compare or options.plain:
                settings["has_tls"] = False
                results[f"{name}_plain"] = await run()
            if options.compare or not options.plain:
                settings["has_tls"] = True
                results[name] = await run()
    return results


RUNS = ("latency", "throughput", "throughput_2k", "batches", "failover", "idle", "restart")
OTHERS = ("etcd", "api")


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench raft", description=__doc__)
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument("--compare", action="store_true", help="without TLS, then with it")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", choices=(*RUNS, *OTHERS))
    parser.add_argument("--heartbeat-ms", type=int)
    parser.add_argument("--election-min-ms", type=int)
    parser.add_argument("--election-max-ms", type=int)
    options = parser.parse_args(args)
    results = asyncio.run(run_all(options)) if options.only not in OTHERS else {}
    if options.only in (None, "etcd"):
        results["etcd"] = asyncio.run(etcd.compare(has_tls=not options.plain))
    if options.only in (None, "api"):
        results |= cluster.main(["--only", "api"])
    return results
