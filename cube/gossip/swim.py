"""Who is alive: the gossip machine. Inputs are methods, outputs are effects, time is an argument.

Does not know sockets, clocks, keys, or what the bytes of meta and stats mean. Not thread-safe: one
owner calls it. See DESIGN.md for how it differs from the papers.

Source: SWIM (Das et al. 2002); Lifeguard (Dadgar et al. 2017); memberlist state.go:pushPull.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from cube.gossip.dice import Dice
from cube.gossip.effects import Effect
from cube.gossip.health import LocalHealth
from cube.gossip.member import (
    ADDRESS_CHARS_MAX,
    META_BYTES_MAX,
    NODE_ID_CHARS_MAX,
    STATS_BYTES_MAX,
    Member,
    MemberState,
)
from cube.gossip.outbox import Outbox
from cube.gossip.packets import Ack, Gossip, Nack, Packet, Ping, PingRequest, Sync
from cube.gossip.prober import Prober
from cube.gossip.roster import Roster
from cube.gossip.rumours import RumourQueue
from cube.gossip.settings import GossipSettings
from cube.model.ids import NodeId

SEEDS_MAX = 64  # addresses to try until they answer once; more are not remembered
LEAVE_FANOUT = 10  # members who hear a goodbye from the leaver itself; they pass it on
SYNC_SCALE_FROM = 32  # members; every doubling beyond makes whole-table comparisons rarer
IDLE_MS = 60_000  # a machine with nothing to do is looked at this often


class Swim:
    """One node's view of the cluster.

    `boot_incarnation` must be above 0 and above that of earlier lives of the node id (wall-clock ms
    at boot do); if it is not, the node corrects it as soon as it hears of its earlier life.
    """

    def __init__(
        self,
        settings: GossipSettings,
        self_id: NodeId,
        address: str,
        meta: bytes,
        boot_incarnation: int,
        dice: Dice,
    ) -> None:
        assert 0 < len(self_id) <= NODE_ID_CHARS_MAX
        assert 0 < len(address) <= ADDRESS_CHARS_MAX
        assert len(meta) <= META_BYTES_MAX
        assert boot_incarnation > 0
        me = Member(
            self_id,
            address,
            boot_incarnation,
            meta_version=boot_incarnation,
            meta=meta,
            stats_version=boot_incarnation,
        )
        self.settings = settings
        self._dice = dice
        self._health = LocalHealth(settings.health_max)
        self._rumours = RumourQueue(settings)
        self._roster = Roster(settings, me, self._rumours, self._health)
        self._outbox = Outbox(self._roster, self._rumours)
        self._prober = Prober(settings, self._roster, self._outbox, self._health, dice)
        self._seeds: list[str] = []
        self._attempts = 0
        self._last_tick_ms: int | None = None
        self._gossip_ms = 0
        self._sync_ms = 0
        self._reconnect_ms = 0
        self._stranger_ms = 0

    @property
    def next_tick_ms(self) -> int:
        """When on_tick() has something to do; at once before the first call. Calling it earlier or
        more often is harmless. Moves with every input."""
        if self._last_tick_ms is None:
            return 0
        times = [self._last_tick_ms + IDLE_MS]
        if self._rumours:
            times.append(self._gossip_ms)
        if not self.has_left:
            others = (self._prober.next_tick_ms(), self._roster.next_expiry_ms())
            times += [time_ms for time_ms in others if time_ms is not None]
            if self._roster.live_count() > 1:
                times.append(self._sync_ms)
            if self._unreached():
                times.append(self._reconnect_ms)
        return max(min(times), self._last_tick_ms + self.settings.tick_ms)

    @property
    def has_left(self) -> bool:
        return self._roster.me.state is MemberState.LEFT

    @property
    def has_news(self) -> bool:
        """Something is still to be passed on: a leaver stays a little longer."""
        return bool(self._rumours)

    @property
    def health_score(self) -> int:
        """0 is well; up to settings.health_max when this node doubts its own senses."""
        return self._health.score

    @property
    def me(self) -> Member:
        return self._roster.me

    def members(self) -> tuple[Member, ...]:
        """Everyone known, this node too, the dead and departed until they are forgotten; by id."""
        return tuple(sorted(self._roster.members.values(), key=lambda member: member.node_id))

    def member(self, node_id: NodeId) -> Member | None:
        return self._roster.members.get(node_id)

    def on_tick(self, now_ms: int) -> list[Effect]:
        """Everything whose time has come is done."""
        late_ms = now_ms - self.next_tick_ms
        if self._last_tick_ms is None:
            self._start_timers(now_ms)
        elif late_ms >= self.settings.pause_ms:
            # We stood still (a stopped process, a sleeping laptop): silence proves nothing.
            self._roster.postpone(late_ms)
            self._prober.restart(now_ms)
            self._health.worsen()
        if not self.has_left:
            self._roster.expire(now_ms)
            self._prober.on_tick(now_ms)
            self._sync_if_due(now_ms)
            self._reconnect_if_due(now_ms)
        self._gossip_if_due(now_ms)
        self._last_tick_ms = now_ms
        return self._outbox.drain()

    def on_packet(self, now_ms: int, sender: str, packet: Packet) -> list[Effect]:
        """A datagram came from the socket address `sender`."""
        self._prober.on_heard(now_ms, packet.source)
        if not isinstance(packet, Sync):
            self._roster.hear(now_ms, packet.rumours)
        match packet:
            case Ping():
                self._prober.on_ping(sender, packet)
            case Ack():
                self._prober.on_ack(packet)
            case PingRequest():
                self._prober.on_ping_request(now_ms, sender, packet)
            case Nack():
                self._prober.on_nack(packet)
            case Gossip() | Sync():
                pass  # news was heard above; a table does not come by datagram
        self._meet(now_ms, sender, packet.source)
        return self._outbox.drain()

    def on_exchange(
        self, now_ms: int, sender: str, request: Packet
    ) -> tuple[Packet | None, list[Effect]]:
        """A peer's reliable request, and its answer; None: it is not one that is answered."""
        answer: Packet | None = None
        match request:
            case Sync():
                self._roster.compare(now_ms, request.source, request.members)
                answer = self._table()
            case Ping():
                self._roster.hear(now_ms, request.rumours)
                if request.target == self._roster.self_id:
                    answer = Ack(self._roster.self_id, request.sequence)
            case Ack() | PingRequest() | Nack() | Gossip():
                pass
        return answer, self._outbox.drain()

    def on_answer(self, now_ms: int, address: str, answer: Packet) -> list[Effect]:
        """The answer to an Exchange. That none came needs no input: the timers go on."""
        match answer:
            case Sync():
                if address in self._seeds:
                    self._seeds.remove(address)  # from now on it is a member, or this node itself
                self._attempts = 0
                self._roster.compare(now_ms, answer.source, answer.members)
            case Ack():
                self._roster.hear(now_ms, answer.rumours)
                self._prober.on_ack(answer)
            case Ping() | PingRequest() | Nack() | Gossip():
                pass
        return self._outbox.drain()

    def on_join(self, now_ms: int, seeds: Iterable[str]) -> list[Effect]:
        """Each seed is asked for its table now, and again from time to time until it answered."""
        for seed in seeds:
            is_wanted = seed not in self._seeds and seed != self._roster.me.address
            if is_wanted and len(self._seeds) < SEEDS_MAX:
                self._seeds.append(seed)
                self._ask_for_table(seed)
        self._attempts = 0
        self._reconnect_ms = now_ms + self.settings.probe_ms
        return self._outbox.drain()

    def set_meta(self, now_ms: int, meta: bytes) -> list[Effect]:
        """All will know the new meta."""
        assert len(meta) <= META_BYTES_MAX
        self._roster.rewrite_me(meta=meta)
        return self._outbox.drain()

    def set_stats(self, now_ms: int, stats: bytes) -> list[Effect]:
        """Most will soon know the new statistics; whoever missed them gets the next ones."""
        assert len(stats) <= STATS_BYTES_MAX
        self._roster.rewrite_me(stats=stats)
        return self._outbox.drain()

    def leave(self, now_ms: int) -> list[Effect]:
        """This node has said goodbye. It still answers and passes on news, but watches nobody."""
        if self.has_left:
            return []
        self._roster.rewrite_me(state=MemberState.LEFT)
        others = self._roster.live_others()
        for member in self._dice.sample(others, min(LEAVE_FANOUT, len(others))):
            self._outbox.send_news(member.address, member.node_id)
        return self._outbox.drain()

    def _start_timers(self, now_ms: int) -> None:
        self._prober.restart(now_ms)
        self._gossip_ms = now_ms
        self._sync_ms = now_ms + self._dice.randrange(self.settings.sync_ms)
        self._reconnect_ms = max(self._reconnect_ms, now_ms)

    def _gossip_if_due(self, now_ms: int) -> None:
        if not self._rumours or now_ms < self._gossip_ms:
            return
        self._gossip_ms = now_ms + self.settings.gossip_ms
        audience = self._roster.live_others() + self._roster.newly_dead(now_ms)
        if not audience:
            self._rumours.clear()  # whoever comes gets the whole table
            return
        count = min(self.settings.gossip_fanout, len(audience))
        for member in self._dice.sample(audience, count):
            self._outbox.send_news(member.address, member.node_id)

    def _sync_if_due(self, now_ms: int) -> None:
        if now_ms < self._sync_ms:
            return
        others = self._roster.live_others()
        doublings = math.ceil(math.log2(max(1.0, (len(others) + 1) / SYNC_SCALE_FROM)))
        self._sync_ms = now_ms + self.settings.sync_ms * (1 + doublings)
        if others:
            self._ask_for_table(self._dice.sample(others, 1)[0].address)

    def _reconnect_if_due(self, now_ms: int) -> None:
        """One of those who should be members but are not is tried: so partitions heal."""
        if now_ms < self._reconnect_ms:
            return
        period_ms = self.settings.reconnect_ms
        if self._roster.live_count() == 1:
            # Alone, most likely just started: in more of a hurry at first.
            period_ms = min(period_ms, self.settings.probe_ms << min(self._attempts, 16))
        self._reconnect_ms = now_ms + period_ms
        unreached = self._unreached()
        if unreached:
            self._attempts += 1
            self._ask_for_table(self._dice.sample(unreached, 1)[0])

    def _unreached(self) -> list[str]:
        """Addresses of the dead, and seeds that never answered and are not known to be live."""
        missing = [member.address for member in self._roster.dead()] + self._seeds
        if not missing:
            return missing
        reached = {member.address for member in self._roster.live_others()}
        reached.add(self._roster.me.address)
        return [address for address in missing if address not in reached]

    def _meet(self, now_ms: int, sender: str, source: NodeId) -> None:
        """Whoever talks to us and is unknown knows us from before our start: we ask what else."""
        if source in self._roster.members or now_ms < self._stranger_ms or self.has_left:
            return
        self._stranger_ms = now_ms + self.settings.probe_ms
        self._ask_for_table(sender)

    def _ask_for_table(self, address: str) -> None:
        self._outbox.exchange(address, self._table(), self.settings.exchange_timeout_ms)

    def _table(self) -> Sync:
        return Sync(self._roster.self_id, tuple(self._roster.members.values()))
