"""Nobody assigns roles: the cluster picks its voters, and replaces the dead ones."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Json, Node, TestCluster, wait_for

pytestmark = pytest.mark.e2e

GRACE_S = 2


@pytest.fixture
def quick(cluster: TestCluster) -> TestCluster:
    """A cluster that gives a dead voter two seconds."""
    cluster.environment["CUBE_CLUSTER_DEAD_VOTER_GRACE"] = f"{GRACE_S}s"
    return cluster


class Writer:
    """Writes all the while, through whichever node runs; remembers what was acknowledged."""

    def __init__(self, cluster: TestCluster) -> None:
        self.cluster = cluster
        self.acknowledged: list[str] = []
        self.gaps_s: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        for number in itertools.count():
            if self._stop.is_set():
                return
            running = self.cluster.running()
            if running and self._write(running[number % len(running)], f"w{number}"):
                self.acknowledged.append(f"w{number}")
                self.gaps_s.append(time.monotonic() - last)
                last = time.monotonic()

    def _write(self, node: Node, name: str) -> bool:
        done = self.cluster.cube(
            "run", "--name", name, "--count", "0", "--detach", "--", "true", at=node, code=None
        )
        return done.returncode == 0

    def wait_for(self, more: int) -> None:
        enough = len(self.acknowledged) + more
        wait_for("writes go on", lambda: len(self.acknowledged) >= enough)

    def check(self) -> None:
        for node in self.cluster.running():
            wait_for(
                f"every acknowledged write is at {node.name}",
                lambda at=node: set(self.acknowledged) <= jobs_at(at),  # type: ignore[misc]
            )


def jobs_at(node: Node) -> set[str]:
    return {job["name"] for job in node.get("/v1/jobs?limit=1000")["items"]}


def by_name(cluster: TestCluster, name: str) -> Node:
    return next(node for node in cluster.nodes if node.name == name)


def test_two_nodes_have_one_voter_and_a_learner_that_does_everything(cluster: TestCluster) -> None:
    cluster.form(2)
    first, second = cluster.nodes
    assert cluster.voters(1) == {"n1"}
    status: Json = second.get("/v1/status")
    assert (status["role"], status["quorum"]) == ("learner", True)
    assert any("second disk" in warning for warning in status["warnings"])
    assert "second disk" in cluster.cube("status").stdout
    members = cluster.cube("raft", "members", at=second).stdout
    assert [line.split()[3] for line in members.splitlines()[1:3]] == ["leader", "learner"]
    # It takes writes, answers reads from its own log, and runs tasks.
    cluster.cube("run", "--name", "x", "--count", "2", "--", "sleep", "1000", at=second)
    tasks = cluster.serving("x", 2, at=second)
    assert {task["node_name"] for task in tasks} == {"n1", "n2"}
    # Killed and started again it is the same learner; the leader goes on alone.
    second.kill()
    cluster.cube("run", "--name", "y", "--count", "0", "--detach", "--", "true", at=first)
    cluster.start(second)
    wait_for("it is back", second.is_ready)
    wait_for("it has what it missed", lambda: "y" in jobs_at(second))
    assert second.get("/v1/status")["role"] == "learner"


def test_a_dead_voter_is_replaced_by_the_learner(quick: TestCluster) -> None:
    quick.form(4)
    voters = quick.voters(3)
    learner = next(node for node in quick.nodes if node.name not in voters)
    assert learner.get("/v1/status")["role"] == "learner"
    leader = quick.leader()
    victim = next(node for node in quick.nodes if node.name in voters and node is not leader)
    with Writer(quick) as writer:
        writer.wait_for(2)
        victim.kill()
        wait_for(
            "the learner votes in its place",
            lambda: quick.voters(3) == voters - {victim.name} | {learner.name},
        )
        writer.wait_for(3)
        # Its vote counts: another one may die now.
        other = next(n for n in quick.running() if n.name in quick.voters(3) and n is not leader)
        other.kill()
        writer.wait_for(3)
        # They come back, as what the cluster needs: three vote, one follows.
        for node in (victim, other):
            quick.start(node)
            wait_for(f"{node.name} is ready", node.is_ready)
        wait_for("all are ready", lambda: quick.all_ready(4))
        assert len(quick.voters(3)) == 3
    writer.check()
    roles = sorted(node.get("/v1/status")["role"] for node in quick.nodes)
    assert roles == ["leader", "learner", "voter", "voter"]


def test_the_leader_is_killed_while_voters_are_replaced(quick: TestCluster) -> None:
    """At any time: also between a removal and the addition that belongs to it."""
    quick.form(5)
    for node in (quick.add("n6"), quick.add("n7")):
        quick.start(node, quick.nodes[0])
    wait_for("seven are ready", lambda: quick.all_ready(7))
    quick.voters(5)
    with Writer(quick) as writer:
        writer.wait_for(2)
        follower = quick.follower()
        first = quick.leader()
        follower.kill()
        time.sleep(GRACE_S)  # about now it is being replaced, wherever the leader has got to
        first.kill()
        writer.wait_for(3)
        wait_for(
            "five live nodes vote",
            lambda: quick.voters(5) == {node.name for node in quick.running()},
        )
        for node in (follower, first):
            quick.start(node)
            wait_for(f"{node.name} is ready", node.is_ready)
    writer.check()


def test_a_node_that_is_down_is_removed_with_its_vote(cluster: TestCluster) -> None:
    cluster.form(4)
    voters = cluster.voters(3)
    leader = cluster.leader()
    victim = next(node for node in cluster.nodes if node.name in voters and node is not leader)
    cluster.cube("node", "rm", victim.name, at=leader, code=None)  # it is up: refused
    assert len(leader.get("/v1/nodes")["items"]) == 4
    victim.kill()
    asked = next(node for node in cluster.running() if node is not leader)
    wait_for(
        "it is down",
        lambda: (
            {n["name"]: n["status"] for n in asked.get("/v1/nodes")["items"]}[victim.name] == "down"
        ),
    )
    cluster.cube("node", "rm", victim.name, at=asked)  # long before dead_voter_grace
    spare = next(n.name for n in cluster.nodes if n.name not in voters)
    wait_for(
        "the learner votes in its place",
        lambda: cluster.voters(3) == voters - {victim.name} | {spare},
    )
    assert len(leader.get("/v1/nodes")["items"]) == 3
    # When it comes back it is told, and is no trouble.
    cluster.start(victim)
    wait_for("it is told", lambda: "was removed from" in victim.log.read_text())
    assert len(leader.get("/v1/nodes")["items"]) == 3
    assert not victim.is_ready()


def test_a_leader_dies_right_after_it_admitted_a_node(quick: TestCluster, tmp_path: Path) -> None:
    """Whoever leads next goes on with it, or it asks again."""
    quick.form(3)
    leader = quick.leader()
    joiner = quick.add("n4")
    quick.start(joiner, *quick.nodes[:3])
    wait_for("it is being followed", lambda: "join_granted" in joiner.log.read_text())
    leader.kill()
    wait_for("it is ready", joiner.is_ready)
    wait_for("it votes in the dead one's place", lambda: "n4" in quick.voters(3))
