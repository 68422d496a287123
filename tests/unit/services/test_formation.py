"""How a node becomes part of a cluster, and that there is never a second one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cube.model.errors import BadPacket, OutcomeUnknown, Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import BootstrapView, JoinGrant, JoinRequest
from cube.ports.remote import Redirected
from cube.services.formation import (
    RECORD,
    RETRY_MAX_S,
    Create,
    Formation,
    JoinThrough,
    NodeRecord,
    Records,
    Vouch,
    Wait,
    bootstrap_step,
)
from tests.fakes.disk import FakeDisk
from tests.fakes.remote import FakeRemote
from tests.virtual_time import run_virtual

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
GRANT = JoinGrant(cluster_id="x", cluster_name="X", voters=("l:1",), gossip_seeds=("l:2",))


def view(
    node_id: NodeId, vouches: NodeId | None = None, expect: int = 3, cluster: str | None = None
) -> BootstrapView:
    return BootstrapView(node_id=node_id, cluster_id=cluster, expect=expect, vouches_for=vouches)


Views = list[tuple[str, BootstrapView | None]]


def seen(*views: BootstrapView | None) -> Views:
    return [(f"h{number}", view) for number, view in enumerate(views)]


@pytest.mark.parametrize(
    ("vouches_for", "views", "step"),
    [
        (None, seen(view(A), view(B), view(C)), Vouch(A)),
        (None, seen(view(C), view(B), view(A)), Vouch(A)),
        (None, seen(view(A, A), view(B, A), view(C)), Vouch(A)),
        (A, seen(view(A, A), view(B, A), view(C, A)), Create()),
        (A, seen(view(A, A), view(B, A), view(C, A, cluster="x")), JoinThrough("h2")),
        (None, seen(None, view(B, cluster="x"), None), JoinThrough("h1")),
    ],
)
def test_the_next_safe_step(vouches_for: NodeId | None, views: Views, step: object) -> None:
    assert bootstrap_step(A, 3, vouches_for, views) == step


@pytest.mark.parametrize(
    ("vouches_for", "views", "word"),
    [
        (None, seen(view(A), None, view(C)), "h1"),
        (A, seen(view(A, A), view(B, A), None), "h2"),
        (None, seen(view(A), view(B), view(B)), "2 nodes"),
        (None, seen(view(A), view(B)), "2 nodes"),
        (None, seen(view(B), view(C), view(NodeId("d"))), "does not name this node"),
        (None, seen(view(A), view(B, expect=5), view(C)), "differs at b"),
        (A, seen(view(A, A), view(B), view(C, A)), "every node"),
        (A, seen(view(A, A), view(B, C), view(C, A)), "every node"),
        (NodeId("gone"), seen(view(A, NodeId("gone")), view(B), view(C)), "gone"),
    ],
)
def test_what_is_waited_for_is_said(vouches_for: NodeId | None, views: Views, word: str) -> None:
    step = bootstrap_step(A, 3, vouches_for, views)
    assert isinstance(step, Wait)
    assert word in step.why


def test_only_the_one_vouched_for_creates() -> None:
    views = seen(view(A, A), view(B, A), view(C, A))
    assert isinstance(bootstrap_step(B, 3, A, views), Wait)


def test_a_node_vouches_once() -> None:
    """The lowest was away when this one vouched; it does not change its mind."""
    views = seen(view(A), view(B, B), view(C, B))
    assert isinstance(bootstrap_step(C, 3, B, views), Wait)
    assert bootstrap_step(A, 3, None, views) == Vouch(A)  # nobody is vouched for by all any more


# The record


def test_the_record_is_made_once_and_kept() -> None:
    disk = FakeDisk()
    first = Records(disk, NodeRecord(node_id=A, raft_address="a:1"))
    first.update(vouches_for=B)
    again = Records(disk, NodeRecord(node_id=C, raft_address="c:1"))
    assert again.now == first.now
    assert (again.now.node_id, again.now.vouches_for) == (A, B)


def test_what_cannot_be_stored_is_not_said() -> None:
    disk = FakeDisk()
    records = Records(disk, NodeRecord(node_id=A, raft_address="a:1"))
    disk.is_broken = True
    with pytest.raises(Unavailable):
        records.update(vouches_for=B)
    assert records.now.vouches_for is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"garbage", b'{"node_id": 1, "raft_address": ""}', b'{"node_id": "\xff"}']
)
def test_a_damaged_record_is_not_taken_for_a_new_node(data: bytes) -> None:
    disk = FakeDisk()
    disk.files[RECORD] = data
    with pytest.raises(BadPacket, match=RECORD):
        Records(disk, NodeRecord(node_id=A, raft_address="a:1"))
    assert disk.files[RECORD] == data


# Joining


class Joiner:
    def __init__(self) -> None:
        self.remote = FakeRemote()
        self.disk = FakeDisk()
        self.records = Records(self.disk, NodeRecord(node_id=B, raft_address="b:1"))
        self.obstacles: list[str] = []
        request = JoinRequest(
            node_id=B, name="b", raft_address="b:1", gossip_address="b:2", http_address="b:0",
            version="0",
        )  # fmt: skip
        self.formation = Formation(self.records, self.remote, request, self.obstacles.append)


def redirecting(to: str) -> Callable[[JoinRequest], JoinGrant]:
    def answer(_request: JoinRequest) -> JoinGrant:
        raise Redirected(to)

    return answer


def failing(error: Exception, times: int = 1_000_000) -> Callable[[JoinRequest], JoinGrant]:
    left = [times]

    def answer(_request: JoinRequest) -> JoinGrant:
        left[0] -= 1
        if left[0] < 0:
            return GRANT
        raise error

    return answer


def test_a_join_follows_redirects_to_the_leader() -> None:
    joiner = Joiner()
    joiner.remote.joins = {
        "one": redirecting("two"),
        "two": redirecting("three"),
        "three": lambda _: GRANT,
    }
    record = run_virtual(joiner.formation.join(["one"]))
    assert [address for _, address in joiner.remote.asked] == ["one", "two", "three"]
    assert (record.cluster_id, record.cluster_name, record.voters) == ("x", "X", ("l:1",))
    # Who granted it leads, and can be followed at first.
    assert (record.created, record.peers) == (False, ("three", "one"))
    assert Records(joiner.disk, NodeRecord(node_id=C, raft_address="")).now == record


def test_a_circle_of_redirects_is_left() -> None:
    joiner = Joiner()
    joiner.remote.joins = {"one": redirecting("one"), "two": lambda _: GRANT}
    run_virtual(joiner.formation.join(["one", "two"]))
    assert len(joiner.remote.asked) < 10


def test_a_join_asks_for_ever_and_never_makes_a_cluster() -> None:
    joiner = Joiner()

    async def main() -> None:
        joining = asyncio.create_task(joiner.formation.join(["one", "two"]))
        await asyncio.sleep(3600)
        assert not joining.done()
        assert joiner.records.now.cluster_id is None
        asked = len(joiner.remote.asked)
        assert 2 * 3600 / RETRY_MAX_S - 20 <= asked <= 2 * 3600 / RETRY_MAX_S + 20
        assert joiner.obstacles[-1] == "joining: cannot reach two"
        joiner.remote.joins["two"] = lambda _: GRANT
        async with asyncio.timeout(RETRY_MAX_S + 1):
            await joining

    run_virtual(main())


@pytest.mark.parametrize("error", [Unavailable("busy"), OutcomeUnknown("504")])
def test_a_join_survives_any_weather(error: Exception) -> None:
    joiner = Joiner()
    joiner.remote.joins = {"one": failing(error, times=3)}
    run_virtual(joiner.formation.join(["one"]))
    assert len(joiner.remote.asked) == 4


def test_a_grant_of_no_cluster_is_none() -> None:
    """The cluster is being made: its leader leads, and its first entry is not there yet."""
    joiner = Joiner()
    grants = iter([JoinGrant(cluster_id="", cluster_name="", voters=(), gossip_seeds=()), GRANT])
    joiner.remote.joins = {"one": lambda _: next(grants)}
    assert run_virtual(joiner.formation.join(["one"])).cluster_id == "x"
    assert len(joiner.remote.asked) == 2


def test_with_nobody_to_ask_it_is_said_so() -> None:
    joiner = Joiner()

    async def main() -> None:
        joining = asyncio.create_task(joiner.formation.join([]))
        await asyncio.sleep(60)
        assert not joining.done()
        assert "names no other node" in joiner.obstacles[-1]

    run_virtual(main())


def test_making_a_cluster_is_stored_before_it_is_said() -> None:
    joiner = Joiner()
    joiner.formation.create("id", "name")
    record = Records(joiner.disk, NodeRecord(node_id=C, raft_address="")).now
    assert (record.cluster_id, record.created) == ("id", True)
    assert joiner.formation.bootstrap_view(3).cluster_id == "id"


def test_three_that_start_at_once_and_at_different_times_make_one_cluster() -> None:
    async def main() -> None:
        joiners: dict[str, tuple[FakeRemote, Formation]] = {}
        outcomes: dict[str, str | None] = {}

        async def start(name: str, after_s: float) -> None:
            await asyncio.sleep(after_s)
            records = Records(FakeDisk(), NodeRecord(node_id=NodeId(name), raft_address=name))
            request = JoinRequest(
                node_id=NodeId(name), name=name, raft_address=name, gossip_address=name,
                http_address=name, version="0",
            )  # fmt: skip
            remote = FakeRemote()
            formation = Formation(records, remote, request, lambda _: None)
            joiners[name] = remote, formation
            for one, _ in joiners.values():
                one.views = {n: (lambda f=f: f.bootstrap_view(3)) for n, (_, f) in joiners.items()}  # type: ignore[misc]
            through = await formation.bootstrap(3, ["c", "a", "b"])
            outcomes[name] = None if through is None else through.address
            if through is None:
                formation.create("made-by-" + name, "x")

        await asyncio.gather(start("b", 0), start("c", 2.5), start("a", 7))
        assert outcomes == {"a": None, "b": "a", "c": "a"}

    run_virtual(main())
