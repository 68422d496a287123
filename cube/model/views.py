"""The JSON shapes of the HTTP API: what cube.api renders and cube.client reads.

They are interface.md's, field by field. Times are RFC 3339 text in UTC or None, sizes bytes, cores
and durations floats. This module imports nothing of the model: a client command pays for msgspec
and no more. Readers ignore fields they do not know, so a newer agent may add some.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

Item = TypeVar("Item")


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A list. `next` is the cursor of the following page, None at the end."""

    items: tuple[Item, ...]
    next: str | None
    index: int


class ProblemError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of several things that are wrong. `path` is the pointer as a job file would say it."""

    pointer: str
    detail: str
    path: str = ""
    hint: str = ""


class ProblemView(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `leader` and `candidates` are there with the codes that speak of them."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    errors: tuple[ProblemError, ...] = ()
    request_id: str = ""
    leader: str | msgspec.UnsetType = msgspec.UNSET
    candidates: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class NodeIdentity(msgspec.Struct, frozen=True):
    id: str
    name: str
    version: str


class LeaderView(msgspec.Struct, frozen=True):
    """`id` is None while the leader's address belongs to no registered node."""

    id: str | None
    name: str
    http: str | None


class VoterView(msgspec.Struct, frozen=True):
    """`id` is None, and `name` the Raft address, while the voter has not registered."""

    id: str | None
    name: str


class MemberCounts(msgspec.Struct, frozen=True):
    alive: int = 0
    suspect: int = 0
    dead: int = 0
    left: int = 0


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    cluster_id: str
    cluster_name: str
    node: NodeIdentity
    leader: LeaderView | None
    role: str
    term: int
    commit_index: int
    applied_index: int
    voters: tuple[VoterView, ...]
    members: MemberCounts
    quorum: bool
    warnings: tuple[str, ...] = ()


class ReadyView(msgspec.Struct, frozen=True):
    status: str


class GroupCounts(msgspec.Struct, frozen=True):
    """In slots, so a start-first rollout does not count twice. See cube/api/DESIGN.md.

    `pending`: wanted, and neither running nor completed nor failed. `failed`: the newest task
    failed and nothing has taken its place yet. `completed`: a batch slot that is done.
    """

    count: int
    running: int = 0
    healthy: int = 0
    pending: int = 0
    failed: int = 0
    completed: int = 0


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a cron job. `run` None: due times that had none, `count` of them in a row, the latest
    at `scheduled_at`. `completed`, `failed`: its tasks, counted when it finished. `trigger`: schedule
    or hand."""

    run: int | None
    status: str  # running | completed | failed | skipped | missed | stopped
    trigger: str
    version: int
    scheduled_at: str | None
    started_at: str | None
    finished_at: str | None
    count: int
    completed: int
    failed: int
    message: str


class RunTriggered(msgspec.Struct, frozen=True):
    name: str
    run: int
    index: int


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str
    version: int
    status: str  # pending | running | degraded | stopping | completed | failed | stopped
    spec: dict[str, object]
    groups: dict[str, GroupCounts]
    created_at: str | None
    modified_index: int
    digests: dict[str, str] = {}  # by image of the spec: what this version runs, once that is known
    next_run_at: str | None = None  # cron
    runs: tuple[RunView, ...] = ()  # cron: newest first; in lists of jobs the newest only


class JobChanged(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to every write to a job. `warnings`: what is accepted but not honoured yet."""

    name: str
    version: int
    changed: bool
    deployment_id: str | None = None
    index: int
    warnings: tuple[str, ...] = ()


class JobValid(msgspec.Struct, frozen=True, kw_only=True):
    valid: bool
    name: str
    spec: dict[str, object]
    warnings: tuple[str, ...] = ()


class JobVersionView(msgspec.Struct, frozen=True):
    """`stable`: it was healthy at full count, so a rollback goes there. `uses`: secrets and configs by
    `secret/NAME` or `config/NAME`, with the version it has of each (0: the newest when it is needed).
    `reason`: why there is this version, where nobody has submitted it."""

    version: int
    created_at: str | None
    actor: str
    spec: dict[str, object]
    stable: bool = False
    uses: dict[str, int] = {}
    reason: str = ""
    digests: dict[str, str] = {}


class ReasonView(msgspec.Struct, frozen=True):
    code: str
    message: str
    need: str = ""
    have: str = ""


class NodeReasons(msgspec.Struct, frozen=True):
    node_id: str
    node: str
    reasons: tuple[ReasonView, ...]


