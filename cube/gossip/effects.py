"""What the machine asks of its shell. To be carried out in order, each once, none of them fatal."""

from __future__ import annotations

import msgspec

from cube.gossip.member import Member
from cube.gossip.packets import Packet


class Send(msgspec.Struct, frozen=True):
    """One datagram, best effort. Its encoding is at most PACKET_BYTES_MAX."""

    address: str
    packet: Packet


class Exchange(msgspec.Struct, frozen=True):
    """A reliable request: its answer comes back as on_answer(), its failure as on_no_answer()."""

    address: str
    packet: Packet
    timeout_ms: int


class MemberChanged(msgspec.Struct, frozen=True):
    """What is believed of a member is now `after`. `before` None: it is new. `after` None: forgotten.

    Not sent when only statistics changed: those are read, not waited for.
    """

    before: Member | None
    after: Member | None


Effect = Send | Exchange | MemberChanged
