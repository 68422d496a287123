"""A slot's tasks go where its volumes are, or wait and say so."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import PlanApplied
from cube.model.resources import Resources
from cube.model.spec import JobSpec, JobType, MountSpec, MountType, Placement, PlacementPolicy
from cube.scheduler.why import explain
from cube.statemachine.snapshot import digest, dump, load
from tests.builders import facts, job
from tests.scheduler_cluster import Cluster, one, web


def data(*names: str) -> tuple[MountSpec, ...]:
    return tuple(MountSpec(MountType.VOLUME, f"/{name}", name) for name in names or ("data",))


def shop(count: int = 1, *names: str, **changes: Any) -> JobSpec:
    return web(count, mounts=data(*names), **changes)


def homes(state: ClusterState) -> dict[tuple[str, int, str], str]:
    return {
        (volume.group, volume.slot, volume.name): state.nodes[volume.node_id].name
        for of_job in state.volumes.values()
        for volume in of_job.values()
    }


def said(cluster: Cluster) -> str:
    return "\n".join(one.summary for one in explain(cluster.state, cluster.now_ms, "web"))


def test_the_first_task_of_a_slot_settles_where_its_later_ones_go() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(shop(3))
    cluster.settle()
    where = cluster.where("web")
    assert sorted(where.values()) == ["a", "b", "c"]
    assert homes(cluster.state) == {("g", slot, "data"): name for slot, name in where.items()}
    [volume] = [one for one in next(iter(cluster.state.volumes.values())).values() if one.slot == 1]
    assert (volume.name, volume.job, volume.group) == ("data", "web", "g")
    assert volume.created_at_ms == cluster.now_ms
    for slot in (0, 1, 2):  # whatever else speaks for another node
        cluster.fail(cluster.live("web")[slot])
        cluster.now_ms += 60_000
        cluster.settle()
        assert cluster.where("web") == where
    cluster.submit(shop(3, command=("another",)))
    for _ in range(6):
        cluster.settle()
    assert cluster.where("web") == where
    assert all(task.version == 2 for task in cluster.live("web").values())


def test_scaled_down_and_up_again_and_stopped_and_started_it_returns() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(shop(3))
    cluster.settle()
    where = cluster.where("web")
    cluster.do(c.ScaleJob("web", {"g": 1}))
    cluster.settle()
    cluster.now_ms += 3_600_000
    cluster.settle()
    assert len(cluster.state.tasks) == 1, "the other slots' records are reaped"
    cluster.do(c.ScaleJob("web", {"g": 3}))
    cluster.settle()
    assert cluster.where("web") == where
    cluster.do(c.StopJob("web"))
    cluster.settle()
    cluster.do(c.StartJob("web"))
    cluster.settle()
    assert cluster.where("web") == where


def test_a_home_that_is_down_is_waited_for() -> None:
    cluster = Cluster("n1", "n2")
    cluster.submit(shop(1, "shop-data"))
    cluster.settle()
    home = cluster.where("web")[0]
    cluster.down(home)
    cluster.settle()
    assert cluster.live("web") == {}
    assert f"its volume shop-data is on {home}, which is down" in said(cluster)
    cluster.down(home, NodeStatus.READY)
    cluster.now_ms += 60_000
    cluster.settle()
    assert cluster.where("web") == {0: home}


def test_a_home_that_is_full_is_waited_for_and_several_slots_share_its_room() -> None:
    cluster = Cluster("a")
    cluster.submit(shop(3, resources=Resources(1000, 1, 0)))
    cluster.settle()
    cluster.do(c.StopJob("web"))
    cluster.settle()
    cluster.submit(job("other", one(resources=Resources(2000, 1, 0))))
    cluster.settle()
    cluster.do(c.StartJob("web"))
    cluster.do(c.RegisterNode(facts("b")))
    cluster.settle()
    assert list(cluster.where("web").values()) == ["a", "a"]
    assert "its volume data is on a; 1 of 1 nodes: cpu" in said(cluster)


def test_a_cordoned_home_says_so() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop())
    cluster.settle()
    home = cluster.where("web")[0]
    cluster.do(c.SetEligibility(cluster.node(home), False))
    cluster.do(c.StopTask(cluster.live("web")[0].id))
    cluster.settle()
    assert f"its volume data is on {home}, which is cordoned" in said(cluster)


def test_a_drain_leaves_it_until_the_deadline_and_then_it_waits() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop())
    cluster.settle()
    home = cluster.where("web")[0]
    cluster.do(c.SetDrain(cluster.node(home), 60_000))
    cluster.settle()
    assert cluster.where("web") == {0: home}
    cluster.now_ms += 60_000
    cluster.settle()
    assert cluster.live("web") == {}
    assert f"its volume data is on {home}, which is being drained" in said(cluster)
    cluster.do(c.SetDrain(cluster.node(home), None))
    cluster.settle()
    assert cluster.where("web") == {0: home}


def test_the_job_takes_its_bindings_along_and_the_node_gives_them_up() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop(2))
    cluster.submit(job("other", one(mounts=data())))
    cluster.settle()
    assert len(homes(cluster.state)) == 2  # both jobs have a slot 0 of group g: see by job
    assert len(cluster.state.volumes) == 2
    cluster.do(c.DeleteJob("other"))
    assert len(cluster.state.volumes) == 1
    where = cluster.where("web")
    gone = where[0]
    cluster.down(gone)
    cluster.do(c.RemoveNode(cluster.node(gone)))
    cluster.settle()
    assert len(cluster.live("web")) == 2
    assert gone not in cluster.where("web").values()


def test_volumes_on_different_nodes_are_never_mounted_empty() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop(1, "u", placement=Placement(policy=PlacementPolicy.ROUNDROBIN)))
    cluster.settle()
    first = cluster.where("web")[0]
    cluster.do(c.SetEligibility(cluster.node(first), False))
    cluster.submit(shop(1, "v"))
    cluster.settle()
    second = cluster.where("web")[0]
    assert second != first
    cluster.do(c.SetEligibility(cluster.node(first), True))
    cluster.submit(shop(1, "u", "v"))
    cluster.settle()
    assert cluster.live("web") == {}
    assert f"its volumes are on different nodes: u on {first}, v on {second}" in said(cluster)
    cluster.submit(shop(1, "u"))
    cluster.settle()
    assert cluster.where("web") == {0: first}


def test_what_no_remembered_version_mounts_is_forgotten() -> None:
    cluster = Cluster("a", "b")
    for number in range(30):
        cluster.submit(shop(1, f"v{number}"))
        cluster.settle()
    assert len(homes(cluster.state)) <= 11
    assert ("g", 0, "v29") in homes(cluster.state)


def test_a_plan_that_knows_less_is_refused() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop())
    cluster.settle()
    home = cluster.where("web")[0]
    other = "b" if home == "a" else "a"
    cluster.do(c.StopTask(cluster.live("web")[0].id))
    cluster.obey()
    outcome = cluster.place("web", "g", (0, other, ()))
    assert isinstance(outcome, PlanApplied)
    assert [one.code for one in outcome.refused] == ["volume"]


def test_a_rejection_at_home_is_waited_out() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop())
    cluster.plan()
    [task] = cluster.live("web").values()
    cluster.report(task.id, "rejected", reason="port_taken", released=True)
    wake_ms = cluster.plan().wake_at_ms
    assert cluster.live("web") == {}
    assert wake_ms is not None
    cluster.now_ms = wake_ms
    cluster.settle()
    assert cluster.live("web")[0].node_id == task.node_id


def test_system_tasks_and_other_mounts_do_not_stick() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("every", one(mounts=data()), type=JobType.SYSTEM))
    cluster.submit(web(2, mounts=(MountSpec(MountType.BIND, "/x", "/x"),)))
    cluster.settle()
    assert homes(cluster.state) == {}


def test_bindings_are_in_the_snapshot() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(shop(5, "u", "v"))
    cluster.settle()
    again = load(dump(cluster.state))
    assert again == cluster.state
    assert digest(again) == digest(cluster.state)
    assert len(homes(again)) == 10
