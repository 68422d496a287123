"""/v1/nodes."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from cube.api import query, render
from cube.api.bodies import check_media_type, decode_json, read_body, read_json, read_nothing
from cube.api.call import JSON, Call
from cube.api.errors import Problem
from cube.api.lookup import find_node
from cube.model import commands
from cube.model.cluster import Node
from cube.model.commands import Body
from cube.model.ids import NodeId
from cube.model.outcome import Done
from cube.model.units import parse_duration_ms
from cube.model.views import NodeChanged, Page, ProblemError

LABELS_MAX = 64  # per node: what a person can oversee, and a bound on the state
LABEL_CHARS_MAX = 253  # of a key or a value: a DNS name fits
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?")


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deadline: str | int | float = "1h"


class EligibilityBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    eligible: bool


async def list_nodes(call: Call) -> web.Response:
    state = call.state
    nodes = call.api.nodes_in_order.of(state.nodes)
    page, following = query.page_by_name(nodes, _name_of, call.query)
    status = call.api.cluster.log_status()
    shown = {node.id for node in page}
    members = {one.node_id: one for one in call.api.cluster.members() if one.node_id in shown}
    views = tuple(render.node_view(state, node, status, members.get(node.id)) for node in page)
    return call.json(Page(views, following, state.index))


def _name_of(node: Node) -> str:
    return node.name


async def show_node(call: Call) -> web.Response:
    node = find_node(call.state, call.path("node"))
    member = next((m for m in call.api.cluster.members() if m.node_id == node.id), None)
    return call.json(render.node_view(call.state, node, call.api.cluster.log_status(), member))


async def remove_node(call: Call) -> web.Response:
    data = await read_nothing(call)
    word = call.path("node")
    try:
        node = find_node(call.state, word)
    except Problem as problem:
        if problem.code != "not_found" or not call.is_repeatable:
            raise
        # Perhaps the first try removed it: its outcome is remembered by the key.
        return await _change(call, word, word, commands.RemoveNode(NodeId(word)), data)
    # Its vote first: a node that is no member any more must not count. Of others apply refuses it.
    voters = {voter.address for voter in call.api.cluster.log_status().voters}
    if node.may_be_removed and node.facts.raft_address in voters:
        await call.api.cluster.remove_vote(node.id)
    return await _change(call, node.id, node.name, commands.RemoveNode(node.id), data)


async def drain_node(call: Call) -> web.Response:
    """`null` ends the drain. `{"deadline": null}` is refused: it could mean either."""
    node = find_node(call.state, call.path("node"))
    check_media_type(call, JSON)
    data = await read_body(call)
    deadline_ms: int | None = None
    if data.strip() != b"null":
        try:
            deadline_ms = parse_duration_ms(decode_json(data, DrainBody).deadline)
        except ValueError as error:
            raise _invalid("deadline", str(error)) from None
    return await _change(call, node.id, node.name, commands.SetDrain(node.id, deadline_ms), data)


async def set_eligibility(call: Call) -> web.Response:
    node = find_node(call.state, call.path("node"))
    body, data = await read_json(call, EligibilityBody)
    return await _change(
        call, node.id, node.name, commands.SetEligibility(node.id, body.eligible), data
    )


async def set_labels(call: Call) -> web.Response:
    """The labels set by hand are these; the agent's own stay under them."""
    node = find_node(call.state, call.path("node"))
    labels, data = await read_json(call, dict[str, str])
    if len(labels) > LABELS_MAX:
        raise Problem("invalid", f"a node has at most {LABELS_MAX} labels, these are {len(labels)}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise _invalid(key[:64], "is no name for a label; letters, digits, '.', '_', '/', '-'")
        if len(value) > LABEL_CHARS_MAX or not value.isprintable():
            raise _invalid(key, f"must be at most {LABEL_CHARS_MAX} printable characters")
    return await _change(call, node.id, node.name, commands.SetLabels(node.id, labels), data)


def _invalid(key: str, problem: str) -> Problem:
    return Problem("invalid", f"{key}: {problem}", errors=(ProblemError(f"/{key}", problem, key),))


async def _change(call: Call, id_: str, name: str, body: Body, data: bytes) -> web.Response:
    proposed = await call.propose(body, data)
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    return call.json(NodeChanged(id_, name, outcome.changed, proposed.index))
