"""/v1/internal: what nodes ask of each other. No user's client calls these."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from cube.api.auth import Standing
from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.query import flag, integer
from cube.model.errors import Unavailable
from cube.model.ids import NodeId
from cube.ports.cluster import JoinRequest, LogRequest
from cube.ports.log import Ask, Role
from cube.ports.remote import Redirected
from cube.ports.trust import EnrolRefusal, EnrolRequest

_NONCE = re.compile(r"[0-9a-f]{32}")


class NodeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str


class TransferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str | None


class BeatBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node_id: str
    log_index: int | None = None
    wants_lease: bool = False


class Noted(msgspec.Struct, frozen=True):
    """`index` lets a node see how far behind it is. `lease_index`: see Peers.lease."""

    noted: bool
    index: int
    lease_index: int | None = None


async def join(call: Call) -> web.Response:
    request, _ = await read_json(call, JoinRequest)
    _check_own(call, request.node_id)
    try:
        return call.json(await call.api.peers.join(request))
    except Unavailable as error:
        raise _elsewhere(call, str(error)) from None


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
    body, _ = await read_json(call, BeatBody)
    _check_own(call, body.node_id)
    if not call.api.peers.heartbeat(NodeId(body.node_id), body.log_index):
        raise _elsewhere(call, "this node does not lead")
    lease_index = await call.api.peers.lease(NodeId(body.node_id)) if body.wants_lease else None
    return call.json(Noted(True, call.api.cluster.state().index, lease_index))


async def log(call: Call) -> web.Response:
    """Bytes between the logs of two nodes: what they say is no matter of the API."""
    query = call.query
    if "node" not in query or "after" not in query or "term" not in query:
        raise Problem("bad_parameter", "node, after and term say who asks, and for what")
    _check_own(call, query["node"])
    ask = Ask(
        integer(query, "after", 0, 0),
        integer(query, "term", 0, 0),
        query.get("office", ""),
        integer(query, "snapshot", 0, 0),
        integer(query, "offset", 0, 0),
    )
    request = LogRequest(
        node_id=NodeId(query["node"]),
        was_member=flag(query, "member"),
        ask=ask,
        wait_ms=integer(query, "wait_ms", 0, 0),
    )
    try:
        answer = await call.api.peers.log(request)
    except Redirected as redirect:
        raise Problem("not_leader", "this node has no vote", leader=redirect.leader) from None
    return web.Response(body=answer, content_type="application/octet-stream")


async def bootstrap(call: Call) -> web.Response:
    """In an envelope for hosts with the same secret; open where nobody is asked who they are."""
    nonce = call.query.get("nonce")
    if nonce is not None:
        if not _NONCE.fullmatch(nonce):
            raise Problem("bad_parameter", "nonce must be 32 hex digits")
        sealed = call.api.peers.bootstrap_sealed(nonce)
        return web.Response(body=sealed, content_type="application/octet-stream")
    if call.api.access.tokens:
        raise Problem("bad_request", "nonce is required: the answer is sealed")
    return call.json(call.api.peers.bootstrap())


async def ca(call: Call) -> web.Response:
    return web.Response(text=call.api.peers.ca(), content_type="application/x-pem-file")


async def enrol(call: Call) -> web.Response:
    request, _ = await read_json(call, EnrolRequest)
    answer = call.api.peers.enrol(call.request.remote or "unknown", request)
    return call.json(answer, 403 if isinstance(answer, EnrolRefusal) else 200)


def _check_own(call: Call, node_id: str) -> None:
    """A node speaks for itself only. Raises Problem."""
    identity = call.identity
    if identity.standing is Standing.NODE and identity.actor != f"node:{node_id}":
        raise Problem("forbidden", f"{identity.actor} cannot speak for node {node_id}")


def _elsewhere(call: Call, why: str) -> Problem:
    """409 with the leader's address when somebody else leads, else 503."""
    leader = call.api.peers.leader_http()
    if leader is None or call.api.cluster.log_status().role is Role.LEADER:
        return Problem("unavailable", why or "no leader is known")
    return Problem("not_leader", why or "this node does not lead", leader=leader)
