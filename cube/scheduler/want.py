"""What reconcile asks of place: slots of one group that want a node."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cube.model.cluster import Job
from cube.model.ids import NodeId, TaskId
from cube.model.spec import GroupSpec


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """Slots that are alike: the same nodes are closed to them. `slots` ascend.

    `avoid`: nodes that rejected these tasks lately, and until when. `failed_on`: nodes these tasks
    failed on last; taken only when there is no other. `troubled`: nodes the group keeps failing on;
    taken only for what fits nowhere else. `on_node`: unended tasks of the group by
    node. `only_on`: of system jobs, and of slots with volumes: slots[i] goes to node only_on[i] or
    nowhere. `version`: what they are placed as, 0: the job's newest. `replaces`: the live task that
    slots[i] takes over from.
    """

    job: Job
    group: str
    spec: GroupSpec
    slots: tuple[int, ...]
    avoid: Mapping[NodeId, int] = {}
    failed_on: tuple[NodeId, ...] = ()
    troubled: tuple[NodeId, ...] = ()
    on_node: Mapping[NodeId, int] = {}
    only_on: tuple[NodeId, ...] = ()
    version: int = 0
    replaces: tuple[TaskId, ...] = ()
    reason: str = ""
