"""Client: each route of the API as a method, answers as cube.model.views.

Synchronous, on http.client, for commands that live for a moment: it imports neither asyncio nor
aiohttp. All methods raise ApiProblem and NoAgent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import msgspec

from cube.client.credentials import Credentials
from cube.client.errors import ApiProblem, BadAnswer
from cube.client.streams import StreamedEvent, read_events, read_output
from cube.client.transport import Request, Transport, random_key
from cube.model import clusterviews as cv
from cube.model import deployviews as d
from cube.model import gcviews as g
from cube.model import planviews as p
from cube.model import views as v
from cube.model import volumeviews as w

TIMEOUT_S = 30.0  # above every wait of the server that a plain request can meet
PAGE_LIMIT = "1000"
JSON = "application/json"
TOML = "application/toml"

if TYPE_CHECKING:
    from cube.client.conversation import Conversation
    from cube.model.sessions import ExecOrder

T = TypeVar("T")


class Client:
    """`addresses` are tried in turn; the one that answers is asked first from then on."""

    def __init__(
        self,
        addresses: Sequence[str],
        credentials: Credentials | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Raises ValueError for an address that is none."""
        self._transport = Transport(list(addresses), credentials or Credentials(), timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def index(self) -> int:
        """The highest state seen; no later read is older."""
        return self._transport.index

    @property
    def scheme(self) -> str:
        """http or https: how the agent that answered last was asked."""
        return self._transport.scheme

    # The cluster

    def status(self) -> v.StatusView:
        return self._get("/v1/status", v.StatusView)

    def is_alive(self) -> bool:
        """The process answers. Raises NoAgent."""
        return self._probe("/v1/livez")

    def is_ready(self) -> bool:
        """It has caught up and knows a leader. Raises NoAgent."""
        return self._probe("/v1/readyz")

    def _probe(self, path: str) -> bool:
        try:
            self._transport.send(Request("GET", path, fresh=False))
        except ApiProblem as problem:
            if problem.status == 503:
                return False
            raise
        return True

    def raft(self) -> v.RaftView:
        return self._get("/v1/raft", v.RaftView)

    def transfer_leadership(self, node: str = "") -> v.RaftView:
        """To the node of this id, prefix or name; "": to any voter that has the log."""
        body = {"node": node} if node else {}
        return self._write_json("POST", "/v1/raft/transfer", v.RaftView, body)

    def save_state(self) -> Iterator[bytes]:
        """A saved state (cube.model.savedstate), pieces cut anywhere. Raises StreamBroken when it
        breaks off."""
        request = Request("POST", "/v1/raft/snapshot", fresh=False)
        return read_output(self._transport, request, follow=False)

    def gossip(self) -> list[v.GossipMemberView]:
        return self._all("/v1/gossip", v.Page[v.GossipMemberView])

    def services(self) -> list[v.ServiceView]:
        return self._all("/v1/services", v.Page[v.ServiceView])

    def service(self, name: str) -> v.ServiceView:
        return self._get(f"/v1/services/{_part(name)}", v.ServiceView)

    def events(
        self, topics: Sequence[str] = (), since: str = "", *, tail: int | None = None,
        follow: bool = True,
    ) -> Iterator[StreamedEvent]:  # fmt: skip
        """Those after `since`, or the last `tail` that are remembered; then, when following, what comes:
        endless, through another agent when this one goes away."""
        query = _given(topic=",".join(topics), since=since)
        query |= {} if tail is None else {"tail": str(tail)}
        query |= {} if follow else {"follow": "0"}
        request = Request("GET", "/v1/events", query, fresh=False)
        return read_events(self._transport, request, follow=follow)

    # Trust

    def tokens(self) -> list[v.TokenView]:
        return self._all("/v1/tokens", v.Page[v.TokenView])

    def create_token(self, role: str, lifetime: str | None, description: str) -> v.TokenMade:
        body = {"role": role, "lifetime": lifetime, "description": description}
        return self._write_json("POST", "/v1/tokens", v.TokenMade, body)

    def remove_token(self, id_: str) -> v.TokenChanged:
        return self._write("DELETE", f"/v1/tokens/{_part(id_)}", v.TokenChanged)

    # Secrets and configs

    def stored(self, kind: str) -> list[v.StoredView]:
        """`kind`: secret or config."""
        return self._all(f"/v1/{kind}s", v.Page[v.StoredView])

    def stored_path(self, kind: str, name: str) -> str:
        return f"/v1/{kind}s/{_part(name)}"

    def stored_one(self, kind: str, name: str) -> v.StoredView:
        return self._get(self.stored_path(kind, name), v.StoredView)

    def config_value(self, name: str, version: int | None = None) -> bytes:
        """The newest, or that version of it."""
        query = {} if version is None else {"version": str(version)}
        return self.read_raw(self.stored_path("config", name) + "/value", **query)

    def store(
        self, kind: str, name: str, value: bytes, version: int | None = None
    ) -> v.StoredChanged:
        """`version`: refused (ApiProblem 412) unless it is at that one; 0: unless it is new."""
        headers = {"Content-Type": "application/octet-stream", **_precondition(version)}
        return self._write("PUT", self.stored_path(kind, name), v.StoredChanged, value, headers)

    def remove_stored(self, kind: str, name: str) -> v.StoredRemoved:
        return self._write("DELETE", self.stored_path(kind, name), v.StoredRemoved)

    def join_token(self, *, rotate: bool = False) -> v.JoinTokenView:
        path = "/v1/cluster/join-token"
        if rotate:
            return self._write("POST", path, v.JoinTokenView)
        return self._get(path, v.JoinTokenView)

    def settings(self) -> cv.SettingsView:
        return self._get("/v1/cluster/settings", cv.SettingsView)

    def change_settings(self, changes: Mapping[str, str | bool | int]) -> cv.SettingsChanged:
        return self._write_json("PUT", "/v1/cluster/settings", cv.SettingsChanged, dict(changes))

    def rebalance_plan(self) -> cv.RebalanceView:
        return self._get("/v1/rebalance", cv.RebalanceView)

    def start_rebalance(self) -> cv.RebalanceStarted:
        return self._write("POST", "/v1/rebalance", cv.RebalanceStarted)

    def rotate_keys(self) -> v.KeyRotation:
        return self._write("POST", "/v1/cluster/rotate-keys", v.KeyRotation)

    # Jobs

    def jobs(self, type_: str = "", status: str = "", prefix: str = "") -> list[v.JobView]:
        return self._all("/v1/jobs", v.Page[v.JobView], type=type_, status=status, prefix=prefix)

    def job(self, name: str) -> v.JobView:
        return self._get(_job(name), v.JobView)

    def submit(
        self, data: bytes, content_type: str = TOML, expected_version: int | None = None
    ) -> v.JobChanged:
        """`expected_version` 0: it must not exist; N: it must be at N, else ApiProblem 412."""
        headers = {"Content-Type": content_type, **_precondition(expected_version)}
        return self._write("POST", "/v1/jobs", v.JobChanged, data, headers)

    def submit_book_task(self, data: bytes) -> bytes:
        """A task as the book's own API has it becomes a job of one; the answer is the book's."""
        headers = {"Content-Type": JSON, "Idempotency-Key": random_key()}
        return self._transport.send(Request("POST", "/tasks", body=data, headers=headers)).body

    def validate(self, data: bytes, content_type: str = TOML) -> v.JobValid:
        headers = {"Content-Type": content_type}
        return self._write("POST", "/v1/jobs/validate", v.JobValid, data, headers)

    def plan_job(self, data: bytes, content_type: str = TOML) -> p.JobPlanView:
        """What `submit` would come to. Nothing is changed."""
        return self._plan("/v1/jobs/plan", p.JobPlanView, data, content_type)

    def delete_job(self, name: str) -> v.JobChanged:
        return self._write("DELETE", _job(name), v.JobChanged)

    def scale(
        self, name: str, group: str, count: int, expected_version: int | None = None
    ) -> v.JobChanged:
        return self._write_json(
            "POST",
            _job(name, "/scale"),
            v.JobChanged,
            {"group": group, "count": count},
            _precondition(expected_version),
        )

    def restart_job(self, name: str) -> v.JobChanged:
        return self._write("POST", _job(name, "/restart"), v.JobChanged)

    def roll_back(self, name: str, version: int | None = None) -> v.JobChanged:
        return self._write_json("POST", _job(name, "/rollback"), v.JobChanged, {"version": version})

    def stop_job(self, name: str) -> v.JobChanged:
        return self._write("POST", _job(name, "/stop"), v.JobChanged)

    def start_job(self, name: str) -> v.JobChanged:
        return self._write("POST", _job(name, "/start"), v.JobChanged)

    def runs(self, name: str) -> list[v.RunView]:
        return list(self._get(_job(name, "/runs"), v.Page[v.RunView]).items)

    def trigger(self, name: str) -> v.RunTriggered:
        return self._write("POST", _job(name, "/run"), v.RunTriggered)

    def versions(self, name: str) -> list[v.JobVersionView]:
        return list(self._get(_job(name, "/versions"), v.Page[v.JobVersionView]).items)

    def why(self, name: str) -> v.WhyView:
        return self._get(_job(name, "/why"), v.WhyView)

    # Deployments

    def deployments(self, job: str = "") -> list[d.DeploymentView]:
        return self._all("/v1/deployments", v.Page[d.DeploymentView], job=job)

    def deployment(self, name: str) -> d.DeploymentView:
        """By id, or a job's newest."""
        return self._get(_deployment(name), d.DeploymentView)

    def steer(self, name: str, action: str) -> d.DeploymentView:
        """`action`: promote, pause, resume or fail."""
        return self._write("POST", f"{_deployment(name)}/{action}", d.DeploymentView)

    # Tasks

    def tasks(
        self, job: str = "", group: str = "", node: str = "", state: str = ""
    ) -> list[v.TaskView]:
        """`state` may be several, comma-separated."""
        path = "/v1/tasks"
        return self._all(path, v.Page[v.TaskView], job=job, group=group, node=node, state=state)

    def task(self, task: str) -> v.TaskView:
        """By id, unique prefix or name."""
        return self._get(_task(task), v.TaskView)

    def stop_task(self, task: str) -> v.TaskChanged:
        return self._write("DELETE", _task(task), v.TaskChanged)

    def task_stats(self, task: str) -> v.TaskStatsView:
        return self._get(_task(task, "/stats"), v.TaskStatsView)

    def restart_task(self, task: str) -> v.TaskChanged:
        return self._write("POST", _task(task, "/restart"), v.TaskChanged)

    def signal_task(self, task: str, signal: str) -> v.TaskSignalled:
        return self._write_json("POST", _task(task, "/signal"), v.TaskSignalled, {"signal": signal})

    def logs(
        self,
        task: str,
        *,
        streams: Sequence[str] = (),
        tail: int | None = None,
        since: str = "",
        follow: bool = False,
        timestamps: bool = False,
    ) -> Iterator[bytes]:
        """Its output, pieces cut anywhere. Raises StreamBroken when it breaks off."""
        query = _given(
            stream=",".join(streams),
            tail="" if tail is None else str(tail),
            since=since,
            follow="1" if follow else "",
            timestamps="1" if timestamps else "",
        )
        return read_output(self._transport, Request("GET", _task(task, "/logs"), query), follow)

    def exec(self, task: str, order: ExecOrder) -> Conversation:
        """A command beside the task, under way. The caller closes it."""
        from cube.client.conversation import connect

        return connect(self._transport, _task(task, "/exec"), order)

    # Nodes

    def nodes(self) -> list[v.NodeView]:
        return self._all("/v1/nodes", v.Page[v.NodeView])

    def node(self, node: str) -> v.NodeView:
        """By id, unique prefix or name."""
        return self._get(_node(node), v.NodeView)

    def volumes(self) -> list[w.VolumeView]:
        """Of every slot."""
        return self._all("/v1/volumes", v.Page[w.VolumeView])

    def node_volumes(self, node: str) -> w.NodeVolumes:
        """What is on the node's disk."""
        return self._get(_node(node, "/volumes"), w.NodeVolumes)

    def remove_volume(self, node: str, name: str) -> w.VolumeRemoved:
        path = f"/volumes/{quote(name, safe='')}"
        return self._write("DELETE", _node(node, path), w.VolumeRemoved)

    def gc_plan(self, node: str) -> g.GcPlanView:
        return self._get(_node(node, "/gc"), g.GcPlanView)

    def run_gc(self, node: str) -> g.GcDoneView:
        return self._write("POST", _node(node, "/gc"), g.GcDoneView)

    def node_stats(self, node: str) -> v.NodeStatsView:
        return self._get(_node(node, "/stats"), v.NodeStatsView)

    def remove_node(self, node: str) -> v.NodeChanged:
        return self._write("DELETE", _node(node), v.NodeChanged)

    def plan_node(self, node: str, action: str, deadline: str = "5m") -> p.NodePlanView:
        """What draining or losing (`action`: drain or lose) the node would come to."""
        data = msgspec.json.encode({"action": action, "deadline": deadline})
        return self._plan(_node(node, "/plan"), p.NodePlanView, data, JSON)

    def drain(self, node: str, deadline: str | float) -> v.NodeChanged:
        return self._write_json("PUT", _node(node, "/drain"), v.NodeChanged, {"deadline": deadline})

    def end_drain(self, node: str) -> v.NodeChanged:
        return self._write_json("PUT", _node(node, "/drain"), v.NodeChanged, None)

    def set_eligible(self, node: str, eligible: bool) -> v.NodeChanged:
        return self._write_json(
            "PUT", _node(node, "/eligibility"), v.NodeChanged, {"eligible": eligible}
        )

    def set_labels(self, node: str, labels: Mapping[str, str]) -> v.NodeChanged:
        return self._write_json("PUT", _node(node, "/labels"), v.NodeChanged, dict(labels))

    # Anything

    def read_raw(self, path: str, **query: str) -> bytes:
        """The body of a GET as it came, for `-o json`. `path` is quoted by the caller."""
        return self._transport.send(Request("GET", path, _given(**query))).body

    def _get(self, path: str, shape: type[T], query: dict[str, str] | None = None) -> T:
        return _decode(self._transport.send(Request("GET", path, query or {})).body, shape)

    def _plan(self, path: str, shape: type[T], data: bytes, content_type: str) -> T:
        request = Request("POST", path, {}, data, {"Content-Type": content_type}, reads=True)
        return _decode(self._transport.send(request).body, shape)

    def _all(self, path: str, shape: type[v.Page[T]], **filters: str) -> list[T]:
        """Every page."""
        query = {**_given(**filters), "limit": PAGE_LIMIT}
        found: list[T] = []
        while True:
            page = self._get(path, shape, query)
            found.extend(page.items)
            if page.next is None:
                return found
            query["cursor"] = page.next

    def _write(
        self,
        method: str,
        path: str,
        shape: type[T],
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        keyed = {"Idempotency-Key": random_key(), **(headers or {})}
        return _decode(
            self._transport.send(Request(method, path, body=data, headers=keyed)).body, shape
        )

    def _write_json(
        self,
        method: str,
        path: str,
        shape: type[T],
        value: object,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        typed = {"Content-Type": JSON, **(headers or {})}
        return self._write(method, path, shape, msgspec.json.encode(value), typed)


def _decode(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise BadAnswer(f"the agent's answer is not understood: {error}") from None


def _given(**query: str) -> dict[str, str]:
    return {name: value for name, value in query.items() if value}


def _part(text: str) -> str:
    return quote(text, safe="")


def _job(name: str, rest: str = "") -> str:
    return f"/v1/jobs/{_part(name)}{rest}"


def _deployment(name: str) -> str:
    return f"/v1/deployments/{_part(name)}"


def _task(task: str, rest: str = "") -> str:
    return f"/v1/tasks/{_part(task)}{rest}"


def _node(node: str, rest: str = "") -> str:
    return f"/v1/nodes/{_part(node)}{rest}"


def _precondition(expected_version: int | None) -> dict[str, str]:
    if expected_version is None:
        return {}
    return (
        {"If-None-Match": "*"} if expected_version == 0 else {"If-Match": f'"{expected_version}"'}
    )
