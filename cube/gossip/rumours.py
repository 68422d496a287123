"""News waiting to be passed on, each a bounded number of times.

Source: SWIM §4.1; memberlist queue.go:TransmitLimitedQueue.
"""

from __future__ import annotations

import enum
import math

from cube.gossip.member import Member, life_of, stats_of, without_stats
from cube.gossip.packets import NOBODY, RUMOURS_MAX, Rumour, rumour_bytes
from cube.gossip.settings import GossipSettings
from cube.model.ids import NodeId


class Topic(enum.IntEnum):
    """In order of urgency."""

    LIFE = 0
    STATS = 1


class _Entry:
    __slots__ = ("order", "rumour", "sent", "size_bytes", "topic")

    def __init__(self, topic: Topic, rumour: Rumour, order: int) -> None:
        self.topic = topic
        self.rumour = rumour
        self.size_bytes = rumour_bytes(rumour)
        self.sent = 0
        self.order = order

    def urgency(self) -> tuple[int, int, int]:
        # Least told first, so that new news overtakes old; then the newest.
        return (self.topic, self.sent, -self.order)


class RumourQueue:
    """Bounded by itself: per member one rumour of its life (or one per accuser, of which there are
    at most confirmations + 1) and one of its statistics; a newer one replaces the older."""

    def __init__(self, settings: GossipSettings) -> None:
        self._settings = settings
        self._entries: dict[tuple[Topic, NodeId, NodeId], _Entry] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add_life(self, member: Member, accuser: NodeId = NOBODY, *, with_meta: bool) -> None:
        """Where and whether it lives is to be passed on, in place of what was said before."""
        self._drop(Topic.LIFE, member.node_id)
        told = without_stats(member) if with_meta else life_of(member)
        self._put(Topic.LIFE, Rumour(told, accuser))

    def add_accuser(self, suspect: Member, accuser: NodeId) -> None:
        """One more accuser is to be passed on, beside those before."""
        self._put(Topic.LIFE, Rumour(life_of(suspect), accuser))

    def add_stats(self, member: Member) -> None:
        """Its statistics are to be passed on."""
        self._put(Topic.STATS, Rumour(stats_of(member)))

    def forget(self, node_id: NodeId) -> None:
        """Nothing more is said of it."""
        self._drop(Topic.LIFE, node_id)
        self._drop(Topic.STATS, node_id)

    def clear(self) -> None:
        self._entries.clear()

    def take(self, room_bytes: int, live_count: int, recipient: NodeId) -> tuple[Rumour, ...]:
        """The most urgent rumours that fit, counted as told once more; a recipient is not told of
        itself. Shape: at most RUMOURS_MAX."""
        taken: list[Rumour] = []
        for entry in sorted(self._entries.values(), key=_Entry.urgency):
            if (
                len(taken) == RUMOURS_MAX - 1
            ):  # one place is kept for the recipient's own accusation
                break
            if entry.rumour.member.node_id == recipient:
                entry.sent += 1  # else, with two members, it would wait for ever
                continue
            if entry.size_bytes > room_bytes:
                continue
            room_bytes -= entry.size_bytes
            taken.append(entry.rumour)
            entry.sent += 1
        self._retire(live_count)
        return tuple(taken)

    def _retire(self, live_count: int) -> None:
        spread = math.log(live_count + 1)
        limits = {
            Topic.LIFE: math.ceil(self._settings.retransmit_mult * spread),
            Topic.STATS: math.ceil(self._settings.stats_retransmit_mult * spread),
        }
        for key in [k for k, e in self._entries.items() if e.sent >= limits[e.topic]]:
            del self._entries[key]

    def _put(self, topic: Topic, rumour: Rumour) -> None:
        self._order += 1
        key = (topic, rumour.member.node_id, rumour.accuser)
        self._entries[key] = _Entry(topic, rumour, self._order)

    def _drop(self, topic: Topic, node_id: NodeId) -> None:
        for key in [k for k in self._entries if k[0] is topic and k[1] == node_id]:
            del self._entries[key]
