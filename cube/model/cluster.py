"""What is: the replicated state. Immutable; only cube.statemachine.apply makes new ones.

Each field's writer is named: *manager* means apply on behalf of a user's or the leader's command,
*node* means apply on behalf of a report of the task's own node.
"""

from __future__ import annotations

import immutables
import msgspec

from cube.model.cronrun import CronState
from cube.model.deployment import Deployment
from cube.model.ids import ClusterId, CommandId, JobId, NodeId, TaskId, task_name
from cube.model.images import digest_in
from cube.model.launch import DriverInfo
from cube.model.lifecycle import BRAKED, ENDED, Desired, Health, NodeStatus, TaskState
from cube.model.outcome import Outcome
from cube.model.resources import NOTHING, Resources
from cube.model.spec import GroupSpec, JobSpec, JobType, PlacementPolicy, Protocol, same_container
from cube.model.stored import Stored, refs_in_tasks
from cube.model.tally import JobTally, tally_of
from cube.model.taskids import NO_JOB_TASKS, JobTaskIds, TaskIdSet
from cube.model.trust import NO_TRUST, TrustState
from cube.model.volumes import Volume, volume_key

HISTORY_MAX = 20  # entries kept per task: a crash loop must not grow the state
EXECS_MAX = 8  # of those that people ran beside a task: the last ones; events have had all
OUTCOMES_MAX = 10_000  # remembered commands: more than any client can have in flight
MESSAGE_CHARS_MAX = 500  # of a reason shown to people
JOBS_MAX = 10_000  # per cluster
PREEMPTED = "preempted by "  # then `job.group`: the desired_reason of a task that makes room


