"""/v1/internal: what nodes ask of each other. No user's client calls these."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem
from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import JoinRequest
from cube.ports.log import Role


class NodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str


class TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str | None


class Noted(msgspec.Struct, frozen=True):
    """`index` lets a node see how far behind it is."""

    noted: bool
    index: int


async def join(call: Call) -> web.Response:
    request, _ = await read_json(call, JoinRequest)
    try:
        return call.json(await call.api.peers.join(request))
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None


async def admit(call: Call) -> web.Response:
    request, _ = await read_json(call, JoinRequest)
    try:
        await call.api.peers.admit(request)
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None
    return call.json(Noted(True, call.api.cluster.state().index))


async def remove_vote(call: Call) -> web.Response:
    body, _ = await read_json(call, NodeBody)
    try:
        await call.api.peers.remove_vote(NodeId(body.node_id))
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None
    return call.json(Noted(True, call.api.cluster.state().index))


async def transfer(call: Call) -> web.Response:
    body, _ = await read_json(call, TransferBody)
    try:
        await call.api.peers.transfer(None if body.node_id is None else NodeId(body.node_id))
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None
    return call.json(Noted(True, call.api.cluster.state().index))


async def progress(call: Call) -> web.Response:
    try:
        return call.json(call.api.peers.progress())
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None


async def heartbeat(call: Call) -> web.Response:
    body, _ = await read_json(call, NodeBody)
    if not call.api.peers.heartbeat(NodeId(body.node_id)):
        raise _elsewhere(call, "this node does not lead")
    return call.json(Noted(True, call.state.index))


async def bootstrap(call: Call) -> web.Response:
    return call.json(call.api.peers.bootstrap())


def _elsewhere(call: Call, why: str) -> Problem:
    """409 with the leader's address when somebody else leads, else 503."""
    leader = call.api.peers.leader_http()
    if leader is None or call.api.cluster.log_status().role is Role.LEADER:
        return Problem("unavailable", why or "no leader is known")
    return Problem("not_leader", why or "this node does not lead", leader=leader)
