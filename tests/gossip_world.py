"""Gossip machines on an event heap in virtual time: seeded, with loss, delay and partitions.

Everything that happens follows from the seed. Bytes really go through encode and decode.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

from cube.gossip.effects import Effect, Exchange, MemberChanged, Send
from cube.gossip.member import Member, MemberState
from cube.gossip.packets import PACKET_BYTES_MAX, Packet, decode, encode
from cube.gossip.settings import GossipSettings
from cube.gossip.swim import Swim
from cube.model.ids import NodeId

TCP_SYN_RETRY_MS = 1_000
TCP_RETRY_MS = 200


class World:
    """`changes` has every MemberChanged so far as (at_ms, who believes it, change)."""

    def __init__(
        self, seed: int, size: int, *, loss: float = 0.0, settings: GossipSettings | None = None
    ) -> None:
        self.dice = random.Random(f"world/{seed}")
        self.seed = seed
        self.loss = loss
        self.settings = settings or GossipSettings()
        self.now_ms = 1_000_000
        self.nodes: dict[str, Swim] = {}
        self.islands: dict[str, int] = {}  # nodes on different islands do not hear each other
        self.has_udp = True
        self.deaf: set[str] = set()  # hears nothing, can speak
        self.stopped: dict[str, list[Callable[[], None]]] = {}  # like SIGSTOP: input waits
        self.changes: list[tuple[int, str, MemberChanged]] = []
        self.counts: Counter[str] = Counter()
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._boots = 0
        self._ticks_at: dict[str, int] = {}
        for i in range(size):
            self.boot(f"n{i:03}")
        for name in list(self.nodes)[1:]:
            self.join(name, "n000")

    def boot(self, name: str, incarnation: int | None = None) -> Swim:
        """A process with this node id starts, with nothing remembered."""
        self._boots += 1
        swim = Swim(
            self.settings,
            NodeId(name),
            _address(name),
            f"meta of {name}".encode(),
            self.now_ms + self._boots if incarnation is None else incarnation,
            random.Random(f"{name}/{self.seed}/{self._boots}"),
        )
        self.nodes[name] = swim
        self._ticks_at.pop(name, None)
        self._at(self.now_ms + self.dice.randrange(100), lambda: self._tick(name, swim))
        return swim

    def join(self, name: str, *seeds: str) -> None:
        swim = self.nodes[name]
        self._obey(name, swim.on_join(self.now_ms, [_address(seed) for seed in seeds]))

    def kill(self, name: str) -> None:
        del self.nodes[name]

    def stop(self, name: str) -> None:
        self.stopped[name] = []

    def resume(self, name: str) -> None:
        for action in self.stopped.pop(name):
            action()

    def act(self, name: str, action: Callable[[Swim], list[Effect]]) -> None:
        self._obey(name, action(self.nodes[name]))

    def run(self, duration_ms: int) -> None:
        self.run_until(lambda: False, duration_ms, must=False)

    def run_until(self, condition: Callable[[], bool], within_ms: int, *, must: bool = True) -> int:
        """How long it took in virtual time until the condition held, looking every 10 ms."""
        started_ms = self.now_ms
        look_ms = started_ms
        while self.now_ms < look_ms or not condition():
            look_ms = self.now_ms - self.now_ms % 10 + 10
            if not self._heap or self._heap[0][0] > started_ms + within_ms:
                assert not must, f"seed {self.seed}: not within {within_ms} ms\n{self.story()}"
                self.now_ms = started_ms + within_ms
                break
            self.now_ms, _, action = heapq.heappop(self._heap)
            action()
        return self.now_ms - started_ms

    def all_see(self, expected: dict[str, MemberState], *, by: list[str] | None = None) -> bool:
        return all(
            {m.node_id: m.state for m in self.nodes[name].members()} == expected
            for name in (by or self.nodes)
        )

    def all_alive(self) -> bool:
        expected = dict.fromkeys(self.nodes, MemberState.ALIVE)
        return all(
            {m.node_id: m.state for m in swim.members() if m.is_live} == expected
            for swim in self.nodes.values()
        )

    def state(self, viewer: str, name: str) -> MemberState | None:
        member = self.nodes[viewer].member(NodeId(name))
        return None if member is None else member.state

    def verdicts(self, state: MemberState) -> list[tuple[int, str, Member]]:
        """Every time that someone came to believe this state of someone."""
        return [
            (at_ms, by, change.after)
            for at_ms, by, change in self.changes
            if change.after is not None
            and change.after.state is state
            and (change.before is None or change.before.state is not state)
        ]

    def story(self, lines: int = 50) -> str:
        return "\n".join(
            f"{at_ms} {by}: {change.before and change.before.state.name} -> {change.after}"
            for at_ms, by, change in self.changes[-lines:]
        )

    def _tick(self, name: str, swim: Swim) -> None:
        if self.nodes.get(name) is not swim:
            return
        if name in self.stopped:
            self.stopped[name].append(lambda: self._tick(name, swim))
            return
        self.counts["ticks"] += 1
        self._ticks_at.pop(name, None)
        self._obey(name, swim.on_tick(self.now_ms))

    def _obey(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(name, effect)
                case Exchange():
                    self._exchange(name, effect)
                case MemberChanged():
                    self.changes.append((self.now_ms, name, effect))
        swim = self.nodes[name]
        due_ms = max(self.now_ms, swim.next_tick_ms)
        if due_ms < self._ticks_at.get(name, 1 << 62):
            self._ticks_at[name] = due_ms
            self._at(due_ms, lambda: self._tick_if_due(name, swim, due_ms))

    def _tick_if_due(self, name: str, swim: Swim, due_ms: int) -> None:
        if self._ticks_at.get(name) == due_ms:
            self._tick(name, swim)

    def _send(self, name: str, effect: Send) -> None:
        data = encode(effect.packet)
        assert len(data) <= PACKET_BYTES_MAX
        self.counts["packets"] += 1
        self.counts["bytes"] += len(data)
        is_lost = self.dice.random() < self.loss or not self.has_udp
        if is_lost or not self._hears(name, effect.address):
            return
        target = _name(effect.address)
        self._at(
            self.now_ms + 1 + self.dice.randrange(3),
            lambda: self._deliver(target, _address(name), data),
        )

    def _deliver(self, target: str, sender: str, data: bytes) -> None:
        swim = self.nodes.get(target)
        if swim is None:
            return
        if target in self.stopped:
            self.stopped[target].append(lambda: self._deliver(target, sender, data))
            return
        self._obey(target, swim.on_packet(self.now_ms, sender, decode(data)))

    def _exchange(self, name: str, effect: Exchange) -> None:
        self.counts["exchanges"] += 1
        self.counts["bytes"] += len(encode(effect.packet))
        target = _name(effect.address)
        delay_ms = 2
        while self.dice.random() < 1 - (1 - self.loss) ** 2:
            delay_ms += TCP_SYN_RETRY_MS
        while self.dice.random() < 1 - (1 - self.loss) ** 2:
            delay_ms += TCP_RETRY_MS
        if delay_ms > effect.timeout_ms:
            return
        asker = self.nodes[name]

        def arrive() -> None:
            swim = self.nodes.get(target)
            ways = self._hears(name, effect.address) and self._hears(target, _address(name))
            if swim is None or not ways or target in self.stopped:
                return
            request: Packet = decode(encode(effect.packet))
            answer, effects = swim.on_exchange(self.now_ms, _address(name), request)
            self._obey(target, effects)
            if answer is not None and self.nodes.get(name) is asker and name not in self.stopped:
                self.counts["bytes"] += len(encode(answer))
                self._obey(name, asker.on_answer(self.now_ms, effect.address, answer))

        self._at(self.now_ms + delay_ms, arrive)

    def _hears(self, speaker: str, address: str) -> bool:
        target = _name(address)
        if target in self.deaf:
            return False
        return self.islands.get(speaker, 0) == self.islands.get(target, 0)

    def _at(self, at_ms: int, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_ms, self._order, action))


def _address(name: str) -> str:
    return f"{name}:7702"


def _name(address: str) -> str:
    return address.partition(":")[0]
