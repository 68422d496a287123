"""The leader plans while it leads, from what is newest, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import JobId, NodeId
from cube.model.lifecycle import NodeStatus, TaskState
from cube.model.outcome import PlanApplied
from cube.ports.cluster import Proposed
from cube.ports.log import Committed, LogStatus
from cube.scheduler import plan as planning
from cube.scheduler.liveness import Liveness, brake_of
from cube.scheduler.plan import Scheduler
from cube.scheduler.plan_draft import Plan
from cube.scheduler.why import explain
from cube.services import leader_loop
from cube.services.leader_clock import LeaderClock
from cube.services.leader_loop import TICK_MS, LeaderLoop
from cube.services.proposer import Proposer
from cube.services.state_feed import StateFeed
from tests.builders import facts, group, job
from tests.fake_log import FakeLog, FakeLogCluster
from tests.virtual_time import VirtualClock, run_virtual

ME = NodeId("id-n1")


class Leader:
    """Node n1 with its loop, over a log in memory. `proposed` has all that the loop proposed."""

    def __init__(self, cluster: FakeLogCluster, log_type: type[FakeLog] = FakeLog) -> None:
        self.clock = VirtualClock()
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        self.log = log_type("n1:7701", cluster, self.feed, stamp=self.clock.now_ms)
        self.proposer = Proposer(self.log, self.clock, 5_000, self._id)
        self.gossip: dict[NodeId, str] = {ME: "alive"}
        self.proposed: list[c.Body] = []
        self.outcomes: list[Proposed] = []
        self.failures: list[Exception] = []  # the next proposals fail so, before they happen
        self._numbers = 0
        self.loop = LeaderLoop(
            ME, self.log, self.feed, self.clock,
            LeaderClock(self.clock, lambda: self.feed.state.now_ms),
            self._propose, self._gossip_states, self._id, Liveness,
        )  # fmt: skip
        self.log.watch(self._on_status)

    def _id(self) -> str:
        self._numbers += 1
        return f"id{self._numbers}"

    def _gossip_states(self) -> Mapping[NodeId, str]:
        return self.gossip

    def _on_status(self, status: LogStatus) -> None:
        self.proposer.on_log_status(status)
        self.loop.on_log_status(status)

    async def _propose(self, body: c.Body, *, actor: str = "") -> Proposed:
        assert actor == f"leader:{ME}"
        self.proposed.append(body)
        if self.failures:
            raise self.failures.pop(0)
        self.outcomes.append(await self.proposer.propose(body, actor=actor))
        return self.outcomes[-1]

    async def do(self, body: c.Body) -> Proposed:
        return await self.proposer.propose(body, actor="test")

    async def with_job(self, count: int = 1, nodes: tuple[str, ...] = ("n1",)) -> None:
        for name in nodes:
            await self.do(c.RegisterNode(facts(name)))
            self.gossip[NodeId(f"id-{name}")] = "alive"
        await self.do(c.SubmitJob(job("web", {"g": group(count=count)}), JobId("j")))

    @property
    def plans(self) -> list[c.ApplyPlan]:
        return [body for body in self.proposed if isinstance(body, c.ApplyPlan)]


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of virtual time
            await asyncio.sleep(0.01)


def leading(
    test: Callable[[Leader], Coroutine[Any, Any, None]], log_type: type[FakeLog] = FakeLog
) -> None:
    """Runs the test with a leader whose loop runs."""

    async def main() -> None:
        leader = Leader(FakeLogCluster(), log_type)
        await leader.log.start()
        running = asyncio.create_task(leader.loop.run())
        try:
            await test(leader)
            assert not running.done(), running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run_virtual(main())


def test_a_leader_places_what_is_wanted() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job(count=3)
        await until(lambda: len(leader.feed.state.tasks) == 3)
        assert {plan.term for plan in leader.plans} == {leader.log.status().term}

    leading(test)


def test_at_rest_it_proposes_nothing() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job()
        await until(lambda: bool(leader.feed.state.tasks))
        await asyncio.sleep(5)
        count = len(leader.proposed)
        await asyncio.sleep(200)  # the deadline of the deployment is later
        assert len(leader.proposed) == count

    leading(test)


class NotReadyYet(FakeLog):
    """Leads at once, and is ready a second later; nobody is told when."""

    def status(self) -> LogStatus:
        return msgspec.structs.replace(
            super().status(), ready=VirtualClock().monotonic_ms() >= 1_000
        )


def test_it_starts_only_when_ready_though_nobody_says_when() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job()
        await asyncio.sleep(0.9)
        assert leader.proposed == []
        await until(lambda: bool(leader.feed.state.tasks), seconds=0.1 + 3 * TICK_MS / 1000)

    leading(test, NotReadyYet)


def test_who_does_not_lead_proposes_nothing_and_takes_no_heartbeats() -> None:
    async def main() -> None:
        cluster = FakeLogCluster()
        first = FakeLog("n0:7701", cluster, StateFeed(), members=("n1:7701",))
        await first.start()
        leader = Leader(cluster)
        await leader.log.start()
        cluster.elect("n0:7701")
        cluster.settle()
        running = asyncio.create_task(leader.loop.run())
        await leader.with_job()
        await asyncio.sleep(10)
        assert leader.proposed == []
        assert not leader.loop.heartbeat(ME)
        await first.transfer_leadership(1000)
        await until(lambda: bool(leader.feed.state.tasks))
        assert leader.loop.heartbeat(ME)
        await leader.log.transfer_leadership(1000)
        await asyncio.sleep(1)
        count = len(leader.proposed)
        assert not leader.loop.heartbeat(ME)
        await leader.do(c.ScaleJob("web", {"g": 5}))
        await asyncio.sleep(10)
        assert len(leader.proposed) == count
        running.cancel()

    run_virtual(main())


def test_a_plan_is_made_from_the_newest_state() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job(count=2)
        await until(lambda: len(leader.feed.state.tasks) == 2)
        await leader.do(c.ScaleJob("web", {"g": 4}))
        await until(lambda: len([t for t in leader.feed.state.tasks.values() if t.live]) == 4)
        for outcome in leader.outcomes:
            if isinstance(outcome.outcome, PlanApplied):
                assert outcome.outcome.refused_count == 0

    leading(test)


def test_a_lost_event_costs_time_only() -> None:
    async def test(leader: Leader) -> None:
        await leader.do(c.RegisterNode(facts("n1")))
        await asyncio.sleep(2)
        leader.feed._publish = lambda: None  # type: ignore[method-assign]
        leader.feed._wake_pending = True  # nobody will be told of anything any more
        await leader.do(c.SubmitJob(job("web"), JobId("j")))
        await until(lambda: bool(leader.feed.state.tasks), seconds=3 * TICK_MS / 1000)

    leading(test)


@pytest.mark.parametrize("failure", [Unavailable("no leader"), OutcomeUnknown("lost")])
def test_a_proposal_that_failed_is_made_anew(failure: Exception) -> None:
    async def test(leader: Leader) -> None:
        leader.failures = [failure] * 3
        await leader.with_job()
        await until(lambda: bool(leader.feed.state.tasks))
        assert leader.failures == []
        assert len({plan.seed for plan in leader.plans}) == len(leader.plans)

    leading(test)


def test_a_refused_placement_is_planned_again() -> None:
    async def test(leader: Leader) -> None:
        await leader.do(c.RegisterNode(facts("n1")))
        await asyncio.sleep(1)
        propose = leader.loop._propose

        async def late(body: c.Body, *, actor: str = "") -> Proposed:
            """The node goes out of service while the first plan is on its way."""
            if isinstance(body, c.ApplyPlan) and not leader.plans:
                await leader.do(c.SetEligibility(ME, False))
            return await propose(body, actor=actor)

        leader.loop._propose = late
        await leader.do(c.SubmitJob(job("web"), JobId("j")))
        await until(lambda: bool(leader.outcomes))
        outcome = leader.outcomes[0].outcome
        assert isinstance(outcome, PlanApplied)
        assert [r.code for r in outcome.refused] == ["not_ready"]
        await asyncio.sleep(1)
        await leader.do(c.SetEligibility(ME, True))
        await until(lambda: bool(leader.feed.state.tasks))

    leading(test)


class SlowLog(FakeLog):
    """Takes a tenth of a second to commit."""

    async def propose(self, data: bytes, timeout_ms: int) -> Committed:
        await asyncio.sleep(0.1)
        return await super().propose(data, timeout_ms)


class Ahead:
    """Plans are small, and the next one is made while one of three placements is on its way. `made`:
    how many jobs each plan was to reckon with that were not placed yet, and how many it placed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[int, int]] = []
        monkeypatch.setattr(leader_loop, "AHEAD_PLACEMENTS_MIN", 3)
        monkeypatch.setattr(planning, "WANTS_MAX", 3)
        plan, made = Scheduler.plan, self.made

        def noted(scheduler: Scheduler, state: ClusterState, *given: Any, **named: Any) -> Plan:
            found = plan(scheduler, state, *given, **named)
            ahead = given[-1]
            waiting = () if ahead is None else ahead.placements
            placed = () if found.command is None else found.command.placements
            made.append((sum(one.job_id not in state.tasks_by_job for one in waiting), len(placed)))
            return found

        monkeypatch.setattr(Scheduler, "plan", noted)

    async def jobs(self, leader: Leader, count: int) -> None:
        """All submitted before anything is planned."""
        plan, leader.loop._make_plan = leader.loop._make_plan, lambda *_: Plan(None)  # type: ignore[method-assign]
        await leader.do(c.RegisterNode(facts("n1")))
        bodies = [c.SubmitJob(job(f"job-{n}"), JobId(f"j{n}")) for n in range(count)]
        await asyncio.gather(*(leader.do(body) for body in bodies))
        leader.loop._make_plan = plan  # type: ignore[method-assign]


