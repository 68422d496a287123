"""The slots of one group: what each holds, and what that asks for. Shared by all job types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Task
from cube.model.commands import RunEnd, RunStep
from cube.model.ids import NodeId, TaskId
from cube.model.lifecycle import TaskState
from cube.model.spec import GroupSpec, JobType
from cube.model.volumes import volumes_of
from cube.scheduler import cron, dependencies, reap, rollout
from cube.scheduler.restart import SlotPast, past_of, up_to_date
from cube.scheduler.want import Want

NEW = SlotPast("place")  # of a slot that never had a task
_PLACED_REASON = {
    TaskState.LOST: "lost",
    TaskState.FAILED: "failed",
    TaskState.REJECTED: "rejected",
}


class Waiting(msgspec.Struct, frozen=True):
    """Slots of a group that get nothing now. `cause`: depends_on, backoff, returning, at_most_one,
    over, run (an earlier run has not ended), schedule. `until_ms` 0: no timer ends it."""

    group: str
    slots: tuple[int, ...]
    cause: str
    until_ms: int = 0
    detail: str = ""


class JobWork(msgspec.Struct, frozen=True):
    """All that is to do for one job at one moment. `wake_at_ms`: when that may change by itself."""

    wants: tuple[Want, ...] = ()
    stops: tuple[tuple[TaskId, str], ...] = ()
    updates: tuple[tuple[TaskId, int], ...] = ()
    reaps: tuple[TaskId, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    wake_at_ms: int | None = None
    run_ends: tuple[RunEnd, ...] = ()
    run_steps: tuple[RunStep, ...] = ()

    @property
    def idle(self) -> bool:
        """Nothing to do, and nothing that waits for anything but a change of the job itself."""
        return self == _IDLE

    @property
    def asleep(self) -> bool:
        """Nothing to do until `wake_at_ms`, unless the job itself changes."""
        return self.wake_at_ms is not None and self == JobWork(wake_at_ms=self.wake_at_ms)


_IDLE = JobWork()


class WorkDraft:
    """What one job's pass has found so far."""

    def __init__(self, state: ClusterState, job: Job, now_ms: int) -> None:
        self.state = state
        self.job = job
        self.now_ms = now_ms
        self.wants: list[Want] = []
        self.stops: list[tuple[TaskId, str]] = []
        self.updates: list[tuple[TaskId, int]] = []
        self.reaps: list[TaskId] = []
        self.waiting: list[Waiting] = []
        self.wake_at_ms: int | None = None
        self.run_ends: list[RunEnd] = []
        self.run_steps: list[RunStep] = []

    def wake(self, at_ms: int | None) -> None:
        if at_ms is not None and at_ms > self.now_ms:
            self.wake_at_ms = at_ms if self.wake_at_ms is None else min(self.wake_at_ms, at_ms)

    def done(self) -> JobWork:
        runs = self.run_ends or self.run_steps
        if not (self.wants or self.stops or self.updates or self.reaps or self.waiting or runs):
            return _IDLE if self.wake_at_ms is None else JobWork(wake_at_ms=self.wake_at_ms)
        return JobWork(
            tuple(self.wants),
            tuple(self.stops),
            tuple(self.updates),
            tuple(self.reaps),
            tuple(self.waiting),
            self.wake_at_ms,
            tuple(self.run_ends),
            tuple(self.run_steps),
        )


class Slot:
    """One slot's tasks, each list oldest first."""

    __slots__ = ("ended", "live", "stopping")

    def __init__(self) -> None:
        self.live: list[Task] = []
        self.stopping: list[Task] = []  # not ended, not wanted
        self.ended: list[Task] = []

    def serves(self) -> bool:
        return any(task.serving for task in self.live)


def slots_of(tasks: Sequence[Task]) -> dict[int, Slot]:
    """By number. `tasks` in order of slot and age."""
    slots: dict[int, Slot] = {}
    for task in tasks:
        slot = slots.get(task.slot)
        if slot is None:
            slot = slots[task.slot] = Slot()
        if task.ended:
            slot.ended.append(task)
        elif task.live:
            slot.live.append(task)
        else:
            slot.stopping.append(task)
    return slots


def reap_beyond(draft: WorkDraft, slot: Slot) -> None:
    due, later_ms = reap.beyond(slot.ended, draft.now_ms)
    draft.reaps.extend(task.id for task in due)
    draft.wake(later_ms)


def _keep_one(draft: WorkDraft, slot: Slot) -> Task | None:
    """The live task that holds the slot; the others are stopped."""
    if not slot.live:
        return None
    kept = min(slot.live, key=lambda task: (not task.serving, task.created_at_ms, task.id))
    draft.stops.extend((task.id, "duplicate") for task in slot.live if task is not kept)
    return kept


