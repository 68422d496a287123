"""Suggestions of `cube why`: computed, not guessed. What is told is applied here, by a loop of its own,
and places the tasks; random clusters besides the table."""

from __future__ import annotations

import random

import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.ids import NodeId
from cube.model.launch import DISK_FACT, DISK_SHORT, DriverInfo
from cube.model.lifecycle import NodeStatus
from cube.model.resources import Resources
from cube.model.spec import (
    Constraint,
    CronSpec,
    DockerOptions,
    DriverName,
    GroupSpec,
    JobType,
    Operator,
    Placement,
    PortSpec,
)
from cube.scheduler.reconcile import reconcile
from cube.scheduler.suggest import candidates
from cube.scheduler.why import explain
from cube.services import remedies
from cube.services.remedies import tried, why
from cube.services.simulation import Simulation
from tests.builders import GIB, facts, group, job
from tests.property.test_dry_run_properties import World, some_job, some_past
from tests.scheduler_cluster import Cluster, one, web

MIB = 1 << 20
DISK = Constraint("node.labels.disk", Operator.EQ, "ssd")
ZONE = Constraint("node.labels.zone", Operator.EQ, "a")


def told(cluster: Cluster, name: str = "web") -> list[str]:
    """The suggestions, each of which was seen to place something here, too."""
    state = cluster.state
    check(state, cluster.now_ms, name)
    assert cluster.state is state
    found = [one for one in why(state, cluster.now_ms, name) if one.kind != "failing"]
    assert len(found) == 1
    return list(found[0].suggestions)


def check(state: ClusterState, now_ms: int, name: str) -> int:
    """Every suggestion does what it says when it is applied; how many there are."""
    job_ = state.job_named(name)
    assert job_ is not None
    wants = {(w.group, w.slots): w for w in reconcile(state, job_, now_ms).wants}
    count = 0
    for one_ in explain(state, now_ms, name):
        want = wants.get((one_.group, one_.slots))
        if one_.kind != "unplaced" or want is None:
            continue
        ideas = candidates(state, now_ms, want)
        for found in tried(Simulation(state, now_ms), job_, one_, ideas):
            world = World(f"seed-{found.remedy.told}", state, now_ms)
            world.do(found.remedy.body)
            # What it takes away again later (a rollout that goes on) is not the question here.
            best = 0
            for _ in range(80):
                before, wake_at_ms = world.state.tasks, world.plan()
                best = max(best, remedies.placed(state, world.state, job_, one_))
                world.work()
                if world.state.tasks is before and wake_at_ms is not None:
                    world.now_ms = wake_at_ms  # a rollout waits for min_healthy
            assert best >= found.placed, found.remedy.told
            count += 1
    return count


def test_a_node_that_takes_nothing() -> None:
    cluster = Cluster("n")
    cluster.submit(web(1))
    node = cluster.node("n")
    cluster.do(c.SetEligibility(node, False))
    assert told(cluster)[0] == "cube node uncordon n"
    cluster.do(c.SetEligibility(node, True))
    cluster.do(c.SetDrain(node, 60_000))
    assert told(cluster)[0] == "cube node undrain n"
    cluster.do(c.SetDrain(node, None))
    cluster.do(c.SetNodeStatus(1, node, NodeStatus.SUSPECT, "silent"))
    assert told(cluster)[0] == "bring node n back (it is suspect)"
    cluster.do(c.SetNodeStatus(1, node, NodeStatus.READY))
    drivers = {"process": DriverInfo("process", False, "engine is down")}
    cluster.do(c.RegisterNode(facts("n", drivers=drivers)))
    assert told(cluster)[0] == "repair the process driver on n"
    full = DriverInfo("process", False, "less than 1 GiB is free", {DISK_FACT: DISK_SHORT})
    cluster.do(c.RegisterNode(facts("n", drivers={"process": full})))
    assert told(cluster)[0] == "make room on the disk of n"
    cluster.do(c.RegisterNode(facts("n", drivers={})))
    assert told(cluster)[0] == "enable the process driver on n"


