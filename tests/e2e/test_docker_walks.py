"""The walks with a real Docker Engine: shop.toml, the death of nodes, adoption of containers."""

from __future__ import annotations

import docker
import pytest

from tests.e2e.harness import EXAMPLES, Json, TestCluster, curl, same, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

SHOP = str(EXAMPLES / "shop.toml")


def address(task: Json, port: str) -> str:
    return f"http://{task['address']}:{task['ports'][port]['host']}"


def docker_ready(cluster: TestCluster) -> bool:
    answer = cluster.running()[0].try_get("/v1/nodes")
    return answer is not None and all(n["drivers"]["docker"]["healthy"] for n in answer["items"])


def is_running(engine: docker.APIClient, container: str) -> bool:
    try:
        return bool(engine.inspect_container(container)["State"]["Running"])
    except docker.errors.NotFound:
        return False


def test_shop_waits_for_its_cache_and_survives(
    docker_cluster: TestCluster, engine: docker.APIClient
) -> None:
    cluster = docker_cluster
    cluster.form(3)
    wait_for("every node's engine answers", lambda: docker_ready(cluster))
    done = cluster.cube("run", SHOP)
    assert "shop v1 is live" in done.stderr
    tasks = cluster.serving("shop", 4)
    cache = next(task for task in tasks if task["group"] == "cache")
    webs = [task for task in tasks if task["group"] == "web"]
    healthy_at = max(e["at"] for e in cache["history"] if e["state"] == "running")
    assert all(web["created_at"] >= healthy_at for web in webs), (
        "the web did not wait for the cache"
    )
    assert len({web["node_id"] for web in webs}) == 3, "spread over the nodes"
    for web in webs:
        assert curl(address(web, "http") + "/hostname")
        assert is_running(engine, web["handle"])
    for line in ("RUNS", "busybox"):
        assert line in cluster.cube("ps", "shop").stdout

    # The leader dies; containers of the survivors are not touched, its own are replaced.
    victim = cluster.leader()
    victim_id = victim.get("/v1/status")["node"]["id"]
    survivor = cluster.follower()
    victim.kill()
    kept = {same(task) for task in tasks if task["node_id"] != victim_id}
    moved = [task for task in tasks if task["node_id"] == victim_id]

    def replaced() -> list[Json] | None:
        now = cluster.serving("shop", 4, at=survivor)
        return now if all(task["node_id"] != victim_id for task in now) else None

    now = wait_for("the dead node's tasks are replaced", replaced)
    assert now is not None
    assert kept <= {same(task) for task in now}
    assert all(is_running(engine, handle) for _, handle, _ in kept)

    # It returns: its stale containers are stopped, nothing runs twice.
    cluster.start(victim)
    wait_for("the killed node is ready again", victim.is_ready)
    for task in moved:
        wait_for("stale is stopped", lambda t=task: not is_running(engine, t["handle"]))  # type: ignore[misc]
    label = f"cube.cluster={victim.get('/v1/status')['cluster_id']}"
    running = engine.containers(filters={"label": label, "status": "running"})
    assert len(running) == 4

    # All die and come back: the same containers.
    before = {same(task) for task in cluster.serving("shop", 4)}
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        cluster.start(node)
    for node in cluster.nodes:
        wait_for(f"{node.name} is ready again", node.is_ready)
    assert {same(task) for task in cluster.serving("shop", 4)} == before
    assert all(task["restarts"] == 0 for task in cluster.tasks("shop"))

    assert cluster.cube("logs", "shop").returncode == 0
    cluster.cube("stop", "shop")
    assert engine.containers(filters={"label": label, "status": "running"}) == []


def test_run_image_and_the_books_own_api(
    docker_cluster: TestCluster, engine: docker.APIClient
) -> None:
    cluster = docker_cluster
    cluster.form(1)
    wait_for("the engine answers", lambda: docker_ready(cluster))
    cluster.cube(
        "run", "--image", "busybox", "--name", "sleeper", "-e", "A=b", "--", "sleep", "1000"
    )
    [task] = cluster.serving("sleeper", 1)
    assert "A=b" in engine.inspect_container(task["handle"])["Config"]["Env"]
    missing = cluster.cube(
        "run", "--image", "no-such-image:1", "--name", "ghost", "--timeout", "8s", code=None
    )
    assert missing.returncode in (1, 3, 8)
    assert "image" in missing.stderr
