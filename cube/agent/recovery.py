"""What an operator does to a node's data directory while no agent runs: a cluster that lost its
quorum for good goes on from one survivor, a saved state becomes a cluster again.

Everything that other members of the old cluster have is left behind: their nodes are removed in the
new log, and a new lineage makes their Raft connections strangers'.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cube.adapters import entropy
from cube.adapters.file_disk import FileDisk
from cube.adapters.raft.offline import (
    TERM_LEAP,
    Contents,
    LoggedEntry,
    Order,
    give_order,
    read_contents,
)
from cube.adapters.system_clock import SystemClock
from cube.model.cluster import ClusterState, Node
from cube.model.codec import decode_command, encode_command
from cube.model.commands import (
    Body,
    Command,
    RemoveNode,
    RemoveStored,
    SetNodeStatus,
    StoreVersion,
    SubmitJob,
)
from cube.model.errors import BadPacket
from cube.model.ids import CommandId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.services.formation import RECORD, NodeRecord
from cube.services.state_feed import StateFeed

RAFT = "raft"  # in the data directory
ACTOR = "recovery"  # in the cluster's history


class Unproved(msgspec.Struct, frozen=True):
    """An entry that nobody can say was committed."""

    index: int
    term: int
    what: str


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What a data directory would give a recovered cluster. Node and voter lists are of names.

    `commit_index` is as last noted on this disk, up to a second before the end. `is_finished`: it
    is a cluster of this one voter already. `is_begun`: an earlier recovery only has to be finished.
    """

    data_dir: str
    cluster_id: str
    cluster_name: str
    node_id: str
    node: str
    raft_address: str
    snapshot_index: int
    last_index: int
    last_term: int
    commit_index: int
    torn_bytes: int
    jobs: tuple[str, ...]
    nodes: tuple[str, ...]
    voters: tuple[str, ...]
    tasks_here: int
    tasks_elsewhere: int
    unproved: tuple[Unproved, ...]
    was_voter: bool
    is_finished: bool
    is_begun: bool


class NoDataDirectory(Exception):
    """There is nothing of an agent's."""


class Recovery:
    """A data directory, held while this is open: no agent starts in it."""

    def __init__(self, data_dir: Path) -> None:
        """Raises NoDataDirectory, Unavailable while an agent holds it, BadPacket for damage."""
        if not (data_dir / RECORD).is_file() or not (data_dir / RAFT).is_dir():
            raise NoDataDirectory(str(data_dir))
        self._data_dir = data_dir
        self._disk = FileDisk(data_dir)
        try:
            self._record = _read_record(self._disk)
            self._contents = read_contents(data_dir / RAFT)
            self._state = replayed(self._contents)
        except BaseException:
            self._disk.close()
            raise

    def close(self) -> None:
        self._disk.close()

    def findings(self) -> Findings:
        contents, state = self._contents, self._state
        here = state.nodes.get(self._record.node_id)
        by_address = {node.facts.raft_address: node.name for node in state.nodes.values()}
        tasks = [task for task in state.tasks.values() if not task.ended]
        tasks_here = sum(task.node_id == self._record.node_id for task in tasks)
        return Findings(
            data_dir=str(self._data_dir),
            cluster_id=self._record.cluster_id or "",
            cluster_name=self._record.cluster_name,
            node_id=self._record.node_id,
            node=here.name if here is not None else "",
            raft_address=contents.address,
            snapshot_index=contents.snapshot.index if contents.snapshot is not None else 0,
            last_index=contents.last_index,
            last_term=contents.last_term,
            commit_index=contents.commit_index,
            torn_bytes=contents.torn_bytes,
            jobs=tuple(sorted(state.job_names)),
            nodes=tuple(sorted(node.name for node in state.nodes.values())),
            voters=tuple(sorted(by_address.get(a, a) for a in contents.voters)),
            tasks_here=tasks_here,
            tasks_elsewhere=len(tasks) - tasks_here,
            unproved=tuple(
                Unproved(entry.index, entry.term, _what(entry)) for entry in contents.unproved
            ),
            was_voter=contents.address in contents.voters,
            is_finished=contents.voters == (contents.address,) and not contents.has_order,
            is_begun=contents.has_order,
        )

    def carry_out(self) -> Path:
        """The directory is the only voter's of a cluster that has all this log holds. Where the log
        as it was is kept. Raises OSError, Unavailable."""
        term = self._contents.term + TERM_LEAP
        copy = free_path(self._data_dir / f"{RAFT}.before-recover-{now_text()}")
        order = make_order(self._state, self._record.node_id, term)
        give_order(self._data_dir / RAFT, order, copy)
        return copy


def make_order(
    state: ClusterState, keep: NodeId | None, term: int, more: Sequence[Body] = ()
) -> Order:
    """In `term` every node but `keep` is removed: what runs on them is placed anew, and their
    certificates are refused. Then comes `more`."""
    lineage = entropy.short_id()
    bodies: list[Body] = []
    for node in sorted(state.nodes.values(), key=lambda node: node.id):
        if node.id != keep:
            bodies += _farewell(node, term)
    bodies += more
    return Order(
        term=term,
        lineage=lineage,
        at_ms=max(state.now_ms, SystemClock().now_ms()),
        commands=tuple(
            encode_command(Command(CommandId(f"{ACTOR}-{lineage}-{number}"), body, ACTOR))
            for number, body in enumerate(bodies)
        ),
    )


def _farewell(node: Node, term: int) -> Sequence[Body]:
    reason = "left behind when the cluster was recovered"
    return (
        SetNodeStatus(term, node.id, NodeStatus.DOWN, reason),  # only who is down can be removed
        RemoveNode(node.id),
    )


def replayed(contents: Contents) -> ClusterState:
    """The state once all that the directory holds is applied. Raises BadPacket."""
    feed = StateFeed()
    if contents.snapshot is not None and contents.snapshot_data is not None:
        feed.load(contents.snapshot_data, contents.snapshot.index)
    for entry in contents.entries:
        if entry.data is not None:
            feed.apply(entry.index, entry.term, entry.at_ms, entry.data)
    return feed.state


def _read_record(disk: FileDisk) -> NodeRecord:
    data = disk.read(RECORD)
    assert data is not None
    try:
        record = msgspec.json.decode(data, type=NodeRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadPacket(f"{RECORD} in the data directory is damaged: {error}") from error
    return record


def _what(entry: LoggedEntry) -> str:
    """In a few words."""
    if entry.voters is not None:
        return f"voters {', '.join(entry.voters)}"
    if entry.data is None:
        return "a leader's first entry, or a barrier"
    body = decode_command(entry.data).body
    name = type(body).__name__
    if isinstance(body, SubmitJob):
        return f"{name} {body.spec.name}"
    if isinstance(body, StoreVersion | RemoveStored):
        return f"{name} {body.kind.value} {body.name}"
    return f"{name} {getattr(body, 'job', '')}".rstrip()


def free_path(path: Path) -> Path:
    """`path`, or with the first number behind it that makes it a name of nothing."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def now_text() -> str:
    now_ms = SystemClock().now_ms()
    return datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
