"""How many of a job's tasks are what: worked out once, and then carried from change to change.

A list of large jobs asks this of twenty thousand tasks, while reports change some of them all the
time. The first who asks looks at each task; `statemachine.draft` carries the answer on from then on
(JobTaskIds.tally), so who asks again finds it. It is derived: no two replicas need have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from cube.model.lifecycle import ENDED, Desired, Health, TaskState

if TYPE_CHECKING:
    from cube.model.cluster import Task


class GroupTally(msgspec.Struct):
    """`off`: has ended, or is to. `healthy`: serves. `troubled`: unhealthy, or not the first try.
    `slots`, `versions`: how many tasks each has; shared between tallies, and so never changed."""

    tasks: int = 0
    off: int = 0
    running: int = 0
    healthy: int = 0
    troubled: int = 0
    slots: dict[int, int] = {}
    versions: dict[int, int] = {}

    def is_one_each(self, count: int) -> bool:
        """All live and to stay so, no two in one slot, none beyond `count` slots."""
        return not self.off and len(self.slots) == self.tasks and max(self.slots) < count

    def count(self, task: Task, by: int) -> None:
        """The task is among them (1), or not any more (-1)."""
        health, state = task.health, task.state
        self.tasks += by
        if task.desired is not Desired.RUN or state in ENDED:
            self.off += by
        if state is TaskState.RUNNING:
            self.running += by
            if health is Health.NONE or health is Health.HEALTHY:
                self.healthy += by
        if health is Health.UNHEALTHY or task.attempt > 1 or task.reschedules > 0:
            self.troubled += by


Change = tuple["Task | None", "Task | None"]  # a task before and after; None: it was not, or is not
JobTally = dict[str, GroupTally]  # by group; never changed once it is made


def tally_of(tasks: Iterable[Task]) -> JobTally:
    by_group: dict[str, list[Task]] = {}
    for task in tasks:
        by_group.setdefault(task.group, []).append(task)
    return {name: _tally_of_group(found) for name, found in by_group.items()}


def _tally_of_group(tasks: list[Task]) -> GroupTally:
    """What GroupTally.count comes to, one task after another, in a third of the time."""
    running = [task for task in tasks if task.state is TaskState.RUNNING]
    none, healthy, unhealthy = Health.NONE, Health.HEALTHY, Health.UNHEALTHY
    return GroupTally(
        tasks=len(tasks),
        off=sum([task.desired is not Desired.RUN or task.state in ENDED for task in tasks]),
        running=len(running),
        healthy=sum([task.health is none or task.health is healthy for task in running]),
        troubled=sum(
            [task.health is unhealthy or task.attempt > 1 or task.reschedules > 0 for task in tasks]
        ),
        slots=dict(Counter([task.slot for task in tasks])),
        versions=dict(Counter([task.version for task in tasks])),
    )


def tally_after(before: JobTally, changes: Iterable[Change]) -> JobTally:
    """What `before` is when all that has happened. Of a task group and slot never change."""
    after = dict(before)
    made: dict[str, _Making] = {}
    for old, new in changes:
        task = new or old
        assert task is not None, "a change of nothing"
        making = made.get(task.group)
        if making is None:
            making = made[task.group] = _Making(after.get(task.group))
            after[task.group] = making.tally
        making.take(old, new)
    return {name: tally for name, tally in after.items() if tally.tasks}


class _Making:
    """A tally under change. What it shares with the one before is copied at its first change."""

    def __init__(self, before: GroupTally | None) -> None:
        self.tally = GroupTally() if before is None else msgspec.structs.replace(before)
        self._slots: dict[int, int] | None = None
        self._versions: dict[int, int] | None = None

    def take(self, old: Task | None, new: Task | None) -> None:
        tally = self.tally
        for task, by in ((old, -1), (new, 1)):
            if task is not None:
                tally.count(task, by)
        if old is not None and new is not None and old.version == new.version:
            return
        if self._slots is None or self._versions is None:
            self._slots = tally.slots = dict(tally.slots)
            self._versions = tally.versions = dict(tally.versions)
        for task, by in ((old, -1), (new, 1)):
            if task is not None:
                _add(self._slots, task.slot, by)
                _add(self._versions, task.version, by)


def _add(counts: dict[int, int], key: int, by: int) -> None:
    count = counts.get(key, 0) + by
    if count:
        counts[key] = count
    else:
        del counts[key]
