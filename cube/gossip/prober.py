"""Finds out who does not answer: one member per period, directly, then through others.

Source: SWIM §3.1; for the order of §4.3 see DESIGN.md; Lifeguard §III-A (nack).
"""

from __future__ import annotations

from cube.gossip.dice import Dice
from cube.gossip.health import LocalHealth
from cube.gossip.outbox import Outbox
from cube.gossip.packets import Ack, Nack, Ping, PingRequest
from cube.gossip.roster import Roster
from cube.gossip.settings import GossipSettings
from cube.model.ids import NodeId

RELAYS_MAX = 256  # pings under way for others; one more is not made, and its asker asks others too
SEQUENCE_BITS = 63  # random: whoever did not get the ping cannot guess the ack
WITNESSES_WANTED = 4  # on average, of those who hear of a suspect: confirmations, and some to spare
NACK_AFTER = 0.8  # of the probe timeout: the nack must be back within the asker's period


class _Probe:
    """One period's question."""

    __slots__ = ("asked", "ends_ms", "indirect_ms", "is_answered", "nacks", "sequence", "target")

    def __init__(self, target: NodeId, sequence: int, indirect_ms: int, ends_ms: int) -> None:
        self.target = target
        self.sequence = sequence
        self.indirect_ms = indirect_ms
        self.ends_ms = ends_ms
        self.is_answered = False
        self.asked: set[NodeId] | None = None  # None: no helper was asked yet
        self.nacks: set[NodeId] = set()


class _Relay:
    """A ping on behalf of another."""

    __slots__ = ("address", "asker", "ends_ms", "is_nacked", "nack_ms", "sequence")

    def __init__(
        self, asker: NodeId, address: str, sequence: int, nack_ms: int, ends_ms: int
    ) -> None:
        self.asker = asker
        self.address = address
        self.sequence = sequence
        self.nack_ms = nack_ms
        self.ends_ms = ends_ms
        self.is_nacked = False


