"""Where the named volumes of slots are. A volume's data is on one node; the same name on two nodes is
two volumes. The state remembers which node each slot's volumes are on, never what is in them.
"""

from __future__ import annotations

import msgspec

from cube.model.ids import JobId, NodeId
from cube.model.spec import GroupSpec, MountType


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """The volume `name` of a slot is on this node. Writer: apply, when the slot's first task that
    mounts it is placed. It outlives its tasks and ends with the job or the node."""

    name: str  # a mount's source
    node_id: NodeId
    job_id: JobId
    job: str
    group: str
    slot: int
    created_at_ms: int = 0

    @property
    def key(self) -> str:
        return volume_key(self.group, self.slot, self.name)


def volume_key(group: str, slot: int, name: str) -> str:
    """The key of ClusterState.volumes[job_id]."""
    return f"{group}/{slot}/{name}"


def volumes_of(group: GroupSpec) -> tuple[str, ...]:
    """The names of the volumes that tasks of the group mount, each once."""
    if not group.mounts:
        return ()
    found = [mount.source for mount in group.mounts if mount.type is MountType.VOLUME]
    return tuple(dict.fromkeys(found))
