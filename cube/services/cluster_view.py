"""ports.cluster.Cluster: what the API sees of its node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cube.model.cluster import ClusterState
from cube.model.commands import Body
from cube.model.derived import Derived
from cube.model.dryrun import DryRun
from cube.model.errors import Unavailable
from cube.model.explain import Explanation
from cube.model.ids import CommandId, NodeId
from cube.ports.cluster import MemberView, Proposed, Published
from cube.ports.log import Log, LogStatus, Progress
from cube.scheduler.liveness import brake_of
from cube.scheduler.voters import ONE_VOTER
from cube.scheduler.why import explain
from cube.services.dry_run import Foreseeable, foresee
from cube.services.leader_clock import LeaderClock
from cube.services.proposer import Proposer
from cube.services.remedies import why
from cube.services.state_feed import StateFeed
from cube.services.voter_loop import VoterLoop

# A new leader's first message comes at once.
SUCCESSOR_S = 2.0
SUCCESSOR_LOOK_S = 0.02


def strangers(lineage: str, members: Sequence[MemberView]) -> list[str]:
    """A sentence for each node that runs with data of before the cluster was recovered or restored,
    or of afterwards where this node is of before: nobody but a person knows which is to go on."""
    return [
        f"node {member.name} at {member.http_address} runs with another history of "
        "this cluster, which was recovered or restored: end the nodes of one history, and start "
        "them with empty data directories"
        for member in members
        if member.state == "alive" and member.name and member.lineage != lineage
    ]


@dataclass(frozen=True)
class Parts:
    """What exists only once this node is part of a cluster."""

    log: Log
    proposer: Proposer
    leader_clock: LeaderClock
    members: Callable[[], Sequence[MemberView]]
    voter_loop: VoterLoop


class ClusterView:
    """Thin: each method asks the one service that knows. The API answers from it before the node
    has joined, too: until attach(), joined() says why there is nothing else to ask."""

    def __init__(self, node_id: NodeId, feed: StateFeed) -> None:
        self._node_id = node_id
        self._feed = feed
        self._parts: Parts | None = None
        self._brake = Derived(brake_of)
        self._thinking = asyncio.Lock()  # a dry run takes all of a processor
        self.obstacle: str | None = "this node is starting"

    def attach(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def parts(self) -> Parts:
        """Raises Unavailable before attach()."""
        if self._parts is None:
            raise Unavailable(self.obstacle or "this node is starting")
        return self._parts

    def state(self) -> ClusterState:
        return self._feed.state

    async def propose(
        self, body: Body, *, actor: str, command_id: CommandId | None = None, digest: str = ""
    ) -> Proposed:
        if self.obstacle is not None:
            raise Unavailable(self.obstacle)
        return await self.parts.proposer.propose(
            body, actor=actor, command_id=command_id, digest=digest
        )

    async def wait_index(self, index: int, timeout_ms: int) -> bool:
        return await self._feed.wait_index(index, timeout_ms)

    async def barrier(self, timeout_ms: int) -> int:
        return await self.parts.log.barrier(timeout_ms)

    def log_status(self) -> LogStatus:
        return self.parts.log.status()

    async def transfer_leadership(self, to: NodeId | None) -> None:
        log = self.parts.log
        before = log.status()
        await self.parts.voter_loop.transfer(to)
        # The leader that was knows its successor before this node does, perhaps.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SUCCESSOR_S):
                while (now := log.status()).leader is None or now.term == before.term:  # noqa: ASYNC110
                    await asyncio.sleep(SUCCESSOR_LOOK_S)

    async def progress(self) -> tuple[Progress, ...]:
        return await self.parts.voter_loop.progress()

    async def remove_vote(self, node_id: NodeId) -> None:
        await self.parts.voter_loop.remove_vote(node_id)

    def warnings(self) -> tuple[str, ...]:
        if self._parts is None:
            return ()
        status = self._parts.log.status()
        found = [f"this node cannot write its log: {status.fault}"] if status.fault else []
        if self._parts.voter_loop.why:
            found.append(self._parts.voter_loop.why)
        elif len(status.voters) == 1:  # only the leader knows more; this everybody can see
            found.append(ONE_VOTER)
        brake = self._brake.of(self._feed.state.nodes)
        if brake is not None:
            found.append(brake)
        found += strangers(status.lineage, self._parts.members())
        return tuple(found)

    def node_id(self) -> NodeId:
        return self._node_id

    def members(self) -> Sequence[MemberView]:
        return self.parts.members() if self._parts is not None else ()

    def joined(self) -> str | None:
        return self.obstacle

    def events_since(self, index: int, number: int) -> list[Published] | None:
        return self._feed.events_since(index, number)

    def events_kept(self) -> list[Published]:
        return self._feed.events_kept()

    def explain(self, job: str) -> list[Explanation]:
        return explain(self._feed.state, self.parts.leader_clock.now_ms(), job)

    async def why(self, state: ClusterState, job: str) -> list[Explanation]:
        now_ms = self.parts.leader_clock.now_ms()
        async with self._thinking:
            return await asyncio.to_thread(why, state, now_ms, job)

    async def dry_run(self, state: ClusterState, body: Foreseeable) -> DryRun:
        now_ms = self.parts.leader_clock.now_ms()
        async with self._thinking:
            return await asyncio.to_thread(foresee, state, now_ms, body)

    def leader_http(self) -> str | None:
        """HTTP address of the leader, from the leader's Raft address."""
        leader = None if self._parts is None else self._parts.log.status().leader
        if leader is None:
            return None
        for node in self._feed.state.nodes.values():
            if node.facts.raft_address == leader:
                return node.facts.http_address
        return None
