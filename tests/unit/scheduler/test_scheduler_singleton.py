"""Whether and until when a slot waits for a task that was not heard to have ended."""

from __future__ import annotations

from typing import Any

import pytest

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.explain import Explanation
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.spec import DriverName, OnPartition
from cube.scheduler.liveness import Liveness
from cube.scheduler.singleton import CLOCK_DRIFT_PER_MILLE, LATENESS_MS, held, wait_ms
from cube.scheduler.why import explain
from tests.builders import facts, group, job
from tests.scheduler_cluster import Cluster, web

STOP = OnPartition.STOP
# 30 s of lost_after and 10 s of stop_timeout, and the margin.
WAIT_MS = 40_000 + 40 * CLOCK_DRIFT_PER_MILLE + LATENESS_MS


class Led(Cluster):
    """Its leader knows for how long it has not heard of the nodes that are down."""

    def __init__(self, *nodes: str) -> None:
        super().__init__(*nodes)
        self.silent_ms: dict[NodeId, int] = {}

    def plan(self) -> Any:
        self.scheduler_plan = self.scheduler.plan(
            self.state, self.now_ms, self.term, f"seed-{self.state.index}", self.silent_ms
        )
        if self.scheduler_plan.command is not None:
            self.do(self.scheduler_plan.command)
        return self.scheduler_plan

    def lose(self, **changes: Any) -> Task:
        """The task of slot 0 was running, and is lost with its node."""
        self.submit(web(1, **changes))
        self.settle()
        [task] = self.live("web").values()
        self.down(self.where("web")[0])
        return self.state.tasks[task.id]

    def why(self) -> list[Explanation]:
        return explain(self.state, self.now_ms, "web")


@pytest.mark.parametrize(
    "leased",
    [{"at_most_one": True}, {"on_partition": STOP}, {"at_most_one": True, "on_partition": STOP}],
)
def test_a_lost_leased_task_is_replaced_once_it_has_surely_ended(leased: dict[str, Any]) -> None:
    cluster = Led("a", "b")
    lost = cluster.lose(**leased)
    for silent_ms in (0, 30_000, WAIT_MS - 1):
        cluster.silent_ms = {lost.node_id: silent_ms}
        plan = cluster.plan()
        assert plan.command is None
        # Looked at again when the time has come, not sooner and not never.
        assert plan.wake_at_ms == cluster.now_ms + WAIT_MS - silent_ms
    cluster.silent_ms = {lost.node_id: WAIT_MS}
    cluster.plan()
    [new] = cluster.live("web").values()
    assert new.node_id != lost.node_id
    assert new.fence > lost.fence
    assert cluster.state.tasks[lost.id].desired_reason == "replaced"


def test_a_task_that_may_go_on_unseen_is_replaced_at_once() -> None:
    cluster = Led("a", "b")
    cluster.lose()
    cluster.plan()
    assert sorted(cluster.live("web")) == [0]


def test_only_the_leaders_own_silence_counts_not_the_clock() -> None:
    """The wall clock is set forward by an hour: nothing is known of the node for that."""
    cluster = Led("a", "b")
    lost = cluster.lose(at_most_one=True)
    cluster.silent_ms = {lost.node_id: 1_000}
    cluster.now_ms += 3_600_000
    assert cluster.plan().command is None
    cluster.silent_ms = {}  # a leader that says nothing of the node has heard it just now
    assert cluster.plan().command is None


def test_the_nodes_word_is_enough() -> None:
    cluster = Led("a", "b")
    lost = cluster.lose(at_most_one=True)
    cluster.silent_ms = {lost.node_id: 0}
    assert cluster.plan().command is None
    cluster.report(lost.id, "failed", reason="partitioned", released=True)
    cluster.plan()  # at once, and wherever: it is not a failure
    [new] = cluster.live("web").values()
    assert new.reschedules == 0


def test_a_node_that_is_back_is_asked_not_outwaited() -> None:
    cluster = Led("a", "b")
    lost = cluster.lose(at_most_one=True)
    cluster.do(c.SetNodeStatus(cluster.term, lost.node_id, NodeStatus.READY))
    for _ in range(3):
        cluster.now_ms += 3_600_000
        plan = cluster.plan()
        assert plan.command is None
    assert [one.summary for one in cluster.why()] == [
        f"{cluster.state.nodes[lost.node_id].name} has not said that web.g.0 ({lost.id}) is gone"
    ]
    cluster.report(lost.id, "running", handle="1")
    cluster.plan()
    assert [task.id for task in cluster.live("web").values()] == [lost.id]