def test_the_next_plan_is_made_while_one_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(leader: Leader) -> None:
        ahead = Ahead(monkeypatch)
        await ahead.jobs(leader, 9)
        await until(lambda: len(leader.feed.state.tasks) == 9)
        assert (3, 3) in ahead.made
        for proposed in leader.outcomes:
            if isinstance(proposed.outcome, PlanApplied):
                assert proposed.outcome.refused == ()

    leading(test, SlowLog)


def test_no_large_entry_is_applied_while_a_plan_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    plan = Scheduler.plan

    async def test(leader: Leader) -> None:
        def noted(*given: Any, **named: Any) -> Plan:
            held.append(leader.feed.large_entries.locked())
            return plan(*given, **named)

        monkeypatch.setattr(Scheduler, "plan", noted)
        await leader.with_job(count=3)
        await until(lambda: len(leader.feed.state.tasks) == 3)
        assert held
        assert all(held)
        assert not leader.feed.large_entries.locked()

    leading(test)


def test_when_the_plan_ahead_is_refused_the_next_one_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(leader: Leader) -> None:
        ahead = Ahead(monkeypatch)
        propose = leader.loop._propose

        async def late(body: c.Body, *, actor: str = "") -> Proposed:
            is_first = isinstance(body, c.ApplyPlan) and not leader.plans
            if is_first:
                leader.proposed.append(body)
                await leader.do(c.SetEligibility(ME, False))
                await leader.do(c.SetEligibility(ME, True))
                raise OutcomeUnknown("lost")
            return await propose(body, actor=actor)

        leader.loop._propose = late
        await ahead.jobs(leader, 9)
        await until(lambda: len(leader.feed.state.tasks) == 9)
        assert len({plan.seed for plan in leader.plans}) == len(leader.plans)

    leading(test, SlowLog)


