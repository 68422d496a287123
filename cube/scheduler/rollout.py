"""Which running tasks may be stopped now so that they are replaced: the next safe step only.

Stop-first: a task is stopped, its slot is empty once it has ended, and reconcile places the new one.
A slot is in transit while nothing of the newest version serves in it. No step begins while as many
slots are in transit as the policy allows, so a version that does not come up stops the rollout.
Tasks that do not serve anyway go first: they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cube.model.cluster import Node, Task
from cube.model.ids import NodeId
from cube.model.spec import GroupSpec

DRAIN_PARALLELISM = 1  # per group


def drain_due(node: Node | None, now_ms: int) -> bool:
    """The drain's deadline has passed: whatever is left on the node stops."""
    return (
        node is not None
        and node.drain_deadline_ms is not None
        and (node.drain_deadline_ms <= now_ms)
    )


def is_draining(node: Node | None) -> bool:
    return node is not None and node.drain_deadline_ms is not None


def next_stops(
    group: GroupSpec,
    outdated: Sequence[Task],
    drained: Sequence[Task],
    in_transit: int,
    nodes: Mapping[NodeId, Node],
    now_ms: int,
) -> list[tuple[Task, str]]:
    """(task, reason). `outdated` and `drained` are live and share no task; `in_transit` counts the
    other slots where nothing serves."""
    chosen: list[tuple[Task, str]] = []
    left: list[tuple[Task, str]] = []
    for task, reason in [(task, "update") for task in outdated] + [
        (task, "drain") for task in drained
    ]:
        if drain_due(nodes.get(task.node_id), now_ms):
            chosen.append((task, "drain_deadline"))
        else:
            left.append((task, reason))
    left.sort(key=lambda item: (item[0].serving, item[1] == "drain", item[0].slot, item[0].id))
    busy = in_transit + len(chosen)
    for task, reason in left:
        allowed = group.update.parallelism if reason == "update" else DRAIN_PARALLELISM
        if busy < max(1, allowed):
            chosen.append((task, reason))
            busy += 1
    return chosen
