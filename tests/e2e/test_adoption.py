"""Agents that die and return, and what of theirs and of others lives through it (scripts/adoption)."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from tests.contract.docker_rig import engine_for_tests
from tests.e2e.adoption import Adoption
from tests.e2e.harness import TestCluster, wait_for
from tests.e2e.rollouts import docker_ready

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

ROUNDS = 5


def test_tasks_and_strangers_live_through_the_deaths_of_agents(
    tmp_path: Path, engine: docker.APIClient, request: pytest.FixtureRequest
) -> None:
    """Two agents on one host and one engine. What is not wanted, and theirs by its marks, goes."""
    # Nobody is to take an agent for dead that is on its way back.
    environment = {
        "CUBE_CLUSTER_NODE_GRACE": "5m",
        "CUBE_DRIVERS_DOCKER_HOST": engine_for_tests(),
    }
    cluster = TestCluster(tmp_path, environment)
    adoption = Adoption(cluster, {"process": 10, "docker": 4}, engine)
    try:
        cluster.form(2)
        wait_for("every node's engine answers", lambda: docker_ready(cluster))
        adoption.begin()
        for turn in range(ROUNDS):
            adoption.kill(cluster.nodes[turn % 2], with_strays=turn in (0, 3))
        assert all(task["restarts"] == 0 for task in cluster.tasks())
    except AssertionError:
        print(cluster.logs())
        raise
    finally:
        adoption.clean_up()
        cluster.stop()
