"""What one node believes of all, and what makes it believe otherwise.

Knows nothing of sockets, probes or when to speak: it takes claims, and leaves rumours in the queue
and changes in `changes`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cube.gossip.effects import MemberChanged
from cube.gossip.health import LocalHealth
from cube.gossip.member import (
    VERSION_MAX,
    Member,
    MemberState,
    life_of,
    merge,
    without_stats,
)
from cube.gossip.packets import MEMBERS_MAX, NOBODY, Rumour
from cube.gossip.rumours import RumourQueue
from cube.gossip.settings import GossipSettings
from cube.gossip.suspicion import Suspicion
from cube.model.ids import NodeId


class Roster:
    """Invariants: `members` has this node itself, and at most MEMBERS_MAX; exactly the suspects have
    a suspicion; exactly the dead and the departed have a time at which they went."""

    def __init__(
        self, settings: GossipSettings, me: Member, rumours: RumourQueue, health: LocalHealth
    ) -> None:
        self._settings = settings
        self._rumours = rumours
        self._health = health
        self._suspicions: dict[NodeId, Suspicion] = {}
        self._gone_ms: dict[NodeId, int] = {}
        self.self_id = me.node_id
        self.members: dict[NodeId, Member] = {me.node_id: me}
        self.changes: list[MemberChanged] = []  # since the outbox took them
        self.accused: list[NodeId] = []  # by others, since the prober took them

    @property
    def me(self) -> Member:
        return self.members[self.self_id]

    def live_others(self) -> list[Member]:
        """Everyone who takes part but this node."""
        return [m for m in self.members.values() if m.is_live and m.node_id != self.self_id]

    def dead(self) -> list[Member]:
        """Those who may come back by themselves."""
        return [
            self.members[node_id]
            for node_id in self._gone_ms
            if self.members[node_id].state is MemberState.DEAD
        ]

    def newly_dead(self, now_ms: int) -> list[Member]:
        """Those who may not be dead, and should hear that they are said to be."""
        since_ms = now_ms - self._settings.dead_gossip_ms
        return [m for m in self.dead() if self._gone_ms[m.node_id] > since_ms]

    def live_count(self) -> int:
        return len(self.members) - len(self._gone_ms)

    def hear(self, now_ms: int, rumours: Iterable[Rumour]) -> None:
        """The rumours are believed as far as they are news."""
        for rumour in rumours:
            self._learn(now_ms, rumour.member, rumour.accuser)

    def compare(self, now_ms: int, source: NodeId, theirs: Iterable[Member]) -> None:
        """Another's whole table is believed as far as it is news; but whom it says to be dead and we
        know alive is only suspected: after a partition each side has the other's dead wrong."""
        for claim in theirs:
            accuser = NOBODY
            known = self.members.get(claim.node_id)
            is_ours_alive = known is not None and known.is_live and known is not self.me
            if claim.state is MemberState.DEAD and is_ours_alive:
                claim = msgspec.structs.replace(claim, state=MemberState.SUSPECT)
                accuser = source
            self._learn(now_ms, claim, accuser)

    def suspect(self, now_ms: int, node_id: NodeId) -> None:
        """This node itself found that the member does not answer."""
        known = self.members.get(node_id)
        if known is not None and known.is_live:
            claim = msgspec.structs.replace(life_of(known), state=MemberState.SUSPECT)
            self._learn(now_ms, claim, self.self_id)

    def expire(self, now_ms: int) -> None:
        """Suspects whose time is over are dead; the long gone are forgotten."""
        over = [i for i, s in self._suspicions.items() if s.deadline_ms <= now_ms]
        for node_id in over:
            dead = msgspec.structs.replace(self.members[node_id], state=MemberState.DEAD)
            self._settle(now_ms, self.members[node_id], dead, NOBODY)
        until_ms = now_ms - self._settings.reap_ms
        for node_id in [i for i, at_ms in self._gone_ms.items() if at_ms <= until_ms]:
            self._forget(node_id)

    def next_expiry_ms(self) -> int | None:
        """When expire() has something to do."""
        times = [suspicion.deadline_ms for suspicion in self._suspicions.values()]
        if self._gone_ms:
            times.append(min(self._gone_ms.values()) + self._settings.reap_ms)
        return min(times, default=None)

    def postpone(self, by_ms: int) -> None:
        """All suspects get the time during which this node stood still."""
        for suspicion in self._suspicions.values():
            suspicion.postpone(by_ms)

    def rewrite_me(
        self,
        *,
        state: MemberState | None = None,
        meta: bytes | None = None,
        stats: bytes | None = None,
    ) -> None:
        """This node says something new of itself."""
        before = self.me
        after = before
        if state is not None:
            after = msgspec.structs.replace(after, state=state)
        if meta is not None and meta != before.meta:
            version = _above(before.meta_version)
            after = msgspec.structs.replace(after, meta=meta, meta_version=version)
        if stats is not None and stats != before.stats:
            version = _above(before.stats_version)
            after = msgspec.structs.replace(after, stats=stats, stats_version=version)
        self._announce(before, after)

    def _learn(self, now_ms: int, claim: Member, accuser: NodeId) -> None:
        if claim.node_id == self.self_id:
            self._hear_of_self(claim)
            return
        known = self.members.get(claim.node_id)
        if known is None:
            # Not told by itself or others that it lives: nothing to know it by. And the dead whom we
            # do not know were forgotten; learnt again, they would go round for ever.
            if claim.incarnation > 0 and claim.is_live and self._has_room():
                self._settle(now_ms, None, claim, accuser)
            return
        after = merge(known, claim)
        if after != known:
            self._settle(now_ms, known, after, accuser)
        suspicion = self._suspicions.get(claim.node_id)
        is_accused = claim.state is MemberState.SUSPECT and claim.incarnation == after.incarnation
        if suspicion is not None and is_accused and accuser and suspicion.confirm(accuser):
            self._rumours.add_accuser(after, accuser)

    def _hear_of_self(self, claim: Member) -> None:
        """Only this node writes its own record: what others have beyond it is outbid."""
        before = self.me
        merged = merge(before, claim)
        after = before
        if life_of(merged) != life_of(before):
            # Of an earlier life it is just old news; of this one it says that we were not heard.
            if claim.incarnation == before.incarnation and claim.state in _FAILED:
                self._health.worsen()
            after = msgspec.structs.replace(after, incarnation=_above(claim.incarnation))
        elif claim.incarnation < before.incarnation and claim.state is not MemberState.ALIVE:
            self._rumours.add_life(before, with_meta=True)  # someone missed that we live
        if merged.meta_version != before.meta_version or merged.meta != before.meta:
            after = msgspec.structs.replace(after, meta_version=_above(claim.meta_version))
        if merged.stats_version != before.stats_version or merged.stats != before.stats:
            after = msgspec.structs.replace(after, stats_version=_above(claim.stats_version))
        self._announce(before, after)

    def _announce(self, before: Member, after: Member) -> None:
        self.members[self.self_id] = after
        if without_stats(after) != without_stats(before):
            self._rumours.add_life(after, with_meta=True)
            self.changes.append(MemberChanged(before, after))
        if after.stats_version != before.stats_version:
            self._rumours.add_stats(after)

    def _settle(self, now_ms: int, before: Member | None, after: Member, accuser: NodeId) -> None:
        node_id = after.node_id
        self.members[node_id] = after
        has_new_life = before is None or life_of(before) != life_of(after)
        has_new_meta = before is None or before.meta_version != after.meta_version
        has_new_stats = before is None or before.stats_version != after.stats_version
        if has_new_life:
            self._suspicions.pop(node_id, None)
            if after.is_live:
                self._gone_ms.pop(node_id, None)
            else:
                self._gone_ms.setdefault(node_id, now_ms)
            if after.state is MemberState.SUSPECT:
                self._suspicions[node_id] = Suspicion(
                    self._settings, now_ms, self.live_count(), accuser
                )
                if accuser != self.self_id:
                    self.accused.append(node_id)
        if has_new_life or has_new_meta:
            with_meta = has_new_meta or after.state is MemberState.ALIVE
            told_by = accuser if after.state is MemberState.SUSPECT else NOBODY
            self._rumours.add_life(after, told_by, with_meta=with_meta)
        if has_new_stats and after.stats_version > 0:
            self._rumours.add_stats(after)
        if before is None or without_stats(before) != without_stats(after):
            self.changes.append(MemberChanged(before, after))

    def _has_room(self) -> bool:
        """Whether one more can be known; the longest gone make room for the living."""
        if len(self.members) >= MEMBERS_MAX and self._gone_ms:
            self._forget(min(self._gone_ms, key=lambda node_id: self._gone_ms[node_id]))
        return len(self.members) < MEMBERS_MAX

    def _forget(self, node_id: NodeId) -> None:
        before = self.members.pop(node_id)
        del self._gone_ms[node_id]
        self._rumours.forget(node_id)
        self.changes.append(MemberChanged(before, None))


_FAILED = (MemberState.SUSPECT, MemberState.DEAD)


def _above(version: int) -> int:
    return min(version + 1, VERSION_MAX)
