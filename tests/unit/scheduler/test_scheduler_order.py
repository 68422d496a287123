"""Who gets the room, which ports and zones, and when the ended are forgotten."""

from __future__ import annotations

from cube.model import commands as c
from cube.model.cluster import ClusterSettings
from cube.model.resources import Resources
from cube.model.spec import (
    JobType,
    Placement,
    PlacementPolicy,
    PortSpec,
)
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
    assert wake_at_ms == cluster.now_ms + ClusterSettings().finished_beyond_ms
    cluster.now_ms = wake_at_ms
    cluster.settle()
    assert len(cluster.state.tasks) == 1


def crash_and_wait(cluster: Cluster, times: int, pause_ms: int = 3_600_000) -> None:
    for _ in range(times):
        cluster.fail(cluster.live("web")[0])
        cluster.now_ms += pause_ms
        cluster.settle()


def ended_of(cluster: Cluster) -> list[str]:
    """Ids, oldest first."""
    ended = [task for task in cluster.state.tasks.values() if task.ended]
    return [task.id for task in sorted(ended, key=lambda task: task.created_at_ms)]


def test_how_many_are_remembered_is_a_setting_that_holds_at_once() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    crash_and_wait(cluster, 9)
    remembered = ended_of(cluster)
    assert len(remembered) == ClusterSettings().finished_per_slot
    cluster.do(c.ChangeSettings(finished_per_slot=2))
    cluster.settle()
    assert ended_of(cluster) == remembered[-2:]
    cluster.do(c.ChangeSettings(finished_per_slot=20))
    crash_and_wait(cluster, 30)
    assert len(ended_of(cluster)) == 20


def test_a_job_that_rests_is_looked_at_again_when_the_setting_changes() -> None:
    """Also by a scheduler that was told of each entry, and took the job for idle."""
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    crash_and_wait(cluster, 4)
    before = cluster.state
    assert cluster.plan().wake_at_ms is None
    cluster.do(c.ChangeSettings(finished_per_slot=1))
    cluster.scheduler.note(before, cluster.state, ())
    cluster.plan()
    assert len(ended_of(cluster)) == 1


def test_those_that_are_too_old_are_forgotten_when_they_are_but_the_newest_never() -> None:
    cluster = Cluster("a")
    cluster.do(c.ChangeSettings(finished_for_ms=7_200_000))
    cluster.submit(web(1))
    cluster.settle()
    crash_and_wait(cluster, 2, 600_000)
    older, newest = ended_of(cluster)
    wake_at_ms = cluster.plan().wake_at_ms
    assert wake_at_ms is not None and wake_at_ms > cluster.now_ms
    cluster.now_ms = wake_at_ms - 1
    cluster.settle()
    assert ended_of(cluster) == [older, newest]
    cluster.now_ms = wake_at_ms
    cluster.settle()
    assert ended_of(cluster) == [newest]
    cluster.now_ms += 10 * 7_200_000
    cluster.settle()
    assert ended_of(cluster) == [newest]
    crash_and_wait(cluster, 2, 60_000)
    cluster.now_ms += 10 * 7_200_000
    cluster.settle()
    assert len(ended_of(cluster)) == 1, "of several that are too old"


def test_a_batch_that_is_done_stays_done_however_old_it_is() -> None:
    cluster = Cluster("a")
    cluster.do(c.ChangeSettings(finished_per_slot=1, finished_for_ms=300_000))
    cluster.submit(job("work", one(), type=JobType.BATCH))
    cluster.settle()
    [task] = cluster.live("work").values()
    cluster.report(task.id, "completed", exit_code=0, released=True)
    cluster.now_ms += 100 * 86_400_000
    cluster.settle()
    assert (cluster.live("work"), ended_of(cluster)) == ({}, [task.id])


def test_a_stopped_job_keeps_each_slots_newest() -> None:
    cluster = Cluster("a")
    cluster.do(c.ChangeSettings(finished_per_slot=1, finished_for_ms=300_000))
    cluster.submit(web(2))
    cluster.settle()
    cluster.do(c.StopJob("web"))
    cluster.settle()
    cluster.now_ms += 100 * 86_400_000
    cluster.settle()
    assert len(ended_of(cluster)) == 2


def test_how_long_slots_that_are_not_wanted_are_remembered_is_a_setting() -> None:
    cluster = Cluster("a")
    cluster.do(c.ChangeSettings(finished_beyond_ms=1000))
    cluster.submit(web(3))
    cluster.settle()
    cluster.do(c.ScaleJob("web", {"g": 1}))
    cluster.settle()
    assert len(ended_of(cluster)) == 2
    cluster.now_ms += 1000
    cluster.settle()
    assert ended_of(cluster) == []
