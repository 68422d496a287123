"""Tasks as JSON, kept while the task and its node are the same values.

A list of a hundred tasks is asked for thousands of times between two changes; frozen values make
"the same" an identity test, so a list costs a lookup a task instead of an encoding.
"""

from __future__ import annotations

import msgspec

from cube.api.render import task_view
from cube.model.cluster import ClusterState, Node, Task
from cube.model.ids import TaskId

TASKS_REMEMBERED_MAX = 4_096  # about 1 KiB each; a page has 1,000 at most


class RenderedTasks:
    def __init__(self) -> None:
        self._known: dict[TaskId, tuple[Task, Node | None, msgspec.Raw]] = {}

    def of(self, state: ClusterState, task: Task) -> msgspec.Raw:
        node = state.nodes.get(task.node_id)
        known = self._known.get(task.id)
        if known is not None and known[0] is task and known[1] is node:
            return known[2]
        raw = msgspec.Raw(msgspec.json.encode(task_view(task, node, state.group_of(task))))
        if known is None and len(self._known) >= TASKS_REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[task.id] = (task, node, raw)
        return raw