class Prober:
    """Invariant: at most one probe is under way, and it ends with its period."""

    def __init__(
        self,
        settings: GossipSettings,
        roster: Roster,
        outbox: Outbox,
        health: LocalHealth,
        dice: Dice,
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._outbox = outbox
        self._health = health
        self._dice = dice
        self._probe: _Probe | None = None
        self._relays: dict[int, _Relay] = {}
        self._heard_ms: dict[NodeId, int] = {}
        self._next_ms = 0

    def restart(self, now_ms: int) -> None:
        """The probe under way is dropped without a verdict; the next one comes within a period, at a
        random time, so that nodes started together do not probe together."""
        self._probe = None
        self._next_ms = now_ms + self._dice.randrange(self._settings.probe_ms)

    def next_tick_ms(self) -> int | None:
        """When on_tick() has something to do."""
        times = [relay.nack_ms for relay in self._relays.values() if not relay.is_nacked]
        probe = self._probe
        if probe is not None and not probe.is_answered and probe.asked is None:
            times.append(probe.indirect_ms)
        if self._roster.live_count() > 1 or probe is not None:
            times.append(self._next_ms)
        return min(times, default=None)

    def on_tick(self, now_ms: int) -> None:
        self._tend_relays(now_ms)
        probe = self._probe
        if probe is not None:
            if not probe.is_answered and probe.asked is None and now_ms >= probe.indirect_ms:
                self._ask_others(now_ms, probe)
            if now_ms >= probe.ends_ms:
                self._conclude(now_ms, probe)
        if self._probe is None and now_ms >= self._next_ms:
            self._begin(now_ms)

    def on_heard(self, now_ms: int, source: NodeId) -> None:
        """Something came from the member itself: it was alive a moment ago."""
        if source in self._heard_ms:
            self._heard_ms[source] = now_ms

    def on_ping(self, sender: str, ping: Ping) -> None:
        # After a restart another node may have the address: it must not vouch for the old one.
        if ping.target == self._roster.self_id:
            ack = Ack(self._roster.self_id, ping.sequence)
            self._outbox.send(sender, ack, ping.source)

    def on_ack(self, ack: Ack) -> None:
        probe = self._probe
        if probe is not None and ack.sequence == probe.sequence and not probe.is_answered:
            probe.is_answered = True
            self._health.improve()
        relay = self._relays.pop(ack.sequence, None)
        if relay is not None:
            answer = Ack(self._roster.self_id, relay.sequence)
            self._outbox.send(relay.address, answer, relay.asker)

    def on_nack(self, nack: Nack) -> None:
        probe = self._probe
        if probe is not None and nack.sequence == probe.sequence and probe.asked is not None:
            probe.nacks |= {nack.source} & probe.asked

    def on_ping_request(self, now_ms: int, sender: str, request: PingRequest) -> None:
        if len(self._relays) >= RELAYS_MAX:
            return
        known = self._roster.members.get(request.target)
        address = request.address if known is None else known.address
        sequence = self._dice.getrandbits(SEQUENCE_BITS)
        self._relays[sequence] = _Relay(
            request.source,
            sender,
            request.sequence,
            now_ms + round(self._settings.probe_timeout_ms * NACK_AFTER),
            now_ms + self._settings.probe_ms,
        )
        ping = Ping(self._roster.self_id, request.target, sequence)
        self._outbox.send(address, ping, request.target)

    def _begin(self, now_ms: int) -> None:
        target = self._next_target(now_ms)
        if target is None:
            return
        sequence = self._dice.getrandbits(SEQUENCE_BITS)
        indirect_ms = now_ms + self._health.stretch(self._settings.probe_timeout_ms)
        self._next_ms = now_ms + self._health.stretch(self._settings.probe_ms)
        self._probe = _Probe(target, sequence, indirect_ms, self._next_ms)
        ping = Ping(self._roster.self_id, target, sequence)
        self._outbox.send(self._roster.members[target].address, ping, target)

    def _ask_others(self, now_ms: int, probe: _Probe) -> None:
        me = self._roster.self_id
        others = [m for m in self._roster.live_others() if m.node_id != probe.target]
        count = min(self._settings.indirect_probes, len(others))
        helpers = self._dice.sample(others, count)
        probe.asked = {helper.node_id for helper in helpers}
        target = self._roster.members.get(probe.target)
        if target is None:
            return
        for helper in helpers:
            request = PingRequest(me, probe.target, target.address, probe.sequence)
            self._outbox.send(helper.address, request, helper.node_id)
        # Where UDP is lost or blocked, TCP may get through: such a node is alive.
        ping = Ping(me, probe.target, probe.sequence)
        self._outbox.exchange(target.address, ping, max(1, probe.ends_ms - now_ms))

    def _conclude(self, now_ms: int, probe: _Probe) -> None:
        self._probe = None
        if probe.is_answered:
            return
        # Helpers that said nothing either: perhaps it is us who hear nothing.
        asked = probe.asked or set()
        self._health.worsen(len(asked - probe.nacks) if asked else 1)
        self._roster.suspect(now_ms, probe.target)

    def _tend_relays(self, now_ms: int) -> None:
        for sequence, relay in list(self._relays.items()):
            if now_ms >= relay.nack_ms and not relay.is_nacked:
                relay.is_nacked = True
                nack = Nack(self._roster.self_id, relay.sequence)
                self._outbox.send(relay.address, nack, relay.asker)
            if now_ms >= relay.ends_ms:
                del self._relays[sequence]

    def _next_target(self, now_ms: int) -> NodeId | None:
        """The live member from whom nothing was heard, and who was not asked, for the longest time.

        So each is asked at least once in as many periods as there are members; and in a small
        cluster, where all hear from all, whoever falls silent is asked next by everyone.
        """
        others = self._roster.live_others()
        # A newcomer starts anywhere in the round, or all would ask it in the same period.
        round_ms = len(others) * self._settings.probe_ms
        self._heard_ms = {
            member.node_id: self._heard_ms[member.node_id]
            if member.node_id in self._heard_ms
            else now_ms - self._dice.randrange(round_ms)
            for member in others
        }
        witnesses = len(others) - 1  # of an accusation: without the suspect and its accuser
        for node_id in self._roster.accused:
            is_witness = self._dice.random() * witnesses < WITNESSES_WANTED
            if node_id in self._heard_ms and is_witness:
                self._heard_ms[node_id] = now_ms - round_ms
        self._roster.accused.clear()
        target = min(self._heard_ms, key=lambda i: self._heard_ms[i], default=None)
        if target is not None:
            self._heard_ms[target] = now_ms
        return target
