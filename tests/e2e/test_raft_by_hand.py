"""What operators do with the log by hand: who leads, saving and restoring it, a lost quorum."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from cube.adapters.raft.offline import read_contents
from cube.agent.cleanup import end_tasks_now
from cube.config import load
from cube.statemachine import snapshot
from tests.e2e.harness import Node, TestCluster, same, wait_for

pytestmark = pytest.mark.e2e


def test_leadership_is_handed_over_by_hand_and_by_a_drain(cluster: TestCluster) -> None:
    cluster.form(4)
    voters = cluster.voters(3)
    leader = cluster.leader()
    heir = next(n for n in cluster.nodes if n.name in voters and n is not leader)
    learner = next(n for n in cluster.nodes if n.name not in voters)
    # From a node that neither leads nor votes, to the one that is named.
    done = cluster.cube("raft", "transfer", heir.name, at=learner)
    assert f"{heir.name} leads now, {leader.name} did before" in done.stderr
    assert cluster.leader() is heir
    assert "leads already" in cluster.cube("raft", "transfer", heir.name, at=learner).stderr
    cluster.cube("raft", "transfer", learner.name, code=5)
    cluster.cube("raft", "transfer", "nobody", code=4)
    cluster.cube("raft", "transfer", at=heir)
    assert cluster.leader() is not heir
    # Who follows knows what the leader knows of the others.
    rows = [
        line.split() for line in cluster.cube("raft", "members", at=learner).stdout.splitlines()
    ]
    assert sorted(row[3] for row in rows[1:]) == ["leader", "learner", "voter", "voter"]

    def all_caught_up() -> bool:
        told = cluster.cube_json("raft", "members", at=learner)
        return all(member["caught_up"] for member in (*told["voters"], *told["learners"]))

    wait_for("all have caught up with the new leader", all_caught_up)
    # A leader that is drained hands over, once; nobody else moves.
    leader = cluster.leader()
    cluster.cube("node", "drain", leader.name)
    wait_for("another one leads", lambda: cluster.leader() is not leader)
    successor = cluster.leader()
    term = successor.get("/v1/status")["term"]
    cluster.cube("node", "cordon", successor.name)
    wait_for("the third leads", lambda: cluster.leader() not in (leader, successor))
    assert cluster.leader().get("/v1/status")["term"] == term + 1


def test_a_cluster_that_lost_its_quorum_goes_on_from_one_survivor(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", "--name", "x", "--count", "3", "--", "sleep", "1000")
    cluster.serving("x", 3)
    for name in ("y", "z"):
        cluster.cube("run", "--name", name, "--count", "0", "--detach", "--", "true")
    survivor = cluster.follower()
    lost = [node for node in cluster.nodes if node is not survivor]
    wait_for("the survivor has it all", lambda: jobs_at(survivor) == {"x", "y", "z"})
    mine = [task for task in cluster.tasks("x") if task["node_name"] == survivor.name]
    assert len(mine) == 1
    for node in lost:
        node.kill()
        end_tasks(node)
        shutil.rmtree(node.directory)
    directory = str(survivor.directory)
    refused = cluster.cube("cluster", "recover", "--data-dir", directory, "--yes", code=5)
    assert "another agent runs" in refused.stderr
    survivor.terminate()
    # Nobody to ask: nothing is done, and what would have to be said is said.
    refused = cluster.cube("cluster", "recover", "--data-dir", directory, code=2, at=survivor)
    assert "--yes" in refused.stderr
    before = hashes(survivor.directory / "raft")
    done = cluster.cube("cluster", "recover", "--data-dir", directory, "--yes", at=survivor)
    for told in ("3 jobs: x, y, z", "1 task on", "second cluster", lost[0].name, lost[1].name):
        assert told in done.stdout, done.stdout
    (copy,) = survivor.directory.glob("raft.before-recover-*")
    assert hashes(copy) == before
    again = cluster.cube(
        "cluster", "recover", "--data-dir", directory, "--yes", code=5, at=survivor
    )
    assert "only voter" in again.stderr
    # It leads alone: all jobs are there, writes work, its task was never touched.
    cluster.start(survivor)
    wait_for("it is ready", survivor.is_ready)
    assert jobs_at(survivor) == {"x", "y", "z"}
    cluster.cube("run", "--name", "w", "--count", "0", "--detach", "--", "true", at=survivor)
    serving = cluster.serving("x", 3, at=survivor)
    assert {task["node_name"] for task in serving} == {survivor.name}
    assert same(mine[0]) in {same(task) for task in serving}
    # New nodes at the old addresses join, and three vote again.
    for node in lost:
        cluster.start(node, survivor)
        wait_for(f"{node.name} is ready", node.is_ready)
    assert cluster.voters(3) == {node.name for node in cluster.nodes}
    survivor.kill()
    writes = lost[0]
    cluster.cube("run", "--name", "v", "--count", "0", "--detach", "--", "true", at=writes)
    wait_for("they have it all", lambda: jobs_at(writes) == {"x", "y", "z", "w", "v"})


def test_an_old_voter_that_comes_back_is_no_trouble(cluster: TestCluster) -> None:
    """It is refused by the recovered cluster, told why, and takes nothing with it."""
    cluster.form(3)
    survivor, back = cluster.nodes[0], cluster.nodes[1]
    for node in cluster.nodes:
        node.kill()
    directory = str(survivor.directory)
    cluster.cube("cluster", "recover", "--data-dir", directory, "--yes", at=survivor)
    cluster.start(survivor)
    wait_for("it is ready", survivor.is_ready)
    cluster.start(back)
    wait_for("it is told", lambda: "was removed from this cluster" in back.log.read_text())
    cluster.cube("run", "--name", "w", "--count", "0", "--detach", "--", "true", at=survivor)
    raft = survivor.get("/v1/raft")
    assert [voter["name"] for voter in raft["voters"]] == [survivor.name]
    assert not back.is_ready()
    assert "w" not in jobs_at_any(back)
    # The third comes back, too: together they are a majority of before, and nobody can tell them
    # that they should not go on. Both sides say that there are two; neither moves the other.
    third = cluster.nodes[2]
    cluster.start(third)
    for node in cluster.nodes:
        wait_for(
            f"{node.name} tells of the other history",
            lambda at=node: any("another history" in w for w in warnings_at(at)),  # type: ignore[misc]
        )
    assert [voter["name"] for voter in survivor.get("/v1/raft")["voters"]] == [survivor.name]
    assert jobs_at(survivor) == {"w"}
    assert "w" not in jobs_at_any(back)


def test_a_state_saved_on_a_follower_is_restored_elsewhere(cluster: TestCluster) -> None:
    cluster.form(3)
    cluster.cube("run", "--name", "x", "--count", "2", "--", "sleep", "1000")
    cluster.serving("x", 2)
    leader, follower = cluster.leader(), cluster.follower()
    # Written through another node a moment before: it is in what a follower saves.
    cluster.cube("run", "--name", "y", "--count", "0", "--detach", "--", "true", at=leader)
    file = str(cluster.directory / "saved")
    header = cluster.cube_json("raft", "snapshot", "save", file, at=follower)
    cluster.cube("raft", "snapshot", "save", file, at=follower, code=5)
    assert cluster.cube_json("raft", "snapshot", "inspect", file) == header
    keys = str(cluster.directory / "keys.json")
    shutil.copy(leader.directory / "keys.json", keys)
    for node in cluster.running():
        node.kill()
        end_tasks(node)
        shutil.rmtree(node.directory)
    new = cluster.add("n4")
    cluster.cube(
        "raft", "snapshot", "restore", file, "--data-dir", str(new.directory),
        "--raft", str(new.raft), "--keys", keys, "--insecure", at=new,
    )  # fmt: skip
    restored = read_contents(new.directory / "raft").snapshot_data
    assert restored is not None
    assert snapshot.digest(snapshot.load(restored)) == header["digest"]
    cluster.start(new)
    wait_for("it is ready", new.is_ready)
    assert jobs_at(new) == {"x", "y"}
    assert new.get("/v1/status")["cluster_id"] == header["cluster_id"]
    cluster.serving("x", 2, at=new)
    # The nodes of before are not in it; new ones join, also at the old addresses.
    assert [node["name"] for node in new.get("/v1/nodes")["items"]] == ["n4"]
    for node in (leader, follower):
        cluster.start(node, new)
        wait_for(f"{node.name} is ready", node.is_ready)
    assert len(cluster.voters(3)) == 3


def test_recovered_and_restored_where_nobody_is_trusted_without_proof(
    cluster: TestCluster,
) -> None:
    """Certificates, keys and tokens go on; old nodes' certificates open nothing any more."""
    cluster.is_secure = True
    cluster.form(3)
    first, second, third = cluster.nodes
    cluster.cube("run", "--name", "x", "--count", "0", "--detach", "--", "true", at=first)
    file, keys = str(cluster.directory / "saved"), str(cluster.directory / "keys.json")
    cluster.cube("raft", "transfer", "n2", at=third)
    assert cluster.leader() is second
    cluster.cube("raft", "snapshot", "save", file, at=third)
    shutil.copy(third.directory / "keys.json", keys)
    old = cluster.directory / "old"
    shutil.copytree(second.directory, old)
    for node in (second, third):
        node.kill()
        shutil.rmtree(node.directory)
    first.terminate()
    cluster.cube("cluster", "recover", "--data-dir", str(first.directory), "--yes", at=first)
    cluster.start(first)
    wait_for("it is ready", first.is_ready)
    assert jobs_at(first) == {"x"}
    # An old node is turned away; new ones join by the token of before.
    shutil.move(old, second.directory)
    cluster.start(second)
    wait_for("it is told", lambda: "was removed from" in second.log.read_text())
    second.kill()
    shutil.rmtree(second.directory)
    for node in (second, third):
        cluster.start(node, first)
        wait_for(f"{node.name} is ready", node.is_ready)
    assert len(cluster.voters(3)) == 3
    # And from the file, on a host that has nothing but the keys.
    for node in cluster.running():
        node.kill()
    new = cluster.add("n4")
    new.trusted = new.directory
    cluster.cube(
        "raft", "snapshot", "restore", file, "--data-dir", str(new.directory), "--bind", new.host,
        "--raft", str(new.raft), "--keys", keys, at=new,
    )  # fmt: skip
    cluster.start(new)
    wait_for("it is ready", new.is_ready)
    assert jobs_at(new) == {"x"}
    last = cluster.start(cluster.add("n5"), new)
    last.trusted = new.directory
    wait_for("n5 is ready", last.is_ready)
    assert {node["name"] for node in last.get("/v1/nodes")["items"]} == {"n4", "n5"}


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def jobs_at(node: Node) -> set[str]:
    return {job["name"] for job in node.get("/v1/jobs?limit=1000")["items"]}


def jobs_at_any(node: Node) -> set[str]:
    """Also of a node that answers nothing."""
    try:
        return jobs_at(node)
    except OSError:
        return set()


def warnings_at(node: Node) -> list[str]:
    found: list[str] = (node.try_get("/v1/status") or {}).get("warnings", [])
    return found


def end_tasks(node: Node) -> None:
    """As the end of its host would."""
    flags = {"insecure": True, "data_dir": str(node.directory)}
    end_tasks_now(load(None, {"CUBE_DRIVERS_DOCKER_ENABLED": "off"}, flags))
