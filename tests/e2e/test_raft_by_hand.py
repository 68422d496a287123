"""What operators do with the log by hand: who leads, saving and restoring it, a lost quorum."""

from __future__ import annotations

import pytest

from tests.e2e.harness import TestCluster, wait_for

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
    told = cluster.cube_json("raft", "members", at=learner)
    assert all(member["caught_up"] for member in (*told["voters"], *told["learners"]))
    # A leader that is drained hands over, once; nobody else moves.
    leader = cluster.leader()
    cluster.cube("node", "drain", leader.name)
    wait_for("another one leads", lambda: cluster.leader() is not leader)
    successor = cluster.leader()
    term = successor.get("/v1/status")["term"]
    cluster.cube("node", "cordon", successor.name)
    wait_for("the third leads", lambda: cluster.leader() not in (leader, successor))
    assert cluster.leader().get("/v1/status")["term"] == term + 1
