"""Showing how the tasks of a draining node move."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cube.cli.exits import TIMED_OUT, CommandError
from cube.cli.output import clean, note, plural
from cube.cli.rollout import ENDED, word_of
from cube.client.client import Client
from cube.client.errors import ApiProblem
from cube.model.views import TaskView

POLL_S = 0.2
WHY_AFTER_S = 10.0  # a task that has not begun to move by then may have no place to go


class DrainWatch:
    """One drain, told a line per change. `staying`: what stays until the deadline."""

    def __init__(self, client: Client, node_id: str, node: str, timeout_s: float | None) -> None:
        self.staying: tuple[str, ...] = ()
        self._client = client
        self._node_id = node_id
        self._node = node
        self._timeout_s = timeout_s
        self._said: dict[str, str] = {}
        self._stays: dict[str, bool] = {}  # by job/group
        self._explained: set[str] = set()

    def until_empty(self) -> int:
        """Nothing is left on the node but what stays until the deadline: how many tasks have left.
        Raises CommandError when that takes longer than the timeout."""
        began = time.monotonic()
        seen: set[str] = set()
        while True:
            here = self._here()
            seen.update(task.id for task in here)
            moving = [task for task in here if not self._does_stay(task)]
            self.staying = tuple(sorted(task.name for task in here if self._does_stay(task)))
            self._tell(here)
            waited_s = time.monotonic() - began
            if not moving:
                return len(seen) - len(here)
            if waited_s > WHY_AFTER_S:
                self._explain(moving)
            if self._timeout_s is not None and waited_s > self._timeout_s:
                left = ", ".join(task.name for task in moving[:5])
                raise CommandError(
                    TIMED_OUT,
                    f"{plural(len(moving), 'task')} on {self._node} yet: {left}",
                    hint=f"cube node show {self._node}   cube plan drain {self._node}",
                )
            time.sleep(POLL_S)

    def _here(self) -> list[TaskView]:
        tasks = self._client.tasks(node=self._node_id)
        return [task for task in tasks if task.state not in ENDED]

    def _does_stay(self, task: TaskView) -> bool:
        """Batch tasks may end by themselves; system tasks, and those with volumes, have no other
        node."""
        key = f"{task.job}/{task.group}"
        if key not in self._stays:
            try:
                job = self._client.job(task.job)
            except ApiProblem:
                return False  # removed meanwhile: on its way out
            groups = job.spec.get("groups")
            spec = groups.get(task.group, {}) if isinstance(groups, dict) else {}
            mounts = spec.get("mounts", ()) if isinstance(spec, dict) else ()
            has_volume = any(mount.get("type") == "volume" for mount in mounts)
            self._stays[key] = job.type != "service" or has_volume
        return self._stays[key] and task.desired == "run"

    def _tell(self, here: Sequence[TaskView]) -> None:
        words = {task.name: self._word(task) for task in here}
        for name in set(self._said) - set(words):
            if self._said[name]:
                note(f"  {name}  {self._node}  gone{self._where(name)}")
                self._said[name] = ""
        for name, word in sorted(words.items()):
            if self._said.get(name) != word:
                self._said[name] = word
                note(f"  {name}  {self._node}  {word}")

    def _word(self, task: TaskView) -> str:
        if self._does_stay(task):
            return "stays until the deadline"
        return word_of(task)

    def _where(self, name: str) -> str:
        """Where the slot's task is now."""
        try:
            task = self._client.task(name)
        except ApiProblem:
            return ""
        if task.node_id in (None, self._node_id) or task.state in ENDED:
            return ""
        return f"; {word_of(task)} on {task.node_name}"

    def _explain(self, moving: Sequence[TaskView]) -> None:
        for job in sorted({task.job for task in moving} - self._explained):
            self._explained.add(job)
            for item in self._client.why(job).explanations:
                note(f"  {job}.{item.group}: {clean(item.summary)}")
