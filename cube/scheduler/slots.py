"""The slots of a group, and what one job's pass collects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from cube.model.cluster import ClusterState, Job, Task
from cube.model.commands import RunEnd, RunStep
from cube.model.deployment import DeploymentStep
from cube.model.ids import NodeId, TaskId
from cube.scheduler import reap
from cube.scheduler.want import Want

if TYPE_CHECKING:
    from cube.scheduler.group_pass import Progress


class Waiting(msgspec.Struct, frozen=True):
    """Slots of a group that get nothing now. `cause`: depends_on, backoff, returning, on_partition,
    over, run (an earlier run has not ended), schedule, rollout. `until_ms` 0: no timer ends it."""

    group: str
    slots: tuple[int, ...]
    cause: str
    until_ms: int = 0
    detail: str = ""


class JobWork(msgspec.Struct, frozen=True):
    """All that is to do for one job at one moment. `wake_at_ms`: when that may change by itself."""

    wants: tuple[Want, ...] = ()
    stops: tuple[tuple[TaskId, str], ...] = ()
    updates: tuple[tuple[TaskId, int], ...] = ()
    reaps: tuple[TaskId, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    verdict: DeploymentStep | None = None
    wake_at_ms: int | None = None
    run_ends: tuple[RunEnd, ...] = ()
    run_steps: tuple[RunStep, ...] = ()

    @property
    def sleeps(self) -> bool:
        """Nothing to do and nothing to tell until `wake_at_ms`."""
        return not (
            self.wants
            or self.stops
            or self.updates
            or self.reaps
            or self.waiting
            or self.verdict is not None
            or self.run_ends
            or self.run_steps
        )

    @property
    def idle(self) -> bool:
        """Nothing to do, and nothing that waits for anything but a change of the job itself."""
        return self is _IDLE


_IDLE = JobWork()


class WorkDraft:
    """What one job's pass has found so far."""

    def __init__(
        self,
        state: ClusterState,
        job: Job,
        now_ms: int,
        silent_ms: Mapping[NodeId, int] | None = None,
    ) -> None:
        self.state = state
        self.silent_ms = silent_ms  # see singleton.held
        self.job = job
        self.now_ms = now_ms
        self.wants: list[Want] = []
        self.stops: list[tuple[TaskId, str]] = []
        self.updates: list[tuple[TaskId, int]] = []
        self.reaps: list[TaskId] = []
        self.waiting: list[Waiting] = []
        self.progress: dict[str, Progress] = {}  # by group
        self.verdict: DeploymentStep | None = None
        self.wake_at_ms: int | None = None
        self.run_ends: list[RunEnd] = []
        self.run_steps: list[RunStep] = []

    def wake(self, at_ms: int | None) -> None:
        if at_ms is not None and at_ms > self.now_ms:
            self.wake_at_ms = at_ms if self.wake_at_ms is None else min(self.wake_at_ms, at_ms)

    def done(self) -> JobWork:
        found = JobWork(
            tuple(self.wants),
            tuple(self.stops),
            tuple(self.updates),
            tuple(self.reaps),
            tuple(self.waiting),
            self.verdict,
            self.wake_at_ms,
            tuple(self.run_ends),
            tuple(self.run_steps),
        )
        return _IDLE if found.wake_at_ms is None and found.sleeps else found


class Slot:
    """One slot's tasks, each list oldest first."""

    __slots__ = ("ended", "live", "stopping")

    def __init__(self) -> None:
        self.live: list[Task] = []
        self.stopping: list[Task] = []  # not ended, not wanted
        self.ended: list[Task] = []

    def serves(self) -> bool:
        return any(task.serving for task in self.live)


def slots_of(tasks: Sequence[Task]) -> dict[int, Slot]:
    """By number. `tasks` in order of slot and age."""
    slots: dict[int, Slot] = {}
    for task in tasks:
        slot = slots.get(task.slot)
        if slot is None:
            slot = slots[task.slot] = Slot()
        if task.ended:
            slot.ended.append(task)
        elif task.live:
            slot.live.append(task)
        else:
            slot.stopping.append(task)
    return slots


def reap_surplus(draft: WorkDraft, slot: Slot) -> None:
    due, later_ms = reap.surplus(slot.ended, draft.state.settings, draft.now_ms)
    draft.reaps.extend(task.id for task in due)
    draft.wake(later_ms)


def reap_beyond(draft: WorkDraft, slot: Slot) -> None:
    due, later_ms = reap.beyond(slot.ended, draft.state.settings, draft.now_ms)
    draft.reaps.extend(task.id for task in due)
    draft.wake(later_ms)
