"""Who ran what beside the tasks of this node, told to the cluster: in the replicated log as everything
that happens is, a little later, and never in the way of who runs it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from cube.model.cluster import Task
from cube.model.commands import Body, NoteExec
from cube.model.errors import OutcomeUnknown, Unavailable
from cube.model.ids import CommandId, TaskId
from cube.model.outcome import Rejected
from cube.model.sessions import CALLER_CHARS_MAX, ExecCaller, ExecOrder, one_line, program_of
from cube.ports.clock import Clock
from cube.ports.cluster import Proposed

WINDOW_MS = 60_000
NOTES_OF_TASK_MAX = 6  # in a window, one by one; the rest is counted, and told as a number
NOTES_MAX = 60  # in a window, of all tasks of this node: a loop over tasks is a loop too
WAITING_MAX = 256  # notes that the log has not taken, without a quorum; above it they are counted
TASKS_MAX = 1_000  # of which something is counted; as good as all that a node runs
LOOK_S = 5.0  # between looks at what is counted
RETRY_S = 1.0  # propose() has waited for a leader already

_log = logging.getLogger(__name__)


class _Window(msgspec.Struct):
    """Of one task. `counted`: since the last note of it."""

    since_ms: int
    about: NoteExec
    actor: str
    written: int = 0
    counted: int = 0


class Note(msgspec.Struct, frozen=True):
    body: NoteExec
    actor: str


class ExecTally:
    """Which commands are told one by one, and how many are not. Times are monotonic."""

    def __init__(self) -> None:
        self._windows: dict[TaskId, _Window] = {}
        self._since_ms = 0
        self._written = 0

    def take(self, note: Note, now_ms: int, *, has_room: bool) -> Note | None:
        """What is to be told now; None: it was counted."""
        self._turn(now_ms)
        body = note.body
        window = self._windows.get(body.task_id)
        if window is None:
            window = _Window(now_ms, body, note.actor)
            self._windows[body.task_id] = window
            if len(self._windows) > TASKS_MAX:
                self._forget_one()
        if now_ms - window.since_ms >= WINDOW_MS:
            window.since_ms, window.written = now_ms, 0
        window.about, window.actor = body, note.actor
        if window.written >= NOTES_OF_TASK_MAX or self._written >= NOTES_MAX or not has_room:
            window.counted += 1
            return None
        window.written += 1
        self._written += 1
        more, window.counted = window.counted, 0
        return Note(msgspec.structs.replace(body, more=more), note.actor)

    def due(self, now_ms: int) -> list[Note]:
        """Numbers of what was counted in windows that are over: nobody may come again to tell them
        with."""
        self._turn(now_ms)
        found: list[Note] = []
        for task_id, window in list(self._windows.items()):
            if now_ms - window.since_ms < WINDOW_MS:
                continue
            if window.counted:
                if self._written >= NOTES_MAX:
                    continue  # later
                self._written += 1
                found.append(_number_of(window))
            del self._windows[task_id]
        return found

    def _turn(self, now_ms: int) -> None:
        if now_ms - self._since_ms >= WINDOW_MS:
            self._since_ms, self._written = now_ms, 0

    def _forget_one(self) -> None:
        """The one that began first; what was counted of it is in the node's log only."""
        task_id = next(iter(self._windows))
        window = self._windows.pop(task_id)
        if window.counted:
            _log.warning("exec_notes_dropped task_id=%s counted=%d", task_id, window.counted)


def _number_of(window: _Window) -> Note:
    """Of several callers, perhaps: the last one's name would say too much."""
    about = msgspec.structs.replace(
        window.about, role="", name="", remote="", through="", program="", arguments=0, tty=False,
        more=window.counted,
    )  # fmt: skip
    return Note(about, "")


class Propose(Protocol):
    async def __call__(
        self, body: Body, *, actor: str = "", command_id: CommandId | None = None
    ) -> Proposed: ...


class ExecAudit:
    """From note() to the log. One owner: the event loop."""

    def __init__(self, clock: Clock, new_id: Callable[[], str]) -> None:
        self._clock = clock
        self._new_id = new_id
        self._tally = ExecTally()
        self._waiting: deque[Note] = deque()
        self._wake = asyncio.Event()

    def note(self, task: Task, order: ExecOrder, caller: ExecCaller) -> None:
        """The cluster will know, as soon as it can."""
        body = NoteExec(
            task_id=task.id,
            task=task.name,
            job=task.job,
            node_id=task.node_id,
            attempt=task.attempt,
            role=one_line(caller.role, CALLER_CHARS_MAX),
            name=one_line(caller.name, CALLER_CHARS_MAX),
            remote=one_line(caller.remote, CALLER_CHARS_MAX),
            through=one_line(caller.through, CALLER_CHARS_MAX),
            program=program_of(order),
            arguments=len(order.argv) - 1,
            tty=order.tty,
            begun_at_ms=self._clock.now_ms(),
        )
        has_room = len(self._waiting) < WAITING_MAX
        note = self._tally.take(
            Note(body, caller.actor), self._clock.monotonic_ms(), has_room=has_room
        )
        if note is not None:
            self._waiting.append(note)
            self._wake.set()

    async def run(self, propose: Propose) -> None:
        """For ever. What waits when the agent ends is in the node's log only, which says so."""
        try:
            while True:
                while self._waiting:
                    await self._tell(self._waiting[0], propose)
                    self._waiting.popleft()
                self._wake.clear()
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
                except TimeoutError:
                    self._waiting.extend(self._tally.due(self._clock.monotonic_ms()))
        finally:
            if self._waiting:
                _log.warning("exec_notes_untold count=%d", len(self._waiting))

    async def _tell(self, note: Note, propose: Propose) -> None:
        """Once, however often it takes."""
        command_id = CommandId(self._new_id())
        while True:
            try:
                done = await propose(note.body, actor=note.actor, command_id=command_id)
            except (Unavailable, OutcomeUnknown) as error:
                _log.info("exec_note_waits task=%s cause=%s", note.body.task, error)
                await asyncio.sleep(RETRY_S)
                continue
            if isinstance(done.outcome, Rejected):
                _log.error("exec_note_refused task=%s why=%s", note.body.task, done.outcome.message)
            return
