"""What nodes report of their tasks, and what the manager wants of single ones."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import (
    EXECS_MAX,
    HISTORY_MAX,
    MESSAGE_CHARS_MAX,
    HistoryEntry,
    Task,
)
from cube.model.events import ExecEvent
from cube.model.ids import NodeId
from cube.model.images import is_digest
from cube.model.lifecycle import (
    ENDED,
    Desired,
    Health,
    NodeStatus,
    TaskState,
    further,
    may_move,
)
from cube.model.outcome import Done, Outcome, Rejected, RejectReason, TaskStopped
from cube.model.sessions import CALLER_CHARS_MAX, PROGRAM_CHARS_MAX, is_one_line
from cube.statemachine import images
from cube.statemachine.draft import Draft

_NUMBER_MAX = 1 << 62  # what a message of the log can hold is more
_ENDED_LATE = {"replaced": "its node is back; another task had replaced it meanwhile"}


def want(draft: Draft, task: Task, desired: Desired, reason: str) -> bool:
    """The task is wanted to be no more than `desired`. False when that changed nothing: it was so
    already, or the task is over and gone."""
    further_desired = further(task.desired, desired)
    if further_desired is task.desired or task.released:
        return False
    draft.put_task(
        msgspec.structs.replace(task, desired=further_desired, desired_reason=reason), "desired"
    )
    return True


def by_hand(draft: Draft, body: c.RestartTask | c.StopTask | c.NoteExec, actor: str) -> Outcome:
    """What people do to single tasks."""
    match body:
        case c.RestartTask():
            return restart(draft, body)
        case c.StopTask():
            return stop(draft, body)
        case c.NoteExec():
            return note_exec(draft, body, actor)


def stop(draft: Draft, body: c.StopTask) -> Outcome:
    task = draft.task(body.task_id)
    if task is None:
        return Rejected(RejectReason.NOT_FOUND, f"there is no task {body.task_id}")
    return TaskStopped(task.id, changed=want(draft, task, Desired.STOP, "task_stopped"))


def restart(draft: Draft, body: c.RestartTask) -> Outcome:
    """The attempt that runs ends, and another follows; the task's node sees to it. One that is on its
    way already stays on its way."""
    task = draft.task(body.task_id)
    if task is None:
        return Rejected(RejectReason.NOT_FOUND, f"there is no task {body.task_id}")
    if not task.live:
        state = "has ended" if task.ended else "is being stopped"
        return Rejected(RejectReason.REFUSED, f"{task.name} {state}: it is not restarted")
    match task.state:
        case TaskState.RUNNING:
            after = task.attempt
        case TaskState.PENDING:
            after = task.attempt - 1
        case _:
            after = task.restart_after
    if after <= task.restart_after:
        return Done(changed=False)
    draft.put_task(msgspec.structs.replace(task, restart_after=after), "desired")
    return Done()


def note_exec(draft: Draft, body: c.NoteExec, actor: str) -> Outcome:
    """Everybody can see it: as an event, and in the task's own history if it is still known."""
    words = (
        actor,
        body.role,
        body.name,
        body.remote,
        body.through,
        body.task,
        body.job,
        body.node_id,
    )
    numbers = (body.arguments, body.more, body.attempt, body.begun_at_ms)
    if not (
        all(is_one_line(word, CALLER_CHARS_MAX) for word in words)
        and is_one_line(body.program, PROGRAM_CHARS_MAX)
        and all(0 <= number < _NUMBER_MAX for number in numbers)
    ):
        return Rejected(RejectReason.INVALID, "no note of a command")
    message = exec_message(body, actor)
    draft.events.append(
        ExecEvent(
            task_id=body.task_id,
            task=body.task,
            job=body.job,
            node_id=body.node_id,
            kind="ran" if body.program else "counted",
            attempt=body.attempt,
            actor=actor,
            role=body.role,
            name=body.name,
            remote=body.remote,
            through=body.through,
            program=body.program,
            arguments=body.arguments,
            tty=body.tty,
            begun_at_ms=body.begun_at_ms,
            more=body.more,
            message=message,
        )
    )
    task = draft.task(body.task_id)
    if task is not None:
        entry = HistoryEntry(task.state, draft.now_ms, body.attempt, "exec", message)
        execs = (*task.execs[-(EXECS_MAX - 1) :], entry)
        draft.note_task(msgspec.structs.replace(task, execs=execs))
    return Done()


def exec_message(body: c.NoteExec, actor: str) -> str:
    """A sentence for people."""
    more = f"{body.more} more command{'' if body.more == 1 else 's'}"
    if not body.program:
        return f"{more} ran beside it, which were only counted"
    who = ", ".join(word for word in (body.role, body.name) if word)
    told = f"{actor} ({who})" if who else actor
    count = "no" if body.arguments == 0 else str(body.arguments)
    told += f" ran {body.program} with {count} argument{'' if body.arguments == 1 else 's'}"
    told += " on a terminal" if body.tty else ""
    told += f", from {body.remote}" if body.remote else ""
    told += f" through {body.through}" if body.through else ""
    return told + (f"; {more} before were only counted" if body.more else "")


