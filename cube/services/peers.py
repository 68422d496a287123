"""Node-to-node requests that come in over HTTP: joining, following, heartbeats, bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest, LogRequest
from cube.ports.log import LEARNERS_MAX, Log, Progress, Role
from cube.ports.remote import Redirected
from cube.ports.trust import (
    EnrolGrant,
    EnrolRefusal,
    EnrolRequest,
    RefusalCode,
    bootstrap_purpose,
)
from cube.services.cluster_view import ClusterView
from cube.services.enrolment import EnrolDesk
from cube.services.leader_loop import LeaderLoop
from cube.services.voter_loop import VoterLoop


class PeerDesk:
    """ports.cluster.Peers. `leader_loop` and `voter_loop` are set once this node is part
    of a cluster."""

    def __init__(
        self,
        cluster: ClusterView,
        bootstrap_view: Callable[[], BootstrapView],
        gossip_seeds: Callable[[], tuple[str, ...]],
        desk: EnrolDesk | None = None,
        seal_shared: Callable[[str, bytes], bytes] | None = None,
    ) -> None:
        """`desk` None: nobody is enrolled here. `seal_shared` (purpose, secret): an envelope for
        hosts with the same secret file."""
        self._desk = desk
        self._seal_shared = seal_shared
        self._cluster = cluster
        self._bootstrap_view = bootstrap_view
        self._gossip_seeds = gossip_seeds
        self.leader_loop: LeaderLoop | None = None
        self.voter_loop: VoterLoop | None = None

    def _log_as_leader(self) -> Log:
        log = self._cluster.parts.log
        status = log.status()
        if status.role is not Role.LEADER or not status.ready:
            raise Unavailable("this node does not lead")
        return log

    def _refuse_taken_address(self, request: JoinRequest) -> None:
        """A node that lost its disk is a new one, and a voter without its log is no voter."""
        for node in self._cluster.state().nodes.values():
            if node.facts.raft_address == request.raft_address and node.id != request.node_id:
                raise Unavailable(
                    f"Raft address {request.raft_address} belongs to node {node.name}; "
                    "give the new node another port, or remove the old one first"
                )

    async def join(self, request: JoinRequest) -> JoinGrant:
        log = self._log_as_leader()
        state = self._cluster.state()
        if not state.cluster_id:
            raise Unavailable("this cluster is still being made")
        self._refuse_taken_address(request)
        voters = tuple(sorted(voter.address for voter in log.status().voters))
        if request.raft_address in voters:
            # Whoever asks to join has no log: it was a voter, and lost its disk before it registered.
            raise Unavailable(
                f"Raft address {request.raft_address} is a voter's already; give the new node "
                "another port"
            )
        if len(state.nodes) - len(voters) >= LEARNERS_MAX:
            raise Unavailable(f"{LEARNERS_MAX} nodes without a vote are as many as there can be")
        return JoinGrant(
            cluster_id=state.cluster_id,
            cluster_name=state.cluster_name,
            voters=voters,
            gossip_seeds=self._gossip_seeds(),
            lineage=log.status().lineage,
        )

    async def remove_vote(self, node_id: NodeId) -> None:
        self._log_as_leader()
        if self.voter_loop is not None:
            await self.voter_loop.remove_vote(node_id)

    async def transfer(self, node_id: NodeId | None) -> None:
        self._log_as_leader()
        if self.voter_loop is not None:
            await self.voter_loop.transfer(node_id)

    def progress(self) -> tuple[Progress, ...]:
        self._log_as_leader()
        return self.voter_loop.progress_here() if self.voter_loop is not None else ()

    def leader_http(self) -> str | None:
        return self._cluster.leader_http()

    def heartbeat(self, node_id: NodeId, log_index: int | None) -> bool:
        if self.leader_loop is None or not self.leader_loop.heartbeat(node_id):
            return False
        if self.voter_loop is not None and log_index is not None:
            self.voter_loop.note(node_id, log_index)
        return True

    async def lease(self, node_id: NodeId) -> int | None:
        return None if self.leader_loop is None else await self.leader_loop.lease(node_id)

    async def log(self, request: LogRequest) -> bytes:
        log = self._cluster.parts.log
        state = self._cluster.state()
        is_known = request.node_id in state.nodes or state.index < request.ask.index
        if state.trust.is_removed(request.node_id) or (request.was_member and not is_known):
            raise Unavailable(
                "this node was removed from this cluster; "
                "it can join anew with an empty data directory"
            )
        if log.status().role is Role.LEARNER:
            leader = self._cluster.leader_http()
            if leader is not None:
                raise Redirected(leader)
            raise Unavailable("this node has no vote: it follows the log itself")
        return await log.feed(request.ask, request.wait_ms)

    def bootstrap(self) -> BootstrapView:
        return self._bootstrap_view()

    def bootstrap_sealed(self, nonce: str) -> bytes:
        if self._seal_shared is None:
            raise Unavailable("this node has no [cluster] secret_file")
        view = msgspec.json.encode(self._bootstrap_view())
        return self._seal_shared(bootstrap_purpose(nonce), view)

    def ca(self) -> str:
        if self._desk is None:
            raise Unavailable("this node enrols nobody")
        return self._desk.ca()

    def enrol(self, host: str, request: EnrolRequest) -> EnrolGrant | EnrolRefusal:
        if self._desk is None:
            return EnrolRefusal(RefusalCode.NOT_READY, "this node enrols nobody")
        return self._desk.enrol(host, request)
