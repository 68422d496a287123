"""Short ways to make model values in tests. Defaults are the least that is valid."""

from __future__ import annotations

from typing import Any

from cube.model import commands as c
from cube.model.cluster import ClusterState, NodeFacts
from cube.model.ids import ClusterId, CommandId, JobId, NodeId
from cube.model.launch import DriverInfo
from cube.model.outcome import Outcome
from cube.model.resources import Resources
from cube.model.spec import DriverName, GroupSpec, JobSpec, JobType, UpdatePolicy
from cube.statemachine.apply import Step, apply

GIB = 1 << 30
START_MS = 1_700_000_000_000


def facts(name: str, **changes: Any) -> NodeFacts:
    values: dict[str, Any] = {
        "id": NodeId(f"id-{name}"),
        "name": name,
        "advertise": f"host-{name}",
        "http_address": f"{name}:7700",
        "raft_address": f"{name}:7701",
        "gossip_address": f"{name}:7702",
        "version": "0",
        "capacity": Resources(4000, 8 * GIB, 100 * GIB),
        "drivers": {d: DriverInfo(d, True) for d in ("process", "docker", "fake")},
    }
    return NodeFacts(**(values | changes))


def group(**changes: Any) -> GroupSpec:
    values: dict[str, Any] = {
        "driver": DriverName.PROCESS,
        "command": ("sleep", "60"),
        "resources": Resources(100, 64 << 20, 0),
        "update": UpdatePolicy(min_healthy_ms=0),
    }
    return GroupSpec(**(values | changes))


def job(name: str = "web", groups: dict[str, GroupSpec] | None = None, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {"type": JobType.SERVICE, "groups": groups or {"g": group()}}
    return JobSpec(name=name, **(values | changes))


class Machine:
    """A state machine by hand: entries are numbered, stamped and applied one after the other."""

    def __init__(self, *nodes: str, state: ClusterState | None = None) -> None:
        self.state = state or ClusterState()
        self.now_ms = START_MS
        self.term = 1
        self.steps: list[Step] = []
        self._next = 0
        if state is None:
            self.do(c.InitCluster(ClusterId("cluster"), "test"))
        for name in nodes:
            self.do(c.RegisterNode(facts(name)))

    def do(self, body: c.Body, command_id: str = "", digest: str = "") -> Outcome:
        self._next += 1
        id_ = CommandId(command_id or f"command-{self.state.index}-{self._next}")
        entry = c.Entry(
            self.state.index + 1, self.term, self.now_ms, c.Command(id_, body, "test", digest)
        )
        step = apply(self.state, entry)
        self.state = step.state
        self.steps.append(step)
        return step.outcome

    def submit(self, spec: JobSpec) -> Outcome:
        return self.do(c.SubmitJob(spec, JobId(f"job-{spec.name}-{self.state.index}")))

    def place(
        self, job_name: str, group_name: str, *where: tuple[int, str, tuple[int, ...]]
    ) -> Outcome:
        """Each of `where` is (slot, node name, host ports)."""
        found = self.state.job_named(job_name)
        assert found is not None
        nodes = tuple(self.state.node_names.get(name, NodeId(f"id-{name}")) for _, name, _ in where)
        placement = c.GroupPlacement(
            found.id,
            found.version,
            group_name,
            tuple(slot for slot, _, _ in where),
            tuple(range(len(where))),
            tuple(ports for _, _, ports in where),
        )
        self._next += 1
        return self.do(
            c.ApplyPlan(self.term, f"seed-{self._next}", nodes=nodes, placements=(placement,))
        )

    def report(self, task_id: str, state: str, attempt: int = 1, **changes: Any) -> Outcome:
        from cube.model.ids import TaskId
        from cube.model.lifecycle import TaskState

        task = self.state.tasks[TaskId(task_id)]
        item = c.TaskReport(task.id, attempt, TaskState(state), **changes)
        return self.do(c.ReportTasks(task.node_id, (item,)))
