"""The leader's plans: stops, in-place updates, placements, reaping, each re-checked on its own."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import HistoryEntry, Job, Task, TaskPort
from cube.model.ids import NodeId, TaskId, TaskIds
from cube.model.lifecycle import PARTITIONED, Desired, Health, TaskState
from cube.model.outcome import (
    REFUSED_MAX,
    Outcome,
    PlanApplied,
    RefusedPlacement,
    Rejected,
    RejectReason,
)
from cube.model.spec import GroupSpec
from cube.statemachine import deployments, runs
from cube.statemachine.draft import Draft
from cube.statemachine.placement import node_refusal, ports_for
from cube.statemachine.tasks import want
from cube.statemachine.volumes import elsewhere, settle, sticky


def apply_plan(draft: Draft, plan: c.ApplyPlan) -> Outcome:
    """What still fits of the plan is done. Refused as a whole under another leader's term, or when
    it is not well formed."""
    if plan.term != draft.term:
        return Rejected(RejectReason.STALE_TERM, f"made in term {plan.term}, not {draft.term}")
    problem = _malformed(plan)
    if problem:
        return Rejected(RejectReason.INVALID, problem)
    for planned in plan.stops:
        task = draft.task(planned.task_id)
        if task is not None:
            want(draft, task, Desired.STOP, planned.reason)
    for id_, version in plan.updates:
        _update(draft, id_, version)
    ordinal = 0
    placed = 0
    refused: list[RefusedPlacement] = []
    refused_count = 0
    for placement in plan.placements:
        group_placed, group_refused = _GroupPlacing(draft, plan, placement).run(ordinal)
        ordinal += len(placement.slots)
        placed += group_placed
        refused_count += len(group_refused)
        refused.extend(group_refused[: REFUSED_MAX - len(refused)])
    for id_ in plan.reaps:
        task = draft.task(id_)
        if task is not None and task.ended and task.released:
            draft.drop_task(task)
    for run_end in plan.run_ends:
        runs.end(draft, run_end)
    for run_step in plan.run_steps:
        runs.step(draft, run_step)
    for verdict in plan.deployments:
        deployments.step(draft, verdict)
    if plan.is_balanced:
        draft.rebalance_since_ms = 0
    return PlanApplied(placed, refused_count, tuple(refused))


def _malformed(plan: c.ApplyPlan) -> str:
    if sum(len(placement.slots) for placement in plan.placements) > c.PLACEMENTS_MAX:
        return f"more than {c.PLACEMENTS_MAX} placements"
    for placement in plan.placements:
        count = len(placement.slots)
        if len(placement.node_at) != count:
            return "slots and nodes differ in number"
        if placement.ports and len(placement.ports) != count:
            return "slots and ports differ in number"
        if placement.replaces and len(placement.replaces) != count:
            return "slots and replaced tasks differ in number"
        if any(not 0 <= at < len(plan.nodes) for at in placement.node_at):
            return "a node's position is outside the plan's list"
        if any(slot < 0 for slot in placement.slots):
            return "a slot is negative"
    return ""


def _update(draft: Draft, id_: TaskId, version: int) -> None:
    """The task belongs to `version` without a new container, if both allow that."""
    task = draft.task(id_)
    job = None if task is None else draft.job(task.job_id)
    if task is None or job is None or not task.live or task.version == version:
        return
    old, new = job.spec_of(task.version), job.spec_of(version)
    if old is None or new is None:
        return
    old_group, new_group = old.groups.get(task.group), new.groups.get(task.group)
    if old_group is None or new_group is None:
        return
    if not job.same_container(task.group, task.version, version):
        return
    health, health_at_ms = task.health, task.health_at_ms
    if not new_group.checks:
        health = Health.NONE
    elif health is Health.NONE:
        health = Health.UNKNOWN
    if old_group.checks != new_group.checks:
        health_at_ms = draft.now_ms
    after = msgspec.structs.replace(task, version=version, health=health, health_at_ms=health_at_ms)
    draft.put_task(after, "version")


class _GroupPlacing:
    """The placements of one group, one after the other. What its slots hold is read once."""

    def __init__(self, draft: Draft, plan: c.ApplyPlan, placement: c.GroupPlacement) -> None:
        self._draft = draft
        self._plan = plan
        self._placement = placement
        self._slots: dict[int, list[Task]] = {}
        for task in draft.tasks_of_group(placement.job_id, placement.group):
            self._slots.setdefault(task.slot, []).append(task)
        self._ids = TaskIds(plan.seed)
        self._placed: dict[TaskId, Task] = {}
        self._sticky: tuple[str, ...] = ()

    def run(self, first_ordinal: int) -> tuple[int, list[RefusedPlacement]]:
        placement = self._placement
        job = self._draft.job(placement.job_id)
        group = self._group(job)
        if job is not None and group is not None:
            self._sticky = sticky(job, group)
            self._template = self._template_of(job, group)
        refused: list[RefusedPlacement] = []
        for position, slot in enumerate(placement.slots):
            node_id = self._plan.nodes[placement.node_at[position]]
            if job is None or group is None:
                code: str | None = "job_changed"
            else:
                code = self._place(job, group, position, node_id, first_ordinal + position)
            if code is not None:
                refused.append(
                    RefusedPlacement(placement.job_id, placement.group, slot, node_id, code)
                )
        self._draft.add_tasks(placement.job_id, self._placed.values())
        return len(self._placed), refused

    def _group(self, job: Job | None) -> GroupSpec | None:
        """The template of the placement's version: the wanted one, or the one that a deployment
        would go back to."""
        version = self._placement.version
        if job is None or job.stopped or job.deleted:
            return None
        if job.cron is not None:  # its runs have tasks, itself it has none
            return None
        if job.version != version:
            deployment = job.deployment
            if deployment is None or not version or deployment.from_version != version:
                return None
        spec = job.spec_of(version)
        return None if spec is None else spec.groups.get(self._placement.group)

    def _template_of(self, job: Job, group: GroupSpec) -> Task:
        """What the group's tasks of this plan have alike. They share it: a million of them are in
        memory."""
        draft, placement = self._draft, self._placement
        return Task(
            id=TaskId(""),
            job_id=job.id,
            job=job.name,
            group=placement.group,
            slot=0,
            version=placement.version,
            node_id=NodeId(""),
            driver=group.driver,
            resources=group.resources,
            created_at_ms=draft.now_ms,
            fence=draft.index,
            state_at_ms=draft.now_ms,
            placed_reason=placement.reason,
            health=Health.UNKNOWN if group.checks else Health.NONE,
            history=(HistoryEntry(TaskState.SCHEDULED, draft.now_ms, 1, "", placement.reason),),
        )

    def _place(
        self, job: Job, group: GroupSpec, position: int, node_id: NodeId, ordinal: int
    ) -> str | None:
        draft, placement = self._draft, self._placement
        slot = placement.slots[position]
        replaced = placement.replaces[position] if placement.replaces else ""
        before = self._slots.get(slot, [])
        if before and any(task.live and task.id != replaced for task in before):
            return "slot_taken"
        node = draft.node(node_id)
        if node is None:
            return "not_found"
        reserved = draft.reserved(node_id)
        refusal = node_refusal(node, reserved, group.resources)
        if refusal is not None:
            return refusal
        sources = self._sticky
        if sources and elsewhere(draft, job, placement.group, slot, sources, node_id):
            return "volume"
        ports: tuple[TaskPort, ...] | None = ()
        if group.ports or placement.ports:
            hosts = placement.ports[position] if placement.ports else ()
            ports = ports_for(draft, node, group, hosts)
        if ports is None:
            return "port"
        id_ = self._ids.at(ordinal)
        if id_ in self._placed or draft.task(id_) is not None:
            return "id_taken"
        task = msgspec.structs.replace(
            self._template,
            id=id_,
            slot=slot,
            node_id=node_id,
            address=node.facts.advertise,
            ports=ports,
            reschedules=_reschedules(before) if before else 0,
            replaces=TaskId(replaced),
        )
        draft.hold(task, reserved)
        self._placed[id_] = task
        if sources:
            settle(draft, job, placement.group, slot, sources, node_id)
        for position_before, old in enumerate(before):
            if old.state is TaskState.LOST and want(draft, old, Desired.STOP, "replaced"):
                before[position_before] = draft.task(old.id) or old
        self._slots[slot] = [*before, task]
        return None


def _reschedules(before: list[Task]) -> int:
    """Failed tasks in a row at the end of the slot's past."""
    if not before:
        return 0
    ended = [task for task in before if task.ended]
    if not ended:
        return 0
    newest = max(ended, key=lambda task: (task.created_at_ms, task.id))
    has_failed = newest.state is TaskState.FAILED and newest.reason != PARTITIONED
    return newest.reschedules + 1 if has_failed else 0
