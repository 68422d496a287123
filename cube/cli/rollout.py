"""Waiting for a job to be what its spec says, and showing its tasks on their way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from cube.cli.exits import FAILED, TIMED_OUT, UNPLACED, CommandError
from cube.cli.output import clean, note, plural
from cube.cli.why import print_explanations
from cube.client.client import Client
from cube.client.errors import ApiProblem
from cube.model.deployviews import DeploymentView
from cube.model.views import JobView, TaskView

POLL_S = 0.1
WHY_AFTER_S = 5.0  # a place is usually found at once: after this, say why it is not
NO_PROGRESS_S = 300.0  # update.deadline's default: nothing has become healthier for that long
BAR_WIDTH = 10
_TOGETHER_MIN = 4  # so many tasks of a group in the same state on the same node share a line
_ROWS_KEPT = 2  # of a terminal: the summary, and the line the cursor is on
_SIZE_UNKNOWN = (80, 24)
ENDED = ("completed", "failed", "rejected", "lost")
_STEPS = {
    "pending": 0, "scheduled": 1, "preparing": 2, "starting": 4, "running": 6, "healthy": BAR_WIDTH,
    "completed": BAR_WIDTH,
}  # fmt: skip


class Watch:
    """One wait. `timeout_s` None: as long as there is progress. `deployment`: the id of what rolls
    the version out; where that replaces tasks, its end is what is waited for. Afterwards
    `awaits_promotion` says that its canaries are healthy and the next step is a person's."""

    def __init__(
        self,
        client: Client,
        job: str,
        version: int,
        timeout_s: float | None,
        deployment: str | None = None,
    ) -> None:
        self.awaits_promotion = False
        self._deployment = deployment
        self._is_going_back = False
        self._client = client
        self._job = job
        self._version = version
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._shown = _Bars() if sys.stderr.isatty() else _Lines()
        self._best = -1
        self._best_at = self._began
        self._placeless_at: float | None = None  # since when some task has had no place
        self._asked_at = self._began  # when `why` was last asked
        self._told_placeless = 0  # slots that it said have no place
        self._explained = False
        self._told_failing = False

    def until_done(self) -> JobView:
        """Every group healthy, or the batch complete. Raises CommandError when that cannot be or
        takes too long."""
        while True:
            job = self._client.job(self._job)
            tasks = self._current(job, self._client.tasks(self._job))
            self._shown.update(tasks)
            if self._is_over(job, tasks):
                self._shown.close()
                return job
            if job.status in ("stopping", "stopped"):
                self._shown.close()
                hint = f"cube start {self._job}"
                raise CommandError(FAILED, f"{self._job} is stopped", hint=hint)
            if job.status == "failed":
                self._shown.close()
                raise self._failed(f"{self._job} v{job.version} failed", tasks)
            self._note_progress(job, tasks)
            self._check_time(job, tasks)
            time.sleep(POLL_S)

    def _is_over(self, job: JobView, tasks: Sequence[TaskView]) -> bool:
        """Raises CommandError when the version was given up."""
        found = None if self._deployment is None else self._client.deployment(self._deployment)
        if found is None or not found.replaces:
            return is_done(job, tasks)
        self.awaits_promotion = found.awaits_promotion and found.status == "running"
        if found.status == "successful" or self.awaits_promotion:
            return True
        if found.status == "running":
            return False
        if found.status == "failed" and self._goes_back(found):
            return False
        self._shown.close()
        what = f"{found.job} v{found.version}"
        hint = f"cube deployment show {found.id}\ncube why {found.job}"
        match found.status:
            case "rolled_back":
                what += f" failed; v{found.from_version} is back"
            case "paused":
                what += " is paused"
                hint = f"cube deployment resume {found.id}\ncube deployment fail {found.id}"
            case _:
                what += " failed"
        raise CommandError(FAILED, what, clean(found.message), hint)

    def _goes_back(self, found: DeploymentView) -> bool:
        """Another deployment takes it back; its end is waited for, and told once."""
        newest = self._client.deployment(found.job)
        if newest.rolls_back != found.version:
            return False
        if not self._is_going_back:
            self._is_going_back = True
            self._shown.pause()
            note(f"{found.job} v{found.version} failed: {clean(found.message)}")
            note(f"going back to v{found.from_version}")
        return newest.status in ("running", "successful")

    def _current(self, job: JobView, tasks: Sequence[TaskView]) -> list[TaskView]:
        """The newest task of each slot that is wanted, and what has yet to end of the others."""
        newest: dict[str, TaskView] = {}
        for task in tasks:
            is_done_batch = job.type == "batch" and task.state in ENDED
            if task.desired != "run" and not is_done_batch and not is_surplus(job, task):
                continue
            known = newest.get(task.name)
            if known is None or _rank(task) >= _rank(known):
                newest[task.name] = task
        return sorted(newest.values(), key=lambda task: (task.group, task.slot))

    def _note_progress(self, job: JobView, tasks: Sequence[TaskView]) -> None:
        if job.type == "batch" and any(task.state == "running" for task in tasks):
            self._best_at = time.monotonic()  # it may take as long as it takes
        score = sum(_STEPS.get(word_of(task), 0) for task in tasks)
        if score > self._best:
            self._best, self._best_at = score, time.monotonic()

    def _check_time(self, job: JobView, tasks: Sequence[TaskView]) -> None:
        now = time.monotonic()
        unplaced = sum(task.node_id is None for task in tasks) or self._ask_for_placeless(
            tasks, now
        )
        if not self._told_failing and any(task.state == "failed" for task in tasks):
            self._told_failing = True
            self._shown.pause()
            note(f"{self._job} keeps failing:\n{_trouble(tasks)}")
            note(f"still trying; Ctrl-C leaves it running. next: cube logs {self._job}")
        if not unplaced:
            self._placeless_at = None
        elif self._placeless_at is None:
            self._placeless_at = self._asked_at if self._told_placeless else now
        elif not self._explained and now - self._placeless_at > WHY_AFTER_S:
            self._explained = True
            self._shown.pause()
            note(f"{plural(unplaced, 'task')} of {self._job} cannot be placed yet:")
            print_explanations(self._client.why(self._job).explanations, note)
            note("still trying; Ctrl-C leaves it running")
        if self._timeout_s is not None and now - self._began > self._timeout_s:
            self._shown.close()
            if unplaced:
                if not self._explained:
                    print_explanations(self._client.why(self._job).explanations, note)
                raise CommandError(
                    UNPLACED,
                    f"{plural(unplaced, 'task')} of {self._job} could not be placed in time",
                    hint=f"cube why {self._job}",
                )
            raise CommandError(
                TIMED_OUT, f"{self._job} is not healthy after {self._timeout_s:g} s",
                _trouble(tasks), f"cube why {self._job}",
            )  # fmt: skip
        if now - self._best_at > NO_PROGRESS_S and not unplaced:  # room may come at any time
            self._shown.close()
            raise self._failed(f"{self._job} v{job.version} makes no progress", tasks)

    def _ask_for_placeless(self, tasks: Sequence[TaskView], now: float) -> int:
        """Slots whose new task has no place while the old one serves on (start-first): only `why`
        tells of those."""
        if not any(serves(task) and task.version < self._version for task in tasks):
            self._told_placeless = 0
        elif now - self._asked_at > WHY_AFTER_S / 2:
            found = self._client.why(self._job).explanations
            self._told_placeless = sum(len(one.slots) for one in found if one.kind == "unplaced")
            self._asked_at = now
        return self._told_placeless

    def _failed(self, what: str, tasks: Sequence[TaskView]) -> CommandError:
        return CommandError(
            FAILED, what, _trouble(tasks), f"cube why {self._job}\ncube logs {self._job}"
        )