def test_without_a_lease_of_its_own_the_old_task_is_waited_for() -> None:
    """It was placed before its group became at_most_one: nothing stops it where it is."""
    cluster = Led("a", "b")
    cluster.submit(web(1))
    cluster.settle()
    [old] = cluster.live("web").values()
    cluster.down(cluster.where("web")[0])
    cluster.submit(web(1, at_most_one=True))
    cluster.silent_ms = {old.node_id: 10**9}
    assert cluster.plan().command is None
    [why] = cluster.why()
    assert "without a lease" in why.summary


def test_the_longest_of_the_jobs_versions_is_waited_for() -> None:
    """The node may not have heard of the shorter one."""
    cluster = Led("a", "b")
    cluster.submit(web(1, at_most_one=True, stop_timeout_ms=60_000))
    cluster.settle()
    cluster.submit(web(1, at_most_one=True, stop_timeout_ms=1_000))
    cluster.settle()
    [task] = cluster.live("web").values()
    found = cluster.state.job_named("web")
    assert found is not None
    assert found.version == task.version == 2
    assert (wait_ms(found, task) or 0) > 90_000


def test_other_slots_do_not_wait() -> None:
    cluster = Led("a", "b", "c")
    cluster.submit(web(4, on_partition=STOP))
    cluster.settle()
    cluster.down("a")
    gone = [task for task in cluster.state.tasks.values() if task.state is TaskState.LOST]
    assert gone
    cluster.submit(web(6, on_partition=STOP))
    cluster.silent_ms = {NodeId("id-a"): 0}
    cluster.plan()
    assert set(cluster.live("web")) == set(range(6)) - {task.slot for task in gone}
    cluster.silent_ms = {NodeId("id-a"): WAIT_MS}
    cluster.plan()
    assert set(cluster.live("web")) == set(range(6))


def test_why_says_what_is_waited_for_and_until_when() -> None:
    cluster = Led("a", "b")
    lost = cluster.lose(at_most_one=True, stop_timeout_ms=5_000)
    cluster.now_ms += 7_000
    [why] = cluster.why()
    assert why.kind == "waiting"
    assert why.summary.startswith("1 task lost, replaced in 30s at the latest: ")
    assert lost.id in why.summary
    assert "CUBE_FENCE" not in why.summary
    [reason] = why.reasons
    assert (reason.code, reason.have) == ("on_partition", "30s")


def test_why_does_not_pretend_that_docker_stops_what_no_agent_watches() -> None:
    cluster = Led()
    for name in ("a", "b"):
        cluster.do(c.RegisterNode(facts(name)))
    cluster.submit(
        job("web", {"g": group(at_most_one=True, driver=DriverName.DOCKER, image="i", command=())})
    )
    cluster.settle()
    cluster.down(cluster.where("web")[0])
    assert "CUBE_FENCE" in cluster.why()[0].summary


def test_silence_counts_from_the_last_heartbeat_or_the_leaders_own_start() -> None:
    cluster = Led("a", "b", "c")
    liveness = Liveness()
    liveness.leader_since(50_000, NodeId("id-a"))
    liveness.on_heartbeat(NodeId("id-b"), 60_000)
    assert liveness.silent_ms(cluster.state.nodes, 70_000) == {}
    cluster.down("b")
    cluster.down("c")
    assert liveness.silent_ms(cluster.state.nodes, 70_000) == {"id-b": 10_000, "id-c": 20_000}
    # The next leadership knows nothing of what was before.
    liveness.leader_since(80_000, NodeId("id-a"))
    assert liveness.silent_ms(cluster.state.nodes, 81_000) == {"id-b": 1_000, "id-c": 1_000}


def test_a_lost_task_of_an_earlier_run_has_the_lease_of_its_own_run() -> None:
    """The runs of a cron job are jobs of their own, and share their singleton."""
    cluster = Led("a", "b")
    cluster.submit(job("early", {"g": group(at_most_one=True, lost_after_ms=60_000)}))
    cluster.settle()
    [task] = cluster.live("early").values()
    cluster.down(cluster.where("early")[0])
    lost = cluster.state.tasks[task.id]
    cluster.submit(job("late", {"g": group(at_most_one=True, lost_after_ms=2_000)}))
    late = cluster.state.job_named("late")
    assert late is not None
    spec = late.spec.groups["g"]
    for silent_ms, is_held in ((60_000, True), (75_000, False)):
        found = held(
            cluster.state, late, spec, [lost], [0], cluster.now_ms, {lost.node_id: silent_ms}
        )
        assert bool(found) is is_held
