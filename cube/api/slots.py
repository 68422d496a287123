"""What became of each slot that a job wants: pure derivations from state.

Every wanted slot is one of: running, pending, failed, completed; so the counts of a group add up.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import immutables
import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.cronrun import CronState, RunStatus
from cube.model.ids import JobId, NodeId, TaskId, task_name
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.model.tally import GroupTally
from cube.model.taskids import JobTaskIds
from cube.model.views import GroupCounts
from cube.scheduler import dependencies, filters
from cube.scheduler.restart import past_of, up_to_date

STANDINGS_MAX = 2_000  # jobs of whom only counts are kept
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
    """Of one group. `given_up`: slots that are not tried again, or never will be. `troubled`: slots in
    which something went wrong. `active`: tasks that have not ended, wanted or not."""

    counts: GroupCounts
    given_up: int = 0
    troubled: int = 0
    active: int = 0


class Standing(msgspec.Struct, frozen=True):
    """What there is to say of a job as a whole."""

    groups: dict[str, GroupCounts]
    status: JobStatus


class JobSlots(Standing, frozen=True):
    """`rows` in the order of their places: every task of the job, every unplaced slot."""

    rows: tuple[tuple[Place, Task | Unplaced], ...]


class SlotsOfJobs:
    """slots_of_job, remembered while nothing it depends on has changed."""

    def __init__(self) -> None:
        self.looks = 0  # at tasks, for jobs of whom nothing was known
        self._standings: dict[JobId, tuple[Job, JobTaskIds, Standing]] = {}
        self._known: dict[JobId, tuple[Job, _Mark, _Nodes, JobSlots]] = {}
        self._jobs: immutables.Map[JobId, Job] | None = None
        self._ordered: list[Job] = []

    def of(self, state: ClusterState, job: Job) -> JobSlots:
        mark = _mark(state, job)
        known = self._known.get(job.id)
        if (
            known is not None
            and known[0] is job
            and known[1] is mark
            and (known[2] is state.nodes or job.spec.type is not JobType.SYSTEM)
        ):
            return known[3]
        slots = _slots_if_whole(state, job) or slots_of_job(state, job)
        self._known.pop(job.id, None)
        if len(self._known) >= JOBS_REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[job.id] = (job, mark, state.nodes, slots)
        return slots

    def standing(self, state: ClusterState, job: Job) -> Standing:
        """As `of` has it, and for most jobs in a tenth of the time."""
        ids = state.ids_of_job(job.id)
        known = self._standings.get(job.id)
        if known is not None and known[0] is job and known[1] is ids:
            return known[2]
        self.looks += len(ids) if ids.tally is None else 0
        standing = _standing_if_whole(state, job)
        if standing is None:
            return self.of(state, job)
        self._standings.pop(job.id, None)
        if len(self._standings) >= STANDINGS_MAX:
            del self._standings[next(iter(self._standings))]
        self._standings[job.id] = (job, ids, standing)
        return standing

    def ordered(self, state: ClusterState) -> list[Job]:
        """Every job, deleted ones too, by name and id."""
        if self._jobs is not state.jobs:
            self._ordered = sorted(state.jobs.values(), key=lambda job: (job.name, job.id))
            self._jobs = state.jobs
        return self._ordered


_Nodes = immutables.Map[NodeId, Node]
_Mark = JobTaskIds | immutables.Map[TaskId, Task]


def _mark(state: ClusterState, job: Job) -> _Mark:
    """Another object whenever one of the tasks has changed that the job's slots depend on: of a cron
    job those of its runs."""
    return state.ids_of_job(job.id) if job.cron is None else state.tasks


def slots_of_job(state: ClusterState, job: Job) -> JobSlots:
    """Of a cron job: what became of its newest run, whose rows are its own."""
    if job.cron is not None:
        return _slots_of_cron(state, job, job.cron)
    tasks = state.tasks_of_job(job.id)
    rows: list[tuple[Place, Task | Unplaced]] = [(place_of(task), task) for task in tasks]
    tallies: dict[str, Tally] = {}
    for group in job.spec.groups:
        mine = [task for task in tasks if task.group == group]
        tallies[group], unplaced = tally_group(state, job, group, mine)
        rows.extend((row.place, row) for row in unplaced)
    rows.sort(key=lambda row: row[0])
    given_up = [group for group, tally in tallies.items() if tally.given_up]
    if job.spec.type is JobType.BATCH and given_up:
        started = {task.group for task in tasks}
        for group in dependencies.never_met(job.spec, given_up) - started:
            tally = tallies[group]
            tallies[group] = msgspec.structs.replace(tally, given_up=tally.counts.pending)
    orphans = sum(task.group not in job.spec.groups and not task.ended for task in tasks)
    return JobSlots(
        groups={group: tally.counts for group, tally in tallies.items()},
        status=job_status(job, tallies.values(), orphans),
        rows=tuple(rows),
    )


def _standing_if_whole(state: ClusterState, job: Job) -> Standing | None:
    """Of a service none of whose tasks has ended or is to, and no two have one slot. None: it takes
    more."""
    if job.spec.type is not JobType.SERVICE or job.stopped or job.deleted:
        return None
    groups, found = job.spec.groups, state.tally_of_job(job.id)
    if any(
        name not in groups or not tally.is_one_each(groups[name].count)
        for name, tally in found.items()
    ):
        return None
    tallies = {
        name: _of_whole(group.count, found.get(name, _NO_TASKS)) for name, group in groups.items()
    }
    counts = {name: tally.counts for name, tally in tallies.items()}
    return Standing(counts, job_status(job, tallies.values()))


_NO_TASKS = GroupTally()


def _of_whole(count: int, tally: GroupTally) -> Tally:
    return Tally(
        GroupCounts(
            count=count,
            running=tally.running,
            healthy=tally.healthy,
            pending=count - tally.running,
        ),
        troubled=tally.troubled,
        active=tally.tasks,
    )


def _slots_if_whole(state: ClusterState, job: Job) -> JobSlots | None:
    """What slots_of_job would find, when each wanted slot has one task; None: not so."""
    standing = _standing_if_whole(state, job)
    wanted = sum([group.count for group in job.spec.groups.values()])
    if standing is None or wanted != len(state.ids_of_job(job.id)):
        return None
    rows: list[tuple[Place, Task | Unplaced]]
    rows = [(place_of(task), task) for task in state.tasks_of_job(job.id)]
    rows.sort(key=lambda row: row[0])
    return JobSlots(standing.groups, standing.status, tuple(rows))


def _slots_of_cron(state: ClusterState, job: Job, cron: CronState) -> JobSlots:
    groups = {name: GroupCounts(count=group.count) for name, group in job.spec.groups.items()}
    newest = next((run for run in reversed(cron.runs) if run.job_id), None)
    child = None if newest is None else state.jobs.get(newest.job_id)
    if newest is None or child is None:
        return JobSlots(groups, JobStatus.STOPPED if job.stopped else JobStatus.PENDING, ())
    if not newest.active and newest.status is not RunStatus.STOPPED:
        child = msgspec.structs.replace(child, stopped=False)  # as it was when it ended
    groups |= slots_of_job(state, child).groups
    return JobSlots(groups, _cron_status(job, cron), ())


def _cron_status(job: Job, cron: CronState) -> JobStatus:
    """`running` while a run is, else what the last finished one came to."""
    if job.stopped:
        return JobStatus.STOPPING if cron.active else JobStatus.STOPPED
    if cron.active:
        return JobStatus.RUNNING
    for run in reversed(cron.runs):
        if run.status is RunStatus.COMPLETED:
            return JobStatus.COMPLETED
        if run.status is RunStatus.FAILED:
            return JobStatus.FAILED
    return JobStatus.PENDING


def tally_group(
    state: ClusterState, job: Job, group: str, tasks: list[Task]
) -> tuple[Tally, list[Unplaced]]:
    """`tasks` of the group, each slot's by age."""
    spec = job.spec.groups[group]
    by_slot: dict[int, list[Task]] = {}
    for task in tasks:
        by_slot.setdefault(task.slot, []).append(task)
    active = sum(not task.ended for task in tasks)
    running = sum(
        any(task.state is TaskState.RUNNING for task in found) for found in by_slot.values()
    )
    if job.stopped or job.deleted:
        return Tally(GroupCounts(count=spec.count, running=running), active=active), []
    found = dict.fromkeys(SlotState, 0)
    unplaced: list[Unplaced] = []
    healthy = given_up = troubled = 0
    wanted = _wanted_slots(state, job, spec, by_slot)
    for slot, slot_tasks in wanted:
        slot_state, is_over = state_of_slot(state, job, spec, slot_tasks)
        found[slot_state] += 1
        given_up += is_over
        healthy += any(task.live and task.serving for task in slot_tasks)
        troubled += bool(slot_tasks) and _is_troubled(slot_tasks[-1])
        is_placed = any(task.live for task in slot_tasks)
        if slot_state is SlotState.PENDING and not is_placed and slot is not None:
            unplaced.append(Unplaced(job, group, slot))
    counts = GroupCounts(
        count=len(wanted),
        running=running,
        healthy=healthy,
        pending=found[SlotState.PENDING],
        failed=found[SlotState.FAILED],
        completed=found[SlotState.COMPLETED],
    )
    return Tally(counts, given_up, troubled, active), unplaced


