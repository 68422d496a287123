"""/v1/services: where the healthy tasks of job.group.port answer."""

from __future__ import annotations

from aiohttp import web

from cube.api import query
from cube.api.call import Call
from cube.api.errors import Problem, did_you_mean
from cube.api.lookup import shown
from cube.model.addresses import join_address
from cube.model.cluster import ClusterState
from cube.model.ids import NodeId
from cube.model.views import EndpointView, Page, ServiceView

FORMATS = ("json", "prometheus")


def services_of(state: ClusterState, job_name: str | None = None) -> list[ServiceView]:
    """By name. A port of a group that nothing serves is a service without endpoints."""
    found: list[ServiceView] = []
    for job in state.jobs.values():
        if not job.listed or (job_name is not None and job.name != job_name):
            continue
        tasks = [t for t in state.tasks_under(job) if t.live and t.serving]
        for group, spec in job.spec.groups.items():
            for port, port_spec in spec.ports.items():
                endpoints = tuple(
                    EndpointView(task.id, task.name, _node_name(state, task.node_id), address)
                    for task in tasks
                    if task.group == group
                    for address in (
                        join_address(task.address, p.host) for p in task.ports if p.name == port
                    )
                )
                name = f"{job.name}.{group}.{port}"
                found.append(
                    ServiceView(name, job.name, group, port, port_spec.protocol.value, endpoints)
                )
    return sorted(found, key=_name_of)


def _node_name(state: ClusterState, node_id: NodeId) -> str:
    node = state.nodes.get(node_id)
    return node_id if node is None else node.name


def _name_of(service: ServiceView) -> str:
    return service.name


async def list_services(call: Call) -> web.Response:
    formats = query.words(call.query, "format", FORMATS) or frozenset({"json"})
    services = services_of(call.state)
    if "prometheus" in formats:
        return call.json([target for service in services for target in _http_sd(service)])
    page, following = query.page_by_name(services, _name_of, call.query)
    return call.json(Page(tuple(page), following, call.state.index))


def _http_sd(service: ServiceView) -> list[dict[str, object]]:
    """Of one service: a target group for each task, so that its labels are its own."""
    return [
        {
            "targets": [endpoint.address],
            "labels": {
                "__meta_cube_service": service.name,
                "__meta_cube_job": service.job,
                "__meta_cube_group": service.group,
                "__meta_cube_port": service.port,
                "__meta_cube_task": endpoint.task,
                "__meta_cube_node": endpoint.node,
            },
        }
        for endpoint in service.endpoints
    ]


async def show_service(call: Call) -> web.Response:
    name = call.path("service")
    services = {s.name: s for s in services_of(call.state, name.partition(".")[0])}
    if name not in services:
        hint = did_you_mean(name, services) or "GET /v1/services lists them"
        raise Problem("not_found", f"there is no service {shown(name)}", hint=hint)
    return call.json(services[name])
