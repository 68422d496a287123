"""Everything that is said goes through here, so that everything that is said carries news."""

from __future__ import annotations

import msgspec

from cube.gossip.effects import Effect, Exchange, Send
from cube.gossip.member import MemberState, life_of
from cube.gossip.packets import (
    NOBODY,
    PACKET_BYTES_MAX,
    Carrier,
    Gossip,
    Packet,
    Rumour,
    encode,
    rumour_bytes,
)
from cube.gossip.roster import Roster
from cube.gossip.rumours import RumourQueue
from cube.model.ids import NodeId

_ARRAY_HEADER_GROWTH_BYTES = 2  # msgpack's, from an empty array to one of 16 or more


class Outbox:
    """Collects effects until drain()."""

    def __init__(self, roster: Roster, rumours: RumourQueue) -> None:
        self._roster = roster
        self._rumours = rumours
        self._effects: list[Effect] = []

    def send(self, address: str, packet: Carrier, recipient: NodeId) -> None:
        """The packet is sent, filled up with the most urgent rumours."""
        self._effects.append(Send(address, self._loaded(packet, recipient)))

    def send_news(self, address: str, recipient: NodeId) -> None:
        """The most urgent rumours are sent, if there are any."""
        packet = self._loaded(Gossip(self._roster.self_id), recipient)
        if packet.rumours:
            self._effects.append(Send(address, packet))

    def exchange(self, address: str, packet: Packet, timeout_ms: int) -> None:
        self._effects.append(Exchange(address, packet, timeout_ms))

    def drain(self) -> list[Effect]:
        """All effects since the last call, and the changes of the roster."""
        effects = self._effects + self._roster.changes
        self._effects = []
        self._roster.changes.clear()
        return effects

    def _loaded(self, packet: Carrier, recipient: NodeId) -> Carrier:
        room_bytes = PACKET_BYTES_MAX - len(encode(packet)) - _ARRAY_HEADER_GROWTH_BYTES
        rumours: tuple[Rumour, ...] = ()
        known = self._roster.members.get(recipient)
        if known is not None and known.state in (MemberState.SUSPECT, MemberState.DEAD):
            # Lifeguard's buddy system: whoever is accused hears it first, to refute it soonest.
            accusation = Rumour(life_of(known), NOBODY)
            room_bytes -= rumour_bytes(accusation)
            rumours = (accusation,)
        rumours += self._rumours.take(room_bytes, self._roster.live_count(), recipient)
        return msgspec.structs.replace(packet, rumours=rumours)
