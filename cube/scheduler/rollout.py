"""How tasks are replaced: the next safe step only, of a rollout or of a drain.

Stop-first: a task is stopped, its slot is empty once it has ended, and a new one is placed. Start-first:
a new task is placed beside it, and the old one stops once the new one has served for min_healthy. A slot
is in transit while it is in neither state. No step begins while as many slots are in transit as the
policy allows, so a version that does not come up stops the rollout.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import msgspec

from cube.model.cluster import Job, Node, Task
from cube.model.deployment import DeploymentStatus
from cube.model.ids import NodeId, TaskId
from cube.model.spec import GroupSpec, JobType, UpdateOrder

DRAIN_PARALLELISM = 1  # per group


class Stance(msgspec.Struct, frozen=True):
    """What the job's deployment allows for one group. `base`, `base_version`: what a failure would
    go back to; until the deployment is decided, slots that are not its turn are filled from that.
    `is_held`: no step at all. `is_gated`: canaries only. `is_open`: it is still to be decided."""

    is_open: bool = False
    is_held: bool = False
    is_gated: bool = False
    base_version: int = 0
    base: GroupSpec | None = None


_FREE = Stance()


def stance_of(job: Job, name: str) -> Stance:
    deployment = job.deployment
    if deployment is None or deployment.status is DeploymentStatus.SUCCESSFUL:
        return _FREE
    is_held = deployment.holds
    is_open = deployment.status is DeploymentStatus.RUNNING
    if not deployment.may_go_back or job.same_container(
        name, deployment.from_version, deployment.version
    ):
        return Stance(is_open=is_open, is_held=is_held)
    spec = job.spec_of(deployment.from_version)
    base = None if spec is None else spec.groups.get(name)
    return Stance(
        is_open=is_open,
        is_held=is_held,
        is_gated=job.is_gated(name),
        base_version=0 if base is None else deployment.from_version,
        base=base,
    )


def lives_alone(job: Job, group: GroupSpec) -> bool:
    """Every replacement is stop-first, whatever the order: a system job's slot belongs to one node,
    and some groups cannot have two tasks side by side."""
    return job.spec.type is JobType.SYSTEM or group.lives_alone


def settled_at_ms(group: GroupSpec, task: Task) -> int | None:
    """When the task has served long enough to be relied on; None: it does not serve."""
    return task.serving_since_ms + group.update.min_healthy_ms if task.serving else None


def drain_due(node: Node | None, now_ms: int) -> bool:
    """The drain's deadline has passed: whatever is left on the node stops."""
    return (
        node is not None
        and node.drain_deadline_ms is not None
        and (node.drain_deadline_ms <= now_ms)
    )


def is_draining(node: Node | None) -> bool:
    return node is not None and node.drain_deadline_ms is not None


class How(enum.Enum):
    STOP = "stop"
    REPLACE = "replace"  # a new task beside it
    UPDATE = "update"  # the same task, with the new version's checks


class Step(msgspec.Struct, frozen=True):
    task: Task
    reason: str
    how: How


class Candidates(msgspec.Struct):
    """Live tasks that are to be replaced, each in one list. `rechecked`: up to date but for checks
    that have changed, which may show that they do not serve. `shaky`: those that cannot be relied
    on anyway; their slots are as good as in transit."""

    outdated: list[Task]
    drained: list[Task]
    rechecked: list[Task]
    shaky: set[TaskId]

    def __bool__(self) -> bool:
        return bool(self.outdated or self.drained or self.rechecked)


def next_steps(
    job: Job,
    name: str,
    stance: Stance,
    candidates: Candidates,
    in_transit: int,
    nodes: Mapping[NodeId, Node],
    now_ms: int,
    is_waiting: bool = False,
) -> list[Step]:
    """`in_transit`: slots in which nothing settled serves, or two tasks live. `is_waiting`: for what
    the group depends on; then only drains go on."""
    group = job.spec.groups[name]
    is_alone = lives_alone(job, group)
    is_start_first = group.update.order is UpdateOrder.START_FIRST and not is_alone
    chosen: list[Step] = []
    left: list[tuple[Task, str]] = []
    for task in candidates.drained:
        if drain_due(nodes.get(task.node_id), now_ms):
            chosen.append(Step(task, "drain_deadline", How.STOP))
        else:
            left.append((task, "drain"))
    if not stance.is_held and not is_waiting:
        for task in candidates.outdated:
            if stance.is_gated:
                if task.slot >= group.canaries:
                    continue
                if is_alone:
                    left.append((task, "update"))
                else:  # canaries run beside the others, whatever the order
                    chosen.append(_step(task, "update", is_start_first=True))
            elif drain_due(nodes.get(task.node_id), now_ms):
                chosen.append(Step(task, "drain_deadline", How.STOP))
            elif _is_worthless(job, stance, task):
                chosen.append(Step(task, "update", How.STOP))
            else:
                left.append((task, "update"))
        left.extend((task, "recheck") for task in candidates.rechecked)
    left.sort(key=lambda item: (item[0].serving, item[1] == "drain", item[0].slot, item[0].id))
    moving = in_transit + len(chosen)
    away = moving + len(candidates.shaky - {step.task.id for step in chosen})
    for task, reason in left:
        allowed = max(1, DRAIN_PARALLELISM if reason == "drain" else group.update.parallelism)
        is_shaky = task.id in candidates.shaky
        if (moving if is_shaky else away) >= allowed:
            continue
        if reason == "recheck":
            chosen.append(Step(task, "update", How.UPDATE))
        else:
            chosen.append(_step(task, reason, is_start_first))
        moving += 1
        away += not is_shaky
    return chosen


def _is_worthless(job: Job, stance: Stance, task: Task) -> bool:
    """It does not serve, and is not of the version that was healthy: nobody misses it."""
    if task.serving:
        return False
    return not (stance.base_version and job.same_container(
        task.group, task.version, stance.base_version
    ))  # fmt: skip


def _step(task: Task, reason: str, is_start_first: bool) -> Step:
    """What does not serve is not worth waiting for."""
    how = How.REPLACE if is_start_first and task.serving else How.STOP
    return Step(task, reason, how)


def replacements(steps: Sequence[Step]) -> dict[str, list[Task]]:
    """Tasks that get another beside them, by reason, in order of slot."""
    found: dict[str, list[Task]] = {}
    for step in sorted(steps, key=lambda step: step.task.slot):
        if step.how is How.REPLACE:
            found.setdefault(step.reason, []).append(step.task)
    return found
