"""Output and commands through a node that does not have the task: two real agents with certificates
and tokens on one machine, process driver. How fast kept output is read, what a task that never stops
writing costs, and how long `cube exec` takes to its first byte.
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.harness import ROOT, Node, TestCluster, wait_for

READ_BYTES = 256 * 1024
KEPT = "head -c 14000000 /dev/urandom | base64 -w 100; sleep 100000"  # 19 MB: 20 are kept


def spread(values: list[float], digits: int = 1) -> dict[str, float | int]:
    return {
        "n": len(values),
        "min": round(min(values), digits),
        "median": round(statistics.median(values), digits),
        "max": round(max(values), digits),
    }


def open_logs(node: Node, task: str, query: str) -> http.client.HTTPResponse:
    assert node.trusted is not None
    context = ssl.create_default_context(cafile=str(node.trusted / "ca.crt"))
    token = (node.trusted / "operator-token").read_text().strip()
    connection = http.client.HTTPSConnection(node.host, node.http, timeout=60, context=context)
    headers = {"Authorization": f"Bearer {token}"}
    connection.request("GET", f"/v1/tasks/{task}/logs{query}", headers=headers)
    response = connection.getresponse()
    assert response.status == 200, response.status
    return response


def kept(ways: dict[str, Node], times: int) -> dict[str, Any]:
    """All that is kept of one task, in MB/s, without time stamps and with."""
    found: dict[str, Any] = {}
    for way, node in ways.items():
        for name, query in (("plain", ""), ("stamped", "?timestamps=1")):
            rates = []
            for _ in range(times):
                began = time.monotonic()
                size = 0
                with open_logs(node, "kept.main.0", query) as response:
                    while data := response.read(READ_BYTES):
                        size += len(data)
                rates.append(size / 1e6 / (time.monotonic() - began))
            found[f"{way}_{name}_mb_per_s"] = spread(rates)
    return found


def talker(cluster: TestCluster, ways: dict[str, Node], seconds: float) -> dict[str, Any]:
    """A task that writes as fast as it is let, followed for some seconds through the other node."""
    agents = {node.name: psutil.Process(node.pid) for node in cluster.nodes}
    before = {name: process.memory_info().rss for name, process in agents.items()}
    peak = dict(before)
    slowest = 0.0
    size = 0
    dropped = 0
    began = looked = time.monotonic()
    with open_logs(ways["remote"], "talker.main.0", "?follow=1&tail=1") as response:
        while (now := time.monotonic()) < began + seconds:
            data = response.read1(READ_BYTES)
            size += len(data)
            dropped += data.count(b"dropped here")
            if now > looked + 0.5:
                looked = now
                asked = time.monotonic()
                assert ways["local"].get("/v1/status")["quorum"]
                slowest = max(slowest, time.monotonic() - asked)
                for name, process in agents.items():
                    peak[name] = max(peak[name], process.memory_info().rss)
    return {
        "talker_read_mb_per_s": round(size / 1e6 / seconds, 1),
        "talker_gaps_told": dropped,
        "talker_rss_grown_mb": {
            name: round((peak[name] - before[name]) / 1e6, 1) for name in agents
        },
        "talker_slowest_status_ms": round(slowest * 1000, 1),
    }


def first_byte(ways: dict[str, Node], times: int) -> dict[str, Any]:
    """From the start of `cube exec TASK -- echo x` as a process to its first byte, in ms."""
    found: dict[str, Any] = {}
    for way, node in ways.items():
        waits = []
        for _ in range(times):
            began = time.monotonic()
            with subprocess.Popen(
                [sys.executable, "-m", "cube", "--addr", node.address, "exec", "-n", "kept.main.0",
                 "--", "echo", "x"],
                stdout=subprocess.PIPE, cwd=ROOT,
                env={**os.environ, "CUBE_DATA_DIR": str(node.trusted)},
            ) as process:  # fmt: skip
                assert process.stdout is not None
                assert process.stdout.read(1) == b"x"
                waits.append((time.monotonic() - began) * 1000)
            assert process.returncode == 0
        found[f"exec_{way}_first_byte_ms"] = spread(waits)
    bare = []
    for _ in range(times):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "cube", "version"], cwd=ROOT, check=True,
                       capture_output=True)  # fmt: skip
        bare.append((time.monotonic() - began) * 1000)
    return found | {"cube_version_ms": spread(bare)}


def main(args: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench logs", description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the talker")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory(prefix="cube-bench-") as directory:
        cluster = TestCluster(
            Path(directory), {"CUBE_DRIVERS_DOCKER_ENABLED": "off"}, is_secure=True
        )
        try:
            cluster.form(2)
            cluster.cube("run", "--name", "kept", "--", "sh", "-c", KEPT)
            cluster.cube("run", "--name", "talker", "--", "sh", "-c", "yes cube")
            [task] = cluster.serving("kept", 1)
            [other] = cluster.serving("talker", 1)
            found: dict[str, Any] = {}
            local, remote = sides(cluster, task["node_id"])
            ways = {"local": local, "remote": remote}
            wait_for("all is written", lambda: is_written(local))
            found |= talker(
                cluster, dict(zip(ways, sides(cluster, other["node_id"]), strict=True)),
                given.seconds,
            )  # fmt: skip
            cluster.cube("rm", "talker", "--yes")
            wait_for("it has gone", lambda: not cluster.tasks("talker"))
            return found | kept(ways, given.times) | first_byte(ways, given.times)
        finally:
            cluster.stop()


def sides(cluster: TestCluster, node_id: str) -> tuple[Node, Node]:
    """Who has the task, and who has not."""
    first, second = cluster.nodes
    has_it = first.get("/v1/status")["node"]["id"] == node_id
    return (first, second) if has_it else (second, first)


def is_written(node: Node) -> bool:
    size = 0
    with open_logs(node, "kept.main.0", "") as response:
        while data := response.read(READ_BYTES):
            size += len(data)
    return size > 15_000_000
