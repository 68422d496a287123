"""The same puts against three members of Cube's log and against three members of etcd, one after the
other, on this machine and disk: puts per second, as a ratio.

Two comparisons:
- `gateway`: one client program, HTTP/1.1 with JSON and base64 on kept connections, so many at a time
  as `clients` says, each sending the next put when the last is answered. etcd answers through its
  gRPC-JSON gateway; Cube's members through the same request and answer on aiohttp, in front of
  nothing but the log (`/v3/kv/put` in bench_raft.py; Cube's own API checks and plans jobs:
  scripts/bench cluster).
- `native`: etcd's own load generator over gRPC (`etcdctl check perf`: 1,000 clients, 1 KiB values,
  held at 15,000/s, 60 s) beside as many proposals of the same size in flight inside Cube's leader,
  without a network before it.

Both sync before they answer, and both encrypt between members unless told --plain. etcd keeps what
was put in a database on the disk, Cube's members here in memory and in snapshots.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench_raft import SIZE, cluster_of, free_port, summary

SECONDS = 4.0
CELLS = ((1, 200), (8, 200), (64, 200), (64, 2_000))  # clients, bytes of a value
KEYS = 10_000
NATIVE = {"clients": 1_000, "bytes": 1_024}


class Client:
    """One connection, one put at a time."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def put(self, key: bytes, value: bytes) -> None:
        body = json.dumps(
            {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
        ).encode()
        head = f"POST /v3/kv/put HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        assert length is not None, answer
        await self._reader.readexactly(int(length[1]))


async def load(port: int, clients: int, size: int, seconds: float) -> dict[str, Any]:
    times: list[float] = []
    value = os.urandom(size)
    until = time.perf_counter() + seconds

    async def one(number: int) -> None:
        async with Client(port) as client:
            count = number
            while (began := time.perf_counter()) < until:
                await client.put(b"key-%d" % (count % KEYS), value)
                times.append((time.perf_counter() - began) * 1000)
                count += clients

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)))
    return {"per_s": round(len(times) / (time.perf_counter() - began)), **summary(times)}


async def cells(leader: int, follower: int, seconds: float) -> dict[str, Any]:
    await load(leader, 8, 200, 1.0)
    found: dict[str, Any] = {}
    for clients, size in CELLS:
        for place, port in (("leader", leader), ("follower", follower)):
            name = f"{clients}_clients_{size}_bytes_{place}"
            found[name] = await load(port, clients, size, seconds)
    return found


async def cube(seconds: float, *, has_tls: bool) -> dict[str, Any]:
    async with cluster_of(SIZE, has_tls=has_tls, fsync=True) as processes:
        leader = await processes.leader()
        follower = next(process for process in processes.all if process is not leader)
        ports = [await process.request("serve_puts") for process in (leader, follower)]
        gateway = await cells(ports[0], ports[1], seconds)
    async with cluster_of(SIZE, has_tls=has_tls, fsync=True) as processes:
        leader = await processes.leader()
        workload = {"window": NATIVE["clients"], "size": NATIVE["bytes"]}
        await leader.request("throughput", workload={**workload, "count": 2_000})
        runs = [
            (await leader.request("throughput", workload={**workload, "count": 20_000}))["per_s"]
            for _ in range(3)
        ]
    return {"gateway": gateway, "native_per_s": round(statistics.median(runs))}


@contextlib.asynccontextmanager
async def etcd_members(directory: Path, *, has_tls: bool) -> AsyncIterator[list[int]]:
    """The ports for clients, the leader's first."""
    scheme = "https" if has_tls else "http"
    ports = [(free_port(), free_port()) for _ in range(SIZE)]
    peers = [f"m{number}={scheme}://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports)]
    members = []
    try:
        for number, (client, peer) in enumerate(ports):
            command = (
                *("etcd", "--name", f"m{number}", "--data-dir", str(directory / str(number))),
                *("--listen-client-urls", f"http://127.0.0.1:{client}"),
                *("--advertise-client-urls", f"http://127.0.0.1:{client}"),
                *("--listen-peer-urls", f"{scheme}://127.0.0.1:{peer}"),
                *("--initial-advertise-peer-urls", f"{scheme}://127.0.0.1:{peer}"),
                *("--initial-cluster", ",".join(peers), "--log-level", "error"),
                *(["--peer-auto-tls"] if has_tls else []),
            )
            quiet = asyncio.subprocess.DEVNULL
            members.append(
                await asyncio.create_subprocess_exec(
                    *command,
                    stdout=quiet,
                    stderr=quiet,
                    env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
                )
            )
        yield await leader_first([client for client, _ in ports])
    finally:
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                member.kill()
            await member.wait()


async def leader_first(ports: list[int]) -> list[int]:
    endpoints = ",".join(f"127.0.0.1:{port}" for port in ports)
    for _ in range(100):
        said = await etcdctl("--endpoints", endpoints, "endpoint", "status", "-w", "json")
        with contextlib.suppress(ValueError, KeyError):
            states = json.loads(said)
            if len(states) == SIZE and all(one["Status"].get("leader") for one in states):
                leads = [
                    one["Status"]["leader"] == one["Status"]["header"]["member_id"]
                    for one in states
                ]
                if sum(leads) == 1:
                    first = int(states[leads.index(True)]["Endpoint"].rpartition(":")[2])
                    return [first, *(port for port in ports if port != first)]
        await asyncio.sleep(0.2)
    raise AssertionError("etcd has no leader within 20 s")


async def etcdctl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "etcdctl",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    said, _ = await process.communicate()
    return said.decode(errors="replace")


async def etcd(seconds: float, *, has_tls: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cube-bench-etcd-") as name:
        async with etcd_members(Path(name), has_tls=has_tls) as ports:
            gateway = await cells(ports[0], ports[1], seconds)
            said = await etcdctl(
                "--endpoints", f"127.0.0.1:{ports[0]}", "check", "perf", "--load=xl"
            )
    rate = re.search(r"[Tt]hroughput[^\n]*?(\d+) writes/s", said)
    native: dict[str, Any] = {"native_per_s": int(rate[1]) if rate else None}
    if rate is None:
        native["native_said"] = said[-300:]
    return {"gateway": gateway, **native}


async def compare(seconds: float = SECONDS, *, has_tls: bool = True) -> dict[str, Any]:
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        return {"etcd": "not installed"}
    ours = await cube(seconds, has_tls=has_tls)
    theirs = await etcd(seconds, has_tls=has_tls)
    ratio = {
        name: round(ours["gateway"][name]["per_s"] / one["per_s"], 2)
        for name, one in theirs["gateway"].items()
    }
    if theirs["native_per_s"]:
        ratio["native"] = round(ours["native_per_s"] / theirs["native_per_s"], 2)
    said = await etcdctl("version")
    return {
        "what": __doc__,
        "version": said.split("\n")[0],
        "tls_between_members": has_tls,
        "seconds_each": seconds,
        "cube": ours,
        "etcd": theirs,
        "cube_to_etcd_puts_per_s": ratio,
    }


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench etcd", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--plain", action="store_true", help="without TLS between members")
    options = parser.parse_args(args)
    return asyncio.run(compare(options.seconds, has_tls=not options.plain))
