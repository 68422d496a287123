"""Who has a right to the data of a volume. What nobody has may be removed, when somebody asks for it."""

from __future__ import annotations

from cube.model.cluster import ClusterState
from cube.model.ids import NodeId
from cube.model.spec import JobType
from cube.model.volumes import Volume, volumes_of


def claims_of(state: ClusterState, node_id: NodeId, name: str) -> tuple[str, ...]:
    """`job.group.slot` of each slot whose volume `name` is on this node's host, stopped jobs and slots
    that are not wanted now included; `job.group` of jobs that have a task on every node. Sorted.

    Nodes of one host may share an engine, and with it the data: what one claims, all do.
    """
    here = _on_same_host(state, node_id)
    found = {
        f"{volume.job}.{volume.group}.{volume.slot}"
        for volume in all_volumes(state)
        if volume.name == name and volume.node_id in here
    }
    for job in state.jobs.values():
        if job.spec.type is JobType.SYSTEM and not job.deleted:
            found |= {
                f"{job.name}.{group_name}"
                for version in job.versions
                for group_name, group in version.spec.groups.items()
                if name in volumes_of(group)
            }
    return tuple(sorted(found))


def all_volumes(state: ClusterState) -> list[Volume]:
    """Of every slot of every job, in the order of their names, jobs, groups and slots."""
    found = [volume for of_job in state.volumes.values() for volume in of_job.values()]
    return sorted(found, key=lambda one: (one.name, one.job, one.group, one.slot, one.job_id))


def _on_same_host(state: ClusterState, node_id: NodeId) -> set[NodeId]:
    """Nodes with one advertise address are on one host (as for ports)."""
    node = state.nodes.get(node_id)
    if node is None:
        return {node_id}
    return {one.id for one in state.nodes.values() if one.facts.advertise == node.facts.advertise}
