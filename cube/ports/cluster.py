"""What the API needs of its node. The agent's services provide it; API tests fake it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from cube.model.cluster import ClusterState, Task
from cube.model.commands import (
    Body,
    InstallGossipKey,
    RotateJoinToken,
    SetDrain,
    SetNodeStatus,
    SubmitJob,
)
from cube.model.dryrun import DryRun
from cube.model.events import Event
from cube.model.explain import Explanation
from cube.model.ids import CommandId, NodeId
from cube.model.launch import LogChunk, TaskStats
from cube.model.outcome import Outcome
from cube.model.sessions import ExecCaller, ExecOrder
from cube.model.trust import ApiToken, JoinToken
from cube.ports.log import Ask, LogStatus, Progress
from cube.ports.session import Session
from cube.ports.trust import EnrolGrant, EnrolRefusal, EnrolRequest


class MemberStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a node measures of itself; travels by gossip, seconds old. Whole host, not Cube's share."""

    cpu_percent: float = 0.0  # of all cores
    cpu_cores: int = 0
    load_1m: float = 0.0
    memory_total_bytes: int = 0
    memory_used_bytes: int = 0
    disk_total_bytes: int = 0
    disk_used_bytes: int = 0
    applied_index: int = 0


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A peer as gossip sees it, ourselves included. `state`: alive | suspect | dead | left."""

    node_id: NodeId
    name: str
    state: str
    incarnation: int
    gossip_address: str
    http_address: str
    raft_address: str
    last_seen_ms: int  # wall clock here, 0: never
    stats: MemberStats | None
    lineage: str = ""  # see LogStatus


class Published(msgspec.Struct, frozen=True):
    """One applied entry. `number` orders the events of one index from 0: SSE ids are index.number."""

    index: int
    at_ms: int
    events: tuple[Event, ...]


class Proposed(msgspec.Struct, frozen=True):
    outcome: Outcome
    index: int  # where it was committed; of the first time, when it was a repetition


class Cluster(Protocol):
    """The cluster as one node sees it: reads are of this node's own replica, writes go through the
    log."""

    def state(self) -> ClusterState:
        """The newest applied state here; its index never goes back."""
        ...

    async def propose(
        self, body: Body, *, actor: str, command_id: CommandId | None = None, digest: str = ""
    ) -> Proposed:
        """Committed, applied here. Retries by itself with the same id until write_timeout. Raises
        Unavailable (nothing was done), OutcomeUnknown. `command_id` None: a random one."""
        ...

    async def wait_index(self, index: int, timeout_ms: int) -> bool:
        """True as soon as this node has applied `index`; False at the deadline."""
        ...

    async def barrier(self, timeout_ms: int) -> int:
        """See Log.barrier. Raises Unavailable."""
        ...

    def log_status(self) -> LogStatus: ...

    async def transfer_leadership(self, to: NodeId | None) -> None:
        """See Peers.transfer; from any node. This node knows the new leader."""
        ...

    async def progress(self) -> tuple[Progress, ...]:
        """See Log.progress; as the leader sees it, from any node. Raises Unavailable."""
        ...

    async def remove_vote(self, node_id: NodeId) -> None:
        """See Peers; from any node."""
        ...

    def warnings(self) -> tuple[str, ...]:
        """What an operator should know of the cluster, as sentences, as far as this node can tell."""
        ...

    def node_id(self) -> NodeId:
        """This node's."""
        ...

    def members(self) -> Sequence[MemberView]: ...

    def joined(self) -> str | None:
        """None once this node is part of a cluster; else the sentence to show (for 503s)."""
        ...

    def events_since(self, index: int, number: int) -> list[Published] | None:
        """Remembered entries with events after (index, number), oldest first; the entry at `index`
        itself is included whole when it has events after `number`. None: too old, or unknown here."""
        ...

    def events_kept(self) -> list[Published]:
        """All remembered entries with events, oldest first."""
        ...

    def explain(self, job: str) -> list[Explanation]:
        """Why tasks of the job are not running as wanted; empty when they are. Computed here, from
        this node's own state."""
        ...

    async def why(self, state: ClusterState, job: str) -> list[Explanation]:
        """As `explain` of this state, and of what has no place each single change that was tried
        and places it. Computed here, beside the event loop. Raises Unavailable."""
        ...

    async def dry_run(
        self, state: ClusterState, body: SubmitJob | SetDrain | SetNodeStatus
    ) -> DryRun:
        """What the command would come to in this state, which stays as it is. Computed here, beside
        the event loop; one after the other. Raises Unavailable."""
        ...


