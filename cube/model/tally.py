"""How many of a job's tasks are what: worked out once, and then carried from change to change.

A list of large jobs asks this of twenty thousand tasks, while reports change some of them all the
time. The first who asks looks at each task; `statemachine.draft` carries the answer on from then on
(JobTaskIds.tally), so who asks again finds it. It is derived: no two replicas need have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from cube.model.lifecycle import ENDED, Desired, Health, TaskState

if TYPE_CHECKING:
    from cube.model.cluster import Task


class GroupTally(msgspec.Struct):
    """`off`: has ended, or is to. `troubled`: unhealthy, or not the first try. `slots`: how many tasks
    each has; shared between tallies, and so never changed."""

    tasks: int = 0
    off: int = 0
    running: int = 0
    healthy: int = 0
    troubled: int = 0
    slots: dict[int, int] = {}

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
    return tally_after({}, [(None, task) for task in tasks])


def tally_after(before: JobTally, changes: Iterable[Change]) -> JobTally:
    """What `before` is when all that has happened. Of a task group and slot never change."""
    after = dict(before)
    fresh: set[str] = set()
    with_slots: set[str] = set()
    for old, new in changes:
        task = new or old
        assert task is not None, "a change of nothing"
        tally = after.get(task.group)
        if task.group not in fresh:
            fresh.add(task.group)
            tally = GroupTally() if tally is None else msgspec.structs.replace(tally)
            after[task.group] = tally
        assert tally is not None
        if old is not None:
            tally.count(old, -1)
        if new is not None:
            tally.count(new, 1)
        if old is None or new is None:
            if task.group not in with_slots:
                with_slots.add(task.group)
                tally.slots = dict(tally.slots)
            held = tally.slots.get(task.slot, 0) + (1 if old is None else -1)
            if held:
                tally.slots[task.slot] = held
            else:
                del tally.slots[task.slot]
    return {name: tally for name, tally in after.items() if tally.tasks}
