"""D2 to D8: what a kill, a power cut or a damaged file may take away, on the library's journal and on
ours. (D1 is in test_raft_rules and test_raft_powercut, D6 in test_raft_disk_faults: the library's
death of SIGBUS would be ours, too.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pysyncobj.journal
import pytest

from cube.adapters.raft.applying import align_journal
from cube.adapters.raft.commands import NO_OP
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.node import RaftNode
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.raft.snapshots import SnapshotHeader
from cube.model.errors import BadPacket
from tests.raft.test_raft_findings import OTHER, SELF, STOCK_IS_RED, THIRD
from tests.raft.test_raft_rules import stock_with_journal
from tests.raft_support import ListReplica

BOTH = [pytest.param("stock", marks=STOCK_IS_RED), "ours"]


class Killed(Exception):
    """In the middle of something; nothing after it happens."""


class Log:
    """A journal of either kind: the same entries, opened again and again."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.journal: Any = None
        self.opened: list[Any] = []
        self.open()

    def open(self) -> None:
        if self.kind == "stock":
            self.journal = pysyncobj.journal.FileJournal(str(self.path / "log"))
            if not len(self.journal):
                self.journal.add(NO_OP, 1, 0)
        else:
            self.journal = FileJournal(self.path / "log", fsync=False, segment_bytes=2_000)
        self.opened.append(self.journal)

    def fill(self, last_index: int) -> None:
        for index in range(2, last_index + 1):
            self.journal.add(b"\x00entry %d" % index, index, 1)
            if self.kind == "ours":
                self.journal.sync()

    def close(self) -> None:
        self.journal.onOneSecondTimer()
        self.journal._destroy()
        self.opened.remove(self.journal)

    def close_all(self) -> None:
        """Those of killed processes, too."""
        for journal in self.opened:
            journal._destroy()

    @property
    def entries(self) -> list[tuple[bytes, int, int]]:
        return [self.journal[position] for position in range(len(self.journal))]

    @property
    def files(self) -> list[Path]:
        """What holds the entries, oldest first."""
        path = self.path / "log"
        return sorted(path.iterdir()) if path.is_dir() else [path]

    def drop_until(self, index: int) -> None:
        """Entries before `index` are covered by a snapshot."""
        if self.kind == "stock":
            self.journal.deleteEntriesTo(index - self.journal[0][1])
        else:
            self.journal.trim_to(index)


@pytest.fixture
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    log = Log(request.param, tmp_path)
    yield log
    log.close_all()


@pytest.mark.parametrize("log", BOTH, indirect=True)
def test_d2_a_damaged_file_does_not_bring_back_an_older_term_or_vote(log: Log) -> None:
    """The library keeps them in a second file, and begins at term 0 when it cannot read it."""
    log.journal.setCurrentTerm(7, OTHER)
    log.close()
    path = log.path / "log.meta" if log.kind == "stock" else log.files[0]
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(
            whole[:position] + bytes((whole[position] ^ 0x55,)) + whole[position + 1 :]
        )
        try:
            log.open()
        except BadPacket:
            continue
        assert (log.journal.getCurrentTerm(), log.journal.getVotedForNodeId()) == (7, OTHER)


@pytest.mark.parametrize("log", BOTH, indirect=True)
def test_d3_a_torn_entry_is_never_taken_for_a_command(log: Log) -> None:
    """The file is as long as it should be, and what it should hold never reached the disk."""
    log.fill(5)
    wanted = log.entries
    path = log.files[-1]
    whole = path.read_bytes()
    start = whole.rindex(b"entry 5")
    for torn in range(len(b"entry 5")):
        path.write_bytes(whole[: start + torn] + bytes(len(whole) - start - torn))
        log.open()
        assert log.entries == wanted[: len(log.entries)]


@pytest.mark.parametrize("log", BOTH, indirect=True)
def test_d4_a_kill_while_the_log_is_compacted_keeps_what_follows(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library rewrites in place: 999 of 4,000 entries were left."""
    log.fill(400)
    wanted = log.entries[299:]
    calls = 0

    def dies_later(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise Killed
            return real(*arguments)

        return call

    owner: Any = pysyncobj.journal.FileJournal if log.kind == "stock" else FileJournal
    name = "add" if log.kind == "stock" else "_drop_oldest"
    with monkeypatch.context() as killing:
        killing.setattr(owner, name, dies_later(getattr(owner, name)))
        with pytest.raises(Killed):
            log.drop_until(300)
    log.open()
    assert log.entries[-len(wanted) :] == wanted


@STOCK_IS_RED
def test_d5_stock_a_start_from_a_newer_snapshot_keeps_what_follows_it(tmp_path: Path) -> None:
    stock = stock_with_journal(tmp_path / "journal")
    journal = stock._SyncObj__raftLog
    for index in range(2, 11):
        journal.add(NO_OP, index, 1)

    class Dump:
        def deserialize(self) -> tuple[object, ...]:
            return None, journal[5], journal[4], ()

    stock._SyncObj__serializer = Dump()
    stock._SyncObj__loadDumpFile(clearJournal=False)
    last_index = journal[-1][1]
    journal._destroy()
    assert last_index == 10


def test_d5_a_start_from_a_newer_snapshot_keeps_what_follows_it(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", fsync=False)
    for index in range(2, 11):
        journal.add(NO_OP, index, 1)
    journal.sync()
    align_journal(journal, SnapshotHeader(5, 1, (SELF,)))
    assert journal.last_index == 10


@pytest.mark.parametrize("log", BOTH, indirect=True)
def test_d7_what_a_snapshot_covers_is_given_back_to_the_disk(log: Log) -> None:
    log.fill(2_000)
    before = sum(path.stat().st_size for path in log.files)
    log.drop_until(1_990)
    log.close()
    assert sum(path.stat().st_size for path in log.files) < before / 10


def member(directory: Path) -> RaftNode:
    return RaftNode(
        SELF,
        members=(OTHER, THIRD),
        directory=directory,
        replica=ListReplica("self"),
        stamp=lambda: 0,
        settings=RaftSettings(),
        joining=False,
        cluster="",
    )


@STOCK_IS_RED
def test_d8_stock_a_compacted_log_without_its_snapshot_is_refused(tmp_path: Path) -> None:
    log = Log("stock", tmp_path)
    log.fill(20)
    log.drop_until(15)
    log.close()
    stock = stock_with_journal(tmp_path / "log")  # should be refused
    stock._SyncObj__raftLog._destroy()
    pytest.fail("it begins at entry 15 with the state of entry 1")


def test_d8_a_compacted_log_without_its_snapshot_is_refused(tmp_path: Path) -> None:
    node = member(tmp_path)
    node.close()
    node.close_pipe()
    log = FileJournal(tmp_path / "journal", fsync=False)
    log.reset(15, 1)
    log._destroy()
    with pytest.raises(BadPacket, match="snapshot that is not there"):
        member(tmp_path)
