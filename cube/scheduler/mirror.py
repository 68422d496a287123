"""The nodes as columns, for one scan over all of them. A cache: it says what the state says.

Row i is the i-th node by id, so that numbers, and with them ranks, depend on the state alone.
Imported when a node first plans, because numpy is: an idle agent stays small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import immutables
import numpy as np

from cube.model.cluster import ClusterState, Node, port_key
from cube.model.commands import ApplyPlan
from cube.model.ids import NodeId
from cube.model.lifecycle import ENDED
from cube.model.resources import NOTHING, Resources
from cube.model.spec import Affinity, Constraint, GroupSpec, PlacementPolicy
from cube.scheduler import filters, score
from cube.scheduler.attributes import attribute, matches
from cube.scheduler.ports import PortBook
from cube.scheduler.vector import Ask, Bools, Floats, Ints, policy_cost, power, share

MASKS_MAX = 1024  # one byte per node each: 10 MB at 10,000 nodes
SCANS_MAX = 64  # 24 bytes per node each: 15 MB at 10,000 nodes
ZONES_MAX = 64  # sets of attributes; 8 bytes per node each
NO_PLACE = (1 << (score.POINT_BITS - 1 + score.COST_BITS)) - 1  # above any points ‖ cost
_RELOAD_SHARE = 4  # more than 1/4 of the rows changed: costs are computed anew when asked for


class Scan:
    """Each node's cost for one Ask, NO_PLACE where it does not fit; kept right by `Mirror.scan`."""

    __slots__ = ("cost", "growth_cpu", "growth_memory", "mask", "seen", "unit")

    def __init__(self, mask: Bools, cpu: Floats, memory: Floats, unit: float, cost: Ints) -> None:
        self.mask = mask
        self.growth_cpu = cpu
        self.growth_memory = memory
        self.unit = unit
        self.cost = cost
        self.seen = 0


def _set_amounts(column: Ints, at: Ints, values: list[Resources]) -> None:
    column[0, at] = [value.cpu_milli for value in values]
    column[1, at] = [value.memory_bytes for value in values]
    column[2, at] = [value.disk_bytes for value in values]


