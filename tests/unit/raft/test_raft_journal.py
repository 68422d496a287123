from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.journal import FileJournal
from cube.model.errors import BadPacket


def write(path: Path, count: int) -> FileJournal:
    journal = FileJournal(path, fsync=False)
    for index in range(2, count + 2):
        journal.add(b"\x00entry-%d" % index, index, 1)
        journal.sync()  # a record at a time, as the tears below expect
    return journal


def commands(journal: FileJournal) -> list[bytes]:
    return [command for command, _, _ in journal.entries()]


def test_a_new_journal_holds_the_entry_before_the_first(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", fsync=True)
    assert journal.entries() == [(NO_OP, 1, 0)]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)


def test_what_was_synced_is_there_after_a_kill(tmp_path: Path) -> None:
    journal = write(tmp_path / "journal", 5)
    journal.setCurrentTerm(7, "127.0.0.1:1")
    journal.add(b"\x00not synced", 7, 7)
    # No close: the process is gone.
    again = FileJournal(tmp_path / "journal", fsync=False)
    assert commands(again) == [NO_OP, *(b"\x00entry-%d" % index for index in range(2, 7))]
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (7, "127.0.0.1:1")


def test_a_conflict_cut_stays_cut(tmp_path: Path) -> None:
    journal = write(tmp_path / "journal", 5)
    journal.truncate_from(4)
    journal.add(b"\x00other", 4, 2)
    journal._destroy()
    again = FileJournal(tmp_path / "journal", fsync=False)
    assert [(i, t) for _, i, t in again.entries()] == [(1, 0), (2, 1), (3, 1), (4, 2)]


def test_trimming_keeps_term_vote_and_the_rest(tmp_path: Path) -> None:
    journal = write(tmp_path / "journal", 9)
    journal.setCurrentTerm(3, "127.0.0.1:2")
    journal.setRaftCommitIndex(8)
    journal.trim_to(6)
    journal.add(b"\x00after", 11, 3)
    journal._destroy()
    again = FileJournal(tmp_path / "journal", fsync=False)
    assert (again.first_index, again.last_index) == (6, 11)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (3, "127.0.0.1:2")
    assert again.getRaftCommitIndex() == 8


def test_a_kill_while_it_compacts_leaves_the_old_file(tmp_path: Path) -> None:
    """D4: the library rewrote in place, and kept 999 of 4,000 entries."""
    path = tmp_path / "journal"
    before = commands(write(path, 20))
    path.with_suffix(".new").write_bytes(path.read_bytes()[:100])
    assert commands(FileJournal(path, fsync=False)) == before


def test_the_commit_index_is_clamped_to_the_last_entry(tmp_path: Path) -> None:
    """S8: beyond it, a leader would commit with no quorum."""
    journal = write(tmp_path / "journal", 3)
    journal.setRaftCommitIndex(50)
    journal._destroy()
    assert FileJournal(tmp_path / "journal", fsync=False).getRaftCommitIndex() == 4


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """D3: the library loads a truncated tail as a corrupt command."""
    path = tmp_path / "journal"
    write(path, 2)
    start = path.stat().st_size
    write_more = FileJournal(path, fsync=False)
    write_more.add(b"\x00torn", 4, 1)
    write_more.sync()
    whole = path.read_bytes()
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        journal = FileJournal(path, fsync=False)
        assert journal.last_index == 3
        assert journal.torn_bytes == length - start
        path.write_bytes(whole[:length] + bytes(len(whole) - length))  # zeros, as after power loss
        assert FileJournal(path, fsync=False).last_index == 3
    path.write_bytes(whole)
    assert FileJournal(path, fsync=False).last_index == 4


def test_damage_before_the_end_is_refused_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, 20)
    whole = path.read_bytes()
    last_record = len(whole) - 60
    for position in range(0, last_record, 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(BadPacket):
            FileJournal(path, fsync=False)


@given(st.binary(max_size=300))
def test_any_file_is_a_journal_or_bad(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for content in (data, b"CUBEJNL1" + data):
            path = Path(directory) / "journal"
            path.write_bytes(content)
            with contextlib.suppress(BadPacket):
                FileJournal(path, fsync=False)._destroy()