class GroupPass:
    """The pass over one group whose slots are known."""

    def __init__(
        self, draft: WorkDraft, name: str, group: GroupSpec, slots: Mapping[int, Slot]
    ) -> None:
        self.draft = draft
        self.name = name
        self.group = group
        self.slots = slots
        self.fresh: Sequence[int] = []  # slots that never had a task
        self.empty: dict[int, SlotPast] = {}  # others that may be filled
        self.waiting: dict[tuple[str, int], list[int]] = {}  # (cause, until) → slots
        self.outdated: list[Task] = []
        self.drained: list[Task] = []
        self.in_transit = 0

    def look_at(self, number: int) -> None:
        """One wanted slot is sorted into what it needs."""
        draft, slot = self.draft, self.slots[number]
        if len(slot.ended) > reap.ENDED_PER_SLOT_MAX:
            draft.reaps.extend(task.id for task in reap.surplus(slot.ended, draft.now_ms))
        kept = _keep_one(draft, slot)
        if kept is not None:
            self._kept(kept)
        elif slot.stopping:
            self.in_transit += 1  # never two of one slot at a time: wait for its end
        else:
            self._empty(number, slot)

    def _kept(self, task: Task) -> None:
        draft = self.draft
        node = draft.state.nodes.get(task.node_id)
        if task.version != draft.job.version:
            if not up_to_date(draft.job, self.group, task):
                self.outdated.append(task)
                return
            draft.updates.append((task.id, draft.job.version))
        if rollout.is_draining(node):
            assert node is not None
            draft.wake(node.drain_deadline_ms)
            # Batch tasks may end by themselves, and tasks with volumes have no other node: both
            # stay until the deadline.
            moves = draft.job.spec.type is JobType.SERVICE and not volumes_of(self.group)
            if moves or rollout.drain_due(node, draft.now_ms):
                self.drained.append(task)
                return
        if not task.serving:
            self.in_transit += 1

    def _empty(self, number: int, slot: Slot) -> None:
        draft = self.draft
        past = past_of(draft.job, self.group, slot.ended, draft.state.nodes, draft.now_ms)
        if past.verdict == "done":
            return
        self.in_transit += 1
        if past.verdict == "place":
            self.empty[number] = past
        elif past.verdict == "over":
            self.waiting.setdefault(("over", 0), []).append(number)
        else:
            lost = past.last is not None and past.last.state is TaskState.LOST
            cause = "returning" if lost else "backoff"
            self.waiting.setdefault((cause, past.until_ms), []).append(number)
            draft.wake(past.until_ms)

    def finish(self) -> None:
        """Stops of the next step, and what waits, are in the draft."""
        draft = self.draft
        if draft.job.spec.type is JobType.BATCH:
            draft.stops.extend((task.id, "update") for task in self.outdated)
            draft.stops.extend((task.id, "drain_deadline") for task in self.drained)
        elif self.outdated or self.drained:
            chosen = rollout.next_stops(
                self.group,
                self.outdated,
                self.drained,
                self.in_transit,
                draft.state.nodes,
                draft.now_ms,
            )
            draft.stops.extend((task.id, reason) for task, reason in chosen)
            for task in self.outdated:
                node = draft.state.nodes.get(task.node_id)
                draft.wake(None if node is None else node.drain_deadline_ms)
        for (cause, until_ms), numbers in sorted(self.waiting.items()):
            draft.waiting.append(Waiting(self.name, tuple(numbers), cause, until_ms))

    def may_start(self, tasks: Sequence[Task]) -> bool:
        """There are empty slots, and depends_on and at_most_one allow to fill them."""
        draft, numbers = self.draft, tuple(sorted((*self.fresh, *self.empty)))
        if not numbers:
            return False
        if self.group.depends_on and not dependencies.started_before(list(tasks)):
            unmet = dependencies.unmet(draft.state, draft.job, self.group)
            if unmet:
                detail = "; ".join(f"{name}: {problem}" for name, problem in unmet)
                draft.waiting.append(Waiting(self.name, numbers, "depends_on", 0, detail))
                return False
        if draft.job.parent and (detail := cron.waits_for(draft.state, draft.job)):
            draft.waiting.append(Waiting(self.name, numbers, "run", 0, detail))
            return False
        if self.group.at_most_one:
            held = [task for task in tasks if not task.released]
            if held:
                last = held[-1]
                node = draft.state.nodes.get(last.node_id)
                where = last.node_id if node is None else node.name
                detail = f"{where} has not said that {last.name} ({last.id}) is gone"
                draft.waiting.append(Waiting(self.name, numbers, "at_most_one", 0, detail))
                return False
        return True


def count_by_node(tasks: Sequence[Task]) -> dict[NodeId, int]:
    """Unended tasks."""
    counted: dict[NodeId, int] = {}
    for task in tasks:
        if not task.ended:
            counted[task.node_id] = counted.get(task.node_id, 0) + 1
    return counted


def placed_reason(past: SlotPast) -> str:
    """What Task.placed_reason says of the new task's cause."""
    return "" if past.last is None else _PLACED_REASON.get(past.last.state, "replaced")
