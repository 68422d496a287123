"""What a user does in the first ten minutes, with plain processes. Docker: test_docker_walks.py."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.e2e.harness import (
    EXAMPLES,
    Json,
    TestCluster,
    curl,
    pid_exists,
    same,
    wait_for,
)
from tests.ports import free_ports

pytestmark = pytest.mark.e2e

HELLO = str(EXAMPLES / "hello.toml")


def address(task: Json) -> str:
    return f"http://{task['address']}:{task['ports']['http']['host']}/"


def test_three_agents_become_one_cluster(cluster: TestCluster) -> None:
    cluster.form(3)
    for node in cluster.nodes:
        listed = cluster.cube_json("node", "ls", at=node)["items"]
        assert [n["status"] for n in listed] == ["ready"] * 3
        assert sorted(n["role"] for n in listed) == ["leader", "voter", "voter"]
    text = cluster.cube("node", "ls").stdout
    assert text.count("ready") == 3
    assert text.count("leader") == 1
    keys = [node.directory / "keys.json" for node in cluster.nodes]
    assert {path.read_bytes() for path in keys} == {keys[0].read_bytes()}
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_bootstrap_expect_makes_one_cluster(cluster: TestCluster, tmp_path: Path) -> None:
    nodes = [cluster.add(f"n{i}") for i in (1, 2, 3)]
    config = tmp_path / "cube.toml"
    join = json.dumps([node.address for node in nodes])
    config.write_text(f"[cluster]\nbootstrap_expect = 3\njoin = {join}\n")
    for node in nodes:
        cluster.start(node, arguments=["--config", str(config)])
    for node in nodes:
        wait_for(f"{node.name} is ready", node.is_ready)
    wait_for("all see all", lambda: cluster.all_ready(3))
    assert len({node.get("/v1/status")["cluster_id"] for node in nodes}) == 1
    cluster.leader()


def test_hello_runs_and_every_command_answers_at_every_node(cluster: TestCluster) -> None:
    cluster.form(3)
    done = cluster.cube("run", HELLO)
    for slot in range(3):
        assert f"hello.web.{slot}" in done.stderr
    assert "healthy" in done.stderr
    tasks = cluster.serving("hello", 3)
    for task in tasks:
        assert curl(address(task)) == f"hello from {task['name']} on {task['node_name']}\n"
        assert address(task).rstrip("/") in done.stdout
    for node in cluster.nodes:
        assert len(cluster.cube_json("ps", "hello", at=node)["items"]) == 3
        assert cluster.cube_json("status", at=node)["quorum"] is True
        assert cluster.cube_json("status", "hello", at=node)["status"] == "running"
        assert cluster.cube_json("why", "hello", at=node)["explanations"] == []
        for task in tasks:
            assert "GET /" in cluster.cube("logs", task["name"], at=node).stdout
    cluster.cube("scale", "hello/web=5", at=cluster.nodes[2])
    after = cluster.serving("hello", 5)
    assert {same(task) for task in tasks} <= {same(task) for task in after}
    lines = cluster.cube("logs", "hello", "-o", "json").stdout.splitlines()
    assert {json.loads(line)["task"] for line in lines} >= {task["name"] for task in tasks}
    assert cluster.cube_json("scale", "hello/web=5")["groups"]["web"]["healthy"] == 5
    stopped = cluster.cube_json("stop", "hello", at=cluster.nodes[1])
    assert (stopped["name"], stopped["changed"]) == ("hello", True)
    assert cluster.tasks("hello") == []
    assert not any(pid_exists(task["handle"]) for task in after)
    cluster.cube("start", "hello")
    cluster.serving("hello", 5)
    cluster.cube("rm", "hello")
    cluster.cube("status", "hello", code=4)
    cluster.cube("run", HELLO)  # the name may be used again at once
    cluster.serving("hello", 3)


def test_the_leader_is_killed_and_nothing_healthy_is_touched(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", HELLO)
    before = cluster.serving("hello", 3)
    victim = cluster.leader()
    victim_id = victim.get("/v1/status")["node"]["id"]
    survivors = [node for node in cluster.nodes if node is not victim]
    victim.kill()
    # Reads and writes go on, through whichever survivor is asked.
    done = cluster.cube("run", "--name", "second", "--", "sleep", "1000", at=survivors[0])
    assert "second v1 is live" in done.stderr
    assert cluster.leader() is not victim
    wait_for(
        "the dead node's task is replaced",
        lambda: all(
            t["node_id"] != victim_id for t in cluster.serving("hello", 3, at=survivors[1])
        ),
    )
    after = {task["id"]: task for task in cluster.tasks("hello", at=survivors[0])}
    kept = [task for task in before if task["node_id"] != victim_id]
    assert len(kept) == 2
    for task in kept:
        assert same(after[task["id"]]) == same(task)
        assert pid_exists(task["handle"])
    # Back with the same data directory: the same node, and nothing twice.
    cluster.start(victim)
    wait_for("the killed node is ready again", victim.is_ready)
    assert victim.get("/v1/status")["node"]["id"] == victim_id
    stale = [task for task in before if task["node_id"] == victim_id]
    for task in stale:
        wait_for("the stale task is stopped", lambda pid=task["handle"]: not pid_exists(pid))  # type: ignore[misc]
    wait_for("all nodes are ready", lambda: cluster.all_ready(3))
    again = cluster.serving("hello", 3, at=victim)
    assert {same(task) for task in again} == {same(task) for task in after.values()}


def test_a_paused_leader_is_replaced_and_ends_what_was_replaced(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", HELLO)
    before = cluster.serving("hello", 3)
    leader = cluster.leader()
    leader_id = leader.get("/v1/status")["node"]["id"]
    survivors = [node for node in cluster.nodes if node is not leader]
    os.kill(leader.pid, signal.SIGSTOP)  # it hangs: nothing is refused, nothing answered
    try:
        wait_for(
            "its tasks run elsewhere",
            lambda: all(
                t["node_id"] != leader_id for t in cluster.serving("hello", 3, at=survivors[0])
            ),
        )
        after = {same(task) for task in cluster.serving("hello", 3, at=survivors[0])}
    finally:
        os.kill(leader.pid, signal.SIGCONT)
    for task in before:
        if task["node_id"] == leader_id:
            wait_for("the replaced task ends", lambda t=task: not pid_exists(t["handle"]))  # type: ignore[misc]
    wait_for("all nodes are ready", lambda: cluster.all_ready(3))
    assert {same(task) for task in cluster.serving("hello", 3, at=leader)} == after
    assert len({json.dumps(node.get("/v1/status")["leader"]) for node in cluster.nodes}) == 1


def test_an_agent_killed_and_restarted_takes_its_tasks_up_again(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", HELLO)
    before = {same(task) for task in cluster.serving("hello", 3)}
    for node in (cluster.leader(), cluster.follower()):
        node.kill()
        cluster.start(node)
        wait_for(f"{node.name} is ready again", node.is_ready)
        wait_for("all nodes are ready", lambda: cluster.all_ready(3))
        tasks = cluster.serving("hello", 3, at=node)
        assert {same(task) for task in tasks} == before
        assert all(task["restarts"] == 0 for task in tasks)


def test_all_agents_are_killed_and_everything_is_as_before(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", HELLO)
    cluster.cube("run", "--name", "other", "--count", "2", "--", "sleep", "1000")
    before = {same(t) for t in [*cluster.serving("hello", 3), *cluster.serving("other", 2)]}
    jobs = cluster.cube_json("job", "ls")["items"]
    nodes = {n["id"]: n["name"] for n in cluster.cube_json("node", "ls")["items"]}
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        cluster.start(node)
    for node in cluster.nodes:
        wait_for(f"{node.name} is ready again", node.is_ready)
    wait_for("all nodes are ready", lambda: cluster.all_ready(3))
    assert {n["id"]: n["name"] for n in cluster.cube_json("node", "ls")["items"]} == nodes
    assert [
        (j["name"], j["version"], j["spec"]) for j in cluster.cube_json("job", "ls")["items"]
    ] == [(j["name"], j["version"], j["spec"]) for j in jobs]
    assert {same(t) for t in [*cluster.serving("hello", 3), *cluster.serving("other", 2)]} == before
    cluster.cube("scale", "other=3")  # and it goes on
    cluster.serving("other", 3)


def test_an_acknowledged_write_is_there_whoever_is_killed_next(cluster: TestCluster) -> None:
    cluster.form(3)
    stop = threading.Event()
    acknowledged: list[str] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"w{number}"
            node = cluster.running()[number % len(cluster.running())]
            done = cluster.cube(
                "run", "--name", name, "--count", "0", "--detach", "--", "true", at=node, code=None
            )
            if done.returncode == 0:
                acknowledged.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(2):
            enough = len(acknowledged) + 3
            wait_for("some writes", lambda n=enough: len(acknowledged) >= n)  # type: ignore[misc]
            victim = cluster.leader()
            victim.kill()
            cluster.leader()
            cluster.start(victim)
            wait_for("it is back", victim.is_ready)
    finally:
        stop.set()
        writer.join()
    for node in cluster.nodes:
        wait_for(
            f"every acknowledged job is at {node.name}",
            lambda at=node: (
                set(acknowledged)  # type: ignore[misc]
                <= {j["name"] for j in at.get("/v1/jobs?limit=1000")["items"]}
            ),
        )


def test_sigterm_leaves_tasks_running_and_hands_over(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", HELLO)
    before = cluster.serving("hello", 3)
    leader = cluster.leader()
    assert leader.terminate() == 0
    assert cluster.leader() is not leader
    assert all(pid_exists(task["handle"]) for task in before)


def test_a_job_that_fits_nowhere_says_why_and_exits_3(cluster: TestCluster) -> None:
    cluster.form(1)
    big = """