def _rank(task: TaskView) -> tuple[bool, str]:
    ended = task.state in ENDED and task.state != "completed"
    return (not ended, task.created_at or "")


def _trouble(tasks: Sequence[TaskView]) -> str:
    lines = [_how(task) for task in tasks if not serves(task) and task.state != "completed"]
    return "\n".join(lines[:10])


def _how(task: TaskView) -> str:
    """`crunch.work.1: failed, exited with code 3`"""
    told = f"{task.name}: {word_of(task)}" + (f", {clean(task.message)}" if task.message else "")
    if task.exit_code is None or str(task.exit_code) in task.message:
        return told
    return f"{told} (exit code {task.exit_code})"


def serves(task: TaskView) -> bool:
    return task.state == "running" and task.health in (None, "healthy")


def word_of(task: TaskView) -> str:
    """One word for how far a task is."""
    if task.state == "running" and task.health is not None:
        return "healthy" if task.health == "healthy" else "running"
    return "healthy" if task.state == "running" else task.state


def is_done(job: JobView, tasks: Sequence[TaskView]) -> bool:
    """What `cube run` waits for. A system job is done when all its tasks serve, one at least."""
    if job.type == "batch":
        return job.status == "completed"
    serving = {
        (task.group, task.slot) for task in tasks if serves(task) and task.version == job.version
    }
    if job.type == "system":
        return bool(tasks) and all((task.group, task.slot) in serving for task in tasks)
    if any(is_surplus(job, task) for task in tasks):
        return False
    for name, counts in job.groups.items():
        if sum(1 for group, _ in serving if group == name) < counts.count:
            return False
    return True


