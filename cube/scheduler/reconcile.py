"""Wanted against actual, one job at a time: which slots want a node, which tasks stop, change version
or are forgotten. No placing here, and no numpy: every node can ask for the sake of `why`.

Source of the shape: hashicorp/nomad scheduler/reconciler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.ids import NodeId, TaskId
from cube.model.lifecycle import ENDED, Desired, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.scheduler import dependencies, filters, reap, rollout
from cube.scheduler.restart import SlotPast, past_of, up_to_date
from cube.scheduler.want import Want

_LIVE_REASON = {TaskState.LOST: "lost", TaskState.FAILED: "failed", TaskState.REJECTED: "rejected"}


class Waiting(msgspec.Struct, frozen=True):
    """Slots of a group that get nothing now. `cause`: depends_on, backoff, returning, at_most_one,
    over. `until_ms` 0: no timer ends it."""

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

    @property
    def idle(self) -> bool:
        """Nothing to do, and nothing that waits for anything but a change of the job itself."""
        return self == _IDLE


_IDLE = JobWork()


class _Draft:
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

    def wake(self, at_ms: int | None) -> None:
        if at_ms is not None and at_ms > self.now_ms:
            self.wake_at_ms = at_ms if self.wake_at_ms is None else min(self.wake_at_ms, at_ms)

    def done(self) -> JobWork:
        if not (self.wants or self.stops or self.updates or self.reaps or self.waiting):
            return _IDLE if self.wake_at_ms is None else JobWork(wake_at_ms=self.wake_at_ms)
        return JobWork(
            tuple(self.wants),
            tuple(self.stops),
            tuple(self.updates),
            tuple(self.reaps),
            tuple(self.waiting),
            self.wake_at_ms,
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


def draining_nodes(state: ClusterState) -> frozenset[NodeId]:
    return frozenset(
        [node.id for node in state.nodes.values() if node.drain_deadline_ms is not None]
    )


def at_rest(state: ClusterState, job: Job, draining: frozenset[NodeId]) -> bool:
    """True for sure when each slot has one live task of the newest version and nothing else, on a
    node that stays. The common case, made cheap: it is asked for each job that had an event."""
    if job.stopped or job.deleted or job.spec.type not in (JobType.SERVICE, JobType.BATCH):
        return False
    ids = state.tasks_by_job.get(job.id, ())
    groups = job.spec.groups
    if len(ids) != sum([group.count for group in groups.values()]):
        return False
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


def reconcile(state: ClusterState, job: Job, now_ms: int) -> JobWork:
    """What is to do for the job."""
    draft = _Draft(state, job, now_ms)
    by_group: dict[str, list[Task]] = {}
    for task in state.tasks_of_job(job.id):
        by_group.setdefault(task.group, []).append(task)
    groups: Mapping[str, GroupSpec] = {} if job.deleted else job.spec.groups
    for name in sorted(set(groups) | set(by_group)):
        tasks = by_group.get(name, [])
        group = groups.get(name)
        if group is None:
            _vanished(draft, tasks)
        elif job.stopped or job.spec.type is JobType.CRON:
            _resting(draft, tasks)
        elif job.spec.type is JobType.SYSTEM:
            _System(draft, name, group, tasks).run()
        else:
            _counted(draft, name, group, tasks)
    return draft.done()


def _vanished(draft: _Draft, tasks: Sequence[Task]) -> None:
    """The group is in no newer version of the job."""
    for slot in slots_of(tasks).values():
        draft.stops.extend((task.id, "group_removed") for task in slot.live)
        _reap_beyond(draft, slot)


def _resting(draft: _Draft, tasks: Sequence[Task]) -> None:
    """Nothing is to run (apply has said so to the tasks)."""
    for slot in slots_of(tasks).values():
        draft.reaps.extend(task.id for task in reap.surplus(slot.ended))


def _reap_beyond(draft: _Draft, slot: Slot) -> None:
    due, later_ms = reap.beyond(slot.ended, draft.now_ms)
    draft.reaps.extend(task.id for task in due)
    draft.wake(later_ms)


def _keep_one(draft: _Draft, slot: Slot) -> Task | None:
    """The live task that holds the slot; the others are stopped."""
    if not slot.live:
        return None
    kept = min(slot.live, key=lambda task: (not task.serving, task.created_at_ms, task.id))
    draft.stops.extend((task.id, "duplicate") for task in slot.live if task is not kept)
    return kept


class _Group:
    """The pass over one group whose slots are known."""

    def __init__(
        self, draft: _Draft, name: str, group: GroupSpec, slots: Mapping[int, Slot]
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
            draft.reaps.extend(task.id for task in reap.surplus(slot.ended))
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
            if draft.job.spec.type is JobType.SERVICE or rollout.drain_due(node, draft.now_ms):
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


_NEW = SlotPast("place")
_Kind = tuple[tuple[tuple[NodeId, int], ...], NodeId | None]


def _counted(draft: _Draft, name: str, group: GroupSpec, tasks: Sequence[Task]) -> None:
    """service and batch: slots 0..count-1."""
    slots = slots_of(tasks)
    one = _Group(draft, name, group, slots)
    for number, slot in slots.items():
        if number < group.count:
            one.look_at(number)
        else:
            draft.stops.extend((task.id, "scale_down") for task in slot.live)
            _reap_beyond(draft, slot)
    one.fresh = range(group.count)
    if slots:
        one.fresh = [number for number in one.fresh if number not in slots]
    one.in_transit += len(one.fresh)
    one.finish()
    if not one.may_start(tasks):
        return
    on_node = count_by_node(tasks)
    # Slots that are closed to the same nodes are placed together.
    alike: dict[_Kind, tuple[SlotPast, list[int]]] = {}
    if one.fresh:
        alike[(), None] = (_NEW, list(one.fresh))
    for number, past in one.empty.items():
        kind = (tuple(past.avoid.items()), past.failed_on)
        alike.setdefault(kind, (past, []))[1].append(number)
    for past, numbers in alike.values():
        draft.wants.append(
            Want(
                job=draft.job,
                group=name,
                spec=group,
                slots=tuple(sorted(numbers)),
                avoid=past.avoid,
                failed_on=() if past.failed_on is None else (past.failed_on,),
                on_node=on_node,
                reason=placed_reason(past),
            )
        )
        for until_ms in past.avoid.values():
            draft.wake(until_ms)


def count_by_node(tasks: Sequence[Task]) -> dict[NodeId, int]:
    """Unended tasks."""
    counted: dict[NodeId, int] = {}
    for task in tasks:
        if not task.ended:
            counted[task.node_id] = counted.get(task.node_id, 0) + 1
    return counted


def placed_reason(past: SlotPast) -> str:
    """What Task.placed_reason says of the new task's cause."""
    return "" if past.last is None else _LIVE_REASON.get(past.last.state, "replaced")