name = "big"
type = "service"
[groups.g]
driver = "process"
command = ["sleep", "1000"]
[groups.g.resources]
memory = "900GiB"
"""
    done = cluster.cube("run", "-", "--timeout", "1s", stdin=big.encode(), code=3)
    assert "memory" in done.stderr
    why = cluster.cube("why", "big").stdout
    assert "n1" in why
    assert "memory" in why
    assert "try:" in why
    pending = cluster.cube_json("ps", "big")["items"]
    assert [(t["name"], t["state"]) for t in pending] == [("big.g.0", "pending")]


def test_a_failing_job_says_so_and_exits_1(cluster: TestCluster) -> None:
    cluster.form(1)
    done = cluster.cube(
        "run", "-", "--timeout", "40s", code=None,
        stdin=b'name="bad"\ntype="batch"\n[groups.g]\ndriver="process"\ncommand=["false"]\n'
        b'[groups.g.restart]\nattempts=1\ndelay="100ms"\n[groups.g.reschedule]\nattempts=1\ndelay="100ms"\n',
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "bad v1 failed" in done.stderr
    assert "bad.g.0: failed, exited with code 1" in done.stderr


def test_batch_runs_to_completion(cluster: TestCluster) -> None:
    cluster.form(1)
    done = cluster.cube("run", str(EXAMPLES / "batch.toml"))
    assert "complete" in done.stderr
    job = cluster.cube_json("status", "primes")
    assert job["status"] == "completed"
    counts = job["groups"].values()
    assert sum(group["completed"] for group in counts) == sum(group["count"] for group in counts)
    assert "completed, 0 failed" in cluster.cube("ps", "primes").stderr
    again = cluster.cube("run", str(EXAMPLES / "batch.toml"))
    assert "nothing has changed" in again.stderr


def test_a_taken_port_and_a_held_directory_are_said_clearly(cluster: TestCluster) -> None:
    cluster.form(1)
    node = cluster.nodes[0]
    spare = [str(p) for p in free_ports(3)]
    ports = ["--raft", spare[1], "--gossip", spare[2]]
    other = ["agent", "--insecure", "--data-dir", str(node.directory.with_name("d2"))]
    code, text = cluster_less([*other, "--http", str(node.http), *ports])
    assert code == 1
    assert str(node.http) in text
    held = ["agent", "--insecure", "--data-dir", str(node.directory), "--http", spare[0], *ports]
    code, text = cluster_less(held)
    assert code == 1
    assert "another agent" in text


def cluster_less(arguments: list[str]) -> tuple[int, str]:
    import subprocess
    import sys

    from tests.e2e.harness import ROOT

    done = subprocess.run(
        [sys.executable, "-m", "cube", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr
