"""Why a task is not placed or keeps failing: what `cube why` shows."""

from __future__ import annotations

import msgspec

from cube.model.ids import NodeId


class Reason(msgspec.Struct, frozen=True):
    """`code`: not_ready, ineligible, draining, driver, not_allowed, constraint, cpu, memory, disk, port,
    port_range, max_per_node, depends_on, backoff, avoided, volume, … `need` and `have` are for people."""

    code: str
    message: str
    need: str = ""
    have: str = ""


class NodeExplanation(msgspec.Struct, frozen=True):
    """No reasons: the node would take it."""

    node_id: NodeId
    node: str
    reasons: tuple[Reason, ...]


class Explanation(msgspec.Struct, frozen=True):
    """About the slots of one group that share a cause. `kind`: unplaced (no node fits), waiting
    (for a dependency or a delay), failing (it runs and fails), flapping (it serves, and has failed
    several times lately), stopped. `since_ms` 0: unknown.
    `suggestions`: smallest changes that would help, best first."""

    job: str
    group: str
    slots: tuple[int, ...]
    kind: str
    summary: str
    reasons: tuple[Reason, ...] = ()  # not tied to a node
    nodes: tuple[NodeExplanation, ...] = ()
    suggestions: tuple[str, ...] = ()
    since_ms: int = 0
