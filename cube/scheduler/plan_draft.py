"""The plan so far, and how much of its bounds is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cube.model.cluster import Job
from cube.model.commands import (
    ApplyPlan,
    GroupPlacement,
    PlannedStop,
    RunEnd,
    RunStep,
)
from cube.model.deployment import DeploymentStep
from cube.model.explain import Explanation
from cube.model.ids import NodeId, TaskId
from cube.scheduler.slots import JobWork
from cube.scheduler.want import Want

if TYPE_CHECKING:
    from cube.scheduler.place import Picks, Placer
    from cube.scheduler.vector import Ask

PLAN_BYTES_MAX = 256 * 1024  # of an encoded ApplyPlan: one log entry (performance.md)
# Placements of one plan: they bound how long a leader is held up.
PLANNED_MAX = 3_000
EXPLANATIONS_MAX = 1_000  # in one plan: for logs and metrics; `explain` has no such bound
_HEAD_BYTES = 512  # term, seed, the structure itself
_GROUP_BYTES = 64  # of a GroupPlacement besides its slots and texts
_SLOT_BYTES = 5 + 3 + 1  # slot, node_at, head of its ports
_PORT_BYTES = 3
_ID_BYTES = 3  # head of a text; the text itself is added
_UPDATE_BYTES = 6  # head of the pair, version
_RUN_BYTES = 64  # of a RunStep or RunEnd besides its texts
_NODE_ID_BYTES = 64  # a UUID is 36; ids are bounded by what registration accepts
_VERDICT_BYTES = 32  # of a DeploymentStep besides its texts
_LEAST = 16  # slots: a plan with less room than this is full rather than crumbled


class Plan(msgspec.Struct, frozen=True):
    """`command` None: nothing to do. `explanations`: of what is not placed, in short (`why.explain`
    goes into detail). `wake_at_ms`: when another plan could differ though nothing has happened.
    `more`: the plan was full; make the next one as soon as this one is applied."""

    command: ApplyPlan | None
    explanations: tuple[Explanation, ...] = ()
    wake_at_ms: int | None = None
    more: bool = False


class PlanDraft:
    """The plan so far, and how much of its bounds is left."""

    def __init__(self, term: int, seed: str) -> None:
        self._term = term
        self._seed = seed
        self._bytes = PLAN_BYTES_MAX - _HEAD_BYTES - len(seed.encode())
        self._placed = 0
        self._nodes: list[NodeId] = []
        self._number_of: dict[int, int] = {}  # mirror's row → position in _nodes
        self._placements: list[GroupPlacement] = []
        self._stops: list[PlannedStop] = []
        self._updates: list[tuple[TaskId, int]] = []
        self._reaps: list[TaskId] = []
        self._run_ends: list[RunEnd] = []
        self._run_steps: list[RunStep] = []
        self._verdicts: list[DeploymentStep] = []
        self._explanations: list[Explanation] = []
        self._reasons: dict[Ask, tuple[str, ...]] = {}
        self._wake_at_ms: int | None = None
        self.full = False
        self.is_balanced = False

    @property
    def is_empty(self) -> bool:
        return not (self.full or self._placements or self._stops or self._updates)

    @property
    def wake_at_ms(self) -> int | None:
        return self._wake_at_ms

    def cut(self) -> None:
        """Something is left to look at, in the next plan."""
        self.full = True

    def _spend(self, size: int) -> bool:
        if self.full or size > self._bytes:
            self.full = True
            return False
        self._bytes -= size
        return True

    def add(self, job: Job, work: JobWork) -> None:
        """The job's stops, updates and reaps, and what it waits for."""
        for task_id, reason in work.stops:
            self.stop(task_id, reason)
        for task_id, version in work.updates:
            if self._spend(_ID_BYTES + len(task_id) + _UPDATE_BYTES):
                self._updates.append((task_id, version))
        for task_id in work.reaps:
            if self._spend(_ID_BYTES + len(task_id)):
                self._reaps.append(task_id)
        if work.verdict is not None:
            size = _VERDICT_BYTES + len(job.id) + len(work.verdict.message.encode())
            if self._spend(size):
                self._verdicts.append(work.verdict)
        for waiting in work.waiting:
            self._explain(
                Explanation(
                    job.name,
                    waiting.group,
                    waiting.slots,
                    "waiting",
                    waiting.detail or waiting.cause,
                )
            )
        for end in work.run_ends:
            texts = len(end.job_id) + len(end.status) + len(end.message.encode())
            if self._spend(_RUN_BYTES + texts):
                self._run_ends.append(end)
        for step in work.run_steps:
            if self._spend(_RUN_BYTES + len(step.job_id)):
                self._run_steps.append(step)
        if work.wake_at_ms is not None:
            self.wake(work.wake_at_ms)

    def stop(self, task_id: TaskId, reason: str) -> None:
        if self._spend(2 * _ID_BYTES + len(task_id) + len(reason.encode())):
            self._stops.append(PlannedStop(task_id, reason))

    def wake(self, at_ms: int) -> None:
        known = self._wake_at_ms
        self._wake_at_ms = at_ms if known is None else min(known, at_ms)

    def room_for(self, want: Want) -> int:
        """How many of the want's slots surely still fit, every one on a node of its own."""
        each = (
            _replace_bytes(want)
            + _SLOT_BYTES
            + _PORT_BYTES * len(want.spec.ports)
            + _ID_BYTES
            + _NODE_ID_BYTES
        )
        room = (self._bytes - self._group_bytes(want)) // each
        room = min(room, PLANNED_MAX - self._placed)
        if room < min(len(want.slots), _LEAST):
            self.full = True
            return 0
        return room

    def _group_bytes(self, want: Want) -> int:
        texts = (want.job.id, want.group, want.reason)
        return _GROUP_BYTES + sum(len(text.encode()) for text in texts)

    def place(self, want: Want, picks: Picks, node_ids: list[NodeId]) -> None:
        if not picks.slots:
            return
        size = self._group_bytes(want)
        numbers = self._number_of
        for row in picks.rows:
            if row not in numbers:
                numbers[row] = len(self._nodes)
                self._nodes.append(node_ids[row])
                size += _ID_BYTES + len(node_ids[row])
        size += len(picks.slots) * (
            _replace_bytes(want) + _SLOT_BYTES + _PORT_BYTES * len(want.spec.ports)
        )
        self._bytes -= size
        self._placed += len(picks.slots)
        self._placements.append(
            GroupPlacement(
                want.job.id,
                want.version or want.job.version,
                want.group,
                picks.slots,
                tuple([numbers[row] for row in picks.rows]),
                tuple(picks.ports),
                want.replaces[: len(picks.slots)],
                want.reason,
            )
        )

    def reasons(self, ask: Ask, placer: Placer, want: Want) -> tuple[str, ...]:
        """Why nothing more of this kind is placed, worked out once in a plan."""
        found = self._reasons.get(ask)
        if found is None:
            found = self._reasons[ask] = placer.why_not(want)
        return found

    def unplaced(self, want: Want, slots: tuple[int, ...], reasons: tuple[str, ...]) -> None:
        summary = f"{len(slots)} not placed: " + (", ".join(reasons) or "there are no nodes")
        self._explain(Explanation(want.job.name, want.group, slots, "unplaced", summary))

    def _explain(self, explanation: Explanation) -> None:
        if len(self._explanations) < EXPLANATIONS_MAX:
            self._explanations.append(explanation)

    def done(self) -> Plan:
        command: ApplyPlan | None = None
        parts = (
            self._placements,
            self._stops,
            self._updates,
            self._reaps,
            self._run_ends,
            self._run_steps,
            self._verdicts,
        )
        if any(parts) or self.is_balanced:
            command = ApplyPlan(
                self._term,
                self._seed,
                tuple(self._nodes),
                tuple(self._placements),
                tuple(self._stops),
                tuple(self._updates),
                tuple(self._reaps),
                tuple(self._run_ends),
                tuple(self._run_steps),
                tuple(self._verdicts),
                self.is_balanced,
            )
        return Plan(command, tuple(self._explanations), self._wake_at_ms, self.full)


def _replace_bytes(want: Want) -> int:
    return _ID_BYTES + len(want.replaces[0]) if want.replaces else 0
