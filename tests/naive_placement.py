"""The scheduler's placement written the slow and obvious way: score every node for every task.

Shares the formulas of cube.scheduler.score and the filters with the real one, and nothing of how it
finds the best node. Used by the exactness property and by the bench.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cube.model.cluster import ClusterState, Node, port_key
from cube.model.ids import JobId, NodeId
from cube.model.resources import NOTHING, Resources
from cube.model.spec import GroupSpec, PlacementPolicy
from cube.scheduler import filters, score
from cube.scheduler.attributes import attribute, satisfies
from cube.scheduler.want import Want


class NaiveCluster:
    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self.nodes = sorted(state.nodes.values(), key=lambda node: node.id)
        self.number = {node.id: number for number, node in enumerate(self.nodes)}
        by_name = sorted(self.nodes, key=lambda node: (node.name, node.id))
        self.name_rank = {node.id: number for number, node in enumerate(by_name)}
        self.used: dict[NodeId, Resources] = {
            node.id: state.reserved.get(node.id, NOTHING) for node in self.nodes
        }
        self.ports: dict[str, set[int]] = {
            domain: set(keys) for domain, keys in state.ports.items()
        }
        self.active = dict.fromkeys(self.used, 0)
        for task in state.tasks.values():
            if not task.ended:
                self.active[task.node_id] = self.active.get(task.node_id, 0) + 1
        self.placed: dict[tuple[JobId, str], dict[NodeId, int]] = {}
        self._units: dict[Resources, float] = {}

    def best(self, want: Want) -> NodeId | None:
        """The node for the next task of the want, or None when none fits."""
        if want.troubled:
            closed = {**want.avoid, **dict.fromkeys(want.troubled, 1 << 62)}
            elsewhere = self.best(msgspec.structs.replace(want, avoid=closed, troubled=()))
            if elsewhere is not None:
                return elsewhere
        on_node = self.on_node(want)
        loads = self._loads(want.spec, on_node)
        found: tuple[tuple[int, ...], int, NodeId] | None = None
        for node in self.nodes:
            if not self.fits(want, node, on_node):
                continue
            here = (loads(node), self.key(want, node, on_node), node.id)
            if found is None or here < found:
                found = here
        return None if found is None else found[2]

    def on_node(self, want: Want) -> dict[NodeId, int]:
        """Unended tasks of the group by node, those placed here included."""
        on_node = dict(want.on_node)
        for node_id, count in self.placed.get((want.job.id, want.group), {}).items():
            on_node[node_id] = on_node.get(node_id, 0) + count
        return on_node

    def take(self, want: Want, node_id: NodeId, hosts: tuple[int, ...]) -> None:
        self.used[node_id] = self.used[node_id] + want.spec.resources
        self.active[node_id] += 1
        counted = self.placed.setdefault((want.job.id, want.group), {})
        counted[node_id] = counted.get(node_id, 0) + 1
        domain = self.ports.setdefault(self.state.nodes[node_id].facts.advertise, set())
        for name, host in zip(sorted(want.spec.ports), hosts, strict=True):
            domain.add(port_key(host, want.spec.ports[name].protocol))

    def fits(self, want: Want, node: Node, on_node: Mapping[NodeId, int]) -> bool:
        group = want.spec
        context = filters.Context(self.state, group, 0)
        if next(filters.reasons(context, node, filters.ACCEPTING + filters.STANDING), None):
            return False
        if node.id in want.avoid:
            return False
        most = group.placement.max_per_node
        if most and on_node.get(node.id, 0) >= most:
            return False
        if not group.resources.fits_in(node.facts.capacity - self.used[node.id]):
            return False
        return self._ports_fit(group, node)

    def _ports_fit(self, group: GroupSpec, node: Node) -> bool:
        used = set(self.ports.get(node.facts.advertise, ()))
        for port in group.ports.values():
            if port.host:
                key = port_key(port.host, port.protocol)
                if key in used:
                    return False
                used.add(key)
        for port in group.ports.values():
            if not port.host:
                for host in range(node.facts.port_first, node.facts.port_last + 1):
                    if port_key(host, port.protocol) not in used:
                        used.add(port_key(host, port.protocol))
                        break
                else:
                    return False
        return True

    def key(self, want: Want, node: Node, on_node: Mapping[NodeId, int]) -> int:
        group = want.spec
        policy = score.policy_of(group, self.state.settings.policy)
        points = -sum(wish.weight for wish in group.placement.affinities if satisfies(node, wish))
        if score.counts_same_group(policy, want.job.spec.type):
            points += score.SAME_GROUP_POINTS * on_node.get(node.id, 0)
        if node.id in want.failed_on:
            points += score.FAILED_HERE_POINTS
        cost = score.cost(
            policy,
            self.used[node.id],
            node.facts.capacity,
            group.resources,
            self._unit(group.resources),
            self.active[node.id],
        )
        number = self.number[node.id]
        rank = score.rank(number, *score.permutation(want.job.name, want.group))
        if policy is PlacementPolicy.ROUNDROBIN:
            rank = self.name_rank[node.id]
        return score.key(points, cost, rank)

    def _unit(self, need: Resources) -> float:
        if need not in self._units:
            capacities = [node.facts.capacity for node in self.nodes]
            self._units[need] = score.marginal_unit(
                [
                    (
                        score.growth(need.cpu_milli, capacity.cpu_milli),
                        score.growth(need.memory_bytes, capacity.memory_bytes),
                    )
                    for capacity in capacities
                ]
            )
        return self._units[need]

    def _loads(self, group: GroupSpec, on_node: Mapping[NodeId, int]):  # type: ignore[no-untyped-def]
        names = group.placement.spread_over
        zone = {
            node.id: tuple(attribute(node, name) or "" for name in names) for node in self.nodes
        }
        counts: dict[tuple[str, ...], int] = {}
        for node_id, count in on_node.items():
            for depth in range(1, len(names) + 1):
                prefix = zone[node_id][:depth]
                counts[prefix] = counts.get(prefix, 0) + count

        def loads(node: Node) -> tuple[int, ...]:
            return tuple(counts.get(zone[node.id][:depth], 0) for depth in range(1, len(names) + 1))

        return loads
