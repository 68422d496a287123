"""The choice task by task: a heap of touched nodes beside the sorted fresh ones, by zone.

For what columns cannot say: many zones, ports that nodes share or run out of, binpack in zones.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec
import numpy as np

from cube.model.spec import PlacementPolicy
from cube.scheduler import score
from cube.scheduler.candidates import Candidates, ranks_of, room_for, zone_loads
from cube.scheduler.mirror import NO_PLACE, Mirror

_UNBOUNDED = 1 << 60


def by_heap(
    mirror: Mirror, candidates: Candidates, wanted: int, given: list[tuple[int, ...]]
) -> list[int]:
    """Rows in order of choice; their ports are appended to `given`."""
    combined = candidates.combined
    feasible = np.flatnonzero(combined != NO_PLACE)
    if not len(feasible):
        return []
    keys = (combined[feasible] << score.RANK_BITS) + ranks_of(mirror, candidates, feasible)
    order = np.argsort(keys)
    zones = Zones(mirror, candidates)
    zones.fill(feasible[order].tolist(), keys[order].tolist())
    rescore = Rescore(mirror, candidates)
    group, nodes = candidates.want.spec, mirror.nodes
    found: list[int] = []
    while len(found) < wanted:
        best = zones.best()
        if best is None:
            break
        row = zones.pop(best)
        if group.ports:
            hosts = mirror.ports.give(nodes[row], group)
            if hosts is None:  # its domain has none left: nor will it later in this plan
                zones.settle(best, placed=False, again=None)
                continue
            given.append(hosts)
        found.append(row)
        key = rescore.after_one_more(row)
        zones.settle(best, placed=True, again=None if key is None else (key, row))
    return found


class Rescore:
    """The key of a node for the next task of the same want, after some were put there."""

    def __init__(self, mirror: Mirror, candidates: Candidates) -> None:
        self._mirror = mirror
        self._candidates = candidates
        self._taken: dict[int, int] = {}
        self._first: dict[int, tuple[int, int, int]] = {}

    def after_one_more(self, row: int) -> int | None:
        """None when the node takes no more."""
        candidates, mirror = self._candidates, self._mirror
        taken = self._taken[row] = self._taken.get(row, 0) + 1
        if row not in self._first:
            at = np.array([row])
            base = int(candidates.combined[row]) - int(candidates.scan.cost[row])
            room = int(room_for(mirror, candidates, at, _UNBOUNDED)[0])
            if candidates.ask.policy is PlacementPolicy.ROUNDROBIN:
                rank = int(mirror.name_rank[row])
            else:
                rank = score.rank(
                    row, *score.permutation(candidates.want.job.name, candidates.want.group)
                )
            self._first[row] = (base, room, rank)
        base, room, rank = self._first[row]
        if taken >= room:
            return None
        node, need = mirror.nodes[row], candidates.ask.need
        used = mirror.used[:, row].tolist()
        cost = score.cost(
            candidates.ask.policy,
            msgspec.structs.replace(
                need,
                cpu_milli=used[0] + taken * need.cpu_milli,
                memory_bytes=used[1] + taken * need.memory_bytes,
            ),
            node.facts.capacity,
            need,
            candidates.scan.unit,
            int(mirror.active()[row]) + taken
            if candidates.ask.policy is PlacementPolicy.ROUNDROBIN
            else 0,
        )
        points = base + (taken * candidates.step << score.COST_BITS)
        return ((points + cost) << score.RANK_BITS) + rank


class Zones:
    """The nodes by their values of spread_over: the zone with the fewest tasks of the group goes
    first, then the better key. Counts are compared attribute by attribute, the first one first."""

    def __init__(self, mirror: Mirror, candidates: Candidates) -> None:
        self._names = candidates.want.spec.placement.spread_over
        self._mirror = mirror
        self._counts = zone_loads(mirror, self._names, candidates.on_node)
        self._fresh: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._touched: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        self._heap: list[tuple[tuple[int, ...], int, tuple[str, ...]]] = []

    def _add(self, zone: tuple[str, ...], count: int) -> None:
        for depth in range(1, len(zone) + 1):
            self._counts[zone[:depth]] = self._counts.get(zone[:depth], 0) + count

    def _load(self, zone: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self._counts.get(zone[:depth], 0) for depth in range(1, len(zone) + 1))

    def fill(self, rows: Sequence[int], keys: Sequence[int]) -> None:
        """Untouched rows, best first."""
        for row, key in zip(rows, keys, strict=True):
            self._fresh.setdefault(self._mirror.zone_of(self._names, row), []).append((key, row))
        for zone, fresh in self._fresh.items():
            fresh.reverse()
            self._touched[zone] = []
            self._queue(zone)

    def _head(self, zone: tuple[str, ...]) -> int | None:
        fresh, touched = self._fresh[zone], self._touched[zone]
        if fresh and touched:
            return min(fresh[-1][0], touched[0][0])
        if fresh:
            return fresh[-1][0]
        return touched[0][0] if touched else None

    def _queue(self, zone: tuple[str, ...]) -> None:
        head = self._head(zone)
        if head is not None:
            heapq.heappush(self._heap, (self._load(zone), head, zone))

    def best(self) -> tuple[str, ...] | None:
        """The zone of the best node, taken off the queue until it is settled."""
        while self._heap:
            load, head, zone = heapq.heappop(self._heap)
            # A zone's load only grows while it waits, so a stale entry is too early, never too late.
            if self._load(zone) == load:
                return zone
            heapq.heappush(self._heap, (self._load(zone), head, zone))
        return None

    def pop(self, zone: tuple[str, ...]) -> int:
        """The zone's best row."""
        fresh, touched = self._fresh[zone], self._touched[zone]
        if fresh and (not touched or fresh[-1][0] < touched[0][0]):
            return fresh.pop()[1]
        return heapq.heappop(touched)[1]

    def settle(self, zone: tuple[str, ...], placed: bool, again: tuple[int, int] | None) -> None:
        """The zone waits again, one task fuller if `placed`, with (key, row) `again` in it."""
        if placed:
            self._add(zone, 1)
        if again is not None:
            heapq.heappush(self._touched[zone], again)
        self._queue(zone)
