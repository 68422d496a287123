"""The scheduler: the whole state in, one bounded plan out. Pure; what it remembers are caches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import immutables
import msgspec

from cube.model.cluster import PREEMPTED, ClusterState, Job, Node
from cube.model.commands import (
    ApplyPlan,
    GroupPlacement,
    PlannedStop,
    RunEnd,
    RunStep,
)
from cube.model.deployment import DeploymentStep
from cube.model.events import DeploymentEvent, Event, JobEvent, NodeEvent, TaskEvent
from cube.model.explain import Explanation
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.spec import JobType
from cube.scheduler import rebalance
from cube.scheduler.preempt import Preemption, fenced
from cube.scheduler.reconcile import at_rest, draining_nodes, only_waits, reconcile
from cube.scheduler.slots import JobWork
from cube.scheduler.want import Want

if TYPE_CHECKING:
    from cube.scheduler.mirror import Mirror
    from cube.scheduler.place import Picks, Placer
    from cube.scheduler.vector import Ask

PLAN_BYTES_MAX = 256 * 1024  # of an encoded ApplyPlan: one log entry (performance.md)
# Placements of one plan, groups that it finds places for, and looks at tasks, of about a microsecond
# each (a job is looked at whole): they bound how long a leader's loop is held up.
PLANNED_MAX = 4_000
WANTS_MAX = 400
LOOKED_MAX = 20_000
RECONCILE_LOOKS = 5  # what the full pass over a task costs, in such looks
SCHEDULES_MAX = 250  # read in one plan, at 70 µs: a new leader reads those of all cron jobs
EXPLANATIONS_MAX = 1_000  # in one plan: for logs and metrics; `explain` has no such bound
_HEAD_BYTES = 512  # term, seed, the structure itself
_GROUP_BYTES = 64  # of a GroupPlacement besides its slots and texts
_SLOT_BYTES = 5 + 3 + 1  # slot, node_at, head of its ports
_PORT_BYTES = 3
_ID_BYTES = 3  # head of a text; the text itself is added
_UPDATE_BYTES = 6  # head of the pair, version
_RUN_BYTES = 64  # of a RunStep or RunEnd besides its texts


class Plan(msgspec.Struct, frozen=True):
    """`command` None: nothing to do. `explanations`: of what is not placed, in short (`why.explain`
    goes into detail). `wake_at_ms`: when another plan could differ though nothing has happened.
    `more`: the plan was full; make the next one as soon as this one is applied."""

    command: ApplyPlan | None
    explanations: tuple[Explanation, ...] = ()
    wake_at_ms: int | None = None
    more: bool = False


class Scheduler:
    """Caches between plans: a mirror of the nodes, and the jobs that had nothing to do. A plan
    depends on its arguments only; two schedulers with different pasts give the same one, but for
    jobs beyond LOOKED_MAX and SCHEDULES_MAX: one may come to them a plan later."""

    def __init__(self) -> None:
        self._mirror: Mirror | None = None
        self._state: ClusterState | None = None  # what the caches are about
        self._dirty: set[JobId] = set()  # jobs that `note` named since
        self._idle: dict[JobId, Job] = {}
        self._asleep: dict[JobId, tuple[Job, int]] = {}  # nothing to do before that time
        self._parked: set[Ask] = set()  # found no place; nothing has become free since
        self._order: list[Job] | None = None  # None: jobs have changed
        self._drained: frozenset[NodeId] = frozenset()
        self._draining_of: immutables.Map[NodeId, Node] | None = None  # what _drained is about
        # Jobs that plans of this round have looked at, and what they have to be looked at again for.
        self._looked: set[JobId] = set()
        self._round_wake_at_ms: int | None = None

    def note(self, before: ClusterState, after: ClusterState, events: Iterable[Event]) -> None:
        """`after` came from `before` with these events, all of them. Optional, and only a short
        cut: while the notes make an unbroken chain from the last planned state to the next one,
        states need not be compared. Called for each applied entry in order, by plan's caller."""
        if self._state is not before:
            return
        nodes = False
        with_tasks: set[NodeId] = set()
        for event in events:
            if isinstance(event, TaskEvent):
                self._dirty.add(event.job_id)
                with_tasks.add(event.node_id)
            elif isinstance(event, JobEvent | DeploymentEvent):
                self._dirty.add(event.job_id)
            elif isinstance(event, NodeEvent):
                nodes = True
        if nodes:
            self._wake_for_nodes(after)
        elif self._mirror is not None:
            self._mirror.same_nodes(before.nodes, after.nodes)
        if self._mirror is not None:
            self._mirror.reserved_on(before.reserved, after.reserved, with_tasks)
        if before.jobs is not after.jobs:
            self._order = None
        self._state = after

    def plan(
        self,
        state: ClusterState,
        now_ms: int,
        term: int,
        seed: str,
        silent_ms: Mapping[NodeId, int] | None = None,
    ) -> Plan:
        """What to propose now. `seed` makes the ids of new tasks and where dynamic ports begin; it
        must be new for each plan that is proposed. `silent_ms`: of nodes that are down, Liveness's;
        None: of who does not lead, and plans for show."""
        jobs = self._catch_up(state)
        draft = _PlanDraft(term, seed)
        placer: Placer | None = None
        preemption: Preemption | None = None
        draining = self._draining(state)
        schedules = looked = wants = 0
        is_cut = False
        seen: list[JobId] = []
        for job in jobs:
            if self._idle.get(job.id) is job or job.id in self._looked:
                continue
            asleep = self._asleep.get(job.id)
            if asleep is not None and asleep[0] is job and now_ms < asleep[1]:
                draft.wake(asleep[1])
                continue
            if job.cron is not None:
                if schedules == SCHEDULES_MAX:
                    draft.wake(now_ms)  # the next plan, at once
                    continue
                schedules += 1
            if looked >= LOOKED_MAX or wants >= WANTS_MAX:
                is_cut = True
                break
            work, looks = _work_of(state, job, now_ms, draining, silent_ms)
            looked += looks
            if work is None or work.idle:
                self._idle[job.id] = job
                continue
            if work.sleeps and work.wake_at_ms is not None:
                self._asleep[job.id] = (job, work.wake_at_ms)
            draft.add(job, work)
            wants += len(work.wants)
            for want in work.wants:
                if not draft.full:
                    if placer is None:
                        placer = self._placer(state, seed)
                        preemption = self._preemption(state, now_ms, placer, seed)
                    self._place(placer, draft, want, preemption)
            if draft.full:  # what is left is for the next plan, which is wanted at once
                break
            seen.append(job.id)
        self._end_round(draft, seen, is_cut=is_cut)
        if state.rebalance_since_ms and draft.is_empty and not is_cut:
            self._rebalance(state, now_ms, seed, draft, placer)
        return draft.done()

    def _end_round(self, draft: _PlanDraft, seen: list[JobId], *, is_cut: bool) -> None:
        """Plans that are cut go on where the last one stopped, until one is not: together they are
        one look at everything, and the last of them knows when the next is due."""
        if self._round_wake_at_ms is not None:
            draft.wake(self._round_wake_at_ms)
        if is_cut:
            draft.cut()
            self._looked.update(seen)
            self._round_wake_at_ms = draft.wake_at_ms
        elif not draft.full:
            self._looked.clear()
            self._round_wake_at_ms = None

    def _rebalance(
        self, state: ClusterState, now_ms: int, seed: str, draft: _PlanDraft, placer: Placer | None
    ) -> None:
        """When nothing else is to be done: second thoughts, until there are none."""
        moves, is_over = rebalance.step(state, now_ms)
        if is_over:
            draft.is_balanced = True
            return
        draft.wake(state.rebalance_since_ms + rebalance.ROUND_MS)
        for move in moves:
            placer = self._placer(state, seed) if placer is None else placer
            self._fit(placer, draft, rebalance.want_of(state, move))

    def _placer(self, state: ClusterState, seed: str) -> Placer:
        from cube.scheduler.mirror import Mirror  # numpy: only where a node plans
        from cube.scheduler.place import Placer

        if self._mirror is None:
            self._mirror = Mirror()
        self._mirror.sync(state)
        if self._mirror.grew:
            self._parked.clear()
            self._mirror.grew = False
        return Placer(self._mirror, state.settings.policy, seed)

    def _preemption(
        self, state: ClusterState, now_ms: int, placer: Placer, seed: str
    ) -> Preemption | None:
        """None: nobody preempts, and nothing is held for anybody."""
        if not (state.settings.preemption or state.preempted):
            return None
        ids = placer.node_ids
        first = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big")
        first %= max(1, len(ids))
        return Preemption(state, now_ms, placer.free, [*ids[first:], *ids[:first]])

    def _draining(self, state: ClusterState) -> frozenset[NodeId]:
        if self._draining_of is not state.nodes:
            self._draining_of, self._drained = state.nodes, draining_nodes(state)
        return self._drained

    # What may have changed

    def _catch_up(self, state: ClusterState) -> list[Job]:
        """The caches are about `state`. Returns its jobs in the order of their turns."""
        last = self._state
        if last is None:
            self._idle.clear()
            self._asleep.clear()
            self._looked.clear()
        elif last is not state:
            self._order = None
            self._compare_tasks(last, state)
            for job_id, job in list(self._idle.items()):
                if state.jobs.get(job_id) is not job:
                    del self._idle[job_id]
            if last.nodes is not state.nodes:
                self._wake_for_nodes(state)
        self._looked -= self._dirty
        for job_id in self._dirty:
            self._idle.pop(job_id, None)
            self._asleep.pop(job_id, None)
        self._dirty.clear()
        if self._order is None:
            for job_id, (job, _) in list(self._asleep.items()):
                if state.jobs.get(job_id) is not job:
                    del self._asleep[job_id]
            self._order = sorted(state.jobs.values(), key=_by_importance)
        self._state = state
        return self._order

    def _compare_tasks(self, last: ClusterState, state: ClusterState) -> None:
        if last.tasks is state.tasks:
            return
        before = last.tasks.get
        gone = len(last.tasks)
        for task_id, task in state.tasks.items():
            old = before(task_id)
            if old is not None:
                gone -= 1
            if old is not task:
                self._dirty.add(task.job_id)
        if gone:
            self._dirty.update(
                task.job_id for task_id, task in last.tasks.items() if task_id not in state.tasks
            )

    def _wake_for_nodes(self, state: ClusterState) -> None:
        """Jobs that a change of nodes may give something to do are not idle."""
        self._asleep.clear()
        self._looked.clear()
        drains = bool(self._draining(state))
        for job_id, job in list(self._idle.items()):
            if drains or job.spec.type is JobType.SYSTEM:
                del self._idle[job_id]

    # Placing

    def _place(
        self, placer: Placer, draft: _PlanDraft, want: Want, preemption: Preemption | None
    ) -> None:
        """What fits is placed; for what does not, others may have to go."""
        if preemption is None:
            self._fit(placer, draft, want)
            return
        left = self._fit(placer, draft, fenced(want, preemption.held))
        if left is None or draft.full or not preemption.enabled:
            return
        for task in preemption.make_room(left, len(left.slots)):
            draft.stop(task.id, f"{PREEMPTED}{want.job.name}.{want.group}")
        if preemption.incomplete:
            draft.wake(preemption.retry_at_ms)

    def _fit(self, placer: Placer, draft: _PlanDraft, want: Want) -> Want | None:
        """Returns what fits nowhere; None: nothing is left, or the plan is full."""
        if want.only_on:
            picks = placer.place_only_on(want, draft.room_for(want))
            draft.place(want, picks, placer.node_ids)
            if len(picks.slots) < len(want.slots) and not draft.full:
                placed = set(picks.slots)
                left_out = [at for at, slot in enumerate(want.slots) if slot not in placed]
                left = msgspec.structs.replace(
                    want,
                    slots=tuple(want.slots[at] for at in left_out),
                    only_on=tuple(want.only_on[at] for at in left_out),
                )
                draft.unplaced(want, left.slots, placer.why_not(want))
                return left
            return None
        ask = placer.ask_of(want)
        parkable = not (want.avoid or want.spec.ports or want.spec.placement.max_per_node)
        if parkable and ask in self._parked:
            draft.unplaced(want, want.slots, draft.reasons(ask, placer, want))
            return want
        left = want
        while left.slots and not draft.full:
            most = draft.room_for(left)
            picks = placer.place(left, most)
            draft.place(left, picks, placer.node_ids)
            count = len(picks.slots)
            if count < min(most, len(left.slots)):
                if parkable:
                    self._parked.add(ask)
                    reasons = draft.reasons(ask, placer, left)
                else:
                    reasons = placer.why_not(left)
                draft.unplaced(left, left.slots[count:], reasons)
                return msgspec.structs.replace(
                    left,
                    slots=left.slots[count:],
                    replaces=left.replaces[count:],
                    on_node=placer.on_node(left),
                )
            left = msgspec.structs.replace(
                left, slots=left.slots[count:], replaces=left.replaces[count:]
            )
        return None


