"""Room for important tasks that fit nowhere, at the cost of less important ones. Decides, stops nothing.

A want of priority p may take the place of tasks of jobs of priority p − DELTA and below. The node is
the one where the fewest tasks suffice, then those of the lowest priority, then the youngest. No group
falls below what it was promised: count − update.parallelism tasks that serve. Batch tasks have no such
promise. System tasks are left alone: they have no other node.

The room is held: until every victim on a node is gone, nothing less important than the preemptor is
placed there, or the victims' own replacements would take it piece by piece. Who preempted whom is in
the victims' desired_reason, so all of this follows from the state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from cube.model.cluster import ClusterState, Node, Task, port_key
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.lifecycle import TaskState
from cube.model.resources import NOTHING, Resources
from cube.model.spec import JobType
from cube.scheduler import filters
from cube.scheduler.want import Want

DELTA = 10  # of priorities: less is no difference (as in Nomad)
VICTIMS_MAX = 8  # for one task: what needs more is not worth the disturbance
PER_PLAN_MAX = 64  # victims: a plan that goes wrong must not empty the cluster
LOOKED_MAX = 20_000  # tasks looked at in one plan: 20 ms or so
SETS_MAX = 2_000  # combinations tried on one node before a good one will do
HELD_UNTIL_MS = 1 << 62  # not by time
RETRY_MS = 1_000  # when not all could be looked at


class Held(msgspec.Struct, frozen=True):
    """For whom a node is held: nobody of a lower or the same priority but that group itself."""

    job_id: JobId
    group: str
    priority: int
    name: str = ""  # job.group

    def bars(self, want: Want) -> bool:
        if (self.job_id, self.group) == (want.job.id, want.group):
            return False
        return want.job.spec.priority <= self.priority


def held_nodes(state: ClusterState) -> dict[NodeId, Held]:
    """Nodes whose preempted tasks are not all gone yet. The most important preemptor counts."""
    found: dict[NodeId, Held] = {}
    for task_id in sorted(state.preempted):
        task = state.tasks[task_id]
        name, _, group = task.preempted_by.rpartition(".")
        job = state.job_named(name)
        if job is None or job.stopped:
            continue
        held = found.get(task.node_id)
        if held is None or held.priority < job.spec.priority:
            found[task.node_id] = Held(job.id, group, job.spec.priority, task.preempted_by)
    return found


def fenced(want: Want, held: Mapping[NodeId, Held]) -> Want:
    """The want, with the nodes closed to it that are held for others."""
    closed = [node_id for node_id, one in held.items() if one.bars(want)]
    if not closed:
        return want
    return msgspec.structs.replace(
        want, avoid={**want.avoid, **dict.fromkeys(sorted(closed), HELD_UNTIL_MS)}
    )


class Room(msgspec.Struct, frozen=True):
    """These tasks have to go from the node so that one more task of the want fits."""

    node_id: NodeId
    victims: tuple[Task, ...]


class Preemption:
    """One plan's preemptions. `free`: what the plan so far leaves of a node."""

    def __init__(
        self,
        state: ClusterState,
        now_ms: int,
        free: Callable[[NodeId], Resources],
        order: Sequence[NodeId],
    ) -> None:
        """`order`: the nodes, those that are to be looked at first in front."""
        self.held = held_nodes(state)
        self.enabled = state.settings.preemption
        self.incomplete = False  # not all could be looked at
        self.retry_at_ms = now_ms + RETRY_MS
        self._state = state
        self._now_ms = now_ms
        self._free = free
        self._order = order
        self._looked = 0
        self._chosen: set[TaskId] = set()
        self._spare: dict[NodeId, Resources] = {}  # freed by victims, less what that is for
        self._added: dict[NodeId, int] = {}  # tasks of the present want that will come
        self._allowed: dict[tuple[JobId, str], int | None] = {}
        told = (state.tasks[task_id] for task_id in state.preempted)
        # A node that is down frees nothing: its victims are not waited for.
        self._under_way = {task.preempted_by for task in told if task.state is not TaskState.LOST}

    def make_room(self, want: Want, slots: int) -> list[Task]:
        """The victims for as many of the slots as can be helped. Nothing while the group's last
        victims are still on their way out: what they leave is looked at first."""
        name = f"{want.job.name}.{want.group}"
        found: list[Task] = []
        is_extra = bool(want.replaces)  # a second task beside one that serves
        if is_extra or name in self._under_way or want.job.spec.priority - DELTA < 1:
            return found
        self._added = {}
        for number in range(slots):
            at = (want.only_on[number],) if want.only_on else self._order
            room = min(
                (room for node_id in at if (room := self._on(want, node_id)) is not None),
                key=lambda room: (*self._cost(room.victims), self._state.nodes[room.node_id].name),
                default=None,
            )
            if room is None and want.only_on and not self.incomplete:
                continue
            if room is None or len(self._chosen) + len(room.victims) > PER_PLAN_MAX:
                break
            self._take(want, room)
            found.extend(room.victims)
        return found

    def _take(self, want: Want, room: Room) -> None:
        spare = self._spare.get(room.node_id, NOTHING) - want.spec.resources
        for task in room.victims:
            self._chosen.add(task.id)
            spare = spare + task.resources
            allowed = self._allowance(task)
            if allowed is not None:
                self._allowed[task.job_id, task.group] = allowed - 1
        self._spare[room.node_id] = spare
        self._added[room.node_id] = self._added.get(room.node_id, 0) + 1
        self.held[room.node_id] = Held(want.job.id, want.group, want.job.spec.priority)

    def _on(self, want: Want, node_id: NodeId) -> Room | None:
        self._looked += 1
        if self._looked > LOOKED_MAX:
            self.incomplete = True
        node = self._state.nodes.get(node_id)
        if self.incomplete or node is None:
            return None
        held = self.held.get(node_id)
        if (held is not None and held.bars(want)) or not self._is_open(want, node):
            return None
        free = self._free(node_id) + self._spare.get(node_id, NOTHING)
        lack = _lack(want.spec.resources, free)
        holders = self._port_holders(want, node)
        if holders is None:
            return None
        if _covers(NOTHING, lack) and not holders:
            return Room(node_id, ()) if node_id in self._spare else None
        candidates = self._candidates(want, node_id)
        must = [task for task in candidates if task.id in holders]
        if len(must) < len(holders):
            return None
        victims = self._fewest(candidates, must, lack)
        return None if victims is None else Room(node_id, victims)

    def _is_open(self, want: Want, node: Node) -> bool:
        """Nothing is against it but room and ports."""
        on_node = dict(want.on_node)
        on_node[node.id] = on_node.get(node.id, 0) + self._added.get(node.id, 0)
        context = filters.Context(self._state, want.spec, self._now_ms, on_node, dict(want.avoid))
        checks = (*filters.ACCEPTING, *filters.STANDING, filters.rejected_here,
                  filters.max_per_node, filters.dynamic_ports)  # fmt: skip
        return next(filters.reasons(context, node, checks), None) is None

    def _port_holders(self, want: Want, node: Node) -> set[TaskId] | None:
        """The tasks that hold host ports that the want asks for by number. None: it is hopeless, as
        one that comes will hold them."""
        ports = [port for port in want.spec.ports.values() if port.host]
        if ports and self._added.get(node.id):
            return None
        used = self._state.ports.get(node.facts.advertise)
        keys = (port_key(port.host, port.protocol) for port in ports)
        return {used[key] for key in keys if used is not None and key in used}

    def _candidates(self, want: Want, node_id: NodeId) -> list[Task]:
        """Least important first, then youngest; no more of a group than it can spare."""
        ids = self._state.tasks_by_node.get(node_id, ())
        self._looked += len(ids)
        most = want.job.spec.priority - DELTA
        found: list[Task] = []
        for task_id in ids:
            task = self._state.tasks[task_id]
            if task.live and task.id not in self._chosen and self._priority(task) <= most:
                allowed = self._allowance(task)
                if allowed is None or allowed > 0:
                    found.append(task)
        found.sort(key=lambda task: (self._priority(task), -task.created_at_ms, task.id))
        return found

    def _priority(self, task: Task) -> int:
        return self._state.jobs[task.job_id].spec.priority

    def _allowance(self, task: Task) -> int | None:
        """How many of its group may go now; None: any number."""
        key = (task.job_id, task.group)
        if key not in self._allowed:
            self._allowed[key] = allowance(self._state, task.job_id, task.group)
        return self._allowed[key]

    def _fewest(
        self, candidates: Sequence[Task], must: Sequence[Task], lack: Resources
    ) -> tuple[Task, ...] | None:
        others = [task for task in candidates if task not in must]
        if not _covers(_sum(candidates), lack):
            return None
        tried = 0
        for count in range(max(len(must), 1), VICTIMS_MAX + 1):
            if not _covers(_most(candidates, count), lack):
                continue
            best: tuple[Task, ...] | None = None
            for more in itertools.combinations(_useful(others, count), count - len(must)):
                tried += 1
                chosen = (*must, *more)
                is_enough = _covers(_sum(chosen), lack) and self._are_spared(chosen)
                if is_enough and (best is None or self._cost(chosen) < self._cost(best)):
                    best = chosen
                if tried >= SETS_MAX:
                    break
            if best is not None:
                return best
            if tried >= SETS_MAX:
                return self._by_greed(others, must, lack)
        return None

    def _by_greed(
        self, others: Sequence[Task], must: Sequence[Task], lack: Resources
    ) -> tuple[Task, ...] | None:
        """The largest first, and then none that is not needed."""
        chosen = list(must)
        for task in sorted(others, key=lambda task: -_weight(task, lack)):
            if _covers(_sum(chosen), lack):
                break
            if self._are_spared((*chosen, task)):
                chosen.append(task)
        for task in [one for one in chosen if one not in must]:
            rest = [one for one in chosen if one is not task]
            if _covers(_sum(rest), lack):
                chosen = rest
        enough = _covers(_sum(chosen), lack) and len(chosen) <= VICTIMS_MAX
        return tuple(chosen) if enough else None

    def _are_spared(self, tasks: Sequence[Task]) -> bool:
        counted: dict[tuple[JobId, str], int] = {}
        for task in tasks:
            key = (task.job_id, task.group)
            counted[key] = counted.get(key, 0) + 1
            allowed = self._allowance(task)
            if allowed is not None and counted[key] > allowed:
                return False
        return True

    def _cost(self, tasks: Sequence[Task]) -> tuple[int, list[int], list[int]]:
        """Fewer, then less important, then younger ones cost less."""
        return (
            len(tasks),
            sorted((self._priority(task) for task in tasks), reverse=True),
            [-at_ms for at_ms in sorted(task.created_at_ms for task in tasks)],
        )


