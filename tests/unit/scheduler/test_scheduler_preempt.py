"""Important tasks that fit nowhere take the place of less important ones, when the cluster allows it."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.lifecycle import TaskState
from cube.model.resources import Resources
from cube.model.spec import JobSpec, JobType, PortSpec, UpdatePolicy
from cube.scheduler.preempt import PER_PLAN_MAX, VICTIMS_MAX
from cube.scheduler.why import explain
from tests.builders import facts, job
from tests.scheduler_cluster import Cluster, one

BIG = Resources(4000, 1, 0)
HALF = Resources(2000, 1, 0)
QUARTER = Resources(1000, 1, 0)


def preempting(*nodes: str) -> Cluster:
    cluster = Cluster(*nodes)
    cluster.do(c.ChangeSettings(preemption=True))
    return cluster


def spec(name: str, priority: int, count: int = 1, away: int = 1, **changes: Any) -> JobSpec:
    type_ = changes.pop("type", JobType.SERVICE)
    shape = {"resources": QUARTER, "update": UpdatePolicy(parallelism=away)} | changes
    return job(name, one(count=count, **shape), priority=priority, type=type_)


def victims(cluster: Cluster) -> list[Task]:
    return [task for task in cluster.state.tasks.values() if task.preempted_by]


def names(cluster: Cluster) -> set[str]:
    return {task.name for task in victims(cluster)}


def said(cluster: Cluster, name: str) -> str:
    return "\n".join(one.summary for one in explain(cluster.state, cluster.now_ms, name))


def test_it_is_off_until_it_is_switched_on() -> None:
    cluster = Cluster("a")
    cluster.submit(spec("low", 10, resources=BIG))
    cluster.settle()
    cluster.submit(spec("high", 90))
    cluster.settle()
    assert victims(cluster) == []
    cluster.do(c.ChangeSettings(preemption=True))
    cluster.settle()
    assert cluster.where("high") == {0: "a"}


def test_the_victim_goes_first_then_the_preemptor_comes_and_all_of_it_is_told() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 10, count=2, resources=HALF))
    cluster.settle()
    cluster.now_ms += 1000
    cluster.submit(spec("high", 90, resources=HALF))
    cluster.plan()
    [victim] = victims(cluster)
    assert victim.desired_reason == "preempted by high.g"
    assert cluster.live("high") == {}
    assert f"{victim.name} on a being stopped to make room" in said(cluster, "high")
    assert cluster.plan().command is None  # nothing more is taken meanwhile
    cluster.settle()
    assert cluster.where("high") == {0: "a"}
    assert len(cluster.live("low")) == 1
    gone = cluster.state.tasks[victim.id]
    assert (gone.state, gone.preempted_by) == (TaskState.COMPLETED, "high.g")


def test_a_difference_of_less_than_ten_is_none() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 41, resources=BIG))
    cluster.settle()
    cluster.submit(spec("high", 50))
    cluster.settle()
    assert victims(cluster) == []
    cluster.submit(spec("higher", 51))
    cluster.settle()
    assert names(cluster) == {"low.g.0"}


def test_the_fewest_then_the_least_important_then_the_youngest() -> None:
    cluster = preempting("a", "b")
    cluster.do(c.SetEligibility(cluster.node("b"), False))
    cluster.submit(spec("many", 10, count=4, away=4))
    cluster.settle()
    cluster.do(c.SetEligibility(cluster.node("b"), True))
    cluster.submit(spec("middle", 30, count=1, resources=HALF))
    cluster.now_ms += 1000
    cluster.settle()
    cluster.submit(spec("also", 20, count=1, resources=HALF))
    cluster.settle()
    assert set(cluster.where("middle").values()) | set(cluster.where("also").values()) == {"b"}
    cluster.submit(spec("high", 90, resources=HALF))
    cluster.plan()
    assert names(cluster) == {"also.g.0"}  # one on b rather than two on a; 20 rather than 30


def test_no_group_falls_below_what_it_was_promised() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 10, count=4, away=1))
    cluster.settle()
    cluster.submit(spec("high", 90, count=3))
    for _ in range(5):
        cluster.settle()
    assert len(cluster.live("low")) == 3
    assert len(cluster.live("high")) == 1


def test_batch_tasks_have_no_promise_and_run_again() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 10, count=4, type=JobType.BATCH))
    cluster.settle()
    cluster.submit(spec("high", 90, count=3))
    cluster.settle()
    assert (len(cluster.live("low")), len(cluster.live("high"))) == (1, 3)
    cluster.do(c.StopJob("high"))
    cluster.settle()
    assert len(cluster.live("low")) == 4


def test_system_tasks_are_left_alone() -> None:
    cluster = preempting("a")
    cluster.submit(spec("agent", 10, type=JobType.SYSTEM, resources=BIG))
    cluster.settle()
    cluster.submit(spec("high", 90))
    cluster.settle()
    assert victims(cluster) == []


def test_the_room_is_held_until_all_of_it_is_there() -> None:
    """Victims end one after the other, and each one's replacement would take its old room."""
    cluster = preempting("a")
    cluster.submit(spec("low", 10, count=4, away=4))
    cluster.settle()
    cluster.submit(spec("high", 90, resources=BIG))
    cluster.plan()
    going = victims(cluster)
    assert len(going) == 4
    for task in going:
        cluster.plan()
        assert cluster.live("low") == {}
        cluster.report(task.id, "completed", exit_code=143, released=True)
    cluster.plan()
    assert cluster.where("high") == {0: "a"}


