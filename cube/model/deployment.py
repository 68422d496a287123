"""The rollout of one job version, as it is agreed. Only cube.statemachine makes new ones.

    running ⇄ paused        running → successful | failed → rolled_back
                            failed → successful      (it came up late, and nothing was taken back)

A job has one deployment for each version that it had since its last removal; the newest is that of the
wanted version. An older one that was still under way has failed: it was superseded.
"""

from __future__ import annotations

import enum

import msgspec

DEPLOYMENTS_MAX = 10  # kept per job: as many as versions


class DeploymentStatus(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"


class DeploymentAction(enum.StrEnum):
    """What a user may do to the newest one."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    FAIL = "fail"


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """`from_version`: the last version that was healthy when this one began, 0: none. It is what
    a failure goes back to. `replaces`: some group needs new containers; one that does not is never
    taken back. `rolls_back`: the version that failed and that this deployment takes back, 0: none.
    `clock_at_ms`: from when on the deadline counts if nothing has come up since. `cause`: why it began,
    where nobody has submitted its version."""

    version: int
    from_version: int = 0
    replaces: bool = False
    rolls_back: int = 0
    promoted: bool = False
    status: DeploymentStatus = DeploymentStatus.RUNNING
    message: str = ""
    created_at_ms: int = 0
    status_at_ms: int = 0
    clock_at_ms: int = 0
    cause: str = ""

    @property
    def is_open(self) -> bool:
        """Still to be decided."""
        return self.status in (DeploymentStatus.RUNNING, DeploymentStatus.PAUSED)

    @property
    def may_be_decided(self) -> bool:
        """By the leader: it is under way, or failed with nothing to go back to and may yet come up."""
        if self.status is DeploymentStatus.FAILED:
            return not self.may_go_back
        return self.status is DeploymentStatus.RUNNING

    @property
    def may_go_back(self) -> bool:
        return self.replaces and self.from_version > 0

    @property
    def holds(self) -> bool:
        """No task may be replaced for its sake: what runs of the older version is kept as that."""
        if self.status is DeploymentStatus.PAUSED:
            return True
        return self.status is DeploymentStatus.FAILED and self.may_go_back


class DeploymentStep(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    """The leader's verdict on the newest deployment of a job. `roll_back`: with a failure, the spec
    of `from_version` becomes the newest version."""

    job_id: str
    version: int
    status: DeploymentStatus
    message: str = ""
    roll_back: bool = False


def deployment_id(job: str, version: int) -> str:
    """`shop.v7`: names have no dots, so it can be taken apart again."""
    return f"{job}.v{version}"


def parse_deployment_id(text: str) -> tuple[str, int] | None:
    """(job, version); None for anything else."""
    job, dot, version = text.rpartition(".v")
    if not dot or not job or not (version.isascii() and version.isdigit()) or len(version) > 9:
        return None
    return job, int(version)
