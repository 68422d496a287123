"""/v1/status, health of this node, and what operators ask of Raft and gossip."""

from __future__ import annotations

from aiohttp import web

from cube.api import query, render
from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.errors import Problem
from cube.model.views import NodeIdentity, Page, ReadyView

TRANSFER_TIMEOUT_MS = 5_000  # an election, with room


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
    return call.json(
        render.status_view(call.state, identity, cluster.log_status(), members, cluster.warnings())
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


async def show_raft(call: Call) -> web.Response:
    cluster = call.api.cluster
    return call.json(render.raft_view(call.state, cluster.node_id(), cluster.log_status()))


async def transfer_leadership(call: Call) -> web.Response:
    await read_nothing(call)
    await call.api.cluster.transfer_leadership(TRANSFER_TIMEOUT_MS)
    return await show_raft(call)


async def show_gossip(call: Call) -> web.Response:
    members = sorted(call.api.cluster.members(), key=lambda member: member.node_id)
    page, following = query.page_by_name(members, lambda member: member.node_id, call.query)
    views = tuple(render.gossip_view(member) for member in page)
    return call.json(Page(views, following, call.state.index))
