"""Every route there is, with the role that may use it. A route without a role cannot exist.

What a later version brings is here too and answers 501 with a sentence: a client must not mistake
"not yet" for "no such thing".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from cube.api import (
    book,
    cluster,
    deployments,
    endpoints,
    exec_socket,
    housekeeping,
    internal,
    jobs,
    logs,
    metrics,
    nodes,
    plans,
    rebalancing,
    runs,
    saving,
    settings,
    stored,
    task_tools,
    tasks,
    trust,
    volumes,
    watch,
    web_files,
)
from cube.api.auth import Role
from cube.api.call import Call, Kind, Route
from cube.api.errors import Problem
from cube.model.deployment import DeploymentAction
from cube.model.stored import StoredKind

Answer = Callable[[Call], Awaitable[web.StreamResponse]]


def _route(
    method: str, path: str, role: Role, kind: Kind, answer: Answer, *query: str,
    versioned: bool = False,
) -> Route:  # fmt: skip
    return Route(method, path, role, kind, answer, frozenset(query), versioned)


def _later(method: str, path: str, role: Role, sentence: str) -> Route:
    async def answer(call: Call) -> web.StreamResponse:
        raise Problem("not_built", sentence)

    return Route(method, path, role, Kind.PLAIN, answer, any_query=True)


_OPEN, _VIEWER, _DEPLOYER, _OPERATOR, _NODE = (
    Role.OPEN, Role.VIEWER, Role.DEPLOYER, Role.OPERATOR, Role.NODE,
)  # fmt: skip
_PLAIN, _READ, _PAGE, _WRITE, _STREAM, _PEER = (
    Kind.PLAIN, Kind.READ, Kind.PAGE, Kind.WRITE, Kind.STREAM, Kind.PEER,
)  # fmt: skip

_CLUSTER = (
    _route("GET", "/v1/livez", _OPEN, _PLAIN, cluster.livez),
    _route("GET", "/v1/readyz", _OPEN, _PLAIN, cluster.readyz),
    _route("GET", "/v1/status", _VIEWER, _READ, cluster.show_status),
    _route(
        "GET",
        "/v1/events",
        _VIEWER,
        _STREAM,
        watch.stream_events,
        "topic",
        "since",
        "tail",
        "follow",
    ),
    _route("GET", "/v1/services", _VIEWER, _PAGE, endpoints.list_services, "format"),
    _route("GET", "/v1/services/{service}", _VIEWER, _READ, endpoints.show_service),
    _route("GET", "/v1/raft", _OPERATOR, _READ, cluster.show_raft),
    _route("POST", "/v1/raft/transfer", _OPERATOR, _WRITE, cluster.transfer_leadership),
    _route("POST", "/v1/raft/snapshot", _OPERATOR, _STREAM, saving.save_state),
    _route("GET", "/v1/cluster/settings", _VIEWER, _READ, settings.show_settings),
    _route("PUT", "/v1/cluster/settings", _OPERATOR, _WRITE, settings.change_settings),
    _route("GET", "/v1/rebalance", _VIEWER, _READ, rebalancing.show_rebalance),
    _route("POST", "/v1/rebalance", _OPERATOR, _WRITE, rebalancing.start_rebalance),
    _route("GET", "/v1/gossip", _OPERATOR, _PAGE, cluster.show_gossip),
    _route("GET", "/metrics", _VIEWER, _READ, metrics.show_metrics),
)

_JOBS = (
    _route("GET", "/v1/jobs", _VIEWER, _PAGE, jobs.list_jobs, "type", "status", "prefix"),
    _route("POST", "/v1/jobs", _DEPLOYER, _WRITE, jobs.submit_job, versioned=True),
    _route("POST", "/v1/jobs/validate", _VIEWER, _WRITE, jobs.validate_job),
    _route("POST", "/v1/jobs/plan", _VIEWER, _READ, plans.plan_job),
    _route("GET", "/v1/jobs/{job}", _VIEWER, _READ, jobs.show_job),
    _route("DELETE", "/v1/jobs/{job}", _DEPLOYER, _WRITE, jobs.delete_job),
    _route("POST", "/v1/jobs/{job}/scale", _DEPLOYER, _WRITE, jobs.scale_job, versioned=True),
    _route("POST", "/v1/jobs/{job}/restart", _DEPLOYER, _WRITE, jobs.restart_job, versioned=True),
    _route(
        "POST", "/v1/jobs/{job}/rollback", _DEPLOYER, _WRITE, jobs.roll_back_job, versioned=True
    ),
    _route("POST", "/v1/jobs/{job}/stop", _DEPLOYER, _WRITE, jobs.stop_job),
    _route("POST", "/v1/jobs/{job}/start", _DEPLOYER, _WRITE, jobs.start_job),
    _route("GET", "/v1/jobs/{job}/runs", _VIEWER, _READ, runs.list_runs),
    _route("POST", "/v1/jobs/{job}/run", _DEPLOYER, _WRITE, runs.trigger_run),
    _route("GET", "/v1/jobs/{job}/versions", _VIEWER, _READ, jobs.list_versions),
    _route("GET", "/v1/jobs/{job}/why", _VIEWER, _READ, jobs.explain_job),
)

_DEPLOYMENTS = (
    _route("GET", "/v1/deployments", _VIEWER, _PAGE, deployments.list_deployments, "job", "latest"),
    _route("GET", "/v1/deployments/{deployment}", _VIEWER, _READ, deployments.show_deployment),
    *(
        _route(
            "POST", f"/v1/deployments/{{deployment}}/{action.value}", _DEPLOYER, _WRITE,
            deployments.steer(action),
        )
        for action in DeploymentAction
    ),
)  # fmt: skip

_TASKS = (
    _route("GET", "/v1/tasks", _VIEWER, _PAGE, tasks.list_tasks, "job", "group", "node", "state"),
    _route("GET", "/v1/tasks/{task}", _VIEWER, _READ, tasks.show_task),
    _route("DELETE", "/v1/tasks/{task}", _DEPLOYER, _WRITE, tasks.stop_task),
    _route(
        "GET", "/v1/tasks/{task}/logs", _VIEWER, _STREAM, logs.show_logs,
        "stream", "tail", "since", "follow", "timestamps",
    ),
    _route("GET", "/v1/tasks/{task}/stats", _VIEWER, _READ, task_tools.show_stats),
    _route("POST", "/v1/tasks/{task}/restart", _DEPLOYER, _WRITE, tasks.restart_task),
    _route("POST", "/v1/tasks/{task}/signal", _DEPLOYER, _WRITE, task_tools.signal_task),
    _route("GET", "/v1/tasks/{task}/exec", _OPERATOR, _STREAM, exec_socket.open_exec),
)  # fmt: skip

_NODES = (
    _route("GET", "/v1/nodes", _VIEWER, _PAGE, nodes.list_nodes),
    _route("GET", "/v1/nodes/{node}", _VIEWER, _READ, nodes.show_node),
    _route("GET", "/v1/nodes/{node}/stats", _VIEWER, _READ, task_tools.show_node_stats),
    _route("DELETE", "/v1/nodes/{node}", _OPERATOR, _WRITE, nodes.remove_node),
    _route("POST", "/v1/nodes/{node}/plan", _VIEWER, _READ, plans.plan_node),
    _route("PUT", "/v1/nodes/{node}/drain", _OPERATOR, _WRITE, nodes.drain_node),
    _route("PUT", "/v1/nodes/{node}/eligibility", _OPERATOR, _WRITE, nodes.set_eligibility),
    _route("PUT", "/v1/nodes/{node}/labels", _OPERATOR, _WRITE, nodes.set_labels),
    _route("GET", "/v1/nodes/{node}/volumes", _VIEWER, _READ, volumes.list_on_node),
    _route("DELETE", "/v1/nodes/{node}/volumes/{name}", _OPERATOR, _WRITE, volumes.remove_volume),
    _route("GET", "/v1/nodes/{node}/gc", _VIEWER, _READ, housekeeping.plan_gc),
    _route("POST", "/v1/nodes/{node}/gc", _OPERATOR, _WRITE, housekeeping.run_gc),
    _route("GET", "/v1/volumes", _VIEWER, _PAGE, volumes.list_volumes),
)

_TRUST = (
    _route("GET", "/v1/tokens", _OPERATOR, _PAGE, trust.list_tokens),
    _route("POST", "/v1/tokens", _OPERATOR, _WRITE, trust.create_token),
    _route("GET", "/v1/tokens/{name}", _OPERATOR, _READ, trust.show_token),
    _route("DELETE", "/v1/tokens/{name}", _OPERATOR, _WRITE, trust.remove_token),
    _route("GET", "/v1/cluster/join-token", _OPERATOR, _READ, trust.show_join_token),
    _route("POST", "/v1/cluster/join-token", _OPERATOR, _WRITE, trust.rotate_join_token),
    _route("POST", "/v1/cluster/rotate-keys", _OPERATOR, _WRITE, trust.rotate_keys),
)


def _stored_routes(kind: StoredKind) -> tuple[Route, ...]:
    # Who may run a job may read what it is given: a role above deployer would protect nothing.
    noun = f"/v1/{kind.value}s"
    named = f"{noun}/{{name}}"
    return (
        _route("GET", noun, _VIEWER, _PAGE, stored.list_all(kind)),
        _route("POST", noun, _DEPLOYER, _WRITE, stored.make(kind), versioned=True),
        _route("GET", named, _VIEWER, _READ, stored.show(kind)),
        _route("PUT", named, _DEPLOYER, _WRITE, stored.put(kind), versioned=True),
        _route("DELETE", named, _DEPLOYER, _WRITE, stored.remove(kind)),
    )


_STORED = (
    *_stored_routes(StoredKind.SECRET),
    *_stored_routes(StoredKind.CONFIG),
    _route("GET", "/v1/configs/{name}/value", _VIEWER, _READ, stored.show_config_value, "version"),
)

_PEERS = (
    _route("POST", "/v1/internal/join", _NODE, _PEER, internal.join),
    _route(
        "GET", "/v1/internal/log", _NODE, _PEER, internal.log,
        "node", "member", "after", "term", "office", "snapshot", "offset", "wait_ms",
    ),
    _route("POST", "/v1/internal/remove_vote", _NODE, _PEER, internal.remove_vote),
    _route("POST", "/v1/internal/transfer", _NODE, _PEER, internal.transfer),
    _route("GET", "/v1/internal/progress", _NODE, _PEER, internal.progress),
    _route("POST", "/v1/internal/heartbeat", _NODE, _PEER, internal.heartbeat),
    # Before one is a node there is nothing to show: these answer with what proves itself.
    _route("GET", "/v1/internal/bootstrap", _OPEN, _PEER, internal.bootstrap, "nonce"),
    _route("GET", "/v1/internal/ca", _OPEN, _PEER, internal.ca),
    _route("POST", "/v1/internal/enrol", _OPEN, _PEER, internal.enrol),
)  # fmt: skip

_BOOK = (
    _route("POST", "/tasks", _DEPLOYER, _WRITE, book.add_task),
    _route("GET", "/tasks", _VIEWER, _READ, book.list_tasks),
    _route("DELETE", "/tasks/{task}", _DEPLOYER, _WRITE, book.remove_task),
    _route("GET", "/nodes", _VIEWER, _READ, book.list_nodes),
    _route("GET", "/stats", _VIEWER, _READ, book.show_stats),
)

_DASHBOARD = (
    _route("GET", "/", _OPEN, _PLAIN, web_files.go_to_dashboard),
    _route("GET", "/ui", _OPEN, _PLAIN, web_files.go_to_dashboard),
    _route("GET", "/ui/", _OPEN, _PLAIN, web_files.show_index),
    _route("GET", "/ui/{file}", _OPEN, _PLAIN, web_files.show_file),
)

_LATER = (_later("GET", "/v1/openapi.json", _VIEWER, "the OpenAPI document comes later"),)

# What is fixed comes before what has a parameter in the same place (/v1/jobs/validate, /plan).
ROUTES: tuple[Route, ...] = (
    *_CLUSTER, *_LATER, *_JOBS, *_DEPLOYMENTS, *_TASKS, *_NODES, *_TRUST, *_STORED, *_PEERS,
    *_BOOK, *_DASHBOARD,
)  # fmt: skip
