"""Precedence, rumours, suspicion, settings and seal, by tables."""

from __future__ import annotations

import random

import msgspec
import pytest

from cube.gossip.dice import Dice
from cube.gossip.member import (
    ADDRESS_CHARS_MAX,
    META_BYTES_MAX,
    NODE_ID_CHARS_MAX,
    VERSION_MAX,
    Member,
    MemberState,
    merge,
)
from cube.gossip.packets import (
    NOBODY,
    PACKET_BYTES_MAX,
    Gossip,
    Ping,
    PingRequest,
    Rumour,
    decode,
    encode,
)
from cube.gossip.rumours import RumourQueue
from cube.gossip.seal import SEAL_BYTES_MAX, PlainSeal
from cube.gossip.settings import GossipSettings
from cube.gossip.suspicion import Suspicion
from cube.model.errors import BadConfig, BadPacket
from cube.model.ids import ClusterId, NodeId

A = NodeId("a")
ALIVE, SUSPECT, DEAD, LEFT = MemberState
S = GossipSettings()


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((1, ALIVE), (1, SUSPECT)),
        ((1, SUSPECT), (1, DEAD)),
        ((1, DEAD), (1, LEFT)),
        ((1, SUSPECT), (2, ALIVE)),
        ((1, DEAD), (2, ALIVE)),
        ((1, LEFT), (2, ALIVE)),
        ((1, DEAD), (2, SUSPECT)),
    ],
)
def test_of_two_reports_of_a_life_the_higher_wins(
    low: tuple[int, MemberState], high: tuple[int, MemberState]
) -> None:
    a = Member(A, "old:1", *low)
    b = Member(A, "new:1", *high)
    assert merge(a, b) == merge(b, a) == b


def test_life_meta_and_stats_are_merged_each_by_its_own_version() -> None:
    a = Member(A, "a:1", 5, SUSPECT, 1, b"old", 9, b"new")
    b = Member(A, "a:2", 4, DEAD, 2, b"new", 8, b"old")
    assert merge(a, b) == Member(A, "a:1", 5, SUSPECT, 2, b"new", 9, b"new")


def test_the_largest_member_fits_a_datagram_with_the_largest_names() -> None:
    node_id = NodeId("n" * NODE_ID_CHARS_MAX)
    largest = Member(
        node_id,
        "h" * ADDRESS_CHARS_MAX,
        VERSION_MAX,
        ALIVE,
        VERSION_MAX,
        b"m" * META_BYTES_MAX,
    )
    queue = RumourQueue(S)
    queue.add_life(largest, with_meta=True)
    room_bytes = PACKET_BYTES_MAX - len(encode(Gossip(node_id))) - 2
    assert len(queue.take(room_bytes, 3, NOBODY)) == 1


def test_news_of_life_goes_before_statistics_and_the_less_told_before_the_more_told() -> None:
    queue = RumourQueue(S)
    for name in "abc":
        queue.add_stats(Member(NodeId(name), stats_version=1, stats=b"s" * 100))
    queue.add_life(Member(NodeId("d"), "d:1", 1, meta=b"m" * 100), with_meta=True)
    first = [r.member.node_id for r in queue.take(300, 3, NOBODY)]
    second = [r.member.node_id for r in queue.take(300, 3, NOBODY)]
    assert first == ["d", "c"]
    assert second == ["d", "b"]


def test_a_recipient_is_not_told_of_itself_and_the_queue_still_empties() -> None:
    queue = RumourQueue(S)
    queue.add_stats(Member(A, stats_version=1))
    for _ in range(10):
        assert queue.take(1_000, 2, A) == ()
    assert len(queue) == 0


def test_a_new_state_replaces_what_accusers_said() -> None:
    queue = RumourQueue(S)
    suspect = Member(A, "a:1", 1, SUSPECT)
    queue.add_life(suspect, NodeId("x"), with_meta=False)
    queue.add_accuser(suspect, NodeId("y"))
    assert {r.accuser for r in queue.take(1_000, 5, NOBODY)} == {"x", "y"}
    alive = Member(A, "a:1", 2, ALIVE)
    queue.add_life(alive, with_meta=True)
    assert queue.take(1_000, 5, NOBODY) == (Rumour(alive),)


