"""What Cube adds to the start of a container: the same one, made by a plain client of the engine and by a
cluster on that engine, in turns. Each node has up to 8 starts in flight: to compare like with like, the
plain client has as many as all nodes together.

`started` is until the engine's own stamp of the (last) start, `told` until the API says running. The engine
is DOCKER_HOST's, else a private one (scripts/test-engine, needs root) that is ended afterwards.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
from benches.cluster import spread

from cube.adapters.docker_engine import transport
from cube.adapters.docker_engine.marks import Marks, time_ns
from cube.adapters.docker_engine.request import container_config
from cube.adapters.docker_engine.settings import DockerSettings
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch
from tests.e2e.harness import TestCluster, wait_for

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "busybox:latest"
COMMAND = ["sleep", "100000"]
IN_FLIGHT = DockerSettings().pool_size  # the engine's rate is flat from 4 on (performance.md)
LABEL = "cube-bench"
MEMORY_BYTES = 8 << 20


class Bare:
    """The engine without Cube."""

    def __init__(self, host: str, in_flight: int) -> None:
        self._in_flight = in_flight
        self.client: Any = transport.connect({"base_url": host}, 60)
        self._made = 0

    def run(self, count: int) -> float:
        """Seconds from the first request to the last start."""
        began = time.time()
        with ThreadPoolExecutor(self._in_flight) as pool:
            ids = list(pool.map(lambda _: self._one(), range(count)))
        took = self.last_start(ids) - began
        with ThreadPoolExecutor(self._in_flight) as pool:
            list(pool.map(self._remove, ids))
        return took

    def _one(self) -> str:
        self._made += 1
        launch = Launch(
            cluster_id=ClusterId(LABEL),
            node_id=NodeId("bare"),
            task_id=TaskId(f"{time.time_ns():x}{self._made:x}"),
            task_name="bare.g.0",
            job="bare",
            group="g",
            attempt=1,
            image=IMAGE,
            command=tuple(COMMAND),
            cpu_milli=10,
            memory_bytes=MEMORY_BYTES,
            memory_limit_bytes=MEMORY_BYTES,
            pids_limit=1024,
        )
        marks = Marks(launch.cluster_id, launch.node_id)
        config = container_config(launch, marks, DockerSettings(), "json-file")
        made = self.client.create_container_from_config(config)
        self.client.start(made["Id"])
        return str(made["Id"])

    def _remove(self, container_id: str) -> None:
        self.client.remove_container(container_id, force=True)

    def last_start(self, ids: list[str]) -> float:
        return max(
            time_ns(self.client.inspect_container(one)["State"]["StartedAt"]) / 1e9 for one in ids
        )


def cube_run(cluster: TestCluster, bare: Bare, name: str, count: int) -> tuple[float, float]:
    """Seconds from the request to the last start, and until the API told of it."""
    group = {
        "count": count,
        "image": IMAGE,
        "command": COMMAND,
        "resources": {"cpu": 0.01, "memory": MEMORY_BYTES},
    }
    job = {"name": name, "type": "service", "groups": {"g": group}}
    node = cluster.leader()
    began = time.time()
    node.call("POST", "/v1/jobs", job)
    index = 0
    while True:
        path = f"/v1/tasks?job={name}&limit=1000"
        items = node.get(f"{path}&index={index}&wait=10s" if index else path)
        index = items["index"]
        tasks = [task for task in items["items"] if task["state"] == "running"]
        if len(tasks) == count:
            break
    told = time.time() - began
    started = bare.last_start([task["handle"] for task in tasks]) - began
    node.call("DELETE", f"/v1/jobs/{name}")
    labels = {"label": [f"cube.job={name}"]}
    wait_for(
        "its containers are gone", lambda: not bare.client.containers(all=True, filters=labels)
    )
    return started, told


def measure(host: str, args: argparse.Namespace) -> dict[str, Any]:
    bare = Bare(host, args.in_flight)
    with tempfile.TemporaryDirectory(prefix="cube-bench-") as directory:
        cluster = TestCluster(Path(directory), {"CUBE_DRIVERS_DOCKER_HOST": host})
        try:
            cluster.form(args.nodes)
            wait_for("all are ready", lambda: cluster.all_ready(args.nodes))
            wait_for(
                "every node's engine answers",
                lambda: all(
                    one["drivers"]["docker"]["healthy"]
                    for one in cluster.leader().get("/v1/nodes")["items"]
                ),
            )
            cube_run(cluster, bare, "warm", 3)
            bare.run(1)
            ones: dict[str, list[float]] = {"bare": [], "cube": [], "told": []}
            for number in range(args.singles):
                ones["bare"].append(bare.run(1) * 1000)
                started, told = cube_run(cluster, bare, f"one-{number}", 1)
                ones["cube"].append(started * 1000)
                ones["told"].append(told * 1000)
            many: dict[str, list[float]] = {"bare": [], "cube": [], "told": []}
            for number in range(args.rounds):
                many["bare"].append(args.tasks / bare.run(args.tasks))
                started, told = cube_run(cluster, bare, f"many-{number}", args.tasks)
                many["cube"].append(args.tasks / started)
                many["told"].append(args.tasks / told)
        finally:
            cluster.stop()
            bare.client.close()
    one = {name: spread(values) for name, values in ones.items()}
    result: dict[str, Any] = {
        "one_task_ms": one,
        # Of each start over the bare one just before it: the machine was as busy for both.
        "one_task_overhead_ms": {
            name: spread([mine - bare for mine, bare in zip(ones[name], ones["bare"], strict=True)])
            for name in ("cube", "told")
        },
    }
    if args.rounds:
        per_s = {name: spread(values) for name, values in many.items()}
        result |= {
            "tasks": args.tasks,
            "bare_in_flight": args.in_flight,
            "starts_per_s": per_s,
            "share_of_bare": {
                name: round(per_s[name]["median"] / per_s["bare"]["median"], 3)
                for name in ("cube", "told")
            },
        }
    return result


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="scripts/bench docker_start", description=__doc__)
    parser.add_argument("--singles", type=int, default=5, help="starts of one task, each way")
    parser.add_argument("--tasks", type=int, default=20, help="in one job (the target's are 100)")
    parser.add_argument("--rounds", type=int, default=1, help="of that job, each way")
    parser.add_argument("--nodes", type=int, default=3, help="of the cluster, all on one engine")
    parser.add_argument(
        "--in-flight", type=int, help="starts at once without Cube; by default 8 for each node"
    )
    args = parser.parse_args(arguments)
    args.in_flight = args.in_flight or IN_FLIGHT * args.nodes
    host = os.environ.get("DOCKER_HOST")
    home = None if host else tempfile.mkdtemp(prefix="cubeb", dir="/tmp")
    engine = [sys.executable, str(ROOT / "scripts" / "test-engine")]
    try:
        if home is not None:
            subprocess.run([*engine, "start", home], check=True, capture_output=True)
            host = f"unix://{home}/docker.sock"
        assert host is not None
        image = [sys.executable, str(ROOT / "scripts" / "busybox-image"), "--host", host]
        subprocess.run(image, check=True, capture_output=True)
        with docker.APIClient(base_url=host) as client:
            version = client.version(api_version=False)["Version"]
        return {"engine": version, "nodes": args.nodes, **measure(host, args)}
    finally:
        if home is not None:
            subprocess.run([*engine, "stop", home], check=False, capture_output=True)
