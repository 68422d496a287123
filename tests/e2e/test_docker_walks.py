"""The walks with a real Docker Engine: shop.toml, the death of nodes, adoption of containers."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.contract.docker_rig import engine_for_tests
from tests.e2e.harness import EXAMPLES, Json, Node, TestCluster, answer_of, curl, same, wait_for
from tests.e2e.registry import registry
from tests.ports import free_port

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
    cluster.stop()
    assert engine.containers(all=True, filters={"label": label}) == []


def test_an_image_from_the_command_line(
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


@pytest.fixture
def book_image(engine: docker.APIClient) -> Iterator[str]:
    """An image that serves by itself: the book's tasks name no command."""
    made = engine.create_container("busybox:latest")
    engine.commit(
        made["Id"], repository="cube-test-book", tag="1",
        changes='CMD ["httpd", "-f", "-p", "7777", "-h", "/etc"]',
    )  # fmt: skip
    engine.remove_container(made["Id"])
    yield "cube-test-book:1"
    engine.remove_image("cube-test-book:1", force=True)


def call(node: Node, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json"} if data else {}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", node.http)) as connection:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_the_books_own_api_and_verbs(
    book_image: str, docker_cluster: TestCluster, tmp_path: Path
) -> None:
    cluster = docker_cluster
    cluster.form(1)
    node = cluster.nodes[0]
    wait_for("the engine answers", lambda: docker_ready(cluster))
    port = free_port()
    task = {
        "ID": "266592cd-960d-4091-981c-8c25c44b1018",
        "State": 2,
        "Task": {
            "ID": "266592cd-960d-4091-981c-8c25c44b1018", "Name": "test-chapter-9.1",
            "Image": book_image, "Cpu": 0.1, "Memory": 16 << 20, "Disk": 1 << 20,
            "ExposedPorts": {"7777/tcp": {}}, "PortBindings": {"7777/tcp": str(port)},
            "RestartPolicy": "always", "HealthCheck": "/hostname",
        },
    }  # fmt: skip
    file = tmp_path / "task.json"
    file.write_text(json.dumps(task))
    cluster.cube("run", "-f", str(file))

    def told() -> Json:
        items: list[Json] = json.loads(call(node, "GET", "/tasks")[1])
        return next(item for item in items if item["ID"] == task["ID"])

    wait_for("it runs", lambda: told()["State"] == 2)
    assert answer_of(f"http://127.0.0.1:{port}/hostname")
    assert call(node, "POST", "/tasks", task)[0] == 201
    for path in ("/nodes", "/stats"):
        assert call(node, "GET", path)[0] == 200
    assert "test-chapter" in cluster.cube("status").stdout
    assert "n1" in cluster.cube("node").stdout
    assert call(node, "DELETE", f"/tasks/{task['ID']}")[0] == 204
    wait_for("it has ended", lambda: cluster.tasks() == [])


def test_images_that_cube_pulled_go_when_asked_and_nobody_elses(
    tmp_path: Path, engine: docker.APIClient
) -> None:
    """Asked of the other node, by an operator's token; the agent that pulled was killed meanwhile. So
    does the output of processes that were forgotten while it was away."""
    environment = {"CUBE_DRIVERS_DOCKER_HOST": engine_for_tests(), "CUBE_GC_IMAGE_UNUSED_FOR": "0s"}
    cluster = TestCluster(tmp_path, environment, is_secure=True)
    with registry() as store:
        pulled, by_hand = (f"{store.address}/app:{tag}" for tag in ("1", "2"))
        for tag in ("1", "2"):
            store.push("app", tag, tag)
        engine.pull(by_hand)
        try:
            cluster.form(3)  # any of them can be the one that is killed
            wait_for("every node's engine answers", lambda: docker_ready(cluster))
            for name, image in (("one", pulled), ("two", by_hand)):
                cluster.cube("run", "--image", image, "--name", name, "--", "sleep", "1000")
            [task] = cluster.serving("one", 1)
            owner = next(node for node in cluster.nodes if node.name == task["node_name"])
            other = next(node for node in cluster.nodes if node is not owner)
            cluster.cube("run", "--name", "left", "--count", "4", "--", "sleep", "1000")
            here = [
                one["id"] for one in cluster.serving("left", 4) if one["node_name"] == owner.name
            ]
            assert here
            cluster.cube("stop", "left", at=other)
            assert "removed" not in cluster.cube("node", "gc", at=other).stdout
            owner.kill()
            cluster.cube("rm", "left", "--yes", at=other)
            cluster.start(owner)
            wait_for("the killed node is ready again", owner.is_ready)
            for name in ("one", "two"):
                cluster.cube("rm", name, "--yes", at=other)

            def may_go() -> bool:
                plan = cluster.cube_json("node", "gc", owner.name, "--plan", at=other)
                images = [one["names"][0] for one in plan["images"] if not one["keep"]]
                outputs = [one["task_id"] for one in plan["outputs"] if not one["keep"]]
                return (images, outputs) == ([pulled], sorted(here))

            wait_for("nothing uses the image any more", may_go)
            done = cluster.cube("node", "gc", at=other).stdout
            told = [line for line in done.splitlines() if line.startswith(owner.name)]
            assert sorted(line.split()[2] for line in told) == ["image"] + ["output"] * len(here)
            assert "removed image" not in done.replace(f"{owner.name}  removed image {pulled}", "")
            for task_id in here:
                assert not (owner.directory / "tasks" / task_id).exists()
            assert engine.images(pulled) == []
            assert len(engine.images(by_hand)) == 1
        finally:
            cluster.stop()
            for image in (pulled, by_hand):
                with contextlib.suppress(docker.errors.NotFound):
                    engine.remove_image(image)
