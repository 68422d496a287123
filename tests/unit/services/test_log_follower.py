"""A node without a vote finds somebody to follow, whatever becomes of them; over a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from cube.model import commands as c
from cube.model.errors import Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.ports.cluster import LogRequest
from cube.ports.log import Role
from cube.ports.remote import Redirected
from cube.scheduler.following import rank
from cube.services.log_follower import HOLD_MS, LEADERLESS_MS, LogFollower
from cube.services.proposer import Proposer
from cube.services.state_feed import StateFeed
from tests.builders import facts
from tests.fake_log import FakeAnswer, FakeLog, FakeLogCluster
from tests.fakes.remote import FakeRemote
from tests.virtual_time import VirtualClock, run_virtual

ME = NodeId("id-me")
NAMES = ("n1", "n2", "n3")


class World:
    """Three voters that are registered, and this node, which joins."""

    def __init__(self) -> None:
        self.cluster = FakeLogCluster()
        self.logs: dict[str, FakeLog] = {}
        self.remote = FakeRemote()
        self.states: dict[NodeId, str] = {}
        self.told: list[str] = []
        self.obstacles: list[str] = []
        self.requests: list[LogRequest] = []

    async def begin(self) -> None:
        feed = StateFeed()
        feed.open(asyncio.get_running_loop())
        for name in NAMES:
            others = tuple(f"{other}:7701" for other in NAMES if other != name)
            replica = feed if name == "n1" else StateFeed()
            log = self.logs[name] = FakeLog(f"{name}:7701", self.cluster, replica, members=others)
            self.remote.logs[f"{name}:7700"] = self.answer_of(log)
        for log in self.logs.values():
            await log.start()
        numbers = iter(range(1_000))
        self.proposer = Proposer(
            self.logs["n1"], VirtualClock(), 5_000, lambda: f"c-{next(numbers)}"
        )
        await self.proposer.propose(c.InitCluster(ClusterId("x"), "X"))
        for name in NAMES:
            await self.proposer.propose(c.RegisterNode(facts(name)))
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        self.log = FakeLog("me:7701", self.cluster, self.feed, joining=True)
        await self.log.start()
        self.follower = LogFollower(
            ME, self.log, self.feed, VirtualClock(), self.remote, lambda: self.states,
            lambda: self.told, self.obstacles.append,
        )  # fmt: skip

    def answer_of(self, log: FakeLog) -> Callable[[LogRequest], Coroutine[Any, Any, bytes]]:
        async def answer(request: LogRequest) -> bytes:
            self.requests.append(request)
            return await log.feed(request.ask, request.wait_ms)

        return answer

    @property
    def asked(self) -> list[str]:
        return [address for verb, address in self.remote.asked if verb == "log"]

    def has_all(self) -> bool:
        return self.log.applied_index == self.cluster.last_index

    def ranked(self) -> list[str]:
        """The voters that do not lead, the one that this node likes best first."""
        return sorted(("n2:7700", "n3:7700"), key=lambda address: -rank(ME, address))


def over(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World()
        await world.begin()
        world.told = ["n1:7700"]
        running = asyncio.create_task(world.follower.run())
        await test(world)
        assert not running.done()
        running.cancel()

    run_virtual(main())


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of virtual time
            await asyncio.sleep(0.01)


def test_it_begins_with_whom_it_was_told_of_and_goes_to_a_voter_that_does_not_lead() -> None:
    async def test(world: World) -> None:
        await until(world.has_all)
        assert world.asked[0] == "n1:7700"
        await until(lambda: world.follower.source == world.ranked()[0])
        await asyncio.sleep(5)
        assert world.follower.source == world.ranked()[0]
        quiet = len(world.asked)
        await asyncio.sleep(20)
        # One question each HOLD_MS, or so, while nothing happens.
        assert 15 <= len(world.asked) - quiet <= 20_000 / HOLD_MS * 1.1
        assert {request.node_id for request in world.requests} == {ME}
        assert not world.requests[-1].was_member  # it has not registered

    over(test)


def test_it_follows_another_one_when_its_voter_dies_and_returns() -> None:
    async def test(world: World) -> None:
        first, second = world.ranked()
        await until(lambda: world.follower.source == first)
        answer = world.remote.logs.pop(first)
        await until(lambda: world.follower.source == second)
        await world.proposer.propose(c.Noop())
        await until(world.has_all)
        assert world.obstacles[-1] == f"following the log: cannot reach {first}"
        world.remote.logs[first] = answer
        await until(lambda: world.follower.source == first, 60)

    over(test)


def test_whom_gossip_takes_for_dead_is_asked_last() -> None:
    async def test(world: World) -> None:
        first, second = world.ranked()
        await until(lambda: world.follower.source == first)
        world.states = {NodeId(f"id-{first[:2]}"): "dead"}
        await until(lambda: world.follower.source == second)

    over(test)


def test_a_voter_that_hears_no_leader_is_left() -> None:
    async def test(world: World) -> None:
        first, second = world.ranked()
        await until(lambda: world.follower.source == first)
        log = world.logs[first[:2]]

        async def alone(ask: Any, wait_ms: int) -> bytes:
            entries = world.cluster.entries[ask.index :]
            answer = FakeAnswer(None, entries, world.cluster.last_index)
            return msgspec.msgpack.encode(answer)

        log.feed = alone  # type: ignore[method-assign]
        await until(lambda: world.follower.source == second)

    over(test)


def test_garbage_is_not_asked_for_again_at_once() -> None:
    async def test(world: World) -> None:
        first, second = world.ranked()

        async def garbage(_request: LogRequest) -> bytes:
            return b"garbage"

        world.remote.logs[first] = garbage
        await until(lambda: world.follower.source == second)
        await asyncio.sleep(100)
        assert world.asked.count(first) < 12

    over(test)


def test_a_redirect_leads_to_the_leader() -> None:
    async def test(world: World) -> None:
        async def elsewhere(_request: LogRequest) -> bytes:
            raise Redirected("n1:7700")

        world.told = ["n7:7700"]
        world.remote.logs["n7:7700"] = elsewhere
        await until(world.has_all, 5)
        assert world.asked[:2] == ["n7:7700", "n1:7700"]

    over(test)


def test_voters_do_not_ask_until_they_have_heard_no_leader_for_a_while() -> None:
    async def test(world: World) -> None:
        await until(world.has_all)
        await world.logs["n1"].add_voter("me:7701", 1_000)
        assert world.log.status().role is Role.VOTER
        await asyncio.sleep(2)
        asked = len(world.asked)
        await asyncio.sleep(30)
        assert len(world.asked) == asked
        assert world.follower.source is None
        world.cluster.cut_off.add("me:7701")
        await asyncio.sleep(LEADERLESS_MS / 1000 - 0.5)
        assert len(world.asked) == asked
        await until(lambda: len(world.asked) > asked, 2)

    over(test)


def test_a_removed_node_is_told_and_keeps_asking_now_and_then() -> None:
    async def test(world: World) -> None:
        async def refuse(request: LogRequest) -> bytes:
            raise Unavailable("this node was removed from this cluster")

        for name in NAMES:
            world.remote.logs[f"{name}:7700"] = refuse
        await until(lambda: bool(world.obstacles))
        assert "was removed" in world.obstacles[-1]
        asked = len(world.asked)
        await asyncio.sleep(60)
        assert 10 < len(world.asked) - asked < 100
        assert len(world.obstacles) == 1  # said once

    over(test)


@pytest.mark.parametrize("is_awaited", [True, False])
def test_who_waits_here_is_not_kept_waiting(is_awaited: bool) -> None:
    """A node's own writes are applied as soon as they can be fetched; other news in larger pieces."""

    async def test(world: World) -> None:
        await until(world.has_all)
        await until(lambda: world.follower.source == world.ranked()[0])
        own = Proposer(
            world.log, VirtualClock(), 5_000, iter([f"o-{n}" for n in range(99)]).__next__
        )
        asked = len(world.asked)
        began_ms = VirtualClock().monotonic_ms()
        for _ in range(20):
            if is_awaited:
                await own.propose(c.Noop())
            else:
                await world.proposer.propose(c.Noop())
                await asyncio.sleep(0.005)
        took_ms = VirtualClock().monotonic_ms() - began_ms
        if is_awaited:
            assert took_ms <= 20 * 15
        else:
            assert len(world.asked) - asked <= took_ms / 15
        await until(world.has_all)

    over(test)
