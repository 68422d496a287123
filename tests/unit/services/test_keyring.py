"""A node's keys: on disk before a cluster is, and as the cluster agrees afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cube.adapters.file_disk import FileDisk
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.model import codec
from cube.model import commands as c
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, CommandId, NodeId
from cube.model.trust import GossipKey, NodeKeys, TrustState, key_id
from cube.ports.cluster import MemberStats, MemberView
from cube.services.keyring import (
    GOSSIP_PURPOSE,
    KEYS,
    Keyring,
    cluster_gossip_keys,
    first_gossip_key,
    follow_keys,
    rotate_keys,
    rotation_step,
)
from cube.services.state_feed import StateFeed
from tests.fakes.disk import FakeDisk
from tests.virtual_time import run_virtual

CLUSTER_KEY, ONE, TWO = b"c" * 32, b"1" * 32, b"2" * 32
MINE = NodeKeys(cluster_key=CLUSTER_KEY, gossip_keys=(ONE,))


def sealed(secret: bytes, cluster_key: bytes = CLUSTER_KEY) -> GossipKey:
    return GossipKey(key_id(secret), seal_envelope(cluster_key, GOSSIP_PURPOSE, secret))


def test_keys_are_made_once_and_kept() -> None:
    disk = FakeDisk()
    made = Keyring(disk).create(lambda length: b"x" * length)
    assert Keyring(disk).known == made
    assert Keyring(disk).create(lambda length: b"y" * length) == made


def test_the_file_is_the_users_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    disk = FileDisk(tmp_path / "data")
    Keyring(disk).take(MINE)
    assert (tmp_path / "data" / KEYS).stat().st_mode & 0o777 == 0o600
    disk.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"cluster_key": "AA==", "gossip_keys": []}', b'{"cluster_key":"c2VjcmV0"}', b"\xff"],
)  # fmt: skip
def test_a_damaged_file_is_said_without_its_content(data: bytes) -> None:
    disk = FakeDisk()
    disk.files[KEYS] = data
    with pytest.raises(BadPacket, match=f"{KEYS} in the data directory is damaged$"):
        Keyring(disk)


def test_a_member_without_keys_is_told() -> None:
    with pytest.raises(Unavailable, match=KEYS):
        _ = Keyring(FakeDisk()).known


def test_what_cannot_be_kept_is_not_used() -> None:
    disk = FakeDisk()
    keyring = Keyring(disk)
    disk.is_broken = True
    with pytest.raises(Unavailable):
        keyring.take(MINE)
    assert keyring.now is None


def test_envelopes_open_with_their_key_and_purpose_only() -> None:
    envelope = seal_envelope(CLUSTER_KEY, "gossip-key", ONE)
    assert ONE not in envelope
    assert open_envelope(CLUSTER_KEY, "gossip-key", envelope) == ONE
    assert seal_envelope(CLUSTER_KEY, "gossip-key", ONE) != envelope
    changed = envelope[:-1] + bytes((envelope[-1] ^ 1,))
    for key, purpose, data in [
        (TWO, "gossip-key", envelope),
        (CLUSTER_KEY, "ca-key", envelope),
        (CLUSTER_KEY, "gossip-key", changed),
        (CLUSTER_KEY, "gossip-key", envelope[:20]),
        (CLUSTER_KEY, "gossip-key", b"\2" + envelope[1:]),
        (CLUSTER_KEY, "gossip-key", b""),
    ]:
        with pytest.raises(BadPacket):
            open_envelope(key, purpose, data)


def test_the_key_in_use_comes_first() -> None:
    trust = TrustState(gossip_keys=(sealed(ONE), sealed(TWO)), gossip_in_use=key_id(TWO))
    assert cluster_gossip_keys(trust, CLUSTER_KEY, open_envelope) == (TWO, ONE)
    assert cluster_gossip_keys(TrustState(), CLUSTER_KEY, open_envelope) == ()
    lying = TrustState(gossip_keys=(GossipKey(key_id(ONE), sealed(TWO).sealed),))
    with pytest.raises(BadPacket, match="not what it says"):
        cluster_gossip_keys(lying, CLUSTER_KEY, open_envelope)


class Cluster:
    """A feed that is driven by hand, and a node's keys that follow it."""

    def __init__(self) -> None:
        self.feed = StateFeed()
        self.feed.open(asyncio.get_running_loop())
        self.disk = FakeDisk()
        self.keyring = Keyring(self.disk)
        self.keyring.take(MINE)
        self.used: list[tuple[bytes, ...]] = []
        self.task = asyncio.create_task(
            follow_keys(self.feed, self.keyring, open_envelope, self.use)
        )

    def use(self, keys: Sequence[bytes]) -> None:
        self.used.append(tuple(keys))

    async def do(self, body: c.Body) -> None:
        index = self.feed.state.index + 1
        command = c.Command(CommandId(f"c{index}"), body)
        self.feed.apply(index, 1, index, codec.encode_command(command))
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def test_a_node_follows_a_rotation_and_keeps_it() -> None:
    cluster = Cluster()
    await cluster.do(c.InitCluster(ClusterId("x"), "x"))
    assert cluster.used == []
    await cluster.do(c.InstallGossipKey(first_gossip_key(MINE, seal_envelope)))
    assert cluster.feed.state.trust.gossip_in_use == key_id(ONE)
    assert cluster.used == []  # what it had
    await cluster.do(c.InstallGossipKey(sealed(TWO)))
    await cluster.do(c.Noop())
    await cluster.do(c.UseGossipKey(key_id(TWO)))
    await cluster.do(c.RemoveGossipKey(key_id(ONE)))
    assert cluster.used == [(ONE, TWO), (TWO, ONE), (TWO,)]
    assert Keyring(cluster.disk).known.gossip_keys == (TWO,)
    await cluster.end()


