"""The compose file of the examples, on real engines."""

from __future__ import annotations

import contextlib

import docker
import pytest

from tests.e2e.harness import EXAMPLES, TestCluster, answer_of, wait_for
from tests.e2e.test_docker_walks import address, docker_ready

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

VOLUME = "blog_blog-db"
COMPOSE = str(EXAMPLES / "compose.yaml")


def test_a_compose_file_runs_and_its_job_file_is_the_same_job(
    docker_cluster: TestCluster, engine: docker.APIClient
) -> None:
    cluster = docker_cluster
    with contextlib.suppress(docker.errors.NotFound):
        engine.remove_volume(VOLUME)  # an earlier cluster's
    cluster.form(1)
    wait_for("the engine answers", lambda: docker_ready(cluster))
    done = cluster.cube("run", "--detach", COMPOSE)
    assert "blog v1 submitted" in done.stderr
    db, *webs = sorted(cluster.serving("blog", 3), key=lambda task: str(task["name"]))
    assert db["health"] == "healthy", "compose's healthcheck is a check of Cube"
    assert all(web["created_at"] >= db["started_at"] for web in webs)
    for web in webs:
        assert answer_of(address(web, "8080") + "/hostname")
        container = engine.inspect_container(web["handle"])
        assert "GREETING=hello" in container["Config"]["Env"]
    (mount,) = engine.inspect_container(db["handle"])["Mounts"]
    assert (mount["Name"], mount["Destination"]) == (VOLUME, "/data")
    converted = cluster.cube("job", "convert", COMPOSE).stdout
    again = cluster.cube("run", "--detach", "-", stdin=converted.encode())
    assert "blog v1: nothing has changed" in again.stderr

    # Its volume ends only when somebody asks, and nobody has a right to it.
    assert "belongs to blog.db.0" in cluster.cube("volume", "rm", VOLUME, code=5).stderr
    cluster.cube("rm", "blog")

    def removed() -> bool:
        return cluster.cube("volume", "rm", VOLUME, code=None).returncode == 0

    assert VOLUME in cluster.cube("volume", "ls").stdout
    wait_for("the volume is removed once its containers are", removed)
    with pytest.raises(docker.errors.NotFound):
        engine.inspect_volume(VOLUME)
