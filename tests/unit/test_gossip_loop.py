"""The shell: what goes in reaches the machine, what comes out reaches the net, nothing is unbounded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from cube.adapters.system_clock import SystemClock
from cube.adapters.udp import UdpDatagrams
from cube.gossip.effects import MemberChanged
from cube.gossip.member import MemberState
from cube.gossip.packets import Ack, Gossip, Ping, decode, encode
from cube.gossip.seal import PlainSeal
from cube.gossip.settings import GossipSettings
from cube.gossip.swim import Swim
from cube.model.errors import Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.ports.datagrams import Datagrams
from cube.services import gossip_loop
from cube.services.gossip_loop import GossipLoop
from tests.memory_net import MemoryNet

ALIVE, SUSPECT, DEAD, LEFT = MemberState
FAST = GossipSettings(
    probe_ms=150, probe_timeout_ms=60, gossip_ms=20, tick_ms=10, sync_ms=500, reconnect_ms=200
).check()
SEAL = PlainSeal(ClusterId("test"))
DEADLINE_S = 15.0


def member_loop(
    name: str, address: str, datagrams: Datagrams, *, settings: GossipSettings = FAST
) -> GossipLoop:
    clock = SystemClock()
    dice = random.Random(name)
    swim = Swim(settings, NodeId(name), address, b"meta " + name.encode(), clock.now_ms(), dice)
    return GossipLoop(swim, datagrams, clock, SEAL)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(round(DEADLINE_S * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


class Three:
    """Members a, b and c on an in-memory net, b and c joined through a."""

    def __init__(self) -> None:
        self.net = MemoryNet()
        self.sockets = {name: self.net.datagrams() for name in "abc"}
        self.loops = {
            name: member_loop(name, sock.address, sock) for name, sock in self.sockets.items()
        }

    async def start(self) -> None:
        for loop in self.loops.values():
            await loop.start([self.sockets["a"].address])
        await until(lambda: self.all_are(dict.fromkeys("abc", ALIVE)))

    def all_are(self, states: dict[str, MemberState], *, by: str = "abc") -> bool:
        return all(self.loops[name].states() == states for name in by)


@pytest.fixture
async def three() -> AsyncIterator[Three]:
    cluster = Three()
    await cluster.start()
    yield cluster
    for loop in cluster.loops.values():
        await loop.stop()


async def test_members_find_each_other_and_know_their_meta(three: Three) -> None:
    member = three.loops["c"].member(NodeId("b"))
    assert member is not None
    assert member.meta == b"meta b"
    assert member.address == three.sockets["b"].address
    await until(lambda: three.loops["a"].heard_ms(NodeId("b")) > 0)
    assert three.loops["a"].heard_ms(NodeId("nobody")) == 0


async def test_a_member_that_stops_without_goodbye_is_dead(three: Three) -> None:
    changes: list[MemberChanged] = []
    unsubscribe = three.loops["a"].subscribe(changes.append)
    await three.loops["c"].stop()
    await until(lambda: three.all_are({"a": ALIVE, "b": ALIVE, "c": DEAD}, by="ab"))
    told = [c.after.state for c in changes if c.after is not None and c.after.node_id == "c"]
    assert told[-1] is DEAD
    unsubscribe()


async def test_a_member_that_says_goodbye_has_left(three: Three) -> None:
    await three.loops["c"].leave(5_000)
    await three.loops["c"].stop()
    await until(lambda: three.all_are({"a": ALIVE, "b": ALIVE, "c": LEFT}, by="ab"))


async def test_a_member_that_is_cut_off_and_back_is_alive_again(three: Three) -> None:
    three.net.cut.add(three.sockets["c"].address)
    await until(lambda: three.all_are({"a": ALIVE, "b": ALIVE, "c": DEAD}, by="ab"))
    three.net.cut.clear()
    await until(lambda: three.all_are(dict.fromkeys("abc", ALIVE)))


async def test_a_joiner_learns_of_all_from_the_answer_to_its_exchange(three: Three) -> None:
    three.net.is_deaf = True  # so that it cannot have learnt by datagram
    sock = three.net.datagrams()
    joiner = member_loop("d", sock.address, sock)
    await joiner.start([three.sockets["b"].address])
    await until(lambda: set(joiner.states()) == set("abcd"))
    await joiner.stop()


async def test_statistics_and_meta_travel(three: Three) -> None:
    three.loops["b"].set_stats(b"load 1")
    three.loops["b"].set_meta(b"moved")

    def is_known() -> bool:
        seen = [three.loops[name].member(NodeId("b")) for name in "ac"]
        return all(m is not None and (m.stats, m.meta) == (b"load 1", b"moved") for m in seen)

    await until(is_known)


async def test_foreign_and_damaged_packets_change_nothing_and_are_counted(three: Three) -> None:
    stranger = three.net.datagrams()
    await stranger.open(lambda _sender, _data: None, _refuse)
    target = three.sockets["a"].address
    foreign = PlainSeal(ClusterId("other")).seal(encode(Gossip(NodeId("x"))))
    garbage = [b"", b"x", b"\x00" * 1_400, foreign, SEAL.seal(b"\x01junk"), SEAL.seal(b"")]
    before = three.loops["a"].members()
    for data in garbage:
        stranger.send(target, data)
    await until(lambda: three.loops["a"].counts["bad"] == len(garbage))
    for data in garbage:
        with pytest.raises(Unavailable):
            await stranger.exchange(target, data, 5_000)
    assert [m.node_id for m in three.loops["a"].members()] == [m.node_id for m in before]
    await stranger.close()


async def test_an_exchange_that_has_no_answer_is_refused(three: Three) -> None:
    stranger = three.net.datagrams()
    await stranger.open(lambda _sender, _data: None, _refuse)
    target = three.sockets["a"].address
    mine = SEAL.seal(encode(Ping(NodeId("x"), NodeId("a"), 3)))
    answer = decode(SEAL.open(await stranger.exchange(target, mine, 5_000)))
    assert answer == Ack(NodeId("a"), 3)
    other = SEAL.seal(encode(Ping(NodeId("x"), NodeId("not a"), 3)))
    with pytest.raises(Unavailable):
        await stranger.exchange(target, other, 5_000)
    await stranger.close()


async def test_a_flood_is_lost_beyond_the_queue_and_own_wishes_are_not() -> None:
    net = MemoryNet()
    sock = net.datagrams()
    loop = member_loop("a", sock.address, sock)
    await loop.start()
    assert sock._on_packet is not None
    for _ in range(5_000):
        sock._on_packet("10.0.0.9:1", b"junk")
    loop.set_meta(b"wish")
    assert loop.counts["lost"] == 5_000 - (gossip_loop.QUEUE_MAX - gossip_loop.QUEUE_RESERVED)
    await until(lambda: loop.members()[0].meta == b"wish")
    await loop.stop()


async def test_what_a_subscriber_does_wrong_ends_the_loop_where_it_is_seen() -> None:
    net = MemoryNet()
    a, b = net.datagrams(), net.datagrams()
    first, second = member_loop("a", a.address, a), member_loop("b", b.address, b)

    def fail(_: MemberChanged) -> None:
        raise ZeroDivisionError

    first.subscribe(fail)
    await first.start()
    await second.start([a.address])
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(DEADLINE_S):
            await first.wait()
    await first.stop()
    await second.stop()


async def test_wait_returns_when_stopped_and_stop_may_be_repeated() -> None:
    net = MemoryNet()
    sock = net.datagrams()
    loop = member_loop("a", sock.address, sock)
    await loop.stop()
    await loop.start()
    waiting = asyncio.create_task(loop.wait())
    await asyncio.sleep(0)
    await loop.stop()
    await loop.stop()
    await waiting


async def test_a_taken_port_is_unavailable() -> None:
    net = MemoryNet()
    sock = net.datagrams("10.0.0.1:1")
    loop = member_loop("a", "10.0.0.1:1", sock)
    await loop.start()
    other = member_loop("b", "10.0.0.1:1", net.datagrams("10.0.0.1:1"))
    with pytest.raises(Unavailable):
        await other.start()
    await other.stop()
    await loop.stop()


async def test_three_members_on_real_sockets_see_a_death() -> None:
    sockets = {name: UdpDatagrams("127.0.0.1", 0) for name in "abc"}
    loops: dict[str, GossipLoop] = {}
    # The port is known only when bound; the machine wants it before: bind, note, let go, bind.
    for name, sock in sockets.items():
        await sock.open(lambda _sender, _data: None, _refuse)
        await sock.close()
        loops[name] = member_loop(name, f"127.0.0.1:{sock.port}", sock)
    for loop in loops.values():
        await loop.start([f"127.0.0.1:{sockets['a'].port}"])
    everyone = dict.fromkeys("abc", ALIVE)
    await until(lambda: all(loop.states() == everyone for loop in loops.values()))
    await loops["b"].stop()
    await until(lambda: loops["a"].states()[NodeId("b")] is DEAD)
    await until(lambda: loops["c"].states()[NodeId("b")] is DEAD)
    for loop in loops.values():
        await loop.stop()


async def test_an_idle_loop_hardly_wakes() -> None:
    """Counted, not timed: a lone member's machine has nothing to do for a minute."""
    net = MemoryNet()
    sock = net.datagrams()
    loop = member_loop("a", sock.address, sock, settings=GossipSettings())
    await loop.start()
    await until(lambda: loop.counts["ticks"] >= 1)
    for _ in range(50):
        await asyncio.sleep(0)
    assert loop.counts["ticks"] <= 2
    await loop.stop()


async def _refuse(_sender: str, _request: bytes) -> bytes:
    raise Unavailable("not here")
