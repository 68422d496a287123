"""Who votes: the loop around cube.scheduler.voters. Runs on every node, acts on the leader."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from cube.model.cluster import ClusterState
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.ports.clock import Clock
from cube.ports.log import Log, LogStatus, Progress, Role
from cube.ports.remote import Redirected, RemoteNodes
from cube.scheduler.voters import (
    AddVoter,
    Decision,
    Member,
    RemoveVoter,
    Seen,
    Step,
    TransferLeadership,
    decide,
    heir,
    may_remove,
    may_transfer,
)
from cube.services.state_feed import StateFeed

TICK_S = 0.25  # voters and learners are looked at this often, and when the leader changes
STEP_MS = 5_000  # one change, with its commit; a change waits for the one before it
RETRY_S = 1.0  # after a step that failed: what stopped it takes longer than a look
# An operator's transfer waits this long for a voter that does not answer or has not caught up: one
# that has just become a voter has not been heard yet.
HEIR_WAIT_MS = 2_000
HEIR_LOOK_S = 0.05

_log = logging.getLogger(__name__)


class _Told(msgspec.Struct, frozen=True):
    """By a heartbeat: where the node's log ended, and what it lacked then of what is committed here."""

    log_index: int
    lag: int
    at_ms: int


class VoterLoop:
    """`why` says what of the voters is not as it should be, at the leader; empty elsewhere."""

    def __init__(
        self,
        log: Log,
        raft_address: str,
        feed: StateFeed,
        clock: Clock,
        remote: RemoteNodes,
        leader_http: Callable[[], str | None],
        voters_max: int,
        dead_voter_grace_ms: int,
    ) -> None:
        self._log = log
        self._raft_address = raft_address
        self._feed = feed
        self._clock = clock
        self._remote = remote
        self._leader_http = leader_http
        self._voters_max = voters_max
        self._grace_ms = dead_voter_grace_ms
        self._handed_over_in = -1  # the last term in which this leader tried to hand over
        self._told: dict[NodeId, _Told] = {}
        self._told_in = -1  # the term of it: a new leader hears everybody anew
        self._status_changed = asyncio.Event()
        self.why = ""

    def on_log_status(self, _status: LogStatus) -> None:
        self._status_changed.set()

    def note(self, node_id: NodeId, log_index: int) -> None:
        """The node has the log up to there, as its heartbeat says: how a leader knows what becomes of
        learners, which it does not feed."""
        if self._told_in != self._log.status().term:
            self._told.clear()
            self._told_in = self._log.status().term
        lag = max(0, self._log.status().commit_index - log_index)
        self._told[node_id] = _Told(log_index, lag, self._clock.monotonic_ms())

    async def remove_vote(self, node_id: NodeId) -> None:
        """A node that is down, or has left, votes no more; through the leader, wherever it is.
        Raises Unavailable (also when its vote is needed), OutcomeUnknown."""
        if self._leads():
            await self._remove_here(node_id)
            return
        leader = self._leader_http()
        if leader is None:
            raise Unavailable("no leader is known")
        try:
            await self._remote.remove_vote(leader, node_id)
        except Redirected as redirect:
            raise Unavailable(f"the leader has just changed to {redirect.leader}") from None

    async def transfer(self, node_id: NodeId | None) -> None:
        """The node, or with None the voter that lacks least, leads; through the leader, wherever it
        is. Raises Unavailable (also when it cannot), OutcomeUnknown."""
        if self._leads():
            await self._transfer_here(node_id)
            return
        leader = self._leader_http()
        if leader is None:
            raise Unavailable("no leader is known")
        try:
            await self._remote.transfer(leader, node_id)
        except Redirected as redirect:
            raise Unavailable(f"the leader has just changed to {redirect.leader}") from None

    async def _transfer_here(self, node_id: NodeId | None) -> None:
        to: str | None = None
        if node_id is not None:
            node = self._feed.state.nodes.get(node_id)
            if node is None:
                raise Unavailable(f"there is no node {node_id}")
            to = node.facts.raft_address
        give_up_at_ms = self._clock.monotonic_ms() + HEIR_WAIT_MS
        while (refusal := may_transfer(seen := self._seen(self._feed.state), to)) is not None:
            can_pass = to is None or to in seen.voters
            if not can_pass or self._clock.monotonic_ms() >= give_up_at_ms or not self._leads():
                raise Unavailable(refusal)
            await asyncio.sleep(HEIR_LOOK_S)
        try:
            await self._log.transfer_leadership(STEP_MS, to or heir(seen))
        except Unavailable as error:
            raise Unavailable(f"leadership was not handed over in time: {error}") from None

    async def progress(self) -> tuple[Progress, ...]:
        """The other members as the leader sees them, wherever it is. Raises Unavailable."""
        if self._leads():
            return self.progress_here()
        leader = self._leader_http()
        if leader is None:
            raise Unavailable("no leader is known")
        try:
            return await self._remote.progress(leader)
        except Redirected as redirect:
            raise Unavailable(f"the leader has just changed to {redirect.leader}") from None

    def progress_here(self) -> tuple[Progress, ...]:
        """At the leader: the voters as its log sees them, learners as they say themselves; by address."""
        now_ms = self._clock.monotonic_ms()
        nodes = self._feed.state.nodes
        self._told = {id_: told for id_, told in self._told.items() if id_ in nodes}
        found = {one.address: one for one in self._log.progress()}
        voters = self._voters()
        for node_id, told in self._told.items():
            address = nodes[node_id].facts.raft_address
            if address not in voters:
                silent_ms = now_ms - told.at_ms
                found[address] = Progress(address, told.log_index, told.lag, silent_ms)
        return tuple(sorted(found.values(), key=lambda one: one.address))

    async def _remove_here(self, node_id: NodeId) -> None:
        node = self._feed.state.nodes.get(node_id)
        if node is None or node.facts.raft_address not in self._voters():
            return
        if not node.may_be_removed:
            raise Unavailable(
                f"{node.name} is {node.status}: only a node that is down loses its vote"
            )
        refusal = may_remove(self._seen(self._feed.state), node.facts.raft_address)
        if refusal is not None:
            raise Unavailable(refusal)
        await self._log.remove_voter(node.facts.raft_address, STEP_MS)

    async def run(self) -> None:
        while True:
            self._status_changed.clear()
            decision = self._decide()
            if decision.why != self.why:
                _log.info("voters why=%s", decision.why or "as wanted")
            self.why = decision.why
            if decision.step is not None:
                if not await self._do(decision.step):
                    await asyncio.sleep(RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._status_changed.wait()

    def _leads(self) -> bool:
        status = self._log.status()
        return status.role is Role.LEADER and status.ready

    def _voters(self) -> frozenset[str]:
        return frozenset(voter.address for voter in self._log.status().voters)

    def _decide(self) -> Decision:
        state = self._feed.state
        if not self._leads() or not state.nodes:
            return Decision(None, "")
        return decide(self._seen(state))

    def _seen(self, state: ClusterState) -> Seen:
        progress = {one.address: one for one in self.progress_here()}
        voters = self._voters() | {self._raft_address}
        members = {
            address: Member(
                address=address, name=address, is_registered=address == self._raft_address
            )
            for address in voters
        }
        for node in state.nodes.values():
            address = node.facts.raft_address
            members[address] = Member(
                address=address,
                name=node.name,
                is_registered=node.status is not NodeStatus.LEFT,
                joined_at_ms=node.joined_at_ms,
                is_resting=node.drain_deadline_ms is not None or not node.eligible,
            )
        for address, one in progress.items():
            if address in members:
                is_heard = one.match_index > 0
                members[address] = msgspec.structs.replace(
                    members[address],
                    silent_ms=one.silent_ms,
                    lag=one.lag if is_heard else None,
                )
        return Seen(
            leader=self._raft_address,
            voters=voters,
            members=members,
            voters_max=self._voters_max,
            dead_voter_grace_ms=self._grace_ms,
            has_tried_handover=self._handed_over_in == self._log.status().term,
        )

    async def _do(self, step: Step) -> bool:
        _log.info("voter_step step=%s", step)
        try:
            match step:
                case AddVoter(address=address):
                    await self._log.add_voter(address, STEP_MS)
                case RemoveVoter(address=address):
                    await self._log.remove_voter(address, STEP_MS)
                case TransferLeadership(address=address):
                    self._handed_over_in = self._log.status().term
                    await self._log.transfer_leadership(STEP_MS, address)
        except (Unavailable, OutcomeUnknown) as error:
            _log.warning("voter_step_failed step=%s cause=%s", type(step).__name__, error)
            return False
        return True