def lose(draft: Draft, task: Task, reason: str) -> None:
    """Its node is down: it has ended for everybody but that node. Its room there stays taken."""
    draft.put_task(
        enter(draft, task, TaskState.LOST, reason=reason, message="its node is down"), "state"
    )


def enter(
    draft: Draft, task: Task, state: TaskState, *, reason: str, message: str, attempt: int = 0
) -> Task:
    """The task in `state` (and `attempt`, when given), with the change in its history."""
    attempt = attempt or task.attempt
    entry = HistoryEntry(state, draft.now_ms, attempt, reason, message)
    return msgspec.structs.replace(
        task,
        state=state,
        attempt=attempt,
        reason=reason,
        message=message,
        state_at_ms=draft.now_ms,
        history=(*task.history[-(HISTORY_MAX - 1) :], entry),
        started_at_ms=_started_at_ms(draft, task, state, attempt),
        finished_at_ms=draft.now_ms if state in ENDED else 0,
    )


def _started_at_ms(draft: Draft, task: Task, state: TaskState, attempt: int) -> int:
    kept = task.started_at_ms if attempt == task.attempt else 0
    return kept or (draft.now_ms if state is TaskState.RUNNING else 0)


def report(draft: Draft, body: c.ReportTasks) -> Outcome:
    """The tasks are what their node says, as far as the transition table allows."""
    changed = False
    for item in body.reports:
        task = draft.task(item.task_id)
        if task is not None and task.node_id == body.node_id and not task.released:
            changed = _take(draft, task, item) or changed
    return Done(changed=changed)


def _revive(draft: Draft, node_id: NodeId) -> None:
    """A node that is down and runs a task is not down. What it is, the leader will judge; but only
    of a node that is not down already can it say that it is, and so lose the task once more."""
    node = draft.node(node_id)
    if node is not None and node.status in (NodeStatus.DOWN, NodeStatus.LEFT):
        draft.put_node(
            msgspec.structs.replace(
                node,
                status=NodeStatus.SUSPECT,
                status_reason="it was down, and its tasks run",
                status_at_ms=draft.now_ms,
            ),
            "status",
        )


def _take(draft: Draft, task: Task, item: c.TaskReport) -> bool:
    moved = (item.state, item.attempt) != (task.state, task.attempt)
    if moved and (
        item.state is TaskState.LOST  # not for a node to say
        or not may_move(task.state, task.attempt, item.state, item.attempt)
        or _overtaken(task, item)
    ):
        return False
    message = item.message[:MESSAGE_CHARS_MAX]
    reason = item.reason[:MESSAGE_CHARS_MAX]
    if moved and task.state is TaskState.LOST:
        if item.state not in ENDED:
            _revive(draft, task.node_id)
        elif task.desired is not Desired.RUN and reason in ("", task.reason):
            # The node has no other reason than the one it read here: that the task was lost.
            reason = task.desired_reason
            message = _ENDED_LATE.get(reason, "ended when its node was back")
    after = task
    if moved:
        after = enter(draft, task, item.state, reason=reason, message=message, attempt=item.attempt)
    elif not task.ended:
        after = msgspec.structs.replace(after, reason=reason, message=message)
    if moved or not task.ended:
        # Whether it has checks is the manager's word, how they go the node's.
        health = task.health if Health.NONE in (task.health, item.health) else item.health
        after = msgspec.structs.replace(
            after,
            health=health,
            health_at_ms=draft.now_ms if health is not task.health else task.health_at_ms,
            handle=item.handle,
            image_digest=item.image_digest if is_digest(item.image_digest) else "",
            restarts=max(task.restarts, item.attempt - 1),
            exit_code=item.exit_code,
            oom_killed=item.oom_killed,
        )
    if item.released and after.ended:
        after = msgspec.structs.replace(after, released=True)
    if after == task:
        return False
    draft.put_task(after, _kind(task, after))
    if after.image_digest != task.image_digest:
        images.record(draft, after)
    return True


def _overtaken(task: Task, item: c.TaskReport) -> bool:
    """A lost task that was replaced meanwhile may only end."""
    return (
        task.state is TaskState.LOST and task.desired is not Desired.RUN and item.state not in ENDED
    )


def _kind(before: Task, after: Task) -> str:
    if (before.state, before.attempt) != (after.state, after.attempt):
        return "state"
    if before.released != after.released:
        return "released"
    return "health" if before.health is not after.health else "state"
