"""Gossip loops under the real seal: restarts, rotation, and replays on the wire."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from cube.adapters.system_clock import SystemClock
from cube.adapters.trust.gossip_seal import AesSeal
from cube.gossip.member import MemberState
from cube.gossip.swim import Swim
from cube.model.errors import Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.ports.datagrams import Datagrams
from cube.services.gossip_loop import GossipLoop
from tests.fakes.disk import FakeDisk
from tests.memory_net import MemoryNet
from tests.unit.test_gossip_loop import FAST, until

ALIVE = MemberState.ALIVE
KEY, NEXT_KEY = b"k" * 32, b"n" * 32


async def refuse(_sender: str, _data: bytes) -> bytes:
    raise Unavailable("only listening")


class Member:
    """A node with a disk that outlives its process."""

    def __init__(self, name: str, net: MemoryNet) -> None:
        self.name = name
        self.net = net
        self.disk = FakeDisk()
        self.socket = net.datagrams()

    async def start(self, *seeds: str) -> None:
        clock = SystemClock()
        dice = random.Random(self.name)
        swim = Swim(FAST, NodeId(self.name), self.socket.address, b"", clock.now_ms(), dice)
        self.seal = AesSeal(
            ClusterId("test"), NodeId(self.name), [KEY], self.disk, clock.now_ms()
        )  # fmt: skip
        socket: Datagrams = self.socket
        self.loop = GossipLoop(swim, socket, clock, self.seal)
        await self.loop.start(seeds)


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    net = MemoryNet()
    found = [Member(name, net) for name in "abc"]
    for member in found:
        await member.start(found[0].socket.address)
    await until(lambda: all_alive(found))
    yield found
    for member in found:
        await member.loop.stop()


def all_alive(members: list[Member]) -> bool:
    everyone = {NodeId(m.name): ALIVE for m in members}
    return all(m.loop.states() == everyone for m in members)


async def test_a_member_that_was_killed_is_understood_again_by_all(members: list[Member]) -> None:
    a, b, c = members
    await c.loop.stop()
    await c.start(a.socket.address)
    await until(lambda: all_alive(members))
    # b was not the seed: it learns of the restart when c greets it, or probes it.
    await until(lambda: c.loop.heard_ms(NodeId("b")) > 0 and c.loop.heard_ms(NodeId("a")) > 0)
    bad = [m.loop.counts["bad"] for m in (a, b)]
    await until(lambda: c.loop.counts["sent"] > 20)
    assert [m.loop.counts["bad"] for m in (a, b)] == bad


async def test_a_restarted_member_makes_itself_heard_by_those_it_cannot_understand(
    members: list[Member],
) -> None:
    """It asks nobody: all it gets are packets that may be old."""
    c = members[2]
    await c.loop.stop()
    await c.start()
    await until(lambda: c.loop.counts["greetings"] > 0)
    await until(lambda: all_alive(members))


async def test_keys_rotate_while_they_talk(members: list[Member]) -> None:
    for keys in ([KEY, NEXT_KEY], [NEXT_KEY, KEY], [NEXT_KEY]):
        for member in members:
            member.seal.set_keys(keys)
        enough = [m.loop.counts["sent"] + 5 for m in members]

        def have_talked(enough: list[int] = enough) -> bool:
            sent = [m.loop.counts["sent"] for m in members]
            return all(n > least for n, least in zip(sent, enough, strict=True))

        await until(have_talked)
    assert all_alive(members)


async def test_a_recording_changes_nothing(members: list[Member]) -> None:
    a, b, _ = members
    recorder = members[0].net.datagrams()
    await recorder.open(lambda _sender, _data: None, refuse)
    packet = b.seal.seal(b"\x01not even a packet")
    recorder.send(a.socket.address, packet)
    await until(lambda: a.loop.counts["bad"] == 1)
    for _ in range(200):
        recorder.send(a.socket.address, packet)
    await until(lambda: a.loop.counts["bad"] == 201)
    assert a.loop.counts["greetings"] <= 201
    assert all_alive(members)
    await recorder.close()
