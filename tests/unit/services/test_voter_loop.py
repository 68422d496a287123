"""Learners become voters and dead voters are replaced, whoever leads, over a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cube.model import commands as c
from cube.model.errors import Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.ports.cluster import LogRequest
from cube.ports.log import Role
from cube.ports.remote import Redirected
from cube.scheduler.voters import LEARNER_LAG_MAX
from cube.services.log_follower import LogFollower
from cube.services.proposer import Proposer
from cube.services.state_feed import StateFeed
from cube.services.voter_loop import VoterLoop
from tests.builders import facts
from tests.fake_log import FakeLog, FakeLogCluster
from tests.fakes.remote import FakeRemote
from tests.virtual_time import VirtualClock, run_virtual

GRACE_MS = 10_000


class Member:
    """A node with its log and loop; it runs between start() and kill()."""

    def __init__(self, world: World, name: str, *, joining: bool) -> None:
        self.name = name
        self.address = f"{name}:7701"
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        clock = VirtualClock()
        self.log = FakeLog(self.address, world.log, self.feed, stamp=clock.now_ms, joining=joining)
        numbers = iter(range(10_000))
        self.proposer = Proposer(self.log, clock, 5_000, lambda: f"{name}-{next(numbers)}")
        self.remote = FakeRemote()
        self.loop = VoterLoop(
            self.log, self.address, self.feed, clock, self.remote, lambda: world.leader_http,
            5, GRACE_MS,
        )  # fmt: skip
        self.log.watch(self.loop.on_log_status)
        self.world = world
        self.lag = 0  # more than it really lacks, by what it says
        self.beats = True
        self.follower = LogFollower(
            NodeId(f"id-{name}"), self.log, self.feed, clock, Lines(world), dict,
            lambda: [other for other in world.members if other != name],
        )  # fmt: skip
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.log.start()
        loops = (self.loop.run(), self.follower.run(), self.beat())
        self.tasks = [asyncio.create_task(loop) for loop in loops]

    async def beat(self) -> None:
        while True:
            if self.beats and self.world.log.leader is not None:
                log_index = self.log.ask().index - self.lag
                self.world.leader.loop.note(NodeId(f"id-{self.name}"), log_index)
            await asyncio.sleep(1)

    async def kill(self) -> None:
        assert self.tasks
        for task in self.tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.log.stop()


class Lines(FakeRemote):
    """Every member is reached under its name, while it runs; `http` leaves no member out."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def log(self, address: str, request: LogRequest) -> bytes:
        member = self.world.members.get(address.partition(":")[0])
        if member is None or member.log.status().role is Role.LEARNER:
            raise Unavailable(f"cannot follow {address}")
        return await member.log.feed(request.ask, request.wait_ms)


class World:
    def __init__(self) -> None:
        self.log = FakeLogCluster()
        self.members: dict[str, Member] = {}
        self.leader_http: str | None = None

    async def join(self, *names: str) -> None:
        for name in names:
            first = not self.members
            member = self.members[name] = Member(self, name, joining=not first)
            await member.start()
            if first:
                await member.proposer.propose(c.InitCluster(ClusterId("x"), "X"))
            await member.proposer.propose(c.RegisterNode(facts(name)))

    async def kill(self, name: str) -> None:
        await self.members.pop(name).kill()

    async def say(self, name: str, status: NodeStatus) -> None:
        body = c.SetNodeStatus(self.log.term, NodeId(f"id-{name}"), status)
        await self.leader.proposer.propose(body)

    @property
    def leader(self) -> Member:
        return next(m for m in self.members.values() if m.address == self.log.leader)

    @property
    def voters(self) -> set[str]:
        return {address.partition(":")[0] for address in self.log.voters}