NEW = "add a node that has {}: cube agent --join HOST:PORT"
ROOM: list[tuple[GroupSpec, list[str]]] = [
    (
        group(resources=Resources(5000, GIB, 0)),
        [
            "in the job file: groups.g.resources.cpu = 4 (now 5)",
            NEW.format("cpu 5, memory 1GiB"),
        ],
    ),
    (
        group(count=3, resources=Resources(100, 9 * GIB, 0)),
        [
            'in the job file: groups.g.resources.memory = "4GiB" (now 9GiB)',
        ],
    ),
    (
        group(resources=Resources(100, GIB, 101 * GIB)),
        [
            'in the job file: groups.g.resources.disk = "100GiB" (now 101GiB)',
            NEW.format("cpu 0.1, memory 1GiB, disk 101GiB"),
        ],
    ),
    (
        group(resources=Resources(8000, 9 * GIB, 0)),
        [
            'in the job file: groups.g.resources.cpu = 4 (now 8), groups.g.resources.memory = "8GiB"'
            " (now 9GiB)",
            NEW.format("cpu 8, memory 9GiB"),
        ],
    ),
]


@pytest.mark.parametrize(("spec", "hints"), ROOM)
def test_no_room(spec: GroupSpec, hints: list[str]) -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("web", {"g": spec}))
    assert told(cluster) == hints


def test_a_constraint_is_widened_dropped_or_met() -> None:
    cluster = Cluster()
    cluster.do(c.RegisterNode(facts("n", labels={"disk": "hdd"})))
    cluster.submit(web(1, placement=Placement(constraints=(DISK,))))
    assert told(cluster) == [
        "in the job file: groups.g.placement.constraints: node.labels.disk == ssd → "
        "node.labels.disk in [ssd, hdd]",
        "in the job file: groups.g.placement.constraints: without node.labels.disk == ssd",
        "cube node label n disk=ssd",
        NEW.format("cpu 0.1, memory 64MiB, --label disk=ssd"),
    ]


def test_what_takes_two_changes_is_no_suggestion() -> None:
    """Two constraints that one node fails both, and a node that is cordoned and too small."""
    cluster = Cluster("a")
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    cluster.submit(
        web(1, resources=Resources(5000, GIB, 0), placement=Placement(constraints=(DISK, ZONE)))
    )
    assert told(cluster) == [NEW.format("cpu 5, memory 1GiB, --label disk=ssd, --label zone=a")]


def test_a_guess_that_does_not_help_is_not_told() -> None:
    """A cordoned node has room for it; but a more important job waits for that, too."""
    cluster = Cluster("a")
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    cluster.submit(job("first", one(resources=Resources(4000, 1, 0)), priority=90))
    cluster.submit(web(1, resources=Resources(1000, 1, 0)))
    assert "cube node uncordon a" not in told(cluster)
    assert told(cluster, "first")[0] == "cube node uncordon a"


def test_more_on_each_node() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(5, placement=Placement(max_per_node=1)))
    cluster.settle()
    assert told(cluster)[0] == "in the job file: groups.g.placement.max_per_node = 3 (now 1)"


def test_a_port_that_is_taken() -> None:
    cluster = Cluster("a")
    cluster.submit(job("first", one(ports={"http": PortSpec(host=80)})))
    cluster.settle()
    cluster.submit(web(1, ports={"http": PortSpec(host=80)}))
    assert told(cluster) == [
        "in the job file: groups.g.ports.http.host = 0 (now 80): any free one",
        "cube stop first (it has the port on a)",
        NEW.format("cpu 0.1, memory 64MiB"),
    ]
    cluster.do(c.RegisterNode(facts("n", port_first=2, port_last=1)))
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    cluster.submit(job("any", one(ports={"p": PortSpec()})))
    assert "widen [bind] port_range of n to 2-2" in told(cluster, "any")


