"""Wanted against actual, through whole plans that are applied."""

from __future__ import annotations

import itertools

from cube.model import commands as c
from cube.model.lifecycle import Desired, NodeStatus
from cube.model.resources import Resources
from cube.model.spec import (
    CheckSpec,
    CheckType,
    Constraint,
    JobType,
    OnUpdateFailure,
    Operator,
    Placement,
    ReschedulePolicy,
    RestartCondition,
    RestartPolicy,
    UpdatePolicy,
)
from cube.scheduler.plan_draft import Plan
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, one, web

# service


def test_replicas_are_spread_and_the_plan_is_at_rest_afterwards() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web())
    cluster.settle()
    assert sorted(cluster.where("web").values()) == ["a", "b", "c"]
    assert cluster.plan() == Plan(None)


def test_scaling_up_and_down() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2))
    cluster.settle()
    cluster.do(c.ScaleJob("web", {"g": 5}))
    cluster.settle()
    assert sorted(cluster.live("web")) == [0, 1, 2, 3, 4]
    before = cluster.live("web")
    cluster.do(c.ScaleJob("web", {"g": 1}))
    plan = cluster.plan()
    assert plan.command is not None
    assert {stop.reason for stop in plan.command.stops} == {"scale_down"}
    cluster.settle()
    assert cluster.live("web")[0].id == before[0].id
    assert sorted(cluster.live("web")) == [0]


def test_a_stopped_slot_is_filled_only_when_its_task_has_ended() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(1))
    cluster.settle()
    task = cluster.live("web")[0]
    cluster.do(c.StopTask(task.id))
    assert cluster.plan().command is None
    cluster.obey()
    cluster.settle()
    assert cluster.live("web")[0].id != task.id


def test_a_stopped_job_places_nothing_and_a_started_one_again() -> None:
    cluster = Cluster("a")
    cluster.submit(web(2))
    cluster.settle()
    cluster.do(c.StopJob("web"))
    cluster.settle()
    assert cluster.live("web") == {}
    cluster.do(c.StartJob("web"))
    cluster.settle()
    assert sorted(cluster.live("web")) == [0, 1]


def test_lost_tasks_are_replaced_at_once_elsewhere() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(3, reschedule=ReschedulePolicy(delay_ms=60_000)))
    cluster.settle()
    cluster.down("a")
    plan = cluster.plan()
    assert plan.command is not None
    assert plan.command.placements[0].reason == "lost"
    cluster.settle()
    assert sorted(cluster.live("web")) == [0, 1, 2]
    assert "a" not in cluster.where("web").values()


def test_a_lost_task_whose_node_is_back_may_go_on() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    task = cluster.live("web")[0]
    cluster.now_ms += 1000
    cluster.down("a")
    assert cluster.plan().command is None  # no other node
    cluster.now_ms += 1000
    cluster.down("a", NodeStatus.READY)
    plan = cluster.plan()
    assert plan.command is None
    assert plan.wake_at_ms is not None
    cluster.report(task.id, "running")
    cluster.settle()
    assert cluster.live("web")[0].id == task.id


def test_a_lost_task_of_a_node_that_is_back_and_says_nothing_is_replaced() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    cluster.settle()
    cluster.now_ms += 1000
    cluster.down("a")
    cluster.now_ms += 1000
    cluster.down("a", NodeStatus.READY)
    wake_at_ms = cluster.plan().wake_at_ms
    assert wake_at_ms is not None
    cluster.now_ms = wake_at_ms
    assert cluster.plan().command is not None


def test_failures_back_off_doubling_and_prefer_another_node() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(1, reschedule=ReschedulePolicy(delay_ms=1000, max_delay_ms=3000)))
    cluster.settle()
    seen = []
    for delay_ms in (1000, 2000, 3000, 3000):
        task = cluster.live("web")[0]
        seen.append(task.node_id)
        cluster.fail(task)
        plan = cluster.plan()
        assert plan.command is None
        assert plan.wake_at_ms == cluster.now_ms + delay_ms
        cluster.now_ms += delay_ms - 1
        assert cluster.plan().command is None
        cluster.now_ms += 1
        cluster.settle()
    assert all(first != second for first, second in itertools.pairwise(seen))
    assert cluster.live("web")[0].reschedules == 4