def test_where_tasks_may_be_preempted_no_plan_is_made_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once the plan before is in the state, its room counts twice: tasks would have to go for that."""

    async def test(leader: Leader) -> None:
        ahead = Ahead(monkeypatch)
        await leader.do(c.ChangeSettings(preemption=True))
        await ahead.jobs(leader, 9)
        await until(lambda: len(leader.feed.state.tasks) == 9)
        assert {waiting for waiting, _ in ahead.made} == {0}

    leading(test, SlowLog)


def test_a_lease_does_not_wait_for_the_end_of_all_planning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(leader: Leader) -> None:
        ahead = Ahead(monkeypatch)
        await ahead.jobs(leader, 30)
        await until(lambda: len(leader.feed.state.tasks) >= 3)
        assert await leader.loop.lease(ME) is not None
        assert len(leader.feed.state.tasks) < 30
        await until(lambda: len(leader.feed.state.tasks) == 30)
        assert (3, 3) in ahead.made

    leading(test, SlowLog)


def test_a_look_at_everything_goes_on_though_nothing_is_to_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten slices of three jobs: a new leader must not take ten ticks until it knows the last one."""
    monkeypatch.setattr(planning, "LOOKED_MAX", 3)
    plan, more = Scheduler.plan, list[bool]()

    def noted(*given: Any, **named: Any) -> Plan:
        found = plan(*given, **named)
        more.append(found.more)
        return found

    async def test(leader: Leader) -> None:
        await Ahead(monkeypatch).jobs(leader, 30)
        await until(lambda: len(leader.feed.state.tasks) == 30)
        await asyncio.sleep(1)
        monkeypatch.setattr(Scheduler, "plan", noted)
        leader.log.cluster.elect(leader.log.address)
        leader.log.cluster.settle()
        await asyncio.sleep(2 * TICK_MS / 1000)
        assert len(more) > 9 and not more[-1]

    leading(test)


