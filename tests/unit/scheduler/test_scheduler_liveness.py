"""Which nodes are up, by heartbeats and gossip: architecture.md, "Failure"."""

from __future__ import annotations

import immutables
import msgspec
import pytest

from cube.model.cluster import Node
from cube.model.ids import NodeId
from cube.model.lifecycle import BRAKED, NodeStatus
from cube.scheduler.liveness import GOSSIP_LAG_MS, Liveness, Verdict, brake_of
from tests.builders import facts

READY, SUSPECT, DOWN = NodeStatus.READY, NodeStatus.SUSPECT, NodeStatus.DOWN
LEADER = NodeId("id-n0")


class World:
    """A leader, n0, and others; statuses follow the verdicts."""

    def __init__(self, count: int) -> None:
        self.liveness = Liveness()
        self.now_ms = 1_000_000
        self.liveness.leader_since(self.now_ms, LEADER)
        self.nodes = {}
        for number in range(count):
            one = facts(f"n{number}")
            self.nodes[one.id] = Node(id=one.id, name=one.name, facts=one)
        self.gossip = dict.fromkeys(self.nodes, "alive")
        self.beating = set(self.nodes)
        self.brakes: list[str] = []

    def set(self, number: int, status: NodeStatus, reason: str = "") -> None:
        node = self.nodes[NodeId(f"id-n{number}")]
        self.nodes[node.id] = msgspec.structs.replace(node, status=status, status_reason=reason)

    def status(self, number: int) -> NodeStatus:
        return self.nodes[NodeId(f"id-n{number}")].status

    def decide(self) -> Verdict:
        verdict = self.liveness.decide(immutables.Map(self.nodes), self.gossip, self.now_ms)
        for node_id, status, reason in verdict.changes:
            before = self.nodes[node_id]
            assert (before.status, before.status_reason) != (status, reason)
            assert before.status is not status or BRAKED in (before.status_reason, reason)
            self.set(int(node_id.removeprefix("id-n")), status, reason)
        if verdict.brake:
            self.brakes.append(verdict.brake)
        return verdict

    def run(self, ms: int) -> None:
        """Heartbeats each second, a decision each quarter."""
        for _ in range(ms // 250):
            self.now_ms += 250
            if self.now_ms % 1000 == 0:
                for node_id in self.beating:
                    self.liveness.on_heartbeat(node_id, self.now_ms)
            self.decide()

    def kill(self, *numbers: int, gossip: str = "dead") -> None:
        for number in numbers:
            self.beating.discard(NodeId(f"id-n{number}"))
            self.gossip[NodeId(f"id-n{number}")] = gossip


def test_a_calm_cluster_stays_ready() -> None:
    world = World(3)
    world.run(60_000)
    assert [world.status(n) for n in range(3)] == [READY] * 3
    assert world.decide().changes == ()


def test_a_dead_node_is_suspect_at_once_and_down_after_the_grace() -> None:
    world = World(3)
    world.run(10_000)
    world.kill(1)
    world.run(2_750)
    assert world.status(1) is SUSPECT
    world.run(2_000)
    assert world.status(1) is SUSPECT
    world.run(1_000)
    assert world.status(1) is DOWN
    assert world.status(0) is READY


def test_missing_heartbeats_alone_never_take_a_node_down() -> None:
    world = World(3)
    world.run(5_000)
    world.kill(1, gossip="alive")
    world.run(2_000)
    assert world.status(1) is READY
    world.run(60_000)
    assert world.status(1) is SUSPECT


def test_a_suspicion_of_gossip_alone_makes_suspect_and_passes() -> None:
    world = World(3)
    world.run(5_000)
    world.gossip[NodeId("id-n1")] = "suspect"
    world.run(20_000)
    assert world.status(1) is SUSPECT
    world.gossip[NodeId("id-n1")] = "alive"
    world.run(250)
    assert world.status(1) is READY


def test_a_node_that_gossip_cannot_see_is_ready_by_steady_heartbeats() -> None:
    world = World(3)
    world.gossip[NodeId("id-n1")] = "dead"
    world.run(5_000)
    assert world.status(1) is SUSPECT
    world.run(GOSSIP_LAG_MS)
    assert world.status(1) is READY


def test_down_becomes_ready_when_both_see_it_again() -> None:
    world = World(3)
    world.run(5_000)
    world.kill(1)
    world.run(10_000)
    assert world.status(1) is DOWN
    world.gossip[NodeId("id-n1")] = "alive"
    world.run(5_000)
    assert world.status(1) is DOWN  # no heartbeat yet
    world.beating.add(NodeId("id-n1"))
    world.run(1_250)
    assert world.status(1) is READY


def test_a_new_leader_counts_silence_from_its_own_start() -> None:
    world = World(3)
    world.run(60_000)
    world.kill(1)
    world.liveness.leader_since(world.now_ms, LEADER)
    world.run(4_750)
    assert world.status(1) is SUSPECT
    world.run(500)
    assert world.status(1) is DOWN


def test_a_newcomer_is_given_time_for_its_first_heartbeat() -> None:
    world = World(1)
    world.run(60_000)
    one = facts("n1")
    world.nodes[one.id] = Node(id=one.id, name=one.name, facts=one)
    world.gossip[one.id] = "alive"
    world.run(1_000)
    assert world.status(1) is READY
    world.run(5_000)  # but not for ever
    assert world.status(1) is SUSPECT


def test_the_leader_is_always_ready() -> None:
    world = World(3)
    world.set(0, DOWN)
    world.gossip.clear()
    world.beating.clear()
    world.decide()
    assert world.status(0) is READY


def test_a_node_that_gossip_has_not_met_yet_stays_as_it_is() -> None:
    world = World(2)
    del world.gossip[NodeId("id-n1")]
    world.run(5_000)
    assert world.status(1) is READY


def test_left_in_gossip_is_no_more_than_dead() -> None:
    world = World(3)
    world.run(5_000)
    world.kill(1, gossip="left")
    world.run(1_000)
    assert world.status(1) is SUSPECT
    world.run(6_000)
    assert world.status(1) is DOWN


@pytest.mark.parametrize(
    ("nodes", "dead", "braked"),
    [
        (2, 1, False),
        (3, 1, False),
        (3, 2, True),
        (4, 2, False),
        (5, 2, False),
        (5, 3, True),
        (10, 6, True),
    ],
)
def test_the_brake(nodes: int, dead: int, braked: bool) -> None:
    world = World(nodes)
    world.run(10_000)
    world.kill(*range(1, dead + 1))
    world.run(20_000)
    expected = SUSPECT if braked else DOWN
    assert [world.status(n) for n in range(1, dead + 1)] == [expected] * dead
    assert bool(world.brakes) is braked
    if braked:
        assert f"{dead} of {nodes} nodes" in world.brakes[-1]
        assert (brake_of(world.nodes) or "").startswith(f"{dead} of {nodes} nodes look down")
    else:
        assert brake_of(world.nodes) is None


def test_the_brake_counts_what_went_down_within_the_window() -> None:
    world = World(5)
    world.run(10_000)
    world.kill(1, 2)
    world.run(20_000)
    world.kill(3)
    world.run(10_000)
    assert [world.status(n) for n in (1, 2, 3)] == [DOWN, DOWN, SUSPECT]
    assert world.liveness.decide(world.nodes, world.gossip, world.now_ms).brake
    world.run(60_000)
    assert world.status(3) is DOWN
    assert world.liveness.decide(world.nodes, world.gossip, world.now_ms).brake is None


def test_the_brake_lets_go_when_enough_are_back() -> None:
    world = World(5)
    world.run(10_000)
    world.kill(1, 2, 3)
    world.run(30_000)
    assert world.status(3) is SUSPECT
    world.gossip[NodeId("id-n3")] = "alive"
    world.beating.add(NodeId("id-n3"))
    world.run(2_000)
    assert [world.status(n) for n in (1, 2, 3)] == [DOWN, DOWN, READY]
    assert brake_of(world.nodes) is None


def test_a_new_leader_keeps_the_brake_on_until_it_knows_better() -> None:
    world = World(5)
    world.run(10_000)
    world.kill(1, 2, 3)
    world.run(20_000)
    assert brake_of(world.nodes)
    world.liveness = Liveness()
    world.liveness.leader_since(world.now_ms, LEADER)
    world.run(4_000)
    assert brake_of(world.nodes)
    world.run(20_000)
    assert [world.status(n) for n in (1, 2, 3)] == [SUSPECT] * 3
    world.beating |= {NodeId("id-n1"), NodeId("id-n2"), NodeId("id-n3")}
    world.gossip = dict.fromkeys(world.nodes, "alive")
    world.run(5_000)
    assert brake_of(world.nodes) is None
    assert [world.status(n) for n in range(5)] == [READY] * 5


def test_a_node_that_is_heard_again_is_not_held_by_the_brake_whatever_gossip_says() -> None:
    world = World(5)
    world.run(10_000)
    world.kill(1, 2, 3)
    world.run(20_000)
    node_id = NodeId("id-n1")
    world.beating.add(node_id)
    world.gossip[node_id] = "suspect"
    world.run(3_000)
    node = world.nodes[node_id]
    assert (node.status, node.status_reason) == (SUSPECT, "gossip says suspect")
    assert [world.status(n) for n in (2, 3)] == [DOWN, DOWN]
