"""The log and the gossip of one node, from its configuration and its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cube.adapters import entropy
from cube.adapters.raft.log import PySyncObjLog
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.trust.gossip_seal import AesSeal
from cube.adapters.udp import UdpDatagrams
from cube.agent.trust import NodeTrust
from cube.config import Config
from cube.gossip.swim import Swim
from cube.model.addresses import join_address
from cube.model.ids import NodeId
from cube.ports.clock import Clock
from cube.services.formation import NodeRecord
from cube.services.gossip_loop import GossipLoop
from cube.services.state_feed import StateFeed


def make_log(
    config: Config,
    raft_address: str,
    record: NodeRecord,
    replica: StateFeed,
    stamp: Callable[[], int],
    trust: NodeTrust,
) -> PySyncObjLog:
    raft = config.raft
    return PySyncObjLog(
        raft_address,
        data_dir=Path(config.node.data_dir) / "raft",
        replica=replica,
        stamp=stamp,
        members=tuple(voter for voter in record.voters if voter != raft_address),
        settings=RaftSettings(
            heartbeat_ms=raft.heartbeat_ms,
            election_min_ms=raft.election_min_ms,
            election_max_ms=raft.election_max_ms,
            snapshot_every=raft.snapshot_every,
        ),
        joining=not record.created,
        cluster=record.cluster_id or "",
        lineage=record.lineage,
        tls=trust,
        listen_at=join_address(config.bind.address, config.bind.raft),
    )


def make_gossip(
    config: Config, node_id: NodeId, address: str, meta: bytes, clock: Clock, seal: AesSeal
) -> GossipLoop:
    swim = Swim(config.gossip, node_id, address, meta, clock.now_ms(), entropy.dice())
    datagrams = UdpDatagrams(config.bind.address, config.bind.gossip)
    return GossipLoop(swim, datagrams, clock, seal)
