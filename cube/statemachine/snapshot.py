"""A state as bytes and back. Equal states give equal bytes on every replica."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

import immutables
import msgspec

from cube.model import codec
from cube.model.cluster import (
    ClusterSettings,
    ClusterState,
    Job,
    Node,
    RememberedOutcome,
    Task,
    port_key,
)
from cube.model.ids import ClusterId, CommandId, JobId, NodeId, TaskId
from cube.model.lifecycle import UNINDEXED, TaskState
from cube.model.resources import NOTHING, Resources
from cube.model.stored import Stored
from cube.model.taskids import JobTaskIds, TaskIdSet
from cube.model.trust import NO_TRUST, TrustState
from cube.model.volumes import Volume


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is not derived of a ClusterState. Lists are sorted by id; outcomes by sequence.

    Tasks are decoded one by one: a call that decoded all of them would hold up every other thread.
    """

    cluster_id: ClusterId
    cluster_name: str
    settings: ClusterSettings
    rebalance_since_ms: int = 0
    trust: TrustState = NO_TRUST
    index: int
    term: int
    now_ms: int
    nodes: list[Node]
    jobs: list[Job]
    tasks: list[msgspec.Raw]
    volumes: list[Volume] = []
    stored: list[Stored] = []
    outcomes: list[tuple[CommandId, RememberedOutcome]]


_DECODER = msgspec.msgpack.Decoder(Snapshot)
_TASK_DECODER = msgspec.msgpack.Decoder(Task)


# Values encoded in one go: about a millisecond of work, after which others may run.
SLICE_VALUES = 250


def dump(state: ClusterState) -> bytes:
    """All of the state; load() of it is equal to the state."""
    return b"".join(dump_slices(state))


def dump_slices(state: ClusterState) -> Iterator[bytes]:
    """What dump() returns, in pieces of a millisecond's work or so; some are empty."""
    heads: dict[str, object] = {
        "cluster_id": state.cluster_id,
        "cluster_name": state.cluster_name,
        "settings": state.settings,
        "rebalance_since_ms": state.rebalance_since_ms,
        "trust": state.trust,
        "index": state.index,
        "term": state.term,
        "now_ms": state.now_ms,
    }
    lists: dict[str, tuple[Iterable[object], Callable[[Any], Any]]] = {
        "nodes": (state.nodes.values(), lambda node: node.id),
        "jobs": (state.jobs.values(), lambda job: job.id),
        "tasks": (state.tasks.values(), lambda task: task.id),
        "volumes": (
            chain.from_iterable(of_job.values() for of_job in state.volumes.values()),
            lambda volume: (volume.job_id, volume.key),
        ),
        "stored": (state.stored.values(), lambda stored: stored.ref.key),
        "outcomes": (state.outcomes.items(), lambda item: item[1].sequence),
    }
    assert {*heads, *lists} == set(Snapshot.__struct_fields__)
    yield codec.encode_map_head(len(heads) + len(lists))
    for name, value in heads.items():
        yield codec.encode_part(name) + codec.encode_part(value)
    for name, (values, key) in lists.items():
        in_order: list[object] = []
        yield from _sort_in_slices(values, key, in_order)
        yield codec.encode_part(name) + codec.encode_list_head(len(in_order))
        for start in range(0, len(in_order), SLICE_VALUES):
            slice_ = in_order[start : start + SLICE_VALUES]
            yield b"".join(map(codec.encode_part, slice_))


def _sort_in_slices(
    values: Iterable[object], key: Callable[[Any], Any], in_order: list[object]
) -> Iterator[bytes]:
    """`in_order` holds the sorted values afterwards. Yields nothing, often: sorting all of them in
    one go would keep every other thread waiting."""
    runs: list[list[object]] = []
    left = iter(values)
    while run := sorted(islice(left, SLICE_VALUES), key=key):
        runs.append(run)
        yield b""
    for count, value in enumerate(heapq.merge(*runs, key=key)):
        in_order.append(value)
        if count % SLICE_VALUES == 0:
            yield b""