def test_a_silent_node_is_taken_down_and_its_tasks_are_replaced() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job(count=6, nodes=("n1", "n2", "n3"))
        await until(lambda: len(leader.feed.state.tasks) == 6)
        n2, n3 = NodeId("id-n2"), NodeId("id-n3")
        for _ in range(5):
            leader.loop.heartbeat(n2)
            leader.loop.heartbeat(n3)
            await asyncio.sleep(1)
        leader.gossip[n3] = "dead"
        for _ in range(8):
            leader.loop.heartbeat(n2)
            await asyncio.sleep(1)
        state = leader.feed.state
        assert state.nodes[n3].status is NodeStatus.DOWN
        assert leader.loop.brake is None
        assert all(t.state is TaskState.LOST for t in state.tasks.values() if t.node_id == n3)
        assert len([t for t in state.tasks.values() if t.live]) == 6

    leading(test)


def test_the_brake_is_shown_while_most_nodes_are_silent() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job(count=3, nodes=("n1", "n2", "n3"))
        for name in ("n2", "n3"):
            leader.gossip[NodeId(f"id-{name}")] = "dead"
        await until(lambda: leader.loop.brake is not None)
        assert leader.loop.brake is not None
        assert "2 of 3" in leader.loop.brake
        # In the state, so that followers tell it too, and `why` of what runs there.
        await until(lambda: "2 of 3" in (brake_of(leader.feed.state.nodes) or ""))
        told = explain(leader.feed.state, leader.clock.now_ms(), "web")
        assert [one.reasons[0].code for one in told if "(n2, n3)" in one.summary] == ["brake"]
        told_of = len([one for one in leader.proposed if isinstance(one, c.SetNodeStatus)])
        await asyncio.sleep(600)
        now = len([one for one in leader.proposed if isinstance(one, c.SetNodeStatus)])
        assert now == told_of, "it goes on telling"
        statuses = {node.status for node in leader.feed.state.nodes.values()}
        assert NodeStatus.DOWN not in statuses
        for name in ("n2", "n3"):
            leader.gossip[NodeId(f"id-{name}")] = "alive"
            leader.loop.heartbeat(NodeId(f"id-{name}"))
        await until(lambda: leader.loop.brake is None)
        await until(lambda: brake_of(leader.feed.state.nodes) is None)

    leading(test)


# Leases


def test_a_lease_goes_with_all_that_was_committed_when_it_was_asked_for() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job()
        await until(lambda: bool(leader.feed.state.tasks))
        assert await leader.loop.lease(ME) == leader.feed.state.index

    leading(test)


def test_who_does_not_lead_any_more_leases_nothing() -> None:
    async def main() -> None:
        cluster = FakeLogCluster()
        other = FakeLog("n0:7701", cluster, StateFeed(), members=("n1:7701",))
        await other.start()
        leader = Leader(cluster)
        await leader.log.start()
        running = asyncio.create_task(leader.loop.run())
        assert await leader.loop.lease(ME) is None
        cluster.elect("n1:7701")
        cluster.settle()
        await leader.with_job()
        await until(lambda: bool(leader.feed.state.tasks))
        assert await leader.loop.lease(ME) is not None
        # Deposed, and elected again, while the barrier was on its way: what the other one has
        # decided meanwhile is not known.
        barrier = leader.log.barrier

        async def late(timeout_ms: int) -> int:
            index = await barrier(timeout_ms)
            cluster.elect("n0:7701")
            cluster.elect("n1:7701")
            cluster.settle()
            return index

        leader.log.barrier = late  # type: ignore[method-assign]
        assert await leader.loop.lease(ME) is None

        async def deaf(timeout_ms: int) -> int:
            await asyncio.sleep(1_000)
            raise AssertionError

        leader.log.barrier = deaf  # type: ignore[method-assign]
        assert await leader.loop.lease(ME) is None
        running.cancel()

    run_virtual(main())


