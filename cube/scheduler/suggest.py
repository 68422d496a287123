"""Single changes that may place what has no place: what `cube why` tries before it says so.

Each is a command as a user or an operator would give it, found by asking the filters of what stands in
the way where. Whether it does place the tasks is not said here: that takes the whole scheduler, on a
fork of the state (cube.services.remedies).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from cube.model import commands as c
from cube.model.allowed import ALLOW, AS_USER, key_of
from cube.model.cluster import ClusterState, Job, Node, NodeFacts, port_key
from cube.model.ids import JobId, NodeId
from cube.model.launch import DISK_FACT, DISK_SHORT, DriverInfo
from cube.model.lifecycle import NodeStatus
from cube.model.resources import Resources
from cube.model.spec import Constraint, GroupSpec, JobType, Operator
from cube.model.units import exact_size
from cube.scheduler import filters
from cube.scheduler.attributes import attribute, satisfies, wording
from cube.scheduler.want import Want

EACH_MAX = 3  # of one kind: a hundred cordoned nodes are not a hundred changes to try
OTHERS_MAX = 5  # groups that might be made smaller
NEW_NODE = NodeId("dry-run-node")  # of a node that is not there yet
MIB = 1 << 20
_ROOM = frozenset({"cpu", "memory", "disk"})
_LABELS = "node.labels."

# The sizes of changes: what only lets things be goes before what alters the job, that before what
# costs others, that before what costs money.
LET, JOB, LABEL, OTHERS, REPAIR, ADD = range(6)


class Remedy(msgspec.Struct, frozen=True):
    """`told`: what to do, as a command or a line of the job file. Smaller `size` first; the first
    number is its kind."""

    body: c.Body
    told: str
    size: tuple[int, int]


class _Obstacles(msgspec.Struct, frozen=True):
    """A node, and the codes of what stands in the way there."""

    node: Node
    codes: frozenset[str]


def candidates(state: ClusterState, now_ms: int, want: Want) -> list[Remedy]:
    """Smallest first."""
    context = filters.Context(state, want.spec, now_ms, want.on_node, dict(want.avoid))
    only = set(want.only_on)
    seen = [
        _Obstacles(node, frozenset(reason.code for reason in filters.reasons(context, node)))
        for node in sorted(state.nodes.values(), key=lambda node: (node.name, node.id))
        if not only or node.id in only
    ]
    search = _Search(context, want, seen)
    found = [remedy for kind in search.kinds() for remedy in kind()]
    return sorted(found, key=lambda remedy: (remedy.size, remedy.told))


class _Search:
    def __init__(self, context: filters.Context, want: Want, seen: Sequence[_Obstacles]) -> None:
        self.context = context
        self.state = context.state
        self.want = want
        self.job: Job = want.job
        self.group: GroupSpec = want.spec
        self.seen = seen
        self.path = f"groups.{want.group}"

    def kinds(self) -> Iterator[Callable[[], Iterator[Remedy]]]:
        yield from (self.let, self.smaller, self.constraints, self.labels, self.more_per_node)
        yield from (self.ports, self.others, self.drivers, self.permissions, self.lost_nodes)
        if not self.want.only_on:
            yield self.another_node

    def only(self, code: str) -> list[Node]:
        """Nodes where nothing else stands in the way, those with most room first."""
        nodes = [one.node for one in self.seen if one.codes == {code}]
        return sorted(nodes, key=lambda node: (-self._fit(node), node.name))

    # Nodes that take nothing

    def let(self) -> Iterator[Remedy]:
        for node in self.only("ineligible")[:EACH_MAX]:
            yield Remedy(
                c.SetEligibility(node.id, True), f"cube node uncordon {node.name}", (LET, 0)
            )
        for node in self.only("draining")[:EACH_MAX]:
            yield Remedy(c.SetDrain(node.id, None), f"cube node undrain {node.name}", (LET, 1))

    def lost_nodes(self) -> Iterator[Remedy]:
        for node in self.only("not_ready")[:EACH_MAX]:
            body = c.SetNodeStatus(self.state.term, node.id, NodeStatus.READY, "as if it were back")
            told = f"bring node {node.name} back (it is {node.status.value})"
            yield Remedy(body, told, (REPAIR, 1))

    def drivers(self) -> Iterator[Remedy]:
        name = self.group.driver.value
        for node in self.only("driver")[:EACH_MAX]:
            info = node.facts.drivers.get(name)
            drivers = {**node.facts.drivers, name: DriverInfo(name, True)}
            verb = "enable" if info is None else "repair"
            told = f"{verb} the {name} driver on {node.name}"
            if info is not None and info.attributes.get(DISK_FACT) == DISK_SHORT:
                told = f"make room on the disk of {node.name}"
            yield Remedy(_facts(node, drivers=drivers), told, (REPAIR, 0))

    def permissions(self) -> Iterator[Remedy]:
        name, asked = self.group.driver.value, filters.permissions(self.group)
        for node in self.only("not_allowed")[:EACH_MAX]:
            info = node.facts.drivers[name]
            words = sorted({*info.attributes.get(ALLOW, "").split(","), *asked} - {""})
            attributes = {**info.attributes, ALLOW: ",".join(words)}
            now = msgspec.structs.replace(info, attributes=attributes)
            body = _facts(node, drivers={**node.facts.drivers, name: now})
            is_user = asked[0].startswith(AS_USER)
            key, listed = key_of([w for w in words if w.startswith(AS_USER) is is_user], name)
            told = f"in the agent's configuration of {node.name}: {key} = [{listed}]"
            yield Remedy(body, told, (REPAIR, 0))

    # The job file

    def _change(self, group: GroupSpec, told: str, size: int) -> Iterator[Remedy]:
        """The job with this group, if a job file may say so."""
        from cube.model.errors import BadConfig
        from cube.model.jobfile import parse_tree
        from cube.model.jobrender import render

        groups = {**self.job.spec.groups, self.want.group: group}
        spec = msgspec.structs.replace(self.job.spec, groups=groups)
        try:
            parse_tree(render(spec))
        except BadConfig:
            return
        yield Remedy(c.SubmitJob(spec, self.job.id), f"in the job file: {told}", (JOB, size))

    def smaller(self) -> Iterator[Remedy]:
        """A reservation that the best nodes have room for; `size`: by how many parts in a thousand
        it is smaller."""
        lacking = [one for one in self.seen if one.codes and one.codes <= _ROOM]
        for kind in ("cpu", "memory", "disk"):
            nodes = [one.node for one in lacking if one.codes == {kind}]
            if nodes:
                yield from self._reduced({kind: self._largest(kind, nodes)})
        both = [one for one in lacking if len(one.codes) > 1]
        if both:
            best = max(both, key=lambda one: (self._least_share(one), one.node.name))
            free, count = self.state.free(best.node), len(self.want.slots)
            yield from self._reduced(
                {kind: _of(free, kind) // count for kind in ("cpu", "memory", "disk")}
            )

    def _reduced(self, most: dict[str, int]) -> Iterator[Remedy]:
        need = self.group.resources
        values, told, size = {}, [], 0
        for kind, value in most.items():
            if value >= _of(need, kind):
                continue
            if kind != "cpu" and value >= MIB:
                value -= value % MIB
            if value <= 0:
                return
            values[_FIELD[kind]] = value
            written = f"{value / 1000:g}" if kind == "cpu" else f'"{exact_size(value)}"'
            now = f"{need.cpu_milli / 1000:g}" if kind == "cpu" else exact_size(_of(need, kind))
            told.append(f"{self.path}.resources.{kind} = {written} (now {now})")
            size = max(size, 1000 - value * 1000 // _of(need, kind))
        if values:
            resources = msgspec.structs.replace(need, **values)
            group = msgspec.structs.replace(self.group, resources=resources)
            yield from self._change(group, ", ".join(told), size)

    def _largest(self, kind: str, nodes: Sequence[Node]) -> int:
        """The largest reservation of which these nodes together hold all the tasks; 0: none."""
        low, high = 0, _of(self.group.resources, kind)
        frees = [_of(self.state.free(node), kind) for node in nodes]
        rooms = [self._fit(node, without=kind) for node in nodes]
        while low < high:
            middle = (low + high + 1) // 2
            fit = sum(
                min(room, max(0, free) // middle) for room, free in zip(rooms, frees, strict=True)
            )
            if fit >= len(self.want.slots):
                low = middle
            else:
                high = middle - 1
        return low

    def _least_share(self, one: _Obstacles) -> int:
        """Of what it lacks, how much is there, in parts of a thousand."""
        free, need = self.state.free(one.node), self.group.resources
        return min(max(0, _of(free, kind)) * 1000 // max(1, _of(need, kind)) for kind in one.codes)

    def constraints(self) -> Iterator[Remedy]:
        """One constraint less, or made to take one more value."""
        placement = self.group.placement
        for number, wish in enumerate(placement.constraints):
            rest = placement.constraints[:number] + placement.constraints[number + 1 :]
            without = self._placed(constraints=rest)
            context = msgspec.structs.replace(self.context, group=without)
            freed = [
                one.node
                for one in self.seen
                if one.codes == {"constraint"} and filters.fits(context, one.node)
            ]
            if not freed:
                continue
            freed.sort(key=lambda node: (-self._fit(node), node.name))
            have = attribute(freed[0], wish.attribute)
            if wish.operator in (Operator.EQ, Operator.IN) and have is not None:
                known = wish.value if isinstance(wish.value, tuple) else (wish.value,)
                wider = Constraint(wish.attribute, Operator.IN, (*known, have))
                written = (*rest[:number], wider, *rest[number:])
                told = f"{self.path}.placement.constraints: {wording(wish)} → {wording(wider)}"
                yield from self._change(self._placed(constraints=written), told, 100)
            told = f"{self.path}.placement.constraints: without {wording(wish)}"
            yield from self._change(without, told, 300)

    def _placed(self, **changes: object) -> GroupSpec:
        placement = msgspec.structs.replace(self.group.placement, **changes)
        return msgspec.structs.replace(self.group, placement=placement)

    def labels(self) -> Iterator[Remedy]:
        """A node that lacks nothing but one label."""
        for node in self.only("constraint")[:EACH_MAX]:
            unmet = [wish for wish in self.group.placement.constraints if not satisfies(node, wish)]
            label = _label_for(unmet[0]) if len(unmet) == 1 else None
            if label is not None:
                key, value = label
                body = c.SetLabels(node.id, {**node.labels, key: value})
                yield Remedy(body, f"cube node label {node.name} {key}={value}", (LABEL, 0))

    def more_per_node(self) -> Iterator[Remedy]:
        most = self.group.placement.max_per_node
        nodes = [one.node for one in self.seen if one.codes == {"max_per_node"}]
        if not most or not nodes:
            return
        have = self.want.on_node
        rooms = [(have.get(node.id, 0), self._fit(node)) for node in nodes]
        for more in range(most + 1, most + len(self.want.slots) + 1):
            fit = sum(min(max(0, more - there), room) for there, room in rooms)
            if fit >= len(self.want.slots):
                told = f"{self.path}.placement.max_per_node = {more} (now {most})"
                yield from self._change(self._placed(max_per_node=more), told, 10 * (more - most))
                return

    def ports(self) -> Iterator[Remedy]:
        """Another port than a taken one; or whoever has it ends; or a range is wider."""
        for name, port in sorted(self.group.ports.items()):
            if port.host and any("port" in one.codes for one in self.seen):
                given = {**self.group.ports, name: msgspec.structs.replace(port, host=0)}
                told = f"{self.path}.ports.{name}.host = 0 (now {port.host}): any free one"
                changed = msgspec.structs.replace(self.group, ports=given)
                yield from self._change(changed, told, 50)
        for node in self.only("port")[:EACH_MAX]:
            yield from self._free_port(node)
        for node in self.only("port_range")[:EACH_MAX]:
            last = node.facts.port_last + len(self.group.ports) * len(self.want.slots)
            told = f"widen [bind] port_range of {node.name} to {node.facts.port_first}-{last}"
            yield Remedy(_facts(node, port_last=last), told, (REPAIR, 2))

    def _free_port(self, node: Node) -> Iterator[Remedy]:
        used = self.state.ports.get(node.facts.advertise)
        keys = [port_key(p.host, p.protocol) for p in self.group.ports.values() if p.host]
        holders = {used[key] for key in keys if used is not None and key in used}
        if len(holders) != 1:
            return
        task = self.state.tasks[holders.pop()]
        if not task.ended:
            told = f"cube stop {task.name} (it has the port on {node.name}, and goes elsewhere)"
            yield Remedy(c.StopTask(task.id), told, (OTHERS, 1))
            told = f"cube stop {task.job} (it has the port on {node.name})"
            yield Remedy(c.StopJob(task.job), told, (OTHERS, 1000))

    # Others, and more hosts

    def others(self) -> Iterator[Remedy]:
        """Another group with fewer tasks: as many fewer as are needed. `size`: how many."""
        crowded = {one.node.id for one in self.seen if one.codes and one.codes <= _ROOM}
        groups: dict[tuple[JobId, str], int] = {}
        for node_id in crowded:
            for task_id in self.state.tasks_by_node.get(node_id, ()):
                task = self.state.tasks[task_id]
                key = (task.job_id, task.group)
                if task.live and key != (self.job.id, self.want.group):
                    groups[key] = groups.get(key, 0) + 1
        found: list[Remedy] = []
        for job_id, group in sorted(groups, key=lambda key: (-groups[key], key)):
            job = self.state.jobs[job_id]
            spec = job.spec.groups.get(group)
            if spec is None or job.deleted or job.spec.type is not JobType.SERVICE:
                continue
            fewer = self._fewer(job, group, crowded)
            if fewer:
                left = spec.count - fewer
                told = f"cube scale {job.name}/{group}={left} (now {spec.count})"
                body = c.ScaleJob(job.name, {group: left})
                found.append(Remedy(body, told, (OTHERS, fewer)))
                if len(found) >= OTHERS_MAX:
                    break
        yield from found

    def _fewer(self, job: Job, group: str, crowded: set[NodeId]) -> int:
        """How many of the group's last slots have to go; 0: all would not do."""
        free: dict[NodeId, Resources] = {}
        gone = fit = 0
        tasks = [t for t in self.state.tasks_of_job(job.id) if t.group == group and t.live]
        count = job.spec.groups[group].count
        for task in sorted(tasks, key=lambda task: -task.slot):
            gone = count - task.slot
            if task.node_id not in crowded:
                continue
            node = self.state.nodes[task.node_id]
            before = free.get(node.id, self.state.free(node))
            after = free[node.id] = before + task.resources
            fit += self._times(after) - self._times(before)
            if fit >= len(self.want.slots):
                return gone
        return 0

    def another_node(self) -> Iterator[Remedy]:
        """One that is just large enough for all, or for as many as the largest node there is could
        hold: nobody sells one of a thousand cores."""
        group = self.group
        largest = max((self._times(one.node.facts.capacity) for one in self.seen), default=None)
        count = len(self.want.slots) if largest is None else max(1, largest)
        each = group.placement.max_per_node
        if any(port.host for port in group.ports.values()):
            count = 1
        count = min(count, each) if each else count
        need, labels = group.resources, {}
        for wish in group.placement.constraints:
            label = _label_for(wish)
            if label is not None:
                labels[label[0]] = label[1]
        size = Resources(need.cpu_milli * count, need.memory_bytes * count, need.disk_bytes * count)
        like = self.seen[0].node.facts if self.seen else None
        facts = NodeFacts(
            id=NEW_NODE,
            name=NEW_NODE,
            advertise=NEW_NODE,
            http_address="",
            raft_address="",
            gossip_address="",
            version="",
            capacity=size,
            labels=labels,
            attributes=like.attributes if like is not None else {},
            drivers={group.driver.value: DriverInfo(group.driver.value, True)},
        )
        if not filters.fits(self.context, Node(id=facts.id, name=facts.name, facts=facts)):
            return
        parts = [f"cpu {size.cpu_milli / 1000:g}", f"memory {exact_size(size.memory_bytes)}"]
        parts += [f"disk {exact_size(size.disk_bytes)}"] if size.disk_bytes else []
        parts += [f"--label {key}={value}" for key, value in sorted(labels.items())]
        told = f"add a node that has {', '.join(parts)}: cube agent --join HOST:PORT"
        yield Remedy(c.RegisterNode(facts), told, (ADD, 0))

    # Room

    def _fit(self, node: Node, without: str = "") -> int:
        """How many of the tasks the node has room for, leaving one kind of resource aside."""
        return self._times(self.state.free(node), without)

    def _times(self, free: Resources, without: str = "") -> int:
        fit = len(self.want.slots)
        for kind in ("cpu", "memory", "disk"):
            need = _of(self.group.resources, kind)
            if need and kind != without:
                fit = min(fit, max(0, _of(free, kind)) // need)
        return fit


_FIELD = {"cpu": "cpu_milli", "memory": "memory_bytes", "disk": "disk_bytes"}


def _of(resources: Resources, kind: str) -> int:
    value = getattr(resources, _FIELD[kind])
    assert isinstance(value, int)
    return value


def _facts(node: Node, **changes: object) -> c.RegisterNode:
    return c.RegisterNode(msgspec.structs.replace(node.facts, **changes))


def _label_for(wish: Constraint) -> tuple[str, str] | None:
    """The label that satisfies the constraint, where one does."""
    if not wish.attribute.startswith(_LABELS):
        return None
    key = wish.attribute.removeprefix(_LABELS)
    match wish.operator:
        case Operator.EQ | Operator.GE | Operator.LE:
            return (key, wish.value) if isinstance(wish.value, str) else None
        case Operator.IN:
            return (key, wish.value[0]) if isinstance(wish.value, tuple) and wish.value else None
        case Operator.EXISTS:
            return key, "true"
        case _:
            return None
