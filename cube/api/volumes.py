"""/v1/volumes: where the volumes of slots are. /v1/nodes/{node}/volumes: what is on a node's disk.

A volume is removed on its node's disk when a person asks for it and nobody has a right to it. The
state need not change: it has no record of what nobody has a right to.
"""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from cube.api import elsewhere, query
from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.lookup import find_node, shown
from cube.api.render import rfc3339
from cube.model.cluster import ClusterState
from cube.model.errors import DriverFailed
from cube.model.views import Page
from cube.model.volumeclaims import all_volumes, claims_of
from cube.model.volumes import Volume
from cube.model.volumeviews import NodeVolumes, NodeVolumeView, VolumeRemoved, VolumeView

NAME_CHARS_MAX = 255


async def list_volumes(call: Call) -> web.Response:
    state = call.state
    found = sorted((volume for volume in all_volumes(state)), key=_key)
    page, following = query.page_by_name(found, _key, call.query)
    return call.json(Page(tuple(_view(state, one) for one in page), following, state.index))


def _key(volume: Volume) -> str:
    return f"{volume.name}/{volume.job}/{volume.group}/{volume.slot:06d}/{volume.job_id}"


def _view(state: ClusterState, volume: Volume) -> VolumeView:
    node = state.nodes.get(volume.node_id)
    job = state.job_named(volume.job)
    tasks = [] if job is None else state.tasks_under(job)
    return VolumeView(
        name=volume.name,
        node_id=volume.node_id,
        node_name=volume.node_id if node is None else node.name,
        node_status="left" if node is None else node.status.value,
        job=volume.job,
        group=volume.group,
        slot=volume.slot,
        tasks=tuple(
            task.name
            for task in tasks
            if (task.group, task.slot, task.ended) == (volume.group, volume.slot, False)
        ),
        created_at=rfc3339(volume.created_at_ms),
    )


async def list_on_node(call: Call) -> web.Response:
    node = find_node(call.state, call.path("node"))
    if not elsewhere.is_here(call, node):
        return await elsewhere.ask(call, node, f"/v1/nodes/{node.id}/volumes")
    names = await call.api.local_tasks.volume_names()
    items = tuple(
        NodeVolumeView(name=name, claims=claims_of(call.state, node.id, name)) for name in names
    )
    return call.json(NodeVolumes(node=node.name, items=items))


async def remove_volume(call: Call) -> web.Response:
    _ = await read_nothing(call)
    node, name = find_node(call.state, call.path("node")), call.path("name")
    if not name or len(name) > NAME_CHARS_MAX or "/" in name:
        raise Problem("not_found", f"{shown(name)} is no name of a volume")
    if claims := claims_of(call.state, node.id, name):
        owner = claims[0].partition(".")[0]
        more = f" and {len(claims) - 1} more" if len(claims) > 1 else ""
        raise Problem(
            "refused", f"volume {name} on {node.name} belongs to {claims[0]}{more}",
            hint=f"cube rm {owner} gives it up; its data stays until it is removed here",
        )  # fmt: skip
    if not elsewhere.is_here(call, node):
        path = f"/v1/nodes/{node.id}/volumes/{quote(name, safe='')}"
        return await elsewhere.ask(call, node, path, "DELETE", doing=f"remove volume {name}")
    try:
        is_gone = await call.api.local_tasks.remove_volume(name)
    except DriverFailed as failure:
        if failure.code != "volume_in_use":
            raise
        raise Problem(
            "refused", f"{failure.message} on {node.name}",
            hint="a task that has just been removed keeps it for some seconds: try again",
        ) from None  # fmt: skip
    if not is_gone:
        raise Problem(
            "not_found", f"node {node.name} has no volume {shown(name)} that this cluster made",
            hint="cube volume ls lists them",
        )  # fmt: skip
    return call.json(VolumeRemoved(node=node.name, name=name))
