"""What nodes say of themselves, and what the leader and operators say of nodes."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import Node
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Done, NodeRegistered, Outcome, Rejected, RejectReason
from cube.statemachine.draft import Draft
from cube.statemachine.tasks import lose
from cube.statemachine.trust import ban

NODES_MAX = 10_000  # per cluster: what the scheduler is measured at


def register(draft: Draft, body: c.RegisterNode) -> Outcome:
    """The node is known under a unique name, with these facts."""
    facts = body.facts
    if draft.trust.is_removed(facts.id):
        return Rejected(
            RejectReason.REFUSED,
            "this node was removed from the cluster; give it an empty data directory to join anew",
        )
    node = draft.node(facts.id)
    if node is None:
        if draft.node_count() >= NODES_MAX:
            return Rejected(RejectReason.LIMIT, f"the cluster has {NODES_MAX} nodes, its limit")
        node = Node(
            id=facts.id,
            name=_free_name(draft, facts.name, facts.id),
            facts=facts,
            status_at_ms=draft.now_ms,
            joined_at_ms=draft.now_ms,
        )
        draft.put_node(node, "registered")
        if draft.settings.rebalance:
            draft.rebalance_since_ms = draft.now_ms
        return NodeRegistered(node.id, node.name)
    if facts != node.facts:
        renamed = facts.name != node.facts.name
        name = _free_name(draft, facts.name, facts.id) if renamed else node.name
        draft.put_node(msgspec.structs.replace(node, facts=facts, name=name), "facts")
        return NodeRegistered(node.id, name)
    return NodeRegistered(node.id, node.name)


def _free_name(draft: Draft, wanted: str, node_id: NodeId) -> str:
    """`wanted`, or with the first number from 2 on that no other node has."""
    name, number = wanted, 1
    while draft.node_named(name) not in (None, node_id):  # ends: there are fewer nodes than numbers
        number += 1
        name = f"{wanted}-{number}"
    return name


def set_status(draft: Draft, body: c.SetNodeStatus) -> Outcome:
    """The node has this status; when it is down, its unfinished tasks are lost."""
    if body.term != draft.term:
        return Rejected(RejectReason.STALE_TERM, f"made in term {body.term}, not {draft.term}")
    node = draft.node(body.node_id)
    if node is None:
        return _missing(body.node_id)
    if node.status is body.status:
        if node.status_reason == body.reason:
            return Done(changed=False)
        draft.put_node(msgspec.structs.replace(node, status_reason=body.reason), "status")
        return Done()
    draft.put_node(
        msgspec.structs.replace(
            node, status=body.status, status_reason=body.reason, status_at_ms=draft.now_ms
        ),
        "status",
    )
    if body.status in (NodeStatus.DOWN, NodeStatus.LEFT):
        for task in draft.tasks_of_node(node.id):
            if not task.ended:
                lose(draft, task, f"node_{body.status}")
    return Done()


def _missing(node_id: str) -> Rejected:
    return Rejected(RejectReason.NOT_FOUND, f"there is no node {node_id}")


def set_eligibility(draft: Draft, body: c.SetEligibility) -> Outcome:
    node = draft.node(body.node_id)
    if node is None:
        return _missing(body.node_id)
    if node.eligible == body.eligible:
        return Done(changed=False)
    draft.put_node(msgspec.structs.replace(node, eligible=body.eligible), "eligibility")
    return Done()


def set_drain(draft: Draft, body: c.SetDrain) -> Outcome:
    """Draining until told otherwise; ending a drain leaves eligibility as it was."""
    node = draft.node(body.node_id)
    if node is None:
        return _missing(body.node_id)
    if body.deadline_ms is not None and body.deadline_ms < 0:
        return Rejected(RejectReason.INVALID, "a deadline cannot be negative")
    deadline = None if body.deadline_ms is None else draft.now_ms + body.deadline_ms
    if deadline is None and node.drain_deadline_ms is None:
        return Done(changed=False)
    draft.put_node(msgspec.structs.replace(node, drain_deadline_ms=deadline), "drain")
    return Done()


def set_labels(draft: Draft, body: c.SetLabels) -> Outcome:
    node = draft.node(body.node_id)
    if node is None:
        return _missing(body.node_id)
    if node.labels == body.labels:
        return Done(changed=False)
    draft.put_node(msgspec.structs.replace(node, labels=body.labels), "labels")
    return Done()


def remove(draft: Draft, body: c.RemoveNode) -> Outcome:
    """The node and every record of its tasks are gone, and its data is given up: slots whose
    volumes were there may go anywhere."""
    node = draft.node(body.node_id)
    if node is None:
        return _missing(body.node_id)
    if not node.may_be_removed:
        return Rejected(
            RejectReason.REFUSED,
            f"node {node.name} is {node.status}; only a node that is down can be removed",
        )
    for task in draft.tasks_of_node(node.id):
        draft.drop_task(task)
    draft.drop_volumes_of_node(node.id)
    draft.drop_node(node)
    ban(draft, node.id)
    return Done()
