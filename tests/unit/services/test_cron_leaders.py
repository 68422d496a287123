"""A cron job whose leaders change at the very moment at which it is due: real loops, a log in memory,
virtual time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.cronrun import Run
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import JobId, NodeId
from cube.model.lifecycle import TaskState
from cube.model.spec import CronSpec, JobType, Overlap
from cube.ports.cluster import Proposed
from cube.ports.log import LogStatus
from cube.scheduler.liveness import Liveness
from cube.services.leader_clock import LeaderClock
from cube.services.leader_loop import LeaderLoop
from cube.services.proposer import Proposer
from cube.services.state_feed import StateFeed
from tests.builders import facts, group, job
from tests.fake_log import FakeLog, FakeLogCluster
from tests.virtual_time import VirtualClock, run_virtual

NAMES = ("n1", "n2", "n3")
MINUTE_MS = 60_000
RUNS_FOR_MS = 20_000


class Member:
    """One node: its log, its loop, and tasks that run for a while and then complete."""

    def __init__(self, name: str, cluster: FakeLogCluster) -> None:
        self.name = name
        self.clock = VirtualClock()
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        self.log = FakeLog(
            f"{name}:7701", cluster, self.feed, stamp=self.clock.now_ms,
            members=tuple(f"{one}:7701" for one in NAMES),
        )  # fmt: skip
        self.proposer = Proposer(self.log, self.clock, 5_000, self._id)
        self._numbers = 0
        self.loop = LeaderLoop(
            NodeId(f"id-{name}"), self.log, self.feed, self.clock,
            LeaderClock(self.clock, lambda: self.feed.state.now_ms),
            self.propose, lambda: {NodeId(f"id-{one}"): "alive" for one in NAMES}, self._id,
            Liveness,
        )  # fmt: skip
        self.log.watch(self._on_status)

    def _id(self) -> str:
        self._numbers += 1
        return f"{self.name}-{self._numbers}"

    def _on_status(self, status: LogStatus) -> None:
        self.proposer.on_log_status(status)
        self.loop.on_log_status(status)

    async def propose(self, body: c.Body, *, actor: str = "") -> Proposed:
        return await self.proposer.propose(body, actor=actor)

    async def work(self) -> None:
        """Reports each of its tasks as running, and as completed RUNS_FOR_MS later."""
        while True:
            now_ms = self.clock.now_ms()
            reports = []
            for task in self.feed.state.tasks_of_node(NodeId(f"id-{self.name}")):
                state = None
                if task.state is TaskState.SCHEDULED:
                    state = TaskState.RUNNING
                elif not task.ended and now_ms - task.started_at_ms >= RUNS_FOR_MS:
                    state = TaskState.COMPLETED
                if state is not None:
                    over = state is TaskState.COMPLETED
                    reports.append(c.TaskReport(task.id, 1, state, exit_code=0, released=over))
            if reports:
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    body = c.ReportTasks(NodeId(f"id-{self.name}"), tuple(reports))
                    await self.proposer.propose(body, actor="worker")
            await asyncio.sleep(0.5)


def runs_of(state: ClusterState) -> tuple[Run, ...]:
    found = state.job_named("nightly")
    assert found is not None
    assert found.cron is not None
    return found.cron.runs


async def sleep_until(clock: VirtualClock, at_ms: int) -> None:
    await asyncio.sleep(max(0, at_ms - clock.now_ms()) / 1000)


@pytest.mark.parametrize("overlap", [Overlap.FORBID, Overlap.ALLOW])
@pytest.mark.parametrize("off_ms", [-3, 0, 2, 6, 40])
def test_the_leader_changes_whenever_a_run_is_due(overlap: Overlap, off_ms: int) -> None:
    """`off_ms`: from the due time to the change. In each second minute the outcome of the plan is
    lost, too; then nobody leads for three minutes."""

    async def main() -> tuple[Run, ...]:
        cluster = FakeLogCluster()
        members = [Member(name, cluster) for name in NAMES]
        for member in members:
            await member.log.start()
        running = [asyncio.create_task(member.loop.run()) for member in members]
        running += [asyncio.create_task(member.work()) for member in members]
        first = members[0]
        for name in NAMES:
            await first.propose(c.RegisterNode(facts(name)))
        cron = CronSpec("* * * * *", overlap=overlap)
        spec = job("nightly", {"g": group()}, type=JobType.CRON, cron=cron)
        await first.propose(c.SubmitJob(spec, JobId("j")))
        due_ms = first.clock.now_ms() // MINUTE_MS * MINUTE_MS
        for number in range(4):
            due_ms += MINUTE_MS
            await sleep_until(first.clock, due_ms + off_ms)
            cluster.outcomes_to_lose = number % 2
            cluster.elect(f"{NAMES[(number + 1) % 3]}:7701")
            cluster.settle()
        await sleep_until(first.clock, due_ms + 30_000)
        cluster.cut_off = {f"{name}:7701" for name in NAMES[1:]}
        cluster.settle()
        due_ms += 3 * MINUTE_MS
        await sleep_until(first.clock, due_ms + 30_000)
        cluster.cut_off = set()
        cluster.settle()
        await sleep_until(first.clock, due_ms + 2 * MINUTE_MS - 1_000)
        for task in running:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert len({member.feed.state.index for member in members}) == 1
        return runs_of(first.feed.state)

    runs = run_virtual(main())
    began = [run.scheduled_at_ms for run in runs if run.run]
    minutes = [(at_ms - began[0]) // MINUTE_MS for at_ms in began]
    assert minutes == [0, 1, 2, 3, 6, 7]  # each once; of the three that were missed the latest
    assert [run.status.value for run in runs] == ["completed"] * 4 + ["missed"] + ["completed"] * 2
    missed = runs[4]
    assert (missed.count, missed.message) == (2, "nobody led when they were due")
    assert all(run.started_at_ms - run.scheduled_at_ms < 6_000 for run in runs[:4])
