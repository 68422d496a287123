"""The seal around gossip: nobody outside says anything, and nothing is heard twice."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.adapters.trust.gossip_seal import HEARD, SENDER_BYTES_MAX, AesSeal
from cube.gossip.replay import RESERVE, SENDERS_MAX, WINDOW, Numbering, Replay, StalePacket
from cube.gossip.seal import SEAL_BYTES_MAX, PlainSeal, Seal
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from tests.fakes.disk import FakeDisk

CLUSTER = ClusterId("cluster-1")
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW_MS = 1_700_000_000_000


def sealed_by(
    name: str,
    disk: FakeDisk | None = None,
    *keys: bytes,
    cluster: str = CLUSTER,
    now_ms: int = NOW_MS,
) -> AesSeal:
    return AesSeal(ClusterId(cluster), NodeId(name), keys or (KEY,), disk or FakeDisk(), now_ms)


def refuses(seal: Seal, *packets: bytes) -> None:
    for packet in packets:
        with pytest.raises(BadPacket):
            seal.open(packet)


@given(st.binary(max_size=2000))
@settings(max_examples=50)
def test_what_one_seals_another_opens_once(data: bytes) -> None:
    a, b = sealed_by("a"), sealed_by("b")
    packet = a.seal(data)
    assert data == b"" or len(data) < 4 or data not in packet
    assert b.open(packet) == data
    refuses(b, packet)
    assert a.open(b.seal(data)) == data


def test_it_adds_no_more_than_it_may() -> None:
    longest = sealed_by("x" * SENDER_BYTES_MAX)
    assert len(longest.seal(b"data")) == len(b"data") + SEAL_BYTES_MAX
    assert SENDER_BYTES_MAX >= 36


def test_every_bit_counts() -> None:
    a, b = sealed_by("a"), sealed_by("b")
    packet = a.seal(b"data")
    for at in range(len(packet)):
        for bit in range(8):
            changed = bytearray(packet)
            changed[at] ^= 1 << bit
            refuses(b, bytes(changed))
    for length in range(len(packet)):
        refuses(b, packet[:length])
    refuses(b, packet + b"\0")
    assert b.open(packet) == b"data"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    refuses(sealed_by("b"), data, b"\x02" + data)


def test_strangers_are_refused() -> None:
    b = sealed_by("b")
    refuses(
        b,
        sealed_by("a", None, OTHER_KEY).seal(b"data"),
        sealed_by("a", cluster="cluster-2").seal(b"data"),
        PlainSeal(CLUSTER).seal(b"data"),
        b.seal(b"its own, sent back"),
    )


def test_a_packet_cannot_be_said_to_be_anothers() -> None:
    packet = sealed_by("a").seal(b"data")
    assert packet[5:7] == b"\x01a"
    refuses(sealed_by("b"), packet[:6] + b"c" + packet[7:])


def test_packets_overtake_each_other() -> None:
    a, b = sealed_by("a"), sealed_by("b")
    packets = [a.seal(str(n).encode()) for n in range(WINDOW)]
    order = list(range(WINDOW))
    random.Random(7).shuffle(order)
    for n in order:
        assert b.open(packets[n]) == str(n).encode()
    refuses(b, *packets)


def test_what_comes_too_late_is_refused() -> None:
    a, b = sealed_by("a"), sealed_by("b")
    packets = [a.seal(b"") for _ in range(WINDOW + 1)]
    b.open(packets[-1])
    refuses(b, packets[0])
    b.open(packets[1])


def test_nothing_is_heard_twice_after_the_senders_restart() -> None:
    disk = FakeDisk()
    a, b = sealed_by("a", disk), sealed_by("b")
    old = [a.seal(b"old") for _ in range(10)]
    for packet in old[:5]:
        b.open(packet)
    again = sealed_by("a", disk, now_ms=NOW_MS - 3_600_000)  # its clock went back, too
    assert b.open(again.seal(b"new")) == b"new"
    refuses(b, *old)


@pytest.mark.parametrize("heard", [1, 3, RESERVE + 10])
def test_nothing_is_heard_twice_after_the_receivers_restart(heard: int) -> None:
    disk = FakeDisk()
    a, b = sealed_by("a"), sealed_by("b", disk)
    packets = [a.seal(b"old") for _ in range(heard)]
    for packet in packets:
        b.open(packet)
    killed = FakeDisk()
    killed.files = dict(disk.files)
    again = sealed_by("b", killed)
    refuses(again, *packets)
    with pytest.raises(StalePacket):  # fresh, but who knows
        again.open(a.seal(b"fresh"))
    a.open(again.seal(b"hello"))  # once the sender has heard of the restart …
    assert again.open(a.seal(b"fresh")) == b"fresh"  # … it is understood
    refuses(again, *packets)


def test_what_was_heard_is_written_seldom() -> None:
    class CountingDisk(FakeDisk):
        writes = 0

        def replace(self, name: str, data: bytes) -> None:
            super().replace(name, data)
            self.writes += 1

    disk = CountingDisk()
    a, b = sealed_by("a"), sealed_by("b", disk)
    for _ in range(3 * RESERVE):
        b.open(a.seal(b""))
    assert disk.writes <= 5


def test_a_full_disk_silences_nobody() -> None:
    disk = FakeDisk()
    a, b = sealed_by("a"), sealed_by("b", disk)
    disk.is_broken = True
    assert b.open(a.seal(b"data")) == b"data"
    with pytest.raises(Unavailable):
        sealed_by("c", disk)


def test_a_damaged_memory_is_none() -> None:
    disk = FakeDisk()
    disk.files[HEARD] = b"garbage"
    assert sealed_by("b", disk).open(sealed_by("a").seal(b"x")) == b"x"
    assert disk.files[HEARD] != b"garbage"


def test_keys_change_without_a_gap() -> None:
    a, b = sealed_by("a"), sealed_by("b")
    a.set_keys([KEY, OTHER_KEY])
    b.set_keys([KEY, OTHER_KEY])  # installed at both
    b.open(a.seal(b"1"))
    a.set_keys([OTHER_KEY, KEY])  # used by one
    b.open(a.seal(b"2"))
    a.open(b.seal(b"3"))
    late = a.seal(b"of the new key")
    old = sealed_by("c").seal(b"of the old key")
    b.set_keys([OTHER_KEY])  # the old one removed
    b.open(late)
    refuses(b, old)


def test_hostile_packets_cost_no_memory() -> None:
    b, member = sealed_by("b"), sealed_by("a")
    real = member.seal(b"data" * 20)
    b.open(real)
    stranger = sealed_by("s", None, OTHER_KEY)
    dice = random.Random(1)
    refused = 0

    def hostile(number: int) -> bytes:
        match number % 5:
            case 0:
                return dice.randbytes(dice.randrange(1400))
            case 1:
                changed = bytearray(real)
                changed[dice.randrange(len(changed))] ^= 1 + dice.randrange(255)
                return bytes(changed)
            case 2:
                return real
            case 3:
                return stranger.seal(b"let me in")
            case _:  # another invented sender each time, under the right key's id
                name = dice.randbytes(18).hex().encode()
                return real[:5] + bytes((len(name),)) + name + dice.randbytes(60)

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100_000):
            try:
                b.open(hostile(number))
            except BadPacket:
                refused += 1
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused == 100_000
    assert after - before < 1 << 20
    assert peak - before < 4 << 20
    assert b.open(member.seal(b"still here")) == b"still here"


def test_senders_are_bounded() -> None:
    replay = Replay({})
    for number in range(SENDERS_MAX + 100):
        replay.take(f"s{number}", 1, 1)
    assert len(replay) == SENDERS_MAX
    assert len(Replay({f"s{n}": (1, 1) for n in range(SENDERS_MAX + 5)})) == SENDERS_MAX


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3 * WINDOW)), max_size=60), st.data())
@settings(max_examples=200)
def test_whatever_the_order_nothing_is_taken_twice(
    numbers: list[tuple[int, int]], data: st.DataObject
) -> None:
    replay, kept = Replay({}), {"a": (0, 0)}
    taken: list[tuple[int, int]] = []
    for epoch, number in numbers:
        if data.draw(st.integers(0, 9)) == 0:
            replay = Replay(kept)  # killed, and back
        try:
            replay.take("a", epoch, number)
        except StalePacket:
            continue
        if replay.must_save("a"):
            kept = dict(replay.bounds())
        taken.append((epoch, number))
    assert len(taken) == len(set(taken))


def test_numbers_never_repeat() -> None:
    numbering = Numbering(5)
    seen = [numbering.next() for _ in range(5)]
    numbering.jump()
    seen += [numbering.next() for _ in range(5)]
    assert len(set(seen)) == 10
    assert seen[5] - seen[4] > RESERVE


def test_nonces_are_random() -> None:
    a = sealed_by("a")
    at = 7
    assert len({a.seal(b"")[at : at + 12] for _ in range(1000)}) == 1000
