"""Dry runs in particular; that they tell the truth in general is in tests/property."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.dryrun import DryRun, GroupEffect, JobEffect
from cube.model.errors import Unavailable
from cube.model.ids import JobId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import JobAccepted, Rejected, RejectReason
from cube.model.resources import Resources
from cube.model.spec import CronSpec, JobSpec, JobType, Overlap, UpdateOrder, UpdatePolicy
from cube.services import cluster_view, simulation
from cube.services.dry_run import foresee
from cube.services.state_feed import StateFeed
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, one, web


def plan(cluster: Cluster, spec: JobSpec) -> DryRun:
    before = cluster.state
    found = foresee(before, cluster.now_ms, c.SubmitJob(spec, JobId("x")))
    assert cluster.state is before
    return found


def own(found: DryRun) -> JobEffect:
    [effect] = found.jobs
    return effect


def test_a_rolling_update_is_followed_to_its_end() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(5))
    cluster.settle()
    found = plan(cluster, web(5, command=("two",)))
    assert own(found).groups == {"g": GroupEffect(replace=5)}
    assert isinstance(found.outcome, JobAccepted)
    assert (found.outcome.version, found.cut) == (2, "")


def test_an_update_that_halts_says_where() -> None:
    """Its first task finds no place, and the others stay as they are."""
    cluster = Cluster("a", "b")
    cluster.submit(web(3))
    cluster.settle()
    effect = own(plan(cluster, web(3, resources=Resources(5000, 1, 0))))
    assert effect.groups == {"g": GroupEffect(unplaced=1)}
    assert effect.displaced == 1
    assert [move.node for move in effect.moves] == [""]
    assert {one.kind for one in effect.explanations} == {"unplaced", "waiting"}


def test_a_rollout_that_would_fail_says_how_it_ends() -> None:
    """It is not taken back in what is told: that would hide what does not fit."""
    cluster = Cluster("a", "b")
    cluster.submit(web(3))
    cluster.roll()
    large = web(3, resources=Resources(5000, 1, 0))
    effect = own(plan(cluster, large))
    assert effect.groups == {"g": GroupEffect(unplaced=1)}
    assert "nothing has come up for 5m" in effect.fails
    assert effect.fails.endswith("back to version 1")
    assert own(plan(cluster, web(3, command=("two",)))).fails == ""


def test_start_first_keeps_the_old_task_where_the_new_one_has_no_place() -> None:
    cluster = Cluster("a")
    first = UpdatePolicy(order=UpdateOrder.START_FIRST)
    cluster.submit(web(1, update=first))
    cluster.roll()
    effect = own(plan(cluster, web(1, update=first, resources=Resources(5000, 1, 0))))
    assert (effect.groups, effect.moves) == ({"g": GroupEffect(unplaced=1)}, ())
    assert effect.displaced == 0


def test_canaries_are_supposed_to_be_promoted() -> None:
    cluster = Cluster("a", "b")
    policy = UpdatePolicy(canaries=1)
    cluster.submit(web(4, update=policy))
    cluster.roll()
    effect = own(plan(cluster, web(4, update=policy, command=("two",))))
    assert effect.groups == {"g": GroupEffect(replace=4)}


def test_groups_start_after_those_they_depend_on() -> None:
    cluster = Cluster("a")
    groups = {"db": group(), "web": group(depends_on=("db",))}
    assert own(plan(cluster, job("shop", groups))).groups == {
        "db": GroupEffect(create=1),
        "web": GroupEffect(create=1),
    }


def test_a_dependency_that_is_not_there_is_waited_for() -> None:
    cluster = Cluster("a")
    effect = own(plan(cluster, job("shop", one(depends_on=("db/g",)))))
    assert effect.groups == {"g": GroupEffect(unplaced=1)}
    assert effect.explanations[0].reasons[0].code == "depends_on"


def test_a_batch_goes_on_to_the_groups_that_wait_for_its_end() -> None:
    cluster = Cluster("a")
    groups = {"first": group(count=2), "then": group(depends_on=("first",))}
    found = plan(cluster, job("work", groups, type=JobType.BATCH))
    assert own(found).groups == {"first": GroupEffect(create=2), "then": GroupEffect(create=1)}


def test_what_fails_already_is_not_supposed_to_mend() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("db"))
    cluster.settle()
    task = cluster.live("db")[0]
    cluster.report(task.id, "pending", attempt=2, reason="exited", exit_code=1)
    effect = own(plan(cluster, job("shop", one(depends_on=("db/g",)))))
    assert effect.groups == {"g": GroupEffect(unplaced=1)}


def test_one_on_a_lost_node_is_replaced_once_it_has_surely_ended() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("one", one(at_most_one=True)))
    cluster.settle()
    where = cluster.live("one")[0].node_id
    loss = c.SetNodeStatus(0, where, NodeStatus.DOWN, "as if")
    effect = own(foresee(cluster.state, cluster.now_ms, loss))
    assert (effect.groups, effect.displaced) == ({"g": GroupEffect(replace=1)}, 0)


def test_a_drain_takes_batch_tasks_at_its_deadline_and_system_tasks_for_good() -> None:
    cluster = Cluster("a", "b")
    cluster.submit(job("work", one(count=2), type=JobType.BATCH))
    cluster.submit(job("each", type=JobType.SYSTEM))
    cluster.settle()
    drained = c.SetDrain(cluster.node("a"), 7 * 3_600_000)
    found = {e.job: e.groups for e in foresee(cluster.state, cluster.now_ms, drained).jobs}
    assert found == {"each": {"g": GroupEffect(stop=1)}, "work": {"g": GroupEffect(replace=1)}}


def test_runs_of_a_cron_job_do_not_pile_up_in_the_time_that_passes() -> None:
    """A batch waits an hour for the drain's deadline; a job runs each minute meanwhile, and needs
    half a node."""
    cluster = Cluster("a", "b")
    half = one(resources=Resources(2000, 1, 0))
    each_minute = CronSpec("* * * * *", overlap=Overlap.ALLOW)
    cluster.submit(job("work", one(resources=Resources(1500, 1, 0)), type=JobType.BATCH))
    cluster.settle()
    cluster.submit(job("each-minute", half, type=JobType.CRON, cron=each_minute))
    where = cluster.live("work")[0].node_id
    found = foresee(cluster.state, cluster.now_ms, c.SetDrain(where, 3_600_000))
    effects = {e.job: e for e in found.jobs}
    assert effects["work"].groups == {"g": GroupEffect(replace=1)}
    assert found.cut == ""


def test_others_that_get_the_room_are_told() -> None:
    cluster = Cluster("a")
    large = Resources(3000, 1, 0)
    cluster.submit(job("early", one(resources=large)))
    cluster.submit(job("late", one(resources=large)))
    cluster.settle()
    found = plan(cluster, job("early", one(resources=Resources(100, 1, 0))))
    assert [(e.job, e.groups) for e in found.jobs] == [
        ("early", {"g": GroupEffect(replace=1)}),
        ("late", {"g": GroupEffect(create=1)}),
    ]


def test_who_has_to_make_room_is_told() -> None:
    cluster = Cluster("a")
    cluster.do(c.ChangeSettings(preemption=True))
    cluster.submit(
        job("low", one(resources=Resources(3000, 1, 0)), type=JobType.BATCH, priority=10)
    )
    cluster.settle()
    found = plan(cluster, job("urgent", one(resources=Resources(3000, 1, 0)), priority=90))
    effects = {e.job: e for e in found.jobs}
    assert effects["urgent"].groups == {"g": GroupEffect(create=1)}
    assert (effects["low"].groups, effects["low"].displaced) == ({"g": GroupEffect(unplaced=1)}, 1)


def test_a_refusal_is_the_whole_answer() -> None:
    cluster = Cluster("a")
    cluster.submit(web(1))
    found = plan(cluster, job("web", type=JobType.BATCH))
    assert isinstance(found.outcome, Rejected)
    assert (found.outcome.reason, found.jobs) == (RejectReason.REFUSED, ())
    nowhere = c.SetDrain(cluster.node("a"), -1)
    assert isinstance(foresee(cluster.state, cluster.now_ms, nowhere).outcome, Rejected)


def test_bounds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("a", "b")
    cluster.submit(web(9))
    cluster.settle()
    monkeypatch.setattr(simulation, "STEPS_MAX", 4)
    assert "4 steps" in plan(cluster, web(9, command=("two",))).cut
    monkeypatch.undo()
    monkeypatch.setattr(simulation, "TASKS_MAX", 5)
    found = plan(cluster, web(20))
    assert "more than 5 tasks" in found.cut
    monkeypatch.undo()
    monkeypatch.setattr(simulation, "TIME_MAX_MS", 1000)
    cluster.submit(job("work", one(count=2), type=JobType.BATCH))
    cluster.settle()
    drained = c.SetDrain(cluster.node("a"), 7 * 3_600_000)
    assert "seven days" in foresee(cluster.state, cluster.now_ms, drained).cut


def test_the_name_of_a_job_decides_where_equal_nodes_are_told_apart_not_its_id() -> None:
    """The id is random, and a plan must foresee the run."""
    clusters = [Cluster(*(f"n{number}" for number in range(30))) for _ in range(3)]
    where = []
    for number, cluster in enumerate(clusters):
        cluster.do(c.SubmitJob(web(3), JobId(f"random-{number}")))
        cluster.settle()
        where.append(cluster.where("web"))
    assert where[0] == where[1] == where[2]
    effect = own(plan(Cluster(*(f"n{number}" for number in range(30))), web(3)))
    assert {move.slot: move.node for move in effect.moves} == where[0]


def test_a_node_that_is_not_there_does_nothing() -> None:
    cluster = Cluster("a")
    cluster.do(c.RegisterNode(facts("b", capacity=Resources(100, 1 << 20, 0))))
    cluster.submit(web(2))
    cluster.settle()
    cluster.down("a")
    effect = own(plan(cluster, web(2, command=("two",))))
    assert effect.groups["g"].unplaced == 2


async def test_it_is_worked_out_beside_the_event_loop_and_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy, threads = threading.Lock(), set[str]()

    def slow(state: ClusterState, now_ms: int, body: c.SubmitJob) -> DryRun:
        assert busy.acquire(blocking=False)
        threads.add(threading.current_thread().name)
        found = foresee(state, now_ms, body)
        busy.release()
        return found

    monkeypatch.setattr(cluster_view, "foresee", slow)
    cluster = Cluster("a")
    view = cluster_view.ClusterView(NodeId("n"), StateFeed())
    with pytest.raises(Unavailable):
        await view.dry_run(cluster.state, c.SubmitJob(web(1), JobId("x")))
    clock = SimpleNamespace(now_ms=lambda: cluster.now_ms)
    view.attach(SimpleNamespace(leader_clock=clock))  # type: ignore[arg-type]
    asked = [view.dry_run(cluster.state, c.SubmitJob(web(n), JobId("x"))) for n in range(1, 4)]
    created = [own(found).groups["g"].create for found in await asyncio.gather(*asked)]
    assert created == [1, 2, 3]
    assert threading.main_thread().name not in threads
    cluster.submit(web(1, resources=Resources(5000, 1, 0)))
    [found] = await view.why(cluster.state, "web")
    assert found.suggestions[0] == "in the job file: groups.g.resources.cpu = 4 (now 5)"
