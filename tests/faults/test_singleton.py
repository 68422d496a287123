"""An at_most_one task tells a witness whom no partition touches that it is there. The witness never
hears two at once: whatever becomes of the task's node, its agent and its leader."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.faults.cluster import Agent, FaultCluster, Json
from tests.faults.networks import Hosts, why_no_hosts
from tests.raft.disks import directory_for_disks

pytestmark = [pytest.mark.e2e, pytest.mark.root]

NODES = 5
# Nodes are declared down long before their tasks have ended, so only the lease keeps two apart.
ENVIRONMENT = {"CUBE_DRIVERS_PROCESS_ENABLED": "on", "CUBE_CLUSTER_NODE_GRACE": "1s"}
LOST_AFTER, STOP_TIMEOUT = "2s", "3s"
# Ends by KILL only: the longest that a lease allows.
TASK = """
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
host, port = sys.argv[1].split(":")
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    out.sendto(os.environ["CUBE_FENCE"].encode(), (host, int(port)))
    time.sleep(0.02)
"""


@dataclass
class Witness:
    """What it heard, and when by its own clock."""

    inbox: socket.socket
    where: str
    heard: list[tuple[float, int]] = field(default_factory=list)

    def listen(self) -> None:
        while True:
            data = self.inbox.recv(64)
            if not data:
                return
            self.heard.append((time.monotonic(), int(data)))

    def fences(self) -> list[int]:
        """In the order in which they were heard; one that came again after another is there twice."""
        return [fence for fence, _ in itertools.groupby(fence for _, fence in list(self.heard))]

    def gap_s(self, before: int, after: int) -> float:
        """Of silence between the last of one and the first of the other."""
        heard = list(self.heard)
        first_s = next(at_s for at_s, fence in heard if fence == after)
        return first_s - max(at_s for at_s, fence in heard if fence == before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[FaultCluster]:
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    with directory_for_disks() as directory:
        made = FaultCluster(directory, Hosts(NODES), dict(ENVIRONMENT))
        try:
            made.form(NODES)
            yield made
        finally:
            made.close()


@pytest.fixture
def witness(cluster: FaultCluster) -> Iterator[Witness]:
    assert isinstance(cluster.network, Hosts)
    inbox, where = cluster.network.witness()
    made = Witness(inbox, where)
    listening = threading.Thread(target=made.listen)
    listening.start()
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            inbox.shutdown(socket.SHUT_RDWR)
        listening.join()
        inbox.close()


def submit(cluster: FaultCluster, name: str, witness: Witness, not_on: Agent) -> None:
    job: Json = {
        "name": name,
        "type": "service",
        "groups": {
            "g": {
                "driver": "process",
                "command": [sys.executable, "-c", TASK, witness.where],
                "at_most_one": True,
                "lost_after": LOST_AFTER,
                "stop_timeout": STOP_TIMEOUT,
                "placement": {
                    "constraints": [
                        {"attribute": "node.name", "operator": "!=", "value": not_on.name}
                    ]
                },
            }
        },
    }
    with contextlib.closing(not_on.connection(10.0)) as connection:
        headers = {"Content-Type": "application/json"}
        status, answer, _ = connection.ask("POST", "/v1/jobs", json.dumps(job).encode(), headers)
    assert status == 201, answer


def task_of(asked: Agent, job: str) -> Json:
    """The one that has not ended, or else nothing."""
    listed = asked.try_get(f"/v1/tasks?job={job}") or {"items": []}
    ended = ("completed", "failed", "lost", "rejected")
    live = [task for task in listed["items"] if task["state"] not in ended]
    return live[0] if live else {}


def cut_off(cluster: FaultCluster, some: list[Agent]) -> None:
    network = cluster.network
    assert isinstance(network, Hosts)
    for one in some:
        for other in cluster.agents:
            if other not in some:
                network.cut(one.number, other.number)
                network.cut(other.number, one.number)


CASES: dict[str, Callable[[Agent, Agent], list[Agent]]] = {
    "its node and the leader": lambda node, leader: [node, leader],
    "its node, whose agent is dead": lambda node, _leader: [node],
}


@pytest.mark.parametrize("case", CASES)
def test_the_witness_never_hears_two(cluster: FaultCluster, witness: Witness, case: str) -> None:
    network = cluster.network
    assert isinstance(network, Hosts)
    job = f"one-{list(CASES).index(case)}"
    leader = cluster.leader()
    submit(cluster, job, witness, not_on=leader)
    cluster.wait_for("the task is heard", lambda: witness.heard)
    cluster.wait_for("it is known to run", lambda: task_of(leader, job).get("state") == "running")
    task = task_of(leader, job)
    [node] = [agent for agent in cluster.agents if agent.name == task["node_name"]]
    away = CASES[case](node, leader)
    asked = next(agent for agent in cluster.agents if agent not in away)
    cut_off(cluster, away)
    cut_s = time.monotonic()
    if "dead" in case:
        node.kill()
    cluster.wait_for("another one is heard", lambda: len(witness.fences()) > 1)
    first, second = witness.fences()[:2]
    print(f"{case}: silence {witness.gap_s(first, second):.2f} s, "
          f"replaced {time.monotonic() - cut_s:.2f} s after the cut")  # fmt: skip
    network.heal()
    if not node.runs:
        cluster.start(node)
    cluster.wait_for("all are ready again", lambda: all_ready(cluster))
    heard = len(witness.heard)
    cluster.wait_for("one remains", lambda: len(witness.heard) > heard + 20)
    fences = witness.fences()
    assert fences == sorted(set(fences)), "two at once, or an old one after a new one"
    assert fences[-1] == task_of(asked, job)["fence"]
    with contextlib.closing(asked.connection(10.0)) as connection:
        assert connection.ask("DELETE", f"/v1/jobs/{job}")[0] == 202
    cluster.wait_for(
        "it is gone", lambda: not (asked.try_get(f"/v1/tasks?job={job}") or {"items": [1]})["items"]
    )
    cluster.check_logs()


def all_ready(cluster: FaultCluster) -> bool:
    for agent in cluster.agents:
        listed = agent.try_get("/v1/nodes")
        if listed is None or [node["status"] for node in listed["items"]] != ["ready"] * NODES:
            return False
    return True
