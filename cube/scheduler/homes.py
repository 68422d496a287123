"""Slots whose volumes are on a node already: their next task goes there or waits. Data does not move.

The state says where they are (ClusterState.volumes); apply refuses any other place.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Node
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.spec import GroupSpec, JobType
from cube.model.volumes import Volume, volumes_of
from cube.scheduler.slots import Waiting, WorkDraft
from cube.scheduler.want import Want


def homes_of(
    state: ClusterState, job: Job, name: str, group: GroupSpec, slot: int
) -> tuple[Volume, ...]:
    """The volumes that the slot's next task mounts, where they have a place, in the order of the
    mounts."""
    if job.volumes_id not in state.volumes or job.spec.type is JobType.SYSTEM:
        return ()
    found = [state.volume(job.volumes_id, name, slot, source) for source in volumes_of(group)]
    return tuple(volume for volume in found if volume is not None)


def pin(draft: WorkDraft) -> None:
    """Wants of slots that have a home are for that node only. Slots that can go nowhere wait."""
    if draft.job.volumes_id in draft.state.volumes and draft.job.spec.type is not JobType.SYSTEM:
        draft.wants = [part for want in draft.wants for part in _pinned(draft, want)]


def _pinned(draft: WorkDraft, want: Want) -> list[Want]:
    free: list[int] = []
    pinned: list[tuple[int, NodeId]] = []
    for slot in want.slots:
        homes = homes_of(draft.state, draft.job, want.group, want.spec, slot)
        nodes = dict.fromkeys(volume.node_id for volume in homes)
        if not nodes:
            free.append(slot)
            continue
        node_id = next(iter(nodes))
        until_ms = want.avoid.get(node_id, 0)
        if len(nodes) > 1:
            detail = "its volumes are on different nodes: " + places(draft.state, homes)
            draft.waiting.append(Waiting(want.group, (slot,), "volume", 0, detail))
        elif until_ms > draft.now_ms:  # there is no other node for it
            draft.waiting.append(Waiting(want.group, (slot,), "backoff", until_ms))
            draft.wake(until_ms)
        else:
            pinned.append((slot, node_id))
    found = []
    if pinned:
        found.append(
            msgspec.structs.replace(
                want,
                slots=tuple(slot for slot, _ in pinned),
                only_on=tuple(node_id for _, node_id in pinned),
                avoid={},
                failed_on=(),
                troubled=(),
            )
        )
    if free:
        found.append(msgspec.structs.replace(want, slots=tuple(free)))
    return found


def places(state: ClusterState, volumes: Sequence[Volume]) -> str:
    """`shop-data on n2, shop-logs on n3`"""
    return ", ".join(f"{one.name} on {_name(state.nodes.get(one.node_id), one)}" for one in volumes)


def sentence(state: ClusterState, volumes: Sequence[Volume]) -> str:
    """`its volume shop-data is on n2, which is down`. `volumes`: on one node, at least one."""
    node = state.nodes.get(volumes[0].node_id)
    names = ", ".join(volume.name for volume in volumes)
    subject = f"its volume {names} is" if len(volumes) == 1 else f"its volumes {names} are"
    trouble = "" if node is None else _trouble(node)
    return f"{subject} on {_name(node, volumes[0])}" + (f", which {trouble}" if trouble else "")


def _name(node: Node | None, volume: Volume) -> str:
    return volume.node_id if node is None else node.name


def _trouble(node: Node) -> str:
    """What keeps the node from taking anything; empty when it does."""
    if node.status is NodeStatus.LEFT:
        return "has left"
    if node.status is not NodeStatus.READY:
        return f"is {node.status.value}"
    if node.drain_deadline_ms is not None:
        return "is being drained"
    return "" if node.eligible else "is cordoned"
