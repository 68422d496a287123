"""Which reports are due. State is truth: what it shows is not said again, what it lacks is."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cube.model.backoff import doubling_ms
from cube.model.cluster import MESSAGE_CHARS_MAX, Task
from cube.model.commands import REPORTS_MAX, TaskReport
from cube.model.ids import TaskId
from cube.model.lifecycle import ENDED, Desired, Health, TaskState, may_move
from cube.worker.instructions import Report
from cube.worker.local_task import LocalTask
from cube.worker.settings import WorkerSettings

MINUTE_MS = 60_000
LOOP_RESTARTS = 2  # in place, within the restart policy's window: from then on it is a crash loop


class Outbox:
    """Reports on their way into the state: one batch under way, the rest waits and is merged.

    A task that changes faster than it may be reported is reported as it is when its turn comes.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.state_index = 0  # of the newest state that the tasks were compared with
        self._settings = settings
        self._dirty: dict[TaskId, None] = {}  # to be looked at; ordered
        self._token = 0  # of the batch under way, 0: none
        self._sent: tuple[TaskReport, ...] = ()
        self._failures = 0
        self._due_ms: int | None = None
        self._is_leisurely = False  # what is due so far is of tasks in crash loops only

    def mark(self, task_id: TaskId) -> None:
        """What the task or the state says may have changed."""
        self._dirty[task_id] = None

    def collect(
        self, locals_: dict[TaskId, LocalTask], now_ms: int, new_token: Callable[[], int]
    ) -> Report | None:
        """The next batch, when it is time for one. It is answered by on_reported or on_failed."""
        if self._token or not self._dirty:
            return None
        if self._due_ms is None or self._is_leisurely:
            due = self._look(locals_, now_ms)
            if not due:
                self._due_ms, self._is_leisurely = None, False
                return None
            self._set_due(locals_, due, now_ms)
        if self._due_ms is not None and now_ms < self._due_ms:
            return None
        self._due_ms, self._is_leisurely = None, False
        reports = self._look(locals_, now_ms)
        if not reports:
            return None
        self._token = new_token()
        self._sent = tuple(reports)
        return Report(self._token, self._sent)

    def _set_due(
        self, locals_: dict[TaskId, LocalTask], due: list[TaskReport], now_ms: int
    ) -> None:
        loops = all(_in_loop(locals_[one.task_id], now_ms) for one in due)
        if loops and self._due_ms is not None:
            return  # already set
        wait_ms = self._settings.loop_delay_ms if loops else self._settings.report_delay_ms
        due_ms = now_ms + wait_ms
        self._due_ms = due_ms if self._due_ms is None else min(self._due_ms, due_ms)
        self._is_leisurely = loops

    def _look(self, locals_: dict[TaskId, LocalTask], now_ms: int) -> list[TaskReport]:
        """At most REPORTS_MAX that are due; forgets those of whom nothing is to be told."""
        reports: list[TaskReport] = []
        for task_id in list(self._dirty):
            local = locals_.get(task_id)
            if local is None or not _is_owed(local, self.state_index):
                del self._dirty[task_id]
            elif _may_go(local, self._settings, now_ms) <= now_ms:
                reports.append(local.view)
                if len(reports) == REPORTS_MAX:
                    break
        return reports

    def next_due_ms(self, locals_: dict[TaskId, LocalTask], now_ms: int) -> int | None:
        if self._token or not self._dirty:
            return None
        if self._due_ms is not None:
            return self._due_ms
        waits = [
            _may_go(local, self._settings, now_ms)
            for task_id in self._dirty
            if (local := locals_.get(task_id)) is not None
        ]
        return min(waits, default=None)

    def on_reported(
        self, locals_: dict[TaskId, LocalTask], token: int, index: int, now_ms: int
    ) -> None:
        if token != self._token:
            return
        self._token = self._failures = 0
        for report in self._sent:
            local = locals_.get(report.task_id)
            if local is None:
                continue
            local.told = report
            local.told_index = index
            local.again_tries += 1
            local.again_ms = now_ms + doubling_ms(
                local.again_tries,
                self._settings.report_again_ms,
                self._settings.report_again_ms_max,
            )
            local.reports_ms = [at for at in local.reports_ms if at > now_ms - MINUTE_MS]
            local.reports_ms.append(now_ms)
            self.mark(report.task_id)

    def on_failed(self, token: int, now_ms: int) -> None:
        if token != self._token:
            return
        self._token = 0
        self._failures += 1
        self._due_ms = now_ms + doubling_ms(
            self._failures, self._settings.report_retry_ms, self._settings.report_retry_ms_max
        )