# Bounds of ClusterSettings.finished_*. Younger failures may still make their nodes avoided.
FINISHED_PER_SLOT_MAX = 100
FINISHED_FOR_MS_MIN = 300_000


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Agreed by all nodes. Writer: manager, when the cluster is made and by operators later.

    `finished_*`: how many ended tasks are remembered, and kept on their nodes, of each slot that is
    wanted; for how long (0: however old; a slot's newest always is); and for how long those of slots
    that are not wanted any more.
    """

    policy: PlacementPolicy = PlacementPolicy.EPVM
    preemption: bool = False  # important jobs take the room of others (scheduler.preempt)
    rebalance: bool = False  # after a node joins (scheduler.rebalance)
    finished_per_slot: int = 5  # what a person looks at (Swarm's --task-history-limit)
    finished_for_ms: int = 0
    finished_beyond_ms: int = 600_000  # long enough to read their logs


class NodeFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node says of itself, at each start and whenever it changes. Writer: the node.

    `advertise` is the host others reach it and its tasks at; nodes with the same one share a port
    domain. `port_first..port_last` (inclusive) is where dynamic host ports come from.
    """

    id: NodeId
    name: str  # as configured; unique names are given by apply
    advertise: str
    http_address: str
    raft_address: str
    gossip_address: str
    version: str
    capacity: Resources
    labels: dict[str, str] = {}
    attributes: dict[str, str] = {}  # node.os, node.arch, …
    drivers: dict[str, DriverInfo] = {}
    port_first: int = 20000
    port_last: int = 29999


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A registered host: what it says of itself, and what the cluster makes of it."""

    id: NodeId
    name: str  # writer: apply at registration; unique
    facts: NodeFacts  # writer: node
    # Writer: the leader; and apply, when a task of a node that is down is reported to run.
    status: NodeStatus = NodeStatus.READY
    status_reason: str = ""
    status_at_ms: int = 0
    eligible: bool = True  # writer: manager (cordon)
    drain_deadline_ms: int | None = None  # writer: manager; not None: draining
    labels: dict[str, str] = {}  # writer: manager; laid over facts.labels
    joined_at_ms: int = 0

    def label(self, key: str) -> str | None:
        return self.labels.get(key, self.facts.labels.get(key))

    def all_labels(self) -> dict[str, str]:
        return {**self.facts.labels, **self.labels}

    @property
    def may_be_removed(self) -> bool:
        """It is down, or would be were it not for the brake: then a person may know better."""
        is_down = self.status in (NodeStatus.DOWN, NodeStatus.LEFT)
        return is_down or self.status_reason == BRAKED

    @property
    def accepts_tasks(self) -> bool:
        """Ready, eligible and not draining. Nothing said about room."""
        return self.status is NodeStatus.READY and self.eligible and self.drain_deadline_ms is None


class TaskPort(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    name: str
    host: int
    target: int
    protocol: Protocol


class HistoryEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One change of a task's state, or what else happened to it in that state. `at_ms` is the leader's
    clock."""

    state: TaskState
    at_ms: int
    attempt: int
    reason: str = ""
    message: str = ""


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One placed instance of a group, in a slot, on one node, for ever.

    `released`: its node has said that nothing of it is left (or it was never begun): only then are
    its resources and ports free and may it be reaped. An ended task that is not released is one
    whose node is out of reach.
    """

    id: TaskId
    job_id: JobId
    job: str
    group: str
    slot: int
    version: int  # of the job; writer: manager (in-place updates)
    node_id: NodeId
    address: str = ""  # the node's advertise address when it was placed: its port domain
    driver: str = ""
    resources: Resources = NOTHING
    ports: tuple[TaskPort, ...] = ()
    created_at_ms: int = 0
    # Index of the entry that placed it: above that of every task the slot had before. Writer: apply.
    fence: int = 0
    placed_reason: str = ""
    reschedules: int = 0  # failed tasks in a row in this slot before this one; writer: manager
    desired: Desired = Desired.RUN  # writer: manager
    desired_reason: str = ""
    # An attempt up to this one is to end and be followed by another at once; writer: apply, on request.
    restart_after: int = 0
    state: TaskState = TaskState.SCHEDULED  # writer: node, but `lost`
    attempt: int = 1  # writer: node
    health: Health = Health.NONE  # writer: node
    health_at_ms: int = 0  # since when it has this health, or these checks
    replaces: TaskId = TaskId("")  # the live task of its slot that it takes over from
    handle: str = ""  # writer: node
    image_digest: str = ""  # writer: node; of the attempt's image; empty: not known, or it has none
    restarts: int = 0  # writer: node; attempts after the first
    exit_code: int | None = None  # writer: node
    oom_killed: bool = False  # writer: node
    reason: str = ""  # writer: node; a short code
    message: str = ""  # writer: node; a sentence
    started_at_ms: int = 0  # of the present attempt; 0: not yet
    finished_at_ms: int = 0  # 0: not yet
    state_at_ms: int = 0  # when it entered its state
    released: bool = False  # writer: node; or manager when the node is removed
    history: tuple[HistoryEntry, ...] = ()
    # Commands that people ran beside it: apart, so that no loop of them drives its life out of `history`.
    execs: tuple[HistoryEntry, ...] = ()

    @property
    def name(self) -> str:
        return task_name(self.job, self.group, self.slot)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def live(self) -> bool:
        """It counts for its slot: not ended, and meant to run."""
        return self.state not in ENDED and self.desired is Desired.RUN

    @property
    def preempted_by(self) -> str:
        """`job.group` of those it makes room for; empty when it does not."""
        if self.desired is Desired.RUN or not self.desired_reason.startswith(PREEMPTED):
            return ""
        return self.desired_reason.removeprefix(PREEMPTED)

    @property
    def serving(self) -> bool:
        """Running and, where it has checks, healthy."""
        return self.state is TaskState.RUNNING and self.health in (Health.NONE, Health.HEALTHY)

    @property
    def serving_since_ms(self) -> int:
        """Meaningful while it serves: since when without a break, and by its present checks."""
        return max(self.started_at_ms, self.health_at_ms)


class JobVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stable`: it was healthy at full count once. `generation`: a restart asks for new containers
    of the same spec; tasks of another generation are not up to date. `uses`: the secrets and configs
    that it has, by StoredRef.key, and in which version (0: the newest at the time). `reason`: why there
    is this version, where nobody has submitted it. `digests`: what
    its images are since a node first reported them, by the reference in the spec."""

    version: int
    spec: JobSpec
    created_at_ms: int
    actor: str = ""
    stable: bool = False
    generation: int = 0
    uses: dict[str, int] = {}
    reason: str = ""
    digests: dict[str, str] = {}  # writer: apply, from the first report


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Writer: manager. `versions` ascend; the last is the wanted one; those that tasks still use
    are kept besides the newest VERSIONS_MAX. A deleted job keeps its id until its last task is
    released; its name is free at once.

    A run of a cron job is a job too, of type batch: `parent` is the cron job's id, the name is the
    parent's, the one version is the parent's at that time. It is not in `job_names`."""

    id: JobId
    name: str
    versions: tuple[JobVersion, ...]
    stopped: bool = False
    deleted: bool = False
    created_at_ms: int = 0
    modified_at_ms: int = 0
    modified_index: int = 0
    deployments: tuple[Deployment, ...] = ()  # ascending; services and system jobs
    cron: CronState | None = None  # type cron: its runs
    parent: JobId = JobId("")  # a run of this cron job; empty: a job that a user submitted
    run: int = 0  # its number; 0: not a run

    @property
    def volumes_id(self) -> JobId:
        """Under which its volumes are known: all runs of a cron job have the same."""
        return self.parent or self.id

    @property
    def listed(self) -> bool:
        """It has its name, and is what a user means by it."""
        return not self.deleted and not self.parent

    @property
    def version(self) -> int:
        return self.versions[-1].version

    @property
    def spec(self) -> JobSpec:
        return self.versions[-1].spec

    @property
    def deployment(self) -> Deployment | None:
        """That of the wanted version."""
        newest = self.deployments[-1] if self.deployments else None
        return newest if newest is not None and newest.version == self.version else None

    def is_gated(self, group: str) -> bool:
        """The group's canaries go first, and nobody has promoted them yet."""
        newest = self.deployment
        if newest is None or newest.promoted or not newest.may_go_back:
            return False
        spec = self.spec.groups[group]
        if not spec.canaries or self.spec.type is not JobType.SERVICE:
            return False
        base = self.spec_of(newest.from_version)
        if base is None or group not in base.groups:
            return False
        return not self.same_container(group, newest.from_version, newest.version)

    def entry_of(self, version: int) -> JobVersion | None:
        for entry in reversed(self.versions):
            if entry.version == version:
                return entry
        return None

    def spec_of(self, version: int) -> JobSpec | None:
        entry = self.entry_of(version)
        return None if entry is None else entry.spec

    def same_container(self, group: str, version: int, other: int) -> bool:
        """Whether a task of the group made for one version may go on as one of the other."""
        if version == other:
            return True
        old, new = self.entry_of(version), self.entry_of(other)
        if old is None or new is None or old.generation != new.generation:
            return False
        old_group, new_group = old.spec.groups.get(group), new.spec.groups.get(group)
        if old_group is None or new_group is None or not same_container(old_group, new_group):
            return False
        if old.uses == new.uses:
            return True
        keys = {ref.key for ref in refs_in_tasks(new_group)}
        return all(old.uses.get(key) == new.uses.get(key) for key in keys)


class RememberedOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """`sequence` orders eviction; `digest` is of the command's body, empty when it had no key."""

    sequence: int
    digest: str
    index: int
    outcome: Outcome


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is agreed. Iteration over a Map follows hashes, which differ between
    processes: sort before order can reach an output.

    Invariants (cube.statemachine.invariants): the indexes say what `tasks` says; `reserved[n]` is
    the sum over unreleased tasks of n and never above n's capacity at the time of placement; each
    (advertise, protocol, host port) has one unreleased task at most.
    """

    cluster_id: ClusterId = ClusterId("")
    cluster_name: str = ""
    settings: ClusterSettings = ClusterSettings()
    trust: TrustState = NO_TRUST
    index: int = 0  # of the last applied entry
    term: int = 0  # of the last applied entry
    now_ms: int = 0  # the leader's clock at the last applied entry; never goes back
    nodes: immutables.Map[NodeId, Node] = immutables.Map()
    jobs: immutables.Map[JobId, Job] = immutables.Map()
    tasks: immutables.Map[TaskId, Task] = immutables.Map()
    rebalance_since_ms: int = 0  # a round of moves is under way since then; 0: none
    volumes: immutables.Map[JobId, immutables.Map[str, Volume]] = immutables.Map()  # volume_key
    stored: immutables.Map[str, Stored] = immutables.Map()  # by StoredRef.key
    outcomes: immutables.Map[CommandId, RememberedOutcome] = immutables.Map()
    outcome_first: int = 0  # sequence of the oldest remembered
    outcome_next: int = 0
    # Indexes: derived, rebuilt when a snapshot is loaded.
    node_names: immutables.Map[str, NodeId] = immutables.Map()
    job_names: immutables.Map[str, JobId] = immutables.Map()
    tasks_by_job: immutables.Map[JobId, JobTaskIds] = immutables.Map()
    tasks_by_node: immutables.Map[NodeId, TaskIdSet] = immutables.Map()
    # Of states that are not UNINDEXED.
    tasks_by_state: immutables.Map[TaskState, immutables.Map[TaskId, None]] = immutables.Map()
    preempted: immutables.Map[TaskId, None] = immutables.Map()  # and not released yet
    reserved: immutables.Map[NodeId, Resources] = immutables.Map()
    ports: immutables.Map[str, immutables.Map[int, TaskId]] = immutables.Map()
    outcome_order: immutables.Map[int, CommandId] = immutables.Map()

    def ids_of_job(self, job_id: JobId) -> JobTaskIds:
        return self.tasks_by_job.get(job_id, NO_JOB_TASKS)

    def tally_of_job(self, job_id: JobId) -> JobTally:
        """A look at each of its tasks, the first time that anybody asks."""
        ids = self.tasks_by_job.get(job_id)
        if ids is None:
            return {}
        tally = ids.tally
        if tally is None:  # two threads may come to this, and to the same
            tally = ids.tally = tally_of([self.tasks[task_id] for task_id in ids])
        return tally

    def job_named(self, name: str) -> Job | None:
        job_id = self.job_names.get(name)
        return None if job_id is None else self.jobs[job_id]

    def runs_of(self, job: Job) -> list[Job]:
        """The jobs that are runs of this cron job and still known, oldest first; of others: none."""
        if job.cron is None:
            return []
        known = [self.jobs.get(run.job_id) for run in job.cron.runs]
        return [run for run in known if run is not None]

    def tasks_under(self, job: Job) -> list[Task]:
        """Of the job and its runs: what a user means by the job's tasks. By run, then in order."""
        found = self.tasks_of_job(job.id)
        for run in self.runs_of(job):
            found.extend(self.tasks_of_job(run.id))
        return found

    def uses_of(self, task: Task) -> dict[str, int]:
        """The secrets and configs that the task was made with (JobVersion.uses)."""
        job = self.jobs.get(task.job_id)
        entry = None if job is None else job.entry_of(task.version)
        return {} if entry is None else entry.uses

    def digest_for(self, task: Task) -> str:
        """Of the image that the task's version runs; empty: nobody has said yet."""
        job = self.jobs.get(task.job_id)
        entry = None if job is None else job.entry_of(task.version)
        group = None if entry is None else entry.spec.groups.get(task.group)
        if entry is None or group is None or not group.image:
            return ""
        return digest_in(group.image) or entry.digests.get(group.image, "")

    def group_of(self, task: Task) -> GroupSpec | None:
        """The template the task was made from, or None once its version is forgotten."""
        job = self.jobs.get(task.job_id)
        spec = None if job is None else job.spec_of(task.version)
        return None if spec is None else spec.groups.get(task.group)

    def volume(self, job_id: JobId, group: str, slot: int, name: str) -> Volume | None:
        """Where this volume of the slot is; None: it has never been on any node."""
        of_job = self.volumes.get(job_id)
        return None if of_job is None else of_job.get(volume_key(group, slot, name))

    def tasks_of_job(self, job_id: JobId) -> list[Task]:
        """By group, slot, age, id: a stable order."""
        found = [self.tasks[task_id] for task_id in self.ids_of_job(job_id)]
        found.sort(key=lambda task: (task.group, task.slot, task.created_at_ms, task.id))
        return found

    def tasks_of_node(self, node_id: NodeId) -> list[Task]:
        """By id."""
        return [self.tasks[task_id] for task_id in sorted(self.tasks_by_node.get(node_id, ()))]

    def free(self, node: Node) -> Resources:
        """Capacity less what is reserved. Members may be negative after a node shrank."""
        return node.facts.capacity - self.reserved.get(node.id, NOTHING)


def port_key(port: int, protocol: Protocol) -> int:
    """The key of ClusterState.ports[advertise]: one number space for both protocols."""
    return port * 2 + (protocol is Protocol.UDP)
