"""A cluster whose leader plans by hand: for tests of what the scheduler proposes."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.cluster import Task
from cube.model.deployment import Deployment
from cube.model.ids import NodeId
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState
from cube.model.outcome import PlanApplied
from cube.model.spec import (
    GroupSpec,
    JobSpec,
)
from cube.scheduler.plan import Scheduler
from cube.scheduler.plan_draft import Plan
from cube.statemachine.invariants import violations
from tests.builders import Machine, group, job


class Cluster(Machine):
    """A machine with a scheduler beside it."""

    def __init__(self, *nodes: str) -> None:
        super().__init__(*nodes)
        self.scheduler = Scheduler()
        self.plans = 0

    def plan(self) -> Plan:
        self.plans += 1
        plan = self.scheduler.plan(self.state, self.now_ms, self.term, f"seed-{self.plans}")
        if plan.command is not None:
            outcome = self.do(plan.command)
            assert isinstance(outcome, PlanApplied)
            assert outcome.refused == ()
        assert violations(self.state) == []
        return plan

    def settle(self) -> None:
        """Plans until nothing is left to do now, with every task running and every stop obeyed."""
        for _ in range(50):
            before = self.state.index
            self.plan()
            self.obey()
            if self.state.index == before:
                return
        raise AssertionError("the scheduler does not come to rest")

    def roll(self, until_ms: int = 3_600_000) -> None:
        """settle, and time goes on from one wake to the next until there is none within
        `until_ms`."""
        end_ms = self.now_ms + until_ms
        for _ in range(500):
            before = self.state.index
            plan = self.plan()
            self.obey()
            if self.state.index != before:
                continue
            if plan.wake_at_ms is None or plan.wake_at_ms > end_ms:
                return
            self.now_ms = plan.wake_at_ms
        raise AssertionError("the scheduler does not come to rest")

    def obey(self) -> None:
        """Every node does as it is told: what is to run runs (and fails, where its command is
        `broken`), what is to stop ends."""
        for task in list(self.state.tasks.values()):
            self.obey_one(task)

    def obey_one(self, task: Task) -> None:
        if task.ended:
            return
        if task.desired is not Desired.RUN:
            self.report(task.id, "stopping")
            self.report(task.id, "completed", exit_code=143, released=True)
        elif self.is_broken(task):
            self.report(task.id, "failed", exit_code=1, reason="exited", released=True)
        elif task.state is not TaskState.RUNNING or task.health is Health.UNHEALTHY:
            health = Health.NONE if task.health is Health.NONE else Health.HEALTHY
            self.report(task.id, "running", health=health)

    def is_broken(self, task: Task) -> bool:
        made_from = self.state.group_of(task)
        return made_from is not None and made_from.command == ("broken",)

    def deployment(self, job_name: str = "web") -> Deployment:
        """The newest."""
        found = self.state.job_named(job_name)
        assert found is not None
        return found.deployments[-1]

    def live(self, job_name: str, group_name: str = "g") -> dict[int, Task]:
        found = self.state.job_named(job_name)
        assert found is not None
        tasks = [
            task
            for task in self.state.tasks_of_job(found.id)
            if task.live and task.group == group_name
        ]
        assert len({task.slot for task in tasks}) == len(tasks)
        return {task.slot: task for task in tasks}

    def where(self, job_name: str) -> dict[int, str]:
        return {
            slot: self.state.nodes[task.node_id].name for slot, task in self.live(job_name).items()
        }

    def fail(self, task: Task, exit_code: int = 1) -> None:
        self.report(task.id, "failed", exit_code=exit_code, reason="exited", released=True)

    def node(self, name: str) -> NodeId:
        return self.state.node_names[name]

    def down(self, name: str, status: NodeStatus = NodeStatus.DOWN) -> None:
        self.do(c.SetNodeStatus(self.term, self.node(name), status))


def one(**changes: Any) -> dict[str, GroupSpec]:
    return {"g": group(**changes)}


def web(count: int = 3, **changes: Any) -> JobSpec:
    return job("web", one(count=count, **changes))
