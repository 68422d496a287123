"""Batch jobs from their first task to their last: what is placed, stopped and kept, and one word for it."""

from __future__ import annotations

from typing import Any

from cube.api.slots import slots_of_job
from cube.model import commands as c
from cube.model.outcome import JobAccepted
from cube.model.spec import JobSpec, JobType, ReschedulePolicy
from cube.model.views import GroupCounts
from cube.scheduler.plan_draft import Plan
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, one

ONCE_MORE = ReschedulePolicy(attempts=1, delay_ms=1_000)


def work(count: int = 3, **changes: Any) -> JobSpec:
    return job("work", one(count=count, reschedule=ONCE_MORE, **changes), type=JobType.BATCH)


def running(*nodes: str, count: int = 3, **changes: Any) -> Cluster:
    cluster = Cluster(*(nodes or ("a", "b")))
    cluster.submit(work(count, **changes))
    cluster.settle()
    return cluster


def complete(cluster: Cluster, *slots: int) -> None:
    for slot in slots:
        task = cluster.live("work")[slot]
        cluster.report(task.id, "completed", exit_code=0, reason="exited", released=True)


def seen(cluster: Cluster) -> tuple[str, GroupCounts]:
    found = cluster.state.job_named("work")
    assert found is not None
    slots = slots_of_job(cluster.state, found)
    return slots.status.value, slots.groups["g"]


def test_a_batch_that_has_completed_keeps_its_records_and_is_left_alone_when_sent_again() -> None:
    cluster = running()
    complete(cluster, 0, 1, 2)
    cluster.settle()
    assert seen(cluster) == ("completed", GroupCounts(3, completed=3))
    cluster.now_ms += 30 * 24 * 3_600_000
    assert cluster.plan() == Plan(None)
    assert len(cluster.state.tasks) == 3
    outcome = cluster.submit(work())
    assert isinstance(outcome, JobAccepted)
    assert (outcome.version, outcome.changed) == (1, False)
    assert cluster.plan() == Plan(None)


def test_it_fails_when_a_slot_was_given_up_and_nothing_is_left_to_run() -> None:
    cluster = running()
    for _ in range(2):
        cluster.fail(cluster.live("work")[1], exit_code=3)
        assert seen(cluster)[0] == "running"
        cluster.now_ms += 2_000
        cluster.settle()
    assert 1 not in cluster.live("work")
    complete(cluster, 0)
    assert seen(cluster) == ("running", GroupCounts(3, running=1, healthy=1, failed=1, completed=1))
    complete(cluster, 2)
    assert seen(cluster) == ("failed", GroupCounts(3, failed=1, completed=2))
    cluster.now_ms += 24 * 3_600_000
    assert cluster.plan().command is None


def test_it_fails_when_what_is_left_waits_for_a_group_that_was_given_up() -> None:
    cluster = Cluster("a")
    groups = {
        "g": group(reschedule=ONCE_MORE),
        "after": group(depends_on=("g",), count=2),
        "last": group(depends_on=("work/after",)),
    }
    cluster.submit(job("work", groups, type=JobType.BATCH))
    cluster.settle()
    for _ in range(2):
        assert seen(cluster)[0] != "failed"
        cluster.fail(cluster.live("work")[0])
        cluster.now_ms += 2_000
        cluster.settle()
    assert seen(cluster)[0] == "failed"
    cluster.submit(job("work", {**groups, "g": group(command=("right",))}, type=JobType.BATCH))
    cluster.settle()
    complete(cluster, 0)
    cluster.settle()
    assert sorted(cluster.live("work", "after")) == [0, 1]


def test_an_update_stops_what_runs_and_runs_all_again_that_needs_another_container() -> None:
    cluster = running()
    complete(cluster, 0)
    cluster.submit(work(command=("other",)))
    plan = cluster.plan()
    assert plan.command is not None
    assert [stop.reason for stop in plan.command.stops] == ["update", "update"]
    assert sorted(cluster.live("work")) == [0]  # the others when they have ended
    cluster.settle()
    assert {task.version for task in cluster.live("work").values()} == {2}
    assert sorted(cluster.live("work")) == [0, 1, 2]


def test_an_update_in_place_neither_stops_nor_repeats_anything() -> None:
    cluster = running()
    complete(cluster, 0)
    before = {task.id for task in cluster.live("work").values()}
    cluster.submit(work(4, stop_timeout_ms=1))
    cluster.settle()
    live = cluster.live("work")
    assert sorted(live) == [1, 2, 3]
    assert before < {task.id for task in live.values()}
    assert seen(cluster) == ("running", GroupCounts(4, running=3, healthy=3, completed=1))


def test_stop_and_start_go_on_with_what_has_not_completed() -> None:
    cluster = running()
    complete(cluster, 2)
    cluster.do(c.StopJob("work"))
    assert seen(cluster)[0] == "stopping"
    cluster.settle()
    assert seen(cluster)[0] == "stopped"
    cluster.do(c.StartJob("work"))
    cluster.settle()
    assert sorted(cluster.live("work")) == [0, 1]


def test_tasks_on_a_draining_node_may_finish_until_the_deadline() -> None:
    cluster = running("a", count=2)
    cluster.do(c.RegisterNode(facts("b")))
    cluster.do(c.SetDrain(cluster.node("a"), 60_000))
    cluster.settle()
    assert cluster.where("work") == {0: "a", 1: "a"}
    cluster.now_ms += 59_000
    complete(cluster, 0)
    assert cluster.plan().command is None
    cluster.now_ms += 1_000
    plan = cluster.plan()
    assert plan.command is not None
    assert [stop.reason for stop in plan.command.stops] == ["drain_deadline"]
    cluster.settle()
    assert cluster.where("work") == {1: "b"}
    complete(cluster, 1)
    assert seen(cluster)[0] == "completed"
