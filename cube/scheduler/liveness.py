"""The leader's judgement of which nodes are up: architecture.md, "Failure". Pure; monotonic times.

Two witnesses: heartbeats to the leader, and gossip. One alone can make a node suspect, and both
together are needed to take it down, because that restarts its tasks elsewhere:

    suspect   gossip suspects it, or two heartbeats are missing
    down      gossip does not see it alive, and no heartbeat came for node_grace
    ready     heartbeats come, and gossip sees it alive; or heartbeats have come without a gap for
              GOSSIP_LAG_MS and gossip says nothing or dead: it may be cut off (a firewall on UDP)
              where HTTP is not

Silence counts from the later of the last heartbeat and the start of this leader's term: a new leader
knows nothing of the past. The leader itself is ready. `left` in gossip counts as dead: an agent that
is shut down says goodbye too, and stays a member; membership ends by command only.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cube.model.cluster import Node
from cube.model.derived import Derived
from cube.model.ids import NodeId
from cube.model.lifecycle import BRAKED, NodeStatus
from cube.model.units import format_duration

HEARTBEATS_MISSING_MAX = 2  # then it is suspect
GOSSIP_LAG_MS = (
    10_000  # of heartbeats without a gap that outweigh gossip which does not see the node
)
BRAKE_WINDOW_MS = 60_000
NAMES_TOLD_MAX = 5
BRAKE_NODES_MIN = 2  # one node may always go down: with two nodes, one is half of them


def braked(nodes: Mapping[NodeId, Node]) -> list[Node]:
    """Those whom the brake keeps from being declared down, by name."""
    found = [node for node in nodes.values() if node.status_reason == BRAKED]
    return sorted(found, key=lambda node: (node.name, node.id))


def brake_of(nodes: Mapping[NodeId, Node]) -> str | None:
    """What is to be said of the brake, by whoever has the state."""
    held = braked(nodes)
    if not held:
        return None
    names = ", ".join(node.name for node in held[:NAMES_TOLD_MAX])
    more = f" and {len(held) - NAMES_TOLD_MAX} more" if len(held) > NAMES_TOLD_MAX else ""
    return (
        f"{len(held)} of {len(nodes)} nodes look down and are not declared so ({names}{more}): more than "
        f"half would be down within {format_duration(BRAKE_WINDOW_MS)}, which looks like the network or "
        "the leader. Their tasks are not replaced until half of the nodes are back, or `cube node rm` "
        "has taken out what is gone for good"
    )


class Verdict(msgspec.Struct, frozen=True):
    """`changes`: statuses that differ from the state's, or whose reason has to do with the brake and
    does, by node id. `brake`: why nodes that look dead
    are not declared down, or None."""

    changes: tuple[tuple[NodeId, NodeStatus, str], ...]
    brake: str | None


def _down(nodes: Mapping[NodeId, Node]) -> list[NodeId]:
    down = (NodeStatus.DOWN, NodeStatus.LEFT)
    return [node_id for node_id, node in nodes.items() if node.status in down]


class Liveness:
    """One leadership's memory of heartbeats."""

    def __init__(
        self,
        node_grace_ms: int = 5000,
        heartbeat_ms: int = 1000,
        brake_window_ms: int = BRAKE_WINDOW_MS,
    ) -> None:
        self._grace_ms = node_grace_ms
        self._heartbeat_ms = heartbeat_ms
        self._window_ms = brake_window_ms
        self._since_ms = 0
        self._leader: NodeId | None = None
        self._last_ms: dict[NodeId, int] = {}
        self._known_ms: dict[NodeId, int] = {}  # when this leader began to expect its heartbeats
        self._expected: Mapping[NodeId, Node] | None = None  # whose; never written to
        self._steady_ms: dict[NodeId, int] = {}  # heartbeats have come without a gap since
        self._downed_ms: dict[NodeId, int] = {}  # when this leader took it down
        self._down = Derived(_down)

    def leader_since(self, mono_ms: int, leader: NodeId | None = None) -> None:
        """This node, `leader`, leads from now on; what was heard in an earlier term is forgotten.
        Without a name it is judged like the others, and must feed itself heartbeats."""
        self._since_ms = mono_ms
        self._leader = leader
        self._last_ms.clear()
        self._known_ms.clear()
        self._expected = None
        self._steady_ms.clear()
        self._downed_ms.clear()

    def on_heartbeat(self, node_id: NodeId, mono_ms: int) -> None:
        last_ms = self._last_ms.get(node_id)
        if last_ms is None or mono_ms - last_ms > self._gap_ms:
            self._steady_ms[node_id] = mono_ms
        self._last_ms[node_id] = max(mono_ms, last_ms or mono_ms)

    def silent_ms(self, nodes: Mapping[NodeId, Node], mono_ms: int) -> dict[NodeId, int]:
        """For how long this leader is sure that no leader has acknowledged a heartbeat, of each node
        that is down."""
        return {
            node_id: mono_ms - max(self._last_ms.get(node_id, 0), self._since_ms)
            for node_id in self._down.of(nodes)
        }

    @property
    def _gap_ms(self) -> int:
        """Longer than this between two heartbeats: some are missing. Half an interval of slack,
        because they are never quite on time."""
        return HEARTBEATS_MISSING_MAX * self._heartbeat_ms + self._heartbeat_ms // 2

    def decide(
        self,
        nodes: Mapping[NodeId, Node],
        gossip: Mapping[NodeId, str],
        mono_ms: int,
    ) -> Verdict:
        """`gossip`: alive | suspect | dead | left; a node that it does not know is not seen alive.
        Verdicts are assumed to be carried out."""
        if self._expected is not nodes or len(self._last_ms) > len(nodes):
            self._expect(nodes, mono_ms)
        wanted: list[tuple[NodeId, NodeStatus, str]] = []
        heard_ms, gap_ms = self._last_ms.get, self._gap_ms
        for node_id, node in nodes.items():
            if (  # nearly all of them: `_judge` would find what is known
                node.status is NodeStatus.READY
                and node.status_reason != BRAKED
                and gossip.get(node_id) == "alive"
                and mono_ms - heard_ms(node_id, -gap_ms - 1) <= gap_ms
            ):
                continue
            status, reason = self._judge(node, gossip.get(node_id, ""), mono_ms)
            # A new leader takes its predecessor's word until it has a view of its own.
            knows = node_id in self._last_ms or mono_ms - self._since_ms >= self._grace_ms
            if status is not node.status or (node.status_reason == BRAKED and knows):
                wanted.append((node_id, status, reason))
        wanted.sort(key=lambda change: change[0])
        return self._braked(nodes, wanted, mono_ms)

    def _expect(self, nodes: Mapping[NodeId, Node], mono_ms: int) -> None:
        """Heartbeats of these nodes, and of no others."""
        for gone in [one for one in {**self._known_ms, **self._last_ms} if one not in nodes]:
            self._known_ms.pop(gone, None)
            self._last_ms.pop(gone, None)
            self._steady_ms.pop(gone, None)
        known_ms = mono_ms if self._known_ms else self._since_ms  # a newcomer is not late
        for node_id in nodes:
            self._known_ms.setdefault(node_id, known_ms)
        self._expected = nodes

    def _judge(self, node: Node, seen: str, mono_ms: int) -> tuple[NodeStatus, str]:
        if node.id == self._leader:
            return NodeStatus.READY, ""
        is_down = node.status in (NodeStatus.DOWN, NodeStatus.LEFT)
        last_ms = self._last_ms.get(node.id)
        silent_ms = mono_ms - (self._known_ms[node.id] if last_ms is None else last_ms)
        if last_ms is not None and silent_ms <= self._gap_ms:
            if seen == "alive":
                return NodeStatus.READY, ""
            if seen != "suspect" and mono_ms - self._steady_ms[node.id] >= GOSSIP_LAG_MS:
                return NodeStatus.READY, ""
            if is_down or not seen:
                return node.status, node.status_reason  # gossip has not heard of it yet
            return NodeStatus.SUSPECT, f"gossip says {seen}"
        if is_down:
            return node.status, node.status_reason
        if seen != "alive" and silent_ms >= self._grace_ms:
            return NodeStatus.DOWN, f"no heartbeat for {format_duration(silent_ms)}"
        if seen not in ("alive", ""):
            return NodeStatus.SUSPECT, f"gossip says {seen}"
        if silent_ms > self._gap_ms:
            return NodeStatus.SUSPECT, f"no heartbeat for {format_duration(silent_ms)}"
        return node.status, node.status_reason  # too early to tell

    def _braked(
        self,
        nodes: Mapping[NodeId, Node],
        wanted: list[tuple[NodeId, NodeStatus, str]],
        mono_ms: int,
    ) -> Verdict:
        """Down is not said of more than half of the registered nodes within the window."""
        self._downed_ms = {
            node_id: at_ms
            for node_id, at_ms in self._downed_ms.items()
            if mono_ms - at_ms < self._window_ms
            and node_id in nodes
            and nodes[node_id].status is not NodeStatus.READY
        }
        down = [change for change in wanted if change[1] is NodeStatus.DOWN]
        registered = sum(node.status is not NodeStatus.LEFT for node in nodes.values())
        recent = set(self._downed_ms) | {node_id for node_id, _, _ in down}
        brake: str | None = None
        if down and len(recent) >= BRAKE_NODES_MIN and len(recent) * 2 > registered:
            names = ", ".join(nodes[node_id].name for node_id, _, _ in down[:5])
            brake = (
                f"{len(recent)} of {registered} nodes would be down within "
                f"{format_duration(self._window_ms)} ({names}): this looks like the network or "
                "this node, so their tasks are not replaced; it goes on when half are back"
            )
            wanted = [
                (node_id, NodeStatus.SUSPECT, BRAKED)
                if status is NodeStatus.DOWN
                else (node_id, status, reason)
                for node_id, status, reason in wanted
            ]
        wanted = [
            (node_id, status, reason)
            for node_id, status, reason in wanted
            if (status, reason) != (nodes[node_id].status, nodes[node_id].status_reason)
        ]
        for node_id, status, _ in wanted:
            if status is NodeStatus.DOWN:
                self._downed_ms[node_id] = mono_ms
        return Verdict(tuple(wanted), brake)
