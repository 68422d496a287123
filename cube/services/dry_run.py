"""What would come of a command: it is given to a fork of the state, and what the fork comes to is
compared with the state, slot by slot. Pure, on any node; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cube.model import commands as c
from cube.model.cluster import ClusterState, Job, Task
from cube.model.dryrun import DryRun, GroupEffect, JobEffect, Move
from cube.model.explain import Explanation
from cube.model.ids import JobId
from cube.model.outcome import JobAccepted, Rejected
from cube.scheduler.restart import completed_by_itself
from cube.scheduler.why import explain, explain_job
from cube.services.simulation import Simulation

NEW_JOB = JobId("dry-run")  # an id that no job has: they are UUIDs

Foreseeable = c.SubmitJob | c.SetDrain | c.SetNodeStatus
Slots = dict[tuple[str, int], list[Task]]


def foresee(state: ClusterState, now_ms: int, body: Foreseeable) -> DryRun:
    """What the command would come to, once everything that follows from it is at rest."""
    fork = Simulation(state, now_ms)
    if isinstance(body, c.SubmitJob):
        outcome = fork.do(msgspec.structs.replace(body, new_id=NEW_JOB))
        about = {outcome.job_id} if isinstance(outcome, JobAccepted) else set()
    else:
        tasks = state.tasks_of_node(body.node_id)
        about = {task.job_id for task in tasks if not task.ended}
        if isinstance(body, c.SetNodeStatus):
            body = msgspec.structs.replace(body, term=state.term)
        outcome = fork.do(body)
    if isinstance(outcome, Rejected):
        return DryRun(outcome, state.index)
    fork.run(about, to_completion=isinstance(body, c.SubmitJob))
    return DryRun(outcome, state.index, effects(state, fork, about), fork.cut)


def effects(
    before: ClusterState, fork: Simulation, about: Iterable[JobId]
) -> tuple[JobEffect, ...]:
    """Of the jobs that it is about, and of others in which something changed, by name."""
    asked = set(about)
    found: list[JobEffect] = []
    for job_id in asked | fork.touched:
        job = fork.state.jobs.get(job_id)
        if job is None:
            continue
        effect = _effect(before, fork, job)
        is_changed = effect.displaced or any(one.changes for one in effect.groups.values())
        if job_id in asked or is_changed:
            found.append(effect)
    return tuple(sorted(found, key=lambda effect: effect.job))


def _effect(before: ClusterState, fork: Simulation, job: Job) -> JobEffect:
    explanations = _explanations(fork, job)
    was, is_ = _slots(before, job.id), _slots(fork.state, job.id)
    placeless = _placeless(explanations, is_)
    counts: dict[str, dict[str, int]] = {}
    moves: list[Move] = []
    displaced = 0
    for group, slot in sorted({*was, *is_, *placeless}):
        old = _live(was.get((group, slot), []))
        new = _newest(is_.get((group, slot), []))
        kind = _kind(before, old, new, (group, slot) in placeless)
        if kind is None:
            continue
        counted = counts.setdefault(group, {})
        counted[kind] = counted.get(kind, 0) + 1
        displaced += kind == "unplaced" and old is not None and new is None
        if kind != "update_in_place" and (new is None or new is not old):
            to = new if kind in ("create", "replace") else None
            moves.append(Move(group, slot, _where(before, old), _where(fork.state, to)))
    groups = {group: GroupEffect(**counted) for group, counted in sorted(counts.items())}
    fails = fork.halted.get(job.id, "")
    return JobEffect(job.name, groups, tuple(moves), explanations, displaced, fails)


def _explanations(fork: Simulation, job: Job) -> tuple[Explanation, ...]:
    if job.deleted:
        return ()
    if job.parent:  # a run of a cron job: its name is the cron job's
        return tuple(explain_job(fork.state, fork.now_ms, job))
    return tuple(explain(fork.state, fork.now_ms, job.name))


def _kind(before: ClusterState, old: Task | None, new: Task | None, placeless: bool) -> str | None:
    """The member of GroupEffect that the slot counts for."""
    if new is not None and new.id not in before.tasks:
        return "create" if old is None else "replace"
    if placeless:
        return "unplaced"
    if new is None:
        return None if old is None else "stop"
    if old is not None and old.id == new.id and old.version != new.version:
        return "update_in_place"
    return None


def _placeless(explanations: Iterable[Explanation], slots: Slots) -> set[tuple[str, int]]:
    """Slots that want a task and have no place for it, or wait for something that does not come."""
    return {
        (one.group, slot)
        for one in explanations
        for slot in one.slots
        if one.kind == "unplaced"
        or (one.kind in ("waiting", "failing") and _live(slots.get((one.group, slot), [])) is None)
    }


def _slots(state: ClusterState, job_id: JobId) -> Slots:
    found: Slots = {}
    for task in state.tasks_of_job(job_id):
        found.setdefault((task.group, task.slot), []).append(task)
    return found


def _live(tasks: list[Task]) -> Task | None:
    """The slot's task that is to run; the newest, where one takes over from another."""
    return max((task for task in tasks if task.live), key=lambda task: task.fence, default=None)


def _newest(tasks: list[Task]) -> Task | None:
    """The same afterwards; of a batch, what has completed counts."""
    live = _live(tasks)
    if live is None and tasks and completed_by_itself(tasks[-1]):
        return tasks[-1]
    return live


def _where(state: ClusterState, task: Task | None) -> str:
    if task is None:
        return ""
    node = state.nodes.get(task.node_id)
    return task.node_id if node is None else node.name
