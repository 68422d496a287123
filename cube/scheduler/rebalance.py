"""Second thoughts: which running tasks would be better off elsewhere. Decides, moves nothing.

A move is a start-first replacement: the new task serves before the old one stops. Only services are
moved, and of them only what two tasks can live side by side of, under policies that spread.

It comes to rest, because every move lowers the same measure, and there are finitely many placements:
first the crowding of zones, then of nodes (the sum over both of the squared number of a group's tasks
there), then the unevenness of use (the sum over nodes of cpu² + memory², as shares). What gains too
little is not moved; what the tasks' affinities prefer is never given up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import msgspec

from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.ids import NodeId, TaskId
from cube.model.resources import NOTHING, Resources
from cube.model.spec import GroupSpec, JobType, PlacementPolicy
from cube.scheduler import filters, score, trouble
from cube.scheduler.attributes import attribute, satisfies
from cube.scheduler.rollout import lives_alone
from cube.scheduler.want import Want

REASON = "rebalance"
AT_ONCE_MAX = 3  # moves under way in the cluster; one in a group
COOLDOWN_MS = 600_000  # a task that was moved stays at least so long
ROUND_MS = 3_600_000  # so long a round waits for groups that are not as wanted
GAP = 0.2  # a node must be fuller than the other by this share of its capacity, afterwards too
SOURCES_MAX = 4  # nodes tried for one group, the fullest first
TARGETS_MAX = 16  # nodes tried for one group, the emptiest first
MOVES_MAX = 100  # shown of a plan


class Move(msgspec.Struct, frozen=True):
    """`crowding`, `use`: by how much the measures fall (see the module); the first goes before the
    second."""

    task: Task
    to: NodeId
    crowding: int
    use: float


class _Group(msgspec.Struct):
    """A group at rest, and where its tasks are."""

    job: Job
    name: str
    spec: GroupSpec
    tasks: dict[TaskId, Task]
    at: dict[TaskId, NodeId]
    on_node: dict[NodeId, int]


class Balance:
    """What is where, as far as moves matter. `best` is the next move, `take` makes it happen here."""

    def __init__(self, state: ClusterState, now_ms: int) -> None:
        self._state = state
        self._now_ms = now_ms
        self._used = {node_id: state.reserved.get(node_id, NOTHING) for node_id in state.nodes}
        self._nodes = sorted(
            (node for node in state.nodes.values() if node.accepts_tasks),
            key=lambda node: (node.name, node.id),
        )
        self._sorted: list[Node] | None = None
        self._use_of: dict[NodeId, float] = {}
        self.under_way = 0
        self.restless = False  # some group that could be moved is not as wanted now
        self._groups = list(self._at_rest())

    def _at_rest(self) -> Iterator[_Group]:
        for job in sorted(self._state.jobs.values(), key=lambda job: (job.name, job.id)):
            if job.spec.type is not JobType.SERVICE or job.stopped or job.deleted:
                continue
            tasks: dict[str, list[Task]] = {}
            for task in self._state.tasks_of_job(job.id):
                if not task.ended:
                    tasks.setdefault(task.group, []).append(task)
            self.under_way += sum(_moves(found) for found in tasks.values())
            deployment = job.deployment
            is_rolling = deployment is not None and deployment.is_open
            for name, spec in sorted(job.spec.groups.items()):
                found = tasks.get(name, [])
                if not _is_movable(job, spec, self._state):
                    continue
                if is_rolling or not _is_calm(job, spec, found):
                    self.restless = True
                else:
                    yield _group(job, name, spec, found)

    def best(self) -> Move | None:
        """The move that gains most; None: all is well."""
        return next(iter(self.each()), None)

    def each(self) -> list[Move]:
        """The best move of each group, the greatest gain first."""
        moves = [move for group in self._groups if (move := self._best_of(group)) is not None]
        return sorted(moves, key=lambda move: (-move.crowding, -move.use, move.task.id))

    def again(self, move: Move) -> Move | None:
        """The best move of the same group, after others were taken."""
        return self._best_of(self._group_of(move))

    def _group_of(self, move: Move) -> _Group:
        return next(one for one in self._groups if move.task.id in one.tasks)

    def take(self, move: Move, *, finally_: bool = False) -> None:
        """The move is under way: its group rests. `finally_`: it has been carried through."""
        group = self._group_of(move)
        source = group.at[move.task.id]
        self._used[move.to] = self._used[move.to] + group.spec.resources
        self._sorted = None
        self._use_of.clear()
        if not finally_:
            self._groups.remove(group)
            self.under_way += 1
            return
        self._used[source] = self._used[source] - group.spec.resources
        group.on_node[source] -= 1
        group.on_node[move.to] = group.on_node.get(move.to, 0) + 1
        group.at[move.task.id] = move.to
        del group.tasks[move.task.id]  # once in a plan, as the cooldown will have it

    def _best_of(self, group: _Group) -> Move | None:
        tasks = [task for task in group.tasks.values() if not self._rests(task)]
        if not tasks or len(self._nodes) < 2:
            return None
        zones = _Zones(self._state, group)
        tasks.sort(key=lambda task: self._fullness(group, zones, task))
        sources: dict[NodeId, Task] = {}  # tasks on one node gain the same: the first will do
        for task in tasks:
            sources.setdefault(group.at[task.id], task)
        targets = self._targets(group, zones)
        found: Move | None = None
        for task in list(sources.values())[:SOURCES_MAX]:
            moves = (self._judge(group, zones, task, node) for node in targets)
            move = next((one for one in moves if one is not None), None)
            if move is not None and (
                found is None or (move.crowding, move.use) > (found.crowding, found.use)
            ):
                found = move
        return found

    def _targets(self, group: _Group, zones: _Zones) -> list[Node]:
        """The emptiest first, as far as this group is concerned."""
        closed = trouble.troubled(group.job, group.spec, list(group.tasks.values()), self._now_ms)
        nodes = self._by_use()
        if not group.spec.placement.spread_over:
            without = (node for node in nodes if node.id not in group.on_node)
            nodes = [*itertools.islice(without, TARGETS_MAX + len(closed)), *(
                node for node in nodes if node.id in group.on_node
            )]  # fmt: skip
        found = [node for node in nodes if node.id not in closed]
        found.sort(key=lambda node: (zones.load(node.id), group.on_node.get(node.id, 0)))
        return found[:TARGETS_MAX]

    def _by_use(self) -> list[Node]:
        if self._sorted is None:
            self._sorted = sorted(self._nodes, key=lambda node: (self._use(node), node.name))
        return self._sorted

    def _rests(self, task: Task) -> bool:
        return task.placed_reason == REASON and self._now_ms - task.created_at_ms < COOLDOWN_MS

    def _fullness(self, group: _Group, zones: _Zones, task: Task) -> tuple[object, ...]:
        """Those on the fullest nodes first, then the youngest."""
        node_id = group.at[task.id]
        use = self._use(self._state.nodes[node_id])
        load = tuple(-one for one in zones.load(node_id))
        return load, -group.on_node[node_id], -use, -task.created_at_ms, task.id

    def _use(self, node: Node) -> float:
        known = self._use_of.get(node.id)
        if known is None:
            used, capacity = self._used[node.id], node.facts.capacity
            known = score.share(used.cpu_milli, capacity.cpu_milli)
            known += score.share(used.memory_bytes, capacity.memory_bytes)
            self._use_of[node.id] = known
        return known

    def _judge(self, group: _Group, zones: _Zones, task: Task, node: Node) -> Move | None:
        source = self._state.nodes[group.at[task.id]]
        if source.id == node.id:
            return None
        move = self._gain(group, zones, task, source, node)
        if move is None or not self._fits(group, node):
            return None
        return None if _liking(group.spec, node) < _liking(group.spec, source) else move

    def _gain(
        self, group: _Group, zones: _Zones, task: Task, source: Node, node: Node
    ) -> Move | None:
        before, after = group.on_node[source.id], group.on_node.get(node.id, 0)
        in_zones = zones.gain(source.id, node.id)
        on_nodes = 2 * (before - after - 1)
        use, least = self._use_gain(group.spec.resources, source, node)
        for gain in (*in_zones, on_nodes):
            if gain < 0:
                return None
            if gain > 0:
                return Move(task, node.id, gain, use)
        return Move(task, node.id, 0, use) if use >= least > 0.0 else None

    def _use_gain(self, need: Resources, source: Node, node: Node) -> tuple[float, float]:
        """By how much the measure of use falls, and how much is worth a move."""
        gain = moved = 0.0
        for kind in ("cpu_milli", "memory_bytes"):
            amount = getattr(need, kind)
            for one, sign in ((source, -1), (node, 1)):
                capacity = getattr(one.facts.capacity, kind)
                used = getattr(self._used[one.id], kind)
                before, after = (
                    score.share(used, capacity),
                    score.share(used + sign * amount, capacity),
                )
                gain += before * before - after * after
                moved += abs(after - before)
        return gain, GAP * moved

    def _fits(self, group: _Group, node: Node) -> bool:
        most = group.spec.placement.max_per_node
        if most and group.on_node.get(node.id, 0) >= most:
            return False
        if not group.spec.resources.fits_in(node.facts.capacity - self._used[node.id]):
            return False
        context = filters.Context(self._state, group.spec, self._now_ms)
        checks = (*filters.STANDING, filters.dynamic_ports)
        return next(filters.reasons(context, node, checks), None) is None


class _Zones:
    """How a group's tasks lie in the zones of its spread_over, the outermost first."""

    def __init__(self, state: ClusterState, group: _Group) -> None:
        self._names = group.spec.placement.spread_over
        self._state = state
        self._counts: dict[tuple[str, ...], int] = {}
        for node_id, count in group.on_node.items():
            for zone in self._zones(node_id):
                self._counts[zone] = self._counts.get(zone, 0) + count

    def _zones(self, node_id: NodeId) -> list[tuple[str, ...]]:
        if not self._names:
            return []
        node = self._state.nodes[node_id]
        values = tuple(attribute(node, name) or "" for name in self._names)
        return [values[:depth] for depth in range(1, len(values) + 1)]

    def load(self, node_id: NodeId) -> tuple[int, ...]:
        return tuple([self._counts.get(zone, 0) for zone in self._zones(node_id)])

    def gain(self, source: NodeId, target: NodeId) -> list[int]:
        """By how much crowding falls, zone by zone: 0 where both are in one."""
        return [
            0 if one == other else 2 * (self._counts.get(one, 0) - self._counts.get(other, 0) - 1)
            for one, other in zip(self._zones(source), self._zones(target), strict=True)
        ]


