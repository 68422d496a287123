"""Who is in the cluster, as far as one node knows, and which of two reports about a node wins.

Source: SWIM §4.2 for incarnations; the order of states as in apple/swift-cluster-membership
SWIM.swift, with one change: alive(N + 1) beats dead(N) too, so that a node that was declared dead by
a partition comes back without a new identity.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from cube.model.ids import NodeId

META_BYTES_MAX = 512  # a rumour of a member fits one datagram with room for its envelope
STATS_BYTES_MAX = 256  # several members' statistics fit one datagram
NODE_ID_CHARS_MAX = 64  # a UUID has 36
ADDRESS_CHARS_MAX = 260  # the longest DNS name, and a port
VERSION_MAX = (1 << 63) - 1  # what msgpack and every language's int64 can carry

# Printable ASCII: a character is a byte, so that what fits by characters fits a datagram.
Name = Annotated[
    NodeId, msgspec.Meta(min_length=1, max_length=NODE_ID_CHARS_MAX, pattern=r"^[!-~]*\Z")
]
NameOrNone = Annotated[NodeId, msgspec.Meta(max_length=NODE_ID_CHARS_MAX, pattern=r"^[!-~]*\Z")]
Address = Annotated[str, msgspec.Meta(max_length=ADDRESS_CHARS_MAX, pattern=r"^[!-~]*\Z")]
Version = Annotated[int, msgspec.Meta(ge=0, le=VERSION_MAX)]


class MemberState(enum.IntEnum):
    """The number is the rank within one incarnation: the higher one wins."""

    ALIVE = 0
    SUSPECT = 1  # did not answer; has until the end of its suspicion to say that it lives
    DEAD = 2  # did not say so
    LEFT = 3  # said goodbye


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Three reports about one node, each with a version of its own: its life, its meta, its stats.

    Life is (incarnation, state, address). Only the node itself raises its incarnation; others only
    raise the state within one. `meta` and `stats` are opaque here and written by the node alone. A
    version of 0 means: this part is not known, which loses against anything.
    """

    node_id: Name
    address: Address = ""  # host:port of gossip
    incarnation: Version = 0
    state: MemberState = MemberState.ALIVE
    meta_version: Version = 0
    meta: Annotated[bytes, msgspec.Meta(max_length=META_BYTES_MAX)] = b""
    stats_version: Version = 0
    stats: Annotated[bytes, msgspec.Meta(max_length=STATS_BYTES_MAX)] = b""

    @property
    def is_live(self) -> bool:
        """It takes part: probed, asked, told. A suspect does, until proven dead."""
        return self.state <= MemberState.SUSPECT


def merge(a: Member, b: Member) -> Member:
    """What is known from both reports: for each part the one with the higher precedence.

    Commutative, associative and idempotent, so the order, number and path of reports do not matter:
    nodes that have heard the same reports believe the same. The bytes themselves take part in the
    comparison only to keep it so against a peer that gives one version to two contents.
    """
    assert a.node_id == b.node_id
    life = a if _life(a) >= _life(b) else b
    meta = a if (a.meta_version, a.meta) >= (b.meta_version, b.meta) else b
    stats = a if (a.stats_version, a.stats) >= (b.stats_version, b.stats) else b
    return Member(
        a.node_id,
        life.address,
        life.incarnation,
        life.state,
        meta.meta_version,
        meta.meta,
        stats.stats_version,
        stats.stats,
    )


def life_of(member: Member) -> Member:
    """Only where and whether it lives."""
    return Member(member.node_id, member.address, member.incarnation, member.state)


def without_stats(member: Member) -> Member:
    """What changes seldom."""
    return Member(
        member.node_id,
        member.address,
        member.incarnation,
        member.state,
        member.meta_version,
        member.meta,
    )


def stats_of(member: Member) -> Member:
    """Only its statistics."""
    return Member(member.node_id, stats_version=member.stats_version, stats=member.stats)


def _life(member: Member) -> tuple[int, int, str]:
    return (member.incarnation, member.state, member.address)
