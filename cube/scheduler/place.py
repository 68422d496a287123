"""Where the tasks of one group go: one scan per group, and still the same choice, task by task, as a
loop that scores every node for every task would make.

Why that is exact: placing a task changes the key of the chosen node only. So k tasks go to at most k
nodes, and these are among the k best untouched ones: the rest of the scan is never looked at again.
- keys that do not fall as a node fills (spread, epvm, greedy): the k smallest of all (node, level)
  pairs are the greedy choice, because each node's keys are a sorted list and greed merges them;
- binpack's keys fall: the best node stays best until it is full, so nodes are filled in order;
- zones, and ports that several nodes share: a heap of touched nodes beside the sorted fresh ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from cube.model.ids import JobId, NodeId
from cube.model.resources import NOTHING, Resources
from cube.model.spec import PlacementPolicy
from cube.scheduler import filters, score
from cube.scheduler.candidates import candidates_for
from cube.scheduler.columns import by_columns, by_zones
from cube.scheduler.heap import by_heap
from cube.scheduler.mirror import NO_PLACE, Mirror
from cube.scheduler.vector import Ask, Ints
from cube.scheduler.want import Want


class Picks(msgspec.Struct, frozen=True):
    """slots[i] goes to the mirror's rows[i]; `ports`, where the group has some, as in
    GroupPlacement."""

    slots: tuple[int, ...]
    rows: list[int]
    ports: list[tuple[int, ...]]


_NOWHERE = Picks((), [], [])
NEVER_MS = 1 << 62  # until when a node is closed that is not to be opened by time


class Placer:
    """Places wants one after another on a mirror, which each placement fills."""

    def __init__(self, mirror: Mirror, default: PlacementPolicy, seed: str) -> None:
        self._mirror = mirror
        self._default = default
        self._placed: dict[tuple[JobId, str], list[tuple[Ints, Ints]]] = {}
        mirror.ports.begin(seed)

    def ask_of(self, want: Want) -> Ask:
        group = want.spec
        return Ask(
            group.driver.value,
            group.placement.constraints,
            filters.permissions(group),
            group.resources,
            score.policy_of(group, self._default),
        )

    def place(self, want: Want, most: int) -> Picks:
        """The first slots of the want, `most` at most and as many as fit, in order of choice. The
        mirror holds them afterwards."""
        if not want.troubled:
            return self._place(want, most)
        closed = {**want.avoid, **dict.fromkeys(want.troubled, NEVER_MS)}
        picks = self._place(msgspec.structs.replace(want, avoid=closed), most)
        count = len(picks.slots)
        if count == min(len(want.slots), most):
            return picks
        rest = self._place(msgspec.structs.replace(want, slots=want.slots[count:]), most - count)
        return Picks(picks.slots + rest.slots, picks.rows + rest.rows, picks.ports + rest.ports)

    def _place(self, want: Want, most: int) -> Picks:
        wanted = min(len(want.slots), most)
        if wanted <= 0 or not len(self._mirror):
            return _NOWHERE
        ask = self.ask_of(want)
        candidates = candidates_for(self._mirror, want, ask, self.on_node(want))
        ports = bool(want.spec.ports)
        rows: list[int] | None = None
        given: list[tuple[int, ...]] = []
        if not (ports and self._mirror.domains_shared):
            if want.spec.placement.spread_over:
                rows = by_zones(self._mirror, candidates, wanted)
            else:
                rows = by_columns(self._mirror, candidates, wanted)
        if rows is not None and ports:
            rows = self._with_ports(want, rows, given)
        if rows is None:
            rows = by_heap(self._mirror, candidates, wanted, given)
        self._take(want, rows)
        return Picks(want.slots[: len(rows)], rows, given)

    def free(self, node_id: NodeId) -> Resources:
        """What the plan so far leaves of the node."""
        row = self._mirror.row(node_id)
        if row is None:
            return NOTHING
        left = self._mirror.capacity[:, row] - self._mirror.used[:, row]
        return Resources(*left.tolist())

    @property
    def node_ids(self) -> list[NodeId]:
        """By row."""
        return self._mirror.ids

    def place_only_on(self, want: Want, most: int) -> Picks:
        """Each slot on its own node of `want.only_on`, where that has room."""
        scan = self._mirror.scan(self.ask_of(want), want.spec)
        limit, there = want.spec.placement.max_per_node, dict(self.on_node(want))
        taken: dict[int, int] = {}
        slots: list[int] = []
        rows: list[int] = []
        given: list[tuple[int, ...]] = []
        for slot, node_id in zip(want.slots, want.only_on, strict=True):
            row = self._mirror.row(node_id)
            if len(rows) >= most or row is None or scan.cost[row] == NO_PLACE:
                continue
            if node_id in want.avoid or (limit and there.get(node_id, 0) >= limit):
                continue
            if not self._has_room(row, want.spec.resources, taken.get(row, 0) + 1):
                continue
            hosts: tuple[int, ...] | None = ()
            if want.spec.ports:
                hosts = self._mirror.ports.give(self._mirror.nodes[row], want.spec)
            if hosts is None:
                continue
            slots.append(slot)
            rows.append(row)
            taken[row] = taken.get(row, 0) + 1
            there[node_id] = there.get(node_id, 0) + 1
            if hosts:
                given.append(hosts)
        self._take(want, rows)
        return Picks(tuple(slots), rows, given)

    def _has_room(self, row: int, need: Resources, count: int) -> bool:
        free = (self._mirror.capacity[:, row] - self._mirror.used[:, row]).tolist()
        amounts = (need.cpu_milli, need.memory_bytes, need.disk_bytes)
        return all(
            not amount or amount * count <= have for amount, have in zip(amounts, free, strict=True)
        )

    def why_not(self, want: Want) -> tuple[str, ...]:
        """How many nodes lack what, for a want that found no place: `2 of 3 memory`. In order of
        the filters; a node counts for the first that it fails."""
        mirror, ask = self._mirror, self.ask_of(want)
        open_ = np.ones(len(mirror), dtype=np.bool_)
        if want.only_on:
            open_[:] = False
            open_[[row for row in map(mirror.row, want.only_on) if row is not None]] = True
        total = int(open_.sum())
        free = mirror.capacity - mirror.used
        need = ask.need
        failed = [("not accepting tasks", ~mirror.accepts)]
        failed.append(("constraint or driver", ~mirror.standing_mask(ask, want.spec)))
        for kind, (name, amount) in enumerate(
            (
                ("cpu", need.cpu_milli),
                ("memory", need.memory_bytes),
                ("disk", need.disk_bytes),
            )
        ):
            if amount:
                failed.append((name, free[kind] < amount))
        found = []
        for name, mask in failed:
            count = int((mask & open_).sum())
            open_ &= ~mask
            if count:
                found.append(f"{count} of {total} {name}")
        left = int(open_.sum())
        if left:
            found.append(f"{left} of {total} ports, max_per_node or a rejection")
        return tuple(found)

    def _with_ports(
        self, want: Want, rows: list[int], given: list[tuple[int, ...]]
    ) -> list[int] | None:
        """The same rows with ports in `given`; None, and nothing given, when ports run out: then
        the choice depends on them and the heap has to make it."""
        for at, row in enumerate(rows):
            hosts = self._mirror.ports.give(self._mirror.nodes[row], want.spec)
            if hosts is None:
                for back, taken in zip(rows[:at], given, strict=True):
                    self._mirror.ports.take_back(self._mirror.nodes[back], want.spec, taken)
                given.clear()
                return None
            given.append(hosts)
        return rows

    def _take(self, want: Want, rows: list[int]) -> None:
        if not rows:
            return
        if len(rows) == 1:
            distinct, counts = np.array(rows, dtype=np.int64), np.ones(1, dtype=np.int64)
        else:
            distinct, counts = np.unique(np.array(rows, dtype=np.int64), return_counts=True)
        self._placed.setdefault((want.job.id, want.group), []).append((distinct, counts))
        self._mirror.take(distinct, counts, want.spec.resources)

    def on_node(self, want: Want) -> Mapping[NodeId, int]:
        """Unended tasks of the group by node, those of this plan included."""
        placed = self._placed.get((want.job.id, want.group))
        if not placed:
            return want.on_node
        both = dict(want.on_node)
        for rows, counts in placed:
            for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
                node_id = self._mirror.ids[row]
                both[node_id] = both.get(node_id, 0) + count
        return both
