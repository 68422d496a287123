"""The smallest changes that would let a group be placed, best first."""

from __future__ import annotations

from collections.abc import Sequence

from cube.model.cluster import Node
from cube.model.explain import NodeExplanation
from cube.model.resources import Resources
from cube.model.spec import Operator
from cube.model.units import format_cores, format_size
from cube.scheduler.attributes import satisfies
from cube.scheduler.filters import Context

SUGGESTIONS_MAX = 5
_ROOM = frozenset({"cpu", "memory", "disk"})


def suggestions(
    context: Context, nodes: Sequence[Node], explained: Sequence[NodeExplanation]
) -> list[str]:
    """From the nodes with the fewest obstacles of their own. `nodes[i]` is what `explained[i]` is
    about."""
    if not nodes:
        return ["add a node: cube agent --join HOST:PORT"]
    codes = [frozenset(reason.code for reason in one.reasons) for one in explained]
    found: list[str] = []
    fewest = min(len(one) for one in codes)
    for node, one in sorted(zip(nodes, codes, strict=True), key=lambda item: len(item[1])):
        if len(one) > max(1, fewest):
            break
        hint = _for_room(context, node) if one <= _ROOM else _for_node(context, node, one)
        if hint:
            found.append(hint)
    lack = _never(context, nodes)
    if lack:
        found.insert(0, lack)
    if any(one <= _ROOM or "max_per_node" in one or "port" in one for one in codes):
        found.append("add a node")
    return list(dict.fromkeys(found))[:SUGGESTIONS_MAX]


def _for_room(context: Context, node: Node) -> str:
    """The group fits here once its reservation is this small."""
    need, free = context.group.resources, context.state.free(node)
    parts = []
    if need.cpu_milli > free.cpu_milli:
        parts.append(f"cpu to {format_cores(max(0, free.cpu_milli))}")
    if need.memory_bytes > free.memory_bytes:
        parts.append(f"memory to {format_size(max(0, free.memory_bytes))}")
    if need.disk_bytes > free.disk_bytes:
        parts.append(f"disk to {format_size(max(0, free.disk_bytes))}")
    return f"reserve less ({', '.join(parts)}) to fit on {node.name}, or free that much there"


def _for_node(context: Context, node: Node, codes: frozenset[str]) -> str:
    steps = []
    for code in sorted(codes):
        step = _step(context, node, code)
        if step:
            steps.append(step)
    return " and ".join(steps)


def _step(context: Context, node: Node, code: str) -> str:
    group = context.group
    match code:
        case "not_ready":
            return f"bring node {node.name} back ({node.status.value})"
        case "ineligible":
            return f"cube node uncordon {node.name}"
        case "draining":
            return f"cube node undrain {node.name}"
        case "driver":
            info = node.facts.drivers.get(group.driver.value)
            state = "enable" if info is None else "repair"
            return f"{state} the {group.driver.value} driver on {node.name}"
        case "constraint":
            return _constraint_step(context, node)
        case "max_per_node":
            return f"raise max_per_node above {group.placement.max_per_node}"
        case "port":
            return f"use another host port than one taken on {node.name}, or host = 0"
        case "port_range":
            return f"widen the port range of {node.name}"
        case "rejected_here":
            return f"mend what {node.name} said of it: it is tried again there"
        case "cpu" | "memory" | "disk":
            return f"free {code} on {node.name}"
        case _:
            return ""


def _constraint_step(context: Context, node: Node) -> str:
    unmet = [wish for wish in context.group.placement.constraints if not satisfies(node, wish)]
    steps = []
    for wish in unmet:
        label = wish.attribute.removeprefix("node.labels.")
        if label != wish.attribute and wish.operator is Operator.EQ:
            steps.append(f"cube node label {node.name} {label}={wish.value}")
        else:
            steps.append(f"drop the constraint on {wish.attribute}")
    return " and ".join(steps)


def _never(context: Context, nodes: Sequence[Node]) -> str:
    """What even the largest node lacks when it is empty."""
    need = context.group.resources
    most = Resources(
        max(node.facts.capacity.cpu_milli for node in nodes),
        max(node.facts.capacity.memory_bytes for node in nodes),
        max(node.facts.capacity.disk_bytes for node in nodes),
    )
    parts = []
    if need.cpu_milli > most.cpu_milli:
        have = format_cores(most.cpu_milli)
        parts.append(f"cpu {format_cores(need.cpu_milli)}, the largest node has {have}")
    if need.memory_bytes > most.memory_bytes:
        have = format_size(most.memory_bytes)
        parts.append(f"memory {format_size(need.memory_bytes)}, the largest node has {have}")
    if need.disk_bytes > most.disk_bytes:
        have = format_size(most.disk_bytes)
        parts.append(f"disk {format_size(need.disk_bytes)}, the largest node has {have}")
    return f"no node is ever large enough: {'; '.join(parts)}" if parts else ""
