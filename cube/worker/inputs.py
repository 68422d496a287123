"""What the worker is told. Everything that happened reaches it as one of these."""

from __future__ import annotations

import msgspec

from cube.model.cluster import Task
from cube.model.launch import Observation
from cube.model.spec import GroupSpec, JobType


class WantedTask(msgspec.Struct, frozen=True):
    """A task of this node as the state has it. `group` None: the state forgot its template. `uses`:
    the secrets and configs it was made with (JobVersion.uses)."""

    task: Task
    group: GroupSpec | None
    job_type: JobType
    uses: dict[str, int] = {}
    digest: str = ""  # of the image, as its job's version has it; empty: nobody has said yet


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks of this node in the state at `index`, by id. `leader_now_ms` is the state's time.

    `complete` False: this replica may be far behind, so nothing may be concluded from it.
    """

    tasks: tuple[WantedTask, ...]
    index: int
    leader_now_ms: int
    complete: bool
    node_name: str = ""


class Recovered(msgspec.Struct, frozen=True):
    """The answer to Recover: all that the driver has of this node."""

    token: int
    observations: tuple[Observation, ...]


class Observed(msgspec.Struct, frozen=True):
    """A driver's hint. What is true is asked for (Inspect)."""

    driver: str
    observation: Observation


class InstructionDone(msgspec.Struct, frozen=True):
    """Prepare and Remove come back without an observation, the others with one. `digest`: of the
    image that was prepared, empty when it has none."""

    token: int
    observation: Observation | None = None
    digest: str = ""


class InstructionFailed(msgspec.Struct, frozen=True):
    """As DriverFailed. A cancelled Prepare comes back with the code CANCELLED."""

    token: int
    code: str
    message: str
    transient: bool


class ProbeResult(msgspec.Struct, frozen=True):
    """`is_healthy` None: the check could not be made, which is not the task's fault."""

    token: int
    is_healthy: bool | None
    message: str = ""


class Reported(msgspec.Struct, frozen=True):
    """The reports are committed and applied here; a Wanted of `index` or later shows them."""

    token: int
    index: int


class ReportFailed(msgspec.Struct, frozen=True):
    """They may or may not be committed."""

    token: int
    message: str


class Leased(msgspec.Struct, frozen=True):
    """A leader has acknowledged this node, by a heartbeat that was sent at `sent_ms` (monotonic). The
    newest Wanted before this input has whatever was committed when the leader heard it."""

    sent_ms: int


CANCELLED = "cancelled"

Input = (
    Wanted
    | Recovered
    | Observed
    | InstructionDone
    | InstructionFailed
    | ProbeResult
    | Reported
    | ReportFailed
    | Leased
)
