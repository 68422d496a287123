"""Registration, heartbeats, roll call, peers, and the view that the API has of its node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from cube.gossip.member import META_BYTES_MAX, STATS_BYTES_MAX
from cube.model import commands as c
from cube.model.cluster import NodeFacts
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import ClusterId, CommandId, NodeId
from cube.model.lifecycle import BRAKED, NodeStatus
from cube.model.outcome import NodeRegistered, Outcome, Rejected, RejectReason
from cube.ports.cluster import (
    BootstrapView,
    JoinRequest,
    LogRequest,
    MemberStats,
    MemberView,
    Proposed,
)
from cube.ports.log import Ask, Role
from cube.ports.remote import Redirected
from cube.services.cluster_view import ClusterView, Parts, strangers
from cube.services.heartbeats import HEARTBEAT_S, Heartbeats, Leases
from cube.services.leader_clock import LeaderClock
from cube.services.lease_keeper import LeaseKeeper
from cube.services.peers import PeerDesk
from cube.services.proposer import Proposer
from cube.services.registration import RETRY_MAX_S, Registration
from cube.services.roll_call import (
    NAME_CHARS_MAX,
    Meta,
    _decode_meta,
    _decode_stats,
    encode_meta,
    encode_stats,
)
from cube.services.state_feed import StateFeed
from cube.services.voter_loop import VoterLoop
from tests.builders import facts
from tests.fake_log import FakeLog, FakeLogCluster
from tests.fakes.remote import FakeRemote
from tests.virtual_time import VirtualClock, run_virtual

ME = NodeId("id-n1")

# Registration


class Desk:
    """A Propose that answers as told, and then for ever "registered as n1"."""

    def __init__(self, *answers: Outcome | Exception) -> None:
        self.answers = list(answers)
        self.told: list[NodeFacts] = []

    async def __call__(self, body: c.Body, *, actor: str = "") -> Proposed:
        assert isinstance(body, c.RegisterNode)
        assert actor == "node"
        self.told.append(body.facts)
        answer = self.answers.pop(0) if self.answers else NodeRegistered(ME, "n1-2")
        if isinstance(answer, Exception):
            raise answer
        return Proposed(answer, 1)


def registering(desk: Desk, test: Callable[[Registration, list[NodeFacts]], Any]) -> None:
    async def main() -> None:
        now = [facts("n1")]
        may_begin = asyncio.Event()
        registration = Registration(lambda: now[0], desk, may_begin)
        running = asyncio.create_task(registration.run())
        await asyncio.sleep(60)
        assert desk.told == [], "before all facts are known"
        may_begin.set()
        await test(registration, now)
        assert not running.done()
        running.cancel()

    run_virtual(main())


def test_a_node_tells_its_facts_at_the_start_and_when_they_change() -> None:
    desk = Desk()

    async def test(registration: Registration, now: list[NodeFacts]) -> None:
        assert await registration.name() == "n1-2"
        registration.touch()
        await asyncio.sleep(60)
        assert len(desk.told) == 1  # touched, and the same
        now[0] = facts("n1", version="2")
        registration.touch()
        await asyncio.sleep(1)
        assert [told.version for told in desk.told] == ["0", "2"]

    registering(desk, test)


def test_a_node_tells_its_facts_until_it_is_heard() -> None:
    refusal = Rejected(RejectReason.LIMIT, "full")
    desk = Desk(Unavailable("x"), OutcomeUnknown("x"), refusal, *([Unavailable("x")] * 20))

    async def test(registration: Registration, now: list[NodeFacts]) -> None:
        await asyncio.sleep(5)
        now[0] = facts("n1", version="newer")
        async with asyncio.timeout(30 * RETRY_MAX_S):
            assert await registration.name() == "n1-2"
        assert len(desk.told) == 24
        assert desk.told[-1].version == "newer"

    registering(desk, test)


# Heartbeats


def test_a_node_tells_the_leader_that_it_is_there_whatever_the_weather(
    caplog: pytest.LogCaptureFixture,
) -> None:
    remote = FakeRemote()
    leader: list[str | None] = [None]
    caplog.set_level("INFO")

    async def main() -> None:
        running = asyncio.create_task(Heartbeats(ME, remote, lambda: leader[0], lambda: 42).run())
        await asyncio.sleep(5.5 * HEARTBEAT_S)
        assert remote.asked == []
        leader[0] = "one"
        await asyncio.sleep(3 * HEARTBEAT_S)
        assert remote.asked == [("heartbeat", "one")] * 3
        assert remote.log_index_told == 42

        def elsewhere(_node_id: NodeId) -> None:
            raise Redirected("two")

        remote.beats = {"one": elsewhere, "two": lambda _: None}
        await asyncio.sleep(2 * HEARTBEAT_S)
        leader[0] = "two"
        await asyncio.sleep(2 * HEARTBEAT_S)
        assert remote.asked[-1] == ("heartbeat", "two")
        assert not running.done()
        running.cancel()

    run_virtual(main())
    # Once when it breaks and once when it is mended, not each second.
    events = [record.getMessage().split()[0] for record in caplog.records]
    assert events == ["heartbeat_failed", "heartbeat_restored"]


def test_a_slow_leader_does_not_stretch_the_interval() -> None:
    at_s: list[float] = []

    class Slow(FakeRemote):
        async def heartbeat(
            self, address: str, node_id: NodeId, log_index: int, *, wants_lease: bool = False
        ) -> int | None:
            at_s.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.8 * HEARTBEAT_S)
            return None

    async def main() -> None:
        running = asyncio.create_task(Heartbeats(ME, Slow(), lambda: "one", lambda: 1).run())
        await asyncio.sleep(9.5 * HEARTBEAT_S)
        running.cancel()

    run_virtual(main())
    assert len(at_s) == 10


def leases(wanted: list[bool], given: list[tuple[int, int]], here: int | None = None) -> Leases:
    async def ask_here() -> int | None:
        return here

    return Leases(
        VirtualClock(), lambda: wanted[0], ask_here, lambda sent, index: given.append((sent, index))
    )


def test_a_lease_counts_from_the_sending_of_its_heartbeat() -> None:
    given: list[tuple[int, int]] = []
    wanted = [False]

    class Slow(FakeRemote):
        async def heartbeat(
            self, address: str, node_id: NodeId, log_index: int, *, wants_lease: bool = False
        ) -> int | None:
            await asyncio.sleep(0.6)
            if len(given) == 2:
                raise Unavailable("too late")
            return 41 if wants_lease else None

    async def main() -> None:
        beats = Heartbeats(ME, Slow(), lambda: "one", lambda: 1, leases(wanted, given))
        running = asyncio.create_task(beats.run())
        await asyncio.sleep(0)
        start_ms = VirtualClock().monotonic_ms()
        await asyncio.sleep(0.9)
        assert given == []
        wanted[0] = True
        await asyncio.sleep(4)
        assert given == [(start_ms + 1_000, 41), (start_ms + 2_000, 41)]
        running.cancel()

    run_virtual(main())


def test_who_waits_for_a_lease_does_not_wait_for_the_next_second() -> None:
    given: list[tuple[int, int]] = []
    wanted = [False]

    async def main() -> None:
        remote = FakeRemote()
        remote.beats["one"] = lambda _: None
        remote.leases["one"] = 7
        beats = Heartbeats(ME, remote, lambda: "one", lambda: 1, leases(wanted, given))
        running = asyncio.create_task(beats.run())
        await asyncio.sleep(0.25)
        wanted[0] = True
        beats.hurry()
        await asyncio.sleep(0.01)
        assert [index for _, index in given] == [7]
        running.cancel()

    run_virtual(main())


@pytest.mark.parametrize("here", [9, None])
def test_a_leader_leases_to_itself_what_it_can_confirm(here: int | None) -> None:
    given: list[tuple[int, int]] = []

    async def main() -> None:
        made = leases([True], given, here)
        running = asyncio.create_task(
            Heartbeats(ME, FakeRemote(), lambda: None, lambda: 1, made).run()
        )
        await asyncio.sleep(2.5)
        assert [index for _, index in given] == ([9] * 3 if here else [])
        running.cancel()

    run_virtual(main())


async def test_a_lease_is_on_disk_before_it_is_used_and_a_full_disk_costs_supervised_tasks_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    order: list[object] = []
    is_full = False

    def write(sent_ms: int) -> None:
        if is_full:
            raise OSError(28, "No space left on device")
        order.append(sent_ms)

    keeper = LeaseKeeper(write, lambda sent_ms, index: order.append((sent_ms, index)))
    running = asyncio.create_task(keeper.run())
    keeper.put(1, 10)
    keeper.put(2, 11)  # the newest counts

    async def told(last: object) -> None:
        async with asyncio.timeout(30):
            while order[-1:] != [last]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    await told((2, 11))
    assert order == [2, (2, 11)]
    is_full = True
    for sent_ms in (3, 4):
        keeper.put(sent_ms, 12)
        await told((sent_ms, 12))
    assert [record.getMessage().split()[0] for record in caplog.records] == ["lease_not_written"]
    running.cancel()


# Roll call

ADDRESS = "a-quite-long-name-of-a-host.in.some.department.example.org:65535"


@pytest.mark.parametrize("name", ["n1", "x" * 500, "ü" * 500, "🙂" * 500])
@pytest.mark.parametrize("address", ["10.0.0.1:7700", ADDRESS, "h" * 253 + ":65535"])
def test_meta_always_fits(name: str, address: str) -> None:
    lineage = "0123456789abcdef"
    data = encode_meta(name, address, address, lineage)
    assert len(data) <= META_BYTES_MAX
    meta = _decode_meta(data)
    assert meta.lineage == lineage
    assert name.startswith(meta.name)
    if len(name) <= NAME_CHARS_MAX and len(address) < 100:
        assert meta == Meta(name, address, address, lineage)


@given(
    st.builds(
        MemberStats,
        cpu_percent=st.floats(),
        cpu_cores=st.integers(0, 1 << 20),
        load_1m=st.floats(allow_nan=False),
        memory_total_bytes=st.integers(0, 1 << 63),
        memory_used_bytes=st.integers(0, 1 << 63),
        disk_total_bytes=st.integers(0, 1 << 63),
        disk_used_bytes=st.integers(0, 1 << 63),
        applied_index=st.integers(0, 1 << 63),
    )
)
def test_stats_fit_and_come_back(stats: MemberStats) -> None:
    data = encode_stats(stats)
    assert len(data) <= STATS_BYTES_MAX
    back = _decode_stats(data)
    assert back is not None
    assert encode_stats(back) == data


@given(st.binary(max_size=80))
def test_what_others_say_of_themselves_does_no_harm(data: bytes) -> None:
    assert isinstance(_decode_meta(data), Meta)
    _decode_stats(data)


def test_a_newer_release_may_say_more() -> None:
    import msgspec

    longer = msgspec.msgpack.encode(["n", "h:1", "r:1", "", "and more"])
    assert _decode_meta(longer) == Meta("n", "h:1", "r:1")


@pytest.mark.parametrize(
    ("state", "lineage", "name", "is_told"),
    [("alive", "", "n2", True), ("alive", "b", "n2", True), ("alive", "a", "n2", False),
     ("dead", "", "n2", False), ("alive", "", "", False)],
)  # fmt: skip
def test_nodes_of_another_history_are_told_while_they_live(
    state: str, lineage: str, name: str, is_told: bool
) -> None:
    member = MemberView(
        node_id=ME, name=name, state=state, incarnation=1, gossip_address="g:1",
        http_address="h:7700", raft_address="r:1", last_seen_ms=0, stats=None, lineage=lineage,
    )  # fmt: skip
    told = strangers("a", [member])
    assert len(told) == is_told
    assert all("n2 at h:7700" in sentence for sentence in told)


# Peers, over a log in memory


class Node:
    def __init__(
        self,
        cluster: FakeLogCluster,
        name: str,
        members: tuple[str, ...] = (),
        *,
        joining: bool = False,
    ) -> None:
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        self.log = FakeLog(f"{name}:7701", cluster, self.feed, members=members, joining=joining)
        self.view = ClusterView(NodeId(f"id-{name}"), self.feed)
        clock = VirtualClock()
        numbers = iter(range(1000))
        self.proposer = Proposer(self.log, clock, 5000, lambda: f"{name}-{next(numbers)}")
        self.desk = PeerDesk(self.view, self._bootstrap_view, lambda: (f"{name}:7702",))
        self.voter_loop = VoterLoop(
            self.log,
            f"{name}:7701",
            self.feed,
            clock,
            FakeRemote(),
            self.view.leader_http,
            5,
            10_000,
        )
        self.parts = Parts(
            self.log, self.proposer, LeaderClock(clock, lambda: 0), lambda: (), self.voter_loop
        )

    def _bootstrap_view(self) -> BootstrapView:
        return BootstrapView(node_id=ME, cluster_id=None, expect=0, vouches_for=None)

    async def start(self) -> None:
        await self.log.start()
        self.view.attach(self.parts)
        self.desk.voter_loop = self.voter_loop
        self.view.obstacle = None

    async def init(self) -> None:
        await self.proposer.propose(c.InitCluster(ClusterId("x"), "X"))


def request(name: str, raft: str = "") -> JoinRequest:
    return JoinRequest(
        node_id=NodeId(f"id-{name}"), name=name, raft_address=raft or f"{name}:7701",
        gossip_address=f"{name}:7702", http_address=f"{name}:7700", version="0",
    )  # fmt: skip


async def refused(call: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        await call
    return str(caught.value)


def test_a_leader_grants_what_a_joiner_needs() -> None:
    async def main() -> None:
        node = Node(FakeLogCluster(), "n1")
        assert "starting" in await refused(node.desk.join(request("n2")))
        assert node.desk.leader_http() is None
        await node.start()
        assert "still being made" in await refused(node.desk.join(request("n2")))
        await node.init()
        grant = await node.desk.join(request("n2"))
        assert (grant.cluster_id, grant.cluster_name) == ("x", "X")
        assert (grant.voters, grant.gossip_seeds) == (("n1:7701",), ("n1:7702",))

    run_virtual(main())


def following(name: str, *, was_member: bool, index: int = 0) -> LogRequest:
    return LogRequest(
        node_id=NodeId(f"id-{name}"), was_member=was_member, ask=Ask(index, 0), wait_ms=0
    )


def test_a_voter_feeds_whoever_has_no_vote() -> None:
    async def main() -> None:
        cluster = FakeLogCluster()
        node = Node(cluster, "n1")
        assert "starting" in await refused(node.desk.log(following("n2", was_member=False)))
        await node.start()
        await node.init()
        joiner = FakeLog("n2:7701", cluster, StateFeed(), joining=True)
        await joiner.start()
        assert joiner.status().leader is None
        answer = await node.desk.log(following("n2", was_member=False))
        await joiner.take("n1", answer)
        assert joiner.status().leader == "n1:7701"
        assert joiner.status().role is Role.LEARNER
        assert cluster.voters == ("n1:7701",)

    run_virtual(main())


def test_who_has_no_vote_feeds_nobody_and_says_who_leads() -> None:
    async def main() -> None:
        cluster = FakeLogCluster()
        first, second = Node(cluster, "n1"), Node(cluster, "n2", joining=True)
        await first.start()
        await first.init()
        await second.start()
        assert "no vote" in await refused(second.desk.log(following("n3", was_member=False)))
        await first.proposer.propose(c.RegisterNode(facts("n1")))
        await second.log.take("n1", await first.log.feed(second.log.ask(), 0))
        with pytest.raises(Redirected) as caught:
            await second.desk.log(following("n3", was_member=False))
        assert caught.value.leader == "n1:7700"

    run_virtual(main())


def test_a_removed_node_is_told_so() -> None:
    async def main() -> None:
        node = Node(FakeLogCluster(), "n1")
        await node.start()
        await node.init()
        returning = following("n2", was_member=True)
        assert "was removed from this cluster" in await refused(node.desk.log(returning))
        # It is ahead: this node may not have heard of it yet.
        await node.desk.log(following("n2", was_member=True, index=99))
        await node.proposer.propose(c.RegisterNode(facts("n2")))
        await node.desk.log(returning)
        # One that has forgotten that it was a member is told as well.
        term = node.log.status().term
        await node.proposer.propose(c.SetNodeStatus(term, NodeId("id-n2"), NodeStatus.DOWN))
        await node.proposer.propose(c.RemoveNode(NodeId("id-n2")))
        fresh = following("n2", was_member=False)
        assert "was removed from this cluster" in await refused(node.desk.log(fresh))

    run_virtual(main())


def test_a_raft_address_has_one_owner() -> None:
    """A voter that lost its disk must not come back in under its old address: it has forgotten what
    it acknowledged."""

    async def main() -> None:
        cluster = FakeLogCluster()
        node = Node(cluster, "n1")
        await node.start()
        await node.init()
        await node.proposer.propose(c.RegisterNode(facts("n2")))
        taken = request("other", raft="n2:7701")
        assert "belongs to node n2" in await refused(node.desk.join(taken))
        await node.desk.join(request("n2"))  # its own
        # A voter whose node is not known (any more): nobody's name is on the address.
        joiner = FakeLog("n3:7701", cluster, StateFeed(), joining=True)
        await joiner.start()
        await node.log.add_voter("n3:7701", 1000)
        wiped = request("wiped", raft="n3:7701")
        assert "is a voter's already" in await refused(node.desk.join(wiped))

    run_virtual(main())


def test_who_does_not_lead_says_who_does() -> None:
    async def main() -> None:
        cluster = FakeLogCluster()
        first, second = Node(cluster, "n1", ("n2:7701",)), Node(cluster, "n2")
        await asyncio.gather(first.start(), second.start())
        leader, other = (first, second) if cluster.leader == "n1:7701" else (second, first)
        await leader.init()
        assert "does not lead" in await refused(other.desk.join(request("n3")))
        assert other.desk.leader_http() is None  # it has not registered yet
        name = leader.log.address.partition(":")[0]
        await leader.proposer.propose(c.RegisterNode(facts(name)))
        assert other.desk.leader_http() == f"{name}:7700"
        assert not other.desk.heartbeat(ME, 1)

    run_virtual(main())


# The API's view


def test_before_it_has_joined_a_node_says_why() -> None:
    async def main() -> None:
        node = Node(FakeLogCluster(), "n1")
        view = node.view
        assert view.joined() == "this node is starting"
        assert view.state().index == 0
        assert view.members() == ()
        assert view.leader_http() is None
        view.obstacle = "joining: cannot reach one"
        assert await refused(view.propose(c.Noop(), actor="x")) == "joining: cannot reach one"
        assert await refused(view.barrier(100)) == "joining: cannot reach one"
        for ask in (view.log_status, lambda: view.explain("web")):
            with pytest.raises(Unavailable, match="cannot reach one"):
                ask()
        await node.start()
        assert view.joined() is None
        proposed = await view.propose(c.Noop(), actor="x", command_id=CommandId("k"))
        assert proposed.index == view.state().index
        assert view.explain("web") == []

    run_virtual(main())


def test_what_an_operator_should_know_is_a_warning() -> None:
    async def main() -> None:
        node = Node(FakeLogCluster(), "n1")
        assert node.view.warnings() == ()
        await node.start()
        [alone] = node.view.warnings()
        assert "one voter" in alone
        whole = node.log.status()
        failing = msgspec.structs.replace(whole, fault="disk: No space left on device")
        node.log.status = lambda: failing  # type: ignore[method-assign]
        [disk, still_alone] = node.view.warnings()
        assert disk == "this node cannot write its log: disk: No space left on device"
        assert still_alone == alone
        node.log.status = lambda: whole  # type: ignore[method-assign]
        for name in ("n1", "n2", "n3"):
            await node.proposer.propose(c.RegisterNode(facts(name)))
        for name in ("n2", "n3"):
            body = c.SetNodeStatus(whole.term, NodeId(f"id-{name}"), NodeStatus.SUSPECT, BRAKED)
            await node.proposer.propose(body)
        brake = node.view.warnings()[-1]
        assert brake.startswith("2 of 3 nodes look down and are not declared so (n2, n3)")
        assert "cube node rm" in brake

    run_virtual(main())