class ExplanationView(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    group: str
    slots: tuple[int, ...]
    kind: str
    summary: str
    reasons: tuple[ReasonView, ...]
    nodes: tuple[NodeReasons, ...]
    suggestions: tuple[str, ...]
    since: str | None


class WhyView(msgspec.Struct, frozen=True):
    """No explanations: every task of the job is as wanted."""

    job: str
    status: str
    explanations: tuple[ExplanationView, ...]
    index: int


class TaskPortView(msgspec.Struct, frozen=True):
    host: int
    target: int
    protocol: str


class HistoryView(msgspec.Struct, frozen=True):
    state: str
    at: str | None
    reason: str
    message: str
    attempt: int


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """An unplaced slot is one too: id = name, state pending, attempt 0, no node."""

    id: str
    name: str
    job: str
    group: str
    slot: int
    version: int
    attempt: int
    node_id: str | None
    node_name: str | None
    state: str
    desired: str
    health: str | None
    driver: str
    image: str | None
    image_digest: str | None = (
        None  # of the image that its attempt runs; null: not known, or it has none
    )
    handle: str | None
    address: str | None
    ports: dict[str, TaskPortView]
    restarts: int
    fence: int = (
        0  # above that of every earlier task of the slot: CUBE_FENCE; 0 before it is placed
    )
    exit_code: int | None
    oom_killed: bool
    reason: str
    message: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    history: tuple[HistoryView, ...]


class TaskStatsView(msgspec.Struct, frozen=True, kw_only=True):
    """What a running task holds, and has used since its attempt began. `at_ms`: its node's clock, to
    tell two looks apart. None: its driver cannot tell."""

    id: str
    name: str
    node_id: str
    attempt: int
    at: str | None
    at_ms: int
    cpu_seconds: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    pids: int | None
    read_bytes: int | None
    written_bytes: int | None
    received_bytes: int | None
    sent_bytes: int | None


class NodeStatsView(msgspec.Struct, frozen=True, kw_only=True):
    """Of all tasks that run on the node. `failed`: tasks that could not be asked, and why."""

    id: str
    name: str
    tasks: tuple[TaskStatsView, ...]
    failed: dict[str, str] = {}


class TaskSignalled(msgspec.Struct, frozen=True):
    id: str
    name: str
    signal: str


class TaskChanged(msgspec.Struct, frozen=True):
    id: str
    name: str
    changed: bool
    index: int


class ResourcesView(msgspec.Struct, frozen=True):
    cpu: float
    memory: int
    disk: int


class DriverView(msgspec.Struct, frozen=True):
    healthy: bool
    reason: str
    attributes: dict[str, str]


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """`used` is what gossip last said of the whole host, None when it has not said."""

    id: str
    name: str
    http_address: str
    status: str
    status_reason: str
    eligible: bool
    draining: bool
    role: str
    version: str
    labels: dict[str, str]
    attributes: dict[str, str]
    drivers: dict[str, DriverView]
    capacity: ResourcesView
    reserved: ResourcesView
    used: ResourcesView | None
    tasks: int
    joined_at: str | None
    last_seen_at: str | None


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """An API token without its secret. `expires_at` None: never."""

    id: str
    role: str
    description: str
    created_at: str | None
    expires_at: str | None


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """The only answer that has the token itself."""

    id: str
    token: str
    role: str
    description: str
    expires_at: str | None
    index: int

    def __repr__(self) -> str:
        return f"TokenMade({self.id})"


class TokenChanged(msgspec.Struct, frozen=True):
    id: str
    changed: bool
    index: int


class StoredVersionView(msgspec.Struct, frozen=True):
    version: int
    size: int
    created_at: str | None
    actor: str


class StoredView(msgspec.Struct, frozen=True, kw_only=True):
    """A secret or config without its value. `size` in bytes, of the newest version; `used_by`: jobs
    that have it in their newest version."""

    name: str
    version: int
    size: int
    created_at: str | None
    modified_at: str | None
    used_by: tuple[str, ...]
    versions: tuple[StoredVersionView, ...]


class StoredChanged(msgspec.Struct, frozen=True, kw_only=True):
    """`jobs`: the first of the `job_count` that are rolled out anew because of it."""

    name: str
    version: int
    changed: bool
    jobs: tuple[str, ...]
    job_count: int
    index: int


class StoredRemoved(msgspec.Struct, frozen=True):
    name: str
    changed: bool
    index: int


class JoinTokenView(msgspec.Struct, frozen=True, kw_only=True):
    """`join`: this node's address, for `cube agent --join`. `needed` False: anyone may join."""

    token: str
    join: str | None
    needed: bool
    index: int

    def __repr__(self) -> str:
        return "JoinTokenView()"


class KeyRotation(msgspec.Struct, frozen=True):
    key: str
    index: int


class NodeChanged(msgspec.Struct, frozen=True):
    id: str
    name: str
    changed: bool
    index: int


class EndpointView(msgspec.Struct, frozen=True):
    task_id: str
    task: str
    node: str
    address: str  # host:port


class ServiceView(msgspec.Struct, frozen=True):
    """`name` is job.group.port; only tasks that serve now are endpoints."""

    name: str
    job: str
    group: str
    port: str
    protocol: str
    endpoints: tuple[EndpointView, ...]


class RaftMemberView(msgspec.Struct, frozen=True, kw_only=True):
    """`role`: leader, voter or learner. As the leader sees it, so None where no leader is known, or
    it has not heard from this member yet: `lag`, the entries of the log that it lacks; `caught_up`,
    whether those are few enough to lead or vote; `silent_s`, since it last answered."""

    id: str | None
    name: str
    address: str
    leader: bool
    role: str
    lag: int | None = None
    caught_up: bool | None = None
    silent_s: float | None = None


class RaftView(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    role: str
    term: int
    leader: LeaderView | None
    commit_index: int
    applied_index: int
    voters: tuple[RaftMemberView, ...]
    learners: tuple[RaftMemberView, ...] = ()
    quorum: bool
    ready: bool


class GossipMemberView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: str
    incarnation: int
    gossip_address: str
    http_address: str
    raft_address: str
    last_seen_at: str | None
    stats: dict[str, float] | None