def test_a_failure_after_a_good_run_is_a_first_failure() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1, reschedule=ReschedulePolicy(delay_ms=1000)))
    cluster.settle()
    for _ in range(3):
        cluster.fail(cluster.live("web")[0])
        cluster.now_ms += 10_000
        cluster.settle()
    cluster.now_ms += 700_000
    cluster.fail(cluster.live("web")[0])
    assert cluster.plan().wake_at_ms == cluster.now_ms + 1000


def test_attempts_are_bounded_and_a_new_version_begins_anew() -> None:
    cluster = Cluster("a")
    limited = ReschedulePolicy(attempts=1, delay_ms=1000)
    cluster.submit(web(1, reschedule=limited))
    cluster.settle()
    for _ in range(2):
        cluster.fail(cluster.live("web")[0])
        cluster.now_ms += 100_000
        cluster.settle()
    assert cluster.live("web") == {}
    assert cluster.plan().wake_at_ms is None
    cluster.submit(web(1, reschedule=limited, command=("other",)))
    cluster.settle()
    assert sorted(cluster.live("web")) == [0]


def test_a_rejected_task_goes_elsewhere_at_once_and_back_only_later() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(1))
    cluster.plan()
    first = cluster.live("web")[0]
    cluster.report(first.id, "rejected", reason="image_missing", released=True)
    cluster.plan()
    second = cluster.live("web")[0]
    assert second.node_id != first.node_id
    cluster.report(second.id, "rejected", reason="image_missing", released=True)
    plan = cluster.plan()
    assert plan.command is None
    assert plan.wake_at_ms == cluster.now_ms + 30_000
    cluster.now_ms += 30_000
    cluster.plan()
    assert sorted(cluster.live("web")) == [0]


def test_a_completed_service_task_that_is_not_to_restart_is_done() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1, restart=RestartPolicy(policy=RestartCondition.ON_FAILURE)))
    cluster.settle()
    cluster.report(cluster.live("web")[0].id, "completed", exit_code=0, released=True)
    assert cluster.plan() == Plan(None)


# updates


def test_a_change_that_needs_no_container_is_made_in_place() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2))
    cluster.settle()
    before = {slot: task.id for slot, task in cluster.live("web").items()}
    cluster.submit(web(2, stop_timeout_ms=1))
    plan = cluster.plan()
    assert plan.command is not None
    assert len(plan.command.updates) == 2
    assert {slot: task.id for slot, task in cluster.live("web").items()} == before
    assert {task.version for task in cluster.live("web").values()} == {2}
    assert cluster.plan() == Plan(None)


def test_a_rollout_takes_one_at_a_time_and_never_below_its_count() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(3))
    cluster.settle()
    cluster.submit(web(3, command=("two",)))
    for _ in range(20):
        plan = cluster.plan()
        serving = sum(task.serving for task in cluster.live("web").values())
        assert serving >= 2
        if plan.command is None:
            break
        assert len(plan.command.stops) <= 1
        cluster.obey()
    assert {task.version for task in cluster.live("web").values()} == {2}


def test_a_rollout_of_more_at_a_time() -> None:
    cluster = Cluster("a", "b", "c")
    two = UpdatePolicy(parallelism=2, min_healthy_ms=0)
    cluster.submit(web(5, update=two))
    cluster.settle()
    cluster.submit(web(5, update=two, command=("two",)))
    plan = cluster.plan()
    assert plan.command is not None
    assert len(plan.command.stops) == 2
    cluster.settle()
    assert {task.version for task in cluster.live("web").values()} == {2}


