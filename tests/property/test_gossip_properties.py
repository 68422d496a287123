"""What holds for any members, any bytes and any conversation."""

from __future__ import annotations

import contextlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cube.gossip.effects import Effect, Exchange, MemberChanged, Send
from cube.gossip.member import VERSION_MAX, Member, MemberState, merge
from cube.gossip.packets import (
    PACKET_BYTES_MAX,
    Ack,
    Gossip,
    Nack,
    Packet,
    Ping,
    PingRequest,
    Rumour,
    Sync,
    decode,
    encode,
)
from cube.gossip.seal import PlainSeal
from cube.gossip.settings import GossipSettings
from cube.gossip.swim import Swim
from cube.model.errors import BadPacket
from cube.model.ids import ClusterId, NodeId

NAMES = [NodeId(name) for name in ("me", "a", "b", "c", "d")]
names = st.sampled_from(NAMES)
versions = st.integers(0, 3) | st.integers(0, VERSION_MAX) | st.just(VERSION_MAX)


def members_of(who: st.SearchStrategy[NodeId]) -> st.SearchStrategy[Member]:
    return st.builds(
        Member,
        who,
        st.sampled_from(["", "h:1", "h:2", "x" * 260]),
        versions,
        st.sampled_from(MemberState),
        versions,
        st.binary(max_size=4) | st.just(b"m" * 512),
        versions,
        st.binary(max_size=4) | st.just(b"s" * 256),
    )


one = members_of(st.just(NAMES[1]))
rumours = st.lists(
    st.builds(Rumour, members_of(names), names | st.just(NodeId(""))), max_size=4
).map(tuple)
sequences = st.integers(0, (1 << 63) - 1)
packets: st.SearchStrategy[Packet] = st.one_of(
    st.builds(Ping, names, names, sequences, rumours),
    st.builds(Ack, names, sequences, rumours),
    st.builds(PingRequest, names, names, st.just("h:1"), sequences, rumours),
    st.builds(Nack, names, sequences, rumours),
    st.builds(Gossip, names, rumours),
    st.builds(Sync, names, st.lists(members_of(names), max_size=4).map(tuple)),
)


@given(one, one)
def test_merge_is_commutative(a: Member, b: Member) -> None:
    assert merge(a, b) == merge(b, a)


@given(one, one, one)
def test_merge_is_associative(a: Member, b: Member, c: Member) -> None:
    assert merge(a, merge(b, c)) == merge(merge(a, b), c)


@given(one, one)
def test_merge_is_idempotent(a: Member, b: Member) -> None:
    assert merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@settings(deadline=None)
@given(packets)
def test_a_packet_survives_its_bytes(packet: Packet) -> None:
    assert decode(encode(packet)) == packet


@settings(deadline=None)
@given(st.binary(max_size=1_400) | packets.map(encode), st.randoms(use_true_random=False))
def test_any_bytes_are_a_packet_or_a_bad_packet(data: bytes, dice: random.Random) -> None:
    mutated = bytearray(data or b"\x01")
    for _ in range(dice.randrange(3)):
        mutated[dice.randrange(len(mutated))] = dice.randrange(256)
    for candidate in (data, bytes(mutated), b"\x01" + data):
        try:
            packet = decode(candidate)
        except BadPacket:
            continue
        assert decode(encode(packet)) == packet


@given(st.binary(max_size=200))
def test_any_bytes_are_sealed_data_or_a_bad_packet(data: bytes) -> None:
    seal = PlainSeal(ClusterId("one"))
    assert seal.open(seal.seal(data)) == data
    with contextlib.suppress(BadPacket):
        assert seal.seal(seal.open(data)) == data


steps = st.one_of(
    st.tuples(st.just("packet"), packets),
    st.tuples(st.just("request"), packets),
    st.tuples(st.just("answer"), packets),
    st.tuples(st.just("time"), st.integers(0, 5_000)),
    st.tuples(st.just("stats"), st.binary(max_size=256)),
    st.tuples(st.just("meta"), st.binary(max_size=512)),
    st.tuples(st.just("leave"), st.none()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25), st.integers(0, 1 << 32))
def test_any_conversation_keeps_the_machine_sound(
    story: list[tuple[str, object]], seed: int
) -> None:
    """It never raises; what it says fits a datagram; changes tell exactly what members() shows; and
    about itself only the node itself decides."""
    swim = Swim(GossipSettings(), NAMES[0], "me:1", b"mine", 1, random.Random(seed))
    now_ms = 0
    shown: dict[NodeId, MemberState] = {NAMES[0]: MemberState.ALIVE}
    has_left = False
    for kind, value in [*story, ("time", 0), ("time", 30_000)]:
        effects: list[Effect] = []
        match kind, value:
            case "packet", packet:
                effects = swim.on_packet(now_ms, "h:1", packet)  # type: ignore[arg-type] # a step's value
            case "request", packet:
                _, effects = swim.on_exchange(now_ms, "h:1", packet)  # type: ignore[arg-type] # a step's value
            case "answer", packet:
                effects = swim.on_answer(now_ms, "h:1", packet)  # type: ignore[arg-type] # a step's value
            case "stats", bytes(stats):
                effects = swim.set_stats(now_ms, stats)
            case "meta", bytes(meta):
                effects = swim.set_meta(now_ms, meta)
            case "leave", _:
                has_left = True
                effects = swim.leave(now_ms)
            case _, delay_ms:
                assert isinstance(delay_ms, int)
                now_ms += delay_ms
                effects = swim.on_tick(now_ms)
                assert swim.next_tick_ms > now_ms
        for effect in effects:
            match effect:
                case Send():
                    assert len(encode(effect.packet)) <= PACKET_BYTES_MAX
                    decode(encode(effect.packet))
                case Exchange():
                    decode(encode(effect.packet))
                case MemberChanged(before=before, after=after):
                    named = after or before
                    assert named is not None
                    assert shown.get(named.node_id) == (before.state if before else None)
                    if after is None:
                        del shown[named.node_id]
                    else:
                        shown[named.node_id] = after.state
        assert {m.node_id: m.state for m in swim.members()} == shown
        assert swim.me.state is (MemberState.LEFT if has_left else MemberState.ALIVE)
        assert swim.me.address == "me:1"