def test_others_make_room() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("low", one(count=8, resources=Resources(1000, 1, 0)), priority=10))
    cluster.settle()
    cluster.submit(web(1, resources=Resources(3000, 1, 0)))
    hints = told(cluster)
    scaled = [hint for hint in hints if hint.startswith("cube scale")]
    assert scaled == ["cube scale low/g=3 (now 8)"]


def test_a_part_is_better_than_nothing() -> None:
    cluster = Cluster("a", "b")
    for name in ("a", "b"):
        cluster.do(c.SetEligibility(cluster.node(name), False))
    cluster.submit(job("each", one(), type=JobType.SYSTEM))
    assert not [one for one in why(cluster.state, cluster.now_ms, "each") if one.suggestions]
    cluster.submit(web(60, placement=Placement(max_per_node=3)))
    hints = told(cluster)
    assert hints == [
        "cube node uncordon a (places 3 of 60)",
        "cube node uncordon b (places 3 of 60)",
    ]


def test_a_stopped_job_that_is_waited_for() -> None:
    cluster = Cluster("a")
    cluster.submit(job("db"))
    cluster.settle()
    cluster.do(c.StopJob("db"))
    cluster.submit(web(1, depends_on=("db/g",)))
    cluster.settle()
    [found] = why(cluster.state, cluster.now_ms, "web")
    assert found.suggestions == ("cube start db",)


def test_a_run_of_a_cron_job() -> None:
    cluster = Cluster("a")
    schedule = CronSpec("* * * * *")
    cluster.submit(job("nightly", one(), type=JobType.CRON, cron=schedule))
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    cluster.now_ms += 60_000
    cluster.settle()
    found = why(cluster.state, cluster.now_ms, "nightly")
    assert [one.suggestions[:1] for one in found] == [(), ("cube node uncordon a",)]


def test_no_nodes_and_another_driver() -> None:
    cluster = Cluster()
    cluster.submit(web(1))
    assert told(cluster) == [NEW.format("cpu 0.1, memory 64MiB")]
    cluster.do(c.RegisterNode(facts("n", drivers={"process": DriverInfo("process", True)})))
    cluster.submit(job("shop", one(driver=DriverName.DOCKER, image="busybox", command=())))
    assert told(cluster, "shop")[0] == "enable the docker driver on n"


def test_what_no_node_allows() -> None:
    cluster = Cluster()
    allows = DriverInfo("docker", True, attributes={"allow": "bind"})
    cluster.do(c.RegisterNode(facts("n", drivers={"docker": allows})))
    docker = {"driver": DriverName.DOCKER, "image": "busybox", "command": ()}
    cluster.submit(job("shop", one(**docker, docker=DockerOptions(privileged=True))))
    assert told(cluster, "shop")[0] == (
        'in the agent\'s configuration of n: [drivers.docker] allow = ["bind", "privileged"]'
    )


def test_whom_no_node_lets_tasks_run_as() -> None:
    cluster = Cluster()
    allows = DriverInfo("process", True, attributes={"allow": "user:nobody"})
    cluster.do(c.RegisterNode(facts("n", drivers={"process": allows})))
    cluster.submit(web(1, user="alice"))
    [found] = why(cluster.state, cluster.now_ms, "web")
    assert "alice" in str(found.nodes) and "[drivers.process] users" in str(found.nodes)
    assert found.suggestions[0] == (
        'in the agent\'s configuration of n: [drivers.process] users = ["alice", "nobody"]'
    )


def test_a_name_that_no_node_can_have_is_no_reason_to_buy_one() -> None:
    cluster = Cluster("n")
    only = Constraint("node.name", Operator.EQ, "m")
    cluster.submit(web(1, placement=Placement(constraints=(only,))))
    assert not any("add a node" in hint for hint in told(cluster))
    assert NodeId("dry-run-node") not in cluster.state.nodes


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_suggested_does_place_it(seed: int) -> None:
    dice = random.Random(seed)
    past = some_past(dice)
    for _ in range(4):
        past.submit(some_job(dice))
    past.settle()
    for job_ in list(past.state.jobs.values()):
        if not job_.deleted:
            check(past.state, past.now_ms, job_.name)
