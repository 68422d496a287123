"""/v1/nodes/{node}/gc: what a node could be rid of, and its end. The node itself knows, so it is asked."""

from __future__ import annotations

from aiohttp import web

from cube.api import elsewhere
from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.lookup import find_node
from cube.api.render import rfc3339
from cube.model.gcviews import GcDiskView, GcDoneView, GcImageView, GcOutputView, GcPlanView
from cube.model.housekeeping import ImageVerdict, OutputVerdict, Waste


async def plan_gc(call: Call) -> web.Response:
    node = find_node(call.state, call.path("node"))
    if not elsewhere.is_here(call, node):
        return await elsewhere.ask(call, node, f"/v1/nodes/{node.id}/gc")
    waste = await call.api.housekeeping.waste()
    return call.json(
        GcPlanView(
            node=node.name,
            disk=_disk(waste),
            images=tuple(_image(one) for one in waste.images),
            outputs=tuple(_output(one) for one in waste.outputs),
            problems=waste.problems,
        )
    )


async def run_gc(call: Call) -> web.Response:
    """Asked twice it cleans once: what is gone is gone."""
    _ = await read_nothing(call)
    node = find_node(call.state, call.path("node"))
    if not elsewhere.is_here(call, node):
        path = f"/v1/nodes/{node.id}/gc"
        return await elsewhere.ask(call, node, path, "POST", doing="clean up")
    done = await call.api.housekeeping.clean(call.actor)
    return call.json(
        GcDoneView(
            node=node.name,
            images=tuple(_image(one) for one in done.images),
            outputs=tuple(_output(one) for one in done.outputs),
            freed_bytes=done.freed_bytes,
            more=done.is_more,
            problems=done.problems,
        )
    )


def _disk(waste: Waste) -> GcDiskView | None:
    room = waste.room
    if room is None:
        return None
    return GcDiskView(
        path=waste.path,
        total_bytes=room.total_bytes,
        free_bytes=room.free_bytes,
        wanted_free_bytes=waste.room_wanted_bytes or None,
    )


def _image(one: ImageVerdict) -> GcImageView:
    return GcImageView(
        id=one.id,
        names=one.names,
        size_bytes=one.size_bytes,
        used_at=rfc3339(one.used_at_ms),
        keep=one.keep or None,
    )


def _output(one: OutputVerdict) -> GcOutputView:
    return GcOutputView(
        driver=one.driver,
        task_id=one.task_id,
        task=one.name or None,
        ended_at=rfc3339(one.ended_at_ms),
        keep=one.keep or None,
    )
