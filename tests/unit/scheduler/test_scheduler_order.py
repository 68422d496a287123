"""Who gets the room, which ports and zones, and when the ended are forgotten."""

from __future__ import annotations

from cube.model import commands as c
from cube.model.resources import Resources
from cube.model.spec import (
    Placement,
    PlacementPolicy,
    PortSpec,
)
from cube.scheduler.reap import BEYOND_KEEP_MS
from tests.builders import facts, job
from tests.scheduler_cluster import Cluster, one, web

# order, bounds, ports


def test_priority_then_age_decides_who_gets_the_room() -> None:
    cluster = Cluster("a")
    large = one(resources=Resources(3000, 1, 0))
    cluster.submit(job("old", large))
    cluster.now_ms += 1
    cluster.submit(job("young", large))
    cluster.now_ms += 1
    cluster.submit(job("urgent", large, priority=90))
    cluster.settle()
    assert [name for name in ("old", "young", "urgent") if cluster.live(name)] == ["urgent"]
    cluster.do(c.DeleteJob("urgent"))
    cluster.settle()
    assert [name for name in ("old", "young") if cluster.live(name)] == ["old"]


def test_parked_groups_are_placed_as_soon_as_there_is_room() -> None:
    cluster = Cluster("a")
    cluster.submit(web(6, resources=Resources(1000, 1, 0)))
    cluster.settle()
    assert len(cluster.live("web")) == 4
    cluster.do(c.RegisterNode(facts("b", capacity=Resources(1000, 1 << 30, 0))))
    cluster.settle()
    assert len(cluster.live("web")) == 5
    cluster.do(c.RegisterNode(facts("b", capacity=Resources(2000, 1 << 30, 0))))
    cluster.settle()
    assert len(cluster.live("web")) == 6


def test_a_plan_that_was_lost_is_made_again() -> None:
    cluster = Cluster("a")
    cluster.submit(web(4, resources=Resources(1000, 1, 0)))
    cluster.submit(job("more", one(resources=Resources(1000, 1, 0))))
    lost = cluster.scheduler.plan(cluster.state, cluster.now_ms, 1, "lost")
    assert lost.command is not None
    again = cluster.scheduler.plan(cluster.state, cluster.now_ms, 1, "lost")
    assert again == lost


def test_ports_are_given_once_per_host() -> None:
    cluster = Cluster()
    for name in ("a", "b"):
        cluster.do(
            c.RegisterNode(facts(name, advertise="one-host", port_first=20000, port_last=20004))
        )
    cluster.submit(web(3, ports={"s": PortSpec(host=8080), "d": PortSpec()}))
    cluster.settle()
    assert len(cluster.live("web")) == 1  # one host, one port 8080
    cluster.submit(job("other", one(count=9, ports={"d": PortSpec()})))
    cluster.settle()
    hosts = [
        port.host
        for name in ("web", "other")
        for task in cluster.live(name).values()
        for port in task.ports
        if port.name == "d"
    ]
    assert sorted(hosts) == [20000, 20001, 20002, 20003, 20004]


def test_dynamic_ports_do_not_come_back_at_once() -> None:
    cluster = Cluster("a")
    seen = set()
    for _ in range(5):
        cluster.submit(web(1, ports={"d": PortSpec()}))
        cluster.settle()
        seen.add(cluster.live("web")[0].ports[0].host)
        cluster.do(c.DeleteJob("web"))
        cluster.obey()
    assert len(seen) == 5


def test_roundrobin_goes_round_across_jobs() -> None:
    cluster = Cluster("a", "b", "c")
    where = []
    for number in range(6):
        name = f"job-{number}"
        placement = Placement(policy=PlacementPolicy.ROUNDROBIN)
        cluster.submit(job(name, one(placement=placement)))
        cluster.settle()
        where.append(cluster.where(name)[0])
    assert where == ["a", "b", "c", "a", "b", "c"]


def test_binpack_fills_and_spread_does_not() -> None:
    for policy, nodes in ((PlacementPolicy.BINPACK, 1), (PlacementPolicy.SPREAD, 3)):
        cluster = Cluster("a", "b", "c")
        cluster.submit(web(6, placement=Placement(policy=policy)))
        cluster.settle()
        assert len(set(cluster.where("web").values())) == nodes


def test_zones_come_before_room() -> None:
    cluster = Cluster()
    for name, zone, cores in (("a1", "a", 64), ("a2", "a", 64), ("b1", "b", 2)):
        capacity = Resources(cores * 1000, 1 << 40, 0)
        cluster.do(c.RegisterNode(facts(name, labels={"zone": zone}, capacity=capacity)))
    cluster.submit(web(8, placement=Placement(spread_over=("node.labels.zone",))))
    cluster.settle()
    zones = [name[0] for name in cluster.where("web").values()]
    assert sorted(zones) == ["a"] * 4 + ["b"] * 4


# reaping


def test_ended_tasks_are_forgotten_beyond_the_newest_five() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    for _ in range(9):
        cluster.fail(cluster.live("web")[0])
        cluster.now_ms += 3_600_000
        cluster.settle()
    assert sum(task.ended for task in cluster.state.tasks.values()) == 5


def test_slots_beyond_the_count_are_forgotten_after_a_while() -> None:
    cluster = Cluster("a")
    cluster.submit(web(3))
    cluster.settle()
    cluster.do(c.ScaleJob("web", {"g": 1}))
    cluster.settle()
    assert len(cluster.state.tasks) == 3
    wake_at_ms = cluster.plan().wake_at_ms
    assert wake_at_ms == cluster.now_ms + BEYOND_KEEP_MS
    cluster.now_ms = wake_at_ms
    cluster.settle()
    assert len(cluster.state.tasks) == 1
