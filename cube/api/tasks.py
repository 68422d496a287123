"""/v1/tasks: placed tasks and the slots that wait for one, in one order."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import msgspec
from aiohttp import web

from cube.api import query, render
from cube.api.bodies import read_nothing
from cube.api.call import Call
from cube.api.errors import Problem
from cube.api.lookup import find_node, find_task
from cube.api.slots import Place, Unplaced, place_of
from cube.model import commands
from cube.model.cluster import ClusterState, Job, Task
from cube.model.explain import Explanation
from cube.model.ids import NodeId, TaskId
from cube.model.lifecycle import TaskState
from cube.model.outcome import Done, TaskStopped
from cube.model.views import Page, TaskChanged
from cube.ports.cluster import Proposed

Row = Task | Unplaced

# With more nodes a list does not say why a slot is empty, which takes a look at each of them.
EXPLAINED_NODES_MAX = 1_000
_CURSOR: msgspec.msgpack.Decoder[Place] = msgspec.msgpack.Decoder(Place)
_STATES = [state.value for state in TaskState]
# Most tasks are in one of these, or slots without a task count as it: jobs are gone through, in order,
# until the page is full.
_COMMON = frozenset({TaskState.RUNNING.value, TaskState.PENDING.value})


class TaskFilter(msgspec.Struct, frozen=True):
    """None: any."""

    job: str | None = None
    group: str | None = None
    node_id: NodeId | None = None
    states: frozenset[str] | None = None

    def takes(self, row: Row) -> bool:
        if self.group is not None and row.group != self.group:
            return False
        if isinstance(row, Unplaced):
            return self.node_id is None and (
                self.states is None or TaskState.PENDING.value in self.states
            )
        return (self.job is None or row.job == self.job) and (
            self.states is None or row.state.value in self.states
        )


async def list_tasks(call: Call) -> web.Response:
    state = call.state
    node = call.query.get("node")
    wanted = TaskFilter(
        job=call.query.get("job"),
        group=call.query.get("group"),
        node_id=None if node is None else find_node(state, node).id,
        states=query.words(call.query, "state", _STATES),
    )
    limit = query.limit_of(call.query)
    after = query.cursor_of(call.query, _CURSOR)
    found: list[tuple[Place, Row]] = []
    for place, row in _rows(call, state, wanted, after):
        if wanted.takes(row):
            found.append((place, row))
            if len(found) > limit:
                break
    page = found[:limit]
    following = query.cursor_text(page[-1][0]) if len(found) > limit else None
    rendered = call.api.rendered
    explanations: list[Explanation] | None = None
    if (
        wanted.job is not None
        and len(state.nodes) <= EXPLAINED_NODES_MAX
        and any(isinstance(row, Unplaced) for _, row in page)
    ):
        explanations = call.api.cluster.explain(wanted.job)
    items = tuple(
        render.unplaced_view(row, explanations)
        if isinstance(row, Unplaced)
        else rendered.of(state, row)
        for _, row in page
    )
    return call.json(Page(items, following, state.index))


def _rows(
    call: Call, state: ClusterState, wanted: TaskFilter, after: Place | None
) -> Iterator[tuple[Place, Row]]:
    """Candidates in the order of their places, from after `after` on."""
    if wanted.node_id is not None:
        return _sorted_rows(state.tasks_of_node(wanted.node_id), after)
    states = wanted.states
    if wanted.job is None and states is not None and not states & _COMMON:
        ids = [id_ for text in states for id_ in state.tasks_by_state.get(TaskState(text), ())]
        found = [state.tasks[id_] for id_ in ids]
        if TaskState.SCHEDULED.value in states:  # not indexed, and there are few in a page's time
            found.extend(t for t in state.tasks.values() if t.state is TaskState.SCHEDULED)
        return _sorted_rows(found, after)
    return _rows_of_jobs(call, state, wanted.job, after)


def _sorted_rows(tasks: list[Task], after: Place | None) -> Iterator[tuple[Place, Row]]:
    rows = sorted((place_of(task), task.id) for task in tasks)
    by_id = {task.id: task for task in tasks}
    start = 0 if after is None else bisect.bisect_right(rows, after, key=lambda row: row[0])
    return ((place, by_id[id_]) for place, id_ in rows[start:])


def _rows_of_jobs(
    call: Call, state: ClusterState, name: str | None, after: Place | None
) -> Iterator[tuple[Place, Row]]:
    jobs = call.api.slots.ordered(state)
    if name is not None:
        start = bisect.bisect_left(jobs, name, key=_name_of)
        jobs = jobs[start : bisect.bisect_right(jobs, name, key=_name_of)]
    first = 0
    if after is not None:
        first = bisect.bisect_left(jobs, after[:2], key=lambda job: (job.name, str(job.id)))
    for job in jobs[first:]:
        rows = call.api.slots.of(state, job).rows
        start = 0 if after is None else bisect.bisect_right(rows, after, key=lambda row: row[0])
        yield from rows[start:]


def _name_of(job: Job) -> str:
    return job.name


async def show_task(call: Call) -> web.Response:
    row = find_task(call.state, call.api.slots, call.path("task"))
    if isinstance(row, Unplaced):
        return call.json(render.unplaced_view(row, call.api.cluster.explain(row.job.name)))
    return call.json(call.api.rendered.of(call.state, row))


async def stop_task(call: Call) -> web.Response:
    data = await read_nothing(call)
    word = call.path("task")
    try:
        row = find_task(call.state, call.api.slots, word)
    except Problem as problem:
        if problem.code != "not_found" or not call.is_repeatable:
            raise
        # Perhaps the first try did it and the task is gone: its outcome is remembered by the key.
        return _stopped(call, await call.propose(commands.StopTask(TaskId(word)), data), word)
    if isinstance(row, Unplaced):
        raise Problem(
            "refused",
            f"{row.name} is not placed, so there is nothing to stop",
            hint=f"cube stop {row.job.name} stops the job, cube scale {row.job.name}/{row.group}=N "
            "changes its count",
        )
    return _stopped(call, await call.propose(commands.StopTask(row.id), data), row.name)


async def restart_task(call: Call) -> web.Response:
    """Another attempt of it on the same node. A request that is repeated under its key restarts it
    once."""
    data = await read_nothing(call)
    row = find_task(call.state, call.api.slots, call.path("task"))
    if isinstance(row, Unplaced):
        raise Problem(
            "refused", f"{row.name} is not placed, so there is nothing to restart",
            hint=f"cube why {row.job.name}",
        )  # fmt: skip
    proposed = await call.propose(commands.RestartTask(row.id), data)
    outcome = proposed.outcome
    assert isinstance(outcome, Done), outcome
    return call.json(TaskChanged(row.id, row.name, outcome.changed, proposed.index), status=202)


def _stopped(call: Call, proposed: Proposed, name: str) -> web.Response:
    outcome = proposed.outcome
    assert isinstance(outcome, TaskStopped), outcome
    task = call.state.tasks.get(outcome.task_id)
    name = name if task is None else task.name
    return call.json(
        TaskChanged(outcome.task_id, name, outcome.changed, proposed.index), status=202
    )