def _wanted_slots(
    state: ClusterState, job: Job, spec: GroupSpec, by_slot: dict[int, list[Task]]
) -> list[tuple[int | None, list[Task]]]:
    """With their tasks. A slot without a number (None) was never placed and is nobody's yet."""
    match job.spec.type:
        case JobType.SERVICE | JobType.BATCH:
            return [(slot, by_slot.get(slot, [])) for slot in range(spec.count)]
        case JobType.CRON:  # its runs are jobs of their own
            return []
        case JobType.SYSTEM:
            return _system_slots(state, spec, by_slot)


def _system_slots(
    state: ClusterState, spec: GroupSpec, by_slot: dict[int, list[Task]]
) -> list[tuple[int | None, list[Task]]]:
    """One for each node of the right kind that takes tasks or has one."""
    by_node: dict[NodeId, tuple[int, list[Task]]] = {}
    for slot, tasks in sorted(by_slot.items()):
        by_node[tasks[-1].node_id] = (slot, tasks)
    wanted: list[tuple[int | None, list[Task]]] = []
    context = filters.Context(state, spec, state.now_ms)
    for node in sorted(state.nodes.values(), key=lambda node: (node.name, node.id)):
        is_right = (
            spec.driver.value in node.facts.drivers and filters.constraints(context, node) is None
        )
        here = by_node.get(node.id)
        if is_right and here is not None and (node.accepts_tasks or any(t.live for t in here[1])):
            wanted.append(here)
        elif is_right and here is None and node.accepts_tasks:
            wanted.append((None, []))
    return wanted


