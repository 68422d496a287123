"""Gossip's members as the API and the leader see them, and what this node says of itself there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from cube.gossip.member import META_BYTES_MAX, STATS_BYTES_MAX, Member
from cube.model.ids import NodeId
from cube.ports.cluster import MemberStats, MemberView
from cube.services.gossip_loop import GossipLoop

STATS_EVERY_S = 5.0  # seconds old is good enough for bars on a page

NAME_CHARS_MAX = 64
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_STATE_WORDS = {0: "alive", 1: "suspect", 2: "dead", 3: "left"}


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """What others need before Raft has told them: name and addresses; and what Raft cannot tell them,
    which history of the cluster this node is part of (LogStatus)."""

    name: str
    http_address: str
    raft_address: str
    lineage: str = ""


class _Stats(msgspec.Struct, frozen=True, array_like=True):
    """MemberStats without its field names: a datagram has room for few bytes."""

    cpu_percent: float
    cpu_cores: int
    load_1m: float
    memory_total_bytes: int
    memory_used_bytes: int
    disk_total_bytes: int
    disk_used_bytes: int
    applied_index: int


def encode_meta(name: str, http_address: str, raft_address: str, lineage: str = "") -> bytes:
    """At most META_BYTES_MAX. Addresses that are too long for that are left to the state to tell."""
    name = name[:NAME_CHARS_MAX]
    data = msgspec.msgpack.encode(Meta(name, http_address, raft_address, lineage))
    if len(data) > META_BYTES_MAX:
        data = msgspec.msgpack.encode(Meta(name, "", "", lineage))
    assert len(data) <= META_BYTES_MAX
    return data


def encode_stats(stats: MemberStats) -> bytes:
    data = msgspec.msgpack.encode(_Stats(*(getattr(stats, f) for f in _Stats.__struct_fields__)))
    assert len(data) <= STATS_BYTES_MAX
    return data


def _decode_meta(data: bytes) -> Meta:
    try:
        return msgspec.msgpack.decode(data, type=Meta)
    except _UNREADABLE:  # of another release: the member is shown without its addresses
        return Meta("", "", "")


def _decode_stats(data: bytes) -> MemberStats | None:
    try:
        told = msgspec.msgpack.decode(data, type=_Stats)
    except _UNREADABLE:
        return None
    return MemberStats(**{field: getattr(told, field) for field in _Stats.__struct_fields__})


class RollCall:
    """Reads the gossip machine; owns nothing but the timer of this node's own statistics."""

    def __init__(self, gossip: GossipLoop, measure: Callable[[], MemberStats]) -> None:
        self._gossip = gossip
        self._measure = measure

    async def run(self) -> None:
        """This node's statistics are in the gossip, some seconds old at most."""
        while True:
            self._gossip.set_stats(encode_stats(self._measure()))
            await asyncio.sleep(STATS_EVERY_S)

    def states(self) -> dict[NodeId, str]:
        """alive | suspect | dead | left, of each known member."""
        return {id_: _STATE_WORDS[state] for id_, state in self._gossip.states().items()}

    def members(self) -> list[MemberView]:
        """By node id."""
        return [self._view(member) for member in self._gossip.members()]

    def _view(self, member: Member) -> MemberView:
        meta = _decode_meta(member.meta)
        return MemberView(
            node_id=member.node_id,
            name=meta.name,
            state=_STATE_WORDS[member.state],
            incarnation=member.incarnation,
            gossip_address=member.address,
            http_address=meta.http_address,
            raft_address=meta.raft_address,
            last_seen_ms=self._gossip.heard_ms(member.node_id),
            stats=_decode_stats(member.stats),
            lineage=meta.lineage,
        )