def _is_movable(job: Job, spec: GroupSpec, state: ClusterState) -> bool:
    policy = score.policy_of(spec, state.settings.policy)
    spreads = policy in (PlacementPolicy.EPVM, PlacementPolicy.SPREAD)
    return spreads and spec.count > 0 and not lives_alone(job, spec)


def _is_calm(job: Job, spec: GroupSpec, tasks: Sequence[Task]) -> bool:
    """Every slot has one task, which is up to date and serves."""
    return (
        len(tasks) == spec.count
        and {task.slot for task in tasks} == set(range(spec.count))
        and all(task.live and task.serving and task.version == job.version for task in tasks)
    )


def _moves(tasks: Sequence[Task]) -> int:
    """Moves of one group that are under way."""
    slots: dict[int, list[Task]] = {}
    for task in tasks:
        slots.setdefault(task.slot, []).append(task)
    return sum(
        len(found) > 1 and any(task.placed_reason == REASON for task in found)
        for found in slots.values()
    )


def _group(job: Job, name: str, spec: GroupSpec, tasks: Sequence[Task]) -> _Group:
    on_node: dict[NodeId, int] = {}
    for task in tasks:
        on_node[task.node_id] = on_node.get(task.node_id, 0) + 1
    at = {task.id: task.node_id for task in tasks}
    return _Group(job, name, spec, {task.id: task for task in tasks}, at, on_node)


