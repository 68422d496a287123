"""Deployments, step by step: what the leader does next, and what it makes of it."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.deployment import DeploymentAction, DeploymentStatus, DeploymentStep
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.outcome import Done, JobAccepted, Rejected
from cube.model.spec import (
    CheckSpec,
    CheckType,
    JobSpec,
    JobType,
    OnUpdateFailure,
    PortSpec,
    UpdateOrder,
    UpdatePolicy,
)
from cube.scheduler.why import explain
from tests.builders import group, job
from tests.scheduler_cluster import Cluster, web

MIN_MS = 10_000
START_FIRST = UpdatePolicy(order=UpdateOrder.START_FIRST)
STOP_FIRST = UpdatePolicy()


def running(cluster: Cluster, **changes: Any) -> Cluster:
    """`web` of three tasks is healthy at version 1."""
    cluster.submit(web(**({"update": STOP_FIRST} | changes)))
    cluster.roll()
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL
    return cluster


def three(**changes: Any) -> Cluster:
    return running(Cluster("a", "b", "c"), **changes)


def versions(cluster: Cluster) -> list[int]:
    return sorted(task.version for task in cluster.state.tasks.values() if task.live)


def serving(cluster: Cluster, version: int = 0) -> list[Task]:
    return [
        task
        for task in cluster.state.tasks.values()
        if task.live and task.serving and version in (0, task.version)
    ]


def steer(cluster: Cluster, action: DeploymentAction, version: int = 2) -> Any:
    return cluster.do(c.SteerDeployment("web", version, action))


# The first


def test_the_first_deployment_is_successful_once_all_have_served_for_min_healthy() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(update=STOP_FIRST))
    cluster.settle()
    assert cluster.deployment().status is DeploymentStatus.RUNNING
    plan = cluster.plan()
    assert plan.command is None
    assert plan.wake_at_ms == cluster.now_ms + MIN_MS
    cluster.now_ms += MIN_MS
    cluster.plan()
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL
    assert cluster.state.jobs[cluster.state.job_names["web"]].versions[0].stable


def test_a_first_deployment_that_fails_goes_on_and_may_come_up_late() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(update=UpdatePolicy(deadline_ms=60_000)))
    cluster.plan()
    cluster.now_ms += 60_000
    cluster.plan()
    assert cluster.deployment().status is DeploymentStatus.FAILED
    assert "3 of g" in cluster.deployment().message
    cluster.roll()
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL


def test_batch_jobs_have_no_deployments() -> None:
    cluster = Cluster("a")
    cluster.submit(job("web", {"g": group()}, type=JobType.BATCH))
    cluster.settle()
    assert cluster.state.jobs[cluster.state.job_names["web"]].deployments == ()


# Stop-first and start-first


def test_stop_first_waits_for_min_healthy_between_two_steps() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    assert versions(cluster) == [1, 1, 2]
    cluster.now_ms += MIN_MS - 1
    cluster.settle()
    assert versions(cluster) == [1, 1, 2]
    cluster.now_ms += 1
    cluster.settle()
    assert versions(cluster) == [1, 2, 2]
    cluster.roll()
    assert versions(cluster) == [2, 2, 2]
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL


def test_start_first_never_has_less_than_the_count_nor_more_than_one_above() -> None:
    cluster = three(update=START_FIRST)
    cluster.submit(web(update=START_FIRST, command=("two",)))
    for _ in range(40):
        plan = cluster.plan()
        assert len(serving(cluster)) >= 3
        assert sum(not task.ended for task in cluster.state.tasks.values()) <= 4
        cluster.obey()
        if plan.command is None:
            if plan.wake_at_ms is None:
                break
            cluster.now_ms = plan.wake_at_ms
    assert versions(cluster) == [2, 2, 2]
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL
    assert sorted(cluster.where("web").values()) == ["a", "b", "c"], "spread as before"


def test_the_old_task_of_a_slot_stays_until_the_new_one_has_served_for_min_healthy() -> None:
    cluster = three(update=START_FIRST)
    cluster.submit(web(update=START_FIRST, command=("two",)))
    cluster.settle()
    pair = [task for task in cluster.state.tasks.values() if task.live and task.slot == 0]
    old, new = sorted(pair, key=lambda task: task.version)
    assert new.replaces == old.id
    assert new.placed_reason == "update"
    cluster.now_ms += MIN_MS
    cluster.plan()
    assert cluster.state.tasks[old.id].desired is Desired.STOP
    assert cluster.state.tasks[old.id].desired_reason == "update"


def test_fixed_ports_and_single_tasks_are_replaced_stop_first() -> None:
    cases: list[dict[str, Any]] = [
        {"ports": {"http": PortSpec(80, 80)}},
        {"at_most_one": True, "count": 1},
    ]
    for changes in cases:
        cluster = running(Cluster("a", "b", "c"), update=START_FIRST, **changes)
        cluster.submit(web(update=START_FIRST, command=("two",), **changes))
        plan = cluster.plan()
        assert plan.command is not None
        assert len(plan.command.stops) == 1
        assert plan.command.placements == ()


def test_what_never_was_healthy_is_replaced_at_once() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(update=STOP_FIRST, command=("broken",)))
    cluster.plan()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    assert versions(cluster) == [2, 2, 2]


def test_a_newer_version_supersedes_a_rollout_and_goes_back_to_what_was_healthy() -> None:
    cluster = three(update=START_FIRST)
    cluster.submit(web(update=START_FIRST, command=("two",)))
    cluster.settle()
    cluster.submit(web(update=START_FIRST, command=("three",)))
    found = cluster.state.jobs[cluster.state.job_names["web"]]
    assert found.deployments[-2].status is DeploymentStatus.FAILED
    assert found.deployments[-2].message == "superseded by version 3"
    assert found.deployments[-1].from_version == 1
    cluster.roll()
    assert versions(cluster) == [3, 3, 3]


# Failure


def test_a_version_that_fails_is_taken_back() -> None:
    for update in (STOP_FIRST, START_FIRST):
        cluster = three(update=update)
        kept = {task.id for task in serving(cluster)}
        cluster.submit(web(update=update, command=("broken",)))
        cluster.settle()
        found = cluster.state.jobs[cluster.state.job_names["web"]]
        assert found.version == 3
        assert found.deployments[-2].status in (
            DeploymentStatus.FAILED,
            DeploymentStatus.ROLLED_BACK,
        )
        assert "web.g.0 failed" in found.deployments[-2].message
        assert found.deployments[-1].rolls_back == 2
        cluster.roll()
        found = cluster.state.jobs[cluster.state.job_names["web"]]
        assert [one.status for one in found.deployments] == [
            DeploymentStatus.SUCCESSFUL,
            DeploymentStatus.ROLLED_BACK,
            DeploymentStatus.SUCCESSFUL,
        ]
        assert found.spec == found.versions[0].spec
        assert len(serving(cluster, 3)) == 3
        survivors = {task.id for task in serving(cluster)} & kept
        assert len(survivors) >= 2, "what still ran of the old version was not touched"


def test_a_version_that_does_not_come_up_is_taken_back_at_the_deadline() -> None:
    cluster = three(update=START_FIRST)
    cluster.submit(web(update=START_FIRST, command=("two",)))
    cluster.plan()  # its task is placed, and nobody hears of it again
    deadline_ms = cluster.deployment().clock_at_ms + START_FIRST.deadline_ms
    plan = cluster.plan()
    assert plan.wake_at_ms == deadline_ms
    cluster.now_ms = deadline_ms - 1
    assert cluster.plan().command is None
    cluster.now_ms += 1
    cluster.plan()
    assert cluster.deployment().rolls_back == 2
    cluster.roll()
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL


def test_at_the_deadline_it_is_told_what_the_tasks_wait_for() -> None:
    cluster = three(update=START_FIRST)
    cluster.submit(web(update=START_FIRST, command=("two",)))
    cluster.plan()
    new = next(task for task in cluster.state.tasks.values() if task.version == 2)
    cluster.report(new.id, "preparing", message="cannot pull x; trying again")
    cluster.now_ms = cluster.deployment().clock_at_ms + START_FIRST.deadline_ms
    cluster.plan()
    found = cluster.state.jobs[cluster.state.job_names["web"]]
    assert "3 of g (web.g.0: cannot pull x; trying again)" in found.deployments[-2].message


def test_with_pause_a_failure_waits_for_a_person() -> None:
    update = UpdatePolicy(on_failure=OnUpdateFailure.PAUSE)
    cluster = three(update=update)
    cluster.submit(web(update=update, command=("broken",)))
    cluster.settle()
    assert cluster.deployment().status is DeploymentStatus.PAUSED
    assert len(serving(cluster, 1)) == 2
    steer(cluster, DeploymentAction.FAIL)
    cluster.roll()
    assert cluster.deployment().rolls_back == 2
    assert len(serving(cluster, 3)) == 3


def test_a_task_of_the_old_version_that_is_lost_meanwhile_comes_back_as_that() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    other = next(task for task in serving(cluster, 1) if task.slot == 2)
    cluster.down(cluster.state.nodes[other.node_id].name)
    cluster.settle()
    assert sorted(versions(cluster)).count(1) >= 1
    replacement = cluster.live("web")[2]
    assert replacement.version == 1, "it is not its turn: one is on its way already"


def test_a_paused_rollout_goes_no_further_and_resumes() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    assert steer(cluster, DeploymentAction.PAUSE) == Done()
    cluster.roll()
    assert versions(cluster) == [1, 1, 2]
    assert steer(cluster, DeploymentAction.RESUME) == Done()
    cluster.roll()
    assert versions(cluster) == [2, 2, 2]


def test_a_verdict_that_was_made_before_a_pause_does_not_end_it() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    found = cluster.state.jobs[cluster.state.job_names["web"]]
    steer(cluster, DeploymentAction.PAUSE)
    verdict = DeploymentStep(found.id, 2, DeploymentStatus.FAILED, "late", roll_back=True)
    cluster.do(c.ApplyPlan(cluster.term, "late", deployments=(verdict,)))
    assert cluster.deployment().status is DeploymentStatus.PAUSED
    assert cluster.deployment().version == 2


# Canaries


def test_canaries_run_beside_the_old_tasks_until_they_are_promoted() -> None:
    update = UpdatePolicy(canaries=1)
    cluster = three(update=update)
    cluster.submit(web(update=update, command=("two",)))
    assert isinstance(steer(cluster, DeploymentAction.PROMOTE), Rejected), "none is healthy yet"
    cluster.roll()
    assert versions(cluster) == [1, 1, 1, 2] or versions(cluster) == [1, 1, 2]
    assert cluster.deployment().status is DeploymentStatus.RUNNING
    assert steer(cluster, DeploymentAction.PROMOTE) == Done()
    assert steer(cluster, DeploymentAction.PROMOTE) == Done(changed=False)
    cluster.roll()
    assert versions(cluster) == [2, 2, 2]
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL


def test_a_canary_that_fails_takes_the_version_back() -> None:
    update = UpdatePolicy(canaries=1, order=UpdateOrder.START_FIRST)
    cluster = three(update=update)
    cluster.submit(web(update=update, command=("broken",)))
    cluster.roll()
    assert cluster.deployment().rolls_back == 2
    assert len(serving(cluster, 3)) == 3


def test_why_says_what_holds_the_old_version() -> None:
    update = UpdatePolicy(canaries=1)
    cluster = three(update=update)
    cluster.submit(web(update=update, command=("two",)))
    cluster.roll()
    [gated] = explain(cluster.state, cluster.now_ms, "web")
    assert "replaced once the 1 canaries are promoted" in gated.summary
    assert gated.suggestions == ("cube deployment promote web.v2",)
    steer(cluster, DeploymentAction.PAUSE)
    [paused] = explain(cluster.state, cluster.now_ms, "web")
    assert "kept: web.v2 is paused: paused by hand" in paused.summary
    assert paused.suggestions[0] == "cube deployment resume web.v2"


def test_the_newest_version_is_not_tried_again_at_once_beside_an_old_task() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(web(1, update=START_FIRST))
    cluster.settle()
    cluster.submit(web(1, update=START_FIRST, command=("broken",)))
    cluster.do(c.SteerDeployment("web", 2, DeploymentAction.PAUSE))
    cluster.do(c.SteerDeployment("web", 2, DeploymentAction.FAIL))
    cluster.settle()
    placed = len(cluster.state.tasks)
    for _ in range(20):
        cluster.now_ms += 100
        cluster.settle()
    assert len(cluster.state.tasks) <= placed + 1


# In place


def test_a_change_of_checks_is_tried_on_one_task_after_the_other() -> None:
    check = CheckSpec("c", CheckType.TCP, "http", interval_ms=1_000)
    shape: dict[str, Any] = {"ports": {"http": PortSpec(80)}, "update": STOP_FIRST}
    cluster = running(Cluster("a", "b", "c"), **shape, checks=(check,))
    ids = {task.id for task in serving(cluster)}
    cluster.submit(web(**shape, checks=(CheckSpec("c", CheckType.TCP, "http", interval_ms=5_000),)))
    cluster.plan()
    assert versions(cluster) == [1, 1, 2]
    task = next(task for task in cluster.state.tasks.values() if task.version == 2)
    cluster.report(task.id, "running", health=Health.UNHEALTHY)
    cluster.now_ms += 4 * MIN_MS
    cluster.plan()
    assert versions(cluster) == [1, 1, 2], "the new check fails: the others are spared"
    cluster.report(task.id, "running", health=Health.HEALTHY)
    cluster.roll()
    assert {task.id for task in serving(cluster, 2)} == ids


def test_scaling_up_to_what_does_not_fit_is_not_taken_back() -> None:
    cluster = three()
    cluster.do(c.ScaleJob("web", {"g": 4_000}))
    cluster.roll()
    assert cluster.deployment().status is DeploymentStatus.FAILED
    assert cluster.deployment().version == 2
    cluster.do(c.ScaleJob("web", {"g": 4}))
    cluster.roll()
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL
    assert len(serving(cluster)) == 4


# Restart, rollback, stop


def test_a_restart_replaces_every_container_one_after_the_other() -> None:
    cluster = three()
    before = {task.id for task in serving(cluster)}
    assert isinstance(cluster.do(c.RestartJob("web")), JobAccepted)
    cluster.settle()
    assert len(serving(cluster, 2)) == 1
    cluster.roll()
    assert len(serving(cluster, 2)) == 3
    assert not before & {task.id for task in serving(cluster)}


def test_a_restart_of_a_batch_job_runs_it_again() -> None:
    cluster = Cluster("a")
    cluster.submit(job("web", {"g": group()}, type=JobType.BATCH))
    cluster.plan()
    first = cluster.live("web")[0]
    cluster.report(first.id, "running")
    cluster.report(first.id, "completed", exit_code=0, released=True)
    assert cluster.plan().command is None
    cluster.do(c.RestartJob("web"))
    cluster.plan()
    assert cluster.live("web")[0].version == 2


def test_a_rollback_by_hand_is_a_new_version_with_the_old_spec() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.roll()
    outcome = cluster.do(c.RollBackJob("web"))
    assert isinstance(outcome, JobAccepted)
    assert outcome.version == 3
    cluster.roll()
    assert len(serving(cluster, 3)) == 3
    found = cluster.state.jobs[cluster.state.job_names["web"]]
    assert found.spec == found.versions[0].spec


def test_a_rollback_of_a_restart_keeps_what_was_not_restarted() -> None:
    cluster = three()
    before = {task.id for task in serving(cluster)}
    cluster.do(c.RestartJob("web"))
    cluster.settle()
    cluster.do(c.RollBackJob("web", 1))
    cluster.roll()
    assert len(before & {task.id for task in serving(cluster, 3)}) == 2


def test_a_job_that_is_stopped_in_mid_rollout_goes_on_when_it_starts_again() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    cluster.do(c.StopJob("web"))
    cluster.settle()
    assert cluster.deployment().status is DeploymentStatus.FAILED
    cluster.do(c.StartJob("web"))
    cluster.roll()
    assert versions(cluster) == [2, 2, 2]
    assert cluster.deployment().status is DeploymentStatus.SUCCESSFUL


# Groups that depend on each other


def shop(word: str) -> JobSpec:
    return job(
        "web",
        {
            "db": group(command=(word,), update=STOP_FIRST),
            "app": group(command=(word,), update=STOP_FIRST, count=2, depends_on=("db",)),
        },
    )


def test_a_group_is_rolled_after_what_it_depends_on() -> None:
    cluster = Cluster("a", "b", "c")
    cluster.submit(shop("one"))
    cluster.roll()
    cluster.submit(shop("two"))
    cluster.settle()
    by_group = {(task.group, task.version) for task in cluster.state.tasks.values() if task.live}
    assert by_group == {("db", 2), ("app", 1)}
    cluster.roll()
    assert {task.version for task in cluster.state.tasks.values() if task.live} == {2}


# Drains


def test_a_drain_of_a_start_first_group_moves_without_a_gap() -> None:
    cluster = three(update=START_FIRST)
    victim = next(
        task for task in serving(cluster) if cluster.state.nodes[task.node_id].name == "a"
    )
    cluster.do(c.SetDrain(cluster.node("a"), 600_000))
    cluster.settle()
    assert cluster.state.tasks[victim.id].desired is Desired.RUN
    cluster.now_ms += MIN_MS
    cluster.settle()
    assert cluster.state.tasks[victim.id].state is TaskState.COMPLETED
    assert cluster.state.tasks[victim.id].desired_reason == "drain"
    assert len(serving(cluster)) == 3
    assert "a" not in cluster.where("web").values()


def test_a_drain_of_a_paused_rollout_keeps_the_old_version() -> None:
    cluster = three()
    cluster.submit(web(update=STOP_FIRST, command=("two",)))
    cluster.settle()
    steer(cluster, DeploymentAction.PAUSE)
    old = serving(cluster, 1)[0]
    cluster.do(c.SetDrain(old.node_id, 600_000))
    cluster.roll()
    assert versions(cluster) == [1, 1, 2]
    assert all(task.node_id != old.node_id for task in serving(cluster))
