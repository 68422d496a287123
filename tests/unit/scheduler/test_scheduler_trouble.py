"""Nodes on which a group keeps failing are taken for it only when no other node will do."""

from __future__ import annotations

import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterSettings, Task
from cube.model.resources import Resources
from cube.model.spec import Placement, PlacementPolicy, ReschedulePolicy
from cube.scheduler.reap import FAILED_PER_SLOT_MAX
from cube.scheduler.restart import LOOP_DELAY_MAX_MS, LOOP_GRID_MS
from cube.scheduler.trouble import FAILURES, TROUBLE_MS, troubled
from cube.scheduler.why import explain
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, web

SOON = ReschedulePolicy(delay_ms=1, max_delay_ms=1)  # but for the loop's own delay


def counted(cluster: Cluster) -> dict[str, int]:
    web_job = cluster.state.job_named("web")
    assert web_job is not None
    tasks = cluster.state.tasks_of_job(web_job.id)
    found = troubled(web_job, web_job.spec.groups["g"], tasks, cluster.now_ms)
    return {cluster.state.nodes[node_id].name: count for node_id, count in found.items()}


def crash(cluster: Cluster, task: Task, attempts: int) -> None:
    """It is restarted in place so often, and then given up."""
    for attempt in range(2, attempts + 1):
        cluster.report(task.id, "pending", attempt, reason="exited", exit_code=1)
        cluster.report(task.id, "running", attempt)
    cluster.report(task.id, "failed", attempts, exit_code=1, reason="exited", released=True)


def test_five_failures_within_five_minutes_close_a_node_until_they_are_old() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(9, reschedule=SOON))
    cluster.settle()
    bad = [task for task in cluster.live("web").values() if task.node_id == cluster.node("a")]
    assert len(bad) == 3
    for task in bad[:2]:
        crash(cluster, task, 2)
    assert counted(cluster) == {}
    cluster.now_ms += 1000
    crash(cluster, bad[2], 1)
    assert counted(cluster) == {"a": FAILURES}
    cluster.now_ms += 1000
    cluster.settle()
    # `a` is empty and the others are not: still nothing goes there.
    assert set(cluster.where("web").values()) == {"b", "c"}
    cluster.now_ms += TROUBLE_MS - 2000  # the first four are old now
    cluster.fail(cluster.live("web")[8])
    cluster.now_ms += 1000
    cluster.settle()
    assert list(cluster.where("web").values()).count("a") == 1


def test_an_avoided_node_is_taken_for_what_fits_nowhere_else() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(4, resources=Resources(1000, 1, 0), reschedule=SOON))
    cluster.settle()
    bad = [task for task in cluster.live("web").values() if task.node_id == cluster.node("a")]
    crash(cluster, bad[0], 4)
    crash(cluster, bad[1], 1)
    cluster.submit(web(7, resources=Resources(1000, 1, 0), reschedule=SOON))
    cluster.now_ms += 1000
    cluster.settle()
    where = list(cluster.where("web").values())
    assert (where.count("a"), where.count("b")) == (3, 4)  # b is full


@pytest.mark.parametrize("policy", list(PlacementPolicy))
def test_even_a_zone_without_tasks_is_no_reason_to_go_there(policy: PlacementPolicy) -> None:
    cluster = Cluster()
    for name in ("a", "b", "c"):
        zone = "1" if name == "a" else "2"
        cluster.do(c.RegisterNode(facts(name, labels={"zone": zone})))
    over = Placement(policy=policy, spread_over=("node.labels.zone",))
    cluster.submit(web(2, placement=over, reschedule=SOON))
    cluster.settle()
    [bad] = [task for task in cluster.live("web").values() if task.node_id == cluster.node("a")]
    crash(cluster, bad, 5)
    cluster.now_ms += 1000
    cluster.settle()
    assert set(cluster.where("web").values()) <= {"b", "c"}


def test_a_new_container_begins_without_a_past_there_and_other_groups_have_none() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2, reschedule=SOON))
    cluster.settle()
    [bad] = [task for task in cluster.live("web").values() if task.node_id == cluster.node("a")]
    crash(cluster, bad, 6)
    assert counted(cluster) == {"a": 6}
    cluster.submit(web(2, reschedule=SOON, stop_timeout_ms=1))
    cluster.plan()
    assert counted(cluster) == {"a": 6}  # the same container
    cluster.submit(web(2, reschedule=SOON, command=("another",)))
    assert counted(cluster) == {}


def test_reaping_leaves_what_counts() -> None:
    """One slot that alternates between two nodes: each failure is remembered until it is old."""
    cluster = Cluster("a", "b")
    cluster.submit(web(1, reschedule=SOON))
    most = 0
    for _ in range(14):
        cluster.settle()
        crash(cluster, cluster.live("web")[0], 1)
        cluster.now_ms += LOOP_DELAY_MAX_MS + LOOP_GRID_MS
        most = max(most, len(cluster.state.tasks))
    assert sum(counted(cluster).values()) >= 2 * FAILURES
    assert most <= FAILED_PER_SLOT_MAX + 2
    cluster.now_ms += TROUBLE_MS
    for _ in range(3):
        cluster.settle()
        crash(cluster, cluster.live("web")[0], 1)
        cluster.now_ms += 600_000
    cluster.plan()
    assert len(cluster.state.tasks) <= ClusterSettings().finished_per_slot + 1


def test_why_names_the_node_and_the_count() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(2))
    cluster.settle()
    [bad] = [task for task in cluster.live("web").values() if task.node_id == cluster.node("a")]
    crash(cluster, bad, 5)
    [one] = explain(cluster.state, cluster.now_ms, "web")
    assert "a is avoided: 5 failures of g there within 5m" in [r.message for r in one.reasons]


def test_the_trouble_of_one_group_is_not_anothers() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("web", {"g": group(reschedule=SOON), "h": group()}))
    cluster.settle()
    live = cluster.live("web")
    crash(cluster, live[0], 6)
    found = cluster.state.job_named("web")
    assert found is not None
    others = [task for task in cluster.state.tasks_of_job(found.id) if task.group == "h"]
    assert troubled(found, found.spec.groups["h"], others, cluster.now_ms) == {}