class Mirror:
    """Columns for the nodes of the state that was last given to `sync`, less what has been taken
    since with `take`."""

    def __init__(self) -> None:
        self.ids: list[NodeId] = []
        self.nodes: list[Node] = []
        self.ports = PortBook()
        self.grew = True  # some node may take what none could before
        self._state: ClusterState | None = None
        self._nodes_seen: immutables.Map[NodeId, Node] = immutables.Map()
        self._index: dict[NodeId, int] = {}
        self._reserved: list[Resources] = []
        self._reserved_seen: immutables.Map[NodeId, Resources] = immutables.Map()
        self._reserved_noted: set[NodeId] = set()  # all that may differ from the last sync's
        self._masks: OrderedDict[tuple[str, tuple[Any, ...], tuple[str, ...]], Bools] = (
            OrderedDict()
        )
        self._scans: OrderedDict[Ask, Scan] = OrderedDict()
        self._zones: OrderedDict[tuple[str, ...], dict[tuple[str, ...], Ints]] = OrderedDict()
        self._points: OrderedDict[tuple[Affinity, ...], Ints] = OrderedDict()
        self._touched: list[int] = []  # rows that differ from the state, in order, with repeats
        self._active: Ints | None = None
        self._taken: list[tuple[Ints, Ints]] = []  # rows, counts: since sync
        self._allocate(0)

    def _allocate(self, size: int) -> None:
        self.accepts: Bools = np.zeros(size, dtype=np.bool_)
        self.capacity: Ints = np.zeros((3, size), dtype=np.int64)
        self.used: Ints = np.zeros((3, size), dtype=np.int64)
        self.x: Floats = np.ones(size, dtype=np.float64)  # power(share(cpu)), power(share(memory))
        self.y: Floats = np.ones(size, dtype=np.float64)
        self.name_rank: Ints = np.zeros(size, dtype=np.int64)
        self.domain: Ints = np.zeros(size, dtype=np.int64)
        self.domains_shared = False

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, node_id: NodeId) -> int | None:
        return self._index.get(node_id)

    # Bringing it up to date

    def sync(self, state: ClusterState) -> None:
        """The columns say what `state` says; whatever was taken is forgotten."""
        last = self._state
        self._active = None
        self._taken = []
        rows: set[int] = set()
        if last is None or not self._same_nodes(state):
            self._rebuild(state)
        else:
            rows.update(self._touched)
            self._touched = []
            if state.reserved is not last.reserved:
                rows.update(self._changed_reserved(state))
            changed = [] if state.nodes is self._nodes_seen else self._changed_nodes(state)
            self._fill(sorted(rows.union(changed)), sorted(changed))
            rows.update(changed)
        self._state = state
        self._nodes_seen = state.nodes
        self._reserved_seen = state.reserved
        self._reserved_noted.clear()
        self.ports.sync(state)
        self._refresh_scans(rows)

    def same_nodes(
        self, before: immutables.Map[NodeId, Node], after: immutables.Map[NodeId, Node]
    ) -> None:
        """The two maps hold the same: apply makes a new map even where it changes nothing."""
        if self._nodes_seen is before:
            self._nodes_seen = after

    def reserved_on(
        self,
        before: immutables.Map[NodeId, Resources],
        after: immutables.Map[NodeId, Resources],
        node_ids: Iterable[NodeId],
    ) -> None:
        """Between the two maps nothing has changed but what is reserved on these nodes."""
        if self._reserved_seen is before:
            self._reserved_seen = after
            self._reserved_noted.update(node_ids)

    def _same_nodes(self, state: ClusterState) -> bool:
        if state.nodes is self._nodes_seen:
            return True
        return len(state.nodes) == len(self.ids) and all(key in self._index for key in state.nodes)

    def _rebuild(self, state: ClusterState) -> None:
        self.ids = sorted(state.nodes)
        assert len(self.ids) <= score.NODES_MAX
        self.nodes = [state.nodes[node_id] for node_id in self.ids]
        self._index = {node_id: row for row, node_id in enumerate(self.ids)}
        self._reserved = [state.reserved.get(node_id, NOTHING) for node_id in self.ids]
        self._forget_kinds()
        self._touched = []
        self._allocate(len(self.ids))
        self._standing()
        self._fill(range(len(self.ids)), range(len(self.ids)))
        self.grew = True

    def _forget_kinds(self) -> None:
        """Whatever follows from what the nodes are."""
        self._masks.clear()
        self._scans.clear()
        self._zones.clear()
        self._points.clear()

    def _standing(self) -> None:
        """What depends on names and addresses."""
        names = sorted(range(len(self.ids)), key=lambda row: (self.nodes[row].name, self.ids[row]))
        for position, row in enumerate(names):
            self.name_rank[row] = position
        numbers: dict[str, int] = {}
        for row, node in enumerate(self.nodes):
            self.domain[row] = numbers.setdefault(node.facts.advertise, len(numbers))
        self.domains_shared = len(numbers) < len(self.ids)

    def _changed_nodes(self, state: ClusterState) -> list[int]:
        rows, moved = [], False
        for node_id, node in state.nodes.items():
            row = self._index[node_id]
            old = self.nodes[row]
            if old is node:
                continue
            rows.append(row)
            self.nodes[row] = node
            if old.facts is not node.facts or old.labels != node.labels or old.name != node.name:
                moved = True
        if moved:
            # Facts change at an agent's start and labels by hand: rare enough to begin anew.
            self._forget_kinds()
            self._standing()
            self.grew = True
        return rows

    def _changed_reserved(self, state: ClusterState) -> list[int]:
        is_noted = self._reserved_seen is state.reserved
        rows = []
        get, index, known = state.reserved.get, self._index, self._reserved
        for node_id in self._reserved_noted if is_noted else self.ids:
            row = index.get(node_id)
            if row is None:  # it had a task, and was removed
                continue
            now = get(node_id, NOTHING)
            if now is not known[row]:
                rows.append(row)
                known[row] = now
        return rows

    def _fill(self, rows: list[int] | range, changed: list[int] | range) -> None:
        """What is used of the nodes of `rows`, and what those of `changed`, which are among them,
        have to give."""
        if not rows:
            return
        at = np.fromiter(rows, dtype=np.int64, count=len(rows))
        accepted, free = self.accepts[at], self.capacity[:, at] - self.used[:, at]
        _set_amounts(self.used, at, [self._reserved[row] for row in rows])
        if changed:
            nodes = [self.nodes[row] for row in changed]
            of_changed = np.fromiter(changed, dtype=np.int64, count=len(changed))
            _set_amounts(self.capacity, of_changed, [node.facts.capacity for node in nodes])
            self.accepts[of_changed] = [node.accepts_tasks for node in nodes]
        self._powers(at)
        if bool((self.accepts[at] & ~accepted).any()) or bool(
            (self.capacity[:, at] - self.used[:, at] > free).any()
        ):
            self.grew = True

    def _powers(self, at: Ints) -> None:
        self.x[at] = power(share(self.used[0, at], self.capacity[0, at]))
        self.y[at] = power(share(self.used[1, at], self.capacity[1, at]))

    def _refresh_scans(self, rows: set[int]) -> None:
        for ask in [ask for ask in self._scans if ask.policy is PlacementPolicy.ROUNDROBIN]:
            del self._scans[ask]  # the number of tasks changes without their nodes' changing
        if len(rows) * _RELOAD_SHARE > len(self.ids):
            self._scans.clear()
        at = np.array(sorted(rows), dtype=np.int64)
        for ask, scan in self._scans.items():
            if rows:
                self._refresh(ask, scan, at)
            scan.seen = 0

    # Taking

    def take(self, rows: Ints, counts: Ints, need: Resources) -> None:
        """`counts[i]` tasks of `need` more on `rows[i]`; rows are distinct."""
        amounts = (need.cpu_milli, need.memory_bytes, need.disk_bytes)
        if len(rows) == 1:  # most jobs have one task, and numpy is slow for single numbers
            row, count = int(rows[0]), int(counts[0])
            used, capacity = self.used[:, row].tolist(), self.capacity[:, row].tolist()
            for kind, amount in enumerate(amounts):
                used[kind] += count * amount
                self.used[kind, row] = used[kind]
            self.x[row] = score.power(score.share(used[0], capacity[0]))
            self.y[row] = score.power(score.share(used[1], capacity[1]))
        else:
            for kind, amount in enumerate(amounts):
                self.used[kind, rows] += counts * amount
            self._powers(rows)
        if self._active is not None:
            self._active[rows] += counts
        self._taken.append((rows, counts))
        self._touched.extend(rows.tolist())

    def take_plan(self, state: ClusterState, plan: ApplyPlan) -> None:
        """What the plan places is taken. What it frees is not free yet."""
        for placement in plan.placements:
            job = state.jobs.get(placement.job_id)
            spec = None if job is None else job.spec_of(placement.version)
            group = None if spec is None else spec.groups.get(placement.group)
            if group is None:
                continue
            counts: dict[int, int] = {}
            for position, at in enumerate(placement.node_at):
                row = self._index.get(plan.nodes[at])
                if row is None:
                    continue
                counts[row] = counts.get(row, 0) + 1
                if placement.ports:
                    self.ports.take(self.nodes[row], group, placement.ports[position])
            rows = np.fromiter(counts, dtype=np.int64, count=len(counts))
            of_each = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
            self.take(rows, of_each, group.resources)

    # Asking

    def standing_mask(self, ask: Ask, group: GroupSpec) -> Bools:
        """Nodes of the right kind, ready or not."""
        name = (ask.driver, ask.constraints, ask.permissions)
        found = self._masks.get(name)
        if found is None:
            found = np.array(
                [
                    filters.driver_is_healthy(node, ask.driver)
                    and not filters.lacks_permission(node, ask.driver, ask.permissions)
                    for node in self.nodes
                ],
                dtype=np.bool_,
            )
            for wish in group.placement.constraints:
                found &= self._satisfying(wish)
            self._masks[name] = found
            if len(self._masks) > MASKS_MAX:
                self._masks.popitem(last=False)
        else:
            self._masks.move_to_end(name)
        return found

    def _satisfying(self, wish: Constraint | Affinity) -> Bools:
        """Compared once for each value that occurs."""
        passes: dict[str | None, bool] = {}
        found = np.zeros(len(self.ids), dtype=np.bool_)
        for row, node in enumerate(self.nodes):
            have = attribute(node, wish.attribute)
            ok = passes.get(have)
            if ok is None:
                ok = passes[have] = matches(have, wish.operator, wish.value)
            found[row] = ok
        return found

    def scan(self, ask: Ask, group: GroupSpec) -> Scan:
        """Costs as of now. The arrays are the cache's own: not to be written to."""
        found = self._scans.get(ask)
        if found is None:
            mask = self.standing_mask(ask, group)
            cpu = power(share(np.full(len(self.ids), ask.need.cpu_milli), self.capacity[0]))
            memory = power(share(np.full(len(self.ids), ask.need.memory_bytes), self.capacity[1]))
            grown = (cpu - 1.0) + (memory - 1.0)
            most = float(grown.max()) if len(grown) else 0.0
            unit = score.MARGINAL_UNITS / most if most > 0.0 else 0.0
            found = Scan(mask, cpu, memory, unit, np.zeros(len(self.ids), dtype=np.int64))
            self._refresh(ask, found, slice(None))
            self._scans[ask] = found
            if len(self._scans) > SCANS_MAX:
                self._scans.popitem(last=False)
        else:
            self._scans.move_to_end(ask)
            behind = self._touched[found.seen :]
            if behind:
                at = np.array(sorted(set(behind)), dtype=np.int64)
                self._refresh(ask, found, at)
        found.seen = len(self._touched)
        return found

    def _refresh(self, ask: Ask, scan: Scan, at: Ints | slice) -> None:
        used = self.used[:, at]
        capacity = self.capacity[:, at]
        fits = self.accepts[at] & scan.mask[at]
        for kind, need in enumerate(
            (ask.need.cpu_milli, ask.need.memory_bytes, ask.need.disk_bytes)
        ):
            if need:
                fits &= capacity[kind] - used[kind] >= need
        grown = (scan.growth_cpu[at], scan.growth_memory[at])
        if ask.policy is PlacementPolicy.ROUNDROBIN:
            cost = np.minimum(self.active()[at], score.COST_MAX)
        else:
            cost = policy_cost(ask, scan.unit, used, capacity, (self.x[at], self.y[at]), grown)
        scan.cost[at] = np.where(fits, cost, NO_PLACE)

    def active(self) -> Ints:
        """Unended tasks by node. Counted when roundrobin first asks for it after a sync."""
        if self._active is None:
            state = self._state
            assert state is not None
            counted = np.zeros(len(self.ids), dtype=np.int64)
            for node_id, tasks in state.tasks_by_node.items():
                row = self._index.get(node_id)
                if row is not None:
                    counted[row] = len(tasks)
            for ended in ENDED:
                for task_id in state.tasks_by_state.get(ended, ()):
                    row = self._index.get(state.tasks[task_id].node_id)
                    if row is not None:
                        counted[row] -= 1
            for rows, counts in self._taken:
                counted[rows] += counts
            self._active = counted
        return self._active

    def zone_of(self, names: tuple[str, ...], row: int) -> tuple[str, ...]:
        """The node's values of these attributes, empty where it has none."""
        return tuple([attribute(self.nodes[row], name) or "" for name in names])

    def zones(self, names: tuple[str, ...]) -> dict[tuple[str, ...], Ints]:
        """Rows by their values of these attributes, in order of the values."""
        found = self._zones.get(names)
        if found is None:
            rows: dict[tuple[str, ...], list[int]] = {}
            for row in range(len(self.ids)):
                rows.setdefault(self.zone_of(names, row), []).append(row)
            found = {zone: np.array(rows[zone], dtype=np.int64) for zone in sorted(rows)}
            self._zones[names] = found
            if len(self._zones) > ZONES_MAX:
                self._zones.popitem(last=False)
        return found

    def affinity_points(self, group: GroupSpec) -> Ints | None:
        """Minus the weights of the wishes that each node fulfils; None when there are none."""
        wishes = group.placement.affinities
        if not wishes:
            return None
        points = self._points.get(wishes)
        if points is None:
            points = np.zeros(len(self.ids), dtype=np.int64)
            for wish in wishes:
                points -= wish.weight * self._satisfying(wish).astype(np.int64)
            self._points[wishes] = points
            if len(self._points) > ZONES_MAX:
                self._points.popitem(last=False)
        return points.copy()

    def blocked_by_static_ports(self, group: GroupSpec) -> Bools | None:
        """Nodes one of whose asked host ports is taken; None when the group asks for none."""
        keys = [port_key(port.host, port.protocol) for port in group.ports.values() if port.host]
        if not keys:
            return None
        taken = np.zeros(len(self.ids), dtype=np.bool_)
        for row, node in enumerate(self.nodes):
            taken[row] = self.ports.any_taken(node.facts.advertise, keys)
        return taken