def over(test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World()
        try:
            await test(world)
        finally:
            for name in list(world.members):
                await world.kill(name)

    run_virtual(main())


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of virtual time
            await asyncio.sleep(0.01)


def test_the_number_of_voters_follows_the_number_of_nodes() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2")
        await asyncio.sleep(5)
        assert world.voters == {"n1"}
        assert "second disk" in world.leader.loop.why
        assert world.members["n2"].log.status().role is Role.LEARNER
        await world.join("n3", "n4")
        await until(lambda: world.voters == {"n1", "n2", "n3"})
        await asyncio.sleep(5)
        assert world.voters == {"n1", "n2", "n3"}
        assert world.leader.loop.why == ""
        await world.join("n5")
        await until(lambda: len(world.voters) == 5)

    over(test)


def test_a_dead_voter_is_replaced_after_the_grace_even_when_it_led() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3", "n4", "n5", "n6", "n7")
        await until(lambda: len(world.voters) == 5)
        for name in ("n1", "n2"):
            await world.kill(name)
            await until(lambda gone=name: gone not in world.voters)  # type: ignore[misc]
            await until(lambda: len(world.voters) == 5)
            await world.leader.proposer.propose(c.Noop())
        await asyncio.sleep(5)
        assert "n1" not in world.voters

    over(test)


def test_a_removed_node_loses_its_vote() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3", "n4")
        await until(lambda: world.voters == {"n1", "n2", "n3"})
        await world.kill("n3")
        await world.say("n3", NodeStatus.DOWN)
        await world.leader.loop.remove_vote(NodeId("id-n3"))
        assert world.voters == {"n1", "n2"}
        await world.leader.proposer.propose(c.RemoveNode(NodeId("id-n3")))
        await until(lambda: world.voters == {"n1", "n2", "n4"})

    over(test)


def test_a_vote_that_is_needed_is_not_taken() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        with pytest.raises(Unavailable, match="only a node that is down"):
            await world.leader.loop.remove_vote(NodeId("id-n3"))
        await world.kill("n3")
        await world.say("n2", NodeStatus.DOWN)  # it is not: its vote decides
        with pytest.raises(Unavailable, match="no majority"):
            await world.leader.loop.remove_vote(NodeId("id-n2"))

    over(test)


def test_a_follower_asks_the_leader_to_take_a_vote() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        follower = world.members["n2"]
        with pytest.raises(Unavailable, match="no leader"):
            await follower.loop.remove_vote(NodeId("id-n3"))
        world.leader_http = "n1:7700"
        follower.remote.beats = {"n1:7700": lambda _: None}
        await follower.loop.remove_vote(NodeId("id-n3"))
        assert follower.remote.asked == [("remove_vote", "n1:7700")]

    over(test)


def test_leadership_goes_to_the_node_that_is_named_or_to_any() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3", "n4")
        await until(lambda: len(world.voters) == 3)
        await world.leader.loop.transfer(NodeId("id-n3"))
        assert world.leader.name == "n3"
        await world.leader.loop.transfer(NodeId("id-n3"))
        assert world.leader.name == "n3"
        await world.leader.loop.transfer(None)
        assert world.leader.name == "n1"
        for name, why in (("n4", "does not vote"), ("n9", "no node")):
            with pytest.raises(Unavailable, match=why):
                await world.leader.loop.transfer(NodeId(f"id-{name}"))
        await world.kill("n4")  # it would replace the other
        await asyncio.sleep(GRACE_MS / 1000)
        await world.kill("n2")
        with pytest.raises(Unavailable, match="does not answer"):
            await world.leader.loop.transfer(NodeId("id-n2"))

    over(test)


@pytest.mark.parametrize("name", ["n2", None])
def test_a_transfer_waits_a_moment_for_a_voter_that_was_not_heard_yet(name: str | None) -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        log = world.leader.log
        heard = log.progress
        log.progress = lambda: ()  # type: ignore[method-assign]
        to = None if name is None else NodeId(f"id-{name}")
        transfer = asyncio.create_task(world.leader.loop.transfer(to))
        await asyncio.sleep(1)
        assert not transfer.done() and world.leader.name == "n1"
        log.progress = heard  # type: ignore[method-assign]
        await transfer
        assert world.leader.name == (name or "n2")

    over(test)


def test_a_follower_asks_the_leader_to_hand_over_and_how_far_the_others_are() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        follower = world.members["n2"]
        for ask in (lambda: follower.loop.transfer(None), follower.loop.progress):
            with pytest.raises(Unavailable, match="no leader"):
                await ask()
        world.leader_http = "n1:7700"
        named: list[NodeId | None] = []
        follower.remote.transfers = {"n1:7700": named.append}
        await follower.loop.transfer(NodeId("id-n3"))
        assert named == ["id-n3"]
        follower.remote.progresses = {"n1:7700": world.leader.log.progress}
        assert [one.address for one in await follower.loop.progress()] == ["n2:7701", "n3:7701"]
        assert await world.leader.loop.progress() == world.leader.log.progress()

    over(test)


@pytest.mark.parametrize("is_drain", [True, False])
def test_a_leader_that_is_drained_or_cordoned_hands_over_once(is_drain: bool) -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        term = world.log.term
        rest = c.SetDrain if is_drain else lambda id_, _: c.SetEligibility(id_, False)
        await world.leader.proposer.propose(rest(NodeId("id-n1"), 60_000))
        await until(lambda: world.leader.name == "n2")
        await asyncio.sleep(60)
        assert (world.leader.name, world.log.term) == ("n2", term + 1)
        await world.leader.proposer.propose(rest(NodeId("id-n2"), 60_000))
        await until(lambda: world.leader.name == "n3")
        await world.leader.proposer.propose(rest(NodeId("id-n3"), 60_000))
        await asyncio.sleep(60)  # there is nobody left that does not rest
        assert (world.leader.name, world.log.term) == ("n3", term + 2)

    over(test)


def test_a_hand_over_that_fails_is_not_tried_again_in_the_same_term() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        await until(lambda: len(world.voters) == 3)
        tried: list[str | None] = []

        async def fail(timeout_ms: int, to: str | None = None) -> None:
            tried.append(to)
            raise Unavailable("it did not come about")

        world.leader.log.transfer_leadership = fail  # type: ignore[method-assign]
        await world.leader.proposer.propose(c.SetDrain(NodeId("id-n1"), 60_000))
        await until(lambda: tried == ["n2:7701"])
        await asyncio.sleep(60)
        assert tried == ["n2:7701"]

    over(test)


def test_a_learner_that_lacks_much_or_is_silent_is_no_voter() -> None:
    async def test(world: World) -> None:
        await world.join("n1", "n2")
        world.members["n2"].lag = LEARNER_LAG_MAX + 1
        await asyncio.sleep(2)
        await world.join("n3")
        await asyncio.sleep(5)
        assert world.voters == {"n1"}
        assert "waiting for learners that have the log" in world.leader.loop.why
        world.members["n2"].lag = 0
        await until(lambda: world.voters == {"n1", "n2", "n3"})
        await world.join("n4")
        world.members["n4"].beats = False
        await asyncio.sleep(5)
        await world.kill("n3")
        await asyncio.sleep(2 * GRACE_MS / 1000)
        assert world.voters == {"n1", "n2", "n3"}  # nobody can replace it
        world.members["n4"].beats = True
        await until(lambda: world.voters == {"n1", "n2", "n4"})

    over(test)


def test_redirected_is_weather() -> None:
    class Elsewhere(FakeRemote):
        async def remove_vote(self, address: str, node_id: NodeId) -> None:
            raise Redirected("n9:7700")

    async def test(world: World) -> None:
        await world.join("n1", "n2", "n3")
        world.leader_http = "n1:7700"
        world.members["n2"].loop._remote = Elsewhere()
        with pytest.raises(Unavailable, match="n9:7700"):
            await world.members["n2"].loop.remove_vote(NodeId("id-n3"))

    over(test)
