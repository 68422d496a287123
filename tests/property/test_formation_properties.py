"""bootstrap_expect under any interleaving: never two clusters, and one as soon as all can talk.

Disks are lost too, but one: then there may be no cluster in the end (a person is told why), and
still never two.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import event, given, settings

from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest
from cube.services.formation import (
    Create,
    Formation,
    JoinThrough,
    NodeRecord,
    Records,
    Vouch,
    bootstrap_step,
)
from tests.fakes.disk import FakeDisk
from tests.fakes.remote import FakeRemote

Step = tuple[str, int, int]  # what happens, to which node, with which other


class Node:
    """A node with its disk. What it has read of the others is lost when it crashes; reading one
    address is one step, so what it acts on may be older than what it read last."""

    def __init__(self, number: int, order: list[int], expect: int) -> None:
        self.number = number
        self.expect = expect
        self.disk = FakeDisk()
        self.id = NodeId(f"node-{order[number]}")
        self.is_up = True
        self.start()

    def wipe(self, id_: str) -> None:
        """Its disk is lost, and another identity made. Who had joined has nothing to lose here."""
        self.disk = FakeDisk()
        self.id = NodeId(id_)
        self.start()

    def start(self) -> None:
        self.records = Records(
            self.disk, NodeRecord(node_id=self.id, raft_address=str(self.number))
        )
        request = JoinRequest(
            node_id=self.id, name="", raft_address=str(self.number), gossip_address="",
            http_address=str(self.number), version="0",
        )  # fmt: skip
        self.formation = Formation(self.records, FakeRemote(), request, lambda _: None)
        self.read: dict[int, BootstrapView | None] = {}

    @property
    def cluster_id(self) -> str | None:
        return self.records.now.cluster_id


class World:
    def __init__(self, order: list[int]) -> None:
        self.nodes = [Node(number, order, len(order)) for number in range(len(order))]
        self.made: list[str] = []
        self.cut: set[tuple[int, int]] = set()
        self.wiped = 0

    def do(self, what: str, number: int, other: int) -> None:
        node, peer = self.nodes[number], self.nodes[other]
        match what:
            case "crash":
                node.is_up = False
            case "start":
                if not node.is_up:
                    node.is_up = True
                    node.start()
            case "wipe" if number != 0:  # node 0 keeps its disk
                self.wiped += 1
                node.wipe(f"{'az'[other % 2]}-{self.wiped}")  # below all the others, or above
            case "cut":
                self.cut.add((number, other))
            case "heal":
                self.cut.discard((number, other))
            case "read" if node.is_up:
                is_heard = peer.is_up and (number == other or (number, other) not in self.cut)
                node.read[other] = peer.formation.bootstrap_view(node.expect) if is_heard else None
            case "act" if node.is_up and len(node.read) == len(self.nodes):
                self._act(node)

    def _act(self, node: Node) -> None:
        if node.cluster_id is not None:
            return
        views = [(str(number), view) for number, view in sorted(node.read.items())]
        node.read = {}
        match bootstrap_step(node.id, node.expect, node.records.now.vouches_for, views):
            case Vouch(node_id=id_):
                node.records.update(vouches_for=id_)
            case Create():
                cluster_id = f"cluster-{len(self.made)}"
                self.made.append(cluster_id)
                node.formation.create(cluster_id, "x")
            case JoinThrough(address=address):
                granted = self.nodes[int(address)].cluster_id
                assert granted is not None
                grant = JoinGrant(cluster_id=granted, cluster_name="x", voters=(), gossip_seeds=())
                node.records.update(cluster_id=grant.cluster_id)
            case _:
                pass


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[int], list[Step]]:
    count = draw(st.integers(1, 4))
    order = draw(st.permutations(range(count)))
    number = st.integers(0, count - 1)
    one = st.tuples(
        st.sampled_from(
            ["read"] * 6 + ["act"] * 3 + ["crash", "start", "start", "cut", "heal", "wipe", "wipe"]
        ),
        number,
        number,
    )
    # Whole looks are likely too, and rounds of them, else nobody ever knows enough to act.
    look = number.map(lambda n: [*(("read", n, o) for o in range(count)), ("act", n, n)])
    rounds = st.permutations(range(count)).map(
        lambda order: [
            step for n in order for step in [*(("read", n, o) for o in range(count)), ("act", n, n)]
        ]
    )
    parts = draw(st.lists(st.one_of(one.map(lambda s: [s]), look, rounds), max_size=40))
    return list(order), [step for part in parts for step in part]


@settings(max_examples=400, deadline=None)
@given(stories())
def test_never_two_clusters_and_one_in_the_end(story: tuple[list[int], list[Step]]) -> None:
    order, steps = story
    world = World(order)
    for step in steps:
        world.do(*step)
        assert len(world.made) <= 1
        assert {node.cluster_id for node in world.nodes} <= {None, *world.made}
    event(f"made before all could talk: {len(world.made)}")
    world.cut.clear()
    count = len(world.nodes)
    for number in range(count):
        world.do("start", number, number)
    for _ in range(3 * count):
        for number in range(count):
            for other in range(count):
                world.do("read", number, other)
            world.do("act", number, number)
    assert len(world.made) <= 1
    if not world.wiped:
        assert len(world.made) == 1
        assert {node.cluster_id for node in world.nodes} == set(world.made)
