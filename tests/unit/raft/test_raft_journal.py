"""The log on disk: what a kill, a power cut, a damaged or a full disk leave of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.adapters.raft import records
from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.journal import FileJournal
from cube.model.errors import BadPacket

_open: list[FileJournal] = []


def journal_at(path: Path, *, fsync: bool = False, segment_bytes: int = 8 << 20) -> FileJournal:
    journal = FileJournal(path / "journal", fsync=fsync, segment_bytes=segment_bytes)
    _open.append(journal)
    return journal


def bury() -> None:
    """The processes that had journals open are gone: the kernel closes their files, and writes nothing."""
    for journal in _open:
        if journal._fd >= 0:
            os.close(journal._fd)
            journal._fd = -1
    _open.clear()


@pytest.fixture(autouse=True)
def _no_file_stays_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    bury()
    assert len(os.listdir("/proc/self/fd")) <= before


def write(
    path: Path, count: int, *, fsync: bool = False, segment_bytes: int = 8 << 20
) -> FileJournal:
    journal = journal_at(path, fsync=fsync, segment_bytes=segment_bytes)
    for _ in range(count):
        append(journal)
    return journal


def append(journal: FileJournal, term: int = 1) -> None:
    """One entry, one batch."""
    index = journal.last_index + 1
    journal.add(b"\x00entry-%d" % index, index, term)
    journal.sync()


def segment(path: Path, number: int = 1) -> Path:
    return path / "journal" / f"{number:010d}.log"


def content(journal: FileJournal) -> bytes:
    return segment(journal._directory.parent, journal._segments[-1].number).read_bytes()


def indexes(journal: FileJournal) -> list[int]:
    return [index for _, index, _ in journal.entries()]


def commands(journal: FileJournal) -> list[bytes]:
    return [command for command, _, _ in journal.entries()]


def test_a_new_journal_holds_the_entry_before_the_first(tmp_path: Path) -> None:
    journal = journal_at(tmp_path, fsync=True)
    assert journal.entries() == [(NO_OP, 1, 0)]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)


@pytest.mark.parametrize("fsync", [True, False])
def test_what_was_synced_is_there_after_a_kill(tmp_path: Path, fsync: bool) -> None:
    journal = write(tmp_path, 5, fsync=fsync)
    journal.setCurrentTerm(7, "127.0.0.1:1")
    journal.add(b"\x00not synced", 7, 7)
    assert journal.synced_index == 6
    # No close: the process is gone.
    again = journal_at(tmp_path, fsync=fsync)
    assert commands(again) == [NO_OP, *(b"\x00entry-%d" % index for index in range(2, 7))]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (7, "127.0.0.1:1")
    assert again.torn_bytes == 0
    append(again)
    assert journal_at(tmp_path).last_index == 7


def test_a_conflict_cut_stays_cut(tmp_path: Path) -> None:
    journal = write(tmp_path, 5)
    journal.truncate_from(4)
    assert journal.synced_index == 3
    journal.add(b"\x00other", 4, 2)
    journal._destroy()
    again = journal_at(tmp_path)
    assert [(i, t) for _, i, t in again.entries()] == [(1, 0), (2, 1), (3, 1), (4, 2)]


def test_segments_that_a_snapshot_covers_are_gone_and_the_rest_stays(tmp_path: Path) -> None:
    """D7: the library's file never shrinks. Term and vote live in every segment."""
    journal = write(tmp_path, 2, segment_bytes=400)
    journal.setCurrentTerm(3, "127.0.0.1:2")
    for _ in range(40):
        append(journal, term=3)
    files = len(list((tmp_path / "journal").iterdir()))
    assert files > 4
    journal.setRaftCommitIndex(40)
    journal.trim_to(38)
    assert indexes(journal) == [38, 39, 40, 41, 42, 43]
    assert len(list((tmp_path / "journal").iterdir())) < files - 2
    append(journal, term=3)
    journal._destroy()
    again = journal_at(tmp_path)
    assert again.first_index <= 38
    assert again.last_index == 44
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "127.0.0.1:2")
    assert again.getRaftCommitIndex() == 40