def test_a_version_that_does_not_come_up_stops_the_rollout() -> None:
    pause = UpdatePolicy(min_healthy_ms=0, on_failure=OnUpdateFailure.PAUSE)
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(3, update=pause))
    cluster.settle()
    cluster.submit(web(3, update=pause, command=("broken",)))
    cluster.plan()
    for task in cluster.state.tasks.values():
        if task.desired is Desired.STOP:
            cluster.report(task.id, "completed", released=True)
    cluster.plan()
    for _ in range(5):  # it is placed, and fails, and is placed again
        for task in cluster.live("web").values():
            if task.version == 2:
                cluster.fail(task)
        cluster.now_ms += 3_600_000
        plan = cluster.plan()
        assert plan.command is None or plan.command.stops == ()
    assert sum(task.version == 1 for task in cluster.live("web").values()) == 2


def test_a_version_that_fits_nowhere_stops_one_task_only() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(3))
    cluster.settle()
    cluster.submit(web(3, resources=Resources(1_000_000, 0, 0)))
    cluster.settle()
    assert len(cluster.live("web")) == 2


def test_a_broken_version_is_replaced_task_by_task() -> None:
    cluster = Cluster("a", "b", "c")
    checks = (CheckSpec("up", CheckType.EXEC, command=("true",)),)
    cluster.submit(web(3, checks=checks))
    cluster.plan()
    cluster.obey()  # running, but no check ever passes
    cluster.submit(web(3, command=("mended",)))
    cluster.settle()
    assert {task.version for task in cluster.live("web").values()} == {2}


def test_a_group_that_is_gone_is_stopped() -> None:
    cluster = Cluster("a")
    cluster.submit(job("web", {"g": group(), "h": group(count=2)}))
    cluster.settle()
    cluster.submit(job("web", {"g": group()}))
    plan = cluster.plan()
    assert plan.command is not None
    assert [stop.reason for stop in plan.command.stops] == ["group_removed"] * 2


# batch, system


def test_batch_completes_once_and_never_again() -> None:
    cluster = Cluster("a")
    cluster.submit(job("work", one(count=2), type=JobType.BATCH))
    cluster.settle()
    for task in cluster.live("work").values():
        cluster.report(task.id, "completed", exit_code=0, released=True)
    assert cluster.plan() == Plan(None)
    cluster.do(c.StopJob("work"))
    cluster.do(c.StartJob("work"))
    assert cluster.plan() == Plan(None)
    cluster.submit(job("work", one(count=2, stop_timeout_ms=1), type=JobType.BATCH))
    assert cluster.plan() == Plan(None)
    cluster.submit(job("work", one(count=2, command=("other",)), type=JobType.BATCH))
    cluster.plan()
    assert sorted(cluster.live("work")) == [0, 1]


def test_batch_that_was_stopped_on_the_way_runs_again() -> None:
    cluster = Cluster("a")
    cluster.submit(job("work", one(), type=JobType.BATCH))
    cluster.settle()
    cluster.do(c.StopJob("work"))
    cluster.obey()
    cluster.do(c.StartJob("work"))
    cluster.plan()
    assert sorted(cluster.live("work")) == [0]


def test_batch_that_ends_while_it_is_told_to_stop_is_done() -> None:
    cluster = Cluster("a")
    cluster.submit(job("work", one(), type=JobType.BATCH))
    cluster.settle()
    task = cluster.live("work")[0]
    cluster.do(c.StopJob("work"))
    cluster.report(task.id, "completed", exit_code=0, released=True)
    cluster.do(c.StartJob("work"))
    assert cluster.plan() == Plan(None)


