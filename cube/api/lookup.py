"""What a user means by the word in a path: an id, a unique prefix of one, or a name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cube.api.errors import Problem, did_you_mean
from cube.api.slots import SlotsOfJobs, Unplaced, place_of
from cube.model.cluster import ClusterState, Job, Node, Task
from cube.model.ids import NodeId, TaskId

CANDIDATES_MAX = 10  # named in an "ambiguous" answer
_ID_PREFIX = re.compile(r"[0-9a-f]{1,16}")
_NODE_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]{0,35}")
_SHOWN_CHARS_MAX = 80


def shown(word: str) -> str:
    """As a sentence may quote it: bounded, and nothing unprintable."""
    cut = word[:_SHOWN_CHARS_MAX] + ("…" if len(word) > _SHOWN_CHARS_MAX else "")
    return "".join(char if char.isprintable() else "\ufffd" for char in cut)


def find_job(state: ClusterState, name: str) -> Job:
    """Raises Problem."""
    job = state.job_named(name)
    if job is None:
        hint = did_you_mean(name, state.job_names) or "GET /v1/jobs lists them"
        raise Problem("not_found", f"there is no job {shown(name)}", hint=hint)
    return job


def nodes_in_order(nodes: Mapping[NodeId, Node]) -> list[Node]:
    """By name."""
    return sorted(nodes.values(), key=lambda node: node.name)


def nodes_by_raft_address(nodes: Mapping[NodeId, Node]) -> dict[str, Node]:
    return {node.facts.raft_address: node for node in nodes.values()}


def nodes_by_http_address(nodes: Mapping[NodeId, Node]) -> dict[str, frozenset[NodeId]]:
    """Names in lower case. A node that lost its disk may have left its address to another."""
    found: dict[str, frozenset[NodeId]] = {}
    for node_id, node in nodes.items():
        address = node.facts.http_address.lower()
        found[address] = found.get(address, frozenset()) | {node_id}
    return found


def find_node(state: ClusterState, word: str) -> Node:
    """Raises Problem."""
    node = state.nodes.get(NodeId(word))
    if node is None:
        node_id = state.node_names.get(word)
        node = None if node_id is None else state.nodes[node_id]
    if node is not None:
        return node
    found: list[Node] = []
    if _NODE_PREFIX.fullmatch(word):
        found = [node for node_id, node in state.nodes.items() if node_id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous(word, sorted(f"{node.id} ({node.name})" for node in found))
    hint = did_you_mean(word, state.node_names) or "GET /v1/nodes lists them"
    raise Problem("not_found", f"there is no node {shown(word)}", hint=hint)


def find_task(state: ClusterState, slots: SlotsOfJobs, word: str) -> Task | Unplaced:
    """By name: the newest task of the slot that has not ended; else the slot itself where nothing
    stands for it; else the newest. Raises Problem."""
    task = state.tasks.get(TaskId(word)) or _by_prefix(state, word)
    if task is not None:
        return task
    tasks, job = _by_name(state, word)
    unfinished = [task for task in tasks if not task.ended]
    if unfinished:
        return unfinished[-1]
    if job is not None:
        for one in (job, *state.runs_of(job)):
            for _, row in slots.of(state, one).rows:
                if isinstance(row, Unplaced) and row.name == word:
                    return row
    if tasks:
        return tasks[-1]
    raise Problem("not_found", f"there is no task {shown(word)}", hint="GET /v1/tasks lists them")


def find_placed_task(state: ClusterState, word: str) -> Task | None:
    """Like find_task, but for what was left behind (output): the newest task when none runs. None:
    nothing was ever placed under this name, or it is forgotten."""
    task = state.tasks.get(TaskId(word)) or _by_prefix(state, word)
    if task is not None:
        return task
    tasks, _ = _by_name(state, word)
    unfinished = [task for task in tasks if not task.ended]
    newest = unfinished or tasks
    return newest[-1] if newest else None


def _by_prefix(state: ClusterState, word: str) -> Task | None:
    if not _ID_PREFIX.fullmatch(word):
        return None
    found = [task for task_id, task in state.tasks.items() if task_id.startswith(word)]
    if len(found) > 1:
        found.sort(key=place_of)
        raise _ambiguous(word, [f"{task.id} ({task.name})" for task in found])
    return found[0] if found else None


def _by_name(state: ClusterState, word: str) -> tuple[list[Task], Job | None]:
    """The slot's tasks by age, of a cron job by run, and the job that has the name now."""
    job_name, _, rest = word.partition(".")
    group, _, slot_text = rest.rpartition(".")
    if not (slot_text.isascii() and slot_text.isdigit() and len(slot_text) <= 9):
        return [], None
    job = state.job_named(job_name)
    if job is None:
        return [], None
    slot = int(slot_text)
    tasks = [t for t in state.tasks_under(job) if t.group == group and t.slot == slot]
    return tasks, job


def _ambiguous(word: str, candidates: list[str]) -> Problem:
    more = len(candidates) - CANDIDATES_MAX
    and_more = f", and {more} more" if more > 0 else ""
    shown_candidates = tuple(candidates[:CANDIDATES_MAX])
    return Problem(
        "ambiguous",
        f"{shown(word)} is the beginning of {len(candidates)} ids: "
        f"{', '.join(shown_candidates)}{and_more}",
        hint="write more of the id",
        candidates=shown_candidates,
    )
