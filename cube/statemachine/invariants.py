"""What must be true of every state. Written from the model's words, not from apply's code."""

from __future__ import annotations

from collections import Counter

from cube.model.cluster import EXECS_MAX, HISTORY_MAX, OUTCOMES_MAX, ClusterState, port_key
from cube.model.cronrun import RUNS_ACTIVE_MAX, RUNS_KEPT, RunStatus
from cube.model.deployment import DEPLOYMENTS_MAX
from cube.model.ids import NodeId
from cube.model.lifecycle import UNINDEXED, NodeStatus, TaskState
from cube.model.resources import NOTHING, Resources
from cube.model.spec import JobType
from cube.model.stored import STORE_BYTES_MAX
from cube.model.tally import tally_of
from cube.model.trust import GOSSIP_KEYS_MAX, HASH_BYTES, REMOVED_NODES_MAX, TOKENS_MAX
from cube.model.volumes import volumes_of
from cube.statemachine import deployments


def violations(state: ClusterState) -> list[str]:
    """Sentences that say what is wrong; empty for a good state. Order: stable."""
    found = [
        *_tasks(state),
        *_indexes(state),
        *_capacity(state),
        *_ports(state),
        *_jobs(state),
        *_runs(state),
        *_nodes(state),
        *_volumes(state),
        *_outcomes(state),
        *_trust(state),
        *_stored(state),
    ]
    return sorted(found)


def _stored(state: ClusterState) -> list[str]:
    found: list[str] = []
    for key, one in state.stored.items():
        numbers = [version.version for version in one.versions]
        if key != one.ref.key:
            found.append(f"{one.ref} is stored under {key}")
        if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1:
            found.append(f"{one.ref} has versions {numbers}")
    total = sum(one.size_bytes for one in state.stored.values())
    if total > STORE_BYTES_MAX:
        found.append(f"secrets and configs have {total} bytes")
    for job in state.jobs.values():
        for entry in job.versions:
            is_needed = job.listed and entry.version in (job.version, deployments.last_stable(job))
            for key, version in entry.uses.items() if is_needed else ():
                known = state.stored.get(key)
                if known is None or (version and known.at(version) is None):
                    found.append(f"job {job.name} needs version {version} of {key}, which is gone")
    return found


def _tasks(state: ClusterState) -> list[str]:
    found: list[str] = []
    live = Counter[tuple[str, str, int]]()
    for key, task in state.tasks.items():
        if key != task.id:
            found.append(f"task {task.id} is stored under {key}")
        if task.job_id not in state.jobs:
            found.append(f"task {task.id} belongs to no job")
        node = state.nodes.get(task.node_id)
        if node is None:
            found.append(f"task {task.id} is on no node")
        elif not task.ended and node.status in (NodeStatus.DOWN, NodeStatus.LEFT):
            found.append(f"task {task.id} is {task.state}, and its node is {node.status}")
        if task.released and not task.ended:
            found.append(f"task {task.id} is released but {task.state}")
        if len(task.history) > HISTORY_MAX:
            found.append(f"task {task.id} has {len(task.history)} history entries")
        if len(task.execs) > EXECS_MAX:
            found.append(f"task {task.id} has {len(task.execs)} notes of commands")
        if task.restarts != task.attempt - 1:
            found.append(f"task {task.id} has attempt {task.attempt}, {task.restarts} restarts")
        if task.live:
            live[task.job_id, task.group, task.slot] += 1
    # Start-first rollouts have two live tasks in a slot for a while, never three.
    found += [f"slot {slot} has {n} live tasks" for slot, n in live.items() if n > 2]
    return found


