"""Accept or refuse one placement against the state as it is now: plans may be stale, this never is.

The refusals' codes are those of cube.model.explain.Reason. Model: nomad/plan_apply.go evaluateNodePlan.
"""

from __future__ import annotations

from cube.model.cluster import Node, TaskPort, port_key
from cube.model.resources import Resources
from cube.model.spec import GroupSpec
from cube.statemachine.draft import Draft


def node_refusal(node: Node, used: Resources, need: Resources) -> str | None:
    """Why nothing that needs this may be placed on the node, of which so much is used, or None."""
    if not node.accepts_tasks:
        return "not_ready"
    # Resources.fits_in of what is left, without making that: this is asked once for each task.
    capacity = node.facts.capacity
    if (
        (need.cpu_milli and used.cpu_milli + need.cpu_milli > capacity.cpu_milli)
        or (need.memory_bytes and used.memory_bytes + need.memory_bytes > capacity.memory_bytes)
        or (need.disk_bytes and used.disk_bytes + need.disk_bytes > capacity.disk_bytes)
    ):
        return "capacity"
    return None


def ports_for(
    draft: Draft, node: Node, group: GroupSpec, hosts: tuple[int, ...]
) -> tuple[TaskPort, ...] | None:
    """The task's ports with these host ports (in order of port name), or None when one is taken,
    not the static one that was asked for, or outside the node's range."""
    if len(hosts) != len(group.ports):
        return None
    if not hosts:
        return ()
    made: list[TaskPort] = []
    used: set[int] = set()
    for name, host in zip(sorted(group.ports), hosts, strict=True):
        asked = group.ports[name]
        if asked.host != 0 and host != asked.host:
            return None
        if asked.host == 0 and not node.facts.port_first <= host <= node.facts.port_last:
            return None
        key = port_key(host, asked.protocol)
        if key in used or draft.port_holder(node.facts.advertise, key) is not None:
            return None
        used.add(key)
        made.append(TaskPort(name, host, asked.target or host, asked.protocol))
    return tuple(made)
