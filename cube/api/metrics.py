"""/metrics: Prometheus text of what is known without measuring. Labels come from bounded sets, but
for `job`, which the cluster's own limits bound."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from aiohttp import web

from cube.api.call import Call
from cube.ports.log import Role

Sample = tuple[dict[str, str], float]

MEMBER_STATES = ("alive", "suspect", "dead", "left")


async def show_metrics(call: Call) -> web.Response:
    lines: list[str] = []
    for name, kind, text, samples in _families(call):
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")
        lines.extend(f"{name}{_labels(labels)} {value:.15g}" for labels, value in samples)
    body = "\n".join(lines) + "\n"
    return web.Response(body=body.encode(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _families(call: Call) -> Iterable[tuple[str, str, str, list[Sample]]]:
    cluster = call.api.cluster
    status = cluster.log_status()
    build = {"version": call.api.version, "python": platform.python_version()}
    yield "cube_build_info", "gauge", "What runs here.", [(build, 1)]
    yield "cube_raft_is_leader", "gauge", "1 at the leader.", [({}, status.role is Role.LEADER)]
    yield "cube_raft_has_quorum", "gauge", "1 when writes are possible.", [({}, status.quorum)]
    yield "cube_raft_term", "gauge", "Term of this node.", [({}, status.term)]
    yield "cube_raft_commit_index", "gauge", "Last committed entry.", [({}, status.commit_index)]
    yield "cube_raft_applied_index", "gauge", "Last applied entry.", [({}, status.applied_index)]
    yield "cube_gossip_members", "gauge", "Members as seen from here.", _members(call)
    yield "cube_nodes", "gauge", "Registered nodes.", _nodes(call)
    yield "cube_tasks", "gauge", "Tasks of the cluster.", _tasks(call)
    yield "cube_node_memory_bytes", "gauge", "Memory of this host.", _memory(call)
    yield (
        "cube_http_requests_total",
        "counter",
        "Answers of this node.",
        [
            ({"method": method, "route": route, "code": str(code)}, count)
            for (method, route, code), count in sorted(call.api.answers.items())
        ],
    )


def _members(call: Call) -> list[Sample]:
    found = dict.fromkeys(MEMBER_STATES, 0)
    for member in call.api.cluster.members():
        found[member.state] = found.get(member.state, 0) + 1
    return [({"state": state}, count) for state, count in found.items()]


def _nodes(call: Call) -> list[Sample]:
    found: dict[str, int] = {}
    for node in call.state.nodes.values():
        found[node.status.value] = found.get(node.status.value, 0) + 1
    return [({"status": status}, count) for status, count in sorted(found.items())]


def _tasks(call: Call) -> list[Sample]:
    found: dict[tuple[str, str], int] = {}
    for task in call.state.tasks.values():
        key = (task.job, task.state.value)
        found[key] = found.get(key, 0) + 1
    return [({"job": job, "state": state}, count) for (job, state), count in sorted(found.items())]


def _memory(call: Call) -> list[Sample]:
    here = call.api.cluster.node_id()
    stats = next((m.stats for m in call.api.cluster.members() if m.node_id == here), None)
    if stats is None:
        return []
    return [
        ({"kind": "total"}, stats.memory_total_bytes),
        ({"kind": "used"}, stats.memory_used_bytes),
    ]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
