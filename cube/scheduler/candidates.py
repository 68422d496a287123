"""What each node costs for one want: the scan's costs, with the want's own wishes and obstacles."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from cube.model.ids import NodeId
from cube.model.spec import PlacementPolicy
from cube.scheduler import score
from cube.scheduler.mirror import NO_PLACE, Mirror, Scan
from cube.scheduler.vector import Ask, Bools, Ints
from cube.scheduler.want import Want


class Candidates(msgspec.Struct, frozen=True):
    """What one want has before it: the node's points ‖ cost (NO_PLACE: it does not fit), ranks, and
    how many tasks of the group each node still takes by max_per_node (None: no limit)."""

    want: Want
    ask: Ask
    scan: Scan
    on_node: Mapping[NodeId, int]
    combined: Ints
    step: int  # points that each task adds for the next on the same node
    limit: Ints | None
    one_each: bool  # static host ports: one task per domain


def candidates_for(
    mirror: Mirror, want: Want, ask: Ask, on_node: Mapping[NodeId, int]
) -> Candidates:
    """`on_node`: unended tasks of the group by node, those placed in this plan included."""
    group, scan = want.spec, mirror.scan(ask, want.spec)
    step = 0
    if score.counts_same_group(ask.policy, want.job.spec.type):
        step = score.SAME_GROUP_POINTS
    points = mirror.affinity_points(group)
    if (step and on_node) or want.failed_on:
        points = np.zeros(len(mirror), dtype=np.int64) if points is None else points
        for node_id, count in on_node.items() if step else ():
            row = mirror.row(node_id)
            if row is not None:
                points[row] += step * min(count, score.SAME_GROUP_MAX)
        for node_id in want.failed_on:
            row = mirror.row(node_id)
            if row is not None:
                points[row] += score.FAILED_HERE_POINTS
    blocked = mirror.blocked_by_static_ports(group)
    one_each = blocked is not None
    limit, blocked = _limits(mirror, want, on_node, blocked)
    combined = scan.cost
    if points is not None:
        np.clip(points, -score.POINTS_MAX, score.POINTS_MAX, out=points)
        combined = np.where(combined == NO_PLACE, NO_PLACE, combined + (points << score.COST_BITS))
    if blocked is not None:
        combined = np.where(blocked, NO_PLACE, combined)
    return Candidates(want, ask, scan, on_node, combined, step, limit, one_each)


def _limits(
    mirror: Mirror, want: Want, on_node: Mapping[NodeId, int], blocked: Bools | None
) -> tuple[Ints | None, Bools | None]:
    most = want.spec.placement.max_per_node
    limit: Ints | None = None
    if want.avoid:
        blocked = np.zeros(len(mirror), dtype=np.bool_) if blocked is None else blocked
        for node_id in want.avoid:
            row = mirror.row(node_id)
            if row is not None:
                blocked[row] = True
    if most:
        limit = np.full(len(mirror), most, dtype=np.int64)
        for node_id, count in on_node.items():
            row = mirror.row(node_id)
            if row is not None:
                limit[row] -= count
        full = limit <= 0
        blocked = full if blocked is None else blocked | full
    return limit, blocked


def ranks_of(mirror: Mirror, candidates: Candidates, rows: Ints) -> Ints:
    if candidates.ask.policy is PlacementPolicy.ROUNDROBIN:
        return mirror.name_rank[rows]
    offset, factor = score.permutation(candidates.want.job.name, candidates.want.group)
    ranks: Ints = (rows + offset) * factor & (score.NODES_MAX - 1)
    return ranks


def room_for(mirror: Mirror, candidates: Candidates, rows: Ints, most: int) -> Ints:
    """How many of the tasks each row takes, `most` at most; at least 1, as each fits one."""
    if candidates.one_each:
        return np.ones(len(rows), dtype=np.int64)
    room = np.full(len(rows), most, dtype=np.int64)
    free = mirror.capacity[:, rows] - mirror.used[:, rows]
    need = candidates.ask.need
    for kind, amount in enumerate((need.cpu_milli, need.memory_bytes, need.disk_bytes)):
        if amount:
            np.minimum(room, free[kind] // amount, out=room)
    if candidates.limit is not None:
        np.minimum(room, candidates.limit[rows], out=room)
    return room


def zone_loads(
    mirror: Mirror, names: tuple[str, ...], on_node: Mapping[NodeId, int]
) -> dict[tuple[str, ...], int]:
    """Tasks of the group by zone, and by each outer zone of it."""
    loads: dict[tuple[str, ...], int] = {}
    for node_id, count in on_node.items():
        row = mirror.row(node_id)
        if row is not None:
            zone = mirror.zone_of(names, row)
            for depth in range(1, len(zone) + 1):
                loads[zone[:depth]] = loads.get(zone[:depth], 0) + count
    return loads