def load(data: bytes) -> ClusterState:
    """The state that was dumped. Raises BadPacket for other bytes."""
    snapshot = codec.decode(data, _DECODER)
    tasks = [codec.decode_part(raw, _TASK_DECODER) for raw in snapshot.tasks]
    first = snapshot.outcomes[0][1].sequence if snapshot.outcomes else 0
    state = ClusterState(
        cluster_id=snapshot.cluster_id,
        cluster_name=snapshot.cluster_name,
        settings=snapshot.settings,
        rebalance_since_ms=snapshot.rebalance_since_ms,
        trust=snapshot.trust,
        index=snapshot.index,
        term=snapshot.term,
        now_ms=snapshot.now_ms,
        nodes=immutables.Map((node.id, node) for node in snapshot.nodes),
        jobs=immutables.Map((job.id, job) for job in snapshot.jobs),
        tasks=immutables.Map((task.id, task) for task in tasks),
        node_names=immutables.Map((node.name, node.id) for node in snapshot.nodes),
        job_names=immutables.Map((job.name, job.id) for job in snapshot.jobs if job.listed),
        volumes=_volumes(snapshot.volumes),
        stored=immutables.Map((stored.ref.key, stored) for stored in snapshot.stored),
        outcomes=immutables.Map(snapshot.outcomes),
        outcome_order=immutables.Map((kept.sequence, id_) for id_, kept in snapshot.outcomes),
        outcome_first=first,
        outcome_next=first + len(snapshot.outcomes),
    )
    return _with_indexes(state, tasks)


def _volumes(volumes: list[Volume]) -> immutables.Map[JobId, immutables.Map[str, Volume]]:
    of_job: dict[JobId, dict[str, Volume]] = {}
    for volume in volumes:
        of_job.setdefault(volume.job_id, {})[volume.key] = volume
    return immutables.Map((job_id, immutables.Map(found)) for job_id, found in of_job.items())


def _with_indexes(state: ClusterState, tasks: list[Task]) -> ClusterState:
    by_job: dict[JobId, list[TaskId]] = {}
    by_node: dict[NodeId, list[TaskId]] = {}
    by_state: dict[TaskState, dict[TaskId, None]] = {}
    reserved: dict[NodeId, Resources] = {}
    ports: dict[str, dict[int, TaskId]] = {}
    for task in tasks:
        by_job.setdefault(task.job_id, []).append(task.id)
        by_node.setdefault(task.node_id, []).append(task.id)
        if task.state not in UNINDEXED:
            by_state.setdefault(task.state, {})[task.id] = None
        if not task.released:
            reserved[task.node_id] = reserved.get(task.node_id, NOTHING) + task.resources
            for port in task.ports:
                ports.setdefault(task.address, {})[port_key(port.host, port.protocol)] = task.id
    return msgspec.structs.replace(
        state,
        tasks_by_job=immutables.Map(
            (key, JobTaskIds(tuple(sorted(ids)))) for key, ids in by_job.items()
        ),
        tasks_by_node=immutables.Map((key, TaskIdSet(ids)) for key, ids in by_node.items()),
        tasks_by_state=_map_of_sets(by_state),
        preempted=immutables.Map(
            (task.id, None) for task in tasks if task.preempted_by and not task.released
        ),
        reserved=immutables.Map((key, sum_) for key, sum_ in reserved.items() if sum_ != NOTHING),
        ports=immutables.Map((key, immutables.Map(inner)) for key, inner in ports.items()),
    )


_Key = TypeVar("_Key")


def _map_of_sets(
    sets: dict[_Key, dict[TaskId, None]],
) -> immutables.Map[_Key, immutables.Map[TaskId, None]]:
    """From iterators, not from the dicts themselves: that would be one call for 100,000 ids, in which
    no other thread runs."""
    return immutables.Map(
        (key, immutables.Map((id_, None) for id_ in ids)) for key, ids in sets.items()
    )


def digest(state: ClusterState) -> str:
    """Equal for equal states, in every process. 32 hex digits."""
    return hashlib.blake2b(dump(state), digest_size=16).hexdigest()