def state_of_slot(
    state: ClusterState, job: Job, spec: GroupSpec, tasks: list[Task]
) -> tuple[SlotState, bool]:
    """Of a wanted slot with these tasks, by age; and whether it was given up."""
    live = [task for task in tasks if task.live]
    if live:
        is_running = any(task.state is TaskState.RUNNING for task in live)
        return (SlotState.RUNNING if is_running else SlotState.PENDING), False
    if not tasks or not all(task.ended for task in tasks):
        return SlotState.PENDING, False
    past = past_of(job, spec, tasks, state.nodes, state.now_ms)
    if past.verdict == "done":
        return SlotState.COMPLETED, False
    if past.verdict == "over":
        return SlotState.FAILED, True
    newest = tasks[-1]
    has_failed = newest.state is TaskState.FAILED and newest.desired is Desired.RUN
    if has_failed and up_to_date(job, newest):
        return SlotState.FAILED, False
    return SlotState.PENDING, False


def _is_troubled(newest: Task) -> bool:
    return (
        newest.attempt > 1
        or newest.reschedules > 0
        or newest.health is Health.UNHEALTHY
        or newest.state in (TaskState.FAILED, TaskState.REJECTED, TaskState.LOST)
    )


def job_status(job: Job, tallies: Iterable[Tally], orphans: int = 0) -> JobStatus:
    """One word for a whole job. `orphans`: unfinished tasks of groups that it has no more.

    A service or system job is `running` when every slot serves (or was done and is not restarted),
    `pending` when none does and nothing went wrong, `failed` when every slot was given up, else
    `degraded`.
    """
    found = list(tallies)
    if job.stopped:
        is_active = orphans or any(tally.active for tally in found)
        return JobStatus.STOPPING if is_active else JobStatus.STOPPED
    count = sum(tally.counts.count for tally in found)
    if job.spec.type is JobType.BATCH:
        return _batch_status(found, count)
    healthy = sum(tally.counts.healthy for tally in found)
    completed = sum(tally.counts.completed for tally in found)
    if count and completed == count:
        return JobStatus.COMPLETED
    if healthy + completed >= count and (count or job.spec.type is JobType.SERVICE):
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