@pytest.mark.parametrize(
    ("live_count", "accusers", "timeout_ms"),
    [
        (2, 1, 1_500),
        (3, 1, 1_500),  # nobody else could agree in time: the shortest at once
        (10, 1, 9_000),
        (10, 2, 4_268),
        (10, 3, 1_500),
        (10, 4, 1_500),
        (100, 1, 18_000),
        (100, 3, 3_000),
    ],
)
def test_suspicion_grows_with_the_cluster_and_shrinks_with_accusers(
    live_count: int, accusers: int, timeout_ms: int
) -> None:
    suspicion = Suspicion(S, 0, live_count, NodeId("x0"))
    for i in range(1, accusers):
        suspicion.confirm(NodeId(f"x{i}"))
    assert suspicion.deadline_ms == pytest.approx(timeout_ms, abs=1)


def test_an_accuser_counts_once_and_no_more_are_counted_than_wanted() -> None:
    suspicion = Suspicion(S, 0, 10, NodeId("a"))
    heard = [suspicion.confirm(NodeId(name)) for name in ("a", "b", "b", "c", "d")]
    assert heard == [False, True, False, True, False]


def test_the_default_settings_hold_their_relations() -> None:
    assert S.check() is S


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"probe_timeout_ms": 900}, "gossip.probe_timeout_ms"),
        ({"probe_timeout_ms": 10}, "gossip.probe_timeout_ms"),
        ({"suspicion_mult": 0.5}, "gossip.suspicion_mult"),
        ({"tick_ms": 0}, "gossip.tick_ms"),
        ({"gossip_fanout": 0}, "gossip.gossip_fanout"),
        ({"reap_ms": 60_000}, "gossip.reap_ms"),
        ({"sync_ms": 10}, "gossip.sync_ms"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    change: dict[str, float], path: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        msgspec.convert(change, GossipSettings).check()
    assert path in [error.path for error in caught.value.errors]


def test_all_errors_of_the_settings_are_told_at_once() -> None:
    with pytest.raises(BadConfig) as caught:
        GossipSettings(gossip_fanout=0, health_max=99).check()
    assert len(caught.value.errors) == 2


def test_random_satisfies_the_dice() -> None:
    dice: Dice = random.Random(1)
    assert 0 <= dice.random() < 1


def test_what_was_sealed_is_opened() -> None:
    seal = PlainSeal(ClusterId("one"))
    sealed = seal.seal(b"data")
    assert seal.open(sealed) == b"data"
    assert len(sealed) - 4 <= SEAL_BYTES_MAX


def test_any_damaged_byte_is_refused() -> None:
    seal = PlainSeal(ClusterId("one"))
    sealed = seal.seal(b"some data")
    for i in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[i] ^= 1 << bit
            with pytest.raises(BadPacket):
                seal.open(bytes(damaged))


def test_another_cluster_is_refused() -> None:
    with pytest.raises(BadPacket):
        PlainSeal(ClusterId("one")).open(PlainSeal(ClusterId("two")).seal(b"data"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02" + encode(Gossip(A))[1:],
        encode(Gossip(A)) + b"x",
        encode(Gossip(A))[:-1],
        b"\x01" + b"\x91" * 1_300,  # nested beyond reason
        b"\x01" + b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\x01" + msgspec.msgpack.encode([5, "a" * 65, []]),
        b"\x01" + msgspec.msgpack.encode([5, "", []]),
        b"\x01" + msgspec.msgpack.encode([5, "a", [], "more"]),
        b"\x01" + msgspec.msgpack.encode([1, "a", "b", -1, []]),
        b"\x01" + msgspec.msgpack.encode([1, "a", "b", 2**64 - 1, []]),
        b"\x01" + msgspec.msgpack.encode([5, "a", [[["x", "", 1, 4, 0, b"", 0, b""], ""]]]),
        b"\x01" + msgspec.msgpack.encode([5, "a", [[["x", "", 1, 0, 0, b"m" * 513, 0, b""], ""]]]),
        b"\x01" + b"\x93\x05\xa1\xff\x90",  # not UTF-8
        b"\x01" + msgspec.msgpack.encode([5, "é", []]),
        b"\x01" + msgspec.msgpack.encode([5, "a\n", []]),
    ],
)
def test_bad_bytes_are_bad_packets(data: bytes) -> None:
    with pytest.raises(BadPacket):
        decode(data)


def test_bytes_on_the_wire_stay_the_same() -> None:
    """A change here is a change of WIRE_VERSION: nodes of two releases meet in one cluster."""
    rumour = Rumour(Member(A, "h:1", 7, SUSPECT, 8, b"m", 9, b"s"), NodeId("b"))
    assert encode(Ping(A, NodeId("b"), 3, (rumour,))).hex() == (
        "019501a161a16203919298a161a3683a31070108c4016d09c40173a162"
    )
    assert encode(PingRequest(A, NodeId("b"), "h:1", 3)).hex() == "019603a161a162a3683a310390"
