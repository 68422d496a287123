"""Members come and go while clients write. scripts/faults churn does a hundred events and more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.churn import ENVIRONMENT, Churn, LeaderWatch, on_loopback
from tests.faults.cluster import Agent, FaultCluster
from tests.faults.networks import Loopback
from tests.raft.disks import directory_for_disks

pytestmark = pytest.mark.e2e

EVENTS = 10


def test_members_come_and_go_and_nothing_is_lost() -> None:
    with on_loopback() as cluster:
        churn = Churn(cluster, seed=1, pause_s_max=0.5)
        churn.run(EVENTS)
    assert set(churn.events) == {"join", "death", "return", "removal"}
    assert churn.acknowledged
    print(f"longest gap {max(churn.gaps_s):.2f} s", "\n".join(churn.story))


def test_a_node_that_knew_only_nodes_that_are_gone_is_found() -> None:
    """Nobody whom it could ask is there any more; those who are there know it, and gossip with it."""
    with directory_for_disks() as directory:
        cluster = FaultCluster(directory, Loopback(), ENVIRONMENT)
        try:
            cluster.form(2)
            first, away = cluster.agents
            away.kill()
            for _ in range(2):
                agent = cluster.add()
                cluster.start(agent, first)
                cluster.wait_ready(agent)
            cluster.wait_for("three vote", lambda: voters(first) >= {"n1", "n3", "n4"})
            first.kill()
            cluster.start(away)
            cluster.wait_ready(away)
        finally:
            cluster.close()


def voters(agent: Agent) -> set[str]:
    told = agent.try_get("/v1/raft") or {"voters": []}
    return {voter["name"] for voter in told["voters"]}


def test_time_without_a_leader_is_not_counted(tmp_path: Path) -> None:
    watch = LeaderWatch(FaultCluster(tmp_path, Loopback()))
    watch.leaderless = [(0.0, 1.0), (2.0, 4.0)]
    assert watch.beyond(0.5, 3.0) == 1.0
    assert watch.beyond(1.0, 2.0) == 1.0
    assert watch.beyond(2.5, 3.5) == 0.0
