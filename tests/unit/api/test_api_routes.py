"""The table of routes: what the contract names is there, with a role."""

from __future__ import annotations

from cube.api.auth import Role
from cube.api.call import Kind
from cube.api.routes import ROUTES
from cube.api.slots import SlotsOfJobs
from cube.model import commands as c
from cube.model.lifecycle import NodeStatus
from tests.fakes.cluster import TERM, World, job_spec

CONTRACT = """
GET /v1/status
GET /v1/livez
GET /v1/readyz
GET /v1/jobs
POST /v1/jobs
POST /v1/jobs/validate
POST /v1/jobs/plan
GET /v1/jobs/{job}
DELETE /v1/jobs/{job}
POST /v1/jobs/{job}/scale
POST /v1/jobs/{job}/restart
POST /v1/jobs/{job}/stop
POST /v1/jobs/{job}/start
POST /v1/jobs/{job}/rollback
GET /v1/jobs/{job}/versions
GET /v1/jobs/{job}/runs
POST /v1/jobs/{job}/run
GET /v1/jobs/{job}/why
GET /v1/tasks
GET /v1/tasks/{task}
DELETE /v1/tasks/{task}
GET /v1/tasks/{task}/logs
GET /v1/tasks/{task}/stats
POST /v1/tasks/{task}/restart
POST /v1/tasks/{task}/signal
GET /v1/tasks/{task}/exec
GET /v1/nodes
GET /v1/nodes/{node}
DELETE /v1/nodes/{node}
POST /v1/nodes/{node}/plan
PUT /v1/nodes/{node}/drain
PUT /v1/nodes/{node}/eligibility
PUT /v1/nodes/{node}/labels
GET /v1/deployments
GET /v1/deployments/{deployment}
POST /v1/deployments/{deployment}/promote
POST /v1/deployments/{deployment}/pause
POST /v1/deployments/{deployment}/resume
POST /v1/deployments/{deployment}/fail
GET /v1/services
GET /v1/services/{service}
GET /v1/events
GET /v1/raft
POST /v1/raft/transfer
POST /v1/raft/snapshot
GET /v1/gossip
GET /v1/secrets
GET /v1/tokens
GET /v1/openapi.json
GET /metrics
GET /ui/
POST /tasks
GET /tasks
DELETE /tasks/{task}
GET /nodes
GET /stats
"""


def test_every_route_of_the_contract_is_in_the_table_once() -> None:
    table = [f"{route.method} {route.path}" for route in ROUTES]
    assert len(table) == len(set(table))
    assert set(CONTRACT.split("\n")[1:-1]) <= set(table)


def test_only_health_and_the_dashboard_are_open_and_only_viewers_routes_are_reads() -> None:
    is_open = {route.path for route in ROUTES if route.role is Role.OPEN}
    makes_nodes = {f"/v1/internal/{verb}" for verb in ("bootstrap", "ca", "enrol")}
    assert is_open == {"/", "/ui", "/ui/", "/ui/{file}", "/v1/livez", "/v1/readyz"} | makes_nodes
    for route in ROUTES:
        internal = route.path.startswith("/v1/internal/")
        is_peers = route.role is Role.NODE or route.path in makes_nodes
        assert is_peers is internal is (route.kind is Kind.PEER), route.path
        if route.role is Role.VIEWER and route.method != "GET":
            harmless = ("/v1/jobs/validate", "/v1/jobs/plan", "/v1/nodes/{node}/plan")
            assert route.path in harmless


async def test_slots_are_remembered_while_nothing_changed_and_no_longer() -> None:
    world, slots = World(), SlotsOfJobs()
    world.run(job_spec("each", "system"))
    world.run(job_spec("shop"))

    def look() -> tuple[int, int]:
        each, shop = (world.state.job_named(name) for name in ("each", "shop"))
        assert each is not None and shop is not None
        found = slots.of(world.state, each)
        assert slots.of(world.state, each) is found
        return found.groups["web"].count, slots.of(world.state, shop).groups["web"].count

    assert look() == (2, 1)
    world.apply(c.SetNodeStatus(TERM, world.state.node_names["n2"], NodeStatus.DOWN))
    assert look() == (1, 1)
    world.apply(c.ScaleJob("shop", {"web": 4}))
    assert look() == (1, 4)