class LocalTasks(Protocol):
    """This node's own tasks, for requests that must be answered where the task is."""

    def logs(
        self, task: Task, *, streams: tuple[str, ...], tail: int | None, since_ms: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """See Driver.logs. Raises DriverFailed."""
        ...

    async def stats(self, task: Task) -> TaskStats:
        """See Driver.stats."""
        ...

    async def signal(self, task: Task, name: str, actor: str) -> None:
        """See Driver.signal; noted in this node's log as `actor`'s."""
        ...

    def exec(
        self, task: Task, order: ExecOrder, caller: ExecCaller
    ) -> AbstractAsyncContextManager[Session]:
        """A session beside the task, noted in this node's log at once, and told to the cluster. Raises
        DriverFailed, "too_many_sessions" too."""
        ...

    async def volume_names(self) -> list[str]:
        """See VolumeStore. Empty where no driver has volumes. Raises DriverFailed."""
        ...

    async def remove_volume(self, name: str) -> bool:
        """See VolumeStore. Raises DriverFailed."""
        ...


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    node_id: NodeId
    name: str
    raft_address: str
    gossip_address: str
    http_address: str
    version: str


class JoinGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What a joiner needs to start. `voters` and `gossip_seeds` are host:port. `lineage`: see
    LogStatus."""

    cluster_id: str
    cluster_name: str
    voters: tuple[str, ...]
    gossip_seeds: tuple[str, ...]
    lineage: str = ""


class BootstrapView(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself to others that wait for bootstrap_expect."""

    node_id: NodeId
    cluster_id: str | None
    expect: int
    vouches_for: NodeId | None
    ca_fingerprint: str = ""  # of the cluster's CA, for who shares its secret


class TokenDesk(Protocol):
    """Secrets made on request. `seed` not None: the same seed gives the same secret, on every node
    of the cluster and on no other. All raise Unavailable while this node has no keys."""

    def api_token(self, seed: str | None) -> ApiToken: ...

    def token_key(self, secret: bytes) -> bytes:
        """The `key` of its TokenRecord."""
        ...

    def join_token(self) -> JoinToken:
        """The present one. Raises Unavailable when it cannot be told."""
        ...

    def new_join_token(self, seed: str | None) -> tuple[RotateJoinToken, JoinToken]:
        """Valid once the command is committed."""
        ...

    def new_gossip_key(self, seed: str | None) -> InstallGossipKey: ...


# (name, value) → what the log may have of a secret, and a fingerprint: equal for equal values of the
# name, and no help in guessing them. Raises Unavailable while this node has no keys.
SealSecret = Callable[[str, bytes], tuple[bytes, bytes]]


class LogRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A node that follows the log asks for what comes next. `was_member`: by its own state it is
    registered; unknown means removed, then."""

    node_id: NodeId
    was_member: bool
    ask: Ask
    wait_ms: int


class Peers(Protocol):
    """Node-to-node requests that come in over HTTP (/v1/internal/…)."""

    async def join(self, request: JoinRequest) -> JoinGrant:
        """At the leader: what the joiner needs to start following. Raises Unavailable elsewhere
        (`leader_http()` says where to ask)."""
        ...

    async def remove_vote(self, node_id: NodeId) -> None:
        """At the leader: a node that is down, or has left, votes no more, committed. Raises
        Unavailable (also when its vote is needed), OutcomeUnknown. Idempotent."""
        ...

    async def transfer(self, node_id: NodeId | None) -> None:
        """At the leader: the node leads, or with None the voter that lacks least of the log. Raises
        Unavailable (also when it cannot), OutcomeUnknown."""
        ...

    def progress(self) -> tuple[Progress, ...]:
        """At the leader: see Log.progress. Raises Unavailable elsewhere."""
        ...

    def leader_http(self) -> str | None:
        """HTTP address (host:port) of the leader, when known."""
        ...

    def heartbeat(self, node_id: NodeId, log_index: int | None) -> bool:
        """Noted; False when this node does not lead. `log_index`: the last entry that it knows to be
        committed, None when it does not say."""
        ...

    async def lease(self, node_id: NodeId) -> int | None:
        """The node may run what needs a lease from the sending of its heartbeat on, once it has
        applied this index. None: this node cannot say so now."""
        ...

    async def log(self, request: LogRequest) -> bytes:
        """What this node answers one that follows the log (Log.feed). Raises Unavailable: also when
        the node was removed from the cluster, or this one has no vote; Redirected when it has none
        and knows who leads."""
        ...

    def bootstrap(self) -> BootstrapView: ...

    def bootstrap_sealed(self, nonce: str) -> bytes:
        """The same, in an envelope that only hosts with the shared secret can open, for the purpose
        `bootstrap_purpose(nonce)`. Raises Unavailable when this node has no such secret."""
        ...

    def ca(self) -> str:
        """The cluster's CA, as PEM. Raises Unavailable while there is none."""
        ...

    def enrol(self, host: str, request: EnrolRequest) -> EnrolGrant | EnrolRefusal:
        """A certificate for a new node. `host`: where it asks from."""
        ...