def _liking(spec: GroupSpec, node: Node) -> int:
    return sum(wish.weight for wish in spec.placement.affinities if satisfies(node, wish))


def next_moves(state: ClusterState, now_ms: int) -> list[Move]:
    """What is to be begun now, with what is under way: one in a group, AT_ONCE_MAX in the cluster."""
    return _next(Balance(state, now_ms))


def _next(balance: Balance) -> list[Move]:
    """All groups are looked at once; of those that gain most, each again when its turn comes."""
    found: list[Move] = []
    if balance.under_way >= AT_ONCE_MAX:
        return found
    for move in balance.each():
        now = balance.again(move)
        if now is not None:
            balance.take(now)
            found.append(now)
            if balance.under_way >= AT_ONCE_MAX:
                break
    return found


def step(state: ClusterState, now_ms: int) -> tuple[list[Move], bool]:
    """The moves to begin now, and whether the round is over: nothing to move, nothing under way, and
    no group that will settle later (for ROUND_MS at most)."""
    balance = Balance(state, now_ms)
    found = _next(balance)
    waits = balance.restless and now_ms < state.rebalance_since_ms + ROUND_MS
    return found, not (found or balance.under_way or waits)


def all_moves(state: ClusterState, now_ms: int) -> list[Move]:
    """What would be done in the end if nothing else changed, each task once, in order of gain."""
    balance = Balance(state, now_ms)
    found: list[Move] = []
    while len(found) < MOVES_MAX:
        move = balance.best()
        if move is None:
            break
        balance.take(move, finally_=True)
        found.append(move)
    return found


def want_of(state: ClusterState, move: Move) -> Want:
    """The second task of the slot, on its new node and nowhere else."""
    task = move.task
    job = state.jobs[task.job_id]
    return Want(
        job=job,
        group=task.group,
        spec=job.spec.groups[task.group],
        slots=(task.slot,),
        version=job.version,
        replaces=(task.id,),
        only_on=(move.to,),
        reason=REASON,
    )
