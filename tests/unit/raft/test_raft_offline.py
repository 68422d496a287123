"""A member's files while no agent runs: read without a change, and made a cluster's of one, whole or
not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cube.adapters.raft import offline
from cube.adapters.raft.commands import encode_members, stamped, unstamped
from cube.adapters.raft.directory import MemberFile, lock, write_member
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.offline import ORDER, Order, carry_out, give_order, read_contents
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.raft.snapshots import SnapshotHeader, write_snapshot
from cube.model.errors import BadPacket, Unavailable

ME, OTHER, THIRD = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
TERM = 3
THE_ORDER = Order(term=TERM + 1000, lineage="abc", at_ms=77, commands=(b"bye 2", b"bye 3"))


def make(path: Path, count: int = 6, *, snapshot: int = 0, committed: int = 5) -> Path:
    """A voter of three with `count` entries, of which the first `committed` are noted as such."""
    directory = path / "raft"
    directory.mkdir()
    write_member(directory / "member", MemberFile(ME, (ME,), joining=False))
    journal = FileJournal(directory / "journal", fsync=False)
    journal.add(encode_members(frozenset((ME, OTHER, THIRD))), 2, TERM)
    for index in range(3, count + 1):
        journal.add(stamped(unstamped(b"entry %d" % index), index), index, TERM)
    journal.setRaftCommitIndex(committed)
    journal.setCurrentTerm(TERM, OTHER)
    journal._destroy()
    if snapshot:
        header = SnapshotHeader(snapshot, TERM, (ME, OTHER, THIRD))
        write_snapshot(directory / "snapshot", header, iter([b"the ", b"state"]))
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def datas(directory: Path) -> list[bytes]:
    return [e.data for e in read_contents(directory).entries if e.data is not None]


def test_reading_tells_what_there_is_and_changes_nothing(tmp_path: Path) -> None:
    directory = make(tmp_path)
    segment = directory / "journal" / "0000000001.log"
    torn = b"\xc5\xbeMk half a batch"
    segment.write_bytes(segment.read_bytes() + torn)
    (directory / "journal" / "0000000002.new").write_bytes(b"half made")
    before = files(directory)
    found = read_contents(directory)
    assert files(directory) == before
    assert (found.address, found.lineage, found.is_joining) == (ME, "", False)
    assert (found.last_index, found.last_term, found.term) == (6, TERM, TERM)
    assert found.voters == (ME, OTHER, THIRD)
    assert found.commit_index == 5
    assert [(entry.index, entry.data) for entry in found.unproved] == [(6, b"entry 6")]
    assert found.torn_bytes == len(torn)
    assert found.snapshot is None


def test_entries_that_a_snapshot_covers_are_its(tmp_path: Path) -> None:
    found = read_contents(make(tmp_path, snapshot=4, committed=2))
    assert found.snapshot is not None and found.snapshot.index == 4
    assert found.snapshot_data == b"the state"
    assert [entry.index for entry in found.entries] == [5, 6]
    assert found.commit_index == 4  # a snapshot is of committed entries


@pytest.mark.parametrize(
    ("name", "at"),
    # Of the log, in a batch that a later mark proves.
    [("journal/0000000001.log", 90), ("snapshot", 30), ("member", 0)],
)
def test_damage_is_told_with_the_file(tmp_path: Path, name: str, at: int) -> None:
    directory = make(tmp_path, snapshot=4)
    path = directory / name
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(bytes(data))
    before = files(directory)
    with pytest.raises(BadPacket, match=path.name):
        read_contents(directory)
    assert files(directory) == before


@pytest.mark.parametrize("missing", ["member", "journal"])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, missing: str) -> None:
    directory = make(tmp_path)
    for path in (directory / missing).rglob("*") if missing == "journal" else ():
        path.unlink()
    if missing == "member":
        (directory / missing).unlink()
    with pytest.raises(BadPacket):
        read_contents(directory)


def test_an_order_makes_a_cluster_of_one_from_all_that_is_there(tmp_path: Path) -> None:
    directory = make(tmp_path)
    before = files(directory)
    give_order(directory, THE_ORDER, tmp_path / "copy")
    found = read_contents(directory)
    assert found.voters == (ME,)
    assert (found.lineage, found.term, found.last_term) == ("abc", TERM + 1000, TERM + 1000)
    assert found.unproved == ()
    assert not found.has_order
    assert datas(directory) == [*(b"entry %d" % i for i in range(3, 7)), b"bye 2", b"bye 3"]
    assert [entry.at_ms for entry in found.entries[-2:]] == [77, 77]
    assert files(tmp_path / "copy") == before
    again = files(directory)
    carry_out(directory, RaftSettings())  # there is none: nothing happens
    assert files(directory) == again


def test_an_order_over_a_snapshot_whose_log_is_covered(tmp_path: Path) -> None:
    directory = make(tmp_path, snapshot=6, committed=6)
    give_order(directory, THE_ORDER, tmp_path / "copy")
    found = read_contents(directory)
    assert found.voters == (ME,)
    assert [entry.index for entry in found.entries] == [7, 8, 9]
    assert found.snapshot_data == b"the state"


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    directory = make(tmp_path)
    held = lock(directory)
    before = files(directory)
    with pytest.raises(Unavailable):
        give_order(directory, THE_ORDER, tmp_path / "copy")
    assert files(directory) == before
    os.close(held)


# Kills and full disks


class Killed(BaseException):
    """The process is gone."""


class Step:
    """The step'th call that changes a file ends the process, or fails, before or after it took
    place; a process that ended does nothing more."""

    def __init__(self, step: int, *, is_kill: bool, is_after: bool) -> None:
        self.left = step
        self.is_kill = is_kill
        self.is_after = is_after
        self.is_dead = False

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.is_dead:
                raise Killed
            self.left -= 1
            if self.left != 0:
                return real(*arguments, **named)
            if self.is_after:
                real(*arguments, **named)
            if self.is_kill:
                self.is_dead = True
                raise Killed
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return call


CHANGING = ("pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir")


@pytest.mark.parametrize("is_kill", [True, False])
@pytest.mark.parametrize("is_after", [True, False])
@pytest.mark.parametrize("snapshot", [0, 4])
def test_whatever_ends_it_the_directory_is_the_old_one_or_becomes_the_new(
    tmp_path: Path, is_kill: bool, is_after: bool, snapshot: int
) -> None:
    olds = news = 0
    for step in range(1, 200):
        place = tmp_path / str(step)
        place.mkdir()
        directory = make(place, snapshot=snapshot)
        before = read_contents(directory)
        what = Step(step, is_kill=is_kill, is_after=is_after)
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, what.around(getattr(os, name)))
            try:
                give_order(directory, THE_ORDER, place / "copy")
            except (Killed, OSError):
                pass
            else:
                if what.left > 0:
                    break  # it has no more steps than this
        if not (directory / ORDER).exists() and read_contents(directory).lineage == "":
            assert read_contents(directory) == before
            olds += 1
            copy = place / "another"
            give_order(directory, THE_ORDER, copy)  # again, from the start
        else:
            carry_out(directory, RaftSettings())  # what the next start of the agent does
            copy = place / "copy"
            news += 1
        found = read_contents(directory)
        assert (found.voters, found.lineage, found.term) == ((ME,), "abc", TERM + 1000)
        assert datas(directory)[-2:] == [b"bye 2", b"bye 3"]
        assert datas(directory).count(b"bye 2") == 1
        copied = read_contents(copy)
        assert (copied.voters, copied.last_index) == (before.voters, before.last_index)
    else:
        raise AssertionError("it has no end")
    assert olds > 5 and news > 5, (olds, news)


def test_a_member_made_from_a_state_is_the_only_voter(tmp_path: Path) -> None:
    order = Order(term=TERM + 1, lineage="new", at_ms=5, commands=(b"bye",))
    offline.make_member(tmp_path / "raft", ME, 40, TERM, [b"the ", b"state"], order)
    found = read_contents(tmp_path / "raft")
    assert (found.voters, found.lineage) == ((ME,), "new")
    assert found.snapshot is not None
    assert (found.snapshot.index, found.snapshot.term) == (40, TERM)
    assert found.snapshot_data == b"the state"
    assert [(entry.index, entry.data) for entry in found.entries] == [(41, None), (42, b"bye")]
