"""State to views. Pure: the same state gives the same answer on every node.

Derivations that take more than a look at one object are in cube.api.slots.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from cube.api.slots import Standing, Unplaced
from cube.model.cluster import ClusterState, HistoryEntry, Job, JobVersion, Node, Task
from cube.model.cronrun import RUNS_ACTIVE_MAX, RUNS_KEPT, Run
from cube.model.explain import Explanation, Reason
from cube.model.jobrender import render as render_spec
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.resources import NOTHING, Resources
from cube.model.spec import GroupSpec
from cube.model.views import (
    DriverView,
    ExplanationView,
    GossipMemberView,
    HistoryView,
    JobVersionView,
    JobView,
    LeaderView,
    MemberCounts,
    NodeIdentity,
    NodeReasons,
    NodeView,
    RaftMemberView,
    RaftView,
    ReasonView,
    ResourcesView,
    RunView,
    StatusView,
    TaskPortView,
    TaskView,
    VoterView,
)
from cube.ports.cluster import MemberStats, MemberView
from cube.ports.log import LogStatus, Progress, Role
from cube.scheduler import cron
from cube.scheduler.voters import LAG_ENTRIES_MAX

UNPLACED_REASON = "unplaced"
RUNS_SHOWN_MAX = 2 * RUNS_KEPT + RUNS_ACTIVE_MAX  # all that the state has of one job


def rfc3339(at_ms: int) -> str | None:
    """None for 0, which is how the model says never."""
    if at_ms <= 0:
        return None
    seconds, rest_ms = divmod(at_ms, 1000)
    text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
    return f"{text[:19]}.{rest_ms:03d}Z"


# Jobs


def job_view(job: Job, slots: Standing, runs_max: int = RUNS_SHOWN_MAX) -> JobView:
    return JobView(
        name=job.name,
        type=job.spec.type.value,
        version=job.version,
        status=slots.status.value,
        spec=render_spec(job.spec),
        groups=slots.groups,
        created_at=rfc3339(job.created_at_ms),
        modified_index=job.modified_index,
        digests=job.versions[-1].digests,
        next_run_at=rfc3339(cron.next_run_ms(job)),
        runs=run_views(job)[:runs_max],
    )


def run_views(job: Job) -> tuple[RunView, ...]:
    """Newest first."""
    runs = () if job.cron is None else job.cron.runs
    return tuple(_run_view(run) for run in reversed(runs))


def _run_view(run: Run) -> RunView:
    return RunView(
        run=run.run or None,
        status=run.status.value,
        trigger="hand" if run.by_hand else "schedule",
        version=run.version,
        scheduled_at=rfc3339(run.scheduled_at_ms),
        started_at=rfc3339(run.started_at_ms),
        finished_at=rfc3339(run.finished_at_ms),
        count=run.count,
        completed=run.completed,
        failed=run.failed,
        message=run.message,
    )


def version_view(version: JobVersion) -> JobVersionView:
    return JobVersionView(
        version.version,
        rfc3339(version.created_at_ms),
        version.actor,
        render_spec(version.spec),
        version.stable,
        version.uses,
        version.reason,
        version.digests,
    )


def explanation_view(explanation: Explanation) -> ExplanationView:
    return ExplanationView(
        job=explanation.job,
        group=explanation.group,
        slots=explanation.slots,
        kind=explanation.kind,
        summary=explanation.summary,
        reasons=_reasons(explanation.reasons),
        nodes=tuple(
            NodeReasons(node.node_id, node.node, _reasons(node.reasons))
            for node in explanation.nodes
        ),
        suggestions=explanation.suggestions,
        since=rfc3339(explanation.since_ms),
    )


def _reasons(reasons: Sequence[Reason]) -> tuple[ReasonView, ...]:
    return tuple(ReasonView(r.code, r.message, r.need, r.have) for r in reasons)


# Tasks


def task_view(task: Task, node: Node | None, group: GroupSpec | None) -> TaskView:
    """`node` None: removed meanwhile. `group` None: its version is forgotten."""
    return TaskView(
        id=task.id,
        name=task.name,
        job=task.job,
        group=task.group,
        slot=task.slot,
        version=task.version,
        attempt=task.attempt,
        node_id=task.node_id,
        node_name=None if node is None else node.name,
        state=task.state.value,
        desired=task.desired.value,
        health=None if task.health is Health.NONE else task.health.value,
        driver=task.driver,
        image=(group.image or None) if group is not None else None,
        image_digest=task.image_digest or None,
        handle=task.handle or None,
        address=task.address or (None if node is None else node.facts.advertise),
        ports={
            port.name: TaskPortView(port.host, port.target, port.protocol.value)
            for port in task.ports
        },
        restarts=task.restarts,
        fence=task.fence,
        exit_code=task.exit_code,
        oom_killed=task.oom_killed,
        reason=task.reason,
        message=task.message,
        created_at=rfc3339(task.created_at_ms),
        started_at=rfc3339(task.started_at_ms),
        finished_at=rfc3339(task.finished_at_ms),
        history=tuple(_history(entry) for entry in _by_time(task)),
    )


def _by_time(task: Task) -> Sequence[HistoryEntry]:
    """Its life, and the commands beside it where they belong."""
    if not task.execs:
        return task.history
    return sorted((*task.history, *task.execs), key=lambda entry: entry.at_ms)


def _history(entry: HistoryEntry) -> HistoryView:
    return HistoryView(
        entry.state.value, rfc3339(entry.at_ms), entry.reason, entry.message, entry.attempt
    )


def unplaced_view(row: Unplaced, explanations: Sequence[Explanation] | None) -> TaskView:
    """`explanations` None: nobody asked why."""
    group = row.job.spec.groups[row.group]
    reason, message = UNPLACED_REASON, f"not placed yet; cube why {row.job.name} says why"
    for explanation in explanations or ():
        if explanation.group == row.group and row.slot in explanation.slots:
            reason, message = explanation.kind, explanation.summary
            break
    return TaskView(
        id=row.name,
        name=row.name,
        job=row.job.name,
        group=row.group,
        slot=row.slot,
        version=row.job.version,
        attempt=0,
        node_id=None,
        node_name=None,
        state=TaskState.PENDING.value,
        desired=Desired.RUN.value,
        health=None,
        driver=group.driver.value,
        image=group.image or None,
        image_digest=None,
        handle=None,
        address=None,
        ports={},
        restarts=0,
        fence=0,
        exit_code=None,
        oom_killed=False,
        reason=reason,
        message=message,
        created_at=rfc3339(row.job.versions[-1].created_at_ms),
        started_at=None,
        finished_at=None,
        history=(),
    )


# Nodes


def node_view(
    state: ClusterState, node: Node, status: LogStatus, member: MemberView | None
) -> NodeView:
    """`member` None: gossip has not met it here."""
    task_ids = state.tasks_by_node.get(node.id) or ()
    return NodeView(
        id=node.id,
        name=node.name,
        http_address=node.facts.http_address,
        status=node.status.value,
        status_reason=node.status_reason,
        eligible=node.eligible,
        draining=node.drain_deadline_ms is not None,
        role=role_of(node, status),
        version=node.facts.version,
        labels=node.all_labels(),
        attributes=node.facts.attributes,
        drivers={
            name: DriverView(driver.healthy, driver.reason, driver.attributes)
            for name, driver in sorted(node.facts.drivers.items())
        },
        capacity=resources_view(node.facts.capacity),
        reserved=resources_view(state.reserved.get(node.id, NOTHING)),
        used=None if member is None or member.stats is None else _used(member.stats),
        tasks=sum(not state.tasks[task_id].ended for task_id in task_ids),
        joined_at=rfc3339(node.joined_at_ms),
        last_seen_at=None if member is None else rfc3339(member.last_seen_ms),
    )


def role_of(node: Node, status: LogStatus) -> str:
    address = node.facts.raft_address
    if address == status.leader:
        return Role.LEADER.value
    if any(voter.address == address for voter in status.voters):
        return Role.VOTER.value
    return Role.LEARNER.value


def resources_view(resources: Resources) -> ResourcesView:
    return ResourcesView(resources.cpu_milli / 1000, resources.memory_bytes, resources.disk_bytes)


def _used(stats: MemberStats) -> ResourcesView:
    cores = round(stats.cpu_percent / 100 * stats.cpu_cores, 3)
    return ResourcesView(cores, stats.memory_used_bytes, stats.disk_used_bytes)


# The cluster


def status_view(
    state: ClusterState,
    here: NodeIdentity,
    nodes: Mapping[str, Node],
    status: LogStatus,
    members: Sequence[MemberView],
    warnings: tuple[str, ...],
) -> StatusView:
    """`nodes`: by Raft address."""
    return StatusView(
        cluster_id=state.cluster_id,
        cluster_name=state.cluster_name,
        node=here,
        leader=leader_view(status, nodes),
        role=status.role.value,
        term=status.term,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        voters=tuple(_voter_view(voter.address, nodes) for voter in status.voters),
        members=member_counts(members),
        quorum=status.quorum,
        warnings=warnings,
    )


def leader_view(status: LogStatus, nodes: Mapping[str, Node]) -> LeaderView | None:
    if status.leader is None:
        return None
    node = nodes.get(status.leader)
    if node is None:
        return LeaderView(None, status.leader, None)
    return LeaderView(node.id, node.name, node.facts.http_address)


def _voter_view(address: str, nodes: Mapping[str, Node]) -> VoterView:
    node = nodes.get(address)
    return VoterView(None, address) if node is None else VoterView(node.id, node.name)


def member_counts(members: Sequence[MemberView]) -> MemberCounts:
    found = {"alive": 0, "suspect": 0, "dead": 0, "left": 0}
    for member in members:
        found[member.state] = found.get(member.state, 0) + 1
    return MemberCounts(found["alive"], found["suspect"], found["dead"], found["left"])


def raft_view(
    here: str, nodes: Mapping[str, Node], status: LogStatus, progress: Sequence[Progress] = ()
) -> RaftView:
    """`nodes`: by Raft address."""
    seen = {one.address: one for one in progress}
    voters = [voter.address for voter in status.voters]
    learners = [
        node.facts.raft_address
        for node in sorted(nodes.values(), key=lambda node: node.name)
        if role_of(node, status) == Role.LEARNER.value
    ]
    return RaftView(
        node_id=here,
        role=status.role.value,
        term=status.term,
        leader=leader_view(status, nodes),
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        voters=tuple(_raft_member(address, Role.VOTER, nodes, status, seen) for address in voters),
        learners=tuple(
            _raft_member(address, Role.LEARNER, nodes, status, seen) for address in learners
        ),
        quorum=status.quorum,
        ready=status.ready,
    )


def _raft_member(
    address: str,
    role: Role,
    nodes: Mapping[str, Node],
    status: LogStatus,
    seen: Mapping[str, Progress],
) -> RaftMemberView:
    known = _voter_view(address, nodes)
    is_leader = address == status.leader
    one = seen.get(address)
    lag = one.lag if one is not None and one.match_index else None
    if is_leader and seen:
        lag = 0
    return RaftMemberView(
        id=known.id,
        name=known.name,
        address=address,
        leader=is_leader,
        role=(Role.LEADER if is_leader else role).value,
        lag=lag,
        caught_up=None if lag is None else lag <= LAG_ENTRIES_MAX,
        silent_s=one.silent_ms / 1000 if one is not None else None,
    )


def gossip_view(member: MemberView) -> GossipMemberView:
    stats = member.stats
    return GossipMemberView(
        id=member.node_id,
        name=member.name,
        state=member.state,
        incarnation=member.incarnation,
        gossip_address=member.gossip_address,
        http_address=member.http_address,
        raft_address=member.raft_address,
        last_seen_at=rfc3339(member.last_seen_ms),
        stats=None
        if stats is None
        else {field: float(getattr(stats, field)) for field in stats.__struct_fields__},
    )
