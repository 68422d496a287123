"""The JSON shapes of volumes: what cube.api.volumes renders and cube.client reads. See cube.model.views."""

from __future__ import annotations

import msgspec


class VolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """The volume of one slot, and where it is. `tasks`: those of the slot that have not ended."""

    name: str
    node_id: str
    node_name: str
    node_status: str
    job: str
    group: str
    slot: int
    tasks: tuple[str, ...]
    created_at: str | None


class NodeVolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of this cluster that is on a node's disk. `claims`: who has a right to it."""

    name: str
    claims: tuple[str, ...]


class NodeVolumes(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    items: tuple[NodeVolumeView, ...]


class VolumeRemoved(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    name: str
