"""What became of each slot that a job wants: pure derivations from state.

Every wanted slot is one of: running, pending, failed, completed; so the counts of a group add up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import immutables
import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.ids import JobId, NodeId, TaskId, task_name
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.spec import JobType
from cube.model.views import GroupCounts

JOBS_REMEMBERED_MAX = 256  # whose slots are kept between requests: more are not watched at once
_LAST = (1 << 63) - 1  # an unplaced slot comes after the tasks that were in it

Place = tuple[str, str, str, int, int, str]  # job, job id, group, slot, created at, id: the order


class SlotState(enum.StrEnum):
    RUNNING = "running"
    PENDING = "pending"
    FAILED = "failed"
    COMPLETED = "completed"


class JobStatus(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class Unplaced(msgspec.Struct, frozen=True):
    """A pending slot that no task stands for."""

    job: Job
    group: str
    slot: int

    @property
    def name(self) -> str:
        return task_name(self.job.name, self.group, self.slot)

    @property
    def place(self) -> Place:
        return (self.job.name, self.job.id, self.group, self.slot, _LAST, self.name)


def place_of(task: Task) -> Place:
    return (task.job, task.job_id, task.group, task.slot, task.created_at_ms, task.id)


class Tally(msgspec.Struct, frozen=True):
    """Of one group. `given_up`: failed slots that are not tried again. `troubled`: slots in which
    something went wrong. `active`: tasks that have not ended, wanted or not."""

    counts: GroupCounts
    given_up: int = 0
    troubled: int = 0
    active: int = 0


class JobSlots(msgspec.Struct, frozen=True):
    """`rows` in the order of their places: every task of the job, every unplaced slot."""

    groups: dict[str, GroupCounts]
    status: JobStatus
    rows: tuple[tuple[Place, Task | Unplaced], ...]


class SlotsOfJobs:
    """slots_of_job, remembered while nothing it depends on has changed."""

    def __init__(self) -> None:
        self._known: dict[JobId, tuple[Job, _Tasks, _Nodes, JobSlots]] = {}
        self._jobs: immutables.Map[JobId, Job] | None = None
        self._ordered: list[Job] = []

    def of(self, state: ClusterState, job: Job) -> JobSlots:
        known = self._known.get(job.id)
        if (
            known is not None
            and known[0] is job
            and known[1] is state.tasks
            and (known[2] is state.nodes or job.spec.type is not JobType.SYSTEM)
        ):
            return known[3]
        slots = slots_of_job(state, job)
        self._known.pop(job.id, None)
        if len(self._known) >= JOBS_REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[job.id] = (job, state.tasks, state.nodes, slots)
        return slots

    def ordered(self, state: ClusterState) -> list[Job]:
        """Every job, deleted ones too, by name and id."""
        if self._jobs is not state.jobs:
            self._ordered = sorted(state.jobs.values(), key=lambda job: (job.name, job.id))
            self._jobs = state.jobs
        return self._ordered


_Tasks = immutables.Map[TaskId, Task]
_Nodes = immutables.Map[NodeId, Node]


def slots_of_job(state: ClusterState, job: Job) -> JobSlots:
    tasks = state.tasks_of_job(job.id)
    by_group: dict[str, dict[int, list[Task]]] = {group: {} for group in job.spec.groups}
    for task in tasks:
        by_group.setdefault(task.group, {}).setdefault(task.slot, []).append(task)
    rows: list[tuple[Place, Task | Unplaced]] = [(place_of(task), task) for task in tasks]
    tallies: dict[str, Tally] = {}
    for group in job.spec.groups:
        tally, unplaced = tally_group(job, group, by_group[group], _accepting(state))
        tallies[group] = tally
        rows.extend((row.place, row) for row in unplaced)
    rows.sort(key=lambda row: row[0])
    orphans = sum(task.group not in job.spec.groups and not task.ended for task in tasks)
    return JobSlots(
        groups={group: tally.counts for group, tally in tallies.items()},
        status=job_status(job, tallies.values(), orphans),
        rows=tuple(rows),
    )


def _accepting(state: ClusterState) -> int:
    return sum(node.accepts_tasks for node in state.nodes.values())


def tally_group(
    job: Job, group: str, by_slot: dict[int, list[Task]], nodes_accepting: int
) -> tuple[Tally, list[Unplaced]]:
    """`by_slot`: the group's tasks, each slot's by age."""
    active = sum(not task.ended for tasks in by_slot.values() for task in tasks)
    running = sum(
        any(task.state is TaskState.RUNNING for task in tasks) for tasks in by_slot.values()
    )
    spec = job.spec.groups[group]
    wanted = _wanted_slots(job, group, by_slot)
    if job.stopped or job.deleted:
        counts = GroupCounts(count=spec.count, running=running)
        return Tally(counts, active=active), []
    found = dict.fromkeys(SlotState, 0)
    unplaced: list[Unplaced] = []
    healthy = given_up = troubled = 0
    for slot in wanted:
        tasks = by_slot.get(slot, [])
        state = slot_state(job, tasks)
        found[state] += 1
        healthy += any(task.live and task.serving for task in tasks)
        troubled += bool(tasks) and _is_troubled(tasks[-1])
        if state is SlotState.PENDING and not any(task.live for task in tasks):
            unplaced.append(Unplaced(job, group, slot))
        if state is SlotState.FAILED:
            given_up += 0 < spec.reschedule.attempts <= tasks[-1].reschedules
    count = len(wanted)
    if job.spec.type is JobType.SYSTEM and not spec.placement.constraints:
        missing = max(0, nodes_accepting - count)
        count += missing
        found[SlotState.PENDING] += missing
    counts = GroupCounts(
        count=count,
        running=running,
        healthy=healthy,
        pending=found[SlotState.PENDING],
        failed=found[SlotState.FAILED],
        completed=found[SlotState.COMPLETED],
    )
    return Tally(counts, given_up, troubled, active), unplaced


def _wanted_slots(job: Job, group: str, by_slot: dict[int, list[Task]]) -> list[int]:
    """System and cron jobs have no count: what is there is what is wanted."""
    if job.spec.type in (JobType.SERVICE, JobType.BATCH):
        return list(range(job.spec.groups[group].count))
    return sorted(
        slot
        for slot, tasks in by_slot.items()
        if any(task.live for task in tasks) or slot_state(job, tasks) is not SlotState.PENDING
    )


def slot_state(job: Job, tasks: list[Task]) -> SlotState:
    """Of a wanted slot with these tasks, by age."""
    live = [task for task in tasks if task.live]
    if live:
        is_running = any(task.state is TaskState.RUNNING for task in live)
        return SlotState.RUNNING if is_running else SlotState.PENDING
    if not tasks:
        return SlotState.PENDING
    newest = tasks[-1]
    if newest.state is TaskState.FAILED and newest.desired is Desired.RUN:
        return SlotState.FAILED
    if (
        newest.state is TaskState.COMPLETED
        and newest.desired is Desired.RUN
        and job.spec.type in (JobType.BATCH, JobType.CRON)
    ):
        return SlotState.COMPLETED
    return SlotState.PENDING


def _is_troubled(newest: Task) -> bool:
    return (
        newest.attempt > 1
        or newest.reschedules > 0
        or newest.health is Health.UNHEALTHY
        or newest.state in (TaskState.FAILED, TaskState.REJECTED, TaskState.LOST)
    )


def job_status(job: Job, tallies: Iterable[Tally], orphans: int = 0) -> JobStatus:
    """One word for a whole job. `orphans`: unfinished tasks of groups that it has no more.

    A service or system job is `running` when every slot serves, `pending` when none does and
    nothing went wrong, `failed` when every slot was given up, else `degraded`.
    """
    found = list(tallies)
    if job.stopped:
        is_active = orphans or any(tally.active for tally in found)
        return JobStatus.STOPPING if is_active else JobStatus.STOPPED
    count = sum(tally.counts.count for tally in found)
    if job.spec.type is JobType.BATCH:
        return _batch_status(found, count)
    if job.spec.type is JobType.CRON:
        is_running = any(tally.counts.running for tally in found)
        return JobStatus.RUNNING if is_running else JobStatus.PENDING
    healthy = sum(tally.counts.healthy for tally in found)
    if healthy >= count and (count or job.spec.type is JobType.SERVICE):
        return JobStatus.RUNNING
    if count and sum(tally.given_up for tally in found) == count:
        return JobStatus.FAILED
    if not healthy and not any(tally.troubled for tally in found):
        return JobStatus.PENDING
    return JobStatus.DEGRADED


def _batch_status(tallies: list[Tally], count: int) -> JobStatus:
    completed = sum(tally.counts.completed for tally in tallies)
    given_up = sum(tally.given_up for tally in tallies)
    if completed == count:
        return JobStatus.COMPLETED
    if given_up and completed + given_up == count:
        return JobStatus.FAILED
    if completed or any(tally.counts.running for tally in tallies):
        return JobStatus.RUNNING
    return JobStatus.PENDING
