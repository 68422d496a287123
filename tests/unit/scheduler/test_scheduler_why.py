"""What `cube why` says, and that every filter of it checks and explains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.cluster import Node
from cube.model.explain import Explanation
from cube.model.launch import DriverInfo
from cube.model.lifecycle import Health, NodeStatus, TaskState
from cube.model.resources import Resources
from cube.model.spec import (
    CheckSpec,
    CheckType,
    Constraint,
    DockerOptions,
    DriverName,
    GroupSpec,
    JobType,
    Operator,
    Placement,
    PortSpec,
    ReschedulePolicy,
)
from cube.scheduler.why import explain
from tests.builders import GIB, facts, group, job
from tests.scheduler_cluster import Cluster, one, web


def why(cluster: Cluster, name: str = "web") -> list[Explanation]:
    return explain(cluster.state, cluster.now_ms, name)


def only(cluster: Cluster, name: str = "web") -> Explanation:
    found = why(cluster, name)
    assert len(found) == 1, found
    return found[0]


def set_up(cluster: Cluster, case: str) -> None:
    """Node n is made unfit in one way."""
    node = cluster.node("n")
    match case:
        case "not_ready":
            cluster.do(c.SetNodeStatus(1, node, NodeStatus.SUSPECT, "gossip says suspect"))
        case "ineligible":
            cluster.do(c.SetEligibility(node, False))
        case "draining":
            cluster.do(c.SetDrain(node, 60_000))
        case "driver":
            drivers = {"process": DriverInfo("process", False, "engine is down")}
            cluster.do(c.RegisterNode(facts("n", drivers=drivers)))
        case "not_allowed":
            info = DriverInfo("docker", True, attributes={"allow": "cap_add"})
            cluster.do(c.RegisterNode(facts("n", drivers={"docker": info})))
        case "port":
            cluster.submit(job("first", one(ports={"http": PortSpec(host=80)})))
            cluster.plan()
        case "port_range":
            cluster.do(c.RegisterNode(facts("n", port_first=2, port_last=1)))
        case _:
            pass  # the group asks for what the node never had


CASES: list[tuple[str, GroupSpec, str, str]] = [
    ("not_ready", group(), "ready", "suspect"),
    ("ineligible", group(), "eligible", "cordoned"),
    ("draining", group(), "not draining", "draining"),
    ("driver", group(), "process", "unhealthy"),
    (
        "not_allowed",
        group(
            driver=DriverName.DOCKER,
            docker=DockerOptions(privileged=True, cap_add=("NET_ADMIN",), gpus="all"),
        ),
        "",
        "",
    ),
    (
        "constraint",
        group(
            placement=Placement(constraints=(Constraint("node.labels.disk", Operator.EQ, "ssd"),))
        ),
        "node.labels.disk == ssd",
        "not set",
    ),
    (
        "cpu",
        group(resources=Resources(5000, GIB, 0)),
        "5",
        "4 free",
    ),
    (
        "memory",
        group(resources=Resources(100, 9 * GIB, 0)),
        "9 GiB",
        "8 GiB free",
    ),
    (
        "disk",
        group(resources=Resources(100, GIB, 101 * GIB)),
        "101 GiB",
        "100 GiB free",
    ),
    (
        "port",
        group(ports={"http": PortSpec(host=80)}),
        "80/tcp",
        "first.g.0",
    ),
    ("port_range", group(ports={"p": PortSpec()}), "1", "0"),
]


@pytest.mark.parametrize(("code", "spec", "need", "have"), CASES, ids=[x[0] for x in CASES])
def test_each_filter_checks_and_explains(code: str, spec: GroupSpec, need: str, have: str) -> None:
    cluster = Cluster("n")
    set_up(cluster, code)
    cluster.submit(job("web", {"g": spec}))
    plan = cluster.plan()
    assert plan.command is None
    assert [one.kind for one in plan.explanations] == ["unplaced"]
    found = only(cluster)
    assert (found.kind, found.slots) == ("unplaced", (0,))
    assert f"1 of 1 nodes: {code}" in found.summary
    [node] = found.nodes
    assert node.node == "n"
    assert [(reason.code, reason.need, reason.have) for reason in node.reasons] == [
        (code, need, have)
    ]


def test_every_node_with_every_reason() -> None:
    cluster = Cluster("a", "b")
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    cluster.submit(web(1, resources=Resources(5000, 9 * GIB, 0)))
    found = only(cluster)
    assert [(node.node, [reason.code for reason in node.reasons]) for node in found.nodes] == [
        ("a", ["ineligible", "cpu", "memory"]),
        ("b", ["cpu", "memory"]),
    ]


def test_max_per_node_and_a_part_that_is_placed() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(3, placement=Placement(max_per_node=1)))
    cluster.settle()
    found = only(cluster)
    assert (found.kind, found.slots) == ("unplaced", (2,))
    assert {reason.code for node in found.nodes for reason in node.reasons} == {"max_per_node"}


def test_what_is_as_wanted_has_no_explanation() -> None:
    cluster = Cluster("a")
    cluster.submit(web(2))
    assert only(cluster).kind == "waiting"  # no plan was made yet
    cluster.plan()
    assert {one.kind for one in why(cluster)} == {"waiting"}
    cluster.settle()
    assert why(cluster) == []
    assert why(cluster, "nothing") == []


def test_no_nodes_at_all() -> None:
    cluster = Cluster()
    cluster.submit(web(1))
    assert cluster.plan().command is None
    assert only(cluster).summary == "1 task not placed: there are no nodes"


def test_a_failing_task_that_backs_off() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1, reschedule=ReschedulePolicy(delay_ms=8000)))
    cluster.settle()
    cluster.fail(cluster.live("web")[0], exit_code=3)
    cluster.now_ms += 3000
    found = only(cluster)
    assert found.kind == "failing"
    assert "tried again in 5s" in found.summary
    assert "exit code 3" in found.summary
    assert [reason.code for reason in found.reasons] == ["exited", "backoff"]
    assert found.suggestions == ("cube logs web.g.0",)


def test_a_task_that_is_given_up() -> None:
    cluster = Cluster("a")
    cluster.submit(job("work", one(reschedule=ReschedulePolicy(attempts=1)), type=JobType.BATCH))
    cluster.settle()
    for _ in range(2):
        cluster.fail(cluster.live("work")[0])
        cluster.now_ms += 60_000
        cluster.settle()
    found = only(cluster, "work")
    assert found.kind == "failing"
    assert found.summary.startswith("1 task given up")


def test_a_task_that_restarts_in_place() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    task = cluster.live("web")[0]
    cluster.report(
        task.id, "pending", attempt=2, reason="exited", message="exit code 7", exit_code=7
    )
    found = only(cluster)
    assert (found.kind, found.summary) == ("failing", "1 task restarting, last exit code 7")
    assert cluster.state.tasks[task.id].state is TaskState.PENDING


def test_a_task_that_runs_now_and_has_failed_several_times_lately() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2))
    cluster.settle()
    task = cluster.live("web")[0]
    for attempt in (2, 3, 4):
        assert why(cluster) == []
        cluster.now_ms += 5_000
        cluster.report(task.id, "pending", attempt, reason="exited", message="exit code 7")
        cluster.now_ms += 1_000
        cluster.report(task.id, "running", attempt)
    cluster.now_ms += 90_000
    found = only(cluster)
    assert (found.kind, found.slots) == ("flapping", (0,))
    assert found.summary == (
        "1 task runs for 1m30s now, but failed 3 times in the last 10m, restarted 3 times on its node"
    )
    assert [reason.message for reason in found.reasons] == ["exit code 7"]
    cluster.now_ms += 600_000
    assert why(cluster) == []


def test_a_slot_that_is_placed_again_and_again_flaps_too() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(1))
    for _ in range(3):
        cluster.settle()
        cluster.fail(cluster.live("web")[0], exit_code=9)
        cluster.now_ms += 60_000
    cluster.settle()
    found = only(cluster)
    assert (found.kind, found.reasons[0].have) == ("flapping", "exit code 9")
    assert "failed 3 times in the last 10m, placed anew 3 times in a row" in found.summary
    cluster.submit(web(1, command=("two",)))
    cluster.settle()
    assert why(cluster) == []  # what an older container did says nothing about this one


def test_a_task_whose_checks_fail() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1, checks=(CheckSpec("up", CheckType.EXEC, command=("true",)),)))
    cluster.plan()
    task = cluster.live("web")[0]
    cluster.report(task.id, "running", health=Health.UNKNOWN)
    assert only(cluster).summary == "1 task running, not healthy yet: its checks have not passed"
    cluster.report(task.id, "running", health=Health.UNHEALTHY)
    assert only(cluster).kind == "failing"


def test_waiting_for_a_dependency() -> None:
    cluster = Cluster("a")
    cluster.submit(job("web", one(depends_on=("db/g",))))
    found = only(cluster)
    assert (found.kind, found.reasons[0].code) == ("waiting", "depends_on")
    assert "db/g: there is no job db" in found.summary
    cluster.submit(job("db", one(count=2)))
    assert "db/g: 0 of 2 healthy" in only(cluster).summary


def test_a_rejected_task_names_the_rejection() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.plan()
    task = cluster.live("web")[0]
    cluster.report(
        task.id, "rejected", reason="port_taken", message="port 80 is in use", released=True
    )
    found = only(cluster)
    assert found.kind == "unplaced"
    assert found.reasons[0].code == "port_taken"
    assert [reason.code for reason in found.nodes[0].reasons] == ["rejected_here"]


def test_stopped_and_a_held_back_update() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2))
    cluster.settle()
    cluster.submit(web(2, command=("two",)))
    cluster.plan()
    kinds = {found.slots: found.summary for found in why(cluster)}
    assert kinds[(0,)] == "1 task being stopped (update), then replaced"
    assert "of an older version" in kinds[(1,)]
    cluster.do(c.StopJob("web"))
    assert only(cluster).kind == "stopped"


def test_explaining_and_importing_need_no_numpy() -> None:
    script = (
        "import sys, cube.scheduler.plan, cube.scheduler.why, cube.scheduler.liveness;"
        "cube.scheduler.plan.Scheduler(); sys.exit('numpy' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done: Any = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert done.returncode == 0


def test_node_names_and_ids_are_told_apart() -> None:
    cluster = Cluster("a")
    node: Node = cluster.state.nodes[cluster.node("a")]
    cluster.submit(web(1, resources=Resources(9000, 1, 0)))
    assert (only(cluster).nodes[0].node_id, only(cluster).nodes[0].node) == (node.id, "a")
