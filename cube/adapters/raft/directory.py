"""What a member's directory holds beside its journal and snapshot, and how they are opened as one."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from cube.adapters.raft.applying import align_journal
from cube.adapters.raft.files import write_atomically
from cube.adapters.raft.journal import FileJournal
from cube.adapters.raft.settings import RaftSettings
from cube.adapters.raft.snapshots import SnapshotHeader
from cube.model.errors import BadConfig, BadPacket, ConfigError, Unavailable

MEMBER = "member"
JOURNAL = "journal"
SNAPSHOT = "snapshot"


class MemberFile(msgspec.Struct, frozen=True):
    """`member`: what this member was made with. JSON, one object.

    `founders` counts only until the log says who votes. `lineage` is new whenever the cluster is
    recovered or restored: members of another one are strangers.
    """

    address: str
    founders: tuple[str, ...]
    joining: bool
    lineage: str = ""
    version: int = 1


def lock(directory: Path) -> int:
    """A descriptor that holds the directory until it is closed. Raises Unavailable when another
    process does, OSError."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Unavailable(f"{directory} is in use by another process") from None
    return fd


def open_journal(path: Path, header: SnapshotHeader | None, settings: RaftSettings) -> FileJournal:
    """The journal, continuing the snapshot. Raises BadPacket when the two do not meet."""
    journal = FileJournal(path, fsync=settings.fsync, segment_bytes=settings.segment_bytes)
    continue_snapshot(journal, header, path)
    return journal


def continue_snapshot(journal: FileJournal, header: SnapshotHeader | None, path: Path) -> None:
    """Raises BadPacket when they do not meet."""
    if header is not None:
        align_journal(journal, header)
        journal.setRaftCommitIndex(max(journal.getRaftCommitIndex(), header.index))
    elif journal.first_index != 1:
        raise BadPacket(f"{path} continues a snapshot that is not there")


def read_member(path: Path) -> MemberFile:
    """Raises BadPacket, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MemberFile)
    except msgspec.MsgspecError as error:
        raise BadPacket(f"{path} cannot be read: {error}") from None


def write_member(path: Path, member: MemberFile) -> None:
    """Durable when it returns. Raises OSError."""
    write_atomically(path, msgspec.json.encode(member))


def open_member(
    path: Path, address: str, members: tuple[str, ...], *, joining: bool, lineage: str
) -> MemberFile:
    """What the directory says; what the caller says counts the first time only."""
    if not path.exists():
        founders = set(members) - {address} if joining else {*members, address}
        member = MemberFile(address, tuple(sorted(founders)), joining, lineage)
        write_member(path, member)
        return member
    member = read_member(path)
    if member.address != address:
        problem = f"this data directory belongs to the Raft address {member.address}"
        raise BadConfig([ConfigError("bind.raft", problem, f"start it with {member.address}")])
    return member