def test_system_is_on_each_eligible_node_and_on_later_ones() -> None:
    cluster = Cluster("a", "b")
    ssd = Placement(constraints=(Constraint("node.labels.disk", Operator.NE, "hdd"),))
    cluster.submit(job("everywhere", one(placement=ssd), type=JobType.SYSTEM))
    cluster.settle()
    assert cluster.where("everywhere") == {0: "a", 1: "b"}
    cluster.do(c.RegisterNode(facts("c")))
    cluster.do(c.RegisterNode(facts("d", labels={"disk": "hdd"})))
    cluster.settle()
    assert cluster.where("everywhere") == {0: "a", 1: "b", 2: "c"}
    cluster.do(c.SetEligibility(cluster.node("b"), False))
    cluster.settle()
    assert cluster.where("everywhere") == {0: "a", 1: "b", 2: "c"}
    cluster.do(c.SetLabels(cluster.node("a"), {"disk": "hdd"}))
    cluster.settle()
    assert cluster.where("everywhere") == {1: "b", 2: "c"}
    cluster.do(c.RegisterNode(facts("e")))
    cluster.settle()
    assert set(cluster.where("everywhere").values()) == {"b", "c", "e"}


def test_system_comes_back_in_its_slot_on_its_node() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("everywhere", one(), type=JobType.SYSTEM))
    cluster.settle()
    cluster.down("b")
    cluster.settle()
    assert cluster.where("everywhere") == {0: "a"}
    cluster.now_ms += 60_000
    cluster.down("b", NodeStatus.READY)
    cluster.now_ms += 60_000
    cluster.settle()
    assert cluster.where("everywhere") == {0: "a", 1: "b"}


# nodes


def test_cordon_keeps_and_drain_moves_one_at_a_time() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(4))
    cluster.settle()
    cluster.do(c.SetEligibility(cluster.node("a"), False))
    assert cluster.plan() == Plan(None)
    cluster.do(c.SetDrain(cluster.node("a"), 600_000))
    plan = cluster.plan()
    assert plan.command is not None
    assert [stop.reason for stop in plan.command.stops] == ["drain"]
    assert cluster.plan().command is None  # the first has not ended yet
    cluster.obey()
    cluster.settle()
    assert set(cluster.where("web").values()) == {"b"}


def test_at_the_deadline_of_a_drain_everything_stops() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("everywhere", one(), type=JobType.SYSTEM))
    cluster.submit(job("work", one(count=4), type=JobType.BATCH))
    cluster.settle()
    cluster.do(c.SetDrain(cluster.node("a"), 60_000))
    plan = cluster.plan()
    assert plan.command is None
    assert plan.wake_at_ms == cluster.now_ms + 60_000
    cluster.now_ms += 60_000
    cluster.settle()
    assert set(cluster.where("everywhere").values()) == {"b"}
    assert set(cluster.where("work").values()) == {"b"}


# dependencies


def test_depends_on_waits_at_the_first_start_only() -> None:
    cluster = Cluster("a")
    cluster.submit(job("shop", {"db": group(), "web": group(count=2, depends_on=("db",))}))
    cluster.plan()
    assert len(cluster.live("shop", "db")) == 1
    assert cluster.live("shop", "web") == {}
    cluster.obey()
    cluster.settle()
    assert sorted(cluster.live("shop", "web")) == [0, 1]
    cluster.fail(cluster.live("shop", "db")[0])
    cluster.fail(cluster.live("shop", "web")[0])
    cluster.fail(cluster.live("shop", "web")[1])
    cluster.now_ms += 5_000
    cluster.plan()
    assert sorted(cluster.live("shop", "web")) == [0, 1]


def test_depends_on_another_jobs_batch_waits_for_its_end() -> None:
    cluster = Cluster("a")
    cluster.submit(job("web", one(depends_on=("seed/g",))))
    cluster.plan()
    assert cluster.live("web") == {}
    cluster.submit(job("seed", one(), type=JobType.BATCH))
    cluster.settle()
    assert cluster.live("web") == {}
    cluster.report(cluster.live("seed")[0].id, "completed", exit_code=0, released=True)
    cluster.plan()
    assert sorted(cluster.live("web")) == [0]


def test_at_most_one_waits_until_the_node_says_that_it_is_gone() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(1, at_most_one=True))
    cluster.settle()
    task = cluster.live("web")[0]
    cluster.down(cluster.where("web")[0])
    assert cluster.plan().command is None
    cluster.report(task.id, "failed", released=True)
    cluster.now_ms += 5_000
    cluster.plan()
    assert sorted(cluster.live("web")) == [0]
