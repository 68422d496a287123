"""What the leader does: watch the nodes, plan, propose. Runs on every node, acts on the leader."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from cube.model.cluster import ClusterState
from cube.model.commands import ApplyPlan, Body, SetNodeStatus
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.model.outcome import PlanApplied, Rejected
from cube.ports.clock import Clock
from cube.ports.cluster import Proposed
from cube.ports.log import Log, LogStatus, Role
from cube.scheduler.liveness import Liveness
from cube.scheduler.plan import Scheduler
from cube.scheduler.plan_draft import Plan
from cube.services.leader_clock import LeaderClock
from cube.services.state_feed import StateFeed, Trail
from cube.services.turns import undisturbed

TICK_MS = 250  # node liveness is looked at this often; plans also follow every change of state
COALESCE_MS = 5  # reports and submissions of a burst make one plan
# While reports of many tasks come in, every plan looks at nearly everything: planning then leaves two
# thirds of the loop to others, and what is found waits for a second at most.
PAUSE_RATIO = 2
PAUSE_MS_MAX = 1_000
# Ten thousand nodes take tens of milliseconds to look at: they are looked at less often.
LOOK_RATIO = 20
LOOK_MS_MAX = 1_000  # a heartbeat's interval: no verdict is much later than the nodes' own words
LEASE_MS = 800  # of a barrier, and the plan before it: less than a heartbeat waits for its answer
LEASE_COALESCE_MS = 200  # at most five entries a second for leases, however many nodes want them
REFUSED_PAUSE_MS = 100  # a plan that was refused whole is not made again at once
# A plan with so many placements takes longer to be written and applied than to be made: where there is
# more to plan, the next one is made meanwhile.
AHEAD_PLACEMENTS_MIN = 500


class Propose(Protocol):
    async def __call__(self, body: Body, *, actor: str = "") -> Proposed: ...


_log = logging.getLogger(__name__)


class LeaderLoop:
    """Owner of the scheduler and of node liveness. Starts with a full pass over the state in each
    new term, after a barrier of that term (Log's `ready`)."""

    def __init__(
        self,
        node_id: NodeId,
        log: Log,
        feed: StateFeed,
        clock: Clock,
        leader_clock: LeaderClock,
        propose: Propose,
        gossip_states: Callable[[], Mapping[NodeId, str]],
        new_seed: Callable[[], str],
        liveness: Callable[[], Liveness],
        warm_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`warm_up` is awaited before the first plan that may place something: the scheduler's
        library takes a tenth of a second to load, which a leader's loop does not have."""
        self._warm_up = warm_up
        self._node_id = node_id
        self._log = log
        self._feed = feed
        self._clock = clock
        self._leader_clock = leader_clock
        self._propose = propose
        self._gossip_states = gossip_states
        self._new_seed = new_seed
        self._make_liveness = liveness
        self._liveness: Liveness | None = None
        self._status_changed = asyncio.Event()
        self._confirming: asyncio.Task[bool] | None = None
        self._planning = asyncio.Lock()  # held from what a plan was made of until it is in the log
        self._spent_ms = 0  # on plans since the last pause
        self.brake: str | None = None  # why node failures are not acted on, for /v1/status

    def on_log_status(self, _status: LogStatus) -> None:
        event, self._status_changed = self._status_changed, asyncio.Event()
        event.set()

    def heartbeat(self, node_id: NodeId) -> bool:
        """See ports.cluster.Peers."""
        if self._liveness is None:
            return False
        self._liveness.on_heartbeat(node_id, self._clock.monotonic_ms())
        return True

    async def lease(self, node_id: NodeId) -> int | None:
        """See ports.cluster.Peers. A heartbeat of the node was noted before, so no plan that is made
        from now on takes it for gone. One that was made before is in the log before the barrier, and
        so in the state that is returned; and a leader that a later one has followed gets no barrier
        of its own term."""
        before = self._log.status()
        liveness = self._liveness
        if liveness is None or before.role is not Role.LEADER:
            return None
        liveness.on_heartbeat(node_id, self._clock.monotonic_ms())
        if self._confirming is None:
            self._confirming = asyncio.create_task(self._confirm())
        try:
            async with asyncio.timeout(LEASE_MS / 1000):
                is_confirmed = await asyncio.shield(self._confirming)
        except TimeoutError:
            return None
        if not is_confirmed:
            return None
        after = self._log.status()
        if after.role is not Role.LEADER or after.term != before.term:
            return None
        return self._feed.state.index

    async def _confirm(self) -> bool:
        """For all who ask until the barrier begins: many nodes must not cost many log entries."""
        await asyncio.sleep(LEASE_COALESCE_MS / 1000)
        async with self._planning:
            self._confirming = None
        try:
            await self._log.barrier(LEASE_MS)
        except Unavailable:
            return False
        return True

    async def run(self) -> None:
        while True:
            changed = self._status_changed
            status = self._log.status()
            if status.role is Role.LEADER and status.ready:
                _log.info("leading term=%d", status.term)
                try:
                    await self._lead(status.term)
                finally:
                    self._liveness = None
                    self.brake = None
                _log.info("not_leading term=%d", status.term)
            else:
                # A change may go untold; a leader that waits for ever plans nothing.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_MS / 1000):
                        await changed.wait()

    def _leads(self, term: int) -> bool:
        status = self._log.status()
        return status.role is Role.LEADER and status.term == term

    async def _lead(self, term: int) -> None:
        with self._feed.trail() as trail:
            await self._lead_by(trail, term)

    async def _lead_by(self, trail: Trail, term: int) -> None:
        scheduler = Scheduler()
        self._liveness = self._make_liveness()
        self._liveness.leader_since(self._clock.monotonic_ms(), self._node_id)
        next_look_ms = 0
        while self._leads(term):
            now_ms = self._clock.monotonic_ms()
            if now_ms >= next_look_ms:
                took_ms = await self._look_at_nodes(self._liveness, term)
                next_look_ms = now_ms + max(TICK_MS, min(LOOK_RATIO * took_ms, LOOK_MS_MAX))
            planner = _Planner(scheduler, trail, term, next_look_ms)
            more, wake_at_ms = await self._plan(planner)
            if not more:
                await self._rest(planner.index, wake_at_ms)
            if not (more and planner.has_proposed):
                await self._pause()

    async def _rest(self, index: int, wake_at_ms: int | None) -> None:
        """Until the state has moved past `index`, a timer of the plan is due, or the next look."""
        wait_ms = TICK_MS
        if wake_at_ms is not None:
            wait_ms = max(1, min(wait_ms, wake_at_ms - self._leader_clock.now_ms()))
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._feed.changed(index)
        except TimeoutError:
            return

    async def _pause(self) -> None:
        """Others have the loop for twice as long as plans took since the last pause."""
        spent_ms, self._spent_ms = self._spent_ms, 0
        pause_ms = max(COALESCE_MS, min(PAUSE_RATIO * spent_ms, PAUSE_MS_MAX))
        await asyncio.sleep(pause_ms / 1000)

    async def _look_at_nodes(self, liveness: Liveness, term: int) -> int:
        """Returns how many milliseconds the look took, not counting what it led to."""
        state = self._feed.state
        now_ms = self._clock.monotonic_ms()
        liveness.on_heartbeat(self._node_id, now_ms)
        with undisturbed():
            verdict = liveness.decide(state.nodes, self._gossip_states(), now_ms)
        took_ms = self._clock.monotonic_ms() - now_ms
        if verdict.brake != self.brake:
            if verdict.brake is not None:
                _log.error("brake cause=%s", verdict.brake)
            self.brake = verdict.brake
        for node_id, status, reason in verdict.changes:
            node = state.nodes[node_id]
            _log.info("node_status node=%s status=%s cause=%s", node.name, status, reason)
            await self._try(SetNodeStatus(term, node_id, status, reason))
        return took_ms

    async def _plan(self, planner: _Planner) -> tuple[bool, int | None]:
        """Whether there is more to plan at once, and when to plan again without a change."""
        if self._feed.state.jobs and self._warm_up is not None:
            warm_up, self._warm_up = self._warm_up, None
            await warm_up()
        async with self._planning:
            plan = self._make_plan(planner)
            while plan.command is not None:
                command, following = plan.command, None
                planner.has_proposed = True
                proposing = asyncio.create_task(self._try(command))
                try:
                    if plan.more and _is_large(command) and self._may_go_on(planner):
                        await asyncio.sleep(0)  # it is on its way
                        following = self._make_plan(planner, ahead=command)
                    proposed = await proposing
                finally:
                    proposing.cancel()
                if not await self._is_well_received(proposed):
                    return proposed is not None and plan.more, plan.wake_at_ms
                if following is None or following.command is None:
                    return plan.more, plan.wake_at_ms
                if not self._leads(planner.term):
                    return False, None
                plan = following
        return plan.more, plan.wake_at_ms

    def _make_plan(self, planner: _Planner, ahead: ApplyPlan | None = None) -> Plan:
        before, state, events = planner.trail.look()
        if events is not None:
            planner.scheduler.note(before, state, events)
        planner.index = state.index
        now_ms = self._leader_clock.now_ms()
        began_ms = self._clock.monotonic_ms()
        silent_ms, seed = self._silent_ms(state), self._new_seed()
        with self._feed.large_entries, undisturbed():
            plan = planner.scheduler.plan(state, now_ms, planner.term, seed, silent_ms, ahead)
        self._spent_ms += self._clock.monotonic_ms() - began_ms
        return plan

    def _may_go_on(self, planner: _Planner) -> bool:
        """Nobody waits for the end of planning, neither a lease nor the look at the nodes; and no task
        has to go for what may have been given twice, in the plan ahead and in the state."""
        state = self._feed.state
        preempts = state.settings.preemption or bool(state.preempted)
        return (
            not preempts
            and self._confirming is None
            and self._clock.monotonic_ms() < planner.next_look_ms
        )

    async def _is_well_received(self, proposed: Proposed | None) -> bool:
        """Whether the plan did all that it was to; else a pause, unless it is not known."""
        if proposed is None:
            return False
        match proposed.outcome:
            case PlanApplied(refused_count=refused) if refused:
                # Normal when the state moved on meanwhile; the next pass sees why.
                _log.info("plan_refused count=%d first=%s", refused, proposed.outcome.refused[0])
            case Rejected(reason=reason, message=message):
                _log.warning("plan_rejected reason=%s message=%s", reason, message)
            case _:
                return True
        await asyncio.sleep(REFUSED_PAUSE_MS / 1000)
        return False

    def _silent_ms(self, state: ClusterState) -> dict[NodeId, int]:
        assert self._liveness is not None
        return self._liveness.silent_ms(state.nodes, self._clock.monotonic_ms())

    async def _try(self, body: Body) -> Proposed | None:
        """None when it is not known to have happened: the next pass looks at the state again."""
        try:
            return await self._propose(body, actor=f"leader:{self._node_id}")
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("proposal_failed command=%s cause=%s", type(body).__name__, error)
            return None


class _Planner:
    """What plans are made by. `index`: of the state that the newest was made of. `has_proposed`: one
    had something to do, so others had the loop while it was on its way."""

    def __init__(self, scheduler: Scheduler, trail: Trail, term: int, next_look_ms: int) -> None:
        self.scheduler = scheduler
        self.trail = trail
        self.term = term
        self.next_look_ms = next_look_ms
        self.index = 0
        self.has_proposed = False


def _is_large(plan: ApplyPlan) -> bool:
    return sum(len(one.slots) for one in plan.placements) >= AHEAD_PLACEMENTS_MIN
