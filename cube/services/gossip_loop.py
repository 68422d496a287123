"""The shell around the gossip machine: one owner task, one bounded queue in, effects out.

Decides nothing. Datagrams that cannot be queued are lost, as the network may lose them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from cube.gossip.effects import Effect, Exchange, MemberChanged, Send
from cube.gossip.member import Member, MemberState
from cube.gossip.packets import PACKET_BYTES_MAX, Gossip, Packet, decode, encode
from cube.gossip.replay import StalePacket
from cube.gossip.seal import SEAL_BYTES_MAX, Seal
from cube.gossip.swim import Swim
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import NodeId
from cube.ports.clock import Clock
from cube.ports.datagrams import DATAGRAM_BYTES_MAX, Datagrams

assert PACKET_BYTES_MAX + SEAL_BYTES_MAX <= DATAGRAM_BYTES_MAX

QUEUE_MAX = 1_024  # inputs: a second's worth in a cluster of some hundred, at 1.4 kB each
QUEUE_RESERVED = (
    64  # of it, for what this node itself wants: a flood of packets must not crowd it out
)
BATCH_MAX = 64  # inputs between two looks at the timers
EXCHANGES_MAX = 8  # under way from here; one more is not made, the machine tries again
INPUTS_REMEMBERED = 1_000  # for debugging
GREETING_EVERY_MS = 20  # at most: who replays packets at us must not make us talk more than listen

log = logging.getLogger(__name__)

OnChange = Callable[[MemberChanged], None]


class PacketIn(msgspec.Struct, frozen=True):
    sender: str
    data: bytes


class RequestIn(msgspec.Struct, frozen=True):
    sender: str
    data: bytes
    answer: asyncio.Future[bytes]


class AnswerIn(msgspec.Struct, frozen=True):
    address: str
    data: bytes


class Call(msgspec.Struct, frozen=True):
    """Something this node itself wants of the machine."""

    name: str
    act: Callable[[int], list[Effect]]


Input = PacketIn | RequestIn | AnswerIn | Call
Count = Literal[
    "received", "sent", "bad", "lost", "exchanges", "exchanges_failed", "ticks", "greetings"
]


class GossipLoop:
    """Owns `swim` from start() on: nobody else calls its inputs. Reading it is free at any time, on
    the same event loop.

    Callbacks of subscribe() run in the owner task: they must be short and must not raise.
    """

    def __init__(self, swim: Swim, datagrams: Datagrams, clock: Clock, seal: Seal) -> None:
        self._swim = swim
        self._datagrams = datagrams
        self._clock = clock
        self._seal = seal
        self._queue: asyncio.Queue[Input] = asyncio.Queue(QUEUE_MAX)
        self._subscribers: list[OnChange] = []
        self._exchanges: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[None] | None = None
        self._heard_ms: dict[NodeId, int] = {}
        self._quiet = asyncio.Event()
        self._greet_after_ms = 0
        self.counts: Counter[Count] = Counter()
        self.inputs: deque[tuple[int, str, str]] = deque(maxlen=INPUTS_REMEMBERED)

    async def start(self, seeds: Iterable[str] = ()) -> None:
        """Listening, and joining through the seeds until one has answered. Raises Unavailable when
        the port is taken."""
        assert self._owner is None
        await self._datagrams.open(self._on_packet, self._on_exchange)
        self.join(seeds)
        self._owner = asyncio.get_running_loop().create_task(self._run(), name="gossip")

    async def wait(self) -> None:
        """Returns when stopped. Raises what ended the owner task: a bug."""
        assert self._owner is not None
        try:
            await asyncio.shield(self._owner)
        except asyncio.CancelledError:
            if not self._owner.cancelled():
                raise

    async def stop(self) -> None:
        """Closed without goodbye: the others will find this node dead. Idempotent."""
        owner = self._owner
        if owner is None:
            return
        tasks = [owner, *self._exchanges]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if not owner.cancelled() and owner.exception() is not None:
            log.error("gossip_ended cause=%r", owner.exception())
        self._refuse_waiting()
        await self._datagrams.close()

    async def leave(self, timeout_ms: int = 1_000) -> None:
        """Others have been told that this node is gone for good, or the time is over. Call stop()
        next."""
        self._quiet.clear()
        self._call("leave", self._swim.leave)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._quiet.wait()
        except TimeoutError:
            log.info("goodbye_unfinished timeout_ms=%d", timeout_ms)

    def join(self, seeds: Iterable[str]) -> None:
        """These addresses are tried until they answer once."""
        addresses = tuple(seeds)
        if addresses:
            self._call("join", lambda now_ms: self._swim.on_join(now_ms, addresses))

    def set_meta(self, meta: bytes) -> None:
        """Others will know it. At most META_BYTES_MAX."""
        self._call("set_meta", lambda now_ms: self._swim.set_meta(now_ms, meta))

    def set_stats(self, stats: bytes) -> None:
        """Others will soon know it, or a later one. At most STATS_BYTES_MAX. Each change costs a few
        datagrams: every few seconds is often enough."""
        self._call("set_stats", lambda now_ms: self._swim.set_stats(now_ms, stats))

    def members(self) -> tuple[Member, ...]:
        """Everyone known, this node too, by id."""
        return self._swim.members()

    def member(self, node_id: NodeId) -> Member | None:
        return self._swim.member(node_id)

    def states(self) -> dict[NodeId, MemberState]:
        """What is believed of each known member."""
        return {member.node_id: member.state for member in self._swim.members()}

    def heard_ms(self, node_id: NodeId) -> int:
        """When the member itself was last heard, by this node's wall clock; 0: never. In a large
        cluster members hear each other seldom: use the state to judge, this for display."""
        if node_id == self._swim.me.node_id:
            return self._clock.now_ms()
        return self._heard_ms.get(node_id, 0)

    @property
    def health_score(self) -> int:
        return self._swim.health_score

    def subscribe(self, on_change: OnChange) -> Callable[[], None]:
        """`on_change` is called for each change from now on. Returns what ends that."""
        self._subscribers.append(on_change)
        return lambda: self._subscribers.remove(on_change)

    async def _run(self) -> None:
        while True:
            await self._serve_inputs()
            if self._clock.monotonic_ms() >= self._swim.next_tick_ms:
                self.counts["ticks"] += 1
                self._obey(self._swim.on_tick(self._clock.monotonic_ms()))
            if not self._swim.has_news:
                self._quiet.set()

    async def _serve_inputs(self) -> None:
        """Inputs until a timer is due; what had come before the timer is served before it, so that
        after a pause of this process the answers that wait in the socket count first."""
        wait_ms = self._swim.next_tick_ms - self._clock.monotonic_ms()
        try:
            async with asyncio.timeout(max(0, wait_ms) / 1000):
                self._serve(await self._queue.get())
        except TimeoutError:
            pass
        for _ in range(min(BATCH_MAX, self._queue.qsize())):
            self._serve(self._queue.get_nowait())

    def _serve(self, item: Input) -> None:
        now_ms = self._clock.monotonic_ms()
        match item:
            case PacketIn():
                packet = self._opened(item.sender, item.data, may_greet=True)
                if packet is not None:
                    self._note(now_ms, item.sender, packet)
                    self._obey(self._swim.on_packet(now_ms, item.sender, packet))
            case RequestIn():
                self._serve_request(now_ms, item)
            case AnswerIn():
                packet = self._opened(item.address, item.data)
                if packet is not None:
                    self._note(now_ms, item.address, packet)
                    self._obey(self._swim.on_answer(now_ms, item.address, packet))
            case Call():
                self.inputs.append((now_ms, "self", item.name))
                self._obey(item.act(now_ms))

    def _serve_request(self, now_ms: int, item: RequestIn) -> None:
        if item.answer.done():
            return  # its asker has given up
        request = self._opened(item.sender, item.data)
        answer: Packet | None = None
        if request is not None:
            self._note(now_ms, item.sender, request)
            answer, effects = self._swim.on_exchange(now_ms, item.sender, request)
            self._obey(effects)
        if answer is None:
            item.answer.set_exception(BadPacket("not a request that is answered"))
        else:
            item.answer.set_result(self._seal.seal(encode(answer)))

    def _opened(self, sender: str, data: bytes, *, may_greet: bool = False) -> Packet | None:
        self.counts["received"] += 1
        try:
            return decode(self._seal.open(data))
        except BadPacket as error:
            self.counts["bad"] += 1
            if may_greet and isinstance(error, StalePacket):
                self._greet(sender)
            log.debug("packet_refused sender=%s reason=%s", sender, error)
            return None

    def _greet(self, sender: str) -> None:
        """A member does not know yet that this node has restarted: hearing of it, it makes itself
        understood (cube.gossip.replay)."""
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._greet_after_ms:
            self._greet_after_ms = now_ms + GREETING_EVERY_MS
            self.counts["greetings"] += 1
            self._datagrams.send(sender, self._seal.seal(encode(Gossip(self._swim.me.node_id))))

    def _note(self, now_ms: int, sender: str, packet: Packet) -> None:
        self.inputs.append((now_ms, sender, type(packet).__name__))
        if self._swim.member(packet.source) is not None:
            self._heard_ms[packet.source] = self._clock.now_ms()

    def _obey(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.counts["sent"] += 1
                    self._datagrams.send(effect.address, self._seal.seal(encode(effect.packet)))
                case Exchange():
                    self._begin_exchange(effect)
                case MemberChanged():
                    self._announce(effect)

    def _begin_exchange(self, effect: Exchange) -> None:
        if len(self._exchanges) >= EXCHANGES_MAX:
            self.counts["exchanges_failed"] += 1
            return
        self.counts["exchanges"] += 1
        request = self._seal.seal(encode(effect.packet))
        task = asyncio.get_running_loop().create_task(
            self._exchange(effect.address, request, effect.timeout_ms)
        )
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)

    async def _exchange(self, address: str, request: bytes, timeout_ms: int) -> None:
        try:
            data = await self._datagrams.exchange(address, request, timeout_ms)
        except Unavailable as error:
            self.counts["exchanges_failed"] += 1
            log.debug("exchange_failed address=%s reason=%s", address, error)
            return
        self._put(AnswerIn(address, data))

    def _announce(self, change: MemberChanged) -> None:
        member = change.after or change.before
        assert member is not None
        log.info(
            "member_changed node=%s address=%s incarnation=%d from=%s to=%s",
            member.node_id,
            member.address,
            member.incarnation,
            "unknown" if change.before is None else change.before.state.name.lower(),
            "forgotten" if change.after is None else change.after.state.name.lower(),
        )
        if change.after is None:
            self._heard_ms.pop(member.node_id, None)
        for on_change in tuple(self._subscribers):
            on_change(change)

    def _on_packet(self, sender: str, data: bytes) -> None:
        self._put(PacketIn(sender, data))

    async def _on_exchange(self, sender: str, data: bytes) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self._put(RequestIn(sender, data, answer)):
            raise Unavailable("too busy")
        return await answer

    def _call(self, name: str, act: Callable[[int], list[Effect]]) -> None:
        if not self._put(Call(name, act)):
            log.warning("gossip_queue_full lost=%s", name)

    def _put(self, item: Input) -> bool:
        limit = QUEUE_MAX if isinstance(item, Call) else QUEUE_MAX - QUEUE_RESERVED
        if self._queue.qsize() >= limit:
            self.counts["lost"] += 1
            return False
        self._queue.put_nowait(item)
        return True

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, RequestIn) and not item.answer.done():
                item.answer.set_exception(Unavailable("this node is stopping"))