def _indexes(state: ClusterState) -> list[str]:
    found: list[str] = []
    by_job: dict[str, set[str]] = {}
    by_node: dict[str, set[str]] = {}
    by_state: dict[TaskState, set[str]] = {}
    for task in state.tasks.values():
        by_job.setdefault(task.job_id, set()).add(task.id)
        by_node.setdefault(task.node_id, set()).add(task.id)
        if task.state not in UNINDEXED:
            by_state.setdefault(task.state, set()).add(task.id)
    if {key: set(ids) for key, ids in state.tasks_by_job.items()} != by_job:
        found.append("tasks_by_job differs from the tasks")
    if {key: set(ids) for key, ids in state.tasks_by_node.items()} != by_node:
        found.append("tasks_by_node differs from the tasks")
    if any(
        len(ids) != len(set(ids))
        for index in (state.tasks_by_job, state.tasks_by_node)
        for ids in index.values()
    ):
        found.append("an index by job or node has a task twice")
    if {key: set(ids) for key, ids in state.tasks_by_state.items()} != by_state:
        found.append("tasks_by_state differs from the tasks")
    for job_id, known in state.tasks_by_job.items():
        if known.tally is not None and known.tally != tally_of(state.tasks[id_] for id_ in known):
            found.append(f"the tally of job {job_id} differs from its tasks")
    making_room = {task.id for task in state.tasks.values() if task.preempted_by}
    unreleased = {task.id for task in state.tasks.values() if not task.released}
    if set(state.preempted) != making_room & unreleased:
        found.append("preempted differs from the tasks")
    return found


def _capacity(state: ClusterState) -> list[str]:
    """Sums only: a node that shrank may hold more than it has; placement refuses what is too much."""
    found: list[str] = []
    sums: dict[NodeId, Resources] = {}
    for task in state.tasks.values():
        if not task.released:
            sums[task.node_id] = sums.get(task.node_id, NOTHING) + task.resources
    sums = {node_id: total for node_id, total in sums.items() if total != NOTHING}
    if dict(state.reserved.items()) != sums:
        found.append("reserved differs from the sum over unreleased tasks")
    return found


def overcommitted(state: ClusterState) -> list[str]:
    """Nodes that hold more than their capacity. Only a node that shrank may ever be listed."""
    return sorted(
        f"node {node.name} holds {state.reserved[node.id]} of {node.facts.capacity}"
        for node in state.nodes.values()
        if not state.reserved.get(node.id, NOTHING).fits_in(node.facts.capacity)
    )


def _ports(state: ClusterState) -> list[str]:
    found: list[str] = []
    holders: dict[tuple[str, int], str] = {}
    for task in state.tasks.values():
        if task.released:
            continue
        for port in task.ports:
            key = (task.address, port_key(port.host, port.protocol))
            if key in holders:
                found.append(f"port {port.host}/{port.protocol} of {task.address} is held twice")
            holders[key] = task.id
    index = {
        (address, key): task_id
        for address, inner in state.ports.items()
        for key, task_id in inner.items()
    }
    if index != holders:
        found.append("ports differs from the unreleased tasks' ports")
    return found


def _jobs(state: ClusterState) -> list[str]:
    found: list[str] = []
    for key, job in state.jobs.items():
        if key != job.id:
            found.append(f"job {job.name} is stored under {key}")
        numbers = [version.version for version in job.versions]
        if not numbers or numbers != sorted(set(numbers)):
            found.append(f"job {job.name} has versions {numbers}")
        rollouts = [one.version for one in job.deployments]
        if rollouts != sorted(set(rollouts)) or len(rollouts) > DEPLOYMENTS_MAX:
            found.append(f"job {job.name} has deployments {rollouts}")
        if any(one.is_open for one in job.deployments[:-1]):
            found.append(f"job {job.name} has an open deployment that is not its newest")
        newest = job.deployment
        if newest is not None and newest.from_version and newest.from_version not in numbers:
            found.append(f"job {job.name} cannot go back to version {newest.from_version}")
        if job.deleted and not state.tasks_by_job.get(job.id):
            found.append(f"job {job.name} is deleted and has no task left")
    names = {job.name: job.id for job in state.jobs.values() if job.listed}
    if dict(state.job_names.items()) != names:
        found.append("job_names differs from the jobs")
    return found


