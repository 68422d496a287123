"""Where tasks go, and why: canaries, important jobs, volumes, a node that joins. Real agents; Docker
where there are volumes."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator

import docker
import docker.errors
import pytest

from tests.contract.docker_rig import engine_for_tests
from tests.e2e.harness import Json, TestCluster, same, wait_for
from tests.e2e.rollouts import docker_nodes, submit

pytestmark = [pytest.mark.e2e, pytest.mark.docker]


@pytest.fixture(scope="module")
def volume() -> Iterator[str]:
    """The name of a volume that the engine does not have yet, nor after the tests."""
    name = f"cube-test-{secrets.token_hex(4)}"
    yield name
    engine = docker.APIClient(base_url=engine_for_tests())
    with contextlib.closing(engine), contextlib.suppress(docker.errors.NotFound):
        engine.remove_volume(name)


@pytest.fixture(scope="module")
def nodes(
    volume: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[TestCluster]:
    """Three nodes for the tests here in turn; each removes its jobs, the last one adds a node.
    `volume`: removed after them."""
    with docker_nodes(tmp_path_factory.mktemp("nodes"), engine_for_tests(), 3) as cluster:
        failures = request.session.testsfailed
        yield cluster
        if request.session.testsfailed > failures:
            print(cluster.logs())


def sleeper(name: str, count: int, **changes: object) -> Json:
    """A job of processes that only sleep. `changes` are of its group."""
    group: Json = {
        "count": count,
        "driver": "process",
        "command": ["sleep", "100000"],
        "resources": {"cpu": 0.01, "memory": "4MiB"},
        "update": {"min_healthy": "500ms", "order": "start-first"},
        **changes,
    }
    return {"name": name, "type": "service", "groups": {"g": group}}


def important(resources: Json) -> Json:
    return {**sleeper("high", 1, resources=resources), "priority": 90}


def as_json(job: Json) -> bytes:
    return json.dumps(job).encode()


def deployment(cluster: TestCluster, name: str) -> Json:
    return cluster.running()[0].get(f"/v1/deployments/{name}")


def remove(cluster: TestCluster, *jobs: str) -> None:
    for job in jobs:
        cluster.cube("rm", job)


def test_canaries_wait_to_be_promoted(nodes: TestCluster) -> None:
    update = {"min_healthy": "500ms", "canaries": 1, "order": "start-first"}
    nodes.cube("run", "-", "--format", "json", stdin=as_json(sleeper("bird", 3, update=update)))
    before = nodes.serving("bird", 3)
    changed = sleeper("bird", 3, update=update, env={"SONG": "2"})
    assert submit(nodes, changed) == 2

    def waiting() -> Json | None:
        found: Json = nodes.cube_json("deployment", "show", "bird")
        return found if found["awaits_promotion"] else None

    told = wait_for("the canary waits", waiting)
    assert told is not None
    assert told["status"] == "running"
    counts = told["groups"]["g"]
    assert (counts["canaries"], counts["healthy"], counts["promoted"]) == (1, 1, False)
    four = nodes.serving("bird", 4)
    assert {same(task) for task in before} < {same(task) for task in four}, "all old ones serve on"
    [canary] = [task for task in four if task["version"] == 2]
    assert "cube deployment promote" in nodes.cube("deployment", "ls", "bird").stdout
    nodes.cube("deployment", "promote", "bird", at=nodes.follower())
    wait_for("it is rolled out", lambda: deployment(nodes, "bird.v2")["status"] == "successful")
    after = nodes.serving("bird", 3)
    assert {task["version"] for task in after} == {2}
    assert same(canary) in {same(task) for task in after}, "the canary is one of them"
    assert deployment(nodes, "bird.v2")["groups"]["g"]["promoted"]
    remove(nodes, "bird")


def test_an_important_job_takes_the_room_of_others(nodes: TestCluster) -> None:
    nodes.cube("cluster", "settings", "preemption=on")
    cpu = nodes.leader().get("/v1/nodes")["items"][0]["capacity"]["cpu"]
    large = {"cpu": round(0.6 * cpu, 2), "memory": "4MiB"}
    submit(nodes, {**sleeper("low", 3, resources=large), "priority": 20})
    before = nodes.serving("low", 3)
    nodes.cube("run", "-", "--format", "json", stdin=as_json(important(large)))
    [task] = nodes.serving("high", 1)
    rest = {same(one) for one in nodes.tasks("low") if one["state"] == "running"}
    [victim] = [one for one in before if same(one) not in rest]
    assert victim["node_id"] == task["node_id"]
    told = nodes.cube_json("task", "show", victim["id"])
    assert told["reason"] == "preempted by high.g"
    reasons = [entry["reason"] for entry in told["history"]]
    assert "preempted by high.g" in reasons, told["history"]
    assert "preempted by high.g" in nodes.cube("task", "show", victim["id"]).stdout
    why = nodes.cube("why", "low").stdout
    assert f"low.g.{victim['slot']}" in why and "not enough cpu" in why
    nodes.cube("rm", "high")  # and it comes back
    again = nodes.serving("low", 3)
    assert {same(one) for one in before} - {same(victim)} < {same(one) for one in again}
    remove(nodes, "low")
    nodes.cube("cluster", "settings", "preemption=off")


def test_a_task_goes_where_its_volume_is_or_waits(nodes: TestCluster, volume: str) -> None:
    mount = {"type": "volume", "source": volume, "target": "/data"}
    script = "echo $CUBE_TASK_ID >> /data/who; cat /data/who; exec sleep 1000"
    group = {
        "driver": "docker",
        "image": "busybox",
        "command": ["sh", "-c", script],
        "stop_signal": "SIGKILL",
        "resources": {"cpu": 0.01, "memory": "8MiB"},
        "mounts": [mount],
        "update": {"min_healthy": "500ms", "order": "stop-first"},
    }
    submit(nodes, sleeper("keeper", 1, **group))
    [first] = nodes.serving("keeper", 1)
    home = next(node for node in nodes.nodes if node.name == first["node_name"])
    # Every other node would be the better place now.
    here = {"attribute": "node.name", "operator": "==", "value": home.name}
    resources = {"cpu": 0.5, "memory": "4MiB"}
    submit(nodes, sleeper("crowd", 1, resources=resources, placement={"constraints": [here]}))
    nodes.serving("crowd", 1)
    nodes.cube("stop", first["id"])

    def another() -> Json | None:
        [found] = nodes.serving("keeper", 1, at=next(n for n in nodes.running() if n is not home))
        return found if found["id"] != first["id"] else None

    second = wait_for("another task runs", another)
    assert second is not None
    assert second["node_name"] == home.name
    assert nodes.cube("logs", second["id"]).stdout.split() == [first["id"], second["id"]]
    # Its node dies: it waits, and says for what.
    home.kill()
    at = nodes.running()[0]
    reason = f"its volume {volume} is on {home.name}, which is down"
    wait_for("it is told why", lambda: reason in nodes.cube("why", "keeper", at=at).stdout)
    [waits] = nodes.tasks("keeper", at=at)
    assert (waits["state"], waits["node_id"]) == ("pending", None)
    nodes.start(home)
    [third] = nodes.serving("keeper", 1, at=at)
    assert third["node_name"] == home.name
    wait_for("all are ready", lambda: nodes.all_ready(3))
    remove(nodes, "keeper", "crowd")


def test_a_node_that_joins_gets_its_part(nodes: TestCluster) -> None:
    nodes.cube("cluster", "settings", "rebalance=on")
    submit(nodes, sleeper("even", 6))
    before = nodes.serving("even", 6)
    fewest = 6
    joined = nodes.start(nodes.add("n4"), nodes.nodes[0])

    def moved() -> list[Json]:
        nonlocal fewest
        tasks = [task for task in nodes.tasks("even") if task["state"] == "running"]
        fewest = min(fewest, len({task["slot"] for task in tasks if task["health"] != "unhealthy"}))
        return [task for task in tasks if task["node_name"] == joined.name]

    wait_for("the new node has got a task", moved)

    def done() -> bool:
        moved()
        return bool(nodes.leader().get("/v1/rebalance")["moves"] == [])

    wait_for("nothing is left to move", done)
    after = nodes.serving("even", 6)
    assert fewest == 6, "each new task served before its old one stopped"
    counts = sorted(sum(t["node_id"] == n for t in after) for n in {t["node_id"] for t in after})
    assert counts == [1, 1, 2, 2]
    assert len({same(task) for task in before} & {same(task) for task in after}) == 5
    assert "nothing would gain" in nodes.cube("rebalance", "--plan").stderr
    remove(nodes, "even")