def _is_owed(local: LocalTask, state_index: int) -> bool:
    """The state does not say what the task is, and may be told."""
    task = local.task
    if task is None or task.released:
        return False
    _shorten(local)
    if shows(task, local.view):
        local.again_tries = 0
        if local.view == local.told:
            return False
    return _is_legal(task, local, state_index)


def _shorten(local: LocalTask) -> None:
    if len(local.view.message) > MESSAGE_CHARS_MAX:
        message = local.view.message[: MESSAGE_CHARS_MAX - 1] + "…"
        local.view = msgspec.structs.replace(local.view, message=message)


def shows(task: Task, view: TaskReport) -> bool:
    """The state says it, as far as it matters to others. Words are compared with what was told."""
    if (task.state, task.attempt) != (view.state, view.attempt):
        return False
    if task.state in ENDED:
        return task.released or not view.released
    if view.image_digest and task.image_digest != view.image_digest:
        return False
    if task.health is not Health.NONE and task.health is not view.health:
        return False
    return task.state is not TaskState.RUNNING or task.handle == view.handle


def _is_legal(task: Task, local: LocalTask, state_index: int) -> bool:
    """From what the state says, or will say once we see the last report applied, this is a move. A
    rejection that comes too late to be one is a failure."""
    state, attempt = task.state, task.attempt
    told = local.told
    is_ahead = state_index < local.told_index
    if is_ahead and may_move(state, attempt, told.state, told.attempt):
        state, attempt = told.state, told.attempt
    view = local.view
    if (state, attempt) == (view.state, view.attempt):
        return True
    if may_move(state, attempt, view.state, view.attempt):
        return not _is_overtaken(task, view)
    if view.state is TaskState.REJECTED and may_move(
        state, attempt, TaskState.FAILED, view.attempt
    ):
        local.end = TaskState.FAILED
        local.view = msgspec.structs.replace(view, state=TaskState.FAILED)
        return True
    return False


def _is_overtaken(task: Task, report: TaskReport) -> bool:
    """A lost task that was replaced meanwhile may only end."""
    return (
        task.state is TaskState.LOST
        and task.desired is not Desired.RUN
        and not _is_real_end(report.state)
    )


def _is_real_end(state: TaskState) -> bool:
    return state in ENDED and state is not TaskState.LOST


def _in_loop(local: LocalTask, now_ms: int) -> bool:
    """It fails again and again: the first failures were told at once, what it does next may wait
    for what others like it do. A task that ran well for a minute is not in a loop."""
    if local.task is None or not local.is_wanted or local.view.state is TaskState.COMPLETED:
        return False
    if not local.reports_ms or local.reports_ms[-1] <= now_ms - MINUTE_MS:
        return False
    return local.task.reschedules > 0 or len(local.restarts_ms) >= LOOP_RESTARTS


def _may_go(local: LocalTask, settings: WorkerSettings, now_ms: int) -> int:
    """When the report may be sent: at once, but for repetitions and for tasks that change a lot."""
    if local.view == local.told:
        return local.again_ms
    if local.view.state in ENDED or len(local.reports_ms) < settings.reports_per_minute_max:
        return now_ms
    return local.reports_ms[-settings.reports_per_minute_max] + MINUTE_MS