def _runs(state: ClusterState) -> list[str]:
    found: list[str] = []
    claimed: set[str] = set()
    for job in state.jobs.values():
        if (job.cron is not None) != (job.spec.type is JobType.CRON):
            found.append(f"job {job.name} is of type {job.spec.type}, with cron state or without")
        if job.cron is not None and state.tasks_by_job.get(job.id):
            found.append(f"job {job.name} has tasks that are of none of its runs")
        runs = () if job.cron is None or job.deleted else job.cron.runs
        numbered = [run for run in runs if run.job_id]
        claimed.update(run.job_id for run in numbered)
        numbers = [run.run for run in numbered]
        due = [run.scheduled_at_ms for run in numbered if not run.by_hand]
        if job.cron is not None and (
            numbers != sorted(set(numbers))
            or (numbers and numbers[-1] >= job.cron.next_run)
            or due != sorted(set(due))
            or (due and due[-1] > job.cron.after_ms)
        ):
            found.append(f"job {job.name} has runs {numbers}, due at {due}")
        active = [run for run in numbered if run.active]
        notes = len(runs) - len(numbered)
        if len(active) > RUNS_ACTIVE_MAX or max(len(numbered) - len(active), notes) > RUNS_KEPT:
            found.append(f"job {job.name} has {len(runs)} runs, {len(active)} of them active")
        for run in numbered:
            child = state.jobs.get(run.job_id)
            if child is None or (child.parent, child.run) != (job.id, run.run) or child.deleted:
                found.append(f"run {run.run} of job {job.name} is not there")
                continue
            if child.stopped == (run.status is RunStatus.RUNNING):
                found.append(f"run {run.run} of job {job.name} is {run.status}")
            ids = state.tasks_by_job.get(child.id, ())
            if not run.active and any(not state.tasks[task_id].ended for task_id in ids):
                found.append(f"run {run.run} of job {job.name} is over, and a task of it is not")
    for job in state.jobs.values():
        if job.parent and not job.deleted and job.id not in claimed:
            found.append(f"job {job.id} is a run that no job knows")
        if job.parent and (len(job.versions) != 1 or job.spec.type is not JobType.BATCH):
            found.append(f"run {job.id} is no batch job of one version")
    return found


def _nodes(state: ClusterState) -> list[str]:
    names = {node.name: node.id for node in state.nodes.values()}
    if dict(state.node_names.items()) != names or len(names) != len(state.nodes):
        return ["node_names differs from the nodes"]
    return []


def _volumes(state: ClusterState) -> list[str]:
    found: list[str] = []
    for job_id, of_job in state.volumes.items():
        job = state.jobs.get(job_id)
        if job is None or job.deleted or not of_job:
            found.append(f"job {job_id} is gone, or has none of its volumes")
        for key, volume in of_job.items():
            if (volume.job_id, volume.key) != (job_id, key):
                found.append(f"volume {volume.name} is stored under {job_id} {key}")
            if volume.node_id not in state.nodes:
                found.append(f"volume {key} of {job_id} is on no node")
    for task in state.tasks.values():
        group = state.group_of(task)
        job = state.jobs.get(task.job_id)
        if not task.live or group is None or job is None or job.spec.type is JobType.SYSTEM:
            continue
        for name in volumes_of(group):
            home = state.volume(job.volumes_id, task.group, task.slot, name)
            if home is None or home.node_id != task.node_id:
                found.append(f"task {task.id} is not where its volume {name} is")
    return found


def _outcomes(state: ClusterState) -> list[str]:
    found: list[str] = []
    if len(state.outcomes) > OUTCOMES_MAX:
        found.append(f"{len(state.outcomes)} outcomes are remembered")
    if {r.sequence: key for key, r in state.outcomes.items()} != dict(state.outcome_order.items()):
        found.append("outcome_order differs from the outcomes")
    if sorted(state.outcome_order) != list(range(state.outcome_first, state.outcome_next)):
        found.append("remembered outcomes have gaps")
    return found


def _trust(state: ClusterState) -> list[str]:
    trust = state.trust
    found: list[str] = []
    ids = [key.id for key in trust.gossip_keys]
    if len(ids) != len(set(ids)) or len(ids) > GOSSIP_KEYS_MAX:
        found.append(f"gossip keys {ids}")
    if trust.gossip_in_use not in (ids or [""]):
        found.append(f"gossip key {trust.gossip_in_use or '(none)'} is in use and not there")
    if len(trust.tokens) > TOKENS_MAX:
        found.append(f"{len(trust.tokens)} tokens")
    for key, token in trust.tokens.items():
        if key != token.id or len(token.hash) != HASH_BYTES:
            found.append(f"token {key} is not what it should be")
    if len(trust.join_token_hash) not in (0, HASH_BYTES):
        found.append("the join token's hash is none")
    if len(trust.removed_nodes) > REMOVED_NODES_MAX:
        found.append(f"{len(trust.removed_nodes)} removed nodes")
    back = sorted(set(trust.removed_nodes) & set(state.nodes))
    found += [f"node {node_id} was removed and is there" for node_id in back]
    return found
