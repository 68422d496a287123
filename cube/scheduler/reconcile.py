"""Wanted against actual, one job at a time: which slots want a node, which tasks stop, change version
or are forgotten. No placing here, and no numpy: every node can ask for the sake of `why`.

Source of the shape: hashicorp/nomad scheduler/reconciler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cube.model.cluster import ClusterState, Job, Task
from cube.model.deployment import DeploymentStatus
from cube.model.ids import NodeId
from cube.model.lifecycle import ENDED, Desired
from cube.model.spec import GroupSpec, JobType
from cube.model.taskids import JobTaskIds
from cube.scheduler import cron, homes, trouble
from cube.scheduler.deployments import deadline_ms, judge
from cube.scheduler.group_pass import NEW, GroupPass, Vacancy, count_by_node, placed_reason
from cube.scheduler.slots import JobWork, Waiting, WorkDraft, reap_beyond, reap_surplus, slots_of
from cube.scheduler.system import SystemPass
from cube.scheduler.want import Want

TALLIED_MIN = 32  # tasks of a job; see _is_tallied


def draining_nodes(state: ClusterState) -> frozenset[NodeId]:
    return frozenset(
        [node.id for node in state.nodes.values() if node.drain_deadline_ms is not None]
    )


def at_rest(state: ClusterState, job: Job, draining: frozenset[NodeId]) -> bool:
    """True for sure when each slot has one live task of the newest version and nothing else, on a
    node that stays. The common case, made cheap: it is asked for each job that had an event."""
    deployment = job.deployment
    if deployment is not None and deployment.may_be_decided:
        return False
    if job.stopped or job.deleted or job.spec.type not in (JobType.SERVICE, JobType.BATCH):
        return False
    ids = state.ids_of_job(job.id)
    groups = job.spec.groups
    if len(ids) != sum([group.count for group in groups.values()]) or (job.parent and not ids):
        return False
    if not draining and _is_tallied(ids):
        return _is_whole(state, job)
    slots: dict[str, set[int]] = {name: set() for name in groups}
    tasks, version = state.tasks, job.version
    for task_id in ids:
        task = tasks[task_id]
        if (
            task.version != version
            or task.desired is not Desired.RUN
            or task.state in ENDED
            or task.node_id in draining
            or task.group not in slots
        ):
            return False
        slots[task.group].add(task.slot)
    return all(
        len(slots[name]) == group.count and max(slots[name], default=-1) < group.count
        for name, group in groups.items()
    )


def _is_tallied(ids: JobTaskIds) -> bool:
    """Of few tasks each is looked at sooner than they are counted."""
    return ids.tally is not None or len(ids) >= TALLIED_MIN


def _is_whole(state: ClusterState, job: Job) -> bool:
    """Each slot has one live task of the newest version, and there is no other task."""
    groups, tallies = job.spec.groups, state.tally_of_job(job.id)
    if tallies.keys() != {name for name, group in groups.items() if group.count}:
        return False
    return all(
        tally.tasks == groups[name].count == tally.versions.get(job.version)
        and tally.is_one_each(groups[name].count)
        for name, tally in tallies.items()
    )


def comes_up(
    state: ClusterState, job: Job, now_ms: int, draining: frozenset[NodeId]
) -> JobWork | None:
    """As only_waits, and without a look at the tasks; for fewer jobs, and woken earlier: while the
    time that a rollout has for its first task has not passed."""
    if (
        draining
        or not _is_tallied(state.ids_of_job(job.id))
        or job.stopped
        or job.deleted
        or job.spec.type is not JobType.SERVICE
        or any(group.canaries for group in job.spec.groups.values())
    ):
        return None
    fails_ms = deadline_ms(job, 0)  # None: no rollout is under way
    if fails_ms is None or fails_ms <= now_ms or not _is_whole(state, job):
        return None
    tallies = state.tally_of_job(job.id).values()
    is_up = all(tally.healthy == tally.tasks for tally in tallies)
    return None if is_up else JobWork(wake_at_ms=fails_ms)


def only_waits(
    state: ClusterState, job: Job, now_ms: int, draining: frozenset[NodeId]
) -> JobWork | None:
    """What reconcile would find while a rollout's tasks come up and nothing is wrong with them: each
    slot has one live task of the newest version and nothing else, some do not serve yet, and the
    deadline has not passed. None: not so, or not for sure. Asked at each event of such a job, so it
    looks at each task once, and no longer than it must."""
    deployment = job.deployment
    if deployment is None or deployment.status is not DeploymentStatus.RUNNING:
        return None
    groups = job.spec.groups
    if (
        job.stopped
        or job.deleted
        or job.spec.type is not JobType.SERVICE
        or any(group.canaries for group in groups.values())
    ):
        return None
    ids = state.ids_of_job(job.id)
    if len(ids) != sum([group.count for group in groups.values()]):
        return None
    settle_ms = {name: group.update.min_healthy_ms for name, group in groups.items()}
    slots: dict[str, set[int]] = {name: set() for name in groups}
    tasks, version = state.tasks, job.version
    came_up_ms, due_ms, is_settled = 0, 0, True
    for task_id in ids:
        task = tasks[task_id]
        name = task.group
        if (
            task.version != version
            or task.desired is not Desired.RUN
            or task.state in ENDED
            or task.node_id in draining
            or name not in slots
        ):
            return None
        slots[name].add(task.slot)
        if not task.serving:
            is_settled = False
            continue
        since_ms = task.serving_since_ms
        came_up_ms = max(came_up_ms, since_ms)
        settles_ms = since_ms + settle_ms[name]
        if settles_ms > now_ms:
            is_settled = False
            due_ms = settles_ms if due_ms == 0 else min(due_ms, settles_ms)
    if is_settled or any(
        len(slots[name]) != group.count or max(slots[name], default=-1) >= group.count
        for name, group in groups.items()
    ):
        return None
    fails_ms = deadline_ms(job, came_up_ms)
    if fails_ms is None or fails_ms <= now_ms:
        return None
    return JobWork(wake_at_ms=min(fails_ms, due_ms) if due_ms else fails_ms)


def reconcile(
    state: ClusterState, job: Job, now_ms: int, silent_ms: Mapping[NodeId, int] | None = None
) -> JobWork:
    """What is to do for the job. `silent_ms`: see singleton.held."""
    draft = WorkDraft(state, job, now_ms, silent_ms)
    by_group: dict[str, list[Task]] = {}
    tasks_of_job = state.tasks_of_job(job.id)
    for task in tasks_of_job:
        by_group.setdefault(task.group, []).append(task)
    if job.spec.type is JobType.CRON:
        _scheduled(draft)
        return draft.done()
    groups: Mapping[str, GroupSpec] = {} if job.deleted else job.spec.groups
    passes: list[GroupPass] = []
    for name in in_order(groups, by_group):
        tasks = by_group.get(name, [])
        group = groups.get(name)
        if group is None:
            _vanished(draft, tasks)
        elif job.stopped:
            _resting(draft, tasks)
        else:
            is_behind = any(
                draft.progress[other].unsettled > 0
                for other in group.depends_on
                if other in draft.progress
            )
            if job.spec.type is JobType.SYSTEM:
                passes.append(SystemPass(draft, name, group, tasks).run(is_behind))
            else:
                passes.append(_counted(draft, name, group, tasks, is_behind))
    homes.pin(draft)
    judge(draft, passes, any(name not in groups for name in by_group if _has_live(by_group[name])))
    if job.parent:
        over = cron.end_of(state, job, tasks_of_job, now_ms)
        if over is not None:
            draft.run_ends.append(over)
    return draft.done()


def _scheduled(draft: WorkDraft) -> None:
    """cron: its runs are jobs of their own."""
    decision = cron.decide(draft.job, draft.now_ms)
    if decision.step is not None:
        draft.run_steps.append(decision.step)
    if decision.problem:
        draft.waiting.append(Waiting("", (), "schedule", 0, decision.problem))
    draft.wake(decision.wake_at_ms)


def _has_live(tasks: Sequence[Task]) -> bool:
    return any(task.live for task in tasks)


def in_order(groups: Mapping[str, GroupSpec], others: Iterable[str]) -> list[str]:
    """Groups by name, but what one depends on before it; then what is no group any more."""
    ordered: dict[str, None] = {}
    under_way: set[str] = set()

    def visit(name: str) -> None:
        if name in ordered or name in under_way:
            return
        under_way.add(name)
        for other in groups[name].depends_on:
            if other in groups:
                visit(other)
        ordered[name] = None

    for name in sorted(groups):
        visit(name)
    ordered.update(dict.fromkeys(sorted(set(others) - set(groups))))
    return list(ordered)


def _vanished(draft: WorkDraft, tasks: Sequence[Task]) -> None:
    """The group is in no newer version of the job."""
    for slot in slots_of(tasks).values():
        draft.stops.extend((task.id, "group_removed") for task in slot.live)
        reap_beyond(draft, slot)


def _resting(draft: WorkDraft, tasks: Sequence[Task]) -> None:
    """Nothing is to run (apply has said so to the tasks)."""
    for slot in slots_of(tasks).values():
        reap_surplus(draft, slot)


_Kind = tuple[tuple[tuple[NodeId, int], ...], NodeId | None, int]


def _counted(
    draft: WorkDraft, name: str, group: GroupSpec, tasks: Sequence[Task], is_behind: bool
) -> GroupPass:
    """service and batch: slots 0..count-1."""
    slots = slots_of(tasks)
    one = GroupPass(draft, name, group, slots, tasks)
    for number, slot in slots.items():
        if number < group.count:
            one.look_at(number)
        else:
            draft.stops.extend((task.id, "scale_down") for task in slot.live)
            one.progress.unsettled += bool(slot.live)
            reap_beyond(draft, slot)
    one.fresh = range(group.count)
    if slots:
        one.fresh = [number for number in one.fresh if number not in slots]
    one.finish(is_behind)
    if not one.may_start(tasks):
        return one
    on_node = count_by_node(tasks)
    troubled = tuple(trouble.troubled(draft.job, group, tasks, draft.now_ms))
    # Slots that are closed to the same nodes are placed together.
    alike: dict[_Kind, tuple[Vacancy, list[int]]] = {}
    if one.fresh:
        newest = draft.job.version
        alike[(), None, newest] = (Vacancy(NEW, newest), list(one.fresh))
    for number, vacancy in one.empty.items():
        past = vacancy.past
        kind = (tuple(past.avoid.items()), past.failed_on, vacancy.version)
        alike.setdefault(kind, (vacancy, []))[1].append(number)
    for vacancy, numbers in alike.values():
        past = vacancy.past
        draft.wants.append(
            Want(
                job=draft.job,
                group=name,
                spec=one.template(vacancy.version),
                version=vacancy.version,
                slots=tuple(sorted(numbers)),
                avoid=past.avoid,
                failed_on=() if past.failed_on is None else (past.failed_on,),
                troubled=troubled,
                on_node=on_node,
                reason=placed_reason(past),
            )
        )
        for until_ms in past.avoid.values():
            draft.wake(until_ms)
    return one