def test_a_held_node_says_so() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 10, count=2, away=2, resources=HALF))
    cluster.settle()
    cluster.submit(spec("high", 90, resources=BIG))
    cluster.plan()
    cluster.report(victims(cluster)[0].id, "completed", exit_code=143, released=True)
    [reasons] = [
        node.reasons for one in explain(cluster.state, cluster.now_ms, "low") for node in one.nodes
    ][:1]
    assert "its room is held for high.g, which preempted tasks there" in [
        reason.message for reason in reasons
    ]


def test_the_holder_of_a_host_port_has_to_go() -> None:
    cluster = preempting("a")
    cluster.submit(spec("low", 10, ports={"p": PortSpec(host=80)}))
    cluster.submit(spec("other", 10))
    cluster.settle()
    cluster.submit(spec("high", 90, ports={"p": PortSpec(host=80)}))
    cluster.plan()
    assert names(cluster) == {"low.g.0"}
    cluster.settle()
    assert cluster.where("high") == {0: "a"}


def test_a_replacement_preempts_only_what_its_own_priority_allows() -> None:
    cluster = preempting("a", "b")
    cluster.submit(spec("low", 10, resources=BIG))
    cluster.submit(spec("middle", 50, resources=BIG))
    cluster.settle()
    cluster.submit(spec("high", 90, resources=BIG))
    for _ in range(5):
        cluster.settle()
    assert len(cluster.live("high")) == len(cluster.live("middle")) == 1
    assert cluster.live("low") == {}
    assert names(cluster) == {"low.g.0"}


def test_what_takes_too_many_is_not_done_and_a_plan_is_bounded() -> None:
    cluster = preempting()
    cluster.do(c.RegisterNode(facts("a", capacity=Resources(200_000, 1 << 30, 0))))
    small = Resources(1000, 1, 0)
    cluster.submit(spec("low", 10, count=200, type=JobType.BATCH, resources=small))
    cluster.settle()
    cluster.submit(spec("huge", 90, resources=Resources((VICTIMS_MAX + 1) * 1000, 1, 0)))
    cluster.settle()
    assert victims(cluster) == []
    cluster.submit(spec("high", 90, count=150, resources=small))
    cluster.plan()
    assert len(victims(cluster)) == PER_PLAN_MAX
    cluster.settle()
    assert len(cluster.live("high")) == 150


def test_of_equals_on_two_nodes_the_younger_goes_and_nothing_more_meanwhile() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        cluster = preempting("a", "b")
        cluster.do(c.SetEligibility(cluster.node(second), False))
        cluster.submit(spec("old", 10, resources=BIG))
        cluster.settle()
        cluster.do(c.SetEligibility(cluster.node(second), True))
        cluster.now_ms += 1000
        cluster.submit(spec("young", 10, resources=BIG))
        cluster.settle()
        cluster.submit(spec("high", 90, resources=HALF))
        cluster.plan()
        assert (cluster.where("old"), names(cluster)) == ({0: first}, {"young.g.0"})
        cluster.now_ms += 1000
        cluster.plan()
        assert names(cluster) == {"young.g.0"}


def test_victims_on_a_node_that_goes_down_are_not_waited_for() -> None:
    cluster = preempting("a", "b")
    cluster.submit(spec("low", 10, count=2, away=2, resources=BIG))
    cluster.settle()
    cluster.submit(spec("high", 90, resources=BIG))
    cluster.plan()
    [victim] = victims(cluster)
    cluster.down(cluster.state.nodes[victim.node_id].name)
    cluster.settle()
    assert len(cluster.live("high")) == 1
