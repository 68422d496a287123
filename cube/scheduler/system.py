"""System jobs: one task on each node of the right kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cube.model.cluster import Node, Task
from cube.model.ids import NodeId
from cube.model.spec import GroupSpec
from cube.scheduler import filters
from cube.scheduler.group_pass import GroupPass, count_by_node
from cube.scheduler.slots import Slot, Waiting, WorkDraft, reap_beyond, slots_of
from cube.scheduler.want import Want


class SystemPass:
    """One task on each node that is of the right kind. A node keeps its slot number while the job
    remembers a task of it there; a new node gets the smallest number that nobody has."""

    def __init__(
        self, draft: WorkDraft, name: str, group: GroupSpec, tasks: Sequence[Task]
    ) -> None:
        self.draft = draft
        self.name = name
        self.group = group
        self.tasks = tasks
        self.slots = slots_of(tasks)

    def run(self, is_behind: bool) -> GroupPass:
        draft = self.draft
        wanted = [node for node in draft.state.nodes.values() if self._wanted(node)]
        wanted.sort(key=lambda node: (node.name, node.id))
        numbers = self._numbers(wanted)
        one = GroupPass(draft, self.name, self.group, self.slots, self.tasks)
        for node in wanted:
            number = numbers[node.id]
            if number in self.slots:
                if node.accepts_tasks or self.slots[number].live:
                    one.look_at(number)
            elif node.accepts_tasks:
                one.add_new(number)
        kept = set(numbers.values())
        for number, slot in self.slots.items():
            if number not in kept:
                self._not_wanted(slot)
                reap_beyond(draft, slot)
        one.finish(is_behind)
        if one.may_start(self.tasks):
            self._want(one, {number: node_id for node_id, number in numbers.items()})
        return one

    def _wanted(self, node: Node) -> bool:
        """Right kind. A node whose driver is merely unwell still wants its task."""
        context = filters.Context(self.draft.state, self.group, self.draft.now_ms)
        return (
            self.group.driver.value in node.facts.drivers
            and filters.allowed(context, node) is None
            and filters.constraints(context, node) is None
        )

    def _numbers(self, wanted: Sequence[Node]) -> dict[NodeId, int]:
        newest: dict[NodeId, Task] = {}
        taken: set[int] = set()
        for task in sorted(self.tasks, key=lambda task: (task.ended, -task.created_at_ms, task.id)):
            if task.node_id not in newest and task.slot not in taken:
                newest[task.node_id] = task
                taken.add(task.slot)
        numbers: dict[NodeId, int] = {}
        free = 0
        for node in wanted:
            known = newest.get(node.id)
            if known is not None:
                numbers[node.id] = known.slot
                continue
            while free in taken:
                free += 1
            taken.add(free)
            numbers[node.id] = free
        return numbers

    def _not_wanted(self, slot: Slot) -> None:
        """Tasks on nodes that are no longer of the right kind; a node that is merely out of reach or
        cordoned keeps its own."""
        for task in slot.live:
            node = self.draft.state.nodes.get(task.node_id)
            if node is not None and not self._wanted(node):
                self.draft.stops.append((task.id, "not_eligible"))

    def _want(self, one: GroupPass, node_of: Mapping[int, NodeId]) -> None:
        draft = self.draft
        by_version: dict[int, list[int]] = {}
        for number, vacancy in sorted(one.empty.items()):
            until_ms = vacancy.past.avoid.get(node_of[number], 0)
            if until_ms > draft.now_ms:  # there is no other node for it
                draft.waiting.append(Waiting(self.name, (number,), "backoff", until_ms))
                draft.wake(until_ms)
            else:
                by_version.setdefault(vacancy.version, []).append(number)
        for version, numbers in sorted(by_version.items()):
            draft.wants.append(
                Want(
                    job=draft.job,
                    group=self.name,
                    spec=one.template(version),
                    version=version,
                    slots=tuple(numbers),
                    on_node=count_by_node(self.tasks),
                    only_on=tuple(node_of[number] for number in numbers),
                )
            )