def test_disk_use_is_bounded_by_what_is_kept(tmp_path: Path) -> None:
    journal = journal_at(tmp_path, segment_bytes=4_000)
    for _ in range(60):
        for _ in range(20):
            append(journal)
        journal.trim_to(journal.last_index - 5)
        on_disk = sum(path.stat().st_size for path in (tmp_path / "journal").iterdir())
        assert on_disk < 3 * 4_000
    assert journal.bytes_on_disk < 3 * 4_000


def test_a_kill_while_a_segment_is_made_leaves_the_old_ones(tmp_path: Path) -> None:
    """D4: the library rewrote in place, and kept 999 of 4,000 entries."""
    before = commands(write(tmp_path, 20))
    half = tmp_path / "journal" / "0000000002.new"
    half.write_bytes(segment(tmp_path).read_bytes()[:100])
    assert commands(journal_at(tmp_path)) == before
    assert not half.exists()


def test_a_reset_leaves_nothing_of_before(tmp_path: Path) -> None:
    journal = write(tmp_path, 20, segment_bytes=400)
    journal.setCurrentTerm(4, "127.0.0.1:2")
    journal.reset(90, 3)
    append(journal, term=4)
    again = journal_at(tmp_path)
    assert [(i, t) for _, i, t in again.entries()] == [(90, 3), (91, 4)]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (4, "127.0.0.1:2")
    assert len(list((tmp_path / "journal").iterdir())) == 1


def test_older_segments_that_come_back_do_no_harm(tmp_path: Path) -> None:
    """A power cut may undo a removal that was not synced."""
    journal = write(tmp_path, 20, segment_bytes=400)
    old = segment(tmp_path).read_bytes()
    journal.trim_to(15)
    kept = journal_at(tmp_path).entries()
    segment(tmp_path).write_bytes(old)
    assert journal_at(tmp_path).entries() == kept


def test_the_commit_index_is_clamped_to_the_last_entry(tmp_path: Path) -> None:
    """S8: beyond it, a leader would commit with no quorum."""
    journal = write(tmp_path, 3)
    journal.setRaftCommitIndex(50)
    journal._destroy()
    assert journal_at(tmp_path).getRaftCommitIndex() == 4


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """D3: the library loads a truncated tail as a corrupt command."""
    journal = write(tmp_path, 2)
    start = len(content(journal))
    append(journal)
    whole = content(journal)
    for length in range(start, len(whole)):
        segment(tmp_path).write_bytes(whole[:length])
        journal = journal_at(tmp_path)
        assert journal.last_index == 3
        assert journal.torn_bytes == len(whole[start:length].rstrip(b"\0"))
        append(journal)
        assert journal_at(tmp_path).last_index == 4
        segment(tmp_path).write_bytes(whole[:length] + bytes(len(whole) - length))
        assert journal_at(tmp_path).last_index == 3
        bury()
    segment(tmp_path).write_bytes(whole)
    assert journal_at(tmp_path).last_index == 4


def test_a_batch_torn_out_of_order_is_cut_as_a_whole(tmp_path: Path) -> None:
    """The disk wrote its later blocks, and not the earlier ones, when the power went."""
    journal = write(tmp_path, 3)
    start = len(content(journal))
    for index in range(5, 105):
        journal.add(bytes([0, index]) * 50, index, 1)
    journal.sync()
    whole = content(journal)
    for hole in range(start, len(whole) - 512, 512):
        segment(tmp_path).write_bytes(whole[:hole] + bytes(512) + whole[hole + 512 :])
        again = journal_at(tmp_path)
        assert again.last_index == 4
        assert again.torn_bytes > 0
        append(again)
        assert journal_at(tmp_path).last_index == 5
        bury()


def test_damage_before_a_later_batch_is_refused_at_every_byte(tmp_path: Path) -> None:
    """What was synced is never cut silently: it may have been acknowledged."""
    journal = write(tmp_path, 4)
    start_of_last = len(content(journal))
    append(journal)
    whole = content(journal)
    for position in range(start_of_last):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        segment(tmp_path).write_bytes(damaged)
        with pytest.raises(BadPacket):
            journal_at(tmp_path)
    segment(tmp_path).write_bytes(whole)
    assert journal_at(tmp_path).last_index == 6


