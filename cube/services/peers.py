"""Node-to-node requests that come in over HTTP: joining, heartbeats, bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest
from cube.ports.log import Log, Progress, Role
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
        return JoinGrant(
            cluster_id=state.cluster_id,
            cluster_name=state.cluster_name,
            voters=voters,
            gossip_seeds=self._gossip_seeds(),
            lineage=log.status().lineage,
        )

    async def admit(self, request: JoinRequest) -> None:
        self._log_as_leader()
        self._refuse_taken_address(request)
        state = self._cluster.state()
        is_unknown = request.node_id not in state.nodes
        if state.trust.is_removed(request.node_id) or (request.was_member and is_unknown):
            raise Unavailable(
                f"node {request.name} was removed from this cluster; "
                "it can join anew with an empty data directory"
            )
        if self.voter_loop is not None:
            self.voter_loop.admit(request.raft_address)

    async def remove_vote(self, node_id: NodeId) -> None:
        self._log_as_leader()
        if self.voter_loop is not None:
            await self.voter_loop.remove_vote(node_id)

    async def transfer(self, node_id: NodeId | None) -> None:
        self._log_as_leader()
        if self.voter_loop is not None:
            await self.voter_loop.transfer(node_id)

    def progress(self) -> tuple[Progress, ...]:
        return self._log_as_leader().progress()

    def leader_http(self) -> str | None:
        return self._cluster.leader_http()

    def heartbeat(self, node_id: NodeId) -> bool:
        return self.leader_loop is not None and self.leader_loop.heartbeat(node_id)

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
