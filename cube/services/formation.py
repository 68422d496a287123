"""How a node becomes part of a cluster: makes one, joins one, or goes on in its own.

What is persisted (NodeRecord) before it is said or acted on keeps a crash from making two clusters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest
from cube.ports.disk import Disk
from cube.ports.remote import Redirected, RemoteNodes

RECORD = "node.json"
LOOK_S = 0.3  # between looks at the others while waiting for bootstrap_expect
RETRY_S = 0.5  # first pause between attempts to join; doubles up to
RETRY_MAX_S = 5.0
REDIRECTS_MAX = 5  # from node to node towards the leader, in one attempt

_log = logging.getLogger(__name__)


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A node's identity and membership, in its data directory. `cluster_id` None: not in one yet.
    `created`: this node made the cluster. `lineage`: the history of the cluster that it joined
    (LogStatus)."""

    node_id: NodeId
    raft_address: str
    cluster_id: str | None = None
    cluster_name: str = ""
    created: bool = False
    insecure: bool | None = None  # the cluster asks nobody who they are; None: it was restored
    voters: tuple[str, ...] = ()
    gossip_seeds: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    lineage: str = ""
    vouches_for: NodeId | None = None


class Records:
    """The record and its file, always equal."""

    def __init__(self, disk: Disk, fresh: NodeRecord) -> None:
        """The record of the data directory, or `fresh`, stored. Raises BadPacket for a damaged file."""
        self._disk = disk
        data = disk.read(RECORD)
        if data is None:
            self.now = fresh
            self._write(fresh)
        else:
            try:
                self.now = msgspec.json.decode(data, type=NodeRecord)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise BadPacket(f"{RECORD} in the data directory is damaged: {error}") from error

    def _write(self, record: NodeRecord) -> None:
        self._disk.replace(RECORD, msgspec.json.format(msgspec.json.encode(record)))

    def update(self, **changes: object) -> NodeRecord:
        """Durable before it is visible."""
        record = msgspec.structs.replace(self.now, **changes)
        self._write(record)
        self.now = record
        return record


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do yet; `why` is shown."""

    why: str


class Vouch(msgspec.Struct, frozen=True):
    node_id: NodeId


class Create(msgspec.Struct, frozen=True):
    """Every one of the expected nodes vouches for this one."""


class JoinThrough(msgspec.Struct, frozen=True):
    """`ca_fingerprint` is empty where there is no TLS to check it with."""

    address: str
    ca_fingerprint: str = ""


def bootstrap_step(
    me: NodeId,
    expect: int,
    vouches_for: NodeId | None,
    views: Sequence[tuple[str, BootstrapView | None]],
) -> Wait | Vouch | Create | JoinThrough:
    """The next safe step of one of `expect` nodes that were started with the same list.

    At most one node is ever vouched for by all: each vouches once, for the lowest id it saw when it
    saw all of them. Shape of `views`: one per address of the list, None where unreachable.
    """
    for address, view in views:
        if view is not None and view.cluster_id is not None:
            return JoinThrough(address, view.ca_fingerprint)
    missing = sorted(address for address, view in views if view is None)
    if missing:
        return Wait(f"waiting for {', '.join(missing)}")
    seen = {view.node_id: view for _, view in views if view is not None}
    if len(seen) != expect:
        return Wait(f"bootstrap_expect is {expect}, and the list leads to {len(seen)} nodes")
    if me not in seen:
        return Wait("the join list does not name this node")
    wrong = sorted(node_id for node_id, view in seen.items() if view.expect != expect)
    if wrong:
        return Wait(f"bootstrap_expect differs at {', '.join(wrong)}")
    lowest = min(seen)
    if vouches_for is None:
        return Vouch(lowest)
    if vouches_for not in seen:
        return Wait(
            f"this node vouched for {vouches_for}, which is not among the nodes any more; "
            "if that node's disk is lost, empty all data directories and start again"
        )
    if vouches_for == me and all(view.vouches_for == me for view in seen.values()):
        return Create()
    return Wait("waiting for every node to agree on the first one")


class Formation:
    """Drives a fresh node to membership. `on_obstacle` gets the sentence to show meanwhile."""

    def __init__(
        self,
        records: Records,
        remote: RemoteNodes,
        request: JoinRequest,
        on_obstacle: Callable[[str], None],
        look: Callable[[str], Awaitable[BootstrapView]] | None = None,
    ) -> None:
        """`look` asks a node of the bootstrap list what it says of itself; by default `remote`."""
        self._look = look or remote.bootstrap
        self._records = records
        self._remote = remote
        self._request = request
        self._on_obstacle = on_obstacle
        self._last_why = ""

    def _obstacle(self, why: str) -> None:
        if why != self._last_why:
            _log.info("forming why=%s", why)
            self._last_why = why
        self._on_obstacle(why)

    def bootstrap_view(self, expect: int) -> BootstrapView:
        """What this node says of itself."""
        record = self._records.now
        return BootstrapView(
            node_id=record.node_id,
            cluster_id=record.cluster_id,
            expect=expect,
            vouches_for=record.vouches_for,
        )

    def create(self, cluster_id: str, name: str, *, insecure: bool = False) -> NodeRecord:
        """This node is the first of a new cluster."""
        _log.info("cluster_created cluster=%s name=%s", cluster_id, name)
        return self._records.update(
            cluster_id=cluster_id, cluster_name=name, created=True, insecure=insecure
        )

    async def bootstrap(self, expect: int, addresses: Sequence[str]) -> JoinThrough | None:
        """None: this node is to create the cluster. Else through whom to join it."""
        while True:
            views = await asyncio.gather(*(self._view(address) for address in addresses))
            record = self._records.now
            step = bootstrap_step(
                record.node_id, expect, record.vouches_for, list(zip(addresses, views, strict=True))
            )
            match step:
                case Create():
                    return None
                case JoinThrough():
                    return step
                case Vouch(node_id=node_id):
                    self._records.update(vouches_for=node_id)
                    continue
                case Wait(why=why):
                    self._obstacle(why)
            await asyncio.sleep(LOOK_S)

    async def _view(self, address: str) -> BootstrapView | None:
        try:
            return await self._look(address)
        except (Unavailable, OutcomeUnknown, Redirected):
            return None

    async def join(self, addresses: Sequence[str], *, insecure: bool = False) -> NodeRecord:
        """This node has what it needs to follow the cluster; asks for ever, never makes one itself."""
        pause_s = RETRY_S
        if not addresses:
            self._obstacle("joining: the join list names no other node")
        while True:
            for address in addresses:
                granted = await self._ask(address)
                if granted is not None:
                    leader, grant = granted
                    _log.info("join_granted cluster=%s by=%s", grant.cluster_id, leader)
                    return self._records.update(
                        cluster_id=grant.cluster_id,
                        cluster_name=grant.cluster_name,
                        voters=grant.voters,
                        gossip_seeds=grant.gossip_seeds,
                        lineage=grant.lineage,
                        insecure=insecure,
                        peers=(leader, *(a for a in addresses if a != leader)),
                    )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def _ask(self, address: str) -> tuple[str, JoinGrant] | None:
        """Who granted it, and what."""
        for _ in range(REDIRECTS_MAX):
            try:
                grant = await self._remote.join(address, self._request)
            except Redirected as redirect:
                address = redirect.leader
            except (Unavailable, OutcomeUnknown) as error:
                self._obstacle(f"joining: {error}")
                return None
            else:
                if grant.cluster_id:
                    return address, grant
                self._obstacle(f"joining: {address} is still making its cluster")
                return None
        self._obstacle(f"joining: sent from node to node {REDIRECTS_MAX} times, without a leader")
        return None