def test_a_quiet_journal_covers_its_last_batch_too(tmp_path: Path) -> None:
    journal = write(tmp_path, 4)
    whole = content(journal)
    journal.onOneSecondTimer()
    marked = content(journal)
    assert len(marked) > len(whole)
    journal.onOneSecondTimer()
    assert content(journal) == marked
    damaged = bytearray(marked)
    damaged[len(whole) - 3] ^= 1
    segment(tmp_path).write_bytes(damaged)
    with pytest.raises(BadPacket):
        journal_at(tmp_path)


def test_the_refusal_says_which_file_where_and_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, 40, segment_bytes=400)
    path = segment(tmp_path, 2)
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadPacket) as refused:
        journal_at(tmp_path)
    message = str(refused.value)
    assert str(path) in message
    assert "at byte " in message
    assert 100 < int(message.partition("at byte ")[2].partition(":")[0]) <= 200
    assert "remove this member from the cluster" in message


@pytest.mark.parametrize("lost", ["first byte", "end", "all"])
def test_an_older_segment_must_be_whole(tmp_path: Path, lost: str) -> None:
    write(tmp_path, 40, segment_bytes=400)
    path = segment(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes({"first byte": b"x" + whole[1:], "end": whole[:-1], "all": b""}[lost])
    with pytest.raises(BadPacket):
        journal_at(tmp_path)


def test_a_command_that_looks_like_a_mark_is_none(tmp_path: Path) -> None:
    """Else a client could make a torn tail look like damage."""
    journal = write(tmp_path, 2)
    start = len(content(journal))
    for salt in (0, 1, journal._salt ^ 1):
        for _ in range(2):
            index = journal.last_index + 1
            fake = b"".join(records.encode_batch(salt, start + at, []) for at in range(0, 400, 28))
            journal.add(b"\x00" + fake, index, 1)
    journal.sync()
    damaged = bytearray(content(journal))
    damaged[start + 30] ^= 1
    segment(tmp_path).write_bytes(damaged)
    assert journal_at(tmp_path).last_index == 3


class FailingDisk:
    """pwrite or fdatasync fail while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
        self.error: int | None = code
        self.calls = 0
        real = getattr(os, call)

        def fail(*arguments: object) -> object:
            self.calls += 1
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments)

        monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize(
    ("call", "code"),
    [("pwrite", errno.ENOSPC), ("pwrite", errno.EIO), ("fdatasync", errno.EIO)],
)
def test_a_disk_that_fails_is_reported_and_used_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """D6. What was synced stays, what was not is not lost either, and nothing counts before."""
    journal = write(tmp_path, 3, fsync=True)
    faults: list[str] = []
    journal.on_fault = lambda: faults.append(journal.fault)
    disk = FailingDisk(monkeypatch, call, code)
    append(journal)
    journal.setCurrentTerm(9, "127.0.0.1:7")
    assert faults == [f"disk: {os.strerror(code)}"]
    assert journal.synced_index == 4
    if call == "pwrite":
        assert not journal.retry()
        assert journal.fault
        # A restart meanwhile: as if nothing had been tried.
        monkeypatch.undo()
        killed = journal_at(tmp_path)
        assert (killed.last_index, killed.getCurrentTerm()) == (4, 0)
        disk = FailingDisk(monkeypatch, call, code)
    disk.error = None
    calls = disk.calls
    assert journal.retry()
    if call == "fdatasync":
        assert disk.calls == calls, "a file that failed once is not synced again"
    assert (journal.fault, journal.synced_index) == ("", 5)
    append(journal, term=9)
    again = journal_at(tmp_path)
    assert indexes(again) == [1, 2, 3, 4, 5, 6]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (9, "127.0.0.1:7")


def test_what_a_failed_write_left_behind_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = write(tmp_path, 3, fsync=True)
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        real(fd, bytes(data)[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", half)
    append(journal)
    monkeypatch.undo()
    assert journal.retry()
    append(journal)
    assert indexes(journal_at(tmp_path)) == [1, 2, 3, 4, 5, 6]


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_file_is_a_journal_or_bad(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        journal = journal_at(path)
        journal._destroy()
        whole = segment(path).read_bytes()
        for damaged in (data, records.MAGIC + data, whole + data, whole[: len(data)] + data):
            segment(path).write_bytes(damaged)
            with contextlib.suppress(BadPacket):
                journal_at(path)._destroy()
