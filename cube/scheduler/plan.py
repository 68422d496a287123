"""The scheduler: the whole state in, one bounded plan out. Pure; what it remembers are caches."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import immutables
import msgspec

from cube.model.cluster import PREEMPTED, ClusterState, Job, Node
from cube.model.commands import ApplyPlan
from cube.model.events import DeploymentEvent, Event, JobEvent, NodeEvent, TaskEvent
from cube.model.ids import JobId, NodeId
from cube.model.spec import JobType
from cube.scheduler import rebalance
from cube.scheduler.plan_draft import Plan, PlanDraft
from cube.scheduler.preempt import Preemption, fenced
from cube.scheduler.reconcile import at_rest, comes_up, draining_nodes, only_waits, reconcile
from cube.scheduler.slots import JobWork
from cube.scheduler.want import Want

if TYPE_CHECKING:
    from cube.scheduler.mirror import Mirror
    from cube.scheduler.place import Placer
    from cube.scheduler.vector import Ask

# Groups that a plan finds places for, and looks at tasks, of about a microsecond each (a job is looked
# at whole). Like the placements' (plan_draft) these bounds are there because a plan holds up the loop.
WANTS_MAX = 400
LOOKED_MAX = 10_000
JOB_LOOKS = 30  # what a job costs besides, whether or not its tasks are looked at
RECONCILE_LOOKS = 5  # what the full pass over a task costs, in such looks
SCHEDULES_MAX = 250  # read in one plan, at 70 µs: a new leader reads those of all cron jobs

_Turn = tuple[int, int, str, JobId]  # important and old jobs first


class _Looks:
    """What a plan has looked at so far, of jobs that come for the first time in a round, or again."""

    def __init__(self, tasks_max: int) -> None:
        self._tasks_max = tasks_max
        self.tasks = self.wants = 0

    @property
    def enough(self) -> bool:
        return self.tasks >= self._tasks_max or self.wants >= WANTS_MAX


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
        # Jobs that are not idle, in the order of their turns; None: it is not known.
        self._turns: list[_Turn] | None = None
        self._turn_of: dict[JobId, _Turn] = {}
        self._drained: frozenset[NodeId] = frozenset()
        self._draining_of: immutables.Map[NodeId, Node] | None = None  # what _drained is about
        # Jobs that plans of this round have looked at, and what they have to be looked at again for.
        self._looked: set[JobId] = set()
        self._again: set[JobId] = set()  # that it had looked at, when something happened to them
        self._round_wake_at_ms: int | None = None
        self._unfinished: int | None = None  # priority of the job at which the last plan was full

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
                if isinstance(event, JobEvent) and event.run:  # its cron job knows of it
                    run = after.jobs.get(event.job_id) or before.jobs.get(event.job_id)
                    if run is not None and run.parent:
                        self._dirty.add(run.parent)
            elif isinstance(event, NodeEvent):
                nodes = True
        if before.settings is not after.settings:
            self._wake_for_settings()
        if nodes:
            self._wake_for_nodes(after)
        elif self._mirror is not None:
            self._mirror.same_nodes(before.nodes, after.nodes)
        if self._mirror is not None:
            self._mirror.reserved_on(before.reserved, after.reserved, with_tasks)
        self._state = after

    def plan(
        self,
        state: ClusterState,
        now_ms: int,
        term: int,
        seed: str,
        silent_ms: Mapping[NodeId, int] | None = None,
        ahead: ApplyPlan | None = None,
    ) -> Plan:
        """What to propose now. `seed` makes the ids of new tasks and where dynamic ports begin; it
        must be new for each plan that is proposed. `silent_ms`: of nodes that are down, Liveness's;
        None: of who does not lead, and plans for show. `ahead`: the plan before, when it is not known
        to have been applied. Its jobs have to wait, and what it places takes its room."""
        turns = self._catch_up(state)
        draft = PlanDraft(term, seed)
        waiting = frozenset[JobId]() if ahead is None else _jobs_of(state, ahead)
        unfinished, self._unfinished = None if ahead is None else self._unfinished, None
        placer, preemption = None, None
        draining = self._draining(state)
        first, again = _Looks(LOOKED_MAX), _Looks(LOOKED_MAX // 2)
        schedules, is_cut = 0, False
        seen: list[JobId] = []
        resting: set[JobId] = set()
        for turn in turns:
            job = state.jobs[turn[-1]]
            if unfinished is not None and job.spec.priority < unfinished:
                is_cut = True  # what room is left is for the rest of a more important job
                break
            if job.id in self._looked or job.id in waiting:
                continue
            if self._sleeps(job, draft, now_ms):
                continue
            if job.cron is not None:
                if schedules == SCHEDULES_MAX:
                    draft.wake(now_ms)  # the next plan, at once
                    continue
                schedules += 1
            looks = again if job.id in self._again else first
            if looks.enough:
                is_cut = True
                if looks is again:  # others have waited for their first turn
                    continue
                break
            work, looked = _work_of(state, job, now_ms, draining, silent_ms)
            looks.tasks += looked + JOB_LOOKS
            if work is None or work.idle:
                self._idle[job.id] = job
                resting.add(job.id)
                continue
            if work.sleeps and work.wake_at_ms is not None:
                self._asleep[job.id] = (job, work.wake_at_ms)
            draft.add(job, work)
            looks.wants += len(work.wants)
            for want in work.wants:
                if not draft.full:
                    if placer is None:
                        placer = self._placer(state, seed, ahead)
                        preemption = self._preemption(state, now_ms, placer, seed)
                    self._place(placer, draft, want, preemption)
            if draft.full:  # what is left is for the next plan, at once
                self._unfinished = job.spec.priority
                break
            seen.append(job.id)
        self._pass_over(resting)
        self._end_round(draft, seen, is_cut=is_cut)
        if ahead is not None:
            self._parked.clear()  # what is ahead may be refused, and leave its room
        elif state.rebalance_since_ms and draft.is_empty and not is_cut:
            self._rebalance(state, now_ms, seed, draft, placer)
        return draft.done()

    def _sleeps(self, job: Job, draft: PlanDraft, now_ms: int) -> bool:
        """Nothing is to be done for it before a time, which the draft knows."""
        asleep = self._asleep.get(job.id)
        if asleep is None or asleep[0] is not job or now_ms >= asleep[1]:
            return False
        draft.wake(asleep[1])
        return True

    def _end_round(self, draft: PlanDraft, seen: list[JobId], *, is_cut: bool) -> None:
        """Plans that are cut go on where the last one stopped, until one is not: together they are
        one look at everything, and the last of them knows when the next is due."""
        if self._round_wake_at_ms is not None:
            draft.wake(self._round_wake_at_ms)
        if is_cut:
            draft.cut()
            self._looked.update(seen)
            self._again.difference_update(seen)
            self._round_wake_at_ms = draft.wake_at_ms
        elif not draft.full:
            self._begin_round()
            self._round_wake_at_ms = None

    def _begin_round(self) -> None:
        self._looked.clear()
        self._again.clear()

    def _rebalance(
        self, state: ClusterState, now_ms: int, seed: str, draft: PlanDraft, placer: Placer | None
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

    def _placer(self, state: ClusterState, seed: str, ahead: ApplyPlan | None = None) -> Placer:
        from cube.scheduler.mirror import Mirror  # numpy: only where a node plans
        from cube.scheduler.place import Placer

        if self._mirror is None:
            self._mirror = Mirror()
        self._mirror.sync(state)
        if self._mirror.grew:
            self._parked.clear()
            self._mirror.grew = False
        placer = Placer(self._mirror, state.settings.policy, seed)
        if ahead is not None:
            self._mirror.take_plan(state, ahead)
        return placer

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

    def _catch_up(self, state: ClusterState) -> list[_Turn]:
        """The caches are about `state`. Returns the turns of its jobs that are not idle."""
        last = self._state
        if last is None:
            self._idle.clear()
            self._asleep.clear()
            self._begin_round()
            self._turns = None
        elif last is not state:
            self._turns = None
            self._compare_tasks(last, state)
            for job_id, job in list(self._idle.items()):
                if state.jobs.get(job_id) is not job:
                    del self._idle[job_id]
            if last.settings is not state.settings:
                self._wake_for_settings()
            if last.nodes is not state.nodes:
                self._wake_for_nodes(state)
        self._again |= self._looked & self._dirty
        self._looked -= self._dirty
        for job_id in self._dirty:
            self._idle.pop(job_id, None)
            self._asleep.pop(job_id, None)
        if self._turns is None:
            for job_id, (job, _) in list(self._asleep.items()):
                if state.jobs.get(job_id) is not job:
                    del self._asleep[job_id]
            self._turns = sorted(
                [
                    _turn_of(job)
                    for job_id, job in state.jobs.items()
                    if self._idle.get(job_id) is not job
                ]
            )
            self._turn_of = {turn[-1]: turn for turn in self._turns}
        else:
            for job_id in self._dirty:
                self._take_turn(self._turns, job_id, state.jobs.get(job_id))
        self._dirty.clear()
        self._state = state
        return self._turns

    def _take_turn(self, turns: list[_Turn], job_id: JobId, job: Job | None) -> None:
        """The job has its place among the turns; None: it has none any more."""
        known = self._turn_of.get(job_id)
        turn = None if job is None else _turn_of(job)
        if turn == known:
            return
        if known is not None:
            del turns[bisect.bisect_left(turns, known)], self._turn_of[job_id]
        if turn is not None:
            bisect.insort(turns, turn)
            self._turn_of[job_id] = turn

    def _pass_over(self, resting: set[JobId]) -> None:
        """Jobs that have become idle have no turn until something happens to them."""
        if resting and self._turns is not None:
            self._turns = [turn for turn in self._turns if turn[-1] not in resting]
            for job_id in resting:
                del self._turn_of[job_id]

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

    def _wake_for_settings(self) -> None:
        """They say which ended tasks are remembered: nobody is known to be idle any more."""
        self._idle.clear()
        self._asleep.clear()
        self._begin_round()
        self._turns = None

    def _wake_for_nodes(self, state: ClusterState) -> None:
        """Jobs that a change of nodes may give something to do are not idle."""
        self._asleep.clear()
        self._begin_round()
        drains = bool(self._draining(state))
        for job_id, job in list(self._idle.items()):
            if drains or job.spec.type is JobType.SYSTEM:
                del self._idle[job_id]
                self._turns = None

    # Placing

    def _place(
        self, placer: Placer, draft: PlanDraft, want: Want, preemption: Preemption | None
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

    def _fit(self, placer: Placer, draft: PlanDraft, want: Want) -> Want | None:
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
    ids = state.ids_of_job(job.id)
    tasks = len(ids)
    first = 0 if ids.tally is not None else tasks
    if at_rest(state, job, draining):
        return None, tasks if draining else first
    waits = comes_up(state, job, now_ms, draining)
    if waits is not None:
        return waits, first
    waits = only_waits(state, job, now_ms, draining)
    if waits is not None:
        return waits, tasks
    return reconcile(state, job, now_ms, silent_ms), tasks * RECONCILE_LOOKS


def _jobs_of(state: ClusterState, plan: ApplyPlan) -> frozenset[JobId]:
    """All that the plan does something to."""
    found = {placement.job_id for placement in plan.placements}
    found.update(end.job_id for end in plan.run_ends)
    found.update(step.job_id for step in plan.run_steps)
    found.update(JobId(verdict.job_id) for verdict in plan.deployments)
    changed = (*(stop.task_id for stop in plan.stops), *(id_ for id_, _ in plan.updates))
    for task_id in (*changed, *plan.reaps):
        task = state.tasks.get(task_id)
        if task is not None:
            found.add(task.job_id)
    return frozenset(found)


def _turn_of(job: Job) -> _Turn:
    return (-job.spec.priority, job.created_at_ms, job.name, job.id)