async def test_a_key_that_cannot_be_opened_changes_nothing() -> None:
    cluster = Cluster()
    await cluster.do(c.InstallGossipKey(sealed(TWO, cluster_key=b"other" + b"." * 27)))
    assert cluster.used == []
    assert cluster.keyring.known == MINE
    assert not cluster.task.done()
    await cluster.end()


def keyed(in_use: bytes, *secrets: bytes, index: int = 7) -> TrustState:
    keys = tuple(GossipKey(key_id(secret), b"sealed") for secret in secrets)
    return TrustState(
        gossip_keys=keys, gossip_in_use=key_id(in_use), gossip_changed_index=index
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trust", "applied", "step"),
    [
        (TrustState(), [9, 9], None),
        (keyed(ONE, ONE), [9, 9], None),
        (keyed(ONE, ONE, TWO), [9, 6], None),  # one has not installed it
        (keyed(ONE, ONE, TWO), [7, 9], c.UseGossipKey(key_id(TWO))),
        (keyed(TWO, ONE, TWO), [9, 6], None),  # one may still seal with the old key
        (keyed(TWO, ONE, TWO), [7, 7], c.RemoveGossipKey(key_id(ONE))),
        (keyed(TWO, TWO, ONE), [7], c.UseGossipKey(key_id(ONE))),
    ],
)
def test_a_rotation_waits_for_all_at_each_step(
    trust: TrustState, applied: list[int], step: object
) -> None:
    assert rotation_step(trust, applied) == step


def member(name: str, state: str, applied_index: int) -> MemberView:
    return MemberView(
        node_id=NodeId(name), name=name, state=state, incarnation=1, gossip_address="",
        http_address="", raft_address="", last_seen_ms=0,
        stats=MemberStats(applied_index=applied_index),
    )  # fmt: skip


def test_whoever_leads_goes_on_with_a_rotation_to_its_end() -> None:
    async def main() -> None:
        cluster = Cluster()
        leads = False
        behind = [member("b", "suspect", 0)]
        asked: list[c.Body] = []

        async def propose(body: c.Body) -> None:
            asked.append(body)
            if len(asked) == 1:
                raise Unavailable("no quorum")
            await cluster.do(body)

        def members() -> list[MemberView]:
            index = cluster.feed.state.index
            return [member("a", "alive", index), member("x", "dead", 0), *behind]

        rotation = asyncio.create_task(
            rotate_keys(cluster.feed, lambda: leads, members, propose)
        )  # fmt: skip
        for key in (ONE, TWO):
            await cluster.do(c.InstallGossipKey(sealed(key)))
        await asyncio.sleep(60)
        leads = True
        await asyncio.sleep(60)
        assert asked == []
        behind.clear()
        await asyncio.sleep(60)
        use, remove = c.UseGossipKey(key_id(TWO)), c.RemoveGossipKey(key_id(ONE))
        assert asked == [use, use, remove]
        assert cluster.used[-1] == (TWO,)
        rotation.cancel()
        await cluster.end()

    run_virtual(main())
