"""The bytes on disk: this version's checksum, and files that the version before it left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cube.adapters.raft import records
from cube.adapters.raft.checksums import crc32c
from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.snapshots import SnapshotHeader, SnapshotStore
from cube.model.errors import BadPacket

# Written by the last build whose checksum was CRC-32: three entries of term 3, a vote, and the
# commit index 3; a snapshot of index 7.
OLD_SEGMENT = bytes.fromhex(
    "435542454c4f47325456a958010000000000000061fcd3801a68c1d10000000000000000c5be4d6b590a6ad861fcd380"
    "1a68c1d124000000000000003200000011000000a83b1d34030100000000000000000000000000000011000000e3478f"
    "140401000000000000000000000000000000c5be4d6bf6fd5e7e61fcd3801a68c1d17200000000000000240000001c00"
    "00004157e4d003010000000000000003000000000000003132372e302e302e313a32c5be4d6b0d93247161fcd3801a68"
    "c1d1b2000000000000008700000019000000bc9d7e29010200000000000000030000000000000000656e7472792d3219"
    "0000000dc85cdf010300000000000000030000000000000000656e7472792d3319000000d96a20700104000000000000"
    "00030000000000000000656e7472792d341c000000c361fc0d03030000000000000003000000000000003132372e302e"
    "302e313a32c5be4d6b282829fc61fcd3801a68c1d1550100000000000000000000"
)
OLD_SNAPSHOT = bytes.fromhex(
    "43554245534e503197f762152200000083a5696e64657807a47465726d02a6766f7465727391ab3132372e302e302e31"
    "3a317374617465206f66207468656e"
)
ENTRIES = [(NO_OP, 1, 0), *((b"\x00entry-%d" % index, index, 3) for index in (2, 3, 4))]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The old segment, in a journal's directory."""
    directory = tmp_path / "journal"
    directory.mkdir()
    path = directory / "0000000001.log"
    path.write_bytes(OLD_SEGMENT)
    return path


def test_the_checksum_is_the_one_of_the_standard() -> None:
    """RFC 3720, B.4."""
    assert crc32c(0, b"123456789") == 0xE3069283
    assert crc32c(0, bytes(32)) == 0x8A9136AA
    assert crc32c(crc32c(0, b"1234"), b"56789") == 0xE3069283


def test_a_journal_of_the_version_before_is_read_and_goes_on_in_a_new_segment(old: Path) -> None:
    journal = FileJournal(old.parent, fsync=True)
    assert journal.entries() == ENTRIES
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "127.0.0.1:2")
    assert (journal.getRaftCommitIndex(), journal.synced_index) == (3, 4)
    assert old.read_bytes() == OLD_SEGMENT, "nothing of this version is put into it"
    for index in (5, 6):
        journal.add(b"\x00new-%d" % index, index, 4)
        journal.sync()
    journal.onOneSecondTimer()
    new = old.with_name("0000000002.log").read_bytes()
    assert (old.read_bytes(), new[:8]) == (OLD_SEGMENT, records.MAGIC)
    again = FileJournal(old.parent, fsync=False)
    assert again.entries() == [*ENTRIES, (b"\x00new-5", 5, 4), (b"\x00new-6", 6, 4)]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "127.0.0.1:2")


@pytest.mark.parametrize("torn_bytes", [1, 20, 60])
def test_a_torn_tail_of_the_version_before_is_cut(old: Path, torn_bytes: int) -> None:
    end = OLD_SEGMENT.rindex(b"\xc5\xbeMk")  # the last batch has no records
    old.write_bytes(OLD_SEGMENT[: end - torn_bytes])
    journal = FileJournal(old.parent, fsync=False)
    assert journal.entries() == [(NO_OP, 1, 0)]
    journal.add(b"\x00new-2", 2, 4)
    journal.sync()
    assert FileJournal(old.parent, fsync=False).entries() == [(NO_OP, 1, 0), (b"\x00new-2", 2, 4)]


def test_damage_of_the_version_before_is_refused_at_every_byte(old: Path) -> None:
    for position in range(OLD_SEGMENT.rindex(b"\xc5\xbeMk")):
        damaged = bytearray(OLD_SEGMENT)
        damaged[position] ^= 0x55
        old.write_bytes(damaged)
        with pytest.raises(BadPacket):
            FileJournal(old.parent, fsync=False)


def test_a_disk_that_is_full_at_the_change_of_versions_is_weather(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "rename", fail)
        journal = FileJournal(old.parent, fsync=False)
    assert journal.entries() == ENTRIES
    assert journal.fault
    journal.add(b"\x00new", 5, 3)
    assert journal.retry()
    assert FileJournal(old.parent, fsync=False).entries() == [*ENTRIES, (b"\x00new", 5, 3)]


def test_a_journal_of_any_other_version_is_refused_and_says_so(old: Path) -> None:
    old.write_bytes(OLD_SEGMENT.replace(b"CUBELOG2", b"CUBELOG1"))
    with pytest.raises(BadPacket, match="does not begin like a segment of this version"):
        FileJournal(old.parent, fsync=False)


def test_a_snapshot_of_the_version_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    path.write_bytes(OLD_SNAPSHOT)
    store = SnapshotStore(tmp_path, lambda: None)
    assert store.load() == b"state of then"
    assert store.header == SnapshotHeader(7, 2, ("127.0.0.1:1",))
    for position in range(len(OLD_SNAPSHOT)):
        damaged = bytearray(OLD_SNAPSHOT)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(BadPacket):
            store.load()
