"""What came of a command. A refusal is a value: part of the replicated history like any other."""

from __future__ import annotations

import enum

import msgspec

from cube.model.ids import JobId, NodeId, TaskId
from cube.model.stored import StoredKind


class RejectReason(enum.StrEnum):
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"  # the object is not at the version the caller named (412)
    KEY_REUSED = "key_reused"  # the same idempotency key with another body (409)
    REFUSED = "refused"  # the state does not allow it (409)
    INVALID = "invalid"  # could never be right (422)
    LIMIT = "limit"  # a bound of the cluster is reached (409)
    STALE_TERM = "stale_term"  # a leader's action that arrived under another leader
    INTERNAL = "internal"  # a bug in apply; the state is unchanged


class Rejected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="rejected"):
    reason: RejectReason
    message: str


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="done"):
    """Applied; nothing more to say. `changed` False: the state was so already."""

    changed: bool = True


class JobAccepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="job"):
    job_id: JobId
    name: str
    version: int
    changed: bool
    created: bool


class RunStarted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="run"):
    """Of a cron job, by hand."""

    job_id: JobId  # the run's own
    name: str
    run: int


class NodeRegistered(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="node"):
    node_id: NodeId
    name: str


class RefusedPlacement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A placement of a plan that no longer fitted. `code` as in explain.Reason."""

    job_id: JobId
    group: str
    slot: int
    node_id: NodeId
    code: str


class PlanApplied(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="plan"):
    """`placed` tasks were made; `refused` lists at most REFUSED_MAX of `refused_count`."""

    placed: int
    refused_count: int = 0
    refused: tuple[RefusedPlacement, ...] = ()


class TaskStopped(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="task"):
    task_id: TaskId
    changed: bool


class StoredAccepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stored"):
    """`jobs` are the first of the `job_count` that have a new version because of it."""

    kind: StoredKind
    name: str
    version: int
    changed: bool
    jobs: tuple[str, ...] = ()
    job_count: int = 0


REFUSED_MAX = 20  # in one outcome: a hint for the log line, the plan is made anew anyway

Outcome = (
    Done
    | JobAccepted
    | RunStarted
    | NodeRegistered
    | PlanApplied
    | TaskStopped
    | StoredAccepted
    | Rejected
)
