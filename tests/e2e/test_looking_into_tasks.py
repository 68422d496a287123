"""Looking into tasks through a node that does not have them, with certificates and tokens: exec, logs,
files, signals, restarts, use. One cluster of two for all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.harness import ROOT, Node, TestCluster, wait_for

JOB = """
name = "shop"
type = "service"
[groups.web]
count = 2
driver = "process"
command = ["sh", "-c", "trap 'echo hup' HUP; echo begun; while :; do sleep 0.1; done"]
resources = { cpu = 0.01, memory = "16MiB" }
[groups.loud]
count = 0
driver = "process"
command = ["sh", "-c", "yes a-line-of-a-task-that-never-stops"]
resources = { cpu = 0.01, memory = "16MiB" }
"""
RSS_BYTES_MAX = (
    60 << 20
)  # what following a loud task may cost an agent: sockets and buffers of two hops


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    directory = tmp_path_factory.mktemp("tools")
    made = TestCluster(directory, {"CUBE_DRIVERS_DOCKER_ENABLED": "off"}, is_secure=True)
    try:
        made.form(2)
        (directory / "shop.toml").write_text(JOB)
        made.cube("run", str(directory / "shop.toml"))
        yield made
    finally:
        made.stop()


def apart(cluster: TestCluster, task: str) -> tuple[Node, Node]:
    """The node that has the task, and the other one."""
    node_id = cluster.nodes[0].get(f"/v1/tasks/{task}")["node_id"]
    first, second = cluster.nodes
    here = first.get("/v1/status")["node"]["id"] == node_id
    return (first, second) if here else (second, first)


def test_a_command_runs_where_the_task_is_and_who_ran_it_is_noted(cluster: TestCluster) -> None:
    owner, other = apart(cluster, "shop.web.0")
    for at in (owner, other):
        done = cluster.cube(
            "exec", "shop.web.0", "--", "sh", "-c", "cat; echo $CUBE_TASK_NAME; exit 9",
            at=at, code=9, stdin=b"given\n",
        )  # fmt: skip
        assert done.stdout == "given\nshop.web.0\n"
    assert "no nonsense in PATH" in cluster.cube(
        "exec", "shop.web.0", "nonsense", at=other, code=127
    ).stderr  # fmt: skip
    noted = [line for line in owner.log.read_text().splitlines() if "exec_started" in line]
    assert len(noted) == 3
    assert all("actor=token:" in line and "task=shop.web.0" in line for line in noted)
    assert "exec_started" not in other.log.read_text()


def test_files_go_in_and_come_back(cluster: TestCluster, tmp_path: Path) -> None:
    _, other = apart(cluster, "shop.web.1")
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(os.urandom(3_000_000))
    cluster.cube("cp", str(tmp_path / "d"), "shop.web.1:in", at=other)
    cluster.cube("cp", "shop.web.1:in", str(tmp_path / "back"), at=other)
    assert (tmp_path / "back/e/f").read_bytes() == (tmp_path / "d/e/f").read_bytes()
    assert "No such file" in cluster.cube("cp", "shop.web.1:no", str(tmp_path), code=1).stderr


def test_a_signal_arrives_and_a_restart_is_the_next_attempt(cluster: TestCluster) -> None:
    _, other = apart(cluster, "shop.web.0")
    cluster.cube("task", "signal", "shop.web.0", "HUP", at=other)
    wait_for("it hears", lambda: "hup" in cluster.cube("logs", "shop.web.0", at=other).stdout)
    cluster.cube("task", "restart", "shop.web.0", at=other)

    def again() -> bool:
        task = cluster.nodes[0].get("/v1/tasks/shop.web.0")
        return bool(task["attempt"] == 2 and task["state"] == "running")

    wait_for("it runs again", again)
    task = cluster.nodes[0].get("/v1/tasks/shop.web.0")
    assert "restart_requested" in {entry["reason"] for entry in task["history"]}
    wait_for(
        "both attempts are in its output",
        lambda: cluster.cube("logs", "shop.web.0", at=other).stdout.count("begun") == 2,
    )
    rows = cluster.cube("top", "shop", at=other).stdout
    assert "shop.web.0" in rows and "shop.web.1" in rows


def test_a_task_that_never_stops_writing_harms_no_agent(cluster: TestCluster) -> None:
    """It is followed through the other node by somebody who reads little. Memory is bounded, the API
    answers, and what could not be kept for the reader is told."""
    following = subprocess.Popen(
        [sys.executable, "-m", "cube", "--addr", cluster.nodes[0].address, "logs", "-f", "shop/loud"],
        stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "CUBE_DATA_DIR": str(cluster.nodes[0].trusted)},
    )  # fmt: skip
    try:
        before = {node: psutil.Process(node.pid).memory_info().rss for node in cluster.nodes}
        cluster.cube("scale", "shop/loud=1")
        assert following.stdout is not None
        assert b"shop.loud.0@" in following.stdout.readline()  # it has joined by itself
        owner, _ = apart(cluster, "shop.loud.0")
        task_id = owner.get("/v1/tasks/shop.loud.0")["id"]
        directory = owner.directory / "tasks" / task_id / "logs"

        def rotations() -> int:
            return max(int(path.name.split(".")[1]) for path in directory.glob("stdout.*.log"))

        wait_for("all that was kept at first is gone", lambda: rotations() > 12)
        for node, rss in before.items():
            assert node.get("/v1/status")["quorum"]
            assert psutil.Process(node.pid).memory_info().rss < rss + RSS_BYTES_MAX
        deadline = time.monotonic() + 60
        while b"dropped here" not in following.stdout.read(1 << 20):
            assert time.monotonic() < deadline
        cluster.cube("scale", "shop/loud=0")
    finally:
        following.kill()
        following.communicate()
