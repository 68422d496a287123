"""Whether a node can take one more task of a group; each filter checks and explains itself.

A filter returns None or its Reason. The vectorised scan (mirror.py) must say the same as these;
tests/property compares them. Source of the shape: moby/swarmkit manager/scheduler/filter.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from cube.model.allowed import ALLOW, asks, asks_as_process, lacking, refusal
from cube.model.cluster import ClusterState, Node, port_key
from cube.model.explain import Reason
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.spec import DriverName, GroupSpec, Protocol
from cube.model.units import format_cores, format_duration, format_size
from cube.scheduler.attributes import attribute, satisfies, wording


class Context(msgspec.Struct, frozen=True):
    """What a filter may look at besides the node. `on_node`: unended tasks of the group there.
    `avoid_until_ms`: nodes that have just rejected this very task."""

    state: ClusterState
    group: GroupSpec
    now_ms: int
    on_node: Mapping[NodeId, int] = {}
    avoid_until_ms: Mapping[NodeId, int] = {}


Filter = Callable[[Context, Node], Reason | None]


def status(context: Context, node: Node) -> Reason | None:
    if node.status is NodeStatus.READY:
        return None
    why = f" ({node.status_reason})" if node.status_reason else ""
    return Reason("not_ready", f"node is {node.status.value}{why}", "ready", node.status.value)


def eligibility(context: Context, node: Node) -> Reason | None:
    if node.eligible:
        return None
    return Reason("ineligible", "node is cordoned", "eligible", "cordoned")


def draining(context: Context, node: Node) -> Reason | None:
    if node.drain_deadline_ms is None:
        return None
    return Reason("draining", "node is being drained", "not draining", "draining")


def driver_is_healthy(node: Node, name: str) -> bool:
    info = node.facts.drivers.get(name)
    return info is not None and info.healthy


def driver(context: Context, node: Node) -> Reason | None:
    name = context.group.driver.value
    info = node.facts.drivers.get(name)
    if info is None:
        return Reason("driver", f"driver {name} is not there", name, "none")
    if info.healthy:
        return None
    return Reason("driver", f"driver {name} is not healthy: {info.reason}", name, "unhealthy")


def allowed(context: Context, node: Node) -> Reason | None:
    """What the group asks of its host is what the node's operator allows."""
    name = context.group.driver.value
    missing = lacks_permission(node, name, permissions(context.group))
    return Reason("not_allowed", f"node {refusal(missing, name)}") if missing else None


def permissions(group: GroupSpec) -> tuple[str, ...]:
    """The words that a node must have in its driver's attribute ALLOW for the group."""
    if group.driver is DriverName.PROCESS:
        return asks_as_process(group.user)
    return asks(group.docker, group.mounts) if group.driver is DriverName.DOCKER else ()


def lacks_permission(node: Node, driver: str, asked: tuple[str, ...]) -> tuple[str, ...]:
    info = node.facts.drivers.get(driver)
    return lacking(asked, None if info is None else info.attributes.get(ALLOW))


def constraints(context: Context, node: Node) -> Reason | None:
    """The first of the group's constraints that the node does not satisfy."""
    for wish in context.group.placement.constraints:
        if not satisfies(node, wish):
            have = attribute(node, wish.attribute)
            return Reason(
                "constraint",
                f"constraint {wording(wish)} is not met",
                wording(wish),
                "not set" if have is None else have,
            )
    return None


def rejected_here(context: Context, node: Node) -> Reason | None:
    until_ms = context.avoid_until_ms.get(node.id, 0)
    if until_ms <= context.now_ms:
        return None
    left = format_duration(until_ms - context.now_ms)
    return Reason("rejected_here", f"node rejected this task; tried again in {left}", "", left)


def max_per_node(context: Context, node: Node) -> Reason | None:
    most = context.group.placement.max_per_node
    have = context.on_node.get(node.id, 0)
    if most == 0 or have < most:
        return None
    return Reason("max_per_node", f"{have} of this group are there", f"at most {most}", str(have))


def cpu(context: Context, node: Node) -> Reason | None:
    need = context.group.resources.cpu_milli
    have = context.state.free(node).cpu_milli
    if need == 0 or need <= have:
        return None
    return _lack("cpu", format_cores(need), format_cores(max(have, 0)))


def memory(context: Context, node: Node) -> Reason | None:
    need = context.group.resources.memory_bytes
    have = context.state.free(node).memory_bytes
    if need == 0 or need <= have:
        return None
    return _lack("memory", format_size(need), format_size(max(have, 0)))


def disk(context: Context, node: Node) -> Reason | None:
    need = context.group.resources.disk_bytes
    have = context.state.free(node).disk_bytes
    if need == 0 or need <= have:
        return None
    return _lack("disk", format_size(need), format_size(max(have, 0)))


def static_ports(context: Context, node: Node) -> Reason | None:
    used = context.state.ports.get(node.facts.advertise)
    if not used:
        return None
    for name in sorted(context.group.ports):
        port = context.group.ports[name]
        holder = used.get(port_key(port.host, port.protocol)) if port.host else None
        if holder is not None:
            task = context.state.tasks.get(holder)
            whose = task.name if task is not None else holder
            wanted = f"{port.host}/{port.protocol.value}"
            return Reason("port", f"port {wanted} is taken by {whose}", wanted, whose)
    return None


def dynamic_ports(context: Context, node: Node) -> Reason | None:
    facts, used = node.facts, context.state.ports.get(node.facts.advertise)
    span = range(facts.port_first, facts.port_last + 1)
    for protocol in Protocol:
        ports = [port for port in context.group.ports.values() if port.protocol is protocol]
        wanted = sum(port.host == 0 for port in ports)
        own = {port.host for port in ports if port.host in span}  # static ones in the same range
        if wanted == 0 or len(span) - len(own) - len(used or ()) >= wanted:
            continue
        free = sum(
            port not in own and (used is None or port_key(port, protocol) not in used)
            for port in span
        )
        if free < wanted:
            where = f"{facts.port_first}-{facts.port_last}"
            return Reason("port_range", f"{where} has too few free ports", str(wanted), str(free))
    return None


# What a node is: it changes only when somebody changes the node.
STANDING: tuple[Filter, ...] = (driver, allowed, constraints)
# Whether the node takes anything at all.
ACCEPTING: tuple[Filter, ...] = (status, eligibility, draining)
# What is left of it.
ROOM: tuple[Filter, ...] = (
    rejected_here,
    max_per_node,
    cpu,
    memory,
    disk,
    static_ports,
    dynamic_ports,
)
ALL: tuple[Filter, ...] = ACCEPTING + STANDING + ROOM


def reasons(context: Context, node: Node, filters: tuple[Filter, ...] = ALL) -> Iterator[Reason]:
    """Every reason against the node, in the order of the filters. None: it takes one more task."""
    for one in filters:
        reason = one(context, node)
        if reason is not None:
            yield reason


def fits(context: Context, node: Node) -> bool:
    return next(reasons(context, node), None) is None


def _lack(code: str, need: str, have: str) -> Reason:
    return Reason(code, f"not enough {code}", need, f"{have} free")
