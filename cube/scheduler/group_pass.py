"""One group of a job: what each of its slots holds, and what that asks for. Shared by all job types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cube.model.cluster import Task
from cube.model.ids import NodeId, TaskId
from cube.model.lifecycle import PARTITIONED, Desired, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.model.volumes import volumes_of
from cube.scheduler import cron, dependencies, rollout, singleton, trouble
from cube.scheduler.restart import SlotPast, past_of, up_to_date
from cube.scheduler.rollout import Candidates, How
from cube.scheduler.slots import Slot, Waiting, WorkDraft, reap_surplus
from cube.scheduler.want import Want

NEW = SlotPast("place")  # of a slot that never had a task
_PLACED_REASON = {
    TaskState.LOST: "lost",
    TaskState.FAILED: "failed",
    TaskState.REJECTED: "rejected",
}


class Vacancy(msgspec.Struct, frozen=True):
    """A slot that may be filled, and with which version."""

    past: SlotPast
    version: int


class Progress(msgspec.Struct):
    """How far the group is with the newest version. `unsettled`: slots that are not as wanted.
    `came_up_ms`: when the last task did that serves now. `due_ms`: when a slot may settle."""

    unsettled: int = 0
    came_up_ms: int = 0
    due_ms: int | None = None

    def settles_at(self, at_ms: int) -> None:
        self.due_ms = at_ms if self.due_ms is None else min(self.due_ms, at_ms)


class GroupPass:
    """The pass over one group whose slots are known: look_at each wanted one, then finish."""

    def __init__(
        self,
        draft: WorkDraft,
        name: str,
        group: GroupSpec,
        slots: Mapping[int, Slot],
        tasks: Sequence[Task],
    ) -> None:
        self.draft = draft
        self.name = name
        self.group = group
        self.slots = slots
        self.tasks = tasks
        self.stance = rollout.stance_of(draft.job, name)
        self.fresh: Sequence[int] = []  # slots that never had a task
        self.empty: dict[int, Vacancy] = {}  # slots that get a task now
        self.progress = Progress()
        self._vacant: list[int] = []  # slots whose tasks have all ended
        self._waiting: dict[tuple[str, int], list[int]] = {}  # (cause, until) → slots
        self._candidates = Candidates([], [], [], set())
        self._in_transit = 0
        self._moving = 0  # slots on their way to the newest version

    def look_at(self, number: int) -> None:
        """One wanted slot is sorted into what it needs."""
        slot = self.slots[number]
        if len(slot.ended) > 1:
            reap_surplus(self.draft, slot)
        if slot.live:
            kept = slot.live[0] if len(slot.live) == 1 else self._let_go_of_others(slot)
            if len(slot.live) > 1 or slot.stopping:
                is_settled = self._note_kept(kept)
                # A canary that waits for a person is no reason for a drain to wait.
                self._in_transit += not (self.stance.is_gated and is_settled)
                self._moving += 1
            else:
                self._kept(kept)
        elif slot.stopping:
            self._in_transit += 1  # never two of one slot at a time: wait for its end
            self._moving += slot.stopping[-1].desired_reason == "update"
            self.progress.unsettled += 1
        else:
            self._vacant.append(number)

    def add_new(self, number: int) -> None:
        """A wanted slot that never had a task, of which finish need not think."""
        self.empty[number] = Vacancy(NEW, self.draft.job.version)
        self._in_transit += 1
        self.progress.unsettled += 1

    # Slots with a live task

    def _let_go_of_others(self, slot: Slot) -> Task:
        """The live task that is to hold the slot. The others stop as soon as it can be relied on."""
        kept = min(slot.live, key=lambda task: self._keep_key(slot, task))
        for task in slot.live:
            if task is not kept and self._may_let_go(kept, task):
                self.draft.stops.append((task.id, self._reason_to_go(kept, task)))
        return kept

    def _keep_key(self, slot: Slot, task: Task) -> tuple[bool, bool, bool, bool, int, TaskId]:
        """The least stays. Of tasks that are up to date the one that another takes over from goes;
        of those that are not, whatever serves is kept until there is a better one."""
        job = self.draft.job
        is_draining = rollout.is_draining(self.draft.state.nodes.get(task.node_id))
        if up_to_date(job, task):
            is_replaced = any(other.replaces == task.id for other in slot.live)
            order = (False, is_draining, is_replaced, not task.serving)
        else:
            order = (True, not task.serving, not self._is_base(task), is_draining)
        return (*order, task.created_at_ms, task.id)

    def _is_base(self, task: Task) -> bool:
        base = self.stance.base_version
        return base > 0 and up_to_date(self.draft.job, task, base)

    def _may_let_go(self, kept: Task, other: Task) -> bool:
        job = self.draft.job
        is_update = up_to_date(job, kept) and not up_to_date(job, other)
        if is_update and (self.stance.is_held or (self.stance.is_gated and self._is_base(other))):
            return False  # canaries leave alone what a failure would go back to
        if self._is_settled(kept):
            return True
        self.draft.wake(rollout.settled_at_ms(self.group, kept))
        return not other.serving and (kept.serving or not up_to_date(job, kept))

    def _is_settled(self, task: Task) -> bool:
        at_ms = rollout.settled_at_ms(self.group, task)
        return at_ms is not None and at_ms <= self.draft.now_ms

    def _reason_to_go(self, kept: Task, other: Task) -> str:
        if not up_to_date(self.draft.job, other):
            return "update"
        if rollout.is_draining(self.draft.state.nodes.get(other.node_id)):
            return "drain"
        return kept.placed_reason if kept.replaces == other.id else "duplicate"

    def _note_kept(self, task: Task) -> bool:
        """Whether it is up to date and settled; the group's progress knows it."""
        if not up_to_date(self.draft.job, task):
            self.progress.unsettled += 1
            return False
        at_ms = rollout.settled_at_ms(self.group, task)
        if at_ms is not None:
            self.progress.came_up_ms = max(self.progress.came_up_ms, task.serving_since_ms)
            if at_ms <= self.draft.now_ms:
                return True
            self.progress.settles_at(at_ms)
        self.progress.unsettled += 1
        return False

    def _kept(self, task: Task) -> None:
        """The slot's one live task."""
        draft, candidates = self.draft, self._candidates
        node = draft.state.nodes.get(task.node_id)
        is_current = up_to_date(draft.job, task)
        is_settled = self._note_kept(task)
        if not (is_settled if is_current else task.serving):
            candidates.shaky.add(task.id)
        if rollout.is_draining(node):
            assert node is not None
            draft.wake(node.drain_deadline_ms)
            # Batch tasks may end by themselves; system tasks and those with volumes have no other
            # node: all of them stay until the deadline.
            moves = draft.job.spec.type is JobType.SERVICE and not volumes_of(self.group)
            is_kept_version = is_current or self.stance.is_held or self.stance.is_gated
            if is_kept_version and (moves or rollout.drain_due(node, draft.now_ms)):
                candidates.drained.append(task)
                return
        if not is_current:
            if not self._failed_before(task):
                candidates.outdated.append(task)
            return
        if task.version != draft.job.version and not self.stance.is_held:
            if self._is_rechecked(task):
                candidates.rechecked.append(task)
                self.progress.unsettled += is_settled
                return
            draft.updates.append((task.id, draft.job.version))
        if not is_settled:
            candidates.shaky.discard(task.id)  # no candidate, and counted here
            self._in_transit += 1
            self._moving += self.stance.base is not None

    def _failed_before(self, task: Task) -> bool:
        """The newest version failed beside this task already: it is not tried again at once."""
        ended = self.slots[task.slot].ended
        if not ended or not up_to_date(self.draft.job, ended[-1]):
            return False
        past = past_of(self.draft.job, self.group, ended, self.draft.state.nodes, self.draft.now_ms)
        if past.verdict not in ("wait", "over"):
            return False
        self._wait(task.slot, past)
        self._in_transit += 1
        return True

    def _wait(self, number: int, past: SlotPast) -> None:
        """The slot gets nothing for now, or for good: `past` says which."""
        cause = "over"
        if past.verdict == "wait":
            lost = past.last is not None and past.last.state is TaskState.LOST
            cause = "returning" if lost else "backoff"
        self._waiting.setdefault((cause, past.until_ms), []).append(number)
        self.draft.wake(past.until_ms)

    def _is_rechecked(self, task: Task) -> bool:
        if not self.stance.is_open:
            return False
        made_from = self.draft.job.spec_of(task.version)
        return made_from is not None and made_from.groups[self.name].checks != self.group.checks

    # Slots without one

    def _fill(self) -> None:
        """Each vacant slot gets its version, and waits, is done, or is empty."""
        vacant = [(number, self.slots[number].ended[-1]) for number in self._vacant]
        vacant.sort(key=lambda item: (item[1].desired_reason != "update", item[0]))
        for number, last in vacant:
            version = self._version_for(number, last)
            if version is None:
                self.progress.unsettled += 1
                self._waiting.setdefault(("rollout", 0), []).append(number)
            else:
                self._look_at_past(number, version)
        self.progress.unsettled += len(self.fresh)
        self._in_transit += len(self.fresh)
        if self.stance.base is None:  # nothing to go back to: all of them get the newest version
            return
        fresh = []
        for number in self.fresh:
            version = self._version_for(number, None)
            if version is None:
                self._waiting.setdefault(("rollout", 0), []).append(number)
            elif version == self.draft.job.version:
                fresh.append(number)
            else:
                self.empty[number] = Vacancy(NEW, version)
        self.fresh = fresh

    def _version_for(self, number: int, last: Task | None) -> int | None:
        """None: not yet. A slot that is not its turn goes back to what was healthy: it lost its
        task for another reason than the rollout."""
        newest, stance = self.draft.job.version, self.stance
        if stance.base is None or (last is not None and up_to_date(self.draft.job, last)):
            return newest
        base = stance.base_version if number < stance.base.count else None
        is_moving = last is not None and last.desired_reason == "update"
        if stance.is_held:
            return base
        if stance.is_gated:
            is_canary = number < self.group.canaries
            return newest if is_canary and (is_moving or base is None) else base
        if is_moving or self._moving < max(1, self.group.update.parallelism) or base is None:
            self._moving += 1
            return newest
        return base

    def template(self, version: int) -> GroupSpec:
        if version == self.draft.job.version or self.stance.base is None:
            return self.group
        return self.stance.base

    def _look_at_past(self, number: int, version: int) -> None:
        draft = self.draft
        past = past_of(
            draft.job, self.template(version), self.slots[number].ended, draft.state.nodes,
            draft.now_ms, version,
        )  # fmt: skip
        if past.verdict == "done":
            return
        self._in_transit += 1
        self.progress.unsettled += 1
        if past.verdict == "place":
            self.empty[number] = Vacancy(past, version)
        else:
            self._wait(number, past)

    # What follows

    def finish(self, is_behind: bool = False) -> None:
        """Stops, updates and start-first replacements of the next step, and what waits, are in the
        draft. `is_behind`: a group that this one depends on is not up to date yet."""
        draft = self.draft
        self._fill()
        if draft.job.spec.type is JobType.BATCH:
            draft.stops.extend((task.id, "update") for task in self._candidates.outdated)
            draft.stops.extend((task.id, "drain_deadline") for task in self._candidates.drained)
        elif self._candidates:
            self._step(is_behind or self._depends_on_unmet())
        if self.stance.is_open or self._candidates or self._moving:
            draft.wake(self.progress.due_ms)
        for (cause, until_ms), numbers in sorted(self._waiting.items()):
            draft.waiting.append(Waiting(self.name, tuple(numbers), cause, until_ms))
        draft.progress[self.name] = self.progress

    def _depends_on_unmet(self) -> bool:
        draft = self.draft
        if not self.group.depends_on or not self._candidates.outdated:
            return False
        return bool(dependencies.unmet(draft.state, draft.job, self.group))

    def _step(self, is_waiting: bool) -> None:
        draft, candidates = self.draft, self._candidates
        steps = rollout.next_steps(
            draft.job,
            self.name,
            self.stance,
            candidates,
            self._in_transit,
            draft.state.nodes,
            draft.now_ms,
            is_waiting,
        )
        for step in steps:
            if step.how is How.STOP:
                draft.stops.append((step.task.id, step.reason))
            elif step.how is How.UPDATE:
                draft.updates.append((step.task.id, draft.job.version))
        for reason, tasks in rollout.replacements(steps).items():
            self._replace(reason, tasks)
        for task in candidates.outdated:
            node = draft.state.nodes.get(task.node_id)
            draft.wake(None if node is None else node.drain_deadline_ms)

    def _replace(self, reason: str, tasks: Sequence[Task]) -> None:
        """Tasks that get another beside them. Where the old one is does not count against a node:
        it is about to leave."""
        leaving = {task.id for task in tasks}
        on_node = count_by_node([task for task in self.tasks if task.id not in leaving])
        troubled = tuple(
            trouble.troubled(self.draft.job, self.group, self.tasks, self.draft.now_ms)
        )
        by_kind: dict[tuple[int, tuple[NodeId, ...]], list[Task]] = {}
        for task in tasks:
            version = self.draft.job.version
            if reason != "update" and not up_to_date(self.draft.job, task):
                version = self.stance.base_version or version
            by_kind.setdefault((version, self._failed_on(task)), []).append(task)
        for (version, failed_on), alike in sorted(by_kind.items()):
            self.draft.wants.append(
                Want(
                    job=self.draft.job,
                    group=self.name,
                    spec=self.template(version),
                    slots=tuple(task.slot for task in alike),
                    version=version,
                    replaces=tuple(task.id for task in alike),
                    troubled=troubled,
                    failed_on=failed_on,
                    on_node=on_node,
                    reason=reason,
                )
            )

    def _failed_on(self, task: Task) -> tuple[NodeId, ...]:
        """Where the newest version failed, or was refused, beside this task."""
        ended = self.slots[task.slot].ended
        if not ended or ended[-1].state not in (TaskState.FAILED, TaskState.REJECTED):
            return ()
        return (ended[-1].node_id,) if up_to_date(self.draft.job, ended[-1]) else ()

    def may_start(self, tasks: Sequence[Task]) -> bool:
        """There are empty slots, and depends_on and leases allow to fill them."""
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
        if draft.job.parent and self.group.at_most_one:
            tasks = [*cron.earlier_tasks(draft.state, draft.job, self.name), *tasks]
        held = singleton.held(
            draft.state, draft.job, self.group, tasks, numbers, draft.now_ms, draft.silent_ms
        )
        for number, why in sorted(held.items()):
            draft.waiting.append(
                Waiting(self.name, (number,), "on_partition", why.until_ms, why.detail)
            )
            draft.wake(why.until_ms)
            self.empty.pop(number, None)
        if held:
            self.fresh = [number for number in self.fresh if number not in held]
        return bool(self.fresh or self.empty)

    def is_waiting_for_promotion(self) -> bool:
        """Its canaries have settled, and only a person can go on."""
        if not self.stance.is_gated:
            return False
        job = self.draft.job
        settled = {
            task.slot
            for task in self.tasks
            if task.live and up_to_date(job, task) and self._is_settled(task)
        }
        return all(slot in settled for slot in range(self.group.canaries))

    def failures(self) -> list[Task]:
        """Tasks of the newest version that gave up while that is to be decided, since a person
        last had a say in it."""
        deployment = self.draft.job.deployment
        if deployment is None or self.stance.base is None or not self.stance.is_open:
            return []
        return [
            task
            for task in self.tasks
            if task.state in (TaskState.FAILED, TaskState.REJECTED)
            and task.reason != PARTITIONED
            and task.desired is Desired.RUN
            and task.version == deployment.version
            and task.finished_at_ms >= deployment.clock_at_ms
        ]


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
