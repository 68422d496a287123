"""Everything that may enter the log. Each is applied by one function of cube.statemachine.

Ids and seeds come inside the command; times come from the entry (stamped by the leader).
"""

from __future__ import annotations

import msgspec

from cube.model.cluster import ClusterSettings, NodeFacts
from cube.model.cronrun import RunStatus
from cube.model.deployment import DeploymentAction, DeploymentStep
from cube.model.ids import ClusterId, CommandId, JobId, NodeId, TaskId
from cube.model.lifecycle import Health, NodeStatus, TaskState
from cube.model.spec import JobSpec, PlacementPolicy
from cube.model.stored import StoredKind
from cube.model.trust import GossipKey, TokenRecord, TokenRole

PLACEMENTS_MAX = 10_000  # in one plan (performance.md, "Plans and log")
REPORTS_MAX = 1_000  # in one ReportTasks


class InitCluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="init"):
    """The first command of a cluster. Refused when there is one already."""

    cluster_id: ClusterId
    name: str
    settings: ClusterSettings = ClusterSettings()


class ChangeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="settings"):
    """None: as it is."""

    policy: PlacementPolicy | None = None
    preemption: bool | None = None
    rebalance: bool | None = None
    finished_per_slot: int | None = None
    finished_for_ms: int | None = None
    finished_beyond_ms: int | None = None


class StartRebalance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="rebalance"):
    """A round begins: tasks are moved, a few at a time, until no move gains enough."""


class RegisterNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="register"):
    """From the node itself: at its join, at each start, when its facts change."""

    facts: NodeFacts


class SetNodeStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="node_status"):
    """From the leader, in its `term`. `down` makes the node's unfinished tasks lost."""

    term: int
    node_id: NodeId
    status: NodeStatus
    reason: str = ""


class SetEligibility(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="eligibility"):
    node_id: NodeId
    eligible: bool


class SetDrain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="drain"):
    """`deadline_ms` after the entry's time; None ends the drain."""

    node_id: NodeId
    deadline_ms: int | None


class SetLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="labels"):
    """Replaces the labels that were set by hand."""

    node_id: NodeId
    labels: dict[str, str]


class RemoveNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="remove_node"):
    """Of a node that is down or has left. Its tasks are gone with it."""

    node_id: NodeId


class SubmitJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="submit"):
    """Create or update by name. `new_id` is used when it is created. `expected_version` None: any;
    0: it must not exist; N: it must be at N."""

    spec: JobSpec
    new_id: JobId
    expected_version: int | None = None


class ScaleJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="scale"):
    """A new version that differs in counts only. Shape: group → count."""

    job: str
    counts: dict[str, int]
    expected_version: int | None = None


class RestartJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="restart_job"):
    """A new version with the same spec, whose tasks are new containers. A batch job runs again."""

    job: str
    expected_version: int | None = None


class RollBackJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="roll_back_job"):
    """A new version with the spec of an older one; None: of the last that was healthy before the
    present one, else of the one before."""

    job: str
    version: int | None = None
    expected_version: int | None = None


class SteerDeployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="steer"):
    """A user's word on the newest deployment of a job, which must be that of `version`."""

    job: str
    version: int
    action: DeploymentAction


class StopJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stop_job"):
    job: str


class StartJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start_job"):
    job: str


class TriggerJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="trigger"):
    """A run of a cron job now, besides those that its schedule asks for."""

    job: str


class DeleteJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="delete_job"):
    job: str


class RestartTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="restart_task"):
    """Another attempt in place of the present one, on the same node. Of one that waits for its next
    attempt: now."""

    task_id: TaskId


class NoteExec(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="note_exec"
):
    """The command's actor ran `program`, with so many arguments, beside the task. `more`: commands
    beside it that were only counted since the last note; without a `program` nothing but their number
    is told. `begun_at_ms` is the node's clock."""

    task_id: TaskId
    task: str
    job: str
    node_id: NodeId
    attempt: int
    role: str = ""
    name: str = ""
    remote: str = ""
    through: str = ""
    program: str = ""
    arguments: int = 0
    tty: bool = False
    begun_at_ms: int = 0
    more: int = 0


class StopTask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stop_task"):
    """A user's wish for one task; a service's slot gets a new one."""

    task_id: TaskId


class GroupPlacement(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    """`slots[i]` of a group goes to `plan.nodes[node_at[i]]` with `ports[i]` (one host port per
    port of the group, in order of port name). `replaces[i]`, when the list is given, is the live
    task that the new one takes over from (start-first); else the slot must be empty."""

    job_id: JobId
    version: int
    group: str
    slots: tuple[int, ...]
    node_at: tuple[int, ...]
    ports: tuple[tuple[int, ...], ...] = ()
    replaces: tuple[str, ...] = ()
    reason: str = ""


class PlannedStop(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    task_id: TaskId
    reason: str


class RunStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False):
    """What is due of a cron job: all its times after `after_ms` up to `scheduled_at_ms`, which are
    `missed` and one more. The last of them begins a run, or with `starts` False is skipped as well.
    `missed_at_ms`: the time before the last. Re-checked: the job is at `version`, nothing after
    `after_ms` has been decided, its `overlap` allows it."""

    job_id: JobId
    version: int
    after_ms: int
    scheduled_at_ms: int
    starts: bool
    missed: int = 0
    missed_at_ms: int = 0


class RunEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False):
    """A run is over: nothing of it runs or will. `job_id` is the run's own. Re-checked: no task of it
    is unfinished."""

    job_id: JobId
    status: RunStatus
    completed: int
    failed: int
    message: str = ""


class ApplyPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="plan"):
    """From the leader, in its `term`: placements, stops, in-place updates, reaping, the runs of cron
    jobs, verdicts on deployments. Each part is re-checked on its own; what no longer fits is refused
    and counted. Order of application: stops, updates, placements, reaps, run ends, run steps,
    deployments. `seed` makes the new tasks'
    ids (ids.task_id)."""

    term: int
    seed: str
    nodes: tuple[NodeId, ...] = ()
    placements: tuple[GroupPlacement, ...] = ()
    stops: tuple[PlannedStop, ...] = ()
    updates: tuple[
        tuple[TaskId, int], ...
    ] = ()  # task, version it is to have without a new container
    reaps: tuple[TaskId, ...] = ()  # ended and released
    run_ends: tuple[RunEnd, ...] = ()
    run_steps: tuple[RunStep, ...] = ()
    deployments: tuple[DeploymentStep, ...] = ()
    is_balanced: bool = False  # the round of rebalancing is over


class TaskReport(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    """What a node says of one of its tasks. `released`: nothing of it is left on the node."""

    task_id: TaskId
    attempt: int
    state: TaskState
    health: Health = Health.NONE
    handle: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    reason: str = ""
    message: str = ""
    released: bool = False
    image_digest: str = ""


class ReportTasks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="report"):
    """From the tasks' own node. Reports of other nodes' or unknown tasks are skipped, as are moves
    that the transition table does not have."""

    node_id: NodeId
    reports: tuple[TaskReport, ...]


class InitTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="init_trust"):
    """The cluster's CA, its first gossip key and its first token. Refused when there is a CA."""

    ca_certificate_pem: str
    ca_key_sealed: bytes
    join_token_hash: bytes
    gossip_key: GossipKey
    operator: TokenRecord | None = None
    join_token_sealed: bytes = b""


class RotateJoinToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="join_token"):
    """The old one is worth nothing from now on. An empty hash: nobody can join by token. `sealed`:
    the secret in an envelope of the cluster key; empty: nobody can print the token again."""

    hash: bytes
    sealed: bytes = b""


class CreateToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="token_create"):
    """`hash` and `key` (see TokenRecord) are of the secret, which the log never sees. `lifetime_ms`
    None: until removed."""

    id: str
    hash: bytes
    role: TokenRole
    lifetime_ms: int | None = None
    description: str = ""
    key: bytes = b""


class KeepTokenKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="token_keep_key"):
    """Of a token that was made before tokens had keys, when it is shown and its key is needed."""

    id: str
    key: bytes


class RemoveToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="token_remove"):
    id: str


class InstallGossipKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="key_install"):
    """First step of a rotation: every node can read what is sealed with it; none seals with it."""

    key: GossipKey


class UseGossipKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="key_use"):
    """Second step, once every node alive has the key: all seal with it."""

    id: str


class RemoveGossipKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="key_remove"):
    """Last step: what is sealed with it is refused. The key in use cannot be removed."""

    id: str


class StoreVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="store"):
    """A value for a secret or config. Of a secret, `data` is sealed, and `fingerprint` equal for equal
    values. `size_bytes` is the value's. `expected_version` as in SubmitJob."""

    kind: StoredKind
    name: str
    data: bytes
    size_bytes: int
    fingerprint: bytes = b""
    expected_version: int | None = None

    def __repr__(self) -> str:
        return f"StoreVersion({self.kind} {self.name}, {self.size_bytes} bytes)"


class RemoveStored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="unstore"):
    """Of one that no job needs."""

    kind: StoredKind
    name: str


class Noop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="noop"):
    """Changes nothing: a barrier."""


Body = (
    InitCluster
    | ChangeSettings
    | StartRebalance
    | RegisterNode
    | SetNodeStatus
    | SetEligibility
    | SetDrain
    | SetLabels
    | RemoveNode
    | SubmitJob
    | ScaleJob
    | RestartJob
    | RollBackJob
    | SteerDeployment
    | StopJob
    | StartJob
    | TriggerJob
    | DeleteJob
    | RestartTask
    | StopTask
    | NoteExec
    | ApplyPlan
    | ReportTasks
    | InitTrust
    | RotateJoinToken
    | CreateToken
    | KeepTokenKey
    | RemoveToken
    | InstallGossipKey
    | UseGossipKey
    | RemoveGossipKey
    | StoreVersion
    | RemoveStored
    | Noop
)


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A request to change state. The same id twice happens once: the second gets the first's
    outcome, or a KEY_REUSED refusal when the digests of their bodies differ."""

    id: CommandId
    body: Body
    actor: str = ""
    digest: str = ""


class Entry(msgspec.Struct, frozen=True):
    """A command, committed."""

    index: int
    term: int
    at_ms: int
    command: Command