def test_a_lease_waits_for_the_plan_that_was_made_without_knowing_of_it() -> None:
    async def test(leader: Leader) -> None:
        propose = leader.loop._propose
        order: list[str] = []

        async def late(body: c.Body, *, actor: str = "") -> Proposed:
            if isinstance(body, c.ApplyPlan):
                order.append("plan")
                await asyncio.sleep(0.5)
            done = await propose(body, actor=actor)
            order.append("applied")
            return done

        leader.loop._propose = late
        await leader.with_job()
        await until(lambda: order == ["plan"])
        index = await leader.loop.lease(ME)
        assert order[:2] == ["plan", "applied"]
        assert index is not None
        assert leader.feed.state.tasks

    leading(test)


def test_leases_of_many_nodes_share_their_barriers() -> None:
    async def test(leader: Leader) -> None:
        await leader.with_job()
        await until(lambda: bool(leader.feed.state.tasks))
        barrier = leader.log.barrier
        at_ms: list[int] = []

        async def counted(timeout_ms: int) -> int:
            at_ms.append(leader.clock.monotonic_ms())
            return await barrier(timeout_ms)

        leader.log.barrier = counted  # type: ignore[method-assign]

        async def ask(number: int) -> None:
            await asyncio.sleep(number / 100)
            asked_ms = leader.clock.monotonic_ms()
            assert await leader.loop.lease(NodeId(f"n{number}")) is not None
            assert max(at_ms) >= asked_ms, "confirmed by a barrier from before it asked"

        await asyncio.gather(*(ask(number) for number in range(100)))
        assert len(at_ms) <= 6

    leading(test)


def test_a_lost_singleton_is_replaced_when_its_lease_has_surely_run_out() -> None:
    async def test(leader: Leader) -> None:
        n2 = NodeId("id-n2")
        await leader.with_job(count=0, nodes=("n1", "n2", "n3"))
        spec = group(at_most_one=True, lost_after_ms=30_000, stop_timeout_ms=10_000)
        await leader.do(c.SetEligibility(ME, False))
        await leader.do(c.SetEligibility(NodeId("id-n3"), False))
        await leader.do(c.SubmitJob(job("one", {"g": spec}), JobId("one")))

        async def beat(seconds: int, *nodes: str) -> None:
            for _ in range(seconds):
                for name in nodes:
                    leader.loop.heartbeat(NodeId(f"id-{name}"))
                await asyncio.sleep(1)

        await beat(3, "n2", "n3")
        [first] = leader.feed.state.tasks.values()
        assert first.node_id == n2
        await leader.do(c.SetEligibility(NodeId("id-n3"), True))
        leader.gossip[n2] = "dead"
        last_ms = leader.clock.monotonic_ms()
        assert leader.loop.heartbeat(n2)
        await beat(20, "n3")
        assert leader.feed.state.tasks[first.id].state is TaskState.LOST
        # It was heard once more, by a heartbeat that does not make the node ready yet.
        last_ms = leader.clock.monotonic_ms()
        assert await leader.loop.lease(n2) is not None
        while len(leader.feed.state.tasks) == 1:
            await beat(1, "n3")
        waited_ms = leader.clock.monotonic_ms() - last_ms
        assert 42_000 <= waited_ms <= 44_000
        [second] = [task for task in leader.feed.state.tasks.values() if task.live]
        assert second.fence > first.fence

    leading(test)


def test_a_leader_knows_what_has_changed_and_does_not_compare_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A million tasks would take half a second each time."""
    compared: list[ClusterState] = []
    monkeypatch.setattr(Scheduler, "_compare_tasks", lambda _, last, state: compared.append(state))

    async def test(leader: Leader) -> None:
        await leader.with_job(count=3)
        await until(lambda: len(leader.feed.state.tasks) == 3)
        for task in list(leader.feed.state.tasks.values()):
            report = c.TaskReport(task.id, 1, TaskState.FAILED, released=True)
            await leader.do(c.ReportTasks(task.node_id, (report,)))
        await until(lambda: len(leader.feed.state.tasks) == 6)

    leading(test)
    assert compared == []