def _work_of(
    state: ClusterState,
    job: Job,
    now_ms: int,
    draining: frozenset[NodeId],
    silent_ms: Mapping[NodeId, int] | None,
) -> tuple[JobWork | None, int]:
    """And how many looks that took. None: nothing, until something happens to the job."""
    tasks = len(state.tasks_by_job.get(job.id, ()))
    if at_rest(state, job, draining):
        return None, tasks
    waits = only_waits(state, job, now_ms, draining)
    if waits is not None:
        return waits, tasks
    return reconcile(state, job, now_ms, silent_ms), tasks * RECONCILE_LOOKS


def _by_importance(job: Job) -> tuple[int, int, str, str]:
    spec = job.spec
    return (-spec.priority, job.created_at_ms, job.name, job.id)


class _PlanDraft:
    """The plan so far, and how much of its bounds is left."""

    def __init__(self, term: int, seed: str) -> None:
        self._term = term
        self._seed = seed
        self._bytes = PLAN_BYTES_MAX - _HEAD_BYTES - len(seed.encode())
        self._placed = 0
        self._nodes: list[NodeId] = []
        self._number_of: dict[int, int] = {}  # mirror's row → position in _nodes
        self._placements: list[GroupPlacement] = []
        self._stops: list[PlannedStop] = []
        self._updates: list[tuple[TaskId, int]] = []
        self._reaps: list[TaskId] = []
        self._run_ends: list[RunEnd] = []
        self._run_steps: list[RunStep] = []
        self._verdicts: list[DeploymentStep] = []
        self._explanations: list[Explanation] = []
        self._reasons: dict[Ask, tuple[str, ...]] = {}
        self._wake_at_ms: int | None = None
        self.full = False
        self.is_balanced = False

    @property
    def is_empty(self) -> bool:
        return not (self.full or self._placements or self._stops or self._updates)

    @property
    def wake_at_ms(self) -> int | None:
        return self._wake_at_ms

    def cut(self) -> None:
        """Something is left to look at, in the next plan."""
        self.full = True

    def _spend(self, size: int) -> bool:
        if self.full or size > self._bytes:
            self.full = True
            return False
        self._bytes -= size
        return True

    def add(self, job: Job, work: JobWork) -> None:
        """The job's stops, updates and reaps, and what it waits for."""
        for task_id, reason in work.stops:
            self.stop(task_id, reason)
        for task_id, version in work.updates:
            if self._spend(_ID_BYTES + len(task_id) + _UPDATE_BYTES):
                self._updates.append((task_id, version))
        for task_id in work.reaps:
            if self._spend(_ID_BYTES + len(task_id)):
                self._reaps.append(task_id)
        if work.verdict is not None:
            size = _VERDICT_BYTES + len(job.id) + len(work.verdict.message.encode())
            if self._spend(size):
                self._verdicts.append(work.verdict)
        for waiting in work.waiting:
            self._explain(
                Explanation(
                    job.name,
                    waiting.group,
                    waiting.slots,
                    "waiting",
                    waiting.detail or waiting.cause,
                )
            )
        for end in work.run_ends:
            texts = len(end.job_id) + len(end.status) + len(end.message.encode())
            if self._spend(_RUN_BYTES + texts):
                self._run_ends.append(end)
        for step in work.run_steps:
            if self._spend(_RUN_BYTES + len(step.job_id)):
                self._run_steps.append(step)
        if work.wake_at_ms is not None:
            self.wake(work.wake_at_ms)

    def stop(self, task_id: TaskId, reason: str) -> None:
        if self._spend(2 * _ID_BYTES + len(task_id) + len(reason.encode())):
            self._stops.append(PlannedStop(task_id, reason))

    def wake(self, at_ms: int) -> None:
        known = self._wake_at_ms
        self._wake_at_ms = at_ms if known is None else min(known, at_ms)

    def room_for(self, want: Want) -> int:
        """How many of the want's slots surely still fit, every one on a node of its own."""
        each = (
            _replace_bytes(want)
            + _SLOT_BYTES
            + _PORT_BYTES * len(want.spec.ports)
            + _ID_BYTES
            + _NODE_ID_BYTES
        )
        room = (self._bytes - self._group_bytes(want)) // each
        room = min(room, PLANNED_MAX - self._placed)
        if room < min(len(want.slots), _LEAST):
            self.full = True
            return 0
        return room

    def _group_bytes(self, want: Want) -> int:
        texts = (want.job.id, want.group, want.reason)
        return _GROUP_BYTES + sum(len(text.encode()) for text in texts)

    def place(self, want: Want, picks: Picks, node_ids: list[NodeId]) -> None:
        if not picks.slots:
            return
        size = self._group_bytes(want)
        numbers = self._number_of
        for row in picks.rows:
            if row not in numbers:
                numbers[row] = len(self._nodes)
                self._nodes.append(node_ids[row])
                size += _ID_BYTES + len(node_ids[row])
        size += len(picks.slots) * (
            _replace_bytes(want) + _SLOT_BYTES + _PORT_BYTES * len(want.spec.ports)
        )
        self._bytes -= size
        self._placed += len(picks.slots)
        self._placements.append(
            GroupPlacement(
                want.job.id,
                want.version or want.job.version,
                want.group,
                picks.slots,
                tuple([numbers[row] for row in picks.rows]),
                tuple(picks.ports),
                want.replaces[: len(picks.slots)],
                want.reason,
            )
        )

    def reasons(self, ask: Ask, placer: Placer, want: Want) -> tuple[str, ...]:
        """Why nothing more of this kind is placed, worked out once in a plan."""
        found = self._reasons.get(ask)
        if found is None:
            found = self._reasons[ask] = placer.why_not(want)
        return found

    def unplaced(self, want: Want, slots: tuple[int, ...], reasons: tuple[str, ...]) -> None:
        summary = f"{len(slots)} not placed: " + (", ".join(reasons) or "there are no nodes")
        self._explain(Explanation(want.job.name, want.group, slots, "unplaced", summary))

    def _explain(self, explanation: Explanation) -> None:
        if len(self._explanations) < EXPLANATIONS_MAX:
            self._explanations.append(explanation)

    def done(self) -> Plan:
        command: ApplyPlan | None = None
        parts = (
            self._placements,
            self._stops,
            self._updates,
            self._reaps,
            self._run_ends,
            self._run_steps,
            self._verdicts,
        )
        if any(parts) or self.is_balanced:
            command = ApplyPlan(
                self._term,
                self._seed,
                tuple(self._nodes),
                tuple(self._placements),
                tuple(self._stops),
                tuple(self._updates),
                tuple(self._reaps),
                tuple(self._run_ends),
                tuple(self._run_steps),
                tuple(self._verdicts),
                self.is_balanced,
            )
        return Plan(command, tuple(self._explanations), self._wake_at_ms, self.full)


def _replace_bytes(want: Want) -> int:
    return _ID_BYTES + len(want.replaces[0]) if want.replaces else 0


_NODE_ID_BYTES = 64  # a UUID is 36; ids are bounded by what registration accepts
_VERDICT_BYTES = 32  # of a DeploymentStep besides its texts
_LEAST = 16  # slots: a plan with less room than this is full rather than crumbled
