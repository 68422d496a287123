"""POST /v1/raft/snapshot: the cluster's state as one file, from any node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.streams import ClientGone, abort, write
from cube.model.cluster import ClusterState
from cube.model.savedstate import DigestOf, SavedHeader, encode_head
from cube.statemachine import snapshot

SAVES_MAX = 2  # at once on a node: each holds the whole encoded state
PIECE_BYTES = 64 << 10
# Between two slices of the encoding: the Raft thread and the event loop wait for the interpreter.
PAUSE_S = 0.0005


async def save_state(call: Call) -> web.StreamResponse:
    """The answer has every entry that was committed before the request, anywhere."""
    await read_nothing(call)
    api = call.api
    if api.saves >= SAVES_MAX:
        raise Problem("overloaded", f"{SAVES_MAX} snapshots are being saved through this node")
    api.saves += 1
    try:
        await api.cluster.barrier(api.settings.barrier_timeout_ms)
        call.state = api.cluster.state()
        made_at_ms = max(call.state.now_ms, api.clock.now_ms())
        header, pieces = await asyncio.to_thread(encoded, call.state, made_at_ms, api.version)
        return await _send(call, encode_head(header), pieces)
    finally:
        api.saves -= 1


def encoded(
    state: ClusterState,
    saved_at_ms: int,
    program: str,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[SavedHeader, list[bytes]]:
    """The state in pieces, and its header, which needs all of them first."""
    found = DigestOf()
    pieces: list[bytes] = []
    piece = bytearray()
    for data in snapshot.dump_slices(state):
        found.add(data)
        piece += data
        if len(piece) >= PIECE_BYTES:
            pieces.append(bytes(piece))
            piece.clear()
        pause(PAUSE_S)
    pieces.append(bytes(piece))
    header = SavedHeader(
        cluster_id=state.cluster_id,
        cluster_name=state.cluster_name,
        index=state.index,
        term=state.term,
        digest=found.hex,
        size=found.size,
        saved_at_ms=saved_at_ms,
        jobs=len(state.job_names),
        nodes=len(state.nodes),
        tasks=len(state.tasks),
        program=program,
    )
    return header, pieces


async def _send(call: Call, head: bytes, pieces: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = len(head) + sum(map(len, pieces))
    try:
        await response.prepare(call.request)
        await write(call, response, head)
        for piece in pieces:
            await write(call, response, piece)
        await response.write_eof()
    except ClientGone:
        abort(call)
    return response
