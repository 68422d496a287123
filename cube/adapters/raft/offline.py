"""A member's files without its member: what can be done with them while no agent runs.

read_contents() changes no byte. What changes them is an Order: one small file, `order`, that says
what is to become of this member. It is there whole or not at all, and whoever opens the directory
next carries it out: each step may be repeated, so a kill between any two of them only means that
the next start goes on. Before the file is there nothing has changed; afterwards there is no way back
but the copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from cube.adapters.raft.applying import open_configuration
from cube.adapters.raft.commands import (
    KIND_DATA,
    KIND_MEMBERS,
    decode_members,
    encode_members,
    kind_of,
    split,
    stamped,
    unstamped,
)
from cube.adapters.raft.directory import (
    JOURNAL,
    MEMBER,
    SNAPSHOT,
    MemberFile,
    continue_snapshot,
    lock,
    open_journal,
    read_member,
    write_member,
)
from cube.adapters.raft.files import sync_directory, write_atomically
from cube.adapters.raft.journal import FileJournal, find_segments
from cube.adapters.raft.records import SegmentHead, Tail
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.raft.snapshots import SnapshotHeader, read_snapshot, write_snapshot
from cube.model.errors import BadPacket

ORDER = "order"
# How far the term of a recovered cluster is above all that was: further than the members that were
# left behind get by holding elections, at one in 0.6 s for a week.
TERM_LEAP = 1 << 20


class LoggedEntry(msgspec.Struct, frozen=True):
    """`data` None: it carries no command; `voters` None: it changes none."""

    index: int
    term: int
    at_ms: int = 0
    data: bytes | None = None
    voters: tuple[str, ...] | None = None


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a member's directory holds. `entries` follow the snapshot, in order. `commit_index` is
    what was noted: once a second, so at least that much is committed. `term`: the newest one that
    this member has heard of. `torn_bytes`: of a batch that was being written and told to nobody."""

    address: str
    lineage: str
    is_joining: bool
    snapshot: SnapshotHeader | None
    snapshot_data: bytes | None
    entries: tuple[LoggedEntry, ...]
    last_index: int
    last_term: int
    term: int
    commit_index: int
    voters: tuple[str, ...]
    torn_bytes: int
    has_order: bool

    @property
    def unproved(self) -> tuple[LoggedEntry, ...]:
        """Entries that may or may not have been committed."""
        return tuple(entry for entry in self.entries if entry.index > self.commit_index)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """This member is the only voter, in `term`, and speaks to nobody of another `lineage`.
    `commands` are in its log then, at `at_ms`."""

    term: int
    lineage: str
    at_ms: int
    commands: tuple[bytes, ...]
    version: int = 1


class _ReadJournal(FileJournal):
    """A journal that is only read."""

    def __init__(self, directory: Path) -> None:
        if not find_segments(directory):
            raise BadPacket(f"{directory} holds no log")
        super().__init__(directory, fsync=False)

    def _find_segments(self) -> list[tuple[int, Path]]:
        return find_segments(self._directory)

    def _reopen(self, data: bytes, head: SegmentHead, tail: Tail) -> None:
        self.torn_bytes = tail.torn_bytes

    def sync(self) -> None:
        self._buffer.clear()


def read_contents(directory: Path) -> Contents:
    """Nothing is changed. Raises BadPacket for a directory that is damaged or none of a member's,
    OSError."""
    if not (directory / MEMBER).exists():
        raise BadPacket(f"{directory} holds no member of a cluster")
    member = read_member(directory / MEMBER)
    header: SnapshotHeader | None = None
    data: bytes | None = None
    if (directory / SNAPSHOT).exists():
        header, data = read_snapshot(directory / SNAPSHOT)
    journal = _ReadJournal(directory / JOURNAL)
    continue_snapshot(journal, header, directory / JOURNAL)
    configuration = open_configuration(journal, header, frozenset(member.founders))
    covered = header.index if header is not None else 0
    return Contents(
        address=member.address,
        lineage=member.lineage,
        is_joining=member.joining,
        snapshot=header,
        snapshot_data=data,
        entries=tuple(
            _logged(command, index, term)
            for command, index, term in journal.entries()
            if index > covered
        ),
        last_index=journal.last_index,
        last_term=journal.term_at(journal.last_index),
        term=max(journal.getCurrentTerm(), journal.term_at(journal.last_index)),
        commit_index=journal.getRaftCommitIndex(),
        voters=tuple(sorted(configuration.current)),
        torn_bytes=journal.torn_bytes,
        has_order=(directory / ORDER).exists(),
    )


