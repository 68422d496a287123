"""A hundred thousand hostile packets at a member's gossip port, over real sockets: nobody is taken
for dead, nothing is believed, nothing grows."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import random
import socket
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from cube.adapters.system_clock import SystemClock
from cube.adapters.trust.gossip_seal import AesSeal
from cube.adapters.udp import UdpDatagrams
from cube.gossip.effects import MemberChanged
from cube.gossip.member import MemberState
from cube.gossip.packets import Ping, encode
from cube.gossip.settings import GossipSettings
from cube.gossip.swim import Swim
from cube.model.ids import ClusterId, NodeId
from cube.services.gossip_loop import GossipLoop
from tests.fakes.disk import FakeDisk
from tests.ports import free_port

PACKETS = 100_000
CONNECTIONS = 200  # at the TCP half
BATCH = 1  # before the victims, which share this process, have a turn: else the kernel drops most
GROWTH_BYTES_MAX = 64 << 20
DEADLINE_S = 60.0
CLUSTER, KEY = ClusterId("cluster-1"), b"k" * 32
# As in production, but for looking more often; a lost probe has as long to be repaired.
SETTINGS = GossipSettings(probe_ms=300, probe_timeout_ms=200, gossip_ms=50, tick_ms=20).check()


class Gadget:
    """What a pickle would do to whoever loads it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.abort, ()


class Member:
    def __init__(self, name: str) -> None:
        self.name = NodeId(name)
        self.socket = UdpDatagrams("127.0.0.1", free_port())
        self.address = f"127.0.0.1:{self.socket.port}"
        clock = SystemClock()
        now_ms = clock.now_ms()
        self.seal = AesSeal(CLUSTER, self.name, [KEY], FakeDisk(), now_ms)
        swim = Swim(SETTINGS, self.name, self.address, b"", now_ms, random.Random(name))
        self.loop = GossipLoop(swim, self.socket, clock, self.seal)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(round(DEADLINE_S * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    found = [Member(name) for name in "abc"]
    for member in found:
        await member.loop.start([found[0].address])
    await until(lambda: all_alive(found))
    yield found
    for member in found:
        await member.loop.stop()


def all_alive(members: list[Member]) -> bool:
    everyone = dict.fromkeys((m.name for m in members), MemberState.ALIVE)
    return all(m.loop.states() == everyone for m in members)


def hostile(dice: random.Random, recorded: list[bytes]) -> list[Callable[[], bytes]]:
    """The kinds of attack. `recorded`: packets of members that were understood once."""
    now_ms = SystemClock().now_ms()
    stranger = AesSeal(CLUSTER, NodeId("s"), [b"x" * 32], FakeDisk(), now_ms)
    neighbour = AesSeal(ClusterId("cluster-2"), NodeId("n"), [KEY], FakeDisk(), now_ms)
    ping = encode(Ping(source=NodeId("b"), target=NodeId("a"), sequence=1))
    gadget = pickle.dumps(Gadget())

    def flipped() -> bytes:
        data = bytearray(dice.choice(recorded))
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data)

    return [
        lambda: dice.randbytes(dice.randrange(1_500)),
        lambda: dice.choice(recorded)[: dice.randrange(200)],
        lambda: dice.choice(recorded) + dice.randbytes(dice.randrange(1, 50_000)),
        lambda: dice.choice(recorded),
        flipped,
        lambda: gadget,
        lambda: recorded[0][:40] + gadget,
        lambda: ping,
        lambda: stranger.seal(ping),
        lambda: neighbour.seal(ping),
        lambda: b"",
    ]


async def test_hostile_packets_change_nothing(
    members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[MemberChanged] = []
    for member in members:
        member.loop.subscribe(changes.append)
    recorded = [m.seal.seal(b"\x01 once it was whole") for m in members for _ in range(20)]
    attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    attacker.setblocking(False)
    victim = ("127.0.0.1", members[0].socket.port)
    for packet in recorded:
        attacker.sendto(packet, victim)
    await until(lambda: members[0].loop.counts["bad"] >= len(recorded))
    kinds = hostile(random.Random(1), recorded)
    before = psutil.Process().memory_info().rss
    try:
        for number in range(PACKETS):
            packet = kinds[number % len(kinds)]()
            try:
                attacker.sendto(packet, victim)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            if number % BATCH == 0:
                await asyncio.sleep(0)
    finally:
        attacker.close()
    seen = members[0].loop.counts
    arrived = seen["bad"] + members[0].socket.dropped
    assert arrived > PACKETS / 2, dict(seen)
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES_MAX
    assert changes == []
    assert all_alive(members)
    asked = {member.name: member.loop.counts["received"] for member in members}
    await until(lambda: all(m.loop.counts["received"] > asked[m.name] + 3 for m in members))
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_hostile_connections_change_nothing(
    members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[MemberChanged] = []
    for member in members:
        member.loop.subscribe(changes.append)
    dice = random.Random(2)
    recorded = [members[1].seal.seal(b"\x01 once it was whole")]
    kinds = hostile(dice, recorded)
    before = psutil.Process().memory_info().rss
    for number in range(CONNECTIONS):
        data = kinds[number % len(kinds)]()
        lengths = (len(data), 0, 2**31, 0xFFFFFFFF)
        length = lengths[number // len(kinds) % len(lengths)].to_bytes(4, "big")
        reader, writer = await asyncio.open_connection("127.0.0.1", members[0].socket.port)
        try:
            writer.write(length + data)
            if number % 3 == 0:
                writer.write_eof()
                async with asyncio.timeout(DEADLINE_S):
                    await reader.read()
        except OSError:
            pass  # it hung up on us before we had said all
        finally:
            writer.transport.abort()
    assert psutil.Process().memory_info().rss - before < GROWTH_BYTES_MAX
    await until(lambda: not members[0].socket.answering)
    assert changes == []
    assert all_alive(members)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
