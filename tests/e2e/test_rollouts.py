"""What users do with a service that others use meanwhile: real agents, a real Docker Engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.contract.docker_rig import engine_for_tests
from tests.e2e.harness import Json, TestCluster, same, wait_for
from tests.e2e.registry import empty_registry
from tests.e2e.rollouts import (
    COUNT,
    JOB,
    POINTS,
    crash_loop,
    deployment_over,
    docker_nodes,
    entries,
    kill_leader_at,
    load_of,
    rolled_out,
    service,
    submit,
)
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

CRASH_S = 20
# Of six tasks in CRASH_S; what they may report in a minute. Without bounds it would be thousands.
CRASH_ENTRIES_MAX = 6 * 30


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[TestCluster]:
    """Three nodes for all tests here; each leaves them as it found them."""
    with docker_nodes(tmp_path_factory.mktemp("nodes"), engine_for_tests(), 3) as cluster:
        failures = request.session.testsfailed
        yield cluster
        if request.session.testsfailed > failures:
            print(cluster.logs())


@pytest.fixture(scope="module")
def shop(three: TestCluster) -> TestCluster:
    """They run the service."""
    rolled_out(three, submit(three, service("first")))
    return three


def address(task: Json) -> str:
    return f"{task['address']}:{task['ports']['http']['host']}"


def test_an_update_of_six_fails_no_request(shop: TestCluster) -> None:
    before = shop.serving(JOB, COUNT)
    with load_of(shop) as load:
        after = rolled_out(shop, submit(shop, service("second")))
    load.check(lowest=COUNT)
    assert not {task["id"] for task in before} & {task["id"] for task in after}
    asked = {address(task) for task in [*before, *after]}
    assert set(load.by_endpoint) == asked, "every task of both versions answered"
    print(f"{load.requests} requests")


def test_an_image_that_does_not_exist_is_taken_back_by_itself(shop: TestCluster) -> None:
    before = {same(task) for task in shop.serving(JOB, COUNT)}
    with empty_registry() as registry, load_of(shop) as load:
        bad = service("bad", image=f"{registry}/ghost:1", restart={"attempts": 1, "delay": "100ms"})
        told = deployment_over(shop, submit(shop, bad))
    assert told["status"] == "rolled_back"
    assert "ghost:1" in told["message"]
    assert "manifest unknown" in told["message"]
    assert {same(task) for task in shop.serving(JOB, COUNT)} == before
    load.check(lowest=COUNT)


def test_a_registry_out_of_reach_is_tried_again_until_the_deadline(shop: TestCluster) -> None:
    before = {same(task) for task in shop.serving(JOB, COUNT)}
    image = f"127.0.0.1:{free_port()}/ghost:1"
    update = service("any")["groups"]["web"]["update"]
    bad = service("bad", image=image, update={**update, "deadline": "3s"})
    told = deployment_over(shop, submit(shop, bad))
    assert told["status"] == "rolled_back"
    assert "nothing has come up for 3s" in told["message"]
    assert "ghost:1" in told["message"]
    assert {same(task) for task in shop.serving(JOB, COUNT)} == before


def test_a_drain_fails_no_request(shop: TestCluster) -> None:
    node = shop.follower()
    node_id = node.get("/v1/status")["node"]["id"]
    before = shop.serving(JOB, COUNT)
    moved = {task["id"] for task in before if task["node_id"] == node_id}
    assert moved
    with load_of(shop) as load:
        shop.leader().call("PUT", f"/v1/nodes/{node_id}/drain", {"deadline": "5m"})
        wait_for("the node is empty", lambda: node.get(f"/v1/nodes/{node_id}")["tasks"] == 0, 120)
        after = shop.serving(JOB, COUNT)
    load.check(lowest=COUNT)
    kept = {same(task) for task in before if task["id"] not in moved}
    assert kept < {same(task) for task in after}, "nothing else was touched"
    shop.leader().call("PUT", f"/v1/nodes/{node_id}/drain", None)


def test_a_leader_that_dies_in_mid_rollout_is_succeeded(shop: TestCluster) -> None:
    [point] = [point for point in POINTS if point.name == "one serves"]
    death = kill_leader_at(shop, point, "third")
    assert death.failures == []
    assert death.lowest >= death.promised == COUNT
    print(death)


def test_tasks_that_crash_at_once_do_not_fill_the_log(three: TestCluster) -> None:
    three.running()[0].call("POST", "/v1/jobs", crash_loop(6))
    before = entries(three)
    time.sleep(CRASH_S)  # of it the test is about what happens in a time, not until something
    counted = entries(three) - before
    assert 6 < counted <= CRASH_ENTRIES_MAX
    three.running()[0].call("DELETE", "/v1/jobs/crash")
    print(f"{counted} entries in {CRASH_S} s")


def test_a_system_job_meets_a_fourth_node_and_its_drain(three: TestCluster) -> None:
    agent = {
        "driver": "docker",
        "image": "busybox",
        "command": ["sleep", "1000"],
        "stop_signal": "SIGKILL",
        "resources": {"cpu": 0.01, "memory": "8MiB"},
        "update": {"min_healthy": "1s"},
    }
    job = {"name": "probe", "type": "system", "groups": {"g": agent}}
    three.running()[0].call("POST", "/v1/jobs", job)
    tasks = three.serving("probe", 3)
    assert len({task["node_id"] for task in tasks}) == 3
    before = {same(task) for task in tasks}
    fourth = three.start(three.add("n4"), three.nodes[0])
    wait_for("the fourth node is ready", fourth.is_ready)
    node_id = fourth.get("/v1/status")["node"]["id"]
    tasks = three.serving("probe", 4)
    assert before < {same(task) for task in tasks}
    [new] = [task for task in tasks if same(task) not in before]
    assert new["node_id"] == node_id
    # A service's tasks would leave at once; this one has no other place, and stays until the deadline.
    fourth.call("PUT", f"/v1/nodes/{node_id}/drain", {"deadline": "2s"})
    assert {same(task) for task in three.serving("probe", 3)} == before
    ended = three.running()[0].call("GET", f"/v1/tasks/{new['id']}")
    assert (ended["state"], ended["reason"]) == ("completed", "drain_deadline")
    fourth.call("PUT", f"/v1/nodes/{node_id}/drain", None)
    three.serving("probe", 4)
    three.running()[0].call("DELETE", "/v1/jobs/probe")