def _logged(command: bytes, index: int, term: int) -> LoggedEntry:
    kind = kind_of(command)
    if kind == KIND_DATA:
        at_ms, data = split(command)
        return LoggedEntry(index, term, at_ms, data)
    if kind == KIND_MEMBERS:
        return LoggedEntry(index, term, voters=tuple(sorted(decode_members(command))))
    return LoggedEntry(index, term)


def give_order(directory: Path, order: Order, copy: Path) -> None:
    """The order is carried out, and `copy` holds the directory as it was. When it raises (Unavailable,
    OSError, BadPacket) before `order` is there, nothing has changed but that a copy may be there."""
    held = lock(directory)
    try:
        if not (directory / ORDER).exists():
            _copy(directory, copy)
            write_atomically(directory / ORDER, msgspec.msgpack.encode(order))
        carry_out(directory, RaftSettings())
    finally:
        os.close(held)


def carry_out(directory: Path, settings: RaftSettings) -> None:
    """What `order` says is so, and the file is gone. The caller holds the lock. Raises BadPacket,
    OSError."""
    path = directory / ORDER
    if not path.exists():
        return
    try:
        order = msgspec.msgpack.decode(path.read_bytes(), type=Order)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPacket(f"{path} cannot be read: {error}") from None
    member = read_member(directory / MEMBER)
    header: SnapshotHeader | None = None
    if (directory / SNAPSHOT).exists():
        header, _ = read_snapshot(directory / SNAPSHOT)
    journal = open_journal(directory / JOURNAL, header, settings)
    try:
        if journal.getCurrentTerm() < order.term:
            _append(journal, order, member.address)
        if journal.fault:
            raise OSError(journal.fault)
    finally:
        journal._destroy()
    write_member(
        directory / MEMBER,
        MemberFile(member.address, (member.address,), joining=False, lineage=order.lineage),
    )
    path.unlink()
    sync_directory(directory)


def _append(journal: FileJournal, order: Order, address: str) -> None:
    """One batch, so all of it or none. All is committed then: there is nobody else to ask."""
    commands = [encode_members(frozenset({address}))]
    commands += [stamped(unstamped(data), order.at_ms) for data in order.commands]
    for command in commands:
        journal.add(command, journal.last_index + 1, order.term)
    journal.setRaftCommitIndex(journal.last_index)
    journal.setCurrentTerm(order.term, address)


def make_member(
    directory: Path, address: str, index: int, term: int, state: Sequence[bytes], order: Order
) -> None:
    """The directory, which must not be there yet, is the only voter's of a cluster whose state at
    (index, term) is `state`, in slices; and the order is carried out. Raises OSError."""
    directory.mkdir(mode=0o700)
    write_snapshot(directory / SNAPSHOT, SnapshotHeader(index, term, (address,)), iter(state))
    write_member(
        directory / MEMBER, MemberFile(address, (address,), joining=False, lineage=order.lineage)
    )
    write_atomically(directory / ORDER, msgspec.msgpack.encode(order))
    carry_out(directory, RaftSettings())


def _copy(directory: Path, copy: Path) -> None:
    """`copy` holds the same files, durably, and is there only once it is whole."""
    fresh = copy.with_name(copy.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        shutil.copytree(directory, fresh, ignore=shutil.ignore_patterns("lock"))
        for path in _files_under(fresh):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        os.rename(fresh, copy)
        sync_directory(copy.parent)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _files_under(directory: Path) -> Iterator[Path]:
    """Every file and directory, those inside first."""
    for root, _, names in os.walk(directory, topdown=False):
        yield from (Path(root) / name for name in names)
        yield Path(root)
