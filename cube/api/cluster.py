"""/v1/status, health of this node, and what operators ask of Raft and gossip."""

from __future__ import annotations

import contextlib

import msgspec
from aiohttp import web

from cube.api import query, render
from cube.api.bodies import check_media_type, decode_json, read_body
from cube.api.call import JSON, Call
from cube.api.errors import Problem
from cube.api.lookup import find_node
from cube.model.cluster import Node
from cube.model.errors import Unavailable
from cube.model.views import NodeIdentity, Page, ReadyView
from cube.ports.log import Progress


async def show_status(call: Call) -> web.Response:
    cluster = call.api.cluster
    members = cluster.members()
    here = cluster.node_id()
    node = call.state.nodes.get(here)
    if node is not None:
        name = node.name
    else:  # joined, and its registration not applied yet
        name = next((member.name for member in members if member.node_id == here), "")
    identity = NodeIdentity(here, name, call.api.version)
    nodes = call.api.nodes_by_raft_address.of(call.state.nodes)
    return call.json(
        render.status_view(
            call.state, identity, nodes, cluster.log_status(), members, cluster.warnings()
        )
    )


async def livez(call: Call) -> web.Response:
    return call.json(ReadyView("alive"))


async def readyz(call: Call) -> web.Response:
    sentence = not_ready(call)
    if sentence is not None:
        raise Problem("not_ready", sentence)
    return call.json(ReadyView("ready"))


def not_ready(call: Call) -> str | None:
    sentence = call.api.cluster.joined()
    if sentence is not None:
        return sentence
    status = call.api.cluster.log_status()
    if not status.ready:
        return "this node is still applying its log"
    if status.leader is None:
        return "this node knows no leader"
    return None


class TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`node`: id, unique prefix or name; None: any voter that has the log."""

    node: str | None = None


async def show_raft(call: Call) -> web.Response:
    cluster = call.api.cluster
    progress: tuple[Progress, ...] = ()  # without a leader nobody knows
    with contextlib.suppress(Unavailable):
        progress = await cluster.progress()
    nodes = call.api.nodes_by_raft_address.of(call.state.nodes)
    return call.json(render.raft_view(cluster.node_id(), nodes, cluster.log_status(), progress))


async def transfer_leadership(call: Call) -> web.Response:
    """Another node leads: the one that is named, if any is. When it leads already, so it stays."""
    to = await _heir(call)
    status = call.api.cluster.log_status()
    voters = {voter.address for voter in status.voters}
    if to is not None and to.facts.raft_address not in voters:
        raise Problem("refused", f"{to.name} does not vote, so it cannot lead")
    is_leader = to is not None and to.facts.raft_address == status.leader
    if not is_leader:
        if len(voters) < 2:
            raise Problem("refused", "there is no other voter that could lead")
        await call.api.cluster.transfer_leadership(None if to is None else to.id)
        call.state = call.api.cluster.state()
    return await show_raft(call)


async def _heir(call: Call) -> Node | None:
    data = await read_body(call)
    if not data.strip():
        return None
    check_media_type(call, JSON)
    body = decode_json(data, TransferBody)
    return None if body.node is None else find_node(call.state, body.node)


async def show_gossip(call: Call) -> web.Response:
    members = sorted(call.api.cluster.members(), key=lambda member: member.node_id)
    page, following = query.page_by_name(members, lambda member: member.node_id, call.query)
    views = tuple(render.gossip_view(member) for member in page)
    return call.json(Page(views, following, call.state.index))
