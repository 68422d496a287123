"""A state while one entry is applied to it: mutations of persistent maps, folded once at the end.

Rules: nobody outside this package sees a draft; every change to a task goes through put_task and
drop_task, which keep all indexes; a draft that is thrown away has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task, port_key
from cube.model.events import DeploymentEvent, Event, JobEvent, NodeEvent, TaskEvent
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.lifecycle import UNINDEXED, TaskState
from cube.model.resources import NOTHING, Resources
from cube.model.stored import Stored
from cube.model.volumes import Volume, volume_key
from cube.statemachine.tables import JobIds, Nested, NodeIds, Table


class Draft:
    """See the module. `now_ms`, `index`, `term` are the entry's."""

    def __init__(self, state: ClusterState, index: int, term: int, now_ms: int) -> None:
        self.base = state
        self.index = index
        self.term = term
        self.now_ms = now_ms
        self.events: list[Event] = []
        self.cluster_id = state.cluster_id
        self.cluster_name = state.cluster_name
        self.settings = state.settings
        self.rebalance_since_ms = state.rebalance_since_ms
        self.trust = state.trust
        self._nodes = Table(state.nodes)
        self._node_names = Table(state.node_names)
        self._jobs = Table(state.jobs)
        self._job_names = Table(state.job_names)
        self._tasks = Table(state.tasks)
        self._preempted = Table(state.preempted)
        self._reserved = Table(state.reserved)
        self._by_job = JobIds(state.tasks_by_job)
        self._by_node = NodeIds(state.tasks_by_node)
        self._by_state: Nested[TaskState, TaskId, None] = Nested(state.tasks_by_state)
        self._ports: Nested[str, int, TaskId] = Nested(state.ports)
        self._volumes: Nested[JobId, str, Volume] = Nested(state.volumes)
        self._stored = Table(state.stored)

    # Nodes

    def node(self, node_id: NodeId) -> Node | None:
        return self._nodes.get(node_id)

    def node_named(self, name: str) -> NodeId | None:
        return self._node_names.get(name)

    def node_count(self) -> int:
        return len(self._nodes)

    def put_node(self, node: Node, kind: str) -> None:
        old = self._nodes.get(node.id)
        if old is not None and old.name != node.name:
            self._node_names.discard(old.name)
        self._nodes[node.id] = node
        self._node_names[node.name] = node.id
        self._announce_node(node, kind)

    def drop_node(self, node: Node) -> None:
        self._nodes.discard(node.id)
        self._node_names.discard(node.name)
        self._reserved.discard(node.id)
        self._announce_node(node, "removed")

    def _announce_node(self, node: Node, kind: str) -> None:
        self.events.append(NodeEvent(node.id, node.name, kind, node.status, node.status_reason))

    # Jobs

    def job(self, job_id: JobId) -> Job | None:
        return self._jobs.get(job_id)

    def job_named(self, name: str) -> Job | None:
        job_id = self._job_names.get(name)
        return None if job_id is None else self._jobs[job_id]

    def jobs_using(self, key: str) -> list[Job]:
        """Those that have this secret or config in some version, runs and deleted ones too; by id."""
        found = [job for job in self._jobs.values() if any(key in one.uses for one in job.versions)]
        return sorted(found, key=lambda job: job.id)

    def job_count(self) -> int:
        """Those that users submitted and have not deleted."""
        return len(self._job_names)

    def put_job(self, job: Job, kind: str) -> None:
        """Stored with the entry's index and time as its last change. An empty `kind`: an event that
        says more has been noted already, or only its deployments have changed."""
        old = self._jobs.get(job.id)
        job = msgspec.structs.replace(job, modified_at_ms=self.now_ms, modified_index=self.index)
        self._jobs[job.id] = job
        if job.deleted:
            if self._job_names.get(job.name) == job.id:
                self._job_names.discard(job.name)
        elif not job.parent:
            self._job_names[job.name] = job.id
        if kind:
            self.events.append(JobEvent(job.id, job.name, kind, job.version, job.run))
        known = {} if old is None else {one.version: one for one in old.deployments}
        self.events.extend(  # of those that have changed; that one began, the version's event says
            DeploymentEvent(job.id, job.name, one.version, one.status, one.message)
            for one in job.deployments
            if known.get(one.version, one) != one
        )

    def _drop_job(self, job: Job) -> None:
        assert job.deleted, "only a deleted job is dropped: its name is another's by now"
        self._jobs.discard(job.id)
        kind = "run_removed" if job.parent else "removed"
        self.events.append(JobEvent(job.id, job.name, kind, job.version, job.run))

    # Tasks

    def task(self, task_id: TaskId) -> Task | None:
        return self._tasks.get(task_id)

    def tasks_of_job(self, job_id: JobId) -> list[Task]:
        """As they stand in this draft, by group, slot, age, id."""
        found = [self._tasks[task_id] for task_id in self._by_job.of(job_id)]
        found.sort(key=lambda task: (task.group, task.slot, task.created_at_ms, task.id))
        return found

    def tasks_of_group(self, job_id: JobId, name: str) -> list[Task]:
        """As they stand in this draft, by slot, age, id."""
        every = [self._tasks[task_id] for task_id in self._by_job.of(job_id)]
        found = [task for task in every if task.group == name]
        found.sort(key=lambda task: (task.slot, task.created_at_ms, task.id))
        return found

    def tasks_of_node(self, node_id: NodeId) -> list[Task]:
        """As they stand in this draft, by id."""
        return [self._tasks[task_id] for task_id in sorted(self._by_node.of(node_id))]

    def reserved(self, node_id: NodeId) -> Resources:
        return self._reserved.get(node_id) or NOTHING

    def port_holder(self, address: str, key: int) -> TaskId | None:
        return self._ports.get(address, key)

    def hold(self, task: Task, reserved: Resources) -> None:
        """Its room, on a node of which so much is reserved, and its ports are taken. add_tasks must
        follow."""
        if task.resources != NOTHING:
            self._reserved[task.node_id] = reserved + task.resources
        for port in task.ports:
            self._ports.set(task.address, port_key(port.host, port.protocol), task.id)

    def add_tasks(self, job_id: JobId, tasks: Collection[Task]) -> None:
        """Those of a job that were just placed and hold their room: what put_task would do, in one
        go, for it is nearly all of a plan."""
        if not tasks:
            return
        all_tasks, by_node = self._tasks.open(), self._by_node.add
        for task in tasks:
            assert task.state is TaskState.SCHEDULED, "it has an index of its own otherwise"
            all_tasks[task.id] = task
            by_node(task.node_id, task.id)
            self._announce_task(task, "placed")
        self._by_job.place(job_id, tasks)

    def put_task(self, task: Task, kind: str) -> None:
        """Stored, indexed and announced; it was there before. Node, job, slot, resources and ports
        of an id never change. The last task of a deleted job takes the job's record with it when
        released."""
        old = self._tasks[task.id]
        self._tasks[task.id] = task
        self._by_job.change(task.job_id, old, task)
        if old.state is not task.state:
            if old.state not in UNINDEXED:
                self._by_state.discard(old.state, task.id)
            if task.state not in UNINDEXED:
                self._by_state.set(task.state, task.id, None)
        if task.released and not old.released:
            self._let_go(task)
        assert task.released or not old.released, "a released task cannot hold again"
        if task.preempted_by and not task.released:
            self._preempted[task.id] = None
        elif old.preempted_by:
            self._preempted.discard(task.id)
        self._announce_task(task, kind)
        if task.released:
            job = self._jobs.get(task.job_id)
            if job is not None and job.deleted:
                self.drop_task(task)

    def note_task(self, task: Task) -> None:
        """Stored; nothing of it has changed but what is noted of it, which has an event of its own."""
        self._by_job.change(task.job_id, self._tasks[task.id], task)
        self._tasks[task.id] = task

    def drop_task(self, task: Task) -> None:
        """Reaped: no record of it is left. It is as it stands in this draft."""
        assert self._tasks[task.id] is task, "an older one was counted otherwise"
        if not task.released:
            self._let_go(task)
        self._tasks.discard(task.id)
        self._preempted.discard(task.id)
        self._by_job.drop(task.job_id, task)
        self._by_node.discard(task.node_id, task.id)
        if task.state not in UNINDEXED:
            self._by_state.discard(task.state, task.id)
        self._announce_task(task, "removed")
        self.drop_job_if_over(task.job_id)

    def drop_job_if_over(self, job_id: JobId) -> None:
        """A deleted job without tasks is forgotten."""
        job = self._jobs.get(job_id)
        if job is not None and job.deleted and not self._by_job.of(job_id):
            self._drop_job(job)

    def _let_go(self, task: Task) -> None:
        left = self.reserved(task.node_id) - task.resources
        if left == NOTHING:
            self._reserved.discard(task.node_id)
        else:
            self._reserved[task.node_id] = left
        for port in task.ports:
            self._ports.discard(task.address, port_key(port.host, port.protocol))

    # Volumes

    def volume(self, job_id: JobId, group: str, slot: int, name: str) -> Volume | None:
        return self._volumes.get(job_id, volume_key(group, slot, name))

    def put_volume(self, volume: Volume) -> None:
        self._volumes.set(volume.job_id, volume.key, volume)

    def drop_volumes(self, job_id: JobId, is_over: Callable[[Volume], bool]) -> None:
        """Where they were is forgotten; nobody touches their data."""
        for volume in [one for one in self._volumes.fold(job_id).values() if is_over(one)]:
            self._volumes.discard(job_id, volume.key)

    def drop_volumes_of_node(self, node_id: NodeId) -> None:
        for job_id in list(self.base.volumes):  # a node is removed by an entry of its own
            self.drop_volumes(job_id, lambda volume: volume.node_id == node_id)

    # Secrets and configs

    def stored(self, key: str) -> Stored | None:
        return self._stored.get(key)

    def every_stored(self) -> list[Stored]:
        """By kind and name."""
        return sorted(self._stored.values(), key=lambda stored: stored.ref)

    def put_stored(self, stored: Stored) -> None:
        self._stored[stored.ref.key] = stored

    def drop_stored(self, key: str) -> None:
        self._stored.discard(key)

    def _announce_task(self, task: Task, kind: str) -> None:
        self.events.append(
            TaskEvent(
                task.id,
                task.name,
                task.job_id,
                task.job,
                task.group,
                task.slot,
                task.node_id,
                kind,
                task.state,
                task.desired,
                task.health,
                task.attempt,
                task.reason,
                task.message,
            )
        )

    def finish(self) -> ClusterState:
        """The new state, but for the memory of outcomes."""
        return msgspec.structs.replace(
            self.base,
            cluster_id=self.cluster_id,
            cluster_name=self.cluster_name,
            settings=self.settings,
            rebalance_since_ms=self.rebalance_since_ms,
            trust=self.trust,
            index=self.index,
            term=self.term,
            now_ms=self.now_ms,
            nodes=self._nodes.finish(),
            node_names=self._node_names.finish(),
            jobs=self._jobs.finish(),
            job_names=self._job_names.finish(),
            tasks=self._tasks.finish(),
            preempted=self._preempted.finish(),
            reserved=self._reserved.finish(),
            tasks_by_job=self._by_job.finish(),
            tasks_by_node=self._by_node.finish(),
            tasks_by_state=self._by_state.finish(),
            ports=self._ports.finish(),
            volumes=self._volumes.finish(),
            stored=self._stored.finish(),
        )