def is_surplus(job: JobView, task: TaskView) -> bool:
    """It runs yet and has no slot any more: the group was made smaller."""
    group = job.groups.get(task.group)
    wanted = group.count if group is not None else 0
    return job.type == "service" and task.slot >= wanted and task.state not in ENDED


class _Lines:
    """One line per transition."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def update(self, tasks: Sequence[TaskView]) -> None:
        together: dict[tuple[str, str, str], list[TaskView]] = {}
        for task in tasks:
            word = word_of(task)
            if word == "running" and task.health is not None:
                word = "running, not healthy yet"
            word += _why(task)
            if self._last.get(task.name) != word + (task.node_name or ""):
                self._last[task.name] = word + (task.node_name or "")
                key = (task.group, task.node_name or "–", word)
                together.setdefault(key, []).append(task)
        for (_, node, word), changed in together.items():
            if len(changed) < _TOGETHER_MIN:
                for task in changed:
                    note(f"  {task.name}  {node}  {word}")
            else:
                names = f"{changed[0].name}, {changed[1].name}, … ({len(changed)} tasks)"
                note(f"  {names}  {node}  {word}")

    def pause(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Bars:
    """One bar per task, redrawn in place. No line wraps and none scrolls away: the cursor could not
    find its way back to it."""

    def __init__(self) -> None:
        self._rows = 0
        self._last: list[str] = []

    def update(self, tasks: Sequence[TaskView]) -> None:
        columns, rows = _terminal_size()
        shown = tasks[: max(1, rows - _ROWS_KEPT)]
        lines = [self._row(task)[: columns - 1] for task in shown]
        serving = sum(1 for task in tasks if serves(task) or task.state == "completed")
        hidden = f", {len(tasks) - len(shown)} not shown" if len(tasks) > len(shown) else ""
        lines.append(f" overall {serving}/{len(tasks)}{hidden}"[: columns - 1])
        if lines == self._last:
            return
        # One write, and each line's rest is cleared after its text: nothing flickers.
        up = f"\x1b[{self._rows}A" if self._rows else ""
        below = "\x1b[J" if self._rows > len(lines) else ""
        sys.stderr.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + below)
        sys.stderr.flush()
        self._rows, self._last = len(lines), lines

    @staticmethod
    def _row(task: TaskView) -> str:
        word = word_of(task)
        done = _STEPS.get(word, 0)
        bar = "#" * done + "-" * (BAR_WIDTH - done)
        return f"  {task.name:<20} {task.node_name or '–':<8} [{bar}] {word}{_why(task)}"

    def pause(self) -> None:
        self._rows, self._last = 0, []

    def close(self) -> None:
        self.pause()


def _terminal_size() -> tuple[int, int]:
    """Columns and rows of standard error. A terminal that says 0 does not know."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return _SIZE_UNKNOWN
    return (size.columns or _SIZE_UNKNOWN[0], size.lines or _SIZE_UNKNOWN[1])


def _why(task: TaskView) -> str:
    if (
        task.state in ("pending", "preparing", "failed", "rejected", "lost")
        or task.health == "unhealthy"
    ):
        return f": {clean(task.message or task.reason)}" if task.message or task.reason else ""
    return ""


def wait_until(condition: Callable[[], bool], timeout_s: float | None) -> bool:
    """False when `timeout_s` has passed without it."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while not condition():
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def tasks_gone(client: Client, job: str) -> bool:
    """No task of the job is left that has not ended."""
    try:
        tasks = client.tasks(job)
    except ApiProblem as problem:
        if problem.status == 404:
            return True
        raise
    return all(task.state in ENDED or task.node_id is None for task in tasks)
