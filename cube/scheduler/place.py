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

import heapq
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from cube.model.ids import JobId, NodeId
from cube.model.spec import GroupSpec, PlacementPolicy
from cube.scheduler import score
from cube.scheduler.mirror import (
    NO_PLACE,
    Ask,
    Bools,
    Ints,
    Mirror,
    Scan,
    policy_cost,
    power,
    share,
)
from cube.scheduler.want import Want

ZONES_MAX = 32  # with more, one scan for each costs more than the heap
LEVEL_CELLS_MAX = 1 << 20  # of the (node, level) table: 8 MB; beyond it the heap is no slower


class Picks(msgspec.Struct, frozen=True):
    """slots[i] goes to the mirror's rows[i]; `ports`, where the group has some, as in
    GroupPlacement."""

    slots: tuple[int, ...]
    rows: list[int]
    ports: list[tuple[int, ...]]


_NOWHERE = Picks((), [], [])


class Candidates(msgspec.Struct, frozen=True):
    """What one want has before it: the node's points ‖ cost (NO_PLACE: it does not fit), ranks, and
    how many tasks of the group each node still takes by max_per_node (None: no limit)."""

    want: Want
    ask: Ask
    scan: Scan
    combined: Ints
    step: int  # points that each task adds for the next on the same node
    limit: Ints | None
    one_each: bool  # static host ports: one task per domain


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
            group.resources,
            score.policy_of(group, self._default),
        )

    def place(self, want: Want, most: int) -> Picks:
        """The first slots of the want, `most` at most and as many as fit, in order of choice. The
        mirror holds them afterwards."""
        wanted = min(len(want.slots), most)
        if wanted <= 0 or not len(self._mirror):
            return _NOWHERE
        ask = self.ask_of(want)
        scan = self._mirror.scan(ask, want.spec)
        candidates = self._candidates(want, ask, scan)
        ports = bool(want.spec.ports)
        rows: list[int] | None = None
        given: list[tuple[int, ...]] = []
        if not (ports and self._mirror.domains_shared):
            if want.spec.placement.spread_over:
                rows = self._by_zones(candidates, wanted)
            else:
                rows = self._by_columns(candidates, wanted)
        if rows is not None and ports:
            rows = self._with_ports(want, rows, given)
        if rows is None:
            rows = self._by_heap(candidates, wanted, given)
        self._take(want, rows)
        return Picks(want.slots[: len(rows)], rows, given)

    @property
    def node_ids(self) -> list[NodeId]:
        """By row."""
        return self._mirror.ids

    def place_only_on(self, want: Want, most: int) -> Picks:
        """Each slot on its own node of `want.only_on`, where that has room."""
        scan = self._mirror.scan(self.ask_of(want), want.spec)
        slots: list[int] = []
        rows: list[int] = []
        given: list[tuple[int, ...]] = []
        for slot, node_id in zip(want.slots, want.only_on, strict=True):
            row = self._mirror.row(node_id)
            if len(rows) >= most or row is None or scan.cost[row] == NO_PLACE:
                continue
            hosts: tuple[int, ...] | None = ()
            if want.spec.ports:
                hosts = self._mirror.ports.give(self._mirror.nodes[row], want.spec)
            if hosts is None:
                continue
            slots.append(slot)
            rows.append(row)
            if hosts:
                given.append(hosts)
        self._take(want, rows)
        return Picks(tuple(slots), rows, given)

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

    # What each node costs for this want

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

    def _candidates(self, want: Want, ask: Ask, scan: Scan) -> Candidates:
        mirror, group = self._mirror, want.spec
        on_node = self.on_node(want)
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
        limit, blocked = self._limits(want, on_node, blocked)
        combined = scan.cost
        if points is not None:
            np.clip(points, -score.POINTS_MAX, score.POINTS_MAX, out=points)
            combined = np.where(
                combined == NO_PLACE, NO_PLACE, combined + (points << score.COST_BITS)
            )
        if blocked is not None:
            combined = np.where(blocked, NO_PLACE, combined)
        return Candidates(want, ask, scan, combined, step, limit, one_each)

    def _limits(
        self, want: Want, on_node: Mapping[NodeId, int], blocked: Bools | None
    ) -> tuple[Ints | None, Bools | None]:
        mirror, most = self._mirror, want.spec.placement.max_per_node
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

    def _ranks(self, candidates: Candidates, rows: Ints) -> Ints:
        if candidates.ask.policy is PlacementPolicy.ROUNDROBIN:
            return self._mirror.name_rank[rows]
        offset, factor = score.permutation(candidates.want.job.id, candidates.want.group)
        ranks: Ints = (rows + offset) * factor & (score.NODES_MAX - 1)
        return ranks

    # Columns

    def _by_columns(self, candidates: Candidates, wanted: int) -> list[int] | None:
        """Rows in order of choice; None when only the heap can tell."""
        combined = candidates.combined
        if wanted == 1:  # most jobs: spare the list of all that fit
            least = combined.min()
            if least == NO_PLACE:
                return []
            rows = np.flatnonzero(combined == least)
        else:
            rows = np.flatnonzero(combined != NO_PLACE)
        chosen = self._best_of(candidates, rows, wanted)
        if chosen is None:
            return None
        found: list[int] = chosen[0].tolist()
        return found

    def _best_of(self, candidates: Candidates, rows: Ints, wanted: int) -> tuple[Ints, Ints] | None:
        """(rows, keys) in order of choice among these rows, all of which fit one task; None when
        only the heap can tell."""
        if not len(rows):
            return rows, rows
        if wanted == 1:
            combined = candidates.combined[rows]
            rows = rows[combined == combined.min()]
        keys = (candidates.combined[rows] << score.RANK_BITS) + self._ranks(candidates, rows)
        if len(rows) > wanted:
            best = np.argpartition(keys, wanted - 1)[:wanted]
            rows, keys = rows[best], keys[best]
        order = np.argsort(keys)
        rows, keys = rows[order], keys[order]
        if wanted == 1:
            return rows, keys
        if len(rows) == wanted and _one_each_is_best(keys, candidates.step):
            return rows, keys
        room = room_for(self._mirror, candidates, rows, wanted)
        if candidates.ask.policy is PlacementPolicy.BINPACK:
            used = int(np.searchsorted(np.cumsum(room), wanted)) + 1
            filled = np.repeat(np.arange(len(rows))[:used], room[:used])[:wanted]
            return rows[filled], keys[filled]
        return self._by_levels(candidates, rows, keys, room, wanted)

    def _by_zones(self, candidates: Candidates, wanted: int) -> list[int] | None:
        """Rows in order of choice with spread_over; None when only the heap can tell.

        A zone's picks raise its load by one each, so the picks of all zones are a merge of lists
        that are sorted by (load, key); so are those of zones within a zone."""
        names = candidates.want.spec.placement.spread_over
        zones = self._mirror.zones(names)
        if candidates.ask.policy is PlacementPolicy.BINPACK or len(zones) > ZONES_MAX:
            return None  # binpack's keys fall while a node fills
        loads = zone_loads(self._mirror, names, self.on_node(candidates.want))
        lists: dict[tuple[str, ...], tuple[Ints, list[Ints]]] = {}
        for zone, members in zones.items():
            rows = members[candidates.combined[members] != NO_PLACE]
            best = self._best_of(candidates, rows, wanted)
            if best is None:
                return None
            lists[zone] = (best[0], [best[1]])
        for depth in range(len(names), 0, -1):
            joined: dict[tuple[str, ...], list[tuple[Ints, list[Ints]]]] = {}
            for zone, (rows, columns) in lists.items():
                load = loads.get(zone, 0) + np.arange(len(rows), dtype=np.int64)
                joined.setdefault(zone[: depth - 1], []).append((rows, [load, *columns]))
            lists = {zone: _merge(parts, wanted) for zone, parts in joined.items()}
        found: list[int] = lists[()][0].tolist()
        return found

    def _by_levels(
        self, candidates: Candidates, rows: Ints, keys: Ints, room: Ints, wanted: int
    ) -> tuple[Ints, Ints] | None:
        levels = min(int(room.max()), -(-wanted // len(rows)) + 1)
        while True:
            if len(rows) * levels > LEVEL_CELLS_MAX:
                return None
            table = self._level_keys(candidates, rows, keys, room, levels)
            if levels > 1 and bool((table[:, 1:] < table[:, :-1]).any()):
                return None
            flat = table.ravel()
            if len(flat) > wanted:
                chosen = np.argpartition(flat, wanted - 1)[:wanted]
            else:
                chosen = np.arange(len(flat))
            chosen = chosen[flat[chosen] != _NO_KEY]
            at = chosen // levels
            taken = np.bincount(at, minlength=len(rows))
            if not bool(((taken == levels) & (room > levels)).any()):
                order = np.argsort(flat[chosen], kind="stable")
                return rows[at[order]], flat[chosen[order]]
            if len(chosen) == wanted:  # rows whose first key was not chosen never will be
                keep = taken > 0
                rows, keys, room = rows[keep], keys[keep], room[keep]
            levels = min(int(room.max()), levels * 4)

    def _level_keys(
        self, candidates: Candidates, rows: Ints, keys: Ints, room: Ints, levels: int
    ) -> Ints:
        """Row by level: the key of the (level + 1)-th task on that node, _NO_KEY where none fits."""
        if levels == 1:
            return keys[:, None]
        mirror, ask, scan = self._mirror, candidates.ask, candidates.scan
        level = np.arange(levels, dtype=np.int64)[None, :]
        if ask.policy is PlacementPolicy.ROUNDROBIN:
            cost = np.minimum(mirror.active()[rows][:, None] + level, score.COST_MAX)
        else:
            need = ask.need
            used = np.stack(
                (
                    mirror.used[0, rows][:, None] + level * need.cpu_milli,
                    mirror.used[1, rows][:, None] + level * need.memory_bytes,
                )
            )
            capacity = mirror.capacity[:2, rows][:, :, None]
            wide = np.broadcast_to(capacity, used.shape)
            grown = (scan.growth_cpu[rows][:, None], scan.growth_memory[rows][:, None])
            powers = (mirror.x[rows][:, None], mirror.y[rows][:, None])
            if ask.policy is PlacementPolicy.EPVM:
                powers = (power(share(used[0], wide[0])), power(share(used[1], wide[1])))
            cost = policy_cost(ask, scan.unit, used, wide, powers, grown)
        # The points and the rank are those of the first key; clipped points would be wrong here,
        # but the heap's are clipped: POINTS_MAX is 10,000 tasks of one group on one node away.
        first = candidates.combined[rows] - scan.cost[rows]
        rank = keys & (score.NODES_MAX - 1)
        points = first[:, None] + (level * candidates.step << score.COST_BITS)
        table: Ints = np.where(
            level < room[:, None],
            ((points + cost) << score.RANK_BITS) + rank[:, None],
            _NO_KEY,
        )
        return table

    # Heap

    def _by_heap(
        self, candidates: Candidates, wanted: int, given: list[tuple[int, ...]]
    ) -> list[int]:
        """Rows in order of choice; their ports are appended to `given`."""
        combined = candidates.combined
        feasible = np.flatnonzero(combined != NO_PLACE)
        if not len(feasible):
            return []
        keys = (combined[feasible] << score.RANK_BITS) + self._ranks(candidates, feasible)
        order = np.argsort(keys)
        zones = Zones(self._mirror, candidates.want.spec, self.on_node(candidates.want))
        zones.fill(feasible[order].tolist(), keys[order].tolist())
        rescore = Rescore(self._mirror, candidates)
        group, nodes = candidates.want.spec, self._mirror.nodes
        found: list[int] = []
        while len(found) < wanted:
            best = zones.best()
            if best is None:
                break
            row = zones.pop(best)
            if group.ports:
                hosts = self._mirror.ports.give(nodes[row], group)
                if hosts is None:  # its domain has none left: nor will it later in this plan
                    zones.settle(best, placed=False, again=None)
                    continue
                given.append(hosts)
            found.append(row)
            key = rescore.after_one_more(row)
            zones.settle(best, placed=True, again=None if key is None else (key, row))
        return found


_NO_KEY = np.iinfo(np.int64).max
_UNBOUNDED = 1 << 60


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
                    row, *score.permutation(candidates.want.job.id, candidates.want.group)
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


def _one_each_is_best(keys: Ints, step: int) -> bool:
    """The worst of these first keys, in order, is below the second key of even the best: a second
    task on a node costs `step` points more, and points go before cost and rank."""
    bits = score.COST_BITS + score.RANK_BITS
    return step > 0 and int(keys[-1]) < ((int(keys[0]) >> bits) + step) << bits


def _merge(parts: list[tuple[Ints, list[Ints]]], most: int) -> tuple[Ints, list[Ints]]:
    """One list of rows in order of their columns, the first column first."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([rows for rows, _ in parts])
    columns = [np.concatenate(column) for column in zip(*(part[1] for part in parts), strict=True)]
    order = np.lexsort(columns[::-1])[:most]
    return rows[order], [column[order] for column in columns]


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


class Zones:
    """The nodes by their values of spread_over: the zone with the fewest tasks of the group goes
    first, then the better key. Counts are compared attribute by attribute, the first one first."""

    def __init__(self, mirror: Mirror, group: GroupSpec, on_node: Mapping[NodeId, int]) -> None:
        self._names = group.placement.spread_over
        self._mirror = mirror
        self._counts = zone_loads(mirror, self._names, on_node)
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