def _useful(tasks: Sequence[Task], count: int) -> list[Task]:
    """Without those that are like `count` others before them: same group, same size."""
    seen: dict[tuple[JobId, str, Resources], int] = {}
    found: list[Task] = []
    for task in tasks:
        kind = (task.job_id, task.group, task.resources)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= count:
            found.append(task)
    return found


def _lack(need: Resources, free: Resources) -> Resources:
    """What is not asked for does not lack."""
    return Resources(
        max(0, need.cpu_milli - free.cpu_milli) if need.cpu_milli else 0,
        max(0, need.memory_bytes - free.memory_bytes) if need.memory_bytes else 0,
        max(0, need.disk_bytes - free.disk_bytes) if need.disk_bytes else 0,
    )


def _covers(have: Resources, lack: Resources) -> bool:
    return (
        have.cpu_milli >= lack.cpu_milli
        and have.memory_bytes >= lack.memory_bytes
        and have.disk_bytes >= lack.disk_bytes
    )


def _sum(tasks: Iterable[Task]) -> Resources:
    found = NOTHING
    for task in tasks:
        found = found + task.resources
    return found


def _most(tasks: Sequence[Task], count: int) -> Resources:
    """More than any `count` of them have."""

    def largest(sizes: list[int]) -> int:
        return sum(sorted(sizes, reverse=True)[:count])

    return Resources(
        largest([task.resources.cpu_milli for task in tasks]),
        largest([task.resources.memory_bytes for task in tasks]),
        largest([task.resources.disk_bytes for task in tasks]),
    )


def _weight(task: Task, lack: Resources) -> float:
    """How much of what lacks the task would give, in shares of each."""
    pairs = (
        (task.resources.cpu_milli, lack.cpu_milli),
        (task.resources.memory_bytes, lack.memory_bytes),
        (task.resources.disk_bytes, lack.disk_bytes),
    )
    return sum(min(1.0, have / need) for have, need in pairs if need > 0)


def allowance(state: ClusterState, job_id: JobId, group: str) -> int | None:
    """How many tasks of the group may be taken now: so many that count − parallelism still serve.
    None: any number (batch); 0 for system jobs."""
    job = state.jobs[job_id]
    spec = job.spec.groups.get(group)
    if spec is None or job.spec.type is JobType.SYSTEM:
        return 0
    if job.spec.type is not JobType.SERVICE:
        return None
    serving = {
        task.slot
        for task_id in state.ids_of_job(job_id)
        if (task := state.tasks[task_id]).group == group and task.live and task.serving
    }
    return max(0, len(serving) - (spec.count - max(1, spec.update.parallelism)))