class _System:
    """One task on each node that is of the right kind. A node keeps its slot number while the job
    remembers a task of it there; a new node gets the smallest number that nobody has."""

    def __init__(self, draft: _Draft, name: str, group: GroupSpec, tasks: Sequence[Task]) -> None:
        self.draft = draft
        self.name = name
        self.group = group
        self.tasks = tasks
        self.slots = slots_of(tasks)

    def run(self) -> None:
        draft = self.draft
        wanted = [node for node in draft.state.nodes.values() if self._wanted(node)]
        wanted.sort(key=lambda node: (node.name, node.id))
        numbers = self._numbers(wanted)
        one = _Group(draft, self.name, self.group, self.slots)
        for node in wanted:
            number = numbers[node.id]
            if number in self.slots:
                if node.accepts_tasks or self.slots[number].live:
                    one.look_at(number)
            elif node.accepts_tasks:
                one.empty[number] = _NEW
                one.in_transit += 1
        kept = set(numbers.values())
        for number, slot in self.slots.items():
            if number not in kept:
                self._not_wanted(slot)
                _reap_beyond(draft, slot)
        one.finish()
        if one.may_start(self.tasks):
            self._want(one, {number: node_id for node_id, number in numbers.items()})

    def _wanted(self, node: Node) -> bool:
        """Right kind. A node whose driver is merely unwell still wants its task."""
        context = filters.Context(self.draft.state, self.group, self.draft.now_ms)
        return (
            self.group.driver.value in node.facts.drivers
            and filters.constraints(context, node) is None
        )

    def _numbers(self, wanted: Sequence[Node]) -> dict[NodeId, int]:
        newest: dict[NodeId, Task] = {}
        taken: set[int] = set()
        for task in sorted(self.tasks, key=lambda task: (task.ended, -task.created_at_ms, task.id)):
            if task.node_id not in newest and task.slot not in taken:
                newest[task.node_id] = task
                taken.add(task.slot)
        numbers: dict[NodeId, int] = {}
        free = 0
        for node in wanted:
            known = newest.get(node.id)
            if known is not None:
                numbers[node.id] = known.slot
                continue
            while free in taken:
                free += 1
            taken.add(free)
            numbers[node.id] = free
        return numbers

    def _not_wanted(self, slot: Slot) -> None:
        """Tasks on nodes that are no longer of the right kind; a node that is merely out of reach or
        cordoned keeps its own."""
        for task in slot.live:
            node = self.draft.state.nodes.get(task.node_id)
            if node is not None and not self._wanted(node):
                self.draft.stops.append((task.id, "not_eligible"))

    def _want(self, one: _Group, node_of: Mapping[int, NodeId]) -> None:
        draft = self.draft
        numbers = []
        for number, past in one.empty.items():
            until_ms = past.avoid.get(node_of[number], 0)
            if until_ms > draft.now_ms:  # there is no other node for it
                draft.waiting.append(Waiting(self.name, (number,), "backoff", until_ms))
                draft.wake(until_ms)
            else:
                numbers.append(number)
        if numbers:
            draft.wants.append(
                Want(
                    job=draft.job,
                    group=self.name,
                    spec=self.group,
                    slots=tuple(numbers),
                    on_node=count_by_node(self.tasks),
                    only_on=tuple(node_of[number] for number in numbers),
                )
            )
