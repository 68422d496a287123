"""What the worker knows of one task: the state's word, the driver's word, and how far it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from cube.model.cluster import Task
from cube.model.commands import TaskReport
from cube.model.ids import TaskId
from cube.model.lifecycle import Desired, Health, TaskState
from cube.model.spec import GroupSpec, JobType
from cube.worker.health import CheckState


class Phase(enum.Enum):
    """What is being done for a task. Each phase but HELD and DONE has one instruction; it is given
    when none is under way and `due_ms` has come, and its answer leads to the next phase.

        HELD → WAITING → PREPARING → STARTING → RUNNING → WITHDRAWING → STOPPING → REMOVING → DONE
                  ↑                     │          │                       ↑          ↑
                  └────── FAILING ──────┴──────────┘           (unwanted)  ┴──────────┘ (ended)
    """

    HELD = "held"  # its driver has not said yet what it has: nothing is done, nothing concluded
    WAITING = "waiting"  # for due_ms, before an attempt
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"  # Inspect, after a hint
    FAILING = (
        "failing"  # the attempt is given up (`cause` says why) but may still run: Stop or Kill
    )
    WITHDRAWING = "withdrawing"  # shutdown_delay of a planned ending
    STOPPING = "stopping"
    REMOVING = "removing"
    DONE = "done"


BEFORE_ENDING = frozenset(
    {Phase.WAITING, Phase.PREPARING, Phase.STARTING, Phase.RUNNING, Phase.FAILING}
)


class Cause(msgspec.Struct, frozen=True):
    """Why an attempt is over. `is_success`: it ran and exited with 0."""

    reason: str
    message: str
    exit_code: int | None = None
    oom_killed: bool = False
    is_success: bool = False


@dataclass(slots=True, kw_only=True)
class LocalTask:
    """Mutable, and written by cube.worker only, inside Worker.step.

    Invariants: at most one instruction is under way (`operation` is its token, 0: none), probes
    aside. `may_run` is False only when nothing of `attempt` can be running. `told` is the last
    report that was acknowledged, or what the state said at first.
    """

    id: TaskId
    driver: str
    task: Task | None  # None: not in the state (any more); then nothing is reported
    group: GroupSpec
    has_template: bool
    job_type: JobType
    uses: dict[str, int] = field(default_factory=dict)
    attempt: int
    view: TaskReport  # what the state should say
    told: TaskReport
    phase: Phase = Phase.HELD
    operation: int = 0
    is_cancelling: bool = False
    due_ms: int | None = None
    tries: int = 0  # of the phase's instruction, failed in a row
    may_run: bool = False
    is_touched: bool = False  # the driver may have something of it
    was_started: bool = False  # a Start of this attempt was given: its ports may be its own
    is_hinted: bool = False
    kill: bool = False  # without the stop signal
    logs_removed: bool = False
    is_removed: bool = False  # in this process's life
    cause: Cause | None = None
    end: TaskState | None = None  # what it ends as, once that is settled
    leftovers: list[int] = field(default_factory=list)  # other attempts that run and must not
    digest: str = ""  # of the image, as the state has it for this version of the job
    prepared: str | None = (
        None  # the digest that the last Prepare came back with; None: not prepared
    )
    restarts_ms: list[int] = field(default_factory=list)  # when, for the restart policy's window
    checks: dict[str, CheckState] = field(default_factory=dict)
    armed_ms: int | None = None  # the earliest timer that is set
    reports_ms: list[int] = field(default_factory=list)  # when, over the last minute
    told_index: int = 0  # a state of this index has `told` in it
    again_ms: int = 0
    again_tries: int = 0

    @property
    def is_wanted(self) -> bool:
        return self.task is not None and self.task.desired is Desired.RUN

    @property
    def is_stopping_quietly(self) -> bool:
        """It is over for everybody else (lost and replaced): only its real end is worth telling."""
        return (
            self.task is not None
            and self.task.state is TaskState.LOST
            and self.task.desired is not Desired.RUN
        )

    def enter(self, phase: Phase, due_ms: int | None = None) -> None:
        self.phase = phase
        self.due_ms = due_ms
        self.tries = 0

    def say(
        self,
        state: TaskState | None = None,
        *,
        reason: str = "",
        message: str = "",
        **changes: object,
    ) -> None:
        """The view, changed. Reason and message belong to the moment: not given, they are empty."""
        self.view = msgspec.structs.replace(
            self.view,
            attempt=self.attempt,
            state=self.view.state if state is None else state,
            reason=reason,
            message=message,
            **changes,
        )

    def next_due_ms(self, lease_due_ms: int | None = None) -> int | None:
        """When this task wants to be looked at, if nothing happens before."""
        due = [
            check.due_ms
            for check in (self.checks.values() if self.phase is Phase.RUNNING else ())
            if not check.token
        ]
        if self.due_ms is not None and not self.operation:
            due.append(self.due_ms)
        if lease_due_ms is not None:
            due.append(lease_due_ms)
        return min(due, default=None)


def view_of(task: Task) -> TaskReport:
    """The report that would change nothing."""
    return TaskReport(
        task_id=task.id,
        attempt=task.attempt,
        state=task.state,
        health=task.health,
        handle=task.handle,
        exit_code=task.exit_code,
        oom_killed=task.oom_killed,
        reason=task.reason,
        message=task.message,
        released=task.released,
        image_digest=task.image_digest,
    )


def first_health(group: GroupSpec) -> Health:
    """Of an attempt that has not been probed."""
    return Health.UNKNOWN if group.checks else Health.NONE
